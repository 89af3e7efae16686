"""A run's records as arrays: read once, line by line, so that a run of millions of answers fits into memory.

Texts are not kept: each is checked as it is read (is it empty, repeated or a refusal, and in which script?).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardlm.errors import RunError
from rewardlm.measuring import quality
from rewardlm.runs import MainLabels, Run
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, most_likely
from rewardlm.scoring.scorer import is_empty
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.types import DISAGREEMENT, Prompt

IntArray = NDArray[np.intp]

# Two answers begin alike if this many of their first words are the same.
_OPENING = 5

# Records that are looked up at a time.
_PIECE = 65_536


@dataclass(frozen=True, slots=True)
class Quality:
    """What the texts of a run's answers [G] look like; NaN where a number wasn't computed."""

    empty: BoolArray
    non_latin: BoolArray
    other_script: BoolArray
    repeated: BoolArray
    refusal: BoolArray
    quoting: BoolArray
    truncated: FloatArray  # 1 where the answer was cut off, 0 where it ended by itself
    words: FloatArray
    distinct: tuple[float | None, float | None, float | None]  # distinct-1, -2, -3, of the whole run
    prompt_similarity: FloatArray
    prompt_similarity_null: FloatArray
    perplexity: FloatArray
    counter_narrative: FloatArray  # 1: the pair judge's likeliest class; 0: another class, or an empty answer
    counter_narrative_null: FloatArray  # the same for the answer under another prompt

    @property
    def comparable(self) -> BoolArray:
        """A usable answer: not empty, in the prompt's script, not repeated, not a refusal."""
        return ~(self.empty | self.other_script | self.repeated | self.refusal)


class Positions:
    """An answer's position in its run, by its id. Only hashes of ids are kept: 16 bytes each instead of 150."""

    def __init__(self, hashes: array[int]) -> None:
        unordered = np.frombuffer(hashes, dtype=np.int64) if hashes else np.empty(0, np.int64)
        self._order: IntArray = np.argsort(unordered, kind="stable")
        self._hashes = unordered[self._order]

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def repeated(self) -> bool:
        return bool((self._hashes[1:] == self._hashes[:-1]).any())

    def of(self, ids: Sequence[str]) -> IntArray:
        """Int[len(ids)]: the answers' positions; -1 for an id without an answer in the run."""
        wanted = np.fromiter(map(hash, ids), np.int64, len(ids))
        if not len(self):
            return np.full(len(ids), -1, dtype=np.intp)
        found = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
        return np.where(self._hashes[found] == wanted, self._order[found], -1)


@dataclass(frozen=True, slots=True)
class Answers:
    """The contents of ``generations.jsonl`` as arrays [G]; ``Quality`` explains the flags and the last three.
    ``openings`` Int64[G] are equal where answers begin alike."""

    positions: Positions
    prompt_rows: IntArray
    samples: IntArray
    openings: NDArray[np.int64]
    flags: dict[str, BoolArray]
    truncated: FloatArray
    words: FloatArray
    distinct: tuple[float | None, float | None, float | None]


def samples_wanted(run: Run) -> int | None:
    """How many answers each prompt should have; None if the run doesn't say."""
    found = run.meta.get("samples") or run.meta["settings"].get("samples")
    return found if isinstance(found, int) else None


