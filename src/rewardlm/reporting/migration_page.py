"""From one judge to another: what ``judge migrate`` found, as rows for the terminal and as a page with pictures.

It computes nothing: every number is one that ``judges.migrate`` found. No text of the user's file is on the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewardlm.formats import interval, interval_of_scores, number, percent, signed_as_shown
from rewardlm.reporting.figures import curves_layout, plain
from rewardlm.reporting.shell import render, short, write_page

if TYPE_CHECKING:
    from rewardlm.judges.migrate import Interval, Migration

_OLD, _NEW = "#c28500", "#1f7fc4"
_DIFFERENCE = "Mean difference"


class MigrationRow(NamedTuple):
    """A number with its name, its 95 % interval where it has one, and what it means."""

    name: str
    value: str
    interval: str
    meaning: str


def write_migration_page(found: Migration, out: Path) -> Path:
    """Write the page to ``out`` and return it. Raises RunError where that can't be done."""
    name = short(found["judge"]["name"]) or ""
    page = render(
        "migration.html.j2",
        {},
        title=f"From the old judge to {name}",
        found=found,
        name=name,
        sentences=migration_sentences(found),
        rows=migration_rows(found),
        figures=[_scatter(found), _shares(found)],
    )
    return write_page(page, out)


def migration_sentences(found: Migration) -> list[str]:
    """What to do, and what it rests on."""
    name = short(found["judge"]["name"]) or ""
    ends = _between(found["threshold_same_share_ci95"])
    said = [
        f"Call a text toxic if {name} scores it above {number(found['threshold_same_share'])}{ends}, where the old "
        f"judge had to score it above {found['threshold']:g}. Of these {found['n']:,} texts they flag "
        f"{percent(found['share_same_share'])} and {percent(found['share'])}.",
    ]
    if found["threshold_same_precision"] is not None:
        said.append(
            f"To be as precise as the old judge ({number(found['precision'])}), take a threshold of "
            f"{number(found['threshold_same_precision'])}{_between(found['threshold_same_precision_ci95'])}."
        )
    else:
        said.append(f"There is no threshold of the same precision: {found['why_no_same_precision']}.")
    said.append(
        "This holds for texts like these. Where far more or far fewer texts are toxic, the same threshold flags "
        "another share than the old judge would."
    )
    return said


def migration_rows(found: Migration) -> list[MigrationRow]:
    """All numbers, in reading order."""
    name = short(found["judge"]["name"]) or ""
    rows = [
        ("Texts", f"{found['n']:,}", None, f"scored by both, of {found['rows']:,}; {found['n_texts']:,} are different"),
        ("Spearman", number(found["spearman"]), found["spearman_ci95"], "do both put the texts into the same order?"),
        (
            _DIFFERENCE, signed_as_shown(found["mean_difference"]), found["mean_difference_ci95"],
            f"{name} minus the old judge",
        ),
        ("Flagged by the old judge", percent(found["share"]), None, f"above {found['threshold']:g}"),
        (f"Flagged by {name}", percent(found["share_at_old_threshold"]), None, "above the same number"),
        (
            "Threshold, same share", number(found["threshold_same_share"]), found["threshold_same_share_ci95"],
            f"flags {percent(found['share_same_share'])}; both flag {percent(found['share_by_both'])}",
        ),
        (
            "Agreement", number(found["agreement_same_share"]), None,
            f"share of equal verdicts at it; Cohen’s kappa {number(found['kappa_same_share'])}",
        ),
        (
            "Threshold, same precision", number(found["threshold_same_precision"]),
            found["threshold_same_precision_ci95"],
            found["why_no_same_precision"]
            or f"precision {number(found['precision_same_precision'])}, the old judge’s {number(found['precision'])}",
        ),
    ]  # fmt: skip
    if found["n_labelled"]:
        rows += [
            (
                "Recall", number(found["recall_same_precision"]), None,
                f"at that threshold; the old judge’s {number(found['recall'])}; {found['positives']:,} of "
                f"{found['n_labelled']:,} labelled texts are toxic",
            ),
            (
                "AUC", number(found["auc_new"]), None,
                f"against the labels; the old judge’s {number(found['auc_old'])}; 95 % interval of the difference "
                f"{interval_of_scores(found['auc_difference_ci95'])}",
            ),
        ]  # fmt: skip
    rows.append(
        (
            "Error of the map", number(found["map_error"]), found["map_error_ci95"],
            "mean distance of the mapped from the old score, on texts it wasn’t fitted to; saying the mean of all: "
            f"{number(found['map_error_constant'])}",
        )
    )  # fmt: skip
    return [
        MigrationRow(
            what,
            value,
            interval_of_scores(ends, "") if what == _DIFFERENCE else interval(ends, "{:.3f}".format, " – ", ""),
            why,
        )
        for what, value, ends, why in rows
    ]


