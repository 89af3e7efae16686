"""The plain formats: ``/classify``, as Hugging Face's servers of classifiers answer, and ``/score``, our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from rewardlm.serving.bodies import RequestPart, check_text, read_as
from rewardlm.serving.refusals import Refusal, why_unscored
from rewardlm.serving.served import ServedJudge
from rewardlm.types import Verdict


class ClassifyParameters(RequestPart):
    """How many labels are answered, the likeliest first; ``function_to_apply`` can only be what the judge applies."""

    top_k: int | None = Field(None, ge=1)
    function_to_apply: str | None = None


class ClassifyRequest(RequestPart):
    """The body of ``/classify``."""

    inputs: str | list[str]
    parameters: ClassifyParameters = ClassifyParameters()
    judge: str | None = None
    model: str | None = None


class ScoreRequest(RequestPart):
    """The body of ``/score``."""

    texts: list[str]
    label: str | None = None
    judge: str | None = None
    model: str | None = None


def read_classify(payload: Mapping[str, Any], *, most: int, most_bytes: int) -> tuple[ClassifyRequest, list[str]]:
    """The request and its texts. Raises Refusal."""
    request = read_as(ClassifyRequest, payload)
    if request.parameters.function_to_apply not in (None, "sigmoid", "softmax"):
        raise Refusal(400, "function_to_apply can't be changed: scores are probabilities")
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    _check(texts, "inputs", most, most_bytes)
    return request, texts


def classified(request: ClassifyRequest, judge: ServedJudge, found: Sequence[Verdict]) -> list[list[dict[str, Any]]]:
    """For each text its labels, the likeliest first. Raises Refusal where a text has no score: a list has no place to
    say why.
    """
    answer = []
    for n, verdict in enumerate(found):
        missing = [label for label in judge.labels if label not in verdict.values]
        if missing:
            status = 500 if verdict.failed or verdict.reason is None else 400
            raise Refusal(status, f"inputs[{n}] could not be scored: {why_unscored(verdict)}")
        ranked = sorted(judge.labels, key=lambda label: -verdict.values[label])
        answer.append(
            [{"label": label, "score": verdict.values[label]} for label in ranked[: request.parameters.top_k]]
        )
    return answer


def read_score(payload: Mapping[str, Any], *, most: int, most_bytes: int) -> ScoreRequest:
    """The request. Raises Refusal."""
    request = read_as(ScoreRequest, payload)
    _check(request.texts, "texts", most, most_bytes)
    return request


def label_of(request: ScoreRequest, judge: ServedJudge) -> str:
    """The label that is asked for: the judge's main one, if none is named. Raises Refusal where the judge lacks it."""
    if request.label is not None and request.label not in judge.labels:
        raise Refusal(
            400, f"{judge.name} has no label {request.label[:80]!r}: expected one of {', '.join(judge.labels)}"
        )
    return request.label or judge.main


def scored(request: ScoreRequest, judge: ServedJudge, found: Sequence[Verdict]) -> dict[str, Any]:
    """``values`` in the texts' order, null with a reason where a text is unscored; and all labels' ``scores``."""
    label = label_of(request, judge)
    values = [verdict.values.get(label) for verdict in found]
    return {
        **judge.to_dict(),
        "label": label,
        "values": values,
        "reasons": [
            None if value is not None else why_unscored(verdict) for value, verdict in zip(values, found, strict=True)
        ],
        "scores": [{one: verdict.values[one] for one in judge.labels if one in verdict.values} for verdict in found],
    }


def _check(texts: Sequence[str], what: str, most: int, most_bytes: int) -> None:
    if not texts:
        raise Refusal(400, f"{what} is empty: expected at least one text")
    if len(texts) > most:
        raise Refusal(413, f"{what} has {len(texts)} texts: expected at most {most}")
    for n, text in enumerate(texts):
        check_text(text, most_bytes, f"{what}[{n}]")
