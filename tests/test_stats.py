"""Tests and intervals against enumeration, scipy, hand-computed values, and how often they err under a null."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rewardlm.measuring import metrics
from rewardlm.stats import (
    AllAlike,
    MeanChange,
    against_others,
    all_alike,
    bootstrap_ci95,
    bounded_mean_ci95,
    change_band95,
    correlation_of_shares,
    difference_ci95,
    difference_of_means,
    estimated_share_ci95,
    fieller_ci95,
    flip_p_value,
    holm,
    mean_change,
    mean_ci95,
    share_ci95,
    share_ci95_redrawn,
)

# Sparse and tied as toxicity is, and continuous.
VALUES = st.one_of(st.sampled_from([-1.0, -0.25, 0.0, 0.0, 0.0, 0.25, 1.0]), st.floats(-1, 1))


def agrees(found: MeanChange) -> bool:
    """The interval leaves zero out exactly where p < .05; it has a width and holds the estimate; nothing is NaN."""
    assert found.p_value is not None
    assert 0 <= found.p_value <= 1
    if found.ci95 is None:
        return found.p_value == 1
    low, high = found.ci95
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert low <= found.mean <= high
    return (found.p_value < 0.05) == (not low <= 0 <= high)


@given(st.lists(VALUES, min_size=1, max_size=40), st.data())
def test_the_interval_leaves_zero_out_exactly_where_p_is_below_5_percent(
    changes: list[float], data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 4), min_size=len(changes), max_size=len(changes)))
    sums = np.array(changes) * counts
    assert agrees(mean_change(sums, counts, largest=1, n_flips=200))
    assert agrees(mean_change(changes, n_flips=200))


@given(st.lists(VALUES, min_size=1, max_size=30), st.lists(VALUES, min_size=1, max_size=30))
def test_so_does_that_of_two_groups(one: list[float], two: list[float]) -> None:
    assert agrees(difference_of_means(one, [1] * len(one), two, [1] * len(two)))


@pytest.mark.parametrize("n", [*range(1, 31), 57, 300, 2000])
@pytest.mark.parametrize("changed", ["none", "one", "half", "all", "all but one"])
def test_agreement_where_the_data_are_degenerate(n: int, changed: str) -> None:
    """All differences equal, or none, or one, or with the sign of one turned: McNemar and a bootstrap part here."""
    x = np.zeros(n)
    x[: {"none": 0, "one": 1, "half": n // 2, "all": n, "all but one": n}[changed]] = -0.1
    if changed == "all but one":
        x[0] = 0.1
    found = mean_change(x, largest=1)
    assert agrees(found)
    assert (found.ci95 is None) == (n == 1)


def test_every_table_of_better_and_worse_agrees() -> None:
    for n in (5, 10, 20, 57, 300):
        for better, worse in itertools.product(range(min(n, 40) + 1), repeat=2):
            if better + worse <= n:
                assert agrees(mean_change([-1.0] * better + [1.0] * worse + [0.0] * (n - better - worse), largest=1))


def test_nothing_is_none_and_one_prompt_has_no_interval() -> None:
    assert mean_change([], []) == MeanChange(0, None, None, None)
    assert mean_change([0.3, 0.2], [0, 0]) == MeanChange(0, None, None, None)
    assert mean_change([-0.4], [2]) == MeanChange(1, -0.2, None, 1.0)
    assert share_ci95([1], [4]) is bounded_mean_ci95([0.5]) is mean_ci95([3.0]) is None


@pytest.mark.parametrize("seed", range(12))
def test_p_is_the_share_of_sign_flips(seed: int) -> None:
    """By a loop over all of them, where the randomisation test is the larger: few changes among many prompts."""
    rng = np.random.default_rng(seed)
    whole = seed % 2 == 0
    changed = rng.integers(1, 4, 9) * rng.choice([-1, 1], 9, p=[0.15, 0.85]) if whole else rng.normal(0.5, 0.5, 9)
    as_large = 0
    for signs in itertools.product((-1, 1), repeat=9):
        total = sum(sign * abs(value) for sign, value in zip(signs, changed.tolist(), strict=True))
        as_large += abs(total) >= abs(sum(changed.tolist())) - 1e-9
    found = mean_change([*changed.tolist(), *[0.0] * 40])
    assert found.p_value is not None
    assert found.p_value >= as_large / 2**9 - 1e-12
    # scipy's own, of the same kind.
    theirs = stats.permutation_test((changed,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert as_large / 2**9 == pytest.approx(theirs.pvalue)
    if whole:
        assert found.p_value == pytest.approx(max(as_large / 2**9, t_with_one_more(changed, 49)))


def t_with_one_more(changed: np.ndarray, n: int) -> float:
    x = np.concatenate([changed, np.zeros(n - len(changed))])
    squares = sum((value - x.mean()) ** 2 for value in x.tolist()) + max(abs(x)) ** 2
    error = math.sqrt(squares / (n - 1) / n)
    return float(2 * stats.t.sf(abs(x.mean()) / error, n - 1))


def test_drawn_flips_come_near_to_all_of_them() -> None:
    """40 unequal changes: too many to try; scipy's permutation test draws them too."""
    x = np.random.default_rng(3).normal(0.4, 1, 40)
    theirs = stats.permutation_test((x,), np.sum, permutation_type="samples", n_resamples=40_000, rng=1)
    assert flip_p_value(x, 40_000, 0) == pytest.approx(theirs.pvalue, abs=0.004)


