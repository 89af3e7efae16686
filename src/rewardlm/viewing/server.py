"""What the page can ask: only GET, only runs in the folders that were named, by their ids, and nothing is written.

Any web page that a browser shows can send requests to this machine. So a request must be addressed to a name of this
machine (else a foreign name was made to point here: DNS rebinding), and other sites' requests are refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse

from rewardlm.listening import NO_TELEMETRY, OwnNames
from rewardlm.viewing.comparing import Comparisons
from rewardlm.viewing.followed import FollowedRun
from rewardlm.viewing.following import Follower, curves_since
from rewardlm.viewing.samples import Only

Message = MutableMapping[str, Any]
# Scripts and data come from here alone; plotly writes styles, and pictures when one is saved.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report is one file with everything inside; its own policy names the scripts that may run.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Private texts: a browser asks again each time, and is told if nothing changed.
    "Cache-Control": "no-cache, private",
}
# The page's files by name: content type and package. No other file can be asked for.
_ASSETS = {
    "view.html": ("text/html", "viewing/page"),
    "view.css": ("text/css", "viewing/page"),
    "view.js": ("text/javascript", "viewing/page"),
    "curves.js": ("text/javascript", "viewing/page"),
    "results.js": ("text/javascript", "viewing/page"),
    "answers.js": ("text/javascript", "viewing/page"),
    "dom.js": ("text/javascript", "viewing/page"),
    "page.css": ("text/css", "reporting/templates"),
    "plotly.js": ("text/javascript", ""),
}
_MOST_COMPARED = 40
Ids = Annotated[list[str], Query(max_length=_MOST_COMPARED)]


def make_app(follower: Follower, comparisons: Comparisons, *, host: str = "127.0.0.1") -> Guard:
    """The server's application, which follows runs while it is up. ``host`` is the address that it listens on."""

    @asynccontextmanager
    async def up(_: FastAPI) -> Any:
        follower.start()
        yield
        follower.close()
        comparisons.close()

    app = FastAPI(
        title="rewardlm view", lifespan=up, docs_url=None, redoc_url=None, openapi_url=None, telemetry=NO_TELEMETRY
    )

    @app.get("/")
    def page(request: Request) -> Response:
        return _asset(request, "view.html", {"Content-Security-Policy": _POLICY})

    @app.get("/assets/{name}")
    def part(request: Request, name: str) -> Response:
        return _asset(request, name, {})

    @app.get("/api/state")
    def state(request: Request) -> Response:
        return _json(request, follower.state())

    @app.get("/api/runs/{identity}/curves")
    def curves(request: Request, identity: str, generation: int = -1, start: int = 0) -> Response:
        run = _known(identity)
        return _json(request, follower.read(run, lambda one: curves_since(one, generation, start)))

    @app.get("/api/runs/{identity}/answers")
    def answers(
        request: Request, identity: str, step: int | None = None, text: str = "", only: Only = "all"
    ) -> Response:
        run = _known(identity)
        return _json(request, follower.read(run, lambda one: one.answers(step=step, text=text[:200], only=only)))

    @app.get("/api/comparison")
    def comparison(request: Request, run: Ids) -> Response:
        runs = [_known(identity) for identity in dict.fromkeys(run)]
        if not any(one.measurement is not None for one in runs):
            raise HTTPException(400, "nothing to compare: choose at least one measurement")
        if unfinished := [one.run.label for one in runs if one.state != "finished"]:
            raise HTTPException(400, f"not finished yet: {', '.join(unfinished)}")
        return _json(request, comparisons.of([one.folder for one in runs]))

    @app.get("/report/{name}")
    def report(name: str) -> Response:
        file = comparisons.page(name)
        if file is None:
            raise HTTPException(404, "no such page: compare the runs again")
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    def _known(identity: str) -> FollowedRun:
        found = follower.get(identity)
        if found is None:
            raise HTTPException(404, "no such run")
        return found

    return Guard(app, host)


class Guard:
    """Refuses requests that write, are meant for another host or come from another site, and sets every header."""

    def __init__(self, app: FastAPI, host: str) -> None:
        self.app = app
        self._names = OwnNames(host)

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
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("read only: nothing here can be changed\n", 405, headers={"Allow": "GET, HEAD"})
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].decode("latin-1") not in self._names:
            return PlainTextResponse("this server answers to its own address only\n", 421)
        # Browsers say which site asks. A request that doesn't say comes from no web page.
        site, mode = (headers.get(name, [b""])[0] for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        followed_link = mode == b"navigate" and scope["path"] == "/"
        if site not in (b"", b"same-origin", b"none") and not followed_link:
            return PlainTextResponse("another site may not read this\n", 403)
        return None


def _asset(request: Request, name: str, headers: dict[str, str]) -> Response:
    """A file of the page, by its bare name."""
    if name not in _ASSETS:
        raise HTTPException(404, "no such file")
    return _answer(request, _content(name), f"{_ASSETS[name][0]}; charset=utf-8", headers)


@functools.cache
def _content(name: str) -> bytes:
    if name == "plotly.js":
        from plotly.offline import get_plotlyjs

        script: str = get_plotlyjs()
        return script.encode()
    return (resources.files("rewardlm") / _ASSETS[name][1] / name).read_bytes()


def _json(request: Request, found: dict[str, Any]) -> Response:
    data = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
    return _answer(request, data, "application/json", {})


def _answer(request: Request, data: bytes, kind: str, headers: dict[str, str]) -> Response:
    """The data; or status 304, if the browser has just that already."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
    headers = {**headers, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
