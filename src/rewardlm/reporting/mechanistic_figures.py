"""The figures of what is inside a model, as plain plotly JSON like those of ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from rewardlm.interpreting.findings import AdapterPath, AdapterWrites, Directions, Inside, LogitShareMeans
from rewardlm.reporting.figures import base_layout, plain
from rewardlm.reporting.interpretation_figures import COLOURS, curve_layout

# Blue is away from toxic, vermillion towards it; the middle lets the page's own colour through.
_DIVERGING = [[0, "#1f7fc4"], [0.5, "rgba(125,133,144,0.08)"], [1, "#cf4a1c"]]
_RISING = [[0, "rgba(125,133,144,0.08)"], [1, "#9a55cf"]]


def lens_figure(found: Inside) -> dict[str, Any]:
    """Toxic minus neutral logit by layer, a line a model."""
    return _lines(
        [(label, one.lens.score) for label, one in found.stream.items() if one.lens is not None],
        "toxic − neutral logit",
        "layers that were run",
    )


def probe_figure(directions: Directions) -> dict[str, Any]:
    """Held-out accuracy and AUC by layer, and what shuffled labels give."""
    figure = _lines(
        [
            ("probe, balanced accuracy", directions.probe_accuracy),
            ("probe, AUC", directions.probe_auc),
            ("difference of means, AUC", directions.mean_auc),
        ],
        "held out",
        "layers that were run",
    )
    shuffled = directions.shuffled_accuracy
    n = len(directions.probe_accuracy)
    figure["data"].append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "accuracy with shuffled labels, best layer",
            "x": [0, n - 1],
            "y": [shuffled, shuffled],
            "line": {"color": "#7d8590", "width": 2, "dash": "dot"},
            "hovertemplate": "shuffled labels: %{y:.2f}<extra></extra>",
        }
    )
    figure["layout"]["yaxis"]["range"] = [0, 1.02]
    return figure


def attention_figure(found: Inside) -> dict[str, Any]:
    """Share of attention on the prompt (without its first token) by layer, mean of heads, a line a model."""
    return _lines(
        [
            (label, [100 * sum(heads) / len(heads) for heads in one.attention.prompt])
            for label, one in found.stream.items()
        ],
        "attention on the prompt, %",
        "layer",
    )


def has_shares(path: AdapterPath | None) -> TypeGuard[AdapterPath]:
    """Whether layers' shares of a preference are known, and add up to it."""
    return path is not None and path.adds_up


def path_figure(found: Inside) -> dict[str, Any]:
    """Shares of layers in the preference for less toxic answers, bars a layer and a model; see ``has_shares``."""
    traces = []
    labels = found.models[1:]
    for number, label in enumerate(labels):
        path = found.paths[label]
        if not has_shares(path):
            continue
        traces.append(
            {
                "type": "bar",
                "name": plain(label),
                "x": list(range(len(path.by_layer))),
                "y": path.by_layer,
                "marker": {"color": COLOURS[(number + 1) % len(COLOURS)]},
                "hovertemplate": plain(label) + ", layer %{x}: %{y:.3f} nats a token<extra></extra>",
            }
        )
    layout = curve_layout("layer", "nats a token")
    layout["barmode"] = "group"
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "#9aa3af"}
    return {"data": traces, "layout": layout}


def scale_figure(found: Inside) -> dict[str, Any]:
    """Toxicity of answers by the adapter's scale, a line a model: 0 is the base, 1 the model as it is."""
    rows = [] if found.causal is None else found.causal.rows
    base, *tuned = found.models
    at_zero = next(row for row in rows if row.model == base and row.kind == "plain")
    traces = []
    for number, label in enumerate(tuned):
        points = [(0.0, at_zero)]
        points += [
            (row.value if row.kind == "scale" else 1.0, row)
            for row in rows
            if row.model == label and row.kind in ("scale", "plain")
        ]
        points.sort(key=lambda point: point[0])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(label),
                "x": [scale for scale, _ in points],
                "y": [row.toxicity for _, row in points],
                "customdata": ["—" if row.perplexity is None else f"{row.perplexity:.1f}" for _, row in points],
                "line": {"color": COLOURS[(number + 1) % len(COLOURS)], "width": 2},
                "marker": {"size": 8},
                "hovertemplate": plain(label)
                + ", adapter × %{x}: toxicity %{y:.3f}, perplexity %{customdata}<extra></extra>",
            }
        )
    layout = curve_layout("the adapter times", "mean toxicity")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": traces, "layout": layout}


