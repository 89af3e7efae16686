"""What an interpretation found, for the page and the terminal: sentences and figures made of its stored numbers.

A sentence calls something a change only if the 95 % interval excludes zero and the p-value, corrected for the other
tests, is below .05. If there are too few data to tell, the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rewardlm.errors import RunError
from rewardlm.interpreting.findings import (
    AttributionComparison,
    DriftComparison,
    Estimate,
    FaithfulnessFacts,
    Interpretation,
    ModelFacts,
    SampleFacts,
    SimilarityComparison,
    Stratum,
)
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.reporting import causes, coloured_answers, flows, mechanistic
from rewardlm.reporting import interpretation_figures as figures
from rewardlm.reporting.headline import Part
from rewardlm.reporting.inside_verdict import verdicts
from rewardlm.reporting.intervals import direction, number_text, plain_text, points_text, share_text
from rewardlm.runs import Run
from rewardlm.typed import shown

KIND = "interpretation"

METHODS = {
    "input_x_gradient": "input × gradient",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}


def load(run: Run) -> Interpretation:
    """What an interpretation found. Raises RunError where it isn't finished, or was changed by hand."""
    found = run.load(KIND)
    try:
        return Interpretation.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise RunError(
            f"{run.path / KIND}.json: {where:.200} is {shown(first['input'])}: {first['msg']}; the file is of another "
            "version or was changed by hand: interpret again"
        ) from None


def looked_into(runs: Sequence[Run]) -> list[Path]:
    """The measurements that interpretations are about, each once, in their order."""
    # A stage of an experiment keeps paths relative to it.
    paths = [run.path.absolute().parent.parent / path for run in runs for path in run.setting("runs", list[str])]
    return list(dict.fromkeys(paths))


def visible(text: str) -> str:
    """A token with its white space made visible."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "→") or "∅"


def sections(results: Sequence[tuple[str, Interpretation]]) -> list[dict[str, Any]]:
    """What interpretation.html.j2 shows of each (label, interpretation)."""
    return [
        {
            "label": label,
            "result": result,
            "models": [model.label for model in result.models],
            "how": how_sampled(result),
            "coloured": coloured_answers.coloured(result),
            "scales": coloured_answers.scales(),
            "verdicts": verdicts(result),
            "sentences": sentences(result),
            "method": method_name(result),
            "tested": [said for said in (faithful_sentence(result), complete_sentence(result)) if said],
            "figures": _figures(result),
            "inside": mechanistic.section(result.inside, result.inside_notes),
            "causes": causes.section(result),
        }
        for label, result in results
    ]


def faithful_sentence(result: Interpretation) -> str | None:
    """Whether the attribution's method passed its test, with the numbers; None where it was not tested."""
    found = result.attribution.faithfulness
    if found is None:
        return None
    verdict = {
        True: "ranks words better than a random order",
        False: "was not shown to rank words better than a random order: don’t rest a claim on its shares",
        None: "was tested on too few prompts to say whether it ranks words better than a random order",
    }[found.passes]
    without, alone = found.comprehensiveness, found.sufficiency
    return (
        f"On {found.tokens} tokens {method_name(result)} {verdict}. Without the words that it ranks highest a token "
        f"loses {plain_text(without.method)} nats, without random ones {plain_text(without.random)} "
        f"(comprehensiveness, better by {number_text(without.better)}). With these words alone it loses "
        f"{plain_text(alone.method)}, with random ones alone {plain_text(alone.random)} (sufficiency, better by "
        f"{number_text(alone.better)})."
    )


def complete_sentence(result: Interpretation) -> str | None:
    """How well scores add up, and how many tokens were refused; None where the method promises no sum."""
    found = result.attribution.completeness
    if found is None:
        return None
    kept = found.tokens - found.refused
    text = f"{found.refused:,} of {found.tokens:,} explained tokens were refused, and have no shares"
    if found.refused:
        text += f" (the first: {found.reasons[0]})"
    if kept and found.largest_share is not None:
        text += (
            f". The scores of the others add up to what they must within {found.largest_gap:.2g} nats, and within "
            f"{found.largest_share:.1%} of it ({found.tolerance:.0%} are allowed); {found.steps:.0f} steps "
            f"in the median, {found.most_steps} at most"
        )
    return f"{text}."


