"""Sizes of experiments, against a textbook, against populations of another kind, and against plain simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from rewardlm.measuring.sample_size import (
    MOST_PROMPTS,
    Assumptions,
    both_below,
    by_formula,
    power_by_formula,
    prompts_needed,
    simulated_power,
    smallest_effect,
)
from rewardlm.stats import mean_change

SETTINGS = [(0.1, 0.05, 0.2, 0.5), (0.3, 0.1, 0.3, 0.0), (0.27, 0.2, 0.175, 0.4), (0.1, 0.1, 0.2, 0.5)]


def beta_pairs(
    known: Assumptions, prompts: int, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Toxic answers of both models by another mechanism: chances are beta numbers with the right share and correlation.
    A share s of the prompts has one and the same quantile in both models, the others have two.
    """
    quantile = rng.random(prompts)
    other = np.where(rng.random(prompts) < known.shared, quantile, rng.random(prompts))
    spread = 1 / known.correlation - 1
    counts = []
    for share, place in ((known.before, quantile), (known.after, other)):
        chance = stats.beta.ppf(place, share * spread, (1 - share) * spread) if share > 0 else np.zeros(prompts)
        counts.append(rng.binomial(samples, chance))
    return counts[0], counts[1]


@pytest.mark.parametrize("numbers", SETTINGS)
@pytest.mark.parametrize("samples", [1, 4])
def test_a_prompts_change_varies_as_the_formula_says(numbers: tuple[float, ...], samples: int) -> None:
    known = Assumptions(*numbers)
    rng = np.random.default_rng(0)
    changes = known.changes(200_000, samples, rng) / samples
    assert changes.mean() == pytest.approx(-known.effect, abs=0.003)
    assert changes.var() == pytest.approx(known.variance(samples), rel=0.03)
    before, after = beta_pairs(known, 200_000, samples, rng)
    apart = (after - before) / samples
    # That mechanism's shared part is a little smaller than s, because chances of different shares are no line.
    assert apart.var() == pytest.approx(known.variance(samples), rel=0.06)


def test_answers_to_a_prompt_correlate_as_assumed() -> None:
    known = Assumptions(0.15, 0.05, 0.25, 0.5)
    rng = np.random.default_rng(1)
    # With no effect left of the second model's noise, one model alone: share to zero leaves only the first.
    alone = Assumptions(0.15, 0.15, 0.25, 0.0)
    counts = -alone.changes(400_000, 2, rng)
    share = counts.mean() / 2
    both = (counts == 2).mean()
    assert share == pytest.approx(known.before, abs=0.002)
    assert (both - share**2) / (share * (1 - share)) == pytest.approx(0.25, abs=0.01)


def test_independent_answers_need_what_the_textbook_says() -> None:
    """Two independent shares (Fleiss, Levin & Paik 2003, 4.3, without a correction): 291 a group for .3 against .2."""
    known = Assumptions(0.3, 0.1, 0.0, 0.0)
    textbook = (1.959964 + 0.841621) ** 2 * (0.3 * 0.7 + 0.2 * 0.8) / 0.1**2
    assert math.ceil(textbook) == 291
    # One prompt more in the variance costs at most a few.
    assert 291 <= by_formula(known, 1, 0.8) <= 295
    assert power_by_formula(known, by_formula(known, 1, 0.8), 1) == pytest.approx(0.8, abs=0.002)


def test_more_answers_replace_only_a_part_of_the_prompts() -> None:
    known = Assumptions(0.1, 0.05, 0.2, 0.5)
    sizes = [by_formula(known, k, 0.8) for k in (1, 2, 4, 8, 25, 10_000)]
    assert sizes == sorted(sizes, reverse=True)
    # With endless answers, what prompts differ in remains.
    least = known.variance(10**9) * (1.959964 + 0.841621) ** 2 / 0.05**2
    assert sizes[-1] >= least
    alike = Assumptions(0.1, 0.05, 0.2, 1.0)
    assert by_formula(alike, 4, 0.8) < by_formula(known, 4, 0.8) < by_formula(Assumptions(0.1, 0.05, 0.2, 0), 4, 0.8)


def test_the_smallest_effect_is_the_formula_turned_round() -> None:
    known = Assumptions(0.2, 0.1, 0.2, 0.5)
    for prompts, samples in ((100, 1), (100, 4), (1000, 4)):
        found = smallest_effect(known, prompts, samples, 0.8)
        assert found is not None
        at = Assumptions(0.2, found, 0.2, 0.5)
        assert power_by_formula(at, prompts, samples) == pytest.approx(0.8, abs=0.005)
    assert smallest_effect(known, 5, 1, 0.8) is None, "five prompts can't even see a fall to nothing"


