"""PyRIT's memory (its SQLite file) as prompts, answers and scores.

PyRIT writes down every message, in pieces: a piece has a role, a conversation and a place in it. The last answer of
each conversation is imported, with all turns before it. A score is "true" or "false", or a number in [0, 1]; high means
more of what its scorer looks for.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from rewardlm.errors import DataError
from rewardlm.measuring.harness import ForeignAnswer, contents_of
from rewardlm.measuring.table_files import Contents, as_text, listed
from rewardlm.types import Message, Role

MAGIC = b"SQLite format 3\0"
_ROLES = {"simulated_assistant": "assistant", "developer": "system"}
# Answers that are there; others were blocked or failed.
_ANSWERED = ("none", "empty")
_PIECES = (
    "SELECT id, original_prompt_id, role, conversation_id, sequence, converted_value, converted_value_data_type, "
    "response_error, prompt_metadata FROM PromptMemoryEntries ORDER BY rowid"
)
_SCORES = (
    "SELECT prompt_request_response_id, score_value, score_type, score_category, scorer_class_identifier "
    "FROM ScoreEntries ORDER BY timestamp, rowid"
)
# Newer versions say whom a conversation was with.
_TARGETS = "SELECT conversation_id, target_identifier FROM Conversations"

Piece = Mapping[str, Any]


@dataclass(frozen=True)
class _Memory:
    """What is read of the file: pieces in the order in which they were written, scores, and targets if they are known.

    ``targets`` are by conversation, as they stand there.
    """

    pieces: Sequence[Piece]
    scores: Sequence[Mapping[str, Any]]
    targets: dict[str, str]


def read_pyrit(path: Path, *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The conversations of a memory file with one target; ``label`` picks one of several.

    A prompt's id is a hash of the turns before the answer, so that the same question is the same prompt in every file,
    and a question that was asked again has several samples, in the order in which they were asked.
    A score is called SCORER.CATEGORY. ``mapping`` may name places in the last question's piece, such as
    ``prompt_metadata.toxicity``. Raises DataError for a file that isn't PyRIT's.
    """
    memory = _read(path)
    values, notes = _values(path, memory.scores)
    conversations: dict[str, list[Piece]] = defaultdict(list)
    left_out = 0
    for piece in memory.pieces:
        # Pictures and sounds aren't read; what a filter says in the place of an answer is text.
        if piece["converted_value_data_type"] in ("text", "error"):
            conversations[str(piece["conversation_id"])].append(piece)
        else:
            left_out += 1
    if left_out:
        notes.append(f"{left_out} pieces that are no text are left out")
    copies = [name for name, pieces in conversations.items() if all(map(_is_copy, pieces))]
    for name in copies:
        del conversations[name]
    if copies:
        notes.append(f"{len(copies)} conversations that are copies of others are left out")
    kept = _of_target(path, conversations, memory.targets, label, notes)
    answers = [found for pieces in kept if (found := _answer(path, pieces, values)) is not None]
    return contents_of(path, answers, kind="PyRIT", label=label, mapping=mapping, notes=notes)