def test_where_nothing_changed_every_flip_is_as_large() -> None:
    assert flip_p_value(np.zeros(6), 1_000, 0) == 1


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    """25 equal answers a prompt tell no more than one."""
    x = np.random.default_rng(4).normal(0.2, 1, 30)
    one, many = mean_change(x), mean_change(25 * x, np.full(30, 25))
    assert one.p_value == pytest.approx(many.p_value)
    assert one.ci95 == pytest.approx(many.ci95)


def test_unequal_counts_give_the_ratio_and_its_jackknifed_error() -> None:
    """Leave one prompt out after another (Efron & Tibshirani 1993, equation 11.5), with one more prompt's change. The
    further end is Johnson's (1978).
    """
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 5, 60)
    counts[0] = 40
    sums = rng.exponential(0.3, 60) * counts
    ratio = sum(sums) / sum(counts)
    without = [(sum(sums) - s) / (sum(counts) - c) for s, c in zip(sums, counts, strict=True)]
    more = max(abs(sums)) / sum(counts)
    squares = 59 / 60 * sum((one - ratio) ** 2 for one in without) + 60 / 59 * more**2
    t = stats.t.ppf(0.975, 59)
    # Each prompt's influence on the ratio, times n: the m3 / s^2 of the mean of these, and of the additional one.
    influence = [59 * (ratio - one) for one in without] + [60 * more]
    skewness = sum(i**3 for i in influence) / sum(i**2 for i in influence)
    found = mean_change(sums, counts)
    assert found.mean == pytest.approx(ratio)
    assert found.p_value < 0.05
    half = t * math.sqrt(squares)
    assert found.ci95 == pytest.approx((ratio - half, ratio + half + skewness * (1 + 2 * t**2) / 6 / 60))


def test_where_no_prompt_changed_the_interval_says_how_many_may() -> None:
    assert mean_change(np.zeros(57), largest=1).ci95 == pytest.approx(
        (-stats.binomtest(0, 57).proportion_ci(0.95).high, stats.binomtest(0, 57).proportion_ci(0.95).high)
    )
    # Nothing says how far a log-probability may move.
    assert mean_change(np.zeros(57)).ci95 is None


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (12, 12), (0, 300), (30, 300), (150, 300)])
def test_shares_of_single_answers_have_the_exact_interval(hits: int, n: int) -> None:
    """Clopper and Pearson's, but for the n / (n - 1) of the variance and the t of n - 1 degrees."""
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert share_ci95([1] * hits + [0] * (n - hits)) == pytest.approx((theirs.low, theirs.high), abs=1.5e-3)


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_against_a_published_example() -> None:
    """R's p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm"): 0.05 0.08 0.09 0.09 0.09."""
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


def at_most(n: int, rate: float) -> int:
    """What a binomial with this rate stays within, but for one time in 10,000."""
    return int(stats.binom.ppf(0.9999, n, rate))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("n", [5, 10, 57])
