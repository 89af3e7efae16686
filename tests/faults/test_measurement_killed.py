"""A measurement killed with SIGKILL, really: the same command again ends with the same table, nothing scored twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import Forked
from rewardlm.cli.app import main
from rewardlm.errors import RunError
from rewardlm.measuring.compare import compare
from rewardlm.runs import Run, alone

pytestmark = pytest.mark.slow

JUDGE = '''
"""Counts what it was asked in a file, so that several processes can be added up, and is slow enough to be killed."""
import time

def judge(texts):
    with open("asked.log", "a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{text!r}\\n" for text in texts)
    time.sleep(0.3)
    return [len(text) % 10 / 10 for text in texts]
'''


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As many threads here as in the process that is killed: sums are rounded by how they are cut up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arguments(folder: Path, out: str) -> list[str]:
    prompts = folder / "prompts.jsonl"
    if not prompts.exists():
        prompts.write_text("".join(f'{{"prompt": "Number {i}, please"}}\n' for i in range(150)))
        (folder / "killed_judge.py").write_text(JUDGE)
    text = (
        f"measure tiny --prompts {prompts} --scorer killed_judge:judge --toxic-by lexical --label PT "
        f"--max-new-tokens 5 --dtype float32 --device cpu --batch-tokens 600 --out {out} "
        "similarity=false perplexity=false"
    )
    return text.split(" ")


def run_here(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["rewardlm", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def table(path: Path) -> Any:
    run = Run.open(path)
    return (
        sorted((g.id, g.text, g.seed) for g in run.generations()),
        sorted((s.generation_id, s.value or -1, s.reason or "") for s in run.scores()),
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_kill_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_here(monkeypatch, arguments(tmp_path, "whole"))
    log = tmp_path / "asked.log"
    asked_uninterrupted = log.read_text().count("\n")
    log.unlink()

    nothing = subprocess.DEVNULL
    process = Forked(arguments(tmp_path, "killed"), cwd=tmp_path, env=os.environ, stdout=nothing, stderr=nothing)
    scores = tmp_path / "killed" / "scores.jsonl"
    deadline = time.monotonic() + 100
    while not (scores.exists() and scores.read_bytes().count(b"\n") >= 33):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(RunError, match="is being written by another command"), alone(tmp_path / "killed"):
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not Run.open(tmp_path / "killed").finished
    assert len(Run.open(tmp_path / "killed").scores()) < 150

    run_here(monkeypatch, arguments(tmp_path, "killed"))
    assert Run.open(tmp_path / "killed").finished
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    whole, killed = (compare([tmp_path / name]) for name in ("whole", "killed"))
    assert killed.models == whole.models
    answers = Counter(s.generation_id for s in Run.open(tmp_path / "killed").scores())
    assert set(answers.values()) == {1}
    # At most one batch is judged again: it was judged, and the process killed before that was written.
    assert log.read_text().count("\n") <= asked_uninterrupted + 32
