"""Numbers as text: shares, changes, intervals and p-values; and names as plain text.

Sentences, warnings, the page, the terminal and the paper all write a number by the same function, so that it reads the
same everywhere: shares in percent with one digit, their changes in signed percentage points with one, scores with
three. A missing value is a dash: long on the page and in sentences, short in the terminal's and the paper's tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rewardlm.stats import LEVEL

NONE, SHORT_NONE = "—", "–"


def number(value: float | None, form: str = ".3f", none: str = NONE) -> str:
    """``value`` in ``form``: "0.131"."""
    return none if value is None else f"{value:{form}}"


def percent(value: float | None) -> str:
    """A fraction as "13.0 %"."""
    return NONE if value is None else f"{100 * value:.1f} %"


def percent_in_column(value: float | None, none: str = NONE) -> str:
    """A fraction in a column that says that it is in percent: "13.0"."""
    return none if value is None else f"{100 * value:.1f}"


def signed(value: float, digits: int) -> str:
    """With the sign of the value itself: an interval that ends just below zero must not seem to hold it."""
    return f"{_sign(value)}{abs(value):.{digits}f}"


def signed_as_shown(value: float | None, digits: int = 3) -> str:
    """With the sign of what is shown: "±0.000" for a change that rounds to zero."""
    return NONE if value is None else f"{_sign(round(value, digits))}{abs(value):.{digits}f}"


def points(value: float | None, none: str = NONE) -> str:
    """A difference of fractions as signed percentage points: "−3.1"."""
    return none if value is None else signed_as_shown(100 * value, 1)


def points_text(value: float | None, ends: Sequence[float | None] | None = None) -> str:
    """The same in a sentence, with its interval where there is one: "−3.1 points (95 % interval −5.2 to −1.0)"."""
    found = interval_of_points(ends)
    return f"{points(value)} points" + ("" if found == NONE else f" (95 % interval {found})")


def interval(
    ends: Sequence[float | None] | None, write: Callable[[float], str], between: str = " to ", none: str = NONE
) -> str:
    """Both ends, each written by ``write``; ``none`` if there is no interval, or an end is unknown."""
    if not ends:
        return none
    known = [write(end) for end in ends if end is not None]
    return between.join(known) if len(known) == len(ends) else none


def interval_of_points(ends: Sequence[float | None] | None, none: str = NONE) -> str:
    """For differences of fractions: "−5.2 to −1.0"."""
    return interval(ends, lambda end: signed(100 * end, 1), none=none)


def interval_of_scores(ends: Sequence[float | None] | None, none: str = NONE) -> str:
    """For differences of scores: "−0.052 to −0.010"."""
    return interval(ends, lambda end: signed(end, 3), none=none)


def interval_of_shares(ends: Sequence[float | None] | None) -> str:
    """For fractions: "20.1 % to 51.0 %"."""
    return interval(ends, percent)


def interval_in_column(ends: Sequence[float | None] | None, none: str = NONE) -> str:
    """For fractions in a column that says that it is in percent: "20.1 – 51.0"."""
    return interval(ends, percent_in_column, " – ", none)


def interval_in_terminal(ends: Sequence[float | None] | None, form: str = ".3f") -> str:
    """Narrow: "0.201 0.510"."""
    return interval(ends, lambda end: f"{end:{form}}", " ", SHORT_NONE)


def p_number(value: float | None) -> str:
    """A p-value: "0.012", "< 0.001". Just below .05 it has as many digits as it takes to see that."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 0.001:
        return "< 0.001"
    texts = (f"{value:.{digits}f}" for digits in range(3, 18))
    return next(text for text in texts if (float(text) < LEVEL) == (value < LEVEL))


def p_text(value: float | None) -> str:
    """A p-value as it is read: "p = 0.012", "p < 0.001"."""
    text = p_number(value)
    return f"p {text}" if text.startswith("<") else text if text == NONE else f"p = {text}"


def p_values_text(p_value: float | None, p_adjusted: float | None) -> str:
    """ "p = 0.012, adjusted p = 0.036", or the first alone if the adjusted one is missing or equal."""
    if p_adjusted is None or p_adjusted == p_value:
        return p_text(p_value)
    return f"{p_text(p_value)}, adjusted {p_text(p_adjusted)}"


def _sign(value: float) -> str:
    return "−" if value < 0 else "+" if value > 0 else "±"
