"""Measured runs in, an interpretation out, from top to bottom: records of single answers, then their summaries.

``records`` reads every answer and appends what it finds, so an interrupted interpretation can go on. The summaries are
made from the records at the end. ``findings`` is the shape of interpretation.json, which is all that the report needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.config import InterpretSettings
from rewardlm.errors import RunError
from rewardlm.interpreting.answers import AnswerSample, choose_scorer, draw, load_runs
from rewardlm.interpreting.attribution_summary import attribution_summary
from rewardlm.interpreting.causes.explain import Causes, explain_runs
from rewardlm.interpreting.drift import VocabularyDrift
from rewardlm.interpreting.drift_summary import drift_comparison
from rewardlm.interpreting.findings import Drift, Inside, Interpretation, ModelFacts, SampleFacts
from rewardlm.interpreting.intervals import Resampling, adjust
from rewardlm.interpreting.mechanistic.examination import examine_runs
from rewardlm.interpreting.models import RunModel, load_models, readers_of
from rewardlm.interpreting.records import (
    AttributionRecord,
    DriftRecord,
    FaithfulnessRecord,
    record_attribution,
    record_drift,
    record_faithfulness,
)
from rewardlm.interpreting.shown_answers import shown_examples
from rewardlm.interpreting.similarity import similarity
from rewardlm.interpreting.stratified import RunMeans
from rewardlm.measuring.independence import same_judge
from rewardlm.measuring.measured import Measured
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone
from rewardlm.scoring.load import check_judges

KIND = "interpretation"
# May differ when an interpretation goes on.
_FREE = ("device", "batch_tokens")


def interpret(
    paths: Sequence[Path], settings: InterpretSettings, out: Path, *, report: ProgressCallback | None = None
) -> Run:
    """Look into the models of measured runs, the baseline first. A finished interpretation is returned as it is.

    Raises RunError for runs that don't fit (other prompts, no judge in common, no model) or if another command writes
    to ``out``, and ModelError if models can't be loaded or compared.
    """
    with alone(out):
        return _interpret(paths, settings, out, report)


def _interpret(paths: Sequence[Path], settings: InterpretSettings, out: Path, report: ProgressCallback | None) -> Run:
    if len(paths) < 2:
        raise RunError("interpret compares models with a baseline: name at least two measured runs, the baseline first")
    measured = load_runs(paths)
    scorer = choose_scorer(measured, settings.scorer)
    recorded = {
        **settings.model_dump(mode="json"),
        "scorer": scorer,
        "runs": [str(Path(path).absolute()) for path in paths],
    }
    label = " → ".join(one.label for one in measured)
    run = Run.start(out, kind=KIND, label=label, settings=recorded, free=_FREE)
    if run.finished:
        return run
    if settings.word_judge or settings.asks_for_causes:
        check_judges([settings.word_judge or "lexical"])
    run_models = load_models([one.run for one in measured], settings)
    for one, run_model in zip(measured, run_models, strict=True):
        one.label = run_model.label
    weights = [_weights(one.run) for one in measured]
    if run.meta.get("weights", weights) != weights:
        raise RunError(f"{run.path} was started with other weights of these models: choose another --out")
    run.update(weights=weights, adapter_off_is_base=True)
    sample = draw(measured, run_models, scorer=scorer, limit=settings.limit, seed=settings.seed)
    sums = record_drift(run, run_models, sample, settings, report)
    record_attribution(run, run_models, sample, settings, report)
    record_faithfulness(run, run_models, sample, settings, report)
    inside, inside_notes = _inside(measured, run_models, sample, settings, report)
    causes = Causes([])
    if settings.asks_for_causes:
        causes = explain_runs(run, measured, run_models, sample, settings, report=report)
        inside_notes = [*inside_notes, *causes.notes]
    found = _summarise(run, measured, run_models, sample, sums, settings, inside, inside_notes, causes)
    run.store(KIND, found.dump())
    run.update(status="finished")
    return run


def _inside(
    measured: Sequence[Measured],
    run_models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    report: ProgressCallback | None,
) -> tuple[Inside | None, list[str]]:
    if not settings.look_inside:
        return None, ["The residual stream was left out, as you asked (look_inside=false)."]
    return examine_runs(measured, run_models, sample, settings, report=report)


def _summarise(
    run: Run,
    measured: Sequence[Measured],
    run_models: Sequence[RunModel],
    sample: AnswerSample,
    sums: VocabularyDrift,
    settings: InterpretSettings,
    inside: Inside | None,
    inside_notes: list[str],
    causes: Causes,
) -> Interpretation:
    draws = RunMeans(settings.n_resamples, settings.seed, sample)
    drifted, attributed = (readers_of(run_models, part) for part in ("drift", "attribution"))
    drifts = [DriftRecord.model_validate(record) for record in run.read("drift")]
    attributions = [AttributionRecord.model_validate(record) for record in run.read("attributions")]
    tests = [FaithfulnessRecord.model_validate(record) for record in run.read("faithfulness")]
    tokenizer = run_models[0].policy.tokenizer
    found = Interpretation(
        models=[
            ModelFacts(
                label=run_model.label,
                model=run_model.policy.spec,
                adapter=one.run.meta.get("adapter"),
                rewards=one.rewards,
                dtype=str(run_model.policy.dtype).removeprefix("torch."),
                **_treatment(run_model),
                **causes.facts.get(run_model.label, {}),
            )
            for one, run_model in zip(measured, run_models, strict=True)
        ],
        sample=_sample(measured, sample, settings),
        drift=Drift(
            comparisons=[
                drift_comparison(model, measured, sample, drifts, sums, row, tokenizer, settings, draws)
                for row, model in enumerate(drifted)
                if row
            ]
        ),
        attribution=attribution_summary(measured, attributed, sample, attributions, tests, settings, draws),
        similarity=similarity(measured, sample, Resampling(settings.n_resamples, settings.seed)),
        notes=_notes(measured, run_models, sample, settings),
        inside=inside,
        inside_notes=inside_notes,
        causes=causes.settings,
        shown=shown_examples(measured, drifted[-1], sample, drifts, attributions, tokenizer),
    )
    # The changes that the sentences about the models rest on, which are read together.
    family = [entry.toxic_check.difference for entry in found.drift.comparisons]
    family += [entry.same_tokens.prompt_change for entry in found.attribution.comparisons]
    if found.similarity is not None:
        family += [model.above_null for model in found.similarity.models]
        family += [entry.above_null_change for entry in found.similarity.comparisons]
    adjust(family)
    return found


def _sample(measured: Sequence[Measured], sample: AnswerSample, settings: InterpretSettings) -> SampleFacts:
    return SampleFacts(
        scorer=sample.scorer,
        reward_of=[one.label for one in measured if any(same_judge(sample.scorer, reward) for reward in one.rewards)],
        from_=measured[0].label,
        to=measured[-1].label,
        pairs=len(sample.pairs),
        of=sample.of,
        unscored=sample.unscored,
        strata=sample.strata,
        redraw=sample.redraw,
        tokens_an_answer=settings.attribution.tokens,
        seed=settings.seed,
    )


def _weights(run: Run) -> list[Any]:
    """What must be the same when an interpretation goes on: the weights, and how they were treated."""
    found: list[Any] = [run.meta.get("model_hash"), run.meta.get("adapter_hash")]
    treatment, scale = run.meta.get("treatment"), run.meta.get("adapter_strength")
    if scale not in (None, 1) or treatment is not None:
        found += [scale, treatment and [treatment["hash"], treatment["strength"]]]
    return found


def _treatment(run_model: RunModel) -> dict[str, Any]:
    """What the facts of a model say of its treatment; nothing where it had none."""
    scale = run_model.run.meta.get("adapter_strength")
    found: dict[str, Any] = {} if scale in (None, 1) else {"adapter_strength": scale}
    if run_model.method is not None:
        found |= {"method": run_model.method, "strength": run_model.strength, "left_out": dict(run_model.left_out)}
    return found


def _said(run_model: RunModel) -> list[str]:
    """What a reader must know of how the model was treated, in sentences; nothing where it wasn't."""
    label, strength = run_model.label, f"{run_model.strength:g}"
    scale = run_model.run.meta.get("adapter_strength")
    found = [] if scale in (None, 1) else [f"{label} has {scale:g} times what its adapter adds, and is read so."]
    if run_model.method == "task-vector":
        return [*found, f"{label} is its base without {strength} times an adapter (task-vector), and is read so."]
    if run_model.method is not None:
        found.append(f"{label} answered under steering ({run_model.method}, strength {strength}).")
    by_reason: dict[str, list[str]] = {}
    for part, why in run_model.left_out.items():
        by_reason.setdefault(why, []).append("the inside" if part == "inside" else part)
    return found + [f"Not read of {label}: {', '.join(parts)}, because {why}." for why, parts in by_reason.items()]


def _notes(
    measured: Sequence[Measured], run_models: Sequence[RunModel], sample: AnswerSample, settings: InterpretSettings
) -> list[str]:
    notes = [sentence for run_model in run_models for sentence in _said(run_model)]
    without = [one.label for one in measured if np.isnan(one.quality.prompt_similarity).all()]
    if without:
        notes.append(
            f"Similarity with the prompt was not measured for {', '.join(without)}: run rewardlm score RUN "
            "similarity=true, then interpret into another --out."
        )
    if len(sample.pairs) < min(settings.limit, sample.of):
        notes.append(f"You asked for {settings.limit} pairs, and there were {len(sample.pairs)}.")
    return notes
