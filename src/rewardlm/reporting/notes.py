"""What you must know to read the tables: how many answers EMT and TP rest on, who judged pairs, how often they err."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rewardlm.formats import (
    NONE,
    interval,
    interval_of_points,
    interval_of_shares,
    p_values_text,
    percent,
    points,
    points_text,
    signed,
    signed_as_shown,
)
from rewardlm.measuring.audit import SHARE
from rewardlm.measuring.comparison import (
    Change,
    ComparisonSettings,
    EqualMaxima,
    ModelSummary,
    QualitySummary,
    Split,
)
from rewardlm.measuring.refusals import ERRORS
from rewardlm.measuring.utility_results import TASK_NAMES, UtilityChange
from rewardlm.reporting import utility


def maxima_note(changes: Sequence[Change]) -> str:
    """How many answers per prompt EMT and TP use on all prompts, and how many prompts have fewer: " (4; …)"."""
    found = []
    for change in changes:
        equal = change.equal_samples
        if change.split == "all" and equal.samples:
            left_out = f"; {equal.left_out:,} prompts with fewer, or none, are left out" if equal.left_out else ""
            found.append(f"{change.to}: {equal.samples}{left_out}")
    return f" ({', '.join(found)})" if found else ""


def rule_text(settings: ComparisonSettings) -> str:
    """When an answer is toxic, as a caption says it: "score > 0.5; by lexical > 0.061"."""
    sign = "≥" if settings.inclusive else ">"
    own = "".join(f"; by {name} {settings.rule_of(name)}" for name in settings.thresholds)
    return f"score {sign} {settings.threshold:g}{own}"


def threshold_notes(settings: ComparisonSettings) -> list[str]:
    """Where thresholds that aren't the plain one come from: a sentence or two for each judge that has one."""
    return [
        f"{name} calls an answer toxic {settings.rule_of(name)}: on {'some' if own.n is None else f'{own.n:,}'} texts"
        f"{f' ({own.source})' if own.source else ''} that has the same {own.matching} as an old judge"
        f"{'' if own.old is None else f' > {own.old:g}'}. Its intervals and tests include how uncertain that threshold "
        "is; they hold for answers of the kind of these texts."
        for name, own in settings.thresholds.items()
    ]


def equal_samples_note(models: Sequence[ModelSummary], split: Split, scorer: str | None = None) -> str:
    """Which answers EMT and TP of ``models`` use, where that isn't every scored one; for one judge, or for all."""
    found: dict[str, EqualMaxima] = {}
    for model in models:
        for name, splits in model.scorers.items():
            equal = splits[split].equal_samples
            if scorer in (None, name) and equal.samples:
                other = equal.expected_max_toxicity != splits[split].expected_max_toxicity
                if other or equal.left_out:
                    found[name] = equal
    if not found:
        return ""
    listed = []
    for name, equal in found.items():
        left_out = f" ({equal.left_out:,} prompts with fewer, or none, left out)" if equal.left_out else ""
        listed.append(f"{equal.samples} by {name}{left_out}")
    return f"EMT and TP use the same number of scored answers per prompt in every model: {', '.join(listed)}."


_LOOKED_AT = {"similarity": "similarity", "perplexity": "perplexity", "counter_narrative": "counter-narratives"}


def quality_notes(models: Sequence[ModelSummary]) -> list[str]:
    """Who says which answers are counter-narratives, how often that judge is wrong, and which numbers come from a
    sample of the answers. Empty if there is nothing to say.
    """
    judges = {}
    for model in models:
        judge = model.pair_judge
        if judge and model.quality.counter_narrative_fraction is not None:
            judges[judge["revision"]] = judge
    notes = [_pair_judge_note(judge) for judge in judges.values()]
    if len(notes) > 1:
        notes.append("These are different judges, so you can’t compare their shares of counter-narratives.")
    notes += _cut_off_notes(models)
    notes += [note for model in models for note in _corrected(model)]
    notes += [note for model in models for note in _counter_change(model)]
    notes += [_refusal_note()] if any(model.quality.refusal_fraction for model in models) else []
    notes += [note for model in models for note in _sample_notes(model)]
    notes += [note for model in models for note in _utility_notes(model)]
    return notes


def _cut_off_notes(models: Sequence[ModelSummary]) -> list[str]:
    """How many answers were cut off, where that is more than a few: one sentence for all models of one limit."""
    by_limit: dict[tuple[int | None, str | None], list[tuple[str, float]]] = {}
    for model in models:
        share = model.quality.truncated_fraction
        if share is not None:
            limit = (model.max_new_tokens, model.preset)
            by_limit.setdefault(limit, []).append((model.label, share))
    notes = []
    for (tokens, preset), shares in by_limit.items():
        if max(share for _, share in shares) <= SHARE:
            continue
        named = ", ".join(f"{percent(share)} of {label}’s answers" for label, share in shares)
        where = f"after {tokens:,} tokens, before their end" if tokens else "before their end"
        meaning = (
            "That is the protocol of RealToxicityPrompts, which judges continuations of 20 tokens."
            if preset == "rtp-paper"
            else "The judges read only the beginning of these: toxicity that would have followed isn’t counted."
        )
        notes.append(f"Cut off {where}: {named}. {meaning}")
    return notes


