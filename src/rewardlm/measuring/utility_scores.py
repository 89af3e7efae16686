"""What a run's ``utility.jsonl`` says: accuracies and WikiText's perplexity.

The unit is the item: a question, or an article. Models are compared on the items that both were asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewardlm.errors import RunError
from rewardlm.measuring.result import Interval
from rewardlm.measuring.utility_results import UtilitySummary
from rewardlm.runs import Run
from rewardlm.stats import FloatArray, mean_ci95, share_ci95

# The tasks whose endings are as short as each other: lm-evaluation-harness reports their acc, and no acc_norm.
BY_LOGPROB = ("boolq", "mmlu")


@dataclass(frozen=True, slots=True)
class TaskScores:
    """A task's n items, by ``ids``: sum(values) / sum(counts) is its number.

    For a choice, ``values`` Float[n] are 1 where the right ending is the likeliest, by log-probability per character
    (lm-evaluation-harness's acc_norm) or, for the tasks of ``BY_LOGPROB``, by log-probability (its acc).
    ``unnormalised`` Float[n] are 1 where it is by log-probability in any case, and ``counts`` are 1. For running text,
    ``values`` are −ln p of the articles, ``counts`` their words.
    """

    ids: tuple[str, ...]
    values: FloatArray
    counts: FloatArray
    unnormalised: FloatArray | None

    @property
    def is_choice(self) -> bool:
        return self.unnormalised is not None

    def of(self, ids: Sequence[str]) -> TaskScores:
        """Of some items, in this order."""
        places = {identity: place for place, identity in enumerate(self.ids)}
        rows = np.array([places[identity] for identity in ids], dtype=np.intp)
        unnormalised = None if self.unnormalised is None else self.unnormalised[rows]
        return TaskScores(tuple(ids), self.values[rows], self.counts[rows], unnormalised)


def read_utility(run: Run) -> dict[str, TaskScores]:
    """The tasks of a run. Raises RunError for a record that was changed by hand."""
    found: dict[str, dict[str, tuple[FloatArray, FloatArray, int | None]]] = {}
    for record in run.read("utility"):
        logprobs, sizes = (np.array(record[name], dtype=np.float64) for name in ("logprobs", "sizes"))
        if logprobs.ndim != 1 or logprobs.shape != sizes.shape or not logprobs.size:
            raise RunError(f"{run.path}: utility.jsonl's {record['id']!r} was changed by hand: measure again")
        found.setdefault(record["task"], {})[record["id"]] = (logprobs, sizes, record["answer"])
    return {task: scores_of(task, items) for task, items in found.items()}


def scores_of(task: str, items: Mapping[str, tuple[FloatArray, FloatArray, int | None]]) -> TaskScores:
    """``items`` are by id: the log-probabilities of their endings, the sizes, and which ending is right."""
    rows, ids = list(items.values()), tuple(items)
    if rows[0][2] is None:
        surprise, words = np.array([[-logprobs[0], sizes[0]] for logprobs, sizes, _ in rows]).T
        return TaskScores(ids, surprise, words, None)
    # Of equals the first counts, as in lm-evaluation-harness.
    with np.errstate(divide="ignore"):
        normalised = [float(np.argmax(logprobs / sizes) == answer) for logprobs, sizes, answer in rows]
    plain = [float(np.argmax(logprobs) == answer) for logprobs, _, answer in rows]
    hits = plain if task in BY_LOGPROB else normalised
    return TaskScores(ids, np.array(hits), np.ones(len(rows)), np.array(plain))


def summarise_utility(scores: Mapping[str, TaskScores]) -> dict[str, UtilitySummary]:
    """Each task's number with its interval, over items."""
    found = {}
    for task, one in scores.items():
        value = float(one.values.sum() / one.counts.sum())
        ends = share_ci95(one.values) if one.is_choice else mean_ci95(one.values, one.counts)
        found[task] = UtilitySummary(
            n=len(one.ids),
            value=value if one.is_choice else _exp(value),
            ci95=ends if one.is_choice or ends is None else (_exp(ends[0]), _exp(ends[1])),
            unnormalised=None if one.unnormalised is None else float(one.unnormalised.mean()),
        )
    return found


def mean_accuracies(runs: Sequence[Mapping[str, TaskScores]]) -> list[tuple[float, Interval | None] | None]:
    """Each run's mean accuracy with its interval: the mean over those tasks of choice that all runs with any have, on
    the items of all. None for a run without, and for all where they share none.
    """
    asked = [run for run in runs if any(one.is_choice for one in run.values())]
    tasks = [task for task in (asked[0] if asked else {}) if all(task in run and run[task].is_choice for run in asked)]
    by_task = [alike for task in tasks if (alike := shared([run[task] for run in asked]))[0].ids]
    if not by_task:
        return [None] * len(runs)
    # Each task counts alike, however many items it has.
    weights = np.concatenate([np.full(len(alike[0].ids), 1 / len(alike[0].ids)) for alike in by_task])
    weights *= len(weights) / weights.sum()
    found: list[tuple[float, Interval | None] | None] = []
    for run in runs:
        place = next((number for number, one in enumerate(asked) if one is run), None)
        if place is None:
            found.append(None)
            continue
        hits = weights * np.concatenate([alike[place].values for alike in by_task])
        found.append((float(hits.sum() / weights.sum()), share_ci95(hits, weights)))
    return found


def shared(scores: Sequence[TaskScores]) -> list[TaskScores]:
    """All of them, on the items that all have."""
    common = set.intersection(*(set(one.ids) for one in scores))
    ids = [identity for identity in scores[0].ids if identity in common]
    return [one.of(ids) for one in scores]


def _exp(value: float) -> float:
    return math.exp(min(value, 700))
