"""Google's Perspective API as a judge: ``perspective``, which Google closes on 2026-12-31.

One request per text and one per second, which is what Google allows without asking. Answers are kept on this machine
for the day on which they were given, so resuming a run, or a second run over the same texts, costs no requests.

The API: https://github.com/conversationai/perspectiveapi/tree/main/2-api (methods, limits and errors).
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import sqlite3
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from rewardlm.config import PerspectiveSettings, cache_folder, validate
from rewardlm.config.keys import NAMED
from rewardlm.errors import ServiceError
from rewardlm.scoring.online import LOCAL_JUDGES, OnlineScorer, error_of, today, verdict_of
from rewardlm.scoring.scorer import EMPTY
from rewardlm.services import Refused, Service, Unanswered, check_address, key_of
from rewardlm.types import Verdict

_WHAT, _SECTION = "the Perspective API", "services.perspective"
GOOGLE = "https://commentanalyzer.googleapis.com/v1alpha1"
CLOSES = datetime.date(2026, 12, 31)
# In UTF-8; the API refuses more.
LONGEST_BYTES = 20_480

# Texts that the API will never score: its code, which older answers lack, its sentence, and our reason.
_PERMANENT = (
    ("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", r"does not support request languages", "language not supported"),
    ("LANGUAGE_DETECTION_FAILED", r"[Uu]nable to detect language", "language not detected"),
    ("COMMENT_TOO_LONG", r"text too long", "too long"),
    ("COMMENT_EMPTY", r"must be non-empty", EMPTY),
)
# Errors of every request, whatever its text: the API's code and its sentence.
_OURS = (
    ("NO_REQUESTED_ATTRIBUTES", r"requested_attributes"),
    ("API_KEY_INVALID", r"API key (not valid|expired)"),
    ("", r"[Uu]nknown requested attribute"),
)


_KEPT = "perspective.sqlite"


class PerspectiveScorer(OnlineScorer):
    """P(attribute) by the API at ``settings.url``, $REWARDLM_PERSPECTIVE_URL or Google's; labels in lower case.

    A text that the API declines for good (its language, its length) is unscored and no failure. Warns that the API
    closes, or was closed. Raises ServiceError where there is neither a key for Google's address nor an answer of today.
    """

    name = "perspective"

    def __init__(self, settings: PerspectiveSettings) -> None:
        settings = with_address(settings)
        super().__init__(
            Service(
                settings,
                what=_WHAT,
                section=_SECTION,
                gone=f"{_closing()}: score with a local judge ({LOCAL_JUDGES})",
                key_header="X-Goog-Api-Key",
            )
        )
        self._settings = settings
        self.labels = tuple(attribute.lower() for attribute in settings.attributes)
        # The API names no version of its models, only its own.
        self.revision = self.address.rpartition("/")[2]
        self._cache = _Cache(cache_folder() / _KEPT) if settings.cache else None
        if not self._has_key() and not (self._cache and self._cache.holds(today())):
            raise self._no_key()
        warnings.warn(
            f"{_closing()}: its scores can't be made again after that day, nor compared with another judge's; score "
            f"the same answers with one that stays ({LOCAL_JUDGES})",
            stacklevel=2,
        )

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in order. A text that was answered today is not asked again."""
        known: dict[str, Verdict] = {}
        if self._cache is not None:
            for text in texts:
                if (verdict := self._cache.get(self._key(text))) is not None:
                    known[text] = verdict
            if known:
                self.dates.add(today().isoformat())
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        try:
            found = dict(zip(missing, super().score(missing), strict=True))
        except BaseException:
            self.unfinished |= known
            raise
        return [known[text] if text in known else found[text] for text in texts]

    def _ask(self, text: str) -> Verdict:
        # Half a surrogate pair counts as three bytes.
        length = len(text.encode("utf-8", "surrogatepass"))
        if length > LONGEST_BYTES:
            return Verdict(reason=f"too long: {length:,} bytes, and the Perspective API reads {LONGEST_BYTES:,}")
        if not self._has_key():
            raise self._no_key()
        key = self._key(text)
        request = {
            "comment": {"text": text, "type": "PLAIN_TEXT"},
            "requestedAttributes": {attribute: {} for attribute in self._settings.attributes},
            "doNotStore": True,
            **({"languages": self._settings.languages} if self._settings.languages else {}),
        }
        try:
            verdict = self._read(self._service.post("comments:analyze", request))
        except Refused as error:
            verdict = self._refused(error)
        except Unanswered as error:
            if self._is_google() and today() > CLOSES:
                raise ServiceError(f"{_closing()} ({error}): score with a local judge ({LOCAL_JUDGES})") from None
            raise
        except ServiceError as error:
            if self._is_google() and today() > CLOSES and str(CLOSES) not in str(error):
                raise ServiceError(f"{error}; {_closing()}: score with a local judge ({LOCAL_JUDGES})") from None
            raise
        if self._cache is not None and not verdict.failed:
            self._cache.put(key, verdict)
        return verdict

    def _read(self, body: Any) -> Verdict:
        scores = body.get("attributeScores") if isinstance(body, dict) else None
        scores = scores if isinstance(scores, dict) else {}
        values = {attribute.lower(): _summary(scores.get(attribute)) for attribute in self._settings.attributes}
        return verdict_of(values, self._service.shown(body))

    def _refused(self, error: Refused) -> Verdict:
        found = error_of(error)
        details = [detail for detail in _list(found.get("details")) if isinstance(detail, dict)]
        words = {str(detail.get(name)) for detail in details for name in ("errorType", "reason")}
        for word, sentence in _OURS:
            if word in words or re.search(sentence, error.message):
                raise ServiceError(
                    f"the Perspective API at {self.address} refuses every request ({error}): check the environment "
                    f"variable {self._settings.key_variable} and services.perspective.attributes"
                )
        for word, sentence, reason in _PERMANENT:
            if word in words or re.search(sentence, error.message):
                return Verdict(reason=reason)
        return Verdict(reason=str(error), failed=True)

    def _key(self, text: str) -> str:
        """The cache's key: a hash of all that an answer depends on. No text is kept."""
        asked = [self.address, self._settings.attributes, self._settings.languages, today().isoformat(), text]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _is_google(self) -> bool:
        return self.address.startswith(GOOGLE.rpartition("/")[0])

    def _has_key(self) -> bool:
        # Another server with this API may need no key.
        return self._service.has_key or not self._is_google()

    def _no_key(self) -> ServiceError:
        return _no_key(self._settings)


