"""A server of judges in a process of its own, and clients that load it: for serve_speed.py and serve_soak.py."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

ANALYZE = "/v1alpha1/comments:analyze"


@contextmanager
def server(*command: str, environment: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address and process of the server that ``command`` starts, once it says where it is; ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(command)} did not start")
        yield line.split(" ")[0].strip().rstrip("/"), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def request_of(address: str, path: str, body: object) -> bytes:
    """A POST of JSON as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def analyze(text: str, token: str = "") -> dict[str, object]:
    """The body of a request of Perspective for TOXICITY."""
    return {
        "comment": {"text": text},
        "requestedAttributes": {"TOXICITY": {}},
        "languages": ["en"],
        "clientToken": token,
    }


class Line:
    """A connection that is kept open between requests. Servers close one that was idle for some seconds: a ``patient``
    client opens another then, as every library does; others call that a lost answer.
    """

    def __init__(self, address: str, *, patient: bool = False) -> None:
        self._parts = urlsplit(address)
        self._patient = patient
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises ConnectionError, asyncio.IncompleteReadError where none comes."""
        reused = self._reader is not None
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        try:
            self._writer.write(request)
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # Nothing of an answer came: the server had closed it before it read the request.
            if not (self._patient and reused) or getattr(error, "partial", b""):
                raise
            self.close()
            return await self.ask(request)
        lower = head.lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        body = await self._reader.readexactly(length)
        if b"connection: close" in lower:
            self.close()
        return int(head.split(b" ", 2)[1]), body

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Load:
    """What came of a load: answers, those that were no 200, seconds each took, and seconds in all."""

    answers: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    wall: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """Texts a second and milliseconds of the median and the slowest 1 %."""
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000 if self.seconds else (float("nan"),) * 2
        return {
            "texts_per_second": self.answers / self.wall, "p50_ms": float(p50), "p99_ms": float(p99),
            "refused": self.refused,
        }  # fmt: skip


async def closed_load(address: str, make: Callable[[int], bytes], *, clients: int, seconds: float) -> Load:
    """``clients`` that each ask again as soon as they have an answer."""
    found, numbers = Load(), iter(range(1 << 60))
    begun = time.perf_counter()

    async def client() -> None:
        line = Line(address)
        while time.perf_counter() - begun < seconds:
            await _one(found, line, make(next(numbers)))
        line.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    found.wall = time.perf_counter() - begun
    return found


async def open_load(address: str, make: Callable[[int], bytes], *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests that come at random moments (Poisson), ``rate`` a second, whether or not others were answered."""
    found, rng = Load(), random.Random(seed)
    idle: list[Line] = []
    begun, at, number, tasks = time.perf_counter(), 0.0, 0, []

    async def one(request: bytes) -> None:
        line = idle.pop() if idle else Line(address, patient=True)
        await _one(found, line, request)
        idle.append(line)

    while (at := at + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(make(number))))
        number += 1
    await asyncio.gather(*tasks)
    found.wall = time.perf_counter() - begun
    for line in idle:
        line.close()
    return found


async def _one(found: Load, line: Line, request: bytes) -> None:
    begun = time.perf_counter()
    status, _ = await line.ask(request)
    found.seconds.append(time.perf_counter() - begun)
    found.answers += status == 200
    found.refused += status != 200


def texts_of(words: Sequence[str], number: int, *, seed: int = 0) -> list[str]:
    """``number`` texts of 20 of ``words``, no two alike."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        found[" ".join(rng.sample(list(words), 20))] = None
    return list(found)
