"""Progress where it is seen: redrawn below a notebook's cell, by lines in a log, and in one process of several."""

from __future__ import annotations

import sys
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
