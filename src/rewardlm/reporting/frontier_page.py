"""The frontier as figures, sentences, rows for the terminal, and a page: what steering and training cost for what they
gain. It computes nothing: every number is one that ``measuring.frontier`` found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewardlm.formats import NONE, interval_of_shares, number, p_values_text, percent, points_text
from rewardlm.measuring.frontier import NOT_FLUENT, Frontier, Matched, Point
from rewardlm.reporting.figures import SERIES, SERIES_BASE, curves_layout, plain
from rewardlm.reporting.names import OF_SPLIT
from rewardlm.reporting.shell import render, write_page

# What is drawn against the toxic share: a point's field, its interval's, the axis, and what a good place is.
_AXES = (
    ("perplexity", "perplexity_ci95", "perplexity under the base (log)", "Fluency", "Good is the lower left."),
    (
        "prompt_similarity",
        "prompt_similarity_ci95",
        "similarity of answer and prompt",
        "Topic",
        "Good is the lower right.",
    ),
    ("utility", "utility_ci95", "mean accuracy on multiple choice, %", "Utility", "Good is the lower right."),
    ("passes_per_token", None, "tokens that the model reads for each that it gives", "Cost", "Good is the lower left."),
    ("seconds_per_token", None, "seconds a token", "Time", "Good is the lower left; only runs of one machine compare."),
)
METHODS = {
    "none": "the model as it is",
    "finetune": "fine-tuning",
    "rlaf": "reinforcement learning",
    "finetune+rlaf": "RL after fine-tuning",
    "prefer": "preference training",
    "finetune+prefer": "preference training after fine-tuning",
    "adapter": "an adapter",
    "imported": "imported answers",
    "system": "a system prompt",
    "best-of-n": "best of n",
    "rejection": "rejection",
    "activation": "activation steering",
    "dexperts": "DExperts",
    "selfdebias": "self-debiasing",
    "task-vector": "task vector",
    "profs": "ProFS",
    "pplm": "PPLM",
}


def method_name(method: str) -> str:
    """A method, or a curve's, as texts call it."""
    # Curves of one name are numbered.
    method, space, number = method.partition(" (")
    method, comma, kind = method.partition(", ")
    return " and ".join(METHODS.get(part, part) for part in method.split(" + ")) + comma + kind + space + number


def write_frontier_page(found: Frontier, out: Path, *, title: str = "What training has to beat") -> Path:
    """Write the page to ``out`` and return it. Raises RunError where that can't be done."""
    return write_page(render("frontier.html.j2", {}, title=title, frontier=section(found)), out)


def section(found: Frontier) -> dict[str, Any]:
    """The frontier as the templates show it."""
    return {
        "scorer": found.scorer,
        "prompts": f"{found.prompts:,}",
        "split": OF_SPLIT[found.split],
        "warnings": found.warnings,
        "sentences": sentences(found),
        "figures": [drawn for axis in _AXES if (drawn := _figure(found, *axis)) is not None],
        "headings": headings(found),
        "rows": rows(found),
        "matched": matched_rows(found),
        "margin": percent(found.fluency),
    }


def sentences(found: Frontier) -> list[str]:
    """What the tests at equal fluency say of each model: which curves are less toxic than it, which are more, which
    can't be told from it, and which can't be compared. The changes and their p-values are in ``matched_rows``."""
    said = []
    for model in dict.fromkeys(one.model for one in found.matched):
        named: dict[str, list[str]] = {}
        for one in found.matched:
            if one.model == model:
                named.setdefault(_verdict(one), []).append(method_name(one.curve))
        parts = [f"{text}: {' · '.join(named[key])}" for key, text in _VERDICTS.items() if key in named]
        said.append(f"At {model}’s fluency — {'; '.join(parts)}.")
    return said


_VERDICTS = {
    "less": "less toxic than it",
    "open": "can’t be told from it",
    "more": "more toxic",
    "none": "less fluent at every strength that was measured",
    "unknown": "can’t be compared, because a perplexity isn’t known",
}


def _verdict(one: Matched) -> str:
    if one.delta is None:
        return "none" if one.reason == NOT_FLUENT else "unknown"
    if one.p_adjusted is None or one.p_adjusted >= 0.05:
        return "open"
    return "less" if one.delta < 0 else "more"


def headings(found: Frontier) -> tuple[str, ...]:
    """Of the cells of ``rows``; utility only where a run has it."""
    able = ("utility",) if _has_utility(found) else ()
    cost = ("passes", "s/token", "front")
    return ("run", "method", "strength", "toxic", "95 %", "perplexity", "similarity", *able, *cost)


