"""What must hold of the metrics whatever the scores are: order, bounds, copies, nothing changed, intervals.

No figure is compared with one of our own: each test states a property that follows from a metric's definition.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from rewardlm.measuring import metrics
from rewardlm.stats import FloatArray

STEADY = settings(derandomize=True, deadline=None, max_examples=80)
# Limits of buckets and of what is toxic, besides anything between.
SCORES = st.floats(0, 1) | st.sampled_from([0.0, metrics.LOW_BELOW, 0.5, metrics.HIGH_ABOVE, 1.0])


@st.composite
def tables(
    draw: st.DrawFn, *, unscored: bool = True, prompts: tuple[int, int] = (1, 8), samples: int = 4
) -> FloatArray:
    """Scores Float[N, K] of N prompts with K answers each; NaN is unscored."""
    shape = draw(st.integers(*prompts)), draw(st.integers(1, samples))
    return draw(some.arrays(np.float64, shape, elements=SCORES | st.just(np.nan) if unscored else SCORES))


def same(one: float | None, other: float | None) -> bool:
    return one is other is None or (one is not None and other == pytest.approx(one, abs=1e-12))


@given(scores=tables(), seed=st.integers(0, 99), threshold=st.floats(0, 1), inclusive=st.booleans())
@STEADY
def test_the_order_of_prompts_and_of_their_answers_changes_nothing(
    scores: FloatArray, seed: int, threshold: float, inclusive: bool
) -> None:
    rng = np.random.default_rng(seed)
    mixed = rng.permuted(rng.permutation(scores, axis=0), axis=1)
    how = {"threshold": threshold, "inclusive": inclusive}
    assert same(metrics.toxic_fraction(scores, **how), metrics.toxic_fraction(mixed, **how))
    assert same(metrics.toxicity_probability(scores, **how), metrics.toxicity_probability(mixed, **how))
    assert same(metrics.mean(scores), metrics.mean(mixed))
    assert same(metrics.expected_max_toxicity(scores), metrics.expected_max_toxicity(mixed))
    assert metrics.buckets(scores) == metrics.buckets(mixed)


@given(scores=tables(), threshold=st.floats(0, 1))
@STEADY
def test_shares_are_shares_and_the_maximum_is_no_less_than_the_mean(scores: FloatArray, threshold: float) -> None:
    known = scores[~np.isnan(scores)]
    found = [metrics.toxic_fraction(scores, threshold=threshold), metrics.mean(scores)]
    assert all((one is None) == (known.size == 0) for one in found)
    for one in (*found, metrics.expected_max_toxicity(scores), metrics.toxicity_probability(scores)):
        assert one is None or 0 <= one <= 1
    # At least as many are toxic at a lower threshold, and with the limit itself.
    lower = metrics.toxic_fraction(scores, threshold=threshold / 2)
    inclusive = metrics.toxic_fraction(scores, threshold=threshold, inclusive=True)
    assert found[0] is None or (lower is not None and inclusive is not None and min(lower, inclusive) >= found[0])


@given(scores=tables(unscored=False))
@STEADY
def test_the_expected_maximum_lies_between_the_mean_and_the_maximum(scores: FloatArray) -> None:
    """And the chance of a toxic one between the share of toxic ones and of prompts that have one."""
    highest, share = metrics.expected_max_toxicity(scores), metrics.toxic_fraction(scores)
    chance = metrics.toxicity_probability(scores)
    assert highest is not None
    assert chance is not None
    assert share is not None
    assert scores.mean() - 1e-12 <= highest <= scores.max(axis=1).mean() + 1e-12
    assert share - 1e-12 <= chance <= (scores > 0.5).any(axis=1).mean() + 1e-12


@given(scores=tables(unscored=False))
@STEADY
def test_of_one_answer_the_maximum_is_the_mean_and_more_answers_raise_it(scores: FloatArray) -> None:
    maxima = [metrics.expected_max_toxicity(scores, samples=k) for k in range(1, scores.shape[1] + 1)]
    assert maxima[0] == pytest.approx(scores.mean())
    assert all(one is not None for one in maxima)
    assert all(b >= a - 1e-12 for a, b in pairwise(maxima))  # type: ignore[operator]


@given(scores=tables(), copies=st.integers(2, 3))
@STEADY
def test_every_prompt_twice_changes_no_share(scores: FloatArray, copies: int) -> None:
    twice = np.repeat(scores, copies, axis=0)
    assert same(metrics.toxic_fraction(scores), metrics.toxic_fraction(twice))
    assert same(metrics.expected_max_toxicity(scores), metrics.expected_max_toxicity(twice))
    assert same(metrics.toxicity_probability(scores), metrics.toxicity_probability(twice))
    assert metrics.buckets(twice) == [copies * count for count in metrics.buckets(scores)]


@given(scores=tables(unscored=False))
@STEADY
def test_a_higher_score_lowers_nothing(scores: FloatArray) -> None:
    higher = scores + (1 - scores) / 2
    for metric in (metrics.toxic_fraction, metrics.mean, metrics.expected_max_toxicity, metrics.toxicity_probability):
        before, after = metric(scores), metric(higher)
        assert before is not None
        assert after is not None
        assert after >= before - 1e-12


@given(scores=tables())
@STEADY
def test_buckets_count_what_is_scored(scores: FloatArray) -> None:
    known = scores[~np.isnan(scores)].tolist()
    by_hand = [sum(one < metrics.LOW_BELOW for one in known), 0, sum(one > metrics.HIGH_ABOVE for one in known)]
    by_hand[1] = len(known) - by_hand[0] - by_hand[2]
    assert metrics.buckets(scores) == by_hand


@given(before=tables(), data=st.data())
@STEADY
def test_a_flow_has_the_buckets_at_its_edges(before: FloatArray, data: st.DataObject) -> None:
    after = data.draw(some.arrays(np.float64, before.shape, elements=SCORES | st.just(np.nan)))
    table, unscored = metrics.flow(before, after)
    both = ~np.isnan(before) & ~np.isnan(after)
    assert np.array(table).sum(axis=1).tolist() == metrics.buckets(np.where(both, before, np.nan))
    assert np.array(table).sum(axis=0).tolist() == metrics.buckets(np.where(both, after, np.nan))
    assert unscored == (~both).sum()
    there, back = metrics.flow(before, after)[0], metrics.flow(after, before)[0]
    assert np.array_equal(there, np.transpose(back))


@given(scores=tables(prompts=(2, 12)))
@STEADY
def test_a_model_against_itself_changes_nothing(scores: FloatArray) -> None:
    table, _ = metrics.flow(scores, scores)
    assert np.array_equal(table, np.diag(metrics.buckets(scores)))
    found = metrics.paired_difference(scores, scores, n_resamples=100)
    assert found.delta in (None, 0.0)
    assert (found.better, found.worse) == (0, 0)
    assert found.p_value in (None, 1.0)


@given(before=tables(prompts=(2, 12), unscored=False), data=st.data())
@STEADY
def test_a_change_there_is_the_opposite_of_the_change_back(before: FloatArray, data: st.DataObject) -> None:
    after = data.draw(some.arrays(np.float64, before.shape, elements=SCORES))
    there = metrics.paired_difference(before, after, n_resamples=100)
    back = metrics.paired_difference(after, before, n_resamples=100)
    assert there.delta is not None
    assert back.delta is not None
    assert there.delta == pytest.approx(-back.delta, abs=1e-12)
    assert there.delta == pytest.approx((after > 0.5).mean() - (before > 0.5).mean(), abs=1e-12)
    assert (there.better, there.worse) == (back.worse, back.better)
    if there.delta_ci95 is not None:
        assert there.delta_ci95[0] - 1e-9 <= there.delta <= there.delta_ci95[1] + 1e-9
        assert -1 <= there.delta_ci95[0] <= there.delta_ci95[1] <= 1


@given(scores=tables(prompts=(2, 12)))
@STEADY
def test_intervals_hold_their_estimates_and_stay_in_bounds(scores: FloatArray) -> None:
    assume((~np.isnan(scores)).any())
    for estimate, ends in (
        (metrics.toxic_fraction(scores), metrics.toxic_fraction_ci95(scores)),
        (metrics.expected_max_toxicity(scores), metrics.expected_max_toxicity_ci95(scores)),
        (metrics.toxicity_probability(scores), metrics.toxicity_probability_ci95(scores)),
    ):
        if ends is not None:
            assert estimate is not None
            assert 0 <= ends[0] <= estimate + 1e-9
            assert estimate - 1e-9 <= ends[1] <= 1
