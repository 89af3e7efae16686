"""The figures of which parts of an adapter do it, as plain plotly JSON like those of ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardlm.interpreting.findings import NeuronGroup, PatchedSite, PositionKind, TriedPart
from rewardlm.reporting.figures import base_layout
from rewardlm.reporting.interpretation_figures import COLOURS, curve_layout

# What tokens are, as words that follow "the".
POSITIONS: dict[PositionKind, str] = {
    "template": "template’s tokens",
    "hostile": "prompt’s hostile words",
    "prompt": "rest of the prompt",
    "start": "last token before the answer",
    "answer": "answer",
}
# Blue raises the preference for harmless answers, vermillion lowers it; the middle lets the page's colour through.
_DIVERGING = [[0, "#cf4a1c"], [0.5, "rgba(125,133,144,0.08)"], [1, "#1f7fc4"]]


def map_figure(sites: Sequence[PatchedSite], what: str) -> dict[str, Any]:
    """Layers × heads, and the MLP: ``what`` is "effect" or "own". A ring marks what is claimed of it."""
    writes = [one for one in sites if one.kind != "stream"]
    heads = 1 + max((one.head for one in writes if one.head is not None), default=-1)
    layers = 1 + max(one.layer for one in writes)
    table: list[list[float | None]] = [[None] * (heads + 1) for _ in range(layers)]
    names: list[list[str]] = [[""] * (heads + 1) for _ in range(layers)]
    marked_x, marked_y, marked = [], [], []
    for one in writes:
        column = heads if one.head is None else one.head
        value = one.effect if what == "effect" else one.own
        table[one.layer][column], names[one.layer][column] = value, one.name
        if one.claimed if what == "effect" else one.origin:
            marked_x.append(column)
            marked_y.append(one.layer)
            marked.append(one.name)
    most = max((abs(value) for row in table for value in row if value is not None), default=0.0) or 1.0
    layout = base_layout(height=max(320, 12 * layers + 130))
    layout["margin"] = {"l": 56, "r": 16, "t": 16, "b": 56}
    layout["xaxis"] = {
        "title": {"text": "head, and the MLP"},
        "tickvals": list(range(heads + 1)),
        "ticktext": [*(str(head) for head in range(heads)), "MLP"],
        "range": [-0.5, heads + 0.5],
        "showgrid": False,
        "zeroline": False,
    }
    layout["yaxis"] = {
        "title": {"text": "layer"},
        "range": [layers - 0.5, -0.5],
        "dtick": max(1, layers // 10),
        "showgrid": False,
        "zeroline": False,
    }
    return {
        "data": [
            {
                "type": "heatmap",
                "x": list(range(heads + 1)),
                "y": list(range(layers)),
                "z": table,
                "customdata": names,
                "zmin": -most,
                "zmax": most,
                "colorscale": _DIVERGING,
                "xgap": 1,
                "ygap": 1,
                "colorbar": {"title": {"text": "nats a token", "side": "right"}, "thickness": 12},
                "hovertemplate": "%{customdata}: %{z:.4f} nats a token<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": marked_x,
                "y": marked_y,
                "customdata": marked,
                "marker": {"symbol": "circle-open", "size": 11, "color": "#7d8590", "line": {"width": 2}},
                "hovertemplate": "%{customdata} is claimed<extra></extra>",
                "showlegend": False,
            },
        ],
        "layout": layout,
    }


def stream_figure(sites: Sequence[PatchedSite]) -> dict[str, Any]:
    """How much of the change has arrived in the stream before each layer, by exact patching: everywhere, and at the
    positions of one kind alone."""
    exact = [one for one in sites if one.kind == "stream" and one.exact]
    layers = [one.layer for one in exact]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "everywhere",
            "x": layers,
            "y": [one.effect for one in exact],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [0.0 if one.ci95 is None else one.ci95[1] - (one.effect or 0.0) for one in exact],
                "arrayminus": [0.0 if one.ci95 is None else (one.effect or 0.0) - one.ci95[0] for one in exact],
                "thickness": 1,
            },
            "line": {"color": COLOURS[1], "width": 3},
            "marker": {"size": 7},
            "hovertemplate": "everywhere, before layer %{x}: %{y:.3f} nats a token<extra></extra>",
        }
    ]
    for number, (kind, name) in enumerate(POSITIONS.items()):
        values = [None if one.exact_by_position is None else one.exact_by_position.get(kind) for one in exact]
        if any(value is not None for value in values):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"at the {name}",
                    "x": layers,
                    "y": values,
                    "line": {"color": COLOURS[(number + 2) % len(COLOURS)], "width": 1.5, "dash": "dot"},
                    "marker": {"size": 5},
                    "hovertemplate": f"at the {name}, before layer %{{x}}: %{{y:.3f}} nats a token<extra></extra>",
                }
            )
    layout = curve_layout("the tuned model’s stream before layer", "rise of preference, nats a token")
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "#9aa3af"}
    return {"data": traces, "layout": layout}


def groups_figure(rows: Sequence[tuple[str, NeuronGroup]]) -> dict[str, Any]:
    """Share of the change that is lost with the base's values of each group, with intervals; (name, group) each."""
    known = [(name, row) for name, row in rows if row.out_of is not None]
    names = [name for name, _ in known]
    sides = (
        ("lost, with the base’s values in the tuned model", COLOURS[1], -0.14, [row.out_of for _, row in known]),
        ("there, with its values in the base", COLOURS[0], 0.14, [row.into for _, row in known]),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": title,
            "y": [number + beside for number in range(len(names))],
            "x": [None if one is None else 100 * one.mean for one in shares],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [0 if one is None else 100 * (one.ci95[1] - one.mean) for one in shares],
                "arrayminus": [0 if one is None else 100 * (one.mean - one.ci95[0]) for one in shares],
                "thickness": 2,
            },
            "marker": {"size": 9, "color": colour},
            "customdata": names,
            "hovertemplate": "%{customdata}: %{x:.0f} %<extra></extra>",
        }
        for title, colour, beside, shares in sides
    ]
    layout = curve_layout("share of the change, %", "")
    layout["height"] = 60 * len(names) + 150
    layout["margin"]["l"] = 250
    layout["yaxis"] |= {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "autorange": "reversed",
        "zeroline": False,
    }
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "#9aa3af"}
    return {"data": traces, "layout": layout}


