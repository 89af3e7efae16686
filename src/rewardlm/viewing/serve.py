"""Starts the server of ``rewardlm view``, says where it is, opens a browser, and ends it quietly."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from rewardlm.listening import address_of, listen
from rewardlm.viewing.comparing import Comparisons
from rewardlm.viewing.folders import Place, find_runs
from rewardlm.viewing.following import Follower
from rewardlm.viewing.server import make_app


def serve(
    runs: Sequence[str], *, host: str = "127.0.0.1", port: int = 0, browser: bool = True, say: Callable[[str], None]
) -> None:
    """Serve the page about ``runs``, folders that hold runs or will, until Ctrl-C.

    ``say`` gets one line with the address once the page can be opened. Port 0 is a free one. Raises RunError where
    a run is a file, ConfigError if ``host`` and ``port`` can't be used.
    """
    places = [Place.of(given) for given in dict.fromkeys(runs)]
    listening = listen(host, port, free_port="leave --port out")
    follower, comparisons = Follower(places), Comparisons()
    app = make_app(follower, comparisons, host=host)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", lifespan="on", timeout_graceful_shutdown=2,
        server_header=False,
    )  # fmt: skip
    address = address_of(host, listening)

    def ready() -> None:
        waiting = [place.given for place in places if not find_runs(place)]
        say(f"{address} shows {', '.join(runs)}" + (f"; waiting for runs in {', '.join(waiting)}" if waiting else ""))
        if browser and _has_display():
            # A browser may take its time to start.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    try:
        with listening:
            _Server(config, ready).run(sockets=[listening])
    finally:
        # If the server did not come up, it did not close these.
        comparisons.close()
        follower.close()


class _Server(uvicorn.Server):
    """Says when it is ready. Ctrl-C and SIGTERM end it as asked: no error, no traceback."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

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

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        # A second signal changes nothing: requests have two seconds to end, and leave nothing behind.
        self.should_exit = True


def _has_display() -> bool:
    if sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
