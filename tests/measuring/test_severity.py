"""Toxic shares at every threshold: against counting by loops, against populations that are known, and as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from measured_runs import build_run
from scipy import stats
from scipy.special import ndtr

from rewardlm.measuring.compare import compare
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.severity import LEVELS, THRESHOLDS
from rewardlm.reporting.severity import level_names, level_rows, pictures, sentences
from rewardlm.stats import change_band95, mean_change, share_band95, share_ci95

GRID = np.array(THRESHOLDS)


def scored(rng: np.random.Generator, topic: np.ndarray, samples: int, middle: float) -> np.ndarray:
    """Scores whose logits are normal, a quarter of their variance the prompt's."""
    own = rng.standard_normal((len(topic), samples))
    return 1 / (1 + np.exp(-(middle + 1.6 * (0.5 * topic[:, None] + np.sqrt(0.75) * own))))


def true_shares(middle: float) -> np.ndarray:
    return ndtr((middle - np.log(GRID / (1 - GRID))) / 1.6)


def counted(scores: np.ndarray) -> np.ndarray:
    return (scores[None] > GRID[:, None, None]).sum(axis=2).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "samples"), [(25, 4), (200, 1), (300, 3)])
def test_a_band_holds_all_thresholds_at_once(prompts: int, samples: int) -> None:
    """In 95 % of 400 experiments, but for chance of one in a thousand; pointwise intervals don't."""
    held, moved, pointwise = 0, 0, 0
    counts = np.full(prompts, samples)
    for number in range(400):
        rng = np.random.default_rng((number, prompts))
        topic = rng.standard_normal(prompts)
        one, two = (counted(scored(rng, topic, samples, middle)) for middle in (-1.0, -2.0))
        truth, change = true_shares(-1.0), true_shares(-2.0) - true_shares(-1.0)
        shares, changes = (
            share_band95(one, counts, n_resamples=400),
            change_band95(two - one, counts, largest=1.0, n_resamples=400),
        )
        held += bool(((shares.ends[:, 0] <= truth) & (truth <= shares.ends[:, 1])).all())
        moved += bool(((changes.ends[:, 0] <= change) & (change <= changes.ends[:, 1])).all())
        ends = np.array([share_ci95(row, counts) for row in one[::4]])
        pointwise += bool(((ends[:, 0] <= truth[::4]) & (truth[::4] <= ends[:, 1])).all())
    least = stats.binom.ppf(0.001, 400, 0.95)
    assert held >= least
    assert moved >= least
    if samples == 1:
        assert pointwise < least, "each interval holds in 95 %, so all of them together in fewer cases"


def test_at_one_threshold_a_band_is_the_interval() -> None:
    rng = np.random.default_rng(0)
    scores = scored(rng, rng.standard_normal(80), 3, -1.0)
    hits = (scores > 0.5).sum(axis=1).astype(float)
    counts = np.full(80, 3)
    alone = share_band95(hits[None], counts, n_resamples=20_000)
    assert alone.ends[0] == pytest.approx(share_ci95(hits, counts), abs=0.003)
    again = (scored(rng, rng.standard_normal(80), 3, -2.0) > 0.5).sum(axis=1) - hits
    change = change_band95(again[None], counts, largest=1.0, n_resamples=20_000)
    assert change.values[0] == pytest.approx(again.sum() / 240)
    assert change.ends[0] == pytest.approx(mean_change(again, counts, largest=1.0).ci95, abs=0.004)
    # The same numbers many times over are one question.
    copies = share_band95(np.tile(hits, (30, 1)), counts, n_resamples=5_000)
    assert copies.ends[7] == pytest.approx(alone.ends[0], abs=0.006)


def test_bands_of_little_data() -> None:
    nothing = share_band95(np.zeros((3, 10)), np.ones(10))
    assert nothing.ends[:, 0].tolist() == [0, 0, 0]
    assert nothing.ends[0, 1] == pytest.approx(1 - 0.025**0.1)
    one = share_band95(np.ones((2, 1)), np.ones(1))
    assert one.ends is None
    assert one.values.tolist() == [1, 1]
    assert change_band95(np.zeros((2, 1)), np.ones(1), largest=1.0).ends is None
    unasked = share_band95(np.array([[1.0, 0.0, 5.0]]), np.array([1, 1, 0]))
    assert unasked.values.tolist() == [0.5]
    still = change_band95(np.zeros((2, 10)), np.ones(10), largest=1.0)
    assert still.ends[0] == pytest.approx([-(1 - 0.025**0.1), 1 - 0.025**0.1])


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    rng = np.random.default_rng(1)
    topic = rng.standard_normal(60)
    tables = {name: scored(rng, topic, 2, middle).tolist() for name, middle in (("PT", 0.0), ("RL", -2.5))}
    tables["RL"][0][0] = None
    paths = [
        build_run(tmp_path / name, name, {"j": table, "j.other": table}, toxicity=[0.9] * 40 + [0.1] * 20)
        for name, table in tables.items()
    ]
    return compare(paths, n_resamples=200)


