"""Small models are quickest on one thread; every test here may speak to the command line."""

from __future__ import annotations

import pytest
from command_line import Shell

from one_thread import _one_thread as _one_thread


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(monkeypatch, capsys)
