"""A folder of labels: which answers people are asked about, and what they said. It is a run of the kind ``labels``.

    run.json          the settings, and the runs that the answers are from
    classes.jsonl     a run a line: the class of each of its answers, in the order of its generations.jsonl
    items.jsonl       an answer to be labelled a line, with its prompt, in the order in which people see them
    labels.jsonl      what people said, appended as it comes; a label that is taken back is a line, too
    guideline.md      what labellers go by: yours to change

A label is 1 (yes), 0 (no) or None (can't tell). Nothing of it leaves this machine.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rewardlm.errors import DataError, RunError
from rewardlm.labelling.design import IntArray
from rewardlm.runs import Run, alone, write_atomically
from rewardlm.stats import FloatArray

KIND = "labels"
GUIDELINE = "guideline.md"
Label = float | None
# More than a sample has, however few the answers: numbers beyond were not written by us.
_MOST_CLASSES = 1000
_BY_HAND = "the file was changed by hand, put it back"


@dataclass(frozen=True, slots=True)
class LabelItem:
    """An answer to be labelled: the ``answer``-th of run number ``run``. ``shared`` ones are shown to every labeller,
    the others to whoever comes first. ``id`` says nothing about the model.
    """

    id: str
    run: int
    answer: int
    shared: bool
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """A run that answers were drawn from. ``hash`` is that of its answers; ``classes`` Int[G] the class of each, and
    ``groups`` Int[G] the group of prompts, which classes don't mix as long as there are labels enough for each.
    """

    label: str
    hash: str
    classes: IntArray
    groups: IntArray


@dataclass(frozen=True, slots=True)
class Said:
    """One line of labels.jsonl: what ``labeller`` says of an item, after so many ``seconds``; with ``undone``, that
    their earlier word is taken back.
    """

    item: str
    labeller: str
    label: Label
    at: str
    seconds: float | None = None
    undone: bool = False


class LabelFolder:
    """A folder of labels, open. What is said is on the disk when ``add`` returns."""

    def __init__(self, run: Run, runs: Sequence[LabelledRun], items: Sequence[LabelItem]) -> None:
        self.run = run
        self.runs = list(runs)
        self.items = list(items)
        self.by_id = {item.id: item for item in items}
        self._lines: list[Said] | None = None

    @classmethod
    def make(cls, run: Run, runs: Sequence[LabelledRun], items: Sequence[LabelItem], guideline: str) -> LabelFolder:
        """Write what is asked into a run that was just started. The items come last: without them nothing was begun."""
        run.replace(
            "classes",
            (
                {"label": one.label, "hash": one.hash, "classes": one.classes.tolist(), "groups": one.groups.tolist()}
                for one in runs
            ),
        )
        if not (run.path / GUIDELINE).exists():
            write_atomically(run.path / GUIDELINE, guideline.encode())
        run.replace("items", (asdict(item) for item in items))
        return cls(run, runs, items)

    @classmethod
    def open(cls, path: Path) -> LabelFolder:
        """Raises RunError for a folder that is none, wasn't finished, or was changed by hand."""
        run = Run.open(path, kind=KIND)
        runs = [
            LabelledRun(one["label"], one["hash"], _ints(one["classes"]), _ints(one["groups"]))
            for one in run.read("classes")
        ]
        items = [LabelItem(**_known(LabelItem, one)) for one in run.read("items")]
        for one in runs:
            if len(one.classes) != len(one.groups) or any(
                len(numbers) and not -1 <= numbers.min() <= numbers.max() < len(numbers) + _MOST_CLASSES
                for numbers in (one.classes, one.groups)
            ):
                raise RunError(f"{path}/classes.jsonl has a class or group for {one.label} that is none: {_BY_HAND}")
        run.setting("question", str)
        if not items:
            raise RunError(f"{path} asks about no answers: begin it again with rewardlm label open RUN… --out {path}")
        if any(not 0 <= one.run < len(runs) or not 0 <= one.answer < len(runs[one.run].classes) for one in items):
            raise RunError(f"{path}/items.jsonl names answers that classes.jsonl lacks: it was changed by hand")
        return cls(run, runs, items)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other command adds to the folder. Raises RunError if one does."""
        with alone(self.run.path):
            self.run.mend()
            self._lines = None
            yield

    @property
    def question(self) -> str:
        return str(self.run.setting("question", str))

    @property
    def guideline(self) -> str:
        """What labellers go by, as it stands now; an empty text without the file."""
        try:
            return (self.run.path / GUIDELINE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    @property
    def lines(self) -> list[Said]:
        """All that was said, in order."""
        if self._lines is None:
            found = [Said(**_known(Said, one)) for one in self.run.read("labels")]
            if strangers := sorted({one.item for one in found} - self.by_id.keys()):
                raise RunError(f"{self.run.path}/labels.jsonl is about unknown items: {', '.join(strangers[:3])}")
            if wrong := next((one for one in found if one.label not in (0, 1, None)), None):
                raise RunError(
                    f"{self.run.path}/labels.jsonl: label is {wrong.label}, expected 1, 0 or null: {_BY_HAND}"
                )
            self._lines = found
        return self._lines

    def said(self) -> dict[str, dict[str, Label]]:
        """By labeller and item, the last word, both in the order of their first one; what was undone is gone."""
        found: dict[str, dict[str, Label]] = {}
        for one in self.lines:
            of_one = found.setdefault(one.labeller, {})
            if one.undone:
                of_one.pop(one.item, None)
            else:
                of_one[one.item] = one.label
        return {labeller: of_one for labeller, of_one in found.items() if of_one}

    def add(self, said: Iterable[Said]) -> None:
        """Append what was said."""
        new = list(said)
        self.run.append("labels", new)
        self.lines.extend(new)

    def labels_of(self, run: int) -> FloatArray:
        """Float[G]: what most labellers say of each answer of run number ``run``, 0.5 where they are tied; NaN where
        nobody was asked, or nobody could tell.
        """
        votes: dict[str, list[float]] = {}
        for of_one in self.said().values():
            for item, label in of_one.items():
                if label is not None:
                    votes.setdefault(item, []).append(label)
        found = np.full(len(self.runs[run].classes), np.nan)
        for item, labels in votes.items():
            if self.by_id[item].run == run:
                found[self.by_id[item].answer] = np.sign(np.mean(labels) - 0.5) / 2 + 0.5
        return found


def now() -> str:
    """The time, as ``Said.at`` has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def labeller_name(name: str) -> str:
    """A labeller's name without blanks around it. Raises DataError for one that is empty, longer than a hundred
    characters, or not printable.
    """
    found = name.strip()
    if not found or len(found) > 100 or not found.isprintable():
        raise DataError(f"the labeller is {name!r:.60}: expected a name of 1 to 100 characters in one line")
    return found


def hash_of_answers(answers: Iterable[tuple[str, str]]) -> str:
    """Of a run's answers, each by its id and text, in order: so a run is known wherever it lies."""
    whole = hashlib.sha256()
    for identity, text in answers:
        whole.update(json.dumps([identity, text]).encode())
    return whole.hexdigest()


def _known(kind: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``record`` that ``kind`` has: a newer version may write more."""
    return {one.name: record[one.name] for one in fields(kind) if one.name in record}


def _ints(values: Any) -> IntArray:
    return np.array(values, dtype=np.intp)
