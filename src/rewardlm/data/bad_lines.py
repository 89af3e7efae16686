"""Finds the other broken lines of a file once one is known, so that the user can mend all of them at once.

The readers stop at the first line that they can't read, and give a reason. This reads on, and only lists lines.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from rewardlm.errors import DataError

# So many lines are named; the others are counted.
_NAMED = 5
_SEPARATORS = (",", ";", "\t")


def with_other_lines(error: DataError, path: Path) -> DataError:
    """``error``, which names a line of ``path``, with the file's other broken lines added, if there are any."""
    found = re.match(re.escape(str(path)) + r", line (\d+): ", error.summary)
    if found is None or error.problems:
        return error
    first = int(found[1])
    try:
        bad = [line for line in _broken(path) if line > first]
    except (OSError, UnicodeDecodeError, csv.Error, RecursionError):
        return error
    if not bad:
        return error
    named = ", ".join(map(str, bad[:_NAMED]))
    more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    return DataError(f"{error.summary}; also broken: line{'s' * (len(bad) > 1)} {named}{more}")


def _broken(path: Path) -> Iterator[int]:
    """Lines that are not JSON objects, or rows of a table that have more or fewer cells than its header."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _no_objects(path)
    elif suffix in (".csv", ".tsv"):
        yield from _other_widths(path)


def _no_objects(path: Path) -> Iterator[int]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, text in enumerate(file, 1):
            try:
                if text.strip() and not isinstance(json.loads(text), dict):
                    yield number
            except (ValueError, RecursionError):
                yield number


def _other_widths(path: Path) -> Iterator[int]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = next((text for text in file if text.strip()), "")
        separator = max(_SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
        file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        header: list[str] | None = None
        start = 1
        for cells in reader:
            if cells and header is None:
                header = cells
            elif cells and header is not None and len(cells) != len(header):
                yield start
            start = reader.line_num + 1
