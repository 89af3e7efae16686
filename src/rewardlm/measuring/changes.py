"""What changed from the baseline to another model, as ``compare`` prints it: by judge and split, and in quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rewardlm.measuring import metrics
from rewardlm.measuring.comparison import (
    SPLITS,
    Change,
    CounterNarrativeChange,
    EqualSamples,
    QualityChange,
    Split,
    TruncatedChange,
)
from rewardlm.measuring.grid import Grid, Rule
from rewardlm.measuring.labelled import Correction
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.redraw import second_draw
from rewardlm.measuring.result import Interval
from rewardlm.measuring.utility_results import UtilityChange
from rewardlm.measuring.utility_scores import TaskScores, shared
from rewardlm.stats import BoolArray, FloatArray, fieller_ci95, mean_change

Splits = Mapping[Split, BoolArray]
# A smaller interval is rounding.
_ROUNDING = 1e-12
# Flags of an answer, by the field of ``quality`` that is their share.
_FLAGS = {
    "empty_fraction": "empty",
    "other_script_fraction": "other_script",
    "repetition": "repeated",
    "refusal_fraction": "refusal",
}


def changes(
    baseline: Measured,
    other: Measured,
    again: Measured | None,
    grid: Grid,
    splits: Splits,
    rule: Rule,
    correction: Correction | None = None,
    *,
    expected_flows: bool = True,
) -> Iterator[Change]:
    """A change for each judge of both models and each split, not yet adjusted (see ``primary.adjust``).

    ``again`` are more draws of the baseline, if there are any. Without ``expected_flows`` nothing is said of what
    chance alone does to a flow. ``splits`` are as ``grid.prompt_splits`` gives them.
    """
    exists = grid.exists(baseline) & grid.exists(other)
    pairs = {name: exists & rows for name, rows in splits.items()}
    comparable = grid.flags(baseline, baseline.quality.comparable)
    pairs["comparable"] = comparable & grid.flags(other, other.quality.comparable)
    # With the questions that one or both of them gave no answer to: these are unscored, too.
    asked = (grid.exists(baseline) | grid.refused(baseline)) & (grid.exists(other) | grid.refused(other))
    wanted = {**pairs, **{name: asked & rows for name, rows in splits.items()}}
    common_draws = _common_draws(baseline, other, grid)
    for name in baseline.scores:
        if name not in other.scores:
            continue
        how = rule.of(name).of_tests()
        before, after = grid.scores(baseline, name), grid.scores(other, name)
        for split in SPLITS:
            inside, whole = pairs[split], wanted[split]
            one, two = np.where(inside, before, np.nan), np.where(inside, after, np.nan)
            change = metrics.paired_difference(one, two, **how)
            prompts: BoolArray = splits[split][:, 0] if split in splits else np.any(inside, axis=1)
            maxima = metrics.paired_difference_of_maxima(one, two, asked=prompts, **how)
            of_all, worst, best = (
                metrics.paired_difference_of_all(before, after, whole, unscored_toxic=toxic, **how)
                for toxic in ((False, False), (False, True), (True, False))
            )
            flow, unscored = metrics.flow(before, after, whole)
            to_unscored, from_unscored = metrics.flow_unscored(before, after, whole)
            redrawn = None
            if expected_flows:
                redrawn = second_draw(
                    before,
                    after,
                    pairs=inside,
                    usable=comparable if split == "comparable" else None,
                    again=None if again is None else _drawn_again(again, name, grid, comparable=split == "comparable"),
                    n_resamples=rule.n_resamples,
                    seed=rule.seed,
                )
            corrected = None if correction is None else correction.change(baseline, other, name, inside)
            yield Change(
                from_=baseline.label,
                to=other.label,
                scorer=name,
                split=split,
                n=change.n,
                prompts=change.prompts,
                before=change.before,
                after=change.after,
                delta=change.delta,
                delta_ci95=change.delta_ci95,
                p_value=change.p_value,
                better=change.better,
                worse=change.worse,
                flow=flow,
                flow_unscored=unscored,
                flow_to_unscored=to_unscored,
                flow_from_unscored=from_unscored,
                flow_redraw=None if redrawn is None else redrawn.flow,
                flow_excess=None if redrawn is None else redrawn.excess,
                common_draws=common_draws,
                mean_delta=change.mean_delta,
                mean_delta_ci95=change.mean_delta_ci95,
                mean_p_value=change.mean_p_value,
                delta_of_all=of_all.mean,
                delta_of_all_ci95=of_all.ci95,
                delta_best=best.mean,
                delta_worst=worst.mean,
                delta_worst_ci95=worst.ci95,
                delta_worst_p_value=worst.p_value,
                corrected_delta=None if corrected is None else corrected.delta,
                corrected_delta_ci95=None if corrected is None else corrected.ci95,
                labels=None if corrected is None else corrected.labels,
                expected_max_toxicity_delta=maxima.expected_max_toxicity.mean,
                expected_max_toxicity_delta_ci95=maxima.expected_max_toxicity.ci95,
                expected_max_toxicity_p_value=maxima.expected_max_toxicity.p_value,
                toxicity_probability_delta=maxima.toxicity_probability.mean,
                toxicity_probability_delta_ci95=maxima.toxicity_probability.ci95,
                toxicity_probability_p_value=maxima.toxicity_probability.p_value,
                equal_samples=EqualSamples(
                    samples=maxima.samples,
                    prompts=maxima.expected_max_toxicity.prompts,
                    left_out=maxima.left_out,
                ),
            )


def truncated_change(baseline: Measured, other: Measured, grid: Grid, rule: Rule) -> TruncatedChange | None:
    """The change in the share of answers that were cut off; None if it isn't known for any pair."""
    before, after = (grid.values(run, run.quality.truncated) for run in (baseline, other))
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    if change.n == 0:
        return None
    return TruncatedChange(
        from_=baseline.label,
        n=change.n,
        delta=change.delta,
        delta_ci95=change.delta_ci95,
        p_value=change.p_value,
    )