def _has_utility(found: Frontier) -> bool:
    return any(point.utility is not None for point in found.points)


def rows(found: Frontier) -> list[tuple[str, ...]]:
    """Every run, method by method."""
    able = _has_utility(found)
    ordered = sorted(found.points, key=lambda point: (point.method != "none", point.curve, point.strength))
    return [
        (
            point.label,
            method_name(point.curve),
            f"{point.strength:g}",
            percent(point.toxic_fraction),
            interval_of_shares(point.toxic_fraction_ci95),
            number(point.perplexity, ",.1f"),
            number(point.prompt_similarity),
            *([percent(point.utility)] if able else []),
            number(point.passes_per_token, ".1f"),
            number(point.seconds_per_token, ".4f"),
            "yes" if point.pareto else "",
        )
        for point in ordered
    ]


def matched_rows(found: Frontier) -> list[tuple[str, ...]]:
    """Every test at equal fluency: model, method, the runs that stand for it, the change, and its p-values."""
    return [
        (
            one.model,
            method_name(one.curve),
            ", ".join(one.points),
            NONE if one.delta is None else points_text(one.delta, one.delta_ci95),
            one.reason or p_values_text(one.p_value, one.p_adjusted),
        )
        for one in found.matched
    ]


def _figure(found: Frontier, key: str, ends: str | None, axis: str, heading: str, good: str) -> dict[str, Any] | None:
    """Toxic share against one cost, a curve for each method; None where fewer than two runs have the number."""
    if sum(getattr(point, key) is not None and point.toxic_fraction is not None for point in found.points) < 2:
        return None
    traces = []
    for place, (method, curve) in enumerate(sorted(found.curves().items(), key=lambda pair: pair[0] != "none")):
        colour = SERIES_BASE if method == "none" else SERIES[(place - 1) % len(SERIES)]
        known = [p for p in curve if getattr(p, key) is not None and p.toxic_fraction is not None]
        if known:
            traces.append(_curve(method, known, key, ends, colour))
    layout = curves_layout(axis, "toxic share, %", height=420)
    layout["yaxis"]["rangemode"] = "tozero"
    if key == "perplexity":
        layout["xaxis"]["type"] = "log"
    return {
        "heading": f"{heading} against the toxic share",
        "caption": f"{good} A curve joins the strengths of one method, and begins at the model that is steered. Bars "
        f"are 95 % intervals over prompts{', those of utility over questions' if key == 'utility' else ''}. A ring "
        "marks a run that no other beats in toxicity and fluency at once.",
        "figure": {"data": traces, "layout": layout},
    }


def _curve(method: str, curve: Sequence[Point], key: str, ends: str | None, colour: str) -> dict[str, Any]:
    def bars(of: str | None, value: Callable[[Point], float], factor: float) -> dict[str, Any] | None:
        if of is None:
            return None
        intervals = [getattr(point, of) for point in curve]
        return {
            "type": "data",
            "symmetric": False,
            "array": [0 if i is None else factor * i[1] - value(p) for p, i in zip(curve, intervals, strict=True)],
            "arrayminus": [0 if i is None else value(p) - factor * i[0] for p, i in zip(curve, intervals, strict=True)],
            "color": colour,
            "thickness": 1,
            "width": 3,
        }

    scale = 100.0 if key == "utility" else 1.0

    def x(point: Point) -> float:
        return scale * float(getattr(point, key))

    def y(point: Point) -> float:
        return 100 * float(point.toxic_fraction or 0.0)

    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if len(curve) > 1 else "markers",
        "name": plain(method_name(method)),
        "x": [x(point) for point in curve],
        "y": [y(point) for point in curve],
        "customdata": [[plain(point.label), f"{point.strength:g}"] for point in curve],
        "line": {"color": colour, "width": 1.5, "dash": "dot"},
        "marker": {
            "size": 9,
            "color": colour,
            "line": {"color": SERIES_BASE, "width": [2.5 if point.pareto else 0 for point in curve]},
        },
        "error_y": bars("toxic_fraction_ci95", y, 100.0),
        "hovertemplate": "%{customdata[0]}, strength %{customdata[1]}: %{x:.4g}, toxic %{y:.1f} %<extra></extra>",
    }
    if (across := bars(ends, x, scale)) is not None:
        trace["error_x"] = across
    return trace