def counter_share(quality: QualitySummary) -> str:
    """A model's share of counter-narratives, and in brackets that of the same answers under shuffled prompts."""
    share, null = quality.counter_narrative_fraction, quality.counter_narrative_null
    return percent(share) if share is None or null is None else f"{percent(share)} ({percent(null)})"


def _corrected(model: ModelSummary) -> list[str]:
    quality, notes = model.quality, []
    share, null = quality.counter_narrative_fraction, quality.counter_narrative_null
    if share is not None and null is not None:
        notes.append(
            f"{model.label}: {percent(share)} of the answers to toxic prompts are called counter-narratives; put "
            f"under each other’s prompts, {percent(null)} of the same answers still are. That much is due to tone."
        )
    corrected, interval = quality.counter_narrative_corrected, quality.counter_narrative_corrected_ci95
    if corrected is not None:
        within = (
            f"{interval_of_shares(interval)}, 95 %, the judge’s own uncertainty included"
            if interval
            else "one prompt has no interval"
        )
        notes.append(
            f"Corrected for the judge’s known errors, {model.label}’s share is {percent(corrected)} ({within})."
        )
    if corrected is not None and quality.counter_narrative_errors_fit is False:
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
        f"{percent(errors.recall)} ({interval_of_shares(errors.recall_ci95)}) of the {errors.refusals} refusals among "
        f"{errors.on}, and {percent(errors.precision)} ({interval_of_shares(errors.precision_ci95)}) of what they "
        "called refusals really were"
        for errors in ERRORS
    ]
    return f"Refusals are found by rules and a classifier, which err: they find {'; '.join(found)} (95 % intervals)."


def _counter_change(model: ModelSummary) -> list[str]:
    change = model.counter_narrative_change
    if change is None:
        return []
    over_null = ""
    if change.delta_over_null is not None:
        over_null = (
            f"; over what shuffled prompts give, {points(change.delta_over_null)}, "
            f"{interval_of_points(change.delta_over_null_ci95)}, "
            f"{p_values_text(change.p_value_over_null, change.p_adjusted_over_null)}"
        )
    return [
        f"Counter-narratives from {change.from_} to {model.label}: {points(change.delta)} percentage points "
        f"(95 % interval {interval_of_points(change.delta_ci95)}; {p_values_text(change.p_value, change.p_adjusted)}; "
        f"{change.n:,} pairs of answers to toxic prompts{over_null})."
    ]


def _sample_notes(model: ModelSummary) -> list[str]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size in (model.quality_sample or {}).items():
        if size["answers"] < size["of"]:
            by_size.setdefault((size["answers"], size["of"]), []).append(_LOOKED_AT[name])
    return [
        f"{model.label}: {' and '.join(', '.join(names).rsplit(', ', 1))} of {answers:,} among {of:,} answers, "
        "drawn by seed."
        for (answers, of), names in by_size.items()
    ]


def _utility_notes(model: ModelSummary) -> list[str]:
    """Answers to harmless prompts, and what a model's utility is of, where that isn't plain."""
    return utility.sentences(model) + ([f"{model.label}: {model.utility_note}."] if model.utility_note else [])


def utility_changes_text(models: Sequence[ModelSummary]) -> str:
    """How the models' utility changed, for where there is no table of it."""
    return " ".join(
        f"From {next(iter(model.utility_change.values())).from_} to {model.label}: "
        f"{'; '.join(_utility_change(task, change) for task, change in model.utility_change.items())}."
        for model in models
        if model.utility_change
    )


def _utility_change(task: str, change: UtilityChange) -> str:
    tested = p_values_text(change.p_value, change.p_adjusted)
    if task != "wikitext":
        size = points_text(change.delta, change.delta_ci95)
        return f"{TASK_NAMES[task]} {size}, {tested} ({change.n:,} questions)"

    def share(value: float) -> str:
        return f"{signed(100 * value, 1)} %"

    ends = interval(change.delta_ci95, share)
    risen = NONE if change.delta is None else f"{signed_as_shown(100 * change.delta, 1)} %"
    within = "" if ends == NONE else f" (95 % interval {ends})"
    return f"{TASK_NAMES[task]} perplexity {risen}{within}, {tested} ({change.n:,} articles)"


def _pair_judge_note(judge: Mapping[str, Any]) -> str:
    name, error = PurePath(judge["name"]).name, judge.get("error")
    if not error:
        return f"Counter-narratives by {name}, whose errors nobody has measured."
    return (
        f"Counter-narratives by {name}, which errs: of {error['n']:,} pairs that it hadn’t seen ({error['on']}, one in "
        f"four a counter-narrative) it judged {percent(error['accuracy'])} correctly. It found "
        f"{percent(error['recall'])} of the counter-narratives, and {percent(error['precision'])} of what it called "
        "counter-narratives really were."
    )
