"""Fine-tuning on two processes: the losses and the adapter of one, also after a kill and an interrupt."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launched import ONE, TWO, breaks, kill, launcher, run, start, write_plain_text
from rewardlm.runs import Run

pytestmark = pytest.mark.slow

# 18 pairs to learn from in batches of 8: the last batch of an epoch has 2, which two microbatches of 4 can't share.
COMMAND = (
    "finetune tiny --dialogues starter --limit 18 --batch-size 8 --epochs 3 --lora-r 4 --learning-rate 0.01 "
    "checkpoint_every=2 validation=0.2 --device cpu --dtype float32 "
    "retain.coef=0.5 retain.batch=3 retain.source=plain.txt"
)
FINETUNE = COMMAND.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_plain_text(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> Run:
    done = run(ONE, [*FINETUNE, "--out", "alone"], folder)
    assert done.returncode == 0, done.stderr
    return Run.open(folder / "alone")


def weights(found: Run) -> dict[str, torch.Tensor]:
    return load_file(str(found.path / "adapter" / "adapter_model.safetensors"))


def assert_equal(mine: Run, theirs: Run) -> None:
    """Step by step the same numbers, and the same adapter, to the rounding of sums in another order."""
    alone, together = list(mine.read("metrics")), list(theirs.read("metrics"))
    assert [line["step"] for line in together] == [line["step"] for line in alone] == list(range(1, 10))
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys()
        for number in ("loss", "grad_norm", "learning_rate", "eval_loss", "retain_kl"):
            if number in a:
                assert b[number] == pytest.approx(a[number], rel=1e-4, abs=1e-6), (a["step"], number)
    one, two = weights(mine), weights(theirs)
    assert one.keys() == two.keys()
    assert any(bool(tensor.any()) for name, tensor in one.items() if "lora_B" in name)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("starter", "more"),
    [
        ("torchrun", []),
        ("two", ["micro_batch_size=2"]),
        ("two", ["shard=true"]),
        ("two", ["load=4bit"]),
    ],
)
def test_two_processes_give_the_losses_and_the_adapter_of_one(folder, alone, starter, more):
    name = "-".join(["two", starter, *more]).replace("=", "-")
    done = run(launcher(starter), [*FINETUNE, *more, "--out", name], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{name}/adapter"]  # one of them speaks
    assert not breaks(done.stderr)
    found = Run.open(folder / name)
    assert found.meta["processes"] == 2
    assert found.finished
    if more in (["micro_batch_size=2"], ["load=4bit"]):
        # An evaluation of other batches, another base: compared with one process that has them, too.
        single = run(ONE, [*FINETUNE, *more, "--out", f"alone-{name}"], folder)
        assert single.returncode == 0, single.stderr
        alone = Run.open(folder / f"alone-{name}")
    assert_equal(alone, found)


# An interrupt reaches both by way of the launcher.
@pytest.mark.parametrize(("more", "how"), [([], "kill"), (["shard=true"], "kill"), ([], "interrupt")])
def test_stopped_in_the_middle_it_goes_on_to_the_same_adapter(folder, alone, more, how):
    name = "-".join(["stopped", how, *more]).replace("=", "-")
    arguments = [*FINETUNE, *more, "--out", name]
    process = start(TWO if how == "kill" else launcher("torchrun"), arguments, folder)
    deadline = time.monotonic() + 240
    first_whole = folder / name / "checkpoints" / "checkpoint-4" / "manifest.json"
    while not first_whole.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, kill(process)
        time.sleep(0.002)
    if how == "kill":
        kill(process)
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it; the launcher passes it on
        _, said = process.communicate(timeout=200)
        assert process.returncode != 0
        assert "error: interrupted: run the same command again to go on where it stopped" in said
        assert not breaks(said)
    assert not (folder / name / "adapter").exists()
    # What two began two go on with, or one, which has the whole base.
    done = run(ONE, [*FINETUNE, "--out", name], folder) if more else run(TWO, arguments, folder)
    assert done.returncode == 0, done.stderr
    assert_equal(alone, Run.open(folder / name))
    again = run(TWO, arguments, folder)
    assert again.returncode == 0
    assert again.stdout.split() == [f"{name}/adapter"]


def test_a_process_that_dies_ends_the_other_in_words_and_leaves_whole_checkpoints(folder, alone):
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('KILL_RANK_1'):\n"
        "    import rewardlm.training.trl_parts as parts\n"
        "    log = parts.RunCallback.on_log\n"
        "    def on_log(self, args, state, control, logs, **more):\n"
        "        if state.global_step == 5:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return log(self, args, state, control, logs, **more)\n"
        "    parts.RunCallback.on_log = on_log\n"
    )
    arguments = [*FINETUNE, "--out", "died"]
    done = run(TWO, arguments, folder, KILL_RANK_1="1")
    assert done.returncode != 0
    assert not breaks(done.stderr)
    for manifest in (folder / "died" / "checkpoints").glob("*/manifest.json"):
        assert json.loads(manifest.read_text())
    done = run(TWO, arguments, folder)
    assert done.returncode == 0, done.stderr
    assert_equal(alone, Run.open(folder / "died"))


def test_a_batch_that_cannot_be_shared_out_is_refused(folder):
    done = run(TWO, [*FINETUNE, "--batch-size", "9", "--out", "odd"], folder)
    assert done.returncode != 0
    assert "error: batch_size 9 is not a multiple of micro_batch_size 4 for each of 2 processes" in done.stderr


def test_another_command_on_the_same_run_is_refused(folder):
    arguments = [*FINETUNE, "max_steps=100000", "--out", "taken"]
    process = start(TWO, arguments, folder)
    try:
        deadline = time.monotonic() + 240
        while not (folder / "taken" / "metrics.jsonl").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        done = run(ONE, arguments, folder)
        assert done.returncode != 0
        assert "taken is being written by another command" in done.stderr
    finally:
        kill(process)
