"""A server over judges of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="rewardlm[serve] is not installed")
pytest.importorskip("prometheus_client", reason="rewardlm[serve] is not installed")

from serving_server import Letters, ServingProcess, ThreadServer


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def serve() -> Iterator[Callable[..., ThreadServer]]:
    """Starts servers in threads; every one is told to end, and must."""
    servers: list[ThreadServer] = []

    def started(*judges: Any, **settings: Any) -> ThreadServer:
        servers.append(ThreadServer(*judges, **settings))
        return servers[-1]

    yield started
    for server in servers:
        for judge in server.server.judges.by_name.values():
            gate = getattr(judge.scorer, "gate", None)
            if gate is not None:
                gate.set()
        server.close()


@pytest.fixture
def server(serve: Callable[..., ThreadServer], letters: Letters) -> ThreadServer:
    """One over the judge ``letters``."""
    return serve(letters)


@pytest.fixture
def start() -> Iterator[Callable[..., ServingProcess]]:
    """Starts the command."""
    processes: list[ServingProcess] = []

    def started(*arguments: object, **environment: str) -> ServingProcess:
        processes.append(ServingProcess(*arguments, **environment))
        return processes[-1]

    yield started
    for process in processes:
        process.close()
