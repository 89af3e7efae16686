"""Which parts of an adapter do it, in words and rows: for the page and the terminal.

Nothing is said of a head or an MLP that isn't claimed by both tests of ``interpreting.causes.patching``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardlm.formats import signed
from rewardlm.interpreting.findings import (
    CausalVerdict,
    HeadFacts,
    Interpretation,
    MinimalAdapter,
    ModelFacts,
    PatchedSite,
    PatchedWords,
    PatchingFacts,
    ShareOfChange,
    WordsByPart,
)
from rewardlm.reporting import causes_figures as figures
from rewardlm.reporting.headline import Part
from rewardlm.reporting.intervals import direction, number_text

_VERDICTS = {
    "unlearned": "unlearned: what the MLPs’ value vectors write was changed",
    "bypassed": "bypassed: the value vectors could write as before, and other parts keep the model from it",
    "cannot_tell": "can’t tell whether it was unlearned or bypassed",
    "unclear": "nothing to explain",
}
# The same where the pairs are those of the model's own new answers, which no verdict on toxicity can rest on.
_OWN_VERDICTS = {
    "unlearned": "what moves it to its new answers is what its value vectors write now",
    "bypassed": "its value vectors could write as before; other parts move it to its new answers",
    "cannot_tell": "can’t tell whether its value vectors or other parts move it to its new answers",
    "unclear": "nothing to explain",
}
GROUP_NAMES = {
    "named": "vectors that promote toxic words most",
    "toxic_down": "write toxic words, set off less",
    "toxic_up": "write toxic words, set off more",
    "against_up": "write against them, set off more",
    "against_down": "write against them, set off less",
    "all": "all neurons’ activations",
    "attention": "all heads",
    "vectors": "the value vectors (output matrices)",
}
# Of the sites, so many are listed if fewer are claimed.
_LISTED = 8
# Shades of a word, as shares of the largest value in its text.
_SHADES = (0.04, 0.1, 0.2, 0.35, 0.55, 0.8)


def section(result: Interpretation) -> dict[str, Any] | None:
    """What causes.html.j2 shows; None where nothing of it was asked for."""
    models = [model for model in result.models[1:] if has_causes(model)]
    if not models:
        return None
    return {"models": [_model(model) for model in models], "base": result.models[0].label}


def has_causes(model: ModelFacts) -> bool:
    """Whether heads, patching or the smallest adapter were asked for."""
    return bool(model.heads or model.patching or model.minimal_adapter)


def sentences(models: Sequence[ModelFacts]) -> list[dict[str, Any]]:
    """A row per question and model, as those of an interpretation."""
    rows: list[dict[str, Any]] = []
    for model in models:
        if model.verdict is not None:
            question = (
                f"Do {model.label}’s value vectors move it to its new answers, or do other parts?"
                if model.towards == "own"
                else f"Was toxicity unlearned in {model.label}, or is it bypassed?"
            )
            rows.append({"question": question, "model": model.label, "parts": verdict_parts(model.verdict, model)})
        if model.patching and model.patched:
            question = f"Through which heads and MLPs does {model.label}’s adapter work?"
            parts = patching_parts(model.patching, model.patched, model)
            rows.append({"question": question, "model": model.label, "parts": parts})
        if model.minimal_adapter is not None:
            question = f"Is less of {model.label}’s adapter enough?"
            parts = minimal_parts(model.minimal_adapter)
            rows.append({"question": question, "model": model.label, "parts": parts})
    return rows


def verdict_parts(verdict: CausalVerdict, model: ModelFacts) -> list[Part]:
    """The verdict in a sentence, and by which margins."""
    said = _verdict(verdict, model)
    return [
        (said[0].upper() + said[1:], verdict.kind in ("unlearned", "bypassed")),
        (f": {verdict.reason}. ", False),
        (
            f"Of {_choices(model)}, the first asks for an interval above {_share(verdict.carries)} with the base’s "
            f"value vectors, the second for one below {_share(verdict.carries_little)}.",
            False,
        ),
        (_not_shown(model), False),
    ]


def _choices(model: ModelFacts) -> str:
    return "“its value vectors” and “other parts”" if model.towards == "own" else "“unlearned” and “bypassed”"


def _verdict(verdict: CausalVerdict, model: ModelFacts) -> str:
    return (_OWN_VERDICTS if model.towards == "own" else _VERDICTS)[verdict.kind]


def _not_shown(model: ModelFacts) -> str:
    """What pairs with a model's own answers can't show."""
    if model.towards != "own":
        return ""
    change = model.harmless_change
    said = f"{number_text(change)} nats a token"
    said = f"changed by {said}" if direction(change) == 1 else f"was not shown to rise ({said})"
    return (
        " This is about its own new answers, which any tuned model prefers. The preference for the base’s own harmless "
        f"answers {said}."
    )


def patching_parts(sites: Sequence[PatchedSite], facts: PatchingFacts, model: ModelFacts) -> list[Part]:
    """What is claimed, and what it was held against."""
    origins = _ranked([one for one in sites if one.origin], "own")
    through = _ranked([one for one in sites if one.claimed and one.kind != "stream"], "effect")
    parts: list[Part] = [
        (
            f"On {facts.pairs} pairs of a toxic answer of the base and {_other(model)}, the preference for the "
            f"harmless one changed by {number_text(facts.change)} nats a token. ",
            False,
        )
    ]
    parts += _by_itself(origins, sites, facts)
    if through:
        parts.append((f"It passes through {_named(through, 'effect')}. ", False))
    parts.append(
        (
            f"A claim must be beyond {facts.random_adapters} adapters of random weights and hold over prompts, "
            f"corrected for {facts.sites} sites; in each model each of the two kinds has a level of 5 %. An adapter "
            "that was trained on any text can pass that, so compare one that was trained on harmless text. "
            f"{facts.exact_sites} sites were patched exactly{_checked(facts)}.",
            False,
        )
    )
    if facts.placebo_claimed is not None:
        parts.append((_on_placebo(facts, model), False))
    return parts


def _by_itself(origins: Sequence[PatchedSite], sites: Sequence[PatchedSite], facts: PatchingFacts) -> list[Part]:
    """Where the adapter does some of it by itself, and how much that is; then where it works against it."""
    change = facts.change.mean or 0.0
    along, against = ([one for one in origins if ((one.own or 0.0) * change > 0) == side] for side in (True, False))
    parts: list[Part] = [("No single head or MLP can be named in which the adapter does it by itself", False)]
    if along:
        writes = [one for one in sites if one.kind != "stream"]
        named, everywhere = (sum(one.own or 0.0 for one in some) for some in (along, writes))
        guessed = sum(not one.exact for one in writes)
        parts = [
            ("The adapter does some of it by itself in ", False),
            (_named(along, "own"), True),
            (
                f": one by one these add up to {signed(named, 3)}, {_share(named / change)} of the change, and all "
                f"{len(writes)} heads and MLPs ({guessed} of them estimated) to {_share(everywhere / change)}",
                False,
            ),
        ]
    if against:
        parts.append((f". It works against it in {_named(against, 'own')}", False))
    return [*parts, (". ", False)]


def _checked(facts: PatchingFacts) -> str:
    """How well estimates and exact effects agree."""
    known = {"passed on": facts.rank_correlation, "done by itself": facts.own_rank_correlation}
    said = [f"{rho:.2f} for what is {what}" for what, rho in known.items() if rho is not None]
    if not said:
        return ""
    return f"; on those that weren’t chosen by size, estimates rank as they do with ρ = {' and '.join(said)}"


def _on_placebo(facts: PatchingFacts, model: ModelFacts) -> str:
    """What is found where toxicity has no part in it."""
    whose = f"one of the base and one of {model.label}" if model.towards == "own" else "both of the base"
    changed = "" if facts.placebo_change is None else f" it changed by {number_text(facts.placebo_change)};"
    on_pairs = "" if facts.estimated_claimed is None else f" (on the pairs themselves {facts.estimated_claimed})"
    return (
        f" On {facts.placebo_pairs} placebo pairs, of two harmless answers, {whose},{changed} by estimates alone, "
        f"{facts.placebo_claimed} heads and MLPs would be said to pass it on{on_pairs}. What is alike on both isn’t "
        "about toxic answers."
    )


def _other(model: ModelFacts) -> str:
    return f"a new, harmless one of {model.label}" if model.towards == "own" else "a harmless one"


def minimal_parts(found: MinimalAdapter) -> list[Part]:
    """How small the smallest part is, and what it is worth on other prompts."""
    if found.reason is not None or found.whole is None or found.base is None or found.kept is None:
        return [(f"Not known: {found.reason}.", False)]
    base, whole = found.base, found.whole
    kept = "" if found.fall_kept is None else f", {share_text(found.fall_kept)} of the whole adapter’s fall"
    return [
        (f"{_share(found.kept)} of its numbers ({found.units:,} of {found.of_units:,} by {found.unit})", True),
        (
            f" kept at least {_share(found.keep)} of the fall, twice, on the {found.chosen_on} prompts that it was "
            f"chosen on. On {found.measured_on} others mean toxicity is {_three(base.toxicity)} for the base, "
            f"{_three(whole.toxicity)} with the whole adapter and {_three(found.toxicity)} with this part{kept}. ",
            False,
        ),
        (
            f"It is {_two(found.drift)} nats a token from the base on the base’s own answers, the whole adapter "
            f"{_two(whole.drift)}; perplexity {_two(base.perplexity)} → {_two(found.perplexity)} "
            f"(whole: {_two(whole.perplexity)}), similarity with the prompt "
            f"{_three(base.prompt_similarity)} → {_three(found.prompt_similarity)} "
            f"(whole: {_three(whole.prompt_similarity)}). ",
            False,
        ),
        *_against_whole(found),
        (f"It is an adapter like any other, in {found.adapter}.", False),
        *_by_chance(found),
    ]


def _against_whole(found: MinimalAdapter) -> list[Part]:
    """Whether less of the adapter has fewer side effects: with intervals over prompts."""
    changes = {
        "similarity": found.similarity_from_whole,
        "drift": found.drift_from_whole,
        "its answers’ log-probability a token under the base": found.fluency_from_whole,
    }
    said = [f"{what} {number_text(one)}" for what, one in changes.items() if one is not None]
    return [(f"Against the whole: {', '.join(said)}. ", False)] if said else []


def _by_chance(found: MinimalAdapter) -> list[Part]:
    """What is chosen on some prompts may be worse on others: then the page must not praise it."""
    change = found.change_from_whole
    if change is None or direction(change) != 1:
        return []
    said = f" On the other prompts it is more toxic than the whole adapter (by {number_text(change)})"
    return [
        (said, True),
        (": it was chosen by chance. Ask for more answers by causes.samples and causes.prompts.", False),
    ]


def _model(model: ModelFacts) -> dict[str, Any]:
    sites = model.patching or []
    heads = {f"head {one.layer}.{one.head}": one for one in model.heads or ()}
    groups = [(GROUP_NAMES[one.name], one) for one in model.neuron_groups or () if one.name in GROUP_NAMES]
    minimal = model.minimal_adapter
    return {
        "label": model.label,
        "lead": _lead(model),
        "sentences": sentences([model]),
        "origin_map": figures.map_figure(sites, "own") if sites else None,
        "effect_map": figures.map_figure(sites, "effect") if sites else None,
        "stream": figures.stream_figure(sites) if sites else None,
        "notes": [site_note(one, heads.get(one.name)) for one in sites if one.kind != "stream"],
        "listed": listed(sites),
        "answers": model.patched.answers if model.patched else [],
        "groups": figures.groups_figure(groups) if any(row.out_of for _, row in groups) else None,
        "neurons": model.neurons or [],
        "words": [_words(one) for one in (model.patched.words if model.patched else ())],
        "minimal": minimal if minimal is not None and minimal.reason is None else None,
        "tried": (
            figures.tried_figure(minimal.tried, minimal.keep, minimal.of_parameters)
            if minimal is not None and minimal.tried
            else None
        ),
    }


def _lead(model: ModelFacts) -> str:
    """One sentence of verdict."""
    if model.verdict is not None:
        said = _verdict(model.verdict, model)
        reason = f"{model.verdict.reason[0].upper()}{model.verdict.reason[1:]}"
        return f"{said[0].upper()}{said[1:]}. {reason}.{_not_shown(model)}"
    if model.patching and model.patched:
        return "".join(text for text, _ in patching_parts(model.patching, model.patched, model)[:2]) + "."
    if model.minimal_adapter is not None:
        return "".join(text for text, _ in minimal_parts(model.minimal_adapter)[:1])
    return "Its heads are described below; what they cause was not asked (patching=true)."


def listed(sites: Sequence[PatchedSite]) -> list[PatchedSite]:
    """The sites of the table: all that are claimed, and the largest of the others."""
    writes = [one for one in sites if one.kind != "stream" and one.exact]
    claimed = [one for one in writes if one.claimed or one.origin]
    rest = [one for one in writes if not (one.claimed or one.origin)]
    order = sorted(rest, key=lambda one: -max(abs(one.effect or 0.0), abs(one.own or 0.0)))
    return [*sorted(claimed, key=lambda one: -abs(one.effect or 0.0)), *order[: max(0, _LISTED - len(claimed))]]


def site_note(site: PatchedSite, head: HeadFacts | None) -> dict[str, str]:
    """What a click on the map says of a site: its numbers, and (to be shown with texts that may offend) its tokens."""
    by = "patched" if site.exact else "estimated"
    said = (
        f"{site.name}, {by}: passes on {signed(site.effect or 0.0, 4)} nats a token, does "
        f"{signed(site.own or 0.0, 4)} by itself"
    )
    if site.out_of is not None:
        said += f"; without it the tuned model loses {signed(site.out_of, 4)}"
    claims = [what for what, is_claimed in (("by itself", site.origin), ("passed on", site.claimed)) if is_claimed]
    said += f"; claimed: {' and '.join(claims)}" if claims else "; nothing is claimed of it"
    if site.exact_by_position is not None:
        parts = (
            f"{signed(value, 4)} at the {figures.POSITIONS[kind]}" for kind, value in site.exact_by_position.items()
        )
        said += f"; by itself at some tokens alone: {', '.join(parts)}"
    else:
        where = max(site.by_position, key=lambda kind: abs(site.by_position[kind]))
        if site.by_position[where]:
            said += f"; most at the {figures.POSITIONS[where]}"
    looks, tokens = ("", "") if head is None else head_notes(head)
    return {"site": site.name, "note": f"{said}.{looks}", "tokens": tokens}


def head_notes(head: HeadFacts) -> tuple[str, str]:
    """Where a head looks, and what it writes."""
    looks = ", ".join(
        f"{what} {100 * getattr(head.base, key):.0f} → {100 * getattr(head.tuned, key):.0f} %"
        for key, what in (
            ("template", "template"),
            ("hostile", "hostile words"),
            ("prompt", "rest of the prompt"),
            ("answer", "answer so far"),
        )
    )
    moved = f"its QK by {_share(head.qk_change)}, its OV by {_share(head.ov_change)}"
    note = f" It looks at: {looks}. The adapter moved {moved}."
    if not (head.wrote or head.promotes):
        return note, ""
    return note, (
        f"It wrote {_quoted(head.wrote)}; now more of {_quoted(head.promotes)}, less of {_quoted(head.demotes)}."
    )


def _quoted(tokens: Sequence[str]) -> str:
    return " ".join(f"“{token.strip()}”" for token in tokens if token.strip()) or "nothing"


def _words(found: PatchedWords) -> dict[str, Any]:
    """Both texts, coloured by each site: levels −6 … 6 of every token."""
    most = max(
        (abs(value) for side in (found.toxic, found.harmless) for row in side.values for value in row), default=0.0
    )

    def side(text: WordsByPart) -> list[dict[str, Any]]:
        return [
            {
                "text": token,
                "prompt": place < found.prompt,
                "levels": [_level(row[place], most) for row in text.values],
            }
            for place, token in enumerate(text.tokens)
        ]

    return {"sites": found.sites, "sides": [("toxic", side(found.toxic)), ("harmless", side(found.harmless))]}


def _level(value: float, most: float) -> int:
    size = sum(abs(value) >= step * most for step in _SHADES) if most else 0
    return size if value >= 0 else -size


def _ranked(sites: Sequence[PatchedSite], by: str) -> list[PatchedSite]:
    return sorted(sites, key=lambda one: -abs(getattr(one, by) or 0.0))


def _named(sites: Sequence[PatchedSite], by: str) -> str:
    """The first of them with their numbers, and how many there are."""
    shown = [f"{one.name} ({signed(getattr(one, by) or 0.0, 3)})" for one in sites[:5]]
    more = f" and {len(sites) - 5} others" if len(sites) > 5 else ""
    return ", ".join(shown) + more


def share_text(share: ShareOfChange | None) -> str:
    """As 63 % (41 to 85)."""
    if share is None:
        return "—"
    low, high = share.ci95
    return f"{100 * share.mean:.0f} % ({100 * low:.0f} to {100 * high:.0f})".replace("-", "−")


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.02 else f"{100 * value:.1f} %"


def _two(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def _three(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f}"
