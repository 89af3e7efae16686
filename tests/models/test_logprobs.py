"""The one shift: log-probabilities, entropies and gradients against a plain forward of each row by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import CONFIGS, adapted, random_policy, tiny_policy, trainable_parameters
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config

from rewardlm.errors import ModelError
from rewardlm.models.logprobs import (
    check_head,
    forward_rows,
    hidden_rows,
    microbatches,
    pack,
    row_stats,
    score_rows,
    shared_prefix,
    token_stats,
    vocabulary_kl,
)
from rewardlm.models.lora import reference

CPU = torch.device("cpu")
SHARED = [7, 8, 9, 10, 11]
PROMPTS = [[*SHARED, 20, 21], [*SHARED, 30], [*SHARED, 20, 21], [*SHARED, *range(40, 80)], [*SHARED, 0, 2, 2]]
# Pad (0) and end token (2) are answers like any other token; the last is as short as can be.
RESPONSES = [[5, 6, 2], [2], [0, 0, 2, 9], [100, 101, 102, 103, 104, 105], [2, 2]]


def plain(causal_lm: Any, prompt: list[int], response: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of one row alone, by a loop over its tokens."""
    logits = causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    logprobs, entropies = [], []
    for position, token in enumerate(response, len(prompt)):
        log_p = logits[position - 1].float().log_softmax(-1)
        logprobs.append(log_p[token])
        entropies.append(-(log_p.exp() * log_p).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *CONFIGS])
