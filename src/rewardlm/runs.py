"""A run directory: the only place that knows its layout.

Everything that a command finds out is appended to a directory as it comes, one JSON object per line,
because a measurement takes hours and machines are switched off. So a run can be read while it is being
written, a killed one goes on where it stopped, and nothing is computed twice:

    run.json            kind, label, settings, environment, model, status (rewritten atomically)
    prompts.jsonl       Prompt records, written once, before anything else
    generations.jsonl   Generation records, appended batch by batch
    scores.jsonl        Score records, appended batch by batch
    unanswered.jsonl    questions that a server refused for good, with its reason
    quality.jsonl       per answer: similarity with its prompt and with a shuffled one, perplexity, P(class) by the
                        judge of pairs
    utility.jsonl       per item of a task: the log-probabilities of its endings, their sizes, which one is right
    utility_answers.jsonl, utility_scores.jsonl
                        answers to the suite's own prompts: which set and kind a prompt is of, its text, the answer; and
                        what judges say of those about groups
    results.jsonl       evaluation of judges: one line per judge and suite; its scores.jsonl is by SUITE#ROW
    metrics.jsonl       training: one line per step
    samples.jsonl       training: some prompts, answers and rewards
    replay.jsonl, retain.jsonl
                        training: the model's own answers that fine-tuning learns; the plain text that is retained
    classes.jsonl, items.jsonl, labels.jsonl
                        people's labels: how answers were sampled, which ones, and what was said (labelling.folder)
    answers.jsonl       preference training: the answers that were drawn, and what judges said of them
    preferences.jsonl   preference training: the pairs among them, in TRL's format
    drift.jsonl         interpretation: an answer under every model, token by token
    attributions.jsonl  interpretation: an answer's explained tokens by one reader, word by word
    vocabulary.safetensors, interpretation.json
                        interpretation: sums over drift.jsonl, and the summary that the report reads
    adapter/            training: the LoRA adapter, in PEFT's format
    checkpoints/        training: what resuming needs
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Required, cast, get_args

from typing_extensions import TypedDict

from rewardlm.config import flatten
from rewardlm.disk import writing
from rewardlm.errors import RunError
from rewardlm.typed import mistake
from rewardlm.types import DISAGREEMENT, Generation, Message, Prompt, Role, Score, is_text

if TYPE_CHECKING:
    import pandas as pd

_RECORDED_PACKAGES = (
    "rewardlm",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "numpy",
    "scipy",
    "alt-profanity-check",
    "sentence-transformers",
    "ray",
)


# The kinds of runs that leave an adapter.
TRAININGS = ("finetune", "rlaf", "prefer")
# Rows of a run that a notebook shows.
_SHOWN = 5
_MISSING = object()
_NUMBER = (int, float)
_LARGEST = 2.0**63
# The fields that every record of a measurement must have, with their types. Fields that were added after the first runs
# are left out. There may be millions, so these are checked here and not by ``mistake``: a generation of 64 tokens takes
# 11 µs so and 35 µs by pydantic, where reading its JSON takes 10.
_FIELDS: dict[str, tuple[tuple[str, type | tuple[type, ...]], ...]] = {
    "prompts": (("id", str), ("turns", list), ("source", str), ("toxicity", (*_NUMBER, type(None)))),
    "generations": (
        ("id", str), ("prompt_id", str), ("model", str), ("sample", int), ("text", str), ("n_tokens", int),
        ("finish", (str, type(None))), ("seed", int),
    ),
    "scores": (
        ("generation_id", str), ("scorer", str), ("label", str), ("value", (*_NUMBER, type(None))),
        ("reason", (str, type(None))),
    ),
    "utility_answers": (
        ("task", str), ("id", str), ("prompt_id", str), ("prompt", str), ("about", dict), ("sample", int),
        ("text", str), ("n_tokens", int), ("finish", (str, type(None))), ("seed", int),
    ),
    "utility_scores": (
        ("generation_id", str), ("scorer", str), ("label", str), ("value", (*_NUMBER, type(None))),
        ("reason", (str, type(None))),
    ),
    "items": (("id", str), ("run", int), ("answer", int), ("shared", bool), ("prompt", str), ("text", str)),
}  # fmt: skip
# Of what the whole record is made: it has no other field.
_MADE_OF: dict[str, frozenset[str]] = {
    name: frozenset(field.name for field in dataclasses.fields(kind))
    for name, kind in (("prompts", Prompt), ("generations", Generation), ("scores", Score))
}


class ScorerEntry(TypedDict, total=False):
    """A judge of a run's answers (``scorers``), or of an evaluation's texts, which has the first three keys only."""

    name: Required[str]
    labels: Required[list[str]]
    revision: str | None  # of its weights; None if unknown
    precision: str | None
    cut: int  # answers that it read only in part
    max_failed_share: float
    lineage: dict[str, Any] | None  # the data and judges that it learnt from (``scoring.lineage``)
    read_prompts: int | None  # how many of the prompts it was trained on
    service: str  # for a judge over HTTP: its address, and the days on which it was asked
    dates: list[str]


class PairCountsRecord(TypedDict):
    """How often a judge of pairs is right and wrong; see ``measuring.correction.JudgeErrors``."""

    positives: float
    found: float
    negatives: float
    called: float


class PairErrorRecord(TypedDict, total=False):
    """How often a judge of pairs errs, by its card, and on which pairs."""

    on: str
    n: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    auc_hate: float | None
    counts: PairCountsRecord | None


class PairJudgeRecord(TypedDict):
    """The judge that says which answers are counter-narratives; ``error`` is how often it errs, by its card."""

    name: str
    revision: str
    error: PairErrorRecord | None


class TreatmentRecord(TypedDict):
    """How a model was steered while it answered."""

    method: str
    strength: float
    hash: str
    settings: dict[str, Any]
    judges: NotRequired[list[str]]
    run: NotRequired[str | None]


class CostRecord(TypedDict, total=False):
    """Of drawing the answers: tokens of answers, and passes: tokens read by the model."""

    seconds: float
    tokens: int
    passes: int


class PromptsRecord(TypedDict, total=False):
    """Where a run's prompts are from; ``dropped`` counts by reason, ``truncated`` those that were too long."""

    source: str
    part: str | None
    n: int
    dropped: dict[str, int]
    truncated: int


