"""What interpretations say of single words of the answers that the explorer shows: drift, and attribution.

A word's drift says how much likelier a tuned model makes it than the baseline does: the difference of ln p after what
stands before, summed over the word's tokens, in nats. A word's attribution is its share of what a model's own answer
rests on, averaged over the explained tokens that come after it. All numbers come from drift.jsonl and
attributions.jsonl; no model is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewardlm.errors import RunError
from rewardlm.reporting.interpretation import load, looked_into
from rewardlm.runs import Run


@dataclass(slots=True)
class WordReadings:
    """What was read of one answer: its ``words`` as the tokens spell them, and by tuned model their ``drift``, an entry
    per word. ``context`` has the words that the answer rests on, as (text, kind) with the kinds template, prompt and
    answer, and ``shares`` has their shares."""

    words: list[str] = field(default_factory=list)
    drift: dict[str, list[float]] = field(default_factory=dict)
    context: list[tuple[str, str]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        return {"words": self.words, "drift": self.drift, "context": self.context, "shares": self.shares}


def read_words(
    interpretations: Sequence[Run],
    runs: Sequence[Run],
    labels: Sequence[str],
    ids: Sequence[Mapping[str, int]],
) -> tuple[dict[tuple[int, int], WordReadings], list[str]]:
    """Readings by (row, model) of the answers of ``runs``, and sentences about what is missing.

    ``ids`` gives an answer's row by its id, for each run. If two interpretations read one answer, the reading of the
    first is kept. Raises RunError if an interpretation isn't finished.
    """
    found: dict[tuple[int, int], WordReadings] = {}
    notes: list[str] = []
    numbers = {run.path.resolve(): number for number, run in enumerate(runs)}
    for interpreted in interpretations:
        names = [model.label for model in load(interpreted).models]
        # For each model of the interpretation, the number of its run on the page; None if it isn't there.
        own = [numbers.get(path.resolve()) for path in looked_into([interpreted])]
        mine: dict[tuple[int, int], WordReadings] = {}

        def reading(
            record: Mapping[str, Any],
            own: Sequence[int | None] = own,
            names: Sequence[str] = names,
            mine: dict[tuple[int, int], WordReadings] = mine,
        ) -> WordReadings | None:
            model = own[record["author"]]
            row = None if model is None else ids[model].get(record["id"].removeprefix(f"{names[record['author']]}:"))
            return None if row is None or model is None else mine.setdefault((row, model), WordReadings())

        spelt = False
        for record in interpreted.read("drift"):
            words = record.get("words")
            _refuse_strange(interpreted, "drift", record, len(own))
            answer = reading(record)
            spelt = spelt or words is not None
            if words is None or answer is None:
                continue
            answer.words = [str(text) for text, _ in words]
            starts = np.cumsum([0, *(tokens for _, tokens in words)])[:-1]
            first = record["logprobs"][0]
            for place, model in enumerate(own):
                logprobs = record["logprobs"][place]
                # Those of a model that can't be read are empty.
                if place > 0 and model is not None and len(logprobs):
                    sums = np.add.reduceat(np.subtract(logprobs, first), starts)
                    answer.drift[labels[model]] = [round(float(value), 3) for value in sums]
        if not spelt:
            notes.append(
                f"{interpreted.label} comes from a version that did not store the text of tokens, so words have no "
                "drift here: interpret again into another --out."
            )
        for record in interpreted.read("attributions"):
            _refuse_strange(interpreted, "attributions", record, len(own))
            answer = reading(record) if record["author"] == record["reader"] else None
            if answer is not None and (rows := [row for row in record["scores"] if row is not None]):
                answer.context = [(str(text), str(kind)) for text, kind in record["words"]]
                answer.shares = _mean_shares(rows, len(answer.context))
        for key, answer in mine.items():
            if answer.words or answer.context:
                found.setdefault(key, answer)
    return found, notes


def _refuse_strange(run: Run, name: str, record: Mapping[str, Any], models: int) -> None:
    """Raise RunError for a record whose numbers don't fit each other."""
    wrong = not 0 <= record["author"] < models
    if name == "drift":
        tokens = len(record["logprobs"][0]) if record["logprobs"] else 0
        sizes = [size for _, size in record.get("words") or ()]
        starts = [sum(sizes[:at]) for at in range(len(sizes))]
        wrong |= len(record["logprobs"]) != models or any(len(one) not in (0, tokens) for one in record["logprobs"])
        wrong |= any(size < 0 for size in sizes) or any(start >= tokens for start in starts)
    else:
        wrong |= not 0 <= record["reader"] < models
        wrong |= any(len(row) > len(record["words"]) for row in record["scores"] if row is not None)
    if wrong:
        raise RunError(
            f"{run.path}/{name}.jsonl: the record of {record['id']!r:.60} contradicts itself or names a model that "
            "there isn't; the file was changed by hand: interpret again"
        )


def _mean_shares(rows: Sequence[Sequence[float]], words: int) -> list[float]:
    """Float[words]: a word's mean share over the explained tokens after it; rows without any score don't count."""
    total, count = np.zeros(words), np.zeros(words)
    for row in rows:
        size = np.abs(row)
        if size.sum() > 0:
            total[: len(row)] += size / size.sum()
            count[: len(row)] += 1
    return [round(float(value), 4) for value in total / np.maximum(count, 1)]
