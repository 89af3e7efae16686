"""What the judges that are asked over HTTP have in common: one request per text, several at a time.

An error about one text becomes that text's verdict, so that ``score_texts`` asks nothing twice. An error of the service
is a ServiceError, which ends the run; the answers before it are kept.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from rewardlm.services import Malformed, Refused, Service, Unanswered
from rewardlm.types import Verdict

LOCAL_JUDGES = "--scorer starter, or a judge of your own by rewardlm judge train"


class OnlineScorer:
    """The base of ``perspective`` and ``endpoint``, which define the request for one text.

    ``address`` is that of the service, without keys. ``dates`` are the days (UTC) on which this process got answers,
    because a service's model may change without notice. ``piece`` is how many texts are asked before the answers are
    stored. ``unfinished`` holds, by text, the verdicts of a batch that a ServiceError or an interrupt ended.
    """

    name: str
    labels: tuple[str, ...]
    revision: str
    piece = 32
    online = True

    def __init__(self, service: Service) -> None:
        self._service = service
        self.address = service.address
        self.dates: set[str] = set()
        self.unfinished: dict[str, Verdict] = {}

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in order. Raises ServiceError where the service can't be used."""
        self.unfinished = {}
        for index, verdict in self._service.each(self._judge, texts):
            self.unfinished[texts[index]] = verdict
        found, self.unfinished = self.unfinished, {}
        return [found[text] for text in texts]

    def _judge(self, text: str) -> Verdict:
        try:
            verdict = self._ask(text)
        except Refused as error:
            return self._refused(error)
        except (Unanswered, Malformed) as error:
            return Verdict(reason=str(error), failed=True)
        self.dates.add(today().isoformat())
        return verdict

    def _ask(self, text: str) -> Verdict:
        """The verdict on ``text``. Raises as Service.post does, and Malformed where the answer holds no verdict."""
        raise NotImplementedError

    def _refused(self, error: Refused) -> Verdict:
        """What a permanent refusal means: a text that was declined, a failure, or the end of the run."""
        return Verdict(reason=str(error), failed=True)


def verdict_of(values: dict[str, Any], body: str) -> Verdict:
    """A verdict from an answer's ``values`` by label, the main one first; ``body`` is the answer as it came.

    A value that is no number in [0, 1] is left out, and the reason says so. Raises Malformed where it is the main one.
    """
    good = {label: probability for label, raw in values.items() if (probability := as_probability(raw)) is not None}
    if len(good) == len(values):
        return Verdict(good)
    missing = [label for label in values if label not in good]
    reason = f"no score from 0 to 1 of {', '.join(missing)}: {body}"
    if missing[0] == next(iter(values)):
        raise Malformed(reason)
    return Verdict(good, reason=reason, failed=True)


def as_probability(raw: object) -> float | None:
    """``raw`` if it is a number from 0 to 1, else None."""
    # NaN is in no interval.
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= 1:
        return None
    return float(raw)


def error_of(error: Refused) -> dict[str, Any]:
    """The error object of a refusal's body; empty where there is none."""
    found = error.body.get("error") if isinstance(error.body, dict) else None
    return found if isinstance(found, dict) else {}


def today() -> datetime.date:
    """The day in UTC."""
    return datetime.datetime.now(datetime.UTC).date()
