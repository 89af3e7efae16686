"""The numbers of judge evaluate against scikit-learn, scipy, double loops and examples worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from rewardlm.judges import metrics
from rewardlm.stats import bootstrap_ci95


def drawn(seed: int, n: int = 200, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels that lean on them."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    scores = np.clip(0.3 * positive + rng.random(n) * 0.7, 0, 1)
    return np.round(scores * levels) / levels, positive


@pytest.mark.parametrize("seed", range(8))
def test_ranking_is_that_of_scikit_learn_and_scipy(seed: int) -> None:
    scores, positive = drawn(seed)
    targets = np.random.default_rng(seed + 100).random(scores.size).round(1)
    assert metrics.auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    expected = average_precision_score(positive, scores)
    assert metrics.average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    assert metrics.spearman(scores, targets) == pytest.approx(spearmanr(scores, targets).statistic, abs=1e-12)
    assert metrics.pearson(scores, targets) == pytest.approx(pearsonr(scores, targets).statistic, abs=1e-12)
    assert metrics.brier(scores, positive.astype(float)) == pytest.approx(brier_score_loss(positive, scores), abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    scores, positive = np.array([s for s, _ in rows]), np.array([p for _, p in rows])
    pairs = [(a > b) + 0.5 * (a == b) for a, p in rows if p for b, q in rows if not q]
    if pairs:
        assert metrics.auc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert metrics.auc(scores, positive) is None


def test_roc_ends_in_both_corners_and_holds_the_auc() -> None:
    scores, positive = drawn(3)
    curve = metrics.roc(scores, positive, points=10_000)
    assert curve is not None
    assert curve[0] == (0, 0)
    assert curve[-1] == (1, 1)
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(curve))
    assert area == pytest.approx(roc_auc_score(positive, scores))
    assert metrics.roc(scores, np.ones_like(positive)) is None
    long = np.random.default_rng(0).random(5000)
    thinned = metrics.roc(long, long > 0.4)
    assert thinned is not None
    assert len(thinned) <= 101


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_against_a_double_loop(seed: int, soft: bool) -> None:
    rng = np.random.default_rng(seed)
    # Edges of bins, 0 and 1 among the scores: each belongs to the bin that begins there, 1 to the last.
    scores = np.concatenate([rng.random(300), np.arange(16) / 15])
    targets = rng.random(316) if soft else (rng.random(316) < scores**2).astype(float)
    total = 0.0
    for k in range(15):
        inside = [i for i, s in enumerate(scores) if k / 15 <= s < (k + 1) / 15 or (k == 14 and s == 1)]
        if inside:
            said = sum(scores[i] for i in inside) / len(inside)
            true = sum(targets[i] for i in inside) / len(inside)
            total += len(inside) / 316 * abs(said - true)
    assert metrics.expected_calibration_error(scores, targets) == pytest.approx(total, abs=1e-12)
    bins = metrics.reliability(scores, targets)
    assert sum(b["n"] for b in bins) == 316


def test_a_calibrated_judge_has_no_calibration_error() -> None:
    scores = np.repeat([0.2, 0.6], [10, 5])
    targets = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0], dtype=float)
    assert metrics.expected_calibration_error(scores, targets) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_strict_and_shares_are_scikit_learns(seed: int) -> None:
    scores, positive = drawn(seed, levels=10)
    assert (scores == 0.5).any(), "the edge itself must be tested"
    called = scores > 0.5
    (tn, fp), (fn, tp) = confusion_matrix(positive, called)
    found = metrics.at_threshold(scores, positive)
    assert found.accuracy == pytest.approx((tn + tp) / scores.size)
    assert found.f1 == pytest.approx(f1_score(positive, called))
    assert found.false_positive_rate == pytest.approx(fp / (fp + tn))
    assert found.false_negative_rate == pytest.approx(fn / (fn + tp))
    assert found.precision == pytest.approx(tp / (tp + fp))
    assert found.recall == pytest.approx(tp / (tp + fn))


def bootstrap_of_auc(scores, positive, *, n_resamples, seed):
    return bootstrap_ci95(
        lambda rows: metrics.auc(scores[rows], positive[rows]), range(scores.size), n_resamples=n_resamples, seed=seed
    )


def test_what_the_data_cannot_say_is_none() -> None:
    nothing, none = np.empty(0), np.empty(0, dtype=bool)
    for function in (metrics.auc, metrics.average_precision):
        assert function(nothing, none) is None
    for function in (metrics.spearman, metrics.pearson, metrics.expected_calibration_error, metrics.brier):
        assert function(nothing, nothing) is None
    assert metrics.pearson(np.array([0.1, 0.2]), np.array([1.0, 1.0])) is None
    assert metrics.pearson(np.array([0.0, 5e-324]), np.array([0.0, 1.0])) is None
    assert metrics.spearman(np.array([0.3]), np.array([1.0])) is None
    harmless = metrics.at_threshold(np.array([0.1, 0.2]), np.array([False, False]))
    assert harmless.f1 is None
    assert harmless.false_negative_rate is None
    assert harmless.accuracy == 1
    assert bootstrap_of_auc(nothing, none, n_resamples=100, seed=0) is None


def test_interval_is_seeded_holds_the_value_and_shrinks_with_the_data() -> None:
    def at(n: int, seed: int = 5) -> tuple[float, float]:
        scores, positive = drawn(1, n=n, levels=1000)
        found = bootstrap_of_auc(scores, positive, n_resamples=400, seed=seed)
        assert found is not None
        assert found[0] < roc_auc_score(positive, scores) < found[1]
        return found

    assert at(200) == at(200)
    assert at(200) != at(200, seed=6)
    small, large = at(200), at(3200)
    assert 2.5 < (small[1] - small[0]) / (large[1] - large[0]) < 6.5, "four times narrower, or nearly"


def test_interval_has_the_width_that_hanley_and_mcneil_give() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(600) < 250
    scores = rng.normal(size=600) + 0.9 * positive
    found = bootstrap_of_auc(scores, positive, n_resamples=1000, seed=0)
    area = roc_auc_score(positive, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + 249 * (q1 - area**2) + 349 * (q2 - area**2)) / (250 * 350))
    assert found is not None
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_resamples_of_one_class_are_left_out() -> None:
    # A single positive is missing from more than a third of the resamples; in the others it is above all.
    scores, positive = np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, False, False, True])
    assert bootstrap_of_auc(scores, positive, n_resamples=200, seed=0) == (1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20])
def test_a_judge_that_guesses_is_seldom_called_better_than_chance(n: int) -> None:
    """The bootstrap alone leaves 0.5 out of the AUC's interval in 20 % of cases at 10 texts."""
    rng = np.random.default_rng(n)
    alone = ours = 0
    for _ in range(300):
        scores, positive = rng.random(n), rng.permutation(n) < n // 2
        low, high = metrics.auc_interval95(scores, positive, n_resamples=100, seed=0)
        ours += not low <= 0.5 <= high
        low, high = bootstrap_of_auc(scores, positive, n_resamples=100, seed=0)
        alone += not low <= 0.5 <= high
    # 15 of 300 with a standard deviation of 3.8: 33 come once in 10,000 times.
    assert ours <= 33
    assert ours < alone


@pytest.mark.parametrize(("n1", "n0"), [(5, 5), (20, 60), (200, 3)])
def test_classes_apart_leave_an_interval_with_a_width(n1: int, n0: int) -> None:
    """Newcombe's equation, on a grid: the smallest t whose interval would hold an AUC of 1."""
    scores = np.concatenate([np.linspace(0.6, 0.9, n1), np.linspace(0.1, 0.4, n0)])
    found = metrics.auc_interval95(scores, np.arange(n1 + n0) < n1, n_resamples=100, seed=0)
    t = np.linspace(1e-6, 1 - 1e-6, 200_001)
    m = (n1 + n0) / 2
    variance = t * (1 - t) / (n1 * n0) * (1 + (m - 1) * (1 - t) / (2 - t) + (m - 1) * t / (1 + t))
    assert found == pytest.approx((t[(1 - t) ** 2 <= 1.96**2 * variance].min(), 1.0), abs=1e-5)


def test_few_texts_in_a_random_order_seldom_correlate() -> None:
    """All orders of five texts are equally likely; a bootstrap alone finds a correlation in one of ten."""
    x = np.arange(5.0)
    orders = [np.array(order, dtype=np.float64) for order in itertools.permutations(range(5))]
    found = [metrics.spearman_interval95(x, y, n_resamples=20, seed=0) for y in orders]
    assert all(ends is not None and ends[0] < ends[1] for ends in found)
    assert np.mean([not ends[0] <= 0 <= ends[1] for ends in found if ends is not None]) <= 0.05


def test_six_texts_in_order_leave_an_interval_with_a_width() -> None:
    """Bonett and Wright's by hand: between 1 and 1 - 12 / 210 lies 0.971, artanh 2.12, ± 1.96 (1.472 / 3)^0.5."""
    x = np.arange(6.0)
    assert metrics.spearman_interval95(x, x, n_resamples=50, seed=0) == (pytest.approx(0.63, abs=0.01), 1)
    assert metrics.spearman_interval95(x, -x, n_resamples=50, seed=0) == (-1, pytest.approx(-0.63, abs=0.01))
    assert metrics.spearman_interval95(x[:3], x[:3], n_resamples=50, seed=0) is None


def test_bias_aucs_by_hand() -> None:
    # About the group: toxic .9 and .4, harmless .6 and .2. Others: toxic .8 and .5, harmless .3 and .1.
    scores = np.array([0.9, 0.4, 0.6, 0.2, 0.8, 0.5, 0.3, 0.1])
    positive = np.array([True, True, False, False, True, True, False, False])
    about = np.array([True] * 4 + [False] * 4)
    found = metrics.bias_aucs(scores, positive, about)
    # Subgroup: .9 beats both, .4 beats .2: 3 of 4.
    assert found["subgroup_auc"] == 3 / 4
    # BPSN: other toxic .8, .5 against the group's harmless .6, .2: .8 beats both, .5 beats .2: 3 of 4.
    assert found["bpsn_auc"] == 3 / 4
    # BNSP: the group's toxic .9, .4 against other harmless .3, .1: all 4.
    assert found["bnsp_auc"] == 1


def test_a_judge_that_fears_a_word_has_a_low_bpsn_and_one_that_spares_it_a_low_bnsp() -> None:
    rng = np.random.default_rng(2)
    positive, about = rng.random(2000) < 0.5, rng.random(2000) < 0.3
    fair = 0.5 * positive + 0.5 * rng.random(2000)
    fears = metrics.bias_aucs(np.where(about, fair + 0.4, fair), positive, about)
    spares = metrics.bias_aucs(np.where(about, fair - 0.4, fair), positive, about)
    assert fears["bpsn_auc"] < 0.7 < 0.95 < fears["bnsp_auc"]
    assert spares["bnsp_auc"] < 0.7 < 0.95 < spares["bpsn_auc"]
    assert fears["subgroup_auc"] == spares["subgroup_auc"], "within the group nothing changed"


def test_power_mean() -> None:
    values = [0.9, 0.6, 0.75]
    by_hand = (sum(v**-5 for v in values) / 3) ** (-1 / 5)
    assert metrics.power_mean(values) == pytest.approx(by_hand)
    assert min(values) < by_hand < sum(values) / 3
    assert metrics.power_mean([0.7, 0.7]) == pytest.approx(0.7)
    assert metrics.power_mean([0.0, 0.9]) == 0
    assert metrics.power_mean([]) is None


@pytest.mark.parametrize("seed", range(3))
def test_confusion_of_two_judges(seed: int) -> None:
    first, positive = drawn(seed)
    second = np.clip(first + np.random.default_rng(seed + 50).normal(0, 0.2, first.size), 0, 1)
    found = metrics.confusion(first, second, positive)
    a, b = first > 0.5, second > 0.5
    table = [[0, 0], [0, 0]]
    for x, y in zip(a, b, strict=True):
        table[int(x)][int(y)] += 1
    assert found["table"] == table
    assert found["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert found["agreement"] == pytest.approx(float((a == b).mean()))
    assert found["spearman"] == pytest.approx(spearmanr(first, second).statistic)
    right = found["right"]
    assert right["both"] + right["first"] == int((a == positive).sum())
    assert right["both"] + right["second"] == int((b == positive).sum())
    assert sum(right.values()) == found["n"] == first.size


def test_confusion_without_texts_or_disagreement() -> None:
    nothing = metrics.confusion(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    assert (nothing["n"], nothing["agreement"], nothing["kappa"], nothing["spearman"]) == (0, None, None, None)
    same = metrics.confusion(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.array([False, False]))
    assert same["agreement"] == 1
    assert same["kappa"] is None, "if both always say the same, chance explains it"


@pytest.mark.parametrize(
    ("value", "interval", "chance"),
    [
        (0.55, (0.52, 0.58), True),
        (0.7, (0.45, 0.9), True),
        (0.7, (0.6, 0.8), False),
        (0.3, None, True),
        (None, None, None),
    ],
)
def test_at_chance(value: float | None, interval: tuple[float, float] | None, chance: bool | None) -> None:
    assert metrics.is_at_chance(value, interval) is chance
