"""What changed inside each tuned model, in a few plain sentences that a person can quote.

They say less than the numbers below them, and never more: nothing whose 95 % interval includes zero is called a change.
"""

from __future__ import annotations

from rewardlm.interpreting.findings import AdapterVerdict, DriftComparison, Inside, Interpretation, ModelFacts
from rewardlm.reporting.intervals import direction

_VECTORS = {
    "unclear": "Its answers were not shown to be less toxic, so there is no change of toxicity to explain. ",
    "rewritten": "The weights that write toxic words were rewritten: toxicity was unlearned there. ",
    "avoided": "The weights that write toxic words are still there, but are set off less: toxicity was bypassed, "
    "not unlearned. ",
    "untouched": "The weights that write toxic words are still there and push as before: toxicity was bypassed, not "
    "unlearned, and the change lies elsewhere. ",
    "cannot_tell": "Whether the weights that write toxic words were rewritten or only bypassed can’t be told here. ",
}


def verdicts(result: Interpretation) -> list[dict[str, str]]:
    """An entry per tuned model: ``{"model", "text"}``; the text goes on after "What changed inside MODEL:"."""
    above = {entry.label: entry.above_null for entry in (result.similarity.models if result.similarity else ())}
    drifts = {drift.to: drift for drift in result.drift.comparisons}
    found = []
    for facts in result.models[1:]:
        if (drift := drifts.get(facts.label)) is not None:
            text = [_how_far(drift), _aim(drift), _vectors(result.inside, facts)]
        else:
            text = [f"its drift is not known, because {facts.left_out['drift']}. "]
        if facts.label in above:
            about = {
                1: "Its answers are about their prompts.",
                0: "Its answers were not shown to be about their own prompts more than about others.",
                -1: "Its answers are further from their own prompts than from others.",
                None: "Too few answers were read to say whether they are about their prompts.",
            }[direction(above[facts.label])]
            text.append(about)
        found.append({"model": facts.label, "text": "".join(text).strip()})
    return found


def _how_far(drift: DriftComparison) -> str:
    same, base = drift.on_baseline.same_first_choice.mean, drift.from_
    if same is None:
        return f"no answer of {base} was read. "
    return (
        f"reading {base}’s answers, it agrees with {base} on the likeliest next token {100 * same:.0f} % of the time. "
    )


def _aim(drift: DriftComparison) -> str:
    """Was it toxic text that changed?"""
    check, base = drift.toxic_check, drift.from_
    if not check.toxic.n or not check.other.n:
        kind = "toxic" if not check.toxic.n else "harmless"
        return f"{base} gave no {kind} answers to compare with, so nothing shows whether toxicity was the target. "
    return {
        -1: f"{base}’s toxic answers became less likely than its others did: the change is aimed at toxic text. ",
        1: f"{base}’s toxic answers lost less than its others: the change is not aimed at toxic text. ",
        0: "The whole way of answering changed, as far as these answers can tell: toxic ones were not shown to lose "
        "more than others. ",
        None: "Too few answers were read to say whether toxic ones lost more than others. ",
    }[direction(check.difference)]


def _vectors(inside: Inside | None, facts: ModelFacts) -> str:
    verdict: AdapterVerdict | None = None if inside is None else inside.verdicts.get(facts.label)
    if "inside" in facts.left_out:
        return f"Its weights were not followed, because {facts.left_out['inside']}. "
    if verdict is None or verdict.kind is None:
        return "Its weights were not followed, so where the change sits is not known. "
    where = {
        "localised": f"The change of preference sits in {verdict.fewest_layers} of {verdict.n_layers} layers. ",
        "distributed": f"The change of preference is spread over the layers: {verdict.fewest_layers} of "
        f"{verdict.n_layers} carry 80 % of it. ",
    }
    return _VECTORS[verdict.kind] + ("" if verdict.spread is None else where[verdict.spread])
