"""Kinds of values that settings of several commands have, and how they are read from texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


Part = Literal["all", "train", "measure"]


Resume = Literal["exact", "inexact"]


def split_names(items: Sequence[str]) -> list[str]:
    """``["a,mean(b,c)"]`` → ``["a", "mean(b,c)"]``: commas inside brackets belong to an ensemble's name.

    Raises ValueError where a name is empty or stands there twice, or a bracket has no partner.
    """
    names: list[str] = []
    for text in items:
        depth, start = 0, 0
        for position, character in enumerate(text + ","):
            depth += (character == "(") - (character == ")")
            if depth < 0:
                break
            if character == "," and depth == 0:
                names.append(text[start:position].strip())
                start = position + 1
        if depth or "" in names:
            raise ValueError(f"can't read the list {text!r}: expected at least one NAME[,NAME…], every bracket closed")
    if not names:
        raise ValueError("at least one name is needed")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}; name each once")
    return names


Names = Annotated[list[str], AfterValidator(split_names)]


def _names_or_none(items: Sequence[str]) -> list[str]:
    return split_names(items) if items and list(items) != ["none"] else []


NamesOrNone = Annotated[list[str], AfterValidator(_names_or_none)]


def one_is_a_list(value: Any) -> Any:
    """For ``field_validator(…, mode="before")``: a single string stands for a list of it."""
    return [value] if isinstance(value, str) else value


def is_function_name(text: str) -> bool:
    """Whether ``text`` looks like ``module:function``."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text) is not None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"lora": {"r": 4}}`` → ``{"lora.r": 4}``: settings by the names that overrides use."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


# KEY.NAME=VALUE arrives as a tree, as every dotted key does; but a name may hold dots itself.
BY_NAME = BeforeValidator(lambda value: flatten(value) if isinstance(value, dict) else value)
