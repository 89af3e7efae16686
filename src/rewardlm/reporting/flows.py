"""Flows between buckets beside what a second draw of the baseline gives, in words and rows, for page and terminal.

Only the move that a reader looks for first, from high to low, can be claimed. It is a finding only if it differs from
that of a second draw, after correction for all models and judges. The other moves are given as numbers alone.
"""

from __future__ import annotations

from typing import Any

from rewardlm.formats import interval_of_points, p_values_text, percent, points
from rewardlm.measuring.audit import SHARE
from rewardlm.measuring.comparison import Change, Excess
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.reporting.headline import Part
from rewardlm.stats import LEVEL

_LOW, _HIGH = 0, 2
Redrawn = list[list[float] | None]


def parts(change: Change) -> list[Part]:
    """What went from high to low and from low to high, and what a second draw of the baseline gives."""
    flow = change.flow
    if not sum(map(sum, flow)):
        return []
    baseline = change.from_
    redrawn, excess = change.flow_redraw, change.flow_excess
    if redrawn is None or excess is None:
        return [
            (
                f"{flow[_HIGH][_LOW]:,} went from high to low, {flow[_LOW][_HIGH]:,} from low to high. ",
                False,
            ),
            ("How much of that is chance is not known", True),
            (
                f": {baseline} answered each prompt once, and most answers that are high once are low in a second draw "
                f"of the same model. Measure {baseline} again with another --seed and give that run as --redraw, or "
                "measure with --samples 2 or more.",
                False,
            ),
        ]
    down, up = excess[_HIGH][_LOW], excess[_LOW][_HIGH]
    found = [_move(change, redrawn, _HIGH, _LOW), *_verdict(change, down), _move(change, redrawn, _LOW, _HIGH)]
    if up is not None:
        found.append((f" The difference is {_excess(up)}.", False))
    if _coupled(change):
        found.append(
            (
                f" {percent(change.common_draws)} of the answers begin alike only because both runs drew them "
                "by the same random numbers, which makes moves rarer than in a second draw. Measure "
                f"{change.to} with another --seed.",
                False,
            )
        )
    return found


def text(change: Change) -> str:
    """``parts`` without emphasis."""
    return "".join(piece for piece, _ in parts(change))


def rows(change: Change) -> list[dict[str, Any]]:
    """A row per bucket of the baseline: ``{"bucket", "cells": [{"count", "redraw", "excess"}]}``; ``redraw`` is the
    expected count in words and ``excess`` the stored difference, each None where it isn't known."""
    redrawn, excess = change.flow_redraw or [None] * 3, change.flow_excess or [[None] * 3] * 3
    return [
        {
            "bucket": bucket,
            "cells": [
                {"count": count, "redraw": None if again is None else expected(again[column]), "excess": more[column]}
                for column, count in enumerate(flow)
            ],
        }
        for bucket, flow, again, more in zip(BUCKETS, change.flow, redrawn, excess, strict=True)
    ]


def counts(change: Change) -> list[list[float]]:
    """The flow as 4 × 4 counts, the last row and column being the unscored."""
    lost, found = change.flow_to_unscored, change.flow_from_unscored
    rows: list[list[float]] = [[*row, gone] for row, gone in zip(change.flow, lost, strict=True)]
    return [*rows, [*found, change.flow_unscored - sum(lost) - sum(found)]]


def redrawn_counts(change: Change) -> list[list[float]] | None:
    """The same for a second draw of the baseline; None if there is none, or not for every bucket."""
    known = [[*row, 0.0] for row in change.flow_redraw or () if row is not None]
    return [*known, [0.0] * 4] if len(known) == len(BUCKETS) else None


def expected(count: float) -> str:
    """An expected count: "24.1", "1,133"."""
    return f"{count:,.0f}" if abs(count - round(count)) < 0.05 else f"{count:,.1f}"


def _move(change: Change, redrawn: Redrawn, a: int, b: int) -> Part:
    baseline, count, row = change.from_, change.flow[a][b], sum(change.flow[a])
    if not row:
        return f"No answer of {baseline} was {BUCKETS[a]}. ", False
    moved = (
        f"Of {row:,} answers of {baseline} that were {BUCKETS[a]}, {count:,} ({percent(count / row)}) are {BUCKETS[b]} "
        f"in {change.to}"
    )
    row_redrawn = redrawn[a]
    if row_redrawn is None:
        return (
            f"{moved}; what a second draw does is not known: their prompts have no other scored answer. ",
            False,
        )
    again = row_redrawn[b]
    return (
        f"{moved}; a second draw of {baseline} itself makes {expected(again)} ({percent(again / row)}) {BUCKETS[b]}.",
        False,
    )


def _verdict(change: Change, excess: Excess | None) -> list[Part]:
    if excess is None:
        return []
    model = change.to
    if excess.ci95 is None:
        few = f" Too few prompts ({excess.prompts}) have a high answer to say whether {model} moves more of them. "
        return [(few, False)]
    low, high = excess.ci95
    adjusted = excess.p_adjusted
    said = f"{model} was not shown to move them more or less often than chance does"
    if not low <= 0 <= high and (adjusted is None or adjusted < LEVEL):
        said = f"{model} moves them {'more' if low > 0 else 'less'} often than chance does"
        if high < 0 and _coupled(change):
            said = f"Whether {model} moves them less often than chance does can’t be told"
    return [
        (" ", False),
        (said, True),
        (f" ({_excess(excess)}; {p_values_text(excess.p_value, adjusted)}). ", False),
    ]


def _coupled(change: Change) -> bool:
    """Whether common random numbers keep the two runs' answers from being independent draws.

    Then fewer answers move than in a second draw, whatever the model learnt. So a claim of more moves is safe, and a
    claim of fewer isn't.
    """
    return (change.common_draws or 0.0) > SHARE


def _excess(excess: Excess) -> str:
    """A difference of shares: "+2.7 points, −6.1 to +11.5"."""
    size = f"{points(excess.delta)} points"
    return size if excess.ci95 is None else f"{size}, {interval_of_points(excess.ci95)}"
