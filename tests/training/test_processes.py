"""Two processes on one step, as torchrun and accelerate start them: the numbers of one, and one end for both."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launched import ONE, TWO, breaks, kill, launcher, run, start, write_plain_text
from rewardlm.models.processes import Processes
from rewardlm.runs import Run

pytestmark = pytest.mark.slow

COMMON = [
    "--prompts",
    "starter",
    "--steps",
    "3",
    "--batch-size",
    "12",
    "--max-new-tokens",
    "6",
    "--learning-rate",
    "0.01",
    "--lora-r",
    "4",
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "samples_every=1",
    # Each process would load two more models, and a third that only watches; the variant "grpo" does.
    "--witness",
    "none",
    "rewards.terms.similarity=0",
    "rewards.terms.counter_narrative=0",
]
# Every way a step may be computed that the processes have to agree about.
VARIANTS = {
    "ppo": [
        "--algorithm",
        "ppo",
        "--reward",
        "lexical",
        "--critic",
        "own",
        "--kl-target",
        "0.5",
        "--tracker",
        "tensorboard",
    ],
    "grpo": [
        "--algorithm",
        "grpo",
        "--reward",
        "lexical,own_rewards:short",
        "--kl-penalty",
        "full",
        "loss_type=grpo",
        "--witness",
        "witness",
        "rewards.terms.similarity=6",
        "rewards.terms.counter_narrative=2",
    ],
    "rloo": [
        "--algorithm",
        "rloo",
        "--reward",
        "lexical",
        "--kl-penalty",
        "k3",
        "generation.temperature=0.8",
        "--ppo-epochs",
        "2",
        "--minibatches",
        "2",
        "retain.coef=0.5",
        "retain.source=plain.txt",
        "retain.batch=3",
    ],
    "dynamic": [
        "--algorithm",
        "grpo",
        "--reward",
        "own_rewards:coarse",
        "--samples",
        "2",
        "dynamic_sampling=2",
        "kl.reference_every=1",
        "kl.reference_mix=0.5",
        "entropy_coef=0.01",
        "loss=cispo",
        "--schedule",
        "linear",
    ],
    "quantised": ["--algorithm", "grpo", "--reward", "lexical", "--kl-penalty", "k3", "--load", "4bit"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds a reward that depends on whole answers, and one that fails in the second process alone."""
    folder = tmp_path_factory.mktemp("processes")
    write_plain_text(folder)
    (folder / "own_rewards.py").write_text(
        "import os\n"
        "def rude(text):\n"
        "    return any(word in text for word in ('stupid', 'trash', 'moron'))\n"
        "def short(texts):\n"
        "    return [0.9 if rude(t) else max(0.05, 0.8 - len(t) / 60) for t in texts]\n"
        "def coarse(texts):\n"
        "    return [0.9 if rude(t) else 0.1 + 0.3 * (len(t) % 2) for t in texts]\n"
        "def fails_in_one(texts):\n"
        "    from rewardlm.errors import ScorerError\n"
        "    if os.environ['RANK'] == '1' and not any('taxes' in t for t in texts):\n"
        "        raise ScorerError('the second process has had enough')\n"
        "    return [0.9 if rude(t) else 0.1 for t in texts]\n"
    )
    return folder


