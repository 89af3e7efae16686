"""The figures of an interpretation, as plain plotly JSON like those of ``figures``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardlm.interpreting.findings import AttributionBand, Band, DriftComparison, Estimate, ModelSimilarity
from rewardlm.reporting.figures import base_layout, plain, translucent

# Blue, violet, orange, green, red: told apart on light and dark pages, and by colour-blind readers.
COLOURS = ("#1f7fc4", "#9a55cf", "#c28500", "#2f7d6b", "#cf4a1c", "#7d8590", "#5a6f96", "#a33b5c", "#b5651d")


AnyBand = Band | AttributionBand


def band_figure(bands: Sequence[tuple[str, AnyBand]], unit: str, *, scale: float) -> dict[str, Any]:
    """Means along the answer, a line with its 95 % band for each of (name, band); values are times ``scale``."""
    traces: list[dict[str, Any]] = []
    for number, (name, band) in enumerate(bands):
        colour = COLOURS[number % len(COLOURS)]
        # Tokens are counted from 1 for readers.
        x = [(start + end) / 2 + 1 for start, end in zip(band.from_, band.to, strict=True)]
        known = [
            (at, low, high)
            for at, low, high in zip(x, band.low, band.high, strict=True)
            if low is not None and high is not None
        ]
        if known:
            at, low, high = zip(*known, strict=True)
            traces.append(band_trace(at, [scale * one for one in low], [scale * one for one in high], number))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(name),
                "legendgroup": f"{number}",
                "x": x,
                "y": [scale * mean for mean in band.mean],
                "line": {"color": colour, "width": 2},
                "marker": {"size": 6},
                "customdata": [
                    f"tokens {start + 1}–{end + 1}, n = {n}"
                    for start, end, n in zip(band.from_, band.to, band.n, strict=True)
                ],
                "hovertemplate": plain(name) + ", %{customdata}: %{y:.3g}<extra></extra>",
            }
        )
    return {"data": traces, "layout": curve_layout("token of the answer", unit, rangemode="tozero")}


def band_trace(x: Sequence[float], low: Sequence[float], high: Sequence[float], number: int) -> dict[str, Any]:
    """The area between ``low`` and ``high``, in the colour of the ``number``-th line and hidden with it."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": translucent(COLOURS[number % len(COLOURS)], 0.16),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": f"{number}",
    }


def curve_layout(along: str, unit: str, **yaxis: Any) -> dict[str, Any]:
    """The layout of lines or bars with their legend above; ``along`` names the x axis, ``unit`` the y axis."""
    layout = _legend_layout(290, right=12)
    layout["xaxis"] |= {"title": _title(along)}
    layout["yaxis"] |= {"automargin": True, "nticks": 6, **yaxis, "title": _title(unit)}
    return layout


def _legend_layout(height: int, right: int) -> dict[str, Any]:
    layout = base_layout(height)
    layout["margin"] = {"l": 12, "r": right, "t": 34, "b": 46}
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    return layout


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "standoff": 6}


def check_figure(comparisons: Sequence[DriftComparison]) -> dict[str, Any]:
    """Change of log-probability, nats a token, of the baseline's toxic answers and of its others: a row per model."""
    series = (("toxic answers", "#cf4a1c", "diamond"), ("other answers", "#5a6f96", "circle"))
    rows = [(entry.to, (entry.toxic_check.toxic, entry.toxic_check.other)) for entry in comparisons]
    return _interval_figure(rows, series, "change of log-probability, nats a token")


def similarity_figure(models: Sequence[ModelSimilarity]) -> dict[str, Any]:
    """Cosine of answers with their own prompts and with shuffled ones: a row per model."""
    series = (("own prompt", "#1f7fc4", "circle"), ("shuffled prompt", "#7d8590", "diamond"))
    return _interval_figure([(model.label, (model.own, model.null)) for model in models], series, "cosine similarity")


def _interval_figure(
    rows: Sequence[tuple[str, tuple[Estimate, Estimate]]], series: Sequence[tuple[str, str, str]], unit: str
) -> dict[str, Any]:
    traces = []
    for position, (name, colour, symbol) in enumerate(series):
        known = [(row, pair[position].mean, pair[position].ci95) for row, (_, pair) in enumerate(rows)]
        places = [row for row, mean, _ in known if mean is not None]
        means = [mean for _, mean, _ in known if mean is not None]
        ends = [interval or (mean, mean) for _, mean, interval in known if mean is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": means,
                "y": [row + (-0.13, 0.13)[position] for row in places],
                "customdata": [plain(rows[row][0]) for row in places],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(high - mean, 0) for mean, (_, high) in zip(means, ends, strict=True)],
                    "arrayminus": [max(mean - low, 0) for mean, (low, _) in zip(means, ends, strict=True)],
                    "color": colour,
                    "thickness": 2,
                    "width": 5,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "hovertemplate": "%{customdata}, " + name + ": %{x:.3f}<extra></extra>",
            }
        )
    layout = _legend_layout(110 + 60 * len(rows), right=16)
    layout["xaxis"] |= {"title": _title(unit), "zeroline": True, "zerolinecolor": "#9aa3af", "rangemode": "tozero"}
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [plain(label) for label, _ in rows],
        "range": [len(rows) - 0.45, -0.55],
        "showgrid": False,
        "automargin": True,
    }
    return {"data": traces, "layout": layout}
