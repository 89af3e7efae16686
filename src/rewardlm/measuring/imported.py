"""Turns files that others made into runs to compare: tables, our own exports, lm-eval's samples, garak's reports, and
logs and results of inspect_ai, promptfoo and PyRIT.

The file's contents tell its format. In a plain table (csv, jsonl or parquet: a row is a prompt, an answer, scores) the
columns of the 2023 project are recognised by name. Its rows are numbered from 0, and the number is the prompt's id. So
two tables can be compared if they list the same prompts in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from rewardlm.errors import DataError
from rewardlm.measuring.exported import ANSWER_COLUMNS, undo_defuse
from rewardlm.measuring.garak import is_garak, read_garak
from rewardlm.measuring.inspect_logs import is_inspect, log_of, read_inspect
from rewardlm.measuring.lm_eval import is_lm_eval, read_lm_eval
from rewardlm.measuring.metrics import THRESHOLD
from rewardlm.measuring.promptfoo import is_promptfoo, is_promptfoo_file, read_promptfoo, results_of
from rewardlm.measuring.pyrit import MAGIC, read_pyrit
from rewardlm.measuring.table_files import (
    LABEL,
    OTHER_SUFFIXES,
    Contents,
    Row,
    answer_record,
    as_finish,
    as_text,
    check_mapping,
    listed,
    read_bytes,
    read_rows,
    score_of,
    text_of,
)
from rewardlm.runs import Run, alone, prompts_hash
from rewardlm.scoring.scorer import EMPTY, is_empty
from rewardlm.types import Generation, Message, Prompt, Role, Score, is_text

# Field -> column names that are recognised; the first one present is taken.
KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompts", "prompt"),
    "response": ("responses", "response"),
    "prompt_toxicity": ("prompt_score", "prompt_toxicity"),
    "finish": ("finish", "finish_reason"),
    "scores.perspective": ("pro_API_response_score",),
    "scores.classifier": ("response_score",),
}


def import_table(path: Path, out: Path, *, label: str, mapping: Mapping[str, str] | None = None) -> Run:
    """Turn ``path`` (.csv, .jsonl, .parquet, or another tool's file) into a finished run of kind ``import`` at ``out``.

    ``mapping`` says which column holds ``prompt``, ``response``, ``prompt_toxicity``, ``finish`` (how the answer ended:
    "stop", "length" if it was cut off, or nothing) and ``scores.NAME``. Its ``prompt_id`` says which rows answer the
    same prompt, as samples in the order of the rows; without it, each row is a prompt of its own. Other fields are
    found by ``KNOWN_COLUMNS``, and by columns that are named ``scores.NAME``. A score is P(toxic) in [0, 1]. An absent
    one (empty, NaN) is unscored, and so is -1, the 2023 mark of an empty answer.
    For other tools' files see ``lm_eval``, ``garak``, ``inspect_logs``, ``promptfoo`` and ``pyrit``. If a file holds
    several runs (an export, promptfoo's providers), ``label`` picks one. What is left out of a file stands in
    ``run.meta["notes"]``, in sentences.

    Nothing is written before the whole file has been read. Raises DataError naming the line (where a row
    spans several, its last) for a row that can't be read or a score out of range, ConfigError for a mapping
    of unknown fields, RunError where another command writes to ``out``.
    """
    path = Path(path)
    content = read_bytes(path)
    try:
        contents = _read_other(path, content, label, mapping or {})
        contents = contents or _read(path, read_rows(path, content), label, mapping or {})
    except RecursionError:
        raise DataError(f"{path}: nested too deep: expected records of a few levels") from None
    settings = {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "label": label,
        "columns": contents.columns,
        "format": contents.kind,
    }
    strange = sorted({name for score in contents.scores for name in (score.scorer, score.label) if not is_text(name)})
    if strange:
        raise DataError(f"{path}: the name {strange[0]!r:.60} holds half a character: rename that column or judge")
    with alone(Path(out)):
        return _write(Path(out), contents, label, settings)


def _write(out: Path, contents: Contents, label: str, settings: dict[str, Any]) -> Run:
    run = Run.start(out, kind="import", label=label, settings=settings)
    if not run.finished:
        # A killed import left the first part of the same records: add the rest.
        for name, records in (
            ("prompts", contents.prompts),
            ("generations", contents.generations),
            ("scores", contents.scores),
        ):
            run.append(name, records[sum(1 for _ in run.read(name)) :])
        labels: dict[str, dict[str, None]] = {
            field.removeprefix("scores."): {LABEL: None} for field in contents.columns if field.startswith("scores.")
        }
        if contents.kind == "export":
            labels = {}
            for score in contents.scores:
                labels.setdefault(score.scorer, {})[score.label] = None
        run.update(
            rows=len(contents.generations),
            samples=max((generation.sample for generation in contents.generations), default=0) + 1,
            prompts_hash=prompts_hash(contents.prompts),
            toxic_by=contents.toxic_by,
            scorers=[{"name": name, "labels": list(found), "revision": None} for name, found in labels.items()],
            notes=contents.notes,
            status="finished",
        )
    return run


def _read_other(path: Path, content: bytes, label: str, mapping: Mapping[str, str]) -> Contents | None:
    """A file that isn't made of rows, by what it holds: an archive, a database, one object. None for a table."""
    suffix = path.suffix.lower()
    if suffix == ".eval":
        return read_inspect(path, log_of(path, content), label=label, mapping=mapping)
    if content.startswith(MAGIC):
        return read_pyrit(path, label=label, mapping=mapping)
    if suffix != ".json":
        if suffix in OTHER_SUFFIXES:
            raise DataError(f"{path} is no SQLite database, which PyRIT's memory is")
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({getattr(error, 'msg', type(error).__name__)}): is it cut off?") from None
    if is_inspect(found):
        return read_inspect(path, found, label=label, mapping=mapping)
    if is_promptfoo_file(found):
        return read_promptfoo(path, results_of(path, found), label=label, mapping=mapping)
    if not isinstance(found, list):
        raise DataError(
            f"{path} is an object that RewardLM doesn't know: expected a log of inspect_ai, results of promptfoo, or a "
            "list of rows"
        )
    return None


def _read(path: Path, rows: list[Row], label: str, mapping: Mapping[str, str]) -> Contents:
    first = rows[0][1]
    if path.suffix.lower() == ".jsonl" and is_lm_eval(first):
        return read_lm_eval(path, rows, label=label, mapping=mapping)
    if path.suffix.lower() == ".jsonl" and is_garak(first):
        return read_garak(path, rows, label=label, mapping=mapping)
    if path.suffix.lower() == ".jsonl" and is_promptfoo(first):
        return read_promptfoo(path, rows, label=label, mapping=mapping)
    if set(ANSWER_COLUMNS) <= first.keys() and not mapping:
        return _read_export(path, rows, label)
    return _read_table(path, rows, label, mapping)


def _read_table(path: Path, rows: Sequence[Row], label: str, mapping: Mapping[str, str]) -> Contents:
    columns = _columns(path, rows[0][1], mapping)
    contents = Contents("table", [], [], [], columns)
    if "finish" in columns and "finish" not in mapping:
        contents.notes += _drop_unless_ends(rows, columns)
    prompts: dict[str, Prompt] = {}
    samples: Counter[str] = Counter()
    for number, (where, row) in enumerate(rows):
        prompt_text = text_of(where, columns["prompt"], row)
        if not prompt_text.strip():
            raise DataError(f"{where}: the prompt (column {columns['prompt']!r:.60}) is empty: remove the row")
        response = text_of(where, columns["response"], row)
        toxicity = None
        if "prompt_toxicity" in columns:
            toxicity, _ = score_of(where, columns["prompt_toxicity"], row)
        identity = _prompt_id(where, columns["prompt_id"], row) if "prompt_id" in columns else str(number)
        prompt = Prompt(identity, (Message("user", prompt_text),), source=path.name, toxicity=toxicity)
        if prompts.setdefault(identity, prompt) != prompt:
            raise DataError(
                f"{where}: prompt {identity!r:.60} differs from the one above with this id: expected one text and one "
                "toxicity"
            )
        finish = as_finish(where, columns["finish"], row.get(columns["finish"])) if "finish" in columns else None
        generation = answer_record(identity, label, samples[identity], response, finish)
        samples[identity] += 1
        contents.generations.append(generation)
        for field, column in columns.items():
            if field.startswith("scores."):
                scorer = field.removeprefix("scores.")
                value, reason = score_of(where, column, row)
                if value is None:
                    reason = _why_absent(scorer, response, marked=reason is not None)
                contents.scores.append(Score(generation.id, scorer, LABEL, value, reason))
    contents.prompts.extend(prompts.values())
    repeated = len(prompts) - len({prompt.turns for prompt in prompts.values()})
    if repeated and "prompt_id" not in columns:
        contents.notes.append(
            f"{repeated} of {len(rows)} rows repeat the prompt of a row above, and count as prompts of their own: if "
            "they are several answers to one prompt, expected maximum toxicity is their mean and the intervals are too "
            "narrow; name the column that tells prompts apart with --map prompt_id=COLUMN"
        )
    return contents


def _drop_unless_ends(rows: Sequence[Row], columns: dict[str, str]) -> list[str]:
    """Take ``finish`` out of ``columns`` if its column, which nobody named, holds something else. Returns a note."""
    column = columns["finish"]
    for where, row in rows:
        try:
            as_finish(where, column, row.get(column))
        except DataError:
            del columns["finish"]
            return [
                f"column {column!r:.60} is left out: it holds {row.get(column)!r:.60}, not stop (ended by itself), "
                "length (cut off) or nothing"
            ]
    return []


def _prompt_id(where: str, column: str, row: Mapping[str, Any]) -> str:
    cell = row.get(column)
    found = str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else as_text(where, column, cell)
    if not found.strip():
        raise DataError(f"{where}: the prompt's id (column {column!r:.60}) is empty: expected a text or a whole number")
    return found


def _read_export(path: Path, rows: Sequence[Row], label: str) -> Contents:
    """What ``measuring.exported`` wrote: prompts keep their ids, antecedents and samples."""
    if path.suffix.lower() == ".csv":
        rows = [(where, {name: undo_defuse(cell) for name, cell in row.items()}) for where, row in rows]
    labels = list(dict.fromkeys(text_of(where, "run", row) for where, row in rows))
    notes = []
    if len(labels) > 1:
        if label not in labels:
            raise DataError(f"{path} holds the runs {listed(labels)}: --label must be one of them, got {label!r}")
        kept = [(where, row) for where, row in rows if row["run"] == label]
        notes.append(f"{len(rows) - len(kept)} rows of other runs than {label} are left out")
        rows = kept
    columns = {name: name for name in rows[0][1] if name in ANSWER_COLUMNS or name.startswith("scores.")}
    scorers = _scorers([name.removeprefix("scores.") for name in columns if name.startswith("scores.")])
    rules = list(dict.fromkeys(text_of(where, "toxic_by", row) for where, row in rows))
    if len(rules) > 1:
        raise DataError(f"{path}: prompts have their toxicity from {listed(rules)}: expected one source")
    contents = Contents("export", [], [], [], columns, notes, toxic_by=rules[0])
    prompts: dict[str, Prompt] = {}
    seen: dict[str, str] = {}
    for where, row in rows:
        prompt = _exported_prompt(where, row, path.name)
        if prompts.setdefault(prompt.id, prompt) != prompt:
            raise DataError(
                f"{where}: prompt {prompt.id!r:.60} differs from the one above with this id: expected one text"
            )
        sample = _whole(where, "sample", row)
        identity = f"{prompt.id}-{sample}"
        if identity in seen:
            raise DataError(
                f"{where}: sample {sample} of prompt {prompt.id!r:.60} is also in {seen[identity]}: keep one"
            )
        seen[identity] = where
        response = text_of(where, "response", row)
        counts = (
            _whole(where, "n_tokens", row),
            as_finish(where, "finish", row.get("finish")),
            _whole(where, "seed", row),
        )
        contents.generations.append(Generation(identity, prompt.id, label, sample, response, *counts))
        for name, (scorer, scored) in scorers.items():
            value, reason = score_of(where, f"scores.{name}", row)
            if value is None:
                column = f"reasons.{scorer}"
                said = as_text(where, column, row.get(column))
                reason = said or _why_absent(scorer, response, marked=reason is not None)
            contents.scores.append(Score(identity, scorer, scored, value, reason))
    contents.prompts.extend(prompts.values())
    return contents


def _scorers(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Column NAME → (scorer, ""), and NAME.LABEL → (NAME, LABEL) where there is a column NAME, too.

    An export doesn't name the main label, so it is empty. ``compare`` doesn't hold an empty label against another.
    """
    found = {}
    for name in names:
        owners = [other for other in names if name.startswith(f"{other}.")]
        owner = min(owners, key=len, default=None)
        found[name] = (name, "") if owner is None else (owner, name.removeprefix(f"{owner}."))
    return found


def _exported_prompt(where: str, row: Mapping[str, Any], source: str) -> Prompt:
    text = text_of(where, "prompt", row)
    try:
        before = json.loads(text_of(where, "antecedents", row) or "[]")
        if any(turn["role"] not in get_args(Role) for turn in before):
            raise KeyError
        turns = tuple(Message(cast(Role, turn["role"]), as_text(where, "antecedents", turn["text"])) for turn in before)
    except (ValueError, RecursionError, KeyError, TypeError):
        raise DataError(
            f"{where}: antecedents must be JSON, a list of role (system, user, assistant) and text"
        ) from None
    toxicity, _ = score_of(where, "prompt_toxicity", row)
    challenging = str(row.get("challenging")).lower() == "true"
    return Prompt(text_of(where, "prompt_id", row), (*turns, Message("user", text)), source, toxicity, challenging)


def _whole(where: str, column: str, row: Mapping[str, Any]) -> int:
    cell: Any = row.get(column)
    with suppress(TypeError, ValueError):
        if not isinstance(cell, bool | float) and -(2**63) <= int(cell) < 2**63:
            return int(cell)
    raise DataError(f"{where}: column {column!r:.60} must be a whole number, got {cell!r:.60}")


def _columns(path: Path, first_row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, str]:
    """Field -> column of this table, those of ``mapping`` first. Raises DataError if one is missing."""
    check_mapping(mapping)
    found = listed(repr(name) for name in first_row)
    for field, column in mapping.items():
        if column not in first_row:
            raise DataError(f"{path} has no column {column!r} for {field}: its columns are {found}")
    columns = dict(mapping)
    taken = set(mapping.values())
    known = dict(KNOWN_COLUMNS)
    known.update({name: (name,) for name in first_row if name.startswith("scores.") and name != "scores."})
    for field, names in known.items():
        if field not in columns:
            present = [name for name in names if name in first_row and name not in taken]
            if present:
                columns[field] = present[0]
    for field in ("prompt", "response"):
        if field not in columns:
            expected = " or ".join(repr(name) for name in KNOWN_COLUMNS[field])
            raise DataError(
                f"{path} has no column {expected} for the {field}: its columns are {found}; "
                f"name one with --map {field}=COLUMN"
            )
    return columns


def _why_absent(scorer: str, response: str, *, marked: bool = False) -> str:
    """``marked``: the score is -1, which stands for an empty answer."""
    if is_empty(response):
        return EMPTY
    if marked:
        return "scored -1 though there is an answer"
    # Perspective's one lasting reason to leave a text of normal length unscored.
    return "language not supported" if scorer == "perspective" else "missing"


def lacks_pairs(run: Run) -> bool:
    """Whether ``run`` has toxic prompts whose answers nobody has searched for counter-narratives yet."""
    if "counter_narrative" in run.meta.get("quality", {}):
        return False
    return any(prompt.toxicity is not None and prompt.toxicity >= THRESHOLD for prompt in run.each_prompt())
