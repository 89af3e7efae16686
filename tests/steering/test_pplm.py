"""PPLM against the paper's step written for one row, without batch, padding or cache classes of ours."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import adapted, tiny_policy
from small_steering import GREEDY, VECTOR, answered, assert_unchanged, folder_of, prompts_of, state_of
from transformers import DynamicCache

from rewardlm.errors import ConfigError
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.pplm import Pplm, bag, bag_of

SETTINGS: dict[str, Any] = {"iterations": 2, "step": 0.5, "gamma": 1.0, "kl": 0.1, "fusion": 0.8}


def steering(tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Pplm:
    made = folder_of("pplm", dict[str, Any]().__getitem__)
    record = made.record.model_copy(update={"settings": {**SETTINGS, **changes}})
    return Pplm(SteerFolder(record, tensors or made.tensors))


def cached(pairs: list[Any]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def moved_by(past: list[Any], delta: list[Any]) -> list[Any]:
    return [(keys + one, values + two) for (keys, values), (one, two) in zip(past, delta, strict=True)]


BAG = [5, 9, 700, 1201]


def by_head(states: list[torch.Tensor], theirs: torch.Tensor) -> torch.Tensor:
    return torch.log(1 / (1 + torch.exp(torch.stack(states).mean(0) @ VECTOR)))


def by_bag(states: list[torch.Tensor], theirs: torch.Tensor) -> torch.Tensor:
    return torch.log(1 - theirs.exp()[BAG].sum())


def by_hand(policy: Policy, prompt: list[int], strength: float, n: int, harmless: Any) -> tuple[list[int], list[float]]:
    """Greedy tokens, and log p(harmless) at every pass of the first token, the last of them after the moves."""
    model = policy.causal_lm

    def run(ids: list[int], past: Any = None) -> Any:
        return model(input_ids=torch.tensor([ids]), past_key_values=past, use_cache=True, output_hidden_states=True)

    def pairs(cache: Any) -> list[Any]:
        return [(layer.keys, layer.values) for layer in cache.layers]

    with torch.no_grad():
        past = pairs(run(prompt[:-1]).past_key_values)
    tokens, states, gains = list(prompt), [], []
    for _ in range(n):
        with torch.no_grad():
            plain = run(tokens).logits[0, -1].log_softmax(-1)
        delta = [[torch.zeros_like(part) for part in pair] for pair in past]
        for _ in range(SETTINGS["iterations"]):
            delta = [[part.detach().requires_grad_() for part in pair] for pair in delta]
            out = run(tokens[-1:], cached(moved_by(past, delta)))
            theirs = out.logits[0, -1].log_softmax(-1)
            aim = harmless([*states, out.hidden_states[-1][0, -1]], theirs)
            gains.append(float(aim))
            (aim - SETTINGS["kl"] * (theirs.exp() * (theirs - plain)).sum()).backward()
            delta = [
                [part.detach() + strength * SETTINGS["step"] * part.grad / part.grad.norm() for part in pair]
                for pair in delta
            ]
        with torch.no_grad():
            out = run(tokens[-1:], cached(moved_by(past, delta)))
            states.append(out.hidden_states[-1][0, -1])
            gains.append(float(harmless(states, out.logits[0, -1].log_softmax(-1))))
            past = pairs(out.past_key_values)
            fused = out.logits[0, -1].softmax(-1) ** SETTINGS["fusion"] * plain.exp() ** (1 - SETTINGS["fusion"])
        tokens.append(int(fused.argmax()))
        if tokens[-1] in policy.end_ids:
            break
    return tokens[len(prompt) :], gains


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "harmless"),
    [(tiny_policy, by_head), (lambda: adapted("tiny"), by_head), (tiny_policy, by_bag)],
    ids=["plain", "adapted", "bag"],
)
def test_answers_are_those_of_the_papers_step(make: Any, harmless: Any) -> None:
    policy = make()
    before = state_of(policy)
    strengths = [1.0, 0.0, 2.0, 4.0, 0.5]
    tensors = {"bag": torch.tensor(BAG)} if harmless is by_bag else None
    got = answered(policy, steering(tensors), strengths, n=5, sampling=GREEDY)
    assert_unchanged(policy, before)
    rises = []
    for row, (strength, prompt) in enumerate(zip(strengths, prompts_of(policy), strict=True)):
        if strength:
            wanted, gains = by_hand(policy, prompt, strength, 5, harmless)
            assert got[row].tokens == wanted
            rises.append(gains[2] - gains[0])
    assert all(rise > 0 for rise in rises), "moving the past did not make a harmless answer likelier"


def test_a_bag_of_words_is_the_chance_that_none_comes() -> None:
    """Against eq. 4's sum, taken from 1; only words of one token count."""
    policy = tiny_policy()
    ids = [policy.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in ("the", "of", "a" * 40)]
    found = bag_of(["the", "of ", "a" * 40], policy)
    assert found == sorted(one[0] for one in ids if len(one) == 1)
    assert len(ids[2]) > 1
    logprobs = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    got = bag(torch.tensor([4, 7, 9]))(torch.zeros(3, 2), logprobs)
    for row in range(3):
        assert float(got[row]) == pytest.approx(
            math.log(1 - sum(math.exp(logprobs[row, i]) for i in (4, 7, 9))), rel=1e-4
        )
    with pytest.raises(ConfigError, match=r"none of the 1 words is one token of tiny"):
        bag_of(["a" * 40], policy)


def test_fusion_0_is_the_models_own_distribution() -> None:
    policy = tiny_policy()
    got = answered(policy, steering(fusion=0.0), [5.0] * 5, n=5, sampling=GREEDY)
    plain = answered(policy, steering(), [0.0] * 5, n=5, sampling=GREEDY)
    assert [one.tokens for one in got] == [one.tokens for one in plain]
