"""Llama-shaped models without their modules, against the modules: values, gradients, and when they are left alone."""

from __future__ import annotations

import pytest
import torch
from small_models import VOCABULARY, adapted, random_policy, tiny_policy, trainable_parameters
from transformers import DynamicCache

from rewardlm.fastpath import lean, predicting_states
from rewardlm.fastpath.llama import Steps, is_plain_llama
from rewardlm.fastpath.slots import Slots
from rewardlm.fastpath.tree import tree_of, tree_states
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import body_and_head
from rewardlm.models.lora import REFERENCE, merged, reference, using

CPU = torch.device("cpu")
PROMPTS = [[7, 8, 9, 20], [7, 8, 9, 30, 31], [7, 8, 9, 20], [7, 8, 9, *range(40, 70)]]
RESPONSES = [[1, 2, 3], [4], [5, 6], [6, 2, 7, 7, 9]]


def by_steps(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    """Logits Float[B, T, V] of ``tokens`` Int[B, T], a token at a time from an empty store."""
    slots = Slots(policy.causal_lm.config.num_hidden_layers, CPU, whole=True)
    config = policy.causal_lm.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    empty = DynamicCache()
    for layer in range(config.num_hidden_layers):
        nothing = torch.zeros(len(tokens), config.num_key_value_heads, 0, size, dtype=policy.dtype)
        empty.update(nothing, nothing, layer)
    slots.rebuild([], 32, (empty, torch.zeros(len(tokens), 0, dtype=torch.long), torch.arange(len(tokens))))
    with torch.inference_mode():
        steps = Steps(*body_and_head(policy.causal_lm))
        return torch.stack([steps.logits(steps.states(column, slots)) for column in tokens.t()], 1)


TOKENS = torch.randint(5, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["tiny", "qwen2"])
@pytest.mark.parametrize("how", ["on", "off", "merged"])
def test_steps_are_the_modules_forward(name: str, how: str) -> None:
    policy = adapted(name)
    if name == "qwen2":
        with torch.no_grad():
            for module in policy.model.modules():
                if isinstance(module, torch.nn.Linear) and module.bias is not None:
                    module.bias.copy_(torch.linspace(-1, 1, len(module.bias)))
    context = {"on": using(policy, "default"), "off": reference(policy), "merged": merged(policy)}[how]
    with torch.no_grad(), context:
        wanted = policy.causal_lm(input_ids=TOKENS).logits
        got = by_steps(policy, TOKENS)
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).square().mean().sqrt())


def test_steps_in_half_precision_are_as_near_to_float32_as_the_modules() -> None:
    half = adapted("tiny", torch.bfloat16)
    # The same rounded weights in float32: what is left is the rounding on the way.
    whole = adapted("tiny")
    whole.causal_lm.load_state_dict({name: value.float() for name, value in half.causal_lm.state_dict().items()})
    with torch.no_grad():
        exact = whole.causal_lm(input_ids=TOKENS).logits
        theirs = half.causal_lm(input_ids=TOKENS).logits
    assert 0 < error(by_steps(half, TOKENS), exact) < 1.25 * error(theirs, exact)


def test_an_adapter_below_half_precisions_rounding_is_not_lost_in_a_step() -> None:
    policy = adapted("tiny", torch.bfloat16)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2e-3)
        on = by_steps(policy, TOKENS).float()
        with reference(policy):
            off = by_steps(policy, TOKENS).float()
            off_wanted = policy.causal_lm(input_ids=TOKENS).logits.float()
        wanted = policy.causal_lm(input_ids=TOKENS).logits.float()
    assert float((on - off).abs().mean()) > 0.3 * float((wanted - off_wanted).abs().mean()) > 0


@pytest.mark.parametrize("name", ["tiny", "qwen2"])
@pytest.mark.parametrize("long", [False, True])
def test_a_trunk_without_modules_has_their_values_and_gradients(
    name: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted(name)
    body, _ = body_and_head(policy.causal_lm)
    tree = tree_of(PROMPTS, RESPONSES, 3, CPU)
    parameters = trainable_parameters(policy.model)
    assert lean.is_lean(body)
    theirs = tree_states(body, tree).index_select(0, tree.predicting)
    if long:  # Rows that the general kernel is left to.
        monkeypatch.setattr("rewardlm.fastpath.tree._SHORT", 4)
    ours = predicting_states(body, tree)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad((ours * weights).sum(), parameters)
    wanted = torch.autograd.grad((theirs * weights).sum(), parameters)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine / largest, other / largest, atol=1e-5, rtol=1e-3)


def test_gradients_in_half_precision_are_as_near_to_float32_as_the_modules() -> None:
    tree = tree_of(PROMPTS, RESPONSES, 3, CPU)
    half, whole = adapted("tiny", torch.bfloat16), adapted("tiny")
    whole.causal_lm.load_state_dict({name: value.float() for name, value in half.causal_lm.state_dict().items()})

    def gradients(policy: Policy, modules: bool) -> torch.Tensor:
        body, _ = body_and_head(policy.causal_lm)
        states = tree_states(body, tree).index_select(0, tree.predicting) if modules else predicting_states(body, tree)
        loss = (states.float() * torch.linspace(-1, 1, states.shape[1])).sum()
        found = torch.autograd.grad(loss, trainable_parameters(policy.model))
        assert all(gradient.dtype == torch.float32 for gradient in found)
        return torch.cat([gradient.flatten() for gradient in found])

    exact = gradients(whole, modules=True)
    assert 0 < error(gradients(half, modules=False), exact) < 1.25 * error(gradients(half, modules=True), exact)


def test_an_adapter_that_is_off_or_other_counts_as_it_does_in_the_modules() -> None:
    policy = adapted("tiny")
    policy.model.add_adapter(REFERENCE, policy.model.peft_config["default"])
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if f".{REFERENCE}." in name:
                parameter.fill_(0.02)
    body, _ = body_and_head(policy.causal_lm)
    tree = tree_of(PROMPTS, RESPONSES, 3, CPU)
    with torch.no_grad():
        own = predicting_states(body, tree)
        with reference(policy):
            assert lean.is_lean(body)
            other = predicting_states(body, tree)
            torch.testing.assert_close(
                other, tree_states(body, tree).index_select(0, tree.predicting), atol=1e-4, rtol=1e-4
            )
    assert float((own - other).abs().max()) > 1e-2


def test_what_is_hooked_or_learns_itself_keeps_its_modules() -> None:
    policy = tiny_policy()
    body, _ = body_and_head(policy.causal_lm)
    assert is_plain_llama(body)
    hook = body.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not is_plain_llama(body)
    hook.remove()
    before = body.layers[0].mlp.register_forward_pre_hook(lambda *_: None)
    assert not is_plain_llama(body)
    before.remove()
    assert lean.is_lean(body)
    body.norm.weight.requires_grad_(True)
    assert not lean.is_lean(body)
    for name in ("mistral_sliding", "gemma", "gpt_neox"):
        assert not is_plain_llama(body_and_head(random_policy(name).causal_lm)[0])
