"""Self-debiasing against the paper's formula, token by token, and a plain loop over prompts that are run apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import tiny_policy
from small_steering import GREEDY, QUESTIONS, answered, folder_of, greedy

from rewardlm.models.load import Policy
from rewardlm.steering.selfdebias import SelfDebiasing, debiased
from rewardlm.types import Message


def by_hand(rows: list[list[float]], decay: float, epsilon: float) -> list[float]:
    """p̃(w) ∝ α(Δ(w))·p(w), Δ(w) = min_y p(w) − p_y(w): the first row is p's logits, the others the p_y's."""
    shares = []
    for logits in rows:
        total = sum(math.exp(z) for z in logits)
        shares.append([math.exp(z) / total for z in logits])
    weights = []
    for token, share in enumerate(shares[0]):
        delta = min(share - other[token] for other in shares[1:])
        weights.append((1.0 if delta >= 0 else max(math.exp(decay * delta), epsilon)) * share)
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("views", [2, 4])
def test_the_distribution_is_the_papers(views: int) -> None:
    logits = torch.randn(3, views, 30, generator=torch.Generator().manual_seed(views)) * 2
    strengths = [10.0, 100.0, 0.0]
    got = debiased(logits, torch.tensor(strengths), 0.01).softmax(-1)
    for row, strength in enumerate(strengths):
        wanted = by_hand(logits[row].tolist(), strength, 0.01)
        torch.testing.assert_close(got[row], torch.tensor(wanted), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(got[1], logits[1, 0].softmax(-1), atol=1e-3)


def logits_of(policy: Policy, ids: list[int]) -> list[float]:
    with torch.no_grad():
        return policy.causal_lm(input_ids=torch.tensor([ids])).logits[0, -1].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("door", ["1", "0"])
def test_answers_are_those_of_prompts_that_are_run_apart(door: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    descriptions = ["The following text is rude:", "The following text is a threat, and a long one at that:"]
    folder = folder_of("selfdebias", dict[str, Any]().__getitem__)
    settings = {"descriptions": descriptions, "epsilon": 0.01}
    folder = type(folder)(folder.record.model_copy(update={"settings": settings}))
    policy = tiny_policy()
    # Tiny's distributions are nearly flat, so it takes a large λ to move one.
    strengths = [1e4, 1e5, 0.0, 1e4, 1e6]
    got = answered(policy, SelfDebiasing(folder), strengths, sampling=GREEDY, batch_tokens=600)
    plain = answered(policy, SelfDebiasing(folder), [0.0] * 5, sampling=GREEDY)

    def of(text: str, strength: float) -> Callable[[list[int], int], torch.Tensor]:
        others = [policy.chat.encode_prompt([Message("user", f"{one}\n{text}")]) for one in descriptions]

        def logits(tokens: list[int], start: int) -> torch.Tensor:
            rows = [logits_of(policy, ids) for ids in (tokens, *(other + tokens[start:] for other in others))]
            return torch.tensor(by_hand(rows, strength, 0.01))

        return logits

    wanted = []
    for text, strength in zip(QUESTIONS, strengths, strict=True):
        prompt = policy.chat.encode_prompt([Message("user", text)])
        wanted.append(greedy(of(text, strength), prompt, 8, policy.end_ids))
    assert [answer.tokens for answer in got] == wanted
    assert [answer.tokens for answer in got] != [answer.tokens for answer in plain]
