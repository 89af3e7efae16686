"""The page's figures, as plain plotly JSON: shares with intervals, flows between buckets, training curves.

Plain dictionaries, not ``graph_objects``: they are written into the page as data and drawn there, so plotly
(a slow import) is needed only for its script. Colours are chosen to keep a contrast of 3:1 on the light and on
the dark page; text and grid lines are coloured by the page's style sheet, so that they follow the scheme and print.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewardlm.measuring.comparison import ModelSummary, Split
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.reporting.flows import expected

# Blue, amber, vermillion (after Okabe & Ito's palette for colour-blind readers); grey is what has no score.
COLOURS = {"low": "#1f7fc4", "medium": "#c28500", "high": "#cf4a1c", "unscored": "#7d8590"}
# A colour for each of several curves, and that of the one they are compared with.
SERIES = (
    "#1f7fc4",
    "#c28500",
    "#2e8b57",
    "#b0413e",
    "#7a5195",
    "#00838f",
    "#8d6e63",
    "#5b6470",
    "#c2185b",
    "#6a8d00",
)
SERIES_BASE = "#1d2430"
_SPLITS: dict[Split, tuple[str, str, str]] = {
    "all": ("all prompts", "#5a6f96", "circle"),
    "toxic_prompts": ("toxic prompts", "#9a55cf", "diamond"),
}
_MAX_POINTS = 1500

# The curves worth a figure, in reading order: a heading, the keys that share its axis, and what to look for.
CURVES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("Loss", ("loss", "eval_loss"), "Evaluation loss that rises while the loss falls means overfitting."),
    (
        "Pairs that the model ranks right",
        ("pair_accuracy",),
        "Share of a step’s pairs. At 1 there is nothing left to learn from them, and more steps only move the model.",
    ),
    (
        "Log-ratio to the reference, times beta",
        ("implicit_reward_chosen", "implicit_reward_rejected"),
        "The chosen answers’ should not fall far: then both become less likely, and something else is said instead.",
    ),
    ("Reward", ("reward_mean",), "Should rise; a jump to the maximum is a sign of reward hacking."),
    (
        "Judged toxicity",
        ("toxicity_mean", "toxicity_by_witness.*"),
        "Where the reward’s judges see a fall that a witness doesn’t, the reward was hacked.",
    ),
    (
        "KL to the reference",
        ("kl", "kl_full", "kl_origin"),
        "Nats an answer: how far the policy has moved. If it runs away, the policy no longer writes the language.",
    ),
    (
        "KL to the base on plain text",
        ("retain_kl",),
        "Nats a token, before each step. Near 0 the model finds plain text as likely as the base does.",
    ),
    (
        "Disagreement",
        ("disagreement",),
        "Highest minus lowest judge; where it grows, the policy pleases one judge only.",
    ),
    ("Extra terms", ("terms.*",), "What was rewarded besides harmlessness, before weighting."),
    ("Entropy", ("entropy",), "A fall to zero is a collapse: the same answer to everything."),
    ("Answer length (tokens)", ("response_tokens",), "Answers that shrink to nothing are not toxic, but useless."),
    (
        "Answers cut off",
        ("truncated_fraction",),
        "Share of the step’s answers that max_new_tokens ended. Near 1, only beginnings are judged and trained.",
    ),
    ("Empty answers", ("empty_fraction",), "Share of the step’s answers; a silent model is never toxic."),
    ("Policy loss", ("policy_loss",), "Expected to hover near zero."),
    ("Value loss", ("value_loss",), "Should fall as the value head learns what to expect."),
    (
        "Clipped share",
        ("clip_fraction",),
        "Share of ratios beyond clip_range, which teach nothing more; a high share means that steps are too large.",
    ),
    (
        "Capped share",
        ("capped_fraction",),
        "Share of ratios over the cap of CISPO’s loss, which weigh no more than it.",
    ),
    ("KL coefficient", ("kl_coef",), "The price of a unit of KL: fixed, or adapted until the KL is kl.target."),
    (
        "Weight of similarity",
        ("similarity_weight",),
        "What similarity to the prompt is paid, adapted until answers are as near as similarity.target says.",
    ),
    ("Gradient norm", ("grad_norm",), "Spikes are unstable steps."),
)
_CURVE_NAMES = {
    "loss": "training",
    "eval_loss": "evaluation",
    "toxicity_mean": "the reward",
    "implicit_reward_chosen": "chosen",
    "implicit_reward_rejected": "rejected",
    "kl": "of the sampled tokens",
    "kl_full": "over the vocabulary",
    "kl_origin": "to the first reference",
}
# What plotly would read as more than a letter: tags, entities, its templates, formulas.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "$": "&#36;"}
_CURVE_COLOURS = ("#5a6f96", "#9a55cf", "#b5651d", "#2f7d6b", "#a33b5c")


def plain(text: object, limit: int = 28) -> str:
    """``text`` escaped so that plotly shows it literally, at most ``limit`` characters. Plotly's labels are HTML-like,
    so a hostile model name could otherwise bring tags and links along; what is said of a point is a template, in which
    a name could stand for a number; and between dollars it looks for formulas."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return "".join(_ENTITIES.get(char, char) for char in shown)


