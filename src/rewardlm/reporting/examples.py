"""Which prompts the page shows side by side. A rule chooses them, so that nobody has to suspect cherry-picking.

It compares the baseline with the last run and takes a few of each kind: a large fall of the score, a typical one, a
counter-narrative, an answer that hardly changed, one that got worse. Within a kind, answers that are easy to read come
first, and ties are drawn by seed. Runs are streamed: scores first, then texts, only of the answers that may be shown.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rewardlm.measuring.metrics import THRESHOLD
from rewardlm.measuring.quality import is_repeated
from rewardlm.runs import MainLabels, Run
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, most_likely

# Two scores closer than this look the same to a reader.
UNCHANGED = 0.05
# How many of a kind are looked at before the most readable of them are taken.
_CANDIDATES = 60
_Key = tuple[str, int]  # prompt id, sample
Kind = Literal["large", "typical", "counter", "unchanged", "worse"]
KINDS: tuple[Kind, ...] = ("large", "typical", "counter", "unchanged", "worse")


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One run's answer, None where it has none, and what each judge's main label says of it."""

    label: str
    text: str | None
    cut_off: bool
    scores: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with an answer of every run; ``history`` are (role, text) of the turns before it."""

    kind: Kind
    prompt: str
    history: Sequence[tuple[str, str]]
    toxicity: float | None
    answers: Sequence[ShownAnswer]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The examples, and how many pairs of answers there are of each kind among the ``pairs`` that were scored in both
    runs; ``fell`` counts all whose score fell.
    """

    examples: Sequence[Example]
    pairs: int
    fell: int
    of_kind: Mapping[Kind, int]


def choose_examples(runs: Sequence[Run], judge: str, *, labels: Sequence[str], each: int = 2, seed: int = 0) -> Chosen:
    """At most ``each`` examples of every kind, by ``judge``'s scores of the first and the last of ``runs``.

    Of all falls by at least ``UNCHANGED``, the largest third are large and the middle third typical. A
    counter-narrative is an answer of the last run to a toxic prompt that the judge of pairs calls one. ``labels`` are
    the runs' names in the comparison, where no two are alike. A prompt appears once.

    Within a kind, the first answers are those that ended by themselves, don't repeat themselves, and aren't harder to
    predict than half of their run's (by perplexity, where it was measured).
    """
    keys: list[dict[str, _Key]] = [
        {record["id"]: (record["prompt_id"], record["sample"]) for record in run.read("generations")} for run in runs
    ]
    values = [_scores(run, key_of) for run, key_of in zip(runs, keys, strict=True)]
    before, after = values[0], values[-1]
    changes: list[tuple[float, _Key]] = []
    for key in before.keys() & after.keys():
        old, new = before[key].get(judge), after[key].get(judge)
        if old is not None and new is not None:
            changes.append((new - old, key))
    changes.sort()
    oppose = _counter_narratives(runs[-1], keys[-1]) if changes else set()
    toxic = {record["id"] for record in runs[0].read("prompts") if (record["toxicity"] or 0) > THRESHOLD}
    candidates = _by_kind(changes, {key for key in oppose if key[0] in toxic})
    rng = random.Random(seed)
    drawn = {kind: rng.sample(found, min(len(found), _CANDIDATES)) for kind, found in candidates.items()}
    looked_at = {key for found in drawn.values() for key in found}
    answers = [
        {
            key: record
            for record in run.read("generations")
            if (key := (record["prompt_id"], record["sample"])) in looked_at
        }
        for run in runs
    ]
    flaws = [_flaws(run, key_of, found) for run, key_of, found in zip(runs, keys, answers, strict=True)]
    chosen: list[tuple[Kind, _Key]] = []
    taken: set[str] = set()
    # The rarest kinds choose first: a prompt appears once, and an answer may be of two kinds.
    for kind in sorted(KINDS, key=lambda kind: len(candidates[kind])):
        order = sorted(drawn[kind], key=lambda key: sum(found.get(key, 0) for found in flaws))
        for key in order:
            if key[0] not in taken and sum(one == kind for one, _ in chosen) < each:
                taken.add(key[0])
                chosen.append((kind, key))
    chosen.sort(key=lambda one: KINDS.index(one[0]))
    prompts = {record["id"]: record for record in runs[0].read("prompts") if record["id"] in taken}
    examples = [
        _example(kind, prompts[key[0]], [
            ShownAnswer(
                label,
                found[key]["text"] if key in found else None,
                key in found and found[key]["finish"] == "length",
                scores.get(key, {}),
            )
            for label, found, scores in zip(labels, answers, values, strict=True)
        ])
        for kind, key in chosen
    ]  # fmt: skip
    fell = sum(change <= -UNCHANGED for change, _ in changes)
    return Chosen(examples, len(changes), fell, {kind: len(candidates[kind]) for kind in KINDS})


def _by_kind(changes: Sequence[tuple[float, _Key]], counter: set[_Key]) -> dict[Kind, list[_Key]]:
    """The pairs of answers of each kind; ``changes`` are sorted, the largest fall first."""
    fell = [key for change, key in changes if change <= -UNCHANGED]
    third = len(fell) / 3
    return {
        "large": fell[: max(1, round(third))] if fell else [],
        "typical": fell[round(third) : round(2 * third)],
        "counter": [key for _, key in changes if key in counter],
        "unchanged": [key for change, key in changes if abs(change) < UNCHANGED],
        "worse": [key for change, key in changes if change >= UNCHANGED],
    }


def _counter_narratives(run: Run, key_of: Mapping[str, _Key]) -> set[_Key]:
    """The answers that the judge of pairs calls counter-narratives."""
    return {
        key_of[record["generation_id"]]
        for record in run.read("quality")
        if record.get("classes") and most_likely(record["classes"]) == COUNTER_NARRATIVE
        and record["generation_id"] in key_of
    }  # fmt: skip


def _flaws(run: Run, key_of: Mapping[str, _Key], answers: Mapping[_Key, Mapping[str, Any]]) -> dict[_Key, int]:
    """How many things make an answer hard to read: it is cut off, empty, repeats itself, is harder to predict."""
    perplexity = {
        key_of[record["generation_id"]]: float(record["perplexity"])
        for record in run.read("quality")
        if record.get("perplexity") is not None and record["generation_id"] in key_of
    }
    median = float(np.median(list(perplexity.values()))) if perplexity else 0.0
    return {
        key: (record["finish"] == "length")
        + (not record["text"].strip())
        + is_repeated(record["text"])
        + (perplexity.get(key, 0.0) > median)
        for key, record in answers.items()
    }


def _example(kind: Kind, prompt: Mapping[str, Any], answers: Sequence[ShownAnswer]) -> Example:
    history = [(turn["role"], turn["text"]) for turn in prompt["turns"][:-1]]
    return Example(kind, prompt["turns"][-1]["text"], history, prompt["toxicity"], answers)


def _scores(run: Run, key_of: Mapping[str, _Key]) -> dict[_Key, dict[str, float | None]]:
    """Scores by answer and judge, of each judge's main label alone."""
    mains = MainLabels()
    for record in run.read("scores"):
        mains.add(record)
    scores: dict[_Key, dict[str, float | None]] = {}
    for record in run.read("scores"):
        scorer = record["scorer"]
        if mains.column(scorer, record["label"] or "") == scorer and record["generation_id"] in key_of:
            scores.setdefault(key_of[record["generation_id"]], {})[scorer] = record["value"]
    return scores
