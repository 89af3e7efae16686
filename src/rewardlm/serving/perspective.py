"""Perspective's format: ``comments:analyze`` and ``comments:suggestscore``, as Google defines them.

Sources: the API's discovery document (types, UTF-16 offsets), and
https://github.com/conversationai/perspectiveapi/tree/main/2-api (limits, errors in words, types of errors).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from rewardlm.scoring.perspective import LONGEST_BYTES
from rewardlm.scoring.scorer import is_empty
from rewardlm.serving.bodies import RequestPart, check_text, read_as
from rewardlm.serving.refusals import Refusal, why_unscored
from rewardlm.serving.sentences import Span, sentences, whole
from rewardlm.serving.served import ServedJudge
from rewardlm.types import Verdict

TextType = Literal["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"]
ScoreType = Literal["SCORE_TYPE_UNSPECIFIED", "PROBABILITY", "STD_DEV_SCORE", "PERCENTILE", "RAW"]
# Scripts by the first word of their characters' names, as the last part of a language's tag (ISO 15924).
_SCRIPTS = {
    "CYRILLIC": "Cyrl", "GREEK": "Grek", "ARABIC": "Arab", "HEBREW": "Hebr", "DEVANAGARI": "Deva", "BENGALI": "Beng",
    "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai", "HANGUL": "Hang", "HIRAGANA": "Jpan", "KATAKANA": "Jpan",
    "CJK": "Hani", "GEORGIAN": "Geor", "ARMENIAN": "Armn", "ETHIOPIC": "Ethi",
}  # fmt: skip
# The tag of a language that nobody has determined (ISO 639-2, BCP 47).
_UNDETERMINED = "und"


class TextEntry(RequestPart):
    """A text and its type."""

    text: str = ""
    type: TextType = "TEXT_TYPE_UNSPECIFIED"


class ArticleAndParentComment(RequestPart):
    """One of the two forms of a context."""

    article: TextEntry | None = None
    parent_comment: TextEntry | None = None


class CommentContext(RequestPart):
    """What a comment refers to. Google's models don't read it, and neither do our judges."""

    entries: list[TextEntry] = Field(default_factory=list)
    article_and_parent_comment: ArticleAndParentComment | None = None


class AttributeParameters(RequestPart):
    """How an attribute is asked for."""

    score_type: ScoreType = "SCORE_TYPE_UNSPECIFIED"
    score_threshold: float | None = None


class AnalyzeRequest(RequestPart):
    """The body of ``comments:analyze``. ``judge`` and ``model`` are ours: which judge is meant, if not the first."""

    comment: TextEntry = TextEntry()
    context: CommentContext | None = None
    requested_attributes: dict[str, AttributeParameters] = Field(default_factory=dict)
    languages: list[str] = Field(default_factory=list)
    do_not_store: bool = False
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None
    span_annotations: bool = False
    judge: str | None = None
    model: str | None = None


class SuggestedScore(RequestPart):
    """A score that a client holds to be right."""

    value: float = Field(0.0, ge=0, le=1)
    type: ScoreType = "SCORE_TYPE_UNSPECIFIED"


class SuggestedSpan(RequestPart):
    """The same of a part of the text."""

    begin: int | None = Field(None, ge=0)
    end: int | None = Field(None, ge=0)
    score: SuggestedScore = SuggestedScore()


class SuggestedScores(RequestPart):
    """The scores that a client suggests for an attribute."""

    summary_score: SuggestedScore | None = None
    span_scores: list[SuggestedSpan] = Field(default_factory=list)


class SuggestRequest(RequestPart):
    """The body of ``comments:suggestscore``."""

    comment: TextEntry = TextEntry()
    context: CommentContext | None = None
    attribute_scores: dict[str, SuggestedScores] = Field(default_factory=dict)
    languages: list[str] = Field(default_factory=list)
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None
    judge: str | None = None
    model: str | None = None


def read_analyze(payload: Mapping[str, Any]) -> AnalyzeRequest:
    """The request in a body. Raises Refusal with Google's words for what Google refuses too."""
    request = read_as(AnalyzeRequest, payload)
    _check_comment(request.comment, request.context)
    if not request.requested_attributes:
        raise Refusal(400, "Missing requested_attributes", error_type="NO_REQUESTED_ATTRIBUTES")
    return request


def spans_of(request: AnalyzeRequest, judge: ServedJudge, languages: Sequence[str], most: int) -> list[Span]:
    """The spans to score: the whole comment first and, where they are asked for, its sentences.

    Raises Refusal where the judge lacks an attribute, nobody reads the language, or there are over ``most`` spans.
    """
    for attribute, how in request.requested_attributes.items():
        if attribute not in judge.attributes:
            raise _invalid(f"Unknown requested attribute: {attribute[:80]}")
        if how.score_type not in ("SCORE_TYPE_UNSPECIFIED", "PROBABILITY"):
            raise _invalid(f"Requested score type {how.score_type} is not supported by attribute {attribute}")
    _check_languages(request, languages)
    text = request.comment.text
    found = sentences(text) if request.span_annotations else []
    if len(found) >= most:
        raise _invalid(f"the comment has {len(found)} sentences: expected fewer than {most} with spanAnnotations")
    return [whole(text), *found]


