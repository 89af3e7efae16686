"""Types of values that several commands' settings share, how they are read from texts, and which have a flag."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field


@dataclass(frozen=True)
class Flag:
    """Marks a setting that has a flag of its own on the command line: ``Annotated[int, Flag()]``.

    By default ``name`` is made from the key (``kl.coef``: ``--kl-coef``), and ``metavar`` from the type or its choices.
    With ``many`` a list's flag may be given several times, an item each; without it one text holds all items, with
    commas. ``read`` turns the text into a value, if that isn't left to the setting's own check.
    """

    name: str | None = None
    metavar: str | None = None
    many: bool = False
    read: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class KeysOf:
    """Marks a mapping that holds settings of ``kind``, except those in ``without``. They are checked later."""

    kind: type[BaseModel]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Depends:
    """Marks a setting whose default depends on other settings: a file to start from leaves it as a comment."""


# More answers to a prompt than anybody draws: tables of prompts by answers must fit into memory.
MOST_SAMPLES = 100_000
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Part = Literal["all", "train", "measure"]
Resume = Literal["exact", "inexact"]

# Settings that mean the same wherever they stand.
Seed = Annotated[int, Field(ge=0, description="Seed of everything that is drawn."), Flag()]
Precision = Annotated[Dtype, Field(description="Precision of the weights; auto: what is fast on the device."), Flag()]
Load = Annotated[
    Literal["8bit", "4bit"] | None,
    Field(description="Quantise the base's linear layers on loading; by default they are not quantised."),
    Flag(),
]
Device = Annotated[str, Field(description="Where to compute: auto, cpu, cuda or cuda:N."), Flag()]
TextColumn = Annotated[
    str | None,
    Field(
        min_length=1,
        description="The column or key of your table that holds the texts, or whole conversations as lists of "
        "messages; by default prompt or text, or messages.",
    ),
    Flag(),
]
Thresholds = Annotated[
    Path | None,
    Field(
        description="A thresholds.yaml of judge migrate: the judges in it have a threshold of their own, in the place "
        "of an old judge's."
    ),
    Flag(metavar="FILE"),
]
Matching = Annotated[
    Literal["share", "precision"],
    Field(description="Which threshold of that file: of the same share, or of the same precision."),
]
MaxFailedShare = Annotated[
    float,
    Field(ge=0, le=1, description="Share of texts that a judge may fail to score before the command stops."),
]


def each_once(names: list[str]) -> list[str]:
    """``names`` as they are. Raises ValueError if one appears twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}; name each once")
    return names


def split_names(items: Sequence[str]) -> list[str]:
    """``["a,mean(b,c)"]`` → ``["a", "mean(b,c)"]``: commas inside brackets belong to an ensemble's name.

    Raises ValueError if a name is empty or appears twice, or a bracket has no partner.
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
    return each_once(names)


def _names_or_none(items: Sequence[str]) -> list[str]:
    return split_names(items) if items and list(items) != ["none"] else []


# A single text is read as a list of one.
ONE_IS_A_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Names = Annotated[list[str], ONE_IS_A_LIST, AfterValidator(split_names)]
NamesOrNone = Annotated[list[str], ONE_IS_A_LIST, AfterValidator(_names_or_none)]


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
