"""``--engine ray``: the records are those of a local run, also after a worker and then the driver were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rewardlm.config import MeasureSettings
from rewardlm.errors import NotAvailableError
from rewardlm.measuring.meter import measure
from rewardlm.runs import Run

pytestmark = pytest.mark.slow

COMMAND = ["measure", "tiny", "--prompts", "rtp:packaged", "--samples", "2", "--max-new-tokens", "8"]
FLAGS = ["--scorer", "lexical", "--dtype", "float32", "similarity=false", "perplexity=false", "counter_narrative=null"]


def table(run: Run) -> tuple[Any, ...]:
    """What is measured, without order."""
    return (
        sorted((g.id, g.text, g.n_tokens, g.finish, g.seed) for g in run.generations()),
        sorted((s.generation_id, s.scorer, s.label, s.value, s.reason) for s in run.scores()),
    )


def workers() -> list[int]:
    """Processes of Ray's that hold the model: they carry their class in their title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and b"_Worker" in title:
            found.append(int(folder.name))
    return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_killed_worker_and_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    if not Path("/proc").is_dir():
        pytest.skip("workers are found by /proc")
    out = tmp_path / "ray"
    command = [sys.executable, "-m", "rewardlm", *COMMAND, *FLAGS, "--engine", "ray", "workers=2", "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 500
        killed: list[int] = []
        # Once the workers are there, one of them dies; once a window is written down, everything else does.
        while time.monotonic() < deadline and first.poll() is None and not (killed and lines(out / "scores.jsonl")):
            if not killed and (alive := workers()):
                time.sleep(1.5)
                os.kill(alive[0], signal.SIGKILL)
                killed = alive[:1]
            time.sleep(0.02)
        assert killed, first.communicate()[1].decode()[-2000:]
        assert lines(out / "scores.jsonl") > 0
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    there = lines(out / "generations.jsonl")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run.open(out)
    assert run.finished
    assert 0 < there <= len(run.generations()) == 1246
    settings = MeasureSettings(
        model="tiny",
        prompts="rtp:packaged",
        samples=2,
        max_new_tokens=8,
        scorer=["lexical"],
        dtype="float32",
        similarity=False,
        perplexity=False,
        counter_narrative=None,
    )
    assert table(run) == table(measure(settings, tmp_path / "local"))
    assert run.meta["model_hash"] == Run.open(tmp_path / "local").meta["model_hash"]
    assert run.meta["environment"]["versions"]["ray"]


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = MeasureSettings(
        model="tiny", engine="ray", limit=2, scorer=["lexical"], similarity=False, counter_narrative=None
    )
    with pytest.raises(NotAvailableError, match=r"pip install 'rewardlm\[ray\]'"):
        measure(settings, tmp_path / "run")
