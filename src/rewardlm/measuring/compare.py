"""Stored runs in, one comparison out: the object that ``rewardlm compare --json`` prints.

Runs are comparable if they answered the same prompts and agree on which of them are toxic; anything else is
an error here, because a table of two different lists looks just like a table of two models. What is counted
is defined in ``metrics`` and ``quality``; whether to believe it, in ``audit``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from rewardlm.config import MEASURE_PRESETS, flatten
from rewardlm.errors import RunError
from rewardlm.measuring import metrics
from rewardlm.measuring.audit import audit, drawn_by
from rewardlm.measuring.correction import corrected_share, errors_fit, judge_errors
from rewardlm.measuring.metrics import BoolArray, FloatArray
from rewardlm.measuring.primary import adjust, adjust_models, choose
from rewardlm.measuring.records import (
    IntArray,
    Quality,
    read_answers,
    read_quality,
    read_scores,
    refuse_twice,
    samples_wanted,
)
from rewardlm.measuring.redraw import second_draw
from rewardlm.runs import Run, unique_labels
from rewardlm.types import Prompt

SPLITS = ("all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable")

# Scoring the same prompt in another batch or in half precision moves its score by less than this; the
# baseline's value then decides on which side of the threshold it is, for all runs alike.
_TOXICITY_TOLERANCE = 0.01


@dataclass(slots=True)
class Measured:
    """A run of kind ``measure`` or ``import`` in memory: G answers to N prompts, as numbers; texts stay on the disk.

    ``prompt_rows`` Int[G] are positions in ``prompts``, ``samples`` Int[G] the answers' sample numbers.
    ``scores[NAME]`` is Float[G], NaN where unscored; ``reasons[NAME]`` says why, by position. A judge's main label is
    NAME, its others are NAME.label. An ensemble's disagreement, which is no P(toxic), is not among them but in
    ``disagreement[NAME]``, Float[G]. ``rewards`` names the scorers that the model was trained on. ``openings`` Int64[G]
    are equal where answers begin alike.
    """

    run: Run
    label: str
    prompts: list[Prompt]
    prompt_rows: IntArray
    samples: IntArray
    openings: NDArray[np.int64]
    scores: dict[str, FloatArray]
    reasons: dict[str, dict[int, str]]
    main_labels: dict[str, str]
    quality: Quality
    rewards: list[str] = field(default_factory=list)
    disagreement: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        return len(self.prompt_rows)

    @property
    def judges(self) -> list[str]:
        """Names of the judges whose scores are shown, each by its main label."""
        return [name for name in self.main_labels if name in self.scores]

    @property
    def meta(self) -> dict[str, Any]:
        return self.run.meta

    @property
    def samples_refused(self) -> int:
        """Answers a prompt that a finished run asked for, if it didn't get them all; 0 if it did."""
        refused = self.run.finished and sum(self.meta.get("unanswered", {}).values()) > 0
        return samples_wanted(self.run) or 0 if refused else 0

    @property
    def missing(self) -> int:
        """How many answers the run lacks, as far as it says how many it wants."""
        if self.run.finished:
            return sum(self.meta.get("unanswered", {}).values())
        wanted = samples_wanted(self.run) or int(self.samples.max(initial=0)) + 1
        return max(0, len(self.prompts) * wanted - self.answers)


def load_measured(path: Path) -> Measured:
    """Read a run of kind ``measure`` or ``import``, finished or not.

    Raises RunError if it is none, or if its records contradict each other (ids twice, answers to unknown
    prompts, scores of unknown answers or outside [0, 1]).
    """
    run = Run.open(Path(path))
    if run.meta["kind"] not in ("measure", "import"):
        raise RunError(
            f"{path} is a run of kind {run.meta['kind']!r}: only measured or imported runs can be compared; "
            "measure the model first"
        )
    prompts = run.prompts()
    refuse_twice(path, "prompt id", (prompt.id for prompt in prompts))
    answers = read_answers(run, prompts)
    scores, reasons, main_labels, disagreement = read_scores(run, answers.positions)
    return Measured(
        run=run,
        label=run.label,
        prompts=prompts,
        prompt_rows=answers.prompt_rows,
        samples=answers.samples,
        openings=answers.openings,
        scores=scores,
        reasons=reasons,
        main_labels=main_labels,
        quality=read_quality(run, answers),
        rewards=_rewards(run),
        disagreement=disagreement,
    )


