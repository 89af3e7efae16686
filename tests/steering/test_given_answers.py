"""Log-probabilities of given answers: against those that decoding recorded, and against passes of the tests' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIGS, adapted, random_policy, tiny_policy
from small_steering import (
    BASIS,
    QUESTIONS,
    VECTOR,
    answered,
    assert_unchanged,
    changed_inputs,
    folder_of,
    prompts_of,
    saved_adapter,
    state_of,
)

from rewardlm.errors import NotAvailableError
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.lora import load_adapter
from rewardlm.steering import steered as steered_module
from rewardlm.steering.activation import StreamSteering, ablates, adds
from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steering, Unsteered
from rewardlm.types import Message

STRENGTHS = [2.0, 0.0, 0.5, 1.0, 2.0]
# Two of them share a prompt, at strengths of their own; answers of unequal lengths.
ANSWERS = [[17, 900, 4], [5], [81, 82, 83, 84, 85, 86], [17, 2], [7, 300, 301, 12, 3]]
METHODS = ("system", "activation", "everywhere", "ablation", "gated", "profs", "dexperts", "selfdebias", "task-vector")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    names = ("expert", "anti_expert", "toxic")
    return {name: saved_adapter(tiny_policy, folder / name, seed, 0.3) for seed, name in enumerate(names)}.__getitem__


def steering_of(method: str, adapters: Callable[[str], Path]) -> Steering:
    if method == "everywhere":
        changes: Any = {(1, "in"): adds(VECTOR), (0, "attention"): ablates(BASIS), (2, "in"): adds(VECTOR)}
        return StreamSteering("activation", 1.0, changes, answers_only=False)
    return load_steering(folder_of(method, adapters))


def read(
    policy: Policy,
    steering: Steering,
    strengths: Sequence[float],
    answers: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
) -> list[torch.Tensor]:
    with steering.on(policy) as steered:
        requests = [
            steered.request([Message("user", text)], 0, strength, 400)[0]
            for text, strength in zip(QUESTIONS, strengths, strict=True)
        ]
        return steered.logprobs(requests, answers, batch_tokens)


@pytest.mark.parametrize("door", ["1", "0"])
@pytest.mark.parametrize("method", METHODS)
def test_given_answers_are_as_likely_as_when_they_were_drawn(
    method: str, door: str, adapters: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token from a cache, with refilled slots, and all at once: two ways to the same numbers."""
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    steering = steering_of(method, adapters)
    strengths = [min(strength, 1.0) if method == "system" else strength for strength in STRENGTHS]
    if method == "system":
        strengths[2] = 1.0
    if method == "selfdebias":
        # Tiny's distributions are nearly flat, so it takes a large λ to move one.
        strengths = [1e4 * strength for strength in strengths]
    drawn = answered(tiny_policy(), steering, strengths, n=8, batch_tokens=300)
    policy = tiny_policy()
    before = state_of(policy)
    got = read(policy, steering, strengths, [one.tokens for one in drawn], batch_tokens=150)
    assert_unchanged(policy, before)
    assert torch.is_grad_enabled()
    for one, found in zip(drawn, got, strict=True):
        torch.testing.assert_close(found, one.logprobs, atol=2e-4, rtol=1e-4)
    plain = read(tiny_policy(), Unsteered(), [0.0] * 5, [one.tokens for one in drawn])
    moved = [not torch.allclose(one, other, atol=1e-3) for one, other in zip(got, plain, strict=True)]
    assert not any(one for one, strength in zip(moved, strengths, strict=True) if not strength)
    # A gate may stay shut for a whole answer.
    assert sum(moved) >= (1 if method == "gated" else 4)


