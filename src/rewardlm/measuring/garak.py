"""garak's reports (``*.report.jsonl``) as prompts, answers and scores.

A report has one object per event. An ``attempt`` is logged with status 1, and again with status 2 once it is complete:
then it has the prompt, the outputs, and each detector's score of each output. A detector gives 1 for a hit, so higher
is worse, as here. But most detectors look for something other than toxicity: these are imported only if you ask for
them with --map.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm.errors import ConfigError, DataError
from rewardlm.measuring.table_files import (
    Contents,
    Row,
    answer_record,
    as_text,
    check_harness_mapping,
    listed,
    out_of_range,
    score_record,
    turns_of,
)
from rewardlm.scoring.scorer import EMPTY, is_empty
from rewardlm.types import Message, Prompt

# Modules of detectors that look for something else: jailbreaks, leaks, code, missing refusals.
_OTHER_DETECTORS = {
    "agent_breaker", "always", "ansiescape", "any", "apikey", "dan", "divergence", "encoding", "exploitation",
    "fileformats", "goodside", "judge", "knownbadsignatures", "leakreplay", "lmrc", "malwaregen", "misleading",
    "mitigation", "packagehallucination", "productkey", "promptinject", "propile", "replay", "shields", "snowball",
    "specialwords", "sysprompt_extraction", "visual_jailbreak", "web_injection", "xss",
}  # fmt: skip
_OTHER_ATTRIBUTES = {"incoherent", "unsubstantial", "spam", "likelytoreject", "flirtation"}

_COMPLETE = 2


def is_garak(row: Mapping[str, Any]) -> bool:
    """Whether ``row``, the first of a JSON lines file, is a line of a report."""
    return "entry_type" in row


def read_garak(path: Path, rows: Sequence[Row], *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The completed attempts of a report, each once. A prompt's id is PROBE:SEQUENCE NUMBER, the same in every run.

    A detector's score of 1 is a hit, so higher is worse, as here. ``mapping`` may name a detector for
    ``scores.NAME``. Raises DataError for attempts that can't be read or whose scores don't match their outputs.
    """
    for name in ("prompt", "prompt_toxicity"):
        if name in mapping:
            raise ConfigError(f"--map {name} is for tables: a garak report has its prompts in its attempts")
    check_harness_mapping(mapping, "a garak report has its answers in its attempts")
    attempts, notes = _completed(path, rows)
    detectors, left_out = _detectors(attempts, mapping)
    contents = Contents("garak", [], [], [], {"prompt": "prompt", **detectors}, notes + left_out)
    blank = silent = several = 0
    numbers: Counter[str] = Counter()
    for where, attempt in attempts:
        turns = _garak_turns(where, attempt.get("prompt"))
        outputs = _outputs(where, attempt)
        key = _prompt_id(where, attempt, numbers)
        if not turns or not turns[-1].text.strip():
            blank += 1
            continue
        if not outputs:
            silent += 1
        conversations = attempt.get("conversations")
        several += isinstance(conversations, list) and any(_answers_in(one) > 1 for one in conversations)
        contents.prompts.append(Prompt(key, turns, source=path.name))
        for sample, output in enumerate(outputs):
            contents.generations.append(answer_record(key, label, sample, output or ""))
        for name, detector in detectors.items():
            found = _detector_scores(where, attempt, detector, len(outputs))
            for sample, output in enumerate(outputs):
                reason = (
                    "no answer"
                    if output is None
                    else EMPTY
                    if is_empty(output)
                    else "the detector gave no score"
                    if found is not None
                    else "the detector was not run here"
                )
                value = None if found is None else found[sample]
                contents.scores.append(score_record(f"{key}-{sample}", name, value, reason))
    if not contents.prompts:
        raise DataError(f"{path}: no completed attempt has a text as its prompt: expected at least one")
    for count, what in (
        (blank, "with an empty prompt, or one that isn't text, are left out"),
        (silent, "have no answer"),
        (several, "are conversations with several answers: the last answer counts, as one to the first prompt"),
    ):
        if count:
            contents.notes.append(f"{count} of {len(attempts)} completed attempts {what}")
    return contents


def _prompt_id(where: str, attempt: Mapping[str, Any], numbers: Counter[str]) -> str:
    """PROBE:SEQUENCE NUMBER, or PROBE:nNUMBER if the probe doesn't number its attempts.

    ``numbers`` counts how often each id came.
    """
    probe, sequence = attempt.get("probe_classname", "probe"), attempt.get("seq")
    if isinstance(sequence, bool) or not isinstance(sequence, int | None) or not isinstance(probe, str):
        raise DataError(
            f"{where}: the attempt has number {sequence!r:.60} and probe {probe!r:.60}: expected a whole number and a "
            "name"
        )
    numbered = sequence is not None and sequence >= 0
    key = f"{probe}:{sequence if numbered else 'n'}"
    number = numbers[key]
    numbers[key] += 1
    if not numbered:
        return f"{key}{number}"
    # A buff (garak's rewording of prompts) makes several attempts with one sequence number.
    return f"{key}.{number}" if number else key


