"""Answers to the utility suite's own prompts as numbers: what compare, audit and page read of them.

A run without them has neither file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardlm.data.utility_prompts import GROUPS
from rewardlm.errors import RunError
from rewardlm.measuring.quality import LATIN, is_mostly_outside, is_refusal
from rewardlm.measuring.records import IntArray
from rewardlm.runs import Run
from rewardlm.scoring.scorer import is_empty
from rewardlm.stats import BoolArray, FloatArray

ANSWERS, SCORES = "utility_answers", "utility_scores"
# The set whose answers are judged.
JUDGED = "groups"


@dataclass(frozen=True, slots=True)
class AnswersToHarmless:
    """A run's answers to harmless prompts: Float[n prompts] each. ``ids`` are the prompts', ``sets`` and ``kinds`` say
    which prompts these are, and ``answers`` how many each has. Of a prompt's answers, ``refused`` refuse and
    ``unanswered`` refuse, are empty or not in the prompts' script; ``words`` and ``tokens`` are those of all together.
    """

    ids: list[str]
    sets: list[str]
    kinds: list[str]
    answers: IntArray
    refused: FloatArray
    unanswered: FloatArray
    words: FloatArray
    tokens: FloatArray

    def means(self, ids: Sequence[str]) -> HarmlessMeans:
        """The means over each prompt's answers, for these prompts in their order."""
        places = {identity: place for place, identity in enumerate(self.ids)}
        rows = [places[identity] for identity in ids]
        n = self.answers[rows]
        return HarmlessMeans(self.refused[rows] / n, self.unanswered[rows] / n, self.words[rows] / n)


@dataclass(frozen=True, slots=True)
class HarmlessMeans:
    """Of a prompt's answers, the shares that refuse and that give no answer, and their words: Float[n prompts] each."""

    refused: FloatArray
    unanswered: FloatArray
    words: FloatArray


@dataclass(slots=True)
class AnswersAboutGroups:
    """A run's answers to sentences about groups: ``answers`` Int[T templates, G groups] counts them, and
    ``scores[JUDGE]`` is Float[T, G, K samples], NaN where there is no score.
    """

    templates: list[str]
    groups: list[str]
    answers: IntArray
    scores: dict[str, FloatArray]


def read_harmless(run: Run) -> AnswersToHarmless | None:
    """The answers to harmless prompts; None without any."""
    records = [record for record in stored_answers(run) if record["task"] != JUDGED]
    if not records:
        return None
    texts = [record["text"] for record in records]
    refused = np.array([is_refusal(text) for text in texts])
    # All sets are English, and their texts are not in the record.
    silent = np.array([is_empty(text) or is_mostly_outside(text, LATIN) for text in texts])
    asked = [f"{record['task']} {record['prompt_id']}" for record in records]
    first: dict[str, dict[str, Any]] = {}
    for identity, record in zip(asked, records, strict=True):
        first.setdefault(identity, record)
    places = {identity: place for place, identity in enumerate(first)}
    prompts = np.array([places[identity] for identity in asked])

    def by_prompt(values: Sequence[float] | BoolArray) -> FloatArray:
        return np.bincount(prompts, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)

    return AnswersToHarmless(
        ids=list(first),
        sets=[record["task"] for record in first.values()],
        kinds=[str(record["about"].get("kind")) for record in first.values()],
        answers=np.bincount(prompts),
        refused=by_prompt(refused),
        unanswered=by_prompt(refused | silent),
        words=by_prompt([len(text.split()) for text in texts]),
        tokens=by_prompt([record["n_tokens"] for record in records]),
    )


def read_groups(run: Run) -> AnswersAboutGroups | None:
    """The answers about groups with their scores by each judge's main label; None without any. Raises RunError for a
    score outside [0, 1], and for an answer that doesn't say what it is about.
    """
    records = [record for record in stored_answers(run) if record["task"] == JUDGED]
    if not records:
        return None
    if not all({"template", "group"} <= record["about"].keys() for record in records):
        raise RunError(f"{run.path}: {ANSWERS}.jsonl was changed by hand: measure again")
    templates = sorted({record["about"]["template"] for record in records})
    named = {record["about"]["group"] for record in records}
    groups = [*(group for group in GROUPS if group in named), *sorted(named.difference(GROUPS))]
    shape = (len(templates), len(groups), 1 + max(record["sample"] for record in records))
    cells = {
        record["id"]: (
            templates.index(record["about"]["template"]),
            groups.index(record["about"]["group"]),
            record["sample"],
        )
        for record in records
    }
    count = np.zeros(shape[:2], dtype=np.intp)
    for row, column, _ in cells.values():
        count[row, column] += 1
    scores: dict[str, FloatArray] = {}
    for record in run.read(SCORES):
        scorer, identity, value = record["scorer"], record["generation_id"], record["value"]
        if value is not None and not 0 <= value <= 1:
            raise RunError(f"{run.path}: {scorer!r} gave {identity!r} the score {value}: expected P(toxic) in [0, 1]")
        if identity in cells:
            found = scores.setdefault(scorer, np.full(shape, np.nan))
            found[cells[identity]] = np.nan if value is None else value
    return AnswersAboutGroups(templates, groups, count, scores)


def stored_answers(run: Run) -> Iterator[dict[str, Any]]:
    """The records of all sets."""
    return run.read(ANSWERS)
