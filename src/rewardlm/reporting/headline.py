"""What a comparison says, in words: which share fell or rose, by how much, how surely, and by whose judgement.

The sentences are computed from the numbers alone. A change is called a fall or a rise only where its 95 % interval
leaves zero out and its p-value, corrected for the other tests that are read with it, is below .05. A judge that was the
reward in training is never quoted without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from rewardlm.measuring.audit import SHARE, same_judge
from rewardlm.measuring.primary import METRICS
from rewardlm.measuring.refusals import ERRORS
from rewardlm.stats import LEVEL

Verdict = Literal["fell", "rose", "unclear", "nothing"]
Part = tuple[str, bool]  # a piece of text, and whether it is what the reader must not miss

_SPLITS = {
    "all": "all prompts",
    "toxic_prompts": "toxic prompts",
    "nontoxic_prompts": "non-toxic prompts",
    "challenging": "challenging prompts",
    "comparable": "comparable answers",
}


_METRICS = {
    "toxic_fraction": "toxic share",
    "mean": "mean score",
    "expected_max_toxicity": "expected maximum toxicity",
    "toxicity_probability": "toxicity probability",
}
_OF_PROMPTS = ("expected_max_toxicity", "toxicity_probability")
_OF = {
    "all": "of all answers",
    "toxic_prompts": "of answers to toxic prompts",
    "nontoxic_prompts": "of answers to non-toxic prompts",
    "challenging": "of answers to challenging prompts",
    "comparable": "of comparable answers",
}


def primary_text(result: Mapping[str, Any]) -> str | None:
    """What the primary outcome is and when it was fixed; None for a comparison that has none."""
    primary = result.get("primary")
    if not primary:
        return None
    return (
        f"Primary outcome: the {_METRICS[primary['metric']]} {_OF[primary['split']]} by {primary['scorer']}. "
        f"{result['primary_fixed']['sentence']}"
    )


def split_name(split: str) -> str:
    """What a split is called on the page."""
    return _SPLITS.get(split, split)


def split_of(split: str) -> str:
    """Whose share it is: "of answers to toxic prompts"."""
    return _OF.get(split, split)


@dataclass(frozen=True, slots=True)
class Finding:
    """One paired comparison: of toxic shares, or of another ``metric``. ``delta`` and its interval are fractions, to
    minus from.

    ``n`` counts pairs of answers, or prompts where the metric is of prompts; ``shares`` are the toxic shares of these
    pairs. ``p_adjusted`` is ``p_value`` corrected for the tests that are read with it; None: there was no correction.
    ``primary`` says whether this is the outcome that was to count. ``is_reward`` says whether one of the two models was
    trained on this judge, None where nobody recorded that; ``reward_of`` names all models of the page that were.
    ``is_relative``: the judge taught the reward of one of them, was taught by it or has a teacher in common with it, or
    nobody recorded whether.
    """

    baseline: str
    model: str
    scorer: str
    split: str
    n: int
    delta: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    shares: tuple[float | None, float | None]
    is_reward: bool | None
    reward_of: tuple[str, ...]
    is_relative: bool = False
    p_adjusted: float | None = None
    primary: bool = False
    metric: str = "toxic_fraction"

    @property
    def counted(self) -> str:
        """What ``n`` counts."""
        return "prompts" if self.metric in _OF_PROMPTS else "pairs"

    @property
    def verdict(self) -> Verdict:
        if self.delta is None or self.n == 0:
            return "nothing"
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1] or self.only_uncorrected:
            return "unclear"
        return "fell" if self.delta < 0 else "rose"

    @property
    def only_uncorrected(self) -> bool:
        """Whether the p-value that counts is not below .05: the adjusted one where there is one."""
        p_value = self.p_value if self.p_adjusted is None else self.p_adjusted
        return p_value is not None and p_value >= LEVEL


def findings(
    result: Mapping[str, Any], rewards: Mapping[str, Sequence[str] | None], metric: str = "toxic_fraction"
) -> list[Finding]:
    """All comparisons of ``result`` by ``metric``; ``rewards`` gives the scorers that each model was trained on."""
    models = {model["label"]: model for model in result["models"]}
    of = METRICS[metric]
    related = relatives(result)
    found = []
    for comparison in result["comparisons"]:
        baseline, model, scorer, split = (comparison[key] for key in ("from", "to", "scorer", "split"))
        interval = comparison.get(f"{of}delta_ci95")
        found.append(
            Finding(
                baseline=baseline,
                model=model,
                scorer=scorer,
                split=split,
                n=comparison["equal_samples"]["prompts"] if metric in _OF_PROMPTS else comparison["n"],
                delta=comparison[f"{of}delta"],
                interval=(interval[0], interval[1]) if interval and None not in interval else None,
                p_value=comparison.get(f"{of}p_value"),
                shares=(comparison.get("before"), comparison.get("after")),
                is_reward=was_reward(scorer, [rewards.get(baseline), rewards.get(model)]),
                reward_of=tuple(label for label in models if was_reward(scorer, [rewards.get(label)])),
                is_relative=any(scorer == judge and label in (baseline, model) for judge, label in related),
                p_adjusted=comparison.get(f"{of}p_adjusted"),
                primary=result.get("primary") == {"scorer": scorer, "split": split, "metric": metric},
                metric=metric,
            )
        )
    return found


def relatives(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(judge, model) where the judge is a relative of the model's reward, or may be one, as the audit found."""
    return {
        (warning["scorer"], warning["model"])
        for warning in result.get("warnings", [])
        if warning["code"] == "judge_taught_reward"
    }


