"""The formulas of stats.py written again, with loops and scipy's distributions, and what happens at their limits."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from rewardlm.stats import (
    MeanChange,
    agreeing,
    all_alike,
    answers_worth,
    bootstrap,
    bootstrap_ci95,
    bounded_mean_ci95,
    change_band95,
    correlation_of_shares,
    difference_ci95,
    difference_of_means,
    estimated_share_ci95,
    flip_p_value,
    mean_change,
    mean_ci95,
    rank_p_value,
    share_band95,
    share_ci95,
    share_ci95_redrawn,
    unseen_share,
)

Numbers = Sequence[float] | np.ndarray


def without_each(sums: Numbers, counts: Numbers) -> list[float]:
    """The ratio, each prompt left out once."""
    return [(sum(sums) - s) / (sum(counts) - c) for s, c in zip(sums, counts, strict=True)]


def error_of(sums: Numbers, counts: Numbers, extra: float = 0.0) -> float:
    """The jackknife's standard error (Efron & Tibshirani 1993, equation 11.5), with one more prompt's residual."""
    n, ratio = len(sums), sum(sums) / sum(counts)
    squares = sum((one - ratio) ** 2 for one in without_each(sums, counts))
    return math.sqrt((n - 1) / n * squares + n / (n - 1) * (extra / sum(counts)) ** 2)


def farthest(sums: Numbers, counts: Numbers) -> float:
    """How far the farthest prompt is from the others' ratio, on the scale of the sums."""
    n, ratio = len(sums), sum(sums) / sum(counts)
    return max(abs(one - ratio) for one in without_each(sums, counts)) * sum(counts) * (n - 1) / n


def worth_of(hits: Numbers, counts: Numbers, extra: float = 0.0, tail: float = 0.025, n: float | None = None) -> float:
    """Korn and Graubard's (1998) effective number of answers."""
    n, share = len(hits) if n is None else n, sum(hits) / sum(counts)
    ratio = stats.norm.isf(tail) / stats.t.isf(tail, n - 1)
    return float(share * (1 - share) / error_of(hits, counts, extra) ** 2 * ratio**2)


def clopper_pearson(share: float, worth: float, tail: float = 0.025) -> tuple[float, float]:
    hits = share * worth
    low = float(stats.beta.ppf(tail, hits, worth - hits + 1)) if share > 0 else 0.0
    return low, float(stats.beta.isf(tail, hits + 1, worth - hits)) if share < 1 else 1.0


def answers(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Hits and answers of prompts that differ in both."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 7, n)
    return rng.binomial(counts, rng.beta(1, 2, n)).astype(float), counts.astype(float)


# Means ---------------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_by_hand() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 25)
    sums = rng.normal(3, 2, 25) * counts
    half = stats.t.isf(0.025, 24) * error_of(sums, counts, farthest(sums, counts))
    mean = sum(sums) / sum(counts)
    assert mean_ci95(sums, counts) == pytest.approx((mean - half, mean + half))
    # Two prompts are enough, one is not; and if both are equal, nothing says how far others may be.
    assert mean_ci95([1.0, 3.0]) == pytest.approx((2 - 12.7062 * 1.5**0.5, 2 + 12.7062 * 1.5**0.5), rel=1e-4)
    assert mean_ci95([1.0]) is None
    assert mean_ci95([2.0, 2.0]) is None
    # What has no answer or no number counts for nothing.
    assert mean_ci95([*sums, 9.0, math.nan], [*counts, 0, 3]) == mean_ci95(sums, counts)


def test_two_means_are_compared_by_welchs_test_with_one_more_prompt_each() -> None:
    one, two = answers(1, 12), answers(2, 40)
    variances = [error_of(*group, extra=farthest(*group)) ** 2 for group in (one, two)]
    delta = sum(one[0]) / sum(one[1]) - sum(two[0]) / sum(two[1])
    error = math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 11 + variances[1] ** 2 / 39)
    found = difference_of_means(*one, *two)
    assert (found.prompts, found.mean) == (12, pytest.approx(delta))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(delta) / error, freedom))
    half = stats.t.isf(0.025, freedom) * error
    assert found.ci95 == pytest.approx((delta - half, delta + half))


