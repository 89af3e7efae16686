"""Requests to judges and models over HTTP: sends them, tries again, waits, and never shows a key.

It tells failures apart, because a run goes on differently after each:

* a temporary failure is tried again, and then given up for this text (Unanswered);
* a refusal is final (Refused);
* an answer that can't be read is kept as it came (Malformed);
* if the service as a whole can't be used (no key, gone, "come back tomorrow"), a ServiceError ends the run. The same
  command resumes it later.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import json
import logging
import os
import queue
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import tenacity

from rewardlm.config import ServiceSettings, secrets_in_url, without_secrets
from rewardlm.config.keys import credentials_file, host_of, is_here, may_be_read_along, may_get, may_leave
from rewardlm.errors import ServiceError

# Worth another try: too many requests, a time-out on the server's side, any other server error.
_PASSING = {408, 409, 425, 429, *range(500, 600)}
_KEPT_CHARACTERS = 2_000
# Longer than any rating or generated text, and short enough that all answers under way fit into memory.
_LONGEST_BODY = 16 * 2**20
# httpx logs every URL, and a user may have put a key into one.
logging.getLogger("httpx").setLevel(logging.WARNING)

T = TypeVar("T")
R = TypeVar("R")


class Refused(Exception):
    """The service will never answer this request (400, 413, 422, …); ``body`` is its JSON where there is one."""

    def __init__(self, status: int, message: str, body: Any = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.body = body


class Unanswered(Exception):
    """No answer after all tries: 429, 5xx, a time-out, a connection that was reset."""


class Malformed(Exception):
    """An answer of status 200 that isn't what was expected; the message holds what came, cut to 2,000 characters."""


class _Passing(Exception):
    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def check_address(settings: ServiceSettings, *, what: str, section: str) -> None:
    """Raise ServiceError for an address that isn't safe to ask: http to another machine, and one that a file alone
    wants to send a key of the user's to (``rewardlm.config.keys``). Without an address nothing is wrong.
    """
    if settings.url is None:
        return
    url, variable = settings.url.get_secret_value(), settings.key_variable
    address = without_secrets(url)
    if url.lower().startswith("http:") and not is_here(url):
        open_to_all = f"{what}: everybody on the way to {address} could read the texts and the key, because it is http"
        if not settings.plain_http:
            raise ServiceError(f"{open_to_all}: give an address with https, or {section}.plain_http=true")
        if not may_be_read_along(url):
            raise ServiceError(
                f"{open_to_all}, and only a file asks for it, which may come from others: give an address with https, "
                f"or say {section}.plain_http=true yourself (in an experiment below its stage)"
            )
    if settings.key:
        if not may_get(settings.key.get_secret_value(), url):
            raise ServiceError(
                f"{what}: the key that you gave is not sent to {host_of(url)}, which only a file has named; if you "
                f"trust it, name it yourself: {section}.url={address} (in an experiment below its stage)"
            )
        return
    default = type(settings).model_fields["key_variable"].default
    if variable == default or not os.environ.get(variable, "").strip() or may_leave(variable, url):
        return
    raise ServiceError(
        f"{what}: {variable} is not sent to {host_of(url)}, because you haven't named them yourself, and files may "
        f"come from others; {_how_to_name(variable, address, section)}"
    )


def key_of(settings: ServiceSettings, url: str) -> str:
    """The key that this address gets, '' for none: that of the settings, else that of the environment if it may go
    there.
    """
    if settings.key:
        return settings.key.get_secret_value().strip()
    return os.environ.get(settings.key_variable, "").strip() if may_leave(settings.key_variable, url) else ""


def _how_to_name(variable: str, address: str, section: str) -> str:
    return (
        f"if you trust it, name both yourself ({section}.url={address} {section}.key_variable={variable}, in an "
        f"experiment below its stage; in Python: {section}.key), or write '{host_of(address)}: {variable}' into "
        f"{credentials_file()}"
    )


