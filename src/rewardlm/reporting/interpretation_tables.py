"""An interpretation in the terminal: the same sentences and numbers as on the page, without its figures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.interpreting.findings import AttributionChange, AttributionTransition, Interpretation
from rewardlm.reporting import causes, interpretation
from rewardlm.reporting.interpretation import visible
from rewardlm.reporting.intervals import number_text, plain_text, points_text, share_text
from rewardlm.reporting.mechanistic_tables import print_inside
from rewardlm.reporting.tables import label_text, new_table, print_notes, print_sentences, print_table
from rewardlm.terminal import plain

_SHOWN_TOKENS = 8


def print_interpretation(result: Interpretation, console: Console) -> None:
    """Print what ``interpret --json`` gives, within 100 columns."""
    print_sentences(interpretation.sentences(result), console)
    print_sentences(causes.sentences(result.models[1:]), console)
    print_notes(interpretation.how_sampled(result), console)
    console.print()
    _drift(result, console)
    _attribution(result, console)
    _similarity(result, console)
    print_inside(result.inside, result.inside_notes, console)


def _drift(result: Interpretation, console: Console) -> None:
    table = new_table()
    _add_columns(table, ("to", "answers of"), ("log-prob", "divergence", "same choice", "rank"))
    for entry in result.drift.comparisons:
        for found, of in ((entry.on_baseline, entry.from_), (entry.on_own, entry.to)):
            rank = found.rank
            table.add_row(
                label_text(entry.to),
                label_text(of),
                number_text(found.logprob_change),
                plain_text(found.kl),
                share_text(found.same_first_choice),
                "–" if rank.before is None else f"{rank.before:.0f} → {rank.after:.0f}",
            )
    print_table(
        console,
        "Drift, nats a token",
        table,
        "log-prob: change from the baseline. divergence: over the vocabulary, from the model that wrote the answer. "
        "rank: median, 0 is the first choice.",
    )
    table = new_table()
    _add_columns(table, ("to", ""), ())
    for entry in result.drift.comparisons:
        for name, tokens in (("promoted", entry.promoted), ("demoted", entry.demoted)):
            shown = "  ".join(
                f"{plain(visible(token.text))} {100 * token.before:.1f}→{100 * token.after:.1f}"
                for token in tokens[:_SHOWN_TOKENS]
            )
            table.add_row(label_text(entry.to), Text(f"{name}: {shown}"))
    print_table(console, "Tokens whose probability changed most, %", table)


def _attribution(result: Interpretation, console: Console) -> None:
    found = result.attribution
    table = new_table()
    _add_columns(table, ("model",), ("prompt", "template", "answer so far", "entropy, bits"))
    for model in found.models:
        table.add_row(
            label_text(model.label),
            *(share_text(share) for share in (model.prompt, model.template, model.answer)),
            plain_text(model.entropy_bits),
        )
    print_table(console, f"Attribution of each model's own answers, by {interpretation.method_name(result)}", table)
    tested = (interpretation.faithful_sentence(result), interpretation.complete_sentence(result))
    print_notes([said for said in tested if said], console)
    table = new_table()
    _add_columns(table, ("to", "answers"), ("prompt's share", "entropy, bits", "divergence, bits", "n"))
    for entry in found.comparisons:
        rows: list[tuple[str, AttributionChange | AttributionTransition, str]] = [
            ("all", entry.same_tokens, str(entry.same_tokens.kl_bits.n))
        ]
        for row in entry.by_transition:
            rows.append((row.transition, row, str(row.pairs)))
            if row.beyond_redraw is not None:
                rows.append(("  beyond chance", row.beyond_redraw, ""))
        for name, change, pairs in rows:
            table.add_row(
                label_text(entry.to),
                name,
                points_text(change.prompt_change),
                number_text(change.entropy_change),
                plain_text(change.kl_bits),
                pairs,
            )
    print_table(
        console,
        "Change of attribution on the baseline's own answers",
        table,
        "beyond chance: minus the answers that a second draw of the baseline would have sent the same way. Only this "
        "row says something about the transition.",
    )


def _similarity(result: Interpretation, console: Console) -> None:
    if not result.similarity:
        return
    table = new_table()
    _add_columns(table, ("model",), ("own prompt", "shuffled", "above it"))
    for model in result.similarity.models:
        table.add_row(
            label_text(model.label), *(plain_text(value, 3) for value in (model.own, model.null, model.above_null))
        )
    print_table(console, "Similarity of answers and prompts", table)


def _add_columns(table: Table, texts: Sequence[str], numbers: Sequence[str]) -> None:
    for heading in texts:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right")
