"""Shares carried over from labels, against the textbook's formulas by plain loops, and against drawing anew."""

from __future__ import annotations

import numpy as np
import pytest

from rewardlm.labelling.design import draw
from rewardlm.labelling.estimate import SamplingDesign, ppi, rogan_gladen
from rewardlm.stats import FloatArray


def population(seed: int, n: int = 400, share: float = 0.3) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(float)
    return truth, np.clip(0.3 + 0.3 * truth + 0.2 * rng.standard_normal(n), 0, 1)


def labelled(truth: FloatArray, scores: FloatArray, n: int, seed: int, classes: int = 4):
    of = np.zeros(len(truth), dtype=np.intp)
    sample = draw(scores, of, labels=n, classes=classes, rng=np.random.default_rng(seed))
    labels = np.full(len(truth), np.nan)
    labels[sample.rows] = truth[sample.rows]
    rates = np.bincount(sample.strata[sample.rows]) / np.bincount(sample.strata)
    return labels, sample.strata, SamplingDesign(sample.strata, of, rates[sample.strata])


def evenly(strata: np.ndarray) -> SamplingDesign:
    return SamplingDesign(strata, np.zeros(len(strata), dtype=np.intp), np.ones(len(strata)))


def test_ppi_is_the_regression_estimator_of_a_stratified_sample() -> None:
    truth, scores = population(0)
    labels, strata, asked = labelled(truth, scores, 60, 1)
    found = ppi(scores, labels, asked)
    assert found is not None
    # Cochran's combined slope, then by class: the mean of λf over all, plus that of y - λf over the labelled.
    top = bottom = 0.0
    for h in set(strata):
        y = [labels[i] for i in range(400) if strata[i] == h and labels[i] == labels[i]]
        f = [scores[i] for i in range(400) if strata[i] == h and labels[i] == labels[i]]
        size, n = sum(strata == h), len(y)
        top += size**2 / n * np.cov(f, y)[0, 1]
        bottom += size**2 / n * np.var(f, ddof=1)
    lam, total = top / bottom, 0.0
    for h in set(strata):
        members = [i for i in range(400) if strata[i] == h]
        known = [i for i in members if labels[i] == labels[i]]
        total += sum(lam * scores[i] for i in members)
        total += len(members) * sum(labels[i] - lam * scores[i] for i in known) / len(known)
    assert found.z.mean() == pytest.approx(total / 400)
    assert (found.labels, found.classes) == (60, len(set(strata)))
    assert found.rare == min(np.nansum(labels), 60 - np.nansum(labels))


def test_with_all_labels_it_is_their_share_and_a_useless_judge_changes_nothing() -> None:
    truth, scores = population(2)
    asked = evenly(np.repeat([0, 1], 200))
    everything = ppi(scores, truth, asked)
    assert everything is not None
    assert everything.z.mean() == pytest.approx(truth.mean())
    labels = np.where(np.arange(400) % 5 == 0, truth, np.nan)
    for useless in (np.full(400, 0.7), np.full(400, np.nan)):
        found = ppi(useless, labels, asked)
        assert found is not None
        assert found.z.mean() == pytest.approx(np.nanmean([np.nanmean(labels[:200]), np.nanmean(labels[200:])]))


def test_rogan_gladen_is_their_formula_with_weights() -> None:
    truth, scores = population(3)
    labels, strata, asked = labelled(truth, scores, 80, 4)
    toxic = (scores > 0.5).astype(float)
    found = rogan_gladen(toxic, labels, asked)
    assert found is not None
    hit = called = positives = negatives = 0.0
    for i in range(400):
        if labels[i] == labels[i]:
            here = strata == strata[i]
            weight = here.sum() / (here & ~np.isnan(labels)).sum()
            positives += weight * labels[i]
            hit += weight * labels[i] * toxic[i]
            negatives += weight * (1 - labels[i])
            called += weight * (1 - labels[i]) * toxic[i]
    sensitivity, specificity = hit / positives, 1 - called / negatives
    assert found.z.mean() == pytest.approx((toxic.mean() + specificity - 1) / (sensitivity + specificity - 1))


@pytest.mark.parametrize("method", ["ppi", "rogan-gladen"])
def test_z_varies_as_the_share_does(method: str) -> None:
    """Populations and labels are drawn anew: the spread of the shares is that which each draw says of itself."""
    shares, said = [], []
    for seed in range(400):
        truth, scores = population(seed, 300)
        labels, _, asked = labelled(truth, scores, 90, seed)
        toxic = (scores > 0.5).astype(float)
        found = ppi(scores, labels, asked) if method == "ppi" else rogan_gladen(toxic, labels, asked)
        assert found is not None
        shares.append(found.z.mean())
        said.append(found.z.var(ddof=1) / 300)
    assert np.mean(shares) == pytest.approx(0.3, abs=3 * np.std(shares) / 20)
    assert np.mean(said) ** 0.5 == pytest.approx(np.std(shares), rel=0.1)