class UtilityTaskRecord(TypedDict):
    """``items`` of the ``of`` that there are, from ``source``, whose texts have the ``hash``."""

    items: int
    of: NotRequired[int]
    source: NotRequired[str]
    hash: NotRequired[str]


class UtilityRecord(TypedDict, total=False):
    """Of ``measure --suite``; window and strength are null until something was read."""

    settings: dict[str, Any]
    tasks: dict[str, UtilityTaskRecord]
    window: int | None
    strength: float | None
    note: str | None
    judged_by: list[str]


class RunRecord(TypedDict, total=False):
    """What run.json holds. Every run has the first five keys. A command adds what it finds out besides its records.
    Keys that are not listed here are kept, but nothing reads them.
    """

    # measure, import, finetune, rlaf, prefer, judge, judge-evaluation, interpretation, experiment, labels
    kind: Required[str]
    label: Required[str]
    status: Literal["running", "finished", "stopped"]
    settings: Required[dict[str, Any]]
    environment: dict[str, Any]
    processes: int
    # The model, as ``Policy.describe`` gives it, and what it was trained on; None if unknown.
    model: str
    model_source: str
    model_hash: str | None
    adapter: str | None
    adapter_hash: str | None
    adapter_strength: float | None  # what the adapter adds is multiplied by it; None is 1
    # How the model was steered while it answered (method, strength, hash, settings, judges, run); None if it wasn't.
    treatment: TreatmentRecord | None
    prompts_fitted_on: int  # how many of the prompts a steering was fitted on
    cost: CostRecord
    trained_by: str | None  # the kinds of the trainings that made the adapter, first to last
    dtype: str
    device: str
    quantisation: str | None
    rewards: list[str] | None
    reward_lineage: dict[str, Any]
    paid_for: list[str]  # what else earned reward in RL, by the audit's own means: names of rewards.terms
    # For a measurement or an import.
    prompts: PromptsRecord
    prompts_hash: str
    toxic_by: str  # "dataset", or the judge that says which prompts are toxic
    samples: int  # answers a prompt
    scorers: list[ScorerEntry]
    begun_scorers: list[ScorerEntry]  # not finished yet
    thresholds: dict[str, dict[str, Any]]  # by judge, as scoring.thresholds.Threshold: those that aren't 0.5
    primary: dict[str, str]  # scorer, split, metric
    unanswered: dict[str, int]  # questions that a server refused, by reason
    truncated_prompts: int
    batch_tokens_used: int
    pair_judge: PairJudgeRecord | None
    quality: dict[str, dict[str, int]]  # how many answers have each of quality.jsonl's numbers, and out of how many
    perplexity_under: dict[str, str]  # model, hash
    utility: UtilityRecord
    served: list[str] | None  # models that the server lists, and what it calls itself in answers
    served_as: list[str]
    rows: int
    notes: list[str]
    # For a training.
    term_judges: dict[str, str]  # the revision of what judges a term of the reward, by the term's name
    steps: int
    stopped: str | None  # why it ended early
    first_loss: float | None
    last_loss: float | None
    # Of prefer: by round, what was drawn and what became pairs, and a look at the trained model; or your own file.
    preferences: dict[str, Any]
    replay: dict[str, Any]  # pairs, summary: the model's own answers that fine-tuning learnt
    distilled: Any  # for a judge: its teachers, and how far it is from them
    # For an evaluation, an interpretation, an experiment.
    suites: dict[str, dict[str, Any]]
    confusion: list[dict[str, Any]]
    weights: list[Any]  # by model, what tells its weights from others
    runs: list[str]  # paths inside of the experiment


