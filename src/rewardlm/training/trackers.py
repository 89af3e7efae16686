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
    """The trackers ``names`` of one run, open inside a with block; with none, nothing happens."""

    def __init__(self, names: Sequence[str], run: Run, *, cpu: bool) -> None:
        self._accelerator: Accelerator | None = None
        if names:
            self._guarded(lambda: self._start(list(names), run, cpu))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        # Not accelerate's end_training: that ends the process group too, which others wait in.
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                self._guarded(tracker.finish)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's numbers, nested ones by dotted names."""
        if self._accelerator is not None:
            numbers = {name: value for name, value in _plain(metrics).items() if not isinstance(value, str)}
            accelerator, step = self._accelerator, int(metrics["step"])
            self._guarded(lambda: accelerator.log(numbers, step=step))

    def _start(self, names: list[str], run: Run, cpu: bool) -> None:
        self._accelerator = Accelerator(log_with=names, project_dir=str(run.path), cpu=cpu)
        self._accelerator.init_trackers("rewardlm", config=_plain(run.meta["settings"]))

    def _guarded(self, call: Callable[[], Any]) -> None:
        """Call a tracker; if it fails, warn and go on without. What it prints goes to stderr: stdout is for results."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                call()
        except Exception as error:
            warnings.warn(
                f"a tracker failed ({' '.join(str(error).split())[:200]}): trackers get no more numbers", stacklevel=3
            )
            self._accelerator = None


def _plain(tree: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers and single words by dotted names: no lists, no texts, and only the last part of a judge's path."""
    return {
        key.rpartition("/")[2] if "/" in key else key: value
        for key, value in flatten(tree).items()
        if isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())
    }