def _read(path: Path) -> _Memory:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as memory:
            memory.row_factory = sqlite3.Row
            pieces = [dict(row) for row in memory.execute(_PIECES)]
            scores = [dict(row) for row in memory.execute(_SCORES)]
            tables = {row[0] for row in memory.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            targets = dict(memory.execute(_TARGETS).fetchall()) if "Conversations" in tables else {}
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no memory of PyRIT that can be read: {error}") from None
    return _Memory(pieces, scores, {str(name): str(found) for name, found in targets.items() if found})


def _is_copy(piece: Piece) -> bool:
    """Branches of a conversation begin with copies of its pieces, which remember what they are copies of."""
    return piece["original_prompt_id"] not in (None, piece["id"])


def _of_target(
    path: Path,
    conversations: Mapping[str, list[Piece]],
    targets: Mapping[str, str],
    label: str,
    notes: list[str],
) -> list[list[Piece]]:
    """Conversations with the one target, or with the one that ``label`` names: its model, else its class, numbered if
    several are called so.
    """
    known = list(dict.fromkeys(targets[name] for name in conversations if name in targets))
    if len(known) <= 1:
        return list(conversations.values())
    plain = [_target_name(target) for target in known]
    names = {
        target: name if plain.count(name) == 1 else f"{name}#{plain[: place + 1].count(name)}"
        for place, (target, name) in enumerate(zip(known, plain, strict=True))
    }
    if label not in names.values():
        raise DataError(
            f"{path} has conversations with {listed(names.values())}: --label must be one of them, got {label!r}"
        )
    kept = [pieces for name, pieces in conversations.items() if names.get(targets.get(name, "")) == label]
    notes.append(f"{len(conversations) - len(kept)} conversations with others than {label} are left out")
    return kept


def _target_name(identifier: str) -> str:
    found = _object(identifier)
    return str(found.get("model_name") or found.get("class_name") or found.get("__type__") or "target")


def _answer(path: Path, pieces: Sequence[Piece], values: Mapping[str, dict[str, object]]) -> ForeignAnswer | None:
    """The last answer of a conversation; None if nobody was asked."""
    where = f"{path}, conversation {pieces[0]['conversation_id']}"
    ordered = sorted(pieces, key=lambda piece: _place(where, piece))
    # A message of several pieces is one turn.
    turns = [list(found) for _, found in groupby(ordered, key=lambda piece: (_place(where, piece), _role(piece)))]
    roles = [_role(turn[0]) for turn in turns]
    last = max((place for place, role in enumerate(roles) if role == "user"), default=None)
    if last is None:
        return None
    before = tuple(
        Message(cast(Role, role), _text(where, turn))
        for role, turn in zip(roles[: last + 1], turns, strict=False)
        if role in ("system", "user", "assistant")
    )
    said = next((turn for role, turn in zip(roles[last:], turns[last:], strict=True) if role == "assistant"), None)
    key = json.dumps([[turn.role, turn.text] for turn in before])
    metadata = _object(turns[last][0]["prompt_metadata"])
    failed = said is None or any((piece["response_error"] or "none") not in _ANSWERED for piece in said)
    return ForeignAnswer(
        where=where,
        prompt_id=hashlib.sha256(key.encode()).hexdigest()[:16],
        turns=before,
        text=None if failed or said is None else _text(where, said),
        values={name: value for piece in said or () for name, value in _scores_of(piece, values).items()},
        about={**turns[last][0], "prompt_metadata": metadata},
        known=metadata,
    )


def _place(where: str, piece: Piece) -> int:
    if not isinstance(piece["sequence"], int):
        raise DataError(f"{where}: a piece's place is {piece['sequence']!r:.40}: expected a whole number")
    return piece["sequence"]


def _role(piece: Piece) -> str:
    return str(_ROLES.get(piece["role"], piece["role"]))


def _text(where: str, turn: Sequence[Piece]) -> str:
    return "\n".join(as_text(where, "converted_value", piece["converted_value"]) for piece in turn)


def _scores_of(piece: Piece, values: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """A copy's scores stand with the piece that it is a copy of."""
    return {**values.get(str(piece["original_prompt_id"]), {}), **values.get(str(piece["id"]), {})}


def _values(path: Path, scores: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """By piece, its numbers by SCORER.CATEGORY; and sentences. Of two scores of one name the later one counts."""
    found: dict[str, dict[str, object]] = defaultdict(dict)
    kinds: dict[str, set[str]] = defaultdict(set)
    for number, score in enumerate(scores, 1):
        value = _number(f"{path}, score {number}", score)
        if value is None:
            continue
        for name, scorer in _names(score):
            kinds[name].add(scorer)
            found[str(score["prompt_request_response_id"])][name] = value
    several = [name for name, scorers in kinds.items() if len(scorers) > 1]
    notes = [f"several scorers are called {name}: each answer has the score of the last one" for name in several]
    return found, notes


def _names(score: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the score is called, and which scorer gave it."""
    scorer = _object(score["scorer_class_identifier"])
    # Older versions name the class so.
    kind = str(scorer.get("class_name") or scorer.get("__type__") or "score")
    identity = json.dumps(scorer, sort_keys=True)
    categories = _json(score["score_category"])
    # One category was a plain text once.
    listed = categories if isinstance(categories, list) else [categories or score["score_category"]]
    for category in listed or [None]:
        known = isinstance(category, str) and category not in ("", "null")
        yield (f"{kind}.{category}" if known else kind), identity


def _number(where: str, score: Mapping[str, Any]) -> float | None:
    """None for a score that was not reached."""
    value = score["score_value"]
    text = "" if value is None else str(value).strip().lower()
    words = {"true": 1.0, "false": 0.0, "": None, "nan": None, "none": None}
    if text in words:
        return words[text]
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: the value is {value!r:.40}: expected true, false or a number") from None


def _json(text: object) -> object:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _object(text: object) -> dict[str, Any]:
    found = _json(text)
    return found if isinstance(found, dict) else {}
