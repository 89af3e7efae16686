"""The base of all settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all settings: unknown keys are errors, values don't change after checking.

    If only a part of a section is given, the rest keeps the default of the field that holds the section: if that is
    ``LoraSettings(r=32, alpha=64)``, ``lora.r=4`` leaves alpha at 64.

    Every field has a description, which ``--help``, ``rewardlm settings``, ``rewardlm init`` and docs/settings.md show.
    ``example`` has values for what a file to start from can't leave at its default: required settings above all.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )
    example: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _parts_over_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: _over_default(cls, name, value) for name, value in data.items()}


def _over_default(kind: type[BaseModel], name: str, value: Any) -> Any:
    default = kind.model_fields[name].default if name in kind.model_fields else None
    if not isinstance(default, Section) or not isinstance(value, Mapping):
        return value
    return {**{key: getattr(default, key) for key in default.model_fields_set}, **value}


def leaves_of(given: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in settings, in sections or by dotted keys, with its dotted key; items of a list have the list's."""
    if isinstance(given, Section):
        given = {name: getattr(given, name) for name in type(given).model_fields}
    if isinstance(given, Mapping):
        for name, value in given.items():
            yield from leaves_of(value, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list | tuple):
        for value in given:
            yield from leaves_of(value, key)
    else:
        yield key, given
