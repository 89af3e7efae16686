"""Preference training on two processes: they draw, judge and learn what one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launched import ONE, TWO, breaks, run
from rewardlm.runs import Run

pytestmark = pytest.mark.slow

COMMAND = [
    *("prefer", "tiny", "--prompts", "starter", "--limit", "12", "--reward", "lexical", "--witness", "none"),
    *("--samples", "4", "--steps", "6", "--rounds", "2", "--batch-size", "8", "micro_batch_size=4"),
    *("--max-new-tokens", "4", "--learning-rate", "0.01", "--lora-r", "4", "--device", "cpu", "--dtype", "float32"),
    *("pairs.margin=0.01", "rewards.terms.similarity=0", "rewards.terms.counter_narrative=0"),
    *("pairs.topic=0", "pairs.topic_gap=null", "retain.pieces=8", "retain.tokens=16"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prefer")


@pytest.mark.parametrize(
    "more",
    [
        ["--method", "dpo"],
        ["--method", "kto"],
        ["--method", "raft"],
        ["--method", "dpo", "shard=true", "retain.coef=0"],
        ["--method", "dpo", "retain.coef=0", "--load", "4bit"],
    ],
)
def test_two_processes_give_the_answers_the_losses_and_the_adapter_of_one(folder, more):
    name = "-".join(more).replace("=", "-").replace("--", "")
    alike = [word for word in more if word != "shard=true"]
    single = run(ONE, [*COMMAND, *alike, "--out", f"alone-{name}"], folder)
    assert single.returncode == 0, single.stderr
    done = run(TWO, [*COMMAND, *more, "--out", name], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}/adapter"]  # one of them speaks
    assert not breaks(done.stderr)
    alone, together = Run.open(folder / f"alone-{name}"), Run.open(folder / name)
    assert (alone.meta["processes"], together.meta["processes"]) == (1, 2)
    # The first round's answers come from the same model; those of the second may differ where a sum was rounded.
    firsts = [[one["text"] for one in found.read("answers") if one["round"] == 1] for found in (alone, together)]
    assert firsts[0] == firsts[1]
    numbers = [list(found.read("metrics")) for found in (alone, together)]
    assert [line["step"] for line in numbers[1]] == [line["step"] for line in numbers[0]] == list(range(1, 7))
    # KTO's estimate of the KL is a mean over the microbatches that run at once, which are two here: near, not the same.
    near = 5e-3 if "kto" in more else 1e-4
    for a, b in zip(*(lines[:3] for lines in numbers), strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "reward_mean", "pairs", "retain_kl"):
            assert b.get(key, 0) == pytest.approx(a.get(key, 0), rel=near, abs=1e-6), (a["step"], key)
    # The trained model is asked by both: each prompt once, whoever asks it.
    looks = [found.meta["preferences"]["look"] for found in (alone, together)]
    assert looks[1]["first_round"] == looks[0]["first_round"]
    assert [look["trained"]["answers"] for look in looks] == [12, 12]
    one, two = (load_file(str(found.adapter / "adapter_model.safetensors")) for found in (alone, together))
    assert one.keys() == two.keys()
    assert any(bool(tensor.any()) for name, tensor in two.items() if "lora_B" in name)
    moved = max(float(tensor.abs().max()) for name, tensor in one.items() if "lora_B" in name)
    for key, tensor in one.items() if "kto" not in more else ():
        torch.testing.assert_close(two[key], tensor, atol=0.1 * moved, rtol=0, msg=lambda m, n=key: f"{n}: {m}")