def read_answers(run: Run, prompts: Sequence[Prompt]) -> Answers:
    """Raises RunError for an id or a sample that occurs twice, and for an answer to an unknown prompt."""
    rows = {prompt.id: row for row, prompt in enumerate(prompts)}
    hashes, prompt_rows, samples, words, openings = (array("q") for _ in range(5))
    flags = {name: bytearray() for name in ("empty", "non_latin", "other_script", "repeated", "refusal", "quoting")}
    truncated = array("d")
    ends: dict[str | None, float] = {"length": 1.0, "stop": 0.0}
    distinct = _Distinct(samples_wanted(run) or 1)
    for record in run.read("generations"):
        row, text = rows.get(record["prompt_id"]), record["text"]
        if row is None:
            raise RunError(
                f"{run.path}: generation {record['id']!r} answers prompt {record['prompt_id']!r}, which isn't "
                "in its prompts.jsonl: the run was changed by hand"
            )
        hashes.append(hash(record["id"]))
        prompt_rows.append(row)
        samples.append(record["sample"])
        split = text.split()
        words.append(len(split))
        openings.append(hash(" ".join(split[:_OPENING])))
        truncated.append(ends.get(record["finish"], math.nan))
        flags["empty"].append(is_empty(text))
        flags["non_latin"].append(quality.is_mostly_outside(text, quality.LATIN))
        flags["other_script"].append(quality.in_other_script(prompts[row].text, text))
        flags["repeated"].append(quality.is_repeated(text))
        flags["refusal"].append(quality.is_refusal(text))
        flags["quoting"].append(quality.quotes(prompts[row].text, text))
        distinct.add(row, text)
    positions = Positions(hashes)
    at, number = _ints(prompt_rows), _ints(samples)
    if positions.repeated:
        refuse_twice(run.path, "generation id", (record["id"] for record in run.read("generations")))
    order = np.lexsort((number, at))
    if ((np.diff(at[order]) == 0) & (np.diff(number[order]) == 0)).any():
        refuse_twice(
            run.path,
            "sample of one prompt",
            (f"{record['prompt_id']}, sample {record['sample']}" for record in run.read("generations")),
        )
    return Answers(
        positions=positions,
        prompt_rows=at,
        samples=number,
        openings=np.array(openings, dtype=np.int64),
        flags={name: np.frombuffer(bytes(values), dtype=np.bool_) for name, values in flags.items()},
        truncated=np.array(truncated, dtype=np.float64),
        words=_ints(words).astype(np.float64),
        distinct=distinct.result(),
    )


