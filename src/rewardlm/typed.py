"""JSON that somebody else may have written, held against the types that it should have: one line says what is wrong.

``pydantic`` does this for settings and results that are models. Records are plain dictionaries, described by TypedDicts
and dataclasses, which need no class of their own to be read, and keep the keys that only a newer version knows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Collection, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from rewardlm.types import is_text

# Hashes of texts are numbers without a sign.
_LEAST, _LARGEST = -(2**63), 2**64
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def mistake(kind: Any, value: object, *, optional: Collection[str] = ()) -> str | None:
    """What of ``value`` isn't as the type ``kind`` says, as ``a.b.0 is 'x', expected a number``; None if nothing is.

    Keys that a TypedDict or dataclass doesn't have are allowed, and so is a lack of those in ``optional``, at any
    depth. Numbers must be finite and fit into 64 bits, and no text may hold half a character, wherever they are.
    """
    try:
        found = _mistake(kind, value, frozenset(optional))
    except RecursionError:
        return "it is nested too deep, expected a few levels"
    if found is None:
        return None
    path, said = found
    where = ".".join(part if len(part) <= 60 else part[:59] + "…" for part in path)
    return f"{where or 'it'} {said}"


def shown(value: object) -> str:
    """A value on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def in_words(kind: Any) -> str:
    """``a whole number or null``."""
    kind, _ = _bare(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, parts)))
    if origin is tuple and Ellipsis not in parts:
        return f"a list of {len(parts)}"
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return "a list"
    return "an object"


# The path to what is wrong, innermost last, and the rest of the sentence.
_Found = tuple[tuple[str, ...], str] | None


def _mistake(kind: Any, value: object, optional: frozenset[str]) -> _Found:
    kind, _ = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return _anything(value)
    if kind in _WORDS:
        return None if _is(kind, value) else _not(kind, value)
    if origin is Literal:
        return None if any(type(value) is type(part) and value == part for part in parts) else _not(kind, value)
    if origin in (Union, types.UnionType):
        found = [_mistake(part, value, optional) for part in parts]
        if None in found:
            return None
        # Of several types, the one that is wrong deeper inside was meant.
        deepest = max((one for one in found if one is not None), key=lambda one: len(one[0]))
        return deepest if deepest[0] else _not(kind, value)
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _object(kind, value, optional)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(kind, parts, value, optional)
    if origin is tuple and Ellipsis not in parts:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            return _not(kind, value)
        return _first((str(at), _mistake(part, one, optional)) for at, (part, one) in enumerate(zip(parts, value)))  # noqa: B905
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, list | tuple):
            return _not(kind, value)
        return _first((str(at), _mistake(parts[0], one, optional)) for at, one in enumerate(value))
    raise TypeError(f"no JSON has the type {kind}")


def _object(kind: Any, value: object, optional: frozenset[str]) -> _Found:
    if not isinstance(value, dict):
        return _not(kind, value)
    for name, (hint, needed) in _fields(kind).items():
        if name not in value:
            if needed and name not in optional:
                return (name,), f"is nothing, expected {in_words(hint)}"
        elif (found := _mistake(hint, value[name], optional)) is not None:
            return (name, *found[0]), found[1]
    known = _fields(kind)
    return _first((str(name), _anything(one)) for name, one in value.items() if name not in known) or _keys(value)


def _mapping(kind: Any, parts: Sequence[Any], value: object, optional: frozenset[str]) -> _Found:
    if not isinstance(value, dict):
        return _not(kind, value)
    return _keys(value) or _first((str(name), _mistake(parts[1], one, optional)) for name, one in value.items())


def _anything(value: object) -> _Found:
    if isinstance(value, dict):
        return _keys(value) or _first((str(name), _anything(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return _first((str(at), _anything(one)) for at, one in enumerate(value))
    if value is None or isinstance(value, bool):
        return None
    kind: Any = str if isinstance(value, str) else float
    return None if _is(kind, value) else _not(kind, value)


def _keys(value: Mapping[Any, object]) -> _Found:
    strange = next((name for name in value if not is_text(name)), None)
    return None if strange is None else ((), f"has the key {shown(strange)}, which holds half a character")


def _first(found: Any) -> _Found:
    for name, one in found:
        if one is not None:
            return (name, *one[0]), one[1]
    return None


def _not(kind: Any, value: object) -> _Found:
    if isinstance(value, str) and not is_text(value):
        return (), f"is {shown(value)}, which holds half a character"
    # Python can't write an integer of thousands of digits.
    is_huge = isinstance(value, int) and not _LEAST <= value < _LARGEST
    return (), f"is {'a huge number' if is_huge else shown(value)}, expected {in_words(kind)}"


def _is(kind: Any, value: object) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return kind is bool
    if kind is float:
        return (isinstance(value, int) and _LEAST <= value < _LARGEST) or (
            isinstance(value, float) and math.isfinite(value)
        )
    if kind is int:
        return isinstance(value, int) and _LEAST <= value < -_LEAST
    return isinstance(value, kind) and (kind is not str or is_text(value))  # type: ignore[arg-type]


def _bare(kind: Any) -> tuple[Any, bool | None]:
    """The type without its qualifiers, and whether these say that it is required."""
    required = None
    while (origin := get_origin(kind)) in (Required, NotRequired, Annotated):
        required = required if origin is Annotated else origin is Required
        kind = get_args(kind)[0]
    return kind, required


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The fields of a TypedDict or dataclass: their types, and whether they must be there."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        # Where annotations are texts, Python 3.11 doesn't see NotRequired and Required in them.
        found = {name: _bare(hint) for name, hint in hints.items()}
        return {
            name: (bare, name in kind.__required_keys__ if needed is None else needed)
            for name, (bare, needed) in found.items()
        }
    return {
        field.name: (
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    }