class QualityRecord(TypedDict):
    """A line of quality.jsonl; null is a number that can't be had of this answer."""

    generation_id: str
    prompt_similarity: NotRequired[float | None]
    prompt_similarity_null: NotRequired[float | None]
    perplexity: NotRequired[float | None]
    classes: NotRequired[dict[str, float] | None]
    classes_null: NotRequired[dict[str, float] | None]


class UtilityItemRecord(TypedDict):
    """A line of utility.jsonl."""

    task: str
    id: str
    logprobs: list[float]
    sizes: list[float]
    answer: int | None


class StepRecord(TypedDict):
    """A line of metrics.jsonl: numbers of all kinds, and these."""

    step: int
    warnings: NotRequired[list[str] | None]
    terms: NotRequired[dict[str, float | None] | None]
    toxicity_by_judge: NotRequired[dict[str, float | None] | None]
    toxicity_by_witness: NotRequired[dict[str, float | None] | None]
    phase_seconds: NotRequired[dict[str, float] | None]


class SampleRecord(TypedDict):
    """A line of samples.jsonl: an answer in training, and what was said of it."""

    step: int
    prompt: str
    response: str
    finish: NotRequired[str | None]
    reward: NotRequired[float | None]
    reason: NotRequired[str | None]
    toxicity: NotRequired[float | None]
    by_judge: NotRequired[dict[str, float | None] | None]
    by_witness: NotRequired[dict[str, float | None] | None]
    terms: NotRequired[dict[str, float | None] | None]


class DriftLine(TypedDict):
    """What the page reads of a line of drift.jsonl; ``interpreting.records`` has all of it."""

    id: str
    author: int
    logprobs: list[list[float]]
    words: NotRequired[list[tuple[str, int]] | None]


class AttributionLine(TypedDict):
    """What the page reads of a line of attributions.jsonl."""

    id: str
    author: int
    reader: int
    words: list[tuple[str, str]]
    scores: list[list[float] | None]


class UnansweredRecord(TypedDict):
    """A line of unanswered.jsonl."""

    id: str
    reason: str | None


class ClassesRecord(TypedDict):
    """A line of classes.jsonl: of each answer of a run, its class and group."""

    label: str
    hash: str
    classes: list[int]
    groups: list[int]


class LabelRecord(TypedDict):
    """A line of labels.jsonl."""

    item: str
    labeller: str
    label: float | None
    at: str
    seconds: NotRequired[float | None]
    undone: NotRequired[bool]


# Records of which there are few, or which hold more than texts and numbers.
_TYPES: dict[str, Any] = {
    "quality": QualityRecord, "utility": UtilityItemRecord, "metrics": StepRecord, "samples": SampleRecord,
    "unanswered": UnansweredRecord, "classes": ClassesRecord, "labels": LabelRecord,
    "drift": DriftLine, "attributions": AttributionLine,
}  # fmt: skip