def _between(ends: Interval | None) -> str:
    return "" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"


def _scatter(found: Migration) -> dict[str, Any]:
    """A point a text, the map through them, and both thresholds."""
    drawn = found["picture"]
    name = plain(short(found["judge"]["name"]) or "")
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "texts",
            "x": [x for x, _ in drawn["points"]],
            "y": [y for _, y in drawn["points"]],
            "marker": {"size": 4, "color": "#7d8590", "opacity": 0.45},
            "hovertemplate": f"{name} %{{x:.3f}}, old judge %{{y:.3f}}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "mean of a bin",
            "x": [one["score"] for one in drawn["bins"]],
            "y": [one["target"] for one in drawn["bins"]],
            "customdata": [f"{one['n']:,}" for one in drawn["bins"]],
            "marker": {"size": 9, "color": _OLD},
            "hovertemplate": f"%{{customdata}} texts: {name} %{{x:.3f}}, old judge %{{y:.3f}}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "the map",
            # Beyond its outer points the map is level.
            "x": [0.0, *(x for x, _ in drawn["map"]), 1.0],
            "y": [drawn["map"][0][1], *(y for _, y in drawn["map"]), drawn["map"][-1][1]],
            "line": {"color": _NEW, "width": 2},
            "hovertemplate": f"{name} %{{x:.3f}} is %{{y:.3f}} on the old scale<extra></extra>",
        },
    ]
    layout = _layout(f"score by {name}", "score by the old judge")
    layout["shapes"] = [
        _line("x", found["threshold_same_share"], _NEW),
        _line("y", found["threshold"], _OLD),
    ]
    return {
        "heading": "Score against score",
        "caption": "A grey point is a text (1,500 at most are drawn). The dashed lines are the old threshold and the "
        "new one of the same share: where the judges disagree, points lie at the upper left and the lower right.",
        "figure": {"data": traces, "layout": layout},
    }


def _shares(found: Migration) -> dict[str, Any]:
    """The share that each judge flags, by threshold."""
    drawn = found["picture"]
    name = plain(short(found["judge"]["name"]) or "")
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "x": [x for x, _ in points],
            "y": [100 * y for _, y in points],
            "line": {"color": colour, "width": 2},
            "hovertemplate": f"{label} above %{{x:.2f}}: %{{y:.1f}} %<extra></extra>",
        }
        for label, points, colour in (
            ("old judge", drawn["shares_old"], _OLD),
            (name, drawn["shares_new"], _NEW),
        )
    ]
    layout = _layout("threshold", "flagged, %")
    layout["yaxis"]["range"] = [-2, 102]
    layout["shapes"] = [
        _line("x", found["threshold"], _OLD),
        _line("x", found["threshold_same_share"], _NEW),
        _line("y", 100 * found["share"], "#7d8590"),
    ]
    return {
        "heading": "Share that is flagged",
        "caption": "Each curve meets its dashed threshold at the same height: the share that both judges flag.",
        "figure": {"data": traces, "layout": layout},
    }


def _layout(x: str, y: str) -> dict[str, Any]:
    layout = curves_layout(x, y, height=360, top=34)
    for axis in ("xaxis", "yaxis"):
        layout[axis]["range"] = [-0.02, 1.02]
    return layout


def _line(axis: str, value: float, colour: str) -> dict[str, Any]:
    """A dashed line across the whole figure at ``value`` of ``axis``."""
    across = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{across}0": 0,
        f"{across}1": 1,
        f"{across}ref": "paper",
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
    }
