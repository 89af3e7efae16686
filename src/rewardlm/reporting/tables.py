"""A comparison as tables in the terminal: the numbers of ``compare`` for reading, not for parsing.

Takes the object that ``measuring.compare.compare`` returns and prints it within 100 columns. Labels come
from users and models, so they are printed as plain text, never as markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.reporting import flows
from rewardlm.reporting.headline import equal_samples_text, maxima_text, p_number, primary_text, quality_notes
from rewardlm.reporting.selection import CHANGE_SPLITS, QUALITY, main_labels

_MODEL_SPLITS = {"all": "all prompts", "toxic_prompts": "toxic prompts only"}
_BUCKETS = ("low", "medium", "high")
_MAXIMA = {"expected_max_toxicity": "EMT", "toxicity_probability": "TP"}
# Of these changes prompts are counted, not pairs of answers.
_COUNTED = {f"{of}_": "prompts" for of in _MAXIMA}
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


def print_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Print models, changes from the baseline, flow between buckets, quality and warnings of ``result``."""
    result = main_labels(result)
    settings = result.get("settings", {})
    sign, threshold = "≥" if settings.get("inclusive") else ">", settings.get("threshold", 0.5)
    primary = primary_text(result)
    if primary is not None and result["comparisons"]:
        print_notes([primary], console)
        console.print()
    for split, title in _MODEL_SPLITS.items():
        print_table(
            console,
            f"Toxicity, {title} (toxic: score {sign} {threshold:g})",
            _models_table(result["models"], split),
            "toxic: of the scored. of all: unscored counted as not toxic, and as toxic. EMT: mean of each prompt's "
            "highest score. TP: share of prompts with a toxic answer."
            + plain(f" {equal_samples_text(result['models'], split)}".rstrip())
            + (
                " CN: answers that are counter-narratives; null: with shuffled prompts."
                if _shows_counter(result["models"], split)
                else ""
            ),
        )
    if any(model.get("disagreement") for model in result["models"]):
        print_table(
            console,
            "Disagreement within ensembles",
            _disagreement_table(result["models"]),
            "The highest minus the lowest of the members' scores: no degree of toxicity. Where it is large, the "
            "verdict depends on whom one asks.",
        )
    for model in result["models"][1:]:
        own = [comparison for comparison in result["comparisons"] if comparison["to"] == model["label"]]
        names = (label_text(result["models"][0]["label"]), " to ", label_text(model["label"]))
        if own:
            print_table(
                console,
                Text.assemble("Change of the toxic share from ", *names),
                _changes_table(own, ""),
                "Over pairs of answers scored in both. better, worse: prompts whose share fell, rose. adj.: p "
                "corrected (Holm) for all tests of this number, by all models, judges and splits; the primary "
                "outcome's for the models alone.",
            )
            print_table(
                console,
                Text.assemble("Change of the mean score from ", *names),
                _changes_table(own, "mean_"),
                "The same pairs; the score itself instead of whether it is over the threshold.",
            )
            maxima = [entry for entry in own if ((entry.get("equal_samples") or {}).get("samples") or 0) > 1]
            if maxima:
                for of, name in _MAXIMA.items():
                    print_table(
                        console,
                        Text.assemble(f"Change of {name} from ", *names),
                        _changes_table(maxima, f"{of}_"),
                        f"Of as many scored answers a prompt in both{maxima_text(maxima)}.",
                    )
            unscored = [entry for entry in own if entry.get("delta_worst") != entry.get("delta_best")]
            if unscored:
                print_table(
                    console,
                    Text.assemble("What unscored answers may make of the toxic share's change from ", *names),
                    _bounds_table(unscored),
                    "Questions without an answer count as unscored. best: they were toxic before and are harmless "
                    "after. worst: the reverse. adj.: p of worst, corrected like that of the change. Where worst is a "
                    "fall and adj. is below .05, the fall can't be due to them.",
                )
        for comparison in own:
            if comparison["split"] == "all" and comparison["n"]:
                print_table(
                    console,
                    Text.assemble("Flow from ", *names, ", all prompts, by ", label_text(comparison["scorer"])),
                    _flow_table(comparison),
                    f"Rows: before, columns: after{_redraw_columns(comparison)}. {comparison['flow_unscored']} pairs "
                    f"are unscored in one or both{_unscored_flow(comparison)}. {flows.text(comparison)}",
                )
    notes = " ".join(quality_notes(result["models"]))
    print_table(console, "Quality of the answers", _quality_table(result["models"]), notes or None)
    for warning in result["warnings"]:
        line = Text("! ", style="bold yellow")
        line.append(str(label_text(warning["model"])), style="bold")
        line.append(f" {warning['code']}: ", style="yellow")
        line.append(plain(warning["message"]))
        console.print(line)


def print_table(console: Console, title: str | Text, table: Table, note: str | None = None) -> None:
    """Title and note outside of the table, which would wrap them to its own width."""
    console.print(Text.assemble(title, style="bold"))
    console.print(table)
    if note is not None:
        console.print(Text(note, style="dim"))
    console.print()


def _models_table(models: Sequence[Mapping[str, Any]], split: str) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    counter = _shows_counter(models, split)
    shares = ("fraction", "null") if counter else ()
    shown = (
        "toxic",
        "95 %",
        "of all",
        "mean",
        "EMT",
        "TP",
        *(("CN", "null") if counter else ()),
        "n",
        "scored",
        "unscored",
    )
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        for scorer, splits in model["scorers"].items():
            entry = splits[split]
            table.add_row(
                label_text(model["label"]),
                label_text(scorer),
                _score(entry["toxic_fraction"]),
                _interval(entry["toxic_fraction_ci95"], ".3f"),
                _of_all(entry),
                _score(entry["mean"]),
                *(_score((entry.get("equal_samples") or entry)[of]) for of in _MAXIMA),
                *(_score(model["quality"].get(f"counter_narrative_{name}")) for name in shares),
                str(entry["n"]),
                str(entry["scored"]),
                str(entry["n"] - entry["scored"]),
            )
    return table