def shares_figure(before: LogitShareMeans, after: LogitShareMeans) -> dict[str, Any]:
    """Change of each head's and MLP's share in the toxic words' logits from the base to a model: layers × parts.

    What the adapter wrote through a head's slice of the output matrix is that head's, as through the MLP's.
    """
    n_heads = len(after.heads[0])
    columns = [f"head {head}" for head in range(n_heads)] + ["MLP"]
    table = []
    for layer in range(len(after.mlp)):
        heads = [
            after.heads[layer][head]
            + after.adapter_heads[layer][head]
            - before.heads[layer][head]
            - before.adapter_heads[layer][head]
            for head in range(n_heads)
        ]
        mlp = sum(
            sign * part[layer]
            for sign, shares in ((1, after), (-1, before))
            for part in (shares.mlp, shares.mlp_bias, shares.adapter_mlp)
        )
        table.append([*heads, mlp])
    edge = max((abs(value) for row in table for value in row), default=0) or 1
    return _heat(table, columns, "layer", _DIVERGING, (-edge, edge), "%{x}, layer %{y}: %{z:+.3f}")


def wrote_figure(written: AdapterWrites) -> dict[str, Any]:
    """Length of what the adapter wrote by layer and module, % of the stream's: layers × modules."""
    names = [name for name in written.length if "." in name]
    table = [[100 * written.length[name][layer] for name in names] for layer in range(len(written.moved) - 1)]
    edge = max((value for row in table for value in row), default=0) or 1
    columns = [plain(name.rpartition(".")[2]) for name in names]
    # GPT-2 calls two modules c_proj.
    if len(set(columns)) < len(columns):
        columns = [plain(name) for name in names]
    return _heat(table, columns, "layer", _RISING, (0, edge), "%{x}, layer %{y}: %{z:.2f} % of the stream")


def _lines(series: Sequence[tuple[str, Sequence[float]]], unit: str, along: str) -> dict[str, Any]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(name),
            "x": list(range(len(values))),
            "y": list(values),
            "line": {"color": COLOURS[number % len(COLOURS)], "width": 2},
            "marker": {"size": 4},
            "hovertemplate": plain(name) + ", %{x}: %{y:.3g}<extra></extra>",
        }
        for number, (name, values) in enumerate(series)
    ]
    return {"data": traces, "layout": curve_layout(along, unit)}


def _heat(
    table: Sequence[Sequence[float]],
    columns: Sequence[str],
    rows: str,
    scale: Sequence[Sequence[Any]],
    edges: tuple[float, float],
    hover: str,
) -> dict[str, Any]:
    layout = base_layout(height=150 + 11 * len(table))
    layout["margin"] = {"l": 12, "r": 12, "t": 10, "b": 60}
    layout["xaxis"] |= {"showgrid": False, "tickangle": -45, "automargin": True, "type": "category"}
    layout["yaxis"] |= {
        "showgrid": False,
        "automargin": True,
        "title": {"text": rows, "font": {"size": 12}, "standoff": 6},
    }
    heat = {
        "type": "heatmap",
        "x": list(columns),
        "y": list(range(len(table))),
        "z": [list(row) for row in table],
        "zmin": edges[0],
        "zmax": edges[1],
        "colorscale": [list(step) for step in scale],
        "colorbar": {"thickness": 10, "len": 0.9, "outlinewidth": 0, "tickfont": {"size": 11}},
        "hovertemplate": hover + "<extra></extra>",
    }
    return {"data": [heat], "layout": layout}
