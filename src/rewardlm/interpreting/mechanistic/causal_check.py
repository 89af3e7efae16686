"""What a model says when a direction is added or ablated, or its adapter is scaled or switched off in part.

Every condition answers the same prompts from the same random streams, so that conditions differ by what was done to the
model alone. Answers are judged as text, and the untouched base says how fluent they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import GenerationSettings, InsideSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE, ModelAnswers, most_toxic_and_others
from rewardlm.interpreting.intervals import adjust, change_between, rank_p_value
from rewardlm.interpreting.mechanistic.architecture import layout_of
from rewardlm.interpreting.mechanistic.interventions import Condition, applied, layer_groups
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import using


@dataclass(frozen=True)
class Outcome:
    """What came of a condition. ``toxicity`` is of each prompt's answer, None where the judge gave none;
    ``perplexity`` exp of the mean negative log-probability of the answers' tokens under the base; None without any, and
    where it wasn't asked for."""

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
    *,
    max_new_tokens: int,
    batch_tokens: int,
    seed: int,
    sampling: GenerationSettings | None = None,
    perplexity: bool = True,
    report: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """Answers to ``prompts`` (token ids) under every condition, judged. One draw a prompt, the same for all."""
    requests = [Request(tuple(prompt), stream_seed(seed, "causal", row)) for row, prompt in enumerate(prompts)]
    answers: list[list[list[int]]] = []
    for number, condition in enumerate(conditions):
        found: list[list[int]] = [[] for _ in prompts]
        with applied(policy, condition):
            for answer in generate(
                policy,
                requests,
                max_new_tokens=max_new_tokens,
                sampling=sampling or GenerationSettings(),
                batch_tokens=batch_tokens,
            ):
                found[answer.index] = answer.tokens
        answers.append(found)
        if report is not None:
            report(number + 1, len(conditions))
    texts = [[policy.tokenizer.decode(a, skip_special_tokens=True).strip() for a in row] for row in answers]
    flat = [text for row in texts for text in row]
    judged = iter(judge(flat))
    outcomes = []
    with using(policy, None):
        for condition, own, row in zip(conditions, answers, texts, strict=True):
            found_perplexity = _perplexity(policy, prompts, own, batch_tokens) if perplexity else None
            outcomes.append(Outcome(condition, row, [next(judged) for _ in row], found_perplexity))
    return outcomes


def _perplexity(
    policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_tokens: int
) -> float | None:
    """Of the answers' tokens under the model as it stands."""
    logprobs = torch.cat([row.logprobs for row in row_stats(policy.causal_lm, prompts, answers, batch_tokens)]).double()
    return math.exp(-float(logprobs.mean())) if len(logprobs) else None


