"""A run's answers as a table for other tools (parquet, jsonl or csv): one row per answer, with all that is known.

A run is three files that refer to each other by id, and may hold millions of answers. The join is made in a
temporary database on disk and read in the answers' order, so memory stays the same however large the run is.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rewardlm.disk import writing
from rewardlm.errors import ConfigError, DataError, RunError
from rewardlm.measuring import quality
from rewardlm.runs import MainLabels, Run, unique_labels
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, most_likely
from rewardlm.scoring.scorer import is_empty
from rewardlm.types import DISAGREEMENT, is_text

SUFFIXES = (".parquet", ".jsonl", ".csv")

# The first columns of every export. ``antecedents`` is JSON: the turns before the prompt, each with role and text.
# ``toxic_by`` says where the prompts' toxicity comes from: the data set or a judge.
ANSWER_COLUMNS = (
    "run", "prompt_id", "prompt", "antecedents", "prompt_toxicity", "toxic_by", "challenging", "sample", "response",
    "n_tokens", "finish", "seed",
)  # fmt: skip

_INTEGERS = {"sample", "n_tokens", "seed"}
_FLAGS = {"challenging", "quality.empty", "quality.non_latin", "quality.other_script", "quality.repeated"}
_FLAGS |= {"quality.refusal", "quality.quoting", "quality.counter_narrative", "quality.counter_narrative_null"}
_TEXTS = {*ANSWER_COLUMNS} - _INTEGERS - _FLAGS - {"prompt_toxicity"}
_QUALITY_COLUMNS = (
    "quality.empty", "quality.non_latin", "quality.other_script", "quality.repeated", "quality.refusal",
    "quality.quoting", "quality.prompt_similarity", "quality.prompt_similarity_null", "quality.perplexity",
    "quality.counter_narrative", "quality.counter_narrative_null",
)  # fmt: skip
_MODEL_NUMBERS = ("prompt_similarity", "prompt_similarity_null", "perplexity")

# Rows that are looked up and written together; rows in a row group of a Parquet file.
_BATCH = 500
_ROW_GROUP = 5_000

# Programs differ in what they skip before the sign of a formula: blanks, line breaks, zero-width characters. East Asian
# versions read the wide signs as the plain ones. Leading apostrophes match too, so that ours can be told from one that
# was already in the text: that makes the rule reversible.
_FORMULA = re.compile(r"'*(?:[\t\r]|[\s\x00-\x20\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠])")

Record = dict[str, Any]


def export_answers(paths: Sequence[Path], out: Path) -> list[str]:
    """Write every answer of the runs at ``paths`` to ``out``, in the format of its suffix (``SUFFIXES``).

    Columns: ``ANSWER_COLUMNS``; per judge ``scores.NAME`` (P of its main label), ``scores.NAME.LABEL`` for the others
    and ``reasons.NAME`` (why an answer is unscored); ``disagreement.NAME`` of ensembles; ``quality.…``, and P(class)
    by the judge of pairs as ``quality.classes.CLASS``. What a run doesn't have is null. Answers and numbers are exact
    in parquet and jsonl; in csv, texts that a spreadsheet would run are defused (``defuse``).

    Returns sentences about what the table doesn't show. An old file is replaced only once the new one is complete.
    Raises ConfigError for another suffix, and RunError for a run that is neither measured nor imported, or whose
    records contradict each other.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}, got {out.suffix or 'no suffix'}")
    runs = [open_measured(Path(path)) for path in paths]
    labels = unique_labels([run.label for run in runs])
    names = [_score_columns(run) for run in runs]
    columns = [*ANSWER_COLUMNS]
    judges = {f"scores.{scorer}" for found in names for scorer, _ in found}
    for column in dict.fromkeys(column for found in names for column in found.values()):
        columns.append(column)
        if column in judges:
            columns.append("reasons." + column.removeprefix("scores."))
    columns += [*_QUALITY_COLUMNS, *dict.fromkeys(name for run in runs for name in _class_columns(run))]
    notes = []
    with replacing(out) as temporary, _WRITERS[out.suffix.lower()](temporary, columns) as write:
        for run, label, found in zip(runs, labels, names, strict=True):
            rows = _Rows(run, label, found, columns)
            for batch in _batches(rows, _BATCH):
                write(batch)
            notes += rows.notes()
    return notes


def open_measured(path: Path) -> Run:
    """The run at ``path``. Raises RunError if it has no answers to export."""
    run = Run.open(path)
    if run.meta["kind"] not in ("measure", "import"):
        raise RunError(f"{path} is a run of kind {run.meta['kind']!r}: only measured or imported runs have answers")
    return run


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary path beside ``out`` that takes its place when the block ends, and is removed if the block fails.

    Raises ConfigError if ``out`` is a folder, or lies in a run's folder, where it could overwrite records,
    and DiskFullError.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: --out needs the name of a file")
    if (out.parent / "run.json").exists():
        raise ConfigError(f"{out} would lie among the records of the run {out.parent}: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    with writing(out, safe="it is as it was" if out.exists() else "the runs are as they were"):
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)