def by_hand(policy: Policy, layer: int, strength: float, prompt: list[int], answer: list[int], where: str) -> Any:
    """One pass of one sequence, with the vector added by the test's own hook."""
    arch = architecture_of(policy.causal_lm)
    v = VECTOR[: policy.causal_lm.config.hidden_size]

    def change(states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        states[:, 0 if where == "all" else len(prompt) - 1 :] += strength * v
        return states

    with torch.no_grad(), changed_inputs([*arch.layers, arch.norm][layer], change):
        logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    shares = logits.double().log_softmax(-1)
    return torch.stack([shares[len(prompt) - 1 + n, token] for n, token in enumerate(answer)]).float()


@pytest.mark.parametrize("where", ["answer", "all"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_stream_is_changed_where_answers_are_predicted_from_and_nowhere_else(where: str, layer: int) -> None:
    policy = adapted("tiny")
    steering = StreamSteering("activation", 1.0, {(layer, "in"): adds(VECTOR)}, answers_only=where == "answer")
    # Once with two answers to one prompt at one strength, whose first tokens are predicted from the same place.
    for strengths in (STRENGTHS, [2.0] * 5):
        got = read(policy, steering, strengths, ANSWERS)
        for row, prompt in enumerate(prompts_of(policy)):
            wanted = by_hand(policy, layer, strengths[row], prompt, ANSWERS[row], where)
            torch.testing.assert_close(got[row], wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["answer", "all"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gemma"])
def test_every_family_reads_given_answers(name: str, where: str) -> None:
    policy = random_policy(name)
    v = VECTOR[: policy.causal_lm.config.hidden_size]
    steering = StreamSteering("activation", 1.0, {(1, "in"): adds(v)}, answers_only=where == "answer")
    got = read(policy, steering, STRENGTHS, ANSWERS, batch_tokens=200)
    for row, prompt in enumerate(prompts_of(policy)):
        wanted = by_hand(policy, 1, STRENGTHS[row], prompt, ANSWERS[row], where)
        torch.testing.assert_close(got[row], wanted, atol=5e-4, rtol=1e-3)


def test_tokens_outside_of_dexperts_filter_cannot_come(adapters: Callable[[str], Path]) -> None:
    """Against three models that are run apart, and a nucleus that is sorted out by hand."""
    apart = [tiny_policy() for _ in range(3)]
    for one, name in zip(apart[1:], ("expert", "anti_expert"), strict=True):
        load_adapter(one, adapters(name))
    got = read(tiny_policy(), load_steering(folder_of("dexperts", adapters)), STRENGTHS, ANSWERS)
    outside = 0
    for row, (prompt, answer, strength) in enumerate(zip(prompts_of(apart[0]), ANSWERS, STRENGTHS, strict=True)):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            base, expert, anti = (one.causal_lm(input_ids=ids).logits[0].double() for one in apart)
        for n, token in enumerate(answer):
            z, plus, minus = (of[len(prompt) - 1 + n] for of in (base, expert, anti))
            pushed = z + strength * (plus - minus)
            if strength:
                order = z.argsort(descending=True)
                shares = z.softmax(-1)[order]
                pushed[order[shares.cumsum(-1) - shares >= 0.9]] = -torch.inf
            wanted = float(pushed.log_softmax(-1)[token])
            assert float(got[row][n]) == pytest.approx(wanted, abs=2e-4)
            outside += wanted == -math.inf
    assert 0 < outside < sum(map(len, ANSWERS))


def test_a_few_tokens_meet_the_vocabulary_at_a_time_and_an_empty_answer_has_none(
    adapters: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = load_steering(folder_of("dexperts", adapters))
    answers = [*ANSWERS[:3], [], ANSWERS[4]]
    whole = read(tiny_policy(), steering, STRENGTHS, answers)
    assert [len(one) for one in whole] == [3, 1, 6, 0, 5]
    monkeypatch.setattr(steered_module, "_CHUNK", 2)
    policy = tiny_policy()
    seen: list[int] = []
    handle = policy.causal_lm.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: seen.append(len(output))
    )
    again = read(policy, steering, STRENGTHS, answers)
    handle.remove()
    assert max(seen) == 2
    for one, other in zip(whole, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["best-of-n", "rejection", "pplm"])
def test_methods_without_probabilities_say_so(method: str, adapters: Callable[[str], Path]) -> None:
    policy = tiny_policy()
    before = state_of(policy)
    steering = load_steering(folder_of(method, adapters))
    with pytest.raises(NotAvailableError, match="strength 0"):
        read(policy, steering, [0.0, 2.0, 0.0, 0.0, 0.0], ANSWERS)
    assert_unchanged(policy, before)
    got = read(policy, steering, [0.0] * 5, ANSWERS)
    wanted = read(policy, Unsteered(), [0.0] * 5, ANSWERS)
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
