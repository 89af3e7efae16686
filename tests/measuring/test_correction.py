"""A corrected share against the algebra it comes from; its interval against what it promises, 95 % of the truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rewardlm.measuring.correction import JudgeErrors, corrected_share, effective_size, errors_fit, judge_errors


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0.55, 1), st.floats(0.55, 1))
def test_the_estimate_undoes_what_the_errors_did(truth: float, sensitivity: float, specificity: float) -> None:
    """Counts so large that they are the shares: p = P·Se + (1 − P)(1 − Sp), solved for P."""
    n = 10**6
    errors = JudgeErrors(n, round(n * sensitivity), n, round(n * (1 - specificity)))
    share = truth * errors.sensitivity + (1 - truth) * (1 - errors.specificity)
    hits = np.zeros((n, 1))
    hits[: round(n * share)] = 1
    estimate, interval = corrected_share(hits, errors)
    assert estimate == pytest.approx(truth, abs=1e-4)
    assert interval is not None
    assert 0 <= interval[0] <= interval[1] <= 1


@pytest.mark.parametrize(
    ("truth", "prompts", "samples", "sensitivity", "specificity", "labelled"),
    [
        (0.3, 57, 1, 0.63, 0.93, 784),
        (0.3, 57, 4, 0.63, 0.93, 784),
        (0.9, 244, 4, 0.8, 0.9, 32),
        (0.0, 60, 1, 0.9, 0.9, 32),
    ],
)
def test_the_interval_holds_the_truth_in_95_of_100_cases(
    truth: float, prompts: int, samples: int, sensitivity: float, specificity: float, labelled: int
) -> None:
    """Prompts, verdicts and the judge's own evaluation are drawn anew; all answers to a prompt are of one kind."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        kinds = np.repeat(rng.random((prompts, 1)) < truth, samples, 1)
        called = np.where(kinds, sensitivity, 1 - specificity) > rng.random((prompts, samples))
        errors = JudgeErrors(
            labelled, rng.binomial(labelled, sensitivity), 3 * labelled, rng.binomial(3 * labelled, 1 - specificity)
        )
        _, interval = corrected_share(called.astype(float), errors)
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    # Of 1,000 such intervals 937 hold it at least, with a probability of 97 %.
    assert held >= 937


@pytest.mark.parametrize("truth", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("prompts", [2, 3, 5, 10])
def test_many_answers_to_few_prompts_say_little(prompts: int, truth: float) -> None:
    """25 answers each; every prompt has a tendency of its own, so two prompts are nearly two answers."""
    rng = np.random.default_rng(2)
    outside = 0
    for _ in range(500):
        errors = JudgeErrors(300, rng.binomial(300, 0.75), 1200, rng.binomial(1200, 0.06))
        kinds = rng.random((prompts, 25)) < rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, (prompts, 1))
        called = np.where(kinds, 0.75, 0.06) > rng.random((prompts, 25))
        _, interval = corrected_share(called.astype(float), errors)
        assert interval is not None
        outside += not interval[0] <= truth <= interval[1]
    # Of 500 intervals that hold it in 95 % of cases, with a probability of 99.99 %.
    assert outside <= 44


def test_one_prompt_has_no_interval() -> None:
    hits = np.r_[np.ones(5), np.zeros(20)][None]
    estimate, interval = corrected_share(hits, JudgeErrors(300, 225, 1200, 72))
    assert estimate == pytest.approx((0.2 - 0.06) / (0.75 - 0.06))
    assert interval is None
    assert errors_fit(hits, JudgeErrors(300, 225, 1200, 72)) is None


CARD = JudgeErrors(positives=300, found=225, negatives=1200, called=72)  # finds 75 %, calls 6 % of the others so


