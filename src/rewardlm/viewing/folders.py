"""Finds the runs in the folders that were named: those there now, and those that come while the page is open."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rewardlm.errors import RunError
from rewardlm.runs import is_run

# An experiment's stages lie two folders down; a folder of experiments is one more.
_DEEPEST = 4
_MOST_FOLDERS = 5_000
_NO_RUNS_INSIDE = {"adapter", "checkpoints", "node_modules", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that was named, as it was ``given`` and where it really is. It may not exist yet."""

    given: str
    path: Path

    @classmethod
    def of(cls, given: str) -> Place:
        """Raises RunError where ``given`` is a file."""
        path = Path(given)
        if path.exists() and not path.is_dir():
            raise RunError(f"{given} is a file: view needs a run's folder, or a folder that holds runs")
        return cls(given, path.resolve())

    def name_of(self, folder: Path) -> str:
        """``folder`` as you would type it."""
        inside = folder.relative_to(self.path)
        return self.given if inside == Path() else str(Path(self.given) / inside)


def find_runs(place: Place) -> list[Path]:
    """The folders in ``place`` that hold a run, itself among them. No link is followed: it could lead elsewhere."""
    found: list[Path] = []
    visited = 0
    level = [place.path]
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for folder in level:
            visited += 1
            if visited > _MOST_FOLDERS:
                return found
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                # Not there yet, taken away meanwhile, or not ours to read: there is no run to show.
                continue
            if is_run(folder):
                found.append(folder)
            below += [
                folder / entry.name
                for entry in entries
                if entry.name not in _NO_RUNS_INSIDE
                and not entry.name.startswith(".")
                and entry.is_dir(follow_symlinks=False)
            ]
        level = below
    return found


def identity(folder: Path) -> str:
    """A run's name in URLs: no path is ever read from a URL."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
