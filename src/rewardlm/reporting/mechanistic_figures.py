"""The figures of what is inside a model, as plain plotly JSON like those of ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from rewardlm.interpreting.findings import (
    AdapterPath,
    AdapterWrites,
    Directions,
    Inside,
    LayerInterval,
    LogitShareMeans,
)
from rewardlm.reporting.figures import base_layout, plain
from rewardlm.reporting.interpretation_figures import COLOURS, band_trace, curve_layout

# Blue is away from toxic, vermillion towards it; the middle lets the page's own colour through.
_DIVERGING = [[0, "#1f7fc4"], [0.5, "rgba(125,133,144,0.08)"], [1, "#cf4a1c"]]
_RISING = [[0, "rgba(125,133,144,0.08)"], [1, "#9a55cf"]]


def lens_figure(found: Inside) -> dict[str, Any]:
    """Toxic minus neutral logit by layer, a line per model, with its 95 % band where one is known."""
    lenses = [(label, one.lens) for label, one in found.stream.items() if one.lens is not None]
    figure = _lines([(label, lens.score) for label, lens in lenses], "toxic − neutral logit", "layers that were run")
    bands = [
        band_trace(list(known), [low for low, _ in known.values()], [high for _, high in known.values()], number)
        for number, (_, lens) in enumerate(lenses)
        if (known := _ends(lens.score_ci95))
    ]
    for number, line in enumerate(figure["data"]):
        line["legendgroup"] = f"{number}"
    # Bands lie below the lines.
    figure["data"] = bands + figure["data"]
    return figure


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
    """Share of attention on the prompt (without its first token) by layer, mean of heads, a line per model."""
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
    """Shares of layers in the preference for less toxic answers, a bar per layer and model; see ``has_shares``."""
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
    """Toxicity of answers by the adapter's scale, a line per model: 0 is the base, 1 the model as it is."""
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

    What the adapter wrote through a head's slice of the output matrix counts for that head; so for the MLP.
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


def wrote_figure(written: AdapterWrites, edge: float) -> dict[str, Any]:
    """Length of what the adapter wrote, % of the stream's: modules × layers. ``edge`` is the end of the colour
    scale, as a share."""
    names, columns = _modules(written)
    table = [[100 * value for value in written.length[name]] for name in names]
    edge = 100 * edge
    return _map(table, columns, _RISING, (0, edge), "%{y}, layer %{x}: %{z:.2f} % of the stream")


def pushed_figure(written: AdapterWrites, edge: float) -> dict[str, Any] | None:
    """How far the adapter's writes push the toxic words' logits, up (red) or down (blue): modules × layers. None where
    there are no words to read logits of.

    Where intervals are known, a cell whose 95 % interval holds zero has a dot.
    """
    if written.share is None:
        return None
    names, columns = _modules(written)
    table = [written.share[name] for name in names]
    texts, dots = [], []
    for name, row, column in zip(names, table, columns, strict=True):
        known = _ends((written.share_ci95 or {}).get(name))
        texts.append([f" ({known[n][0]:+.3f} to {known[n][1]:+.3f})" if n in known else "" for n in range(len(row))])
        dots += [(layer, column) for layer, (low, high) in known.items() if low <= 0 <= high]
    figure = _map(table, columns, _DIVERGING, (-edge, edge), "%{y}, layer %{x}: %{z:+.3f}%{text}")
    figure["data"][0]["text"] = texts
    if dots:
        figure["data"].append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [layer for layer, _ in dots],
                "y": [column for _, column in dots],
                "marker": {"size": 3, "color": "#7d8590"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return figure


def edges(written: Sequence[AdapterWrites]) -> tuple[float, float]:
    """The largest length and the largest push of all these adapters: their figures share one scale."""
    found = []
    for by_module in ([one.length for one in written], [one.share or {} for one in written]):
        values = [abs(value) for one in by_module for name in one if "." in name for value in one[name]]
        found.append(max(values, default=0.0) or 1.0)
    return found[0], found[1]


def _ends(found: LayerInterval | None) -> dict[int, tuple[float, float]]:
    """The intervals that are known, by layer."""
    both = [] if found is None else zip(found.low, found.high, strict=True)
    return {n: (low, high) for n, (low, high) in enumerate(both) if low is not None and high is not None}


def _modules(written: AdapterWrites) -> tuple[list[str], list[str]]:
    """Names of the adapter's modules, and how the figure writes them."""
    names = [name for name in written.length if "." in name]
    short = [plain(name.rpartition(".")[2]) for name in names]
    # GPT-2 calls two modules c_proj.
    return names, short if len(set(short)) == len(short) else [plain(name) for name in names]


def _map(
    table: Sequence[Sequence[float]],
    rows: Sequence[str],
    scale: Sequence[Sequence[Any]],
    edges: tuple[float, float],
    hover: str,
) -> dict[str, Any]:
    """Modules from top to bottom, layers from left to right."""
    n_layers = len(table[0]) if table else 0
    layout = base_layout(height=100 + 20 * len(rows))
    layout["margin"] = {"l": 12, "r": 12, "t": 8, "b": 88}
    layout["xaxis"] |= {
        "showgrid": False,
        "automargin": True,
        # Marks would widen it.
        "range": [-0.5, n_layers - 0.5],
        "tick0": 0,
        "dtick": max(1, round(n_layers / 8)),
        "title": {"text": "layer", "font": {"size": 12}, "standoff": 4},
    }
    layout["yaxis"] |= {"showgrid": False, "automargin": True, "type": "category", "autorange": "reversed"}
    heat = {
        "type": "heatmap",
        "x": list(range(n_layers)),
        "y": list(rows),
        "z": [list(row) for row in table],
        "zmin": edges[0],
        "zmax": edges[1],
        "colorscale": [list(step) for step in scale],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.6,
            "x": 0.5,
            "xanchor": "center",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "ypad": 2,
            "outlinewidth": 0,
            "nticks": 4,
            "tickfont": {"size": 11},
        },
        "hovertemplate": hover + "<extra></extra>",
    }
    return {"data": [heat], "layout": layout}


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