@pytest.mark.parametrize("called", [0, 5, 12])
def test_fewer_calls_than_false_alarms(called: int) -> None:
    """Of 500 answers 30 would be called by mistake. If this run's false alarms are rarer, up to all calls are right:
    then the true share is Clopper and Pearson's of the calls, over the 75 % that are found.
    """
    hits = (np.arange(500) < called).astype(float)[:, None]
    estimate, interval = corrected_share(hits, CARD)
    assert (estimate, errors_fit(hits, CARD)) == (0, False)
    assert interval is not None
    at_most = stats.binomtest(called, 500).proportion_ci(0.95).high / 0.75
    assert interval[0] == 0
    assert interval[1] == pytest.approx(at_most, rel=0.3)


def test_more_calls_than_the_judge_finds() -> None:
    """All of 57: the judge misses fewer here than a quarter, perhaps none."""
    hits = np.ones((57, 1))
    estimate, interval = corrected_share(hits, CARD)
    assert (estimate, errors_fit(hits, CARD)) == (1, False)
    assert interval is not None
    at_least = (stats.binomtest(57, 57).proportion_ci(0.95).low - 0.06) / 0.94
    assert interval == (pytest.approx(at_least, abs=0.02), 1)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_chance_at_the_edge_is_no_misfit_and_the_interval_keeps_its_width(truth: float) -> None:
    """At a true share of 0 half of the runs have fewer calls than false alarms are expected."""
    rng = np.random.default_rng(3)
    rate, misfits, narrowest = 0.75 if truth else 0.06, 0, 1.0
    for _ in range(500):
        hits = (rng.random((100, 1)) < rate).astype(float)
        card = JudgeErrors(300, rng.binomial(300, 0.75), 1200, rng.binomial(1200, 0.06))
        _, interval = corrected_share(hits, card)
        assert interval is not None
        misfits += errors_fit(hits, card) is False
        narrowest = min(narrowest, interval[1] - interval[0])
    assert misfits <= 25, "2.5 % of 500 are 12.5, and 25 with a probability of 99.9 %"
    # By hand, from the judge's card and 100 answers: 1.96 (0.06 * 0.94 / 100)^0.5 / 0.69 is 0.067, and less where
    # answers happen to vary less; 0.75 and 1 give more.
    assert narrowest > 0.03


def test_the_judges_own_uncertainty_widens_the_interval() -> None:
    hits = (np.arange(400) % 5 == 0).astype(float)[:, None]
    sure, unsure = (corrected_share(hits, JudgeErrors(n, n * 7 // 10, n, n // 10))[1] for n in (10_000, 50))
    assert sure is not None
    assert unsure is not None
    assert unsure[1] - unsure[0] > 1.5 * (sure[1] - sure[0])


def test_answers_to_one_prompt_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    prompts = (rng.random((200, 1)) < 0.4).astype(float)
    # 1.5 % less than 200: nobody knows how much prompts vary (1.96 over the t of 199 degrees of freedom, squared).
    assert effective_size(np.repeat(prompts, 5, 1)) == pytest.approx(197, rel=0.01)
    independent = effective_size((rng.random((200, 5)) < 0.4).astype(float))
    assert independent is not None
    assert independent > 700
    # A prompt without an answer is none, and where all are alike nothing says how far apart answers are.
    assert effective_size(np.array([[1.0, 1.0], [1.0, math.nan], [math.nan, math.nan]])) == 2


def test_there_is_nothing_to_correct() -> None:
    hits = np.array([[1.0], [0.0]])
    for errors in (None, JudgeErrors(10, 4, 10, 5), JudgeErrors(10, 5, 10, 5)):  # unknown, worse than a guess, a guess
        assert corrected_share(hits, errors) == (None, None)
    assert corrected_share(np.full((2, 1), math.nan), JudgeErrors(10, 9, 10, 1)) == (None, None)
    assert judge_errors(None) is None
    assert judge_errors({"n": 12, "recall": 0.8}) is None, "runs from before the counts were stored"


def test_it_is_held_to_zero_and_one() -> None:
    errors = JudgeErrors(100, 60, 300, 30)
    assert corrected_share(np.ones((50, 1)), errors)[0] == 1
    assert corrected_share(np.zeros((50, 1)), errors)[0] == 0
