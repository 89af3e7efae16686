"""Progress where it is seen: redrawn below a notebook's cell, by lines in a log, and in one process of several."""

from __future__ import annotations

import io
import sys
import time
import types
from typing import Any

import pytest

from rewardlm import progress


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What a notebook shows: a list an output, and in it what the output was, from first to last."""
    outputs: list[list[str]] = []

    class Handle:
        def __init__(self, shown: list[str]) -> None:
            self.shown = shown

        def update(self, html: str) -> None:
            self.shown.append(html)

    def display(html: str, *, display_id: bool) -> Handle:
        outputs.append([html])
        return Handle(outputs[-1])

    package: Any = types.ModuleType("IPython")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    package.display = types.ModuleType("IPython.display")
    package.display.HTML, package.display.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", package.display)
    return outputs


def test_a_notebook_has_one_bar_a_stage_that_ends_full(drawn: list[list[str]], capsys: Any) -> None:
    with progress.stage("measure <tiny>") as stage:
        for done in range(5):
            stage.report(done, 4, "answers & scores")
    (bar,) = drawn
    assert bar[0] == "measure &lt;tiny&gt;"
    assert bar[-1] == 'measure &lt;tiny&gt; <progress value="4" max="4"></progress> 4/4 answers &amp; scores'
    assert capsys.readouterr() == ("", "")


def test_a_fast_step_is_not_redrawn_for_each_report(drawn: list[list[str]]) -> None:
    with progress.stage("fast") as stage:
        for done in range(10_001):
            stage.report(done, 10_000)
    # At most five times a second, and once at the end.
    assert len(drawn[0]) < 20


def test_ipython_in_a_terminal_is_no_notebook(
    drawn: list[list[str]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace())
    with progress.stage("measure") as stage:
        stage.report(0, 2, "answers")
        stage.report(2, 2, "answers")
    assert drawn == []
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["measure", "measure: 2/2 answers"]


def test_of_several_processes_the_first_speaks(
    drawn: list[list[str]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress.stage("measure") as stage:
        stage.report(2, 2, "answers")
    assert drawn == []
    assert capsys.readouterr() == ("", "")


def test_a_log_speaks_while_nothing_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_SECONDS", 0.1)
    with progress.stage("merge") as stage:
        time.sleep(0.3)
        stage.report(1, 5, "reading")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "merge"
    assert "merge: working, 0:00 so far" in lines
    assert "merge: 1/5 reading, 0:00 so far" in lines
    time.sleep(0.25)
    assert capsys.readouterr().err == "", "a stage that is over says nothing"


def test_short_work_is_not_spoken_of(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with progress.waiting("compare"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_LOG_EVERY_SECONDS", 0.1)
    with progress.waiting("compare"):
        time.sleep(0.25)
    assert capsys.readouterr().err.startswith("compare: working, 0:00 so far\n")


def test_a_step_that_is_reached_late_is_told_at_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "_NEW_STEP_SECONDS", 0.05)
    with progress.stage("merge") as stage:
        stage.report(0, 5, "loading")
        time.sleep(0.1)
        stage.report(1, 5, "merging")
        stage.report(1, 5, "merging")
    assert capsys.readouterr().err.splitlines() == ["merge", "merge: 1/5 merging"]


def test_in_a_terminal_the_bar_of_short_work_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.waiting("compare"):
        pass
    assert "compare" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K"), "the line is wiped"