def compare(
    paths: Sequence[Path],
    *,
    scorer: str | None = None,
    threshold: float = metrics.THRESHOLD,
    inclusive: bool = False,
    n_resamples: int = metrics.RESAMPLES,
    seed: int = 0,
    redraw: Path | None = None,
    primary: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Hold every run against the first, the baseline. The result is JSON-able and has no NaN.

    ``scorer`` limits the tables to one judge; the default is every judge, and in comparisons every one that
    both runs have. It doesn't limit what p-values are adjusted for: who looks at one judge could have looked at
    others. A sample is toxic above ``threshold`` (from it on, if ``inclusive``), and so is a prompt.
    In a comparison ``n`` counts the pairs scored in both, in a model's own entry the answers, scored or not.
    Beside a flow stands what a second draw of the baseline gives: from its other answers to the same prompts, and from
    ``redraw``, a second run of the baseline with another seed.
    ``primary`` asks for a primary outcome, ``{"scorer", "split", "metric"}``, any of them None; see ``primary.choose``.

    Raises RunError for runs that can't be compared; its message starts with ``prompts_differ`` or
    ``weights_differ`` in the two cases that have a code.
    """
    if not paths:
        raise RunError("nothing to compare: name at least one run, the baseline first")
    runs = [load_measured(Path(path)) for path in paths]
    again = None if redraw is None else load_measured(Path(redraw))
    everything = [*runs, *([] if again is None else [again])]
    for run, label in zip(everything, unique_labels([run.label for run in everything]), strict=True):
        run.label = label
    baseline = runs[0]
    if again is not None:
        _refuse_other_model(baseline, again)
    for other in everything[1:]:
        _refuse_other_prompts(baseline, other)
        _refuse_other_toxicity(baseline, other)
        _refuse_other_weights(baseline, other)
        _refuse_other_labels(baseline, other)
    _refuse_without_scorer(everything, scorer)
    for other in everything[1:]:
        _refuse_other_judges(baseline, other, scorer)

    rule = _Rule(threshold, inclusive, n_resamples, seed)
    grid = _Grid(everything)
    splits = _prompt_splits(baseline.prompts, rule)
    tests = [entry for other in runs[1:] for entry in _comparison_entries(baseline, other, again, grid, splits, rule)]
    has_toxic_prompts = bool(splits["toxic_prompts"].any())
    adjust(tests, choose(runs, primary, has_toxic_prompts=has_toxic_prompts)[0])
    _keep_scorer(runs, scorer)
    comparisons = [entry for entry in tests if entry["scorer"] in baseline.scores]
    models = _model_entries(runs, grid, splits, rule)
    for run, entry in zip(runs[1:], models[1:], strict=True):
        entry["counter_narrative_change"] = _counter_narrative_change(
            baseline, run, grid, splits["toxic_prompts"], rule
        )
        entry["truncated_change"] = _truncated_change(baseline, run, grid, rule)
    adjust_models(models)
    chosen, fixed, sentence = choose(runs, primary, has_toxic_prompts=has_toxic_prompts)
    return {
        "models": models,
        "comparisons": comparisons,
        "primary": chosen,
        "primary_fixed": {"when": fixed, "sentence": sentence},
        "warnings": audit(runs, models, comparisons, rule.toxic),
        "settings": {
            "threshold": threshold,
            "inclusive": inclusive,
            "n_resamples": n_resamples,
            "seed": seed,
            "redraw": None if again is None else again.label,
        },
    }


class _Toxic(TypedDict):
    threshold: float
    inclusive: bool


class _How(_Toxic):
    n_resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Rule:
    threshold: float
    inclusive: bool
    n_resamples: int
    seed: int

    def toxic(self, scores: FloatArray) -> BoolArray:
        return metrics.is_toxic(scores, threshold=self.threshold, inclusive=self.inclusive)

    def how(self) -> _How:
        """As the functions of ``metrics`` take it."""
        return {
            "threshold": self.threshold,
            "inclusive": self.inclusive,
            "n_resamples": self.n_resamples,
            "seed": self.seed,
        }


class _Grid:
    """Puts per-generation arrays [G] of any of the runs on one grid [N prompts, K samples]."""

    def __init__(self, runs: Sequence[Measured]) -> None:
        rows = {prompt.id: row for row, prompt in enumerate(runs[0].prompts)}
        numbers = [found for run in runs for found in (run.samples, np.arange(run.samples_refused))]
        samples = self._samples = np.unique(np.concatenate(numbers))
        self.shape = (len(rows), max(1, len(samples)))
        self._cells: dict[str, IntArray] = {}
        for run in runs:
            here = np.array([rows[prompt.id] for prompt in run.prompts], dtype=np.intp)
            columns = np.searchsorted(samples, run.samples)
            self._cells[run.label] = here[run.prompt_rows] * self.shape[1] + columns

    def scores(self, run: Measured, scorer: str) -> FloatArray:
        """Float[N, K]: NaN where there is no score."""
        return self.values(run, run.scores[scorer])

    def values(self, run: Measured, values: FloatArray) -> FloatArray:
        """Float[N, K]: NaN where there is no generation."""
        cells = np.full(self.shape, np.nan)
        cells.flat[self._cells[run.label]] = values
        return cells

    def flags(self, run: Measured, flags: BoolArray) -> BoolArray:
        """Bool[N, K]: False where there is no generation."""
        cells = np.zeros(self.shape, dtype=np.bool_)
        cells.flat[self._cells[run.label]] = flags
        return cells

    def exists(self, run: Measured) -> BoolArray:
        return self.flags(run, np.ones(run.answers, dtype=np.bool_))

    def refused(self, run: Measured) -> BoolArray:
        """Bool[N, K]: questions of a finished run that got no answer, by a server that refused them, say."""
        asked = np.zeros(self.shape, dtype=np.bool_)
        asked[:, : len(self._samples)] = self._samples < run.samples_refused
        return asked & ~self.exists(run)


def _prompt_splits(prompts: Sequence[Prompt], rule: _Rule) -> dict[str, BoolArray]:
    """Bool[N, 1] for the splits that depend on the prompt alone; an unjudged prompt is in neither half."""
    toxicity = np.array([math.nan if p.toxicity is None else p.toxicity for p in prompts], dtype=np.float64)
    toxic = rule.toxic(toxicity)
    members = {
        "all": np.ones(len(prompts), dtype=np.bool_),
        "toxic_prompts": toxic,
        "nontoxic_prompts": ~toxic & ~np.isnan(toxicity),
        "challenging": np.array([prompt.challenging for prompt in prompts], dtype=np.bool_),
    }
    return {name: flags[:, None] for name, flags in members.items()}


def _model_entries(
    runs: Sequence[Measured], grid: _Grid, splits: dict[str, BoolArray], rule: _Rule
) -> list[dict[str, Any]]:
    inside = [_inside(run, grid, splits) for run in runs]
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
    return [_model_entry(run, grid, cells, splits, common, rule) for run, cells in zip(runs, inside, strict=True)]


@dataclass(frozen=True, slots=True)
class _Common:
    """What EMT and TP of a table are of: ``samples`` scored answers to each of ``prompts`` Bool[N], in every model;
    ``left_out`` prompts have fewer in one, or none.

    A prompt's highest score grows with the number of its answers, and prompts differ more than models do.
    """

    samples: int | None
    prompts: BoolArray
    left_out: int


def _common(models: Sequence[FloatArray], asked: BoolArray) -> _Common:
    """``asked`` Bool[N] are the split's prompts. A model without a score in it has no EMT, and holds back none."""
    scored = [scores for scores in models if not np.isnan(scores).all()] or models
    samples = metrics.common_samples(scored)
    prompts = metrics.prompts_with(scored, samples)
    return _Common(samples, prompts, int((asked & ~prompts).sum()))


def _inside(run: Measured, grid: _Grid, splits: dict[str, BoolArray]) -> dict[str, BoolArray]:
    """Bool[N, K] by split: the run's own answers in it."""
    exists = grid.exists(run)
    cells = {name: exists & rows for name, rows in splits.items()}
    cells["comparable"] = grid.flags(run, run.quality.comparable)
    return cells


def _model_entry(
    run: Measured,
    grid: _Grid,
    cells: dict[str, BoolArray],
    splits: dict[str, BoolArray],
    common: dict[tuple[str, str], _Common],
    rule: _Rule,
) -> dict[str, Any]:
    """``common`` says, by judge and split, what EMT and TP are of."""
    refused = grid.refused(run)
    # A question without an answer has none that could be compared.
    unanswered = {split: int((refused & splits[split]).sum()) if split in splits else 0 for split in SPLITS}
    return {
        "label": run.label,
        "prompts": len(run.prompts),
        "generations": run.answers,
        "scorers": {
            name: {
                split: _split_entry(grid.scores(run, name), cells[split], unanswered[split], common[name, split], rule)
                for split in SPLITS
            }
            for name in run.scores
        },
        "quality": {**_quality_entry(run), **_counter_narratives(run, grid, cells["toxic_prompts"])},
        "pair_judge": run.meta.get("pair_judge"),
        # How many answers each number that only models can say was found on, and of how many.
        "quality_sample": run.meta.get("quality"),
        "max_new_tokens": run.meta["settings"].get("max_new_tokens"),
        "preset": _preset(run.meta["settings"]),
        "disagreement": {name: _disagreement_entry(values) for name, values in run.disagreement.items()},
    }


def _disagreement_entry(values: FloatArray) -> dict[str, Any]:
    """How far an ensemble's members are apart, over the answers that all of them scored."""
    known = values[~np.isnan(values)]
    return {
        "scored": int(known.size),
        "mean": metrics.mean(known),
        "fraction_over_half": _share(known > 0.5),
    }


def _split_entry(scores: FloatArray, cells: BoolArray, unanswered: int, common: _Common, rule: _Rule) -> dict[str, Any]:
    inside = np.where(cells, scores, np.nan)
    toxic: _Toxic = {"threshold": rule.threshold, "inclusive": rule.inclusive}
    n = int(cells.sum())
    asked = n + unanswered
    alike = inside[common.prompts]
    return {
        "n": n,
        "scored": int((~np.isnan(inside)).sum()),
        "unanswered": unanswered,
        "toxic_fraction": metrics.toxic_fraction(inside, **toxic),
        "toxic_fraction_ci95": _pair(metrics.toxic_fraction_ci95(inside, **toxic)),
        # Both bounds of what the answers without a score may be, and those that weren't given: none of them toxic, all.
        "toxic_fraction_of_all": metrics.toxic_fraction_of_all(inside, n=asked, **toxic),
        "toxic_fraction_worst": metrics.toxic_fraction_of_all(inside, n=asked, unscored_toxic=True, **toxic),
        "mean": metrics.mean(inside),
        "expected_max_toxicity": metrics.expected_max_toxicity(inside),
        "expected_max_toxicity_ci95": _pair(metrics.expected_max_toxicity_ci95(inside)),
        "toxicity_probability": metrics.toxicity_probability(inside, **toxic),
        "toxicity_probability_ci95": _pair(metrics.toxicity_probability_ci95(inside, **toxic)),
        # The same two of the prompts that have so many scored answers in every model, and of so many.
        "equal_samples": {
            "samples": common.samples,
            "prompts": int(common.prompts.sum()),
            "left_out": common.left_out,
            "expected_max_toxicity": metrics.expected_max_toxicity(alike, samples=common.samples),
            "toxicity_probability": metrics.toxicity_probability(alike, samples=common.samples, **toxic),
        },
        "buckets": metrics.buckets(inside),
    }


def _counter_narratives(run: Measured, grid: _Grid, toxic_prompts: BoolArray) -> dict[str, Any]:
    """Shares among the answers to toxic prompts: of the pair judge's verdicts, of those on the same answers under
    another's prompt (the null), and corrected for the judge's known errors.
    """
    hits, null = (
        np.where(toxic_prompts, grid.values(run, found), np.nan)
        for found in (run.quality.counter_narrative, run.quality.counter_narrative_null)
    )
    errors = judge_errors((run.meta.get("pair_judge") or {}).get("error"))
    corrected, interval = corrected_share(hits, errors)
    return {
        "counter_narrative_fraction": metrics.mean(hits),
        # Of 0 and 1 the share that is over a half is the mean.
        "counter_narrative_fraction_ci95": _pair(metrics.toxic_fraction_ci95(hits)),
        "counter_narrative_null": metrics.mean(null),
        "counter_narrative_corrected": corrected,
        "counter_narrative_corrected_ci95": _pair(interval),
        # False: the judge errs less often on these answers than on those of its card.
        "counter_narrative_errors_fit": errors_fit(hits, errors),
    }


def _quality_entry(run: Measured) -> dict[str, Any]:
    found = run.quality
    perplexities = found.perplexity[~np.isnan(found.perplexity)]
    return {
        "empty_fraction": _share(found.empty),
        "non_latin_fraction": _share(found.non_latin),
        "other_script_fraction": _share(found.other_script),
        "repetition": _share(found.repeated),
        "refusal_fraction": _share(found.refusal),
        "comparable_fraction": _share(found.comparable),
        # Of the answers whose end is known.
        "truncated_fraction": metrics.mean(found.truncated),
        "mean_words": metrics.mean(found.words),
        "distinct_1": found.distinct[0],
        "distinct_2": found.distinct[1],
        "distinct_3": found.distinct[2],
        "prompt_similarity": metrics.mean(found.prompt_similarity),
        "prompt_similarity_null": metrics.mean(found.prompt_similarity_null),
        # Perplexity is exp(mean negative log-likelihood), so answers are averaged in the exponent.
        "perplexity": float(np.exp(np.log(perplexities).mean())) if perplexities.size else None,
    }


def _comparison_entries(
    baseline: Measured,
    other: Measured,
    again: Measured | None,
    grid: _Grid,
    splits: dict[str, BoolArray],
    rule: _Rule,
) -> Iterable[dict[str, Any]]:
    """``again`` are more draws of the baseline, if there are any."""
    exists = grid.exists(baseline) & grid.exists(other)
    pairs = {name: exists & rows for name, rows in splits.items()}
    comparable = grid.flags(baseline, baseline.quality.comparable)
    pairs["comparable"] = comparable & grid.flags(other, other.quality.comparable)
    # With the questions that one of them, or both, gave no answer to: these are unscored, too.
    asked = (grid.exists(baseline) | grid.refused(baseline)) & (grid.exists(other) | grid.refused(other))
    wanted = {**pairs, **{name: asked & rows for name, rows in splits.items()}}
    common_draws = _common_draws(baseline, other, grid)
    how = rule.how()
    for name in baseline.scores:
        if name not in other.scores:
            continue
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
            redrawn = second_draw(
                before,
                after,
                pairs=inside,
                usable=comparable if split == "comparable" else None,
                again=None if again is None else _drawn_again(again, name, grid, comparable=split == "comparable"),
                n_resamples=rule.n_resamples,
                seed=rule.seed,
            )
            yield {
                "from": baseline.label,
                "to": other.label,
                "scorer": name,
                "split": split,
                "n": change.n,
                # The toxic shares of these pairs, whose difference is delta.
                "before": change.before,
                "after": change.after,
                "delta": change.delta,
                "delta_ci95": _pair(change.delta_ci95),
                "p_value": change.p_value,
                "better": change.better,
                "worse": change.worse,
                "flow": flow,
                "flow_unscored": unscored,
                # By bucket: scored in the first alone, and in the second alone. The rest is unscored in both.
                "flow_to_unscored": to_unscored,
                "flow_from_unscored": from_unscored,
                "flow_redraw": None if redrawn is None else redrawn.flow,
                "flow_excess": None if redrawn is None else redrawn.excess,
                "common_draws": common_draws,
                "mean_delta": change.mean_delta,
                "mean_delta_ci95": _pair(change.mean_delta_ci95),
                "mean_p_value": change.mean_p_value,
                "delta_of_all": of_all.mean,
                "delta_of_all_ci95": _pair(of_all.ci95),
                # What the unscored may make of it: toxic before and harmless after at best, the reverse at worst.
                "delta_best": best.mean,
                "delta_worst": worst.mean,
                "delta_worst_ci95": _pair(worst.ci95),
                "delta_worst_p_value": worst.p_value,
                **{
                    f"{name}_{key}": value
                    for name, found in (
                        ("expected_max_toxicity", maxima.expected_max_toxicity),
                        ("toxicity_probability", maxima.toxicity_probability),
                    )
                    for key, value in (
                        ("delta", found.mean),
                        ("delta_ci95", _pair(found.ci95)),
                        ("p_value", found.p_value),
                    )
                },
                "equal_samples": {
                    "samples": maxima.samples,
                    "prompts": maxima.expected_max_toxicity.prompts,
                    "left_out": maxima.left_out,
                },
            }


def _drawn_again(again: Measured, name: str, grid: _Grid, *, comparable: bool) -> FloatArray | None:
    """Float[N, K] of the second run's scores, of its comparable answers if asked; None where it lacks the judge."""
    if name not in again.scores:
        return None
    scores = grid.scores(again, name)
    return np.where(grid.flags(again, again.quality.comparable), scores, np.nan) if comparable else scores


def _common_draws(baseline: Measured, other: Measured, grid: _Grid) -> float | None:
    """By how much more often two answers to a prompt begin alike under one sample number than under two.

    Runs of one seed draw a sample's tokens from one stream of random numbers, so models that are nearly one give nearly
    one answer. What a model always says begins alike under all numbers, and doesn't count. None without a pair.
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


def _counter_narrative_change(
    baseline: Measured, other: Measured, grid: _Grid, toxic_prompts: BoolArray, rule: _Rule
) -> dict[str, Any] | None:
    """As a comparison, of the share of counter-narratives among answers to toxic prompts; None where nobody looked at
    a pair of them, or not one judge at both.
    """
    judges = [(run.meta.get("pair_judge") or {}).get("revision") for run in (baseline, other)]
    if judges[0] != judges[1]:
        return None
    before, after = (
        np.where(toxic_prompts, grid.values(run, run.quality.counter_narrative), np.nan) for run in (baseline, other)
    )
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    if change.n == 0:
        return None
    return {
        **_change_of_share(baseline, change),
        # Here a fall is no gain.
        "rose": change.worse,
        "fell": change.better,
        **_change_over_null(baseline, other, grid, toxic_prompts, rule),
    }


def _change_of_share(baseline: Measured, change: metrics.Difference) -> dict[str, Any]:
    return {
        "from": baseline.label,
        "n": change.n,
        "delta": change.delta,
        "delta_ci95": _pair(change.delta_ci95),
        "p_value": change.p_value,
    }


def _change_over_null(
    baseline: Measured, other: Measured, grid: _Grid, toxic_prompts: BoolArray, rule: _Rule
) -> dict[str, Any]:
    """The change of what exceeds the null, over pairs of answers of which both runs have it; else None."""
    before, after = (
        # From -1 .. 1 to 0 .. 1, where scores lie.
        np.where(
            toxic_prompts,
            (1 + grid.values(run, run.quality.counter_narrative - run.quality.counter_narrative_null)) / 2,
            np.nan,
        )
        for run in (baseline, other)
    )
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    delta, interval = change.mean_delta, change.mean_delta_ci95
    return {
        "delta_over_null": None if delta is None else 2 * delta,
        "delta_over_null_ci95": None if interval is None else [2 * bound for bound in interval],
        "p_value_over_null": change.mean_p_value,
    }


def _truncated_change(baseline: Measured, other: Measured, grid: _Grid, rule: _Rule) -> dict[str, Any] | None:
    """As a comparison, of the share of answers that were cut off; None where it isn't known of any pair."""
    before, after = (grid.values(run, run.quality.truncated) for run in (baseline, other))
    change = metrics.paired_difference(before, after, n_resamples=rule.n_resamples, seed=rule.seed)
    return None if change.n == 0 else _change_of_share(baseline, change)


def _preset(settings: Mapping[str, Any]) -> str | None:
    """The preset of ``rewardlm measure`` that fixes the length of answers by definition, where the run followed it."""
    wanted = flatten(MEASURE_PRESETS["rtp-paper"])
    found = flatten(settings)
    return "rtp-paper" if all(found.get(name) == value for name, value in wanted.items()) else None


def _rewards(run: Run) -> list[str]:
    """Scorers that the measured model was trained on, as far as the run knows."""
    for source in (run.meta, run.meta["settings"]):
        for key in ("rewards", "reward"):
            found = source.get(key)
            if isinstance(found, str):
                return [name.strip() for name in found.split(",") if name.strip()]
            if isinstance(found, list):
                return [str(name) for name in found]
    return []


def _refuse_other_prompts(baseline: Measured, other: Measured) -> None:
    ours = {prompt.id: prompt for prompt in baseline.prompts}
    theirs = {prompt.id: prompt for prompt in other.prompts}
    who = f"{baseline.run.path} ({len(ours)} prompts) and {other.run.path} ({len(theirs)})"
    for one, two, owner in ((ours, theirs, baseline), (theirs, ours, other)):
        lone = [name for name in one if name not in two]
        if lone:
            raise RunError(
                f"prompts_differ: {who} answered different prompts: {len(lone)} are only in "
                f"{owner.run.path}, such as {lone[0]!r}; measure both on one list"
            )
    changed = [name for name, prompt in ours.items() if prompt.turns != theirs[name].turns]
    if changed:
        raise RunError(
            f"prompts_differ: {who} have the same ids but different texts in {len(changed)} prompts, such "
            f"as {changed[0]!r}; measure both on one list"
        )


def _refuse_other_model(baseline: Measured, again: Measured) -> None:
    """A second draw is of the same model and settings, from another seed."""
    for key in ("model", "model_hash", "adapter_hash"):
        ours, theirs = baseline.meta.get(key), again.meta.get(key)
        if ours != theirs:
            raise RunError(
                f"{again.run.path} is no second draw of {baseline.run.path}: its {key} is {theirs!r}, not {ours!r}; "
                "measure the baseline again with another --seed"
            )
    ours, theirs = (
        {name: value for name, value in drawn_by(run).items() if name != "samples"} for run in (baseline, again)
    )
    other = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if other:
        raise RunError(
            f"{again.run.path} is no second draw of {baseline.run.path}: {', '.join(other)} differ; measure the "
            "baseline again with another --seed and nothing else changed"
        )
    seeds = [run.meta["settings"].get("seed") for run in (baseline, again)]
    if baseline.run.path.resolve() == again.run.path.resolve() or (seeds[0] == seeds[1] and seeds[0] is not None):
        raise RunError(
            f"{again.run.path} was drawn from the same seed as {baseline.run.path} ({seeds[0]}), so its answers are "
            "the same: measure the baseline again with another --seed"
        )


def _refuse_other_toxicity(baseline: Measured, other: Measured) -> None:
    ours, theirs = (run.meta.get("toxic_by", "dataset") for run in (baseline, other))
    if ours != theirs:
        raise RunError(
            f"{baseline.run.path} calls prompts toxic by {ours!r}, {other.run.path} by {theirs!r}: "
            "measure both with the same --toxic-by"
        )
    stored = {prompt.id: prompt.toxicity for prompt in other.prompts}
    for prompt in baseline.prompts:
        one, two = prompt.toxicity, stored[prompt.id]
        if (one is None) != (two is None) or (
            one is not None and two is not None and abs(one - two) > _TOXICITY_TOLERANCE
        ):
            raise RunError(
                f"{baseline.run.path} and {other.run.path} store different toxicities of prompt "
                f"{prompt.id!r} ({one} and {two}): measure both with the same data and --toxic-by"
            )


def _refuse_other_weights(baseline: Measured, other: Measured) -> None:
    if baseline.meta.get("model") is None or baseline.meta.get("model") != other.meta.get("model"):
        return
    ours, theirs = baseline.meta.get("model_hash"), other.meta.get("model_hash")
    if ours is not None and theirs is not None and ours != theirs:
        raise RunError(
            f"weights_differ: both runs measured {baseline.meta['model']!r}, but it resolved to other "
            f"weights ({str(ours)[:12]}… in {baseline.run.path}, {str(theirs)[:12]}… in {other.run.path}): "
            "measure one again"
        )


def _refuse_other_labels(baseline: Measured, other: Measured) -> None:
    for name, label in baseline.main_labels.items():
        theirs = other.main_labels.get(name)
        if theirs is not None and label and theirs and label.casefold() != theirs.casefold():
            raise RunError(
                f"{name!r} scored {label!r} in {baseline.run.path} and {theirs!r} in {other.run.path}: "
                f"score one again with {name}#{label}"
            )


def _refuse_other_judges(baseline: Measured, other: Measured, scorer: str | None) -> None:
    """A judge of one name that isn't one judge is an error, or left out where another one was asked for."""
    ours, theirs = (
        {entry["name"]: entry.get("revision") for entry in run.meta.get("scorers", [])} for run in (baseline, other)
    )
    for name in sorted(ours.keys() & theirs.keys()):
        # Where nobody knows a judge's weights, its name is taken at its word.
        if None in (ours[name], theirs[name]) or ours[name] == theirs[name]:
            continue
        shared = {kept for kept in baseline.scores.keys() & other.scores.keys() if f"{kept}.".startswith(f"{name}.")}
        if (scorer is None and shared) or scorer in shared:
            raise RunError(
                f"{name!r} is not the same judge in both: {str(ours[name])[:40]} in {baseline.run.path}, "
                f"{str(theirs[name])[:40]} in {other.run.path}: measure one again, or compare by another judge "
                "(--scorer)"
            )
        other.scores = {kept: scores for kept, scores in other.scores.items() if kept not in shared}


def _refuse_without_scorer(runs: Sequence[Measured], scorer: str | None) -> None:
    """A run without the judge that was asked for, or sharing none with the baseline, is an error."""
    for run in runs:
        if scorer is not None and scorer not in run.scores:
            available = ", ".join(run.scores) or "none"
            raise RunError(
                f"{run.run.path} has no scores by {scorer!r}: it has {available}; choose one, or run "
                f"rewardlm score {run.run.path} --scorer {scorer}"
            )
        if not run.scores.keys() & runs[0].scores.keys() and run is not runs[0]:
            raise RunError(
                f"{runs[0].run.path} (scorers: {', '.join(runs[0].scores) or 'none'}) and {run.run.path} "
                f"({', '.join(run.scores) or 'none'}) share no scorer: add one with rewardlm score"
            )


def _keep_scorer(runs: Sequence[Measured], scorer: str | None) -> None:
    """Drop the other judges, if one was asked for."""
    if scorer is None:
        return
    for run in runs:
        run.scores = {scorer: run.scores[scorer]}
        run.disagreement = {name: values for name, values in run.disagreement.items() if name == scorer}


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _share(flags: BoolArray) -> float | None:
    return float(flags.mean()) if flags.size else None
