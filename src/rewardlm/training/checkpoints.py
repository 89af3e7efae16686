"""Which checkpoint a killed training goes on from: the newest whose files match its manifest.

The manifest, written last, holds every file's SHA-256. A truncated checkpoint is passed over, with a warning, for the
one before it; where none is whole, the user decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rewardlm.config import Resume
from rewardlm.disk import nothing_left, writing
from rewardlm.errors import TrainingError
from rewardlm.runs import write_atomically
from rewardlm.typed import mistake

MANIFEST = "manifest.json"
_MISSING = "is missing"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run goes on. ``damaged`` names missing or changed files; there are none unless resume is inexact."""

    folder: Path
    damaged: frozenset[str] = frozenset()

    @property
    def step(self) -> int:
        return step_of(self.folder)

    def lacks(self, name: str) -> bool:
        """Whether the file ``name``, or a file in the folder ``name``/, is damaged."""
        return any(file == name or file.startswith(f"{name}/") for file in self.damaged)


def what_is_safe(folder: Path) -> str:
    """Which checkpoint in ``folder`` a run can go on from, in words for the user."""
    steps = [step_of(manifest.parent) for manifest in folder.glob(f"*/{MANIFEST}") if manifest.parent.suffix != ".tmp"]
    return f"the checkpoint of step {max(steps)} is safe" if steps else "there is no earlier checkpoint yet"


@contextmanager
def whole_or_none(home: Path, step: int) -> Iterator[None]:
    """Inside, a trainer of transformers writes its checkpoint of ``step`` below ``home``. Without room for it, nothing
    of it is left, and the error says what is safe.
    """
    folder = home / f"checkpoint-{step}"
    with writing(folder, safe=what_is_safe(home)), nothing_left(folder):
        yield


def step_of(folder: Path) -> int:
    """The step that ``step-000012`` or ``checkpoint-12`` was written after."""
    return int(folder.name.rpartition("-")[2])


def newest_whole(folders: Sequence[Path]) -> Path | None:
    """As ``newest_usable``, where nothing but a whole checkpoint will do."""
    found = newest_usable(folders, resume="exact", needed=())
    return None if found is None else found.folder


def newest_usable(folders: Sequence[Path], *, resume: Resume, needed: tuple[str, ...]) -> Checkpoint | None:
    """The newest of ``folders``, given oldest first, whose files match its manifest; None if there are no folders.

    A damaged one is passed over with a warning. Where none is whole, ``resume`` "inexact" takes the newest in which the
    files whose names begin with one of ``needed`` are whole. Raises TrainingError where that leaves none, because
    starting anew might throw away hours of work. Unless inexact, a missing file raises it too: no crash removes a file.
    """
    damage: dict[Path, dict[str, str]] = {}
    for folder in reversed(folders):
        damage[folder] = _damage(folder)
        if not damage[folder]:
            for newer in list(damage)[:-1]:
                _warn(f"checkpoint {newer.name} is damaged ({_first(damage[newer])}): the one before it is used")
            return Checkpoint(folder)
        if resume == "exact" and _MISSING in damage[folder].values():
            raise TrainingError(
                f"checkpoint {folder}: {_first(damage[folder])}, so the run can't go on exactly: put it back, remove "
                "this folder to go on from the checkpoint before it, or allow resume=inexact"
            )
    if not folders:
        return None
    usable = [folder for folder in damage if is_whole(folder, needed)]
    if resume == "inexact" and usable:
        lost = sorted(damage[usable[0]])
        _warn(
            f"checkpoint {usable[0].name} is damaged ({', '.join(lost)}): the run goes on with these afresh, and is no "
            "longer bit-equal to an undisturbed one"
        )
        return Checkpoint(usable[0], frozenset(lost))
    newest = folders[-1]
    raise TrainingError(
        f"no checkpoint in {newest.parent} is whole (the newest, {newest.name}: {_first(damage[newest])}): remove "
        f"{newest.parent.parent} to start anew"
        + (", or go on from its adapter with resume=inexact" if usable and resume == "exact" else "")
    )


def write_manifest(folder: Path) -> None:
    """Flush every file in ``folder`` to the disk, then write their SHA-256 into its manifest: then it is whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {str(path.relative_to(folder)): _flushed_hash(path) for path in files}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _damage(folder: Path) -> dict[str, str]:
    """What is wrong with a checkpoint, by file; empty if it is whole."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {MANIFEST: "is missing or not JSON"}
    if (wrong := mistake(dict[str, str], manifest)) is not None:
        return {MANIFEST: f"is no list of hashes ({wrong})"}
    damage = {}
    for name, wanted in manifest.items():
        file = folder / name
        if not _is_there(file):
            damage[name] = _MISSING
        elif hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            damage[name] = "has another hash"
    return damage


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def is_whole(folder: Path, needed: tuple[str, ...]) -> bool:
    """Whether the checkpoint's files whose names begin with one of ``needed`` match its manifest."""
    # Without a manifest nothing says that a file is whole.
    return not any(name == MANIFEST or name.startswith(needed) for name in _damage(folder))


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _first(damage: dict[str, str]) -> str:
    """One of several damages, a missing file first: no crash removes a file."""
    name, problem = min(damage.items(), key=lambda item: item[1] != _MISSING)
    return f"{name} {problem}"


def _flushed_hash(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
