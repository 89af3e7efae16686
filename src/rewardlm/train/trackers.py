"""Numbers to trackio, wandb or tensorboard through accelerate, for those who watch many runs in one place.

Only numbers go out: prompts, answers and settings that may name files stay here. metrics.jsonl is written in any case,
and a tracker that fails does not stop a training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import filter_trackers

from rewardlm.config import flatten
from rewardlm.errors import NotAvailableError
from rewardlm.runs import Run


class Trackers:
    """The trackers ``names`` of one run; with none, every method does nothing."""

    def __init__(self, names: Sequence[str], run: Run, *, cpu: bool) -> None:
        self._accelerator: Accelerator | None = None
        if not names:
            return
        available = [str(getattr(found, "value", found)) for found in filter_trackers(list(names), str(run.path))]
        missing = [name for name in names if name not in available]
        if missing:
            raise NotAvailableError(f"trackers {', '.join(missing)}: not installed; pip install {' '.join(missing)}")
        self._accelerator = Accelerator(log_with=list(names), project_dir=str(run.path), cpu=cpu)
        self._accelerator.init_trackers("rewardlm", config=_plain(run.meta["settings"]))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One step's numbers, nested ones by dotted names."""
        if self._accelerator is None:
            return
        numbers = {name: value for name, value in _plain(metrics).items() if not isinstance(value, str)}
        try:
            self._accelerator.log(numbers, step=int(metrics["step"]))
        except Exception as error:  # Whatever a service far away raises: the training is worth more.
            warnings.warn(f"a tracker failed ({' '.join(str(error).split())[:200]}): it gets no more", stacklevel=2)
            self._accelerator = None

    def close(self) -> None:
        """Let the trackers finish what they write."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _plain(tree: Mapping[str, Any]) -> dict[str, float | str]:
    """Numbers and short words by dotted names; no lists, no texts, no paths."""
    return {
        key: value
        for key, value in flatten(tree).items()
        if isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())
    }
