"""What each model is like, as ``compare`` prints it: its splits by every judge, and the quality of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardlm.config import MEASURE_PRESETS, flatten
from rewardlm.measuring import metrics
from rewardlm.measuring.comparison import (
    SPLITS,
    UTILITY_FIELDS,
    Disagreement,
    EqualMaxima,
    ModelSummary,
    QualitySummary,
    Split,
    SplitSummary,
)
from rewardlm.measuring.correction import corrected_share, errors_fit, judge_errors
from rewardlm.measuring.grid import Grid, Rule, answers_in
from rewardlm.measuring.group_gains import summarise_groups
from rewardlm.measuring.labelled import Correction
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.over_refusal import summarise_over_refusal
from rewardlm.measuring.utility_scores import summarise_utility
from rewardlm.stats import BoolArray, FloatArray

Splits = Mapping[Split, BoolArray]


@dataclass(frozen=True, slots=True)
class _Common:
    """What the EMT and TP of a table are computed on: ``samples`` scored answers to each of ``prompts`` Bool[N], in
    every model. ``left_out`` counts the prompts that have fewer, or none, in one of the models.

    A prompt's highest score grows with the number of its answers, and prompts differ more than models do.
    """

    samples: int | None
    prompts: BoolArray
    left_out: int


def summarise(
    runs: Sequence[Measured], grid: Grid, splits: Splits, rule: Rule, correction: Correction | None = None
) -> list[ModelSummary]:
    """One summary per run. ``splits`` Bool[N, 1] are those that depend on the prompt alone (``grid.prompt_splits``)."""
    inside = [answers_in(run, grid, splits) for run in runs]
    common = {
        (name, split): _common(
            [
                np.where(cells[split], grid.scores(run, name), np.nan)
                for run, cells in zip(runs, inside, strict=True)
                if name in run.scores
            ],
            splits[split][:, 0] if split in splits else np.any([cells[split].any(axis=1) for cells in inside], axis=0),
        )
        for name in dict.fromkeys(name for run in runs for name in run.scores)
        for split in SPLITS
    }
    return [
        _summary(run, grid, cells, splits, common, rule, correction) for run, cells in zip(runs, inside, strict=True)
    ]


def _common(models: Sequence[FloatArray], asked: BoolArray) -> _Common:
    """``asked`` Bool[N] are the split's prompts. A model without a score in it has no EMT and limits no other."""
    scored = [scores for scores in models if not np.isnan(scores).all()] or models
    samples = metrics.common_samples(scored)
    prompts = metrics.prompts_with(scored, samples)
    return _Common(samples, prompts, int((asked & ~prompts).sum()))


def _summary(
    run: Measured,
    grid: Grid,
    cells: Splits,
    splits: Splits,
    common: Mapping[tuple[str, Split], _Common],
    rule: Rule,
    correction: Correction | None,
) -> ModelSummary:
    """``cells`` Bool[N, K] are the run's answers in each split. ``common`` says, by judge and split, what EMT and TP
    are computed on.
    """
    refused = grid.refused(run)
    # The split ``comparable`` holds answers, so it has no unanswered questions.
    unanswered = {split: int((refused & splits[split]).sum()) if split in splits else 0 for split in SPLITS}
    return ModelSummary(
        label=run.label,
        prompts=len(run.prompts),
        generations=run.answers,
        scorers={
            name: {
                split: _split(
                    grid.scores(run, name),
                    cells[split],
                    unanswered[split],
                    common[name, split],
                    rule.of(name),
                    _corrected(correction, run, name, cells[split]),
                )
                for split in SPLITS
            }
            for name in run.scores
        },
        quality=_quality(run, grid, cells["toxic_prompts"]),
        pair_judge=run.meta.get("pair_judge"),
        quality_sample=run.meta.get("quality"),
        max_new_tokens=run.meta["settings"].get("max_new_tokens"),
        preset=_preset(run.meta["settings"]),
        disagreement={name: _disagreement(values) for name, values in run.disagreement.items()},
        utility=summarise_utility(run.utility),
        over_refusal=summarise_over_refusal(run.harmless),
        groups=summarise_groups(run.groups, rule),
        utility_note=run.meta.get("utility", {}).get("note"),
    )


def _corrected(correction: Correction | None, run: Measured, name: str, cells: BoolArray) -> dict[str, Any]:
    """The fields of a split that say what its share is once it is corrected."""
    share = None if correction is None else correction.share(run, name, cells)
    if correction is None or share is None:
        return {}
    return {
        "correction": correction.method,
        "corrected_fraction": share.fraction,
        "corrected_fraction_ci95": share.ci95,
        "labels": share.labels,
    }


