"""JSON that somebody else may have written, held against the types that it should have: one line says what is wrong.

Records are plain dictionaries, described by TypedDicts, and keep the keys that only a newer version knows. pydantic
checks their types; what it lets through, this module looks for: numbers without an end, and halves of characters.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rewardlm.types import is_text

# Hashes of texts are numbers without a sign.
_LEAST, _LARGEST = -(2**63), 2**64
_EXPECTED = {
    "string_type": "a text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "tuple_type": "a list", "dict_type": "an object",
    "none_required": "null",
}  # fmt: skip
_Path = tuple[int | str, ...]


def mistake(kind: Any, value: object) -> str | None:
    """What of ``value`` isn't as the type ``kind`` says, as ``a.b.0 is 'x', expected a number``; None if nothing is.

    Keys that a TypedDict doesn't have are allowed. Numbers must be finite and fit into 64 bits, and no text may hold
    half a character, wherever they are.
    """
    try:
        found = _unfit(value) or _of_another_type(kind, value)
    except RecursionError:
        return "it is nested too deep, expected a few levels"
    if found is None:
        return None
    path, said = found
    where = ".".join(part if len(part) <= 60 else part[:59] + "…" for part in map(str, path))
    return f"{where or 'it'} {said}"


def shown(value: object) -> str:
    """A value as an error message shows it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _of_another_type(kind: Any, value: object) -> tuple[_Path, str] | None:
    try:
        # As JSON, in which a list may stand for a tuple.
        _adapter(kind).validate_json(json.dumps([value]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = first["loc"][1:]
        if first["type"] == "missing":
            return path, "is missing"
        expected = _EXPECTED.get(first["type"]) or first.get("ctx", {}).get("expected") or first["msg"]
        return path, f"is {shown(first['input'])}, expected {expected}"
    return None


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Without conversions: "1" is no number, and true none either. In a list, because only what holds a TypedDict can
    be told so.
    """
    return TypeAdapter(list[kind], config=ConfigDict(strict=True))


def _unfit(value: object) -> tuple[_Path, str] | None:
    """Where in a value is a number or a text that nothing of ours can store."""
    if isinstance(value, str):
        return None if is_text(value) else ((), f"is {shown(value)}, which holds half a character")
    if isinstance(value, float):
        return None if math.isfinite(value) else ((), f"is {value}, expected a number")
    if isinstance(value, int):
        # Python can't write an integer of thousands of digits.
        return None if _LEAST <= value < _LARGEST else ((), "is a huge number, expected a number")
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
        if (strange := next((name for name in value if not is_text(name)), None)) is not None:
            return (), f"has the key {shown(strange)}, which holds half a character"
    elif isinstance(value, list | tuple):
        inside = enumerate(value)
    for name, one in inside:
        if (found := _unfit(one)) is not None:
            return (name, *found[0]), found[1]
    return None