def method_name(result: Interpretation) -> str:
    """What the attribution's method is called."""
    return METHODS.get(result.attribution.method, result.attribution.method)


def how_sampled(result: Interpretation) -> list[str]:
    """How answers and tokens were chosen, and what else a reader must know, in sentences."""
    sample = result.sample
    again = sample.redraw
    strata = "; ".join(
        f"{stratum.from_} → {stratum.to} {stratum.taken:,} of {stratum.of:,}{_again(stratum, again)}"
        for stratum in sample.strata
        if stratum.taken
    )
    found = [
        f"{sample.pairs:,} of {sample.of:,} pairs of a prompt and a sample were read, drawn by seed evenly over "
        f"how toxicity went from {sample.from_} to {sample.to} by {sample.scorer}: {strata}.",
        _chance(sample),
        "In means over all of them, each pair counts for as many of the run’s pairs as it stands for, so the means "
        "describe the whole run. The inside is read on these pairs without weights.",
        f"{sample.tokens_an_answer} tokens of each answer are explained, one from each of as many equal stretches.",
    ]
    if sample.reward_of:
        found.append(f"{sample.scorer} was the reward of {', '.join(sample.reward_of)}.")
    if sample.unscored:
        found.append(f"{sample.unscored:,} pairs that are not scored in every run were left out.")
    return [*found, *result.notes]


def _again(stratum: Stratum, again: Sequence[Sequence[float] | None] | None) -> str:
    row, column = BUCKETS.index(stratum.from_), BUCKETS.index(stratum.to)
    known = None if again is None else again[row]
    return "" if known is None else f" (by chance {flows.expected(known[column])})"


def _chance(sample: SampleFacts) -> str:
    """What a transition says, or doesn't."""
    if sample.redraw is None:
        return (
            f"{sample.from_} answered each prompt once, so how many of these transitions are chance is not known: "
            "in a second draw of the same model most toxic answers become harmless. Read no transition as a finding."
        )
    return (
        f"“By chance” says how many of the run’s pairs a second draw of {sample.from_} itself would send the same way. "
        f"Only the difference is {sample.to}’s doing."
    )


def sentences(result: Interpretation) -> list[dict[str, Any]]:
    """A row per question and model: ``{"question", "model", "parts"}``, the parts as in headlines."""
    rows = []
    similar = {entry.to: entry for entry in (result.similarity.comparisons if result.similarity else ())}
    above = {entry.label: entry.above_null for entry in (result.similarity.models if result.similarity else ())}
    drifts = {entry.to: entry for entry in result.drift.comparisons}
    readings = {entry.to: entry for entry in result.attribution.comparisons}
    base = result.models[0].label
    for facts in result.models[1:]:
        model = facts.label
        reads = _reads(readings.get(model), facts, result.attribution.faithfulness)
        reads += _about(above.get(model), similar.get(model))
        if (drift := drifts.get(model)) is None:
            unlearned = where = [_not_known(facts, "drift")]
        else:
            unlearned, where = _unlearned(drift), _parts_where(drift)
        rows.append({"question": f"Does {model} still read the prompt?", "model": model, "parts": reads})
        rows.append({"question": f"What has {model} unlearned?", "model": model, "parts": unlearned})
        rows.append({"question": f"Where does {model} part from {base}?", "model": model, "parts": where})
    return rows


def _not_known(facts: ModelFacts, part: str) -> Part:
    return f"Not known: {facts.left_out[part]}. ", False


def _reads(reading: AttributionComparison | None, facts: ModelFacts, faithful: FaithfulnessFacts | None) -> list[Part]:
    """Does it rest on the prompt's words?"""
    if reading is None:
        return [_not_known(facts, "attribution")]
    change = reading.same_tokens.prompt_change
    way = direction(change)
    if way is None:
        parts: list[Part] = [("Too few answers to say how much it rests on the prompt’s words. ", False)]
    else:
        verdict = {
            1: "it rests more on the prompt’s words",
            -1: "it rests less on the prompt’s words",
            0: "it was not shown to rest more or less on the prompt’s words",
        }[way]
        parts = [
            (f"On {reading.from_}’s own answers ", False),
            (verdict, True),
            (f" ({points_text(change)} of all attribution). ", False),
        ]
        if faithful is not None and not faithful.passes:
            parts.append(
                (
                    "The method’s shares were not shown to be better than random ones here, so don’t rely on this. ",
                    True,
                )
            )
    return parts


