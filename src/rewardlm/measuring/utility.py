"""``measure --suite utility``: what the model of a run can still do, written into the run, item by item.

Items are asked in groups that don't depend on what is known already, and each group is written down as it is done. So a
killed measurement goes on where it stopped, with the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewardlm.config import BY_A_JUDGE, MeasureSettings, UtilityTask
from rewardlm.data.utility import Item, TaskItems, load_utility, no_data
from rewardlm.errors import DataError, RunError
from rewardlm.measuring.engines import LocalEngine
from rewardlm.measuring.likelihood import Likelihood
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steering, Unsteered

# Items of a group, in which those of similar lengths share passes.
_TOGETHER = 32


@dataclass(frozen=True)
class Pending:
    """What a run lacks of the suite: all ``tasks``, and the ids of the items that it ``has``, by task."""

    tasks: list[TaskItems]
    has: dict[str, set[str]]

    def __bool__(self) -> bool:
        return any(item.id not in self.has[task.task] for task in self.tasks for item in task.items)


def pending(run: Run, settings: MeasureSettings) -> Pending:
    """What is still to be measured of the suite that ``settings`` ask for; nothing where they ask for none.

    Raises DataError where no data are here, and RunError where the run has the suite by other settings or other data.
    """
    if settings.suite is None:
        return Pending([], {})
    before: dict[str, Any] = run.meta.get("utility") or {}
    asked = _by_settings(settings)
    other = [name for name, value in asked.items() if before and before["settings"].get(name) != value]
    if other:
        raise RunError(
            f"{run.path} has utility by other settings (utility.{other[0]} was {before['settings'].get(other[0])}, now "
            f"{asked[other[0]]}): choose another --out"
        )
    tasks = load_utility(settings.utility)
    begun = before.get("tasks", {})
    for task in tasks:
        known = begun.get(task.task)
        if known is not None and known["hash"] != task.hash:
            raise RunError(
                f"{run.path} has {task.task} by other items, from {known['source']} (now {task.source}): give it the "
                "same data, or choose another --out"
            )
    has: dict[str, set[str]] = {task.task: set() for task in tasks}
    for record in run.read_checked("utility"):
        has.setdefault(record["task"], set()).add(record["id"])
    here = [task.task for task in tasks]
    gone = [name for name in settings.utility.tasks if name not in here]
    if not (tasks or begun) or any(len(has.get(name, ())) < begun[name]["items"] for name in gone if name in begun):
        raise DataError(no_data(gone))
    return Pending(tasks, has)


def add_utility(
    run: Run,
    settings: MeasureSettings,
    engine: LocalEngine,
    left: Pending,
    *,
    report: ProgressCallback | None = None,
) -> None:
    """Write what is ``left`` into utility.jsonl: of each item its log-probabilities under the model, steered as
    ``engine`` says. Raises NotAvailableError for a steering that gives no probabilities to given texts.
    """
    if not left:
        return
    missing = [task for task in settings.utility.tasks if task not in left.has]
    if missing:
        warnings.warn(f"{no_data(missing)}; without it, {' and '.join(missing)} stay unmeasured", stacklevel=2)
    steering, strength, note = _as_it_reads(engine)
    with steering.on(engine.policy) as steered:
        reader = Likelihood(steered, strength, window=settings.utility.window, batch_tokens=settings.batch_tokens)
        run.update(
            utility={
                "settings": _by_settings(settings),
                "tasks": run.meta.get("utility", {}).get("tasks", {})
                | {
                    task.task: {"items": len(task.items), "of": task.of, "source": task.source, "hash": task.hash}
                    for task in left.tasks
                },
                "window": reader.window,
                "strength": strength,
                "note": note,
            }
        )
        for task in left.tasks:
            done = 0
            for group in _groups(task):
                if report is not None:
                    report(done, len(task.items), task.task)
                new = [row for row, item in enumerate(group) if item.id not in left.has[task.task]]
                if new:
                    logprobs = reader.of(group)
                    run.append("utility", [_record(task.task, group[row], logprobs[row]) for row in new])
                done += len(group)
            if report is not None:
                report(done, len(task.items), task.task)


def _groups(task: TaskItems) -> Iterator[Sequence[Item]]:
    for start in range(0, len(task.items), _TOGETHER):
        yield task.items[start : start + _TOGETHER]


def _record(task: UtilityTask, item: Item, logprobs: list[float]) -> dict[str, Any]:
    return {"task": task, "id": item.id, "logprobs": logprobs, "sizes": list(item.sizes), "answer": item.answer}


def _by_settings(settings: MeasureSettings) -> dict[str, Any]:
    """The settings that the numbers depend on. Where data lie is none of them: items have hashes."""
    found = settings.utility
    return {name: getattr(found, name) for name in ("tasks", "items", "words", "seed", "window")}


def _as_it_reads(engine: LocalEngine) -> tuple[Steering, float, str | None]:
    """The steering whose probabilities count, its strength, and what the run must say of it."""
    folder = engine.folder
    if folder is None or engine.strength == 0:
        return Unsteered(), 0.0, None
    method = folder.record.method
    if method in BY_A_JUDGE:
        return (
            Unsteered(),
            0.0,
            f"{method} chooses among answers and changes no token's probability: this is the unsteered model's utility",
        )
    if method != "dexperts":
        return load_steering(folder), engine.strength, None
    # Its filter is the base's nucleus. Other models' probabilities are taken before their nucleus, too; and after it,
    # nearly every text holds a token that is impossible.
    settings = {**folder.record.settings, "top_p": 1.0}
    unfiltered = replace(folder, record=folder.record.model_copy(update={"settings": settings}))
    return load_steering(unfiltered), engine.strength, "dexperts reads texts without its filter"
