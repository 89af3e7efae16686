"""Evaluations of judges as tables in the terminal, within 100 columns; the page has them too, with figures.

Takes what ``judges.evaluate.evaluate`` and ``judges.listing.list_judges`` return. Names come from users and data sets,
so they are printed as plain text, never as markup.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.formats import SHORT_NONE, interval_in_terminal, number
from rewardlm.reporting.migration_page import migration_rows, migration_sentences
from rewardlm.terminal import plain

if TYPE_CHECKING:
    from pathlib import Path

    from rewardlm.judges.listing import ListedJudge
    from rewardlm.judges.metrics import BiasAucs
    from rewardlm.judges.migrate import Migration
    from rewardlm.judges.results import Evaluation, JudgePair, JudgeResult

_score = partial(number, none=SHORT_NONE)

Parts = Literal["by_functionality", "by_target"]
_LONGEST_NAME = 40
_PARTS: tuple[tuple[Parts, str], ...] = (
    ("by_functionality", "Accuracy by kind of test, at 0.5; in brackets the AUC against the other class"),
    ("by_target", "Accuracy by group, at 0.5; in brackets the AUC among its texts"),
)
_SHARES: tuple[tuple[Literal["accuracy", "f1", "false_positive_rate", "false_negative_rate"], str], ...] = (
    ("accuracy", "accuracy"),
    ("f1", "F1"),
    ("false_positive_rate", "false positive rate"),
    ("false_negative_rate", "false negative rate"),
)


def console() -> Console:
    """Stdout; a pipe has no width, so it gets the tables' own."""
    return Console() if sys.stdout.isatty() else Console(width=100)


def print_evaluation(found: Evaluation, console: Console) -> None:
    """Print a block per suite with a column per judge, then who disagrees with whom."""
    for suite in dict.fromkeys(result["suite"] for result in found["results"]):
        results = [result for result in found["results"] if result["suite"] == suite]
        _print(console, _title(results[0]), _numbers(results))
        for key, title in _PARTS:
            if any(result[key] for result in results):
                _print(console, title, _parts(results, key))
        if any(result["bias"] and result["bias"]["groups"] for result in results):
            _print(
                console,
                "Bias by group (Borkan et al. 2019): AUC in the subgroup, BPSN, BNSP",
                _bias(results),
                "BPSN low: harmless texts about the group score like toxic ones about others. BNSP low: the reverse.",
            )
    for table in found["confusion"]:
        names = [plain(f"{judge} ({label})") for judge, label in zip(table["judges"], table["labels"], strict=True)]
        _print(
            console,
            f"{plain(table['suite'])}: where {names[0]} and {names[1]} agree",
            _confusion(table),
            f"{table['n']:,} texts; agreement {_score(table['agreement'])}, kappa {_score(table['kappa'])}, rank "
            f"correlation {_score(table['spearman'])}. Right: both {table['right']['both']:,}, the first alone "
            f"{table['right']['first']:,}, the second alone {table['right']['second']:,}, neither "
            f"{table['right']['neither']:,}.",
        )


def print_migration(found: Migration, page: Path, console: Console) -> None:
    """Print the new thresholds in sentences, all numbers, what speaks against relying on them, and what was written."""
    for sentence in migration_sentences(found):
        console.print(Text(plain(sentence)))
    console.print()
    table = _table()
    for heading in ("", "value", "95 %", "what it says"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("value", "95 %") else "left")
    for row in migration_rows(found):
        table.add_row(*(plain(cell) for cell in row))
    console.print(table)
    for note in found["notes"]:
        console.print(Text(f"! {plain(note)}", style="yellow"))
    for written in (found["thresholds"], page):
        if written is not None:
            console.print(Text(str(written)))


def print_judges(judges: Sequence[ListedJudge], console: Console) -> None:
    """Print the list of judges, their figures by suite, and what each is at chance on."""
    table = _table()
    table.add_column("judge", overflow="fold", max_width=30)
    table.add_column("what it is", overflow="fold", max_width=40)
    table.add_column("version", overflow="fold", max_width=12)
    table.add_column("usable", overflow="fold")
    for judge in judges:
        table.add_row(
            _name(judge["name"], 200), _name(judge["what"], 200),
            SHORT_NONE if judge["version"] == "unversioned" else _name(judge["version"]),
            "yes" if judge["usable"] else judge["needs"],
        )  # fmt: skip
    _print(console, "Judges", table)

    table = _table()
    table.add_column("judge", overflow="fold", max_width=30)
    for heading in ("suite", "label"):
        table.add_column(heading, overflow="fold", max_width=16)
    for heading in ("n", "AUC", "95 %", "Spearman", "ECE"):
        table.add_column(heading, justify="right", no_wrap=True)
    for judge in judges:
        for suite, entry in judge["figures"].items():
            table.add_row(
                _name(judge["name"], 200), _name(suite), _name(entry["label"]), f"{entry['scored']:,}",
                _score(entry["auc"]), interval_in_terminal(entry["auc_ci95"]), _score(entry["spearman"]),
                _score(entry["ece"]),
            )  # fmt: skip
    if table.row_count:
        _print(
            console,
            "Figures",
            table,
            "ECE: expected calibration error. Packaged judges may have learnt from some of these sets.",
        )
    for judge in judges:
        found = judge["at_chance"]
        if not judge["figures"]:
            continue
        line = Text.assemble((plain(judge["name"]), "bold"), " is at chance on ")
        wholes = [
            f"{plain(entry['suite'])} as a whole ({entry['auc']:.2f})" for entry in found if not entry["functionality"]
        ]
        parts = [f"{plain(entry['functionality'])} {entry['auc']:.2f}" for entry in found if entry["functionality"]]
        listed = "; ".join([*wholes, *([f"{len(parts)} kinds of test: {', '.join(parts)}"] if parts else [])])
        line.append(listed or "nothing that was measured")
        if judge["speed"]:
            line.append(f"; it scores {_speed(judge['speed']['texts_per_second'])} texts of 20 tokens a second")
        console.print(line)
    console.print(Text("At chance: AUC below 0.6, or an interval that holds 0.5.", style="dim"))


