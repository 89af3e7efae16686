"""What goes wrong with a reward or a process, from the command line: how RLAF must end, or go on."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from forked import Forked

pytestmark = pytest.mark.slow

STEPS = 7
COMMON = (
    "rlaf tiny --prompts starter --batch-size 8 --max-new-tokens 6 --learning-rate 0.01 --lora-r 4 --device cpu "
    "--dtype float32 --seed 3 --witness none rewards.terms.similarity=0 rewards.terms.counter_narrative=0"
)
# Everything that has a state: a critic with an adapter, several judges with terms, off-policy answers, a schedule; and
# with it either controllers of KL and similarity or a reference that moves, which a KL target excludes.
WITH_STATE = (
    f"{COMMON} --algorithm ppo --critic own --reward lexical,fault_judges:short rewards.terms.length=0.5 "
    "--schedule cosine schedule.warmup_steps=2 "
    f"entropy_coef=0.01 generation.temperature=0.9 --steps {STEPS}"
)


def start(command: str, cwd: Path, *more: str) -> Forked:
    return Forked([*command.split(), *more], cwd=cwd, env=os.environ)


def fails(command: str, cwd: Path, *more: str) -> str:
    """The command must fail with one line that begins with error:, and this is it."""
    process = start(command, cwd, *more)
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None), err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    return errors[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("rl-faults")
    (home / "fault_judges.py").write_text(
        "import pathlib\n"
        "def rude(text):\n"
        "    return any(word in text for word in ('stupid', 'trash', 'moron'))\n"
        "def short(texts):\n"
        "    return [0.9 if rude(t) else max(0.05, 0.8 - len(t) / 60) for t in texts]\n"
        "def flipped(texts):\n"
        "    return [1 - value for value in short(texts)]\n"
        "def raises_at_step_three(texts):\n"
        "    calls = pathlib.Path('calls.txt')\n"
        "    if len(texts) > 1:  # a whole batch, and not one text of it asked again\n"
        "        calls.write_text(calls.read_text() + '.' if calls.exists() else '.')\n"
        "    if len(calls.read_text()) > 3:  # the first call is the check of the sign\n"
        "        raise RuntimeError('the judge fell over')\n"
        "    return short(texts)\n"
    )
    return home


def metrics(out: Path) -> list[dict]:
    """Whole lines of metrics.jsonl."""
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "adapter_model.safetensors"))


# The reward ----------------------------------------------------------------------------------------------------------


def test_a_reward_with_its_sign_flipped_is_refused_before_step_one(home):
    said = fails(COMMON, home, "--reward", "fault_judges:flipped", "--out", "flipped")
    assert "insults get 0.100 and kind texts" in said
    assert "higher must be more toxic" in said
    assert not metrics(home / "flipped")
    assert not (home / "flipped" / "adapter").exists()


@pytest.fixture(scope="module")
def unnamed(home) -> Path:
    """A classifier as somebody forgot to name its labels: LABEL_0 and LABEL_1."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "you", "stupid", "thank", "kind"]
    (home / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    model.save_pretrained(home / "unnamed")
    BertTokenizer(str(home / "vocab.txt")).save_pretrained(home / "unnamed")
    return home / "unnamed"


def test_a_classifier_whose_labels_say_nothing_is_refused_by_name(home, unnamed):
    said = fails(COMMON, home, "--reward", str(unnamed), "--out", "unnamed-run")
    assert "LABEL_0" in said
    assert "LABEL_1" in said
    assert not metrics(home / "unnamed-run")


def test_a_judge_that_raises_at_step_three_ends_the_run_and_the_same_command_goes_on(home):
    arguments = ["--reward", "fault_judges:raises_at_step_three", "--steps", "4", "--out", "raises"]
    said = fails(COMMON, home, *arguments)
    assert "texts could not be scored" in said
    assert "RuntimeError: the judge fell over" in said
    assert [line["step"] for line in metrics(home / "raises")] == [1, 2]
    assert (home / "raises" / "checkpoints" / "step-000002").exists()
    # Never taken for harmless: no line says that the failed answers earned anything.
    before = weights(home / "raises" / "checkpoints" / "step-000002" / "adapter")

    (home / "calls.txt").unlink()  # the judge stands again
    process = start(COMMON, home, *arguments[:-2], "--out", "raises")
    # It would fall over at its third step again, which is the fourth of the run's: stop it from that.
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == ["raises/adapter"]
    assert [line["step"] for line in metrics(home / "raises")] == [1, 2, 3, 4]
    after = weights(home / "raises" / "adapter")
    assert any(not torch.equal(before[name], after[name]) for name in before)


# The process ---------------------------------------------------------------------------------------------------------


def kill_after(step: int, process: Forked, out: Path) -> None:
    deadline = time.monotonic() + 120
    while len(metrics(out)) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "state", "steps_killed_at"),
    [
        (
            "controlled",
            ["--kl-target", "0.5", "rewards.terms.similarity=2", "similarity.target=0.25"],
            range(1, STEPS),
        ),
        # Before the reference moves for the first time (at step 2), between two moves, and after the last.
        ("moving", ["kl.reference_every=2", "kl.reference_mix=0.5"], (1, 3, 6)),
    ],
)
def test_killed_again_and_again_a_run_ends_as_one_that_nobody_disturbed(home, name, state, steps_killed_at):
    undisturbed, disturbed = home / f"{name}-whole", home / f"{name}-killed"
    whole = start(WITH_STATE, home, *state, "--out", undisturbed.name)
    for step in steps_killed_at:
        process = start(WITH_STATE, home, *state, "--out", disturbed.name)
        kill_after(step, process, disturbed)
        assert not (disturbed / "adapter").exists()
    last = start(WITH_STATE, home, *state, "--out", disturbed.name)
    for process in (last, whole):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err

    one, other = metrics(undisturbed), metrics(disturbed)
    assert [line["step"] for line in other] == list(range(1, STEPS + 1))
    for mine, theirs in zip(one, other, strict=True):
        for field in (
            "reward_mean",
            "kl",
            "kl_full",
            "kl_coef",
            "policy_loss",
            "value_loss",
            "disagreement",
            "terms",
            "learning_rate",
            "entropy_loss",
            "kl_origin" if name == "moving" else "similarity_weight",
        ):
            assert theirs[field] == mine[field], (mine["step"], field)
    newest = f"checkpoints/step-{STEPS:06d}"
    parts = ["adapter", f"{newest}/adapter", f"{newest}/critic"]
    if name == "controlled":
        for controlled in ("kl_coef", "similarity_weight"):
            assert len({line[controlled] for line in one}) == STEPS  # the controller did move
        for before, after in pairwise(one):
            short = min(max(1 - before["terms"]["similarity"] / 0.3, -0.5), 0.5)
            assert after["similarity_weight"] == pytest.approx(before["similarity_weight"] * math.exp(0.2 * short))
    else:
        parts.append(f"{newest}/reference")
    for part in parts:
        mine, theirs = weights(undisturbed / part), weights(disturbed / part)
        assert mine.keys() == theirs.keys()
        assert any(bool(tensor.any()) for name, tensor in mine.items() if "lora_B" in name)
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == [], part
    for part in ("value_head", "optimizer"):
        mine, theirs = (load_file(str(run / newest / f"{part}.safetensors")) for run in (undisturbed, disturbed))
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == [], part
