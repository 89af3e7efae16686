"""Reads YAML that may come from a stranger: what it would become in memory is counted before it is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rewardlm.errors import ConfigError

# Where a setting was given, by its dotted key: "e.yaml, line 3", or "" for the command line.
Places = dict[str, str]

# More than any configuration needs. Aliases count as often as they appear: nine lines can stand for 10^9 values.
_MOST_BYTES, _MOST_VALUES, _DEEPEST, _MOST_DIGITS = 200_000, 100_000, 100, 100
_MOST_BRACKETS = 1_000
_KINDS = {"int": "integer", "float": "number", "timestamp": "date", "bool": "yes or no", "binary": "base64"}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Raises ConfigError naming file and line."""
    return read_with_places(path)[0]


def read_with_places(path: Path) -> tuple[dict[str, Any], Places]:
    """A YAML file as a dict, and the line of every key. Raises ConfigError as ``read_yaml`` does."""
    places: Places = {}
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory: a YAML file is needed") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror})") from None
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{path}: more than {_MOST_BYTES // 1000} kB: expected a file of settings")
    try:
        node, tree = parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ConfigError(f"{path}{where}: not YAML ({problem})") from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, got {type(tree).__name__}")
    numbers: dict[str, Any] = _numbers(tree)
    twice = _note_lines(node, path, "", places)
    if twice:
        raise ConfigError.of(twice, "{} keys appear twice")
    return numbers, places


def value_of(text: str) -> Any:
    """The value of an override, read as YAML; the text itself where it is none."""
    try:
        _, value = parse(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text  # chat.user=User: is a text that ends with a colon
    return _number(value)


def parse(text: str) -> tuple[yaml.Node | None, Any]:
    """What a YAML text holds, as its node and as Python's values. Raises yaml.YAMLError, also for more than a
    configuration can need, and for numbers and dates that are none.
    """
    if _open_brackets(text) > _MOST_BRACKETS:
        raise yaml.MarkedYAMLError(problem=f"nested more than {_DEEPEST} levels deep")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, None
            _check(node, loader)
            return node, loader.construct_document(node)  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=f"nested more than {_DEEPEST} levels deep") from None
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF" is no character
        raise yaml.MarkedYAMLError(problem=str(error)) from None


def _open_brackets(text: str) -> int:
    """How many brackets are open at once, at most. Those in texts count, too, so it is no depth yet; but PyYAML needs
    minutes for 20,000.
    """
    depth = most = 0
    for bracket in re.finditer(r"[\[{\]}]", text):
        depth += 1 if bracket[0] in "[{" else -1
        most = max(most, depth)
    return most


def _check(top: yaml.Node, loader: yaml.SafeLoader) -> None:
    """Raise yaml.MarkedYAMLError where ``top`` holds too much, too deep, itself, or something that can't be built."""
    sizes: dict[int, tuple[int, int]] = {}
    inside: set[int] = set()

    def measured(node: yaml.Node) -> tuple[int, int]:
        """How many values it stands for, and how many levels."""
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node, loader)
            return 1, 0
        if id(node) in inside:
            raise yaml.MarkedYAMLError(problem="an anchor (&) holds its own alias (*)", problem_mark=node.start_mark)
        if id(node) not in sizes:
            inside.add(id(node))
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            counts = [measured(part) for part in parts]
            inside.remove(id(node))
            sizes[id(node)] = 1 + sum(count for count, _ in counts), 1 + max((depth for _, depth in counts), default=0)
        count, depth = sizes[id(node)]
        if count > _MOST_VALUES or depth > _DEEPEST:
            much = f"more than {_MOST_VALUES:,} values" if count > _MOST_VALUES else f"more than {_DEEPEST} levels"
            raise yaml.MarkedYAMLError(problem=f"{much}, with aliases", problem_mark=node.start_mark)
        return count, depth

    measured(top)


def _check_scalar(node: yaml.ScalarNode, loader: yaml.SafeLoader) -> None:
    kind = _KINDS.get(node.tag.rpartition(":")[2])
    if kind is None:
        return
    if kind == "integer" and len(node.value) > _MOST_DIGITS:
        raise yaml.MarkedYAMLError(problem=f"an integer of {len(node.value):,} digits", problem_mark=node.start_mark)
    try:
        loader.construct_object(node)  # type: ignore[no-untyped-call]
    # What YAML's own readers raise for a value that their pattern doesn't fit.
    except (ValueError, OverflowError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise yaml.MarkedYAMLError(
            problem=f"{node.value[:40]!r} is no {kind}: {error}", problem_mark=node.start_mark
        ) from None


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
