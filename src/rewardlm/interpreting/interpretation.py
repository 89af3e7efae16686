"""Runs in, an interpretation out: every part in turn, each answer's results written down as they come.

A reading that was interrupted goes on: what is in ``drift.jsonl`` and ``attributions.jsonl`` isn't read again. The
summary, ``interpretation.json``, is made from these at the end, and is all that the report needs.
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
from rewardlm.interpreting.drift import VocabularyDrift
from rewardlm.interpreting.drift_summary import drift_comparison
from rewardlm.interpreting.intervals import Resampling, adjust
from rewardlm.interpreting.mechanistic.examination import examine_runs
from rewardlm.interpreting.models import RunModel, load_subjects
from rewardlm.interpreting.records import record_attribution, record_drift, record_faithfulness
from rewardlm.interpreting.similarity import similarity
from rewardlm.interpreting.stratified import RunMeans
from rewardlm.measuring.audit import same_judge
from rewardlm.measuring.compare import Measured
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, alone

KIND = "interpretation"


# May differ when an interpretation goes on.
_FREE = ("device", "batch_tokens")


def interpret(
    paths: Sequence[Path], settings: InterpretSettings, out: Path, *, report: ProgressCallback | None = None
) -> Run:
    """Look into the models of measured runs, the baseline first; a finished interpretation is returned as it is.

    Raises RunError for runs that don't fit (other prompts, no judge in common, no model) or where another command
    writes ``out``, and ModelError where models can't be loaded or held against each other.
    """
    with alone(out):
        return _interpret(paths, settings, out, report)


def _interpret(paths: Sequence[Path], settings: InterpretSettings, out: Path, report: ProgressCallback | None) -> Run:
    if len(paths) < 2:
        raise RunError("interpret holds models against a baseline: name at least two measured runs, the baseline first")
    measured = load_runs(paths)
    scorer = choose_scorer(measured, settings.scorer)
    recorded = {
        **settings.model_dump(mode="json"),
        "scorer": scorer,
        "runs": [str(Path(path).absolute()) for path in paths],
    }
    run = Run.start(
        out,
        kind=KIND,
        label=" → ".join(one.label for one in measured),
        settings=recorded,
        free=_FREE,
    )
    if run.finished:
        return run
    subjects = load_subjects([one.run for one in measured], settings)
    for one, subject in zip(measured, subjects, strict=True):
        one.label = subject.label
    weights = [[one.run.meta.get("model_hash"), one.run.meta.get("adapter_hash")] for one in measured]
    if run.meta.get("weights", weights) != weights:
        raise RunError(f"{run.path} was begun with other weights of these runs' models: choose another --out")
    run.update(weights=weights, adapter_off_is_base=True)
    sample = draw(measured, subjects, scorer=scorer, limit=settings.limit, seed=settings.seed)
    sums = record_drift(run, subjects, sample, settings, report)
    record_attribution(run, subjects, sample, settings, report)
    record_faithfulness(run, subjects, sample, settings, report)
    result = summarise(run, measured, subjects, sample, sums, settings)
    result |= _inside(run, measured, subjects, sample, settings, report)
    run.store(KIND, result)
    run.update(status="finished")
    return run


def _inside(
    run: Run,
    measured: Sequence[Measured],
    subjects: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    report: ProgressCallback | None,
) -> dict[str, Any]:
    if not settings.look_inside:
        return {"inside": None, "inside_notes": ["The residual stream was not asked for (look_inside=false)."]}
    found, notes = examine_runs(measured, subjects, sample, settings, report=report)
    return {"inside": found, "inside_notes": notes}


def summarise(
    run: Run,
    measured: Sequence[Measured],
    subjects: Sequence[RunModel],
    sample: AnswerSample,
    sums: VocabularyDrift,
    settings: InterpretSettings,
) -> dict[str, Any]:
    """The object of ``interpret --json``."""
    draws = Resampling(settings.n_resamples, settings.seed)
    of_run = RunMeans(settings.n_resamples, settings.seed, sample)
    drifts = list(run.read("drift"))
    attributions = list(run.read("attributions"))
    tests = list(run.read("faithfulness"))
    tokenizer = subjects[0].policy.tokenizer
    result = {
        "models": [
            {
                "label": subject.label,
                "model": subject.policy.spec,
                "adapter": one.run.meta.get("adapter"),
                "rewards": one.rewards,
                "dtype": str(subject.policy.dtype).removeprefix("torch."),
            }
            for one, subject in zip(measured, subjects, strict=True)
        ],
        "sample": _sample(measured, sample, settings),
        "drift": {
            "comparisons": [
                drift_comparison(model, measured, sample, drifts, sums, tokenizer, settings, of_run)
                for model in range(1, len(subjects))
            ]
        },
        "attribution": attribution_summary(measured, sample, attributions, tests, settings, of_run),
        "similarity": similarity(measured, sample, draws),
        "notes": _notes(measured, sample, settings),
    }
    adjust(_asked_of_each_model(result))
    return result


def _asked_of_each_model(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes that the sentences about the models rest on, which are read together."""
    similarity = result["similarity"] or {"models": [], "comparisons": []}
    return [
        *(entry["toxic_check"]["difference"] for entry in result["drift"]["comparisons"]),
        *(entry["same_tokens"]["prompt_change"] for entry in result["attribution"]["comparisons"]),
        *(entry["above_null"] for entry in similarity["models"]),
        *(entry["above_null_change"] for entry in similarity["comparisons"]),
    ]


def _sample(measured: Sequence[Measured], sample: AnswerSample, settings: InterpretSettings) -> dict[str, Any]:
    return {
        "scorer": sample.scorer,
        "reward_of": [
            one.label for one in measured if any(same_judge(sample.scorer, reward) for reward in one.rewards)
        ],
        "from": measured[0].label,
        "to": measured[-1].label,
        "pairs": len(sample.pairs),
        "of": sample.of,
        "unscored": sample.unscored,
        "strata": sample.strata,
        "redraw": sample.redraw,
        "tokens_an_answer": settings.attribution.tokens,
        "reencoded": sum(answer.reencoded for answer in sample.answers),
        "seed": settings.seed,
    }


def _notes(measured: Sequence[Measured], sample: AnswerSample, settings: InterpretSettings) -> list[str]:
    notes = []
    labels = list(dict.fromkeys(measured[answer.author].label for answer in sample.answers if answer.reencoded))
    if labels:
        notes.append(
            f"No token ids are stored of {', '.join(labels)} (measured before ids were kept): the texts were encoded "
            "again, which may cut words otherwise than they were written, and leaves out the end token."
        )
    without = [one.label for one in measured if np.isnan(one.quality.prompt_similarity).all()]
    if without:
        notes.append(
            f"Similarity with the prompt was not measured of {', '.join(without)}: rewardlm score RUN similarity=true, "
            "then interpret into another --out."
        )
    if len(sample.pairs) < min(settings.limit, sample.of):
        notes.append(f"{len(sample.pairs)} of the {settings.limit} pairs asked for were there.")
    return notes
