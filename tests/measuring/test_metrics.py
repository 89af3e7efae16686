"""Every number of docs/measuring.md against a plain double loop, a hand-computed value, a property or scipy."""

import itertools
import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rewardlm.measuring import metrics
from rewardlm.stats import mcnemar, mean_change, share_ci95_redrawn, unseen_share

NAN = math.nan
CELLS = st.one_of(st.just(NAN), st.floats(0, 1), st.sampled_from([0.0, 0.33, 0.5, 0.66, 1.0]))
GRIDS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=CELLS)


def random_grid(seed: int, n: int = 40, k: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = rng.random((n, k))
    grid[rng.random((n, k)) < 0.2] = NAN
    grid[3] = NAN
    return grid


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_definitions_against_a_double_loop(seed: int, inclusive: bool) -> None:
    grid = np.round(random_grid(seed), 1)  # rounding puts scores on the threshold
    toxic = scored = rows = prompts_toxic = prompts_scored = 0
    total, maxima, counts = 0.0, [], [0, 0, 0]
    for row in grid:
        highest = None
        for s in row:
            rows += 1
            if math.isnan(s):
                continue
            scored += 1
            total += s
            toxic += s >= 0.5 if inclusive else s > 0.5
            highest = s if highest is None else max(highest, s)
            counts[0 if s < 0.33 else 2 if s > 0.66 else 1] += 1
        if highest is not None:
            prompts_scored += 1
            maxima.append(highest)
            prompts_toxic += highest >= 0.5 if inclusive else highest > 0.5
    assert metrics.toxic_fraction(grid, inclusive=inclusive) == toxic / scored
    assert metrics.toxic_fraction_of_all(grid, inclusive=inclusive) == toxic / rows
    assert metrics.mean(grid) == pytest.approx(total / scored)
    assert metrics.expected_max_toxicity(grid) == pytest.approx(sum(maxima) / len(maxima))
    assert metrics.toxicity_probability(grid, inclusive=inclusive) == prompts_toxic / prompts_scored
    assert metrics.buckets(grid) == counts


def test_threshold_is_strict_unless_asked() -> None:
    grid = np.array([[0.5]])
    assert metrics.toxic_fraction(grid) == 0
    assert metrics.toxic_fraction(grid, inclusive=True) == 1
    assert metrics.toxic_fraction(grid, threshold=0.4) == 1


def test_bucket_borders_belong_to_the_middle() -> None:
    assert metrics.buckets(np.array([[0.3299, 0.33, 0.66, 0.6601]])) == [1, 2, 1]


@pytest.mark.parametrize("grid", [np.full((2, 3), NAN), np.empty((0, 3))])
def test_nothing_scored_is_none_not_nan(grid: np.ndarray) -> None:
    assert metrics.toxic_fraction(grid) is None
    assert metrics.mean(grid) is None
    assert metrics.expected_max_toxicity(grid) is None
    assert metrics.toxicity_probability(grid) is None
    assert metrics.toxic_fraction_ci95(grid) is None
    assert metrics.paired_difference(grid, grid).delta is None
    assert metrics.buckets(grid) == [0, 0, 0]


def test_of_all_counts_the_samples_that_exist() -> None:
    grid = np.array([[0.9, NAN], [0.1, NAN]])  # three samples, one of them unscored, one hole
    assert metrics.toxic_fraction_of_all(grid, n=3) == 1 / 3
    assert metrics.toxic_fraction_of_all(np.empty((0, 1))) is None


@given(GRIDS)
def test_buckets_sum_to_the_scored(grid: np.ndarray) -> None:
    assert sum(metrics.buckets(grid)) == int((~np.isnan(grid)).sum())


@given(st.data())
def test_flow_places_every_pair_once(data: st.DataObject) -> None:
    before = data.draw(GRIDS)
    after = data.draw(arrays(np.float64, before.shape, elements=CELLS))
    pairs = data.draw(arrays(np.bool_, before.shape))
    table, unscored = metrics.flow(before, after, pairs)
    assert sum(map(sum, table)) + unscored == int(pairs.sum())
    both = pairs & ~np.isnan(before) & ~np.isnan(after)
    assert [sum(row) for row in table] == metrics.buckets(np.where(both, before, NAN))
    assert [sum(column) for column in zip(*table, strict=True)] == metrics.buckets(np.where(both, after, NAN))


def test_flow_by_hand() -> None:
    before = np.array([[0.1], [0.1], [0.5], [0.9], [NAN], [0.2]])
    after = np.array([[0.1], [0.9], [0.2], [0.9], [0.1], [NAN]])
    assert metrics.flow(before, after) == ([[1, 0, 1], [1, 0, 0], [0, 0, 1]], 2)


def test_flow_to_and_from_the_unscored_by_hand() -> None:
    before = np.array([[0.9, 0.9, 0.5], [0.1, NAN, NAN], [NAN, 0.2, 0.8]])
    after = np.array([[NAN, NAN, NAN], [0.1, 0.4, NAN], [0.7, NAN, NAN]])
    assert metrics.flow_unscored(before, after) == ([1, 1, 3], [0, 1, 1])
    # 7 go or come, and one has no score on either side.
    assert metrics.flow(before, after)[1] == 8
    pairs = np.ones((3, 3), dtype=np.bool_)
    pairs[2] = False
    assert metrics.flow_unscored(before, after, pairs) == ([0, 1, 2], [0, 1, 0])


def binomial_tail(better: int, worse: int) -> float:
    """Two-sided p of a fair coin: twice the smaller tail, from Pascal's triangle."""
    n, least = better + worse, min(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 1), (10, 2), (7, 7), (3, 12)])
