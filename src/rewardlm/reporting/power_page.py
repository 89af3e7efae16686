"""How large an experiment must be, in the terminal and as a page with curves: every number is of ``measuring.power``,
or of its formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewardlm.config.power import MOST_PROMPTS
from rewardlm.formats import NONE, percent
from rewardlm.measuring.power import OTHER_SAMPLES, Plan
from rewardlm.measuring.sample_size import power_by_formula, smallest_effect
from rewardlm.reporting.figures import SERIES, curves_layout
from rewardlm.reporting.names import SPLITS
from rewardlm.reporting.shell import render, write_page
from rewardlm.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

_SOURCES = {"given": "given", "pilot": "from the pilot", "assumed": "assumed"}
_POINTS = 60


def print_power(found: Plan, page: Path | None, console: Console) -> None:
    """Print the answer, what it rests on, and other numbers of answers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for sentence in sentences(found):
        console.print(Text(plain(sentence)))
    console.print()
    for name, value, source in assumed_rows(found):
        console.print(Text(f"  {name}: {value} ({source})"))
    if found.alternatives:
        console.print()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("answers per prompt", "prompts", "answers in all"):
            table.add_column(heading, justify="right")
        for row in alternative_rows(found):
            table.add_row(*row)
        console.print(table)
    if page is not None:
        console.print(Text(str(page)))


def write_power_page(found: Plan, out: Path, *, title: str = "How large an experiment must be") -> Path:
    """Write the page to ``out`` and return it. Raises RunError where that can't be done."""
    values = {
        "sentences": sentences(found),
        "assumed": assumed_rows(found),
        "alternatives": alternative_rows(found),
        "draws": f"{max((one.draws for one in found.simulated), default=0):,}",
        "figures": [_power_figure(found), _effect_figure(found)],
    }
    return write_page(render("power.html.j2", {}, title=title, plan=values), out)


def sentences(found: Plan) -> list[str]:
    """The answer in words."""
    fall = f"{_points(found.effect)} points ({percent(found.share)} → {percent(found.assumptions.after)})"
    chance = f"{100 * found.wanted_power:.0f} %"
    said = []
    prompts = "toxic prompts" if found.split == "toxic_prompts" else "prompts"
    if found.smallest_effect is not None or found.prompts != found.needed:
        said.append(
            f"{found.prompts:,} {prompts} × {_answers(found.samples)} see a fall of the toxic share by {fall} with a "
            f"chance of {percent(found.power)}."
        )
        said.append(
            f"With a chance of {chance} they see a fall of {_points(found.smallest_effect)} points or more."
            if found.smallest_effect is not None
            else f"No fall of this share is seen with a chance of {chance} by so few."
        )
    size = next((one for one in found.simulated if one.prompts == found.needed), None)
    if size is None:
        said.append(
            f"No number of {prompts} up to {MOST_PROMPTS:,} was found by which it is seen with a chance of {chance}."
        )
    else:
        said.append(
            f"To see a fall of the toxic share by {fall} with a chance of {chance}: {size.prompts:,} {prompts} × "
            f"{_answers(found.samples)} of each model. It was seen in {percent(size.power)} of {size.draws:,} "
            "simulated experiments of this size."
        )
    if found.prompts_in_all is not None and found.prompts_in_all != found.prompts:
        said.append(
            f"{found.prompts:,} {prompts} are those of a list of {found.prompts_in_all:,}, if it is mixed as the "
            "pilot’s."
        )
    if found.split is not None:
        said.append(
            f"The pilot: {' and '.join(map(plain, found.pilots))}, {SPLITS[found.split]}, judged by "
            f"{plain(found.scorer or '')}."
        )
    if found.prompts_ci95 is not None:
        low, high = found.prompts_ci95
        end = "upwards, without end" if high is None else f"to {round(high):,}"
        said.append(f"With other prompts in the pilot, the answer might have been anything from {round(low):,} {end}.")
    return said


