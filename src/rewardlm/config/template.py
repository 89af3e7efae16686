"""A YAML file to start from: every setting of a command with its meaning above it and its default beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from rewardlm.config.describe import Setting, describe
from rewardlm.config.section import Section

_WIDTH = 100


def commented_yaml(kind: type[Section]) -> str:
    """The settings of ``kind`` at their defaults, except for its ``example``. Read back, they are the same settings.

    A setting whose default depends on others is commented out, and so is a section that may be left out.
    """
    blocks = [_lines((setting,), kind.example) for setting in describe(kind)]
    return "".join("\n".join(["", *block, ""]) for block in blocks)


def _lines(settings: tuple[Setting, ...], example: Mapping[str, Any]) -> Iterator[str]:
    for setting in settings:
        given, chosen = setting.name in example, example.get(setting.name, setting.default)
        yield from _comment(setting.description if setting.below else f"{setting.description} [{setting.values}]")
        if setting.section is not None and (given or not setting.optional):
            inner = [f"{setting.name}:", *_indented(_lines(setting.below, chosen if given else {}))]
        else:
            inner = [f"{setting.name}: {_as_yaml(chosen)}"]
            if setting.section is not None:
                inner += [f"# {line}" for line in _indented(_lines(setting.below, {}))]
        yield from [f"# {line}" for line in inner] if setting.depends and not given else inner


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False))


def _as_yaml(value: Any) -> str:
    """On one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf"), allow_unicode=True).strip()[1:-1]
