"""Why a request gets no scores, and how each of the formats says so."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any, Literal

from rewardlm.scoring.scorer import EMPTY
from rewardlm.types import Verdict

Format = Literal["perspective", "openai", "plain"]

# Google's names for what HTTP has numbers for (google.rpc.Code).
_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED", 413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT", 421: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 431: "INVALID_ARGUMENT", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_GOOGLE = "type.googleapis.com/google."
# OpenAI's types of errors, where it isn't invalid_request_error.
_OPENAI = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "server_error"}
# Those of Hugging Face's server of classifiers, where it isn't Validation.
_HUGGING_FACE = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Backend"}


class Refusal(Exception):
    """A request that gets no scores: an HTTP status, one line of why, and what single formats add.

    ``error_type`` is Perspective's, ``reason`` Google's for a key, ``code`` OpenAI's. ``more`` stands beside
    ``error_type``. No message quotes a text.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str | None = None,
        reason: str | None = None,
        code: str | None = None,
        param: str | None = None,
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type
        self.reason = reason
        self.code = code
        self.param = param
        self.more = dict(more or {})
        self.headers = dict(headers or {})

    def body(self, form: Format) -> dict[str, Any]:
        """What is answered, as ``form`` has it."""
        if form == "perspective":
            return {"error": self._google()}
        if form == "openai":
            kind = _OPENAI.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
            return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
        return {"error": self.message, "error_type": _HUGGING_FACE.get(self.status, "Validation")}

    def _google(self) -> dict[str, Any]:
        details: list[dict[str, Any]] = []
        if self.error_type is not None:
            details.append(
                {"@type": f"{_GOOGLE}commentanalyzer.v1alpha1.Error", "errorType": self.error_type, **self.more}
            )
        if self.reason is not None:
            service = {"service": "commentanalyzer.googleapis.com"}
            details.append(
                {
                    "@type": f"{_GOOGLE}rpc.ErrorInfo",
                    "reason": self.reason,
                    "domain": "googleapis.com",
                    "metadata": service,
                }
            )
        error = {"code": self.status, "message": self.message, "status": _STATUS.get(self.status, "UNKNOWN")}
        return {**error, "details": details} if details else error


def why_unscored(verdict: Verdict) -> str:
    """Why a text has no score, for whoever sent it. An error's own words stay here: they may name files and servers."""
    if verdict.reason == EMPTY:
        return "empty text"
    if verdict.failed or verdict.reason is None:
        return "the judge failed at it"
    return verdict.reason[:200]


def form_of(path: str) -> Format:
    """Whose errors a request for ``path`` gets."""
    if path.startswith(("/v1alpha1", "/$discovery", "/discovery")):
        return "perspective"
    return "openai" if path.startswith("/v1/") else "plain"


def of_status(status: int) -> Refusal:
    """What is said where only a status is known."""
    phrase = http.HTTPStatus(status).phrase.lower()
    return Refusal(status, {404: "no such path", 405: "this path takes another method"}.get(status, phrase))
