"""The changes that are tried on each model, and what came of them: which direction, which scales, which layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpret.causal import Condition, Outcome, change_between, layer_groups, try_conditions
from rewardlm.interpret.reading import TOXIC_ABOVE, Subject, every
from rewardlm.interpret.residual import layout_of
from rewardlm.interpret.tokens import Judge
from rewardlm.models.load import Policy


def try_all(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    subjects: Sequence[Subject],
    judge: Judge,
    settings: InsideSettings,
    layer: int | None,
    direction: Tensor | None,
    *,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """Answers under every change to every model; each is compared with its own model as it is."""
    base = subjects[0]
    ranked = sorted(range(len(prompts)), key=lambda row: (-(base.toxicity[row] or 0.0), row))
    half = ranked[: (settings.causal_prompts + 1) // 2]
    rest = ranked[len(half) :]
    rows = half + [rest[i] for i in sorted(every(len(rest), settings.causal_prompts - len(half)))] if rest else half
    conditions = _conditions(policy, subjects, settings, layer, direction)
    outcomes = try_conditions(
        policy,
        conditions,
        [prompts[row] for row in rows],
        judge,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
        report=report,
    )
    plain = {outcome.condition.model: outcome for outcome in outcomes if outcome.condition.kind == "plain"}
    return {"prompts": len(rows), "rows": [_tried(outcome, plain, settings) for outcome in outcomes]}


def _conditions(
    policy: Policy,
    subjects: Sequence[Subject],
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
        nothing = torch.randn(direction.shape, generator=torch.Generator().manual_seed(settings.seed))
        nothing = nothing.to(direction) * (direction.norm() / nothing.norm())
        for name, along in (("", direction), ("_random", nothing)):
            there = replace(plain, layers=(layer,), direction=along)
            conditions.append(replace(there, kind=f"add{name}", value=settings.strength))
            if not (name and subject.adapter):  # the base's control says enough
                conditions.append(replace(there, kind=f"ablate{name}"))
    return conditions


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