# Both with the weights in each process and with the base divided between them. Microbatches of few positions make the
# processes' passes differ in number.
@pytest.mark.parametrize(
    ("name", "starter", "more"),
    [
        ("ppo", "accelerate", []),
        ("grpo", "two", []),
        ("rloo", "two", []),
        ("ppo", "two", ["shard=true", "micro_batch_tokens=64"]),
        ("grpo", "two", ["shard=true", "micro_batch_tokens=200"]),
        ("rloo", "two", ["shard=true"]),
        ("dynamic", "two", []),
        ("dynamic", "two", ["shard=true"]),
        ("quantised", "two", []),
    ],
)
def test_two_processes_give_the_losses_and_the_adapter_of_one(folder, name, starter, more):
    arguments = ["rlaf", "tiny", *COMMON, *VARIANTS[name]]
    together_in = f"{name}-{len(more)}-2"
    if not (folder / f"{name}-1").exists():
        one = run(ONE, [*arguments, "--out", f"{name}-1"], folder)
        assert one.returncode == 0, one.stderr
    two = run(launcher(starter), [*arguments, *more, "--out", together_in], folder)
    assert two.returncode == 0, two.stderr
    assert two.stdout.split() == [f"{together_in}/adapter"]  # one of them speaks

    runs = [Run.open(folder / found) for found in (f"{name}-1", together_in)]
    assert [found.meta["processes"] for found in runs] == [1, 2]
    alone, together = (list(found.read("metrics")) for found in runs)
    assert [line["step"] for line in together] == [1, 2, 3]
    numbers = ["reward_mean", "kl", "kl_k3", "kl_full", "kl_coef", "entropy", "policy_loss", "grad_norm", "answers"]
    numbers += {
        "ppo": ["value_loss"],
        "grpo": ["kl_loss", "disagreement"],
        "rloo": ["kl_loss", "sampling_gap", "retain_kl"],
        "dynamic": ["kl_origin", "entropy_loss", "capped_fraction", "learning_rate"],
        "quantised": ["kl_loss"],
    }[name]
    for mine, theirs in zip(alone, together, strict=True):
        for number in numbers:
            assert theirs[number] == pytest.approx(mine[number], rel=2e-3, abs=2e-4), (mine["step"], number)
    if name == "dynamic":
        assert [line["redrawn_groups"] for line in together] == [line["redrawn_groups"] for line in alone]
        assert any(len(line["redrawn_groups"]) == 2 for line in alone)
    # The very same texts, in the same order.
    texts = [[sample["response"] for sample in found.read("samples")] for found in runs]
    assert texts[0] == texts[1]
    weights = [load_file(str(found.path / "adapter" / "adapter_model.safetensors")) for found in runs]
    assert any(bool(tensor.any()) for key, tensor in weights[0].items() if "lora_B" in key)
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, atol=2e-3, rtol=0, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("how", [ONE, TWO], ids=["one", "two"])
def test_in_half_precision_rloos_only_update_begins_with_ratios_of_one(folder, how):
    """What else is in a pass decides how it is rounded; the tiny model's passes are not, so that it is made up here."""
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('ROUND_BY_PASS'):\n"
        "    from rewardlm.models import logprobs\n"
        "    from rewardlm.training import learner\n"
        "    forward = logprobs.forward_rows\n"
        "    def rounded(causal_lm, prompts, responses, rows, **more):\n"
        "        found = forward(causal_lm, prompts, responses, rows, **more)\n"
        "        found.logprobs = found.logprobs + 2**-9 * (sum(len(responses[row]) for row in rows) % 7)\n"
        "        return found\n"
        "    logprobs.forward_rows = learner.forward_rows = rounded\n"
    )
    arguments = ["rlaf", "tiny", *COMMON, "--dtype", "bfloat16", "--algorithm", "rloo", "--reward", "lexical"]
    out = f"half-{len(how)}"
    done = run(how, [*arguments, "micro_batch_tokens=64", "--out", out], folder, ROUND_BY_PASS="1")
    assert done.returncode == 0, done.stderr
    lines = list(Run.open(folder / out).read("metrics"))
    assert [line["first_ratio"] for line in lines] == [1, 1, 1]
    assert [line["clip_fraction"] for line in lines] == [0, 0, 0]
    assert all(line["kl"] != 0 for line in lines[1:])


