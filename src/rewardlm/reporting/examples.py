"""Which prompts the page shows side by side, so that nobody has to suspect that the nice ones were picked.

Chosen by rule between the baseline and the last run: those whose score fell most, those whose score rose most,
and some at random (seeded) among those that hardly moved. Runs are streamed: scores first, and texts only of
the answers that are shown.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rewardlm.runs import MainLabels, Run

# Two scores closer than this are the same answer to a reader's eye.
UNCHANGED = 0.05
_Key = tuple[str, int]  # prompt id, sample
_Kind = Literal["improved", "worse", "unchanged"]


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

    kind: _Kind
    prompt: str
    history: Sequence[tuple[str, str]]
    toxicity: float | None
    answers: Sequence[ShownAnswer]


def choose_examples(
    runs: Sequence[Run], judge: str, *, labels: Sequence[str], each: int = 4, seed: int = 0
) -> list[Example]:
    """At most ``each`` examples of every kind, by ``judge``'s scores of the first and the last of ``runs``.

    ``labels`` are the runs' names in the comparison, where no two are alike. A prompt appears once.
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
    still = [change for change in changes if abs(change[0]) < UNCHANGED]
    random.Random(seed).shuffle(still)
    taken: set[str] = set()
    chosen: list[tuple[_Kind, _Key]] = []
    of_kind: dict[_Kind, list[tuple[float, _Key]]] = {
        "improved": [change for change in changes if change[0] <= -UNCHANGED],
        "worse": [change for change in reversed(changes) if change[0] >= UNCHANGED],
        "unchanged": still,
    }
    for kind, candidates in of_kind.items():
        room = each
        for _, key in candidates:
            if room and key[0] not in taken:
                taken.add(key[0])
                chosen.append((kind, key))
                room -= 1
    shown = {key for _, key in chosen}
    answers = [
        {key: record for record in run.read("generations") if (key := (record["prompt_id"], record["sample"])) in shown}
        for run in runs
    ]
    prompts = {record["id"]: record for record in runs[0].read("prompts") if record["id"] in taken}
    examples = []
    for kind, key in chosen:
        prompt = prompts[key[0]]
        shown_answers = [
            ShownAnswer(
                label,
                found[key]["text"] if key in found else None,
                key in found and found[key]["finish"] == "length",
                scores.get(key, {}),
            )
            for label, found, scores in zip(labels, answers, values, strict=True)
        ]
        history = [(turn["role"], turn["text"]) for turn in prompt["turns"][:-1]]
        examples.append(Example(kind, prompt["turns"][-1]["text"], history, prompt["toxicity"], shown_answers))
    return examples


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
