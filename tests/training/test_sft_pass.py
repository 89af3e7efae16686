"""Fine-tuning's own pass against TRL's, against plain autograd in float64, and where it must step aside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from rewardlm.config import FinetuneSettings, LoraSettings, ModelSettings
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import add_lora
from rewardlm.runs import Run
from rewardlm.training import sft_pass, sft_trainer
from rewardlm.training.sft import finetune

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_models import adapted, random_policy, trainable_parameters

# Turns of one dialogue, rows that begin alike or are equal, labels with a hole, and tokens after the last label.
SYSTEM = [11, 12, 13, 14, 15, 16]
ROWS: list[tuple[list[int], list[int]]] = [
    ([*SYSTEM, 20, 21, 5, 30, 31, 32, 2], [0] * 9 + [1] * 4),
    ([*SYSTEM, 20, 21, 5, 30, 31, 32, 2, 40, 41, 5, 50, 51, 2], [0] * 16 + [1] * 3),
    ([*SYSTEM, 20, 21, 5, 33, 2], [0] * 9 + [1] * 2),
    ([*SYSTEM, 20, 21, 5, 30, 31, 32, 2], [0] * 9 + [1] * 4),
    ([*SYSTEM, *range(60, 80), 2, 90, 91], [0] * 10 + [1] * 5 + [0] * 4 + [1] * 8 + [0] * 2),
    ([7, 8, 9], [1, 1, 1]),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """As TRL's collator makes it, with a token as padding that rows have too."""
    width = max(len(tokens) for tokens, _ in rows)
    return {
        "input_ids": torch.tensor([tokens + [2] * (width - len(tokens)) for tokens, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in rows]),
        "labels": torch.tensor(
            [
                [token if on else -100 for token, on in zip(tokens, mask, strict=True)] + [-100] * (width - len(tokens))
                for tokens, mask in rows
            ]
        ),
    }


def gradient(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, trainable_parameters(policy.model))
    return torch.cat([part.flatten() for part in found]).double()


