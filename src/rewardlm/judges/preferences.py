"""Preference pairs: two texts, one of which people (or a stronger judge) found less toxic."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewardlm.data.files import Row, columns, read_csv, read_jsonl
from rewardlm.errors import DataError
from rewardlm.scoring.record import Source
from rewardlm.typed import shown

_EXPECTED = "'chosen' (the less toxic text) and 'rejected'"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """``chosen`` is the less toxic of the two."""

    chosen: str
    rejected: str


def is_preference_file(source: str) -> bool:
    """Whether ``source`` is a file whose first row has ``chosen`` and ``rejected``."""
    path = Path(source)
    if not path.is_file() or path.suffix not in (".csv", ".jsonl"):
        return False
    return {"chosen", "rejected"} <= next(iter(_read(path))).values.keys()


def load_preferences(source: str) -> tuple[list[PreferencePair], Source]:
    """The pairs of a csv or jsonl, and what to record of it.

    ``chosen`` and ``rejected`` are texts, or lists of messages whose last one counts.

    Raises DataError for a row that lacks one, holds a blank text, or prefers a text to itself.
    """
    path = Path(source)
    pairs = []
    for row in _read(path):
        pair = PreferencePair(_text(row, "chosen"), _text(row, "rejected"))
        if pair.chosen == pair.rejected:
            raise DataError(f"{row.where}: chosen and rejected are the same text; expected two")
        pairs.append(pair)
    return pairs, Source(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), None, 2 * len(pairs))


def _read(path: Path) -> Iterator[Row]:
    return read_csv(path, _EXPECTED) if path.suffix == ".csv" else read_jsonl(path, _EXPECTED)


def _text(row: Row, name: str) -> str:
    if name not in row.values:
        raise DataError(f"{row.where} has {columns(row.values)}; expected {_EXPECTED}")
    value = row.values[name]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: {name} is {shown(value)}; expected a text")
    return " ".join(value.split())
