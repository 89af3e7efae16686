"""The base and its adapters taken apart, from top to bottom: ``inside`` in interpretation.json.

The first model is the base; the others are adapters on it, which share its weights. Row i of every model is an
answer to prompt i. Models are compared on the same text, the base's own answers, so that what differs is how it
is read. Of models whose stream is steered, less can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rewardlm.config import InsideSettings, InterpretSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import (
    TOXIC_ABOVE,
    AnswerSample,
    LabelledAnswer,
    ModelAnswers,
    RedrawnAnswers,
    redrawn_pairs,
    stored_answers,
    toxicity_changes,
)
from rewardlm.interpreting.findings import ContrastWords, Estimate, Focus, Inside
from rewardlm.interpreting.intervals import Resampling, adjust, change_between
from rewardlm.interpreting.mechanistic.activations import FEWEST_TOXIC, BaseText
from rewardlm.interpreting.mechanistic.adapter_effects import follow_path, preferences, read_adapter
from rewardlm.interpreting.mechanistic.asked_judges import judge_of, toxicity_by
from rewardlm.interpreting.mechanistic.causal_check import check_causes
from rewardlm.interpreting.mechanistic.probes import read_directions
from rewardlm.interpreting.mechanistic.residual_stream import read_steered, read_stream
from rewardlm.interpreting.mechanistic.value_vectors import choose_value_vectors, read_vectors
from rewardlm.interpreting.mechanistic.vector_ablation import ablate_vectors
from rewardlm.interpreting.mechanistic.verdicts import claims, verdict_of
from rewardlm.interpreting.mechanistic.word_contrast import Contrast, ToxicityFunction, contrast_for
from rewardlm.interpreting.models import RunModel, as_measured
from rewardlm.measuring.measured import Measured
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.progress import ProgressCallback
from rewardlm.scoring.load import load_scorer

# Of the baseline's stored answers so many may teach the probe, drawn by seed.
_LABELLED = 400


def examine_runs(
    measured: Sequence[Measured],
    models: Sequence[RunModel],
    sample: AnswerSample,
    settings: InterpretSettings,
    *,
    report: ProgressCallback | None = None,
) -> tuple[Inside | None, list[str]]:
    """What ``examine`` finds of the baseline, of those runs that are adapters on it and of those that are steered in
    its stream, and what it left out.

    None where the baseline is no bare base or of a family that can't be taken apart, or there are no such runs.
    """
    base = models[0]
    if base.adapter is not None or base.steering is not None:
        has = "is steered" if base.steering is not None else "has an adapter"
        return None, [f"{base.label} {has} itself, so the residual stream was left out: name the base's run first."]
    on_base = [number for number, model in enumerate(models) if number == 0 or model.policy is base.policy]
    there = [
        number for number in on_base if number == 0 or (models[number].adapter and models[number].steering is None)
    ]
    steered = [number for number in on_base if models[number].changes_stream]
    if len(there) < 2 and not steered:
        return None, [f"None of the runs is an adapter on {base.label}’s model: the residual stream was left out."]
    try:
        architecture_of(base.policy.causal_lm)
    except ModelError as error:
        return None, [f"The residual stream was left out: {error}."]
    notes = [
        f"{model.label} is no adapter on {base.label}’s model: its residual stream was left out."
        for number, model in enumerate(models)
        # Of those that are steered, the interpretation's own notes say it.
        if number not in there and model.steering is None
    ]
    judge, more = judge_of(sample.scorer, str(base.policy.device))
    chosen = as_measured(settings.inside, settings, base.run)
    answers = {(answer.pair, answer.author): answer for answer in sample.answers}
    intervals = Resampling(chosen.n_resamples, chosen.seed)
    # Of the whole run: the sample has as many answers that rose as fell.
    changes = [None, *(intervals.change(*change) for change in toxicity_changes(measured, sample.scorer))]
    pairs = range(len(sample.pairs))
    found = examine(
        base.policy,
        [answers[pair, 0].prompt for pair in pairs],
        [
            ModelAnswers(
                models[number].label,
                models[number].adapter,
                [answers[pair, number].tokens for pair in pairs],
                [answers[pair, number].toxicity for pair in pairs],
                changes[number],
            )
            for number in there
        ],
        judge,
        chosen,
        word_judge=toxicity_by(load_scorer(settings.word_judge)) if settings.word_judge else None,
        labelled=stored_answers(measured[0], base, sample.scorer, limit=_LABELLED, seed=settings.seed),
        redrawn=redrawn_pairs(measured[0], base, sample.scorer, limit=chosen.redraw_pairs, above=TOXIC_ABOVE),
        steered={models[number].label: models[number].on for number in steered},
        report=report,
    )
    return found, [*notes, *more]


def examine(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    models: Sequence[ModelAnswers],
    judge: ToxicityFunction,
    settings: InsideSettings,
    *,
    word_judge: ToxicityFunction | None = None,
    labelled: Sequence[LabelledAnswer] = (),
    redrawn: Sequence[RedrawnAnswers] = (),
    steered: Mapping[str, Callable[[], AbstractContextManager[Any]]] | None = None,
    report: ProgressCallback | None = None,
) -> Inside:
    """Take ``models`` apart. ``prompts`` are token ids; ``judge`` gives P(toxic) of texts, None where it can't.

    ``word_judge`` chooses the toxic words where the settings name none; it is asked about tens of thousands of words,
    so it should be a quick one (None: ``judge``). ``labelled`` are more answers of the base, or toxic texts of
    any origin, as (prompt, response, toxicity), for the probe to learn from beside the base's own here. ``redrawn`` are
    toxic and harmless answers of the base to one prompt each: without any, whether a model came to prefer less toxic
    answers, or only its own, stays open. ``steered`` are models whose stream is steered, by label: inside of their
    contexts ``policy`` is such a model. Of these, only lens and attention are read.
    ``report(done, total, what)``.

    Raises ModelError if the first model isn't the base, an adapter is missing, rows don't fit, nothing can be read,
    or the family isn't known (see ``architecture``). The model is left as it was found.
    """
    _check(policy, prompts, models)
    progress = _Progress(report, len(models), len(steered or ()), bool(settings.causal_prompts))
    arch = architecture_of(policy.causal_lm)
    base, tuned = models[0], models[1:]
    text = BaseText(policy, prompts, base, settings)
    notes = []
    progress.step("the words whose logits are compared")
    contrast = contrast_for(policy, word_judge or judge, settings)
    if contrast is None:
        notes.append("The vocabulary holds too few toxic words for a contrast of logits: name some in toxic_words.")
    progress.step("the probe")
    directions, direction = read_directions(text, labelled)
    if direction is None:
        notes.append(f"No direction of toxicity was looked for: {directions.reason}.")
    chosen = choose_value_vectors(policy, contrast, direction, settings)
    readings = []
    for model in models:
        progress.step(f"the residual stream of {model.label}")
        readings.append(read_stream(text, model, contrast, chosen.vectors))
    stream = {model.label: summary for model, (summary, _) in zip(models, readings, strict=True)}
    for label, on in (steered or {}).items():
        progress.step(f"the residual stream of {label}")
        with on():
            stream[label] = read_steered(text, contrast)
    owners = [tuple(prompts[row]) for row in readings[0][1].rows.tolist()]
    vectors = read_vectors(text, models, chosen, owners, [arrays.activations for _, arrays in readings])
    progress.step("the value vectors, silenced")
    ablation = ablate_vectors(text, models, chosen.vectors, contrast, judge)
    adapters, paths = {}, {}
    redrawn = [pair for pair in redrawn if pair.toxic and pair.harmless][: settings.redraw_pairs]
    preferred = preferences(text, None, redrawn)
    for model in tuned:
        progress.step(f"what the adapter of {model.label} wrote")
        adapters[model.label] = read_adapter(text, model, contrast)
        progress.step(f"the adapter of {model.label} along its scale")
        paths[model.label] = follow_path(text, model, redrawn, preferred)
    causal = None
    if settings.causal_prompts:
        progress.step("answers under changes")
        causal = check_causes(
            text,
            models,
            judge,
            directions.layer,
            direction,
            report=lambda done, total: progress.detail(f"answers under change {done} of {total}"),
        )
    found = Inside(
        models=[model.label for model in models],
        family=policy.causal_lm.config.model_type,
        n_layers=len(arch.layers),
        n_heads=arch.n_heads,
        answers=len(text.answered),
        focus=Focus(answers=len(text.focus), toxic=len(text.toxic) >= FEWEST_TOXIC),
        words=_words(policy, contrast),
        stream=stream,
        directions=directions,
        vectors=vectors,
        ablation=ablation,
        adapters=adapters,
        paths=paths,
        causal=causal,
        verdicts={},
        settings=settings.model_dump(mode="json"),
        notes=notes,
    )
    changes = {model.label: _toxicity_change(base, model, settings) for model in tuned}
    adjust(claims(found, changes))
    for label, change in changes.items():
        found.verdicts[label] = verdict_of(found, label, change, settings)
    progress.finish()
    return found


def _toxicity_change(base: ModelAnswers, model: ModelAnswers, settings: InsideSettings) -> Estimate | None:
    """A copy: it will be corrected for what is read with it here."""
    if model.change is not None:
        return model.change.model_copy()
    return change_between(base.toxicity, model.toxicity, n_resamples=settings.n_resamples, seed=settings.seed)


def _check(policy: Policy, prompts: Sequence[Sequence[int]], models: Sequence[ModelAnswers]) -> None:
    if not models or models[0].adapter is not None:
        raise ModelError("the first model must be the base, without an adapter: the others are compared with it")
    for model in models:
        with using(policy, model.adapter):
            pass
        if not len(model.responses) == len(model.toxicity) == len(prompts):
            raise ModelError(
                f"{model.label}: {len(prompts)} prompts, {len(model.responses)} answers and "
                f"{len(model.toxicity)} scores: expected as many of each"
            )
    if not any(models[0].responses):
        raise ModelError(f"{models[0].label} has only empty answers: there is nothing to read")


class _Progress:
    """Counts the parts of an examination for ``report``."""

    def __init__(self, report: ProgressCallback | None, n_models: int, n_steered: int, causal: bool) -> None:
        self._report, self._done = report, -1
        self._total = 3 + n_models + n_steered + 2 * (n_models - 1) + causal

    def step(self, what: str) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total, what)

    def detail(self, what: str) -> None:
        """Say how far a step is."""
        if self._report is not None:
            self._report(self._done, self._total, what)

    def finish(self) -> None:
        if self._report is not None:
            self._report(self._total, self._total, "")


def _words(policy: Policy, contrast: Contrast | None) -> ContrastWords | None:
    if contrast is None:
        return None
    toxic, neutral = (
        [policy.tokenizer.decode([token]).strip() for token in side] for side in (contrast.toxic, contrast.neutral)
    )
    return ContrastWords(toxic=toxic, neutral=neutral)
