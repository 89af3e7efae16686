"""Your own preferences from a table, in the formats of TRL: pairs, or single answers.

A row is ``prompt``, ``chosen``, ``rejected``; each is a text, or a list of messages. Where ``chosen`` and ``rejected``
are whole conversations, ``prompt`` may be left out: it is what both begin with. For KTO a row may instead be
``prompt``, ``completion``, ``label``, and for RAFT, which learns good answers alone, ``prompt``, ``completion``.

TRL takes every answer for a whole one. Here ``chosen_finish``, ``rejected_finish`` or ``completion_finish`` may be
``length``: that answer was cut off, and is not learnt as one that ends there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewardlm.data.files import TABLES, Row, answer_ended, columns, read_table
from rewardlm.errors import DataError
from rewardlm.typed import shown
from rewardlm.types import Message

Method = Literal["dpo", "kto", "raft"]
_EXPECTED: dict[Method, str] = {
    "dpo": "prompt, chosen and rejected",
    "kto": "prompt, chosen and rejected (or prompt, completion and label)",
    "raft": "prompt and completion (or prompt, chosen and rejected)",
}
_ROLES = ("system", "user", "assistant")
# [{"role": …, and what pandas writes of it, with single quotes.
_A_LIST_OF_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content)["']\s*:""")
_LABELS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class GivenPreference:
    """What was preferred after ``history``, whose last turn is the user's; a row of one answer has only the other.
    One that hasn't ``ended`` was cut off."""

    history: tuple[Message, ...]
    chosen: str | None
    rejected: str | None
    chosen_ended: bool = True
    rejected_ended: bool = True


def load_preferences(path: Path, *, method: Method) -> list[GivenPreference]:
    """The rows of a .jsonl, .csv, .tsv, .parquet or .json file, in the formats that ``method`` can learn.

    Raises DataError for a file that isn't there, and for a row that isn't as described.
    """
    path, expected = path.expanduser(), _EXPECTED[method]
    if not path.is_file():
        raise DataError(f"preferences {path}: no such file; expected a table with {expected}")
    if path.suffix.lower() not in (*TABLES, ".json"):
        raise DataError(f"preferences {path}: expected one of {', '.join(TABLES)} with {expected}")
    found = [_preference(row, method) for row in read_table(path, expected)]
    if not found:
        raise DataError(f"preferences {path}: no rows; expected {expected}")
    return found


def _preference(row: Row, method: Method) -> GivenPreference:
    names = row.values.keys()
    if "chosen" in names and row.values.get("rejected") not in (None, ""):
        history, chosen, rejected = _sides(row)
        if chosen.strip() == rejected.strip():
            raise DataError(f"{row.where}: chosen and rejected are the same; expected a better and a worse answer")
        return GivenPreference(history, chosen, rejected, answer_ended(row, "chosen"), answer_ended(row, "rejected"))
    if "chosen" in names:
        if method != "raft":
            raise DataError(
                f"{row.where}: there is no rejected answer beside the chosen one, and only --method raft learns from "
                f"the chosen one alone; expected {_EXPECTED[method]}"
            )
        return _best(row)
    if {"prompt", "completion"} <= names:
        labelled = "label" in names
        if method != ("kto" if labelled else "raft"):
            what, learns = ("completion and label", "kto") if labelled else ("prompt and completion", "raft")
            raise DataError(
                f"{row.where}: {what} are single answers, which --method {learns} learns; expected {_EXPECTED[method]}"
            )
        completion = _answer(row, "completion", _turns(row, "completion", "assistant"))
        wanted, ended = not labelled or _label(row), answer_ended(row, "completion")
        return GivenPreference(
            _history(row, _turns(row, "prompt", "user")),
            completion if wanted else None,
            None if wanted else completion,
            chosen_ended=ended,
            rejected_ended=ended,
        )
    raise DataError(f"{row.where}: columns are {columns(row.values)}; expected {_EXPECTED[method]}")


def _best(row: Row) -> GivenPreference:
    """A chosen answer without a rejected one."""
    turns = _turns(row, "chosen", "assistant")
    ended = answer_ended(row, "chosen")
    if row.values.get("prompt") not in (None, ""):
        return GivenPreference(_history(row, _turns(row, "prompt", "user")), _answer(row, "chosen", turns), None, ended)
    return GivenPreference(_history(row, turns[:-1]), _answer(row, "chosen", turns[-1:]), None, ended)


def _sides(row: Row) -> tuple[tuple[Message, ...], str, str]:
    chosen, rejected = _turns(row, "chosen", "assistant"), _turns(row, "rejected", "assistant")
    if row.values.get("prompt") not in (None, ""):
        history = _history(row, _turns(row, "prompt", "user"))
        return history, _answer(row, "chosen", chosen), _answer(row, "rejected", rejected)
    before = chosen[:-1]
    if not before or rejected[:-1] != before:
        raise DataError(
            f"{row.where}: there is no prompt, and chosen and rejected are not two conversations that differ in their "
            "last turn; expected a prompt"
        )
    history = _history(row, before)
    return history, _answer(row, "chosen", chosen[-1:]), _answer(row, "rejected", rejected[-1:])


def _turns(row: Row, name: str, role: str) -> tuple[Message, ...]:
    """A column's messages; a text is one of ``role``."""
    value = row.values.get(name)
    if isinstance(value, str):
        value = _as_messages(row, name, value)
    if isinstance(value, str):
        return (Message(role, value),)  # type: ignore[arg-type]
    if not isinstance(value, Sequence):
        raise DataError(f"{row.where}: {name} is {shown(value)}; expected a text or a list of messages")
    return tuple(_message(row, name, message) for message in value)


def _as_messages(row: Row, name: str, text: str) -> str | list[Any]:
    """In a .csv every cell is a text, a list of messages too; else the text itself."""
    if not _A_LIST_OF_MESSAGES.match(text):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(
            f"{row.where}: {name} looks like a list of messages, but is no JSON: {shown(text)}; write it as JSON, with "
            "double quotes, or keep such rows in a .jsonl or .parquet file"
        ) from None
    return found if isinstance(found, list) else text


def _message(row: Row, name: str, message: Any) -> Message:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in _ROLES or not isinstance(content, str):
        raise DataError(
            f'{row.where}: {name} holds {shown(message)}; expected messages like {{"role": "user", "content": …}} with '
            f"a role of {', '.join(_ROLES)}"
        )
    return Message(role, content)


def _history(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
        raise DataError(f"{row.where}: the prompt does not end with a text of the user's; expected one to answer")
    return turns


def _answer(row: Row, name: str, turns: tuple[Message, ...]) -> str:
    """The text of the only turn. A rejected message may have no words: the model said nothing."""
    may_be_empty = name == "rejected" and bool(str(row.values[name]).strip())
    if len(turns) != 1 or turns[0].role != "assistant" or not (may_be_empty or turns[0].text.strip()):
        raise DataError(f"{row.where}: {name} is not one answer; expected a text, or one message of the assistant's")
    return turns[0].text


def _label(row: Row) -> bool:
    value = row.values["label"]
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        raise DataError(f"{row.where}: label is {shown(value)}; expected true (wanted) or false")
    return found