def test_two_means_of_too_few_prompts_or_without_spread() -> None:
    assert difference_of_means([], [], [1.0], [1]) == MeanChange(0, None, None, None)
    assert difference_of_means([3.0], [1], [1.0, 2.0], [1, 1]) == MeanChange(1, 1.5, None, 1.0)
    assert difference_of_means([3.0, 3.0], [1, 1], [1.0, 1.0], [1, 1]) == MeanChange(2, 2.0, None, 1.0)


@pytest.mark.parametrize("largest", [1.0, 2.5])
def test_where_nothing_changed_the_interval_rests_on_what_may_be_unseen(largest: float) -> None:
    unseen = (1 - 0.025 ** (1 / 8)) * largest
    assert mean_change([0.0] * 8, largest=largest) == MeanChange(8, 0.0, pytest.approx((-unseen, unseen)), 1.0)
    reach = math.hypot(unseen, 1.96 * 0.2)
    assert mean_change([0.0] * 8, largest=largest, more_variance=0.04).ci95 == pytest.approx(
        (-min(reach, largest), min(reach, largest))
    )


def test_no_interval_goes_beyond_the_largest_change() -> None:
    assert mean_change([-1.0, -1.0], largest=1).ci95[0] == -1
    assert mean_change([1.0, 1.0], largest=1).ci95[1] == 1
    assert mean_change([1.0, 1.0]).ci95[1] > 1


@pytest.mark.parametrize("more", [0.0, 0.003])
def test_the_t_test_of_a_change_by_hand(more: float) -> None:
    """More than 300 changes, which leave the decision to it."""
    x = np.random.default_rng(4).normal(0.05, 0.4, 400)
    # The farthest change has a sign in the skewness.
    most = float(x[np.abs(x).argmax()])
    alone = error_of(x, np.ones(400), most)
    error = math.hypot(alone, math.sqrt(more))
    found = mean_change(x, more_variance=more)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(x.mean()) / error, 399))
    t = stats.t.isf(0.025, 399)
    influences = [*((x - x.mean()).tolist()), most]
    shift = sum(i**3 for i in influences) / sum(i**2 for i in influences) * (1 + 2 * t**2) / 6 / 400
    low, high = x.mean() - t * error + min(0, shift), x.mean() + t * error + max(0, shift)
    assert found.ci95 == pytest.approx((low, max(high, 0)) if found.p_value < 0.05 else (min(low, 0), max(high, 0)))


def test_an_interval_leaves_zero_out_where_p_says_so() -> None:
    assert agreeing(0.2, 0.1, 0.3, 0.01) == (0.1, 0.3)
    assert agreeing(0.2, 0.1, 0.3, 0.05) == (0.0, 0.3)
    assert agreeing(-0.2, -0.3, -0.1, 0.05) == (-0.3, 0.0)
    low, high = agreeing(0.2, -0.1, 0.3, 0.04)
    assert (0 < low < 1e-300, high) == (True, 0.3)
    low, high = agreeing(-0.2, -0.3, 0.1, 0.04)
    assert (-1e-300 < high < 0, low) == (True, -0.3)


# Flips ---------------------------------------------------------------------------------------------------------------


