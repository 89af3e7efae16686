"""Changes to a model that hold inside a ``with`` block: directions, the adapter's scale, silenced neurons.

Each is a hook or a weight that is put back. ``causal_check`` and ``vector_ablation`` ask what they lead to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rewardlm.config import GenerationSettings, InsideSettings
from rewardlm.errors import ModelError
from rewardlm.models.architecture import adapter_layers, architecture_of
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import scaled, using
from rewardlm.steering.activation import ablates, adds, module_at
from rewardlm.stream import Change, Edits, Site, edited


def added(causal_lm: Any, layer: int, vector: Tensor) -> contextlib.AbstractContextManager[object]:
    """Inside, ``vector`` Float[M] is added to what layer ``layer`` reads, at every position (L is the final norm).

    Arditi et al. 2024, eq. 3; Turner et al. 2023. Raises ModelError for a layer that isn't there.
    """
    return _changed(causal_lm, {(layer, "in"): adds(vector)})


def ablated(causal_lm: Any, direction: Tensor) -> contextlib.AbstractContextManager[object]:
    """Inside, nothing is ever written along ``direction`` Float[M]: x ← x − (x·d̂)·d̂ for the embedding and the output
    of every attention and MLP (Arditi et al. 2024, eq. 4). The stream then has no part along it, at any layer."""
    without = ablates((direction / direction.norm())[:, None])
    changes: dict[Site, Change] = {(0, "in"): without}
    for number in range(len(architecture_of(causal_lm).layers)):
        changes |= {(number, "attention"): without, (number, "mlp"): without}
    return _changed(causal_lm, changes)


def _changed(causal_lm: Any, changes: Mapping[Site, Change]) -> contextlib.AbstractContextManager[object]:
    """Inside, these changes of the stream hold at every position of every row."""
    arch = architecture_of(causal_lm)
    edits = Edits(changes, answers_only=False)
    edits.strengths = torch.ones(1, device=next(causal_lm.parameters()).device)
    return edited(arch.body, {site: module_at(arch, site) for site in changes}, edits)


@contextlib.contextmanager
def silenced(causal_lm: Any, neurons: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Inside, these (layer, neuron) of the MLPs write nothing, an adapter's part included, however active they are."""
    arch = architecture_of(causal_lm)
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        by_layer.setdefault(layer, []).append(neuron)

    def without(which: list[int]) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            active = args[0].clone()
            active[..., which] = 0
            return (active, *args[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for layer, which in by_layer.items():
            stack.callback(arch.mlp_out[layer].register_forward_pre_hook(without(which)).remove)
        yield


@contextlib.contextmanager
def random_adapter(policy: Policy, name: str, seed: int) -> Iterator[None]:
    """Inside, A and B of every module of the adapter are random, and ‖B·A‖ (Frobenius) is as it was."""
    layers = [layer for layer in adapter_layers(policy.causal_lm).values() if name in layer.scaling]
    factors = [_factors_of(layer, name) for layer in layers]
    kept = [(a.detach().clone(), b.detach().clone()) for a, b in factors]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for a, b in factors:
                size = _size(a, b)
                for factor in (a, b):
                    factor.copy_(torch.randn(factor.shape, generator=generator))
                b.mul_(size / _size(a, b))
        yield
    finally:
        with torch.no_grad():
            for (a, b), (was_a, was_b) in zip(factors, kept, strict=True):
                a.copy_(was_a)
                b.copy_(was_b)


def _factors_of(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.lora_embedding_A[name], layer.lora_embedding_B[name]


def _size(a: Tensor, b: Tensor) -> Tensor:
    """‖B·A‖ without the product: its square is tr(BᵀB·AAᵀ)."""
    a, b = a.double(), b.double()
    return torch.einsum("ij,ji->", b.T @ b, a @ a.T).clamp(min=0).sqrt()


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
            layers = architecture_of(causal_lm).layers
            for index in condition.layers:
                stack.enter_context(scaled(adapter_layers(layers[index]).values(), 0.0))
        elif kind == "add" and condition.direction is not None:
            stack.enter_context(added(causal_lm, condition.layers[0], condition.value * condition.direction))
        elif kind == "ablate" and condition.direction is not None:
            stack.enter_context(ablated(causal_lm, condition.direction))
        elif kind != "plain":
            raise ModelError(f"condition {condition.kind!r}: expected plain, scale, layers_off, add or ablate")
        yield


def layer_groups(n_layers: int, number: int) -> list[tuple[int, ...]]:
    """Layers in ``number`` groups of neighbours, as equal as can be; one layer each if there are no more."""
    if number == 0:
        return []
    parts = np.array_split(np.arange(n_layers), min(number, n_layers))
    return [tuple(int(layer) for layer in part) for part in parts]


def sample_answers(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    stream: str,
    settings: InsideSettings,
) -> list[list[int]]:
    """Token ids of an answer to each prompt, by the model as it stands. Random streams depend on the seed, ``stream``
    and the row alone, so that answers under different interventions differ by these."""
    requests = [Request(tuple(prompt), stream_seed(settings.seed, stream, row)) for row, prompt in enumerate(prompts)]
    return answers_to(
        policy,
        requests,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=settings.batch_tokens,
        sampling=settings.generation,
    )


def answers_to(
    policy: Policy,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    sampling: GenerationSettings,
) -> list[list[int]]:
    """Token ids of the answer to each request, by the model as it stands."""
    answers: list[list[int]] = [[] for _ in requests]
    for answer in generate(
        policy,
        requests,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        batch_tokens=batch_tokens,
    ):
        answers[answer.index] = answer.tokens
    return answers


def text_of(policy: Policy, answer: Sequence[int]) -> str:
    """What a judge reads of an answer."""
    text: str = policy.tokenizer.decode(answer, skip_special_tokens=True)
    return text.strip()
