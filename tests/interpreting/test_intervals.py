"""Intervals against normal theory, and bands by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rewardlm.interpreting.findings import Estimate
from rewardlm.interpreting.intervals import Resampling, adjust, stretches
from rewardlm.stats import mean_ci95


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    found = Resampling(4000, 0).mean(values, range(400))
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.n == 400
    assert found.ci95 == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_answers_of_one_prompt_are_drawn_together() -> None:
    # Forty prompts, each with ten equal values: as uncertain as forty values, not as four hundred.
    each = np.random.default_rng(1).normal(size=40)
    alone = Resampling(4000, 0).mean(each, range(40)).ci95
    repeated = Resampling(4000, 0).mean(np.repeat(each, 10), np.repeat(np.arange(40), 10)).ci95
    assert repeated == pytest.approx(alone, abs=0.05)


def test_differences_of_two_groups() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.normal(1.0, 1.0, 150), rng.normal(0.0, 2.0, 300)
    found = Resampling(4000, 0).difference(one, range(150), two, range(300))
    half = 1.96 * np.sqrt(one.var() / 150 + two.var() / 300)
    assert found.mean == pytest.approx(one.mean() - two.mean())
    middle = found.mean
    assert found.ci95 == pytest.approx([middle - half, middle + half], abs=0.1 * half)


def test_too_few_have_no_interval_and_nothing_has_no_mean() -> None:
    draws = Resampling(200, 0)
    assert draws.mean([1.0, 3.0], [0, 1]).dump() == {"mean": 2.0, "ci95": None, "n": 2}
    assert draws.mean([1.0, float("nan"), 3.0], [0, 1, 2]).n == 2
    assert draws.mean([], []).dump() == {"mean": None, "ci95": None, "n": 0}
    nothing = {"mean": None, "ci95": None, "p_value": None, "n": 0}
    assert draws.difference([1.0], [0], [], []).dump() == draws.change([], []).dump() == nothing
    # Four prompts have a mean, and no word on significance.
    assert draws.change([1.0, 2.0, 3.0, 4.0], range(4)).dump() == {"mean": 2.5, "ci95": None, "p_value": None, "n": 4}


def test_changes_carry_the_p_value_of_their_interval() -> None:
    draws = Resampling(2000, 0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        for found in (
            draws.change(rng.normal(0.5, 1, 20), np.arange(20) // 2),
            draws.difference(rng.normal(0.8, 1, 12), range(12), rng.normal(0, 1, 9), range(9)),
        ):
            low, high = found.ci95
            assert (found.p_value < 0.05) == (not low <= 0 <= high)


def test_a_family_is_corrected_and_levels_are_none_of_it() -> None:
    one, none, another = (Estimate(mean=1.0, ci95=None, p_value=p_value, n=9) for p_value in (0.01, None, 0.04))
    level = Estimate(mean=3.0, ci95=None, n=9)
    adjust([one, level, none, another])
    assert (one.p_adjusted, none.p_adjusted, another.p_adjusted) == (pytest.approx(0.02), None, pytest.approx(0.04))
    assert level.dump() == {"mean": 3.0, "ci95": None, "n": 9}


def test_intervals_by_layer_are_those_of_the_prompts() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 24))
    prompts = [("a", "b", "c", "d", "e", "f")[n % 6] for n in range(24)]
    draws = Resampling(200, 0)
    found = draws.by_layer(values, prompts)
    assert found is not None
    for layer in range(3):
        # A prompt's positions are one observation: the same as of the prompts' means, which are of four each.
        means = [float(np.mean(values[layer, n::6])) for n in range(6)]
        assert (found.low[layer], found.high[layer]) == pytest.approx(mean_ci95(means))
    values[1] = 0.0
    again = draws.by_layer(values, prompts)
    assert again is not None
    assert (again.low[1], again.high[1]) == (None, None)
    assert again.low[2] == found.low[2]
    assert draws.by_layer(values, [prompt if prompt < "e" else "a" for prompt in prompts]) is None


def test_bands_along_the_answer() -> None:
    band = Resampling(200, 0).along([1.0, 3.0, 10.0, 20.0], [0, 1, 2, 7], [0, 1, 0, 1], [0, 2, 4, 6, 8])
    assert band.dump() == {
        "from": [0, 2, 6],
        "to": [1, 3, 7],
        "mean": [2.0, 10.0, 20.0],
        "low": [None] * 3,
        "high": [None] * 3,
        "n": [2, 1, 1],
    }


@pytest.mark.parametrize("longest", [1, 5, 8, 9, 32, 100])
def test_stretches_cover_every_position_once(longest: int) -> None:
    edges = stretches(longest)
    assert edges[0] == 0
    assert edges[-1] >= longest
    assert len(edges) <= 9
    assert len({b - a for a, b in pairwise(edges)}) == 1