def try_all(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    subjects: Sequence[ModelAnswers],
    judge: ToxicityFunction,
    settings: InsideSettings,
    layer: int | None,
    direction: Tensor | None,
    *,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Answers under every change to every model; each is compared with its own model as it is.

    A prompt that stands there several times is asked once: its answers would not be several proofs.
    """
    base = subjects[0]
    rows = most_toxic_and_others(prompts, base.toxicity, settings.causal_prompts)
    conditions = _conditions(policy, subjects, settings, layer, direction)
    done = 0

    def answered(under: Sequence[Condition], *, perplexity: bool = True) -> list[Outcome]:
        nonlocal done
        found = try_conditions(
            policy,
            under,
            [prompts[row] for row in rows],
            judge,
            max_new_tokens=settings.max_new_tokens,
            batch_tokens=settings.batch_tokens,
            seed=settings.seed,
            perplexity=perplexity,
            report=lambda number, total: report(done + number, done + total),
        )
        done += len(under)
        return found

    outcomes = answered(conditions)
    plain = {outcome.condition.model: outcome for outcome in outcomes if outcome.condition.kind == "plain"}
    tried = [_tried(outcome, plain, settings) for outcome in outcomes]
    adjust([row["change"] for row in tried if row["change"] is not None])
    if direction is not None and layer is not None:
        for outcome, entry in zip(outcomes, list(tried), strict=True):
            if _needs_control(outcome.condition, entry):
                controls = answered(_random_directions(outcome.condition, settings), perplexity=False)
                tried.insert(tried.index(entry) + 1, _held_against(entry, controls, plain, settings))
    return {"prompts": len(rows), "rows": tried, "direction_p_value": _either_way(tried, base.label)}


def _conditions(
    policy: Policy,
    subjects: Sequence[ModelAnswers],
    settings: InsideSettings,
    layer: int | None,
    direction: Tensor | None,
) -> list[Condition]:
    n_layers = len(layout_of(policy.causal_lm).layers)
    conditions = []
    for subject in subjects:
        plain = Condition(subject.label, subject.adapter, "plain")
        conditions.append(plain)
        if subject.adapter is not None:
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


def _needs_control(condition: Condition, row: dict[str, Any]) -> bool:
    """The base's two tests always. A tuned model's adding only where it seems to work: else nothing is claimed, and
    twenty directions cost as many runs."""
    if condition.adapter is None:
        return condition.kind in ("add", "ablate")
    interval = None if row["change"] is None else row["change"]["ci95"]
    return condition.kind == "add" and interval is not None and interval[0] > 0


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


def _held_against(
    row: dict[str, Any], controls: Sequence[Outcome], plain: dict[str, Outcome], settings: InsideSettings
) -> dict[str, Any]:
    """The controls of ``row`` as one row, with the ``changes`` of each; ``row`` gets its ``p_value_random``: how often
    a random direction does as much, itself counted. More toxic is much for adding, less toxic for ablating."""
    each = [_tried(control, plain, settings) for control in controls]
    changes = [one["change"]["mean"] for one in each if one["change"] is not None]
    known = [one["toxicity"] for one in each if one["toxicity"] is not None]
    if row["change"] is not None and len(changes) == len(controls):
        sign = 1 if row["kind"] == "add" else -1
        row["p_value_random"] = rank_p_value(sign * row["change"]["mean"], [sign * change for change in changes])
    return {
        **each[0],
        "toxicity": float(np.mean(known)) if known else None,
        "toxic_share": None,
        "judged": sum(one["judged"] for one in each),
        "change": {"mean": float(np.mean(changes)), "ci95": None, "n": len(changes)} if changes else None,
        "changes": changes,
        "texts": [],
    }


def _either_way(rows: Sequence[dict[str, Any]], base: str) -> float | None:
    """How often a random direction does as much to the base, added or ablated, whichever it does more by.

    One test instead of two, so that a direction has one chance to seem used, not two. None where it wasn't tried."""
    found = {row["kind"]: row for row in rows if row["model"] == base}
    if not {"add", "ablate", "add_random", "ablate_random"} <= found.keys():
        return None
    if "p_value_random" not in found["add"] or "p_value_random" not in found["ablate"]:
        return None
    real = max(found["add"]["change"]["mean"], -found["ablate"]["change"]["mean"])
    pairs = zip(found["add_random"]["changes"], found["ablate_random"]["changes"], strict=True)
    return rank_p_value(real, [max(added, -ablated) for added, ablated in pairs])


def _tried(outcome: Outcome, plain: dict[str, Outcome], settings: InsideSettings) -> dict[str, Any]:
    condition = outcome.condition
    known = [value for value in outcome.toxicity if value is not None]
    return {
        "model": condition.model,
        "kind": condition.kind,
        "value": condition.value,
        "layers": list(condition.layers),
        "toxicity": outcome.mean,
        "toxic_share": float(np.mean([value > TOXIC_ABOVE for value in known])) if known else None,
        "judged": len(known),
        "perplexity": outcome.perplexity,
        "change": None
        if condition.kind == "plain"
        else change_between(
            plain[condition.model].toxicity,
            outcome.toxicity,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        ),
        "texts": outcome.texts,
    }
