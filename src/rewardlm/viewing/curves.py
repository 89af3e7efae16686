"""A training's numbers in memory, step by step, and which of them get a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rewardlm.reporting.figures import CURVES, finite

# The most judges, witnesses or terms that are read; more would be a mistake or an attack.
_MOST_NAMES = 16
# A heading of its own for each quantity that shares a figure in the report.
_HEADINGS = {
    "loss": "Loss",
    "eval_loss": "Evaluation loss",
    "toxicity_mean": "Toxicity by the reward’s judges",
    "implicit_reward_chosen": "Log-ratio of chosen answers, times beta",
    "implicit_reward_rejected": "Log-ratio of rejected answers, times beta",
    "kl": "KL to the reference",
    "kl_full": "KL over the whole vocabulary",
    "kl_origin": "KL to the first reference",
}
_STARRED = {"toxicity_by_witness": "Toxicity by {}, which only watches", "terms": "Reward term {}"}
# Significant digits of the page's numbers: the eye can't see more.
_DIGITS = 6


class Curves:
    """Columns of numbers, one row per step; None is a gap. ``step`` and ``seconds`` (of that step) are two of them."""

    def __init__(self) -> None:
        self.n = 0
        self.columns: dict[str, list[float | None]] = {"step": [], "seconds": []}

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record of metrics.jsonl. One without a step is ignored."""
        step = finite(record.get("step"))
        if step is None:
            return
        row = dict(_values(record))
        row |= {"step": step, "seconds": finite(record.get("seconds"))}
        for key, value in row.items():
            if value is not None or key in self.columns:
                self.columns.setdefault(key, [None] * self.n).append(value)
        self.n += 1
        for column in self.columns.values():
            column.extend([None] * (self.n - len(column)))

    def since(self, start: int) -> dict[str, list[float | None]]:
        """The columns from row ``start`` on."""
        return {key: column[start:] for key, column in self.columns.items()}

    def last(self, key: str) -> float | None:
        """The newest number of a column."""
        return next((value for value in reversed(self.columns.get(key, [])) if value is not None), None)


def charts(keys: set[str]) -> list[dict[str, str]]:
    """In reading order, a chart for each of ``keys``: ``key``, ``heading`` and ``advice`` (what to look for)."""
    shown = []
    for heading, patterns, advice in CURVES:
        for pattern in patterns:
            section, star, _ = pattern.partition(".*")
            if not star:
                names = [(pattern, _HEADINGS.get(pattern, heading))] if pattern in keys else []
            else:
                titled = _STARRED.get(section, heading + ": {}")
                found = sorted(key for key in keys if key.startswith(section + "."))
                names = [(key, titled.format(key[len(section) + 1 :])) for key in found]
            shown += [{"key": key, "heading": title, "advice": advice} for key, title in names]
    return shown


def _values(record: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers of a record that could get a chart, by key; those of a judge or term as ``section.name``."""
    for _, patterns, _ in CURVES:
        for pattern in patterns:
            section, star, _ = pattern.partition(".*")
            if not star:
                yield pattern, _rounded(record.get(pattern))
                continue
            inside = record.get(section)
            if isinstance(inside, Mapping):
                for name in sorted(inside)[:_MOST_NAMES]:
                    yield f"{section}.{name}", _rounded(inside[name])


def _rounded(value: object) -> float | None:
    number = finite(value)
    if number is None or number == 0:
        return number
    return round(number, _DIGITS - 1 - math.floor(math.log10(abs(number))))