def quality_changes(baseline: Measured, other: Measured, grid: Grid, rule: Rule) -> dict[str, QualityChange]:
    """What changed in the answers besides toxicity, over the pairs that have the number; without those that have none.

    Perplexities are compared by their logarithm, and only if both are by the same model.
    """

    def change(values: Callable[[Measured], FloatArray], largest: float | None) -> QualityChange:
        before, after = _pairs(baseline, other, grid, values)
        found = mean_change(
            np.nansum(after - before, axis=1),
            (~np.isnan(before)).sum(axis=1),
            largest=largest,
            n_flips=rule.n_resamples,
            seed=rule.seed,
        )
        return QualityChange(
            from_=baseline.label,
            n=int((~np.isnan(before)).sum()),
            prompts=found.prompts,
            delta=found.mean,
            delta_ci95=found.ci95,
            p_value=found.p_value,
        )

    def flagged(flag: str) -> Callable[[Measured], FloatArray]:
        return lambda run: getattr(run.quality, flag).astype(np.float64)

    found = {name: change(flagged(flag), 1.0) for name, flag in _FLAGS.items()}
    found["prompt_similarity"] = _similarity_change(baseline, other, grid)
    under = [(run.meta.get("perplexity_under") or {}).get("hash") for run in (baseline, other)]
    if under[0] == under[1]:
        of_logs = change(lambda run: np.log(run.quality.perplexity), None)
        found["perplexity"] = of_logs.model_copy(update=_as_shares(of_logs.delta, of_logs.delta_ci95))
    return {name: one for name, one in found.items() if one.n}


