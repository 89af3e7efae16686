"""Lone surrogates: halves of characters that JSON and the command line let in, and that no UTF-8 file can hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import command

from fake_service import Asked, FakeService, Reply

HALF = "\ud800x"


def table(rows: list[dict[str, object]]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "response": "b", f"scores.{HALF}": 0.5}, "holds half a character: rename that column"),
        ({"prompt": HALF, "response": "b"}, "column 'prompt' holds half a surrogate pair"),
        ({"prompt": "a", "response": HALF}, "column 'response' holds half a surrogate pair"),
    ],
)
def test_a_table_that_holds_one_is_refused_before_anything_is_written(
    row: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("import", table([row]), "--label", "A", "--out", "run") == 1
    assert said in capfd.readouterr().err
    assert not Path("run").exists()


def test_a_label_that_is_no_text_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    """As Python reads bytes of the command line that aren't UTF-8."""
    label = b"A\xff".decode(errors="surrogateescape")
    assert command("import", table([{"prompt": "a", "response": "b"}]), "--label", label, "--out", "run") == 1
    assert "holds half a character: give another --label" in capfd.readouterr().err
    assert not Path("run").exists()


def test_a_service_that_names_such_a_category_is_refused(
    service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(_: Asked) -> Reply:
        return Reply({"results": [{"flagged": False, "category_scores": {HALF: 0.5}}], "id": "1", "model": "m"})

    service.answer = answer
    assert command("import", table([{"prompt": "a", "response": "b"}]), "--label", "A", "--out", "run") == 0
    url = f"services.endpoint.url={service.url}"
    assert command("score", "run", "--scorer", "endpoint", "--device", "cpu", url) == 1
    assert "a category's name holds half a character" in capfd.readouterr().err
