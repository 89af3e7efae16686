"""A measurement that is under way: how far it is, what each judge says so far, and its newest answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardlm.measuring.metrics import THRESHOLD
from rewardlm.reporting.figures import finite
from rewardlm.runs import MainLabels, records_file
from rewardlm.types import DISAGREEMENT
from rewardlm.viewing.samples import Named, ViewedAnswer
from rewardlm.viewing.tail import Tail, record

# Answers that the page shows.
_NEWEST = 40
# The most prompts whose texts are kept: a measurement may have millions.
_MOST_PROMPTS = 200_000


@dataclass(slots=True)
class _Column:
    """What one label of one judge has said so far."""

    seen: int = 0
    scored: int = 0
    toxic: int = 0
    total: float = 0.0


class Measurement:
    """What is known of the records of a measured run, read a piece at a time."""

    def __init__(self, folder: Path) -> None:
        names = ("prompts", "generations", "scores", "quality", "unanswered")
        self._tails = {name: Tail(records_file(folder, name)) for name in names}
        self._thresholds: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self.prompts: dict[str, str] = {}
        self.answered = self.refused = self.looked_at = self.damaged = 0
        self._newest: deque[dict[str, Any]] = deque(maxlen=_NEWEST)
        self._scores: dict[str, dict[tuple[str, str], float | None]] = {}
        self._columns: dict[tuple[str, str], _Column] = {}
        self._labels = MainLabels()

    def judge_by(self, thresholds: Mapping[str, float]) -> None:
        """Judges that have a threshold of their own, by name. If that is new, all is read and counted again."""
        if self._thresholds != dict(thresholds):
            self._thresholds = dict(thresholds)
            self._read_again()

    def _read_again(self) -> None:
        self._tails = {name: Tail(tail.path) for name, tail in self._tails.items()}
        self._begin()

    @property
    def behind(self) -> bool:
        """Whether there is more to read at once."""
        return any(tail.behind for tail in self._tails.values())

    def look(self) -> bool:
        """Read what is new; returns whether anything was. Raises RunError where a file can't be read."""
        before = [tail.generation for tail in self._tails.values()]
        lines = {name: tail.read() for name, tail in self._tails.items()}
        if before != [tail.generation for tail in self._tails.values()]:
            # One file was written anew: what was counted of it is wrong, so all are read again.
            self._read_again()
            lines = {name: tail.read() for name, tail in self._tails.items()}
        for line in lines["prompts"]:
            self._prompt(record(line))
        self.answered += len(lines["generations"])
        # Only what is shown is parsed: answers hold their tokens.
        for line in lines["generations"][-_NEWEST:]:
            self._answer(record(line))
        for line in lines["scores"]:
            self._score(record(line))
        self.looked_at += len(lines["quality"])
        self.refused += len(lines["unanswered"])
        return any(lines.values())

    def scores(self) -> list[dict[str, Any]]:
        """By each judge's main label, so far: ``scorer``, ``seen``, ``scored``, ``toxic_fraction`` and ``mean``."""
        return [
            {
                "scorer": self._labels.column(scorer, label),
                "seen": column.seen,
                "scored": column.scored,
                "toxic_fraction": column.toxic / column.scored if column.scored else None,
                "mean": column.total / column.scored if column.scored else None,
            }
            for (scorer, label), column in self._columns.items()
            if label in ("", self._labels.of(scorer))
        ]

    def newest(self) -> list[ViewedAnswer]:
        """The newest answers, oldest first."""
        return [
            ViewedAnswer.of_measurement(
                answer, self.prompts.get(str(answer.get("prompt_id")), ""), self._named(str(answer.get("id")))
            )
            for answer in self._newest
        ]

    def _threshold(self, scorer: str, label: str) -> float:
        """A threshold of its own is that of the judge's main label."""
        main = label in ("", self._labels.of(scorer))
        return self._thresholds.get(scorer, THRESHOLD) if main else THRESHOLD

    def _named(self, identity: str) -> Named:
        found = self._scores.get(identity, {})
        return [(scorer, value) for (scorer, label), value in found.items() if label in ("", self._labels.of(scorer))]

    def _prompt(self, found: Mapping[str, Any] | None) -> None:
        if found is None or not isinstance(found.get("turns"), list):
            self.damaged += 1
            return
        turns = [turn.get("text") for turn in found["turns"] if isinstance(turn, dict)]
        if len(self.prompts) < _MOST_PROMPTS:
            self.prompts[str(found.get("id"))] = str(turns[-1]) if turns else ""

    def _answer(self, found: dict[str, Any] | None) -> None:
        if found is None:
            self.damaged += 1
            return
        if len(self._newest) == _NEWEST:
            self._scores.pop(str(self._newest[0].get("id")), None)
        self._newest.append(found)
        self._scores[str(found.get("id"))] = {}

    def _score(self, found: Mapping[str, Any] | None) -> None:
        if found is None or not {"generation_id", "scorer", "label", "value"} <= found.keys():
            self.damaged += 1
            return
        scorer, label, value = str(found["scorer"]), str(found["label"] or ""), finite(found["value"])
        self._labels.add({"scorer": scorer, "label": label, "value": value})
        if label == DISAGREEMENT:
            return
        column = self._columns.setdefault((scorer, label), _Column())
        column.seen += 1
        if value is not None:
            column.scored += 1
            column.total += value
            column.toxic += value > self._threshold(scorer, label)
        shown = self._scores.get(str(found["generation_id"]))
        if shown is not None:
            shown[scorer, label] = value
