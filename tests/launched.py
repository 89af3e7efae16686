"""Starts the command line in one process, or in two on one command: by torchrun, by accelerate, or without them.

A launcher takes seconds, and so do the imports of three processes. Where it isn't the launcher that is tried, the two
are forked ("two"), and told of each other as torchrun does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from forked import Forked

ONE = ["-m", "rewardlm"]
TWO = ["two"]


class Two:
    """Two processes on one command; if one of them fails, the other is ended, as torchrun does."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self.args, self.returncode = arguments, None
        (self._out, out), (self._err, err) = os.pipe(), os.pipe()
        world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port())}
        self._ranks = [
            Forked(
                arguments,
                cwd=cwd,
                env={**environment, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                pipes=(out, err),
            )
            for rank in range(2)
        ]
        os.close(out)
        os.close(err)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What both say until they end."""
        with (
            ThreadPoolExecutor(2) as pool,
            os.fdopen(self._out, encoding="utf-8") as out,
            os.fdopen(self._err, encoding="utf-8") as err,
        ):
            said, complained = pool.submit(out.read), pool.submit(err.read)
            deadline = time.monotonic() + timeout
            while None in (codes := [rank.poll() for rank in self._ranks]):
                if any(codes):
                    for rank in self._ranks:
                        rank.terminate()
                if time.monotonic() > deadline:
                    self.kill()
                    pytest.fail(f"two processes wait for each other: {complained.result()[-2000:]}")
                time.sleep(0.005)
            self.returncode = int(any(codes))
            return said.result(), complained.result()

    def poll(self) -> int | None:
        """None while both run."""
        return next((code for rank in self._ranks if (code := rank.poll()) is not None), None)

    def kill(self) -> None:
        for rank in self._ranks:
            rank.kill()


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launcher(name: str) -> list[str]:
    """Arguments of Python that start the command line twice."""
    if name == "two":
        return TWO
    if name == "torchrun":
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rewardlm"]
    options = f"--multi_gpu --num_processes 2 --num_machines 1 --main_process_port {_port()} --mixed_precision no"
    return ["-m", "accelerate.commands.launch", *f"{options} --dynamo_backend no -m rewardlm".split()]


def write_plain_text(folder: Path) -> None:
    """plain.txt, for a training that retains it."""
    lines = ("What a day it was, and nobody knew", "The river is long and slow there", "Bread takes time") * 2
    (folder / "plain.txt").write_text("".join(f"{line}, said {n} of them.\n" for n, line in enumerate(lines)))


def start(how: list[str], arguments: list[str], cwd: Path, **more: str) -> Any:
    """Started, in a group of its own, with ``cwd`` on Python's path: a ``Popen``, or what can be used like one."""
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **more}
    if how == TWO:
        return Two(arguments, cwd, environment)
    if how == ONE:
        return Forked(arguments, cwd=cwd, env=environment)
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: Any) -> str:
    """Kill the launcher and what it started, which torchrun puts into groups of their own; what they said on stderr."""
    if isinstance(process, Two):
        process.kill()
        return process.communicate(60)[1]
    launched = psutil.Process(process.pid)
    for found in [launched, *launched.children(recursive=True)]:
        found.kill()
    return process.communicate()[1]


def breaks(said: str) -> bool:
    """Whether there is a traceback of ours on stderr; launchers show their own for every process that failed."""
    return "rewardlm/cli/app.py" in said


def run(
    how: list[str], arguments: list[str], cwd: Path, *, timeout: float = 300, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end; processes that wait for each other fail the test."""
    process = start(how, arguments, cwd, **more)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail(f"two processes wait for each other: {kill(process)[-2000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