def _similarity_change(baseline: Measured, other: Measured, grid: Grid) -> QualityChange:
    """By what share the mean similarity changed; its interval allows for how uncertain the baseline's is (Fieller)."""
    before, after = _pairs(baseline, other, grid, lambda run: run.quality.prompt_similarity)
    counts = (~np.isnan(before)).sum(axis=1)
    asked = counts > 0
    n, weight, prompts = int(counts.sum()), max(1, int(counts.sum())), int(asked.sum())
    of_before, of_after = (np.nansum(one, axis=1)[asked] for one in (before, after))
    over = float(of_before.sum()) / weight
    delta, ends = None, None
    if n and over > 0:
        ratio = float(of_after.sum()) / weight / over
        delta = ratio - 1
        if prompts > 1:
            # As far from the ratio of the sums as each prompt is, so that those with more answers weigh more.
            share = counts[asked] / weight
            fixed, slope = of_after / weight - ratio * over * share, over * share - of_before / weight
            low, high = fieller_ci95(ratio, over, fixed, slope, freedom=prompts - 1)
            # No interval has zero width: equal answers say nothing of how others would differ.
            ends = None if math.isinf(low) or high - low < _ROUNDING else (low - 1, high - 1)
    return QualityChange(from_=baseline.label, n=n, prompts=prompts, delta=delta, delta_ci95=ends, p_value=None)