class MainLabels:
    """Which of a judge's labels is its main one: the first with a value, else the first; never the disagreement of an
    ensemble. Fed with the records of scores.jsonl.
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._valued: dict[str, str] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        label = record["label"] or ""
        if label != DISAGREEMENT:
            self._first.setdefault(record["scorer"], label)
            if record["value"] is not None:
                self._valued.setdefault(record["scorer"], label)

    def of(self, scorer: str) -> str:
        return self._valued.get(scorer, self._first.get(scorer, ""))

    def column(self, scorer: str, label: str) -> str:
        """NAME for the main label, NAME.LABEL for the others. An unscored answer may be recorded without a label, which
        then means the main one.
        """
        return scorer if label in ("", self.of(scorer)) else f"{scorer}.{label}"


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace ``path`` by ``data``, which may come in pieces, so that a crash or a full disk leaves the old file or the
    new, never half of one. What is no file (a device, a pipe) is written to, and a folder is an OSError.
    """
    pieces = [data] if isinstance(data, bytes) else data
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.writelines(pieces)
        return
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, safe="it is as it was" if path.exists() else "what was written before is safe"):
        try:
            with open(temporary, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Half of it would take room that is needed.
            temporary.unlink(missing_ok=True)
            raise
        os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """Versions and machine facts that a reader of the run needs; nothing that identifies its user."""
    versions: dict[str, str | None] = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions,
    }


