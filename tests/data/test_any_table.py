"""Tables of random texts and columns: what csv, JSON and pyarrow write is what the readers give back."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardlm.data.files import read_csv, read_json, read_jsonl, read_parquet, read_table
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import DataError, RewardLMError
from rewardlm.measuring.imported import import_table

# Halves of characters and NUL are refused, and have tests of their own.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)
STEADY = settings(derandomize=True, deadline=None, max_examples=80)


@st.composite
def tables(draw: st.DrawFn, cells: st.SearchStrategy[Any] = TEXTS) -> list[dict[str, Any]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    row = st.fixed_dictionaries(dict.fromkeys(names, cells))
    return draw(st.lists(row, min_size=1, max_size=5))


def values(rows: Any) -> list[dict[str, Any]]:
    return [row.values for row in rows]


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@given(rows=tables(), end=st.sampled_from(["\n", "\r\n"]), quoted=st.booleans(), mark=st.booleans())
@STEADY
def test_csv(folder: Path, rows: list[dict[str, str]], end: str, quoted: bool, mark: bool) -> None:
    """With every cell in quotes, texts keep their line ends, of whatever kind; the header's names decide the separator,
    so these have neither semicolons nor tabs in them here."""
    path = folder / "x.csv"
    clean = [{name.replace(";", "_").replace("\ufeff", "_"): cell for name, cell in row.items()} for row in rows]
    if len(clean[0]) < len(rows[0]):
        return
    with open(path, "w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        quoting = csv.QUOTE_ALL if quoted or len(clean[0]) == 1 else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(file, list(clean[0]), lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(clean)
    assert values(read_csv(path, "texts")) == clean


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(rows=tables(JSON), ascii_only=st.booleans(), blank=st.booleans())
@STEADY
def test_json_lines_and_lists(folder: Path, rows: list[dict[str, Any]], ascii_only: bool, blank: bool) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    (folder / "x.jsonl").write_text(("\n \n" if blank else "\n").join(lines) + "\n", "utf-8", newline="")
    assert values(read_jsonl(folder / "x.jsonl", "rows")) == rows
    (folder / "x.json").write_text(json.dumps(rows, ensure_ascii=ascii_only), "utf-8", newline="")
    assert read_json(folder / "x.json", "rows") == rows == values(read_table(folder / "x.json", "rows"))


CELLS = st.none() | TEXTS
COLUMNS = st.sampled_from(
    [CELLS, st.none() | st.floats(allow_nan=False), st.none() | st.booleans(), st.lists(CELLS, max_size=2)]
)


@given(data=st.data(), size=st.integers(1, 5))
@STEADY
def test_parquet(folder: Path, data: st.DataObject, size: int) -> None:
    names = data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    columns = {name: data.draw(st.lists(data.draw(COLUMNS), min_size=size, max_size=size)) for name in names}
    path = folder / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=data.draw(st.integers(1, 5)))
    expected = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert values(read_parquet(path, "rows")) == expected


@given(
    texts=st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5, unique=True),
    suffix=st.sampled_from([".jsonl", ".parquet", ".csv"]),
)
@STEADY
def test_prompts_are_the_texts_of_the_file(folder: Path, texts: list[str], suffix: str) -> None:
    path = folder / f"p{suffix}"
    rows = [{"id": f"p{number}", "prompt": text} for number, text in enumerate(texts)]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "prompt"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    assert [(one.id, one.text) for one in load_prompts(str(path)).prompts] == [
        (row["id"], row["prompt"]) for row in rows
    ]


@given(rows=tables(JSON), name=st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.parquet"]))
@STEADY
def test_a_table_of_anything_is_imported_or_refused_in_one_line(
    folder: Path, rows: list[dict[str, Any]], name: str
) -> None:
    """Whatever the columns are called and hold: an error of ours, of one line that names the file, or a run."""
    named = [dict(zip(["prompt", "response", "scores.a", "finish"], row.values(), strict=False)) for row in rows]
    path = folder / name
    if name == "x.parquet":
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), path)
        except (pyarrow.ArrowException, TypeError):
            return  # a column of several types, which Parquet itself can't hold
    elif name == "x.csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(named[0]))
            writer.writeheader()
            writer.writerows(named)
    else:
        lines = [json.dumps(row) for row in named]
        path.write_text("\n".join(lines) if name == "x.jsonl" else f"[{', '.join(lines)}]")
    with tempfile.TemporaryDirectory() as out:
        run, refused = None, None
        try:
            run = import_table(path, Path(out) / "run", label="PT")
        except RewardLMError as error:
            refused = error
        if run is None:
            assert isinstance(refused, DataError)
            assert str(path) in str(refused)
            assert len(str(refused).splitlines()) == 1
        else:
            # A cell of a csv is a text, whatever it was.
            said = ["" if row["response"] is None else str(row["response"]) for row in named]
            assert [one.text for one in run.generations()] == said
