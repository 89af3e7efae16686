"""A command as a shell would run it, in this process: a monkeypatched server or folder counts for it, too."""

from __future__ import annotations

import sys

import pytest

from rewardlm.cli.app import main


def command(*arguments: object) -> int:
    """The exit code; what it says is on stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rewardlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)