def all_flips(changes: Sequence[float]) -> float:
    """The share of all ways to flip signs whose sum is as large."""
    total = abs(sum(changes))
    ways = [abs(sum(s * c for s, c in zip(signs, changes, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(changes))]  # fmt: skip
    return float(np.mean([way >= total * (1 - 1e-12) for way in ways]))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("n", [2, 6, 13])
def test_thirteen_unequal_changes_are_flipped_in_all_ways(n: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0.3, 1, n)
    assert flip_p_value(x, 50, 0) == pytest.approx(all_flips(x.tolist()), abs=1e-12)


@pytest.mark.parametrize("changes", [[3, -1, 2, 2, 5, -4], [1, 1, 7], [2, 2, 2, -9, 1, 1, 1], [40, 3, -2, 3, 3, 3]])
def test_whole_changes_are_counted_exactly(changes: list[int]) -> None:
    x = np.array(changes, float)
    assert flip_p_value(x, 50, 0) == pytest.approx(all_flips(changes), abs=1e-12)


def test_many_whole_changes_are_counted_exactly_too() -> None:
    """Of 900: sums of three binomials, convolved by scipy's distributions."""
    rng = np.random.default_rng(5)
    sizes = [1] * 500 + [2] * 300 + [3] * 100
    x = np.array(sizes) * np.where(rng.random(900) < 0.53, 1, -1)
    chances = np.ones(1)
    for size, m in ((1, 500), (2, 300), (3, 100)):
        of_size = np.zeros(2 * size * m + 1)
        of_size[:: 2 * size] = stats.binom.pmf(np.arange(m + 1), m, 0.5)
        chances = np.convolve(chances, of_size)
    sums = np.arange(len(chances)) - len(chances) // 2
    wanted = chances[np.abs(sums) >= abs(x.sum())].sum()
    assert flip_p_value(x.astype(float), 50, 0) == pytest.approx(wanted, rel=1e-9)


def test_changes_too_large_to_be_counted_are_flipped() -> None:
    """Beyond 2^53 every float is a whole number; to count up to them would take all memory."""
    x = [1.2 * 2.0**53, -1.5 * 2.0**53, 1.7 * 2.0**53, 1.1 * 2.0**53]
    assert flip_p_value(np.array(x), 50, 0) == all_flips(x)


def test_flips_are_drawn_up_to_300_changes() -> None:
    x = np.random.default_rng(6).normal(0, 1, 301)
    assert flip_p_value(x[:300], 50, 0) > 0
    assert flip_p_value(x, 50, 0) == 0


def test_drawn_flips_follow_the_seed_and_their_number() -> None:
    """They count the data as one of them. Changes of nearly one size, 11 up and 3 down: flips are less sure than t."""
    x = [*(1 + i / 1000 for i in range(11)), *(-1 - i / 1000 for i in range(11, 14)), *[0.0] * 186]
    found = [mean_change(x, n_flips=99, seed=seed).p_value for seed in (0, 0, 1, 2, 3, 4, 5)]
    assert found[0] == found[1]
    by_t = 2 * stats.t.sf(sum(x) / 200 / error_of(x, np.ones(200), 1.01), 199)
    drawn = {p for p in found if p > by_t * 1.02}
    assert len(drawn) > 2
    assert all(100 * p == pytest.approx(round(100 * p)) for p in drawn)
    assert mean_change([1.0 + i / 100 for i in range(20)] + [0.0] * 180, n_flips=1).p_value in (0.5, 1.0)


# Shares --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_share_by_hand(seed: int) -> None:
    hits, counts = answers(seed)
    worth = worth_of(hits, counts)
    assert 2 < worth < sum(counts)
    assert answers_worth(hits, counts) == pytest.approx(worth)
    assert share_ci95(hits, counts) == pytest.approx(clopper_pearson(sum(hits) / sum(counts), worth))


def test_a_share_is_worth_no_more_than_its_answers_and_one_a_prompt_without_spread() -> None:
    assert answers_worth([0, 0, 0], [4, 4, 4]) == 3
    assert answers_worth([1] * 10, [2] * 10) == 10
    # Prompts that vary less than single answers would.
    assert answers_worth([2, 2, 2, 1], [4, 4, 4, 4]) == 16
    assert share_ci95([0, 0], [4, 4]) == pytest.approx((0, 1 - 0.025**0.5))
    assert share_ci95([0], [4]) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_a_bounded_mean_by_hand(seed: int) -> None:
    x = np.random.default_rng(seed).beta(2, 3, 20)
    ones = np.ones(20)
    worth = worth_of(x, ones, farthest(x, ones))
    assert worth > 40  # scores vary less than shares of as many answers
    assert bounded_mean_ci95(x) == pytest.approx(clopper_pearson(x.mean(), worth))
    assert bounded_mean_ci95(x[:1]) is None
    assert bounded_mean_ci95(x[:2]) is not None


def test_a_share_whose_rule_is_certain_is_the_plain_one() -> None:
    hits = np.array([1.0, 0.0, math.nan, 0.0, 1.0, 0.0])
    plain = share_ci95(hits)
    assert share_ci95_redrawn(hits, None, [hits, hits.copy()], [2, 1]) == plain
    assert share_ci95_redrawn(hits, None, [], []) == plain


def test_a_share_that_was_estimated_beyond_its_ends_is_at_them() -> None:
    """As many answers as labels, in the exact interval."""
    above = np.r_[2.0, np.ones(49)]
    found = estimated_share_ci95(above, np.ones(50), labels=30, freedom=25)
    assert found == pytest.approx((0.025 ** (1 / 30), 1))
    assert estimated_share_ci95(np.ones(50), np.ones(50), labels=80, freedom=25) == pytest.approx(
        (0.025 ** (1 / 50), 1)
    )


@pytest.mark.parametrize("more", [0.0, 0.002])
def test_an_estimated_share_by_hand(more: float) -> None:
    sums, counts = answers(7)
    share, t = sum(sums) / sum(counts), stats.t.isf(0.025, 9)
    worth = share * (1 - share) / (error_of(sums, counts) ** 2 + more) * (stats.norm.isf(0.025) / t) ** 2
    wanted = stats.beta.ppf([0.025, 0.975], share * worth + 0.5, (1 - share) * worth + 0.5)
    found = estimated_share_ci95(sums, counts, labels=40, freedom=9, more_variance=more)
    assert found == pytest.approx(tuple(wanted))
    # Where labels leave more freedom than prompts do, the prompts count.
    assert estimated_share_ci95(sums, counts, labels=40, freedom=29) == pytest.approx(
        estimated_share_ci95(sums, counts, labels=40, freedom=1000)
    )


def test_the_correlation_of_two_shares_by_hand() -> None:
    (x, w), (y, _) = answers(1), answers(2)
    y = np.minimum(y, w)
    moved = [np.array(without_each(one, w)) - sum(one) / sum(w) for one in (x, y)]
    both = 29 / 30 * float((moved[0] * moved[1]).sum())
    more = (0.001, 0.002)
    alone = [error_of(one, w) ** 2 + extra for one, extra in zip((x, y), more, strict=True)]
    found = correlation_of_shares(x, y, w, more_variance=more)
    assert found == pytest.approx(both / math.sqrt(alone[0] * alone[1]))
    assert correlation_of_shares([1.0], [2.0], [3.0], more_variance=more) == 0
    assert correlation_of_shares([1.0, 2.0], [2.0, 1.0], [3.0, 3.0], more_variance=(0, 0)) == pytest.approx(-1)


def test_the_difference_of_two_intervals_by_hand() -> None:
    low, high = difference_ci95(0.5, (0.4, 0.7), 0.3, (0.2, 0.35), correlation=0.5)
    assert low == pytest.approx(-0.2 - math.sqrt(0.1**2 + 0.2**2 - 0.1 * 0.2))
    assert high == pytest.approx(-0.2 + math.sqrt(0.05**2 + 0.1**2 - 0.05 * 0.1))


# Bands ---------------------------------------------------------------------------------------------------------------


def largest_tail(rows: np.ndarray, counts: np.ndarray) -> float:
    """The normal tail beyond which the largest standardised error of all rows lies in 5 % of 40,000 draws."""
    moved = np.array([np.array(without_each(row, counts)) - sum(row) / sum(counts) for row in rows])
    units = np.array([row / math.sqrt(sum(row**2)) for row in moved if abs(row).max() > 1e-12])
    draws = np.random.default_rng(77).standard_normal((40_000, len(counts)))
    return float(min(0.025, stats.norm.sf(np.quantile(abs(draws @ units.T).max(axis=1), 0.95))))


def prompts_worth(counts: np.ndarray) -> float:
    """Kish's (1965) effective number of prompts."""
    return float(sum(counts) ** 2 / sum(counts**2))


def scores_by_threshold(seed: int, n: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Hits [3, N] at three thresholds, and counts [N]."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, n).astype(float)
    scores = [rng.beta(1, 2, int(count)) for count in counts]
    return np.array([[float((one > t).sum()) for one in scores] for t in (0.2, 0.4, 0.6)]), counts


def test_a_band_of_shares_by_hand() -> None:
    hits, counts = scores_by_threshold(0)
    tail = largest_tail(hits, counts)
    assert tail < 0.02
    n = prompts_worth(counts)
    found = share_band95(hits, counts, n_resamples=20_000)
    assert found.values == pytest.approx(hits.sum(axis=1) / counts.sum())
    for ends, row in zip(found.ends, hits, strict=True):
        worth = min(worth_of(row, counts, tail=tail, n=n), sum(counts))
        assert tuple(ends) == pytest.approx(clopper_pearson(sum(row) / sum(counts), worth, tail), abs=0.004)


def test_a_band_of_changes_by_hand() -> None:
    (before, counts), (after, _) = scores_by_threshold(1), scores_by_threshold(2)
    sums = np.minimum(after, counts) - before
    tail = largest_tail(sums, counts)
    t = stats.t.isf(tail, prompts_worth(counts) - 1)
    found = change_band95(sums, counts, largest=1, n_resamples=20_000)
    assert found.values == pytest.approx(sums.sum(axis=1) / counts.sum())
    for ends, row in zip(found.ends, sums, strict=True):
        mean, most = sum(row) / sum(counts), float(row[abs(row).argmax()])
        error = error_of(row, counts, most)
        # Johnson's shift, of the residuals and of the additional prompt.
        residuals = [(mean - one) * sum(counts) * 24 / 25 for one in without_each(row, counts)] + [most]
        third, second = (sum(r**power for r in residuals) for power in (3, 2))
        shift = third / second * (1 + 2 * t**2) / 6 / sum(counts)
        shift = max(-t * error, min(t * error, shift))
        wanted = (mean - t * error + min(0, shift), mean + t * error + max(0, shift))
        assert tuple(ends) == pytest.approx(wanted, abs=0.01)


def test_bands_where_nothing_varies() -> None:
    """Then each is the plain interval, of prompts with equally many answers."""
    none = share_band95(np.zeros((2, 9)), np.ones(9))
    assert none.ends == pytest.approx(np.array([[0, 1 - 0.025 ** (1 / 9)]] * 2))
    unchanged = change_band95(np.zeros((2, 9)), np.ones(9), largest=2)
    assert unchanged.ends == pytest.approx(np.array([[-1, 1]] * 2) * 2 * (1 - 0.025 ** (1 / 9)))
    # Two rows, of which one varies: the tail is that of one.
    rows = np.array([[0.0] * 9, [1.0] * 4 + [0.0] * 5])
    assert tuple(share_band95(rows, np.ones(9)).ends[0]) == pytest.approx((0, 1 - 0.025 ** (1 / 9)), abs=0.02)


def test_bands_without_prompts_have_no_ends() -> None:
    for found in (share_band95(np.zeros((3, 2)), [0, 0]), change_band95(np.zeros((3, 2)), [0, 0], largest=1)):
        assert np.isnan(found.values).tolist() == [True] * 3
        assert found.ends is None
    for found in (share_band95([[1.0], [0.0]], [2]), change_band95([[1.0], [0.0]], [2], largest=1)):
        assert (found.values.tolist(), found.ends) == ([0.5, 0.0], None)


def test_bands_follow_the_seed() -> None:
    hits, counts = scores_by_threshold(0)
    for band in (share_band95, lambda *given, **how: change_band95(*given, largest=1, **how)):
        one, same, other = (band(hits, counts, n_resamples=150, seed=seed).ends for seed in (0, 0, 1))
        assert (one == same).all()
        assert (one != other).any()


def test_a_bound_on_what_is_unseen_takes_another_tail() -> None:
    assert unseen_share(12, 0.1) == pytest.approx(stats.binomtest(0, 12).proportion_ci(0.8).high)


# Resampling ----------------------------------------------------------------------------------------------------------


def test_a_bootstrap_draws_as_many_units_as_there_are_each_with_all_rows() -> None:
    clusters, rows_of = ["b", "a", "b", "c", "a", "b"], [(1, 4), (0, 2, 5), (3,)]

    def drawn(seed: int) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        bootstrap(lambda rows: found.append(tuple(sorted(rows.tolist()))) or 1.0, clusters, n_resamples=300, seed=seed)
        return found

    possible = {tuple(sorted(itertools.chain.from_iterable(units))) for units in itertools.product(rows_of, repeat=3)}
    # The first call is with all rows.
    assert drawn(2)[0] == tuple(range(6))
    assert set(drawn(2)[1:]) == possible
    assert len(drawn(2)) == 301
    assert drawn(2) == drawn(2)
    assert drawn(2) != drawn(3)


def test_a_bootstraps_interval_are_the_quantiles_of_its_values() -> None:
    values = np.random.default_rng(0).normal(size=12)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    drawn = bootstrap(mean, range(12), n_resamples=400, seed=1)
    assert bootstrap_ci95(mean, range(12), n_resamples=400, seed=1) == tuple(np.quantile(drawn, [0.025, 0.975]))


@pytest.mark.parametrize(("kept", "wanted"), [(10, 10), (9, 0)])
def test_a_bootstrap_needs_values_of_half_of_its_resamples(kept: int, wanted: int) -> None:
    calls = itertools.count()
    # The first call is with all rows.
    found = bootstrap(lambda rows: 1.0 if next(calls) <= kept else None, range(4), n_resamples=20, seed=0)
    assert len(found) == wanted


def test_columns_that_are_alike_follow_the_seed_and_the_number_of_draws() -> None:
    values = np.random.default_rng(8).normal(size=(20, 3))
    one, same, other = (all_alike(values, n_draws=50, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    # Of 1,050 draws two batches are made; one of 51, or of 1,051, is the data.
    far = values + np.array([3.0, 0, 0])
    assert all_alike(far, n_draws=50).p_value == pytest.approx(1 / 51)
    assert all_alike(far, n_draws=1050).p_value == pytest.approx(1 / 1051)


def test_five_numbers_of_a_column_are_enough_and_columns_are_counted_apart() -> None:
    values = np.random.default_rng(4).normal(size=(5, 3))
    assert None not in all_alike(values, n_draws=20).p_adjusted
    values[0, 2] = math.nan
    assert [p is None for p in all_alike(values, n_draws=20).p_adjusted] == [False, False, True]


def test_no_number_is_warned_of() -> None:
    """A table that lacks some numbers, and one that lacks all but one of a row."""
    values = np.random.default_rng(4).normal(size=(8, 3))
    values[0, 1:] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_alike(values, n_draws=20)


def test_the_observation_is_one_of_the_draws() -> None:
    assert rank_p_value(2.0, [1.0, 2.0, 3.0]) == 3 / 4
    assert rank_p_value(5.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert rank_p_value(5.0, []) == 1
