"""Settings as data: what ``--help``, ``rewardlm settings``, ``rewardlm init`` and docs/settings.md are made from."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from rewardlm.config.fields import Depends, Flag, KeysOf

M = TypeVar("M")

_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", SecretStr: "text"}
_BOUNDS = {
    "ge": "minimum", "gt": "exclusive_minimum", "le": "maximum", "lt": "exclusive_maximum", "min_length": "min_length",
}  # fmt: skip
_SAID = {
    "minimum": "at least", "exclusive_minimum": "over", "maximum": "at most", "exclusive_maximum": "under",
    "min_length": "length at least",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted ``key``, its pydantic field, its default as JSON, and the settings below it.

    ``default`` is the one in its section, which may differ from that of the section's class. ``section`` is the class
    of a setting that has others below it; ``optional`` says whether that section may be left out whole.
    """

    key: str
    field: FieldInfo
    default: Any
    required: bool
    flag: Flag | None
    section: type[BaseModel] | None
    optional: bool
    below: tuple[Setting, ...]

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def description(self) -> str:
        return self.field.description or ""

    @property
    def depends(self) -> bool:
        """Whether its default depends on other settings."""
        return mark(self.field, Depends) is not None

    @property
    def flag_name(self) -> str | None:
        """Such as ``--kl-coef``."""
        if self.flag is None:
            return None
        return self.flag.name or "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def kind(self) -> Any:
        """Its type, without annotations and without null."""
        return bare(self.field.annotation)

    @property
    def choices(self) -> list[Any] | None:
        """The possible values of a setting, or of a list's items; None if they can't be listed."""
        kind = bare(get_args(self.kind)[0]) if get_origin(self.kind) is list else self.kind
        return list(get_args(kind)) if get_origin(kind) is Literal else None

    @property
    def type(self) -> str:
        """In words, such as ``list of text or null``."""
        return "section or null" if self.section else _in_words(self.field.annotation)

    @property
    def limits(self) -> dict[str, float]:
        """What bounds it, by ``minimum``, ``exclusive_minimum``, ``maximum``, ``exclusive_maximum``, ``min_length``."""
        return {
            said: getattr(one, at) for one in self.field.metadata for at, said in _BOUNDS.items() if hasattr(one, at)
        }

    @property
    def values(self) -> str:
        """What it may be, in words: its type or choices, and its bounds."""
        kind = self.type
        if self.choices is not None:
            among = "|".join([*map(str, self.choices), *(["null"] if kind.endswith(" or null") else [])])
            kind = f"list of {among}" if kind.startswith("list") else among
        return ", ".join([kind, *(f"{_SAID[name]} {value:g}" for name, value in self.limits.items())])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "key": self.key,
            "flag": self.flag_name,
            "type": self.type,
            "choices": self.choices,
            "default": self.default,
            "required": self.required,
            **self.limits,
            "description": self.description,
        }


def describe(kind: type[BaseModel]) -> tuple[Setting, ...]:
    """The settings of a command, as a tree."""
    return tuple(_described(name, field, _default(field)) for name, field in kind.model_fields.items())


def leaves(settings: Iterable[Setting]) -> Iterator[Setting]:
    """Every setting that takes a value, from top to bottom; a section that may be null comes before its settings."""
    for setting in settings:
        if setting.section is None or setting.optional:
            yield setting
        yield from leaves(setting.below)


def mark(field: FieldInfo, kind: type[M]) -> M | None:
    """The mark of that kind that a field has, such as its ``Flag``."""
    return next((one for one in field.metadata if isinstance(one, kind)), None)


def bare(annotation: Any) -> Any:
    """``Annotated[int | None, …]`` → ``int``."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return bare(parts[0]) if len(parts) == 1 else annotation
    return annotation


def _described(key: str, field: FieldInfo, default: Any, *, in_optional: bool = False) -> Setting:
    """``in_optional``: in a section that may be left out whole, so nothing is required and nothing has a flag."""
    keys, kind = mark(field, KeysOf), bare(field.annotation)
    section = keys.kind if keys else kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    optional = section is not None and default is None
    below = [
        _described(
            f"{key}.{name}",
            inner,
            _default(inner) if optional else getattr(default, name),
            in_optional=in_optional or optional,
        )
        for name, inner in (section.model_fields.items() if section else ())
        if keys is None or name not in keys.without
    ]
    return Setting(
        key=key,
        field=field,
        default=to_jsonable_python(default),
        required=field.is_required() and not in_optional,
        flag=None if in_optional else mark(field, Flag),
        section=section,
        optional=optional,
        below=tuple(below),
    )


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _in_words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _in_words(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(dict.fromkeys(_WORDS[type(part)] for part in parts))
    if origin is list:
        return f"list of {_in_words(parts[0])}"
    if origin is dict or annotation is type(None):
        return "mapping" if origin is dict else "null"
    return _WORDS[annotation]
