"""Commands in real processes, without the seconds that each spends on imports.

One process per test session loads what commands load, and computes nothing. Each command is forked from it: it has a
process id, pipes and an exit code of its own, and can be killed. What is about imports themselves, or about torchrun
and accelerate, must start Python anew instead.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

LOADED = (
    "rewardlm.cli.app", "rewardlm.api", "rewardlm.measuring.meter", "rewardlm.measuring.compare",
    "rewardlm.training.rlaf", "rewardlm.training.sft", "rewardlm.scoring.pairs", "rewardlm.scoring.lexical",
    "sentence_transformers", "trl.trainer.sft_trainer",
)  # fmt: skip


class Forked:
    """As ``subprocess.Popen`` with text pipes, for ``python -m rewardlm ARGUMENTS``; or, given one, for ``python SCRIPT
    ARGUMENTS``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path | str,
        env: Mapping[str, str],
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        pipes: tuple[int, int] | None = None,
        script: Path | None = None,
    ) -> None:
        self.args, self.returncode = [*arguments], None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        ends: list[int] = []
        if pipes is None:
            for name, wanted in (("stdout", stdout), ("stderr", stderr)):
                if wanted == subprocess.STDOUT:
                    ends.append(os.dup(ends[0]))
                elif wanted == subprocess.DEVNULL:
                    ends.append(os.open(os.devnull, os.O_WRONLY))
                else:
                    read, write = os.pipe()
                    setattr(self, name, os.fdopen(read, "r", encoding="utf-8"))
                    ends.append(write)
        job = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": dict(env)}
        if script is not None:
            job["script"] = str(script.resolve())
        self.pid = int(_server().ask(job, list(pipes or ends)))
        for end in ends:
            os.close(end)

    def poll(self) -> int | None:
        """The exit code, or None while it runs; minus the signal's number if it was killed."""
        if self.returncode is None:
            found = _server().ask({"poll": self.pid})
            self.returncode = None if found == "None" else int(found)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says until it ends."""
        said: dict[str, str] = {"stdout": "", "stderr": ""}

        def read(name: str, stream: IO[str]) -> None:
            said[name] = stream.read()

        streams = {name: found for name in said if (found := getattr(self, name)) is not None}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in streams.items()]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        for stream in streams.values():
            stream.close()
        return said["stdout"], said["stderr"]

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Server:
    """The process that commands are forked from, seen from the tests."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A group of its own: what is sent to a test's group doesn't reach it.
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, start_new_session=True)
        theirs.close()
        atexit.register(self._ours.close)

    def ask(self, job: Mapping[str, Any], descriptors: list[int] | None = None) -> str:
        """The answer to one job."""
        with self._lock:
            socket.send_fds(self._ours, [json.dumps(job).encode()], descriptors or [])
            answer = self._ours.recv(1000).decode()
        if not answer:
            raise RuntimeError("the process that commands are forked from has ended")
        return answer


_running: list[_Server] = []


def _server() -> _Server:
    if not _running:
        _running.append(_Server())
    return _running[0]


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each job; the job in such a process, and None in this one once nobody asks any more."""
    ended: dict[int, int] = {}
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1_000_000, 2)
        if not message:
            return None
        job = json.loads(message)
        if "poll" in job:
            asked = job["poll"]
            if asked not in ended:
                found, status = os.waitpid(asked, os.WNOHANG)
                if found:
                    ended[asked] = os.waitstatus_to_exitcode(status)
            channel.send(str(ended.get(asked)).encode())
            continue
        child = os.fork()
        if child == 0:
            channel.close()
            for descriptor, number in zip(descriptors, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return dict(job)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(child).encode())


def _main() -> None:
    for name in LOADED:
        # A package may be left out: commands that need it say so themselves.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Then no child copies their memory, only because it looks for garbage.
    gc.collect()
    gc.freeze()
    job = _serve(socket.socket(fileno=int(sys.argv[1])))
    if job is None:
        return
    os.setsid()
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    script = job.get("script")
    # As Python itself would begin: the current or the script's folder first, then what the environment names.
    sys.path[0] = job["cwd"] if script is None else str(Path(script).parent)
    sys.path[1:1] = [part for part in job["env"].get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = [script or "rewardlm", *job["arguments"]]
    code: Any = 0
    try:
        for place in job["env"].get("PYTHONPATH", "").split(os.pathsep):
            if place and (Path(place) / "sitecustomize.py").exists():
                runpy.run_path(str(Path(place) / "sitecustomize.py"))
        if script is None:
            runpy.run_module("rewardlm", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except Exception:
        traceback.print_exc()
        code = 1
    # The end of a process, less the seconds that taking thousands of modules apart costs.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _main()
