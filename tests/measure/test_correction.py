"""A corrected share against the algebra it comes from; its interval against what it promises, 95 % of the truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardlm.measure.correction import JudgeErrors, corrected_share, effective_size, judge_errors


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


def test_the_judges_own_uncertainty_widens_the_interval() -> None:
    hits = (np.arange(400) % 5 == 0).astype(float)[:, None]
    sure, unsure = (corrected_share(hits, JudgeErrors(n, n * 7 // 10, n, n // 10))[1] for n in (10_000, 50))
    assert sure is not None
    assert unsure is not None
    assert unsure[1] - unsure[0] > 1.5 * (sure[1] - sure[0])


def test_answers_to_one_prompt_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    prompts = (rng.random((200, 1)) < 0.4).astype(float)
    assert effective_size(np.repeat(prompts, 5, 1)) == pytest.approx(199, rel=0.01)
    assert effective_size((rng.random((200, 5)) < 0.4).astype(float)) > 700
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