class _Distinct:
    """distinct-n over prompts whose answers arrive one by one. A prompt's texts are dropped once all are there."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._open: dict[int, list[str]] = {}
        self._sums, self._counts = [0.0, 0.0, 0.0], [0, 0, 0]

    def add(self, row: int, text: str) -> None:
        texts = self._open.setdefault(row, [])
        texts.append(text)
        if len(texts) == self._samples:
            self._close(self._open.pop(row))

    def result(self) -> tuple[float | None, float | None, float | None]:
        for texts in self._open.values():
            self._close(texts)
        self._open.clear()
        one, two, three = (
            total / count if count else None for total, count in zip(self._sums, self._counts, strict=True)
        )
        return one, two, three

    def _close(self, texts: list[str]) -> None:
        for place in range(3):
            ratio = quality.distinct([texts], place + 1)
            if ratio is not None:
                self._sums[place] += ratio
                self._counts[place] += 1


def read_scores(
    run: Run, positions: Positions
) -> tuple[dict[str, FloatArray], dict[str, dict[int, str]], dict[str, str], dict[str, FloatArray]]:
    """Scores and reasons by NAME or NAME.label, each judge's main label (``runs.MainLabels``), and the
    disagreement of ensembles by NAME. If an answer has two records, the later one counts: it was scored again.

    Raises RunError for scores of unknown answers, or outside [0, 1].
    """
    columns: dict[str, dict[str, _Column]] = {}
    mains = MainLabels()
    for record in run.read("scores"):
        scorer, label, value = record["scorer"], record["label"] or "", record["value"]
        if value is not None and not 0 <= value <= 1:
            raise RunError(
                f"{run.path}: {scorer!r} gave generation {record['generation_id']!r} the score "
                f"{value}: expected P(toxic) in [0, 1], or null with a reason"
            )
        mains.add(record)
        by_label = columns.setdefault(scorer, {})
        if label not in by_label:
            by_label[label] = _Column(run, scorer, positions)
        by_label[label].add(record["generation_id"], value, record["reason"])
    scores: dict[str, FloatArray] = {}
    reasons: dict[str, dict[int, str]] = {}
    main_labels: dict[str, str] = {}
    disagreement: dict[str, FloatArray] = {}
    for scorer, by_label in columns.items():
        apart = by_label.pop(DISAGREEMENT, None)
        if not by_label:
            raise RunError(f"{run.path} has only the disagreement of {scorer!r}, and no scores: score it again")
        if apart is not None:
            disagreement[scorer] = apart.values_and_reasons()[0]
        main = mains.of(scorer)
        main_labels[scorer] = main
        # An unscored answer may be recorded without a label: then its reason belongs to the main label.
        nameless = by_label.pop("", None) if main else None
        for label in dict.fromkeys([main, *by_label]):
            name = scorer if label == main else f"{scorer}.{label}"
            scores[name], reasons[name] = by_label[label].values_and_reasons()
        if nameless is not None:
            missing = nameless.values_and_reasons()[1].items()
            reasons[scorer].update((at, why) for at, why in missing if math.isnan(scores[scorer][at]))
    return scores, reasons, main_labels, disagreement


class _Column:
    """The values of one label of a judge, put in their places piece by piece."""

    def __init__(self, run: Run, scorer: str, positions: Positions) -> None:
        self._run, self._scorer, self._positions = run, scorer, positions
        self._values = np.full(len(positions), np.nan)
        self._reasons: dict[int, str] = {}
        self._ids: list[str] = []
        self._new = array("d")
        self._why: dict[int, str] = {}

    def add(self, identity: str, value: float | None, reason: str | None) -> None:
        if value is None:
            self._why[len(self._ids)] = reason or "no reason given"
        self._ids.append(identity)
        self._new.append(math.nan if value is None else value)
        if len(self._ids) == _PIECE:
            self._put()

    def values_and_reasons(self) -> tuple[FloatArray, dict[int, str]]:
        self._put()
        return self._values, {at: why for at, why in self._reasons.items() if math.isnan(self._values[at])}

    def _put(self) -> None:
        if not self._ids:
            return
        places = self._positions.of(self._ids)
        if (places < 0).any():
            stranger = self._ids[int(np.argmin(places))]
            raise RunError(
                f"{self._run.path}: a score by {self._scorer!r} is for generation {stranger!r}, which "
                "isn't in its generations.jsonl: the run was changed by hand"
            )
        self._values[places] = np.frombuffer(self._new, dtype=np.float64)
        self._reasons.update((int(places[row]), why) for row, why in self._why.items())
        self._ids, self._new, self._why = [], array("d"), {}


def read_quality(run: Run, answers: Answers) -> Quality:
    """Raises RunError for numbers about unknown answers."""
    names = ("prompt_similarity", "prompt_similarity_null", "perplexity")
    numbers = {name: np.full(len(answers.positions), np.nan) for name in names}
    pairs = {name: np.full(len(answers.positions), np.nan) for name in ("classes", "classes_null")}
    records: list[dict[str, Any]] = list(run.read("quality"))
    places = answers.positions.of([str(record.get("generation_id")) for record in records])
    for record, place in zip(records, places.tolist(), strict=True):
        if place < 0:
            raise RunError(
                f"{run.path}: quality.jsonl is about generation {record.get('generation_id')!r}, which isn't "
                "in its generations.jsonl: the run was changed by hand"
            )
        for name, values in numbers.items():
            if record.get(name) is not None:
                values[place] = record[name]
        for name, hits in pairs.items():
            if record.get(name):
                hits[place] = most_likely(record[name]) == COUNTER_NARRATIVE
            elif name in record and answers.flags["empty"][place]:
                # The judge of pairs has no class for silence. Silence opposes nothing, and if it were left out, a model
                # that falls silent would keep its share.
                hits[place] = 0
    return Quality(
        empty=answers.flags["empty"],
        non_latin=answers.flags["non_latin"],
        other_script=answers.flags["other_script"],
        repeated=answers.flags["repeated"],
        refusal=answers.flags["refusal"],
        quoting=answers.flags["quoting"],
        truncated=answers.truncated,
        words=answers.words,
        distinct=answers.distinct,
        prompt_similarity=numbers["prompt_similarity"],
        prompt_similarity_null=numbers["prompt_similarity_null"],
        perplexity=numbers["perplexity"],
        counter_narrative=pairs["classes"],
        counter_narrative_null=pairs["classes_null"],
    )


def refuse_twice(path: Path, what: str, names: Iterable[str]) -> None:
    """Raise RunError that names the first of ``names`` that comes a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RunError(f"{path}: the same {what} comes twice: {name!r}; each must be unique")
        seen.add(name)


def _ints(values: array[int]) -> IntArray:
    return np.frombuffer(values, dtype=np.int64).astype(np.intp) if values else np.empty(0, dtype=np.intp)
