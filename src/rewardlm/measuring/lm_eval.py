"""lm-evaluation-harness's logged samples (0.4.x, ``--log_samples``) as prompts, answers and scores.

``samples_TASK_TIME.jsonl`` has one object per document: ``doc``, ``arguments`` (what the model was sent), ``resps``
(its answers, one list per request), ``filtered_resps`` (what the metrics saw) and the metrics. It doesn't say whether a
high metric is good or bad, but a score here must be P(toxic). So a metric is imported unasked only if its name speaks
of toxicity. You ask for any other with --map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardlm.errors import DataError
from rewardlm.measuring.harness import dig, speaks_of_toxicity
from rewardlm.measuring.table_files import (
    Contents,
    Row,
    answer_record,
    as_score,
    as_text,
    check_harness_mapping,
    listed,
    out_of_range,
    score_record,
    turns_of,
)
from rewardlm.scoring.scorer import EMPTY, is_empty
from rewardlm.types import Message, Prompt

# The metrics of realtoxicityprompts: Perspective's P(toxic), and the same number cut at 0.5, which is no second judge.
_RTP_METRIC, _RTP_CUT = "perspective_api_toxicity_score", "score"

# The metric's name in a task that only collects answers.
_NO_METRIC = "bypass"

_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_FIELDS |= {"doc_hash", "prompt_hash", "target_hash"}


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """Whether ``row``, the first of a JSON lines file, is a logged sample."""
    return {"doc_id", "doc"} <= row.keys() and ("resps" in row or "filtered_resps" in row)


def read_lm_eval(path: Path, rows: Sequence[Row], *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The samples of a ``generate_until`` task. A document's id is the prompt's; its K answers are samples 0..K-1.

    ``mapping`` may say where ``prompt`` and ``prompt_toxicity`` are (such as ``doc.question``), and which metric is
    ``scores.NAME``. Raises DataError for rows of likelihoods, for a document that comes twice, and for rows that aren't
    lm-eval's.
    """
    check_harness_mapping(mapping, "an lm-eval file's answers are its resps")
    rows, notes = _one_filter(rows)
    metrics, left_out = _metrics(rows, mapping)
    notes += left_out
    contents = Contents("lm-eval", [], [], [], {"prompt": mapping.get("prompt", "doc"), **metrics}, notes)
    places: dict[str, str] = {}
    toxic_by = set()
    unjudged = 0
    for where, row in rows:
        doc = row.get("doc")
        answers = _answers(where, row)
        prompt = _document(where, row, path.name, mapping)
        if prompt.id in places:
            raise DataError(f"{where}: document {prompt.id!r:.60} is in {places[prompt.id]} too: expected each once")
        places[prompt.id] = where
        contents.prompts.append(prompt)
        toxic_by.add(doc.get("toxic_by", "dataset") if isinstance(doc, dict) else "dataset")
        judged = _judged(row, answers)
        unjudged += len(answers) - len(judged)
        for sample, answer in enumerate(answers):
            contents.generations.append(answer_record(prompt.id, label, sample, answer))
        for name, metric in metrics.items():
            values = _per_answer(row.get(metric), judged)
            for sample, answer in enumerate(answers):
                reason = _unscored_here(answer, sample in judged, len(answers))
                contents.scores.append(score_record(f"{prompt.id}-{sample}", name, values.get(sample), reason))
    if len(toxic_by) > 1:
        raise DataError(f"{path}: prompts have their toxicity from {sorted(map(str, toxic_by))}: expected one source")
    contents.toxic_by = str(toxic_by.pop())
    if unjudged and metrics:
        contents.notes.append(
            f"{unjudged} of {len(contents.generations)} answers are unscored: lm-eval scores one answer per document, "
            "after its filter"
        )
    zeros = sum(score.value == 0 and score.scorer == _RTP_METRIC for score in contents.scores)
    if zeros:
        contents.notes.append(
            f"{zeros} scores by {_RTP_METRIC} are exactly 0: lm-eval also writes 0 where Perspective failed"
        )
    return contents


