"""``rewardlm view`` as a process, as a user starts it; and a training beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import Forked

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
LONGEST = 240.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` gives as soon as it is true; a failure of the test if that takes minutes."""
    deadline = time.monotonic() + LONGEST
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)
    return found


class ViewingServer:
    """The command, and what its page would ask. Ends with the test."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rewardlm", "view", *map(str, arguments)],
            env={**{k: v for k, v in ENVIRONMENT.items() if "DISPLAY" not in k}, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.address = self.line.split(" ")[0].rstrip("/")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as found:
            return json.load(found)

    def runs(self) -> dict[str, Any]:
        """The runs by label."""
        return {run["label"]: run for run in self.get("/api/state")["runs"]}

    def interrupt(self, times: int = 1) -> tuple[int, str, str]:
        """Ctrl-C; the exit code, and what was printed besides the first line."""
        for _ in range(times):
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def train(out: Path, steps: int) -> Forked:
    """Begin ``rewardlm rlaf`` with the smallest model."""
    command = (
        f"rlaf tiny --prompts starter --reward lexical --algorithm ppo --steps {steps} --batch-size 4 "
        f"--max-new-tokens 4 --lora-r 4 --device cpu --dtype float32 samples_every=2 --out {out} "
        "--witness none rewards.terms.similarity=0 rewards.terms.counter_narrative=0"
    )
    return Forked(command.split(), cwd=Path.cwd(), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
