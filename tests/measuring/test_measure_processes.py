"""A measurement on two processes: the records of one; killed and resumed; and a whole experiment."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launched import ONE, TWO, breaks, kill, launcher, run, start
from rewardlm.runs import Run

pytestmark = pytest.mark.slow

COMMAND = (
    "measure tiny --prompts rtp:packaged --samples 2 --max-new-tokens 8 --scorer lexical --label PT --device cpu "
    "--dtype float32 similarity=false perplexity=false counter_narrative=null"
)
MEASURE = COMMAND.split()


def records(found: Run) -> tuple[Any, ...]:
    """All that is measured, without order."""
    return (
        sorted((g.id, g.text, g.n_tokens, g.finish, g.seed) for g in found.generations()),
        sorted((s.generation_id, s.scorer, s.label, s.value, s.reason) for s in found.scores()),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("measure")


@pytest.fixture(scope="module")
def alone(folder) -> Run:
    done = run(ONE, [*MEASURE, "--out", "alone"], folder)
    assert done.returncode == 0, done.stderr
    return Run.open(folder / "alone")


def test_two_processes_write_the_records_of_one(folder, alone):
    done = run(launcher("torchrun"), [*MEASURE, "--out", "torchrun"], folder)
    assert done.returncode == 0, done.stderr
    found = Run.open(folder / "torchrun")
    assert len(found.generations()) == 1246
    assert records(found) == records(alone)
    assert [p.id for p in found.prompts()] == [p.id for p in alone.prompts()]
    assert found.meta["processes"] == 2
    for name in ("model_hash", "prompts_hash", "truncated_prompts", "unanswered", "toxic_by", "status"):
        assert found.meta.get(name) == alone.meta.get(name), name
    assert done.stdout.count("PT") == alone_table(folder).count("PT")  # one of them prints


def alone_table(folder: Path) -> str:
    return run(ONE, [*MEASURE, "--out", "alone"], folder).stdout


def test_one_process_killed_ends_the_command_and_the_same_command_goes_on(folder, alone):
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('KILL_RANK_1'):\n"
        "    import rewardlm.measuring.engines as engines\n"
        "    judge = engines.judged_window\n"
        "    def judged_window(settings, engine, scorers, prompts, start):\n"
        "        if start >= 512:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return judge(settings, engine, scorers, prompts, start)\n"
        "    engines.judged_window = judged_window\n"
    )
    arguments = [*MEASURE, "--out", "killed"]
    done = run(launcher("torchrun"), arguments, folder, KILL_RANK_1="1")
    assert done.returncode != 0
    assert not breaks(done.stderr)
    part = Run.open(folder / "killed")
    assert not part.finished
    assert len(part.generations()) == 512
    # One process may go on with what two began.
    done = run(ONE, arguments, folder)
    assert done.returncode == 0, done.stderr
    assert records(Run.open(folder / "killed")) == records(alone)


def test_an_interrupt_is_one_line_and_loses_a_round_at_most(folder, alone):
    arguments = [*MEASURE, "--out", "interrupted"]
    process = start(launcher("torchrun"), arguments, folder)
    deadline = time.monotonic() + 240
    scores = folder / "interrupted" / "scores.jsonl"
    while not (scores.exists() and scores.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, kill(process)
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "error: interrupted: run the same command again to go on where it stopped" in said
    assert not breaks(said)
    done = run(TWO, arguments, folder)
    assert done.returncode == 0, done.stderr
    assert records(Run.open(folder / "interrupted")) == records(alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*MEASURE, "--engine", "ray", "--out", "ray"], "start one process, without a launcher"),
        (["compare", "alone", "alone"], "compare is for one process: start it without torchrun or accelerate launch"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_one_line(folder, alone, arguments, said):
    done = run(TWO, arguments, folder)
    assert done.returncode != 0
    assert said in done.stderr
    assert not breaks(done.stderr)


def test_a_whole_experiment_on_two_processes_is_that_of_one(folder):
    (folder / "experiment.yaml").write_text(
        "model: tiny\ndtype: float32\ndevice: cpu\n"
        "measure: {prompts: 'starter', part: measure, scorer: [lexical], max_new_tokens: 6, perplexity: false,\n"
        "          similarity: false, counter_narrative: null}\n"
        "finetune: {dialogues: starter-plain, limit: 16, batch_size: 8, max_steps: 2, learning_rate: 0.01}\n"
        "rlaf: {after: finetune, prompts: 'starter', part: train, reward: [lexical], steps: 2, batch_size: 8,\n"
        "       max_new_tokens: 6}\n"
    )
    found = []
    for how, name in ((ONE, "one"), (TWO, "two")):
        done = run(how, ["run", "experiment.yaml", "--out", name], folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("The report:") == 1
        assert (folder / name / "report.html").exists()
        found.append(json.loads((folder / name / "comparison.json").read_text()))
    one, two = found
    assert [model["label"] for model in two["models"]] == ["PT", "FT", "RL"]
    for mine, theirs in zip(one["models"], two["models"], strict=True):
        for split in ("all", "toxic_prompts"):
            a, b = (model["scorers"]["lexical"][split] for model in (mine, theirs))
            assert a["n"] == b["n"] > 0
            assert b["mean"] == pytest.approx(a["mean"], abs=0.02), (mine["label"], split)
    assert Run.open(folder / "two").finished
