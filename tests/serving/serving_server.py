"""``rewardlm judge serve`` as a process, as a user starts it; the same server in a thread, over judges of a test."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from forked import Forked
from rewardlm.judges.settings import JudgeServeSettings
from rewardlm.listening import listen
from rewardlm.scoring.versions import JudgeVersion
from rewardlm.serving.serve import JudgeServerProcess, make_process
from rewardlm.serving.served import ServedJudges, as_served
from rewardlm.serving.server import JudgeServer
from rewardlm.types import Verdict

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
LONGEST = 120.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` gives as soon as it is true; a failure of the test if that takes minutes."""
    deadline = time.monotonic() + LONGEST
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Answered:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


def ask(
    address: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str | None = None
) -> Answered:
    """One request of its own connection. ``body`` is JSON, or bytes that are sent as they are."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, {**kind, **(headers or {})})
        found = connection.getresponse()
        return Answered(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
    finally:
        connection.close()


class Letters:
    """A judge whose score can be told from the text: the share of the letter x. It remembers what it was asked.

    ``[fail]`` in a text makes it raise for that text, and ``[decline]`` makes it decline. While ``gate`` is not set it
    works at nothing.
    """

    revision = "letters 1"

    def __init__(self, name: str = "letters", labels: Sequence[str] = ("toxicity", "insult", "hate")) -> None:
        self.name, self.labels = name, tuple(labels)
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        self.batches.append(list(texts))
        self.begun.set()
        assert self.gate.wait(LONGEST)
        if any("[fail]" in text for text in texts):
            raise ValueError(f"can't read {texts[0]!r}")
        return [Verdict(reason="declined") if "[decline]" in text else Verdict(self.values(text)) for text in texts]

    def values(self, text: str) -> dict[str, float]:
        share = text.count("x") / len(text)
        return {label: share / (n + 1) for n, label in enumerate(self.labels)}


class ThreadServer:
    """The server over judges of a test, in a thread of this process. Ends with the test."""

    def __init__(self, *judges: Any, key: str | None = None, **settings: Any) -> None:
        self.settings = JudgeServeSettings(
            judge=[judge.name for judge in judges], **{"port": 0, "device": "cpu", "stop_seconds": 10, **settings}
        )
        served = {
            judge.name: as_served(judge, JudgeVersion(judge.name, f"v-{judge.name}", "sha256:00"), self.settings)
            for judge in judges
        }
        self.server = JudgeServer(ServedJudges(served, self.settings.aliases), self.settings, key=key)
        self._listening = listen(self.settings.host, 0, free_port="0")
        self.port = self._listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        ready = threading.Event()
        self.process: JudgeServerProcess = make_process(self.server, ready.set)
        self._thread = threading.Thread(target=self.process.run, kwargs={"sockets": [self._listening]}, daemon=True)
        self._thread.start()
        assert ready.wait(LONGEST)

    def ask(self, path: str, body: Any = None, **more: Any) -> Answered:
        return ask(self.address, path, body, **more)

    def raw(self, data: bytes, *, seconds: float = 20.0, half_close: bool = True) -> bytes:
        """What comes back for bytes that need not be HTTP, until the server closes or nothing comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            found = b""
            try:
                line.sendall(data)
                if half_close:
                    # The server may have answered and hung up already (ENOTCONN); its answer can still be read.
                    with contextlib.suppress(OSError):
                        line.shutdown(socket.SHUT_WR)
                while piece := line.recv(65536):
                    found += piece
            except (ConnectionError, TimeoutError):
                pass
            return found

    def close(self) -> None:
        self.process.tell_to_end()
        self._thread.join(LONGEST)
        assert not self._thread.is_alive(), "the server did not end"


class ServingProcess:
    """The command, and requests to it. With ``anew`` Python starts as a user starts it, which takes seconds."""

    def __init__(self, *arguments: object, anew: bool = False, **environment: str) -> None:
        command = ["judge", "serve", *map(str, arguments)]
        self.process: Forked | subprocess.Popen[str]
        if anew:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rewardlm", *command],
                env={**ENVIRONMENT, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            self.process = Forked(command, cwd=os.getcwd(), env={**ENVIRONMENT, **environment})
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.address = self.line.split(" ")[0].rstrip("/")

    def ask(self, path: str, body: Any = None, **more: Any) -> Answered:
        return ask(self.address, path, body, **more)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """The exit code, and what was printed besides the first line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=LONGEST)
        return self.process.returncode, out, err

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def analyze(text: Any, *attributes: str, **more: Any) -> dict[str, Any]:
    """A request of ``comments:analyze``."""
    return {
        "comment": {"text": text}, "requestedAttributes": {name: {} for name in attributes or ("TOXICITY",)}, **more,
    }  # fmt: skip
