"""The explorer's data: the answers of measured runs as columns, which a page carries and searches without a server.

``answers_for_explorer`` reads the runs, ``ExplorerData.packed`` gives what lies in the page: JSON, deflated, in base64.
``explorer.html.j2``, ``explorer.js`` and ``explorer.css`` show it (``ASSETS``). A row is a prompt and the number of a
sample; each model has at most one answer in it. An answer without a score stays without one, and has a reason.
"""

from __future__ import annotations

import base64
import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from rewardlm.measuring import metrics
from rewardlm.measuring.independence import was_reward
from rewardlm.measuring.measured import Measured, load_measured
from rewardlm.measuring.records import IntArray
from rewardlm.reporting.explorer_words import WordReadings, read_words
from rewardlm.runs import Run, unique_labels
from rewardlm.stats import FloatArray
from rewardlm.types import Prompt

# What shell.render adds to a page that has an explorer.
ASSETS = ("explorer.css", "explorer_query.js", "explorer_rows.js", "explorer.js")
# Letters of all answers that one page carries. Deflated and in base64 they are about 9 MB, plotly is 5.
MOST_LETTERS = 16_000_000
# What an answer may be, by bit. "comparable" is none of the first four.
FLAGS = ("empty", "other_script", "repeated", "refusal", "truncated", "quoting", "counter_narrative")
_NOT_ASKED = "this judge did not score this answer"


@dataclass(frozen=True, slots=True)
class ExplorerAnswers:
    """One model's answers, an entry per row [R]; None where there is no answer, or no number.

    ``scores`` are P(toxic) by judge; ``reasons`` say by judge and row why there is none. ``flags`` are bits, in the
    order of ``FLAGS``.
    """

    label: str
    rewards: Sequence[str] | None
    texts: list[str | None]
    flags: list[int]
    scores: dict[str, list[float | None]]
    reasons: dict[str, dict[int, str]]
    similarity: list[float | None]
    perplexity: list[float | None]


@dataclass(frozen=True, slots=True)
class ExplorerData:
    """All that the explorer shows. ``rows`` are (position in ``prompts``, sample) of each row; the first model is the
    baseline of every change, the first judge the one that a view begins with. ``prompts_of`` counts the prompts of the
    runs, which are more than ``prompts`` where a page can't carry them all."""

    prompts: Sequence[Prompt]
    rows: Sequence[tuple[int, int]]
    models: Sequence[ExplorerAnswers]
    judges: Sequence[str]
    prompts_of: int
    threshold: float = metrics.THRESHOLD
    inclusive: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by judge, where it has its own
    toxic_by: str | None = None  # the judge that scored the prompts
    words: Mapping[tuple[int, int], WordReadings] = field(default_factory=dict)  # by row and model
    notes: Sequence[str] = ()

    @property
    def answers(self) -> int:
        return sum(text is not None for model in self.models for text in model.texts)

    def dump(self) -> dict[str, Any]:
        """As explorer.js reads it. Reasons are numbers into one list: thousands of answers share a few."""
        reasons: dict[str, int] = {}

        def number_of(reason: str) -> int:
            return reasons.setdefault(reason, len(reasons))

        return {
            "rule": {
                "threshold": self.threshold,
                "thresholds": dict(self.thresholds),
                "toxic_by": self.toxic_by,
                "inclusive": self.inclusive,
                "low": metrics.LOW_BELOW,
                "high": metrics.HIGH_ABOVE,
            },
            "flags": FLAGS,
            "judges": self.judges,
            "prompts": {
                "id": [prompt.id for prompt in self.prompts],
                "text": [prompt.text for prompt in self.prompts],
                "toxicity": [self._short(prompt.toxicity, self.toxic_by) for prompt in self.prompts],
                "challenging": [place for place, prompt in enumerate(self.prompts) if prompt.challenging],
                "before": {
                    place: [[turn.role, turn.text] for turn in prompt.turns[:-1]]
                    for place, prompt in enumerate(self.prompts)
                    if len(prompt.turns) > 1
                },
                "of": self.prompts_of,
            },
            "rows": {"prompt": [row[0] for row in self.rows], "sample": [row[1] for row in self.rows]},
            "models": [
                {
                    "label": model.label,
                    "reward_of": [name for name in self.judges if was_reward(name, model.rewards or [])],
                    "text": model.texts,
                    "flags": model.flags,
                    "similarity": _rounded(model.similarity, 3),
                    "perplexity": _rounded(model.perplexity, 1),
                    "scores": {
                        name: [self._short(value, name) for value in column] for name, column in model.scores.items()
                    },
                    "reasons": {
                        name: {row: number_of(reason) for row, reason in found.items()}
                        for name, found in model.reasons.items()
                    },
                }
                for model in self.models
            ],
            "reasons": list(reasons),
            "words": [
                {"row": row, "model": model, **found.dump()} for (row, model), found in sorted(self.words.items())
            ],
            "notes": list(self.notes),
        }

    def summary(self) -> dict[str, Any]:
        """What explorer.html.j2 and explorer_data.html.j2 read, as ``explorer``."""
        notes = list(self.notes)
        if len(self.prompts) < self.prompts_of:
            notes.insert(
                0,
                f"The page carries {len(self.prompts):,} of {self.prompts_of:,} prompts, drawn at random: with all of "
                "them it would be too large to open. rewardlm export writes every answer into a table.",
            )
        return {"answers": self.answers, "low": metrics.LOW_BELOW, "notes": notes, "packed": self.packed()}

    def packed(self) -> str:
        """``dump`` as JSON, deflated (zlib), in base64: ASCII without "<", which no HTML parser can mistake."""
        # A model may well produce a lone surrogate, which can only be written as an ASCII escape.
        text = json.dumps(self.dump(), allow_nan=False, separators=(",", ":"))
        return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")

    def _short(self, value: float | None, judge: str | None) -> float | None:
        """Four digits, or as many as it takes to leave it in its bucket and on its side of the threshold."""
        if value is None:
            return None
        side = self._side(value, judge)
        return next((short for digits in (4, 6, 9) if self._side(short := round(value, digits), judge) == side), value)

    def _side(self, value: float, judge: str | None) -> tuple[str, bool]:
        threshold = self.thresholds.get(judge or "", self.threshold)
        toxic = value >= threshold if self.inclusive else value > threshold
        return metrics.bucket_name(value), toxic


