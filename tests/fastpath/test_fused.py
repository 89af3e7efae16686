"""The fused LoRA layer against PEFT's own, which is the reference for values, gradients and everything it is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from small_models import adapted, random_policy, tiny_policy, trainable_parameters

from rewardlm.config import LoraSettings
from rewardlm.fastpath.fused import FusedLinear, fuse
from rewardlm.models.load import Policy
from rewardlm.models.lora import CRITIC, add_critic, add_lora, merged, reference, using

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def unfuse(policy: Policy) -> int:
    found = [module for module in policy.model.modules() if type(module) is FusedLinear]
    for module in found:
        module.__class__ = Linear
    return len(found)


def outcome(policy: Policy) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logits = policy.causal_lm(input_ids=TOKENS).logits.float()
    loss = (logits.log_softmax(-1)[..., :7] * torch.linspace(-1, 1, 7)).sum()
    return logits.detach(), list(torch.autograd.grad(loss, trainable_parameters(policy.model)))


@pytest.mark.parametrize("name", ["tiny", "qwen2", "gemma", "gpt_neox", "opt", "bloom"])
def test_values_and_gradients_equal_pefts(name: str) -> None:
    policy = adapted(name)
    ours, our_gradients = outcome(policy)
    assert unfuse(policy) > 0
    theirs, their_gradients = outcome(policy)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in their_gradients)
    assert largest > 1e-2
    for mine, wanted in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine / largest, wanted / largest, atol=1e-5, rtol=1e-3)


def test_in_half_precision_it_is_as_near_to_float32_as_pefts() -> None:
    exact, exact_gradients = outcome(adapted("tiny"))
    half = adapted("tiny", torch.bfloat16)
    ours, our_gradients = outcome(half)
    unfuse(half)
    theirs, their_gradients = outcome(half)

    def away(mine: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
        return float(sum(((a.float() - b) ** 2).sum() for a, b in zip(mine, wanted, strict=True)) ** 0.5)

    assert all(gradient.dtype == torch.float32 for gradient in our_gradients)
    assert 0 < away([ours], [exact]) < 1.25 * away([theirs], [exact])
    assert 0 < away(our_gradients, exact_gradients) < 1.25 * away(their_gradients, exact_gradients)


def test_an_adapter_below_half_precisions_rounding_of_the_base_still_counts() -> None:
    """A·x in one column and W·x = 0 there: what a merge would round away is kept."""
    policy = adapted("tiny", torch.bfloat16)
    layer = next(module for module in policy.model.modules() if type(module) is FusedLinear)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        layer.get_base_layer().weight.zero_()
        layer.lora_B["default"].weight.mul_(1e-4)
        wanted = layer.scaling["default"] * x.float() @ layer.lora_A["default"].weight.t()
        wanted = wanted @ layer.lora_B["default"].weight.t()
        torch.testing.assert_close(layer(x).float(), wanted, atol=float(wanted.abs().max()) * 0.02, rtol=0)


def test_off_other_and_merged_adapters_are_pefts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted("tiny")
    add_critic(policy, LoraSettings(r=2, alpha=8), seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if f".{CRITIC}." in name:
                parameter.fill_(0.01)

    def all_three() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            for how in (reference(policy), using(policy, CRITIC), merged(policy)):
                with how:
                    found.append(policy.causal_lm(input_ids=TOKENS).logits)
        return found

    ours = all_three()
    assert not torch.equal(ours[0], ours[1])
    unfuse(policy)
    theirs = all_three()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[2], theirs[2])
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-4, rtol=1e-5)


def test_dropout_in_training_is_left_to_peft() -> None:
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=4, dropout=0.5), seed=0)
    layer = next(module for module in policy.model.modules() if type(module) is FusedLinear)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1.0)
    x = torch.ones(64, layer.in_features)
    assert float(layer.eval()(x).std(0).max()) < 1e-5
    with torch.random.fork_rng(devices=[]):
        assert float(layer.train()(x).std(0).max()) > 1e-3


def test_gradients_can_be_asked_for_in_a_batch() -> None:
    """Attribution asks for the gradients of several tokens at once."""
    policy = adapted("tiny")
    states = policy.causal_lm.get_input_embeddings()(TOKENS).detach().requires_grad_()
    outputs = policy.causal_lm(inputs_embeds=states).logits[0, -1, :3]
    together: Any = torch.autograd.grad(outputs, states, torch.eye(3), is_grads_batched=True, retain_graph=True)[0]
    apart = [torch.autograd.grad(output, states, retain_graph=True)[0] for output in outputs]
    torch.testing.assert_close(together, torch.stack(apart), atol=1e-5, rtol=1e-4)


def test_only_plain_layers_are_fused() -> None:
    policy = random_policy("gpt2")  # Its maps are transposed.
    add_lora(policy, LoraSettings(r=2), seed=0)
    fused = [module for module in policy.model.modules() if type(module) is FusedLinear]
    assert all(type(module.get_base_layer()) is torch.nn.Linear for module in fused)
    before = [type(module) for module in policy.model.modules()]
    fuse(policy.model)
    assert [type(module) for module in policy.model.modules()] == before
