"""A folder of labels: what is kept, what a killed process leaves, and what is refused."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import scored

from rewardlm.config import LabelSettings
from rewardlm.errors import DataError, DiskFullError, RunError
from rewardlm.labelling.folder import LabelFolder, Said, hash_of_answers
from rewardlm.labelling.session import Session
from rewardlm.measuring.label_sample import label_folder
from rewardlm.runs import Run


def folder_of(tmp_path: Path, **settings) -> LabelFolder:
    paths = [scored(tmp_path / label, label, seed=seed)[0] for seed, label in enumerate(("PT", "FT"))]
    return label_folder(LabelSettings(labels=30, **settings), paths, tmp_path / "labels")


def test_what_is_asked_comes_from_all_runs_and_tells_none(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    again = LabelFolder.open(tmp_path / "labels")
    assert again.items == folder.items
    assert [one.run for one in folder.items].count(0) == 15
    for run, label in enumerate(("PT", "FT")):
        answers = Run.open(tmp_path / label).generations()
        assert folder.runs[run].hash == hash_of_answers((one.id, one.text) for one in answers)
        for item in folder.items:
            if item.run == run:
                assert item.text == answers[item.answer].text
    assert len({one.id for one in folder.items}) == 30
    # Models take turns: whoever stops early has labelled each alike.
    assert abs([one.run for one in folder.items[:10]].count(0) - 5) <= 1
    assert sum(one.shared for one in folder.items) == int(30 * 0.25)
    # The same command goes on; other settings or runs are refused.
    assert folder_of_again(tmp_path).items == folder.items
    with pytest.raises(RunError, match="made with other settings"):
        label_folder(LabelSettings(labels=31), [tmp_path / "PT", tmp_path / "FT"], tmp_path / "labels")
    with pytest.raises(RunError, match="made with other settings"):
        label_folder(LabelSettings(labels=30), [tmp_path / "PT"], tmp_path / "labels")


def folder_of_again(tmp_path: Path) -> LabelFolder:
    return label_folder(LabelSettings(labels=30), [tmp_path / "PT", tmp_path / "FT"], tmp_path / "labels")


def test_the_last_word_counts_and_most_labellers_decide(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    one, two, three, four = (item.id for item in folder.items[:4])

    def say(labeller: str, item: str, label: float | None, **more) -> None:
        folder.add([Said(item, labeller, label, "2026-01-01", **more)])

    say("x", one, 1)
    say("x", one, 0)
    say("y", one, 0)
    say("z", one, 1)
    say("x", two, 1)
    say("y", two, 0)
    say("x", three, None)
    say("x", four, 1)
    say("x", four, None, undone=True)
    again = LabelFolder.open(folder.run.path)
    assert again.said() == {"x": {one: 0, two: 1, three: None}, "y": {one: 0, two: 0}, "z": {one: 1}}
    labels = {item.id: again.labels_of(item.run)[item.answer] for item in again.items}
    assert labels[one] == 0
    assert labels[two] == 0.5
    assert np.isnan([labels[three], labels[four]]).all()
    assert np.isnan([labels[item.id] for item in again.items[4:]]).all()


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    file = folder.run.path / "labels.jsonl"
    folder.add([Said(folder.items[0].id, "x", 1, "now")])
    with open(file, "ab") as opened:
        opened.write(b'{"item": "' + folder.items[1].id.encode())
    again = LabelFolder.open(folder.run.path)
    assert again.said() == {"x": {folder.items[0].id: 1}}
    with again.alone():
        again.add([Said(folder.items[2].id, "x", 0, "now")])
    assert len(file.read_text().splitlines()) == 2
    assert LabelFolder.open(folder.run.path).said() == {"x": {folder.items[0].id: 1, folder.items[2].id: 0}}


def test_two_commands_never_write_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with (
        folder.alone(),
        pytest.raises(RunError, match="another command"),
        LabelFolder.open(folder.run.path).alone(),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("labels", {"item": "nobody", "labeller": "x", "label": 1, "at": "now"}, "unknown items: nobody"),
        ("labels", {"item": "nobody"}, "labeller is missing"),
        ("items", {"id": "z", "run": 7, "answer": 0, "shared": True, "prompt": "", "text": ""}, "classes.jsonl lacks"),
    ],
)
def test_what_was_changed_by_hand_is_said(tmp_path: Path, name: str, change: dict, said: str) -> None:
    folder = folder_of(tmp_path)
    with open(folder.run.path / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(change) + "\n")
    with pytest.raises(RunError, match=said):
        _ = LabelFolder.open(folder.run.path).lines


def test_each_labeller_gets_the_shared_items_and_the_others_go_to_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, shared=0.5)
    session = Session(folder)
    seen: dict[str, list[str]] = {"x": [], "y": []}
    for turn in range(100):
        name = "xy"[turn % 2]
        item = session.next(name)
        if item is not None:
            assert session.next(name) == item, "asking twice changes nothing"
            session.label(name, item.id, turn % 2, 1.0)
            seen[name].append(item.id)
    shared = {item.id for item in folder.items if item.shared}
    assert len(shared) == 15
    assert set(seen["x"]) & set(seen["y"]) == shared
    assert set(seen["x"]) | set(seen["y"]) == set(folder.by_id)
    assert (session.progress("x").left, session.progress("y").left) == (0, 0)
    # A third labeller has the shared ones alone.
    assert session.progress("z").left == 15


def test_undo_takes_back_one_after_the_other(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path, shared=1.0))
    assert session.undo("x", 0) is None
    items = []
    for _ in range(3):
        item = session.next("x")
        assert item is not None
        session.label("x", item.id, 1, None)
        items.append(item)
    assert session.undo("x", 3) == items[2]
    assert session.undo("x", 3) is None, "the same request again takes nothing more"
    assert session.undo("x", 2) == items[1]
    assert session.next("x") == items[1]
    assert session.progress("x").done == 1
    with pytest.raises(DataError, match="no item"):
        session.label("x", "nobody", 1, None)
    with pytest.raises(DataError, match="expected 1, 0 or null"):
        session.label("x", items[0].id, 2, None)


def test_runs_without_a_common_judge_or_an_answer_of_the_split_are_refused(tmp_path: Path) -> None:
    path, _ = scored(tmp_path / "PT", "PT")
    with pytest.raises(RunError, match="has no scores by 'nobody'"):
        label_folder(LabelSettings(scorer="nobody"), [path], tmp_path / "one")
    with pytest.raises(RunError, match="no answer in the split challenging"):
        label_folder(LabelSettings(split="challenging"), [path], tmp_path / "two")
    only = label_folder(LabelSettings(labels=10, split="toxic_prompts"), [path], tmp_path / "three")
    assert all(item.prompt.endswith(tuple("13579")) for item in only.items)


def test_what_somebody_holds_who_left_comes_last(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path, shared=0.0))
    held = session.next("an")  # a typing error: nobody of that name comes back
    assert held is not None
    seen = []
    while (item := session.next("ann")) is not None:
        session.label("ann", item.id, 0, None)
        seen.append(item.id)
    assert len(seen) == 30
    assert seen[-1] == held.id
    assert session.progress("ann").left == 0


def test_what_one_could_not_tell_another_may_try(tmp_path: Path) -> None:
    session = Session(folder_of(tmp_path, shared=0.0))
    first = session.next("ann")
    assert first is not None
    session.label("ann", first.id, None, None)
    assert session.next("ben") == first
    session.label("ben", first.id, 1, None)
    assert session.next("carl") != first


def test_a_label_that_can_not_be_written_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """The file may grow by 30 bytes more, as on a full disk; the same label is sent again once there is room."""
    folder = folder_of(tmp_path)
    folder.add([Said(folder.items[0].id, "x", 1, "now")])
    size = (folder.run.path / "labels.jsonl").stat().st_size
    said = Said(folder.items[1].id, "x", 0, "now")
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))
        with pytest.raises(DiskFullError, match="too large"):
            folder.add([said])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    assert (folder.run.path / "labels.jsonl").stat().st_size == size
    folder.add([said])
    assert LabelFolder.open(folder.run.path).said() == {"x": {folder.items[0].id: 1, folder.items[1].id: 0}}


def test_a_folder_that_is_open_elsewhere_is_not_touched(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with folder.alone(), pytest.raises(RunError, match="another command"):
        folder_of_again(tmp_path)


def test_prompts_are_toxic_by_the_threshold_that_the_run_recorded(tmp_path: Path) -> None:
    path, _ = scored(tmp_path / "PT", "PT")
    moved = {"value": 0.05, "matching": "share", "old": 0.5, "n": 100, "redrawn": [], "source": "x", "revision": None}
    run = Run.open(path)
    run.update(toxic_by="a", thresholds={"a": moved})
    groups = label_folder(LabelSettings(labels=30), [path], tmp_path / "labels").runs[0].groups
    assert groups.all(), "prompts have .1 or .9, and both are over .05"
