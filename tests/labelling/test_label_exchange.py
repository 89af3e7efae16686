"""Labels to other programs' files and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from test_folder import folder_of

from rewardlm.errors import DataError
from rewardlm.labelling.exchange import export, import_labels
from rewardlm.labelling.folder import LabelFolder, Said

FORMS = [("csv", "l.csv"), ("label-studio", "l.json"), ("argilla", "l.json")]


def with_labels(tmp_path: Path) -> LabelFolder:
    folder = folder_of(tmp_path)
    for place, item in enumerate(folder.items[:9]):
        folder.add([Said(item.id, 'ann, or "an"', (1, 0, None)[place % 3], "now")])
    folder.add([Said(folder.items[0].id, "ben", 0, "now")])
    return folder


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_what_is_written_is_read_back_and_names_no_model(tmp_path: Path, form, name: str) -> None:
    folder = with_labels(tmp_path)
    assert export(folder, tmp_path / name, form) == 10
    text = (tmp_path / name).read_text()
    assert folder.items[29].id in text
    blank = folder_copy(folder, tmp_path / "blank")
    assert import_labels(blank, tmp_path / name) == 10
    assert blank.said() == folder.said()
    assert import_labels(blank, tmp_path / name) == 0, "what is known already is no news"
    without_texts = text
    for item in folder.items:
        without_texts = without_texts.replace(item.text, "")
    assert "PT" not in without_texts
    assert "FT" not in without_texts


def folder_copy(folder: LabelFolder, to: Path) -> LabelFolder:
    to.mkdir()
    for file in folder.run.path.iterdir():
        if file.name != "labels.jsonl":
            (to / file.name).write_bytes(file.read_bytes())
    return LabelFolder.open(to)


def test_a_table_is_filled_in_by_hand(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    export(folder, tmp_path / "l.csv", "csv")
    rows = list(csv.DictReader((tmp_path / "l.csv").open()))
    assert [row["item"] for row in rows] == [item.id for item in folder.items]
    words = ["yes", " No", "unsure", "TRUE", "0", "", "1"]
    with open(tmp_path / "filled.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["item", "labeller", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "labeller": "x", "label": word} for row, word in zip(rows, words, strict=False))
    assert import_labels(folder, tmp_path / "filled.csv") == 6
    assert list(folder.said()["x"].values()) == [1, 0, None, 1, 0, 1]


def test_what_label_studio_itself_writes_is_read(tmp_path: Path) -> None:
    """An export of Label Studio has ids where ours has addresses, skipped tasks, and keys of its own."""
    folder = folder_of(tmp_path)
    one, two, three = folder.items[:3]

    def task(item, choice, **more):
        result = {"id": "abc", "type": "choices", "from_name": "toxic", "to_name": "text", "origin": "manual",
                  "value": {"choices": [choice]}}  # fmt: skip
        return {"id": 5, "data": {"item": item.id, "prompt": item.prompt, "text": item.text}, "predictions": [],
                "annotations": [{"id": 9, "completed_by": 7, "result": [result], "was_cancelled": False,
                                 "lead_time": 2.5, **more}]}  # fmt: skip

    tasks = [task(one, "yes"), task(two, "unsure"), task(three, "no", was_cancelled=True, result=[])]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert import_labels(folder, tmp_path / "export.json") == 2
    assert folder.said() == {"7": {one.id: 1, two.id: None}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{item},x,maybe", "the label is 'maybe': expected yes, no or unsure"),
        ("nobody,x,yes", "there is no item 'nobody'"),
        ("{item},,yes", "the labeller is '': expected a name"),
        ("{item},a\x1b[2J,yes", "expected a name of 1 to 100 characters"),
        ("{item},x,yes\n{item},x,no", "has two labels for"),
    ],
)
def test_a_mistake_in_the_file_adds_nothing(tmp_path: Path, line: str, said: str) -> None:
    folder = folder_of(tmp_path)
    good, item = folder.items[0].id, folder.items[1].id
    (tmp_path / "l.csv").write_text(f"item,labeller,label\n{good},x,yes\n{line.format(item=item)}\n")
    with pytest.raises(DataError, match=said):
        import_labels(folder, tmp_path / "l.csv")
    assert folder.said() == {}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "item,label\na,yes\n", "there is no column labeller"),
        ("l.csv", "prompt,answer,labeller,label\nno,such answer,x,yes\n", "has no label of an answer in"),
        ("l.json", "{}", "expected a list"),
        ("l.json", '[{"annotations": [{"result": 3}]}]', "entry 1"),
        ("l.json", "[7]", "entry 1"),
    ],
)
def test_another_file_is_told_apart(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        import_labels(folder_of(tmp_path), tmp_path / name)
