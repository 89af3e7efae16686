"""Sends numbers to trackio, wandb or tensorboard through accelerate, for those who watch many runs in one place.

Only numbers go out: prompts, answers and settings that may name files stay here. metrics.jsonl is written in any case,
and a tracker that fails does not stop a training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import Accelerator

from rewardlm.config import flatten
from rewardlm.errors import NotAvailableError
from rewardlm.runs import Run


def check_installed(names: Sequence[str]) -> None:
    """Raise NotAvailableError for trackers whose package is not here."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise NotAvailableError(f"trackers {', '.join(missing)}: not installed; pip install {' '.join(missing)}")


class Trackers:
    """The trackers ``names`` of one run, open inside a with block; with none, nothing happens.

    Each has an accelerator of its own, so that one that fails takes no other with it.
    """

    def __init__(self, names: Sequence[str], run: Run, *, cpu: bool) -> None:
        self._open: dict[str, Accelerator] = {}
        for name in names:
            self._guarded(name, partial(self._start, name, run, cpu))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        # Not accelerate's end_training: that ends the process group too, which others wait in.
        for name, accelerator in [*self._open.items()]:
            for tracker in accelerator.trackers:
                self._guarded(name, tracker.finish)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's numbers, nested ones by dotted names."""
        if not self._open:
            return
        numbers = {name: value for name, value in _plain(metrics).items() if not isinstance(value, str)}
        for name, accelerator in [*self._open.items()]:
            self._guarded(name, partial(accelerator.log, numbers, step=int(metrics["step"])))

    def _start(self, name: str, run: Run, cpu: bool) -> None:
        accelerator = Accelerator(log_with=name, project_dir=str(run.path), cpu=cpu)
        accelerator.init_trackers("rewardlm", config=_plain(run.meta["settings"]))
        self._open[name] = accelerator

    def _guarded(self, name: str, call: Callable[[], Any]) -> None:
        """Call a tracker; if it fails, warn and go on without. What it prints goes to stderr: stdout is for results."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                call()
        except Exception as error:
            warnings.warn(
                f"the tracker {name} failed ({' '.join(str(error).split())[:200]}): it gets no more numbers",
                stacklevel=3,
            )
            self._open.pop(name, None)


def _plain(tree: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers and single words by dotted names: no lists, no texts, and only the last part of a judge's path."""
    return {
        key.rpartition("/")[2] if "/" in key else key: value
        for key, value in flatten(tree).items()
        if isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())
    }