def analyzed(
    request: AnalyzeRequest, judge: ServedJudge, languages: Sequence[str], spans: Sequence[Span], found: list[Verdict]
) -> dict[str, Any]:
    """The answer: ``found`` are the verdicts on ``spans``. Raises Refusal where one of them has no value."""
    scores = {}
    for attribute, how in request.requested_attributes.items():
        label = judge.attributes[attribute]
        values = [_value(verdict, label) for verdict in found]
        least = how.score_threshold or 0.0
        # Without sentences, the one span is the whole comment.
        parts = list(zip(spans, values, strict=True))[1 if request.span_annotations and len(spans) > 1 else 0 :]
        of_spans = [
            {"begin": span.begin, "end": span.end, "score": _score(value)} for span, value in parts if value >= least
        ]
        one: dict[str, Any] = {"spanScores": of_spans} if of_spans else {}
        if values[0] >= least:
            one["summaryScore"] = _score(values[0])
        if one:
            scores[attribute] = one
    answer = {
        "attributeScores": scores,
        "languages": list(request.languages or languages[:1]),
        # Nothing here detects languages, and "und" is how a tag says so.
        "detectedLanguages": [_UNDETERMINED],
    }
    return answer | ({"clientToken": request.client_token} if request.client_token is not None else {})


def read_suggestion(payload: Mapping[str, Any]) -> SuggestRequest:
    """The suggestion in a body, checked as Google does; nobody keeps it. Raises Refusal."""
    request = read_as(SuggestRequest, payload)
    _check_comment(request.comment, request.context)
    if not request.attribute_scores:
        raise _invalid("Missing attribute_scores")
    for attribute, scores in request.attribute_scores.items():
        if scores.summary_score is None and not scores.span_scores:
            raise _invalid(f"No scores for attribute {attribute[:80]}")
        if any(span.begin is None or span.end is None for span in scores.span_scores):
            raise _invalid(f"Span scores of attribute {attribute[:80]} need begin and end")
    return request


def suggested(request: SuggestRequest) -> dict[str, Any]:
    """The answer to a suggestion."""
    answer: dict[str, Any] = {"detectedLanguages": [_UNDETERMINED]}
    if request.languages:
        answer["requestedLanguages"] = request.languages
    return answer | ({"clientToken": request.client_token} if request.client_token is not None else {})


def _check_comment(comment: TextEntry, context: CommentContext | None) -> None:
    if comment.type == "HTML":
        raise _invalid("Currently, only 'PLAIN_TEXT' comments are supported")
    check_text(comment.text, None, "comment.text")
    if len(comment.text.encode("utf-8")) > LONGEST_BYTES:
        raise Refusal(400, "Comment text too long.", error_type="COMMENT_TOO_LONG")
    if is_empty(comment.text):
        raise Refusal(400, "Comment must be non-empty.", error_type="COMMENT_EMPTY")
    if context is not None and context.entries and context.article_and_parent_comment is not None:
        raise _invalid("Context can have either entries or article_and_parent_comment, but both fields were populated.")


def _check_languages(request: AnalyzeRequest, languages: Sequence[str]) -> None:
    """Raise Google's error where nobody here reads the language that the request names or the text is written in."""
    known = {language.lower() for language in languages}
    if request.languages:
        asked = list(request.languages)
        if any(language.lower().split("-")[0] in known or language.lower() in known for language in asked):
            return
    else:
        script = foreign_script(request.comment.text)
        # A user who names other languages knows which scripts their judges read.
        if script is None or known != {"en"}:
            return
        asked = [script]
    attribute = next(iter(request.requested_attributes))
    raise Refusal(
        400,
        f"Attribute {attribute} does not support request languages: {', '.join(asked)[:200]}",
        error_type="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        more={
            "languageNotSupportedByAttributeError": {
                "detectedLanguages": [_UNDETERMINED] if request.languages else asked,
                "attribute": attribute,
            }
        },
    )


def foreign_script(text: str) -> str | None:
    """``und-Cyrl`` and the like, if most letters of ``text`` are of another script than the Latin one; else None."""
    if text.isascii():
        return None
    scripts = Counter(
        unicodedata.name(character, "").partition(" ")[0].partition("-")[0] for character in text if character.isalpha()
    )
    if not scripts or scripts["LATIN"] * 2 >= scripts.total():
        return None
    # Bold and other mathematical letters are Latin ones in disguise.
    most = max((name for name in scripts if name != "LATIN"), key=lambda name: scripts[name])
    if most in ("MATHEMATICAL", "FULLWIDTH", "MODIFIER", "FEMININE", "MASCULINE"):
        return None
    return f"{_UNDETERMINED}-{_SCRIPTS[most]}" if most in _SCRIPTS else _UNDETERMINED


def _value(verdict: Verdict, label: str) -> float:
    if label in verdict.values:
        return verdict.values[label]
    status = 500 if verdict.failed or verdict.reason is None else 400
    raise Refusal(status, f"The comment could not be scored: {why_unscored(verdict)}")


def _score(value: float) -> dict[str, Any]:
    return {"value": value, "type": "PROBABILITY"}


def _invalid(message: str) -> Refusal:
    return Refusal(400, message, error_type="INVALID_REQUEST")
