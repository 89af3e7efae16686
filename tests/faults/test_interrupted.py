"""Ctrl-C and SIGTERM in a real process: the first leaves a run that goes on, the second ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launched import ONE, run
from rewardlm.runs import Run

# A judge that takes its time; the second holds on to the process when it is interrupted, as libraries may.
JUDGES = """
import time
from pathlib import Path

def slow(texts):
    Path("judging").write_text("now")
    time.sleep(0.3 * len(texts))
    return [0.5] * len(texts)

def clinging(texts):
    try:
        return slow(texts * 200)[: len(texts)]
    except KeyboardInterrupt:
        Path("interrupted").write_text("now")
        time.sleep(120)
        raise
"""


def command(judge: str) -> list[str]:
    return [
        "measure", "tiny", "--prompts", "starter", "--limit", "8", "--samples", "2",
        "--max-new-tokens", "3", "--batch-tokens", "512", "--scorer", f"judges:{judge}",
        "counter_narrative=null", "similarity=false", "perplexity=false", "--out", "run",
    ]  # fmt: skip


def started(judge: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "judges.py").write_text(JUDGES)
    # A shell without job control has its background commands ignore SIGINT; a terminal's don't.
    return subprocess.Popen(
        [sys.executable, "-m", "rewardlm", *command(judge)], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(file: Path) -> None:
    """Until there is something in it."""
    until = time.monotonic() + 120
    while not file.exists() or not file.stat().st_size:
        assert time.monotonic() < until, f"{file.name} does not come"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_the_first_leaves_a_run_that_goes_on(tmp_path: Path, number: int, code: int, said: str) -> None:
    process = started("slow", tmp_path)
    wait_for(tmp_path / "run" / "generations.jsonl")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.strip().splitlines()[-1] == f"error: {said}: run the same command again to go on where it stopped"
    assert "Traceback" not in error
    done = run(ONE, command("slow"), tmp_path)
    assert done.returncode == 0, done.stderr
    found = Run.open(tmp_path / "run")
    assert found.finished
    assert len({(one.prompt_id, one.sample) for one in found.each_generation()}) == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)], ids=["Ctrl-C", "SIGTERM"]
)
def test_the_second_ends_at_once_and_quietly(tmp_path: Path, first: int, second: int) -> None:
    process = started("clinging", tmp_path)
    wait_for(tmp_path / "judging")
    process.send_signal(first)
    wait_for(tmp_path / "interrupted")
    before = time.monotonic()
    process.send_signal(second)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - before < 20
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "KeyboardInterrupt" not in error
    assert (tmp_path / "run" / "run.json").exists()


def test_a_forked_worker_is_ended_by_its_pool_and_a_launchers_processes_at_once() -> None:
    """A pool ends its workers by SIGTERM: they must not take it for the user's wish, and print tracebacks."""
    code = """
import multiprocessing, os, signal, time
from rewardlm.cli.interrupts import second_one_ends

with second_one_ends() as asked:
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    time.sleep(0.3)
    worker.terminate()
    worker.join()
    print(worker.exitcode, asked.number)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except KeyboardInterrupt:
        print(asked, asked.code)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
with second_one_ends(several=True):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["-15 None", "stopped by SIGTERM 143"]
    assert done.stderr == ""
    assert done.returncode == -signal.SIGTERM