def _score_columns(run: Run) -> dict[tuple[str, str], str]:
    """(scorer, label) → column, a judge's main label first."""
    labels: dict[str, dict[str, None]] = {}
    mains = MainLabels()
    for record in run.read("scores"):
        mains.add(record)
        labels.setdefault(record["scorer"], {})[record["label"]] = None
    columns = {}
    for scorer, found in labels.items():
        for label in dict.fromkeys([mains.of(scorer), *found]):
            apart = label == DISAGREEMENT
            columns[scorer, label] = f"disagreement.{scorer}" if apart else f"scores.{mains.column(scorer, label)}"
    return columns


def _class_columns(run: Run) -> Iterator[str]:
    for record in run.read("quality"):
        if record.get("classes"):
            yield from (f"quality.classes.{name}" for name in record["classes"])
            return


class _Rows:
    """The answers of one run in the order of their records, joined with prompts, scores and quality."""

    def __init__(self, run: Run, label: str, score_columns: dict[tuple[str, str], str], columns: Sequence[str]) -> None:
        self._run, self._label, self._columns = run, label, columns
        # With an empty name, SQLite uses a temporary file and removes it when the connection closes.
        self._store = sqlite3.connect("")
        self._store.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE prompts (id TEXT PRIMARY KEY, record TEXT) WITHOUT ROWID;"
            "CREATE TABLE quality (id TEXT PRIMARY KEY, record TEXT) WITHOUT ROWID;"
            "CREATE TABLE answers (id TEXT PRIMARY KEY, prompt TEXT) WITHOUT ROWID;"
            "CREATE TABLE scores (id TEXT, name TEXT, value REAL, reason TEXT, PRIMARY KEY (id, name)) WITHOUT ROWID;"
        )
        try:
            self._store.executemany(
                "INSERT INTO prompts VALUES (?, ?)", ((r["id"], json.dumps(r)) for r in run.read("prompts"))
            )
        except sqlite3.IntegrityError:
            raise RunError(f"{run.path}: the same prompt id comes twice: each must be unique") from None
        # If an answer has two records, the later one counts: it was scored again.
        self._store.executemany(
            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
            (
                (r["generation_id"], score_columns[r["scorer"], r["label"]], r["value"], r["reason"])
                for r in run.read("scores")
            ),
        )
        self._store.executemany(
            "INSERT OR REPLACE INTO quality VALUES (?, ?)",
            ((str(r.get("generation_id")), json.dumps(r)) for r in run.read("quality")),
        )

    def __iter__(self) -> Iterator[Record]:
        for batch in _batches(self._run.read("generations"), _BATCH):
            ids = [generation["id"] for generation in batch]
            try:
                self._store.executemany("INSERT INTO answers VALUES (?, ?)", ((g["id"], g["prompt_id"]) for g in batch))
            except sqlite3.IntegrityError:
                raise RunError(f"{self._run.path}: the same generation id comes twice: each must be unique") from None
            prompts = dict(self._select("SELECT * FROM prompts", [generation["prompt_id"] for generation in batch]))
            judged = dict(self._select("SELECT * FROM quality", ids))
            scores: dict[str, list[tuple[str, float | None, str | None]]] = {}
            for name, column, value, reason in self._select("SELECT * FROM scores", ids):
                scores.setdefault(name, []).append((column, value, reason))
            for generation in batch:
                record = prompts.get(generation["prompt_id"])
                if record is None:
                    raise RunError(
                        f"{self._run.path}: generation {generation['id']!r} answers prompt "
                        f"{generation['prompt_id']!r}, which isn't in its prompts.jsonl: the run was changed by hand"
                    )
                yield self._row(generation, json.loads(record), scores.get(generation["id"], []), judged)

    def notes(self) -> list[str]:
        """What the rows don't show, once they have all been read. Raises RunError for scores of unknown answers."""
        stray = self._store.execute("SELECT id FROM scores WHERE id NOT IN (SELECT id FROM answers)").fetchone()
        if stray is not None:
            raise RunError(
                f"{self._run.path}: a score is for generation {stray[0]!r}, which isn't in its generations.jsonl: the "
                "run was changed by hand"
            )
        notes = []
        (known,) = self._store.execute("SELECT COUNT(*) FROM prompts").fetchone()
        (answered,) = self._store.execute("SELECT COUNT(DISTINCT prompt) FROM answers").fetchone()
        if known > answered:
            notes.append(f"{known - answered} of {known} prompts of {self._label} have no answer, and so no row")
        refused = sum(self._run.meta.get("unanswered", {}).values())
        if refused:
            notes.append(f"{refused} questions of {self._label} were refused by the server, and have no row")
        if not self._run.finished:
            notes.append(f"{self._run.path} isn't finished: the table has only the answers so far")
        return notes

    def _select(self, query: str, ids: Sequence[str]) -> Iterator[Any]:
        marks = ", ".join("?" * len(ids))
        return iter(self._store.execute(f"{query} WHERE id IN ({marks})", ids))

    def _row(
        self,
        generation: Record,
        prompt: Record,
        scores: Iterable[tuple[str, float | None, str | None]],
        judged: dict[str, str],
    ) -> Record:
        row: Record = dict.fromkeys(self._columns)
        before, text = prompt["turns"][:-1], prompt["turns"][-1]["text"]
        row |= {
            "run": self._label,
            "prompt_id": prompt["id"],
            "prompt": text,
            "antecedents": json.dumps(before, ensure_ascii=False),
            "prompt_toxicity": prompt["toxicity"],
            "toxic_by": self._run.meta.get("toxic_by", "dataset"),
            "challenging": prompt["challenging"],
            "response": generation["text"],
        }
        row |= {name: generation[name] for name in ("sample", "n_tokens", "finish", "seed")}
        for column, value, reason in scores:
            if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
                raise RunError(
                    f"{self._run.path}: {column} of {generation['id']!r} is {value}: expected 0 to 1, or null"
                )
            row[column] = value
            reasons = "reasons." + column.removeprefix("scores.")
            if value is None and reasons in row:
                row[reasons] = reason or "no reason given"
        answer = generation["text"]
        row |= {
            "quality.empty": is_empty(answer),
            "quality.non_latin": quality.is_mostly_outside(answer, quality.LATIN),
            "quality.other_script": quality.in_other_script(text, answer),
            "quality.repeated": quality.is_repeated(answer),
            "quality.refusal": quality.is_refusal(answer),
            "quality.quoting": quality.quotes(text, answer),
        }
        if generation["id"] in judged:
            record = json.loads(judged[generation["id"]])
            row |= {f"quality.{name}": record.get(name) for name in _MODEL_NUMBERS}
            if record.get("classes"):
                row["quality.counter_narrative"] = most_likely(record["classes"]) == COUNTER_NARRATIVE
                row |= {f"quality.classes.{name}": value for name, value in record["classes"].items()}
            if record.get("classes_null"):
                row["quality.counter_narrative_null"] = most_likely(record["classes_null"]) == COUNTER_NARRATIVE
            if is_empty(answer):
                for name in ("classes", "classes_null"):
                    if name in record:
                        row[f"quality.{name.replace('classes', COUNTER_NARRATIVE)}"] = False
        return row