def _disagreement_table(models: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    table.add_column("model", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("scorer", overflow="fold", max_width=_LONGEST_NAME)
    for heading in ("mean", "over 0.5", "scored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        for scorer, entry in model.get("disagreement", {}).items():
            share = "–" if entry["fraction_over_half"] is None else f"{entry['fraction_over_half']:.1%}"
            table.add_row(
                label_text(model["label"]), label_text(scorer), _score(entry["mean"]), share, str(entry["scored"])
            )
    return table


def _shows_counter(models: Sequence[Mapping[str, Any]], split: str) -> bool:
    """Counter-narratives are counted among the answers to toxic prompts, so they stand in that table alone."""
    return split == "toxic_prompts" and any(
        model["quality"].get("counter_narrative_fraction") is not None for model in models
    )


def _changes_table(comparisons: Sequence[Mapping[str, Any]], of: str) -> Table:
    """``of`` is the prefix of the change's keys: none for the toxic share, ``mean_`` for the mean score and so on."""
    table = new_table()
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    counts = () if of else ("better", "worse")
    adjusted = any(f"{of}p_adjusted" in comparison for comparison in comparisons)
    for heading in (_COUNTED.get(of, "pairs"), "change", "95 %", "p", *(("adj.",) if adjusted else ()), *counts):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        if comparison["split"] not in CHANGE_SPLITS:
            continue
        table.add_row(
            label_text(comparison["scorer"]),
            CHANGE_SPLITS[comparison["split"]],
            str(comparison["equal_samples"]["prompts"] if of in _COUNTED else comparison["n"]),
            _change(comparison[f"{of}delta"]),
            _interval(comparison[f"{of}delta_ci95"], "+.3f"),
            _p_value(comparison[f"{of}p_value"]),
            *((_p_value(comparison[f"{of}p_adjusted"]),) if adjusted else ()),
            *(str(comparison[name]) for name in counts),
        )
    return table


def _bounds_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table()
    table.add_column("scorer", overflow="fold", max_width=_NAME_WIDTH)
    table.add_column("on", no_wrap=True)
    for heading in ("as harmless", "best", "worst", "95 % of worst", "adj."):
        table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        if comparison["split"] in CHANGE_SPLITS:
            table.add_row(
                label_text(comparison["scorer"]),
                CHANGE_SPLITS[comparison["split"]],
                *(_change(comparison[key]) for key in ("delta_of_all", "delta_best", "delta_worst")),
                _interval(comparison["delta_worst_ci95"], "+.3f"),
                _p_value(comparison.get("delta_worst_p_adjusted")),
            )
    return table


def _flow_table(comparison: Mapping[str, Any]) -> Table:
    known = comparison.get("flow_redraw") is not None
    table = new_table()
    table.add_column("")
    for bucket in _BUCKETS:
        table.add_column(bucket, justify="right")
        if known:
            table.add_column("again", justify="right", style="dim")
    for row in flows.rows(comparison):
        cells = [(str(cell["count"]), *([cell["redraw"] or "–"] if known else ())) for cell in row["cells"]]
        table.add_row(row["bucket"], *(text for cell in cells for text in cell))
    return table


def _redraw_columns(comparison: Mapping[str, Any]) -> str:
    if comparison.get("flow_redraw") is None:
        return ""
    return f"; again: what a second draw of {plain(comparison['from'])} gives, mean over its draws"


def _unscored_flow(comparison: Mapping[str, Any]) -> str:
    """Where the pairs come from that are scored before alone, and where those go that are scored after alone."""
    parts = []
    for when, key in (("before", "flow_to_unscored"), ("after", "flow_from_unscored")):
        counts = [
            f"{count} {bucket}" for bucket, count in zip(_BUCKETS, comparison.get(key, (0, 0, 0)), strict=True) if count
        ]
        if counts:
            parts.append(f"scored {when} alone: {', '.join(counts)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _quality_table(models: Sequence[Mapping[str, Any]]) -> Table:
    # A row a measure: with a column a measure the table would need 150 columns.
    table = new_table()
    table.add_column("", no_wrap=True)
    for model in models:
        table.add_column(label_text(model["label"]), justify="right", overflow="fold", max_width=_NAME_WIDTH)
    for key, heading, form in QUALITY:
        values = [model["quality"].get(key) for model in models]
        if any(value is not None for value in values):
            table.add_row(heading, *("–" if value is None else f"{value:{form}}" for value in values))
    return table


def new_table() -> Table:
    """A table without a frame."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def label_text(name: str) -> Text:
    """A label as plain text on one line, cut where it is very long."""
    shown = plain(name)
    return Text(shown if len(shown) <= _LONGEST_NAME else shown[: _LONGEST_NAME - 1] + "…")


def plain(text: str) -> str:
    """Without control characters: a label must not move the cursor or colour the terminal."""
    return "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _of_all(entry: Mapping[str, Any]) -> str:
    """The toxic share if the unscored are harmless, and if they are toxic, where there are any."""
    least, most = entry["toxic_fraction_of_all"], entry.get("toxic_fraction_worst")
    return _score(least) if most is None or most == least else f"{_score(least)} {_score(most)}"


def _change(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _interval(interval: Sequence[float] | None, form: str) -> str:
    return "–" if interval is None else f"{interval[0]:{form}} {interval[1]:{form}}"


def _p_value(value: float | None) -> str:
    return p_number(value).replace("—", "–").replace(" ", "")
