"""Answers that were cut off, from the records to the comparison: counted where it is known, null where it isn't."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from measured_runs import build_run, compared

from rewardlm.errors import DataError
from rewardlm.measuring.exported import export_answers
from rewardlm.measuring.imported import import_table
from rewardlm.runs import Run

N = 100


def run_with(path: Path, label: str, cut: list[bool | None], **more: Any) -> Path:
    """A run of one answer a prompt, of which ``cut`` says whether it was cut off."""
    build_run(path, label, {"a": [[0.1]] * len(cut)}, **more)
    file = path / "generations.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record, was_cut in zip(records, cut, strict=True):
        record["finish"] = None if was_cut is None else "length" if was_cut else "stop"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def quality(*paths: Path) -> list[float | None]:
    return [model["quality"]["truncated_fraction"] for model in compared(list(paths), n_resamples=200)["models"]]


def truncated_warnings(*paths: Path) -> list[tuple[str, str]]:
    found = compared(list(paths), n_resamples=2000)["warnings"]
    return [(warning["model"], warning["message"]) for warning in found if warning["code"] == "truncated"]


def test_the_share_is_of_the_answers_whose_end_is_known(tmp_path: Path) -> None:
    one = run_with(tmp_path / "one", "PT", [True] * 30 + [False] * 70)
    two = run_with(tmp_path / "two", "FT", [True] * 10 + [False] * 30 + [None] * 60)
    three = run_with(tmp_path / "three", "RL", [None] * 100)
    assert quality(one, two, three) == [pytest.approx(0.3), pytest.approx(0.25), None]


def test_models_that_were_cut_off_alike_raise_no_warning(tmp_path: Path) -> None:
    one = run_with(tmp_path / "one", "PT", [True] * 93 + [False] * 7)
    two = run_with(tmp_path / "two", "RL", [False] * 7 + [True] * 93)
    assert truncated_warnings(one, two) == []
    assert truncated_warnings(one) == []


@pytest.mark.parametrize(("cut", "warned"), [(88, False), (78, True), (20, True)])
def test_models_of_which_one_was_cut_off_more_raise_one(tmp_path: Path, cut: int, warned: bool) -> None:
    """Five points and chance are not enough: of 90 prompts that were cut off before, two or twelve no longer are."""
    one = run_with(tmp_path / "one", "PT", [True] * 90 + [False] * 10)
    two = run_with(tmp_path / "two", "RL", [True] * cut + [False] * (100 - cut))
    found = truncated_warnings(one, two)
    assert bool(found) == warned
    if warned:
        [(model, message)] = found
        assert model == "RL"
        assert f"{cut}.0 % of the answers were cut off" in message
        assert "90.0 % of PT's" in message


def test_a_difference_that_may_be_chance_is_no_warning(tmp_path: Path) -> None:
    """Eight points of 100 prompts, 30 of which changed one way and 22 the other."""
    before = [True] * 50 + [False] * 50
    after = [False] * 30 + [True] * 20 + [True] * 22 + [False] * 28
    one, two = run_with(tmp_path / "one", "PT", before), run_with(tmp_path / "two", "RL", after)
    assert quality(one, two) == [pytest.approx(0.5), pytest.approx(0.42)]
    assert truncated_warnings(one, two) == []


def test_nothing_is_said_of_models_whose_ends_nobody_knows(tmp_path: Path) -> None:
    one = run_with(tmp_path / "one", "PT", [None] * N)
    two = run_with(tmp_path / "two", "RL", [True] * N)
    assert quality(one, two) == [None, 1.0]
    assert truncated_warnings(one, two) == []


# Tables -------------------------------------------------------------------------------------------------------------


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(**columns: list[Any]) -> list[dict[str, Any]]:
    n = len(next(iter(columns.values())))
    return [
        {
            "prompt": f"p {i}",
            "response": f"r {i}",
            "scores.a": 0.1,
            **{name: column[i] for name, column in columns.items()},
        }
        for i in range(n)
    ]


def test_an_imported_table_that_does_not_say_has_no_ends(tmp_path: Path) -> None:
    run = import_table(table(tmp_path / "t.csv", rows(other=[1, 2, 3])), tmp_path / "run", label="PT")
    assert [generation.finish for generation in run.generations()] == [None] * 3
    assert quality(run.path) == [None]


@pytest.mark.parametrize(("column", "mapping"), [("finish", {}), ("finish_reason", {}), ("why", {"finish": "why"})])
def test_a_table_may_say_how_answers_ended(tmp_path: Path, column: str, mapping: dict[str, str]) -> None:
    cells = ["stop", "length", "", "length"]
    run = import_table(
        table(tmp_path / "t.csv", rows(**{column: cells})), tmp_path / "run", label="PT", mapping=mapping
    )
    assert [generation.finish for generation in run.generations()] == ["stop", "length", None, "length"]
    assert quality(run.path) == [pytest.approx(2 / 3)]


def test_a_column_of_that_name_that_means_something_else_is_left_out_and_said(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", rows(finish=["stop", "matt", "length"]))
    run = import_table(path, tmp_path / "run", label="PT")
    assert [generation.finish for generation in run.generations()] == [None] * 3
    assert run.meta["notes"] == [
        "column 'finish' is left out: it holds 'matt', not stop (ended by itself), length (cut off) or nothing"
    ]
    with pytest.raises(DataError, match=r"line 3: finish is 'matt': expected stop, length or nothing"):
        import_table(path, tmp_path / "asked", label="PT", mapping={"finish": "finish"})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_ends_survive_export_and_import(tmp_path: Path, suffix: str) -> None:
    one = run_with(tmp_path / "one", "PT", [True, False, None, True])
    export_answers([one], tmp_path / f"out{suffix}")
    again = import_table(tmp_path / f"out{suffix}", tmp_path / "again", label="PT")
    assert [generation.finish for generation in again.generations()] == ["length", "stop", None, "length"]
    assert quality(one, again.path) == [pytest.approx(2 / 3)] * 2
    assert Run.open(again.path).meta["rows"] == 4
