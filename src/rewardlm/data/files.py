"""Rows from jsonl, csv, parquet, json and txt files. A broken file is a one-line error: file, line, what was expected.

prompts.py and dialogues.py decide what the rows mean. Everything but a whole JSON file is read piece by piece, so that
a file may be larger than memory. Nothing is guessed: the user has to mend a byte that is not UTF-8, or half a JSON
object, because a prompt that is silently left out changes what is measured.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rewardlm import hub
from rewardlm.data.lines import text_lines, whole_lines
from rewardlm.errors import DataError
from rewardlm.typed import shown
from rewardlm.types import is_text

# Files that hold a table, one row per prompt or dialogue.
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: its values by column, its 1-based number among the rows, and its place in the file."""

    where: str
    number: int
    values: dict[str, Any]

    @property
    def given_id(self) -> str | None:
        """The row's own id as text; None if it has none. Raises DataError if the id is neither text nor int."""
        value = self.values.get("id")
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{self.where}: id is {shown(value)}; expected a text or a whole number")
        return str(value)

    @property
    def id(self) -> str:
        """The row's own id, else ``row-N`` with N counted from 1 over the rows (a csv's header is no row)."""
        return self.given_id or f"row-{self.number}"

    def text(self, key: str) -> str:
        """The text in column ``key``. Raises DataError if it is missing or not a text."""
        if key not in self.values:
            raise DataError(f"{self.where}: no {key!r}, only {columns(self.values)}; expected {key!r} with a text")
        value = self.values[key]
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {key!r} is {shown(value)}; expected a text")
        return value


def columns(names: object) -> str:
    """Column names as an error message lists them."""
    listed = [str(name) for name in names] if isinstance(names, dict | list | tuple) else [str(names)]
    return shown(", ".join(listed)) if listed else "nothing"


def probability(value: object, where: str, name: str) -> float | None:
    """``value`` as a probability in [0, 1]; None and an empty csv cell mean that nobody has judged it.

    Raises DataError that names ``where`` for anything else, NaN and infinity too.
    """
    if value is None or value == "":
        return None
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not 0.0 <= number <= 1.0:
        raise DataError(f"{where}: {name} is {shown(value)}; expected a number from 0 to 1, or nothing")
    return number


class Ids:
    """The ids seen so far and where: a second one is an error that names both places."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def add(self, identity: str, where: str) -> None:
        """Raises DataError if ``identity`` was added before."""
        if identity in self._places:
            raise DataError(
                f"{where}: id {shown(identity)} is also the id of {self._places[identity]}; expected each id once"
            )
        self._places[identity] = where


def read_jsonl(path: Path, expected: str) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped. ``expected`` says in errors what a row holds.

    Raises DataError for a missing or empty file, bytes that are not UTF-8, NUL and lone surrogates (raw or
    as escapes), NaN, a line that is not a JSON object, and a last line that was cut off.
    """
    number = 0
    for line, text, ended in text_lines(path):
        if not text.strip():
            continue
        number += 1
        where = f"{path}, line {line}"
        value = _parse_json(text, where, f"one JSON object per line with {expected}", cut_off=not ended)
        if not isinstance(value, dict):
            raise DataError(f"{where}: {shown(value)}; expected one JSON object per line with {expected}")
        yield Row(where, number, value)
    if number == 0:
        raise DataError(f"{path} is empty; expected one JSON object per line with {expected}")


