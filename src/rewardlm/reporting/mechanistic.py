"""What ``interpret`` found inside, in words and rows: the verdict on each model, and what page and terminal show.

It reads only the stored numbers. It calls something a change only if the 95 % interval excludes zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rewardlm.formats import p_number, p_text, signed
from rewardlm.interpreting.findings import (
    AdapterPath,
    AdapterVerdict,
    CausalRow,
    Inside,
    ModelAblation,
    Ratio,
    Shuffled,
    ValueVectors,
    VectorAblation,
)
from rewardlm.reporting import mechanistic_figures as figures
from rewardlm.reporting.headline import Part
from rewardlm.reporting.intervals import direction, number_text

_VERDICTS = {
    "unclear": "nothing to explain: toxicity was not shown to fall",
    "rewritten": "unlearned: the adapter turned the toxic value vectors themselves, and they write less toxicity",
    "avoided": "bypassed: the toxic value vectors are still there, and are set off less",
    "untouched": "bypassed: the toxic value vectors are still there and push as before; the change lies elsewhere",
    "cannot_tell": "can’t tell: {reason}",
}
_CHOSEN = {"words": "promote the toxic words most", "direction": "lie nearest to the direction"}
_KINDS = {
    "plain": "as it is",
    "scale": "adapter × {value:g}",
    "layers_off": "adapter off in layers {first}–{last}",
    "add": "direction added × {value:g}",
    "ablate": "direction ablated",
    "add_random": "{number} random directions added × {value:g}",
    "ablate_random": "{number} random directions ablated",
}


def section(found: Inside | None, notes: Sequence[str] = ()) -> dict[str, Any] | None:
    """What mechanistic.html.j2 shows; None where nothing was found and there is nothing to say about it."""
    if found is None:
        return {"found": None, "notes": list(notes)} if notes else None
    tuned = found.models[1:]
    most, far = figures.edges([found.adapters[label] for label in tuned])
    return {
        "found": found,
        "notes": [*notes, *found.notes],
        "sentences": sentences(found),
        "how": how_read(found),
        "vectors": vector_rows(found),
        "which": None if found.vectors is None else chosen_by(found.vectors),
        "causal": [] if found.causal is None else found.causal.rows,
        "what_was_done": what_was_done,
        "change_text": change_text,
        "change_p": change_p,
        "figures": {
            "lens": figures.lens_figure(found) if found.words else None,
            "probe": figures.probe_figure(found.directions) if found.directions.reason is None else None,
            "attention": figures.attention_figure(found),
            "path": figures.path_figure(found) if any(map(figures.has_shares, found.paths.values())) else None,
            "scale": figures.scale_figure(found) if found.causal and tuned else None,
            "shares": [
                (label, figures.shares_figure(before, after))
                for label in tuned
                if (before := found.stream[found.models[0]].shares) and (after := found.stream[label].shares)
            ],
            "maps": [
                (
                    label,
                    figures.wrote_figure(written, most),
                    figures.pushed_figure(written, far),
                    bool(written.share_ci95),
                )
                for label in tuned
                for written in (found.adapters[label],)
            ],
        },
        "lens_known": all(one.lens is None or one.lens.score_ci95 is not None for one in found.stream.values()),
    }


def sentences(found: Inside) -> list[dict[str, Any]]:
    """A row per model and question, like those of an interpretation: ``{"question", "model", "parts"}``."""
    rows = []
    for label, verdict in found.verdicts.items():
        rows.append(
            {"question": f"Has {label} unlearned toxicity?", "model": label, "parts": _unlearned(found, label, verdict)}
        )
        rows.append(
            {"question": f"Where does {label}’s change sit?", "model": label, "parts": _where(found, label, verdict)}
        )
        parts = _causal(found, label)
        if parts:
            rows.append({"question": f"Does the direction still work in {label}?", "model": label, "parts": parts})
    if found.ablation is not None:
        for label, lost in found.ablation.by_model.items():
            parts = _without_vectors(found.ablation, lost)
            if parts:
                question = f"What does {label} lose without the {found.ablation.vectors} value vectors?"
                rows.append({"question": question, "model": label, "parts": parts})
    return rows


def how_read(found: Inside) -> list[str]:
    """What the numbers rest on, in sentences."""
    base, focus = found.models[0], found.focus
    kind = "toxic answers" if focus.toxic else "most toxic third of its answers, as fewer than three were toxic"
    said = [
        f"All models read the same text: {found.answers:,} answers of {base}. Shares in logits are means over the "
        f"{focus.answers:,} {kind}."
    ]
    words = found.words
    if words:
        error = max(one.largest_error or 0.0 for one in found.stream.values())
        said.append(
            f"Logits are those of {len(words.toxic)} toxic words minus those of {len(words.neutral)} others that "
            f"are as rare; the parts add up to the model’s own logits within {error:.1g}."
        )
    directions = found.directions
    if directions.layer is not None and directions.shuffled is not None:
        toxic, other = directions.n_toxic, directions.n - directions.n_toxic
        said.append(
            f"The direction is the difference of means of {toxic} toxic and {other} other texts, without what all "
            f"texts share, before layer {directions.layer}, where it tells held-out texts apart best "
            f"(AUC {directions.mean_auc[directions.layer]:.2f}). {_against_shuffled(directions.shuffled)}"
        )
    return said


def _against_shuffled(shuffled: Shuffled) -> str:
    """The best layer against the best of shuffled labels, by direction and by probe."""
    rank, probe = shuffled.mean.p_value, shuffled.probe.p_value
    said = "more than chance gives" if rank <= 0.05 else "no more than chance gives"
    also = "tells them apart as well" if probe <= 0.05 else "does not tell them apart"
    return (
        f"That is {said}: with shuffled labels the best layer has {fmean(shuffled.mean.auc):.2f}, mean of "
        f"{shuffled.number} shufflings ({p_text(rank)}). By the same comparison, the probe {also} ({p_text(probe)})."
    )


def chosen_by(vectors: ValueVectors) -> str:
    """What the value vectors have in common, as the end of "those that …"."""
    return _CHOSEN[vectors.by]


@dataclass(frozen=True)
class VectorRow:
    """A value vector: where it is (− where its opposite is meant), what it promotes, each model's mean activation of
    it, and each tuned model's cosine with the base's."""

    name: str
    score: float
    tokens: list[str]
    activations: list[float]
    kept: list[float]


def vector_rows(found: Inside) -> list[VectorRow]:
    """A row per value vector; empty if there are none."""
    vectors = found.vectors
    if vectors is None:
        return []
    return [
        VectorRow(
            name=f"{'−' if row.sign < 0 else ''}{row.layer}.{row.neuron}",
            score=row.score,
            tokens=row.tokens,
            activations=[vectors.by_model[label].activation[index] for label in found.models],
            kept=[vectors.by_model[label].cosine[index] for label in found.models[1:]],
        )
        for index, row in enumerate(vectors.rows)
    ]


def change_p(row: CausalRow) -> str:
    """The p-value of a change that was tried, corrected for all of them, as text."""
    return p_number(None if row.change is None else row.change.p_adjusted)


def change_text(row: CausalRow, digits: int = 3) -> str:
    """The change with its interval. For random directions, their mean and range. For a direction that is compared with
    them, also how often they do as much."""
    if row.changes is not None:
        if not row.changes:
            return number_text(row.change, digits)
        least, most = (signed(end(row.changes), digits) for end in (min, max))
        return f"{number_text(row.change, digits)}, {least} to {most}"
    rank = row.p_value_random
    return number_text(row.change, digits) + ("" if rank is None else f"; {p_text(rank)} among random ones")


def what_was_done(row: CausalRow) -> str:
    """A change in words."""
    layers = row.layers or [0]
    form = _KINDS[row.kind]
    if row.kind == "layers_off" and len(layers) == 1:
        form = "adapter off in layer {first}"
    return form.format(value=row.value, first=layers[0], last=layers[-1], number=len(row.changes or ()))


def _unlearned(found: Inside, label: str, verdict: AdapterVerdict) -> list[Part]:
    if found.vectors is None or verdict.kind is None or verdict.vector_cosine is None:
        return [("There are no toxic value vectors to follow, so nothing can be said of them.", False)]
    said = _VERDICTS[verdict.kind].format(reason=verdict.reason)
    parts: list[Part] = [(said[0].upper() + said[1:], verdict.kind != "unclear"), (". ", False)]
    change = verdict.toxicity_change
    over = "" if change is None else f" over {change.n:,} pairs of answers"
    parts.append((f"Toxicity changed by {number_text(change, 3)}{over}; ", False))
    number, which = len(found.vectors.rows), _CHOSEN[found.vectors.by]
    parts.append(
        (
            f"the {number} value vectors that {which} have a median cosine of {verdict.vector_cosine:.3f} with the "
            "base’s",
            False,
        )
    )
    parts.append((_pushed(found.vectors, label, verdict), False))
    if verdict.direction_used is False and found.vectors.by == "direction":
        base = found.models[0]
        parts.append(
            (
                f" But what {base} says was not shown to depend on that direction more than on a random one: these "
                "may not be the vectors that matter.",
                True,
            )
        )
    return parts


def _pushed(vectors: ValueVectors, label: str, verdict: AdapterVerdict) -> str:
    """How far the value vectors still push, with what that is held against, as the end of a sentence."""
    push, read, write = verdict.push_ratio, verdict.read_ratio, verdict.write_ratio
    if push is None or read is None or write is None:
        return ". On this text those of the base don’t measurably push towards toxicity, so nothing can be compared."
    margin = vectors.margin
    text = (
        f", and push {_times(push)} as far: they are set off {_times(read)} as much, and write {_times(write)} as much "
        f"toxicity when they are. “As before” asks for an interval within {1 - margin:.2f} and {1 / (1 - margin):.2f}"
    )
    null = [f"{one.push_ratio:.2f}" for one in vectors.by_model[label].null if one.push_ratio is not None]
    if null:
        text += f"; adapters of the same size with random weights push {' and '.join(null)} times as far"
    return f"{text}."


def _times(ratio: Ratio) -> str:
    low, high = ratio.ci95
    return f"{ratio.mean:.2f} times ({low:.2f} to {high:.2f})"


def _without_vectors(silenced: VectorAblation, lost: ModelAblation) -> list[Part]:
    parts: list[Part] = []
    on = f"on {silenced.answers} answers to {silenced.prompts_of_answers} prompts"
    measured = (
        (lost.toxicity, f"Toxicity of its answers to {silenced.prompts} prompts changes", "toxicity", 3),
        (lost.logits, f"The toxic words’ logits {on} change", "of these logits", 2),
    )
    for found, what, of, digits in measured:
        if found is None or found.change is None:
            continue
        if found.random_change is None:
            why = "the base was not shown to need them" if direction(found.change) == -1 else "no loss is shown"
            parts.append((f"{what} by {number_text(found.change, digits)}: {why}, so no others were silenced. ", False))
            continue
        beyond, rank = found.beyond_random, found.p_value_random
        more = direction(beyond) == -1 and rank is not None and rank <= 0.05
        takes = "takes more" if more else "was not shown to take more"
        others = number_text(found.random_change, digits)
        number = len(found.random_changes) or silenced.random_sets
        among = f"{number} sets are too few to say what chance does" if rank is None else f"{p_text(rank)} among them"
        parts += [
            (
                f"{what} by {number_text(found.change, digits)}, and on average by {others} without {number} sets of "
                f"others as long ({among}): ",
                False,
            ),
            (f"silencing these {takes} {of} than silencing others", more),
            (f" ({number_text(beyond, digits)}). ", False),
        ]
    return parts


def _where(found: Inside, label: str, verdict: AdapterVerdict) -> list[Part]:
    path, written = found.paths[label], found.adapters[label]
    parts = _preference(found, label, path, verdict)
    last = written.moved[-1]
    parts.append((f"The stream that the head reads is moved by {last:.0%} of its length", False))
    score = written.score
    if score is not None:
        parts.append(
            (
                f"; the toxic words’ logits changed by {signed(score.change, 2)}: the adapter wrote "
                f"{signed(score.own, 2)} of that itself, and {signed(score.rest, 2)} is what the base’s weights made "
                "of the changed stream",
                False,
            )
        )
    parts.append((".", False))
    return parts


def _preference(found: Inside, label: str, path: AdapterPath | None, verdict: AdapterVerdict) -> list[Part]:
    """Whether it came to prefer less toxic answers, and which layers carry that."""
    base = found.models[0]
    if path is None:
        return [("No answer became less toxic, so no layer has a share. ", False)]
    own = ""
    if path.before is not None and path.after is not None:
        own = (
            f"{label} prefers its own new answers to {base}’s more toxic old ones by "
            f"{signed(path.after - path.before, 2)} nats a token more than {base} does ({path.pairs} pairs), "
            "as any model prefers its own words. "
        )
    redraw = path.redraw
    if redraw is None:
        return [
            ("Whether it prefers less toxic answers can’t be told", True),
            (f": {base} gave no prompt both a toxic and a harmless answer. {own}", False),
        ]
    change = (
        f"{base}’s own harmless answers gained {number_text(redraw.change)} nats a token on its toxic ones to the "
        f"same {redraw.pairs} prompts"
    )
    if direction(redraw.change) == 1 and not figures.has_shares(path):
        return [
            ("Which layers do it can’t be told", True),
            (f": {change}, but the shares of layers miss {abs(path.missing / path.whole):.0%} of it. {own}", False),
        ]
    if verdict.spread is None:
        return [
            ("It was not shown to prefer less toxic answers", True),
            (f": {change}. So no layer has a share in that. {own}", False),
        ]
    ordered = sorted(path.by_module.items(), key=lambda pair: -pair[1])
    named = ", ".join(f"{name} {share / path.whole:.0%}" for name, share in ordered[:3])
    return [
        (f"It is {verdict.spread}", True),
        (
            f": {change}, and {verdict.fewest_layers} of {verdict.n_layers} layers carry 80 % of that "
            f"({path.followed} pairs; by module {named}). {own}",
            False,
        ),
    ]


def _causal(found: Inside, label: str) -> list[Part]:
    if not found.causal:
        return []
    rows = {row.kind: row for row in found.causal.rows if row.model == label}
    if "add" not in rows:
        return []
    added, control = rows["add"], rows.get("add_random")
    change, rank = added.change, added.p_value_random
    sure = direction(change) == 1
    works = sure and rank is not None and rank <= 0.05
    verdict = "Adding it makes answers more toxic" if works else "Adding it does not measurably make answers more toxic"
    if sure and not works:
        verdict = "Adding it makes answers more toxic, and so do random directions"
    elif not sure and direction(change) != -1:
        verdict += f", as far as {found.causal.prompts} prompts can tell"
    against = "; "
    if control is not None:
        against = f", and {change_text(control)} for {what_was_done(control).split(' added')[0]} as long"
        against += "; " if rank is None else f" ({p_text(rank)}); "
    return [
        (verdict, works),
        (f": {number_text(change, 3)}{against}", False),
        (f"ablating it changes toxicity by {number_text(rows['ablate'].change, 3)}. ", False),
        (f"{found.causal.prompts} prompts, answered once under each change.", False),
    ]