def confidence_figure(models: Sequence[ModelSummary], scorer: str, x_max: float) -> dict[str, Any]:
    """Toxic share (percent) with its 95 % interval: a row per model, a mark for all and one for toxic prompts.

    ``x_max``, in percent, is shared by the judges' figures so that they can be compared by eye.
    """
    traces = []
    for position, (split, (name, colour, symbol)) in enumerate(_SPLITS.items()):
        x, y, plus, minus, labels = [], [], [], [], []
        for row, model in enumerate(models):
            found = model.scorers[scorer][split] if scorer in model.scorers else None
            if found is None or found.toxic_fraction is None:
                continue
            share = found.toxic_fraction
            low, high = found.toxic_fraction_ci95 or (share, share)
            x.append(100 * share)
            y.append(row + (-0.17, 0.17)[position])
            plus.append(100 * max(high - share, 0))
            minus.append(100 * max(share - low, 0))
            labels.append(plain(model.label))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": name,
                "x": x,
                "y": y,
                "text": [f"{value:.1f}" for value in x],
                "textposition": "top center",
                "textfont": {"size": 11},
                "cliponaxis": False,
                "customdata": labels,
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": plus,
                    "arrayminus": minus,
                    "color": colour,
                    "thickness": 2,
                    "width": 5,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 10},
                "hovertemplate": "%{customdata}, " + name + ": %{x:.1f} %<extra></extra>",
            }
        )
    layout = base_layout(height=110 + 74 * len(models))
    layout["margin"] = {"l": 12, "r": 16, "t": 34, "b": 46}
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    layout["xaxis"] |= {"range": [0, x_max], "title": {"text": "toxic share, %", "font": {"size": 12}, "standoff": 6}}
    layout["yaxis"] |= {
        "tickvals": list(range(len(models))),
        "ticktext": [plain(model.label) for model in models],
        "range": [len(models) - 0.45, -0.62],
        "showgrid": False,
        "automargin": True,
    }
    return {"data": traces, "layout": layout}


