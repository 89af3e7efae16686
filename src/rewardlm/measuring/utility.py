"""``measure --suite utility``: what the model of a run can still do, written into the run, item by item and answer by
answer.

Items are asked in groups that don't depend on what is known already, and each group is written down as it is done. So a
killed measurement goes on where it stopped, with the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewardlm.config import BY_A_JUDGE, MeasureSettings, ReadTask
from rewardlm.data.utility import Item, TaskItems, load_utility, no_data
from rewardlm.data.utility_prompts import AskedPrompts, load_asked
from rewardlm.errors import DataError, RunError
from rewardlm.measuring.engines import LocalEngine
from rewardlm.measuring.judging import score_answers
from rewardlm.measuring.likelihood import Likelihood
from rewardlm.measuring.utility_answers import add_answers, lacks
from rewardlm.measuring.utility_records import JUDGED, stored_answers
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run
from rewardlm.scoring.scorer import Scorer
from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steering, Unsteered

# Items of a group, in which those of similar lengths share passes.
_TOGETHER = 32


@dataclass(frozen=True)
class Pending:
    """What a run lacks of the suite. ``tasks`` are all that read given texts, and ``has`` says by task which items the
    run has already; ``asked`` are the sets of prompts that it must still answer, or whose answers must be judged.
    """

    tasks: list[TaskItems]
    has: dict[str, set[str]]
    asked: list[AskedPrompts] = field(default_factory=list)

    @property
    def reads(self) -> bool:
        """Whether a given text is left."""
        return any(item.id not in self.has[task.task] for task in self.tasks for item in task.items)

    @property
    def judges(self) -> bool:
        """Whether answers may be left that must be judged."""
        return any(asked.name == JUDGED for asked in self.asked)

    def __bool__(self) -> bool:
        return self.reads or bool(self.asked)


def pending(run: Run, settings: MeasureSettings) -> Pending:
    """What is still to be measured of the suite that ``settings`` ask for; nothing where they ask for none.

    Raises DataError where no data are here, and RunError where the run has the suite by other settings or other data.
    """
    if settings.suite is None:
        return Pending([], {})
    before: Mapping[str, Any] = run.meta.get("utility") or {}
    asked = _by_settings(settings)
    other = [name for name, value in asked.items() if before and before["settings"].get(name, value) != value]
    if other:
        raise RunError(
            f"{run.path} has utility by other settings (utility.{other[0]} was {before['settings'].get(other[0])}, now "
            f"{asked[other[0]]}): choose another --out"
        )
    tasks, prompts = load_utility(settings.utility), load_asked(settings.utility)
    begun = before.get("tasks", {})
    for name, one in _named(tasks, prompts).items():
        known = begun.get(name)
        if known is not None and known["hash"] != one.hash:
            raise RunError(
                f"{run.path} has {name} by other items, from {known['source']} (now {one.source}): give it the "
                "same data, or choose another --out"
            )
    has: dict[str, set[str]] = {task.task: set() for task in tasks}
    for record in run.read("utility"):
        has.setdefault(record["task"], set()).add(record["id"])
    here = [task.task for task in tasks]
    gone = [name for name in settings.utility.read_tasks if name not in here]
    if not (tasks or prompts or begun) or any(
        len(has.get(name, ())) < begun[name]["items"] for name in gone if name in begun
    ):
        raise DataError(no_data(gone))
    _refuse_without_xstest(run, settings, begun)
    return Pending(tasks, has, [one for one in prompts if lacks(run, one, settings.scorer)])


def _refuse_without_xstest(run: Run, settings: MeasureSettings, begun: dict[str, Any]) -> None:
    """Raise DataError if some of XSTest's prompts were answered, and the others can't be asked now."""
    if "xstest" in begun and "over_refusal" in settings.utility.tasks and settings.utility.xstest is None:
        answered = sum(record["task"] == "xstest" for record in stored_answers(run))
        if answered < begun["xstest"]["items"]:
            raise DataError(
                f"{run.path} has answers to {answered} of the {begun['xstest']['items']} prompts of XSTest: give "
                "utility.xstest=FILE again"
            )


def add_utility(
    run: Run,
    settings: MeasureSettings,
    engine: LocalEngine,
    scorers: Sequence[Scorer],
    left: Pending,
    *,
    report: ProgressCallback | None = None,
) -> None:
    """Write what is ``left`` into the run: of each item its log-probabilities under the model, steered as ``engine``
    says, its answers to the suite's own prompts, and what ``scorers`` say of those about groups. Raises
    NotAvailableError for a steering that gives no probabilities to given texts.
    """
    if not left:
        return
    missing = [task for task in settings.utility.read_tasks if task not in left.has]
    if missing:
        warnings.warn(f"{no_data(missing)}; without it, {' and '.join(missing)} stay unmeasured", stacklevel=2)
    run.update(
        utility={
            "window": None,
            "strength": None,
            "note": None,
            **run.meta.get("utility", {}),
            "settings": _by_settings(settings),
            "tasks": run.meta.get("utility", {}).get("tasks", {})
            | {
                name: {"items": one.n, "of": one.of, "source": one.source, "hash": one.hash}
                for name, one in _named(left.tasks, left.asked).items()
            },
        }
    )
    if left.reads:
        _read(run, settings, engine, left, report)
    add_answers(run, settings, engine, left.asked, report=report)
    if left.judges:
        score_answers(run, scorers, settings.max_failed_share, report=report)
        run.update(utility={**run.meta["utility"], "judged_by": settings.scorer})


def _named(tasks: Sequence[TaskItems], asked: Sequence[AskedPrompts]) -> dict[str, TaskItems | AskedPrompts]:
    return {**{task.task: task for task in tasks}, **{one.name: one for one in asked}}


def _read(
    run: Run, settings: MeasureSettings, engine: LocalEngine, left: Pending, report: ProgressCallback | None
) -> None:
    """Write the given texts that are left into utility.jsonl."""
    steering, strength, note = _as_it_reads(engine)
    with steering.on(engine.policy) as steered:
        reader = Likelihood(steered, strength, window=settings.utility.window, batch_tokens=settings.batch_tokens)
        about = {"window": reader.window, "strength": strength, "note": note}
        run.update(utility={**run.meta["utility"], **about})
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


def _record(task: ReadTask, item: Item, logprobs: list[float]) -> dict[str, Any]:
    return {"task": task, "id": item.id, "logprobs": logprobs, "sizes": list(item.sizes), "answer": item.answer}


def _by_settings(settings: MeasureSettings) -> dict[str, Any]:
    """The settings that the numbers depend on. Where data lie is none of them: items have hashes."""
    found = settings.utility
    names = ("items", "words", "seed", "window", "harmless", "refusal_samples", "group_samples")
    return {name: getattr(found, name) for name in names}


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
            f"{method} chooses among answers and changes no token's probability: of texts that are given, this is the "
            "unsteered model's utility",
        )
    if method != "dexperts":
        return load_steering(folder), engine.strength, None
    # Its filter is the base's nucleus. Other models' probabilities are taken before their nucleus, too; and after it,
    # nearly every text holds a token that is impossible.
    settings = {**folder.record.settings, "top_p": 1.0}
    unfiltered = replace(folder, record=folder.record.model_copy(update={"settings": settings}))
    return load_steering(unfiltered), engine.strength, "dexperts reads texts without its filter"
