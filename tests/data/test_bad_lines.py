"""All broken lines of a file are told with the first: numbers of some, and how many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardlm.config import MeasureSettings
from rewardlm.data.bad_lines import with_other_lines
from rewardlm.data.files import read_csv, read_jsonl
from rewardlm.errors import DataError
from rewardlm.preflight import check

GOOD = '{"prompt": "good"}'


def told(path: Path) -> str:
    read = read_jsonl if path.suffix == ".jsonl" else read_csv
    with pytest.raises(DataError) as info:
        list(read(path, "texts"))
    return str(with_other_lines(info.value, path))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, '{"prompt": ', GOOD], None),
        ([GOOD, '{"prompt": ', GOOD, "7", "", "x"], "; also broken: lines 4, 6"),
        (["x", GOOD, "x"], "; also broken: line 3"),
        (["x", *["y"] * 5], "; also broken: lines 2, 3, 4, 5, 6"),
        (["x", *["y"] * 1005], "; also broken: lines 2, 3, 4, 5, 6 and 1,000 more"),
    ],
)
def test_lines_of_a_jsonl(tmp_path: Path, lines: list[str], said: str | None) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = told(path)
    first = next(number for number, line in enumerate(lines, 1) if line != GOOD)
    assert found.startswith(f"{path}, line {first}: not JSON")
    assert "\n" not in found
    assert found.endswith(said) if said else "also broken" not in found


def test_rows_of_a_table_are_named_by_the_line_that_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('prompt,id\nfine,1\none cell\n"two\nlines",2\n\na,b,c\n"d\ne",f,g\nfine,3\n')
    assert told(path).startswith(f"{path}, line 3: 1 cells")
    assert told(path).endswith("; also broken: lines 7, 8")


def test_an_error_of_another_kind_stays_as_it_is(tmp_path: Path) -> None:
    for text in ("no line is named", f"{tmp_path / 'p.jsonl'}: no such file", f"{tmp_path / 'q.jsonl'}, line 1: x"):
        assert str(with_other_lines(DataError(text), tmp_path / "p.jsonl")) == text
    (tmp_path / "p.jsonl").write_bytes(b"\xff\n\xff\n")
    text = f"{tmp_path / 'p.jsonl'}, line 1: not UTF-8"
    assert str(with_other_lines(DataError(text), tmp_path / "p.jsonl")) == text


def test_a_command_tells_them_before_it_loads_a_model(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{GOOD}\nx\n{GOOD}\ny\n")
    settings = MeasureSettings(model="tiny", prompts=str(path), scorer=["test_bad_lines:judge"])
    with pytest.raises(DataError, match=r"line 2: not JSON.*; also broken: line 4$"):
        check(settings)


def judge(texts: list[str]) -> list[float]:
    """A judge that is here without a package."""
    return [0.0 for _ in texts]