def tried_figure(tried: Sequence[TriedPart], keep: float, of: int) -> dict[str, Any]:
    """What was tried in the search for the smallest adapter: numbers kept and share of the fall kept by the first
    answers. Full marks passed, by new answers, too."""
    traces = []
    for number, unit in enumerate(dict.fromkeys(one.unit for one in tried)):
        own = sorted((one for one in tried if one.unit == unit), key=lambda one: one.parameters)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"by {unit}",
                "x": [100 * one.parameters / of for one in own],
                "y": [None if one.fall_kept is None else 100 * one.fall_kept for one in own],
                "customdata": [_tried_note(one) for one in own],
                "line": {"color": COLOURS[number % len(COLOURS)], "width": 2},
                "marker": {"size": 9, "symbol": ["circle-open" if one.passed is False else "circle" for one in own]},
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    most = max((100 * one.parameters / of for one in tried), default=100.0)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{100 * keep:.0f} %",
            "x": [0, most],
            "y": [100 * keep, 100 * keep],
            "line": {"color": "#7d8590", "width": 2, "dash": "dot"},
            "hoverinfo": "skip",
        }
    )
    return {"data": traces, "layout": curve_layout("numbers of the adapter that are kept, %", "fall that is kept, %")}


def _tried_note(one: TriedPart) -> str:
    """What a part kept, in words."""
    first = "not known" if one.fall_kept is None else f"{100 * one.fall_kept:.0f} % of the fall"
    again = "" if one.fall_kept_again is None else f", by new answers {100 * one.fall_kept_again:.0f} %"
    said = {True: "; passed", False: "; not enough", None: ""}[one.passed]
    return f"{one.units} of {one.of} by {one.unit}: {first}{again}{said}"
