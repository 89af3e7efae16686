"""Stored runs in, one ``Comparison`` out: what ``rewardlm compare`` prints.

``metrics`` and ``quality`` define the numbers, ``summaries`` and ``changes`` compute them, and ``audit`` says whether
to believe them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rewardlm.config import CorrectionMethod
from rewardlm.errors import RunError
from rewardlm.labelling.folder import LabelFolder
from rewardlm.measuring import metrics
from rewardlm.measuring.audit import audit
from rewardlm.measuring.changes import (
    accuracy_change,
    changes,
    counter_narrative_change,
    quality_changes,
    truncated_change,
    utility_changes,
)
from rewardlm.measuring.comparable import refuse_incomparable
from rewardlm.measuring.comparison import Comparison, ComparisonSettings, OwnThreshold
from rewardlm.measuring.grid import Grid, Rule, prompt_splits
from rewardlm.measuring.group_gains import groups_changes
from rewardlm.measuring.known_errors import errors_on_suite
from rewardlm.measuring.labelled import Correction, labels_of
from rewardlm.measuring.measured import Measured, load_measured
from rewardlm.measuring.non_inferiority import non_inferiority
from rewardlm.measuring.over_refusal import over_refusal_change
from rewardlm.measuring.primary import adjust, adjust_models, choose
from rewardlm.measuring.result import ShareChange
from rewardlm.measuring.severity import severity_changes, severity_curves
from rewardlm.measuring.summaries import summarise
from rewardlm.measuring.thresholds import thresholds_in_force
from rewardlm.runs import unique_labels
from rewardlm.scoring.thresholds import Matching, Threshold


def compare(
    paths: Sequence[Path | Measured],
    *,
    scorer: str | None = None,
    threshold: float = metrics.THRESHOLD,
    inclusive: bool = False,
    n_resamples: int = metrics.RESAMPLES,
    seed: int = 0,
    redraw: Path | None = None,
    primary: Mapping[str, str | None] | None = None,
    thresholds: Path | None = None,
    matching: Matching = "share",
    utility_margin: float = 0.01,
    labels: Path | None = None,
    correction: CorrectionMethod | None = None,
    errors_suite: str = "jigsaw",
    expected_flows: bool = True,
) -> Comparison:
    """Compare every run with the first, the baseline. Runs may have been read before.

    ``scorer`` limits the tables to one judge. By default they show every judge, and comparisons every judge that both
    runs have. P-values are adjusted for all judges in any case, because you could have looked at the others. A sample
    or a prompt is toxic above ``threshold`` (at or above it, if ``inclusive``).
    In a comparison, ``n`` counts the pairs scored in both runs; in a model's own entry, the answers, scored or not.
    Beside each flow stands what a second draw of the baseline gives: from its other answers to the same prompts, and
    from ``redraw``, a second run of the baseline with another seed.
    ``thresholds`` is a thresholds.yaml of ``judge migrate``: the judges in it have a threshold of their own, the one of
    the same share or precision (``matching``). By default those hold that the runs were measured with; the path "none"
    leaves these aside.
    ``utility_margin`` is the loss in utility that ``non_inferiority`` accepts.
    ``labels`` is a folder of ``rewardlm label``, by which shares and changes are also corrected (``correction``, by
    default ppi). Without it, rogan-gladen corrects by the judges' errors on ``errors_suite``.
    ``expected_flows`` False leaves out what chance alone does to flows, most of the work.
    ``primary`` asks for a primary outcome, ``{"scorer", "split", "metric"}``; each may be None (``primary.choose``).

    Raises RunError for runs that can't be compared; its message starts with ``prompts_differ`` or
    ``weights_differ`` in the two cases that have a code.
    """
    if not paths:
        raise RunError("nothing to compare: name at least one run, the baseline first")
    runs = [path if isinstance(path, Measured) else load_measured(Path(path)) for path in paths]
    again = None if redraw is None else load_measured(Path(redraw))
    everything = [*runs, *([] if again is None else [again])]
    for run, label in zip(everything, unique_labels([run.label for run in everything]), strict=True):
        run.label = label
    refuse_incomparable(runs, again, scorer=scorer)
    baseline = runs[0]
    moved = thresholds_in_force(everything, thresholds, matching, inclusive=inclusive)
    rule = Rule(threshold, inclusive, n_resamples, seed, moved)
    grid = Grid(everything)
    splits = prompt_splits(baseline.prompts, rule.of(baseline.meta.get("toxic_by", "dataset")))
    correcting = _correction(correction, labels, errors_suite, runs, grid, rule)
    tests = [
        change
        for other in runs[1:]
        for change in changes(baseline, other, again, grid, splits, rule, correcting, expected_flows=expected_flows)
    ]
    has_toxic_prompts = bool(splits["toxic_prompts"].any())
    tests = adjust(tests, choose(runs, primary, has_toxic_prompts=has_toxic_prompts)[0])
    _keep_scorer(runs, scorer)
    comparisons = [change for change in tests if change.scorer in baseline.scores]
    models = summarise(runs, grid, splits, rule, correcting)
    models[1:] = [
        model.model_copy(
            update={
                "counter_narrative_change": counter_narrative_change(
                    baseline, run, grid, splits["toxic_prompts"], rule
                ),
                "truncated_change": truncated_change(baseline, run, grid, rule),
                "quality_change": quality_changes(baseline, run, grid, rule),
                **_utility(baseline, run, rule, utility_margin),
            }
        )
        for run, model in zip(runs[1:], models[1:], strict=True)
    ]
    models = adjust_models(models)
    chosen, fixed = choose(runs, primary, has_toxic_prompts=has_toxic_prompts)
    split = "all" if chosen is None else chosen.split
    return Comparison(
        models=models,
        comparisons=comparisons,
        primary=chosen,
        primary_fixed=fixed,
        severity=severity_curves(runs, grid, splits, split, rule),
        severity_change=list(severity_changes(runs, grid, splits, split, rule)),
        warnings=audit(runs, models, comparisons, grid, splits, rule),
        correction_notes=[] if correcting is None else correcting.notes(models),
        settings=ComparisonSettings(
            threshold=threshold,
            inclusive=inclusive,
            n_resamples=n_resamples,
            seed=seed,
            utility_margin=utility_margin,
            redraw=None if again is None else again.label,
            **_own_thresholds(moved, runs),
        ),
    )


def _correction(
    method: CorrectionMethod | None,
    labels: Path | None,
    suite: str,
    runs: Sequence[Measured],
    grid: Grid,
    rule: Rule,
) -> Correction | None:
    if labels is not None:
        return Correction(method or "ppi", grid, rule, labels=labels_of(runs, LabelFolder.open(labels)))
    if method is None:
        return None
    judges = dict.fromkeys(name for run in runs for name in run.scores)
    return Correction(method, grid, rule, errors=errors_on_suite(suite, runs, judges, rule))


def _utility(baseline: Measured, run: Measured, rule: Rule, margin: float) -> dict[str, object]:
    """The fields of a model's summary that say what it lost besides toxicity, by ``measure --suite``."""
    tasks = utility_changes(baseline, run, rule)
    refusals = over_refusal_change(baseline.label, baseline.harmless, run.harmless, rule)
    accuracy = accuracy_change(baseline, run, rule)
    both: dict[str, ShareChange] = {**tasks, **({} if accuracy is None else {"accuracy": accuracy})}
    if refusals is not None:
        both["over_refusal"] = refusals.of_unanswered()
    return {
        "utility_change": tasks,
        "accuracy_change": accuracy,
        "non_inferiority": non_inferiority(both, margin),
        "over_refusal_change": refusals,
        "groups_change": groups_changes(baseline.label, baseline.groups, run.groups, rule),
    }


def _own_thresholds(moved: Mapping[str, Threshold], runs: Sequence[Measured]) -> dict[str, dict[str, OwnThreshold]]:
    """Those of the judges that are shown; nothing where there are none, so that JSON says nothing either."""
    shown = {
        name: OwnThreshold(value=own.value, matching=own.matching, old=own.old, n=own.n, source=own.source)
        for name, own in moved.items()
        if any(name in run.scores for run in runs)
    }
    return {"thresholds": shown} if shown else {}


def _keep_scorer(runs: Sequence[Measured], scorer: str | None) -> None:
    """Drop the other judges, if one was asked for."""
    if scorer is None:
        return
    for run in runs:
        run.scores = {scorer: run.scores[scorer]}
        run.disagreement = {name: values for name, values in run.disagreement.items() if name == scorer}
        if run.groups is not None:
            run.groups.scores = {name: values for name, values in run.groups.scores.items() if name == scorer}
