"""What ``interpreting.inside`` found, in words and rows: the verdict on each model, and what page and terminal show.

It reads the stored numbers alone. A change whose 95 % interval includes zero is never called one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewardlm.reporting import inside_figures as figures
from rewardlm.reporting.formats import p_number, p_text
from rewardlm.reporting.headline import Part
from rewardlm.reporting.intervals import direction, number_text, signed

_VERDICTS = {
    "unclear": "nothing to explain: toxicity was not shown to fall",
    "rewritten": "unlearned: the adapter turned the toxic value vectors themselves, and they write less of it",
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


def section(found: Mapping[str, Any] | None, notes: Sequence[str] = ()) -> dict[str, Any] | None:
    """What inside.html.j2 shows; None where nothing was found and there is nothing to say about it."""
    if found is None:
        return {"found": None, "notes": list(notes)} if notes else None
    tuned = found["models"][1:]
    return {
        "found": found,
        "notes": [*notes, *found["notes"]],
        "sentences": sentences(found),
        "how": how_read(found),
        "vectors": vector_rows(found),
        "which": None if found["vectors"] is None else _CHOSEN[found["vectors"]["by"]],
        "causal": causal_rows(found),
        "figures": {
            "lens": figures.lens_figure(found) if found["words"] else None,
            "probe": figures.probe_figure(found["directions"]) if found["directions"]["reason"] is None else None,
            "attention": figures.attention_figure(found),
            "path": figures.path_figure(found) if any(map(figures.has_shares, found["paths"].values())) else None,
            "scale": figures.scale_figure(found) if found["causal"] else None,
            "shares": [(label, figures.shares_figure(found, label)) for label in tuned] if found["words"] else [],
            "wrote": [(label, figures.wrote_figure(found["adapters"][label])) for label in tuned],
        },
    }


def sentences(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a model and question, as those of an interpretation: ``{"question", "model", "parts"}``."""
    rows = []
    for label, verdict in found["verdicts"].items():
        rows.append(
            {
                "question": f"Has {label} unlearned toxicity?",
                "model": label,
                "parts": _unlearned(found, label, verdict),
            }
        )
        rows.append(
            {"question": f"Where does {label}’s change sit?", "model": label, "parts": _where(found, label, verdict)}
        )
        parts = _causal(found, label)
        if parts:
            rows.append({"question": f"Does the direction still work in {label}?", "model": label, "parts": parts})
    # Interpretations from before value vectors were silenced don't have it.
    silenced = found.get("ablation") or {"by_model": {}}
    for label, lost in silenced["by_model"].items():
        parts = _without_vectors(silenced, lost)
        if parts:
            question = f"What does {label} lose without the {silenced['vectors']} value vectors?"
            rows.append({"question": question, "model": label, "parts": parts})
    return rows


