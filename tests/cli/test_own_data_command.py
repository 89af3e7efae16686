"""A user's own files through the real commands: what is stored, compared and exported is what the file says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import Shell

from rewardlm.runs import Run

BARE = (
    "--scorer", "lexical", "--max-new-tokens", "3", "counter_narrative=null", "similarity=false", "perplexity=false",
)  # fmt: skip
WORDS = ["zulu", "alpha", "mike", "bravo"]
TEXTS = [f"{word}, said number {number}; then\tit left" for number, word in enumerate(WORDS)]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def numbered(path: Path, count: int) -> list[str]:
    """A file of prompts whose names sort otherwise than they stand: row-10 before row-9."""
    texts = [f"prompt {7919 * number % 1000}" for number in range(count)]
    path.write_text("question\n" + "\n".join(texts) + "\n", encoding="utf-16")
    return texts


@pytest.mark.slow
def test_prompts_keep_the_files_order(shell: Shell, tmp_path: Path) -> None:
    texts = numbered(tmp_path / "mine.csv", 30)
    for label in ("one", "two"):
        done = shell("measure", "tiny", "--prompts", "mine.csv", "text_column=question", "--limit", 12, *BARE,
                     "--label", label, "--out", label, "--seed", 3)  # fmt: skip
        assert done.code == 0, done.err
    stored = [prompt.text for prompt in Run.open(tmp_path / "one").prompts()]
    assert len(stored) == 12
    assert stored == [text for text in texts if text in stored]
    asked = {prompt.id: prompt.text for prompt in Run.open(tmp_path / "one").prompts()}
    answered = [asked[one.prompt_id] for one in Run.open(tmp_path / "one").each_generation()]
    # Answers are written as they come: those of similar length together.
    assert sorted(answered) == sorted(stored)
    assert shell("compare", "one", "two", "--json").code == 0
    assert shell("export", "one", "--out", "out.csv").code == 0
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        assert sorted(row["prompt"] for row in csv.DictReader(file)) == sorted(stored)


@pytest.mark.slow
def test_a_file_of_each_kind_is_measured(shell: Shell, tmp_path: Path) -> None:
    with open(tmp_path / "a.tsv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter="\t").writerows([["Prompt"], *([text] for text in TEXTS)])
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"prompt": {"text": text, "toxicity": 0.5}}) + "\n\n" for text in TEXTS)
    )
    (tmp_path / "c.txt").write_text("\n".join(TEXTS))
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"log": [{"role": "user", "content": text}]}) + "\n" for text in TEXTS)
    )
    for name, more in {"a.tsv": [], "b.jsonl": [], "c.txt": [], "d.jsonl": ["text_column=log"]}.items():
        done = shell("measure", "tiny", "--prompts", name, *more, *BARE, "--out", f"run {name}")
        assert done.code == 0, done.err
        assert [prompt.text for prompt in Run.open(tmp_path / f"run {name}").prompts()] == TEXTS


@pytest.mark.slow
def test_finetune_and_rlaf_read_odd_columns(shell: Shell, tmp_path: Path) -> None:
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        rows = [[text, f"Please don't, number {number}."] for number, text in enumerate(TEXTS)]
        csv.writer(file, delimiter=";").writerows([["hate", "reply"], *rows])
    done = shell("finetune", "tiny", "--dialogues", "pairs.csv", "text_column=hate", "answer_column=reply",
                 "max_steps=1", "validation=0", "--out", "ft")  # fmt: skip
    assert done.code == 0, done.err
    assert Run.open(tmp_path / "ft").meta["dialogues"]["pairs"] == len(TEXTS)
    done = shell("rlaf", "tiny", "--prompts", "pairs.csv", "text_column=hate", "--reward", "lexical", "--steps", 1,
                 "--batch-size", 4, "--max-new-tokens", 3, "witness=none", "--out", "rl")  # fmt: skip
    assert done.code == 0, done.err
    assert Run.open(tmp_path / "rl").meta["prompts"]["n"] == len(TEXTS)


def test_what_is_wrong_with_a_file_is_one_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Why are you all so stupid?\nGo away\n")
    assert "x.csv, line 1: 'Why are you all so stupid?' reads like a text" in shell.fails(
        "measure", "tiny", "--prompts", "x.csv", *BARE, "--out", "run"
    ).err  # fmt: skip
    (tmp_path / "x.csv").write_bytes("prompt\nGröße\n".encode("latin-1"))
    assert "line 2: not UTF-8" in shell.fails("measure", "tiny", "--prompts", "x.csv", *BARE, "--out", "run").err
