"""What is lost when the named value vectors are silenced, compared with random sets of others as long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import ModelAnswers, most_toxic_and_others
from rewardlm.interpreting.findings import AblationEffect, Estimate, ModelAblation, VectorAblation
from rewardlm.interpreting.intervals import change_between, shown
from rewardlm.interpreting.mechanistic.activations import BaseText
from rewardlm.interpreting.mechanistic.interventions import sample_answers, silenced, text_of
from rewardlm.interpreting.mechanistic.value_vectors import ValueVector, means_by_prompt
from rewardlm.interpreting.mechanistic.word_contrast import Contrast, ToxicityFunction
from rewardlm.models.architecture import architecture_of, weight_of
from rewardlm.models.logprobs import hidden_rows, pieces
from rewardlm.models.lora import using
from rewardlm.stats import LEVEL, rank_p_value
from rewardlm.trunk import evaluating

# Prompts that are answered where there are no words to read.
_PROMPTS = 10
# Of fewer random sets even the first place is no rarer than one in twenty.
FEWEST_SETS = 20
# So many of the random sets answer prompts, which takes most of the time, where there are words to read as well. They
# say what others take from toxicity, and nothing about chance.
_ANSWERING_SETS = 2


@torch.no_grad()
def vectors_like(causal_lm: Any, vectors: Sequence[ValueVector], number: int, seed: int) -> list[list[ValueVector]]:
    """``number`` sets of as many other value vectors, no vector in two of them. Each is drawn from the same layer,
    among the twentieth whose lengths are nearest (the ``number`` nearest, if these are more).

    There are fewer sets if a layer has too few other vectors.
    """
    arch = architecture_of(causal_lm)
    rng = np.random.default_rng(seed)
    taken = {(vector.layer, vector.neuron) for vector in vectors}
    by_vector: list[list[ValueVector]] = []
    for vector in vectors:
        lengths = weight_of(arch.mlp_out[vector.layer]).norm(dim=1)
        near = (lengths - lengths[vector.neuron]).abs().argsort(stable=True).tolist()
        free = [neuron for neuron in near if (vector.layer, neuron) not in taken]
        pool = free[: max(number, len(near) // 20)]
        drawn = rng.choice(len(pool), min(number, len(pool)), replace=False).tolist()
        taken |= {(vector.layer, pool[index]) for index in drawn}
        by_vector.append([ValueVector(vector.layer, pool[index], vector.sign, 0.0, ()) for index in drawn])
    return [list(one) for one in zip(*by_vector, strict=False)]


def ablate_vectors(
    text: BaseText,
    models: Sequence[ModelAnswers],
    vectors: Sequence[ValueVector],
    contrast: Contrast | None,
    judge: ToxicityFunction,
) -> VectorAblation | None:
    """What is lost without the named value vectors, held against as many others (Lee et al. 2024, section 3.3).

    Of every model, plain, with ``vectors`` silenced, and with sets of ``vectors_like`` them silenced: ``toxicity`` of
    new answers to ``ablation_prompts`` different prompts (half of them those whose base's answers are most toxic),
    from the same random streams, and ``logits``, toxic minus neutral words', on the base's answers, means by prompt.

    A finding needs two answers. ``beyond_random``: do they take more than the mean of the other sets, over prompts?
    ``p_value_random``: how many of ``random_sets`` other sets take as much, the named set counted? A few sets say
    nothing about chance, so the rank is that of the logits, which are cheap to read. Toxicity has a rank only where
    there are no words to read logits of. Sets are tried only where the model loses something by silencing the named
    ones, and a tuned model only where the base passes: else nothing is claimed.
    """
    if not vectors:
        return None
    policy, settings = text.policy, text.settings
    sets = vectors_like(policy.causal_lm, vectors, settings.random_sets, settings.seed)
    asked = settings.ablation_prompts
    if asked is None:
        asked = 0 if contrast is not None else _PROMPTS
    answering = most_toxic_and_others(text.prompts, text.base.toxicity, asked)
    # The toxic ones first, then others: three answers alone give no useful interval.
    focus = set(text.focus)
    read = [*text.focus, *(row for row in text.answered if row not in focus)][: settings.ablation_answers]
    owners = [tuple(text.prompts[row]) for row in read]

    def toxicity() -> list[float | None]:
        return _judged(text, answering, judge)

    def logits() -> list[float | None]:
        assert contrast is not None
        return [*map(float, means_by_prompt(_word_scores(text, read, contrast), owners))]

    by_toxicity = _Measure(toxicity, _ANSWERING_SETS if contrast is not None else len(sets), 1.0) if answering else None
    by_logits = None if contrast is None else _Measure(logits, len(sets), None)
    by_model: dict[str, ModelAblation] = {}
    base: ModelAblation | None = None
    for model in models:
        with using(policy, model.adapter):
            by_model[model.label] = ModelAblation(
                toxicity=_effect(text, vectors, sets, by_toxicity, None if base is None else base.toxicity),
                logits=_effect(text, vectors, sets, by_logits, None if base is None else base.logits),
            )
        base = base or by_model[model.label]
    return VectorAblation(
        vectors=len(vectors),
        random_sets=len(sets),
        answering_sets=0 if by_toxicity is None else min(by_toxicity.sets, len(sets)),
        prompts=len(answering),
        answers=0 if contrast is None else len(read),
        prompts_of_answers=0 if contrast is None else len(set(owners)),
        by_model=by_model,
    )


@dataclass(frozen=True)
class _Measure:
    """Something to lose: its ``values`` by prompt of the model as it stands, and on how many random ``sets`` it is
    tried. ``largest`` is by how much a value can change, None where nothing bounds it."""

    values: Callable[[], list[float | None]]
    sets: int
    largest: float | None


def _effect(
    text: BaseText,
    vectors: Sequence[ValueVector],
    sets: Sequence[Sequence[ValueVector]],
    measure: _Measure | None,
    of_base: AblationEffect | None,
) -> AblationEffect | None:
    """Of the model as it stands; ``of_base`` is None for the base itself. Without random sets where nothing can be
    claimed of the named vectors."""
    if measure is None:
        return None
    settings = text.settings

    def without(silent: Sequence[ValueVector]) -> list[float | None]:
        with silenced(text.policy.causal_lm, [(vector.layer, vector.neuron) for vector in silent]):
            return measure.values()

    plain, named = without([]), without(vectors)
    change = change_between(plain, named, n_resamples=settings.n_resamples, seed=settings.seed, largest=measure.largest)
    loses = shown(change, -1) and (of_base is None or takes_more(of_base))
    tried = measure.sets if loses else 0
    return ablation_effect(plain, named, [without(one) for one in sets[:tried]], settings, largest=measure.largest)


def takes_more(found: AblationEffect) -> bool:
    """Whether the named vectors were shown to take more than others do: over prompts, and by rank among the sets."""
    rank = found.p_value_random
    return rank is not None and rank <= LEVEL and shown(found.beyond_random, -1)


def _judged(text: BaseText, rows: Sequence[int], judge: ToxicityFunction) -> list[float | None]:
    """P(toxic) of a new answer to each of these prompts, by the model as it stands."""
    prompts = [text.prompts[row] for row in rows]
    answers = sample_answers(text.policy, prompts, "ablation", text.settings)
    return list(judge([text_of(text.policy, answer) for answer in answers]))


@torch.no_grad()
def _word_scores(text: BaseText, rows: Sequence[int], contrast: Contrast) -> Tensor:
    """Of each answer the mean of the toxic words' logits minus the neutral ones', over its positions, Float[N]."""
    causal_lm = text.policy.causal_lm
    arch = architecture_of(causal_lm)
    prompts, responses = [text.prompts[row] for row in rows], [text.base.responses[row] for row in rows]
    found = torch.zeros(len(rows))
    for piece in pieces(causal_lm, prompts, responses, text.settings.batch_tokens):
        with evaluating(causal_lm):
            scores = contrast.of(arch.head(hidden_rows(causal_lm, prompts, responses, piece)).float()).cpu()
        for row, own in zip(piece, scores.split_with_sizes([len(responses[row]) for row in piece]), strict=True):
            found[row] = own.mean()
    return found


def ablation_effect(
    plain: Sequence[float | None],
    named: Sequence[float | None],
    others: Sequence[Sequence[float | None]],
    settings: InsideSettings,
    *,
    largest: float | None = 1.0,
) -> AblationEffect:
    """From values by prompt of the plain model, of the named vectors silenced, and of each other set; ``largest`` is by
    how much a value can change, None where nothing bounds it. There is no rank among fewer sets than 20, of which none
    could be the first of twenty."""
    random = [
        None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))
        for values in zip(*others, strict=True)
    ]

    def change(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate | None:
        return change_between(before, after, n_resamples=settings.n_resamples, seed=settings.seed, largest=largest)

    # All sets on the same prompts: those that every one of them has a value of.
    known = [row for row, values in enumerate(zip(plain, named, *others, strict=True)) if None not in values]
    losses = [
        float(np.mean([(values[row] or 0.0) - (plain[row] or 0.0) for row in known])) for values in (named, *others)
    ]
    ranked = bool(known) and len(others) >= FEWEST_SETS
    return AblationEffect(
        plain=_mean(plain),
        named=_mean(named),
        random=_mean(random),
        change=change(plain, named),
        random_change=change(plain, random) if random else None,
        random_changes=losses[1:] if known else [],
        beyond_random=change(random, named) if random else None,
        p_value_random=rank_p_value(-losses[0], [-loss for loss in losses[1:]]) if ranked else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