class Run:
    """One run directory, open for reading, and for appending where ``start`` made or resumed it."""

    def __init__(self, path: Path, meta: RunRecord) -> None:
        self.path = path
        self.meta = meta

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        kind: str,
        label: str,
        settings: Mapping[str, Any],
        free: Iterable[str] = (),
        refresh: bool = False,
        defaults: Mapping[str, Any] | None = None,
    ) -> Run:
        """Make the directory, or resume it if it holds a run of the same kind and settings.

        ``settings`` must be JSON-able. Keys named in ``free`` may differ on resuming, because they don't
        change the result (batch size, device); with ``refresh`` they are stored as they are now. Raises RunError if
        anything else differs; a setting that the run's version did not have was what ``defaults`` says. But a run that
        stopped before its first result (a name was mistyped, say) is begun anew.
        A stage of an experiment stores paths inside the experiment's directory relative to it, so that the directory
        can be moved.
        """
        path = Path(path)
        if not is_text(label):
            raise RunError(f"label {label!r} holds half a character: give another --label")
        home = _experiment_of(path)
        recorded: dict[str, Any] = _from_home(json.loads(json.dumps(settings)), home)
        if (path / "run.json").exists():
            run = cls.open(path)
            if run.meta["kind"] != kind:
                raise RunError(f"{path} holds a run of kind {run.meta['kind']!r}, not {kind!r}: choose another --out")
            old = {**flatten(defaults or {}), **flatten(_from_home(run.meta["settings"], home))}
            new = flatten(recorded)
            ignored = set(free)
            changed = [
                f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
                for key in sorted(old.keys() | new.keys())
                if not _is_free(key, ignored) and old.get(key) != new.get(key)
            ]
            if changed and run._has_results():
                raise RunError(
                    f"{path} was made with other settings ({'; '.join(changed[:3])}"
                    f"{'; …' if len(changed) > 3 else ''}): choose another --out or remove it"
                )
            for file in path.glob("*.jsonl"):
                if changed:
                    file.unlink()
                else:
                    _drop_unfinished_line(file)
            if not changed:
                if refresh and run.meta["settings"] != recorded:
                    run.update(settings=recorded)
                return run
            (path / "run.json").unlink()
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file: --out needs a directory")
        if path.is_dir() and any(path.glob("*.jsonl")):
            raise RunError(f"{path} has records but no run.json: it is not a run; choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"can't make the directory {path}: {error.strerror}") from error
        run = cls(
            path,
            {
                "kind": kind,
                "label": label,
                "status": "running",
                "settings": recorded,
                "environment": environment(),
            },
        )
        run.update()
        return run

    @classmethod
    def open(cls, path: Path, *, kind: str | None = None) -> Run:
        """Open an existing run for reading. Raises RunError if ``path`` is not a run, or not of ``kind``."""
        path = Path(path)
        try:
            meta = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{path} is not a run: it has no run.json") from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path / 'run.json'} is damaged ({error}): expected one JSON object") from None
        except OSError as error:
            raise RunError(f"{path / 'run.json'} can't be read ({error.strerror}): expected a file") from None
        if (
            not isinstance(meta, dict)
            or not {"kind", "label", "settings"} <= meta.keys()
            or not isinstance(meta["settings"], dict)
        ):
            raise RunError(f"{path / 'run.json'} lacks kind, label or settings: it was not written by rewardlm")
        if (wrong := mistake(RunRecord, meta)) is not None:
            raise RunError(f"{path / 'run.json'}: {wrong}; the file was changed by hand: put it back, or begin anew")
        if kind is not None and meta["kind"] != kind:
            raise RunError(f"{path} is a run of kind {meta['kind']!r}: a {kind!r} run is needed here")
        return cls(path, cast(RunRecord, meta))

    @property
    def label(self) -> str:
        return str(self.meta["label"])

    @property
    def finished(self) -> bool:
        return self.meta.get("status") == "finished"

    def _has_results(self) -> bool:
        """Whether there is anything here that took time to make: records besides the prompts, or folders."""
        return self.finished or any(
            child.is_dir() or (child.suffix == ".jsonl" and child.stem != "prompts" and child.stat().st_size > 0)
            for child in self.path.iterdir()
        )

    def mend(self) -> None:
        """Cut off what a killed process left half-written. ``start`` does; call it before adding to an opened run."""
        for file in self.path.glob("*.jsonl"):
            _drop_unfinished_line(file)

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and write it."""
        self.meta.update(cast(RunRecord, fields))
        data = json.dumps(self.meta, indent=1, allow_nan=False).encode()
        write_atomically(self.path / "run.json", data)

    def append(self, name: str, records: Iterable[Any]) -> None:
        """Append dataclasses or dicts to ``name``.jsonl in one write, on disk when this returns. If it fails, as on a
        full disk, the file is left as it was.
        """
        lines = []
        for record in records:
            is_object = dataclasses.is_dataclass(record) and not isinstance(record, type)
            value = dataclasses.asdict(record) if is_object else record
            lines.append(json.dumps(value, allow_nan=False) + "\n")
        if not lines:
            return
        with open(self.path / f"{name}.jsonl", "ab", buffering=0) as file:
            size, data = file.seek(0, os.SEEK_END), memoryview("".join(lines).encode())
            with writing(self.path / f"{name}.jsonl", safe="all of its earlier lines are safe"):
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:
                    # Half a line would take the next one with it.
                    file.truncate(size)
                    raise

    def replace(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Rewrite ``name``.jsonl as these records, atomically."""
        lines = (f"{json.dumps(record, allow_nan=False)}\n".encode() for record in records)
        write_atomically(self.path / f"{name}.jsonl", lines)

    def forget_after(self, step: int) -> None:
        """Training: a step that was logged but whose checkpoint did not survive is done again, so its lines go."""
        for name in ("metrics", "samples"):
            records = list(self.read(name))
            kept = [record for record in records if record["step"] <= step]
            if len(kept) < len(records):
                self.replace(name, kept)

    def store(self, name: str, result: Mapping[str, Any]) -> None:
        """Write ``name``.json, a result as a whole, atomically."""
        write_atomically(self.path / f"{name}.json", json.dumps(result, indent=1, allow_nan=False).encode())

    def load(self, name: str) -> dict[str, Any]:
        """What ``store`` wrote. Raises RunError where it isn't there yet."""
        try:
            result: dict[str, Any] = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} has no {name}.json: it isn't finished; run the command that began it again"
            ) from None
        except (ValueError, RecursionError):
            raise RunError(f"{self.path / name}.json is damaged: remove the directory and make it again") from None
        if (wrong := mistake(dict[str, Any], result)) is not None:
            raise RunError(f"{self.path / name}.json: {wrong}; the file was changed by hand: make it again")
        return result

    def read(self, name: str) -> Iterator[dict[str, Any]]:
        """Records of ``name``.jsonl in order; none if the file isn't there. An unfinished last line is left out. Raises
        RunError for a record that isn't as it was written: the file was changed by hand.
        """
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):  # also for a number of thousands of digits
                    raise RunError(f"{path}, line {number}: not JSON; the file was changed by hand") from None
                if (wrong := _wrong(name, record)) is not None:
                    raise self._changed(name, number, wrong)
                yield record

    def _changed(self, name: str, number: int, what: str) -> RunError:
        return RunError(
            f"{self.path / name}.jsonl, line {number}: {what}; the file was changed by hand: put the line back"
            + ("" if name in ("classes", "items", "labels") else ", or measure again")
        )

    def prompts(self) -> list[Prompt]:
        return list(self.each_prompt())

    def each_prompt(self) -> Iterator[Prompt]:
        """As ``prompts``, one at a time: there may be many."""
        return (
            Prompt(**{**record, "turns": tuple(Message(**turn) for turn in record["turns"])})
            for record in self.read("prompts")
        )

    def generations(self) -> list[Generation]:
        return list(self.each_generation())

    def each_generation(self) -> Iterator[Generation]:
        """As ``generations``, one at a time: there may be millions."""
        return (
            Generation(**{**record, "tokens": tuple(tokens) if (tokens := record.get("tokens")) is not None else None})
            for record in self.read("generations")
        )

    def scores(self) -> list[Score]:
        return [Score(**record) for record in self.read("scores")]

    def to_pandas(self) -> pd.DataFrame:
        """For a training, one row per step with its numbers. For a measurement, one row per answer: ``prompt``,
        ``answer``, ``sample``, ``finish``, P(toxic) by each judge, and its further labels as ``judge.label``. NaN is
        unscored.
        """
        import pandas as pd

        if self.meta["kind"] not in ("measure", "import"):
            return pd.DataFrame(list(self.read("metrics")))
        prompts = {prompt.id: prompt for prompt in self.each_prompt()}
        places = {identity: place for place, identity in enumerate(prompts)}
        # Long prompts are answered first, but a table is read in the prompts' order.
        answers = list(self.each_generation())
        self._refuse_strangers(prompts, answers)
        answers.sort(key=lambda one: (places[one.prompt_id], one.sample))
        return _as_table(prompts, answers, self.read("scores"))

    def _refuse_strangers(self, prompts: Mapping[str, Prompt], answers: Iterable[Generation]) -> None:
        stranger = next((one for one in answers if one.prompt_id not in prompts), None)
        if stranger is not None:
            raise RunError(
                f"{self.path}: generation {stranger.id!r:.60} answers prompt {stranger.prompt_id!r:.60}, which isn't "
                "in its prompts.jsonl: the run was changed by hand"
            )

    def setting(self, name: str, kind: Any) -> Any:
        """One of the run's settings, of the type ``kind``. Raises RunError where it has another, or none."""
        settings = self.meta["settings"]
        wrong = mistake(kind, settings[name]) if name in settings else "it is missing"
        if wrong is not None:
            where = f"{self.path / 'run.json'}: settings.{name}"
            raise RunError(f"{where}: {wrong}; the file was changed by hand: put it back, or begin anew")
        return settings[name]

    @property
    def adapter(self) -> Path:
        """Where a training leaves its adapter."""
        return self.path / "adapter"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.meta['kind']}, {self.label!r}, {self.meta['status']})"

    def _repr_html_(self) -> str:
        """The first rows, read from the beginnings of its files, which may be long."""
        from html import escape

        import pandas as pd

        if self.meta["kind"] in ("measure", "import"):
            answers = list(islice(self.each_generation(), _SHOWN))
            wanted = {answer.prompt_id for answer in answers}
            prompts = {prompt.id: prompt for prompt in self.each_prompt() if prompt.id in wanted}
            self._refuse_strangers(prompts, answers)
            shown = _as_table(prompts, answers, islice(self.read("scores"), 100 * _SHOWN))
        else:
            shown = pd.DataFrame(list(islice(self.read("metrics"), _SHOWN)))
        state = "finished" if self.finished else self.meta.get("status", "")
        head = f"{self.meta['kind']} “{self.label}”, {state}: {self.path}"
        table: str = shown.to_html(float_format="{:.3f}".format, na_rep="")
        return f"<p>{escape(head)}</p>{table}"


