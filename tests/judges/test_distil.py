"""Judges distilled into one: what is mixed, who may be distilled, and that a run keeps to those it began with."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from rewardlm.config import build
from rewardlm.errors import DataError, RunError, ScorerError
from rewardlm.judges.results import training_files
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.teachers import distil, load_judges, recorded
from rewardlm.judges.texts import LABELS, LabelledText
from rewardlm.judges.train import train_judge
from rewardlm.runs import Run

JUDGES = """
def short(texts):
    return [len(t) / 100 for t in texts]
def long(texts):
    return [len(t) / 50 for t in texts]
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "length_judges.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    return ["length_judges:short", "length_judges:long"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as file:
        rows = [
            [f"{word} number {number} of many", label]
            for number in range(60)
            for word, label in (("good", 0), ("bad", 1))
        ]
        csv.writer(file).writerows([["text", "hate"], *rows])
    return path


def small(data: Path, **more: object) -> JudgeTrainSettings:
    size = {"epochs": 1, "precision": "float32", "device": "cpu", "validation": 0.2, "lora": {"r": 4, "alpha": 8}}
    return JudgeTrainSettings(**{"data": [str(data)], **size, **more})  # type: ignore[arg-type]


def test_a_target_is_mostly_the_judges_mean(functions: list[str]) -> None:
    texts = [
        LabelledText("four", {"toxicity": 1.0, "hate": 1.0}, "a", False),
        LabelledText("seven 7", {"hate": 0.0}, "a", False),
        LabelledText("eight, 8", {"hate": 0.0}, "contrasts", False, complete=True),
    ]
    found = [dict(text.labels) for text in distil(texts, load_judges(functions, LABELS, "cpu"), 0.75, None)]
    # A quarter of what the source said, three of the mean of 0.04 and 0.08; the mean alone; of a complete text nothing.
    assert found[0] == {"toxicity": pytest.approx(0.25 + 0.75 * 0.06), "hate": 1.0}
    assert found[1] == {"toxicity": pytest.approx(0.105), "hate": 0.0}
    assert found[2] == {"hate": 0.0}


def test_several_are_named_as_judges_are_elsewhere(functions: list[str]) -> None:
    settings = build(JudgeTrainSettings, overrides=["data=starter", f"distil={','.join(functions)}"])
    assert settings.distil == functions
    with pytest.raises(Exception, match="twice"):
        JudgeTrainSettings(data=["starter"], distil=[functions[0], functions[0]])


def test_all_judges_are_looked_at_before_one_reads(functions: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"^distil: the main label of length_judges:long is toxicity; expected one of hate:"
    ):
        load_judges(["length_judges:long"], ["hate"], "cpu")
    with pytest.raises(ScorerError, match=r"^distil: no such folder './nowhere'"):
        load_judges([functions[0], "./nowhere"], LABELS, "cpu")


@pytest.mark.slow
def test_a_distilled_judge_says_whose_it_is_and_what_they_read(data: Path, tmp_path: Path) -> None:
    """A file that only the first judge read is known of the second, which was taught by it."""
    first = train_judge(small(data, labels=["hate"], main="hate"), tmp_path / "first").path
    other = tmp_path / "other.csv"
    other.write_text(data.read_text().replace("number", "count"))
    wanted = small(other, distil=[str(first)])
    second = train_judge(wanted, tmp_path / "second").path

    (sha256,) = training_files(str(first))
    assert sha256 in training_files(str(second))
    record = json.loads((second / "judge.json").read_text())
    (judge,) = record["distilled"]
    assert (judge["judge"], judge["label"], [source["sha256"] for source in judge["data"]]) == (
        "first",
        "hate",
        [sha256],
    )
    card = (second / "README.md").read_text()
    assert "| first | hate |" in card
    assert str(tmp_path) not in card.split("## How it was made")[0] + card.split("```")[2]

    # The same command gives the same run, and another judge in the first one's place is refused.
    assert train_judge(wanted, tmp_path / "second").finished
    shutil.rmtree(first)
    train_judge(small(data, labels=["hate"], main="hate", seed=1), first)
    with pytest.raises(
        RunError, match=r"^[^\n]*second was distilled from another first \(weights \w{12}, now \w{12}\)"
    ):
        train_judge(wanted, tmp_path / "second")


def test_pairs_alone_have_no_text_to_teach_with(functions: list[str], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"chosen": f"a kind word {number}", "rejected": f"a rude word {number}"} for number in range(20)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"^distil: .*preference pairs alone"):
        train_judge(small(pairs, distil=functions), tmp_path / "judge")
    assert not Run.open(tmp_path / "judge").finished


@pytest.mark.slow
def test_a_judges_folder_is_named_without_its_path(data: Path, tmp_path: Path) -> None:
    folder = train_judge(small(data), tmp_path / "mine").path
    found = [recorded(judge) for judge in load_judges([str(folder), f"{folder}#hate"], LABELS, "cpu")]
    assert [judge.judge for judge in found] == ["mine", "mine#hate"]
    assert [recorded(judge).judge for judge in load_judges(["starter", "starter#hate"], LABELS, "cpu")] == [
        "starter",
        "starter#hate",
    ]
    assert [judge.label for judge in found] == ["toxicity", "hate"]