class Service:
    """One service under ``settings.url``, for any number of threads.

    ``what`` names it in messages, and ``section`` its settings; ``gone`` tells the user what to do if it doesn't exist
    (any more). The key is sent in ``key_header``; in ``Authorization`` it is a bearer token, as OpenAI has it. Raises
    ServiceError where the key may not go there, or the address is no safe one.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        what: str,
        section: str,
        gone: str,
        key_header: str = "Authorization",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if settings.url is None:
            raise ServiceError(f"{what}: no address; give one, for example http://127.0.0.1:8000/v1")
        check_address(settings, what=what, section=section)
        self.what = what
        self.settings = settings
        self.address = without_secrets(settings.url.get_secret_value())
        self._section, self._gone = section, gone
        self._base = httpx.URL(settings.url.get_secret_value())
        key = key_of(settings, settings.url.get_secret_value())
        if not (key.isascii() and key.isprintable()):
            # Checked here, because the exceptions of libraries show the value.
            raise ServiceError(f"{what}: the key has characters that no HTTP header may have: copy it again")
        in_url = secrets_in_url(settings.url.get_secret_value())
        self.has_key = bool(key or in_url)
        # In every form: as they are, as they are quoted in an address, and as a header encodes them.
        self._secrets = {form for secret in (key, *in_url) for form in (secret, urllib.parse.quote(secret)) if form}
        if self._base.userinfo:
            user_and_password = f"{self._base.username}:{self._base.password}"
            self._secrets.add(base64.b64encode(user_and_password.encode()).decode())
        sent = dict(headers or {})
        if key:
            # Else the user and password in the address would be sent in place of the key.
            self._base = self._base.copy_with(userinfo=b"")
            sent[key_header] = f"Bearer {key}" if key_header == "Authorization" else key
        # As many connections as requests under way: waiting for a free one in a pool would count as a time-out.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency)
        self._client = httpx.Client(timeout=settings.timeout_seconds, headers=sent, limits=limits)
        self._lock = threading.Lock()
        self._next = 0.0
        self._asked = False
        self._closed = threading.Event()

    def post(self, path: str, payload: Mapping[str, Any]) -> Any:
        """The JSON that the service answers to ``payload``.

        Raises Refused, Unanswered, Malformed (about this request) or ServiceError (about the service).
        """
        return self._ask("POST", path, json.dumps(payload).encode())

    def get(self, path: str) -> Any:
        """As ``post``, but GET."""
        return self._ask("GET", path, b"")

    def each(self, ask: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield (index, ``ask(item)``) of every item as answers come, with ``concurrency`` of them under way.

        The very first request goes alone, so that a service that can't be used is asked once. What ``ask`` raises, and
        an interrupt, pass through at once: nothing more is asked, and requests under way are not waited for. After a
        ServiceError or an interrupt this service is closed.
        """
        if self._closed.is_set():
            raise ServiceError(f"{self.what}: given up before; start again")
        try:
            first = 0 if self._asked or not items else 1
            for index in range(first):
                yield index, ask(items[index])
            yield from self._at_once(ask, items, first)
        except (ServiceError, KeyboardInterrupt):
            self.close()
            raise

    def _at_once(self, ask: Callable[[T], R], items: Sequence[T], first: int) -> Iterator[tuple[int, R]]:
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(first, len(items)):
            todo.put(index)
        done: queue.SimpleQueue[tuple[int, R] | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            try:
                while not stopped.is_set():
                    index = todo.get_nowait()
                    done.put((index, ask(items[index])))
            except queue.Empty:
                return
            except BaseException as error:
                done.put(error)

        # Daemons: an interrupted command must not wait for a server that is silent.
        for _ in range(min(self.settings.concurrency, len(items) - first)):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in range(first, len(items)):
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stopped.set()

    def close(self) -> None:
        """Give up what is under way: waiting threads end with Unanswered."""
        self._closed.set()
        self._client.close()

    def scrub(self, text: str) -> str:
        """``text`` on one line and without the secrets: services like to repeat a wrong key in their complaint."""
        # The longest first: one may be a part of another.
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "[key]")
        return " ".join(text.split())

    def shown(self, body: Any) -> str:
        """What came, JSON or text, made fit for a reason: without the secrets, on one line, cut."""
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        return self.scrub(text)[:_KEPT_CHARACTERS]

    def _ask(self, method: str, path: str, content: bytes) -> Any:
        url = self._base.copy_with(path=f"{self._base.path.rstrip('/')}/{path.lstrip('/')}")
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.settings.tries),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_Passing),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._once, method, url, content)
        except _Passing as error:
            raise Unanswered(f"{error} (tried {self.settings.tries} times)") from None

    def _once(self, method: str, url: httpx.URL, content: bytes) -> Any:
        self._take_turn()
        self._asked = True
        try:
            response, body = self._fetch(method, url, content)
        except httpx.TimeoutException:
            raise _Passing(f"no answer within {self.settings.timeout_seconds:g} s") from None
        except httpx.DecodingError as error:
            raise Malformed(f"can't be decoded: {self.shown(str(error))}") from None
        except (httpx.TransportError, RuntimeError, OSError) as error:
            if self._closed.is_set():
                raise Unanswered("given up") from None
            if isinstance(error, RuntimeError):
                raise
            raise _Passing(self.shown(str(error)) or type(error).__name__) from None
        if response.is_success:
            return self._read(body)
        message = self._complaint(response, body)
        if response.status_code in _PASSING:
            raise _Passing(f"HTTP {response.status_code}: {message}", _retry_after(response))
        if response.status_code in (401, 403):
            variable = self.settings.key_variable
            if self.has_key or not os.environ.get(variable, "").strip():
                key = "the key was refused" if self.has_key else "it needs a key"
                todo = f"set the environment variable {variable}"
            else:
                key = f"it needs a key, and {variable} was not sent to a host that you haven't named"
                todo = _how_to_name(variable, self.address, self._section)
            raise ServiceError(f"{self.what} at {self.address}: {key} (HTTP {response.status_code}: {message}); {todo}")
        if response.status_code in (404, 410):
            raise ServiceError(
                f"{self.what}: nothing at {self.address}/{url.path.rpartition('/')[2]} (HTTP {response.status_code}: "
                f"{message}); {self._gone}"
            )
        if response.is_redirect:
            raise ServiceError(
                f"{self.what}: {self.address} redirects elsewhere (HTTP {response.status_code}): give "
                "the address that it moved to"
            )
        raise Refused(response.status_code, message, _json_or_none(body))

    def _fetch(self, method: str, url: httpx.URL, content: bytes) -> tuple[httpx.Response, bytes]:
        """The response and its body. httpx times single reads only, so a server that drips would never time out."""
        until = time.monotonic() + self.settings.timeout_seconds
        headers = {"Content-Type": "application/json"} if content else {}
        body = bytearray()
        with self._client.stream(method, url, content=content or None, headers=headers) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("too slow")
                if len(body) > _LONGEST_BODY:
                    raise Malformed(f"an answer of more than {_LONGEST_BODY:,} bytes: {self.shown(_text(body[:4000]))}")
        return response, bytes(body)

    def _read(self, body: bytes) -> Any:
        try:
            # NaN and Infinity are not JSON, but Python reads them. The caller checks the numbers, and keeps the rest.
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Malformed(f"not JSON: {self.shown(_text(body))!r}") from None

    def _complaint(self, response: httpx.Response, body: bytes) -> str:
        """What the service says is wrong, on one short line."""
        said = _json_or_none(body)
        found = said.get("error", said.get("message", said.get("detail"))) if isinstance(said, dict) else None
        if isinstance(found, dict):
            found = found.get("message")
        text = found if isinstance(found, str) else _text(body)
        return self.shown(text)[:200] or response.reason_phrase

    def _take_turn(self) -> None:
        """Wait until ``requests_per_second``, and what the service asked for last, allow another request."""
        rate = self.settings.requests_per_second
        with self._lock:
            mine = max(self._next, time.monotonic())
            if rate is not None:
                self._next = mine + 1 / rate
        self._sleep(mine - time.monotonic())

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """What the service asked for, else a random time below 1, 2, 4, … times the base (full jitter)."""
        error = state.outcome.exception() if state.outcome else None
        after = error.after if isinstance(error, _Passing) else None
        if after is None:
            jittered = tenacity.wait_random_exponential(
                multiplier=self.settings.backoff_seconds, max=self.settings.longest_wait_seconds
            )
            return float(jittered(state))
        if after > self.settings.longest_wait_seconds:
            raise ServiceError(
                f"{self.what} at {self.address} asks us to come back in {after:.0f} s ({error}): what is done is kept; "
                "run the same command again later"
            )
        with self._lock:
            # It asks all threads to wait.
            self._next = max(self._next, time.monotonic() + after)
        return after

    def _sleep(self, seconds: float) -> None:
        if seconds > 0 and self._closed.wait(seconds):
            raise Unanswered("given up")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds until the service wants to be asked again; None if it doesn't say, or not readably."""
    value = response.headers.get("Retry-After", "").strip()
    with contextlib.suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else None
    with contextlib.suppress(ValueError):
        then = email.utils.parsedate_to_datetime(value)
        then = then if then.tzinfo else then.replace(tzinfo=datetime.UTC)
        return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
    return None


def _text(body: bytes | bytearray) -> str:
    return body.decode("utf-8", "replace")


def _json_or_none(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def reachable(url: str, *, seconds: float = 3.0) -> str:
    """Whether anything answers at ``url``, in words; no key is sent."""
    try:
        httpx.get(without_secrets(url), timeout=seconds)
    except httpx.HTTPError as error:
        return f"not reachable ({type(error).__name__})"
    return "reachable"
