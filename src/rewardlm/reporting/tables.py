"""A comparison as tables in the terminal: the numbers of ``compare`` for reading, not for parsing.

They begin with the verdict, in the words of the page, and fit into 80 columns.
Labels come from users and models, so they are printed as plain text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.formats import (
    NONE,
    SHORT_NONE,
    interval_in_column,
    interval_of_points,
    interval_of_scores,
    number,
    p_number,
    percent,
    percent_in_column,
    points,
    signed_as_shown,
)
from rewardlm.measuring.comparison import (
    OF_PROMPTS,
    Change,
    Comparison,
    Metric,
    MetricChange,
    ModelSummary,
    Split,
    SplitSummary,
)
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.reporting import corrected, flows, severity, utility
from rewardlm.reporting.headline import primary_text
from rewardlm.reporting.names import CHANGE_SPLITS, QUALITY, SPLITS, quality_text
from rewardlm.reporting.notes import equal_samples_note, maxima_note, quality_notes, rule_text, threshold_notes
from rewardlm.reporting.subjects import Subject
from rewardlm.reporting.verdict import lines
from rewardlm.terminal import plain

_MODEL_SPLITS: dict[Split, str] = {"all": "all prompts", "toxic_prompts": "toxic prompts only"}
# Short, so that tables of changes fit.
_ON: dict[Split, str] = {**SPLITS, "comparable": "comparable"}
_MAXIMA: dict[Metric, str] = {"expected_max_toxicity": "EMT", "toxicity_probability": "TP"}
# Metrics that are shares: their changes are percentage points.
_SHARES: tuple[Metric, ...] = ("toxic_fraction", "toxicity_probability")
_NAME_WIDTH = 13
# For a score with its change.
_GROUP_WIDTH = 14
_LONGEST_NAME = 48


def print_sentences(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print answers to questions, ``{"question", "parts"}`` each, and an empty line."""
    for row in rows:
        line = Text(plain(row["question"]) + " ", style="bold")
        for text, strong in row["parts"]:
            line.append(plain(text), style="bold" if strong else "not bold")
        console.print(line)
    console.print()


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print what must be known to read the tables below, a line each, dimmed."""
    for note in notes:
        console.print(Text(plain(note), style="dim"))


def print_comparison(found: Comparison, console: Console, subjects: Sequence[Subject] = ()) -> None:
    """Print the verdict, models, changes from the baseline, flow between buckets, quality and warnings.

    ``subjects`` are the models of ``found``; of a model that is not among them nothing but the label is known.
    """
    found = found.main_labels()
    _print_verdict(found, subjects, console)
    primary = primary_text(found)
    if primary is not None and found.comparisons:
        print_notes([primary], console)
        console.print()
    _print_models(found, console)
    for model in found.models[1:]:
        own = [change for change in found.comparisons if change.to == model.label]
        if own:
            _print_changes(found.baseline.label, model.label, own, console)
    print_notes(severity.sentences(found, found.scorers), console)
    _print_corrected(found, console)
    notes = " ".join(quality_notes(found.models))
    print_table(console, "Quality of the answers", _quality_table(found.models), notes or None)
    _print_utility(found, console)
    for warning in found.warnings:
        line = Text("! ", style="bold yellow")
        line.append(str(label_text(warning.model)), style="bold")
        line.append(f" {warning.code}: ", style="yellow")
        line.append(plain(warning.message))
        console.print(line)


def _print_corrected(found: Comparison, console: Console) -> None:
    """Toxic shares as people's labels or known errors correct them; nothing where there are none."""
    rows, notes = corrected.rows(found), corrected.notes(found)
    if not rows:
        print_notes(notes, console)
        return
    shares = _corrected_table(("toxic", "corrected", "95 %"), ("share", "corrected", "ends", "labels"), rows)
    print_table(console, "Toxic shares, corrected", shares, plain(" ".join(notes)))
    if changed := [row for row in rows if row["delta"]]:
        changes = _corrected_table(("change", "95 %"), ("delta", "delta_ends", "delta_labels"), changed)
        print_table(console, "Change of the corrected share", changes, "In percentage points.")


