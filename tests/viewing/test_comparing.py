"""Comparisons beside the server: what they find, how they fail, and that none is made twice."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewardlm.runs import Run
from rewardlm.viewing import comparing
from rewardlm.viewing.comparing import Comparisons, stamp

REAL = subprocess.Popen


@pytest.fixture
def comparisons():
    made = Comparisons()
    yield made
    made.close()


def wait(comparisons: Comparisons, folders: list[Path]) -> dict:
    deadline = time.monotonic() + 120
    while (found := comparisons.of(folders))["status"] in ("waiting", "comparing"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def stand_in(monkeypatch, code: str) -> list[int]:
    """Have ``code`` run instead of a comparison; how often it was begun."""
    begun: list[int] = []

    def started(command, **options):
        begun.append(1)
        assert command[1:] == ["-m", "rewardlm.viewing.conclude"]
        return REAL([sys.executable, "-c", code], **options)

    monkeypatch.setattr(comparing.subprocess, "Popen", started)
    return begun


FOUND = 'import json,sys; asked=json.load(sys.stdin); print(json.dumps({"sentences": [asked["runs"][0]]}));'
PAGE = FOUND + ' open(asked["page"], "w").write("a page"); print(json.dumps({"page": True}))'


def test_a_page_is_made_once_until_a_run_changes(comparisons, monkeypatch, tmp_path):
    begun = stand_in(monkeypatch, PAGE)
    run = Run.start(tmp_path / "pt", kind="measure", label="PT", settings={})
    first = wait(comparisons, [run.path])
    assert first["found"] == {"sentences": [str(run.path)]}
    assert comparisons.page(first["page"]).read_text() == "a page"
    assert wait(comparisons, [run.path])["page"] == first["page"]
    assert len(begun) == 1
    run.append("scores", [{"value": 1}])
    assert wait(comparisons, [run.path])["page"] != first["page"]
    assert len(begun) == 2


def test_asking_never_waits_and_says_what_is_found_before_the_page_is_there(comparisons, monkeypatch, tmp_path):
    stand_in(monkeypatch, FOUND + "sys.stdout.flush(); import time; time.sleep(30)")
    started = time.monotonic()
    comparisons.of([tmp_path])
    assert time.monotonic() - started < 5
    while "found" not in (found := comparisons.of([tmp_path])):
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    assert found["status"] == "comparing"
    assert comparisons.page(stamp([tmp_path])) is None
    comparisons.close()
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('print(\'{"error": "prompts differ"}\'); raise SystemExit(1)', "prompts differ"),
        ("raise SystemError('a bug')", "SystemError: a bug"),
        ("raise SystemExit(7)", "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_what_fails_says_why_and_the_next_is_compared(comparisons, monkeypatch, tmp_path, code, said):
    stand_in(monkeypatch, code)
    found = wait(comparisons, [tmp_path])
    assert found["status"] == "failed"
    assert said in found["error"]
    stand_in(monkeypatch, PAGE)
    (tmp_path / "other").mkdir()
    assert wait(comparisons, [tmp_path / "other"])["status"] == "ready"


def test_a_bug_of_ours_is_told_and_the_next_is_compared(comparisons, monkeypatch, tmp_path, capsys):
    stand_in(monkeypatch, "print('no json')")
    found = wait(comparisons, [tmp_path])
    assert found["status"] == "failed"
    assert "JSONDecodeError" in found["error"]
    assert "Traceback" in capsys.readouterr().err
    stand_in(monkeypatch, PAGE)
    (tmp_path / "other").mkdir()
    assert wait(comparisons, [tmp_path / "other"])["status"] == "ready"


def test_the_oldest_pages_go(comparisons, monkeypatch, tmp_path):
    stand_in(monkeypatch, PAGE)
    monkeypatch.setattr(comparing, "_KEPT", 1)
    pages = []
    for name in "ab":
        (tmp_path / name).mkdir()
        pages.append(wait(comparisons, [tmp_path / name])["page"])
        time.sleep(0.1)
    assert comparisons.page(pages[0]) is None
    assert comparisons.page(pages[1]).exists()


def test_names_of_pages_tell_orders_runs_and_changes_apart(tmp_path):
    for name in "ab":
        Run.start(tmp_path / name, kind="measure", label=name, settings={})
    a, b = tmp_path / "a", tmp_path / "b"
    names = {stamp([a]), stamp([b]), stamp([a, b]), stamp([b, a])}
    Run.open(a).update(note="x")
    names.add(stamp([a]))
    assert len(names) == 5
