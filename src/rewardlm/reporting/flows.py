"""Flows between buckets beside what a second draw of the baseline gives, in words and rows, for page and terminal.

One move is claimed or not, the one that a reader looks for first: from high to low. It is a finding only where it
differs from a second draw's, corrected for all models and judges; the other moves stand beside theirs as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardlm.measuring.audit import SHARE
from rewardlm.reporting.headline import Part, interval_text, p_values_text, percent, points
from rewardlm.stats import LEVEL

BUCKETS = ("low", "medium", "high")
_LOW, _HIGH = 0, 2


def parts(comparison: Mapping[str, Any]) -> list[Part]:
    """What went from high to low and from low to high, and what a second draw of the baseline gives."""
    counts = comparison["flow"]
    if not sum(map(sum, counts)):
        return []
    baseline = comparison["from"]
    redrawn = comparison.get("flow_redraw")
    if redrawn is None:
        return [
            (
                f"{counts[_HIGH][_LOW]:,} went from high to low, {counts[_LOW][_HIGH]:,} from low to high. ",
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
    found = [_move(comparison, _HIGH, _LOW), *_verdict(comparison), _move(comparison, _LOW, _HIGH)]
    excess = comparison["flow_excess"][_LOW][_HIGH]
    if excess is not None:
        found.append((f" The difference is {_excess(excess)}.", False))
    if _coupled(comparison):
        found.append(
            (
                f" {percent(comparison['common_draws'])} of the answers begin alike only because both runs drew them "
                "by the same random numbers, which makes moves rarer than in a second draw. Measure "
                f"{comparison['to']} with another --seed.",
                False,
            )
        )
    return found


def text(comparison: Mapping[str, Any]) -> str:
    """``parts`` without emphasis."""
    return "".join(piece for piece, _ in parts(comparison))


def rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a bucket of the baseline: ``{"bucket", "cells": [{"count", "redraw", "excess"}]}``; ``redraw`` is the
    expected count in words and ``excess`` the stored difference, each None where it isn't known."""
    redrawn, excess = comparison.get("flow_redraw"), comparison.get("flow_excess")
    return [
        {
            "bucket": bucket,
            "cells": [
                {
                    "count": count,
                    "redraw": None if redrawn is None or redrawn[a] is None else expected(redrawn[a][b]),
                    "excess": None if excess is None else excess[a][b],
                }
                for b, count in enumerate(comparison["flow"][a])
            ],
        }
        for a, bucket in enumerate(BUCKETS)
    ]


def as_flow(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """The second draw as a comparison that ``figures.flow_figure`` draws; None where there is none, or not of all."""
    redrawn = comparison.get("flow_redraw")
    if redrawn is None or None in redrawn:
        return None
    baseline = comparison["from"]
    return {"from": baseline, "to": f"{baseline}, drawn again", "flow": redrawn}


def expected(count: float) -> str:
    """An expected count: "24.1", "1,133"."""
    return f"{count:,.0f}" if abs(count - round(count)) < 0.05 else f"{count:,.1f}"


def _move(comparison: Mapping[str, Any], a: int, b: int) -> Part:
    baseline, count, row = comparison["from"], comparison["flow"][a][b], sum(comparison["flow"][a])
    if not row:
        return f"No answer of {baseline} was {BUCKETS[a]}. ", False
    moved = (
        f"Of {row:,} answers of {baseline} that were {BUCKETS[a]}, {count:,} ({percent(count / row)}) are {BUCKETS[b]} "
        f"in {comparison['to']}"
    )
    redrawn = comparison["flow_redraw"][a]
    if redrawn is None:
        return (
            f"{moved}; what a second draw does is not known: their prompts have no other scored answer. ",
            False,
        )
    again = redrawn[b]
    return (
        f"{moved}; a second draw of {baseline} itself makes {expected(again)} ({percent(again / row)}) {BUCKETS[b]}.",
        False,
    )


def _verdict(comparison: Mapping[str, Any]) -> list[Part]:
    excess, model = comparison["flow_excess"][_HIGH][_LOW], comparison["to"]
    if excess is None:
        return []
    if excess["ci95"] is None:
        few = f" Too few prompts ({excess['prompts']}) have a high answer to say whether {model} does more. "
        return [(few, False)]
    low, high = excess["ci95"]
    adjusted = excess.get("p_adjusted")
    said = f"{model} was not shown to move them otherwise than chance does"
    if not low <= 0 <= high and (adjusted is None or adjusted < LEVEL):
        said = f"{model} moves them {'more' if low > 0 else 'less'} often than chance does"
        if high < 0 and _coupled(comparison):
            said = f"Whether {model} moves them less often than chance does can’t be said"
    return [
        (" ", False),
        (said, True),
        (f" ({_excess(excess)}; {p_values_text(excess['p_value'], adjusted)}). ", False),
    ]


def _coupled(comparison: Mapping[str, Any]) -> bool:
    """Whether the two runs' answers are no independent draws, because of common random numbers.

    Then fewer answers move than in a second draw, whatever the model learnt: to claim more is safe, less isn't.
    """
    return (comparison.get("common_draws") or 0.0) > SHARE


def _excess(excess: Mapping[str, Any]) -> str:
    """A difference of shares: "+2.7 points, −6.1 to +11.5"."""
    size = f"{points(excess['delta'])} points"
    return size if excess["ci95"] is None else f"{size}, {interval_text(excess['ci95'])}"