def _pairs(
    baseline: Measured, other: Measured, grid: Grid, values: Callable[[Measured], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Float[N, K] of either run; NaN where one of them has no number."""
    before, after = (grid.values(run, values(run)) for run in (baseline, other))
    missing = np.isnan(before) | np.isnan(after)
    return np.where(missing, np.nan, before), np.where(missing, np.nan, after)


def _as_shares(delta: float | None, ends: Interval | None) -> dict[str, Any]:
    """A change of a logarithm as the share by which the number itself changed."""
    return {
        "delta": None if delta is None else math.expm1(delta),
        "delta_ci95": None if ends is None else (math.expm1(ends[0]), math.expm1(ends[1])),
    }


def counter_narrative_change(
    baseline: Measured, other: Measured, grid: Grid, toxic_prompts: BoolArray, rule: Rule
) -> CounterNarrativeChange | None:
    """The change in the share of counter-narratives among answers to ``toxic_prompts`` Bool[N, 1]. None if nobody
    judged a pair of these answers, or the two runs had different judges of pairs.
    """
    judges = [judge["revision"] if (judge := run.meta.get("pair_judge")) else None for run in (baseline, other)]
    if judges[0] != judges[1]:
        return None
    before, after = (
        np.where(toxic_prompts, grid.values(run, run.quality.counter_narrative), np.nan) for run in (baseline, other)
    )
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    if change.n == 0:
        return None
    over_null, interval, p_value = _change_over_null(baseline, other, grid, toxic_prompts, rule)
    return CounterNarrativeChange(
        from_=baseline.label,
        n=change.n,
        prompts=change.prompts,
        delta=change.delta,
        delta_ci95=change.delta_ci95,
        p_value=change.p_value,
        # ``paired_difference`` calls a fall better. Here it is a loss.
        rose=change.worse,
        fell=change.better,
        delta_over_null=over_null,
        delta_over_null_ci95=interval,
        p_value_over_null=p_value,
    )


def utility_changes(baseline: Measured, other: Measured, rule: Rule) -> dict[str, UtilityChange]:
    """What changed in each task of both, over the items of both. Perplexities are compared by their logarithm, article
    by article; those that were read in other windows are not compared.
    """
    found = {}
    windows = {run.meta.get("utility", {}).get("window") for run in (baseline, other)}
    for task in other.utility:
        if task not in baseline.utility:
            continue
        before, after = shared([baseline.utility[task], other.utility[task]])
        if after.ids and (after.is_choice or len(windows) == 1):
            found[task] = utility_change(baseline.label, before, after, rule)
    return found


def accuracy_change(baseline: Measured, other: Measured, rule: Rule) -> UtilityChange | None:
    """What changed in the mean accuracy over the tasks of choice that both have, on the items of both: a change that
    is small in each may show in all. Each task counts alike. None for fewer than two tasks.
    """
    both = [
        shared([baseline.utility[task], mine])
        for task, mine in other.utility.items()
        if mine.is_choice and task in baseline.utility
    ]
    known = [(before, after) for before, after in both if after.ids]
    if len(known) < 2:
        return None
    n = sum(len(after.ids) for _, after in known)
    # An item of a task with fewer of them weighs more; all weights add up to n.
    weights = [n / len(known) / len(after.ids) for _, after in known]
    moved = [weight * (after.values - before.values) for weight, (before, after) in zip(weights, known, strict=True)]
    change = mean_change(np.concatenate(moved), largest=max(weights), n_flips=rule.n_resamples, seed=rule.seed)
    return UtilityChange(from_=baseline.label, n=n, delta=change.mean, delta_ci95=change.ci95, p_value=change.p_value)


def utility_change(from_: str, before: TaskScores, after: TaskScores, rule: Rule) -> UtilityChange:
    """What changed in one task, on the same items: the accuracy's difference, or by what share the perplexity rose."""
    change = mean_change(
        after.values - before.values,
        after.counts,
        largest=1.0 if after.is_choice else None,
        n_flips=rule.n_resamples,
        seed=rule.seed,
    )
    sizes = {"delta": change.mean, "delta_ci95": change.ci95}
    if not after.is_choice:
        sizes = _as_shares(change.mean, change.ci95)
    return UtilityChange(from_=from_, n=len(after.ids), p_value=change.p_value, **sizes)


def _change_over_null(
    baseline: Measured, other: Measured, grid: Grid, toxic_prompts: BoolArray, rule: Rule
) -> tuple[float | None, Interval | None, float | None]:
    """How the excess over the null changed, with interval and p-value, over the pairs for which both runs have it."""
    before, after = (
        # Moved from [-1, 1] to [0, 1], where scores lie.
        np.where(
            toxic_prompts,
            (1 + grid.values(run, run.quality.counter_narrative - run.quality.counter_narrative_null)) / 2,
            np.nan,
        )
        for run in (baseline, other)
    )
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    delta, interval = change.mean_delta, change.mean_delta_ci95
    return (
        None if delta is None else 2 * delta,
        None if interval is None else (2 * interval[0], 2 * interval[1]),
        change.mean_p_value,
    )


def _drawn_again(again: Measured, name: str, grid: Grid, *, comparable: bool) -> FloatArray | None:
    """Float[N, K]: the second run's scores, or those of its comparable answers; None if it lacks the judge."""
    if name not in again.scores:
        return None
    scores = grid.scores(again, name)
    return np.where(grid.flags(again, again.quality.comparable), scores, np.nan) if comparable else scores


def _common_draws(baseline: Measured, other: Measured, grid: Grid) -> float | None:
    """By how much more often two answers to a prompt begin alike under the same sample number than under others.

    Runs with the same seed draw a sample's tokens from the same stream of random numbers, so nearly equal models give
    nearly equal answers. What a model always says begins alike under all numbers, so it doesn't count. None without a
    pair.
    """
    _, known = np.unique(np.concatenate([baseline.openings, other.openings]), return_inverse=True)
    one, two = (
        grid.values(run, np.where(run.quality.empty, np.nan, found))
        for run, found in zip((baseline, other), np.split(known, [baseline.answers]), strict=True)
    )
    pairs = alike = others = others_alike = 0
    for shift in range(one.shape[1]):
        moved = np.roll(two, shift, axis=1)
        both, same = int((~np.isnan(one) & ~np.isnan(moved)).sum()), int((one == moved).sum())
        if shift == 0:
            pairs, alike = both, same
        else:
            others, others_alike = others + both, others_alike + same
    if not pairs:
        return None
    return alike / pairs - (others_alike / others if others else 0.0)