def _title(result: JudgeResult) -> str:
    kind = "labels" if result["kind"] == "labels" else "scores, toxic above 0.5"
    return f"{plain(result['suite'])}: {result['n']:,} texts, {result['positives']:,} positive ({kind})"


def _numbers(results: Sequence[JudgeResult]) -> Table:
    table = _table()
    table.add_column("")
    for result in results:
        table.add_column(_name(result["judge"]), justify="right", overflow="fold")
    table.add_row("label", *(_name(result["label"]) for result in results))
    table.add_row("held against", *(_name(result["target"]) for result in results))
    table.add_row("scored", *(f"{result['scored']:,}" for result in results))
    if any(result["unscored"] for result in results):
        table.add_row("unscored", *(_counts(result["unscored"]) for result in results))
    if any(result["cut"] for result in results):
        table.add_row("read in part", *(f"{result['cut']:,}" for result in results))
    table.add_row("AUC", *(_score(result["auc"]) for result in results))
    table.add_row("  95 %", *(interval_in_terminal(result["auc_ci95"]) for result in results))
    table.add_row("Spearman", *(_score(result["spearman"]) for result in results))
    table.add_row("  95 %", *(interval_in_terminal(result["spearman_ci95"]) for result in results))
    table.add_row("Pearson", *(_score(result["pearson"]) for result in results))
    table.add_row("average precision", *(_score(result["average_precision"]) for result in results))
    table.add_row(f"calibration error ({results[0]['ece_bins']} bins)", *(_score(r["ece"]) for r in results))
    table.add_row("Brier score", *(_score(result["brier"]) for result in results))
    for key, name in _SHARES:
        table.add_row(name, *(_score(result[key]) for result in results))
    counters = [result["counter_speech"] for result in results]
    if any(counters):
        rates = (counter and counter["false_positive_rate"] for counter in counters)
        table.add_row("counter-speech called hate", *map(_score, rates))
        kinds = [counter["by"] if counter else {} for counter in counters]
        for kind in dict.fromkeys(name for by in kinds for name in by):
            parts = [by.get(kind) for by in kinds]
            what = next(part["what"] for part in parts if part)
            table.add_row(f"  {what}", *(_score(part and part["false_positive_rate"]) for part in parts))
    if any(result["speed"] for result in results):
        table.add_row("texts a second", *(_speed(result["texts_per_second"]) for result in results))
        table.add_row(
            "  of 20 tokens, batch, threads",
            *(f"{r['speed']['batch']}, {r['speed']['threads']}" if r["speed"] else "–" for r in results),
        )
    return table


def _parts(results: Sequence[JudgeResult], key: Parts) -> Table:
    table = _table()
    table.add_column("")
    table.add_column("gold" if key == "by_functionality" else "")
    table.add_column("n", justify="right")
    for result in results:
        table.add_column(_name(result["judge"]), justify="right", overflow="fold")
    names = dict.fromkeys(name for result in results for name in (result[key] or {}))
    for name in names:
        entries = [(result[key] or {}).get(name) for result in results]
        first = next(entry for entry in entries if entry)
        cells = [f"{_score(e['accuracy'])} ({_score(e['auc'])})" if e else "–" for e in entries]
        table.add_row(_name(str(first.get("what", name))), str(first.get("gold", "")), f"{first['n']:,}", *cells)
    return table


def _bias(results: Sequence[JudgeResult]) -> Table:
    table = _table()
    table.add_column("")
    for result in results:
        table.add_column(_name(result["judge"]), justify="right", overflow="fold")
    biases = [result["bias"] for result in results]
    groups = [bias["groups"] if bias else {} for bias in biases]
    for group in dict.fromkeys(name for found in groups for name in found):
        table.add_row(_name(group), *(_aucs(found[group]) if group in found else "–" for found in groups))
    means = (_aucs(bias["power_mean"]) if bias else "–  –  –" for bias in biases)
    table.add_row("power mean, p = −5", *means)
    return table


def _aucs(found: BiasAucs) -> str:
    return "  ".join(_score(found[key]) for key in ("subgroup_auc", "bpsn_auc", "bnsp_auc"))


def _confusion(table: JudgePair) -> Table:
    first, second = (_name(name) for name in table["judges"])
    shown = _table()
    shown.add_column("")
    shown.add_column(Text.assemble(second, " ≤ 0.5"), justify="right")
    shown.add_column(Text.assemble(second, " > 0.5"), justify="right")
    for sign, row in zip(("≤", ">"), table["table"], strict=True):
        shown.add_row(Text.assemble(first, f" {sign} 0.5"), *(f"{count:,}" for count in row))
    return shown


def _print(console: Console, title: str, table: Table, note: str | None = None) -> None:
    """Title and note outside of the table, which would wrap them to its own width."""
    console.print(Text(plain(title), style="bold"))
    console.print(table)
    if note is not None:
        console.print(Text(plain(note), style="dim"))
    console.print()


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _name(name: str, longest: int = _LONGEST_NAME) -> Text:
    shown = plain(name)
    return Text(shown if len(shown) <= longest else shown[: longest - 1] + "…")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "0"


def _speed(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
