"""What a model says when a direction is added or ablated, or its adapter is scaled or switched off in part.

Every condition answers the same prompts from the same random streams, so conditions differ only by what was done to the
model. Answers are judged as text, and the untouched base says how fluent they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE, ModelAnswers, most_toxic_and_others
from rewardlm.interpreting.findings import CausalCheck, CausalRow, Estimate
from rewardlm.interpreting.intervals import adjust, change_between, shown
from rewardlm.interpreting.mechanistic.activations import BaseText
from rewardlm.interpreting.mechanistic.interventions import Condition, applied, layer_groups, sample_answers, text_of
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import using
from rewardlm.stats import rank_p_value


@dataclass(frozen=True)
class Outcome:
    """What came of a condition. ``toxicity`` is of each prompt's answer, None where the judge gave none;
    ``perplexity`` exp of the mean negative log-probability of the answers' tokens under the base; None without any, and
    where it wasn't computed."""

    condition: Condition
    texts: list[str]
    toxicity: list[float | None]
    perplexity: float | None

    @property
    def mean(self) -> float | None:
        """Mean toxicity of what could be judged."""
        known = [value for value in self.toxicity if value is not None]
        return sum(known) / len(known) if known else None


def try_conditions(
    policy: Policy,
    conditions: Sequence[Condition],
    prompts: Sequence[Sequence[int]],
    judge: ToxicityFunction,
    settings: InsideSettings,
    *,
    perplexity: bool = True,
    report: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Answers to ``prompts`` (token ids) under every condition, judged. One draw a prompt, the same for all."""
    answers = []
    for number, condition in enumerate(conditions):
        with applied(policy, condition):
            answers.append(sample_answers(policy, prompts, "causal", settings))
        if report is not None:
            report(number + 1, len(conditions))
    texts = [[text_of(policy, answer) for answer in row] for row in answers]
    judged = iter(judge([text for row in texts for text in row]))
    found = _perplexities(policy, prompts, answers, settings.batch_tokens) if perplexity else [None] * len(answers)
    return [
        Outcome(condition, row, [next(judged) for _ in row], own)
        for condition, own, row in zip(conditions, found, texts, strict=True)
    ]


def _perplexities(
    policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]], batch_tokens: int
) -> list[float | None]:
    """Of each condition's answers under the base. All are read together, so that each prompt is run once."""
    with using(policy, None):
        read = row_stats(
            policy.causal_lm,
            [*prompts] * len(answers),
            [answer for own in answers for answer in own],
            batch_tokens,
        )
    found: list[float | None] = []
    for first in range(0, len(read), len(prompts)):
        logprobs = torch.cat([row.logprobs for row in read[first : first + len(prompts)]]).double()
        found.append(math.exp(-float(logprobs.mean())) if len(logprobs) else None)
    return found


def check_causes(
    text: BaseText,
    models: Sequence[ModelAnswers],
    judge: ToxicityFunction,
    layer: int | None,
    direction: Tensor | None,
    *,
    report: Callable[[int, int], None] | None = None,
) -> CausalCheck:
    """Answers under every change to every model; each is compared with its own model as it is. ``direction`` Float[M]
    is added before ``layer``; without them only the adapters are changed."""
    settings = text.settings
    rows = most_toxic_and_others(text.prompts, text.base.toxicity, settings.causal_prompts)
    prompts = [text.prompts[row] for row in rows]
    conditions = _conditions(text, models, layer, direction)
    done = 0

    def answered(under: Sequence[Condition], *, perplexity: bool = True) -> list[Outcome]:
        nonlocal done

        def say(number: int, total: int) -> None:
            if report is not None:
                report(done + number, done + total)

        found = try_conditions(text.policy, under, prompts, judge, settings, perplexity=perplexity, report=say)
        done += len(under)
        return found

    outcomes = answered(conditions)
    plain = {outcome.condition.model: outcome for outcome in outcomes if outcome.condition.kind == "plain"}
    tried = [_row(outcome, plain, settings) for outcome in outcomes]
    adjust([row.change for row in tried if row.change is not None])
    controlled = _to_control(conditions, tried)
    listed = []
    for number, (condition, row) in enumerate(zip(conditions, tried, strict=True)):
        listed.append(row)
        if number in controlled:
            controls = answered(_random_directions(condition, settings), perplexity=False)
            listed.append(_control_row(row, controls, plain, settings))
    return CausalCheck(prompts=len(rows), rows=listed, direction_p_value=_either_way(listed, text.base.label))


def _conditions(
    text: BaseText, models: Sequence[ModelAnswers], layer: int | None, direction: Tensor | None
) -> list[Condition]:
    settings = text.settings
    n_layers = len(architecture_of(text.policy.causal_lm).layers)
    conditions = []
    for model in models:
        plain = Condition(model.label, model.adapter, "plain")
        conditions.append(plain)
        if model.adapter is not None:
            # 0 is the base and 1 the model as it is: both are there already.
            conditions += [replace(plain, kind="scale", value=s) for s in settings.scales if s not in (0, 1)]
            conditions += [
                replace(plain, kind="layers_off", layers=group)
                for group in layer_groups(n_layers, settings.layer_groups)
            ]
        if direction is None or layer is None:
            continue
        there = replace(plain, layers=(layer,), direction=direction)
        conditions += [replace(there, kind="add", value=settings.strength), replace(there, kind="ablate")]
    return conditions


def _to_control(conditions: Sequence[Condition], rows: Sequence[CausalRow]) -> set[int]:
    """Which conditions are compared with random directions. These take twenty runs each, so they are tried only where
    toxicity was shown to change as it should: else nothing is claimed, whatever random ones do. Of the base both ways
    are compared then, since the one that does more is what counts."""
    of_base, works = set(), set()
    for number, (condition, row) in enumerate(zip(conditions, rows, strict=True)):
        if condition.kind not in ("add", "ablate"):
            continue
        if condition.adapter is None:
            of_base.add(number)
        if shown(row.change, 1 if condition.kind == "add" else -1):
            works.add(number)
    of_tuned = {number for number in works - of_base if conditions[number].kind == "add"}
    return of_tuned | (of_base if works & of_base else set())


def _random_directions(condition: Condition, settings: InsideSettings) -> list[Condition]:
    """The same change along ``random_directions`` others: normal, as long, and the same ones for every condition."""
    assert condition.direction is not None
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    for _ in range(settings.random_directions):
        nothing = torch.randn(condition.direction.shape, generator=generator).to(condition.direction)
        nothing *= condition.direction.norm() / nothing.norm()
        found.append(replace(condition, kind=f"{condition.kind}_random", direction=nothing))
    return found


def _control_row(
    row: CausalRow, controls: Sequence[Outcome], plain: Mapping[str, Outcome], settings: InsideSettings
) -> CausalRow:
    """The controls of ``row`` as one row, with the ``changes`` of each; ``row`` gets its ``p_value_random``: how often
    a random direction does as much, the real one counted. For adding, "much" is more toxic; for ablating, less
    toxic."""
    each = [_row(control, plain, settings) for control in controls]
    changes = [one.change.mean for one in each if one.change is not None and one.change.mean is not None]
    known = [one.toxicity for one in each if one.toxicity is not None]
    if row.change is not None and row.change.mean is not None and len(changes) == len(controls):
        sign = 1 if row.kind == "add" else -1
        row.p_value_random = rank_p_value(sign * row.change.mean, [sign * change for change in changes])
    return each[0].model_copy(
        update={
            "toxicity": float(np.mean(known)) if known else None,
            "toxic_share": None,
            "judged": sum(one.judged for one in each),
            "change": Estimate(mean=float(np.mean(changes)), ci95=None, n=len(changes)) if changes else None,
            "changes": changes,
            "texts": [],
        }
    )


def _either_way(rows: Sequence[CausalRow], base: str) -> float | None:
    """How often a random direction does as much to the base, added or ablated, whichever it does more by.

    It is one test in place of two, so that a direction has one chance to seem used. None where it wasn't tried."""
    found = {row.kind: row for row in rows if row.model == base}
    if not {"add", "ablate", "add_random", "ablate_random"} <= found.keys():
        return None
    added, ablated = found["add"], found["ablate"]
    if added.p_value_random is None or ablated.p_value_random is None or not (added.change and ablated.change):
        return None
    observed = max(added.change.mean or 0.0, -(ablated.change.mean or 0.0))
    pairs = zip(found["add_random"].changes or (), found["ablate_random"].changes or (), strict=True)
    return rank_p_value(observed, [max(plus, -minus) for plus, minus in pairs])


def _row(outcome: Outcome, plain: Mapping[str, Outcome], settings: InsideSettings) -> CausalRow:
    condition = outcome.condition
    known = [value for value in outcome.toxicity if value is not None]
    change = None
    if condition.kind != "plain":
        before = plain[condition.model].toxicity
        change = change_between(before, outcome.toxicity, n_resamples=settings.n_resamples, seed=settings.seed)
    return CausalRow(
        model=condition.model,
        kind=condition.kind,
        value=condition.value,
        layers=list(condition.layers),
        toxicity=outcome.mean,
        toxic_share=float(np.mean([value > TOXIC_ABOVE for value in known])) if known else None,
        judged=len(known),
        perplexity=outcome.perplexity,
        change=change,
        texts=outcome.texts,
    )