def test_of_two_equal_models_at_most_6_percent_differ(n: int, samples: int) -> None:
    """The fast part of ``make prove-statistics``: share, mean, EMT and TP through the functions that compare calls."""
    rng = np.random.default_rng(n + samples)
    repetitions, found = 400, dict.fromkeys(("share", "mean", "EMT", "TP"), 0)
    for _ in range(repetitions):
        level = rng.beta(0.3, 1.2, (n, 1))
        before, after = (np.clip(rng.beta(4 * level + 1e-3, 4 * (1 - level) + 1e-3, (n, samples)), 0, 1) for _ in "ab")
        change = metrics.paired_difference(before, after, n_resamples=400)
        maxima = metrics.paired_difference_of_maxima(before, after, n_resamples=400)
        for name, p in zip(
            found,
            (
                change.p_value,
                change.mean_p_value,
                maxima.expected_max_toxicity.p_value,
                maxima.toxicity_probability.p_value,
            ),
            strict=True,
        ):
            found[name] += p < 0.05
    assert max(found.values()) <= at_most(repetitions, 0.06), found


@pytest.mark.parametrize("n", [5, 20, 57])
def test_intervals_of_a_rare_share_hold_it(n: int) -> None:
    """Two in a hundred answers are toxic. A bootstrap of 57 prompts holds that in 70 of 100 cases."""
    rng = np.random.default_rng(n)
    outside = 0
    for _ in range(400):
        low, high = metrics.toxic_fraction_ci95(rng.random((n, 1)) + 0.02 - 0.5)
        outside += not low <= 0.02 <= high
    assert outside <= at_most(400, 0.05)


@pytest.mark.parametrize("n", [10, 20, 57, 150])
def test_the_interval_of_a_fall_holds_it_however_large_it_is(n: int) -> None:
    """Exactly: one answer a prompt, k of which became harmless and none toxic, is binomial."""
    ends = [mean_change([-1.0] * k + [0.0] * (n - k), largest=1).ci95 for k in range(n + 1)]
    for fall in np.linspace(0.004, 0.6, 150):
        chances = stats.binom.pmf(np.arange(n + 1), n, fall)
        held = sum(chance for chance, (low, high) in zip(chances, ends, strict=True) if low <= -fall <= high)
        assert held > 0.95, fall


def test_of_several_answers_a_prompt_a_fall_is_seldom_understated() -> None:
    """A tenth of the answers was toxic, and none is: prompts differ in how many of theirs were."""
    rng = np.random.default_rng(1)
    beyond = 0
    for _ in range(1000):
        toxic = rng.binomial(4, rng.beta(0.7 / 3, 2.1, 20))
        beyond += mean_change(-toxic, np.full(20, 4), largest=1, n_flips=100).ci95[0] > -0.1
    assert beyond <= at_most(1000, 0.025)


@pytest.mark.parametrize("n", [5, 10, 20])
def test_a_prompt_with_most_of_the_answers_is_one_prompt(n: int) -> None:
    """One has 25 answers and the others one each. It draws the share to itself, and seems to be near it."""
    rng = np.random.default_rng(n)
    counts = np.array([25] + [1] * (n - 1))
    outside = 0
    for _ in range(600):
        low, high = share_ci95(rng.binomial(counts, rng.beta(1.4 / 3, 5.6 / 3, n)), counts)
        outside += not low <= 0.2 <= high
    assert outside <= at_most(600, 0.05)


def test_a_bootstrap_of_clusters_draws_whole_clusters() -> None:
    """The deviation of a mean over clusters is that of the clusters' means: rows that repeat one say nothing new."""
    rng = np.random.default_rng(3)
    of_cluster = rng.normal(size=80)
    rows, clusters = np.repeat(of_cluster, 5), np.repeat(rng.permutation(80), 5)
    shuffled = rng.permutation(400)
    rows, clusters = rows[shuffled], clusters[shuffled]
    found = bootstrap_ci95(lambda drawn: float(rows[drawn].mean()), clusters, n_resamples=2000, seed=1)
    alone = bootstrap_ci95(lambda drawn: float(rows[drawn].mean()), range(400), n_resamples=2000, seed=1)
    assert found is not None
    assert alone is not None
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * of_cluster.std() / 80**0.5, rel=0.08)
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * of_cluster.std() / 400**0.5, rel=0.08)


