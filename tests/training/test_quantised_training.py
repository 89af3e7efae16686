"""Training on a base in 4 and 8 bits: it learns, what is saved is what was trained, and a cut gradient ends it."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import (
    FinetuneSettings,
    MeasureSettings,
    ModelSettings,
    PreferSettings,
    QuantisationSettings,
    RlafSettings,
)
from rewardlm.errors import TrainingError
from rewardlm.measuring.meter import measure
from rewardlm.models import load as loading
from rewardlm.models.load import load_policy
from rewardlm.models.lora import load_adapter
from rewardlm.runs import Run
from rewardlm.training.prefer import prefer
from rewardlm.training.rlaf import train
from rewardlm.training.sft import finetune

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
from bitsandbytes.functional import has_avx512bf16

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
PAIRS = [
    ("They only come here for the benefits.", "Most of them work, and their taxes pay for benefits too."),
    ("Women can't park.", "Insurers disagree."),
    ("Old people should not vote.", "A vote is for being a citizen, and it isn't a prize for the young."),
    ("They are all thieves.", "Who told you so?"),
]
needs_the_trap = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes changes its layout on CPUs with AVX512-BF16 alone"
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def sft(folder: Path, **changes: Any) -> FinetuneSettings:
    path = folder / "dialogues.jsonl"
    with open(path, "w") as file:
        for number, pair in enumerate(PAIRS):
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    base = {"dialogues": str(path), "validation": 0.0, "batch_size": 4, "learning_rate": 1e-2, "epochs": 4}
    return FinetuneSettings(**{**TINY, **base, **changes})


def rl(**changes: Any) -> RlafSettings:
    base = {"batch_size": 8, "max_new_tokens": 6, "steps": 2, "learning_rate": 1e-2, "limit": 8, "witness": []}
    return RlafSettings(**{**TINY, **base, **changes})


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(str(run.path / "adapter" / "adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("load", ["4bit", "8bit"])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preferences_are_learnt_in_float32(load: str, method: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": prompt, "chosen": answer, "rejected": f"Yes. {prompt}"} for prompt, answer in PAIRS]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = PreferSettings(
        **TINY, load=load, method=method, preferences=path, steps=12, batch_size=4, learning_rate=1e-2
    )
    run = prefer(settings, tmp_path / "run")
    lines = list(run.read("metrics"))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert run.meta["quantisation"] == load
    tensors = weights(run)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    # float32 to the last bits: an adapter that was rounded to bfloat16 on its way would have none beyond 16.
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("load", ["4bit", "8bit"])
def test_preferences_are_drawn_and_learnt_in_rounds_from_an_adapter_and_after_an_interruption(
    load: str, tmp_path: Path
) -> None:
    """The base is quantised where it answers, where it is the reference, and where it is trained."""
    before = finetune(sft(tmp_path, load=load, epochs=1, learning_rate=1e-3), tmp_path / "before")

    def settings(**changes: Any) -> PreferSettings:
        terms = {"similarity": 0, "counter_narrative": 0}
        base = {
            "load": load, "prompts": "starter", "limit": 8, "reward": ["lexical"], "witness": [], "samples": 4,
            "steps": 6, "rounds": 2, "batch_size": 4, "max_new_tokens": 6, "learning_rate": 1e-2, "sft_weight": 0.0,
            "rewards": {"terms": terms}, "pairs": {"margin": 1e-6, "topic": 0, "topic_gap": None},
            "retain": {"coef": 0}, "adapter": before.path, "checkpoint_every": 2,
        }  # fmt: skip
        return PreferSettings(**{**TINY, **base, **changes})

    whole = prefer(settings(), tmp_path / "whole")
    lines = list(whole.read("metrics"))
    # Before the first step, the model with its adapter is the reference: each pair's loss is that of a coin. In 8 bits
    # inputs are rounded too, not quite alike in the pass that knows the reference and in the one that learns.
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6 if load == "4bit" else 1e-4)
    assert {record["round"] for record in whole.read("answers")} == {1, 2}
    assert whole.meta["quantisation"] == load
    assert any(not torch.equal(weights(whole)[name], tensor) for name, tensor in weights(before).items())

    def interrupt(done: int, *_: object) -> None:
        if done == 4:  # in the second round, after its first step
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefer(settings(), tmp_path / "again", report=interrupt)
    again = prefer(settings(), tmp_path / "again")
    assert [line["loss"] for line in again.read("metrics")] == [line["loss"] for line in lines]
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())


@pytest.mark.slow
@pytest.mark.parametrize("load", ["4bit", "8bit"])
def test_fine_tuning_learns_in_float32_through_an_evaluation(load: str, tmp_path: Path) -> None:
    """The evaluation after each epoch is a pass without gradients, between two updates."""
    run = finetune(sft(tmp_path, load=load, validation=0.25, batch_size=3, epochs=5), tmp_path / "run")
    lines = list(run.read("metrics"))
    assert len(lines) == 5
    assert all("eval_loss" in line for line in lines)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert run.meta["quantisation"] == load
    assert run.meta["settings"]["quantisation"]["kind"] == "nf4"
    tensors = weights(run)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    # float32 to the last bits: an adapter that was rounded to bfloat16 on its way would have none beyond 16.
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert bool(tensor.any()), name


@pytest.mark.slow
def test_a_loss_in_4_bits_is_that_of_the_same_weights_in_full(tmp_path: Path) -> None:
    """Fine-tuning on the weights that the codes stand for, in float32, gives the same losses and the same adapter."""
    from rewardlm.models.quantised import full_weight, quantised_layers

    base = load_policy(ModelSettings(**TINY, load="4bit"))
    plain = load_policy(ModelSettings(**TINY))
    with torch.no_grad():
        for name, layer in quantised_layers(base.model).items():
            plain.model.get_submodule(name).weight.copy_(full_weight(layer))
    plain.model.save_pretrained(tmp_path / "plain")
    plain.tokenizer.save_pretrained(tmp_path / "plain")
    ours = finetune(sft(tmp_path, load="4bit"), tmp_path / "ours")
    theirs = finetune(sft(tmp_path, model=str(tmp_path / "plain")), tmp_path / "theirs")
    for mine, other in zip(ours.read("metrics"), theirs.read("metrics"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for name, tensor in weights(theirs).items():
        torch.testing.assert_close(weights(ours)[name], tensor, rtol=0.05, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("load", ["4bit", "8bit"])
@pytest.mark.parametrize(
    "how",
    [{"algorithm": "ppo"}, {"algorithm": "ppo", "critic": "own"}, {"algorithm": "grpo", "kl": {"penalty": "full"}}],
    ids=["ppo", "ppo-own-critic", "grpo-full-kl"],
)
def test_reinforcement_learns(load: str, how: dict[str, Any], tmp_path: Path) -> None:
    run = train(rl(load=load, **how), tmp_path / "run")
    lines = list(run.read("metrics"))
    assert [line["step"] for line in lines] == [1, 2]
    # The reference is the same quantised base; the first step's policy is it.
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-3 if load == "4bit" else 0.3)
    assert lines[1]["kl_k3"] > lines[0]["kl_k3"]
    for line in lines:
        assert line["grad_norm"] > 0
        assert line["first_ratio"] == pytest.approx(1, abs=1e-4 if load == "4bit" else 0.1)
    assert all(bool(tensor.any()) for name, tensor in weights(run).items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize("load", ["4bit", "8bit"])
def test_a_run_that_goes_on_is_one_that_never_stopped(load: str, tmp_path: Path) -> None:
    whole = train(rl(load=load, steps=3), tmp_path / "whole")
    train(rl(load=load, steps=1), tmp_path / "parts")
    parts = train(rl(load=load, steps=3), tmp_path / "parts")
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_adapter_of_a_quantised_base_starts_rl_and_answers_on_it_as_it_was_trained(tmp_path: Path) -> None:
    run = finetune(sft(tmp_path, load="4bit"), tmp_path / "ft")
    again = train(rl(load="4bit", adapter=run.path / "adapter", steps=1), tmp_path / "rl")
    assert next(iter(again.read("metrics")))["kl"] == pytest.approx(0, abs=1e-3)
    policy = load_policy(ModelSettings(**TINY, load="4bit"))
    load_adapter(policy, run.path / "adapter")
    losses = []
    for question, answer in PAIRS:
        ids = policy.tokenizer(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>", return_tensors="pt"
        )["input_ids"]
        n = len(policy.tokenizer(f"{answer}<|im_end|>")["input_ids"])
        with torch.no_grad():
            logprobs = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[-n:])
    lines = list(run.read("metrics"))
    assert float(torch.cat(losses).mean()) < lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.slow
def test_measuring_an_adapter_on_another_base_is_warned_of(tmp_path: Path) -> None:
    run = finetune(sft(tmp_path, load="4bit", max_steps=1), tmp_path / "ft")
    common = {**TINY, "adapter": run.path, "limit": 2, "max_new_tokens": 2, "scorer": ["lexical"]}
    quiet = {"similarity": False, "perplexity": False, "counter_narrative": None}
    with pytest.warns(UserWarning, match="measure it with --load 4bit"):
        measure(MeasureSettings(**common, **quiet), tmp_path / "full")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the adapter")
        measure(MeasureSettings(**common, **quiet, load="4bit"), tmp_path / "4bit")


def test_compute_in_half_precision_learns_too(tmp_path: Path) -> None:
    settings = QuantisationSettings(compute_dtype="bfloat16")
    run = finetune(sft(tmp_path, load="4bit", quantisation=settings), tmp_path / "run")
    lines = list(run.read("metrics"))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


@needs_the_trap
def test_a_cut_gradient_ends_fine_tuning_after_the_evaluation_that_cut_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fast path tries the model without gradients before the first step, which would be refused then.
    monkeypatch.setenv("REWARDLM_FASTPATH", "0")
    monkeypatch.setattr(loading, "keep_layout", lambda model: None)
    with pytest.raises(TrainingError, match="no gradient passes through 14 of 14 quantised layers"):
        finetune(sft(tmp_path, load="4bit", validation=0.25, batch_size=3), tmp_path / "run")
    # The first epoch was learnt in good faith; its end evaluates, and no step comes after that.
    assert [line["step"] for line in Run.open(tmp_path / "run").read("metrics")] == [1]


@pytest.mark.slow
@needs_the_trap
def test_a_cut_gradient_ends_reinforcement_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "keep_layout", lambda model: None)
    with pytest.raises(TrainingError, match="no gradient passes through 14 of 14 quantised layers"):
        train(rl(load="4bit"), tmp_path / "run")
    assert not list(Run.open(tmp_path / "run").read("metrics"))
    # What is kept is the adapter as it was drawn: nothing was learnt from a wrong gradient.
    assert not any(bool(t.any()) for name, t in weights(Run.open(tmp_path / "run")).items() if "lora_B" in name)
