"""Changes to a model are what they say and are taken back: directions, silenced neurons, adapters of random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy, state_of

from rewardlm.errors import ModelError
from rewardlm.interpreting.mechanistic.activations import batch_of, trace
from rewardlm.interpreting.mechanistic.interventions import ablated, added, random_adapter, silenced
from rewardlm.interpreting.mechanistic.value_vectors import (
    ValueVector,
)
from rewardlm.models.architecture import adapter_layers, architecture_of, weight_of
from rewardlm.models.lora import using

VECTORS = [ValueVector(0, 3, 1, 1.0, ()), ValueVector(1, 7, -1, 1.0, ()), ValueVector(1, 2, 1, 1.0, ())]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_added_vector_is_in_the_stream_from_its_layer_on(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    before = trace(policy.causal_lm, batch)
    vector = torch.randn(before.stream.shape[-1], generator=torch.Generator().manual_seed(4))
    state = state_of(policy.model)
    # A trace's own hooks come after those that were there first, so it sees what the layer reads.
    for layer in range(3):
        with added(policy.causal_lm, layer, vector):
            after = trace(policy.causal_lm, batch)
        assert torch.allclose(after.stream[:layer], before.stream[:layer], atol=1e-5)
        assert torch.allclose(after.stream[layer], before.stream[layer] + vector, atol=1e-4)
        if layer < 2:
            assert not torch.allclose(after.attention_writes[layer], before.attention_writes[layer], atol=1e-3)
    assert state_of(policy.model) == state
    with (
        pytest.raises(ModelError, match="layer 3: this model has layers 0 to 1, and 2"),
        added(policy.causal_lm, 3, vector),
    ):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablated_direction_is_nowhere_in_the_stream_and_the_rest_is(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    before = trace(policy.causal_lm, batch)
    direction = torch.randn(before.stream.shape[-1], generator=torch.Generator().manual_seed(5)) * 3
    state = state_of(policy.model)
    with ablated(policy.causal_lm, direction):
        after = trace(policy.causal_lm, batch)
    unit = direction / direction.norm()
    assert float((before.stream @ unit).abs().max()) > 0.1
    assert float((after.stream @ unit).abs().max()) < 1e-4
    rest = before.stream[0] - torch.outer(before.stream[0] @ unit, unit)
    assert torch.allclose(after.stream[0], rest, atol=1e-5)
    assert state_of(policy.model) == state


def test_hooks_go_also_when_something_fails_inside() -> None:
    policy = adapted_policy("tiny")
    state = state_of(policy.model)
    for change in (added(policy.causal_lm, 1, torch.ones(64)), ablated(policy.causal_lm, torch.ones(64))):
        with pytest.raises(RuntimeError, match="on purpose"), change:
            raise RuntimeError("on purpose")
    assert state_of(policy.model) == state


def test_random_adapters_are_as_large_and_leave_the_model_as_it_was() -> None:
    policy = adapted_policy("tiny")
    layers = adapter_layers(policy.causal_lm)
    before = {name: layer.get_delta_weight("default").norm().item() for name, layer in layers.items()}
    was = {name: layer.get_delta_weight("default").clone() for name, layer in layers.items()}
    state = copy.deepcopy(state_of(policy.model))
    with random_adapter(policy, "default", seed=1):
        for name, layer in layers.items():
            inside_it = layer.get_delta_weight("default")
            assert float(inside_it.norm()) == pytest.approx(before[name], rel=1e-4)
            cosine = float((inside_it * was[name]).sum()) / before[name] ** 2
            assert abs(cosine) < 0.5
    assert state_of(policy.model) == state
    for name, layer in layers.items():
        assert torch.equal(layer.get_delta_weight("default"), was[name])


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "opt", "bloom"])
def test_silenced_is_a_weight_of_zeros(name: str) -> None:
    policy = adapted_policy(name)
    model = policy.causal_lm
    ids = torch.tensor([[*PROMPTS[0], *RESPONSES[0]]])
    with using(policy, None), torch.no_grad():
        with silenced(model, [(vector.layer, vector.neuron) for vector in VECTORS]):
            found = model(input_ids=ids).logits
        plain = model(input_ids=ids).logits
        for vector in VECTORS:
            module = architecture_of(model).mlp_out[vector.layer]
            # A view of the weights, transposed where they are stored so.
            weight_of(module)[vector.neuron].zero_()
        by_hand = model(input_ids=ids).logits
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-4)
