"""OpenAI's format: ``/v1/moderations``. The categories are the judge's own labels, and no others.

OpenAI's ``hate`` and a judge's ``hate`` have one name and, in starter, one meaning. What OpenAI calls ``harassment``,
``self-harm`` or ``illicit`` no judge of ours was taught, so no answer has them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rewardlm.scoring.scorer import is_empty
from rewardlm.serving.bodies import check_text
from rewardlm.serving.refusals import Refusal, why_unscored
from rewardlm.serving.served import ServedJudge
from rewardlm.types import Verdict


def texts_in(payload: Mapping[str, Any], *, most: int, most_bytes: int) -> list[str]:
    """The texts of a request. Raises Refusal where the input is none, too much, or no text."""
    unknown = sorted(set(payload) - {"input", "model", "judge"})
    if unknown:
        raise _invalid(f"Unknown parameter: '{unknown[0][:60]}'.", param=unknown[0][:60], code="unknown_parameter")
    given = payload.get("input")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        given = [_part(given[0])]
    elif isinstance(given, list) and any(isinstance(one, dict) for one in given):
        raise _invalid("several parts of one input are not supported: send texts")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _invalid("expected input to be a text or a list of texts, at least one", code="invalid_type")
    if len(texts) > most:
        raise _invalid(f"input has {len(texts)} texts: expected at most {most}", code="array_above_max_length")
    for n, text in enumerate(texts):
        check_text(text, most_bytes, f"input[{n}]")
        if is_empty(text):
            raise _invalid(f"input[{n}] is empty", code="empty_string")
    return texts


def moderated(judge: ServedJudge, found: Sequence[Verdict]) -> dict[str, Any]:
    """The answer. Raises Refusal where a text could not be scored: the format has no place for a missing result."""
    return {
        "id": f"modr-{uuid.uuid4().hex}",
        "model": judge.name,
        "judge": judge.to_dict(),
        "results": [_result(n, verdict, judge) for n, verdict in enumerate(found)],
    }


def _result(n: int, verdict: Verdict, judge: ServedJudge) -> dict[str, Any]:
    missing = [label for label in judge.labels if label not in verdict.values]
    if missing:
        status = 500 if verdict.failed or verdict.reason is None else 400
        why = why_unscored(verdict)
        raise Refusal(status, f"input[{n}] could not be scored: {why}", code="unscored", param="input")
    scores = {label: verdict.values[label] for label in judge.labels}
    categories = {label: value > judge.thresholds[label] for label, value in scores.items()}
    return {
        "flagged": any(categories[label] for label in judge.deciding),
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": {label: ["text"] for label in judge.labels},
    }


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _invalid("only texts can be judged here, no images", code="unsupported_input")
    text: str = part["text"]
    return text


def _invalid(message: str, *, code: str | None = None, param: str = "input") -> Refusal:
    return Refusal(400, message, code=code, param=param)
