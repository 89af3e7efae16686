"""PyRIT's memory (its SQLite file) as prompts, answers and scores.

PyRIT writes down every message: a piece has a role, a conversation and a place in it. The last answer of each
conversation is imported, with all turns before it. A score is "true" or "false", or a number in [0, 1]; high means more
of what its scorer looks for.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from rewardlm.errors import DataError
from rewardlm.measuring.harness import ForeignAnswer, contents_of
from rewardlm.measuring.table_files import Contents, as_text
from rewardlm.types import Message, Role

MAGIC = b"SQLite format 3\0"
_ROLES = {"simulated_assistant": "assistant", "developer": "system"}
_PIECES = (
    "SELECT id, role, conversation_id, sequence, converted_value, converted_value_data_type, response_error, "
    "prompt_metadata FROM PromptMemoryEntries ORDER BY conversation_id, sequence, rowid"
)
_SCORES = (
    "SELECT prompt_request_response_id, score_value, score_type, score_category, scorer_class_identifier "
    "FROM ScoreEntries ORDER BY timestamp, rowid"
)

Piece = Mapping[str, Any]


def read_pyrit(path: Path, *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The conversations of a memory file. A prompt's id is a hash of the turns before the answer, so that the same
    question is the same prompt in every file, and a question that was asked again has several samples.

    A score is called SCORER.CATEGORY. ``mapping`` may name places in the answer's piece, such as
    ``prompt_metadata.toxicity``. Raises DataError for a file that isn't PyRIT's.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as memory:
            memory.row_factory = sqlite3.Row
            pieces = [dict(row) for row in memory.execute(_PIECES)]
            scores = [dict(row) for row in memory.execute(_SCORES)]
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no memory of PyRIT that can be read: {error}") from None
    values, notes = _values(path, scores)
    conversations: dict[str, list[Piece]] = defaultdict(list)
    left_out = 0
    for piece in pieces:
        # Pictures and sounds aren't read; what a filter says in the place of an answer is text.
        if piece["converted_value_data_type"] in ("text", "error"):
            conversations[str(piece["conversation_id"])].append(piece)
        else:
            left_out += 1
    if left_out:
        notes.append(f"{left_out} pieces that are no text are left out")
    answers = [found for one in conversations.values() if (found := _answer(path, one, values)) is not None]
    return contents_of(path, answers, kind="PyRIT", label=label, mapping=mapping, notes=notes)


def _answer(path: Path, pieces: Sequence[Piece], values: Mapping[str, dict[str, object]]) -> ForeignAnswer | None:
    """The last answer of a conversation; None if nobody was asked."""
    where = f"{path}, conversation {pieces[0]['conversation_id']}"
    roles = [_ROLES.get(piece["role"], piece["role"]) for piece in pieces]
    last_question = max((place for place, role in enumerate(roles) if role == "user"), default=None)
    if last_question is None:
        return None
    turns = tuple(
        Message(cast(Role, role), as_text(where, "converted_value", piece["converted_value"]))
        for role, piece in zip(roles[: last_question + 1], pieces, strict=False)
        if role in ("system", "user", "assistant")
    )
    after = zip(roles[last_question:], pieces[last_question:], strict=True)
    said = next((piece for role, piece in after if role == "assistant"), None)
    key = json.dumps([[turn.role, turn.text] for turn in turns], ensure_ascii=False)
    failed = said is None or (said["response_error"] or "none") != "none"
    metadata = _object(pieces[last_question]["prompt_metadata"])
    return ForeignAnswer(
        where=where,
        prompt_id=hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        turns=turns,
        text=None if failed or said is None else as_text(where, "converted_value", said["converted_value"]),
        values={} if said is None else values.get(str(said["id"]), {}),
        about={**pieces[last_question], "prompt_metadata": metadata},
        known=metadata,
    )


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
    value = score["score_value"]
    if value is None:
        return None
    words = {"true": 1.0, "false": 0.0}
    text = str(value).strip().lower()
    if score["score_type"] == "true_false" and text in words:
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
