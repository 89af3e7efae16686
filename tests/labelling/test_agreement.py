"""Krippendorff's alpha against his own published example, and what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from rewardlm.labelling.agreement import agreement

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
PUBLISHED = {
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}


def test_the_published_example() -> None:
    found = agreement({name: {f"u{n}": label for n, label in enumerate(row)} for name, row in PUBLISHED.items()})
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.items == 11  # one unit has a single observer
    assert found.pairs["A", "B"] == (pytest.approx(8 / 9), 9)
    assert found.ci95 is not None
    assert found.ci95[0] < 0.743 < found.ci95[1]


def test_chance_alone_gives_nearly_none() -> None:
    rng = np.random.default_rng(0)
    said = {name: {str(n): float(rng.random() < 0.3) for n in range(300)} for name in ("x", "y")}
    found = agreement(said)
    assert found.alpha == pytest.approx(0, abs=0.15)
    assert found.ci95 is not None
    assert found.ci95[1] - found.ci95[0] < 0.35


@pytest.mark.parametrize("said", [{}, {"x": {"1": 1.0}}, {"x": {"1": 1.0}, "y": {"1": 1.0}}, {"x": {"1": None}}])
def test_without_two_labels_that_could_differ_there_is_none(said) -> None:
    found = agreement(said)
    assert found.alpha is None
    assert found.ci95 is None
