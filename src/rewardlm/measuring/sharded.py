"""``--engine ray``: windows of questions shared out to workers by Ray Data, answered and judged there, streamed back.

Each worker holds the model and the judges. It gets a window's position and sends back its records, so only the prompts
themselves take more room as they grow in number. If a worker dies, another does its window again with the same seeds.
Windows, and the batches in them, are those of a local run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from rewardlm.config import MeasureSettings
from rewardlm.config.keys import NAMED, Named
from rewardlm.errors import NotAvailableError, RewardLMError
from rewardlm.measuring.engines import JudgedWindow, LocalEngine, judged_window, load_model
from rewardlm.models.load import resolve_device
from rewardlm.scoring.load import load_scorer
from rewardlm.types import Prompt


def judged_by_ray(
    settings: MeasureSettings, label: str, prompts: Sequence[Prompt], starts: Sequence[int]
) -> Iterator[JudgedWindow]:
    """The windows that begin at the questions numbered ``starts``, in the order in which workers finish them.

    Raises NotAvailableError without Ray, and the RewardLMError that a worker raised, if it raised one.
    """
    ray = _load_ray()
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {"num_cpus": settings.workers} if settings.ray_address is None else {}
        ray.init(
            address=settings.ray_address,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            **local,
        )
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.verbose_stats_logs = False
        stored = ray.put(list(prompts))
        gpus = 1 if str(resolve_device(settings.device)).startswith("cuda") else 0
        # One window per block: Ray does a block again if its worker was lost.
        windows = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
        answered = windows.map_batches(
            _Worker,
            fn_constructor_args=(settings, label, stored, NAMED),
            compute=ray.data.ActorPoolStrategy(size=min(settings.workers, len(starts))),
            batch_size=1,
            num_cpus=1,
            num_gpus=gpus,
        )
        for row in answered.iter_rows():
            yield row["judged"]
    except ray.exceptions.RayError as error:
        raise _ours(error) or error from None
    finally:
        if ours:
            ray.shutdown()


class _Worker:
    """A Ray actor: loads model and judges once, then answers and judges windows."""

    def __init__(self, settings: MeasureSettings, label: str, stored: Any, named: Named) -> None:
        import ray

        # What the user has named, in the driver's process.
        NAMED.add(named)
        self._settings = settings
        self._prompts: list[Prompt] = ray.get(stored)
        device = str(resolve_device(settings.device))
        self._scorers = [load_scorer(name, device=device, services=settings.services) for name in settings.scorer]
        self._engine = LocalEngine(settings, label, load_model(settings))
        self._held = contextlib.ExitStack()
        self._held.enter_context(self._engine.ready())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        starts = [int(start) for start in batch["start"]]
        return {
            "judged": [
                judged_window(self._settings, self._engine, self._scorers, self._prompts, start) for start in starts
            ]
        }


def _load_ray() -> Any:
    # Ray must not report anybody's run to its makers, and its own messages go into its own logs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise NotAvailableError(
            f"engine 'ray' needs Ray Data, which is not installed ({error}): pip install 'rewardlm[ray]', or leave "
            "--engine out"
        ) from None
    return ray


def _ours(error: BaseException) -> RewardLMError | None:
    """The RewardLMError that a worker raised, somewhere below Ray's own errors; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RewardLMError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
