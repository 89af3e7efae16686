"""A head's attention and its write, computed by einsum from the weights, are those of the model itself, in every
family: rotary positions, ALiBi, grouped and fused heads, windows, biases, and an adapter on all of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy

from rewardlm.interpreting.mechanistic.activations import batch_of
from rewardlm.models.architecture import architecture_of, bias_of
from rewardlm.models.attention import attention_pattern, head_weights, head_writes
from rewardlm.models.load import Policy
from rewardlm.models.lora import using
from rewardlm.trunk import attending

ALL = [*FAMILIES, "falcon_grouped", "qwen3"]
# Longer than the windows of GPT-Neo (24) and Mistral (16) here.
LONG = [list(range(100, 140)), list(range(300, 321))]


class Seen:
    """What one layer's attention read, with what it was called, and the model's own pattern and write."""

    def __init__(self) -> None:
        self.x = self.pattern = self.write = torch.empty(0)
        self.call: dict[str, Any] = {}


@contextlib.contextmanager
def watched(policy: Policy) -> Iterator[list[Seen]]:
    arch = architecture_of(policy.causal_lm)
    seen = [Seen() for _ in arch.layers]
    handles = []
    for one, attention, out in zip(seen, arch.attention, arch.attention_out, strict=True):

        def read(module: Any, args: Any, kwargs: Any, one: Seen = one) -> None:
            one.x, one.call = (args[0] if args else kwargs["hidden_states"]).float(), kwargs

        def attended(module: Any, args: Any, output: Any, one: Seen = one) -> None:
            one.pattern = output[1]

        def wrote(module: Any, args: Any, output: Any, one: Seen = one) -> None:
            one.write = output.clone()

        handles += [
            attention.register_forward_pre_hook(read, with_kwargs=True),
            attention.register_forward_hook(attended),
            out.register_forward_hook(wrote),
        ]
    try:
        with attending(policy.causal_lm, "eager"):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("texts", ["answers", "long"])
@pytest.mark.parametrize("adapter", [None, "default"])
@pytest.mark.parametrize("family", ALL)
def test_einsum_is_the_models_own_attention(family: str, adapter: str | None, texts: str) -> None:
    policy = adapted_policy(family)
    responses = RESPONSES if texts == "answers" else [[5, 6]] * len(LONG)
    batch = batch_of(PROMPTS if texts == "answers" else LONG, responses, policy.device)
    arch = architecture_of(policy.causal_lm)
    real = batch.mask
    with using(policy, adapter), torch.no_grad(), watched(policy) as seen:
        arch.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)
        for layer, one in enumerate(seen):
            weights = head_weights(policy.causal_lm, layer)
            pattern = attention_pattern(policy.causal_lm, layer, weights, one.x, one.call)
            assert pattern.shape == (*one.pattern.shape[:2], one.pattern.shape[2], one.pattern.shape[3])
            # What padding attends to is nobody's business.
            ours, theirs = pattern.transpose(1, 2)[real], one.pattern.transpose(1, 2)[real]
            assert (ours - theirs).abs().max() < 1e-5
            writes = head_writes(weights, pattern, one.x)
            out = arch.attention_out[layer]
            write = writes.sum(2) + bias_of(out, writes[0, 0, 0])
            theirs = one.write.reshape(write.shape)[real]
            assert (write[real] - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_an_adapter_changes_the_heads() -> None:
    """What the test above takes for granted."""
    policy = adapted_policy("qwen2")
    with using(policy, None):
        base = head_weights(policy.causal_lm, 0)
    with using(policy, "default"):
        tuned = head_weights(policy.causal_lm, 0)
    for name in ("query", "key", "value", "out"):
        assert (getattr(base, name) - getattr(tuned, name)).abs().max() > 0.1
    assert torch.equal(base.key_bias, tuned.key_bias)
    # Two heads a group.
    assert torch.equal(base.key[0], base.key[1])
    assert not torch.equal(base.key[1], base.key[2])