class _Cache:
    """Verdicts by key on disk, for any number of threads and processes, which may be killed at any time.

    A cache that can't be read or written costs requests, never a score: it warns once and is left alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._broken = False

    def holds(self, day: datetime.date) -> bool:
        """Whether anything was answered on ``day``."""
        return bool(self._run("SELECT 1 FROM verdicts WHERE day = ? LIMIT 1", (day.isoformat(),)))

    def get(self, key: str) -> Verdict | None:
        rows = self._run('SELECT "values", reason FROM verdicts WHERE key = ?', (key,))
        return Verdict(json.loads(rows[0][0]), rows[0][1]) if rows else None

    def put(self, key: str, verdict: Verdict) -> None:
        row = (key, today().isoformat(), json.dumps(dict(verdict.values)), verdict.reason)
        self._run("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", row, writes=True)

    def _run(self, statement: str, values: tuple[Any, ...], *, writes: bool = False) -> list[Any]:
        with self._lock:
            if self._broken or (self._opened is None and not writes and not self._path.exists()):
                return []
            try:
                if self._opened is None:
                    self._opened = self._open()
                with self._opened:
                    return self._opened.execute(statement, values).fetchall()
            except (sqlite3.Error, OSError) as error:
                self._broken = True
                warnings.warn(
                    f"{self._path} can't be used ({error}): answers are not kept; if the file is damaged, remove it",
                    stacklevel=2,
                )
                return []

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(self._path, timeout=30, check_same_thread=False)
        with opened:
            opened.execute(
                'CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, day TEXT, "values" TEXT, reason TEXT)'
            )
            # No key of another day is ever asked for again.
            opened.execute("DELETE FROM verdicts WHERE day < ?", (today().isoformat(),))
        return opened


def with_address(settings: PerspectiveSettings) -> PerspectiveSettings:
    """``settings`` with an address: their own, else $REWARDLM_PERSPECTIVE_URL, else Google's."""
    if settings.url is not None:
        return settings
    by_user = os.environ.get("REWARDLM_PERSPECTIVE_URL")
    url = SecretStr(by_user or GOOGLE)
    NAMED.note({"url": by_user})
    return validate(PerspectiveSettings, {**settings.model_dump(), "url": url})


def has_key(settings: PerspectiveSettings) -> bool:
    """Whether there is a key for the API, or an address other than the default, which may need none."""
    own = settings.url or os.environ.get("REWARDLM_PERSPECTIVE_URL")
    return bool(own or key_of(settings, GOOGLE))


def check_key(settings: PerspectiveSettings) -> None:
    """Raise ServiceError where there is no key for the API and no stored answer of today, and for an address that isn't
    safe to ask.
    """
    check_address(with_address(settings), what=_WHAT, section=_SECTION)
    if not has_key(settings) and not (settings.cache and _Cache(cache_folder() / _KEPT).holds(today())):
        raise _no_key(settings)


def _no_key(settings: PerspectiveSettings) -> ServiceError:
    return ServiceError(
        f"the Perspective API needs a key: set the environment variable {settings.key_variable}, or score "
        f"with a local judge ({LOCAL_JUDGES})"
    )


def _closing() -> str:
    return f"Google {'closed' if today() > CLOSES else 'closes'} the Perspective API on {CLOSES}"


def _summary(score: Any) -> Any:
    summary = score.get("summaryScore") if isinstance(score, dict) else None
    return summary.get("value") if isinstance(summary, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
