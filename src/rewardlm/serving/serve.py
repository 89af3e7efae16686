"""Starts the server of ``rewardlm judge serve``, says where it is, and ends it without losing an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from rewardlm.errors import ConfigError
from rewardlm.listening import address_of, is_local, listen
from rewardlm.serving.protocol import PatientProtocol
from rewardlm.serving.served import check_labels, load_judges
from rewardlm.serving.server import JudgeServer

if TYPE_CHECKING:
    from rewardlm.judges.settings import JudgeServeSettings

# For answers that are being sent, and clients that read them slowly, once nothing waits any more.
_LAST_SECONDS = 5


def serve(settings: JudgeServeSettings, *, say: Callable[[str], None]) -> None:
    """Serve the judges until Ctrl-C or SIGTERM. ``say`` gets one line with the address once requests are answered.

    Raises ConfigError where the address can't be used, or others could connect without a key, and what loading a judge
    raises. Everything is checked before a judge is loaded.
    """
    key = key_of(settings)
    check_labels(settings)
    with listen(settings.host, settings.port, free_port="--port 0") as listening:
        judges = load_judges(settings)
        served = JudgeServer(judges, settings, key=key)
        names = ", ".join(f"{judge.name} ({judge.version.version})" for judge in judges.by_name.values())
        address = address_of(settings.host, listening)
        make_process(served, lambda: say(f"{address} serves {names}")).run(sockets=[listening])


def make_process(served: JudgeServer, ready: Callable[[], None]) -> JudgeServerProcess:
    """The server's loop, whose ``run`` ends when it is told to; ``ready`` is called once requests are answered."""
    limits = {"header_seconds": served.settings.body_seconds}
    protocol = type("Protocol", (PatientProtocol,), limits)
    config = uvicorn.Config(
        served.app, http=protocol, ws="none", lifespan="on", server_header=False, access_log=False,
        # What fails is logged by server.Door, without a text; uvicorn would print the error with its message.
        log_level="critical", timeout_graceful_shutdown=_LAST_SECONDS,
    )  # fmt: skip
    return JudgeServerProcess(config, served, ready)


def key_of(settings: JudgeServeSettings) -> str | None:
    """The key that requests must bring, None where they need none.

    Raises ConfigError where a variable is named that is not set, or other machines could connect without a key.
    """
    key = os.environ.get(settings.key_variable, "").strip()
    if not key and "key_variable" in settings.model_fields_set:
        raise ConfigError(
            f"key_variable is {settings.key_variable}, which is not set: set it, or leave the setting out"
        )
    if not key and not settings.allow_anyone and not is_local(settings.host):
        raise ConfigError(
            f"host {settings.host} lets other machines connect, and there is no key: set the environment variable "
            f"{settings.key_variable}, or give --allow-anyone"
        )
    return key or None


class JudgeServerProcess(uvicorn.Server):
    """Says when it is ready. The first signal lets what waits be answered, while new requests are refused; a second
    one has them refused as well. Neither is an error.
    """

    def __init__(self, config: uvicorn.Config, served: JudgeServer, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._served, self._ready = served, ready
        self._told: float | None = None
        self._in_haste = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to end now."""
        if self._told is not None and not self.should_exit:
            self._served.stop()
            if self._in_haste or time.monotonic() - self._told > self._served.settings.stop_seconds:
                self._served.give_up()
                self.should_exit = True
            # Answers that are on their way still go out: uvicorn waits for them.
            self.should_exit = self.should_exit or self._served.idle
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's, which sends the signal once more when the server has ended."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        # The handlers stay: another Ctrl-C while the process ends has nothing left to stop.
        yield

    def tell_to_end(self) -> None:
        """What a signal does; may be called from another thread."""
        if self._told is None:
            self._told = time.monotonic()
        else:
            self._in_haste = True

    def _end(self, _number: int, _frame: FrameType | None) -> Any:
        self.tell_to_end()
