"""The small diffs of ARCHITECTURE.md, each applied to a copy of the source and then used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewardlm

SOURCE = Path(rewardlm.__file__).parent
ROOT = Path(__file__).parents[1]


def diffs() -> dict[str, str]:
    """The diffs under "Extending it", by the heading over each."""
    chapter = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("\n## Extending it\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^### (.+?)\n.*?^```diff\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


def apply(diff: str, package: Path) -> None:
    """Put each ``+++ path`` stretch of ``diff`` into the copy, where its other lines must stand exactly once."""
    for path, body in re.findall(r"^\+\+\+ src/rewardlm/(.+?)\n(.*?)(?=^\+\+\+|\Z)", diff, re.MULTILINE | re.DOTALL):
        file = package / path
        for hunk in re.split(r"^…\n", body, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            if old:
                text = file.read_text("utf-8")
                assert text.count(old) == 1, f"{path} holds this {text.count(old)} times, expected once:\n{old}"
                new = text.replace(old, new)
            else:
                assert not file.exists(), f"{path} is there already"
            file.unlink(missing_ok=True)  # a link to the source
            file.write_text(new, "utf-8")


USE = {}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which all diffs were applied; weights and texts are links."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(SOURCE, folder / "rewardlm", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in diffs().values():
        apply(diff, folder / "rewardlm")
    return folder


def test_each_kind_of_extension_is_shown() -> None:
    assert set(diffs()) == set(USE)


@pytest.mark.parametrize("heading", USE)
def test_the_diff_of_architecture_works(extended: Path, heading: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    done = subprocess.run(
        [sys.executable, "-c", USE[heading]], cwd=extended, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