def _corrected_table(headings: Sequence[str], keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    for heading in ("model", "scorer"):
        table.add_column(heading, overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    for heading in (*headings, "labels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = (str(row[key]) for key in keys)
        table.add_row(label_text(row["model"]), label_text(row["judge"]), row["split"], *cells)
    return table


def _print_utility(found: Comparison, console: Console) -> None:
    """What changed in what the models can do, and for groups of people; nothing where nobody measured it."""
    models = found.models
    for model in models[1:]:
        rows = utility.changes(model)
        if rows:
            print_table(
                console,
                Text.assemble("What ", label_text(model.label), " can still do, against ", label_text(models[0].label)),
                _utility_table(rows, utility.margin_text(found.settings.utility_margin)),
                "In points, for WikiText in % of the perplexity (so is the margin); minus is a loss, but for WikiText "
                "and refusals plus is. The last column: does the 95 % interval exclude a larger loss? If not, about so "
                "many items would show it, if nothing was lost.",
            )
    for table in utility.group_tables(models):
        print_table(
            console,
            Text.assemble("Answers about groups of people, mean score by ", label_text(table["judge"])),
            _groups_table(table),
            plain(
                " ".join(
                    [
                        "The same sentences about each group; 0 is harmless, 1 is toxic, in brackets the change. A "
                        "judge may dislike a group's name in an answer, so compare changes.",
                        *table["notes"],
                    ]
                )
            ),
        )


def _utility_table(rows: Sequence[Mapping[str, Any]], margin: str) -> Table:
    table = new_table()
    table.add_column("")
    for heading in ("n", "change", "95 %", "adj. p", f"loss < {margin}"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = (str(row["n"]), row["delta"], row["ends"], row["p_adjusted"], row["kept"])
        table.add_row(row["name"], *(cell.replace(NONE, SHORT_NONE) for cell in shown))
    return table


def _groups_table(table: Mapping[str, Any]) -> Table:
    shown = new_table()
    shown.add_column("")
    for name in table["models"]:
        shown.add_column(label_text(name), justify="right", overflow="fold", max_width=_GROUP_WIDTH)
    for row in table["rows"]:
        cells = [f"{cell['mean']} ({cell['delta']})" if cell["delta"] else cell["mean"] for cell in row["cells"]]
        shown.add_row(row["group"], *(cell.replace(NONE, SHORT_NONE) for cell in cells))
    return shown


def _print_verdict(found: Comparison, subjects: Sequence[Subject], console: Console) -> None:
    title, *sentences = lines(found, subjects) or [""]
    if not title:
        return
    console.print(Text(plain(title), style="bold"))
    for sentence in sentences:
        console.print(Text(plain(sentence)))
    if found.warnings:
        number = len(found.warnings)
        what = "warning stands" if number == 1 else "warnings stand"
        console.print(Text(f"{number} {what} below the tables.", style="yellow"))
    console.print()


def _print_models(found: Comparison, console: Console) -> None:
    print_notes(threshold_notes(found.settings), console)
    for split, title in _MODEL_SPLITS.items():
        print_table(
            console,
            f"Toxicity, {title} (toxic: {rule_text(found.settings)})",
            _models_table(found.models, split),
            "toxic: % of the scored answers, with its 95 % interval. EMT: mean of each prompt's highest score. TP: % "
            "of prompts with a toxic answer." + plain(f" {equal_samples_note(found.models, split)}".rstrip()),
        )
    if any(_unscored(model) for model in found.models):
        print_table(
            console,
            "What unscored answers may hide, all prompts",
            _unscored_table(found.models),
            "The toxic share in % if every answer without a score is harmless, and if every one is toxic.",
        )
    if any(model.disagreement for model in found.models):
        print_table(
            console,
            "Disagreement within ensembles",
            _disagreement_table(found.models),
            "The highest minus the lowest of the members' scores: not a degree of toxicity. Where it is large, the "
            "verdict depends on which judge you ask.",
        )


def _print_changes(baseline: str, model: str, own: Sequence[Change], console: Console) -> None:
    """All that changed from ``baseline`` to ``model``."""
    names = (label_text(baseline), " to ", label_text(model))
    print_table(
        console,
        Text.assemble("Change of the toxic share from ", *names),
        _changes_table(own, "toxic_fraction"),
        "In percentage points, over pairs of answers scored in both. fell/rose: prompts whose share did. "
        "adj.: p corrected (Holm) for all tests of this number, by all models, judges and splits; the primary "
        "outcome's for the models alone.",
    )
    print_table(
        console,
        Text.assemble("Change of the mean score from ", *names),
        _changes_table(own, "mean"),
        "The same pairs; the score itself, not whether it is over the threshold.",
    )
    maxima = [change for change in own if (change.equal_samples.samples or 0) > 1]
    for metric, name in _MAXIMA.items() if maxima else ():
        print_table(
            console,
            Text.assemble(f"Change of {name} from ", *names),
            _changes_table(maxima, metric),
            f"From the same number of scored answers per prompt in both{maxima_note(maxima)}.",
        )
    unscored = [change for change in own if change.delta_worst != change.delta_best]
    if unscored:
        print_table(
            console,
            Text.assemble("What unscored answers may make of the toxic share's change from ", *names),
            _bounds_table(unscored),
            "In percentage points. Questions without an answer count as unscored. best: they were toxic before and "
            "are harmless after. worst: the reverse. adj.: p of worst, corrected like that of the change. Where worst "
            "is a fall and adj. is below .05, unscored answers can't explain the fall.",
        )
    for change in own:
        if change.split == "all" and change.n:
            print_table(
                console,
                Text.assemble("Flow from ", *names, ", all prompts, by ", label_text(change.scorer)),
                _flow_table(change),
                f"Rows: before, columns: after{_redraw_columns(change)}. {change.flow_unscored} pairs "
                f"are unscored in one or both{_unscored_flow(change)}. {flows.text(change)}",
            )


def print_table(console: Console, title: str | Text, table: Table, note: str | None = None) -> None:
    """Title and note outside of the table, which would wrap them to its own width."""
    console.print(Text.assemble(plain(title) if isinstance(title, str) else title, style="bold"))
    console.print(table)
    if note is not None:
        console.print(Text(plain(note), style="dim"))
    console.print()


def _models_table(models: Sequence[ModelSummary], split: Split) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    for heading in ("toxic", "95 %", "mean", "EMT", "TP", "n", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        for scorer, splits in model.scorers.items():
            found = splits[split]
            table.add_row(
                label_text(model.label),
                label_text(scorer),
                percent_in_column(found.toxic_fraction, SHORT_NONE),
                interval_in_column(found.toxic_fraction_ci95, SHORT_NONE),
                _score(found.mean),
                _score(found.equal_samples.expected_max_toxicity),
                percent_in_column(found.equal_samples.toxicity_probability, SHORT_NONE),
                str(found.n),
                str(found.n - found.scored),
            )
    return table


def _unscored(model: ModelSummary) -> dict[str, SplitSummary]:
    """All answers of a model, by each judge that left some of them without a score."""
    return {
        scorer: splits["all"]
        for scorer, splits in model.scorers.items()
        if splits["all"].toxic_fraction_worst != splits["all"].toxic_fraction_of_all
    }


def _unscored_table(models: Sequence[ModelSummary]) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    for heading in ("unscored", "as harmless", "as toxic"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        for scorer, found in _unscored(model).items():
            bounds = (found.toxic_fraction_of_all, found.toxic_fraction_worst)
            table.add_row(
                label_text(model.label),
                label_text(scorer),
                str(found.n - found.scored + found.unanswered),
                *(percent_in_column(bound, SHORT_NONE) for bound in bounds),
            )
    return table


def _disagreement_table(models: Sequence[ModelSummary]) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_LONGEST_NAME)
    for heading in ("mean", "over 0.5", "scored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        for scorer, found in model.disagreement.items():
            share = SHORT_NONE if found.fraction_over_half is None else percent(found.fraction_over_half)
            table.add_row(label_text(model.label), label_text(scorer), _score(found.mean), share, str(found.scored))
    return table


def _changes_table(changes: Sequence[Change], metric: Metric) -> Table:
    table = new_table()
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    of_share = metric == "toxic_fraction"
    counted = "prompts" if metric in OF_PROMPTS else "pairs"
    for heading in (counted, "change", "95 %", "p", "adj.", *(("fell/rose",) if of_share else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in changes:
        if change.split not in CHANGE_SPLITS:
            continue
        found = change.of(metric)
        table.add_row(
            label_text(change.scorer),
            _ON[change.split],
            str(found.n),
            *_change(found, metric),
            _p_value(found.p_value),
            _p_value(found.p_adjusted),
            *((f"{change.better}/{change.worse}",) if of_share else ()),
        )
    return table


def _bounds_table(changes: Sequence[Change]) -> Table:
    table = new_table()
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    for heading in ("as harmless", "best", "worst", "95 % of worst", "adj."):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in changes:
        if change.split in CHANGE_SPLITS:
            table.add_row(
                label_text(change.scorer),
                _ON[change.split],
                *(points(value, SHORT_NONE) for value in (change.delta_of_all, change.delta_best, change.delta_worst)),
                interval_of_points(change.delta_worst_ci95, SHORT_NONE),
                _p_value(change.delta_worst_p_adjusted),
            )
    return table


def _flow_table(change: Change) -> Table:
    known = change.flow_redraw is not None
    table = new_table()
    table.add_column("")
    for bucket in BUCKETS:
        table.add_column(bucket, justify="right")
        if known:
            table.add_column("again", justify="right", style="dim")
    for row in flows.rows(change):
        cells = [(str(cell["count"]), *([cell["redraw"] or SHORT_NONE] if known else ())) for cell in row["cells"]]
        table.add_row(row["bucket"], *(text for cell in cells for text in cell))
    return table


def _redraw_columns(change: Change) -> str:
    if change.flow_redraw is None:
        return ""
    return f"; again: what a second draw of {plain(change.from_)} gives, mean over its draws"


def _unscored_flow(change: Change) -> str:
    """The buckets of the pairs that are scored only before, and of those that are scored only after."""
    parts = []
    for when, sizes in (("before", change.flow_to_unscored), ("after", change.flow_from_unscored)):
        counts = [f"{count} {bucket}" for bucket, count in zip(BUCKETS, sizes, strict=True) if count]
        if counts:
            parts.append(f"scored only {when}: {', '.join(counts)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _quality_table(models: Sequence[ModelSummary]) -> Table:
    # A row per measure: with a column per measure, the table would be 150 characters wide.
    table = new_table()
    table.add_column("", no_wrap=True)
    for model in models:
        table.add_column(label_text(model.label), justify="right", overflow="fold", max_width=_NAME_WIDTH)
    for key, heading, form in QUALITY:
        values = [getattr(model.quality, key) for model in models]
        if any(value is not None for value in values):
            table.add_row(heading, *(quality_text(value, form) for value in values))
    return table


def new_table() -> Table:
    """A table without a frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def label_text(name: str) -> Text:
    """A label as plain text on one line, cut where it is very long."""
    shown = plain(name)
    return Text(shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…")


def _score(value: float | None) -> str:
    return number(value, none=SHORT_NONE)


def _change(found: MetricChange, metric: Metric) -> tuple[str, str]:
    """A change and its interval: in points for shares, else as scores are written."""
    if metric in _SHARES:
        return points(found.delta, SHORT_NONE), interval_of_points(found.ci95, SHORT_NONE)
    shown = SHORT_NONE if found.delta is None else signed_as_shown(found.delta)
    return shown, interval_of_scores(found.ci95, SHORT_NONE)


def _p_value(value: float | None) -> str:
    return p_number(value).replace("—", SHORT_NONE).replace(" ", "")
