"""The loads that ``judge serve`` is measured with: they run, count what came, and notice what is wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import serve_load

T = TypeVar("T")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
needs_server = pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None, reason="rewardlm[serve] is not installed"
)


def run(script: str, *arguments: str) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns. In a thread of its own, because another test may have left a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def answering(status: int, wait: float) -> tuple[asyncio.Server, str, list[bytes]]:
    """A server that answers every request with ``status`` after a while, and keeps what it was asked."""
    asked: list[bytes] = []

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                asked.append(await reader.readexactly(length))
                await asyncio.sleep(wait)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.mark.parametrize(("status", "refused"), [(200, False), (429, True)])
def test_a_closed_load_counts_what_was_answered(status: int, refused: bool) -> None:
    async def load() -> tuple[serve_load.Load, list[bytes]]:
        server, address, asked = await answering(status, 0.01)
        async with server:
            make = lambda n: serve_load.request_of(address, "/x", {"n": n})  # noqa: E731
            return await serve_load.closed_load(address, make, clients=4, seconds=0.3), asked

    found, asked = in_a_loop(load())
    assert found.answers + found.refused == len(asked) == len(found.seconds) > 20
    assert (found.refused == len(asked)) is refused
    # Every request was another one.
    assert len(set(asked)) == len(asked)
    assert min(found.seconds) >= 0.01


def test_an_open_load_keeps_its_rate_whatever_the_server_does() -> None:
    async def load() -> serve_load.Load:
        server, address, _ = await answering(200, 0.2)
        async with server:
            make = lambda n: serve_load.request_of(address, "/x", {"n": n})  # noqa: E731
            return await serve_load.open_load(address, make, rate=100, seconds=1.0)

    found = in_a_loop(load())
    # Poisson: 100 ± 4 standard deviations, although each answer takes a fifth of a second.
    assert 60 <= found.answers <= 140
    expected = np.percentile(found.seconds, 99) * 1000
    assert found.to_dict()["p99_ms"] == pytest.approx(expected)


def test_a_connection_that_a_server_closed_is_opened_again_by_a_patient_client_alone() -> None:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def twice(*, patient: bool) -> list[int]:
        server = await asyncio.start_server(client, "127.0.0.1", 0)
        async with server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            line = serve_load.Line(address, patient=patient)
            request = serve_load.request_of(address, "/x", {})
            return [(await line.ask(request))[0] for _ in range(3)]

    assert in_a_loop(twice(patient=True)) == [200, 200, 200]
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        in_a_loop(twice(patient=False))


def test_texts_have_twenty_words_and_differ() -> None:
    texts = serve_load.texts_of([f"w{n}" for n in range(60)], 500)
    assert len(set(texts)) == 500
    assert {len(set(text.split())) for text in texts} == {20}


@needs_server
@pytest.mark.slow
def test_a_short_soak_loses_nothing() -> None:
    code, report = run("serve_soak.py", "--minutes", "0.1", "--clients", "4")
    assert (code, report["ok"], report["wrong"], report["lost"]) == (0, True, 0, [])
    assert report["asked"] == report["answered"] > 50  # type: ignore[operator]
    assert report["hung_up"]
    assert report["nonsense"]


@needs_server
@pytest.mark.slow
def test_the_table_of_speed_is_made() -> None:
    code, report = run(
        "serve_speed.py", "--judge", "lexical", "--without-peer", "--seconds", "1", "--rounds", "1", "--clients", "4"
    )
    assert code == 0
    (row,) = report["rows"]  # type: ignore[misc]
    assert row["texts_per_second"] > 0
    assert row["refused"] == 0
    assert row["half_load_p99_ms"] > 0
