"""What the local pages (``view``, ``label open``) share: a server that ends quietly, and a guard before it.

Any web page that a browser shows can send requests to this machine. So a request must be addressed to a name of this
machine (else a foreign name was made to point here: DNS rebinding), and other sites' requests are refused. What writes
must be JSON besides, which another site can't send without asking first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from importlib import resources
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse

from rewardlm.listening import OwnNames

Message = MutableMapping[str, Any]
# Scripts and data come from here alone; plotly writes styles, and pictures when one is saved.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Private texts: a browser asks again each time, and is told if nothing changed.
    "Cache-Control": "no-cache, private",
}
_READS = ("GET", "HEAD")


class Guard:
    """Refuses requests that are meant for another host, come from another site, or write where nothing may be written,
    and sets every header. ``writes`` are the paths that take a POST.
    """

    def __init__(self, app: FastAPI, host: str, *, writes: Iterable[str] = ()) -> None:
        self.app = app
        self._names = OwnNames(host)
        self._writes = frozenset(writes)

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                added = {"content-security-policy": "default-src 'none'", **_HEADERS}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in added.items()
                    if name.lower().encode() not in there
                ]
            await send(message)

        refusal = self._refusal(scope)
        await (self.app if refusal is None else refusal)(scope, receive, sent)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        method, path = scope["method"], scope["path"]
        if method not in _READS and (method != "POST" or path not in self._writes):
            return PlainTextResponse("read only: this can't be changed here\n", 405, headers={"Allow": "GET, HEAD"})
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].decode("latin-1") not in self._names:
            return PlainTextResponse("this server answers to its own address only\n", 421)
        # Browsers say which site asks. A request that doesn't say comes from no web page.
        site, mode = (headers.get(name, [b""])[0] for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        followed_link = method in _READS and mode == b"navigate" and path == "/"
        if site not in (b"", b"same-origin", b"none") and not followed_link:
            return PlainTextResponse("another site may not read this\n", 403)
        if method == "POST" and headers.get(b"content-type", [b""])[0].partition(b";")[0] != b"application/json":
            return PlainTextResponse("what is sent here must be application/json\n", 415)
        return None


def page_file(
    request: Request, files: Mapping[str, tuple[str, str]], name: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A file of the page, by its bare name in ``files``, which have its content type and its folder in the package."""
    if name not in files:
        raise HTTPException(404, "no such file")
    kind, folder = files[name]
    return answer(request, _content(folder, name), f"{kind}; charset=utf-8", headers or {})


@functools.cache
def _content(folder: str, name: str) -> bytes:
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        script: str = get_plotlyjs()
        return script.encode()
    return (resources.files("rewardlm") / folder / name).read_bytes()


def json_answer(request: Request, found: Mapping[str, Any]) -> Response:
    """``answer`` for JSON."""
    data = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
    return answer(request, data, "application/json", {})


def answer(request: Request, data: bytes, kind: str, headers: Mapping[str, str]) -> Response:
    """The data; or status 304, if the browser has just that already."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
    headers = {**headers, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


def run_server(app: Guard, listening: socket.socket, *, ready: Callable[[], None], browser: str | None) -> None:
    """Serve ``app`` on the socket until Ctrl-C or SIGTERM. ``ready`` is called once pages can be opened; where there is
    a display, the address ``browser`` is shown.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", lifespan="on", timeout_graceful_shutdown=2,
        server_header=False,
    )  # fmt: skip

    def up() -> None:
        ready()
        if browser is not None and _has_display():
            # A browser may take its time to start.
            threading.Thread(target=webbrowser.open, args=(browser,), daemon=True).start()

    with listening:
        _Server(config, up).run(sockets=[listening])


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
