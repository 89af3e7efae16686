"""An adapter on the embeddings, from fine-tuning through reinforcement to measuring: it learns, and it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import FinetuneSettings, LoraSettings, ModelSettings, RlafSettings
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import load_adapter, reference
from rewardlm.runs import Run
from rewardlm.training.rlaf import train
from rewardlm.training.sft import finetune

COMMON: dict[str, Any] = {
    "model": "tiny",
    "device": "cpu",
    "dtype": "float32",
}
LORA = LoraSettings(r=4, alpha=8, targets=["q_proj", "v_proj", "embed_tokens"])
PROMPT, ANSWER = [7, 8, 9, 20], [5, 6, 2]


def embedding_matrices(run: Run) -> list[torch.Tensor]:
    tensors = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert not any("base_layer" in name for name in tensors), "the base is no part of an adapter"
    return [tensor for name, tensor in sorted(tensors.items()) if "embed_tokens" in name]


def shift(run: Run) -> float:
    """By how much the run's adapter moves likelihoods, and that our own pass says what the model itself says."""
    policy = load_policy(ModelSettings(model="tiny", device="cpu", dtype="float32"))
    load_adapter(policy, run.path)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([PROMPT + ANSWER])).logits[0, len(PROMPT) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(ANSWER)[:, None]).squeeze(-1)
        found = row_stats(policy.causal_lm, [PROMPT], [ANSWER], 100)[0].logprobs
        with reference(policy):
            before = row_stats(policy.causal_lm, [PROMPT], [ANSWER], 100)[0].logprobs
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    return float((found - before).abs().max())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    settings = FinetuneSettings(
        **COMMON, lora=LORA, dialogues="starter", limit=8, validation=0.0, max_steps=2, learning_rate=1e-2
    )
    return finetune(settings, tmp_path_factory.mktemp("embedding") / "FT")


def rl(out: Path, **more: Any) -> Run:
    return train(
        RlafSettings(
            **COMMON,
            prompts="starter",
            reward=["lexical"],
            witness=[],
            batch_size=4,
            max_new_tokens=6,
            learning_rate=1e-2,
            **more,
        ),
        out,
    )


def test_fine_tuning(tuned: Run) -> None:
    a, b = embedding_matrices(tuned)
    assert float(a.abs().max()) > 0
    assert float(b.abs().max()) > 0
    assert shift(tuned) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("after_fine_tuning", [False, True])
@pytest.mark.parametrize("critic", ["trunk", "own"])
def test_reinforcement(tuned: Run, after_fine_tuning: bool, critic: str, tmp_path: Path) -> None:
    start: dict[str, Any] = {"adapter": tuned.path} if after_fine_tuning else {"lora": LORA}
    with pytest.warns(UserWarning, match=r"adapter on embed_tokens .* through its modules"):
        run = rl(tmp_path / "RL", steps=2, algorithm="ppo", critic=critic, **start)
    lines = list(run.read("metrics"))
    assert [line["first_ratio"] for line in lines] == pytest.approx([1, 1], abs=1e-3)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-2)
    before = embedding_matrices(tuned) if after_fine_tuning else [torch.zeros(1)] * 2
    moved = [float((now - then).abs().max()) for now, then in zip(embedding_matrices(run), before, strict=True)]
    assert min(moved) > 1e-4
    assert shift(run) > 1e-3


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_embeddings(tmp_path: Path) -> None:
    whole = rl(tmp_path / "whole", steps=2, algorithm="grpo", samples=2, lora=LORA)
    first = rl(tmp_path / "parts", steps=1, algorithm="grpo", samples=2, lora=LORA)
    first.update(status="running")
    again = rl(tmp_path / "parts", steps=2, algorithm="grpo", samples=2, lora=LORA)
    assert all(torch.equal(a, b) for a, b in zip(embedding_matrices(whole), embedding_matrices(again), strict=True))
