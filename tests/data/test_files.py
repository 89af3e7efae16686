"""Every way in which a file can be broken gives one line: file, line, and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardlm.data.files import Ids, Row, probability, read_csv, read_json, read_jsonl, read_txt
from rewardlm.errors import DataError


def jsonl(path: Path) -> Iterator[Row]:
    return read_jsonl(path, "a 'text'")


def table(path: Path) -> Iterator[Row]:
    return read_csv(path, "a 'text'")


BROKEN: list[tuple[str, Callable[[Path], Iterator[Row]], bytes, str]] = [
    ("jsonl empty", jsonl, b"", "is empty; expected one JSON object per line with a 'text'"),
    ("jsonl blank", jsonl, b"\n \n", "is empty; expected"),
    ("jsonl not UTF-8", jsonl, b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8 (byte 0xff at column 11)"),
    ("jsonl UTF-16 without a mark", jsonl, '{"text": "a"}\n'.encode("utf-16-le"), "line 1: a NUL character"),
    ("jsonl UTF-16 cut off", jsonl, '{"text": "a"}\n{"text": "b"}'.encode("utf-16")[:-1], "line 2: not UTF-16"),
    ("jsonl UTF-16 half a pair", jsonl, b"\xff\xfe{\x00\n\x00\x00\xd8}\x00\n\x00", "line 2: not UTF-16, although"),
    ("jsonl raw surrogate", jsonl, b'{"text": "\xed\xa0\x80"}\n', "line 1: not UTF-8"),
    ("jsonl NUL", jsonl, b'{"text": "a\0b"}\n', "line 1: a NUL character"),
    ("jsonl escaped NUL", jsonl, b'\n{"text": "a\\u0000b"}\n', "line 2: a NUL character (\\u0000)"),
    ("jsonl surrogate", jsonl, b'{"x": [{"text": "a\\ud800"}]}\n', "line 1: a lone surrogate ('a\\ud800')"),
    ("jsonl surrogate in a key", jsonl, b'{"\\udfff": 1}\n', "line 1: a lone surrogate"),
    ("jsonl truncated", jsonl, b'{"text": "a"}\n{"text": "b', "line 2: JSON that was cut off"),
    ("jsonl broken", jsonl, b'{"text": "a"}\n{"text" "b"}\n', "line 2: not JSON (Expecting ':' delimiter at column 9)"),
    ("jsonl no object", jsonl, b'["a"]\n', "line 1: ['a']; expected one JSON object per line"),
    ("jsonl NaN", jsonl, b'{"toxicity": NaN}\n', "line 1: not JSON (NaN is not a JSON number)"),
    ("jsonl too deep", jsonl, b"[" * 200_000 + b"\n", "line 1: JSON nested too deep"),
    ("jsonl huge number", jsonl, b'{"id": ' + b"9" * 5000 + b"}\n", "line 1: not JSON"),
    ("csv empty", table, b"", "is empty; expected a csv with a header line and a 'text'"),
    ("csv header only", table, b"text,id\n", "has a header line but no row; expected rows"),
    ("csv not UTF-8", table, b"text\ncaf\xe9\n", "line 2: not UTF-8 (byte 0xe9 at column 4)"),
    ("csv NUL", table, b"text\na\n\0\n", "line 3: a NUL character"),
    (
        "csv too few cells",
        table,
        b'text,id\n"a\nb",1\nc\n',
        "line 4: 1 cells; expected 2 as in the header ('text, id')",
    ),
    ("csv too many cells", table, b"text,id\na,1,2\n", "line 2: 3 cells; expected 2"),
    ("csv open quote", table, b'text,id\na,1\n"b,2\nc,3\n', "line 3: unexpected end of data; expected"),
    ("csv column twice", table, b"text,text\na,b\n", "line 1: column 'text' twice"),
    ("txt empty", read_txt, b"", "is empty; expected one text per line"),
    ("txt blank", read_txt, b"\n\n", "is empty; expected one text per line"),
    ("txt not UTF-8", read_txt, b"a\nb\xff\n", "line 2: not UTF-8"),
    ("txt NUL", read_txt, b"a\nb\0\n", "line 2: a NUL character"),
]


@pytest.mark.parametrize(("reader", "content", "message"), [case[1:] for case in BROKEN], ids=[c[0] for c in BROKEN])
def test_broken_file(tmp_path: Path, reader: Callable[[Path], Iterator[Row]], content: bytes, message: str) -> None:
    path = tmp_path / "broken file"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(reader(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert message in text
    assert "expected" in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 250


@pytest.mark.parametrize("reader", [jsonl, table, read_txt])
def test_missing_file_and_folder(tmp_path: Path, reader: Callable[[Path], Iterator[Row]]) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file"):
        next(reader(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"is a folder; expected a file"):
        next(reader(tmp_path))
    with pytest.raises(DataError, match=r"is not a file name"):
        next(reader(tmp_path / "a\0b"))


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "x"
    texts = ["one\u2028line", "two\u0085lines", "tab\tand\x0cform feed", "Ünïcödé 😀", " blanks "]
    path.write_bytes("\r\n".join(texts).encode())
    assert [row.values["text"] for row in read_txt(path)] == texts
    path.write_bytes("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode())
    assert [row.values["text"] for row in jsonl(path)] == texts
    path.write_bytes("\n".join(json.dumps({"text": text}) for text in texts).encode())
    assert [row.values["text"] for row in jsonl(path)] == texts  # a surrogate *pair* of escapes is one character


def test_places_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n7,"two\r\nlines"\r\n\r\n,last\r\n')
    first, last = table(path)
    assert first == Row(f"{path}, line 2", 1, {"id": "7", "text": "two\r\nlines"})
    assert last == Row(f"{path}, line 5", 2, {"id": "", "text": "last"})
    assert (first.id, last.id) == ("7", "row-2")
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "id": 3}\n\n{"text": "b"}')
    assert [(row.where, row.id) for row in jsonl(path)] == [(f"{path}, line 1", "3"), (f"{path}, line 3", "row-2")]
    path.write_bytes(b"a\n\nb\n\n\n")  # blank lines inside are rows (and an error where prompts are wanted)
    assert [row.values["text"] for row in read_txt(path)] == ["a", "", "b"]


@pytest.mark.parametrize("value", [True, 1.5, ["x"], {"a": 1}])
def test_id_that_is_none(value: Any) -> None:
    with pytest.raises(DataError, match=r"^F, line 1: id is .*; expected a text or a whole number$"):
        _ = Row("F, line 1", 1, {"id": value}).id


def test_text_of_a_row() -> None:
    row = Row("F, line 1", 1, {"a": "x", "b": 3})
    assert row.text("a") == "x"
    with pytest.raises(DataError, match=r"^F, line 1: no 'c', only 'a, b'; expected 'c' with a text$"):
        row.text("c")
    with pytest.raises(DataError, match=r"^F, line 1: 'b' is 3; expected a text$"):
        row.text("b")


@pytest.mark.parametrize(("value", "number"), [(None, None), ("", None), (0, 0.0), ("1", 1.0), (0.25, 0.25)])
def test_probability(value: object, number: float | None) -> None:
    assert probability(value, "F, line 1", "toxicity") == number


@pytest.mark.parametrize("value", [-0.01, 1.01, "nan", float("inf"), "high", True, [0.5], 10**400])
def test_not_a_probability(value: object) -> None:
    with pytest.raises(DataError, match=r"^F, line 1: toxicity is .*; expected a number from 0 to 1, or nothing$"):
        probability(value, "F, line 1", "toxicity")


def test_repeated_id_names_both_places() -> None:
    ids = Ids()
    ids.add("x", "F, line 1")
    ids.add("y", "F, line 2")
    with pytest.raises(DataError, match=r"^F, line 3: id 'x' is also the id of F, line 1; expected each id once$"):
        ids.add("x", "F, line 3")


def test_whole_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{\n "a": [1,\n 2]}\n')
    assert read_json(path, "columns") == {"a": [1, 2]}
    path.write_text('{\n "a": [1,\n }')
    with pytest.raises(DataError, match=r"x\.json: not JSON \(.* at line 3, column 2\); expected columns$"):
        read_json(path, "columns")
    path.write_text("\n")
    with pytest.raises(DataError, match=r"x\.json is empty; expected columns$"):
        read_json(path, "columns")
