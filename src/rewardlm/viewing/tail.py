"""Reads a growing file of records, each time from where the last look ended.

A run appends lines while it is followed, so a last line that isn't whole is left for the next look. A run that is
resumed may cut its files or write them anew: then they are read from their beginning, under a new ``generation``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from rewardlm.errors import RunError

# Bytes per look: a long file takes several looks, so none of them keeps a reader waiting.
LOOK = 4_000_000
# This many bytes before the place that was reached must still be the same: else the file was replaced.
_REMEMBERED = 64


class Tail:
    """The whole lines of one file, each given once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        """Goes up when the file was cut or replaced: what was read of it before no longer counts."""
        self.behind = False
        """Whether more whole lines may be waiting than the last look took."""
        self._inode: int | None = None
        self._offset = 0
        self._before = b""

    def read(self, look: int = LOOK) -> list[bytes]:
        """The next whole lines, without their ends; about ``look`` bytes. Empty if there is no file.

        Compare ``generation`` before and after: if it went up, these lines are the file's first. Raises RunError for
        anything but a plain file: a link could lead out of the run.
        """
        opened = open_plain(self.path)
        if opened is None:
            if self._inode is not None:
                self._begin(None)
            self.behind = False
            return []
        with os.fdopen(opened, "rb") as file:
            found = os.fstat(opened)
            if self._inode is None and not self._offset:
                self._inode = found.st_ino
            elif found.st_ino != self._inode or found.st_size < self._offset or not self._still_there(opened):
                self._begin(found.st_ino)
            file.seek(self._offset)
            data = file.read(look)
            while b"\n" not in data and len(data) >= look:
                look *= 2
                file.seek(self._offset)
                data = file.read(look)
        whole = data[: data.rfind(b"\n") + 1]
        self.behind = len(data) >= look
        self._offset += len(whole)
        self._before = (self._before + whole)[-_REMEMBERED:]
        return whole.split(b"\n")[:-1]

    def _begin(self, inode: int | None) -> None:
        self._inode, self._offset, self._before = inode, 0, b""
        self.generation += 1

    def _still_there(self, opened: int) -> bool:
        return os.pread(opened, len(self._before), self._offset - len(self._before)) == self._before


def open_plain(path: Path) -> int | None:
    """A descriptor to read the plain file at ``path``; None where nothing is there.

    Raises RunError for a link, a folder, a pipe or a device, and where the file may not be read.
    """
    try:
        # Without O_NONBLOCK, a pipe would keep us waiting for somebody to write.
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"{path} is a link, which could lead out of the run: put the file itself there") from None
        raise RunError(f"can't read {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise RunError(f"{path} is no plain file")
    return opened


def record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it holds none, because the file was changed by hand."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