@pytest.mark.slow
@pytest.mark.parametrize("numbers", SETTINGS)
@pytest.mark.parametrize("samples", [1, 4])
def test_the_size_has_the_power_in_other_populations(numbers: tuple[float, ...], samples: int) -> None:
    """Beta numbers in the place of normal ones, and the test asked here: 80 %, but for chance and the other shape."""
    known = Assumptions(*numbers)
    size = prompts_needed(known, samples, 0.8, draws=1_000, seed=0)
    assert size.prompts is not None
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(800):
        before, after = beta_pairs(known, size.prompts, samples, rng)
        change = mean_change(after - before, np.full(size.prompts, samples), largest=1.0)
        seen += change.p_value is not None and change.p_value < 0.05 and (change.mean or 0) < 0
    if size.tried[size.prompts].power < 0.85:
        assert seen / 800 == pytest.approx(0.8, abs=0.05)
    else:  # a fall to nothing with few prompts: power comes in steps
        assert seen / 800 > 0.75


def test_no_size_is_enough_for_a_change_that_is_too_small() -> None:
    found = prompts_needed(Assumptions(0.5, 0.001, 0.2, 0.0), 1, 0.8, draws=100, seed=0)
    assert found.prompts is None
    assert by_formula(Assumptions(0.5, 0.001, 0.2, 0.0), 1, 0.8) > MOST_PROMPTS


def test_the_bivariate_normal_is_scipys() -> None:
    rng = np.random.default_rng(4)
    for one, two in (*rng.normal(size=(30, 2)), (0.0, -1.0), (0.5, 0.0), (0.0, 0.0), (-1.0, 2.0)):
        for correlation in (-0.7, 0.0, 0.3, 0.95):
            exact = stats.multivariate_normal.cdf([one, two], cov=[[1, correlation], [correlation, 1]])
            assert both_below(one, two, correlation) == pytest.approx(exact, abs=1e-9)
    assert both_below(0.3, -0.2, 1.0) == pytest.approx(stats.norm.cdf(-0.2))


@pytest.mark.parametrize("correlation", [0.9, 0.95, 0.99])
def test_answers_may_be_all_but_the_same(correlation: float) -> None:
    known = Assumptions(0.3, 0.1, correlation, 1.0)
    changes = known.changes(200_000, 4, np.random.default_rng(5)) / 4
    assert changes.mean() == pytest.approx(-0.1, abs=0.003)
    assert changes.var() == pytest.approx(known.variance(4), rel=0.05)
    assert prompts_needed(known, 4, 0.8, draws=200, seed=0).prompts is not None


def test_a_size_of_few_draws_is_within_their_error() -> None:
    """A small change takes so many prompts that fewer experiments are simulated: they decide, not those asked for."""
    found = prompts_needed(Assumptions(0.1, 0.004, 0.2, 0.5), 4, 0.8, draws=100_000, seed=0)
    assert found.prompts is not None
    tried = found.tried[found.prompts]
    assert 200 < tried.draws < 2_000
    assert tried.power == pytest.approx(0.8, abs=0.05)


def _mcnemar_power(prompts: int, gone: float, came: float) -> Iterator[float]:
    """Exact, one answer a prompt: for each number of changed prompts, its chance times that of a significant fall."""
    for changed in range(prompts + 1):
        weight = stats.binom.pmf(changed, prompts, gone + came)
        rose = np.arange(changed + 1)
        significant = 2 * stats.binom.cdf(np.minimum(rose, changed - rose), changed, 0.5) < 0.05
        falls = significant & (rose < changed - rose)
        yield weight * stats.binom.pmf(rose, changed, came / (gone + came))[falls].sum()


def test_simulated_power_of_single_answers_is_at_most_mcnemars() -> None:
    """With one answer a prompt, the first of the two tests is McNemar's; the second can only take power away."""
    known = Assumptions(0.2, 0.1, 0.3, 0.5)
    rng = np.random.default_rng(3)
    changes = known.changes(1_000_000, 1, rng)
    exact = sum(_mcnemar_power(120, float((changes < 0).mean()), float((changes > 0).mean())))
    found = simulated_power(known, 120, 1, draws=2_000, seed=0)
    assert exact - 0.08 < found < exact + 0.03
