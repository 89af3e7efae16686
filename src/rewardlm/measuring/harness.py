"""Answers of other tools, one by one, as the contents of a run: what inspect_ai, PyRIT and promptfoo have in common.

A reader gives each answer with its prompt and with all numbers that the tool has of it, and says which way a high
number points in that tool. A score here must be P(toxic). So a number is taken unasked only if its name speaks of
toxicity, high is worse in that tool, and all values lie in [0, 1]. You ask for others with --map scores.NAME=METRIC, or
with --map scores.NAME=not:METRIC where high is good (1 minus it is taken).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rewardlm.errors import ConfigError, DataError
from rewardlm.measuring.table_files import (
    Contents,
    answer_record,
    as_score,
    as_text,
    check_mapping,
    listed,
    score_record,
    turns_of,
)
from rewardlm.scoring.scorer import EMPTY, is_empty
from rewardlm.terminal import plain
from rewardlm.types import Finish, Message, Prompt

# Words, or their beginnings, of a name that speaks of toxicity; and of one that turns it round.
_TOXIC = re.compile(
    r"toxic\w*|tox|hate|hateful|hatespeech|hatred|harm|harms|harmful|harmfulness|offens\w*|insult\w*|threat\w*|profan\w*"
    r"|obscen\w*|abus\w*|slurs?|perspective|unsafe"
)
_TURNED = re.compile(
    r"not|no|non|less|free|without|anti|counter|avoid\w*|pass\w*|refus\w*|safe\w*|invert\w*|revers\w*|prevent\w*"
    r"|reject\w*|defen[cs]e\w*"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# In --map: 1 minus the metric.
_REVERSED = "not:"
# Where a prompt's own toxicity may stand, if nobody says where.
_TOXICITY = "toxicity"


@dataclass(frozen=True, slots=True)
class ForeignAnswer:
    """One question of another tool, at ``where`` in its file. ``text`` is None if it got no answer.

    ``about`` is the tool's own record, in which --map may name a place. ``values`` are its numbers by name, None (or
    NaN) where it has none for this answer. ``known`` may say what the prompt's own toxicity is. ``sample`` is the
    answer's number, where the tool has one; else answers to a prompt are numbered as they come.
    """

    where: str
    prompt_id: str
    turns: tuple[Message, ...]
    text: str | None
    finish: Finish | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    sample: int | None = None


def speaks_of_toxicity(name: str) -> bool:
    """Whether a metric's name says, word by word, that it is about toxicity, and not about its absence or a refusal."""
    words = [word.lower() for word in _WORD.findall(name)]
    return any(map(_TOXIC.fullmatch, words)) and not any(map(_TURNED.fullmatch, words))


def finish_of(ends: Mapping[str, Finish], said: object) -> Finish | None:
    """How an answer ended, in our words; None for what isn't known."""
    return ends.get(said) if isinstance(said, str) else None