def _batches(items: Iterable[Record], size: int) -> Iterator[list[Record]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def defuse(text: str) -> str:
    """``text`` with an apostrophe in front where a spreadsheet might read a formula.

    Models that were asked for the worst wrote these answers. One that begins with ``=`` or ``@`` is a formula to
    whoever opens the table with a double click.
    """
    return "'" + text if _FORMULA.match(text) else text


def undo_defuse(text: str) -> str:
    """What ``defuse`` was given: ``undo_defuse(defuse(text)) == text`` for every text."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text, 1) else text


Write = Callable[[list[Record]], None]


@contextmanager
def _csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([defuse(name) for name in columns])

        def write(rows: list[Record]) -> None:
            with _naming_bad_text(rows):
                writer.writerows([[_cell(row[name]) for name in columns] for row in rows])

        yield write


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    # repr has enough digits to read back as the same number.
    return defuse(value) if isinstance(value, str) else repr(value)


@contextmanager
def _jsonl_writer(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    with open(path, "w", encoding="ascii") as file:

        def write(rows: list[Record]) -> None:
            file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)

        yield write


@contextmanager
def _parquet_writer(path: Path, columns: Sequence[str]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, _arrow_type(name, pyarrow)) for name in columns])
    waiting: list[Record] = []
    file: IO[bytes]
    with open(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def write(rows: list[Record], whole: int = _ROW_GROUP) -> None:
            waiting.extend(rows)
            if waiting and len(waiting) >= whole:
                with _naming_bad_text(waiting):
                    writer.write_table(pyarrow.Table.from_pylist(waiting, schema), row_group_size=len(waiting))
                waiting.clear()

        yield write
        write([], 0)


def _arrow_type(name: str, pyarrow: Any) -> Any:
    if name in _INTEGERS:
        return pyarrow.int64()
    if name in _FLAGS:
        return pyarrow.bool_()
    return pyarrow.string() if name in _TEXTS or name.startswith("reasons.") else pyarrow.float64()


@contextmanager
def _naming_bad_text(rows: Sequence[Record]) -> Iterator[None]:
    """Half a surrogate pair can't be written as UTF-8, and the library's error doesn't say which text holds it."""
    try:
        yield
    except UnicodeEncodeError as error:
        for row in rows:
            for name, value in row.items():
                if isinstance(value, str) and not is_text(value):
                    raise DataError(
                        f"{name} of prompt {row['prompt_id']!r}, sample {row['sample']}, holds half a surrogate pair: "
                        "export it as .jsonl"
                    ) from error
        raise


_WRITERS = {".csv": _csv_writer, ".jsonl": _jsonl_writer, ".parquet": _parquet_writer}