@pytest.mark.parametrize("chunk", [1, 512])
def test_statistics_equal_a_plain_forward(name: str, chunk: int) -> None:
    model = random_policy(name).causal_lm
    packed = pack(PROMPTS, RESPONSES, CPU)
    assert packed.prefix.tolist() == SHARED
    with torch.no_grad():
        stats = token_stats(model, packed, chunk=chunk)
        wanted = [plain(model, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    torch.testing.assert_close(stats.logprobs, torch.cat([lp for lp, _ in wanted]), atol=1e-4, rtol=0)
    torch.testing.assert_close(stats.entropy, torch.cat([h for _, h in wanted]), atol=1e-4, rtol=0)
    assert stats.hidden.shape[0] == sum(map(len, RESPONSES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", *CONFIGS])
@pytest.mark.parametrize("chunk", [1, 512])
def test_gradients_equal_plain_autograd(name: str, chunk: int) -> None:
    policy = adapted(name)
    parameters = trainable_parameters(policy.model)
    weights = torch.linspace(-1, 2, sum(map(len, RESPONSES)))

    loss = (token_stats(policy.causal_lm, pack(PROMPTS, RESPONSES, CPU), chunk=chunk).logprobs * weights).sum()
    got = torch.autograd.grad(loss, parameters)
    rows = [plain(policy.causal_lm, p, r)[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    wanted = torch.autograd.grad((torch.cat(rows) * weights).sum(), parameters)

    largest = max(float(gradient.abs().max()) for gradient in wanted)
    assert largest > 1e-2
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours / largest, theirs / largest, atol=1e-5, rtol=1e-3)


def test_entropy_carries_no_gradient() -> None:
    policy = adapted("tiny")
    assert not token_stats(policy.causal_lm, pack(PROMPTS, RESPONSES, CPU)).entropy.requires_grad


def test_score_rows_gives_rows_in_order_padded_to_the_right() -> None:
    model = tiny_policy().causal_lm
    for budget in (1, 60, 10_000):
        logprobs, entropies = score_rows(model, PROMPTS, RESPONSES, budget)
        assert logprobs.shape == entropies.shape == (5, 6)
        for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
            with torch.no_grad():
                lp, h = plain(model, prompt, response)
            torch.testing.assert_close(logprobs[row, : len(response)], lp, atol=1e-4, rtol=0)
            torch.testing.assert_close(entropies[row, : len(response)], h, atol=1e-4, rtol=0)


def plain_distributions(model: Any) -> list[torch.Tensor]:
    """Of each response its tokens' next-token log-probabilities, Float[R, V], by a forward pass a row."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].float()
        rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
    return rows


def test_vocabulary_kl_is_the_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    found = vocabulary_kl(p, q)
    for row in range(3):
        mine, theirs = p[row].softmax(-1).tolist(), q[row].softmax(-1).tolist()
        wanted = sum(a * math.log(a / b) for a, b in zip(mine, theirs, strict=True))
        assert float(found[row]) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 512])
def test_the_divergence_from_other_states_goes_in_the_direction_that_was_asked_for(chunk: int) -> None:
    policy = adapted("tiny")
    model = policy.causal_lm
    rows = range(len(PROMPTS))
    with torch.no_grad():
        own = torch.cat(plain_distributions(model))
        with reference(policy):
            other = torch.cat(plain_distributions(model))
            states = torch.cat([row.hidden for row in row_stats(model, PROMPTS, RESPONSES, 60, keep_hidden=True)])
        packed = pack(PROMPTS, RESPONSES, CPU)
        toward = token_stats(model, packed, chunk=chunk, kl_to=states).kl
        away = token_stats(model, packed, chunk=chunk, kl_from=states).kl
        assert token_stats(model, packed, chunk=chunk).kl is None
        hidden = token_stats(model, packed, chunk=chunk).hidden
        torch.testing.assert_close(hidden_rows(model, PROMPTS, RESPONSES, rows), hidden)
    forward, backward = (own.exp() * (own - other)).sum(-1), (other.exp() * (other - own)).sum(-1)
    assert float((forward - backward).abs().max()) > 5e-3
    torch.testing.assert_close(toward, forward, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(away, backward, atol=1e-4, rtol=1e-3)


def test_the_divergence_has_the_gradient_of_plain_autograd() -> None:
    policy = adapted("tiny")
    parameters = trainable_parameters(policy.model)
    weights = torch.linspace(-1, 2, sum(map(len, RESPONSES)))
    with torch.no_grad(), reference(policy):
        others = torch.cat(plain_distributions(policy.causal_lm))
        states = [row.hidden for row in row_stats(policy.causal_lm, PROMPTS, RESPONSES, 60, keep_hidden=True)]
    stats = forward_rows(policy.causal_lm, PROMPTS, RESPONSES, range(len(PROMPTS)), kl_to=states)
    got = torch.autograd.grad((stats.kl * weights).sum(), parameters)
    own = torch.cat(plain_distributions(policy.causal_lm))
    wanted = torch.autograd.grad(((own.exp() * (own - others)).sum(-1) * weights).sum(), parameters)
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    assert largest > 1e-2
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours / largest, theirs / largest, atol=1e-5, rtol=1e-3)


def test_masks_come_from_lengths() -> None:
    packed = pack(PROMPTS, RESPONSES, CPU)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        assert packed.tokens[row][packed.mask[row]].tolist() == [*prompt[len(SHARED) :], *response]
        assert packed.tokens[row][packed.response_mask[row]].tolist() == response
    assert int(packed.mask.sum()) == sum(len(p) - len(SHARED) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True))


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1], [1, 2, 3]], 0),
        ([[1, 2, 3], [9, 2, 3]], 0),
        ([[1, 2, 9, 4], [1, 2, 3, 4], [1, 2, 5, 4]], 2),
    ],
)
def test_shared_prefix_leaves_every_row_a_token_of_its_own(prompts: list[list[int]], shared: int) -> None:
    assert shared_prefix(prompts) == shared


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ModelError, match="no tokens"):
        pack([[1], []], [[2], [3]], CPU)


def test_microbatches_hold_every_row_once_within_the_budget() -> None:
    lengths = [int(n) for n in torch.randint(1, 100, (150,), generator=torch.Generator().manual_seed(0))]
    pieces = microbatches(lengths, 256)
    assert sorted(row for piece in pieces for row in piece) == list(range(150))
    assert all(len(piece) == 1 or len(piece) * max(lengths[row] for row in piece) <= 256 for piece in pieces)
    assert microbatches([500, 3], 100) == [[1], [0]]


def test_microbatches_of_rows_that_are_alike_hold_no_row_much_shorter_than_another() -> None:
    lengths = [8, 80, 79, 10, 61, 59, 30, 9, 80, 60]
    alike = microbatches(lengths, 1000, shortest=0.75)
    assert sorted(row for rows in alike for row in rows) == list(range(len(lengths)))
    assert [sorted(lengths[row] for row in rows) for rows in alike] == [[8, 9, 10], [30], [59, 60, 61], [79, 80, 80]]
    assert all(
        len(rows) * max(lengths[row] for row in rows) <= 160 for rows in microbatches(lengths, 160, shortest=0.75)
    )


@pytest.mark.parametrize("name", ["tiny", *CONFIGS])
def test_heads_that_are_plain_pass_the_check(name: str) -> None:
    check_head(random_policy(name).causal_lm)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=0.5,
        ),
        CohereConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            logit_scale=0.0625,
        ),
    ],
    ids=["soft-capped", "scaled"],
)
def test_logits_that_are_more_than_head_of_trunk_are_refused(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    with pytest.raises(ModelError, match="not supported"):
        check_head(model)