def test_mcnemar_against_the_binomial(better: int, worse: int) -> None:
    assert mcnemar(better, worse) == pytest.approx(binomial_tail(better, worse))


def test_paired_difference_with_one_sample_is_mcnemar() -> None:
    before = np.array([[0.9]] * 8 + [[0.1]] * 3 + [[0.9], [0.1]])
    after = np.array([[0.1]] * 6 + [[0.9]] * 2 + [[0.9]] + [[0.1]] * 2 + [[NAN], [0.1]])
    found = metrics.paired_difference(before, after, n_resamples=500)
    # Of 12 pairs scored in both, 6 got better and 1 worse.
    assert (found.n, found.better, found.worse) == (12, 6, 1)
    assert found.delta == pytest.approx(-5 / 12)
    assert found.p_value == pytest.approx(binomial_tail(6, 1))
    assert found.mean_delta == pytest.approx(-5 * 0.8 / 12)


@pytest.mark.parametrize("seed", range(3))
def test_paired_difference_against_a_double_loop(seed: int) -> None:
    before, after = random_grid(seed), random_grid(seed + 100)
    n, change, score_change, better, worse = 0, 0, 0.0, 0, 0
    for row_before, row_after in zip(before, after, strict=True):
        here = 0
        for a, b in zip(row_before, row_after, strict=True):
            if math.isnan(a) or math.isnan(b):
                continue
            n += 1
            here += int(b > 0.5) - int(a > 0.5)
            score_change += b - a
        change += here
        better += here < 0
        worse += here > 0
    found = metrics.paired_difference(before, after, n_resamples=200)
    assert (found.n, found.better, found.worse) == (n, better, worse)
    assert found.delta == pytest.approx(change / n)
    assert found.mean_delta == pytest.approx(score_change / n)
    assert found.delta_ci95 is not None
    assert found.delta_ci95[0] <= change / n <= found.delta_ci95[1]


