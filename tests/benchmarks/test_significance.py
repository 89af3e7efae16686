"""The proof of the statistics finds what is wrong with a bad test, and passes the tool's on a few repetitions."""

from __future__ import annotations

import numpy as np
import pytest
import significance
from scipy import stats


def test_a_test_that_errs_too_often_is_over_the_bar() -> None:
    """A percentile bootstrap of five normal numbers is a t-test whose bar is at 1.96 sqrt(4/5): it errs in 15 %."""

    def bootstrap(before: significance.Grid, after: significance.Grid) -> significance.Found:
        change = (after - before)[:, 0]
        return {"z": abs(change.mean()) > 1.96 * change.std() / len(change) ** 0.5}

    def normal(rng: np.random.Generator, n: int) -> tuple[significance.Grid, significance.Grid]:
        return rng.normal(size=(n, 1)), rng.normal(size=(n, 1))

    found, asked = significance.rates(bootstrap, normal, 5, 1000, 0)["z"]
    assert abs(found / asked - 2 * stats.t.sf(1.96 * 0.8**0.5, 4)) < 0.04
    assert significance.over_the_bar(found, asked)


def test_the_bar_allows_for_chance() -> None:
    assert not significance.over_the_bar(60, 1000)
    assert not significance.over_the_bar(85, 1000)
    assert significance.over_the_bar(100, 1000)


@pytest.mark.slow
def test_every_family_keeps_its_level_and_has_power() -> None:
    """At 57 prompts, with few repetitions, through the functions that the commands call."""
    for name, ask, nulls in significance.FAMILIES:
        null = nulls[-1] if name != "compare" else nulls[5]
        wrong = significance.rates(ask, null.draw, 57, 60, 1)
        right = significance.rates(ask, null.alternative, 57, 30, 2)
        for what, (found, asked) in wrong.items():
            assert not significance.over_the_bar(found, asked, null.bar), (name, what)
            assert right[what][0] > 0 or what in significance.DIFFERENCES, (name, what)
