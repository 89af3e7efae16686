"""A full disk: which file couldn't be written, what is safe, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewardlm.errors import DiskFullError

# A full disk, a full share of it, and a file that may not grow further.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that aren't written in Python put it into errors of their own: safetensors, tokenizers, pyarrow, torch,
# SQLite.
_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "PytorchStreamWriter failed",
    "iostream error",
    "unexpected pos",
    "database or disk is full",
)


def is_full(error: BaseException) -> bool:
    """Whether ``error``, or one that led to it, says that there is no space left."""
    return _why(error) is not None


@contextmanager
def writing(path: Path, *, safe: str) -> Iterator[None]:
    """Inside, a full disk is a DiskFullError that names ``path`` and what is ``safe``."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_full(error):
            raise
        raise DiskFullError(said(error, str(path), safe)) from error


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Inside, ``folder`` is written. If that fails, what is there goes: half of it only takes room."""
    try:
        yield
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def said(error: BaseException, path: str, safe: str) -> str:
    """The one line about it."""
    return f"{path}: {_why(error)}; {safe}: make room and run the same command again"


def _why(error: BaseException) -> str | None:
    """In the system's words, by the first error of the chain that knows."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _FULL:
            return os.strerror(one.errno)
        if _is_a_librarys(one) and any(word in str(one) for word in _WORDS):
            return os.strerror(errno.ENOSPC)
        one = one.__cause__
    return None


def _is_a_librarys(error: BaseException) -> bool:
    """Torch raises plain RuntimeErrors, tokenizers plain Exceptions."""
    return type(error) in (RuntimeError, Exception) or type(error).__module__.startswith(
        ("safetensors", "pyarrow", "sqlite3")
    )
