"""The settings of all commands as a page of Markdown: docs/settings.md."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel

from rewardlm.config.describe import Setting, describe
from rewardlm.config.section import Section

_HEAD = """\
<!-- Made from the fields of the settings by: rewardlm settings --markdown > docs/settings.md -->
# Settings

Give a setting as a key of a YAML file (`--config FILE`; `rewardlm init` writes one), as `KEY.SUB=VALUE` on the command
line (`lora.r=32`), or as a keyword in Python (`lora={"r": 32}`). Some have a flag too. `KEY.SUB=VALUE` wins over flags,
and flags win over the file. `rewardlm settings COMMAND` lists one command's settings, with `--json` for programs.
"""


def as_markdown(commands: Mapping[str, type[Section]]) -> str:
    """One table per command, and one per section."""
    kinds: dict[type[BaseModel], list[str]] = {}
    for name, settings in commands.items():
        kinds.setdefault(settings, []).append(name)
    trees = {kind: describe(kind) for kind in kinds}
    parts = [_HEAD]
    for kind, names in kinds.items():
        parts += [f"## {', '.join(names)}\n", _about(kind), *_table(trees[kind], kinds)]
    parts += ["## Sections\n"]
    first: dict[type[BaseModel], Setting] = {}
    for section, setting in (found for tree in trees.values() for found in _sections(tree, kinds)):
        first.setdefault(section, setting)
    for section, setting in first.items():
        parts += [f"### {section.__name__}\n", _about(section), *_table(setting.below, kinds, f"{setting.key}.")]
    return "\n".join(parts)


def _about(kind: type[BaseModel]) -> str:
    return f"{inspect.getdoc(kind)}\n".replace("``", "`")


def _table(settings: Iterable[Setting], kinds: Mapping[type[BaseModel], list[str]], prefix: str = "") -> list[str]:
    rows = ["| key | flag | type or choices | default | meaning |", "|---|---|---|---|---|"]
    return [*rows, *(_row(setting, kinds, prefix) for setting in _shown(settings, kinds)), ""]


def _shown(settings: Iterable[Setting], kinds: Mapping[type[BaseModel], list[str]]) -> Iterator[Setting]:
    """The settings; if a section is a command's, also those that the command lacks or describes in other words."""
    for setting in settings:
        yield setting
        command = _command(setting.section, kinds)
        if command is not None:
            usual = {inner.name: inner.description for inner in describe(command)}
            yield from (inner for inner in setting.below if inner.description != usual.get(inner.name))


def _sections(
    settings: Iterable[Setting], kinds: Mapping[type[BaseModel], list[str]]
) -> Iterator[tuple[type[BaseModel], Setting]]:
    for setting in settings:
        if setting.section is None:
            continue
        if _command(setting.section, kinds) is None:
            yield setting.section, setting
            yield from _sections(setting.below, kinds)
        else:
            # Of a command's settings, those that are listed here once more.
            yield from _sections((inner for inner in _shown([setting], kinds) if inner is not setting), kinds)


def _command(section: type[BaseModel] | None, kinds: Mapping[type[BaseModel], list[str]]) -> type[BaseModel] | None:
    """The command whose settings a section holds, if it does."""
    return next((kind for kind in kinds if section is not None and issubclass(section, kind)), None)


def _row(setting: Setting, kinds: Mapping[type[BaseModel], list[str]], prefix: str) -> str:
    default = "required" if setting.field.is_required() else f"`{json.dumps(setting.default, ensure_ascii=False)}`"
    values = setting.values
    if setting.section is not None:
        command = _command(setting.section, kinds)
        target = setting.section.__name__ if command is None else kinds[command][0]
        values = f"[{target}](#{target.lower()})"
        usual = {inner.key: inner.default for inner in describe(setting.section)}
        own = {inner.name: inner.default for inner in setting.below if inner.default != usual[inner.name]}
        default = "none" if setting.optional else f"`{json.dumps(own)}`" if own else ""
    flag = f"`{setting.flag_name}`" if setting.flag else ""
    cells = (f"`{setting.key.removeprefix(prefix)}`", flag, values, default, setting.description.replace("<", r"\<"))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
