"""Progress of a long step: a bar on a terminal and in a notebook, a line now and then in a log."""

from __future__ import annotations

import html
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rewardlm.terminal import plain

# Long work calls it with how much is done, of how much, and a text or a step's metrics.
ProgressCallback = Callable[[int, int, Any], None]

_LOG_EVERY_SECONDS = 15.0
_NEW_STEP_SECONDS = 3.0
_DRAW_EVERY_SECONDS = 0.2


class _Bar(Protocol):
    def begin(self, done: int, total: int, text: str) -> None:
        """Start a new phase, or a resumed run: speed is measured from here."""
        ...

    def show(self, done: int, total: int, text: str, left: str) -> None: ...


class Stage:
    """One long step. ``report`` fits the callbacks of meter and training: (done, total, detail)."""

    def __init__(self, bar: _Bar) -> None:
        self._bar = bar
        self._started = time.monotonic()
        self._first: int | None = None
        self._detail = ""

    def report(self, done: int, total: int, detail: Any = "") -> None:
        text = detail if isinstance(detail, str) else _metrics(detail)
        if self._first is None or (text != self._detail and isinstance(detail, str)):
            self._first, self._started = done, time.monotonic()
            self._bar.begin(done, total, text)
        self._detail = text
        self._bar.show(done, total, text, self._left(done, total))

    def _left(self, done: int, total: int) -> str:
        fresh = done - (self._first or 0)
        if fresh <= 0 or done >= total:
            return ""
        seconds = (time.monotonic() - self._started) / fresh * (total - done)
        return f", about {int(seconds // 60)}:{int(seconds % 60):02d} left"


def is_main() -> bool:
    """Whether this process is the one that prints: the first of those that torchrun or accelerate started together."""
    return os.environ.get("RANK", "0") == "0"


def is_verbose() -> bool:
    """Whether the user asked for other libraries' messages, with REWARDLM_VERBOSE=1."""
    return os.environ.get("REWARDLM_VERBOSE", "") not in ("", "0")


def say(text: str) -> None:
    """A sentence for the user, on stderr: stdout belongs to results. Names in it may come from a stranger, so it can't
    steer the terminal.
    """
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr, flush=True)


@contextmanager
def stage(title: str) -> Iterator[Stage]:
    """Show progress while the block runs."""
    if not is_main():
        yield Stage(_Silence())
    elif _in_notebook():
        yield Stage(_NotebookBar(title))
    elif sys.stderr.isatty():
        with _terminal_bar(title) as bar:
            yield Stage(bar)
    else:
        say(title)
        with _Log(title) as log:
            yield Stage(log)


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """For work that is usually short and can't report progress: a bar that goes away, or a line once it takes long."""
    if not is_main() or _in_notebook():
        yield
    elif sys.stderr.isatty():
        with _terminal_bar(title, stays=False):
            yield
    else:
        with _Log(title):
            yield


@contextmanager
def log(title: str) -> Iterator[Stage]:
    """Progress of a step inside another, whose bar may be there already: a line now and then, even on a terminal."""
    if not is_main():
        yield Stage(_Silence())
        return
    say(title)
    with _Log(title) as lines:
        yield Stage(lines)


class _Silence:
    def begin(self, done: int, total: int, text: str) -> None: ...

    def show(self, done: int, total: int, text: str, left: str) -> None: ...


class _Log(_Silence):
    """A line every fifteen seconds, at a new step, and at the end; also while nothing is reported."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = self._said = time.monotonic()
        self._phase = False
        self._last = "working"
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Log:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticker.join()  # it may be about to speak: a stage that is over says nothing more

    def _tick(self) -> None:
        """Say that the work goes on if it has not reported for a while: it may be loading, or in one long step."""
        while not self._over.wait(max(0.01, self._said + _LOG_EVERY_SECONDS - time.monotonic())):
            now = time.monotonic()
            if now - self._said >= _LOG_EVERY_SECONDS:
                self._said = now
                seconds = int(now - self._started)
                say(f"{self._title}: {self._last}, {seconds // 60}:{seconds % 60:02d} so far")

    def begin(self, done: int, total: int, text: str) -> None:
        # After a pause, a new step is shown at once: nobody knows when it will report again.
        self._phase = time.monotonic() - self._said >= _NEW_STEP_SECONDS

    def show(self, done: int, total: int, text: str, left: str) -> None:
        now = time.monotonic()
        self._last = f"{done:,}/{total:,} {text}"
        if done == total or self._phase or now - self._said >= _LOG_EVERY_SECONDS:
            self._phase = False
            self._said = now
            say(f"{self._title}: {done:,}/{total:,} {text}{left}")


class _NotebookBar(_Silence):
    """Below the cell, redrawn in place. Rich's and tqdm's bars need ipywidgets for that, this one needs nothing."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._drawn = time.monotonic()
        self._ipython = importlib.import_module("IPython.display")
        self._shown = self._ipython.display(self._ipython.HTML(html.escape(title)), display_id=True)

    def show(self, done: int, total: int, text: str, left: str) -> None:
        now = time.monotonic()
        if done < total and now - self._drawn < _DRAW_EVERY_SECONDS:
            return
        self._drawn = now
        words = html.escape(f"{done:,}/{total:,} {text}{left}")
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        self._shown.update(self._ipython.HTML(f"{html.escape(self._title)} {bar} {words}"))


@contextmanager
def _terminal_bar(title: str, *, stays: bool = True) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=not stays) as progress:
        task = progress.add_task(title, total=None, detail="")

        class Bar:
            def begin(self, done: int, total: int, text: str) -> None:
                progress.reset(task, total=total, completed=done, detail=text)

            def show(self, done: int, total: int, text: str, left: str) -> None:
                progress.update(task, completed=done, total=total, detail=text)

        yield Bar()


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, whatever the notebook: IPython in a terminal has none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _metrics(metrics: dict[str, Any]) -> str:
    names = {"loss": "loss", "eval_loss": "validation loss", "reward_mean": "reward", "kl": "KL"}
    return ", ".join(
        f"{shown} {metrics[name]:.3f}" for name, shown in names.items() if isinstance(metrics.get(name), float)
    )