def _wrong(name: str, record: Any) -> str | None:
    """What isn't as it should be in a record of ``name``.jsonl; None if nothing is."""
    if type(record) is not dict:
        return f"a {type(record).__name__}, not an object"
    if name not in _FIELDS:
        return mistake(_TYPES.get(name, dict[str, Any]), record)
    for field, types in _FIELDS.get(name, ()):
        value = record.get(field, _MISSING)
        # To Python, true is an integer.
        if not isinstance(value, types) or (type(value) is bool and types is not bool):
            return f"{field} is {'missing' if value is _MISSING else f'{value!r:.40}'}"
        if isinstance(value, _NUMBER) and not abs(value) < _LARGEST:
            return f"{field} is {value if isinstance(value, float) else 'a huge number'}"
        # A model may have said half a character; only names and words of ours must be whole.
        if isinstance(value, str) and field != "text" and not is_text(value):
            return f"{field} is {value!r:.40}, which holds half a character"
    if name == "utility_answers" and (wrong := mistake(dict[str, str], record["about"])) is not None:
        return f"about.{wrong}"
    if strange := record.keys() - _MADE_OF.get(name, record.keys()):
        return f"it has the field {min(strange)!r:.40}, which no record has"
    if name == "generations" and not _are_tokens(record.get("tokens")):
        return f"tokens is {record['tokens']!r:.40}"
    flag = {"prompts": "challenging", "scores": "failed"}.get(name)
    if flag is not None and type(record.get(flag, False)) is not bool:
        return f"{flag} is {record[flag]!r:.40}, expected true or false"
    if name == "prompts" and not record["turns"]:
        return "turns is []"
    if name == "prompts" and not all(
        isinstance(turn, dict)
        and turn.keys() == {"role", "text"}
        and turn["role"] in get_args(Role)
        and isinstance(turn["text"], str)
        for turn in record["turns"]
    ):
        return f"turns is {record['turns']!r:.40}, not a list of role and text"
    return None