def read_table(path: Path, expected: str) -> Iterator[Row]:
    """Rows of a file whose suffix is in ``TABLES``, of an .arrow, or of a .json that holds a list of objects."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_csv(path, expected)
    if suffix in (".parquet", ".arrow"):
        return read_parquet(path, expected)
    return _json_list(path, expected) if suffix == ".json" else read_jsonl(path, expected)


def read_csv(path: Path, expected: str) -> Iterator[Row]:
    """A csv with a header line; quoted cells may hold line ends, which stay as they are; all values are texts.

    Commas separate the cells, or semicolons or tabs if the header line has more of these. A row's line is the one on
    which it starts. Raises DataError for a missing or empty file, bytes that are not UTF-8, NUL, an unclosed quote, a
    column named twice, a row with more or fewer cells than the header, and a header without rows.
    """
    # A cell may be as long as the file; by default none may have more than 131,072 letters.
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size if path.is_file() else 0))
    delimiter = _delimiter(path)
    reader = csv.reader((text for _, text in whole_lines(path)), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    number = 0
    start = 1
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            what = "a carriage return alone" if "new-line character" in str(error) else str(error)
            raise DataError(
                f"{path}, line {start}: {what}; expected cells separated by {_SEPARATORS[delimiter]} with every quote "
                'closed, a quote inside a quoted cell doubled (""), and lines that end with \\n or \\r\\n'
            ) from None
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            # Columns without a name are what spreadsheets leave at the right: nobody can ask for them.
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise DataError(f"{path}, line {start}: column {shown(twice[0])} twice; expected every name once")
            continue
        if len(cells) != len(header):
            no_header = any(map(_reads_like_a_text, header))
            raise DataError(
                f"{path}, line {start}: {len(cells)} cells; expected {len(header)} as in the header "
                f"({columns(header)}): a cell with {_SEPARATORS[delimiter]} in it needs quotes around it"
                + (", and line 1 reads like a text: is the header line missing?" if no_header else "")
            )
        number += 1
        yield Row(f"{path}, line {start}", number, dict(zip(header, cells, strict=True)))
    if header is None:
        raise DataError(f"{path} is empty; expected a csv with a header line and {expected}")
    if number == 0:
        raise DataError(f"{path} has a header line but no row; expected rows with {expected}")


def _delimiter(path: Path) -> str:
    """What divides the first non-blank line into the most cells; a comma if nothing divides it further."""
    first = next((text for _, text, _ in text_lines(path) if text.strip()), "")
    # A carriage return in it is refused later, with its line.
    return max(_SEPARATORS, key=lambda one: len(next(csv.reader([first.replace("\r", " ")], delimiter=one), [])))


def column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of ``wanted`` among the columns' names, spelt exactly so, else with other capitals (``Prompt``)."""
    names = list(names)
    folded = {name.strip().casefold(): name for name in reversed(names)}
    exact = next((name for name in wanted if name in names), None)
    return exact or next((folded[name] for name in wanted if name in folded), None)


def answer_ended(row: Row, name: str) -> bool:
    """Whether the answer in the column ``name`` ended by itself, as all do of which nothing is said.

    Raises DataError where the column ``NAME_finish`` holds another word than stop or length.
    """
    value = row.values.get(f"{name}_finish")
    if value not in (None, "", "stop", "length"):
        raise DataError(
            f"{row.where}: {name}_finish is {shown(value)}; expected stop (the answer ended by itself) or length (it "
            "was cut off)"
        )
    return value != "length"


def headless(path: Path, names: Iterable[str], wanted: str) -> None:
    """Raise DataError if a csv's first line is a row, not a header: its text must not be lost.

    Call it if no column has a known name; ``wanted`` is a header line that would do.
    """
    texts = [name for name in names if name and _reads_like_a_text(name)]
    if texts:
        raise DataError(
            f"{path}, line 1: {shown(texts[0])} reads like a text, not like the name of a column; expected a header "
            f"line: put one above it, such as {wanted}"
        )


def _reads_like_a_text(name: str) -> bool:
    """Whether a column's name is really a sentence or a number, as in a csv without a header line."""
    name = name.strip()
    try:
        float(name)
    except ValueError:
        return len(name) > 40 or len(name.split()) > 3 or name.endswith((".", "!", "?", "…", ",", '"'))
    return True


