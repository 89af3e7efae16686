"""Reads a request's body as JSON, and distrusts it: its size, its pace, its encoding, its nesting, its numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from starlette.requests import ClientDisconnect

from rewardlm.serving.refusals import Refusal

M = TypeVar("M", bound="RequestPart")


class RequestPart(BaseModel):
    """A JSON object that a request holds: no other keys than these, no other types. Keys are camelCase or snake_case,
    as in every Google API.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class Gone(Exception):
    """Who asked has hung up: nobody is left to answer."""


async def read_json(request: Request, *, most_bytes: int, seconds: float) -> dict[str, Any]:
    """The object that the body is; an empty body is an empty object, as Google's servers take it.

    Raises Refusal for anything else, and Gone.
    """
    _check_headers(request.headers, most_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise Refusal(
            408, f"the body did not come within {seconds:g} seconds", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Gone from None
    return parse(bytes(body))


def parse(body: bytes) -> dict[str, Any]:
    """The object that ``body`` is. Raises Refusal where it isn't one in strict JSON and UTF-8 (RFC 8259)."""
    if not body.strip():
        return {}
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_once_each)
        found = _without_nulls(found)
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        # The message names a place and never what stands there.
        raise _malformed(f"{error.msg}, line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        # Our own, and Python's about numbers of thousands of digits.
        raise _malformed(str(error) if isinstance(error, _Strange) else "a number is too long") from None
    if not isinstance(found, dict):
        raise _malformed("expected an object")
    return found


def read_as(kind: type[M], payload: Mapping[str, Any]) -> M:
    """``payload`` as ``kind``. Raises Refusal, in the words of Google's servers, with the first thing that is wrong."""
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        *above, last = [str(part)[:60] for part in first["loc"]] or [""]
        if first["type"] == "extra_forbidden":
            place = f" at '{'.'.join(above)}'" if above else ""
            raise _malformed(f'Unknown name "{last}"{place}: Cannot find field.') from None
        message = f"Invalid value at '{'.'.join([*above, last])}': {first['msg']}"
        raise Refusal(400, message, error_type="INVALID_REQUEST", code="invalid_type", param=last or None) from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None


def check_text(text: str, most_bytes: int | None, what: str) -> str:
    """``text``. Raises Refusal if it is too long, or holds half of a surrogate pair, which is no character."""
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise Refusal(
            400, f"{what} holds half of a surrogate pair: expected whole characters", error_type="INVALID_REQUEST"
        ) from None
    if most_bytes is not None and length > most_bytes:
        raise Refusal(400, f"{what} has {length} bytes: expected at most {most_bytes}", code="string_above_max_length")
    return text


class _Strange(ValueError):
    """Something that json.loads takes, and no JSON is."""


def _refuse_constant(name: str) -> None:
    raise _Strange(f"{name} is no number in JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers of one body would each take another value: what one checks, the other wouldn't use.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Strange("a key stands twice in one object")
    return found


def _without_nulls(value: Any) -> Any:
    """null is how a value says that it isn't there."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _check_headers(headers: Mapping[str, str], most_bytes: int) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # A body of a kilobyte may hold a gigabyte.
        raise Refusal(415, "the body is compressed: send it as it is", headers={"Accept-Encoding": "identity"})
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        # A page of another site may send a form or plain text without asking; JSON it may not.
        raise Refusal(415, "expected Content-Type: application/json")
    charset = _charset(parameters.split(";"))
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Refusal(415, "expected JSON in UTF-8")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > most_bytes):
        raise _too_large(most_bytes)


def _charset(parameters: Iterable[str]) -> str:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return value.strip().strip('"')
    return ""


def _too_large(most_bytes: int) -> Refusal:
    # The connection stays open for a while, and what still comes is thrown away: a client that writes all before it
    # reads would otherwise see a broken connection instead of this.
    return Refusal(413, f"the body is too large: expected at most {most_bytes} bytes")


def _malformed(why: str) -> Refusal:
    return Refusal(
        400, f"Invalid JSON payload received. {why}", error_type="INVALID_REQUEST", code="invalid_request_body"
    )
