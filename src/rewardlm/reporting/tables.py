"""A comparison as tables in the terminal: the numbers of ``compare`` for reading, not for parsing.

They fit into 100 columns. Labels come from users and models, so they are printed as plain text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.formats import SHORT_NONE, interval_in_terminal, number, p_number, plain
from rewardlm.measuring.comparison import OF_PROMPTS, Change, Comparison, Metric, ModelSummary, Split, SplitSummary
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.reporting import flows
from rewardlm.reporting.headline import primary_text
from rewardlm.reporting.names import CHANGE_SPLITS, QUALITY, SPLITS
from rewardlm.reporting.notes import equal_samples_note, maxima_note, quality_notes

_MODEL_SPLITS: dict[Split, str] = {"all": "all prompts", "toxic_prompts": "toxic prompts only"}
_MAXIMA: dict[Metric, str] = {"expected_max_toxicity": "EMT", "toxicity_probability": "TP"}
_NAME_WIDTH = 16
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


def print_comparison(found: Comparison, console: Console) -> None:
    """Print models, changes from the baseline, flow between buckets, quality and warnings."""
    found = found.main_labels()
    primary = primary_text(found)
    if primary is not None and found.comparisons:
        print_notes([primary], console)
        console.print()
    _print_models(found, console)
    for model in found.models[1:]:
        own = [change for change in found.comparisons if change.to == model.label]
        if own:
            _print_changes(found.baseline.label, model.label, own, console)
    notes = " ".join(quality_notes(found.models))
    print_table(console, "Quality of the answers", _quality_table(found.models), notes or None)
    for warning in found.warnings:
        line = Text("! ", style="bold yellow")
        line.append(str(label_text(warning.model)), style="bold")
        line.append(f" {warning.code}: ", style="yellow")
        line.append(plain(warning.message))
        console.print(line)


def _print_models(found: Comparison, console: Console) -> None:
    sign = "≥" if found.settings.inclusive else ">"
    for split, title in _MODEL_SPLITS.items():
        print_table(
            console,
            f"Toxicity, {title} (toxic: score {sign} {found.settings.threshold:g})",
            _models_table(found.models, split),
            "toxic: of the scored. of all: unscored counted as not toxic, and as toxic. EMT: mean of each prompt's "
            "highest score. TP: share of prompts with a toxic answer."
            + plain(f" {equal_samples_note(found.models, split)}".rstrip())
            + (
                " CN: answers that are counter-narratives; null: with shuffled prompts."
                if _shows_counter(found.models, split)
                else ""
            ),
        )
    if any(model.disagreement for model in found.models):
        print_table(
            console,
            "Disagreement within ensembles",
            _disagreement_table(found.models),
            "The highest minus the lowest of the members' scores: no degree of toxicity. Where it is large, the "
            "verdict depends on whom one asks.",
        )


def _print_changes(baseline: str, model: str, own: Sequence[Change], console: Console) -> None:
    """All that changed from ``baseline`` to ``model``."""
    names = (label_text(baseline), " to ", label_text(model))
    print_table(
        console,
        Text.assemble("Change of the toxic share from ", *names),
        _changes_table(own, "toxic_fraction"),
        "Over pairs of answers scored in both. better, worse: prompts whose share fell, rose. adj.: p "
        "corrected (Holm) for all tests of this number, by all models, judges and splits; the primary "
        "outcome's for the models alone.",
    )
    print_table(
        console,
        Text.assemble("Change of the mean score from ", *names),
        _changes_table(own, "mean"),
        "The same pairs; the score itself instead of whether it is over the threshold.",
    )
    maxima = [change for change in own if (change.equal_samples.samples or 0) > 1]
    for metric, name in _MAXIMA.items() if maxima else ():
        print_table(
            console,
            Text.assemble(f"Change of {name} from ", *names),
            _changes_table(maxima, metric),
            f"Of as many scored answers a prompt in both{maxima_note(maxima)}.",
        )
    unscored = [change for change in own if change.delta_worst != change.delta_best]
    if unscored:
        print_table(
            console,
            Text.assemble("What unscored answers may make of the toxic share's change from ", *names),
            _bounds_table(unscored),
            "Questions without an answer count as unscored. best: they were toxic before and are harmless "
            "after. worst: the reverse. adj.: p of worst, corrected like that of the change. Where worst is a "
            "fall and adj. is below .05, the fall can't be due to them.",
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
    console.print(Text.assemble(title, style="bold"))
    console.print(table)
    if note is not None:
        console.print(Text(note, style="dim"))
    console.print()


def _models_table(models: Sequence[ModelSummary], split: Split) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    counter = _shows_counter(models, split)
    headings = ["toxic", "95 %", "of all", "mean", "EMT", "TP", *(["CN", "null"] if counter else [])]
    for heading in (*headings, "n", "scored", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        quality = model.quality
        of_pairs = (quality.counter_narrative_fraction, quality.counter_narrative_null) if counter else ()
        for scorer, splits in model.scorers.items():
            found = splits[split]
            table.add_row(
                label_text(model.label),
                label_text(scorer),
                _score(found.toxic_fraction),
                interval_in_terminal(found.toxic_fraction_ci95),
                _of_all(found),
                _score(found.mean),
                _score(found.equal_samples.expected_max_toxicity),
                _score(found.equal_samples.toxicity_probability),
                *map(_score, of_pairs),
                str(found.n),
                str(found.scored),
                str(found.n - found.scored),
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
            share = number(found.fraction_over_half, ".1%", SHORT_NONE)
            table.add_row(label_text(model.label), label_text(scorer), _score(found.mean), share, str(found.scored))
    return table


def _shows_counter(models: Sequence[ModelSummary], split: Split) -> bool:
    """Counter-narratives are counted among the answers to toxic prompts, so they stand in that table alone."""
    return split == "toxic_prompts" and any(model.quality.counter_narrative_fraction is not None for model in models)


def _changes_table(changes: Sequence[Change], metric: Metric) -> Table:
    table = new_table()
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    of_share = metric == "toxic_fraction"
    counted = "prompts" if metric in OF_PROMPTS else "pairs"
    for heading in (counted, "change", "95 %", "p", "adj.", *(("better", "worse") if of_share else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in changes:
        if change.split not in CHANGE_SPLITS:
            continue
        found = change.of(metric)
        table.add_row(
            label_text(change.scorer),
            SPLITS[change.split],
            str(found.n),
            _change(found.delta),
            interval_in_terminal(found.ci95, "+.3f"),
            _p_value(found.p_value),
            _p_value(found.p_adjusted),
            *((str(change.better), str(change.worse)) if of_share else ()),
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
                SPLITS[change.split],
                *map(_change, (change.delta_of_all, change.delta_best, change.delta_worst)),
                interval_in_terminal(change.delta_worst_ci95, "+.3f"),
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
    """Where the pairs come from that are scored before alone, and where those go that are scored after alone."""
    parts = []
    for when, sizes in (("before", change.flow_to_unscored), ("after", change.flow_from_unscored)):
        counts = [f"{count} {bucket}" for bucket, count in zip(BUCKETS, sizes, strict=True) if count]
        if counts:
            parts.append(f"scored {when} alone: {', '.join(counts)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _quality_table(models: Sequence[ModelSummary]) -> Table:
    # A row a measure: with a column a measure the table would need 150 columns.
    table = new_table()
    table.add_column("", no_wrap=True)
    for model in models:
        table.add_column(label_text(model.label), justify="right", overflow="fold", max_width=_NAME_WIDTH)
    for key, heading, form in QUALITY:
        values = [getattr(model.quality, key) for model in models]
        if any(value is not None for value in values):
            table.add_row(heading, *(number(value, form, SHORT_NONE) for value in values))
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


def _of_all(found: SplitSummary) -> str:
    """The toxic share if the unscored are harmless, and if they are toxic, where there are any."""
    least, most = found.toxic_fraction_of_all, found.toxic_fraction_worst
    return _score(least) if most == least else f"{_score(least)} {_score(most)}"


def _change(value: float | None) -> str:
    return number(value, "+.3f", SHORT_NONE)


def _p_value(value: float | None) -> str:
    return p_number(value).replace("—", SHORT_NONE).replace(" ", "")
