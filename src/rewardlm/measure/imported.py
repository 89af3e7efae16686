"""Tables that others made (CSV or JSON lines: a row is a prompt, an answer, scores) as runs to compare.

The columns of the 2023 project are known by themselves. Rows are numbered from 0 and the number is the
prompt's id, so two tables can be compared if they list the same prompts in the same order.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewardlm.errors import ConfigError, DataError
from rewardlm.runs import Run, prompts_hash
from rewardlm.types import Generation, Message, Prompt, Score

# Field -> column names that are recognised, the first that is present wins.
KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompts", "prompt"),
    "response": ("responses", "response"),
    "prompt_toxicity": ("prompt_score", "prompt_toxicity"),
    "scores.perspective": ("pro_API_response_score",),
    "scores.classifier": ("response_score",),
}

# Tables don't name the label that they score.
_LABEL = "toxicity"

_ABSENT = {"", "nan", "none", "null", "na", "n/a"}


def import_table(path: Path, out: Path, *, label: str, mapping: Mapping[str, str] | None = None) -> Run:
    """Turn ``path`` (.csv or .jsonl) into a finished run of kind ``import`` at ``out``.

    ``mapping`` says which column holds ``prompt``, ``response``, ``prompt_toxicity`` and ``scores.NAME``;
    what it doesn't say is found by ``KNOWN_COLUMNS`` and by columns that are named ``scores.NAME``. A score
    is P(toxic) in [0, 1]; an absent one (empty, NaN) and -1, the 2023 mark of an empty answer, are unscored.
    Nothing is written before the whole table has been read. Raises DataError naming the line (where a row
    spans several, its last) for a row that can't be read or a score out of range, ConfigError for a mapping
    of unknown fields.
    """
    path = Path(path)
    content = _read_bytes(path)
    rows = _csv_rows(path, content) if path.suffix.lower() == ".csv" else _jsonl_rows(path, content)
    columns = _columns(path, rows[0][1], mapping or {})
    prompts, generations, scores = [], [], []
    for number, (line, row) in enumerate(rows):
        where = f"{path}, line {line}"
        prompt_text = _text(where, columns["prompt"], row)
        if not prompt_text.strip():
            raise DataError(f"{where}: the prompt (column {columns['prompt']!r}) is empty: remove the row")
        response = _text(where, columns["response"], row)
        toxicity = None
        if "prompt_toxicity" in columns:
            toxicity, _ = _score(where, columns["prompt_toxicity"], row)
        turns = (Message("user", prompt_text),)
        prompts.append(Prompt(str(number), turns, source=path.name, toxicity=toxicity))
        # A table doesn't say how many tokens an answer had or how it was drawn: 0, not a guess.
        generation = Generation(f"{number}-0", str(number), label, 0, response, 0, "stop", 0)
        generations.append(generation)
        for field, column in columns.items():
            if field.startswith("scores."):
                scorer = field.removeprefix("scores.")
                value, reason = _score(where, column, row)
                if value is None and reason is None:
                    reason = _why_absent(scorer, response)
                scores.append(Score(generation.id, scorer, _LABEL, value, reason))
    settings = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "label": label,
        "columns": columns,
    }
    run = Run.start(Path(out), kind="import", label=label, settings=settings)
    if not run.finished:
        # A killed import left the first part of the same records: add the rest.
        for name, records in (("prompts", prompts), ("generations", generations), ("scores", scores)):
            run.append(name, records[sum(1 for _ in run.read(name)) :])
        run.update(
            rows=len(rows),
            samples=1,
            prompts_hash=prompts_hash(prompts),
            toxic_by="dataset",
            scorers=[
                {"name": field.removeprefix("scores."), "labels": [_LABEL], "revision": None}
                for field in columns
                if field.startswith("scores.")
            ],
            status="finished",
        )
    return run


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() not in (".csv", ".jsonl"):
        got = path.suffix or "no suffix"
        raise DataError(f"{path}: a table to import must be a .csv or .jsonl, got {got}: convert it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty: expected a table with a column of prompts and one of responses")
    return content


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


def _csv_rows(path: Path, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    """(line, row) of every row: the line on which it ends, since a cell may hold line breaks."""
    # One cell may be as long as the file; the module's limit is meant for streams.
    previous = csv.field_size_limit(max(len(content), csv.field_size_limit()))
    # newline="": line breaks inside of quoted cells stay what they are.
    reader = csv.reader(_lines(_decode(path, content)), strict=True)
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            twice = sorted({name for name in header if header.count(name) > 1})
            raise DataError(f"{path}, line 1: two columns are called {twice[0]!r}: rename one")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} "
                    "columns: the row is cut off or a quote is missing"
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV row ({error})") from None
    finally:
        csv.field_size_limit(previous)
    if not rows:
        raise DataError(f"{path} has a header but no rows: expected a prompt and a response a row")
    return rows


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _jsonl_rows(path: Path, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_lines(_decode(path, content)), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}): the line is cut off?") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append((number, row))
    return rows


def _columns(path: Path, first_row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, str]:
    """Field -> column of this table, those of ``mapping`` first. Raises where one is missing."""
    for field in mapping:
        if field not in ("prompt", "response", "prompt_toxicity") and not field.removeprefix("scores."):
            raise ConfigError("--map scores.NAME=COLUMN needs a name after the dot")
        if field not in ("prompt", "response", "prompt_toxicity") and not field.startswith("scores."):
            raise ConfigError(
                f"--map knows prompt, response, prompt_toxicity and scores.NAME, got {field!r}: correct it"
            )
    found = ", ".join(repr(name) for name in first_row)
    for field, column in mapping.items():
        if column not in first_row:
            raise DataError(f"{path} has no column {column!r} for {field}: its columns are {found}")
    columns = dict(mapping)
    taken = set(mapping.values())
    known = dict(KNOWN_COLUMNS)
    known.update({name: (name,) for name in first_row if name.startswith("scores.") and name != "scores."})
    for field, names in known.items():
        if field not in columns:
            present = [name for name in names if name in first_row and name not in taken]
            if present:
                columns[field] = present[0]
    for field in ("prompt", "response"):
        if field not in columns:
            expected = " or ".join(repr(name) for name in KNOWN_COLUMNS[field])
            raise DataError(
                f"{path} has no column {expected} for the {field}: its columns are {found}; "
                f"name one with --map {field}=COLUMN"
            )
    return columns


def _text(where: str, column: str, row: Mapping[str, Any]) -> str:
    if column not in row:
        raise DataError(f"{where}: the column {column!r} is missing here")
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: column {column!r} holds half a surrogate pair: not valid text") from None
    return value


def _score(where: str, column: str, row: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """The score in [0, 1]; (None, reason) for -1 and (None, None) where there is nothing."""
    if column not in row:
        raise DataError(f"{where}: the column {column!r} is missing here (null means unscored)")
    cell = row[column]
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _ABSENT):
        return None, None
    try:
        if isinstance(cell, bool):
            raise ValueError
        value = float(cell)
    except (TypeError, ValueError):
        raise DataError(f"{where}: column {column!r} must be a score in [0, 1], got {cell!r}") from None
    if math.isnan(value):
        return None, None
    if value == -1:
        return None, "empty response"
    if not 0 <= value <= 1:
        raise DataError(
            f"{where}: column {column!r} must be a score in [0, 1], or -1 or nothing for unscored, got {cell}"
        )
    return value, None


def _why_absent(scorer: str, response: str) -> str:
    if not response.strip():
        return "empty response"
    # Perspective's one lasting reason to leave a text of normal length unscored.
    return "language not supported" if scorer == "perspective" else "missing"