def test_a_divided_base_goes_on_after_a_kill_and_from_an_adapter(folder):
    """RL from a fine-tuned adapter, which is the reference; killed once, and then finished by one process alone."""
    begun = run(ONE, ["finetune", "tiny", "--limit", "16", "--device", "cpu", "--out", "start"], folder)
    assert begun.returncode == 0, begun.stderr
    without_rank = [part for part in COMMON if part not in ("--lora-r", "4")]
    # Slow and few enough that rounding does not tip a token, after which two runs go their own ways.
    without_rank += ["--steps", "5", "--learning-rate", "0.0002"]
    arguments = ["rlaf", "tiny", *without_rank, "--adapter", "start", "--reward", "lexical"]
    alone = run(ONE, [*arguments, "--out", "from-1"], folder)
    assert alone.returncode == 0, alone.stderr
    process = start(TWO, [*arguments, "shard=true", "--out", "from-2"], folder)
    deadline = time.monotonic() + 240
    while not (folder / "from-2" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, kill(process)
        time.sleep(0.002)
    kill(process)
    assert not (folder / "from-2" / "adapter").exists()
    done = run(ONE, [*arguments, "--out", "from-2"], folder)
    assert done.returncode == 0, done.stderr
    one, two, begun_with = (
        torch.cat([tensor.flatten() for _, tensor in sorted(load_file(str(path)).items())])
        for path in (
            *(folder / f"from-{n}" / "adapter" / "adapter_model.safetensors" for n in (1, 2)),
            folder / "start" / "adapter" / "adapter_model.safetensors",
        )
    )
    # Adam moves what has hardly a gradient by the whole rate a step, to the side that rounding says.
    apart, moved = (one - two).abs(), (one - begun_with).abs()
    assert float(apart.mean()) < 0.01 * float(moved.mean())


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        (ONE, ["shard=true"], "shard=true divides the base between a machine's processes: start several"),
        (
            TWO,
            ["shard=true", "--load", "4bit"],
            "shard=true with --load 4bit: quantised weights can't be divided",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(folder, how, more, said):
    done = run(how, ["rlaf", "tiny", *COMMON, "--reward", "lexical", *more, "--out", "refused"], folder)
    assert done.returncode != 0
    assert f"error: {said}" in done.stderr
    assert not breaks(done.stderr)


def test_a_thread_that_never_rests_does_not_abort_the_end(folder):
    """gloo's threads let go of tensors when they come to it, which may be while Python takes itself apart: a thread
    that asks for Python's lock at that moment makes an abort out of work that was done."""
    (folder / "restless.py").write_text(
        "import atexit, os, pathlib, threading, torch\n"
        "from own_rewards import short\n"
        "def multiply():\n"
        "    square = torch.rand(64, 64)\n"
        "    while True:\n"
        "        square @ square\n"
        "def reward(texts):\n"
        "    if not any(thread.name == 'restless' for thread in threading.enumerate()):\n"
        "        threading.Thread(target=multiply, name='restless', daemon=True).start()\n"
        "        atexit.register(pathlib.Path('goodbye-from-' + os.environ['RANK']).touch)\n"
        "    return short(texts)\n"
    )
    arguments = ["rlaf", "tiny", *COMMON, "--steps", "1", "--reward", "restless:reward", "--out", "restless"]
    done = run(launcher("torchrun"), arguments, folder)
    assert done.returncode == 0, done.stderr
    # What was to be done at the end is done. Each leaves a file: what two processes print may end up in one line.
    assert {file.name for file in folder.glob("goodbye-from-*")} == {"goodbye-from-0", "goodbye-from-1"}


@pytest.mark.parametrize(("more", "starter"), [([], "torchrun"), (["shard=true"], "two")])
def test_an_error_in_one_process_ends_both_in_words(folder, more, starter):
    arguments = ["rlaf", "tiny", *COMMON, *more, "--reward", "own_rewards:fails_in_one"]
    arguments += ["--out", f"failed-{len(more)}"]
    done = run(launcher(starter), arguments, folder)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said
    assert all("the second process has had enough" in line for line in said)
    assert json.loads((folder / f"failed-{len(more)}" / "run.json").read_text())["status"] == "stopped"


@pytest.mark.parametrize("more", [[], ["shard=true"]])
def test_a_limit_keeps_the_last_good_adapter_before_anybody_ends(folder, more):
    """The second process finds NaN in its logits: the first one must know, and write, before the launcher ends both."""
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('BREAK_RANK_1'):\n"
        "    import rewardlm.training.rollouts as rollouts\n"
        "    from rewardlm.errors import ModelError\n"
        "    draw, steps = rollouts.generate, []\n"
        "    def generate(*arguments, **more):\n"
        "        steps.append(len(steps))\n"
        "        for answer in draw(*arguments, **more):\n"
        "            if steps[-1] == 2:\n"
        "                raise ModelError('the logits hold NaN')\n"
        "            yield answer\n"
        "    rollouts.generate = generate\n"
    )
    out = f"nan-{len(more)}"
    arguments = ["rlaf", "tiny", *COMMON, *more, "--reward", "lexical", "--out", out]
    done = run(TWO, arguments, folder, BREAK_RANK_1="1")
    assert done.returncode != 0
    assert f"step 3: the logits hold NaN (the adapter of step 1 is kept in {out}/adapter" in done.stderr
    kept = load_file(str(folder / out / "adapter" / "adapter_model.safetensors"))
    saved = load_file(str(folder / out / "checkpoints" / "step-000001" / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(kept[name], saved[name]) for name in saved)
    assert json.loads((folder / out / "run.json").read_text())["status"] == "stopped"


def test_fewer_prompts_a_step_than_processes_are_refused(folder):
    arguments = ["rlaf", "tiny", *COMMON, "--reward", "lexical", "--algorithm", "grpo", "--samples", "12"]
    done = run(TWO, [*arguments, "--out", "few"], folder)
    assert "a step has 1 prompts for 2 processes: raise --batch-size" in done.stderr


# Alone ---------------------------------------------------------------------------------------------------------------


def test_alone_everything_comes_back_as_it_was(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes(cpu=True)
    assert (alone.rank, alone.size, alone.is_main, alone.device) == (0, 1, True, None)
    assert alone.gather(lambda: [1, 2]) == [1, 2]
    assert alone.share([5, 6, 7]) == [5, 6, 7]
    assert list(alone.span(3)) == [0, 1, 2]
    assert alone.sums({"a": 1.5}) == {"a": 1.5}
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    weights[0].grad = torch.tensor([1.0, 2.0])
    assert alone.sum_gradients(weights) == 1
    assert weights[1].grad is None
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("n", "size"), [(7, 2), (2, 2), (10, 3), (9, 4)])
def test_spans_and_shares_are_everything_once(n, size):
    parts = []
    for rank in range(size):
        one = Processes(cpu=True)
        one.rank, one.size = rank, size
        parts.append((list(one.span(n)), one.share(range(n))))
    assert [i for span, _ in parts for i in span] == list(range(n))
    assert sorted(i for _, share in parts for i in share) == list(range(n))
    assert max(len(span) for span, _ in parts) - min(len(span) for span, _ in parts) <= 1