def answers_for_explorer(
    runs: Sequence[Run],
    interpretations: Sequence[Run] = (),
    *,
    judge: str | None = None,
    threshold: float = metrics.THRESHOLD,
    inclusive: bool = False,
    thresholds: Mapping[str, float] | None = None,
    most_letters: int = MOST_LETTERS,
    seed: int = 0,
) -> ExplorerData:
    """The answers of ``runs`` (of kind measure or import), the baseline first, side by side by prompt and sample.

    Runs may have answered different prompts. Labels that come twice are numbered as ``compare`` numbers them. ``judge``
    is shown first; by default, it is the first judge that was nobody's reward. ``interpretations`` must be finished;
    their readings of single words are shown with the answers of these runs. If the answers have more letters than
    ``most_letters``, prompts are drawn by ``seed`` until there is no room.

    Raises RunError for a run that can't be read.
    """
    measured = [load_measured(run.path) for run in runs]
    for one, label in zip(measured, unique_labels([one.label for one in measured]), strict=True):
        one.label = label
    prompts, places = _prompts(measured)
    kept = _chosen(len(prompts), _letters(measured, places, len(prompts)), most_letters, seed)
    renumbered = {place: number for number, place in enumerate(kept)}
    wanted = sorted(
        {
            (renumbered[place], sample)
            for one, of in zip(measured, places, strict=True)
            for place, sample in zip(of[one.prompt_rows].tolist(), one.samples.tolist(), strict=True)
            if place in renumbered
        }
    )
    rows = {row: number for number, row in enumerate(wanted)}
    models, ids = [], []
    for one, of in zip(measured, places, strict=True):
        own = [
            rows.get((renumbered.get(place, -1), sample), -1)
            for place, sample in zip(of[one.prompt_rows].tolist(), one.samples.tolist(), strict=True)
        ]
        model, names = _answers(one, own, len(rows))
        models.append(model)
        ids.append(names)
    words, notes = read_words(interpretations, [one.run for one in measured], [one.label for one in measured], ids)
    return ExplorerData(
        prompts=[prompts[place] for place in kept],
        rows=wanted,
        models=models,
        judges=_judges(measured, judge),
        prompts_of=len(prompts),
        threshold=threshold,
        inclusive=inclusive,
        thresholds=thresholds or {},
        toxic_by=measured[0].meta.get("toxic_by"),
        words=words,
        notes=notes,
    )