def message_text(content: object) -> object:
    """A message's text; of its parts, those that are text."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(part for part in parts if isinstance(part, str))


def chat_turns(where: str, messages: Sequence[object]) -> tuple[Message, ...]:
    """Messages of {role, content} as turns: a developer is a system, and of contents in parts the texts count."""
    as_texts = [
        {
            **message,
            "role": "system" if message.get("role") == "developer" else message.get("role"),
            "content": message_text(message.get("content")),
        }
        if isinstance(message, dict)
        else message
        for message in messages
    ]
    return turns_of(where, as_texts)


def contents_of(
    path: Path,
    answers: Iterable[ForeignAnswer],
    *,
    kind: str,
    label: str,
    mapping: Mapping[str, str],
    notes: Sequence[str] = (),
    high_is_bad: bool = True,
) -> Contents:
    """The answers as prompts, answers and scores. Answers with one prompt id are samples of it, in their order.

    Raises DataError for a place that the records lack, an unknown metric, a score outside of [0, 1], and prompts of one
    id that differ; ConfigError for fields that only tables have.
    """
    check_mapping(mapping)
    for name in ("response", "prompt_id", "finish"):
        if name in mapping:
            raise ConfigError(f"--map {name} is for tables: a file of {kind} says it itself")
    found = [_as_mapped(answer, mapping) for answer in answers]
    if not found:
        raise DataError(f"{path} has no answers of {label}: expected at least one")
    metrics, left_out = _chosen(found, mapping, kind, high_is_bad=high_is_bad)
    columns = {"prompt": mapping.get("prompt", "prompt"), **metrics}
    contents = Contents(kind, [], [], [], columns, [*notes, *left_out])
    prompts: dict[str, Prompt] = {}
    samples: Counter[str] = Counter()
    taken: set[tuple[str, int]] = set()
    silent = ignored = 0
    for answer in found:
        toxicity = _toxicity(answer, mapping)
        ignored += toxicity is None and answer.known.get(_TOXICITY) is not None and "prompt_toxicity" not in mapping
        _add(prompts, Prompt(answer.prompt_id, answer.turns, path.name, toxicity), answer.where)
        sample = samples[answer.prompt_id] if answer.sample is None else answer.sample
        if answer.text is None:
            silent += 1
            continue
        samples[answer.prompt_id] += 1
        if (answer.prompt_id, sample) in taken:
            raise DataError(f"{answer.where}: answer {sample} to prompt {answer.prompt_id!r:.60} comes twice: keep one")
        taken.add((answer.prompt_id, sample))
        generation = answer_record(answer.prompt_id, label, sample, answer.text, answer.finish)
        contents.generations.append(generation)
        for name, metric in metrics.items():
            reason = EMPTY if is_empty(answer.text) else f"{kind} has no score"
            contents.scores.append(score_record(generation.id, name, _value(answer, metric), reason))
    if not contents.generations:
        raise DataError(f"{path}: none of {len(found)} questions got an answer")
    if silent:
        contents.notes.append(f"{silent} of {len(found)} questions got no answer (an error, or blocked)")
    if ignored:
        contents.notes.append(f"the toxicity of {ignored} questions is left out: it is no number in [0, 1]")
    contents.prompts.extend(prompts.values())
    return contents


def _add(prompts: dict[str, Prompt], prompt: Prompt, where: str) -> None:
    """Keep the prompt, once. Of two with one id, one may not say how toxic it is."""
    known = prompts.setdefault(prompt.id, prompt)
    if known.toxicity is None and prompt.toxicity is not None:
        known = prompts[prompt.id] = replace(known, toxicity=prompt.toxicity)
    if known.turns != prompt.turns or prompt.toxicity not in (None, known.toxicity):
        raise DataError(
            f"{where}: prompt {prompt.id!r:.60} differs from the one above with this id: expected one text and one "
            "toxicity"
        )


def _as_mapped(answer: ForeignAnswer, mapping: Mapping[str, str]) -> ForeignAnswer:
    """With the prompt that was asked for, names of metrics that can be shown, and None for numbers that are none."""
    as_text(answer.where, "id", answer.prompt_id)
    values = {
        " ".join(plain(as_text(answer.where, "metric", name)).split()): None if _is_nan(value) else value
        for name, value in answer.values.items()
    }
    answer = replace(answer, values=values)
    if "prompt" in mapping:
        text = as_text(answer.where, mapping["prompt"], dig(answer.where, answer.about, mapping["prompt"]))
        answer = replace(answer, turns=(Message("user", text),))
    if not answer.turns or not answer.turns[-1].text.strip():
        raise DataError(f"{answer.where}: the prompt is empty: remove it, or name another with --map prompt=FIELD")
    return answer


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _toxicity(answer: ForeignAnswer, mapping: Mapping[str, str]) -> float | None:
    if "prompt_toxicity" in mapping:
        path = mapping["prompt_toxicity"]
        return as_score(answer.where, path, _as_number(dig(answer.where, answer.about, path)))[0]
    try:
        return as_score(answer.where, _TOXICITY, _as_number(answer.known.get(_TOXICITY)))[0]
    except DataError:
        return None  # what only has this name; it is counted


def _as_number(value: object) -> object:
    return float(value) if isinstance(value, bool) else value


def dig(where: str, record: Mapping[str, Any], path: str) -> Any:
    """What stands at ``a.b.c`` in a record. Raises DataError where there is nothing."""
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(
                f"{where}: there is nothing at {path!r}: expected a field, such as metadata.toxicity or doc.question"
            )
        value = value[part]
    return value


def _chosen(
    answers: Sequence[ForeignAnswer], mapping: Mapping[str, str], kind: str, *, high_is_bad: bool
) -> tuple[dict[str, str], list[str]]:
    """``scores.NAME`` → metric (with its ``not:``), and sentences about the metrics that are left out."""
    names = dict.fromkeys(name for answer in answers for name in answer.values)
    chosen = {name: metric for name, metric in mapping.items() if name.startswith("scores.")}
    for name, metric in chosen.items():
        bare = metric.removeprefix(_REVERSED)
        if bare not in names:
            raise DataError(f"no metric {bare!r} for {name}: the file has {listed(names) or 'none'}")
        for answer in answers:
            value = answer.values.get(bare)
            if value is not None and not _is_score(value):
                raise DataError(
                    f"{answer.where}: metric {bare!r} for {name} is {value!r:.40}: expected a number in [0, 1]"
                )
    notes = []
    taken = {metric.removeprefix(_REVERSED) for metric in chosen.values()}
    for name in names:
        if name in taken:
            continue
        wrong = next(
            (
                (answer.where, value)
                for answer in answers
                if (value := answer.values.get(name)) is not None and not _is_score(value)
            ),
            None,
        )
        if not speaks_of_toxicity(name) or not high_is_bad:
            way = f"--map scores.NAME={name}" if high_is_bad else f"--map scores.NAME={_REVERSED}{name}"
            high = "if high means toxic" if high_is_bad else f"high is good in {kind}; if low means toxic"
            notes.append(f"metric {name!r} is left out: {high}, add {way}")
        elif wrong is not None:
            notes.append(f"metric {name!r} is left out: a value is {wrong[1]!r:.40} ({wrong[0]}), not in [0, 1]")
        else:
            chosen[f"scores.{name}"] = name
    return chosen, notes


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _value(answer: ForeignAnswer, metric: str) -> float | None:
    value = answer.values.get(metric.removeprefix(_REVERSED))
    if not isinstance(value, int | float):
        return None
    return 1.0 - float(value) if metric.startswith(_REVERSED) else float(value)
