"""Training that is killed with SIGKILL and started again by the same command: the result is that of one that wasn't.

Each command costs seconds of imports, so the runs are made once, two at a time, and looked at by many tests.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import Forked
from rewardlm.cli.app import app

pytestmark = pytest.mark.slow

RLAF_STEPS, SFT_STEPS = 24, 12
# All are held to their base on plain text too, which a run that goes on must find again.
RETAIN = " retain.coef=0.5 retain.pieces=8 retain.tokens=16 retain.batch=3"
RLAF = (
    f"rlaf tiny --prompts starter --reward lexical --algorithm ppo --steps {RLAF_STEPS} --batch-size 4 "
    "--max-new-tokens 4 --learning-rate 0.01 --lora-r 4 --kl-target 0.5 --device cpu --dtype float32 --seed 3 "
    "--witness none rewards.terms.similarity=0 rewards.terms.counter_narrative=0" + RETAIN
)
SFT = (
    f"finetune tiny --dialogues starter --limit 16 --batch-size 4 --epochs 9 max_steps={SFT_STEPS} checkpoint_every=2 "
    "--lora-r 4 --learning-rate 0.01 --device cpu --dtype float32 --seed 3" + RETAIN
)
PREFER_STEPS = 12
PREFER = (
    f"prefer tiny --prompts starter --limit 12 --reward lexical --samples 4 --steps {PREFER_STEPS} --rounds 3 "
    "--batch-size 4 --max-new-tokens 4 --learning-rate 0.01 --lora-r 4 --device cpu --dtype float32 --seed 3 "
    "--witness none checkpoint_every=2 pairs.margin=0.01 pairs.topic=0 pairs.topic_gap=null "
    "rewards.terms.counter_narrative=0" + RETAIN
)
# Fine-tuning by the pass that RL uses, and with dropout, which is drawn at random and left to TRL's own.
KINDS = [("rlaf", RLAF_STEPS), ("sft", SFT_STEPS), ("sft-dropout", SFT_STEPS), ("prefer", PREFER_STEPS)]


def start(command: str, out: Path) -> Forked:
    return Forked([*command.split(), "--out", str(out)], cwd=out.parent, env=os.environ, stderr=subprocess.STDOUT)


def steps(out: Path) -> list[int]:
    """Steps in metrics.jsonl; a line that is being written doesn't count."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["step"] for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def kill_when(due: dict[Forked, Callable[[], bool]]) -> None:
    """SIGKILL each process as soon as its condition holds; one that ends before is a failure of the test."""
    deadline = time.monotonic() + 300
    waiting = dict(due)
    while waiting:
        for process, condition in list(waiting.items()):
            if condition():
                process.send_signal(signal.SIGKILL)
                del waiting[process]
            elif process.poll() is not None:
                pytest.fail(f"ended before it could be killed: {process.communicate()[0]}")
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.0005)
    for process in due:
        process.communicate()
        assert process.returncode == -signal.SIGKILL


def finish(process: Forked) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


@dataclass
class Pair:
    """The same run, once undisturbed and once killed; ``killed_at`` holds the steps in its metrics at each kill."""

    whole: Path
    killed: Path
    killed_at: list[list[int]]


def half_a_checkpoint(out: Path, after: int) -> bool:
    """RLAF is writing the checkpoint of a step beyond ``after`` under its temporary name."""
    folders = (out / "checkpoints").glob("step-*.tmp")
    return any(int(folder.stem.removeprefix("step-")) > after and (folder / "adapter").exists() for folder in folders)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, Pair]:
    root = tmp_path_factory.mktemp("killed")
    commands = {"rlaf": RLAF, "sft": SFT, "sft-dropout": f"{SFT} lora.dropout=0.1", "prefer": PREFER}
    found = {kind: Pair(root / f"{kind}-whole", root / f"{kind}-killed", []) for kind in commands}
    # Other steps each time: none may matter. SFT's second epoch begins after step 4.
    chosen = {kind: random.randint(3, SFT_STEPS - 3) for kind in commands}
    chosen["rlaf"] = random.randint(1, RLAF_STEPS // 2)

    # Both killed at a random step.
    running = {kind: start(command, found[kind].killed) for kind, command in commands.items()}
    kill_when(
        {
            process: lambda out=found[kind].killed, n=chosen[kind]: len(steps(out)) >= n
            for kind, process in running.items()
        }
    )
    for pair in found.values():
        pair.killed_at.append(steps(pair.killed))
        assert not (pair.killed / "adapter").exists()

    # The same commands again: all others to their end, RLAF killed while it writes a checkpoint.
    running = {kind: start(command, found[kind].killed) for kind, command in commands.items()}
    pair = found["rlaf"]
    kill_when({running["rlaf"]: lambda: half_a_checkpoint(pair.killed, chosen["rlaf"] + 2)})
    pair.killed_at.append(steps(pair.killed))
    assert not (pair.killed / "adapter").exists()

    # RLAF to its end, and meanwhile, in this process, the runs that nobody disturbs.
    running["rlaf"] = start(RLAF, pair.killed)
    torch.set_num_threads(1)
    for kind, command in commands.items():
        app([*command.split(), "--out", str(found[kind].whole)], standalone_mode=False)
    for process in running.values():
        finish(process)
    return found


def weights(out: Path) -> Path:
    return out / "adapter" / "adapter_model.safetensors"


@pytest.mark.parametrize(("kind", "n_steps"), KINDS)
def test_the_adapter_is_bit_equal_to_that_of_an_undisturbed_run(pairs, kind, n_steps):
    pair = pairs[kind]
    assert all(0 < len(seen) < n_steps for seen in pair.killed_at), pair.killed_at
    one, other = load_file(str(weights(pair.whole))), load_file(str(weights(pair.killed)))
    assert one.keys() == other.keys()
    assert any(bool(tensor.any()) for name, tensor in one.items() if "lora_B" in name)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == [], f"killed at {pair.killed_at}"


@pytest.mark.parametrize(("kind", "n_steps"), KINDS)
def test_the_metrics_have_each_step_once_and_the_same_numbers(pairs, kind, n_steps):
    numbers = {
        "rlaf": ("reward_mean", "kl", "kl_coef", "policy_loss", "value_loss"),
        "prefer": ("round", "loss", "grad_norm", "reward_mean", "pair_accuracy", "warnings"),
    }.get(kind, ("loss", "grad_norm"))
    found = []
    for out in (pairs[kind].whole, pairs[kind].killed):
        assert steps(out) == list(range(1, n_steps + 1))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.append([{name: line[name] for name in numbers} for line in lines])
        assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert found[0] == found[1], f"killed at {pairs[kind].killed_at}"


def test_nothing_half_written_is_left(pairs):
    assert not list(pairs["rlaf"].killed.rglob("*.tmp"))
    for kind in ("sft", "sft-dropout"):
        for folder in (pairs[kind].killed / "checkpoints").glob("checkpoint-*"):
            assert (folder / "manifest.json").exists()


@pytest.mark.parametrize(("kind", "command"), [("rlaf", RLAF), ("sft", SFT), ("prefer", PREFER)])
def test_the_same_command_after_the_end_does_nothing(pairs, kind, command):
    out = pairs[kind].killed
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    output = finish(start(command, out))
    assert str(out / "adapter") in output
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()} == files
