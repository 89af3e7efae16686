"""What a judge of texts is (``Scorer``), and the one checked door through which every text is scored.

``score_texts`` distrusts the judge. It may raise, lose a text, or answer NaN: then that text
is *unscored*, with a reason, never 0 and never "not toxic"; ``FailureLimit`` ends a run in which this
happens too often.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from rewardlm.errors import RewardLMError, ScorerError
from rewardlm.types import Score, Verdict

EMPTY = "empty response"
# Unicode's classes of spaces and line ends, of control characters, and of formatting ones such as U+200B.
_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}


def is_empty(text: str) -> bool:
    """Whether nothing is seen: only white space, control characters, zero-width joiners. No judge is asked about it."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


class Scorer(Protocol):
    """A judge of texts. Scorers of this package also have ``revision: str | None``, which pins the weights. Those that
    read a long text only in part have ``cuts(texts) -> list[bool]``, and those that several threads may use at once
    ``twin()``. Those that are asked over HTTP have more: see scoring.online.

    ``labels[0]`` is the main label: the one that is meant where only the scorer is named.
    """

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        """One verdict per text, in order; P(label), higher is more toxic. Call it through score_texts."""
        ...


@runtime_checkable
class PairScorer(Protocol):
    """A judge of answers that reads the prompt too, as a reward may have; ``name``, ``labels`` and ``revision`` are as
    a Scorer's."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (prompt, answer), in order; P(label). Call it through score_pairs."""
        ...


Asked = TypeVar("Asked", str, tuple[str, str])


class FailureLimit:
    """Counts failures of one scorer over a whole run and ends it where they are too many.

    A run ends once more than ``max_share`` of the texts seen have failed, and more than two texts. At the run's end,
    one failure is forgiven instead of two, if other texts were scored. ``max_share`` 0 forgives none. With few texts,
    nobody can tell a share of 1 % from one unlucky text; a judge that always fails still stops within three texts.

    Empty texts and texts that a judge declined don't count as failures; empty ones aren't counted as seen either,
    because no judge ever saw them.
    """

    def __init__(self, max_share: float = 0.01, *, what: str = "texts could not be scored") -> None:
        if not 0 <= max_share <= 1:
            raise ScorerError(f"the share of failed scores that is allowed is {max_share}: expected 0 to 1")
        self.max_share = max_share
        self._what = what
        self.seen = 0
        self.failed = 0
        self.first_reason: str | None = None

    def add(self, scorer: str, verdicts: Sequence[Verdict]) -> None:
        """Count ``verdicts``. Raises ScorerError if the limit is exceeded."""
        for verdict in verdicts:
            if verdict.reason == EMPTY:
                continue
            self.seen += 1
            if verdict.failed:
                self.failed += 1
                if self.first_reason is None:
                    self.first_reason = f"{scorer}: {verdict.reason}"
        self._check(forgiven=2)

    def close(self) -> None:
        """The last check, at a run's end. Raises ScorerError if the limit is exceeded."""
        self._check(forgiven=min(1, self.seen - 1))

    def _check(self, *, forgiven: int) -> None:
        if self.failed > max(self.max_share * self.seen, forgiven if self.max_share > 0 else 0):
            raise ScorerError(
                f"{self.failed} of {self.seen} {self._what} ({self.failed / self.seen:.1%}; "
                f"{self.max_share:.1%} is allowed): the first: {self.first_reason}"
            )


def score_texts(
    scorer: Scorer, texts: Sequence[str], *, bounded: bool = True, limit: FailureLimit | None = None
) -> list[Verdict]:
    """Score ``texts``; one verdict per text, in order, each with finite values or with a reason.

    Empty texts (``is_empty``) stay unscored without asking; equal texts are asked once. ``bounded`` demands values
    in [0, 1]; a reward by logit or by a user's function may be any finite number. Where the scorer raises
    or returns a wrong number of verdicts for a batch, nobody can tell which text is to blame, so each text
    is asked alone and only those that fail again are unscored.

    Raises ScorerError if ``limit`` is given and exceeded; a RewardLMError of the scorer itself (it says that
    the judge can't be used at all) passes through.
    """
    unique = list(dict.fromkeys(text for text in texts if not is_empty(text)))
    found = dict(zip(unique, _ask(scorer.score, unique, scorer.labels[0], bounded), strict=True)) if unique else {}
    unscored = Verdict(reason=EMPTY)
    verdicts = [found.get(text, unscored) for text in texts]
    if limit is not None:
        limit.add(scorer.name, verdicts)
    return verdicts