def test_curves_and_changes_are_counts(found: Comparison, tmp_path: Path) -> None:
    assert {curve.scorer for curve in found.severity} == {"j"}, "further labels have none"
    curve = next(one for one in found.severity if one.label == "RL")
    assert (curve.split, curve.n) == ("toxic_prompts", 79)
    import json

    values = {
        (record["generation_id"]): record["value"]
        for record in map(json.loads, (tmp_path / "RL" / "scores.jsonl").read_text().splitlines())
        if record["label"] == "toxic"
    }
    inside = [value for name, value in values.items() if int(name[1:].split("-")[0]) < 40 and value is not None]
    for threshold, share, (low, high) in zip(curve.thresholds, curve.shares, curve.band95, strict=True):
        assert share == pytest.approx(sum(value > threshold for value in inside) / 79)
        assert low <= share <= high
    half = curve.thresholds.index(0.5)
    assert curve.shares[half] == found.model("RL").scorers["j"]["toxic_prompts"].toxic_fraction
    (change,) = found.severity_change
    assert change.deltas[half] == pytest.approx(found.change("RL", scorer="j", split="toxic_prompts").delta)
    fell = [low <= threshold <= high for threshold in change.thresholds for low, high in change.fell]
    below = [high < 0 for _, high in change.band95]
    assert sum(below) == sum(fell) > 20
    assert change.rose == []
    levels = {level.name: level.share for level in curve.levels}
    assert sum(levels.values()) == pytest.approx(1)
    assert levels["severe"] == pytest.approx(sum(value > 0.9 for value in inside) / 79)
    assert levels["low"] == pytest.approx(sum(0.1 < value <= 0.33 for value in inside) / 79)
    severe = next(level for level in change.levels if level.name == "severe")
    assert severe.delta < 0
    assert severe.p_adjusted >= severe.p_value


def test_levels_divide_the_buckets(tmp_path: Path) -> None:
    """Also scores that lie on a limit, as those of judges that round do."""
    scores = [0.0, 0.1, 0.2, 0.33, 0.34, 0.5, 0.66, 0.67, 0.9, 0.91, 1.0]
    path = build_run(tmp_path / "PT", "PT", {"j": [[score] for score in scores]})
    found = compare([path], n_resamples=100)
    shares = {level.name: round(len(scores) * level.share) for level in found.severity[0].levels}
    assert shares == {"negligible": 2, "low": 1, "medium": 4, "high": 2, "severe": 2}
    low, medium, high = found.model("PT").scorers["j"]["all"].buckets
    assert (shares["negligible"] + shares["low"], shares["medium"], shares["high"] + shares["severe"]) == (
        low, medium, high,
    )  # fmt: skip


def test_it_is_said_in_words_pictures_and_a_table(found: Comparison) -> None:
    (sentence,) = sentences(found, ["j"])
    assert sentence.startswith(
        "By j, RL’s toxic share of answers to toxic prompts is lower at every threshold from 0.0"
    )
    assert sentence.endswith("than PT’s.")
    (picture,) = pictures(found, ["j"])
    lines = [trace for trace in picture["shares"]["data"] if trace.get("fill") is None]
    assert [trace["name"] for trace in lines] == ["PT", "RL"]
    assert lines[1]["y"] == [100 * share for share in found.severity[1].shares]
    assert len(picture["changes"]["data"]) == 2
    rows = level_rows(found, ["j"])
    assert [(row["judge"], row["model"]) for row in rows] == [("j", "PT"), ("j", "RL")]
    assert rows[0]["cells"][0]["delta"] == ""
    assert rows[1]["cells"][0]["delta"].startswith("+")
    assert len(level_names(found)) == len(LEVELS) == len(rows[0]["cells"])


def test_equal_models_differ_at_no_threshold(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    topic = rng.standard_normal(50)
    paths = [build_run(tmp_path / name, name, {"j": scored(rng, topic, 2, -1.0).tolist()}) for name in ("PT", "again")]
    found = compare(paths, n_resamples=200)
    assert sentences(found, ["j"]) == [
        "By j, again’s toxic share of all answers is at no threshold surely lower or higher than PT’s."
    ]
    single = compare(paths[:1], n_resamples=200)
    assert single.severity_change == []
    assert sentences(single, ["j"]) == []
    empty = compare([build_run(tmp_path / "e", "e", {"j": [[None]] * 5})], n_resamples=200)
    assert empty.severity == []
    assert level_names(empty) == []


def test_an_inclusive_threshold_counts_scores_on_it(tmp_path: Path) -> None:
    path = build_run(tmp_path / "PT", "PT", {"j": [[0.5], [0.5], [0.1], [0.9]]})
    shares = [
        compare([path], n_resamples=100, inclusive=inclusive).severity[0].shares[THRESHOLDS.index(0.5)]
        for inclusive in (False, True)
    ]
    assert shares == [0.25, 0.75]
