"""Runs a page's commands by bash; ``rewardlm`` among them is called in this process, which has torch loaded already.

Bash does what a reader's would: comments, continued lines, pipes, files. On its PATH ``rewardlm`` is a few lines that
send the words here through a socket. What must not run in a test (make, pip …) fails there, and says so.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from stand_ins import arguments

from rewardlm.cli.app import main

_SHIM = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    line.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, out, err = json.loads(line.makefile("rb").read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
_REFUSED = """\
#!/bin/sh
echo "$(basename "$0") can't run in a test: mark the block with <!-- not run: REASON -->" >&2
exit 97
"""
REFUSED = ("make", "pip", "git", "torchrun", "accelerate", "sbatch", "ray", "pytest", "curl", "wget")


class Bash:
    """One page's shell. Commands run in ``folder``; ``environment`` is added to ours."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
        self.folder, self._patch = folder, patch
        self._programs = folder.parent / f"{folder.name}-bin"
        self._programs.mkdir()
        self._address = str(folder.parent / f"{folder.name}.socket")
        self._environment = {
            **os.environ,
            **environment,
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "COLUMNS": "120",
        }
        self.commands: list[list[str]] = []
        # A reader's python is the one that rewardlm was installed into.
        self._install("python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self._install("rewardlm", _SHIM.format(python=sys.executable, address=self._address))
        for name in REFUSED:
            self._install(name, _REFUSED)

    def _install(self, name: str, text: str) -> None:
        (self._programs / name).write_text(text)
        (self._programs / name).chmod(0o755)

    def __call__(self, code: str) -> tuple[int, str]:
        """The exit code and everything printed. Bash stops at the first command that fails."""
        printed = self.folder.parent / f"{self.folder.name}.out"
        with socket.socket(socket.AF_UNIX) as server, printed.open("w+") as out:
            Path(self._address).unlink(missing_ok=True)
            server.bind(self._address)
            server.listen()
            server.settimeout(0.2)
            script = ["bash", "-euo", "pipefail", "-c", code]
            process = subprocess.Popen(
                script, cwd=self.folder, env=self._environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
            while process.poll() is None:
                try:
                    line, _ = server.accept()
                except TimeoutError:
                    continue
                with line:
                    asked = line.makefile("rb").readline()
                    line.sendall(json.dumps(self._run(*json.loads(asked))).encode())
            out.seek(0)
            return process.returncode, out.read()

    def _run(self, typed: list[str], where: str, environment: dict[str, str]) -> tuple[int, str, str]:
        words = arguments(typed, Path(where))
        self.commands.append(words)
        out, err = io.StringIO(), io.StringIO()
        with self._patch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(where)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["rewardlm", *words])
            code: Any = 0
            try:
                main()
            except SystemExit as end:
                code = end.code
        return (code if isinstance(code, int) else int(code is not None)), out.getvalue(), err.getvalue()