def score_pairs(scorer: PairScorer, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """As ``score_texts``, for (prompt, answer) pairs: what is empty is the answer, and values are in [0, 1]."""
    unique = list(dict.fromkeys(pair for pair in pairs if not is_empty(pair[1])))
    found = dict(zip(unique, _ask(scorer.score_pairs, unique, scorer.labels[0], True), strict=True)) if unique else {}
    unscored = Verdict(reason=EMPTY)
    return [found.get(pair, unscored) for pair in pairs]


def cuts(scorer: Scorer | PairScorer, texts: Sequence[str]) -> list[bool]:
    """For each text, whether it is so long that the judge reads only a part; a judge without ``cuts`` reads all."""
    found: list[bool] = scorer.cuts(texts) if hasattr(scorer, "cuts") else [False] * len(texts)
    return found


def twin_of(scorer: Scorer) -> Scorer | None:
    """The same judge for another thread, to be used at the same time; None where it can't say that this is safe."""
    found: Scorer | None = scorer.twin() if hasattr(scorer, "twin") else None
    return found


def piece_of(scorer: Scorer) -> int:
    """How many texts ``scorer`` gets at a time, where its verdicts are stored piece by piece."""
    return getattr(scorer, "piece", 512)


def is_online(scorer: Scorer) -> bool:
    """Whether ``scorer`` asks somebody over a network."""
    return getattr(scorer, "online", False)


def as_score(identity: str, scorer: str, label: str, verdict: Verdict) -> Score:
    """What is stored of a verdict on the answer ``identity``: the value of ``label``, or why there is none.

    A judge that left the label out without a reason has failed.
    """
    if label in verdict.values:
        return Score(identity, scorer, label, verdict.values[label])
    reason = verdict.reason or f"no {label} in the verdict"
    return Score(identity, scorer, label, None, reason, failed=verdict.failed or verdict.reason is None)


def is_settled(score: Mapping[str, Any]) -> bool:
    """Whether a recorded score need not be asked for again: there is a value, or the judge declined for good."""
    # Runs of older versions don't say what failed.
    return score["value"] is not None or score["reason"] == EMPTY or score.get("failed") is False


def _ask(
    score: Callable[[Sequence[Asked]], list[Verdict]], texts: list[Asked], main: str, bounded: bool
) -> list[Verdict]:
    try:
        verdicts = list(score(texts))
        if len(verdicts) != len(texts):
            raise ValueError(f"{len(verdicts)} scores came back for {len(texts)} texts")
    except RewardLMError:
        raise
    except Exception as error:
        if len(texts) > 1:
            return [_ask(score, [text], main, bounded)[0] for text in texts]
        return [Verdict(reason=in_one_line(error), failed=True)]
    return [_check(verdict, main, bounded) for verdict in verdicts]


def _check(verdict: object, main: str, bounded: bool) -> Verdict:
    """``verdict`` with plain finite floats, or an unscored one that says what was wrong with it."""
    if not isinstance(verdict, Verdict):
        return Verdict(reason=f"the scorer returned a {type(verdict).__name__}, not a Verdict", failed=True)
    if verdict.reason is not None and main not in verdict.values:
        return Verdict(reason=verdict.reason, failed=verdict.failed)
    if main not in verdict.values:
        return Verdict(reason=f"no value for {main!r}", failed=True)
    values: dict[str, float] = {}
    for label, raw in verdict.values.items():
        try:
            # float() would take text; a judge that returns text has its columns mixed up.
            value = math.nan if isinstance(raw, str | bytes) else float(raw)
        except Exception:
            return Verdict(reason=f"{label} is not a number but a {type(raw).__name__}", failed=True)
        if not math.isfinite(value):
            shown = f"{raw!r:.40}" if isinstance(raw, str | bytes) else value
            return Verdict(reason=f"{label} is {shown}: expected a finite number", failed=True)
        if bounded and not 0 <= value <= 1:
            return Verdict(reason=f"{label} is {value:g}: expected 0 to 1", failed=True)
        values[label] = value
    return Verdict(values, reason=verdict.reason, failed=verdict.failed)


def in_one_line(error: BaseException) -> str:
    """One line, short enough for a record: the type and the message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")