def test_a_bootstrap_of_single_rows_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    theirs = stats.bootstrap(
        (values,), np.median, n_resamples=3000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    found = bootstrap_ci95(lambda rows: float(np.median(values[rows])), range(60), n_resamples=3000, seed=5)
    assert found == pytest.approx((theirs.low, theirs.high), rel=0.1)


def test_a_bootstrap_says_nothing_where_most_resamples_say_nothing() -> None:
    # All three rows are needed, and 2 draws of 9 hold all.
    def both(rows: np.ndarray) -> float | None:
        return 1.0 if len(set(rows.tolist())) == 3 else None

    assert bootstrap_ci95(both, range(3), n_resamples=500, seed=0) is None
    assert bootstrap_ci95(lambda rows: None, range(3), n_resamples=10, seed=0) is None
    assert bootstrap_ci95(lambda rows: 1.0, [], n_resamples=10, seed=0) is None


def test_a_redrawn_rule_is_drawn_first_and_the_prompts_then() -> None:
    """Against a simulation of just that: a rule by its weight, then a beta of Clopper and Pearson's exact interval."""
    rng = np.random.default_rng(0)
    n = 80
    rules = [(rng.random(n) < share).astype(float) for share in (0.1, 0.2, 0.35)]
    weights = [1.0, 2.0, 1.0]
    found = share_ci95_redrawn(rules[1], None, rules, weights)
    hits = np.array([rule.sum() for rule in rules])[rng.choice(3, 400_000, p=np.array(weights) / 4)]
    low = np.quantile(rng.beta(hits, n - hits + 1), 0.025)
    high = np.quantile(rng.beta(hits + 1, n - hits), 0.975)
    assert found == pytest.approx((low, high), abs=0.003)
    plain = share_ci95(rules[1])
    assert plain is not None
    assert found is not None
    assert found[0] < plain[0]
    assert found[1] > plain[1]


def test_a_redrawn_rule_without_hits_or_misses_still_has_an_interval() -> None:
    none, every, some = np.zeros(20), np.ones(20), np.array([1.0] * 5 + [0.0] * 15)
    low, high = share_ci95_redrawn(none, None, [none, some], [1, 1]) or (1, 0)
    assert low == 0
    assert high > (share_ci95(none) or (0, 0))[1]
    assert (share_ci95_redrawn(every, None, [every, some], [1, 1]) or (0, 0))[1] == 1
    assert share_ci95_redrawn(some[:1], None, [some[:1]], [1]) is None


@pytest.mark.parametrize("more", [0.0, 1e-4, 1e-2])
def test_more_variance_adds_to_that_of_the_prompts(more: float) -> None:
    """Of changes without skewness, the squares of half widths add up: t² (s² + more)."""
    changes = [1.0, -1.0] * 30 + [0.0] * 40
    plain, found = mean_change(changes), mean_change(changes, more_variance=more)
    assert plain.ci95 is not None
    assert found.ci95 is not None
    half, wider = ((ends[1] - ends[0]) / 2 for ends in (plain.ci95, found.ci95))
    # The extra prompt of the t-test is on one side, so there is a little skewness.
    assert wider**2 - half**2 == pytest.approx(stats.t.ppf(0.975, 99) ** 2 * more, rel=0.1, abs=1e-9)
    falling = [-1.0] * 12 + [0.0] * 88
    certain, uncertain = mean_change(falling), mean_change(falling, more_variance=more)
    assert (uncertain.p_value or 0) >= (certain.p_value or 0)
    low, high = uncertain.ci95 or (0, 0)
    assert (high < 0) == ((uncertain.p_value or 1) < 0.05)
    assert low < -0.12


def test_more_variance_where_nothing_changed() -> None:
    low, high = mean_change([0.0] * 50, largest=1.0, more_variance=0.01).ci95 or (1, 0)
    narrow = mean_change([0.0] * 50, largest=1.0).ci95 or (1, 0)
    assert low < narrow[0] < 0 < narrow[1] < high


def sizes_of_t(values: np.ndarray) -> list[float]:
    """|t| of every column against the mean of the others, by loops and scipy."""
    found = []
    for column in range(values.shape[1]):
        differences = []
        for row in values:
            others = [value for place, value in enumerate(row) if place != column and not np.isnan(value)]
            if not np.isnan(row[column]) and others:
                differences.append(row[column] - np.mean(others))
        found.append(abs(float(stats.ttest_1samp(differences, 0).statistic)))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_columns_are_compared_by_the_largest_t_over_all_flips_and_exchanges(seed: int) -> None:
    """Against every way to flip the rows' differences, and every way to exchange the numbers within rows."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (5, 3)) + np.array([1.5, 0, 0])
    values[:, 1] *= 4
    own = sizes_of_t(values)
    differences = against_others(values)
    flips = []
    for signs in itertools.product((1, -1), repeat=5):
        turned = differences * np.array(signs)[:, None]
        flips.append(max(abs(stats.ttest_1samp(turned, 0).statistic)))
    orders = list(itertools.permutations(range(3)))
    some = np.random.default_rng(9).integers(0, 6, (300, 5))
    exchanges = [max(sizes_of_t(np.array([row[list(orders[k])] for row, k in zip(values, ks, strict=True)])))
                 for ks in some]  # fmt: skip
    found = all_alike(values, n_draws=3000, seed=1)
    for column in range(3):
        wanted = max(np.mean([t >= own[column] - 1e-9 for t in one]) for one in (flips, exchanges))
        assert found.p_adjusted[column] == pytest.approx(wanted, abs=0.08)
    assert found.p_value == min(p for p in found.p_adjusted if p is not None)
    exact = np.mean([t >= min(own) - 1e-9 for t in flips])
    assert (found.p_adjusted[int(np.argmin(own))] or 0) >= exact - 1e-9


def test_contrasts_leave_out_what_is_missing() -> None:
    values = np.array([[1.0, 2.0, 6.0], [1.0, np.nan, 2.0], [np.nan, 5.0, np.nan]])
    wanted = [[1 - 4, 2 - 3.5, 6 - 1.5], [-1, np.nan, 1], [np.nan, np.nan, np.nan]]
    np.testing.assert_allclose(against_others(values), wanted)


def test_what_is_missing_stays_where_it_is() -> None:
    """Two columns: what is only in one of them tells nothing, and each is the other's mirror."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, (12, 2)) + np.array([0.8, 0])
    more = np.vstack([values, np.column_stack([np.full(6, 50.0), np.full(6, np.nan)])])
    found, wider = (all_alike(one, n_draws=4000) for one in (values, more))
    assert found.p_adjusted[0] == found.p_adjusted[1] == found.p_value
    assert wider.p_value == pytest.approx(found.p_value, abs=0.03)
    # Of two columns, both tests are the flips of one difference.
    differences = values[:, 0] - values[:, 1]
    every = np.array(list(itertools.product((1, -1), repeat=12))) @ differences
    assert found.p_value == pytest.approx(np.mean(abs(every) >= abs(differences.sum()) - 1e-9), abs=0.02)


def test_columns_without_enough_numbers_are_left_out() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(6, 3))
    values[:2, 1] = np.nan
    assert [p is None for p in all_alike(values).p_adjusted] == [False, True, False]
    assert all_alike(values[:4]) == AllAlike(None, [None] * 3)
    assert all_alike(np.zeros((8, 2))) == AllAlike(1.0, [1.0, 1.0])
    assert all_alike(np.full((8, 2), np.nan)) == AllAlike(None, [None, None])