def _about(above: Estimate | None, similar: SimilarityComparison | None) -> list[Part]:
    """Are its answers about their prompts?"""
    if above is None:
        return [("Similarity with the prompt was not measured.", False)]
    about = {
        1: "Its own answers are about their prompts",
        0: "Its own answers were not shown to be closer to their prompts than to others",
        -1: "Its own answers are further from their prompts than from others",
        None: "Too few answers to say whether they are about their prompts",
    }[direction(above)]
    parts: list[Part] = [(about, direction(above) != 1)]
    parts.append((f": similarity above the shuffled null {number_text(above)}", False))
    if similar is not None:
        moved = {1: ", more than", -1: ", less than", 0: ", not measurably different from", None: ", compared with"}
        change = similar.above_null_change
        parts.append((f"{moved[direction(change)]} {similar.from_}’s ({number_text(change)})", direction(change) == -1))
    parts.append((".", False))
    return parts


def _unlearned(drift: DriftComparison) -> list[Part]:
    check, source = drift.toxic_check, drift.from_
    toxic, other, difference = check.toxic, check.other, check.difference
    if not toxic.n or not other.n:
        kind = "toxic" if not toxic.n else "other"
        return [(f"{source} has no {kind} answers in the sample, so the check can’t be made.", False)]
    verdict = {
        -1: f"{source}’s toxic answers lost more than its others: toxic text is what changed most",
        1: f"{source}’s toxic answers lost less than its others: toxic text is not what changed most",
        0: f"{source}’s toxic answers were not shown to lose more than its others: the whole way of answering may have "
        "changed, and nothing shows that toxicity itself was unlearned",
        None: "too few answers to compare toxic ones with others",
    }[direction(difference)]
    return [
        (f"A token of a toxic answer changed by {number_text(toxic)} nats (n = {toxic.n}), one of another by ", False),
        (f"{number_text(other)} (n = {other.n}); the difference is {number_text(difference)}: ", False),
        (verdict, True),
        (".", False),
    ]


def _parts_where(drift: DriftComparison) -> list[Part]:
    parting = drift.parting
    by_kl, by_choice = parting.by_kl, parting.by_first_choice
    kl, same = drift.on_baseline.kl, drift.on_baseline.same_first_choice
    where = "never in this sample"
    if by_kl.quartiles:
        where = f"at token {by_kl.quartiles[1] + 1:.0f} (median of the {by_kl.parted} of {by_kl.of} that part)"
    choice = "never"
    if by_choice.quartiles:
        choice = f"at token {by_choice.quartiles[1] + 1:.0f} ({by_choice.parted} of {by_choice.of})"
    return [
        (f"The divergence first exceeds {parting.threshold_kl:g} nats ", False),
        (where, True),
        (
            f"; the first choice first differs {choice}. Over all tokens the divergence is {plain_text(kl)} nats and ",
            False,
        ),
        (f"the first choice is the same in {share_text(same)}.", False),
    ]


def _figures(result: Interpretation) -> dict[str, Any]:
    bands = result.attribution.bands
    last = result.attribution.models[-1].label

    def over(quantity: str) -> list[tuple[str, figures.AnyBand]]:
        return [(band.label, band) for band in bands if band.quantity == quantity and band.transition == "all"]

    def by_transition(quantity: str) -> list[tuple[str, figures.AnyBand]]:
        return [
            (f"{band.transition} ({band.answers})", band)
            for band in bands
            if band.quantity == quantity and band.transition != "all" and band.label == last
        ]

    return {
        "check": figures.check_figure(result.drift.comparisons),
        "kl": figures.band_figure([(entry.to, entry.kl_along) for entry in result.drift.comparisons], "nats", scale=1),
        "prompt": figures.band_figure(over("prompt"), "share of attribution, %", scale=100),
        "entropy": figures.band_figure(over("entropy_bits"), "bits", scale=1),
        "prompt_by_transition": figures.band_figure(by_transition("prompt"), "share of attribution, %", scale=100),
        "entropy_by_transition": figures.band_figure(by_transition("entropy_bits"), "bits", scale=1),
        "last": last,
        "similarity": figures.similarity_figure(result.similarity.models) if result.similarity else None,
    }
