"""Settings from YAML, flags and ``key.sub=value``; what is wrong with them, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rewardlm.config.section import Section
from rewardlm.errors import ConfigError

S = TypeVar("S", bound=Section)


def build(
    kind: type[S],
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> S:
    """Settings of ``kind`` from defaults, YAML file, flags and overrides, the later winning.

    ``flags`` may use dotted keys; None means that the flag was not given. Raises ConfigError in one line.
    """
    tree: dict[str, Any] = {}
    merge(tree, defaults or {})
    if file is not None:
        merge(tree, read_yaml(file))
    for key, value in (flags or {}).items():
        if value is not None:
            _set(tree, key, value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected key.sub=value, for example generation.top_p=0.9")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, dict) and not text.lstrip().startswith("{"):
            value = text  # chat.user=User: is a text that ends with a colon
        _set(tree, key, _number(value))
    return validate(kind, tree)


def validate(kind: type[S], tree: Mapping[str, Any]) -> S:
    """``tree`` as settings of ``kind``; the first thing wrong with it is a ConfigError in one line."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(kind, error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Raises ConfigError naming file and line."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    try:
        numbers: dict[str, Any] = _numbers(tree)
    except RecursionError:
        raise ConfigError(f"{path}: an anchor (&) holds its own alias (*)") from None
    return numbers


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


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {key}: {parent!r} is a value, not a section")
        tree = below
    tree[last] = value


def _explain(kind: type[Section], error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind)
        near = difflib.get_close_matches(where, known, n=1)
        # How services are asked is a chapter of its own.
        listed = dict.fromkeys(re.sub(r"^(server|services)\..*", r"\1.…", name) for name in known)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(listed)}"
        return f"unknown setting {where!r}: {hint}{more}"
    if first["type"] == "missing":
        return f"setting {where!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    prefix = f"setting {where!r}: " if where else ""
    # What was meant to be a key, or an address that may hold one, is not repeated.
    places = {"key", "url", "server", "services", "perspective", "endpoint", "endpoints"}
    secret = bool(places & {str(part) for part in first["loc"]})
    got = f", got {first['input']!r}" if where and not isinstance(first["input"], dict) and not secret else ""
    return f"{prefix}{message}{got}{more}"


def _known_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _known_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys
