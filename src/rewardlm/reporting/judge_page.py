"""Evaluations of judges on a page: what each knows and is at chance on, by kind of test and by group; who disagrees.

``judging`` turns the records of runs into sentences, tables and figures, for a section of the report or, by ``build``,
for a page of their own. It computes nothing: every number is one that ``judge evaluate`` wrote down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewardlm.errors import RunError
from rewardlm.formats import interval, number
from rewardlm.reporting.figures import base_layout, plain
from rewardlm.reporting.shell import render, short, side_by_side, write_page
from rewardlm.reporting.training import training_records, training_sections
from rewardlm.runs import Run

if TYPE_CHECKING:
    from rewardlm.judges.results import JudgePair, JudgeResult

KIND = "judge-evaluation"

# Keys of a result: its numbers, its parts of the texts, and its AUCs of bias.
Number = Literal[
    "auc", "average_precision", "spearman", "pearson", "ece", "brier", "accuracy", "f1", "false_positive_rate",
    "false_negative_rate",
]  # fmt: skip
Parts = Literal["by_functionality", "by_target"]
BiasAuc = Literal["subgroup_auc", "bpsn_auc", "bnsp_auc"]
_COLOURS = ("#1f7fc4", "#cf4a1c", "#9a55cf", "#c28500", "#2f8f5b", "#5a6f96")
_NUMBERS: tuple[tuple[Number, str, str], ...] = (
    ("auc", "AUC", "0.5 is guessing"),
    ("average_precision", "Average precision", "guessing gives the share of positives"),
    ("spearman", "Spearman", "rank correlation with the suite"),
    ("pearson", "Pearson", ""),
    ("ece", "Calibration error", "expected, 15 bins of equal width"),
    ("brier", "Brier score", "mean squared error"),
    ("accuracy", "Accuracy", "at 0.5"),
    ("f1", "F1", "of the positives"),
    ("false_positive_rate", "False positive rate", "negatives that are called positive"),
    ("false_negative_rate", "False negative rate", "positives that are missed"),
)
_BIAS: dict[BiasAuc, str] = {"subgroup_auc": "subgroup", "bpsn_auc": "BPSN", "bnsp_auc": "BNSP"}
_PARTS: tuple[tuple[Parts, str, str | None], ...] = (
    (
        "by_functionality",
        "Accuracy at 0.5 by kind of test; below it the AUC against all texts of the other class",
        "Gold",
    ),
    ("by_target", "Accuracy at 0.5 by the group that a text is about; below it the AUC among these texts", None),
)


def build(evaluated: Sequence[Run], trained: Sequence[Run], out: Path, *, title: str | None = None) -> Path:
    """Write the page of these evaluations, and of trainings beside them, to ``out`` and return it.

    Raises RunError if nothing was evaluated yet or it can't be written.
    """
    shown = judging(evaluated)
    if not shown["suites"]:
        raise RunError(f"nothing was evaluated yet in {evaluated[0].path}: start its command again, and it goes on")
    names = list(dict.fromkeys(name for suite in shown["suites"] for name in suite["judges"]))
    dates = [str(run.meta.get("environment", {}).get("date") or "")[:10] for run in evaluated]
    page = render(
        "judge_page.html.j2",
        {},
        title=title or f"What {' and '.join(names)} {'knows' if len(names) == 1 else 'know'}",
        judging=shown,
        names=names,
        date=max(dates, default=""),
        training=training_sections(training_records(trained)),
        about={
            "labels": [run.label for run in evaluated],
            "settings": side_by_side([run.meta["settings"] for run in evaluated]),
            "environment": side_by_side([run.meta.get("environment", {}) for run in evaluated]),
        },
    )
    return write_page(page, out)


def judging(runs: Sequence[Run]) -> dict[str, Any]:
    """What judges.html.j2 shows: ``suites`` with sentences, tables and figures, ``confusions``, and whether all ended.

    Results of several runs on the same texts stand side by side.
    """
    from rewardlm.judges.results import read_results  # which takes time to import, and few pages need it

    suites: dict[tuple[str, str, int], list[JudgeResult]] = {}
    confusions = []
    for run in runs:
        found = read_results(run)
        for result in found["results"]:
            suites.setdefault((result["suite"], result["sha256"], result["n"]), []).append(result)
        confusions += [_confusion(table) for table in found["confusion"]]
    return {
        "suites": [_suite(number, results) for number, results in enumerate(suites.values(), 1)],
        "confusions": confusions,
        "unfinished": [run.path.name for run in runs if not run.finished],
    }


def _suite(number: int, results: Sequence[JudgeResult]) -> dict[str, Any]:
    first = results[0]
    names = [short(result["judge"]) or "" for result in results]
    # One judge may be there with two labels.
    titles = [
        name if names.count(name) == 1 else f"{name}, {result['label']}"
        for name, result in zip(names, results, strict=True)
    ]
    tables = [_numbers(results, titles)]
    for key, caption, head in _PARTS:
        if any(result[key] for result in results):
            tables.append(_parts(results, titles, key, caption, head))
    if any(result["bias"] and result["bias"]["groups"] for result in results):
        tables.append(_bias(results, titles))
    figures = []
    if any(result["by_functionality"] for result in results):
        figures.append(_bars(results, titles, "by_functionality", "Accuracy by kind of test"))
    if any(result["by_target"] for result in results):
        figures.append(_bars(results, titles, "by_target", "Accuracy by group"))
    if any(result["roc"] for result in results):
        figures.append(_roc(results, titles))
    if any(result["reliability"] for result in results):
        figures.append(_reliability(results, titles))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in first["dropped"].items())
    return {
        "id": f"suite-{number}",
        "name": first["suite"],
        "judges": list(dict.fromkeys(names)),
        "facts": f"{first['n']:,} texts, {first['positives']:,} of them positive"
        + (" (their own score is above 0.5)" if first["kind"] == "scores" else "")
        + (f". Not in it: {dropped}." if dropped else "."),
        "sentences": [
            sentence for result, title in zip(results, titles, strict=True) for sentence in _sentences(result, title)
        ],
        "tables": tables,
        "figures": figures,
        "sha256": first["sha256"],
        "revisions": [
            (title, result["label"], result["target"], result["revision"])
            for result, title in zip(results, titles, strict=True)
        ],
    }


def _sentences(result: JudgeResult, title: str) -> list[tuple[str, str]]:
    """(judge, what is said of it): ranking, calibration, counter-speech, the worst group."""
    said = []
    if result["auc"] is None:
        said.append(f"has no AUC here: {result['scored']:,} texts were scored, and all are of one class.")
    else:
        low, high = result["auc_ci95"] or (None, None)
        between = f" (95 % interval {low:.3f} to {high:.3f})" if low is not None else ""
        verdict = ": at chance." if result["at_chance"] else "."
        said.append(
            f"tells positives from negatives, by its label {result['label']}, with AUC {result['auc']:.3f}"
            f"{between}{verdict}"
        )
    if result["kind"] == "scores" and result["spearman"] is not None:
        said.append(
            f"orders the texts as the suite’s own scores do with a rank correlation of {result['spearman']:.3f}."
        )
    if result["ece"] is not None:
        said.append(f"is off by {result['ece']:.3f} on average, taken as a probability.")
    if counter := result["counter_speech"]:
        said.append(
            f"calls hateful {100 * counter['false_positive_rate']:.1f} % of {counter['n']:,} texts that oppose hate."
        )
    aucs = [
        (entry[key], group, name)
        for group, entry in (result["bias"] or {"groups": {}})["groups"].items()
        for key, name in _BIAS.items()
        if entry[key] is not None
    ]
    if aucs:
        worst, group, name = min(aucs)
        said.append(f"is least fair to texts about {group}: {name} AUC {worst:.3f}.")
    if sum(result["unscored"].values()):
        listed = ", ".join(f"{count:,} {reason}" for reason, count in result["unscored"].items())
        said.append(f"left texts without a score: {listed}.")
    if result["trained_on_this_file"]:
        said.append("was trained on this very file: its figures here flatter it.")
    return [(title, sentence) for sentence in said]


def _numbers(results: Sequence[JudgeResult], titles: Sequence[str]) -> dict[str, Any]:
    rows = [
        {"name": "Label", "hint": "held against", "cells": [(r["label"], r["target"]) for r in results]},
        {"name": "Scored", "hint": "of all", "cells": [(f"{r['scored']:,}", f"{r['n']:,}") for r in results]},
    ]
    for key, name, hint in _NUMBERS:
        if any(result[key] is not None for result in results):
            cells = [
                (number(result[key]), interval(_interval(result, key), "{:.3f}".format, " – ", ""))
                for result in results
            ]
            rows.append({"name": name, "hint": hint, "cells": cells})
    for kind in dict.fromkeys(k for r in results for k in (r["counter_speech"] or {"by": {}})["by"]):
        parts = [(r["counter_speech"] or {"by": {}})["by"].get(kind) for r in results]
        what = next(part["what"] for part in parts if part)
        cells = [(number(part["false_positive_rate"]), f"of {part['n']:,}") if part else ("—", "") for part in parts]
        rows.append({"name": "Called hate by mistake", "hint": what, "cells": cells})
    if any(result["speed"] for result in results):
        cells = [
            (f"{r['speed']['texts_per_second']:,.0f}", f"{r['speed']['ms_one_text']:.1f} ms for one alone")
            if r["speed"]
            else ("—", "")
            for r in results
        ]
        speed = next(r["speed"] for r in results if r["speed"])
        hint = f"of {speed['tokens_per_text']} tokens, in a batch; {speed['threads']} threads"
        rows.append({"name": "Texts a second", "hint": hint, "cells": cells})
    caption = "What the judges get right, in numbers; small: 95 % intervals over texts"
    return {"name": "All numbers", "caption": caption, "heads": list(titles), "before": [], "rows": rows}


def _parts(
    results: Sequence[JudgeResult], titles: Sequence[str], key: Parts, caption: str, head: str | None
) -> dict[str, Any]:
    rows = []
    for name in dict.fromkeys(name for result in results for name in result[key] or {}):
        entries = [(result[key] or {}).get(name) for result in results]
        known = next(entry for entry in entries if entry)
        what = str(known.get("what", name))
        rows.append(
            {
                "name": what,
                "hint": name if what != name else "",
                "before": [*([str(known.get("gold"))] if head else []), f"{known['n']:,}"],
                "cells": [(number(e["accuracy"]), f"AUC {number(e['auc'])}") if e else ("—", "") for e in entries],
            }
        )
    name = "Kinds of test" if head else "Groups"
    before = [*([head] if head else []), "n"]
    return {"name": name, "caption": caption, "heads": list(titles), "before": before, "rows": rows}


def _bias(results: Sequence[JudgeResult], titles: Sequence[str]) -> dict[str, Any]:
    """A row per group: subgroup AUC, and BPSN and BNSP below it."""
    rows = []
    groups = [(result["bias"] or {"groups": {}})["groups"] for result in results]
    for name in dict.fromkeys(name for found in groups for name in found):
        cells = [
            (
                number(e["subgroup_auc"]),
                f"BPSN {number(e['bpsn_auc'])}, BNSP {number(e['bnsp_auc'])}",
            )
            if e
            else ("—", "")
            for e in (found.get(name) for found in groups)
        ]
        rows.append({"name": name, "hint": "", "cells": cells})
    means = [result["bias"]["power_mean"] if result["bias"] else None for result in results]
    cells = [
        (
            number(m["subgroup_auc"]),
            f"BPSN {number(m['bpsn_auc'])}, BNSP {number(m['bnsp_auc'])}",
        )
        if m
        else ("—", "BPSN —, BNSP —")
        for m in means
    ]
    rows.append({"name": "Power mean", "hint": "p = −5", "cells": cells})
    return {
        "name": "Bias by group",
        "caption": "Bias by group: AUC among texts about it (large), BPSN and BNSP (small)",
        "heads": list(titles),
        "before": [],
        "rows": rows,
    }


def _confusion(table: JudgePair) -> dict[str, Any]:
    names = [short(name) or "" for name in table["judges"]]
    right = table["right"]
    return {
        "suite": table["suite"],
        "judges": names,
        "rows": [
            (f"{names[0]} {sign} 0.5", [f"{count:,}" for count in row])
            for sign, row in zip(("≤", ">"), table["table"], strict=True)
        ],
        "caption": (
            f"By their labels {table['labels'][0]} and {table['labels'][1]}, on {table['n']:,} texts that both scored. "
            f"Agreement {number(table['agreement'])}, Cohen’s kappa {number(table['kappa'])}, rank correlation "
            f"{number(table['spearman'])}. Both are right on "
            f"{right['both']:,}, {names[0]} alone on {right['first']:,}, {names[1]} alone on "
            f"{right['second']:,}, neither on {right['neither']:,}."
        ),
    }


def _bars(results: Sequence[JudgeResult], titles: Sequence[str], key: Parts, heading: str) -> dict[str, Any]:
    """Accuracy in percent: a row per kind or group, a bar per judge; with one judge, a colour for each gold label."""
    names = list(dict.fromkeys(name for result in results for name in result[key] or {}))
    entries = [[(result[key] or {}).get(name) for name in names] for result in results]
    labels = [
        str(next(e for e in column if e).get("what", name))
        for name, column in zip(names, zip(*entries, strict=True), strict=True)
    ]
    series: list[tuple[str, list[tuple[int, Mapping[str, Any]]]]] = [
        (title, [(row, entry) for row, entry in enumerate(column) if entry])
        for title, column in zip(titles, entries, strict=True)
    ]
    if len(results) == 1 and key == "by_functionality":
        found = series[0][1]
        golds = dict.fromkeys(entry["gold"] for _, entry in found)
        series = [(gold, [(row, entry) for row, entry in found if entry["gold"] == gold]) for gold in golds]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(name),
            "x": [100 * entry["accuracy"] for _, entry in points],
            "y": [row for row, _ in points],
            "customdata": [f"{entry['n']:,}" for _, entry in points],
            "marker": {"color": _COLOURS[number % len(_COLOURS)]},
            "hovertemplate": "%{x:.1f} % of %{customdata}<extra></extra>",
        }
        for number, (name, points) in enumerate(series)
    ]
    layout = base_layout(height=100 + (14 + 9 * len(results)) * len(names))
    layout["margin"] = {"l": 8, "r": 16, "t": 34, "b": 44}
    layout["barmode"] = "overlay" if len(results) == 1 else "group"
    layout["bargap"] = 0.25
    _legend(layout, traces)
    layout["xaxis"] |= {"range": [0, 100], "title": {"text": "accuracy, %", "font": {"size": 12}, "standoff": 4}}
    layout["yaxis"] |= {
        "tickvals": list(range(len(names))),
        "ticktext": [plain(label, 44) for label in labels],
        "range": [len(names) - 0.4, -0.6],
        "showgrid": False,
        "automargin": True,
    }
    lowest = []
    for title, column in zip(titles, entries, strict=True):
        accuracy, label = min((e["accuracy"] or 0.0, label) for e, label in zip(column, labels, strict=True) if e)
        lowest.append(f"{title}: {label}, {100 * accuracy:.1f} %")
    caption = f"Share that is judged right at 0.5. Lowest for {'; for '.join(lowest)}."
    figure = {"data": traces, "layout": layout}
    return {"heading": heading, "caption": caption, "figure": figure, "whole": len(names) > 12}


def _roc(results: Sequence[JudgeResult], titles: Sequence[str]) -> dict[str, Any]:
    traces = [
        _line(title, number, [x for x, _ in result["roc"]], [y for _, y in result["roc"]])
        for number, (result, title) in enumerate(zip(results, titles, strict=True))
        if result["roc"]
    ]
    figure = _square(traces, "false positive rate", "true positive rate")
    return {
        "heading": "ROC",
        "caption": "The dotted line is guessing; further left and up is better.",
        "figure": figure,
        "whole": False,
    }


def _reliability(results: Sequence[JudgeResult], titles: Sequence[str]) -> dict[str, Any]:
    traces = []
    for place, (result, title) in enumerate(zip(results, titles, strict=True)):
        bins = result["reliability"]
        trace = _line(title, place, [b["score"] for b in bins], [b["target"] for b in bins])
        largest = max((b["n"] for b in bins), default=1)
        trace["mode"] = "lines+markers"
        # The area of a mark is the share of texts in its bin.
        trace["marker"] = {"size": [4 + 14 * (b["n"] / largest) ** 0.5 for b in bins]}
        trace["customdata"] = [f"{b['n']:,}" for b in bins]
        trace["hovertemplate"] = "%{customdata} texts: said %{x:.2f}, true %{y:.2f}<extra></extra>"
        traces.append(trace)
    caption = (
        "Mean score against the truth, in 15 bins; on the dotted line a judge’s scores can be taken at their word."
    )
    figure = _square(traces, "mean score", "share of positives, or mean target")
    return {"heading": "Calibration", "caption": caption, "figure": figure, "whole": False}


def _line(title: str, number: int, x: list[float], y: list[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(title),
        "x": x,
        "y": y,
        "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 2},
        "hovertemplate": "%{x:.2f}, %{y:.2f}<extra></extra>",
    }


def _square(traces: list[dict[str, Any]], x: str, y: str) -> dict[str, Any]:
    layout = base_layout(height=340)
    layout["margin"] = {"l": 8, "r": 12, "t": 34, "b": 44}
    _legend(layout, traces)
    for axis, text in (("xaxis", x), ("yaxis", y)):
        layout[axis] |= {"range": [-0.02, 1.02], "title": {"text": text, "font": {"size": 12}, "standoff": 6}}
    layout["yaxis"]["automargin"] = True
    layout["shapes"] = [
        {"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"color": "#7d8590", "width": 1, "dash": "dot"}}
    ]
    return {"data": traces, "layout": layout}


def _legend(layout: dict[str, Any], traces: Sequence[Mapping[str, Any]]) -> None:
    layout["showlegend"] = len(traces) > 1
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}


def _interval(result: JudgeResult, key: Number) -> Sequence[float] | None:
    return {"auc": result["auc_ci95"], "spearman": result["spearman_ci95"]}.get(key)