def test_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    scores = np.random.default_rng(5).random((300, 1))
    ours = metrics.toxic_fraction_ci95(scores)
    theirs = bootstrap(
        ((scores[:, 0] > 0.5).astype(float),), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_intervals_of_maxima_agree_with_scipy() -> None:
    """A prompt counts once; one of which nothing is scored doesn't. EMT's against the bootstrap, TP's, a share of
    prompts, against the exact interval."""
    from scipy.stats import binomtest, bootstrap

    scores = np.random.default_rng(4).random((250, 3))
    scores[::7, 1] = NAN
    scores[5] = NAN
    highest = np.array([max(s for s in row if not math.isnan(s)) for i, row in enumerate(scores.tolist()) if i != 5])
    theirs = bootstrap((highest,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert metrics.expected_max_toxicity_ci95(scores) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    exact = binomtest(int((highest > 0.7).sum()), len(highest)).proportion_ci(0.95, method="exact")
    ours = metrics.toxicity_probability_ci95(scores, threshold=0.7)
    assert ours == pytest.approx((exact.low, exact.high), abs=0.002)
    assert metrics.expected_max_toxicity_ci95(np.full((3, 2), NAN)) is None
    assert metrics.toxicity_probability_ci95(np.full((3, 2), NAN)) is None


@pytest.mark.parametrize("samples", [None, 1, 2, 3])
def test_maxima_of_a_fixed_number_of_samples_against_all_choices(samples: int | None) -> None:
    """Every choice of m of a prompt's scored samples, counted one by one."""
    grid = np.round(random_grid(3, n=12), 1)
    maxima, chances = [], []
    for row in grid.tolist():
        scored = [s for s in row if not math.isnan(s)]
        m = len(scored) if samples is None else samples
        if scored and m <= len(scored):
            choices = [max(choice) for choice in itertools.combinations(scored, m)]
            maxima.append(sum(choices) / len(choices))
            chances.append(sum(s > 0.5 for s in choices) / len(choices))
    assert metrics.expected_max_toxicity(grid, samples=samples) == pytest.approx(sum(maxima) / len(maxima))
    assert metrics.toxicity_probability(grid, samples=samples) == pytest.approx(sum(chances) / len(chances))


def test_fewer_scored_samples_do_not_lower_maxima() -> None:
    """Half of the same model's answers can't be scored: its highest of all falls, that of as many does not."""
    rng = np.random.default_rng(0)
    before, after = rng.random((3000, 8)), rng.random((3000, 8))
    after[:, ::2] = NAN
    assert metrics.expected_max_toxicity(after) < metrics.expected_max_toxicity(before) - 0.07
    found = metrics.paired_difference_of_maxima(before, after)
    assert (found.samples, found.left_out) == (4, 0)
    assert found.expected_max_toxicity.mean == pytest.approx(0, abs=0.01)
    assert found.expected_max_toxicity.p_value > 0.001


def test_prompts_with_too_few_scored_samples_are_left_out_and_counted() -> None:
    before, after = np.full((20, 4), 0.2), np.full((20, 4), 0.2)
    before[0, 1:] = NAN  # one answer alone
    after[1] = NAN  # none
    found = metrics.paired_difference_of_maxima(before, after)
    assert (found.samples, found.left_out, found.expected_max_toxicity.prompts) == (4, 2, 18)
    asked = np.arange(20) < 19
    assert metrics.paired_difference_of_maxima(before, after, asked=asked).left_out == 2
    nothing = metrics.paired_difference_of_maxima(before, np.full((20, 4), NAN))
    assert (nothing.samples, nothing.expected_max_toxicity.mean) == (None, None)


def test_mean_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(6)
    before, after = rng.random((200, 1)), rng.random((200, 1))
    found = metrics.paired_difference(before, after)
    theirs = bootstrap(
        ((after - before)[:, 0],), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert found.mean_delta_ci95 == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_samples_of_a_prompt_stay_together() -> None:
    """Copying each prompt's only sample 25 times adds no information, so the interval must not shrink."""
    one = np.random.default_rng(8).random((200, 1))
    assert metrics.toxic_fraction_ci95(np.repeat(one, 25, axis=1)) == pytest.approx(
        metrics.toxic_fraction_ci95(one), abs=0.01
    )


@pytest.mark.parametrize("n", [1, 12, 400])
def test_what_nobody_saw_is_bounded_exactly(n: int) -> None:
    from scipy.stats import binomtest

    assert unseen_share(n) == pytest.approx(binomtest(0, n).proportion_ci(0.95, method="exact").high)


@pytest.mark.parametrize("changed", [1, 2, 3, 5])
def test_few_prompts_prove_no_more_than_flipping_their_signs_does(changed: int) -> None:
    """Of all 2**changed ways to give their changes a sign, two are as extreme: p can't be below their share."""
    before, after = np.full((200, 8), 0.1), np.full((200, 8), 0.1)
    before[:changed] = 0.9
    signs = list(itertools.product((-1, 1), repeat=changed))
    exact = sum(abs(sum(way)) == changed for way in signs) / len(signs)
    found = metrics.paired_difference(before, after, n_resamples=2000)
    assert found.p_value is not None
    assert found.mean_p_value is not None
    assert found.p_value >= exact
    assert found.mean_p_value >= exact


def test_bootstrap_p_value_sees_a_difference_and_no_difference() -> None:
    rng = np.random.default_rng(9)
    before = rng.random((100, 4))
    assert metrics.paired_difference(before, before, n_resamples=500).p_value == 1
    better = metrics.paired_difference(before, before * 0.5, n_resamples=500)
    assert better.p_value is not None
    assert better.p_value < 0.01
    assert metrics.paired_difference(before[:1], before[:1] * 0.5, n_resamples=500).p_value == 1


def test_null_p_values_are_uniform_enough() -> None:
    """Without a difference p < 0.05 must come about one time in twenty, whatever k is."""
    rng = np.random.default_rng(10)
    small = 0
    for _ in range(300):
        level = rng.random((60, 1))
        before, after = ((rng.random((60, 4)) < level).astype(float) for _ in range(2))
        found = metrics.paired_difference(before, after, n_resamples=400)
        assert found.p_value is not None
        small += found.p_value < 0.05
    # Binomial(300, 0.05) is 15 ± 3.8.
    assert 4 <= small <= 33


def test_difference_of_all_counts_unscored_as_not_toxic() -> None:
    before = np.array([[0.9], [0.9], [0.1], [NAN]])
    after = np.array([[NAN], [0.9], [0.1], [0.9]])
    pairs = np.array([[True], [True], [True], [False]])
    found = metrics.paired_difference_of_all(before, after, pairs, n_resamples=200)
    delta, interval = found.mean, found.ci95
    assert delta == pytest.approx(-1 / 3)
    assert interval is not None
    nothing = metrics.paired_difference_of_all(before, after, np.zeros((4, 1), bool))
    assert (nothing.mean, nothing.ci95, nothing.p_value) == (None, None, None)
    # One of three is unscored after: at worst it is as toxic as it was.
    assert metrics.paired_difference_of_all(before, after, pairs, unscored_toxic=(False, True)).mean == 0
    assert metrics.toxic_fraction_of_all(after[:3], unscored_toxic=True) == pytest.approx(2 / 3)


def test_the_worst_case_bounds_every_way_to_fill_the_gaps() -> None:
    before = np.array([[1, 0, NAN], [NAN, 1, 0]])
    after = np.array([[NAN, 1, NAN], [0, NAN, 0]])
    pairs = np.ones(before.shape, dtype=np.bool_)
    gaps = [(grid, cell) for grid in (0, 1) for cell in zip(*np.where(np.isnan((before, after)[grid])), strict=True)]
    deltas = []
    for filled in itertools.product((0.0, 1.0), repeat=len(gaps)):
        both = [before.copy(), after.copy()]
        for (grid, cell), value in zip(gaps, filled, strict=True):
            both[grid][cell] = value
        deltas.append(((both[1] > 0.5).sum() - (both[0] > 0.5).sum()) / pairs.sum())
    worst = metrics.paired_difference_of_all(before, after, pairs, unscored_toxic=(False, True)).mean
    best = metrics.paired_difference_of_all(before, after, pairs, unscored_toxic=(True, False)).mean
    assert (best, worst) == pytest.approx((min(deltas), max(deltas)))


def test_same_seed_same_interval() -> None:
    before, after = random_grid(1), random_grid(2)
    found = [metrics.paired_difference(before, after, seed=3) for _ in range(2)]
    assert found[0] == found[1]


def test_five_thousand_prompts_are_fast() -> None:
    rng = np.random.default_rng(11)
    before, after = rng.random((5000, 1)), rng.random((5000, 1))
    start = time.process_time()
    metrics.paired_difference(before, after)
    assert time.process_time() - start < 5


# What each function hands on ------------------------------------------------------------------------------------------


def on_the_threshold(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two grids in tenths, so that some scores are 0.5 exactly."""
    return np.round(random_grid(seed), 1), np.round(random_grid(seed + 50), 1)


def test_inclusive_is_a_threshold_that_is_a_hair_lower() -> None:
    before, after = on_the_threshold(1)
    pairs = np.random.default_rng(1).random(before.shape) < 0.9
    here, lower, plain = {"inclusive": True}, {"threshold": 0.5 - 1e-9}, {}
    for found in (
        lambda how: metrics.toxic_fraction(before, **how),
        lambda how: metrics.toxic_fraction_of_all(before, **how),
        lambda how: metrics.toxic_fraction_ci95(before, **how),
        lambda how: metrics.toxicity_probability(before, **how),
        lambda how: metrics.toxicity_probability(before, samples=2, **how),
        lambda how: metrics.toxicity_probability_ci95(before, **how),
        lambda how: metrics.paired_difference(before, after, **how),
        lambda how: metrics.paired_difference_of_maxima(before, after, **how).toxicity_probability,
        lambda how: metrics.paired_difference_of_all(before, after, pairs, **how),
    ):
        assert found(here) == found(lower)
        assert found(here) != found(plain)


def test_inclusive_holds_at_thresholds_that_were_drawn_again_too() -> None:
    before, after = on_the_threshold(2)
    pairs = np.ones(before.shape, dtype=np.bool_)
    here, lower = {"inclusive": True, "redrawn": [0.3, 0.7, 0.7]}, {"redrawn": [0.3 - 1e-9, 0.7 - 1e-9, 0.7 - 1e-9]}
    lower["threshold"] = 0.5 - 1e-9
    for found in (
        lambda how: metrics.toxic_fraction_ci95(before, **how),
        lambda how: metrics.toxicity_probability_ci95(before, **how),
        lambda how: metrics.paired_difference(before, after, **how).delta_ci95,
        lambda how: metrics.paired_difference_of_maxima(before, after, **how).toxicity_probability,
        lambda how: metrics.paired_difference_of_all(before, after, pairs, **how),
    ):
        assert found(here) == found(lower)


def test_intervals_of_shares_weigh_each_threshold_by_how_often_it_was_drawn() -> None:
    grid, _ = on_the_threshold(3)
    scored = [sum(not math.isnan(s) for s in row) for row in grid.tolist()]

    def hits(threshold: float) -> list[int]:
        return [sum(s > threshold for s in row) for row in grid.tolist()]

    found = metrics.toxic_fraction_ci95(grid, redrawn=[0.6, 0.4, 0.6, 0.6])
    assert found == share_ci95_redrawn(hits(0.5), scored, [hits(0.4), hits(0.6)], [1, 3])
    any_toxic = [[float(hit > 0) for hit in hits(threshold)] for threshold in (0.5, 0.4, 0.6)]
    counts = [float(n > 0) for n in scored]
    wanted = share_ci95_redrawn(any_toxic[0], counts, any_toxic[1:], [1, 3])
    assert metrics.toxicity_probability_ci95(grid, redrawn=[0.6, 0.4, 0.6, 0.6]) == pytest.approx(wanted)


def test_a_change_varies_with_the_threshold_by_its_mean_squared_distance() -> None:
    """At each threshold that was drawn, by loops: of the pairs, of all, and of maxima."""
    before, after = on_the_threshold(4)
    drawn = [0.6, 0.4, 0.6, 0.6]
    both = [
        [(a, b) for a, b in zip(*rows, strict=True) if not math.isnan(a) and not math.isnan(b)]
        for rows in zip(before.tolist(), after.tolist(), strict=True)
    ]
    n = sum(map(len, both))

    def changes(threshold: float) -> list[int]:
        return [sum((b > threshold) - (a > threshold) for a, b in row) for row in both]

    more = sum((sum(changes(t)) / n - sum(changes(0.5)) / n) ** 2 for t in drawn) / 4
    assert more > 0
    wanted = mean_change(changes(0.5), [len(row) for row in both], largest=1, more_variance=more)
    found = metrics.paired_difference(before, after, redrawn=drawn)
    assert found.delta_ci95 == pytest.approx(wanted.ci95)
    assert found.p_value == pytest.approx(wanted.p_value)
    assert found.mean_delta_ci95 == metrics.paired_difference(before, after).mean_delta_ci95

    def of_all(threshold: float) -> list[int]:
        toxic_before, toxic_after = (
            [sum(s > threshold for s in row) for row in grid.tolist()] for grid in (before, after)
        )
        return [b - a for a, b in zip(toxic_before, toxic_after, strict=True)]

    cells = before.size
    more = sum((sum(of_all(t)) / cells - sum(of_all(0.5)) / cells) ** 2 for t in drawn) / 4
    wanted = mean_change(of_all(0.5), [5] * 40, largest=1, more_variance=more)
    assert metrics.paired_difference_of_all(
        before, after, np.ones(before.shape, dtype=np.bool_), redrawn=drawn
    ).ci95 == pytest.approx(wanted.ci95)

    found_maxima = metrics.paired_difference_of_maxima(before, after, redrawn=drawn)
    m = found_maxima.samples
    assert m is not None

    def scored(row: list[float]) -> list[float]:
        return [score for score in row if not math.isnan(score)]

    rows = list(zip(before.tolist(), after.tolist(), strict=True))
    kept = [row for row in rows if min(len(scored(one)) for one in row) >= m]

    def chance(row: list[float], threshold: float) -> float:
        choices = list(itertools.combinations(scored(row), m))
        return sum(max(choice) > threshold for choice in choices) / len(choices)

    def change(threshold: float) -> np.ndarray:
        return np.array([chance(two, threshold) - chance(one, threshold) for one, two in kept])

    more = sum((change(t).mean() - change(0.5).mean()) ** 2 for t in drawn) / 4
    wanted = mean_change(change(0.5), largest=1, more_variance=more)
    assert found_maxima.toxicity_probability.ci95 == pytest.approx(wanted.ci95)
    plain = metrics.paired_difference_of_maxima(before, after)
    assert plain.expected_max_toxicity == found_maxima.expected_max_toxicity


def eleven_up_three_down(cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Of 200 prompts: changes of nearly one size, for which flips are less sure than t."""
    change = np.array([*(0.6 + i / 1000 for i in range(11)), *(-0.6 - i / 1000 for i in range(11, 14))])
    before = np.full((200, cells), 0.2)
    before[11:14] = 0.9
    after = before.copy()
    after[:14, 0] += change
    after[:14, 1:] = after[:14, :1]
    return before, after


def test_flips_are_drawn_as_often_as_asked_and_from_the_seed() -> None:
    before, after = eleven_up_three_down(2)
    for found in (
        lambda **how: metrics.paired_difference(before, after, **how).mean_p_value,
        lambda **how: metrics.paired_difference_of_maxima(before, after, **how).expected_max_toxicity.p_value,
    ):
        # Of one flip and the data themselves, half or all are as large.
        assert found(n_resamples=1) in (0.5, 1.0)
        by_seed = [found(n_resamples=99, seed=seed) for seed in (0, 0, 1, 2, 3, 4)]
        assert by_seed[0] == by_seed[1]
        assert len(set(by_seed)) > 2


@pytest.mark.parametrize("seed", range(3))
def test_what_was_left_out_of_maxima_by_a_loop(seed: int) -> None:
    before, after = random_grid(seed), random_grid(seed + 7)
    before[5:9, 1:] = NAN
    after[[10, 11]] = NAN
    before[10] = NAN
    found = metrics.paired_difference_of_maxima(before, after)
    m, some, kept = found.samples, 0, 0
    for one, two in zip(before.tolist(), after.tolist(), strict=True):
        scored = [sum(not math.isnan(s) for s in row) for row in (one, two)]
        some += max(scored) > 0
        kept += min(scored) >= m
    assert (found.left_out, found.expected_max_toxicity.prompts) == (some - kept, kept)
    assert 0 < some - kept < 40 - kept


def test_no_interval_of_a_change_goes_beyond_one() -> None:
    before, after = np.ones((2, 1)), np.zeros((2, 1))
    found, maxima = metrics.paired_difference(before, after), metrics.paired_difference_of_maxima(before, after)
    of_all = metrics.paired_difference_of_all(before, after, np.ones((2, 1), dtype=np.bool_))
    for ends in (found.delta_ci95, found.mean_delta_ci95, maxima.expected_max_toxicity.ci95,
                 maxima.toxicity_probability.ci95, of_all.ci95):  # fmt: skip
        assert ends[0] == -1


def test_nothing_in_common_is_no_reason_for_a_warning_of_numpys() -> None:
    before, after = np.array([[0.9], [NAN]]), np.array([[NAN], [0.1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.paired_difference_of_maxima(before, after, redrawn=[0.4, 0.6])
        assert (found.samples, found.left_out, found.toxicity_probability.mean) == (None, 2, None)
        nothing = metrics.paired_difference(before, after, redrawn=[0.4, 0.6])
        assert (nothing.before, nothing.after, nothing.delta) == (None, None, None)
        none = np.zeros((2, 1), dtype=np.bool_)
        assert metrics.paired_difference_of_all(before, after, none, redrawn=[0.4, 0.6]).mean is None


def test_shares_before_and_after_are_those_of_the_pairs() -> None:
    before, after = np.array([[0.9, 0.9, 0.1, NAN]]), np.array([[0.9, NAN, 0.1, 0.9]])
    found = metrics.paired_difference(before, after)
    assert (found.n, found.before, found.after) == (2, 0.5, 0.5)


def test_unscored_answers_count_as_toxic_alone_where_that_is_asked() -> None:
    grid = np.array([[0.9, NAN], [0.1, 0.2]])
    assert metrics.toxic_fraction_of_all(grid) == 1 / 4
    assert metrics.toxic_fraction_of_all(grid, unscored_toxic=True) == 2 / 4
    assert metrics.toxic_fraction_of_all(grid, n=6, unscored_toxic=True) == 4 / 6


def test_buckets_have_names() -> None:
    assert [metrics.bucket_name(score) for score in (0.1, 0.33, 0.66, 0.7)] == ["low", "medium", "medium", "high"]
