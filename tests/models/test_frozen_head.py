"""The gradient through a frozen head in half precision, against float64: nearly certain tokens must not lose theirs."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from small_models import adapted, trainable_parameters
from torch import nn

from rewardlm.models.load import Policy
from rewardlm.models.logprobs import _head_stats, forward_rows, frozen_head_stats, vocabulary_kl

VOCABULARY, WIDTH = 3000, 64


def certain_head(p: float, dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A head and one state of which token 7 has probability ``p``; its logits are exact in ``dtype``.

    The state's first number is 1 and the others 0, so a token's logit is its weight there: a half-precision number.
    What the others weigh is random, so that the gradient has all kinds of numbers in it.
    """
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    weight[:, 0] = torch.randn(VOCABULARY, generator=generator) * 2
    weight = weight.to(dtype)
    others = weight[:, 0].double().clone()
    others[7] = -torch.inf
    weight[7, 0] = float(others.logsumexp(0)) + math.log(p / (1 - p))
    head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    head.weight.copy_(weight)
    state = torch.zeros(1, WIDTH, dtype=dtype)
    state[0, 0] = 1
    return head, state.requires_grad_(True), torch.tensor([7])


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


CERTAIN = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]


@pytest.mark.parametrize("p", CERTAIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gradient_of_a_token_is_that_of_float64_to_the_results_rounding(p: float, dtype: torch.dtype) -> None:
    """d log p(t) / d h = W[t] - Σ p(v)·W[v]: both are nearly equal where p(t) is nearly 1."""
    head, state, target = certain_head(p, dtype)
    logprobs, *_ = frozen_head_stats(head, state, target, chunk=4)
    (found,) = torch.autograd.grad(logprobs.sum(), state)
    exact_state = state.detach().double().requires_grad_(True)
    exact = (exact_state @ head.weight.double().t()).log_softmax(-1)[0, 7]
    assert float(exact.detach().exp()) == pytest.approx(p, abs=0.2 * (1 - p))  # The logit itself is rounded.
    (wanted,) = torch.autograd.grad(exact, exact_state)
    assert float(logprobs.detach()) == pytest.approx(float(exact.detach()), rel=1e-2, abs=1e-6)
    assert relative(found, wanted) < {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-3}[dtype]


@pytest.mark.parametrize("p", CERTAIN[:-1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gradient_of_the_exact_divergence_is_that_of_float64(p: float, dtype: torch.dtype) -> None:
    """What ``kl.penalty=full`` sends back: Σ p(v)·(log p(v)/q(v) - KL)·W[v]. Its sum cancels as the token's does."""
    head, state, target = certain_head(p, dtype)
    other = state.detach().clone()
    other[0, 1:] = 0.25  # The reference sees another state: every logit is another one.
    _, entropy, _, kl = _head_stats(head, state, target, other, None)
    (found,) = torch.autograd.grad(kl.sum(), state)
    exact_state = state.detach().double().requires_grad_(True)
    weight = head.weight.double()
    # The head's logits are rounded to its precision; that is no matter of the gradient's.
    exact = vocabulary_kl(exact_state @ weight.t(), head(other).double())
    (wanted,) = torch.autograd.grad(exact.sum(), exact_state)
    assert not entropy.requires_grad
    # In float32 too, log p of a nearly certain token has few digits: it is the difference of two large numbers.
    assert relative(found, wanted) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("sharp", [1.0, 4.0, 8.0, 12.0])
def test_the_updates_gradient_in_bfloat16_is_as_near_to_float32_as_plain_autograds(sharp: float) -> None:
    """The adapter's gradient of the likeliest next token's log-probability, each of 24 by itself.

    ``sharp`` scales the states that logits are made from, and so how certain that token is. A logit's own rounding
    changes 1 - p(t) by some percent, in both; so it is the mean error of many that is compared.
    """
    half, whole = adapted("tiny", torch.bfloat16), adapted("tiny")
    with torch.no_grad():
        half.causal_lm.model.norm.weight.mul_(sharp)
    whole.causal_lm.load_state_dict({name: value.float() for name, value in half.causal_lm.state_dict().items()})

    def gradient(policy: Policy, prompt: list[int], token: int, plain: bool) -> torch.Tensor:
        if plain:
            logits = policy.causal_lm(input_ids=torch.tensor([prompt])).logits
            logprob = logits[0, -1].float().log_softmax(-1)[token]
        else:
            logprob = forward_rows(policy.causal_lm, [prompt], [[token]], [0]).logprobs[0]
        found = torch.autograd.grad(logprob, trainable_parameters(policy.model))
        return torch.cat([part.flatten() for part in found])

    ours, theirs, certain = [], [], []
    for first in range(24):
        prompt = [7 + first, 8, 9 + 2 * first, 20]
        with torch.no_grad():
            probabilities = whole.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
        token = int(probabilities.argmax())
        certain.append(float(probabilities[token]))
        exact = gradient(whole, prompt, token, plain=True).double()
        ours.append(relative(gradient(half, prompt, token, plain=False), exact))
        theirs.append(relative(gradient(half, prompt, token, plain=True), exact))
    assert (max(certain) > 0.999) == (sharp >= 8)
    assert 0 < fmean(ours) < 1.25 * fmean(theirs)