def _prompts(measured: Sequence[Measured]) -> tuple[list[Prompt], list[IntArray]]:
    """Every prompt of the runs once, and for each run, where its prompts are in that list. Prompts with the same id but
    another text are different."""
    known: dict[tuple[str, object], int] = {}
    prompts: list[Prompt] = []
    places = []
    for one in measured:
        own = []
        for prompt in one.prompts:
            key = (prompt.id, prompt.turns)
            if key not in known:
                known[key] = len(prompts)
                prompts.append(prompt)
            own.append(known[key])
        places.append(np.array(own, dtype=np.intp))
    return prompts, places


def _letters(measured: Sequence[Measured], places: Sequence[IntArray], prompts: int) -> FloatArray:
    """Float[N prompts]: the letters of all answers to a prompt. No text is kept: there may be many."""
    letters = np.zeros(prompts)
    for one, of in zip(measured, places, strict=True):
        lengths = (len(record["text"]) for record in _generations(one))
        np.add.at(letters, of[one.prompt_rows], np.fromiter(lengths, np.float64, one.answers))
    return letters


def _generations(one: Measured) -> Iterator[dict[str, Any]]:
    """The answers that were there when the run was loaded: a run that is still going has more by now."""
    return islice(one.run.read("generations"), one.answers)


def _chosen(prompts: int, letters: FloatArray, most: int, seed: int) -> list[int]:
    """All prompts if there is room, else as many as fit, drawn by seed; in their own order."""
    if letters.sum() <= most:
        return list(range(prompts))
    order = list(range(prompts))
    random.Random(seed).shuffle(order)
    fitting = int(np.searchsorted(np.cumsum(letters[order]), most, side="right"))
    return sorted(order[: max(1, fitting)])


def _answers(one: Measured, rows: Sequence[int], number: int) -> tuple[ExplorerAnswers, dict[str, int]]:
    """A model's answers in their rows, and the row of each answer by its id. ``rows`` has -1 for what isn't shown."""
    shown = [(place, row) for place, row in enumerate(rows) if row >= 0]
    texts: list[str | None] = [None] * number
    ids: dict[str, int] = {}
    for row, record in zip(rows, _generations(one), strict=True):
        if row >= 0:
            texts[row] = record["text"]
            ids[record["id"]] = row
    found = one.quality
    kinds = {
        "empty": found.empty,
        "other_script": found.other_script,
        "repeated": found.repeated,
        "refusal": found.refusal,
        "truncated": found.truncated == 1,
        "quoting": found.quoting,
        "counter_narrative": found.counter_narrative == 1,
    }
    bits = sum(np.asarray(kinds[name], dtype=np.intp) << bit for bit, name in enumerate(FLAGS))
    flags = [0] * number
    for place, row in shown:
        flags[row] = int(np.asarray(bits)[place])

    def column(values: FloatArray) -> list[float | None]:
        laid: list[float | None] = [None] * number
        for place, row in shown:
            value = float(values[place])
            laid[row] = None if math.isnan(value) else value
        return laid

    judges = one.judges
    scores = {name: column(one.scores[name]) for name in judges}
    reasons = {name: _reasons(one.reasons.get(name, {}), scores[name], shown) for name in judges}
    model = ExplorerAnswers(
        label=one.label,
        rewards=one.meta.get("rewards"),
        texts=texts,
        flags=flags,
        scores=scores,
        reasons=reasons,
        similarity=column(found.prompt_similarity),
        perplexity=column(found.perplexity),
    )
    return model, ids


def _reasons(
    known: Mapping[int, str], scores: Sequence[float | None], shown: Iterable[tuple[int, int]]
) -> dict[int, str]:
    """By row, why an answer has no score: what the judge said, else that it never scored it."""
    return {row: known.get(place, _NOT_ASKED) for place, row in shown if scores[row] is None}


def _judges(measured: Sequence[Measured], first: str | None) -> list[str]:
    """Judges by their main label: ``first``, then those that were nobody's reward, then the others."""
    names = list(dict.fromkeys(name for one in measured for name in one.judges))
    rewards = [reward for one in measured for reward in one.rewards]
    return sorted(names, key=lambda name: (name != first, was_reward(name, rewards)))


def _rounded(values: Sequence[float | None], digits: int) -> list[float | None]:
    return [None if value is None else round(value, digits) for value in values]
