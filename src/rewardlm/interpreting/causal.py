"""What a model says when a direction is added or taken away, or its adapter is switched off in part.

Every condition answers the same prompts from the same random streams, so that conditions differ by what was done to the
model alone. Answers are judged as text, and the untouched base says how fluent they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import GenerationSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.directions import ablated, added
from rewardlm.interpreting.residual import adapter_layers, layout_of
from rewardlm.interpreting.tokens import Judge
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import scaled, using
from rewardlm.stats import mean_change


@dataclass(frozen=True)
class Condition:
    """One thing done to one model. ``adapter`` None is the base.

    ``kind``: ``plain``; ``scale`` (the adapter's B·A times ``value``); ``layers_off`` (the adapter is off in
    ``layers``); ``add`` (``value`` times ``direction`` at stream ``layers[0]``); ``ablate`` (nothing is written along
    ``direction``). A kind that ends in ``_random`` does the same with a direction that means nothing, of equal length.
    """

    model: str
    adapter: str | None
    kind: str
    value: float = 1.0
    layers: tuple[int, ...] = ()
    direction: Tensor | None = None


@contextlib.contextmanager
def applied(policy: Policy, condition: Condition) -> Iterator[None]:
    """Inside, ``policy`` is the condition's model with the condition's change; afterwards as it was found."""
    causal_lm = policy.causal_lm
    kind = condition.kind.removesuffix("_random")
    with contextlib.ExitStack() as stack:
        stack.enter_context(using(policy, condition.adapter))
        if kind == "scale":
            stack.enter_context(scaled(adapter_layers(causal_lm).values(), condition.value))
        elif kind == "layers_off":
            layers = layout_of(causal_lm).layers
            for index in condition.layers:
                stack.enter_context(scaled(adapter_layers(layers[index]).values(), 0.0))
        elif kind == "add" and condition.direction is not None:
            stack.enter_context(added(causal_lm, condition.layers[0], condition.value * condition.direction))
        elif kind == "ablate" and condition.direction is not None:
            stack.enter_context(ablated(causal_lm, condition.direction))
        elif kind != "plain":
            raise ModelError(f"condition {condition.kind!r}: expected plain, scale, layers_off, add or ablate")
        yield


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
    judge: Judge,
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


def change_between(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    n_resamples: int,
    seed: int,
    largest: float | None = 1.0,
) -> dict[str, Any] | None:
    """Mean change over answers that both have a value of: ``{"mean", "ci95", "p_value", "n"}``. ``largest`` is by how
    much a value can change at most: 1 for scores, None where nothing bounds it.

    The interval leaves zero out exactly where p < .05 (``statistics.mean_change``); None where there is one answer.
    """
    pairs = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    found = mean_change(pairs, largest=largest, n_flips=n_resamples, seed=seed)
    return {
        "mean": found.mean,
        "ci95": None if found.ci95 is None else list(found.ci95),
        "p_value": found.p_value,
        "n": found.prompts,
    }


def layer_groups(n_layers: int, number: int) -> list[tuple[int, ...]]:
    """Layers in ``number`` groups of neighbours, as equal as can be; one layer each if there are no more."""
    parts = np.array_split(np.arange(n_layers), min(number, n_layers))
    return [tuple(int(layer) for layer in part) for part in parts]