def _are_tokens(tokens: Any) -> bool:
    return tokens is None or (isinstance(tokens, list) and all(type(one) is int for one in tokens))


def _as_table(
    prompts: Mapping[str, Prompt], answers: Iterable[Generation], scores: Iterable[Mapping[str, Any]]
) -> pd.DataFrame:
    """One row per answer, with those of ``scores`` that belong to ``answers``."""
    import pandas as pd

    rows: dict[str, dict[str, Any]] = {
        answer.id: {
            "prompt_id": answer.prompt_id,
            "prompt": prompts[answer.prompt_id].text,
            "prompt_toxicity": prompts[answer.prompt_id].toxicity,
            "sample": answer.sample,
            "answer": answer.text,
            "finish": answer.finish,
        }
        for answer in answers
    }
    labels, known = MainLabels(), []
    for record in scores:
        labels.add(record)
        if record["generation_id"] in rows:
            known.append(record)
    for record in known:
        rows[record["generation_id"]][labels.column(record["scorer"], record["label"])] = record["value"]
    return pd.DataFrame.from_dict(rows, orient="index")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock the run at ``path``, or the place of a new one: two commands at once would write each record twice.

    A killed process leaves no lock behind. Raises RunError if another command holds the lock.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDONLY)
    except OSError:
        # ``Run.start`` says what is wrong with it.
        yield
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{path} is being written by another command: wait for it, or choose another --out"
            ) from None
        except OSError:
            # Some network file systems have no locks.
            pass
        try:
            yield
        finally:
            # Removes the directory if nothing was begun. A command that was refused does not get here.
            with suppress(OSError):
                path.rmdir()
    finally:
        os.close(held)


def is_held(path: Path) -> bool | None:
    """Whether a command on this machine has locked the run at ``path`` (``alone``). None if that can't be told.

    It only looks. Trying the lock would refuse the run to a command that starts at that moment.
    """
    try:
        locks = Path("/proc/locks").read_text()
        inode = path.stat().st_ino
    except OSError:
        return None
    # "1: FLOCK  ADVISORY  WRITE 9792 fe:00:11174274 0 EOF". Some file systems have another device number there.
    found = [line.split() for line in locks.splitlines() if " FLOCK " in line]
    return any(words[-3].rpartition(":")[2] == str(inode) for words in found)


def is_run(folder: Path) -> bool:
    """Whether ``folder`` holds a run: a run.json that is a plain file."""
    try:
        return stat.S_ISREG((folder / "run.json").lstat().st_mode)
    except OSError:
        return False


def records_file(folder: Path, name: str) -> Path:
    """The file of the run in ``folder`` that holds the records ``name``."""
    return folder / f"{name}.jsonl"