def read_parquet(path: Path, expected: str) -> Iterator[Row]:
    """Rows of a parquet file, or of an .arrow file as ``datasets`` keeps its tables. Raises DataError for a missing,
    broken or empty one.
    """
    import pyarrow.ipc  # only here: it takes time to import, and most sources don't need it
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the path of a file that exists")
    kind = "arrow" if path.suffix.lower() == ".arrow" else "parquet"
    number = 0
    try:
        with open(path, "rb") as file:
            batches = (
                pyarrow.ipc.open_stream(file) if kind == "arrow" else pyarrow.parquet.ParquetFile(file).iter_batches()
            )
            for batch in batches:
                for values in table_rows(path, batch, first=number + 1):
                    number += 1
                    yield Row(f"{path}, row {number}", number, values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = shown(" ".join(str(error).split()))
        raise DataError(f"{path}: can't be read as {kind} ({reason}); expected rows with {expected}") from None
    if number == 0:
        raise DataError(f"{path} has no row; expected rows with {expected}")


def table_rows(path: Path, table: Any, *, first: int = 1) -> list[dict[str, Any]]:
    """The rows of a table or batch of pyarrow's, whose first one is row number ``first`` of the file.

    Raises DataError that names the column for values that Python can't hold (a date after the year 9999), texts that
    are no UTF-8 or hold NUL, and two columns of one name.
    """
    import pyarrow

    names = list(table.column_names if isinstance(table, pyarrow.Table) else table.schema.names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: two columns are called {shown(twice[0])}; expected every name once: rename one")
    columns_of = []
    for place, name in enumerate(names):
        try:
            values = table.column(place).to_pylist()
        except (ValueError, OverflowError, TypeError, pyarrow.ArrowException) as error:  # each of these comes
            reason = shown(" ".join(str(error).split()))
            kind = table.schema.field(place).type
            raise DataError(
                f"{path}: column {shown(name)} is of the type {kind!s:.60} and can't be read ({reason}); expected "
                "texts, numbers, or lists and objects of these"
            ) from None
        for number, value in enumerate(values, first):
            if isinstance(value, str | list | dict) and any("\0" in text for text in _strings(value)):
                raise DataError(
                    f"{path}, row {number}: column {shown(name)} holds a NUL character; expected plain text"
                )
        columns_of.append(values)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns_of, strict=True)]


def _json_list(path: Path, expected: str) -> Iterator[Row]:
    items = read_json(path, f"a list of objects with {expected}")
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: {shown(items)}; expected a list of objects with {expected}")
    for number, values in enumerate(items, 1):
        where = f"{path}, item {number}"
        if not isinstance(values, dict):
            raise DataError(f"{where}: {shown(values)}; expected an object with {expected}")
        yield Row(where, number, values)


def read_txt(path: Path) -> Iterator[Row]:
    """One text per line, in column ``text``, exactly as it is; blank lines at the file's end don't count.

    Raises DataError for a missing or empty file, bytes that are not UTF-8, and NUL.
    """
    number = 0
    blank: list[Row] = []
    for line, text, _ in text_lines(path):
        number += 1
        row = Row(f"{path}, line {line}", number, {"text": text})
        if not text.strip():
            blank.append(row)
            continue
        yield from blank
        blank.clear()
        yield row
    if number == len(blank):
        raise DataError(f"{path} is empty; expected one text per line")


def read_json(path: Path, expected: str) -> Any:
    """A whole JSON file. Raises DataError as ``read_jsonl`` does."""
    text = "\n".join(text for _, text, _ in text_lines(path))
    if not text.strip():
        raise DataError(f"{path} is empty; expected {expected}")
    return _parse_json(text, str(path), expected, cut_off=False)


def hub_rows(dataset: str, split: str, complaint: Callable[[str], str]) -> Iterator[Row]:
    """Rows of a hub data set's split. Raises DataError if it can't be loaded, offline or otherwise. Its message is
    ``complaint(reason)``, which says how to do without.
    """
    if not (hub.is_cached(dataset, "dataset") or Path(dataset).exists()):
        reason = hub.unreachable() or hub.missing(dataset, "dataset")
        if reason is not None:
            raise DataError(complaint(reason))
    import datasets  # only here: it takes a second to import and most sources don't need it
    import httpx

    try:
        with hub.offline_where_away():
            rows = datasets.load_dataset(dataset, split=split)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise DataError(complaint(hub.away() or f"{type(error).__name__}: {shown(message)}")) from None
    for number, values in enumerate(rows, 1):
        yield Row(f"{dataset}:{split}, row {number}", number, dict(values))


def _parse_json(text: str, where: str, expected: str, *, cut_off: bool) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deep; expected {expected}") from None
    except json.JSONDecodeError as error:
        reason = "JSON that was cut off" if cut_off else "not JSON"
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{where}: {reason} ({error.msg} at {place}); expected {expected}") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); expected {expected}") from None
    if "\\u" in text:  # UTF-8 itself holds no surrogates, so only an escape can bring one in
        for string in _strings(value):
            if "\0" in string:
                raise DataError(f"{where}: a NUL character (\\u0000); expected plain text")
            if not is_text(string):
                raise DataError(f"{where}: a lone surrogate ({shown(string)}), half a character; expected whole ones")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
