"""The page's first picture: how the toxic share changed, by every judge, with its interval (a forest plot)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rewardlm.formats import points_text
from rewardlm.reporting.figures import COLOURS, base_layout, plain
from rewardlm.reporting.headline import Finding

_COLOURS = {"fell": COLOURS["low"], "rose": COLOURS["high"], "unclear": COLOURS["unscored"]}
_ROW, _HEADING, _LINE = 44, 30, 17
# Letters of a heading that fit beside the judges' names on a phone.
_HEADING_WIDTH = 30


def changes_figure(groups: Sequence[tuple[str, Sequence[Finding]]]) -> dict[str, Any]:
    """A row per judge, grouped by model: ``groups`` holds headings with their findings, the independent judges first.

    Marks are changes in percentage points, lines 95 % intervals. A hollow mark is by a judge that was the reward, or
    that may be a relative of it.
    """
    traces, headings, ticks, y = [], [], [], 0.0
    ends = [0.0]
    for heading, found in groups:
        lines = [plain(line, _HEADING_WIDTH) for line in textwrap.wrap(heading[:90], _HEADING_WIDTH)]
        more = _LINE * (len(lines) - 1) / _ROW
        headings.append(_heading(lines, y + more / 2))
        y += _HEADING / _ROW + more
        for finding in found:
            ticks.append((y, plain(finding.scorer, 16)))
            if finding.delta is not None and finding.verdict != "nothing":
                traces.append(_mark(finding, y))
                low, high = finding.interval or (finding.delta, finding.delta)
                ends += [100 * low, 100 * high, 100 * finding.delta]
            y += 1
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    layout = base_layout(height=round(_ROW * y) + 64)
    layout["margin"] = {"l": 8, "r": 12, "t": 8, "b": 46}
    layout["showlegend"] = False
    layout["annotations"] = headings
    layout["shapes"] = [
        {"type": "line", "xref": "x", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
         "line": {"color": COLOURS["unscored"], "width": 1.5}}
    ]  # fmt: skip
    layout["xaxis"] |= {
        "range": [min(ends) - room, max(ends) + room],
        "title": {"text": "change of the toxic share, points", "font": {"size": 12}, "standoff": 6},
        "nticks": 7,
    }
    layout["yaxis"] |= {
        "tickvals": [place for place, _ in ticks],
        "ticktext": [name for _, name in ticks],
        "range": [y - 0.35, -0.35],
        "showgrid": False,
        "automargin": True,
    }
    return {"data": traces, "layout": layout}


def changes_in_words(groups: Sequence[tuple[str, Sequence[Finding]]]) -> str:
    """The figure's numbers, for those who can't see it."""
    said = []
    for heading, found in groups:
        numbers = [
            f"{finding.scorer} {points_text(finding.delta, finding.interval)}"
            for finding in found
            if finding.delta is not None
        ]
        said.append(f"{heading}: {'; '.join(numbers) or 'nothing can be compared'}.")
    return " ".join(said)


def _mark(finding: Finding, y: float) -> dict[str, Any]:
    assert finding.delta is not None  # by the caller
    delta, colour = 100 * finding.delta, _COLOURS[finding.verdict]
    low, high = finding.interval or (finding.delta, finding.delta)
    hollow = bool(finding.is_reward) or finding.is_relative
    said = points_text(finding.delta, finding.interval)
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [delta],
        "y": [y],
        "text": [said.split()[0]],
        "textposition": "top center",
        "textfont": {"size": 12},
        "cliponaxis": False,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, 100 * high - delta)],
            "arrayminus": [max(0.0, delta - 100 * low)],
            "color": colour,
            "thickness": 2.5,
            "width": 5,
        },
        "marker": {
            "color": colour,
            "symbol": "circle-open" if hollow else "circle",
            "size": 11,
            "line": {"width": 2.5, "color": colour},
        },
        "hovertemplate": f"{plain(finding.scorer)}: {said}<extra></extra>",
    }


def _heading(lines: Sequence[str], y: float) -> dict[str, Any]:
    return {
        "text": "<br>".join(f"<b>{line}</b>" for line in lines),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": y,
        "yref": "y",
        "yanchor": "middle",
        "align": "left",
        "showarrow": False,
        "font": {"size": 13},
    }
