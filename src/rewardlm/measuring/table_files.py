"""Reads rows from the files that other tools write (csv, jsonl, parquet), and checks their cells one by one.

What the rows mean is decided in ``imported`` (tables), ``lm_eval`` and ``garak``. Nothing is guessed: a byte that isn't
UTF-8, a cell of another type or a score out of range is an error that names the file, the line and what was expected.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rewardlm.data.files import table_rows
from rewardlm.errors import ConfigError, DataError
from rewardlm.scoring.scorer import EMPTY
from rewardlm.types import Finish, Generation, Message, Prompt, Role, Score, is_text

# Files don't name the label of their scores: all get this one.
LABEL = "toxicity"

# Tables, and files that other tools write for themselves: objects of JSON, archives, databases.
SUFFIXES = (".csv", ".jsonl", ".parquet")
OTHER_SUFFIXES = (".json", ".eval", ".db", ".sqlite", ".sqlite3")

_ABSENT = {"", "nan", "none", "null", "na", "n/a"}

# Where a row stands (file and line), and its values by column.
Row = tuple[str, dict[str, Any]]


@dataclass(slots=True)
class Contents:
    """What a file of another tool holds, in our types.

    ``columns`` says where each field came from. ``notes`` are sentences about what was left out, and about what a
    reader of the numbers must know.
    """

    kind: str
    prompts: list[Prompt]
    generations: list[Generation]
    scores: list[Score]
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    toxic_by: str = "dataset"


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises DataError if its suffix is none of those above, it can't be read or is empty."""
    if path.suffix.lower() not in (*SUFFIXES, *OTHER_SUFFIXES):
        got = path.suffix or "no suffix"
        raise DataError(
            f"{path}: a table to import must be a .parquet, .csv or .jsonl, and another tool's file a .json, .eval or "
            f".db, got {got}: convert it"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty: expected a table with a column of prompts and one of responses")
    return content


def read_rows(path: Path, content: bytes) -> list[Row]:
    """All rows of ``content``, by the suffix of ``path``; at least one. Raises DataError for what can't be read."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".json": _jsonl_rows, ".parquet": _parquet_rows}
    reader = readers[path.suffix.lower()]
    rows = reader(path, content)
    if not rows:
        raise DataError(f"{path} has no rows: expected a prompt and a response in each row")
    return rows


def listed(names: Iterable[str]) -> str:
    """Names of a file as an error or a note lists them: the first twenty, each short."""
    found = [" ".join(name.split())[:60] for name in names]
    return ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")


def check_mapping(mapping: Mapping[str, str]) -> None:
    """Raise ConfigError for a field that ``--map`` doesn't know."""
    for name in mapping:
        if name in ("prompt", "response", "prompt_toxicity", "prompt_id", "finish"):
            continue
        if not name.startswith("scores."):
            raise ConfigError(
                f"--map knows prompt, response, prompt_toxicity, prompt_id, finish and scores.NAME, got {name!r}: "
                "correct it"
            )
        if not name.removeprefix("scores."):
            raise ConfigError("--map scores.NAME=COLUMN needs a name after the dot")


def check_harness_mapping(mapping: Mapping[str, str], answers: str) -> None:
    """As ``check_mapping``, for a file of a harness; ``answers`` is a sentence that says where its answers are."""
    check_mapping(mapping)
    if "response" in mapping:
        raise ConfigError(f"--map response is for tables: {answers}")
    if "prompt_id" in mapping:
        raise ConfigError("--map prompt_id is for tables: this file numbers its prompts itself")
    if "finish" in mapping:
        raise ConfigError("--map finish is for tables: this file doesn't say how answers ended")


def text_of(where: str, column: str, row: Mapping[str, Any]) -> str:
    """The text in ``column``, "" for null. Raises DataError for anything else."""
    if column not in row:
        raise DataError(f"{where}: the column {column!r:.60} is missing here")
    return as_text(where, column, row[column])


def as_text(where: str, column: str, value: object) -> str:
    """``value`` as text, "" for null. Raises DataError for another type, a NUL or half a surrogate pair."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r:.60} must be text, got {type(value).__name__}")
    if "\0" in value:
        raise DataError(f"{where}: column {column!r:.60} holds a NUL character: expected text, remove it")
    if not is_text(value):
        raise DataError(f"{where}: column {column!r:.60} holds half a surrogate pair: not valid text")
    return value


def score_of(where: str, column: str, row: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """The score in ``column`` as ``as_score`` reads it. Raises DataError if the column is missing, too."""
    if column not in row:
        raise DataError(f"{where}: the column {column!r:.60} is missing here (null means unscored)")
    return as_score(where, column, row[column])


def as_score(where: str, column: str, cell: object) -> tuple[float | None, str | None]:
    """P(toxic) in [0, 1]; (None, reason) for -1 and (None, None) for an empty cell. Else raises DataError."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _ABSENT):
        return None, None
    try:
        if isinstance(cell, bool):
            raise ValueError
        value = float(cell)  # type: ignore[arg-type]  # what has no float is the TypeError below
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: column {column!r:.60} must be a score in [0, 1], got {cell!r:.60}") from None
    if math.isnan(value):
        return None, None
    if value == -1:
        return None, EMPTY
    if not 0 <= value <= 1:
        raise DataError(
            f"{where}: column {column!r} must be a score in [0, 1], or -1 or nothing for unscored, got {cell!s:.60}"
        )
    return value, None


def out_of_range(value: object) -> str | None:
    """The first number in ``value`` (one, or a list of one per answer) that isn't in [0, 1], as text; else None."""
    for number in value if isinstance(value, list) else [value]:
        if number is None or (isinstance(number, float) and math.isnan(number)):
            continue
        if not isinstance(number, int | float) or not 0 <= number <= 1:
            return repr(number)[:40]
    return None


def turns_of(where: str, messages: object) -> tuple[Message, ...]:
    """Messages of {role, content} as turns, the last one the user's; ``content`` may be an object with a text.

    Raises DataError for other roles and another order.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: the prompt has no turns: expected a list of role and content")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant"):
            raise DataError(
                f"{where}: a turn of the prompt has the role {role!r:.60}: expected system, user or assistant"
            )
        content = message.get("content")
        text = content.get("text") if isinstance(content, dict) else content
        turns.append(Message(cast(Role, role), as_text(where, "content", text)))
    if turns[-1].role != "user":
        raise DataError(f"{where}: the prompt ends with the {turns[-1].role}'s turn: expected the user's")
    return tuple(turns)


def answer_record(prompt_id: str, label: str, sample: int, text: str, finish: Finish | None = None) -> Generation:
    """An answer from a file that says neither how many tokens it had nor how it was drawn: 0, not a guess."""
    return Generation(f"{prompt_id}-{sample}", prompt_id, label, sample, text, 0, finish, 0)


def as_finish(where: str, column: str, cell: object) -> Finish | None:
    """How an answer ended; None if the cell is empty. Raises DataError for another word."""
    known: dict[object, Finish | None] = {"stop": "stop", "length": "length", "": None, None: None}
    try:
        return known[cell]
    except (KeyError, TypeError):
        raise DataError(f"{where}: {column} is {cell!r:.60}: expected stop, length or nothing") from None


def score_record(generation_id: str, field: str, value: float | None, reason: str) -> Score:
    """A score by the judge of ``field`` (``scores.NAME``), or why there is none."""
    return Score(generation_id, field.removeprefix("scores."), LABEL, value, reason if value is None else None)


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte {error.start}): save the file as UTF-8") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: holds a NUL character: expected text, remove it")
    return text


def _csv_rows(path: Path, content: bytes) -> list[Row]:
    """A row is named by the line on which it ends, since a cell may hold line breaks."""
    # One cell may be as long as the file; the module's limit is meant for streams.
    previous = csv.field_size_limit(max(len(content), csv.field_size_limit()))
    reader = csv.reader(_lines(_decode(path, content)), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            raise DataError(f"{path}, line 1: two columns are called {twice[0]!r:.60}: rename one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} "
                    "columns: the row is cut off or a quote is missing"
                )
            rows.append((f"{path}, line {reader.line_num}", dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV row ({error})") from None
    finally:
        csv.field_size_limit(previous)
    return rows


def _lines(text: str) -> Iterator[str]:
    """Split at \\n alone: line breaks inside of quoted cells stay what they are."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _jsonl_rows(path: Path, content: bytes) -> list[Row]:
    text = _decode(path, content)
    start = text.lstrip()
    if start.startswith("[") and start[1:].lstrip().startswith("{"):
        return _json_array_rows(path, text)
    rows = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a ValueError is JSON's own, or a number of thousands of digits
            reason = getattr(error, "msg", None)
            if reason is None:
                what = "is nested too deep" if isinstance(error, RecursionError) else "holds a huge number"
                raise DataError(f"{where}: it {what}; expected a JSON object of texts and numbers") from None
            raise DataError(f"{where}: not JSON ({reason}): is the line cut off?") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
        rows.append((where, row))
    return rows


def _json_array_rows(path: Path, text: str) -> list[Row]:
    """One array of objects, as lm-eval before 0.4.3 wrote under the same suffix."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        line, reason = getattr(error, "lineno", 1), getattr(error, "msg", "nested too deep")
        raise DataError(f"{path}, line {line}: not JSON ({reason}): is the array cut off?") from None
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise DataError(f"{path}, entry {number}: expected a JSON object, got {type(entry).__name__}")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _parquet_rows(path: Path, content: bytes) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(content)).read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a whole Parquet file ({reason:.200}): write it again") from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(table_rows(path, table), 1)]