@pytest.mark.parametrize("shape", ["unequal variances", "skewed"])
def test_equal_columns_keep_the_level(shape: str) -> None:
    """At 5 %, 300 tables may give 28 by a chance of one in 10,000."""
    rng = np.random.default_rng(2)

    def drawn() -> np.ndarray:
        if shape == "skewed":
            return np.asarray(rng.exponential(size=(10, 5)) ** 2)
        return np.asarray(rng.normal(size=(10, 5)) * [0.1, 0.2, 0.4, 1.0, 3.0])

    wrong = sum((all_alike(drawn(), n_draws=300, seed=k).p_value or 1) < 0.05 for k in range(300))
    assert wrong <= 28


# Estimated shares ----------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> tuple[float, float]:
    found = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return found.low, found.high


@pytest.mark.parametrize(
    ("one", "other", "published"),
    # Newcombe 1998 (Statistics in Medicine 17:873-890), table II, method 10: contrasts a, c, e and g.
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((10, 10), (0, 20), (0.6791, 1.0000)),
    ],
)
def test_the_difference_of_two_intervals_is_newcombes(one, other, published) -> None:
    found = difference_ci95(other[0] / other[1], wilson(*other), one[0] / one[1], wilson(*one))
    assert found == pytest.approx(published, abs=2e-4)