def last_written(folder: Path) -> float:
    """When a file of the run was last written, in seconds since 1970. Raises FileNotFoundError for an empty folder."""
    written = [entry.stat().st_mtime for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    if not written:
        raise FileNotFoundError(errno.ENOENT, "no files", str(folder))
    return max(written)


def peak_rss_mb() -> float:
    """The most memory that this process has held so far, in MiB."""
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    # A fallback: on Linux this number starts at what the parent process held.
    # Linux counts kilobytes here, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def prompts_hash(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over ids and turns in order: two runs with the same hash answered the same list."""
    digest = hashlib.sha256()
    for prompt in prompts:
        record = [prompt.id, [[turn.role, turn.text] for turn in prompt.turns]]
        digest.update(json.dumps(record).encode())
    return digest.hexdigest()


def expand(paths: Iterable[Path], above: tuple[Path, ...] = ()) -> Iterator[Run]:
    """The runs at ``paths``, an experiment replaced by its own runs. Raises RunError if a path is not a run."""
    for path in paths:
        run = Run.open(path)
        if run.meta["kind"] != "experiment":
            yield run
            continue
        here = run.path.resolve()
        if here in above:
            raise RunError(f"{run.path} is an experiment that lists itself: take it out of its run.json")
        yield from expand([run.path / relative for relative in run.meta.get("runs", [])], (*above, here))


def measured_in(paths: Sequence[Path], *, kinds: Sequence[str] = ("measure", "import")) -> list[Path]:
    """The runs at ``paths``; an experiment is replaced by its runs of these kinds.

    A run that is named itself stays whatever its kind. It is refused later, with a reason.
    """
    return [run.path for run in expand(paths) if run.path in paths or run.meta["kind"] in kinds]


def unique_labels(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where two runs have the same."""
    taken: list[str] = []
    for label in labels:
        name, number = label, 1
        while name in taken or (number > 1 and name in labels):
            number += 1
            name = f"{label} ({number})"
        taken.append(name)
    return taken


def _experiment_of(path: Path) -> Path | None:
    """The directory of the experiment that has the run at ``path`` as a stage, such as ``measure/PT``; else None."""
    home = path.absolute().parent.parent
    if (home / "run.json").exists() and Run.open(home).meta["kind"] == "experiment":
        return home
    return None


def _from_home(settings: Any, home: Path | None) -> Any:
    """``settings`` with absolute paths below ``home`` made relative to it."""
    if isinstance(settings, dict):
        return {key: _from_home(value, home) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_from_home(value, home) for value in settings]
    if home is not None and isinstance(settings, str) and Path(settings).is_relative_to(home):
        return str(Path(settings).relative_to(home))
    return settings


def _is_free(key: str, free: set[str]) -> bool:
    """Whether the dotted ``key`` or a section above it is in ``free``."""
    parts = key.split(".")
    return any(".".join(parts[:depth]) in free for depth in range(1, len(parts) + 1))


def training_of(adapter: Path) -> Run | None:
    """The run that holds an adapter, as its ``adapter`` or in a checkpoint; None if the adapter is not in a run."""
    here = adapter.absolute()
    for folder in (here, *here.parents[:3]):
        if (folder / "run.json").exists():
            return Run.open(folder)
    return None


def trained_by(adapter: Path) -> str | None:
    """The kinds of the trainings that made an adapter, first to last: "finetune", "rlaf", "finetune+rlaf" …; None if
    the adapter is not in its training's run.
    """
    run = training_of(adapter)
    if run is None:
        return None
    # In an experiment the settings hold a path relative to it, which holds wherever the experiment is moved to; the run
    # also records where the adapter was.
    places = [run.meta.get("adapter"), run.meta["settings"].get("adapter")]
    before = [folder / place for place in places if place for folder in (Path(), run.path.absolute().parent.parent)]
    first = next((found for folder in before if (found := trained_by(folder)) is not None), None)
    return run.meta["kind"] if first is None else f"{first}+{run.meta['kind']}"


def known_rewards(adapter: Path) -> list[str] | None:
    """The judges that an adapter's training, or the training that it started from, used as reward.

    A gain by these judges proves nothing. None if unknown, because the adapter is not in its training's run.
    """
    run = training_of(adapter)
    found = None if run is None else run.meta.get("rewards")
    return None if found is None else list(found)


def reward_lineage(adapter: Path) -> dict[str, Any]:
    """For each reward of an adapter's training, the lineage of that judge as the training recorded it."""
    run = training_of(adapter)
    return {} if run is None else dict(run.meta.get("reward_lineage") or {})


def paid_for(adapter: Path) -> list[str]:
    """The terms of an adapter's training, or of one before it, that paid for what the audit measures the same way."""
    run = training_of(adapter)
    return [] if run is None else list(run.meta.get("paid_for") or [])


def rewards_of(adapter: Path) -> list[str]:
    """As ``known_rewards``, but empty if unknown."""
    return known_rewards(adapter) or []


def _drop_unfinished_line(path: Path) -> None:
    """A killed process may leave half a line: cut it off, so that the next record starts on its own line."""
    with open(path, "r+b") as file:
        size = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - 65_536)
            file.seek(start)
            found = file.read(whole - start).rfind(b"\n")
            whole = start + found + 1
            if found >= 0:
                break
        if whole < size:
            file.truncate(whole)
