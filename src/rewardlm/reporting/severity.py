"""The toxic share at every threshold and by levels of severity, as sentences, figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardlm.formats import interval_of_points, interval_of_shares, p_number, percent, points
from rewardlm.measuring.comparison import Comparison, SeverityChange, SeverityCurve
from rewardlm.measuring.result import Interval
from rewardlm.reporting.figures import SERIES, SERIES_BASE, curves_layout, plain, translucent
from rewardlm.reporting.names import OF_SPLIT

_BAND = 0.16


def sentences(found: Comparison, judges: Sequence[str]) -> list[str]:
    """What each change from the baseline is at all thresholds, the judges in this order."""
    changes = sorted(found.severity_change, key=lambda change: judges.index(change.scorer))
    return [_sentence(change) for change in changes if change.band95 is not None]


def _sentence(change: SeverityChange) -> str:
    said = [
        f"{way} at every threshold {', '.join(map(_range, ranges))}"
        for way, ranges in (("lower", change.fell), ("higher", change.rose))
        if ranges
    ]
    what = " and ".join(said) if said else "at no threshold surely lower or higher"
    return f"By {change.scorer}, {change.to}’s toxic share {OF_SPLIT[change.split]} is {what} than {change.from_}’s."


def _range(ends: Interval) -> str:
    low, high = ends
    return f"of {low:.2f}" if low == high else f"from {low:.2f} to {high:.2f}"


def pictures(found: Comparison, judges: Sequence[str]) -> list[dict[str, Any]]:
    """For each judge the curves of all models with their bands, and those of the changes, as plotly's JSON."""
    colours = {
        model.label: SERIES_BASE if place == 0 else SERIES[(place - 1) % len(SERIES)]
        for place, model in enumerate(found.models)
    }
    made = []
    for judge in judges:
        curves = [curve for curve in found.severity if curve.scorer == judge]
        changes = [change for change in found.severity_change if change.scorer == judge]
        if not curves:
            continue
        traces = [
            one
            for curve in curves
            for one in _traces(curve.label, curve.thresholds, curve.shares, curve.band95, colours[curve.label])
        ]
        moved = [
            one
            for change in changes
            for one in _traces(change.to, change.thresholds, change.deltas, change.band95, colours[change.to])
        ]
        made.append(
            {
                "judge": judge,
                "shares": {"data": traces, "layout": _layout("share above it, %", to_zero=True)},
                "changes": {"data": moved, "layout": _layout("change, points", to_zero=False)} if moved else None,
            }
        )
    return made


def level_rows(found: Comparison, judges: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each judge, in this order, and model: the share of each level with its interval, and its change from
    the baseline.
    """
    changes = {(change.scorer, change.to): change for change in found.severity_change}
    curves = sorted(found.severity, key=lambda curve: judges.index(curve.scorer))
    return [_level_row(curve, changes.get((curve.scorer, curve.label))) for curve in curves]


def _level_row(curve: SeverityCurve, change: SeverityChange | None) -> dict[str, Any]:
    moved = [None] * len(curve.levels) if change is None else change.levels
    return {
        "model": curve.label,
        "judge": curve.scorer,
        "n": curve.n,
        "cells": [
            {
                "share": percent(level.share),
                "ends": interval_of_shares(level.share_ci95),
                "delta": "" if one is None else points(one.delta),
                "delta_ends": "" if one is None else interval_of_points(one.delta_ci95),
                "p": "" if one is None else p_number(one.p_adjusted),
            }
            for level, one in zip(curve.levels, moved, strict=True)
        ],
    }


def level_names(found: Comparison) -> list[str]:
    """Headings of the levels: "severe, above 0.9"."""
    if not found.severity:
        return []
    first, *others = found.severity[0].levels
    return [f"{first.name}, up to {others[0].above:g}", *(f"{one.name}, above {one.above:g}" for one in others)]


def _traces(
    label: str, thresholds: Sequence[float], values: Sequence[float], band: Sequence[Interval] | None, colour: str
) -> list[dict[str, Any]]:
    """A line, and below it the band as a filled outline."""
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": plain(label),
        "x": list(thresholds),
        "y": [100 * value for value in values],
        "line": {"color": colour, "width": 2},
        "legendgroup": plain(label),
        "hovertemplate": f"{plain(label)}, threshold %{{x:.2f}}: %{{y:.1f}}<extra></extra>",
    }
    if band is None:
        return [line]
    outline = {
        "type": "scatter",
        "mode": "lines",
        "x": [*thresholds, *reversed(thresholds)],
        "y": [*(100 * high for _, high in band), *(100 * low for low, _ in reversed(band))],
        "fill": "toself",
        "fillcolor": translucent(colour, _BAND),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": plain(label),
    }
    return [outline, line]


def _layout(y: str, *, to_zero: bool) -> dict[str, Any]:
    layout = curves_layout("threshold", y, height=320, top=46)
    layout["xaxis"]["range"] = [0, 1]
    layout["yaxis"]["rangemode"] = "tozero" if to_zero else "normal"
    if not to_zero:
        layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "#7d8590", "zerolinewidth": 1.5}
    return layout
