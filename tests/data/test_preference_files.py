"""Your own preferences: TRL's formats, and what is refused with the line that is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest
from trl import extract_prompt

from rewardlm.data.preferences import load_preferences
from rewardlm.errors import DataError
from rewardlm.types import Message

USER = {"role": "user", "content": "Who are they?"}
GOOD, BAD = {"role": "assistant", "content": "People."}, {"role": "assistant", "content": "Nobody."}
ASKED = (Message("user", "Who are they?"),)


def written(folder: Path, *rows: dict) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who are they?", "chosen": "People.", "rejected": "Nobody."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["texts", "messages", "whole conversations"],
)
def test_a_pair_in_each_of_trls_formats(tmp_path, row):
    [found] = load_preferences(written(tmp_path, row), method="dpo")
    assert (found.history, found.chosen, found.rejected) == (ASKED, "People.", "Nobody.")


def test_whole_conversations_are_cut_where_trl_cuts_them(tmp_path):
    before = [{"role": "system", "content": "Be kind."}, USER, GOOD, {"role": "user", "content": "Really?"}]
    row = {"chosen": [*before, GOOD], "rejected": [*before, BAD]}
    [found] = load_preferences(written(tmp_path, row), method="dpo")
    theirs = extract_prompt(row)
    assert [{"role": turn.role, "content": turn.text} for turn in found.history] == theirs["prompt"]
    assert (found.chosen, found.rejected) == (theirs["chosen"][0]["content"], theirs["rejected"][0]["content"])


def test_an_answer_may_be_said_to_have_been_cut_off(tmp_path):
    pair = {"prompt": "Who?", "chosen": "People.", "rejected": "Nobody and"}
    rows = [pair, {**pair, "chosen_finish": "stop", "rejected_finish": "length"}, {**pair, "chosen_finish": "length"}]
    found = load_preferences(written(tmp_path, *rows), method="dpo")
    assert [(one.chosen_ended, one.rejected_ended) for one in found] == [(True, True), (True, False), (False, True)]
    single = {"prompt": "Who?", "completion": "Nobody and", "completion_finish": "length"}
    [one] = load_preferences(written(tmp_path, {**single, "label": False}), method="kto")
    assert (one.rejected, one.rejected_ended) == ("Nobody and", False)
    [one] = load_preferences(written(tmp_path, single), method="raft")
    assert (one.chosen, one.chosen_ended) == ("Nobody and", False)
    [one] = load_preferences(written(tmp_path, {**pair, "rejected": None, "chosen_finish": "length"}), method="raft")
    assert not one.chosen_ended
    expected = r"line 1: rejected_finish is 'eos'; expected stop .* or length"
    with pytest.raises(DataError, match=expected):
        load_preferences(written(tmp_path, {**pair, "rejected_finish": "eos"}), method="dpo")


def test_an_answer_of_no_words_may_be_rejected_but_not_chosen(tmp_path):
    """``prefer`` itself leaves such pairs. A text of no words, as in a .csv, is no answer at all."""
    said_nothing = [{"role": "assistant", "content": ""}]
    for row in (
        {"prompt": [USER], "chosen": [GOOD], "rejected": said_nothing},
        {"chosen": [USER, GOOD], "rejected": [USER, *said_nothing]},
    ):
        [found] = load_preferences(written(tmp_path, row), method="dpo")
        assert (found.history, found.chosen, found.rejected) == (ASKED, "People.", "")
    with pytest.raises(DataError, match="chosen is not one answer"):
        load_preferences(written(tmp_path, {"prompt": [USER], "chosen": said_nothing, "rejected": [BAD]}), method="dpo")
    with pytest.raises(DataError, match="there is no rejected answer"):
        load_preferences(written(tmp_path, {"prompt": "Hi?", "chosen": "Yes.", "rejected": ""}), method="dpo")


def test_single_answers_for_kto(tmp_path):
    rows = [{"prompt": "Hi?", "completion": text, "label": label} for text, label in (("Yes.", True), ("No.", False))]
    good, bad = load_preferences(written(tmp_path, *rows), method="kto")
    assert (good.chosen, good.rejected, bad.chosen, bad.rejected) == ("Yes.", None, None, "No.")
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["Hi?", "Yes.", "True"], ["Hi?", "No.", "0"]])
    assert [one.chosen for one in load_preferences(path, method="kto")] == ["Yes.", None]
    with pytest.raises(DataError, match="which --method kto learns"):
        load_preferences(path, method="dpo")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who are they?", "completion": "People."},
        {"prompt": [USER], "completion": [GOOD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": None},  # as raft itself wrote them once
        {"prompt": "Who are they?", "chosen": "People."},
        {"chosen": [USER, GOOD], "rejected": None},
        {"prompt": "Who are they?", "chosen": "People.", "rejected": "Nobody."},
    ],
)
def test_single_answers_for_raft_alone(tmp_path, row):
    path = written(tmp_path, row)
    [found] = load_preferences(path, method="raft")
    pair = bool(row.get("rejected"))
    assert (found.history, found.chosen, found.rejected) == (ASKED, "People.", "Nobody." if pair else None)
    if not pair:
        for method in ("dpo", "kto"):
            with pytest.raises(DataError, match=r"line 1: .*--method raft learns.*; expected prompt, chosen") as caught:
                load_preferences(path, method=method)
            assert "\n" not in str(caught.value)


def test_what_raft_can_not_learn(tmp_path):
    with pytest.raises(DataError, match=r"which --method kto learns; expected prompt and completion"):
        load_preferences(written(tmp_path, {"prompt": "Hi?", "completion": "No.", "label": False}), method="raft")
    with pytest.raises(DataError, match="chosen is not one answer"):
        load_preferences(written(tmp_path, {"prompt": "Hi?", "chosen": " ", "rejected": None}), method="raft")
    with pytest.raises(DataError, match="does not end with a text of the user's"):
        load_preferences(written(tmp_path, {"chosen": "No.", "rejected": None}), method="raft")


def test_a_parquet_file_as_a_data_set_is_saved(tmp_path):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    datasets.Dataset.from_list([row, row]).to_parquet(tmp_path / "mine.parquet")
    found = load_preferences(tmp_path / "mine.parquet", method="dpo")
    assert [one.chosen for one in found] == ["People.", "People."]


def test_conversations_in_a_csv_are_read_as_such_and_never_learnt_as_json(tmp_path):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    path = tmp_path / "mine.csv"

    def write(text):
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([row.keys(), [text(cell) for cell in row.values()]])
        return load_preferences(path, method="dpo")

    [found] = write(json.dumps)
    assert (found.history, found.chosen, found.rejected) == (ASKED, "People.", "Nobody.")
    # As pandas writes lists.
    with pytest.raises(
        DataError, match=r"line 2: chosen looks like a list of messages, but is no JSON.*write it as JSON"
    ):
        write(str)
    row["chosen"] = [{"role": "assistant", "content": 1}]
    with pytest.raises(DataError, match="line 2: chosen looks like a list of messages, but is no JSON"):
        write(lambda cell: json.dumps(cell).replace("1", "[" * 100_000))
    row = {"prompt": "Who are they?", "chosen": "[People]", "rejected": '["Nobody."]'}
    [found] = write(str)
    assert (found.chosen, found.rejected) == ("[People]", '["Nobody."]')


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Hi"}, "columns are 'text'; expected prompt, chosen and rejected"),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "Yes."}, "chosen and rejected are the same"),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": " "}, "rejected is not one answer"),
        ({"prompt": "", "chosen": "Yes.", "rejected": "No."}, "there is no prompt"),
        ({"prompt": [GOOD], "chosen": "Yes.", "rejected": "No."}, "does not end with a text of the user's"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "No."}, "chosen is 3; expected a text or a list of messages"),
        ({"prompt": [{"role": "judge", "content": "x"}], "chosen": "Yes.", "rejected": "No."}, "a role of system"),
        ({"chosen": [USER, GOOD], "rejected": [GOOD, BAD]}, "are not two conversations that differ in their last turn"),
        ({"prompt": "Hi", "completion": "Yes.", "label": "maybe"}, "label is 'maybe'; expected true"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, row, says):
    good = {"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}
    with pytest.raises(DataError, match="line 2") as caught:
        load_preferences(written(tmp_path, good, row), method="kto")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_preferences(tmp_path / "none.jsonl", method="dpo")
    (tmp_path / "mine.txt").write_text("a\n")
    with pytest.raises(DataError, match="expected one of"):
        load_preferences(tmp_path / "mine.txt", method="dpo")
