"""What is inside a model, in the terminal: the verdicts, the value vectors and what came of changing them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rewardlm.interpreting.findings import Inside
from rewardlm.reporting import mechanistic
from rewardlm.reporting.tables import label_text, new_table, print_notes, print_sentences, print_table
from rewardlm.terminal import plain

_SHOWN_TOKENS = 4


def print_inside(found: Inside | None, notes: Sequence[str], console: Console) -> None:
    """Print what ``interpreting.mechanistic`` found, within 100 columns."""
    print_notes(notes, console)
    if found is None:
        return
    print_sentences(mechanistic.sentences(found), console)
    print_notes([*mechanistic.how_read(found), *found.notes], console)
    console.print()
    _layers(found, console)
    _vectors(found, console)
    _causal(found, console)


def _layers(found: Inside, console: Console) -> None:
    """Every layer, or a dozen of them where there are more."""
    table = new_table()
    n = found.n_layers
    shown = sorted({round(step * (n - 1) / 11) for step in range(12)}) if n > 12 else list(range(n))
    table.add_column("layer", justify="right")
    directions = found.directions
    if directions.reason is None:
        table.add_column("probe", justify="right")
    for label in found.stream if found.words else []:
        table.add_column(Text.assemble(label_text(label), " lens"), justify="right", overflow="fold", max_width=14)
    for label in found.models[1:]:
        for what in ("moved", "share"):
            table.add_column(
                Text.assemble(label_text(label), f" {what}"), justify="right", overflow="fold", max_width=14
            )
    for layer in shown:
        cells = [str(layer)]
        if directions.reason is None:
            cells.append(f"{directions.probe_accuracy[layer + 1]:.2f}")
        if found.words:
            lenses = [one.lens for one in found.stream.values()]
            cells += ["–" if lens is None else f"{lens.score[layer + 1]:+.2f}" for lens in lenses]
        for label in found.models[1:]:
            path = found.paths[label]
            cells.append(f"{found.adapters[label].moved[layer + 1]:.1%}")
            cells.append("–" if path is None or not path.by_layer else f"{path.by_layer[layer]:+.3f}")
        table.add_row(*cells)
    print_table(
        console,
        "Layers",
        table,
        "probe: held-out balanced accuracy behind the layer. lens: toxic minus neutral logit. moved: how far the "
        "stream moved, as a share of its length. share: nats a token of the preference for the base's harmless "
        "answers over its toxic ones (where the base has no such pair: for new answers over old ones).",
    )


def _vectors(found: Inside, console: Console) -> None:
    if found.vectors is None:
        return
    table = new_table()
    table.add_column("vector")
    table.add_column("promotes", overflow="fold", max_width=36)
    table.add_column("score", justify="right")
    for label in found.models:
        table.add_column(label_text(label), justify="right", overflow="fold", max_width=12)
    for row in mechanistic.vector_rows(found):
        tokens = " ".join(plain(token).strip() for token in row.tokens[:_SHOWN_TOKENS])
        table.add_row(row.name, Text(tokens), f"{row.score:.2f}", *(f"{value:+.3f}" for value in row.activations))
    print_table(
        console,
        f"Value vectors that {mechanistic.chosen_by(found.vectors)}",
        table,
        "vector: layer and neuron, − where its opposite is meant. score: by how many standard deviations over the "
        "vocabulary it lifts toxic words, or the cosine. Models: mean activation on the base's answers.",
    )


def _causal(found: Inside, console: Console) -> None:
    if found.causal is None:
        return
    table = new_table()
    table.add_column("model", overflow="fold", max_width=16)
    table.add_column("change")
    for heading in ("toxicity", "change, 95 %", "adj. p", "perplexity"):
        table.add_column(heading, justify="right")
    for row in found.causal.rows:
        table.add_row(
            label_text(row.model),
            mechanistic.what_was_done(row),
            "–" if row.toxicity is None else f"{row.toxicity:.3f}",
            mechanistic.change_text(row, 2),
            mechanistic.change_p(row),
            "–" if row.perplexity is None else f"{row.perplexity:.1f}",
        )
    print_table(
        console,
        f"What changes do, {found.causal.prompts} prompts each",
        table,
        "toxicity: mean of the judge's scores. adj. p: of its change, corrected for all rows (Holm). perplexity: of "
        "the answers under the base. Random directions: the mean change and its range; p: how often one of them does "
        "as much.",
    )
