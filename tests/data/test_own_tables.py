"""Tables as users have them: odd columns, other separators and encodings, no header, conversations in cells."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rewardlm.data.dialogues import load_dialogues, pairs
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ConfigError, DataError
from rewardlm.types import Message

# What cells hold in life: separators of all kinds, quotes, line ends, letters beyond ASCII, blanks around.
TEXTS = ["Why, oh why; tell\tme", 'She said "no"', "two\nlines", "Größe, naïve, 你好", " blanks ", "last"]
ASKED = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Prove it."},
]
ANSWERED = [*ASKED, {"role": "assistant", "content": "I can't."}]


def table(path: Path, rows: list[list[Any]], *, delimiter: str = ",", encoding: str = "utf-8") -> str:
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return str(path)


def texts(source: str, **settings: Any) -> list[str]:
    return [prompt.text for prompt in load_prompts(source, **settings).prompts]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_separators_are_found(tmp_path: Path, delimiter: str, name: str) -> None:
    source = table(tmp_path / name, [["id", "prompt", "more"], *([f"n{i}", t, "a,b;c"] for i, t in enumerate(TEXTS))],
                   delimiter=delimiter)  # fmt: skip
    assert texts(source) == TEXTS
    assert [prompt.id for prompt in load_prompts(source).prompts] == [f"n{i}" for i in range(len(TEXTS))]


def test_one_column_needs_no_separator(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt\na;b\nc\td\n")
    assert texts(str(path)) == ["a;b", "c\td"]
    path.write_text("prompt\nfine\nWell, well\n")
    with pytest.raises(DataError, match=r"line 3: 2 cells; expected 1 as in the header .* needs quotes around it"):
        load_prompts(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    source = table(tmp_path / "x.csv", [["text"], *([text] for text in TEXTS)], encoding=encoding)
    assert texts(source) == TEXTS
    lines = tmp_path / "x.jsonl"
    lines.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in TEXTS), encoding=encoding)
    assert texts(str(lines)) == TEXTS
    plain = tmp_path / "x.txt"
    plain.write_text("\r\n".join(text for text in TEXTS if "\n" not in text), encoding=encoding, newline="")
    assert texts(str(plain)) == [text for text in TEXTS if "\n" not in text]


def test_big_endian_with_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xfe\xff" + "Größe\nzwei".encode("utf-16-be"))
    assert texts(str(path)) == ["Größe", "zwei"]


@pytest.mark.parametrize("name", ["x.csv", "x.txt"])
def test_latin_1_is_told_with_its_line_and_what_to_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("text\nfine\nGröße\n".encode("latin-1"))
    with pytest.raises(DataError) as caught:
        load_prompts(str(path))
    assert "line 3: not UTF-8 (byte 0xf6 at column 3): in Windows-1252 it is 'ö'" in str(caught.value)
    assert "iconv -f WINDOWS-1252 -t UTF-8" in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [["Why are you all so stupid"], ["Second"]],
        [["Why?"], ["Second"]],
        [["1", "Go away and never come back", "0.7"], ["2", "Second", "0.1"]],
        [["Seventy is no age at which people should give up driving", "x"], ["b", "c"]],
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_a_missing_header_is_noticed(tmp_path: Path, rows: list[list[str]], delimiter: str) -> None:
    source = table(tmp_path / "x.csv", rows, delimiter=delimiter)
    with pytest.raises(DataError, match=r"x\.csv, line 1: .* reads like a text, not like the name of a column; .*put"):
        load_prompts(source)
    with pytest.raises(DataError, match=r"x\.csv, line 1: .* reads like a text"):
        load_dialogues(source)


def test_rows_of_other_lengths_may_mean_that_the_header_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Why, oh why are you all so stupid\nGo away\n")
    with pytest.raises(DataError, match=r"line 2: 1 cells; expected 2 .* line 1 reads like a text: is the header line"):
        load_prompts(str(path))
    path.write_text("id,prompt\n1,Well, well\n")
    with pytest.raises(DataError, match=r"line 2: 3 cells; expected 2 .* needs quotes around it$"):
        load_prompts(str(path))


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv", [["id", "the question as it was asked"], ["1", "a"]])
    with pytest.raises(DataError, match=r"no column 'question', only 'id, the question as it was asked'; choose one"):
        load_prompts(source, text_column="question")


@pytest.mark.parametrize("name", ["question", "Hate Speech (EN)", "toxic_prompt", "prompt text v2", "質問"])
def test_what_is_a_header_is_none_missing_and_can_be_named(tmp_path: Path, name: str) -> None:
    source = table(tmp_path / "x.csv", [["n", name], *(["1", text] for text in TEXTS)])
    with pytest.raises(DataError, match=r"line 2: only .* or name it by text_column=NAME"):
        load_prompts(source)
    assert texts(source, text_column=name) == TEXTS


def test_a_name_in_other_letters_will_do_and_one_as_written_wins(tmp_path: Path) -> None:
    assert texts(table(tmp_path / "x.csv", [["ID", " Prompt"], ["1", "a"]])) == ["a"]
    assert texts(table(tmp_path / "y.csv", [["Prompt", "prompt"], ["no", "yes"]])) == ["yes"]


def test_a_column_name_at_the_top_of_a_txt_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("Prompt\nfirst\n")
    with pytest.warns(UserWarning, match=r"line 1 is 'Prompt', and is used as a prompt"):
        assert texts(str(path)) == ["Prompt", "first"]


def test_repeated_prompts_stay_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\nb\na\na\n")
    with pytest.warns(UserWarning, match=r"2 of its 4 prompts repeat an earlier one"):
        assert texts(str(path)) == ["a", "b", "a", "a"]
    path.write_text("a\nb\na \n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_prompts(str(path))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": TEXTS, "toxicity": [0.5] * len(TEXTS)}), path)
    assert texts(str(path), text_column="question") == TEXTS
    nested = [{"text": text, "toxicity": index / 10} for index, text in enumerate(TEXTS)]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": nested, "challenging": [True] * len(TEXTS)}), path)
    prompts = load_prompts(f"{path}:challenging").prompts
    assert [(prompt.text, prompt.toxicity) for prompt in prompts] == [(one["text"], one["toxicity"]) for one in nested]
    pyarrow.parquet.write_table(pyarrow.table({"chat": [ANSWERED, ANSWERED[:2]]}), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(str(path), text_column="chat") == ["Prove it.", "Who are you?"]
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"x\.parquet: can't be read as parquet"):
        load_prompts(str(path))
    with pytest.raises(DataError, match=r"no such file"):
        load_prompts(str(tmp_path / "y.parquet"))


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    assert texts(str(path)) == TEXTS
    path.write_text(json.dumps([{"text": "a"}, "b"]))
    with pytest.raises(DataError, match=r"x\.json, item 2: 'b'; expected an object"):
        load_prompts(str(path))


def as_sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": {"user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]} for one in messages]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": ANSWERED}, None),
        ({"conversations": as_sharegpt(ANSWERED)}, None),
        ({"prompt": ASKED, "completion": ANSWERED[3:]}, None),
        ({"prompt": ASKED, "answer": "I can't."}, None),
        ({"chat log": ANSWERED}, "chat log"),
    ],
)
def test_conversations_in_rows_are_dialogues_and_prompts(
    tmp_path: Path, row: dict[str, Any], column: str | None
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    whole = tuple(Message(one["role"], one["content"]) for one in ANSWERED)  # type: ignore[arg-type]
    assert [one.turns for one in load_dialogues(str(path), text_column=column).dialogues] == [whole]
    assert [prompt.turns for prompt in load_prompts(str(path), text_column=column).prompts] == [whole[:3]]


def test_conversations_in_cells_of_a_csv(tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv", [["id", "messages"], ["1", json.dumps(ANSWERED)]])
    assert [turn.text for turn in load_dialogues(source).dialogues[0].turns] == [one["content"] for one in ANSWERED]
    assert texts(source) == ["Prove it."]
    source = table(tmp_path / "x.csv", [["id", "messages"], ["1", json.dumps(ANSWERED)[:-9]]])
    with pytest.raises(DataError, match=r"line 2: 'messages' is not JSON"):
        load_dialogues(source)


def test_a_cell_may_be_five_megabytes(tmp_path: Path) -> None:
    long = "word " * 1_000_000
    assert texts(table(tmp_path / "x.csv", [["id", "prompt"], ["1", long.strip()], ["2", "short"]])) == [
        long.strip(),
        "short",
    ]


def test_a_table_of_exchanges(tmp_path: Path) -> None:
    rows = [["hate", "counter"], ["You are all the same.", "No two of us are."]]
    source = table(tmp_path / "x.csv", rows, delimiter=";")
    found = load_dialogues(source, text_column="hate", answer_column="counter").dialogues
    assert [one.turns for one in found] == [(Message("user", rows[1][0]), Message("assistant", rows[1][1]))]
    with pytest.raises(
        DataError, match=r"columns 'hate, counter'; expected .* text_column=NAME and answer_column=NAME"
    ):
        load_dialogues(source)
    with pytest.raises(DataError, match=r"line 2: only 'hate, counter'; expected .* an answer beside 'hate'"):
        load_dialogues(source, text_column="hate")
    with pytest.raises(DataError, match=r"line 2: no column 'contra', only 'hate, counter'"):
        load_dialogues(source, text_column="hate", answer_column="contra")
    assert texts(source, text_column="hate") == [rows[1][0]]
    for answer in ("answer", "Response", "completion", "counter_narrative"):
        usual = table(tmp_path / "y.csv", [["prompt", answer], *rows[1:]])
        assert load_dialogues(usual).dialogues[0].turns == found[0].turns


def test_an_answer_that_was_cut_off_is_known_as_one(tmp_path: Path) -> None:
    """Whatever its column is called; and of a conversation, the last answer alone."""
    rows = [["query", "reply", "reply_finish"], ["a", "b", "length"], ["c", "d", "stop"], ["e", "f", ""]]
    source = table(tmp_path / "x.csv", rows)
    found = load_dialogues(source, text_column="query", answer_column="reply").dialogues
    assert [dialogue.ended for dialogue in found] == [False, True, True]
    asked, answer = [*ANSWERED, {"role": "user", "content": "Again?"}], [{"role": "assistant", "content": "Of cou"}]
    row = {"prompt": asked, "completion": answer, "completion_finish": "length"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    last = pairs(load_dialogues(str(tmp_path / "x.jsonl")).dialogues).pairs
    assert [pair.ended for pair in last] == [True] * (len(last) - 1) + [False]
    assert len(last) > 1
    bad = table(tmp_path / "y.csv", [["prompt", "answer", "answer_finish"], ["a", "b", "eos"]])
    with pytest.raises(DataError, match=r"line 2: answer_finish is 'eos'; expected stop .* or length"):
        load_dialogues(bad)


@pytest.mark.parametrize("source", ["starter", "rtp:packaged", "starter-plain", "dialoconan:train"])
def test_what_ships_has_no_column_to_name(source: str) -> None:
    with pytest.raises(ConfigError, match=r"text_column is for tables of your own: .* leave it out"):
        load_prompts(source, text_column="text")
    if not source.startswith("rtp"):
        with pytest.raises(ConfigError, match=r"text_column is for tables of your own"):
            load_dialogues(source, text_column="text")


@pytest.mark.usefixtures("hub_in_reach")
def test_rows_of_the_hub_have_columns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    stored = {"train": [{"query": "a"}, {"query": "b"}], "chats": [{"log": ANSWERED}]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: stored[split])
    assert texts("owner/name", text_column="query") == ["a", "b"]
    assert texts("owner/name:chats", text_column="log") == ["Prove it."]
    [dialogue] = load_dialogues("owner/name:chats", text_column="log").dialogues
    assert [turn.text for turn in dialogue.turns] == [one["content"] for one in ANSWERED]