def was_reward(scorer: str, rewards: Sequence[Sequence[str] | None]) -> bool | None:
    """Whether ``scorer`` is among any of the lists; None if it is in none and one list is unknown."""
    if any(same_judge(scorer, reward) for names in rewards for reward in names or ()):
        return True
    return None if any(names is None for names in rewards) else False


def sentences(found: Sequence[Finding], scorers: Sequence[str]) -> list[list[Part]]:
    """A paragraph for every model compared, which begins with the primary outcome.

    Where there is none among ``found``, with all answers by the first of ``scorers`` that was not the model's reward
    and is not known to be a relative of it.
    """
    paragraphs = []
    for baseline, model in dict.fromkeys((finding.baseline, finding.model) for finding in found):
        every = [finding for finding in found if (finding.baseline, finding.model) == (baseline, model)]
        mine = {(finding.scorer, finding.split): finding for finding in every if finding.metric == "toxic_fraction"}
        judges = [scorer for scorer in scorers if (scorer, "all") in mine]
        judges.sort(key=lambda scorer: bool(mine[scorer, "all"].is_reward) or mine[scorer, "all"].is_relative)
        if not judges:
            continue
        first = next((finding for finding in every if finding.primary), mine[judges[0], "all"])
        judges.sort(key=lambda scorer: scorer != first.scorer)
        parts = _main_sentence(first)
        if first.metric != "toxic_fraction":
            first = mine.get((first.scorer, first.split), mine[judges[0], "all"])
            parts += [(" ", False), *_main_sentence(first)[1:]]
        for split, where in _WHERE.items():
            if split != first.split and (judges[0], split) in mine:
                parts += _short_sentence(where, mine[judges[0], split])
        for scorer in judges[1:]:
            main = mine.get((scorer, first.split), mine[scorer, "all"])
            role = ""
            if main.is_reward:
                role = f", the reward that {model} was trained on,"
            elif main.reward_of:
                role = f" (the reward of {', '.join(main.reward_of)})"
            there = "" if main.split == "all" else f" {_WHERE.get(main.split, 'there').lower()}"
            parts += _short_sentence(f"By {scorer}{role}{there}", main)
        if mine[judges[0], "all"].is_reward:
            parts.append((" No judge here is independent of the training.", True))
        elif any(mine[scorer, "all"].is_reward for scorer in judges):
            parts.append(
                (
                    " A judge that was the reward shows that training reached its goal, not that the goal was right.",
                    False,
                )
            )
        paragraphs.append(parts)
    return paragraphs


_WHERE = {"all": "On all answers", "toxic_prompts": "On toxic prompts", "comparable": "On comparable answers"}


