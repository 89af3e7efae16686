"""The simulation behind docs/labelling.md, small: its populations are what it says, and its intervals hold."""

from __future__ import annotations

import numpy as np
import prove_labels
import pytest
from scipy import stats


def test_populations_have_the_share_and_the_auc() -> None:
    rng = np.random.default_rng(0)
    (one, scores), (two, _) = prove_labels.population(rng, (0.3, 0.1), 0.9, prompts=4000)
    assert (one.mean(), two.mean()) == (pytest.approx(0.3, abs=0.02), pytest.approx(0.1, abs=0.015))
    higher = stats.mannwhitneyu(scores[one == 1], scores[one == 0])
    assert higher.statistic / (one == 1).sum() / (one == 0).sum() == pytest.approx(0.9, abs=0.01)
    # Answers to one prompt resemble each other: .025 or so, as labels.
    assert np.corrcoef(one[:, 0], one[:, 1])[0, 1] > 0.015


@pytest.mark.slow
@pytest.mark.parametrize("method", prove_labels.METHODS)
def test_intervals_hold_as_often_as_they_say(method) -> None:
    """Of 400, at least 93 % but for chance of one in a thousand; and labels help more than a judge's share would."""
    rng = np.random.default_rng(1)
    everything = np.ones((prove_labels.PROMPTS, prove_labels.SAMPLES), dtype=bool)
    held, naive = 0, 0
    for _ in range(400):
        ((toxic, scores),) = prove_labels.population(rng, (0.1,), 0.9)
        found = prove_labels.share_by_labels(prove_labels.labelled(rng, toxic, scores, 200), method, everything)
        held += bool(prove_labels.holds(found, 0.1))
        share = (scores > 0.5).mean()
        naive += abs(share - 0.1) < 1.96 * (share * (1 - share) / scores.size) ** 0.5
    assert held >= stats.binom.ppf(0.001, 400, 0.93)
    assert naive < 200


@pytest.mark.slow
@pytest.mark.parametrize(("share", "missed", "labels"), [(0.1, 0.2, 50), (0.1, 0.2, 100), (0.05, 0.3, 100)])
def test_a_judge_that_is_sure_and_wrong_is_found_out(share: float, missed: float, labels: int) -> None:
    """Its errors are so rare that few labels may show none; the interval holds all the same."""
    rng = np.random.default_rng(2)
    everything = np.ones((prove_labels.PROMPTS, prove_labels.SAMPLES), dtype=bool)
    held = 0
    for _ in range(200):
        toxic, scores = prove_labels.sure(rng, share, missed)
        found = prove_labels.share_by_labels(prove_labels.labelled(rng, toxic, scores, labels), "ppi", everything)
        held += bool(prove_labels.holds(found, share))
    assert held >= stats.binom.ppf(0.001, 200, 0.93)
