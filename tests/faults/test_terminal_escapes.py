"""Names from strangers reach the terminal as text: none moves the cursor, colours it, or sets its title."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from in_process import command

from rewardlm.terminal import plain

# Colour; the window's title; C1's control sequence introducer; clear the screen; turn text around; ring.
BAD = "\x1b[31mred\x1b]0;title\x07\x9b2J\x1b[2J\u202eback\x08"


def assert_tame(captured: object) -> None:
    said = captured.out + captured.err  # type: ignore[attr-defined]
    assert said
    assert not {letter for letter in said if letter in "\x1b\x07\x08\x9b\u202e"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with open("answers.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "response", BAD), ("a" + BAD, "b" + BAD, "0.5"), ("c", "d", "0.75")])
    Path("judge_of_mine.py").write_text(
        f"def f(texts): raise ValueError({BAD!r})\ndef g(texts): return [0.7] * len(texts)\n"
    )
    return tmp_path


def test_labels_columns_texts_and_a_judges_words(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes = [
        command("import", "answers.csv", "--label", BAD, "--out", "a", "--map", f"scores.{BAD}={BAD}"),
        command("import", "answers.csv", "--label", "B", "--out", "b"),
        command("score", "b", "--scorer", "judge_of_mine:f"),
        command("score", "a", "--scorer", "judge_of_mine:g"),
        command("score", "b", "--scorer", "judge_of_mine:g"),
        command("compare", "a", "b"),
        command("gate", "b", "--against", "a"),
        command("export", "a", "--out", "a.csv"),
        command("report", "a", "b", "--out", "page.html"),
    ]
    captured = capfd.readouterr()
    assert codes[:2] == [0, 0], captured.err
    assert codes[2] == 1
    assert_tame(captured)
    assert "red" in captured.out + captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", BAD, "--prompts", BAD, "--scorer", BAD, "--out", "o"),
        ("measure", "tiny", f"{BAD}=1", "--out", "o"),
        ("measure", "tiny", "--device", BAD, "--out", "o"),
        ("compare", BAD, BAD),
        ("rlaf", "tiny", "--reward", f"mean({BAD},lexical)", "--out", "o"),
        ("report", BAD),
        (BAD,),
        ("measure", f"--{BAD}"),
        ("judge", BAD),
    ],
)
def test_what_was_typed_wrongly_is_told_as_text(
    home: Path, arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) in (1, 2)
    assert_tame(capfd.readouterr())


def test_a_strangers_files(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(json.dumps({"model": "tiny", BAD: 1}))
    Path("rows.jsonl").write_text(json.dumps({BAD: "x", "prompt": 3}) + "\n")
    run = Path("run")
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"kind": BAD, "label": BAD, "settings": {}, "status": BAD}))
    for arguments in (
        ("measure", "--config", "config.yaml", "--out", "o"),
        ("measure", "tiny", "--prompts", "rows.jsonl", "--out", "o"),
        ("import", "rows.jsonl", "--label", "x", "--out", "o"),
        ("compare", "run", "run"),
        ("report", "run"),
        ("score", "run", "--scorer", "lexical"),
    ):
        assert command(*arguments) in (1, 2), arguments
    assert_tame(capfd.readouterr())


def test_plain_leaves_texts_as_they_are() -> None:
    for text in ("Zwölf Boxkämpfer", "日本語 العربية", "5 % – “so”", "a_b-c.d:e/f#g"):
        assert plain(text) == text
    assert plain("a\x1b[1m\ud800b") == "a [1m b"