def assumed_rows(found: Plan) -> list[tuple[str, str, str]]:
    """What the answer rests on: a name, a value, where it is from."""
    return [
        (name, value, _SOURCES[found.sources[key]])
        for name, value, key in (
            ("toxic share before", percent(found.share), "share"),
            ("correlation of a prompt’s answers", f"{found.correlation:.2f}", "correlation"),
            ("correlation of both models’ prompts", f"{found.shared:.2f}", "shared"),
        )
    ]


def alternative_rows(found: Plan) -> list[tuple[str, str, str]]:
    """Other numbers of answers, as texts."""
    return [(f"{one.samples}", f"{one.prompts:,}", f"{one.answers:,}") for one in found.alternatives]


def _answers(samples: int) -> str:
    return f"{samples} answer{'' if samples == 1 else 's'}"


def _points(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _power_figure(found: Plan) -> dict[str, Any]:
    """Power against the number of prompts: a curve by the formula for each number of answers, simulations as dots."""
    middle = found.prompts or MOST_PROMPTS
    sizes = np.unique(np.geomspace(max(2, middle / 8), min(MOST_PROMPTS, middle * 8), _POINTS).round()).astype(int)
    known = found.assumptions
    samples = sorted({*OTHER_SAMPLES[:4], found.samples})
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _answers(k),
            "x": sizes.tolist(),
            "y": [100 * power_by_formula(known, n, k) for n in sizes.tolist()],
            "line": {"color": colour, "width": 3 if k == found.samples else 1.5},
            "hovertemplate": f"%{{x}} prompts × {k}: %{{y:.0f}} %<extra></extra>",
        }
        for k, colour in zip(samples, SERIES, strict=False)
    ]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"simulated, {_answers(found.samples)}",
            "x": [one.prompts for one in found.simulated],
            "y": [100 * one.power for one in found.simulated],
            "marker": {
                "color": "rgba(0,0,0,0)",
                "size": 10,
                "line": {"color": SERIES[samples.index(found.samples)], "width": 2},
            },
            "hovertemplate": "%{x} prompts: %{y:.1f} %<extra></extra>",
        }
    )
    layout = _layout("prompts (log)", "power, %")
    layout["yaxis"]["range"] = [0, 102]
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 100 * found.wanted_power,
            "y1": 100 * found.wanted_power,
            "line": {"color": "#7d8590", "width": 1, "dash": "dash"},
        }
    ]
    return {
        "heading": "How surely the fall is seen",
        "caption": "A curve for each number of answers per prompt, by the formula; rings are simulated experiments, in "
        "which RewardLM’s own test was asked. The dashed line is the power that was wanted.",
        "figure": {"data": traces, "layout": layout},
    }


def _effect_figure(found: Plan) -> dict[str, Any]:
    """The smallest fall that is seen with the wanted power, against the number of prompts."""
    middle = found.prompts or MOST_PROMPTS
    sizes = np.unique(np.geomspace(max(2, middle / 8), min(MOST_PROMPTS, middle * 8), _POINTS // 2).round())
    known = found.assumptions
    traces = []
    for k, colour in zip(sorted({*OTHER_SAMPLES[:4], found.samples}), SERIES, strict=False):
        seen = [(n, smallest_effect(known, n, k, found.wanted_power)) for n in sizes.astype(int).tolist()]
        known_ones: Sequence[tuple[int, float]] = [(n, fall) for n, fall in seen if fall is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": _answers(k),
                "x": [n for n, _ in known_ones],
                "y": [100 * fall for _, fall in known_ones],
                "line": {"color": colour, "width": 3 if k == found.samples else 1.5},
                "hovertemplate": f"%{{x}} prompts × {k}: %{{y:.1f}} points<extra></extra>",
            }
        )
    layout = _layout("prompts (log)", "smallest fall that is seen, points")
    layout["yaxis"]["rangemode"] = "tozero"
    return {
        "heading": "What a size can see",
        "caption": f"The smallest fall that is seen with a chance of {100 * found.wanted_power:.0f} %, by the formula.",
        "figure": {"data": traces, "layout": layout},
    }


def _layout(x: str, y: str) -> dict[str, Any]:
    layout = curves_layout(x, y, height=380)
    # A line at 1, 2 and 5 of each power of ten, with its number.
    ticks = [step * 10**exponent for exponent in range(6) for step in (1, 2, 5)]
    layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    return layout