# Jeffreys' intervals for x of 7, from Brown, Cai & DasGupta (2001), Statistical Science 16, table 5.
@pytest.mark.parametrize(
    ("hits", "published"), [(1, (0.016, 0.501)), (2, (0.065, 0.648)), (3, (0.139, 0.766)), (5, (0.352, 0.935))]
)
def test_an_estimated_share_has_jeffreys_interval(hits: int, published: tuple[float, float]) -> None:
    """Of 2,000 prompts that are all alike, so that all that varies is the variance of 7 answers."""
    share = hits / 7
    found = estimated_share_ci95(
        np.full(2000, share), np.ones(2000), labels=7, freedom=1e9, more_variance=share * (1 - share) / 7
    )
    assert found == pytest.approx(published, abs=2e-3)


def test_an_estimated_share_that_was_counted_lies_within_the_exact_interval() -> None:
    rng = np.random.default_rng(0)
    hits, counts = rng.binomial(4, 0.2, 80).astype(float), np.full(80, 4.0)
    found, exact = estimated_share_ci95(hits, counts, labels=320, freedom=1e9), share_ci95(hits, counts)
    assert found is not None
    assert exact is not None
    assert exact[0] < found[0] < hits.sum() / 320 < found[1] < exact[1]
    # Fewer labels leave fewer degrees of freedom, and a wider interval.
    fewer = estimated_share_ci95(hits, counts, labels=40, freedom=8)
    assert fewer is not None
    assert fewer[0] < found[0] < found[1] < fewer[1]


def test_an_estimated_share_of_nothing_rests_on_the_labels() -> None:
    none = estimated_share_ci95(np.zeros(50), np.full(50, 4.0), labels=30, freedom=25)
    assert none == pytest.approx((0, 1 - 0.025 ** (1 / 30)))
    # An estimate below 0 is none, and so is one above 1.
    assert estimated_share_ci95(np.r_[-1.0, np.zeros(49)], np.ones(50), labels=30, freedom=25) == pytest.approx(none)
    assert estimated_share_ci95([1.0], [1.0], labels=3, freedom=1) is None


def test_an_estimated_share_reaches_further_on_the_side_of_its_few_large_errors() -> None:
    share, n, more = 0.1, 4000, 0.01**2
    arguments = {"labels": 100, "freedom": 1e9, "more_variance": more}
    plain = estimated_share_ci95(np.full(n, share), np.ones(n), **arguments)
    of_a_count = (1 - 2 * share) * more**2 / (share * (1 - share))

    def moved(third_moment: float) -> tuple[float, float]:
        found = estimated_share_ci95(np.full(n, share), np.ones(n), **arguments, third_moment=third_moment)
        assert found is not None
        assert plain is not None
        return found[0] - plain[0], found[1] - plain[1]

    assert moved(of_a_count) == pytest.approx((0, 0))
    # Johnson's m3 (1 + 2 t^2) / (6 s^2).
    assert moved(of_a_count + 2e-7) == pytest.approx((0, 2e-7 * (1 + 2 * 1.96**2) / 6e-4), rel=1e-3)
    assert moved(of_a_count - 2e-7) == pytest.approx((-2e-7 * (1 + 2 * 1.96**2) / 6e-4, 0), rel=1e-3)
    # Never by more than half of a t interval.
    assert moved(1.0) == pytest.approx((0, 1.96 * 0.01), rel=1e-3)


