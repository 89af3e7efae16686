"""Settings from YAML, flags and ``key.sub=value``; all mistakes in them are reported at once, with their places."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rewardlm.config.describe import describe, leaves
from rewardlm.config.keys import NAMED
from rewardlm.config.mistakes import mistakes_in
from rewardlm.config.section import Section
from rewardlm.config.yaml_files import Places, read_with_places, value_of
from rewardlm.errors import ConfigError

S = TypeVar("S", bound=Section)


def build(
    kind: type[S],
    *,
    base: Path | None = None,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> S:
    """Settings of ``kind`` from defaults, the YAML files ``base`` and ``file``, flags and overrides. Later ones win.

    ``flags`` may use dotted keys; None means that the flag was not given. Raises one ConfigError for all mistakes.
    """
    tree: dict[str, Any] = {}
    places: Places = {}
    wrong: list[str] = []
    # Copied: a mapping in a mapping is set in place.
    merge(tree, copy.deepcopy(dict(defaults or {})))
    for path in (base, file):
        if path is not None:
            read, there = read_with_places(path)
            merge(tree, read)
            places.update(there)
    for key, value in (flags or {}).items():
        if value is not None:
            _set(tree, key, value, wrong)
            places[key] = ""
            NAMED.note({key: value})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            wrong.append(f"override {override!r}: expected key.sub=value, for example generation.top_p=0.9")
            continue
        value = value_of(text)
        _set(tree, key, value, wrong)
        places[key] = ""
        NAMED.note({key: value})
    return _checked(kind, tree, places, wrong, named={key for key, value in (flags or {}).items() if value is not None})


def validate(kind: type[S], tree: Mapping[str, Any]) -> S:
    """``tree`` as settings of ``kind``. Raises one ConfigError for everything that is wrong with it."""
    return _checked(kind, tree, {}, [])


def _checked(
    kind: type[S], tree: Mapping[str, Any], places: Places, wrong: Sequence[str], named: set[str] | None = None
) -> S:
    """``places``: where settings were given; ``named``: those that a flag gave; ``wrong``: mistakes found before."""
    failed, found = None, None
    try:
        found = kind.model_validate(tree)
    except ValidationError as error:
        failed = error
    # Stand-ins may have replaced what was typed, so the result is checked.
    given = {name: getattr(found, name) for name in kind.model_fields} if found is not None else tree
    mistakes = mistakes_in(kind, failed, given)
    if found is not None and not mistakes and not wrong:
        return found
    flags = {one.key: one.flag_name for one in leaves(describe(kind)) if one.key in (named or ()) and one.flag}
    ordered = sorted(mistakes.items(), key=lambda one: _line_of(_place(one[0], places)))
    lines = [_at(key, words, _place(key, places), flags.get(key)) for key, words in ordered]
    raise ConfigError.of([*wrong, *lines], "{} settings are wrong")


def _at(key: str, words: str, place: str, flag: str | None) -> str:
    if flag is not None:
        words = words.replace(f"setting {key!r}", f"{flag} (setting {key!r})", 1)
    return f"{place}: {words}" if place else words


def _place(key: str, places: Places) -> str:
    """Where ``key`` was given: its own place, else that of the section above it."""
    while key:
        if key in places:
            return places[key]
        key = key.rpartition(".")[0]
    return ""


def _line_of(place: str) -> int:
    number = place.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Put ``other`` over ``tree``, section by section, in place."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = dict(value) if isinstance(value, Mapping) else value


def _set(tree: dict[str, Any], key: str, value: Any, wrong: list[str]) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            wrong.append(f"override {key}: {parent!r} is a value, not a section")
            return
        tree = below
    tree[last] = value