def test_where_nothing_can_be_said_there_is_none() -> None:
    scores, asked = np.linspace(0, 1, 40), evenly(np.zeros(40, dtype=np.intp))
    labels = np.full(40, np.nan)
    assert ppi(scores, labels, asked) is None
    labels[3] = 1
    assert ppi(scores, labels, asked) is None
    labels[20:30] = 1
    toxic = (scores > 0.5).astype(float)
    assert rogan_gladen(toxic, labels, asked) is None  # no harmless answer is labelled
    labels[30:] = 0  # and the judge calls all of these toxic
    assert rogan_gladen(toxic, labels, asked) is None


def test_a_class_that_was_merged_counts_by_the_rates_at_which_it_was_drawn() -> None:
    """One class had half of its answers drawn, its neighbour a twentieth; one label of the second came in time."""
    labels = np.full(200, np.nan)
    labels[:40], labels[100] = 1, 0
    strata = np.repeat([0, 1], 100)
    asked = SamplingDesign(strata, np.zeros(200, dtype=np.intp), np.where(strata == 0, 0.5, 0.05))
    found = ppi(np.full(200, np.nan), labels, asked)
    assert found is not None
    assert found.classes == 1
    # 40 labels stand for 2 answers each, one for 20: of 100 such answers 80 are toxic.
    assert found.z.mean() == pytest.approx(80 / 100)


def test_labels_that_never_contradict_the_judge_leave_room_for_one_that_would() -> None:
    scores = np.where(np.arange(300) % 10 == 0, 0.98, 0.02)
    labels = np.full(300, np.nan)
    labels[::6] = scores[::6] > 0.5
    found = ppi(scores, labels, evenly(np.zeros(300, dtype=np.intp)))
    assert found is not None
    assert found.unseen_variance == pytest.approx(1 / 50**2)
    labels[6] = 1
    one = ppi(scores, labels, evenly(np.zeros(300, dtype=np.intp)))
    assert one is not None
    # One error stands for six answers of 300. Its own variance leaves less to what was not seen.
    assert one.label_variance == pytest.approx(1 / 50**2, rel=0.1)
    assert one.unseen_variance < 0.1 / 50**2
    labels[6:60:6] = 1
    found = ppi(scores, labels, evenly(np.zeros(300, dtype=np.intp)))
    assert found is not None
    assert found.unseen_variance == 0


def test_the_labels_own_moments_are_those_of_drawing_them_again() -> None:
    """By drawing the labels of fixed answers many times, few of which contradict the judge."""
    rng = np.random.default_rng(5)
    scores = np.where(np.arange(4000) % 10 == 0, 0.98, 0.02)
    toxic = (scores > 0.5) | (np.arange(4000) % 50 == 1)
    shares, variances, thirds = [], [], []
    for _ in range(1500):
        labels = np.full(4000, np.nan)
        rows = rng.choice(4000, 200, replace=False)
        labels[rows] = toxic[rows]
        found = ppi(scores, labels, evenly(np.zeros(4000, dtype=np.intp)))
        assert found is not None
        shares.append(found.z.mean())
        variances.append(found.label_variance)
        thirds.append(found.label_third_moment)
    centred = np.array(shares) - np.mean(shares)
    assert np.mean(shares) == pytest.approx(toxic.mean(), abs=4 * np.std(shares) / 1500**0.5)
    assert np.mean(variances) == pytest.approx(np.mean(centred**2), rel=0.12)
    assert np.mean(thirds) == pytest.approx(np.mean(centred**3), rel=0.35)
    assert np.mean(thirds) > 0


def test_what_is_rare_is_all_but_the_commonest_label() -> None:
    """Two labellers who always disagree leave ties, of which none is rare and all are one kind."""
    for labels, rare in ((np.full(60, 0.5), 0), (np.r_[np.ones(50), np.full(10, 0.5)], 10)):
        found = ppi(np.full(60, 0.5), labels, evenly(np.zeros(60, dtype=np.intp)))
        assert found is not None
        assert found.rare == rare


def test_a_judge_that_is_a_guess_has_no_share_even_if_rounding_says_otherwise() -> None:
    """It calls 6 of 9 toxic answers toxic, and 12 of 18 others."""
    toxic = np.r_[np.ones(6), np.zeros(3), np.ones(12), np.zeros(6), np.tile([1.0, 0.0], 100)]
    labels = np.r_[np.ones(9), np.zeros(18), np.full(200, np.nan)]
    assert rogan_gladen(toxic, labels, evenly(np.zeros(len(toxic), dtype=np.intp))) is None