def how_read(found: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on, in sentences."""
    base, focus = found["models"][0], found["focus"]
    kind = "toxic answers" if focus["toxic"] else "most toxic third of its answers, as fewer than three were toxic"
    said = [
        f"All models read the same text: {found['answers']:,} answers of {base}. Shares in logits are means over the "
        f"{focus['answers']:,} {kind}."
    ]
    words = found["words"]
    if words:
        error = max(one["largest_error"] for one in found["stream"].values())
        said.append(
            f"Logits are those of {len(words['toxic'])} toxic words minus those of {len(words['neutral'])} others that "
            f"are as rare; the parts add up to the model’s own within {error:.1g}."
        )
    directions = found["directions"]
    if directions["reason"] is None:
        toxic, other = directions["n_toxic"], directions["n"] - directions["n_toxic"]
        said.append(
            f"The direction is the difference of means of {toxic} toxic and {other} other texts, without what all "
            f"texts share, before layer {directions['layer']}, where it tells held-out texts apart best "
            f"(AUC {directions['mean_auc'][directions['layer']]:.2f}). {_against_shuffled(directions)}"
        )
    return said


def _against_shuffled(directions: Mapping[str, Any]) -> str:
    """The best layer against the best of shuffled labels, by direction and by probe."""
    shuffled = directions.get("shuffled")
    if shuffled is None:
        return "The layer was chosen by this figure, which flatters it."
    rank, probe = shuffled["mean"]["p_value"], shuffled["probe"]["p_value"]
    said = "more than chance gives" if rank <= 0.05 else "no more than chance gives"
    also = "tells them apart as well" if probe <= 0.05 else "does not tell them apart"
    return (
        f"That is {said}: with shuffled labels the best layer has {fmean(shuffled['mean']['auc']):.2f}, mean of "
        f"{shuffled['number']} shufflings ({p_text(rank)}). The probe {also}, its best layer against theirs "
        f"({p_text(probe)})."
    )


def chosen_by(found: Mapping[str, Any]) -> str:
    """What the value vectors have in common, as the end of "those that …"."""
    return _CHOSEN[found["vectors"]["by"]]


def vector_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a value vector: where it is, what it promotes, and by model its activation and its cosine with itself."""
    vectors = found["vectors"]
    if vectors is None:
        return []
    return [
        {
            "name": f"{'−' if row['sign'] < 0 else ''}{row['layer']}.{row['neuron']}",
            "score": row["score"],
            "tokens": row["tokens"],
            "activations": [vectors["by_model"][label]["activation"][index] for label in found["models"]],
            "kept": [vectors["by_model"][label]["cosine"][index] for label in found["models"][1:]],
        }
        for index, row in enumerate(vectors["rows"])
    ]


def causal_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a change that was tried, in words, model after model, with its corrected p-value as text."""
    if not found["causal"]:
        return []
    return [
        {
            **row,
            "what": what_was_done(row),
            "change_text": change_text(row),
            "p": p_number((row["change"] or {}).get("p_adjusted")),
        }
        for row in found["causal"]["rows"]
    ]


def change_text(row: Mapping[str, Any], digits: int = 3) -> str:
    """The change with its interval; of random directions their mean and range; of a direction held against these, how
    often they do as much."""
    if "changes" in row:
        if not row["changes"]:
            return number_text(row["change"], digits)
        least, most = (signed(end(row["changes"]), digits) for end in (min, max))
        return f"{number_text(row['change'], digits)}, {least} to {most}"
    rank = row.get("p_value_random")
    return number_text(row["change"], digits) + ("" if rank is None else f"; {p_text(rank)} among random ones")


def what_was_done(row: Mapping[str, Any]) -> str:
    """A change in words."""
    layers = row["layers"] or [0]
    form = _KINDS[row["kind"]]
    if row["kind"] == "layers_off" and len(layers) == 1:
        form = "adapter off in layer {first}"
    if "changes" not in row:  # Older interpretations tried one.
        form = form.replace("{number} random directions", "random direction")
    return form.format(value=row["value"], first=layers[0], last=layers[-1], number=len(row.get("changes", ())))


def _unlearned(found: Mapping[str, Any], label: str, verdict: Mapping[str, Any]) -> list[Part]:
    if verdict["kind"] is None:
        return [("There are no toxic value vectors to follow, so nothing can be said of them.", False)]
    kind, reason = verdict["kind"], verdict.get("reason")
    if kind not in ("unclear", "cannot_tell") and ("read_ratio" not in verdict or _without_rank(found)):
        kind = "cannot_tell"
        reason = "this was interpreted before such a verdict had to be shown; interpret again into another --out"
    said = _VERDICTS[kind].format(reason=reason)
    parts: list[Part] = [(said[0].upper() + said[1:], kind != "unclear"), (". ", False)]
    change = verdict["toxicity_change"]
    over = "" if change is None else f" over {change['n']:,} pairs of answers"
    parts.append((f"Toxicity changed by {number_text(change, 3)}{over}; ", False))
    number, which = len(found["vectors"]["rows"]), _CHOSEN[found["vectors"]["by"]]
    parts.append(
        (
            f"the {number} value vectors that {which} have a median cosine of {verdict['vector_cosine']:.3f} with the "
            "base’s",
            False,
        )
    )
    parts.append((_pushed(found, label, verdict), False))
    if verdict["direction_used"] is False and found["vectors"]["by"] == "direction":
        base = found["models"][0]
        parts.append(
            (
                f" But what {base} says was not shown to depend on that direction, more than on a random one: these "
                "may not be the vectors that matter.",
                True,
            )
        )
    return parts


def _without_rank(found: Mapping[str, Any]) -> bool:
    """Whether the value vectors were silenced without enough random sets to say what chance does."""
    lost = (found.get("ablation") or {"by_model": {}})["by_model"].get(found["models"][0], {})
    return any(one is not None and "p_value_random" not in one for one in lost.values())


def _pushed(found: Mapping[str, Any], label: str, verdict: Mapping[str, Any]) -> str:
    """How far the value vectors still push, with what that is held against, as the end of a sentence."""
    ratio = verdict["push_ratio"]
    if ratio is None:
        return ". On this text the base’s don’t measurably push towards toxicity, so there is nothing to compare with."
    text = f", and push {_times(ratio)} as far"
    if "read_ratio" in verdict:
        text += (
            f": they are set off {_times(verdict['read_ratio'])} as much, and write {_times(verdict['write_ratio'])} "
            "as much of it when they are"
        )
        margin = found["vectors"]["margin"]
        text += f". As before would be an interval within {1 - margin:.2f} and {1 / (1 - margin):.2f}"
        null = [
            f"{one['push_ratio']:.2f}"
            for one in found["vectors"]["by_model"][label]["null"]
            if one["push_ratio"] is not None
        ]
        if null:
            text += f"; adapters of random weights as large push {' and '.join(null)} times as far"
    return f"{text}."


def _times(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["ci95"]
    return f"{ratio['mean']:.2f} times ({low:.2f} to {high:.2f})"


def _without_vectors(silenced: Mapping[str, Any], lost: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = []
    on = f"on {silenced['answers']} answers"
    if "prompts_of_answers" in silenced:
        on += f" to {silenced['prompts_of_answers']} prompts"
    measured = (
        ("toxicity", f"Toxicity of its answers to {silenced['prompts']} prompts changes", "toxicity", 3),
        ("logits", f"The toxic words’ logits {on} change", "of these logits", 2),
    )
    for name, what, of, digits in measured:
        found = lost[name]
        if found is None or found["change"] is None:
            continue
        beyond, rank = found["beyond_random"], found.get("p_value_random")
        more = direction(beyond) == -1 and rank is not None and rank <= 0.05
        takes = "takes more" if more else "was not shown to take more"
        others = number_text(found["random_change"], digits)
        number = len(found.get("random_changes", ())) or silenced["random_sets"]
        among = f"{number} sets are too few to say what chance does" if rank is None else f"{p_text(rank)} among them"
        parts += [
            (
                f"{what} by {number_text(found['change'], digits)}, and by {others} without {number} sets of others as "
                f"long, in the mean ({among}): ",
                False,
            ),
            (f"silencing these {takes} {of} than silencing others", more),
            (f" ({number_text(beyond, digits)}). ", False),
        ]
    return parts


def _where(found: Mapping[str, Any], label: str, verdict: Mapping[str, Any]) -> list[Part]:
    path, written = found["paths"][label], found["adapters"][label]
    parts = _preference(found, label, path, verdict)
    last = written["moved"][-1]
    parts.append((f"The stream that the head reads is moved by {last:.0%} of its length", False))
    score = written.get("score")
    if score is not None:
        parts.append(
            (
                f"; of the toxic words’ change of {signed(score['change'], 2)} the adapter wrote "
                f"{signed(score['own'], 2)} itself, and {signed(score['rest'], 2)} is how the base’s weights took it",
                False,
            )
        )
    parts.append((".", False))
    return parts


def _preference(
    found: Mapping[str, Any], label: str, path: Mapping[str, Any] | None, verdict: Mapping[str, Any]
) -> list[Part]:
    """Whether it came to prefer less toxic answers, and which layers carry that."""
    base = found["models"][0]
    if path is None:
        return [("No answer became less toxic, so no layer has a share. ", False)]
    own = ""
    if path["pairs"]:
        own = (
            f"{label} prefers its own new answers to {base}’s more toxic old ones by "
            f"{signed(path['after'] - path['before'], 2)} nats a token more than {base} does ({path['pairs']} pairs), "
            "as any model prefers its own words. "
        )
    redraw = path.get("redraw")
    if redraw is None:
        return [
            ("Whether it prefers less toxic answers can’t be told", True),
            (f": {base} gave no prompt both a toxic and a harmless answer. {own}", False),
        ]
    change = (
        f"{base}’s own harmless answers gained {number_text(redraw['change'])} nats a token on its toxic ones to the "
        f"same {redraw['pairs']} prompts"
    )
    if direction(redraw["change"]) == 1 and not figures.has_shares(path):
        return [
            ("Which layers do it can’t be told", True),
            (
                f": {change}, but the shares of layers miss {abs(path['missing'] / path['whole']):.0%} of it. {own}",
                False,
            ),
        ]
    if verdict["spread"] is None:
        return [
            ("It was not shown to prefer less toxic answers", True),
            (f": {change}. So no layer has a share in that. {own}", False),
        ]
    ordered = sorted(path["by_module"].items(), key=lambda pair: -pair[1])
    named = ", ".join(f"{name} {share / path['whole']:.0%}" for name, share in ordered[:3])
    return [
        (f"It is {verdict['spread']}", True),
        (
            f": {change}, and {verdict['fewest_layers']} of {verdict['n_layers']} layers carry 80 % of that "
            f"({path['followed']} pairs; by module {named}). {own}",
            False,
        ),
    ]


def _causal(found: Mapping[str, Any], label: str) -> list[Part]:
    if not found["causal"]:
        return []
    rows = {row["kind"]: row for row in found["causal"]["rows"] if row["model"] == label}
    if "add" not in rows:
        return []
    added, control = rows["add"], rows.get("add_random")
    change, rank = added["change"], added.get("p_value_random")
    sure = direction(change) == 1
    works = sure and rank is not None and rank <= 0.05
    verdict = "Adding it makes answers more toxic" if works else "Adding it does not measurably make answers more toxic"
    if sure and not works:
        verdict = "Adding it makes answers more toxic, and so do random directions"
    elif not sure and direction(change) != -1:
        verdict += f", as far as {found['causal']['prompts']} prompts can tell"
    against = "; "
    if control is not None:
        against = f", and {change_text(control)} for {what_was_done(control).split(' added')[0]} as long"
        against += "; " if rank is None else f" ({p_text(rank)}); "
    return [
        (verdict, works),
        (f": {number_text(change, 3)}{against}", False),
        (f"ablating it changes toxicity by {number_text(rows['ablate']['change'], 3)}. ", False),
        (f"{found['causal']['prompts']} prompts, answered once under each change.", False),
    ]