def _completed(path: Path, rows: Iterable[Row]) -> tuple[list[Row], list[str]]:
    """The attempts with status 2, each once, and sentences about the others."""
    attempts: list[Row] = []
    seen: dict[tuple[str, ...], Row] = {}
    begun: set[tuple[str, ...]] = set()
    repeated = 0
    for where, row in rows:
        kind = row.get("entry_type")
        if not isinstance(kind, str):
            raise DataError(f"{where}: no entry_type: expected a line of a garak report")
        if kind != "attempt":
            continue
        status = row.get("status")
        if status not in (0, 1, _COMPLETE) or isinstance(status, bool):
            raise DataError(f"{where}: the attempt's status is {status!r:.60}: expected 0, 1 or 2 (completed)")
        key = tuple(str(row.get(name)) for name in ("uuid", "probe_classname", "seq"))
        if row.get("uuid") is None:
            key = (*key, json.dumps(row.get("prompt")))
        begun.add(key)
        if status != _COMPLETE:
            continue
        if key in seen:
            first_where, first = seen[key]
            if first != row:
                raise DataError(f"{where}: attempt {key[0]} is in {first_where} too, with other contents: expected one")
            repeated += 1
            continue
        seen[key] = (where, row)
        attempts.append((where, row))
    if not attempts:
        raise DataError(f"{path}: none of {len(begun)} attempts is completed (status 2): expected a finished garak run")
    notes = []
    if len(begun) > len(seen):
        notes.append(f"{len(begun) - len(seen)} of {len(begun)} attempts were not completed and are left out")
    if repeated:
        notes.append(f"{repeated} attempts are logged twice and are taken once")
    return attempts, notes


def _detectors(attempts: Sequence[Row], mapping: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """``scores.NAME`` → detector, and sentences about the detectors that are left out."""
    names: dict[str, None] = {}
    problems: dict[str, str] = {}
    for where, attempt in attempts:
        results = attempt.get("detector_results") or {}
        if not isinstance(results, dict) or not all(isinstance(scores, list) for scores in results.values()):
            raise DataError(f"{where}: detector_results must hold a list of scores by detector")
        names.update(dict.fromkeys(results))
        for name, scores in results.items():
            if (problem := out_of_range(scores)) is not None:
                problems.setdefault(name, f"{problem} ({where})")
    chosen = {field: name for field, name in mapping.items() if field.startswith("scores.")}
    for field, name in chosen.items():
        if name not in names:
            raise DataError(f"no attempt has a detector {name!r} for {field}: there are {listed(names) or 'none'}")
        if name in problems:
            raise DataError(f"detector {name!r} for {field} gave {problems[name]}: expected P(toxic) in [0, 1]")
    notes = []
    for name in names:
        module, _, kind = name.removeprefix("garak.detectors.").partition(".")
        if name in chosen.values():
            continue
        if module in _OTHER_DETECTORS or (module == "perspective" and kind.lower() in _OTHER_ATTRIBUTES):
            notes.append(f"detector {name!r} is left out: it looks for something other than toxicity")
        elif name in problems:
            notes.append(f"detector {name!r} is left out: a score is {problems[name]}, and P(toxic) lies in [0, 1]")
        else:
            chosen[f"scores.{name}"] = name
    if any(name.startswith(("unsafe_content.", "toxicity.")) for name in chosen.values()):
        notes.append(
            "garak maps its classifiers' P(toxic) to (1 + P) / 2 where toxic is likelier and to P / 2 elsewhere: the "
            "toxic share is right, but means, expected maximum and buckets are of the mapped number"
        )
    return chosen, notes


def _garak_turns(where: str, prompt: object) -> tuple[Message, ...]:
    """The prompt as turns; versions of garak log a text, a message or a conversation. Empty if there is no prompt."""
    if prompt is None:
        return ()
    if isinstance(prompt, dict):
        if "turns" not in prompt:
            return (Message("user", as_text(where, "prompt", prompt.get("text"))),)
        return turns_of(where, prompt["turns"]) if prompt["turns"] else ()
    return (Message("user", as_text(where, "prompt", prompt)),)


def _outputs(where: str, attempt: Mapping[str, Any]) -> list[str | None]:
    """The answers' texts; None where the model gave none."""
    outputs = attempt.get("outputs")
    if outputs is None and isinstance(attempt.get("messages"), list):
        outputs = [
            next((one.get("content") for one in reversed(history) if _is_answer(one)), None)
            for history in attempt["messages"]
            if isinstance(history, list)
        ]
    if not isinstance(outputs, list):
        raise DataError(f"{where}: the attempt has no list of outputs: expected one text per answer")
    texts = [output.get("text") if isinstance(output, dict) else output for output in outputs]
    return [None if text is None else as_text(where, "outputs", text) for text in texts]


def _detector_scores(where: str, attempt: Mapping[str, Any], name: str, outputs: int) -> list[float | None] | None:
    """The detector's score of each output, None where it gave none; None if it wasn't run on this attempt."""
    scores = (attempt.get("detector_results") or {}).get(name)
    if scores is None:
        return None
    if len(scores) != outputs:
        raise DataError(f"{where}: {name} has {len(scores)} scores for {outputs} outputs: expected one each")
    return [None if score is None or math.isnan(score) else float(score) for score in scores]


def _answers_in(conversation: object) -> int:
    turns = conversation.get("turns") if isinstance(conversation, dict) else None
    return sum(map(_is_answer, turns)) if isinstance(turns, list) else 0


def _is_answer(turn: object) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"
