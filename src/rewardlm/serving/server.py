"""What can be asked, by whom, and in which format it is answered. No text is logged, kept, or quoted in an error.

Whoever asks must address this machine by a name of its own, and no web page of another site may ask: a browser would
send its requests from inside (``Door``). Everything else is answered as the format's own servers would.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from rewardlm.listening import NO_TELEMETRY, OwnNames
from rewardlm.serving import discovery, moderations, perspective, plain
from rewardlm.serving.batching import Batcher, Busy, Stopping, Unusable
from rewardlm.serving.bodies import Gone, read_json
from rewardlm.serving.metrics import CONTENT_TYPE, Metrics
from rewardlm.serving.refusals import Format, Refusal, form_of, of_status
from rewardlm.serving.served import ServedJudge, ServedJudges, cores, use_cores
from rewardlm.types import Verdict

if TYPE_CHECKING:
    from rewardlm.judges.settings import JudgeServeSettings

ASGIMessage = MutableMapping[str, Any]
Payload = dict[str, Any]
Answer = Callable[[Request], Awaitable[Response]]
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
# What needs no key: it says nothing about anybody, and Google's clients ask for the document without one.
_OPEN = ("/healthz", "/$discovery/rest", "/discovery/v1/apis")
_CLOSE = {"Connection": "close"}
_LONGEST_HEAD = 16_384  # bytes of a request's address and headers
_GONE = 499  # nobody reads it; metrics count it


class JudgeServer:
    """The routes of one server over loaded ``judges``. ``stop`` has it answer what waits and refuse what comes."""

    def __init__(self, judges: ServedJudges, settings: JudgeServeSettings, *, key: str | None = None) -> None:
        self.settings, self.judges = settings, judges
        self._cores = cores()
        self.metrics = Metrics(judges.by_name)
        self.batcher = Batcher(
            {name: judge.scorer for name, judge in judges.by_name.items()},
            room=settings.queue,
            most_texts=settings.batch_texts,
            most_characters=settings.batch_characters,
            watch=self.metrics.watch,
            alone=[name for name, judge in judges.by_name.items() if judge.waits_for_others],
            twins={name: judge.twins for name, judge in judges.by_name.items() if judge.twins},
            enter=self._take_cores,
            reopen={name: judge.reopen for name, judge in judges.by_name.items() if judge.reopen is not None},
        )
        self.app = Door(self._routes(), settings, self.metrics, key)

    def stop(self) -> None:
        """Refuse new texts with 503; those that wait are still scored."""
        self.batcher.stop()

    def give_up(self) -> None:
        """Answer everything that still waits with 503."""
        self.batcher.give_up()

    @property
    def idle(self) -> bool:
        """Whether every text that came has its answer on the way."""
        return self.batcher.idle

    def _routes(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def up(_: FastAPI) -> AsyncIterator[None]:
            self.batcher.start()
            yield
            self.batcher.close()
            # torch keeps the number that was set last for threads that come later, too.
            use_cores(self._cores)

        app = FastAPI(
            title="rewardlm judge serve", lifespan=up, docs_url=None, redoc_url=None, openapi_url=None,
            telemetry=NO_TELEMETRY,
        )  # fmt: skip
        app.add_exception_handler(HTTPException, _no_such_route)
        limits = {"most": self.settings.texts_per_request, "most_bytes": self.settings.text_bytes}

        async def analyze(payload: Payload, named: str | None) -> tuple[Any, ServedJudge]:
            request = perspective.read_analyze(payload)
            judge = self.judges.named(request.judge, request.model, named)
            languages = self.settings.languages
            spans = perspective.spans_of(request, judge, languages, limits["most"])
            found = await self._score(judge, [span.text for span in spans])
            return perspective.analyzed(request, judge, languages, spans, found), judge

        async def suggest(payload: Payload, named: str | None) -> tuple[Any, ServedJudge]:
            request = perspective.read_suggestion(payload)
            judge = self.judges.named(request.judge, request.model, named)
            return perspective.suggested(request), judge

        async def moderate(payload: Payload, named: str | None) -> tuple[Any, ServedJudge]:
            judge = self.judges.named(_text(payload, "judge"), _text(payload, "model"), named)
            found = await self._score(judge, moderations.texts_in(payload, **limits))
            return moderations.moderated(judge, found), judge

        async def classify(payload: Payload, named: str | None) -> tuple[Any, ServedJudge]:
            request, texts = plain.read_classify(payload, **limits)
            judge = self.judges.named(request.judge, request.model, named)
            return plain.classified(request, judge, await self._score(judge, texts)), judge

        async def score(payload: Payload, named: str | None) -> tuple[Any, ServedJudge]:
            request = plain.read_score(payload, **limits)
            judge = self.judges.named(request.judge, request.model, named)
            plain.label_of(request, judge)
            return plain.scored(request, judge, await self._score(judge, request.texts)), judge

        for path, answer in {
            "/v1alpha1/comments:analyze": analyze,
            "/v1alpha1/comments:suggestscore": suggest,
            "/v1/moderations": moderate,
            "/classify": classify,
            "/score": score,
        }.items():
            # Starlette's routes: FastAPI's would look for parameters that none of these has, in every request.
            app.router.add_route(path, self._answering(answer), methods=["POST"])

        @app.get("/$discovery/rest")
        @app.get(f"/discovery/v1/apis/{discovery.NAME}/{discovery.VERSION}/rest")
        async def describe(request: Request) -> Response:
            if request.query_params.get("version", discovery.VERSION) != discovery.VERSION:
                return _json(Refusal(404, f"there is only version {discovery.VERSION}").body("perspective"), 404)
            return _json(discovery.document(str(request.base_url)))

        @app.get("/discovery/v1/apis")
        async def list_apis(request: Request) -> Response:
            return _json(discovery.directory(str(request.base_url)))

        @app.api_route("/healthz", methods=["GET", "HEAD"])
        async def health() -> Response:
            stuck = self.batcher.stuck(self.settings.timeout_seconds)
            if self.batcher.stopping:
                return _json({"status": "stopping"}, 503)
            # While one of several judges is left, the server is of use.
            status = 503 if len(stuck) == len(self.judges.by_name) else 200
            return _json({"status": "stuck" if status == 503 else "ok", **({"stuck": stuck} if stuck else {})}, status)

        @app.get("/judges")
        async def list_judges() -> Response:
            return _json({"judges": [self._describe(judge) for judge in self.judges.by_name.values()]})

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type=CONTENT_TYPE)

        return app

    def _answering(
        self, answer: Callable[[Payload, str | None], Coroutine[Any, Any, tuple[Any, ServedJudge]]]
    ) -> Answer:
        """A route that reads a body, answers in time, and stops where nobody waits any more."""

        async def route(request: Request) -> Response:
            form = form_of(request.scope["path"])
            try:
                payload = await read_json(
                    request, most_bytes=self.settings.body_bytes, seconds=self.settings.body_seconds
                )
                async with asyncio.timeout(self.settings.timeout_seconds):
                    found, judge = await _while_there(request, answer(payload, request.query_params.get("judge")))
                return _json(found, headers=judge.headers)
            except Gone:
                return Response(status_code=_GONE)
            except TimeoutError:
                refusal = Refusal(504, f"no scores within {self.settings.timeout_seconds:g} seconds: try again later")
            except Refusal as error:
                refusal = error
            except Busy as error:
                seconds = min(max(1, math.ceil(error.seconds)), 600)
                refusal = Refusal(
                    429, "too many texts wait: try again later", code="rate_limit_exceeded",
                    headers={"Retry-After": str(seconds)},
                )  # fmt: skip
            except Stopping:
                refusal = Refusal(503, "the server is being stopped", headers={"Retry-After": "10", **_CLOSE})
            except Unusable as error:
                _log(f"{error.judge} can't be used ({error.kind})")
                refusal = Refusal(503, f"the judge {error.judge} can't be used at the moment ({error.kind})")
            except Exception as error:
                _log(_where(error))
                refusal = Refusal(500, "the server failed at this request")
            return _json(refusal.body(form), refusal.status, refusal.headers)

        return route

    def _take_cores(self, judge: str, number: int) -> None:
        """The share of the cores that the thread of this number has for ``judge``: all, where no other may run it."""
        threads = 1 + len(self.judges.by_name[judge].twins)
        use_cores(max(1, self._cores // threads + (number < self._cores % threads)))

    async def _score(self, judge: ServedJudge, texts: Sequence[str]) -> list[Verdict]:
        found = await self.batcher.score(judge.name, texts)
        self.metrics.judged(judge.name, found)
        return found

    def _describe(self, judge: ServedJudge) -> dict[str, Any]:
        names = [alias for alias, name in self.judges.aliases.items() if name == judge.name]
        return {
            **judge.to_dict(),
            "default": judge is self.judges.default,
            "aliases": names,
            "labels": list(judge.labels),
            "attributes": dict(judge.attributes),
            "thresholds": dict(judge.thresholds),
            "languages": list(self.settings.languages),
            "longest_tokens": getattr(judge.scorer, "max_length", None),
            "precision": getattr(judge.scorer, "precision", None),
        }


class Door:
    """Lets in who may ask: addressed to a name of this machine, from no other web site, with the key if there is one.

    Routes that take POST alone are answered past the layers of ``app``: none needs them, and every request would pay.
    What fails behind it is an error in the request's own format. Only the kind and the place of a failure are logged,
    because its message may hold a text.
    """

    def __init__(self, app: FastAPI, settings: JudgeServeSettings, metrics: Metrics, key: str | None) -> None:
        self._app, self._metrics = app, metrics
        self._names = OwnNames(settings.host, settings.hosts)
        self._key = None if key is None else hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        self._routes = {getattr(route, "path", "") for route in app.routes}
        self._posts: dict[str, Answer] = {
            route.path: route.endpoint for route in app.routes if isinstance(route, Route) and route.methods == {"POST"}
        }

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[ASGIMessage]],
        send: Callable[[ASGIMessage], Awaitable[None]],
    ) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, path = time.perf_counter(), 0, scope["path"]

        async def sent(message: ASGIMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.lower().encode() not in there
                ]
            await send(message)

        form = form_of(path)
        try:
            refusal = self._refusal(scope)
            if refusal is None and scope["method"] == "POST" and path in self._posts:
                await (await self._posts[path](Request(scope, receive)))(scope, receive, sent)
            elif refusal is None:
                await self._app(scope, receive, sent)
            else:
                await _json(refusal.body(form), refusal.status, refusal.headers)(scope, receive, sent)
        except Exception as error:
            _log(_where(error))
            if not status:
                await _json(Refusal(500, "the server failed at this request").body(form), 500)(scope, receive, sent)
        finally:
            # Other paths are anybody's invention, and each would be a new row.
            known = path if path in self._routes else "other"
            self._metrics.answered(known, status or _GONE, time.perf_counter() - begun)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Refusal | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        length = len(scope["raw_path"]) + len(scope["query_string"])
        if length + sum(len(name) + len(value) for name, value in scope["headers"]) > _LONGEST_HEAD:
            return Refusal(431, f"the headers are too long: expected at most {_LONGEST_HEAD} bytes", headers=_CLOSE)
        if scope["http_version"] not in ("1.0", "1.1"):
            return Refusal(400, "expected HTTP/1.1", headers=_CLOSE)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # Another server before this one may have gone by the other of the two (request smuggling).
            return Refusal(400, "the request has a length and a transfer encoding: expected one", headers=_CLOSE)
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or hosts[0].decode("latin-1") not in self._names:
            return Refusal(421, "this server answers to its own address only: see the setting hosts")
        # Browsers say which site asks. A request that doesn't say comes from no web page.
        site = headers.get(b"sec-fetch-site", [b""])[0]
        if site not in (b"", b"same-origin", b"none"):
            return Refusal(403, "a page of another site may not ask this server")
        # They don't say so to a server without encryption that isn't on their own machine, but name the page's origin.
        origins = [urlsplit(origin.decode("latin-1")).netloc for origin in headers.get(b"origin", [])]
        if any(origin.lower() != hosts[0].decode("latin-1").lower() for origin in origins):
            return Refusal(403, "a page of another site may not ask this server")
        if self._key is None or scope["path"].startswith(_OPEN):
            return None
        given = _keys_in(headers, scope["query_string"])
        if not given:
            return Refusal(
                403 if form_of(scope["path"]) == "perspective" else 401,
                "The request is missing a valid API key.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # Hashes have one length, and the comparison takes the same time wherever they differ.
        if not any(hmac.compare_digest(hashlib.sha256(one).digest(), self._key) for one in given):
            perspectives = form_of(scope["path"]) == "perspective"
            return Refusal(
                400 if perspectives else 401,
                "API key not valid. Please pass a valid API key.",
                reason="API_KEY_INVALID",
                code="invalid_api_key",
                headers={} if perspectives else {"WWW-Authenticate": "Bearer"},
            )
        return None


async def _while_there(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``answer``, which is cancelled if who asked hangs up: raises Gone then."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        await _hung_up(request)
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await answer
    except asyncio.CancelledError:
        # A cancellation of anybody else's, such as that of a time-out, passes through.
        if gone and task.uncancel() == 0:
            raise Gone from None
        raise
    finally:
        watcher.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _keys_in(headers: dict[bytes, list[bytes]], query: bytes) -> list[bytes]:
    """The keys that a request brings, wherever a client of one of the formats puts it."""
    found = [*headers.get(b"x-goog-api-key", []), *headers.get(b"x-api-key", [])]
    for value in headers.get(b"authorization", []):
        scheme, _, token = value.partition(b" ")
        if scheme.lower() == b"bearer":
            found.append(token.strip())
    for part in query.split(b"&"):
        name, _, key = part.partition(b"=")
        if name == b"key" and key:
            found.append(unquote_to_bytes(key.replace(b"+", b" ")))
    return found


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    form: Format = form_of(request.url.path)
    return _json(of_status(error.status_code).body(form), error.status_code, dict(error.headers or {}))


def _json(found: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Surrogates may come from a path that is quoted nowhere else; ASCII holds them all.
    data = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
    return Response(data, status_code=status, media_type="application/json", headers=headers)


def _text(payload: Payload, name: str) -> str | None:
    value = payload.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"expected {name} to be a text", param=name, code="invalid_type")
    return value


def _where(error: BaseException) -> str:
    """The kind of an error and where it was raised; never its message, which may hold a text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"a request failed: {type(error).__name__}{place}"


def _log(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