def _main_sentence(finding: Finding) -> list[Part]:
    """ "By J, which was …, the toxic share fell by 3.7 percentage points (…), from 13.0 % … to 9.0 % …"."""
    role = {
        True: f", the reward that {finding.model} was trained on,",
        False: f", the reward of {', '.join(finding.reward_of)} but not of {finding.model},"
        if finding.reward_of
        else ", which was not a reward in training,",
        None: " (whether it was a reward in training is not recorded)",
    }[finding.is_reward]
    parts: list[Part] = [
        (f"{finding.baseline} → {finding.model}. ", True),
        (f"By {finding.scorer}{role} the {_METRICS[finding.metric]} {_OF[finding.split]} ", False),
    ]
    if finding.verdict == "nothing" or finding.delta is None:
        return [*parts, ("can’t be compared", True), (": no pair of answers was scored in both.", False)]
    evidence = f"95 % CI {interval_text(finding.interval)}"
    if finding.p_value is not None:
        evidence += f"; {_p_values(finding)}"
    shares = ""
    if None not in finding.shares and finding.metric == "toxic_fraction":
        before, after = map(percent, finding.shares)
        shares = f", from {before} of {finding.baseline}’s answers in these pairs to {after} of {finding.model}’s"
    evidence = f" ({evidence}; {finding.n:,} {finding.counted}){shares}"
    if finding.verdict != "unclear":
        size = f"{100 * abs(finding.delta):.1f}"
        return [*parts, (f"{finding.verdict} by {size} percentage points", True), (f"{evidence}.", False)]
    return [
        *parts,
        (f"changed by {points(finding.delta)} percentage points{evidence}: {_doubt(finding)}, so this is ", False),
        ("not significant at this size", True),
        (".", False),
    ]


def _short_sentence(opening: str, finding: Finding) -> list[Part]:
    if finding.verdict == "nothing" or finding.delta is None:
        return [(f" {opening} it can’t be compared.", False)]
    interval = interval_text(finding.interval)
    if finding.verdict == "unclear":
        return [
            (f" {opening} the change is ", False),
            ("not significant", True),
            (f" ({points(finding.delta)}; {interval}{_correction(finding)}).", False),
        ]
    size = f"{100 * abs(finding.delta):.1f}"
    return [(f" {opening} it ", False), (f"{finding.verdict} by {size} points", True), (f" ({interval}).", False)]


def _doubt(finding: Finding) -> str:
    if finding.interval is None:
        return "there is no interval"
    if finding.interval[0] <= 0 <= finding.interval[1]:
        return "the interval includes zero"
    return "corrected for the tests that are read with it, it could be chance"


def _p_values(finding: Finding) -> str:
    """The p-value of the interval, and beside it the adjusted one where that is another."""
    return p_values_text(finding.p_value, finding.p_adjusted)


def p_values_text(p_value: float | None, p_adjusted: float | None) -> str:
    """ "p = 0.012, adjusted p = 0.036", or the one where there is no other."""
    if p_adjusted is None or p_adjusted == p_value:
        return p_text(p_value)
    return f"{p_text(p_value)}, adjusted {p_text(p_adjusted)}"


def _correction(finding: Finding) -> str:
    """Why a change is not significant whose interval leaves zero out; nothing where it doesn't."""
    if finding.interval is None or finding.interval[0] <= 0 <= finding.interval[1]:
        return ""
    return f"; {_p_values(finding)}"