@pytest.mark.parametrize("name", ["tiny", "qwen2", "gemma", "gpt_neox", "opt"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_are_those_of_plain_cross_entropy(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row by itself through the model's own forward pass, in float64, and all labelled tokens' mean."""
    monkeypatch.setattr(sft_pass, "POSITIONS", 40)
    policy = adapted(name, dtype)
    if dtype == torch.float64:
        policy.model.double()  # the adapter too
    inputs = padded(ROWS)
    rows = sft_pass.rows_of(inputs)
    pieces = sft_pass.split(policy.causal_lm, rows)
    assert sorted(number for piece in pieces for number in piece) == list(range(len(ROWS)))
    assert len(pieces) > 1
    found = [sft_pass.loss_of(policy.causal_lm, rows, piece) for piece in pieces]
    ours = sum((part.nll for part in found), torch.zeros(()))
    ours_gradient = gradient(policy, ours)

    exact = adapted(name)
    exact.model.double()
    nll, entropy, likeliest, n = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
    for tokens, mask in ROWS:
        logits = exact.model(input_ids=torch.tensor([tokens])).logits[0, :-1]
        wanted = torch.tensor(mask[1:]).bool()
        targets = torch.tensor(tokens[1:])[wanted]
        nll = nll + cross_entropy(logits[wanted], targets, reduction="sum")
        p = logits[wanted].detach().softmax(-1)
        entropy += float(-(p * p.log()).sum())
        likeliest += int((logits[wanted].argmax(-1) == targets).sum())
        n += len(targets)
    assert sum(part.tokens for part in found) == n == 4 + 3 + 2 + 4 + 13 + 2
    # Norms, the attention's softmax and the numbers from log-sum-exp on are float32 whatever the model is.
    assert float(ours.detach()) == pytest.approx(float(nll.detach()), rel=1e-5 if dtype == torch.float32 else 1e-6)
    assert sum(part.entropy for part in found) == pytest.approx(entropy, rel=1e-4)
    assert sum(part.likeliest for part in found) == likeliest
    theirs_gradient = gradient(exact, nll)
    assert float(theirs_gradient.norm()) > 1
    apart = float((ours_gradient - theirs_gradient).norm() / theirs_gradient.norm())
    assert apart < (1e-4 if dtype == torch.float32 else 1e-5)


TALKS = [
    ["They only come here for the benefits.", "Most of them work, and their taxes pay for benefits too."],
    ["Women can't park.", "Insurers disagree."],
    ["Old people should not vote.", "Who says so?", "I do.", "A vote is for being a citizen, and no prize."],
    ["They are all thieves.", "Who told you so?"],
    ["Nobody wants them here, nobody at all, and it has always been like that.", "Some do."],
    ["Hi", "Hello to you."],
    ["They are lazy.", "Which of them do you know?"],
]


def settings(folder: Path, **changes: Any) -> FinetuneSettings:
    path = folder / "talks.jsonl"
    with open(path, "w") as file:
        for number, turns in enumerate(TALKS):
            messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    base = {"model": "tiny", "device": "cpu", "dtype": "float32", "dialogues": str(path), "batch_size": 4}
    return FinetuneSettings(**{**base, "validation": 0.3, "epochs": 2, "learning_rate": 1e-2, **changes})


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(str(run.path / "adapter" / "adapter_model.safetensors"))


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Run, Run]:
    """The same training with the door open, and shut; what it says of its way must be nothing."""
    said: list[str] = []
    ours = finetune(settings(folder, **changes), folder / "open", say=said.append)
    assert not any("TRL's own pass" in sentence for sentence in said)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the fast path was taken")

    monkeypatch.setenv("REWARDLM_FASTPATH", "0")
    monkeypatch.setattr(sft_trainer, "loss_of", refuse)
    theirs = finetune(settings(folder, **changes), folder / "shut", say=said.append)
    assert not any("TRL's own pass" in sentence for sentence in said)  # Who shuts the door knows.
    return ours, theirs


def assert_alike(ours: Run, theirs: Run) -> None:
    mine, other = list(ours.read("metrics")), list(theirs.read("metrics"))
    assert len(mine) == len(other) >= 2
    for one, two in zip(mine, other, strict=True):
        assert one.keys() == two.keys()
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)
        if "eval_loss" in two:
            assert one["eval_loss"] == pytest.approx(two["eval_loss"], rel=1e-3)
    # Before Adam's first steps have spread what rounding began.
    assert mine[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-5)
    assert mine[0]["grad_norm"] == pytest.approx(other[0]["grad_norm"], rel=1e-4)
    assert mine[0]["token_accuracy"] == pytest.approx(other[0]["token_accuracy"], abs=1e-6)
    assert any("eval_loss" in line for line in other)
    assert weights(ours).keys() == weights(theirs).keys()
    for name, tensor in weights(theirs).items():
        assert float(tensor.norm()) > 0
        # Adam's first steps are as long for a gradient of rounding as for any other: few weights may differ.
        assert float((weights(ours)[name] - tensor).norm()) < 0.02 * float(tensor.norm()), name


@pytest.mark.parametrize("micro", [None, 2])
def test_a_short_training_gives_the_losses_and_the_adapter_of_trls_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    """In microbatches too: a step's loss is a mean over the tokens of all of them."""
    ours, theirs = both(tmp_path, monkeypatch, micro_batch_size=micro)
    assert_alike(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gemma", "gpt_neox", "gpt_neox_serial"])
def test_other_families_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    policy = random_policy(name)
    policy.model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    ours, theirs = both(tmp_path, monkeypatch, model=str(tmp_path / "model"))
    assert_alike(ours, theirs)


@pytest.mark.slow
def test_a_base_in_4_bits_trains_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
    ours, theirs = both(tmp_path, monkeypatch, load="4bit")
    assert_alike(ours, theirs)


@pytest.mark.slow
def test_a_batch_in_pieces_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_pass, "POSITIONS", 60)

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, metrics: dict[str, Any]) -> None:
        if step == 3:
            raise Stopped

    chosen = settings(tmp_path, checkpoint_every=1, epochs=3)
    whole = finetune(chosen, tmp_path / "whole")
    with pytest.raises(Stopped):
        finetune(chosen, tmp_path / "stopped", report=stop)
    again = finetune(chosen, tmp_path / "stopped")
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(whole).items())


def test_dropout_and_recomputing_are_left_to_trl() -> None:
    def asked(name: str, *, recompute: bool = False, **lora: Any) -> str | None:
        policy = random_policy(name)
        add_lora(policy, LoraSettings(r=2, **lora), seed=0)
        return sft_pass.why_plain(policy.model, policy.device, recompute=recompute)

    assert asked("tiny") is asked("gpt_neox") is None
    assert "gradient_checkpointing" in str(asked("tiny", recompute=True))
    assert "dropout" in str(asked("tiny", dropout=0.1))
    assert "dropout" in str(asked("opt"))  # 0.1 by OPT's configuration, without a module for it
    for name in ("gpt_neo", "bloom", "falcon_multi_query", "mistral_sliding"):
        assert "can't run as one sequence" in str(asked(name)), name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"gradient_checkpointing": True}, "gradient_checkpointing"), ({"lora": {"dropout": 0.1}}, "dropout")],
)
def test_where_the_model_runs_by_trls_pass_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(sft_trainer, "loss_of", None)  # to be called by nobody
    said: list[str] = []
    finetune(settings(tmp_path, max_steps=2, **changes), tmp_path / "run", say=said.append)
    found = [sentence for sentence in said if "TRL's own pass" in sentence]
    assert len(found) == 1
    assert reason in found[0]


