"""Progress on stderr: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What long work reports to: how much is done, of how much, and a text or a step's metrics.
ProgressCallback = Callable[[int, int, Any], None]

_LOG_EVERY_SECONDS = 15.0


class Stage:
    """One long step. ``report`` fits the callbacks of meter and training: (done, total, detail)."""

    def __init__(self, title: str, bar: Any, task: Any) -> None:
        self.title = title
        self._bar, self._task = bar, task
        self._started = self._said = time.monotonic()
        self._first: int | None = None
        self._detail = ""

    def report(self, done: int, total: int, detail: Any = "") -> None:
        text = detail if isinstance(detail, str) else _metrics(detail)
        if self._first is None or (text != self._detail and isinstance(detail, str)):
            # Another phase, or a run that is resumed: speed counts from here.
            self._first, self._started = done, time.monotonic()
            if self._bar is not None:
                self._bar.reset(self._task, total=total, completed=done, detail=text)
        self._detail = text
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, detail=text)
            return
        now = time.monotonic()
        if done == total or now - self._said >= _LOG_EVERY_SECONDS:
            self._said = now
            print(f"{self.title}: {done:,}/{total:,} {text}{self._left(done, total)}", file=sys.stderr, flush=True)

    def _left(self, done: int, total: int) -> str:
        fresh = done - (self._first or 0)
        if fresh <= 0 or done >= total:
            return ""
        seconds = (time.monotonic() - self._started) / fresh * (total - done)
        return f", about {int(seconds // 60)}:{int(seconds % 60):02d} left"


def is_main() -> bool:
    """Whether this process is the one that speaks: of those that torchrun or accelerate started together, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A sentence for the user, on stderr: stdout belongs to results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def stage(title: str) -> Iterator[Stage]:
    """Show progress while the block runs."""
    if not is_main() or not sys.stderr.isatty():
        if is_main():
            say(title)
        yield Stage(title, None, None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        yield Stage(title, bar, bar.add_task(title, total=None, detail=""))


def _metrics(metrics: dict[str, Any]) -> str:
    names = {"loss": "loss", "eval_loss": "validation loss", "reward_mean": "reward", "kl": "KL"}
    return ", ".join(
        f"{shown} {metrics[name]:.3f}" for name, shown in names.items() if isinstance(metrics.get(name), float)
    )