def test_the_difference_of_shares_that_rise_and_fall_together_is_better_known() -> None:
    """By the variance of a difference of correlated numbers, where the intervals are symmetric."""
    rng = np.random.default_rng(3)
    one = rng.binomial(4, 0.3, 400).astype(float)
    two = np.clip(one - rng.binomial(1, 0.4, 400), 0, 4).astype(float)
    counts = np.full(400, 4.0)
    correlation = correlation_of_shares(one, two, counts, more_variance=(0.0, 0.0))
    assert correlation == pytest.approx(np.corrcoef(one, two)[0, 1])
    ends = [(x.mean() / 4 - 1.96 * x.std() / 80, x.mean() / 4 + 1.96 * x.std() / 80) for x in (one, two)]
    found = difference_ci95(one.mean() / 4, ends[0], two.mean() / 4, ends[1], correlation=correlation)
    half = 1.96 * (two - one).std() / 80
    assert found == pytest.approx(((two - one).mean() / 4 - half, (two - one).mean() / 4 + half))
    # What varies besides is each share's own.
    more = float(one.var()) / 6400
    assert correlation_of_shares(one, two, counts, more_variance=(more, 0.0)) == pytest.approx(
        correlation / 2**0.5, rel=2e-3
    )
    assert correlation_of_shares(one, np.full(400, 1.0), counts, more_variance=(0.0, 0.0)) == 0


def test_fiellers_interval_is_all_that_the_t_test_accepts() -> None:
    """By trying quotients one after the other, and where the denominator is uncertain."""
    rng = np.random.default_rng(1)
    fixed, slope = rng.normal(0, 0.004, 60), rng.normal(0, 0.005, 60)
    for over in (0.5, 0.2):
        low, high = fieller_ci95(0.3, over, fixed, slope, freedom=59)
        accepted = []
        for quotient in np.linspace(-1, 2, 30_001):
            parts = fixed + quotient * slope
            error = (60 / 59 * ((parts - parts.mean()) ** 2).sum()) ** 0.5
            if abs(over * (0.3 - quotient)) <= stats.t.ppf(0.975, 59) * error:
                accepted.append(quotient)
        assert (low, high) == pytest.approx((min(accepted), max(accepted)), abs=2e-4)
    assert fieller_ci95(0.3, 0.01, fixed, slope, freedom=59) == (-math.inf, math.inf)


