"""A real ``transformers serve`` on this machine, for tests of what talks to servers that we did not write."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

# No look-ups at a hub, by the server or by a command that asks it.
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """Inside, the model in ``folder`` is served; yields the address as far as ``/v1``. What the server says goes to
    ``log``.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as written, subprocess.Popen(command, stdout=written, stderr=written, env=OFFLINE) as process:
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait_for(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if httpx.get(f"{url}/models", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(f"no server after two minutes: {log.read_text(errors='replace')[-2000:]}")