def test_a_head_that_scales_its_logits_is_left_to_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=2), seed=0)
    forward = type(policy.causal_lm).forward

    def scaled(self: Any, *args: Any, **more: Any) -> Any:
        found = forward(self, *args, **more)
        found.logits = found.logits * 0.5
        return found

    monkeypatch.setattr(type(policy.causal_lm), "forward", scaled)
    assert "logits are not head(trunk)" in str(sft_pass.why_plain(policy.model, policy.device, recompute=False))


PEAK = """
import os, sys
os.environ["REWARDLM_FASTPATH"] = sys.argv[2]
from pathlib import Path
import torch
torch.set_num_threads(1)
from rewardlm.config import FinetuneSettings
from rewardlm.runs import peak_rss_mb
from rewardlm.training.sft import finetune
folder = Path(sys.argv[1])
before = []
def say(sentence):
    before.append(peak_rss_mb())
settings = FinetuneSettings(
    model=str(folder / "model"), dialogues=str(folder / "talks.jsonl"), device="cpu", dtype="float32", validation=0.0,
    batch_size=32, max_steps=1, lora={"r": 4},
)
finetune(settings, folder / ("run" + sys.argv[2]), say=say)
print(peak_rss_mb() - before[0])
"""


@pytest.mark.slow
def test_a_step_takes_less_than_half_of_the_memory(tmp_path: Path) -> None:
    """32 rows of some 100 tokens on a small Llama, each way in a process of its own."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu")).tokenizer
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with open(tmp_path / "talks.jsonl", "w") as file:
        for number in range(32):
            said = [f"{number} they come here and take what is ours. " * 6, f"{number} who told you so? " * 6]
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    taken = {}
    for door in ("1", "0"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path), door], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        taken[door] = float(done.stdout.split()[-1])
    assert taken["1"] < 0.5 * taken["0"], taken


@pytest.mark.slow
def test_one_step_is_that_of_trls_own_trainer(tmp_path: Path) -> None:
    """SFTTrainer as TRL ships it, on PEFT's own layers, over the rows that ours makes of the same dialogues."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chosen = settings(tmp_path, validation=0.0, batch_size=len(TALKS) + 1, max_steps=1)
    ours = finetune(chosen, tmp_path / "run")
    assert ours.meta["dialogues"]["train_pairs"] == len(TALKS) + 1  # one of them has two answers
    policy = load_policy(chosen)
    rows = []
    for turns in TALKS:
        for end in range(2, len(turns) + 1, 2):
            text = "".join(
                f"<|im_start|>{('user', 'assistant')[i % 2]}\n{said}<|im_end|>\n"
                for i, said in enumerate(turns[: end - 1])
            )
            prompt = policy.tokenizer(f"{text}<|im_start|>assistant\n")["input_ids"]
            answer = policy.tokenizer(f"{turns[end - 1]}<|im_end|>")["input_ids"]
            rows.append({"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)})
    lora = chosen.lora
    with torch.random.fork_rng():
        torch.manual_seed(chosen.seed)
        model = get_peft_model(
            policy.model,
            LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM"),
        )
    logged: list[dict[str, float]] = []
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"), per_device_train_batch_size=len(rows), max_steps=1, learning_rate=1e-2,
            completion_only_loss=True, max_length=None, bf16=False, gradient_checkpointing=False, use_cpu=True,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, weight_decay=0.0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )  # fmt: skip
    trainer.log = lambda logs, *_: logged.append(logs)
    trainer.train()
    [line] = ours.read("metrics")
    assert line["loss"] == pytest.approx(logged[0]["loss"], rel=1e-5)
    assert line["grad_norm"] == pytest.approx(float(logged[0]["grad_norm"]), rel=1e-4)