@pytest.mark.parametrize("quotient", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("over", [0.5, 0.09, 0.07, 0.05, 0.001])
def test_fiellers_interval_within_bounds_is_that_of_the_accepted_values_within_them(
    quotient: float, over: float
) -> None:
    """Where the denominator can't be told from zero, the accepted values are all but those between two."""
    rng = np.random.default_rng(2)
    fixed, slope, more = rng.normal(0, 0.003, 60), rng.normal(0, 0.005, 60), 0.002
    found = fieller_ci95(quotient, over, fixed, slope, freedom=30, more_variance=more, within=(0, 1))
    accepted = []
    for tried in np.linspace(0, 1, 20_001):
        parts = fixed + tried * slope
        error = (60 / 59 * ((parts - parts.mean()) ** 2).sum() + more * over**2) ** 0.5
        if abs(over * (quotient - tried)) <= stats.t.ppf(0.975, 30) * error:
            accepted.append(tried)
    assert found == pytest.approx((min(accepted), max(accepted)), abs=1e-4)


def test_a_lopsided_quotients_interval_reaches_further_on_that_side() -> None:
    """With a denominator that is certain it is Johnson's t interval: the shift is μ₃ (1 + 2 t²) / (6 V)."""
    fixed = np.random.default_rng(3).normal(0, 0.004, 60)
    error = (60 / 59 * ((fixed - fixed.mean()) ** 2).sum()) ** 0.5
    t = stats.t.ppf(0.975, 59)
    third = 0.4 * error**3
    shift = third * (1 + 2 * t**2) / (6 * error**2) / 0.5
    low, high = 0.3 - t * error / 0.5, 0.3 + t * error / 0.5
    # In units of the quotient, of which the numerator is half.
    arguments = {"freedom": 59.0, "third_moment": third / 0.5**3}
    assert fieller_ci95(0.3, 0.5, fixed, np.zeros(60), **arguments) == pytest.approx((low, high + shift))
    arguments["third_moment"] *= -1
    assert fieller_ci95(0.3, 0.5, fixed, np.zeros(60), **arguments) == pytest.approx((low - shift, high))
    # However lopsided, by no more than its own reach, and not beyond its bounds.
    arguments["third_moment"] = 1.0
    assert fieller_ci95(0.3, 0.5, fixed, np.zeros(60), **arguments) == pytest.approx((low, 2 * high - 0.3))
    assert fieller_ci95(0.3, 0.5, fixed, np.zeros(60), within=(0, 0.31), **arguments)[1] == 0.31


def test_a_band_of_skewed_changes_reaches_further_on_that_side_and_turns_with_them() -> None:
    rng = np.random.default_rng(6)
    sums, counts = rng.exponential(0.1, (3, 40)) ** 2, np.ones(40)
    up, down = (change_band95(one, counts, largest=1, n_resamples=300).ends for one in (sums, -sums))
    for (low, high), (turned_low, turned_high), mean in zip(up, down, sums.mean(axis=1), strict=True):
        assert high - mean > 1.2 * (mean - low)
        assert (turned_low, turned_high) == pytest.approx((-high, -low))


def test_a_quotient_by_nothing_may_be_anything() -> None:
    fixed = np.random.default_rng(3).normal(0, 0.004, 60)
    assert fieller_ci95(0.3, 0.0, fixed, np.zeros(60), freedom=59) == (-math.inf, math.inf)
    assert fieller_ci95(0.3, 0.0, fixed, np.zeros(60), freedom=59, within=(0, 1)) == (0, 1)


@pytest.mark.parametrize("more", [0.0, 1e-4])
def test_a_lopsided_quotient_by_an_uncertain_number_moves_by_its_own_variance(more: float) -> None:
    """That of u - q·v at the quotient itself, and what it varies by besides."""
    rng = np.random.default_rng(5)
    fixed, slope, over, quotient = rng.normal(0, 0.004, 60), rng.normal(0, 0.004, 60), 0.4, 0.3
    parts = fixed + quotient * slope
    variance = 60 / 59 * float(((parts - parts.mean()) ** 2).sum()) / over**2 + more
    third, t = 0.2 * variance**1.5, float(stats.t.ppf(0.975, 40))
    shift = third * (1 + 2 * t**2) / (6 * variance)
    arguments = {"freedom": 40.0, "more_variance": more}
    low, high = fieller_ci95(quotient, over, fixed, slope, **arguments)
    found = fieller_ci95(quotient, over, fixed, slope, third_moment=third, **arguments)
    assert found == pytest.approx((low, high + shift))
    found = fieller_ci95(quotient, over, fixed, slope, third_moment=-third, **arguments)
    assert found == pytest.approx((low - shift, high))


def test_a_spread_that_is_small_is_no_rounding() -> None:
    """The same numbers 1e-20 times as large give the same t."""
    one, two = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0, 4.0])
    small = difference_of_means(1e-20 * one, np.ones(3), 1e-20 * two, np.ones(4))
    assert small.p_value == pytest.approx(difference_of_means(one, np.ones(3), two, np.ones(4)).p_value)
    assert small.ci95 is not None


def test_prompts_leave_an_estimated_share_as_many_degrees_of_freedom_less_one() -> None:
    sums, counts = np.array([1.0, 0.0, 2.0, 1.0, 0.0, 3.0]), np.full(6, 4.0)
    same, more = (estimated_share_ci95(sums, counts, labels=24, freedom=freedom) for freedom in (5, 1000))
    fewer = estimated_share_ci95(sums, counts, labels=24, freedom=4)
    assert same == more
    assert fewer[0] < same[0] < same[1] < fewer[1]


def test_flips_are_drawn_from_seed_0_unless_asked_otherwise() -> None:
    # Of nearly one size, 11 up and 3 down: flips are less sure than t.
    x = [*(1 + i / 1000 for i in range(11)), *(-1 - i / 1000 for i in range(11, 14)), *[0.0] * 186]
    assert mean_change(x, n_flips=999) == mean_change(x, n_flips=999, seed=0) != mean_change(x, n_flips=999, seed=1)
