"""``judge.json`` is read and written without loss; the shipped judges' files are the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewardlm.scoring.record import RECORD, SHIPPED, add_figures, all_sources, read_record, shipped_folder, write_record

ADDED_LATER = {"metrics", "speed"}


def written(name: str) -> dict[str, object]:
    folder = shipped_folder(name)
    assert folder is not None
    found: dict[str, object] = json.loads((folder / RECORD).read_text())
    return found


@pytest.mark.parametrize("name", [*SHIPPED, "starter_pairs"])
def test_what_was_read_is_written_again(name: str, tmp_path: Path) -> None:
    folder = shipped_folder(name)
    assert folder is not None
    record = read_record(folder)
    assert record is not None
    write_record(tmp_path, record)
    # What is known of a judge of texts only later, its limits too, is added to the file.
    later = ADDED_LATER if record.kind == "pairs" else ADDED_LATER | {"limits"}
    expected = {key: value for key, value in written(name).items() if key not in later}
    end = "\n" if record.kind == "pairs" else ""
    assert (tmp_path / RECORD).read_text() == json.dumps(expected, indent=1) + end


@pytest.mark.parametrize("name", ["starter", "starter_pairs"])
def test_figures_are_added_and_nothing_else_changes(name: str, tmp_path: Path) -> None:
    before = written(name) | {"note": "by hand"}
    (tmp_path / RECORD).write_text(json.dumps(before))
    figures = before["metrics"]
    assert isinstance(figures, dict)
    new = {"new": next(iter(figures.values()))}
    record = add_figures(tmp_path, new)
    after = json.loads((tmp_path / RECORD).read_text())
    assert after == before | {"metrics": figures | new}
    assert set(record.pair_figures if record.kind == "pairs" else record.figures) == set(figures) | {"new"}


def test_sources_of_a_judge_are_its_own_and_its_teachers(tmp_path: Path) -> None:
    teacher = {"judge": "a", "label": "hate", "revision": "1", "data": [{"kind": "old", "sha256": "1"}]}
    between = {"judge": "b", "label": "hate", "revision": "2", "data": [], "teacher": teacher}
    own = {"labels": ["hate"], "data": [{"kind": "new", "sha256": "2"}], "distilled": [between]}
    (tmp_path / RECORD).write_text(json.dumps(own))
    record = read_record(tmp_path)
    assert record is not None
    assert [(source.kind, source.sha256) for source in all_sources(record)] == [("new", "2"), ("old", "1")]
    assert [one.judge for one in record.teachers] == ["b"]
    assert record.teachers[0].teachers[0].known is False
    assert read_record(tmp_path / "nowhere") is None