def _one_filter(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows of the file's first filter, and a note about the others.

    A task with several filters logs each document once per filter, with the same answers.
    """
    first = rows[0][1].get("filter", "none")
    kept = [(where, row) for where, row in rows if row.get("filter", "none") == first]
    if len(kept) == len(rows):
        return kept, []
    answers = {json.dumps(row.get("doc_id")): row.get("resps") for _, row in kept}
    for where, row in rows:
        identity = json.dumps(row.get("doc_id"))
        if answers.get(identity) != row.get("resps"):
            raise DataError(
                f"{where}: document {identity} has other answers under filter {row.get('filter')!r:.60} than under "
                f"{first!r:.60}: expected the same answers under every filter"
            )
    return kept, [
        f"{len(rows) - len(kept)} rows of further filters are left out: the same answers as under {first!r:.60}"
    ]


def _metrics(rows: Sequence[Row], mapping: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """``scores.NAME`` → metric, and sentences about the metrics that are left out."""
    names: dict[str, None] = {}
    for where, row in rows:
        metrics = row.get("metrics", [name for name in row if name not in _FIELDS])
        if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
            raise DataError(f"{where}: metrics must be a list of names, got {type(metrics).__name__}")
        names.update(dict.fromkeys(metrics))
    chosen = {field: metric for field, metric in mapping.items() if field.startswith("scores.")}
    for field, metric in chosen.items():
        where_not = next((where for where, row in rows if metric not in row), None)
        if where_not is not None:
            raise DataError(f"{where_not}: no metric {metric!r} for {field}: the file has {listed(names) or 'none'}")
        for where, row in rows:
            if (problem := out_of_range(row[metric])) is not None:
                raise DataError(f"{where}: metric {metric!r} for {field} is {problem}: expected P(toxic) in [0, 1]")
    notes = []
    for name in names:
        if name in chosen.values() or name == _NO_METRIC:
            continue
        toxic = speaks_of_toxicity(name)
        rtp = name == _RTP_CUT and all(_is_rtp(row) for _, row in rows)
        found = ((where, out_of_range(row.get(name))) for where, row in rows)
        problem = next((f"{wrong} ({where})" for where, wrong in found if wrong is not None), None)
        if rtp and _RTP_METRIC in names:
            notes.append(f"metric {name!r} is left out: it is {_RTP_METRIC} cut at 0.5, not another judge")
        elif not toxic and not rtp:
            notes.append(f"metric {name!r} is left out: if high means toxic, add --map scores.NAME={name}")
        elif problem is not None:
            notes.append(f"metric {name!r} is left out: a value is {problem}, and P(toxic) lies in [0, 1]")
        else:
            chosen[f"scores.{name}"] = name
    return chosen, notes


def _is_rtp(row: Mapping[str, Any]) -> bool:
    doc = row.get("doc")
    return isinstance(doc, dict) and isinstance(doc.get("prompt"), dict) and "toxicity" in doc["prompt"]


def _document(where: str, row: Mapping[str, Any], source: str, mapping: Mapping[str, str]) -> Prompt:
    doc, number = row.get("doc"), row.get("doc_id")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise DataError(f"{where}: doc_id is {number!r:.60}: expected a number or a text")
    values: dict[str, Any] = doc if isinstance(doc, dict) else {}
    inner: dict[str, Any] = values["prompt"] if isinstance(values.get("prompt"), dict) else {}
    turns: tuple[Message, ...]
    if "prompt" in mapping:
        turns = (Message("user", as_text(where, mapping["prompt"], dig(where, row, mapping["prompt"]))),)
    elif isinstance(bare := inner.get("text", values.get("prompt")), str):
        turns = (Message("user", as_text(where, "doc.prompt", bare)),)
    else:
        turns = _sent(where, row)
    if not turns[-1].text.strip():
        raise DataError(f"{where}: the prompt is empty: remove the document")
    if "prompt_toxicity" in mapping:
        name, toxicity = mapping["prompt_toxicity"], dig(where, row, mapping["prompt_toxicity"])
    else:
        name, toxicity = "doc.prompt.toxicity", inner.get("toxicity")
    # Our own task files carry the prompt's id, so that their results can be compared with the run they came from.
    identity = values["prompt_id"] if isinstance(values.get("prompt_id"), str) else str(number)
    value, _ = as_score(where, name, toxicity)
    return Prompt(identity, turns, source, value, challenging=values.get("challenging") is True)


def _sent(where: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the model was sent: plain text, or the messages of a chat that were logged as JSON."""
    arguments = row.get("arguments")
    try:
        # 0.4.3 and later name the arguments, earlier versions list them.
        sent = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{where}: no prompt in doc or arguments: name it with --map prompt=doc.FIELD") from None
    if isinstance(sent, list) and len(sent) == 1:
        sent = sent[0]
    text = as_text(where, "arguments", sent)
    if text.startswith('[{"role"'):
        try:
            return turns_of(where, json.loads(text))
        except (ValueError, RecursionError):
            pass  # a text that only looks like JSON
    return (Message("user", text),)


def _answers(where: str, row: Mapping[str, Any]) -> list[str]:
    requests = row.get("resps", row.get("filtered_resps"))
    if not isinstance(requests, list) or len(requests) != 1:
        got = f"{len(requests)} requests" if isinstance(requests, list) else type(requests).__name__
        raise DataError(f"{where}: resps holds {got}: expected the answers to one request, as in a generate_until task")
    answers = requests[0] if isinstance(requests[0], list) else [requests[0]]
    if not answers:
        raise DataError(f"{where}: resps is empty: expected at least one answer")
    for answer in answers:
        if not isinstance(answer, str):
            raise DataError(
                f"{where}: resps holds likelihoods, not texts: only a generate_until task has answers to judge"
            )
    return [as_text(where, "resps", answer) for answer in answers]


def _judged(row: Mapping[str, Any], answers: Sequence[str]) -> list[int]:
    """Positions of the answers that the metrics are about: those that a filter left unchanged, in its order."""
    filtered = row.get("filtered_resps")
    if "resps" not in row or not isinstance(filtered, list) or not filtered:
        return list(range(len(answers)))
    texts = filtered[0] if isinstance(filtered[0], list) else [filtered[0]]
    stripped = [answer.strip() for answer in answers]
    judged: list[int] = []
    for text in texts:
        found = [
            index
            for index, answer in enumerate(stripped)
            if index not in judged and isinstance(text, str) and text.strip() == answer
        ]
        judged += found[:1]
    return judged


def _per_answer(value: object, judged: Sequence[int]) -> dict[int, float]:
    """The metric's value by answer; empty unless there is one value per answer."""
    values = value if isinstance(value, list) else [value]
    if len(values) != len(judged):
        return {}
    return {
        index: float(number)
        for index, number in zip(judged, values, strict=True)
        if number is not None and not math.isnan(number)
    }


def _unscored_here(answer: str, judged: bool, answers: int) -> str:
    if is_empty(answer):
        return EMPTY
    if judged:
        return "missing"
    return "lm-eval scored another answer" if answers > 1 else "lm-eval scored what its filter made of the answer"
