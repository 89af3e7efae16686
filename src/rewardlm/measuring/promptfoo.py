"""promptfoo's results (``-o results.json``, ``.jsonl``) as prompts, answers and scores.

A file has a row for every test, prompt and provider. A provider is a model: ``--label`` picks one of several. In
promptfoo a high score is good, so none is taken for P(toxic) unasked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rewardlm.config.yaml_files import parse
from rewardlm.errors import DataError
from rewardlm.measuring.harness import ForeignAnswer, chat_turns, contents_of, finish_of
from rewardlm.measuring.table_files import Contents, Row, as_text, listed
from rewardlm.types import Finish, Message

# Why a row failed: 1 is an assertion, 2 an error of the provider.
_ERROR = 2
_ENDS: dict[str, Finish] = {"stop": "stop", "length": "length"}


def is_promptfoo(row: Mapping[str, Any]) -> bool:
    """Whether ``row``, the first of a JSON lines file, is a result."""
    return {"testIdx", "promptIdx", "provider"} <= row.keys()


def is_promptfoo_file(found: object) -> bool:
    """Whether ``found`` is the object of a .json file of results."""
    return isinstance(found, dict) and isinstance(found.get("results"), dict) and "results" in found["results"]


def results_of(path: Path, found: Mapping[str, Any]) -> list[Row]:
    """The rows of a .json file."""
    results = found["results"]["results"]
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise DataError(f"{path}: results must be a list of objects")
    return [(f"{path}, result {number}", one) for number, one in enumerate(results, 1)]


def read_promptfoo(path: Path, rows: Sequence[Row], *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The answers of one provider. A prompt's id is a hash of what was sent, so the same text is the same prompt in
    every file; tests that send it again (``--repeat``) are its samples.

    ``mapping`` may name places in a row, such as ``vars.question`` or ``metadata.toxicity``.
    """
    names = _named(rows)
    providers = dict.fromkeys(names)
    kept = list(rows)
    notes = []
    if len(providers) > 1:
        if label not in providers:
            raise DataError(f"{path} has the providers {listed(providers)}: --label must be one of them, got {label!r}")
        kept = [row for row, name in zip(rows, names, strict=True) if name == label]
        notes.append(f"{len(rows) - len(kept)} rows of other providers than {label} are left out")
    return contents_of(
        path,
        [_answer(where, row) for where, row in kept],
        kind="promptfoo",
        label=label,
        mapping=mapping,
        notes=notes,
        high_is_bad=False,
    )


def _named(rows: Sequence[Row]) -> list[str]:
    """Each row's provider. Several of one name (one model with several settings) are NAME#1, NAME#2 … in their order:
    a row's ``promptIdx`` is its column, and each column has one provider and one prompt.
    """
    plain = [(_provider(where, row), _prompt_of(row), _column(where, row)) for where, row in rows]
    columns: dict[tuple[str, str], list[int]] = {}
    for name, prompt, column in sorted(set(plain), key=lambda one: one[2]):
        columns.setdefault((name, prompt), []).append(column)
    several = {name for (name, _), found in columns.items() if len(found) > 1}
    return [
        f"{name}#{columns[name, prompt].index(column) + 1}" if name in several else name
        for name, prompt, column in plain
    ]


def _provider(where: str, row: Mapping[str, Any]) -> str:
    provider = row.get("provider")
    found = provider.get("label") or provider.get("id") if isinstance(provider, dict) else provider
    if not isinstance(found, str):
        raise DataError(f"{where}: the provider has no name: expected its label or id")
    return found


def _prompt_of(row: Mapping[str, Any]) -> str:
    """Which of the file's prompts (before variables are filled in) a row is about."""
    prompt = row.get("prompt")
    return str(row.get("promptId") or (prompt.get("label") if isinstance(prompt, dict) else prompt))


def _column(where: str, row: Mapping[str, Any]) -> int:
    found = row.get("promptIdx")
    if isinstance(found, bool) or not isinstance(found, int):
        raise DataError(f"{where}: promptIdx is {found!r:.40}: expected a whole number")
    return found


def _answer(where: str, row: Mapping[str, Any]) -> ForeignAnswer:
    prompt, metadata, response = row.get("prompt"), row.get("metadata"), row.get("response")
    known = metadata if isinstance(metadata, dict) else {}
    # An attack of red teaming is sent in the place of the prompt.
    sent = known.get("redteamFinalPrompt") or (prompt.get("raw") if isinstance(prompt, dict) else prompt)
    raw = as_text(where, "prompt", sent)
    output = response.get("output") if isinstance(response, dict) and row.get("failureReason") != _ERROR else None
    if output is not None and not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    return ForeignAnswer(
        where=where,
        prompt_id=hashlib.sha256(raw.encode()).hexdigest()[:16],
        turns=_turns(where, raw),
        text=None if output is None else as_text(where, "output", output),
        finish=finish_of(_ENDS, response.get("finishReason")) if isinstance(response, dict) else None,
        values=dict(_values(row)),
        about=row,
        known=known,
    )


def _turns(where: str, raw: str) -> tuple[Message, ...]:
    """What was sent: a text, or the messages of a chat as JSON or YAML."""
    messages: object = None
    if raw.lstrip().startswith(("[", "- ")):
        try:
            messages = json.loads(raw) if raw.lstrip().startswith("[") else parse(raw)[1]
        except (ValueError, RecursionError, yaml.YAMLError):
            messages = None  # a text that only looks like messages
    if isinstance(messages, list) and messages and all(isinstance(one, dict) and "role" in one for one in messages):
        return chat_turns(where, messages)
    return (Message("user", raw),)


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Named metrics, and assertions without a name by their type."""
    named = row.get("namedScores")
    yield from (named.items() if isinstance(named, dict) else ())
    grading = row.get("gradingResult")
    parts = grading.get("componentResults") if isinstance(grading, dict) else None
    seen: dict[str, int] = {}
    for part in parts if isinstance(parts, list) else ():
        assertion = part.get("assertion") if isinstance(part, dict) else None
        if not isinstance(assertion, dict) or assertion.get("metric") is not None:
            continue
        kind = str(assertion.get("type"))
        seen[kind] = seen.get(kind, 0) + 1
        yield (kind if seen[kind] == 1 else f"{kind}.{seen[kind]}"), part.get("score")