def maxima_text(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Of how many answers a prompt EMT and TP are on all prompts, and how many prompts have fewer: " (4; …)"."""
    found = []
    for entry in comparisons:
        equal = entry.get("equal_samples") or {}
        if entry["split"] == "all" and equal.get("samples"):
            left_out = f"; {equal['left_out']:,} prompts with fewer, or none, are left out" if equal["left_out"] else ""
            found.append(f"{entry['to']}: {equal['samples']}{left_out}")
    return f" ({', '.join(found)})" if found else ""


def equal_samples_text(models: Sequence[Mapping[str, Any]], split: str, scorer: str | None = None) -> str:
    """What EMT and TP of a table of ``models`` are of, where that isn't all that is scored; of one judge, or of all."""
    found = {}
    for model in models:
        for name, splits in model["scorers"].items():
            equal = splits[split].get("equal_samples") or {}
            if scorer in (None, name) and equal.get("samples"):
                other = equal["expected_max_toxicity"] != splits[split]["expected_max_toxicity"]
                if other or equal["left_out"]:
                    found[name] = equal
    if not found:
        return ""
    listed = []
    for name, equal in found.items():
        left_out = f" ({equal['left_out']:,} prompts with fewer, or none, left out)" if equal["left_out"] else ""
        listed.append(f"{equal['samples']} by {name}{left_out}")
    return f"EMT and TP are of the prompts with as many scored answers in every model: {', '.join(listed)}."


_LOOKED_AT = {"similarity": "similarity", "perplexity": "perplexity", "counter_narrative": "counter-narratives"}


def quality_notes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who says which answers are counter-narratives, how often that judge is wrong, and what is known of a sample of
    the answers alone: nothing where there is nothing to say.
    """
    judges = {}
    for model in models:
        judge = model.get("pair_judge")
        if judge and model["quality"].get("counter_narrative_fraction") is not None:
            judges[judge["revision"]] = judge
    notes = [_pair_judge_note(judge) for judge in judges.values()]
    if len(notes) > 1:
        notes.append("These are different judges: shares of counter-narratives by one and by another don’t compare.")
    notes += _cut_off_notes(models)
    notes += [note for model in models for note in _corrected(model)]
    notes += [_counter_change(model) for model in models if model.get("counter_narrative_change")]
    notes += [_refusal_note()] if any(model["quality"].get("refusal_fraction") for model in models) else []
    notes += [note for model in models for note in _sample_notes(model)]
    return notes


def _cut_off_notes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many answers were cut off, where that is more than a few: one sentence for all models of one limit."""
    by_limit: dict[tuple[int | None, str | None], list[tuple[str, float]]] = {}
    for model in models:
        share = model["quality"].get("truncated_fraction")
        if share is not None:
            limit = (model.get("max_new_tokens"), model.get("preset"))
            by_limit.setdefault(limit, []).append((model["label"], share))
    notes = []
    for (tokens, preset), shares in by_limit.items():
        if max(share for _, share in shares) <= SHARE:
            continue
        named = ", ".join(f"{percent(share)} of {label}’s answers" for label, share in shares)
        where = f"after {tokens:,} tokens, before their end" if tokens else "before their end"
        meaning = (
            "That is the protocol of RealToxicityPrompts, which judges continuations of 20 tokens."
            if preset == "rtp-paper"
            else "Of these the judges read the beginning alone: toxicity that would have followed isn’t counted."
        )
        notes.append(f"Cut off {where}: {named}. {meaning}")
    return notes


def share_text(quality: Mapping[str, Any]) -> str:
    """A model's share of counter-narratives, and in brackets that of the same answers under shuffled prompts."""
    share, null = quality.get("counter_narrative_fraction"), quality.get("counter_narrative_null")
    return percent(share) if share is None or null is None else f"{percent(share)} ({percent(null)})"


def shares_text(interval: Sequence[float] | None) -> str:
    """An interval of shares: "20.1 % to 51.0 %"."""
    return "—" if interval is None else " to ".join(map(percent, interval))


def _corrected(model: Mapping[str, Any]) -> list[str]:
    quality, notes = model["quality"], []
    share, null = quality.get("counter_narrative_fraction"), quality.get("counter_narrative_null")
    if share is not None and null is not None:
        notes.append(
            f"{model['label']}: {percent(share)} of the answers to toxic prompts are called counter-narratives; put "
            f"under each other’s prompts, {percent(null)} of the same answers still are. That much is tone."
        )
    corrected, interval = (quality.get(f"counter_narrative_corrected{of}") for of in ("", "_ci95"))
    if corrected is not None:
        within = (
            f"{shares_text(interval)}, 95 %, the judge’s own uncertainty included"
            if interval
            else "one prompt has no interval"
        )
        notes.append(
            f"Corrected for the judge’s known errors, {model['label']}’s share is {percent(corrected)} ({within})."
        )
    if corrected is not None and quality.get("counter_narrative_errors_fit") is False:
        notes.append(
            "But those errors don’t fit these answers: "
            + (
                "fewer are called counter-narratives than the judge’s false alarms alone would be, so it raises fewer "
                "here, and the interval goes up to the share if it raises none."
                if corrected < 0.5
                else "more are called counter-narratives than the judge finds elsewhere, so it misses fewer here, and "
                "the interval goes down to the share if it misses none."
            )
        )
    return notes


def _refusal_note() -> str:
    found = [
        f"{percent(errors.recall)} ({shares_text(errors.recall_ci95)}) of the {errors.refusals} refusals among "
        f"{errors.on}, and of what they called one {percent(errors.precision)} "
        f"({shares_text(errors.precision_ci95)}) were"
        for errors in ERRORS
    ]
    return f"Refusals are found by rules and words of text, which err: they found {'; '.join(found)} (95 % intervals)."


def _counter_change(model: Mapping[str, Any]) -> str:
    change = model["counter_narrative_change"]
    return (
        f"Counter-narratives from {change['from']} to {model['label']}: {points(change['delta'])} percentage points "
        f"(95 % CI {interval_text(change['delta_ci95'])}; "
        f"{p_values_text(change['p_value'], change.get('p_adjusted'))}; {change['n']:,} pairs of "
        f"answers to toxic prompts{_over_null(change)})."
    )


def _over_null(change: Mapping[str, Any]) -> str:
    delta = change.get("delta_over_null")
    if delta is None:
        return ""
    return (
        f"; over what shuffled prompts give, {points(delta)}, {interval_text(change['delta_over_null_ci95'])}, "
        f"{p_values_text(change['p_value_over_null'], change.get('p_adjusted_over_null'))}"
    )


def _sample_notes(model: Mapping[str, Any]) -> list[str]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size in (model.get("quality_sample") or {}).items():
        if size["answers"] < size["of"]:
            by_size.setdefault((size["answers"], size["of"]), []).append(_LOOKED_AT[name])
    return [
        f"{model['label']}: {' and '.join(', '.join(names).rsplit(', ', 1))} of {answers:,} among {of:,} answers, "
        "drawn by seed."
        for (answers, of), names in by_size.items()
    ]


def _pair_judge_note(judge: Mapping[str, Any]) -> str:
    name, error = PurePath(judge["name"]).name, judge.get("error")
    if not error:
        return f"Counter-narratives by {name}, whose errors nobody has measured."
    return (
        f"Counter-narratives by {name}, which errs: of {error['n']:,} pairs that it hadn’t seen ({error['on']}, each "
        f"fourth a counter-narrative) it called {percent(error['accuracy'])} what they are, found "
        f"{percent(error['recall'])} of the counter-narratives, and {percent(error['precision'])} of those that it "
        "found were some."
    )


def percent(value: float | None) -> str:
    """A fraction as "13.0 %", or a dash where there is none."""
    return "—" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of fractions as signed percentage points: "−3.1"."""
    if value is None:
        return "—"
    rounded = round(100 * value, 1)
    return f"{'−' if rounded < 0 else '+' if rounded > 0 else '±'}{abs(rounded):.1f}"


def interval_text(interval: Sequence[float | None] | None) -> str:
    """An interval of differences in percentage points: "−5.2 to −1.0"."""
    if not interval or None in interval:
        return "—"
    return " to ".join(_end(end) for end in interval if end is not None)


def _end(value: float) -> str:
    """As ``points``, but with the sign of the value itself: an end just below zero must not seem to hold it."""
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return f"{sign}{abs(round(100 * value, 1)):.1f}"


def p_text(value: float | None) -> str:
    """A p-value as it is read: "p = 0.012", "p < 0.001"."""
    text = p_number(value)
    return f"p {text}" if text.startswith("<") else text if text == "—" else f"p = {text}"


def p_number(value: float | None) -> str:
    """Its number alone: "0.012", "< 0.001". Just below .05 it has as many digits as it takes to see that."""
    if value is None or not math.isfinite(value):
        return "—"
    if value < 0.001:
        return "< 0.001"
    texts = (f"{value:.{digits}f}" for digits in range(3, 18))
    return next(text for text in texts if (float(text) < LEVEL) == (value < LEVEL))
