from pathlib import Path

import pytest

from rewardlm.errors import RunError
from rewardlm.runs import Run
from rewardlm.viewing.folders import Place, find_runs, identity


def made(path: Path, kind: str = "rlaf") -> Path:
    return Run.start(path, kind=kind, label=path.name, settings={}).path


def test_runs_are_found_themselves_and_inside_of_folders_and_experiments(tmp_path: Path):
    wanted = [made(tmp_path, "experiment")]
    wanted += [made(tmp_path / "measure" / "PT", "measure"), made(tmp_path / "train" / "RL")]
    made(tmp_path / "train" / "RL" / "adapter" / "no")
    made(tmp_path / ".hidden")
    assert sorted(find_runs(Place.of(str(tmp_path)))) == sorted(path.resolve() for path in wanted)


def test_a_folder_may_fill_later(tmp_path: Path):
    place = Place.of(str(tmp_path / "later"))
    assert find_runs(place) == []
    made(tmp_path / "later" / "rl")
    assert find_runs(place) == [(tmp_path / "later" / "rl").resolve()]


def test_no_link_leads_out_of_a_folder(tmp_path: Path):
    outside = made(tmp_path / "outside" / "rl")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    linked = inside / "file"
    linked.mkdir()
    (linked / "run.json").symlink_to(outside / "run.json")
    assert find_runs(Place.of(str(inside))) == []


def test_a_link_that_was_named_is_what_the_user_wants(tmp_path: Path):
    made(tmp_path / "rl")
    (tmp_path / "newest").symlink_to(tmp_path / "rl")
    place = Place.of(str(tmp_path / "newest"))
    (found,) = find_runs(place)
    assert place.name_of(found) == str(tmp_path / "newest")


def test_names_are_as_they_would_be_typed(tmp_path: Path, monkeypatch):
    made(tmp_path / "runs" / "train" / "RL")
    monkeypatch.chdir(tmp_path)
    place = Place.of("runs")
    (found,) = find_runs(place)
    assert place.name_of(found) == "runs/train/RL"


def test_a_file_is_no_place(tmp_path: Path):
    (tmp_path / "page.html").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        Place.of(str(tmp_path / "page.html"))


def test_ids_say_nothing_of_paths_and_differ(tmp_path: Path):
    first, second = identity(tmp_path / "a"), identity(tmp_path / "b")
    assert first != second
    assert first.isalnum()
    assert first == identity(tmp_path / "a")