def flow_figure(before: str, after: str, counts: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Sankey of (prompt, sample) pairs: the buckets of the model ``before`` on the left, of ``after`` on the right.

    ``counts`` are 4 × 4 (``flows.counts``). The unscored are a node on each side, so that answers
    which a judge could no longer read are seen to go there.
    """
    left = [sum(row) for row in counts]
    right = [sum(column) for column in zip(*counts, strict=True)]
    names = (*BUCKETS, "unscored")
    total = sum(left)
    nodes: list[dict[str, Any]] = []
    index: dict[tuple[int, int], int] = {}
    for side, sizes in enumerate((left, right)):
        shown = [bucket for bucket in range(4) if sizes[bucket]]
        # Nodes take what the gaps leave of the height; a node's y is its centre.
        gap = 0.06
        scale = 1 - gap * (len(shown) - 1)
        top = 0.0
        for bucket in shown:
            height = scale * sizes[bucket] / total
            index[side, bucket] = len(nodes)
            nodes.append(
                {
                    "label": f"{names[bucket]} {expected(sizes[bucket])}",
                    "color": COLOURS[names[bucket]],
                    "x": (0.001, 0.999)[side],
                    "y": min(max(top + height / 2, 0.001), 0.999),
                }
            )
            top += height + gap
    links = [(a, b, counts[a][b]) for a in range(4) for b in range(4) if counts[a][b]]
    layout = base_layout(height=300)
    layout["margin"] = {"l": 8, "r": 8, "t": 34, "b": 12}
    del layout["xaxis"], layout["yaxis"]
    layout["annotations"] = [
        {
            "text": plain(name),
            "x": side,
            "y": 1,
            "xref": "paper",
            "yref": "paper",
            "xanchor": ("left", "right")[side],
            "yanchor": "bottom",
            "yshift": 8,
            "showarrow": False,
            "font": {"size": 14},
        }
        for side, name in enumerate((before, after))
    ]
    return {
        "data": [
            {
                "type": "sankey",
                "arrangement": "fixed",
                "node": {
                    "label": [node["label"] for node in nodes],
                    "color": [node["color"] for node in nodes],
                    "x": [node["x"] for node in nodes],
                    "y": [node["y"] for node in nodes],
                    "pad": 16,
                    "thickness": 16,
                    "line": {"width": 0},
                    "hovertemplate": "%{label}<extra></extra>",
                },
                "link": {
                    "source": [index[0, a] for a, _, _ in links],
                    "target": [index[1, b] for _, b, _ in links],
                    "value": [value for _, _, value in links],
                    "color": [translucent(COLOURS[names[a]]) for a, _, _ in links],
                    "customdata": [f"{names[a]} → {names[b]}" for a, b, _ in links],
                    "hovertemplate": "%{customdata}: %{value:,.4~g}<extra></extra>",
                },
                "textfont": {"size": 13},
            }
        ],
        "layout": layout,
    }


def training_figures(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(heading, what to look for, figure) of every known curve that ``records`` of metrics.jsonl hold."""
    figures = []
    for heading, keys, advice in CURVES:
        traces, colours = [], itertools.cycle(_CURVE_COLOURS)
        for colour, (name, points) in zip(colours, _series(records, keys, heading), strict=False):
            # Every k-th point, and the last one: the browser needn't draw more than the eye can see.
            stride = math.ceil(len(points) / _MAX_POINTS)
            kept = points[::-1][::stride][::-1]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if len(kept) <= 30 else "lines",
                    "name": name,
                    "x": [step for step, _ in kept],
                    "y": [value for _, value in kept],
                    "line": {"color": colour, "width": 2},
                    "marker": {"size": 5},
                    "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
                }
            )
        if not traces:
            continue
        layout = base_layout(height=210)
        layout["margin"] = {"l": 8, "r": 12, "t": 26 if len(traces) > 1 else 10, "b": 40}
        layout["showlegend"] = len(traces) > 1
        layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
        layout["xaxis"] |= {"title": {"text": "step", "font": {"size": 12}, "standoff": 4}, "nticks": 6}
        layout["yaxis"] |= {"automargin": True, "nticks": 5}
        figures.append((heading, advice, {"data": traces, "layout": layout}))
    return figures


def _series(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], heading: str
) -> Iterator[tuple[str, list[tuple[float | None, float]]]]:
    """Name and (step, value) points of each of ``keys`` that ``records`` hold; ``section.*`` is all of a section."""
    for key in keys:
        section, star, _ = key.partition(".*")
        names = sorted({name for record in records for name in record.get(section) or {}}) if star else [None]
        for name in names:
            points = []
            for record in records:
                value = record.get(section) if name is None else (record.get(section) or {}).get(name)
                if (number := finite(value)) is not None:
                    points.append((finite(record.get("step")), number))
            if points:
                yield (_CURVE_NAMES.get(key, heading) if name is None else plain(name)), points


def base_layout(height: int) -> dict[str, Any]:
    """What all layouts have in common; ``height`` in pixels, the width is the page's."""
    axis: dict[str, Any] = {"fixedrange": True, "zeroline": False, "ticks": "", "showline": False}
    return {
        "height": height,
        "autosize": True,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#5b6470"},
        "hoverlabel": {"bgcolor": "#1d2430", "bordercolor": "#1d2430", "font": {"color": "#ffffff"}},
        # A finger or a wheel over a figure scrolls the page.
        "dragmode": False,
        "xaxis": axis | {"gridcolor": "#d9dee6"},
        "yaxis": axis | {"gridcolor": "#d9dee6"},
    }


def curves_layout(x: str, y: str, *, height: int, top: int = 60) -> dict[str, Any]:
    """That of curves with a legend above them; ``top`` pixels hold it. ``x`` and ``y`` are the axes' titles."""
    layout = base_layout(height)
    layout["margin"] = {"l": 8, "r": 12, "t": top, "b": 44}
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
    for name, text in (("xaxis", x), ("yaxis", y)):
        layout[name] |= {"title": {"text": text, "font": {"size": 12}, "standoff": 6}}
    layout["yaxis"]["automargin"] = True
    return layout


def translucent(colour: str, opacity: float = 0.38) -> str:
    """``#rrggbb`` with an opacity, as plotly reads it."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def finite(value: object) -> float | None:
    """``value`` if it is a number that can be drawn; None for NaN, infinity, and an integer beyond them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None