def _split(
    scores: FloatArray,
    cells: BoolArray,
    unanswered: int,
    common: _Common,
    rule: Rule,
    corrected: Mapping[str, Any],
) -> SplitSummary:
    inside = np.where(cells, scores, np.nan)
    toxic, uncertain = rule.of_toxic(), rule.of_intervals()
    n = int(cells.sum())
    asked = n + unanswered
    alike = inside[common.prompts]
    return SplitSummary(
        n=n,
        scored=int((~np.isnan(inside)).sum()),
        unanswered=unanswered,
        toxic_fraction=metrics.toxic_fraction(inside, **toxic),
        toxic_fraction_ci95=metrics.toxic_fraction_ci95(inside, **uncertain),
        toxic_fraction_of_all=metrics.toxic_fraction_of_all(inside, n=asked, **toxic),
        toxic_fraction_worst=metrics.toxic_fraction_of_all(inside, n=asked, unscored_toxic=True, **toxic),
        mean=metrics.mean(inside),
        expected_max_toxicity=metrics.expected_max_toxicity(inside),
        expected_max_toxicity_ci95=metrics.expected_max_toxicity_ci95(inside),
        toxicity_probability=metrics.toxicity_probability(inside, **toxic),
        toxicity_probability_ci95=metrics.toxicity_probability_ci95(inside, **uncertain),
        equal_samples=EqualMaxima(
            samples=common.samples,
            prompts=int(common.prompts.sum()),
            left_out=common.left_out,
            expected_max_toxicity=metrics.expected_max_toxicity(alike, samples=common.samples),
            toxicity_probability=metrics.toxicity_probability(alike, samples=common.samples, **toxic),
        ),
        buckets=metrics.buckets(inside),
        **corrected,
    )


def _quality(run: Measured, grid: Grid, toxic_prompts: BoolArray) -> QualitySummary:
    """Counter-narratives are counted among the answers to toxic prompts, ``toxic_prompts`` Bool[N, K]."""
    found = run.quality
    perplexities = found.perplexity[~np.isnan(found.perplexity)]
    hits, null = (
        np.where(toxic_prompts, grid.values(run, found), np.nan)
        for found in (run.quality.counter_narrative, run.quality.counter_narrative_null)
    )
    pair_judge = run.meta.get("pair_judge")
    errors = judge_errors(pair_judge["error"] if pair_judge else None)
    corrected, corrected_ci95 = corrected_share(hits, errors)
    return QualitySummary(
        empty_fraction=_share(found.empty),
        non_latin_fraction=_share(found.non_latin),
        other_script_fraction=_share(found.other_script),
        repetition=_share(found.repeated),
        refusal_fraction=_share(found.refusal),
        comparable_fraction=_share(found.comparable),
        truncated_fraction=metrics.mean(found.truncated),
        mean_words=metrics.mean(found.words),
        distinct_1=found.distinct[0],
        distinct_2=found.distinct[1],
        distinct_3=found.distinct[2],
        prompt_similarity=metrics.mean(found.prompt_similarity),
        prompt_similarity_null=metrics.mean(found.prompt_similarity_null),
        # Perplexity is exp(mean negative log-likelihood), so answers are averaged in the exponent.
        perplexity=float(np.exp(np.log(perplexities).mean())) if perplexities.size else None,
        counter_narrative_fraction=metrics.mean(hits),
        # ``hits`` are 0 or 1, so the share over a half is their mean.
        counter_narrative_fraction_ci95=metrics.toxic_fraction_ci95(hits),
        counter_narrative_null=metrics.mean(null),
        counter_narrative_corrected=corrected,
        counter_narrative_corrected_ci95=corrected_ci95,
        # False: the judge errs less often on these answers than on those of its card.
        counter_narrative_errors_fit=errors_fit(hits, errors),
        **_utility(run),
    )


def _utility(run: Measured) -> dict[str, Any]:
    """The numbers of ``measure --suite``; null for what was not measured."""
    harmless = summarise_over_refusal(run.harmless)
    return {
        **dict.fromkeys(UTILITY_FIELDS.values()),
        **{UTILITY_FIELDS[task]: found.value for task, found in summarise_utility(run.utility).items()},
        "over_refusal_fraction": None if harmless is None else harmless.fraction,
        "over_refusal_fraction_ci95": None if harmless is None else harmless.fraction_ci95,
    }


def _disagreement(values: FloatArray) -> Disagreement:
    known = values[~np.isnan(values)]
    return Disagreement(scored=int(known.size), mean=metrics.mean(known), fraction_over_half=_share(known > 0.5))


def _preset(settings: Mapping[str, Any]) -> str | None:
    """``rtp-paper`` if the run followed that preset of ``rewardlm measure``, which fixes how long answers are."""
    wanted = flatten(MEASURE_PRESETS["rtp-paper"])
    found = flatten(settings)
    return "rtp-paper" if all(found.get(name) == value for name, value in wanted.items()) else None


def _share(flags: BoolArray) -> float | None:
    return float(flags.mean()) if flags.size else None
