"""Runs the command line in this process, as a shell would see it: exit code, stdout, stderr."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from rewardlm.cli.app import main


@dataclass
class Done:
    """What a shell sees of a command."""

    code: int
    out: str
    err: str


class Shell:
    """Calls main() with arguments; an exception that is no exit is a traceback, so it fails the test."""

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: object) -> Done:
        self._capture.readouterr()
        self._patch.setattr(sys, "argv", ["rewardlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self._capture.readouterr()
        code = end.value.code
        return Done(code if isinstance(code, int) else int(code is not None), out, err)

    def fails(self, *arguments: object) -> Done:
        """The command must fail with one line on stderr that starts with ``error:``, and print no result."""
        done = self(*arguments)
        lines = done.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert done.code not in (0, None), (arguments, done)
        assert len(errors) == 1, (arguments, done)
        assert lines[-1] == errors[0], (arguments, done)
        assert "Traceback" not in done.err
        assert done.out == "", (arguments, done)
        return done
