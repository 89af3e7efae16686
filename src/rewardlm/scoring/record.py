"""``judge.json``, the record of a judge that was trained here. Only this module reads, writes and finds it.

A judge of texts and a judge of pairs have the same record, with a few entries of their own.
"""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired

from typing_extensions import TypedDict

from rewardlm.errors import ScorerError
from rewardlm.runs import write_atomically
from rewardlm.typed import mistake

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECORD = "judge.json"
# The judges of texts that this package ships: a reward, a larger one of its kin, and a witness that shares neither
# texts nor teachers with them.
SHIPPED = ("starter", "starter-large", "witness")
_PROBLEMS = ("multi_label_classification", "single_label_classification")
_HEAD = ("kind", "labels", "main", "problem_type", "encoder", "encoder_revision")
_TEXT_ENTRIES = (
    *_HEAD, "encoder_layers", "max_length", "calibration", "calibrated", "data", "distilled", "teacher", "share",
    "read", "command", "seed",
)  # fmt: skip
_PAIR_ENTRIES = (
    *_HEAD, "max_length", "calibration", "temperature", "data", "command", "started_from", "seed", "limits",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Calibration:
    """For one label: logit ← ``scale``·logit + ``shift``, which is folded into the judge's head. Where ``kind`` is
    isotonic, P then follows straight lines between the points (``x``, ``y``), constant beyond the outer ones.
    """

    kind: str
    scale: float = 1.0
    shift: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def curve(self, probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """P after the curve, Float[...] → Float[...]; NaN stays NaN."""
        import numpy as np

        calibrated: NDArray[np.float64] = np.interp(probabilities, self.x, self.y)
        return calibrated


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that a judge learnt from, by the name of its ``kind``; ``texts`` is how many of it were read."""

    kind: str
    sha256: str | None
    licence: str | None
    texts: int | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Source:
        """Read an entry of ``judge.json``. A judge of pairs calls the kind "source"."""
        kind = found.get("kind", found.get("source", ""))
        return cls(kind, found.get("sha256"), found.get("licence"), found.get("texts"))


@dataclass(frozen=True, slots=True)
class Teacher:
    """A judge that taught another one, as the pupil records it: with the teacher's own teachers.

    ``known``: the texts that it and its teachers read are on record. ``revision`` pins its weights.
    """

    judge: str
    label: str
    revision: str | None
    known: bool = False
    encoder: str | None = None
    share: str | None = None
    data: tuple[Source, ...] = ()
    distilled: tuple[Teacher, ...] = ()
    teacher: Teacher | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Teacher:
        """Read an entry of ``judge.json``."""
        return cls(
            judge=found["judge"],
            label=found["label"],
            revision=found["revision"],
            known=found.get("known", False),
            encoder=found.get("encoder"),
            share=found.get("share"),
            **_lineage(found),
        )

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Those that taught it directly."""
        return (*self.distilled, *([self.teacher] if self.teacher else []))


class SuiteFigures(TypedDict):
    """The figures of a judge of texts on a suite that are kept. ``judges.results`` explains them and has more."""

    label: str
    target: str
    kind: Literal["labels", "scores"]
    n: int
    scored: int
    auc: float | None
    auc_ci95: tuple[float, float] | None
    average_precision: float | None
    spearman: float | None
    spearman_ci95: tuple[float, float] | None
    ece: float | None
    brier: float | None
    accuracy: float | None
    f1: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None
    sha256: str
    revision: str | None


class TextFigures(SuiteFigures):
    """What a card keeps of a judge on a suite: power means of the bias AUCs, AUCs by kind of test."""

    bias: dict[str, float | None] | None
    counter_speech_false_positive_rate: float | None
    functionalities: dict[str, float | None]


class Counted(TypedDict):
    """For one kind of control: how many pairs, and how many are called counter-narratives."""

    n: int
    called: int


class PairFigures(TypedDict):
    """What a judge of pairs gets right; see ``judges.pair_evaluation.evaluate_pairs``."""

    n: int
    dialogues: int
    accuracy: float
    accuracy_ci95: list[float] | None
    macro_f1: float
    precision: float | None
    recall: float | None
    auc: float | None
    auc_ci95: list[float] | None
    auc_against: dict[str, float | None]
    auc_hate: float | None
    auc_hate_ci95: list[float] | None
    labels: list[str]
    confusion: list[list[int]]
    kinds: dict[str, dict[str, int]]
    controls: dict[str, Counted]


class Speed(TypedDict):
    """How fast a judge is on texts of ``tokens_per_text`` tokens: in batches of ``batch`` texts, and one alone."""

    texts_per_second: float
    ms_per_text: float
    ms_one_text: float
    batch: int
    tokens_per_text: int
    threads: int
    cpus: int | None


class _SourceEntry(TypedDict, total=False):
    kind: str
    source: str
    sha256: str | None
    licence: str | None
    texts: int | None


class _LineageEntries(TypedDict, total=False):
    data: list[_SourceEntry]
    distilled: list[_TeacherEntry]
    teacher: _TeacherEntry | None
    share: str | None
    encoder: str | None


class _TeacherEntry(_LineageEntries):
    judge: str
    label: str
    revision: str | None
    known: NotRequired[bool]


class _Entries(_LineageEntries, total=False):
    """What of ``judge.json`` has no check of its own below."""

    kind: Literal["text", "pairs"]
    encoder_revision: str | None
    calibrated: dict[str, str]
    temperature: float | None
    read: int | None
    command: str
    started_from: str | None
    seed: int | None
    limits: list[str]
    speed: Speed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecord:
    """``judge.json``. ``kind`` is "text" or "pairs"; entries of the other kind are empty.

    ``encoder_layers``: the judge uses that many of the encoder's lowest layers; None means all of them.
    ``calibration`` holds the curves alone, ``calibrated`` each label's kind of calibration; judges of pairs have one
    ``temperature``. ``read`` counts the texts that the judge or a teacher read, ``share`` says which ones the judge may
    read. Figures are by suite, or by dialogues.
    """

    kind: str = "text"
    labels: tuple[str, ...]
    main: str
    problem_type: str = _PROBLEMS[0]
    encoder: str | None = None
    encoder_revision: str | None = None
    encoder_layers: int | None = None
    max_length: int | None = None
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    calibrated: Mapping[str, str] = field(default_factory=dict)
    temperature: float | None = None
    data: tuple[Source, ...] = ()
    distilled: tuple[Teacher, ...] = ()
    teacher: Teacher | None = None
    share: str | None = None
    read: int | None = None
    command: str = ""
    started_from: str | None = None
    seed: int | None = None
    limits: tuple[str, ...] = ()
    figures: Mapping[str, TextFigures] = field(default_factory=dict)
    pair_figures: Mapping[str, PairFigures] = field(default_factory=dict)
    speed: Speed | None = None

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Those that taught it directly."""
        return (*self.distilled, *([self.teacher] if self.teacher else []))

    def to_dict(self) -> dict[str, Any]:
        """The object that is written when training ends; figures, speed and a text judge's limits come later."""
        found = asdict(self)
        if self.kind == "text":
            return {name: found[name] for name in _TEXT_ENTRIES}
        found["data"] = [
            {"source": one.kind, "licence": one.licence, "sha256": one.sha256, "texts": one.texts} for one in self.data
        ]
        return {name: found[name] for name in _PAIR_ENTRIES if name != "started_from" or found[name] is not None}


def shipped_folder(name: str) -> Path | None:
    """The folder of a judge that this package ships, None where it has none of that name."""
    # The folder lies inside ``rewardlm.judges``, which scoring must not import.
    folder = Path(str(importlib.resources.files("rewardlm"))) / "judges" / name
    return folder if (folder / RECORD).is_file() else None


def judge_folder(name: str) -> Path | None:
    """The folder of the judge that ``--scorer name`` means; None where it has none."""
    source = name if Path(name).is_dir() else name.partition("#")[0]
    if source in SHIPPED:
        return shipped_folder(source)
    return Path(source) if Path(source).is_dir() else None


def read_record(folder: Path) -> JudgeRecord | None:
    """``judge.json`` of ``folder``, None where there is none. Raises ScorerError if it isn't valid."""
    path = folder / RECORD
    return _record(path, read_json(path)) if path.is_file() else None


def record_of(name: str) -> JudgeRecord | None:
    """The record of the judge that ``--scorer name`` means; None of a judge that was not trained here."""
    folder = judge_folder(name)
    return None if folder is None else read_record(folder)


def write_record(folder: Path, record: JudgeRecord) -> None:
    """``judge.json`` of a judge whose training has ended."""
    _write(folder / RECORD, record.to_dict())


def add_figures(
    folder: Path, figures: Mapping[str, TextFigures] | Mapping[str, PairFigures], speed: Speed | None = None
) -> JudgeRecord:
    """Put figures beside those that ``judge.json`` has; whatever else it holds stays. Returns the new record."""
    path = folder / RECORD
    found = read_json(path)
    found["metrics"] = {**found.get("metrics", {}), **figures}
    if found.get("kind") != "pairs":
        found["speed"] = speed or found.get("speed")
    _write(path, found)
    return _record(path, found)


def all_sources(judge: JudgeRecord | Teacher) -> Iterator[Source]:
    """The data sets of a judge and of all judges that taught it."""
    yield from judge.data
    for teacher in judge.teachers:
        yield from all_sources(teacher)


def read_json(path: Path) -> dict[str, Any]:
    """The object that ``path`` holds. Raises ScorerError where it can't be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScorerError(f"can't read {path} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ScorerError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}): expected one JSON object"
        ) from error
    if not isinstance(found, dict):
        raise ScorerError(f"{path} holds a {type(found).__name__}: expected an object")
    return found


def _record(path: Path, found: Mapping[str, Any]) -> JudgeRecord:
    others = {name: entry for name, entry in found.items() if name not in ("calibration", "metrics")}
    if (wrong := mistake(_Entries, others)) is not None:
        raise ScorerError(f"{path}: {wrong}")
    labels = found.get("labels")
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) and label for label in labels)):
        raise ScorerError(f"{path}: labels are {labels!r:.80}: expected a list of names")
    if len(set(labels)) < len(labels):
        raise ScorerError(f"{path}: two labels have the same name, so none can be chosen by name: {labels}")
    main: Any = found.get("main", labels[0])
    if main not in labels:
        raise ScorerError(f"{path}: main is {main!r}: expected one of the labels {', '.join(labels)}")
    problem_type = found.get("problem_type", _PROBLEMS[0])
    if problem_type not in _PROBLEMS:
        raise ScorerError(f"{path}: problem_type is {problem_type!r}: expected {' or '.join(_PROBLEMS)}")
    max_length = found.get("max_length")
    if max_length is not None and not (isinstance(max_length, int) and max_length >= 3):
        raise ScorerError(f"{path}: max_length is {max_length!r}: expected a number of tokens, 3 or more")
    layers = found.get("encoder_layers")
    if layers is not None and not (type(layers) is int and layers >= 1):
        raise ScorerError(f"{path}: encoder_layers is {layers!r}: expected a number of layers, 1 or more")
    calibration = found.get("calibration") or {}
    if not isinstance(calibration, dict) or not calibration.keys() <= set(labels):
        raise ScorerError(f"{path}: calibration is of {list(calibration)!r:.80}: expected labels of the judge")
    kind = found.get("kind", "text")
    metrics = found.get("metrics", {})
    by_suite: Any = dict[str, TextFigures] if kind == "text" else dict[str, PairFigures]
    if (wrong := mistake(by_suite, metrics)) is not None:
        raise ScorerError(f"{path}: metrics: {wrong}")
    for source, figures in metrics.items() if kind == "pairs" else ():
        if [len(row) for row in figures["confusion"]] != [len(figures["labels"])] * len(figures["labels"]):
            raise ScorerError(f"{path}: metrics: {source}.confusion: expected a row and a column for each label")
    return JudgeRecord(
        kind=kind,
        labels=tuple(labels),
        main=main,
        problem_type=problem_type,
        encoder=found.get("encoder"),
        encoder_revision=found.get("encoder_revision"),
        encoder_layers=layers,
        max_length=max_length,
        calibration={label: _curve(path, label, entry) for label, entry in calibration.items()},
        calibrated=found.get("calibrated", {}),
        temperature=found.get("temperature"),
        share=found.get("share"),
        read=found.get("read"),
        command=found.get("command", ""),
        started_from=found.get("started_from"),
        seed=found.get("seed"),
        limits=tuple(found.get("limits", ())),
        figures=metrics if kind == "text" else {},
        pair_figures=metrics if kind == "pairs" else {},
        speed=found.get("speed"),
        **_lineage(found),
    )


def _lineage(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which both a judge and its teachers record where they come from."""
    teacher = found.get("teacher")
    return {
        "data": tuple(Source.of(one) for one in found.get("data", ())),
        "distilled": tuple(Teacher.of(one) for one in found.get("distilled", ())),
        "teacher": Teacher.of(teacher) if teacher else None,
    }


def _curve(path: Path, label: str, entry: Any) -> Calibration:
    where = f"{path}: calibration of {label}"
    if not isinstance(entry, dict) or entry.get("kind") != "isotonic":
        kind = entry.get("kind") if isinstance(entry, dict) else entry
        raise ScorerError(f"{where} is {kind!r:.40}: expected isotonic; others are folded into the head")
    x: Any = entry.get("x")
    y: Any = entry.get("y")
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            raise ScorerError(f"{where}: {name} is {values!r:.60}: expected a list of numbers")
        if not all(0 <= v <= 1 for v in values):
            raise ScorerError(f"{where}: {name} leaves [0, 1], so it is no map of probabilities")
    if len(x) != len(y) or not x:
        raise ScorerError(f"{where} has {len(x)} x and {len(y)} y: expected the same number of both, at least one")
    if any(b <= a for a, b in pairwise(x)) or any(b < a for a, b in pairwise(y)):
        raise ScorerError(f"{where} is not monotone: x must rise and y must never fall")
    scale, shift = entry.get("scale", 1.0), entry.get("shift", 0.0)
    if (wrong := mistake(list[float], [scale, shift])) is not None:
        raise ScorerError(f"{where}: scale and shift: {wrong}")
    return Calibration("isotonic", scale, shift, tuple(map(float, x)), tuple(map(float, y)))


def _write(path: Path, found: Mapping[str, Any]) -> None:
    end = "\n" if found.get("kind") == "pairs" else ""
    write_atomically(path, (json.dumps(found, indent=1, allow_nan=False) + end).encode())
