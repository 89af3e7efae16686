"""Starts the command line as torchrun and accelerate do: two processes on one command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ONE = ["-m", "rewardlm"]


def launcher(name: str) -> list[str]:
    """Arguments of Python that start the command line twice."""
    if name == "torchrun":
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rewardlm"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--multi_gpu --num_processes 2 --num_machines 1 --main_process_port {port} --mixed_precision no"
    return ["-m", "accelerate.commands.launch", *f"{options} --dynamo_backend no -m rewardlm".split()]


def start(how: list[str], arguments: list[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
    """Started, in a group of its own, with ``cwd`` on Python's path."""
    path = os.pathsep.join(filter(None, [str(cwd), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **more}
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> str:
    """The launcher and what it started, which torchrun puts into groups of their own; what they said on stderr."""
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
