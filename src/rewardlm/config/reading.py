"""Settings from YAML, flags and ``key.sub=value``; all mistakes in them are reported at once, with their places."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rewardlm.config.describe import describe, leaves
from rewardlm.config.mistakes import mistakes_in
from rewardlm.config.section import Section
from rewardlm.errors import ConfigError

S = TypeVar("S", bound=Section)
# Where a setting was given, by its dotted key: "e.yaml, line 3", or the flag.
Places = dict[str, str]


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
            read, there = _read(path)
            merge(tree, read)
            places.update(there)
    for key, value in (flags or {}).items():
        if value is not None:
            _set(tree, key, value, wrong)
            places[key] = ""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            wrong.append(f"override {override!r}: expected key.sub=value, for example generation.top_p=0.9")
            continue
        _set(tree, key, _value(text), wrong)
        places[key] = ""
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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Raises ConfigError naming file and line."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    """A YAML file as a dict, and the line of every key. Raises ConfigError as ``read_yaml`` does."""
    places: Places = {}
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            tree = loader.construct_document(node) if node is not None else None  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory: a YAML file is needed") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}{where}: not YAML ({problem})") from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    try:
        numbers: dict[str, Any] = _numbers(tree)
        twice = _note_lines(node, path, "", places)
    except RecursionError:
        raise ConfigError(f"{path}: an anchor (&) holds its own alias (*)") from None
    if twice:
        raise ConfigError.of(twice, "{} keys appear twice")
    return numbers, places


def _note_lines(node: yaml.Node | None, path: Path, prefix: str, places: Places) -> list[str]:
    """Put the line of every key into ``places``; returns a sentence for each key that appears twice in one section."""
    twice: list[str] = []
    if not isinstance(node, yaml.MappingNode):
        return twice
    here: Places = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        name, where = f"{prefix}{key.value}", f"{path}, line {key.start_mark.line + 1}"
        if name in here:
            twice.append(f"{where}: {name!r} appears twice (also {here[name].rpartition(', ')[2]}): keep one of them")
        here[name] = where
        twice += _note_lines(value, path, f"{name}.", places)
    places.update(here)
    return twice


def _value(text: str) -> Any:
    """The value of an override, read as YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text  # chat.user=User: is a text that ends with a colon
    return _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 3e-4 as text, because it wants a dot in the mantissa; people write it without.
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value.strip()[:1].isdigit() else value
        except ValueError:
            return value
    return value


def _numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_numbers(value) for value in tree]
    return _number(tree)


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
