"""Means with their intervals, as text.

A dash where there is nothing, and the mean alone where there is no interval.
"""

from __future__ import annotations

from collections.abc import Callable

from rewardlm.formats import NONE, interval, signed
from rewardlm.interpreting.findings import Estimate
from rewardlm.stats import LEVEL


def direction(change: Estimate | None) -> int | None:
    """1 for a rise, −1 for a fall, 0 if neither is shown, None if there is no interval.

    The interval decides, together with the p-value that is corrected for the changes read with this one, if there is
    one.
    """
    if change is None or change.ci95 is None:
        return None
    low, high = change.ci95
    p_value = change.p_adjusted
    if low <= 0 <= high or (p_value is not None and p_value >= LEVEL):
        return 0
    return 1 if low > 0 else -1


def number_text(found: Estimate | None, digits: int = 2) -> str:
    """A change: "−0.43 (−0.86 to −0.17)"."""
    return _text(found, lambda value: signed(value, digits))


def points_text(found: Estimate) -> str:
    """A change of shares in percentage points: "−4.1 points (−6.0 to −2.2)"."""
    return _text(found, lambda value: signed(100 * value, 1), " points")


def share_text(found: Estimate) -> str:
    """A share in percent: "66.9 % (56.2 to 86.4)"."""
    return _text(found, lambda value: f"{100 * value:.1f}", " %")


def plain_text(found: Estimate, digits: int = 2) -> str:
    """A size, unsigned: "3.41 (3.20 to 3.62)"."""
    return _text(found, lambda value: f"{value:.{digits}f}")


def _text(found: Estimate | None, write: Callable[[float], str], unit: str = "") -> str:
    if found is None or found.mean is None:
        return NONE
    ends = interval(found.ci95, write, none="")
    return f"{write(found.mean)}{unit}" + (f" ({ends})" if ends else "")
