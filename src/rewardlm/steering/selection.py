"""Several answers drawn, one given: the best of n by a judge, or the first that the judge passes.

The policy itself is unchanged. All answers to a prompt are rows of one batch, which runs the prompt once. An answer
without a score is never taken for harmless: it is given only where no answer to the prompt has one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from typing import TypeVar

from rewardlm.config import ServicesSettings
from rewardlm.errors import ConfigError, NotAvailableError
from rewardlm.models.generate import Guide, Request, Sampled, answering, stream_seed
from rewardlm.models.load import Policy
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import FailureLimit, Scorer, score_texts
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Drawing, Steered


class Selection:
    """``best-of-n`` draws as many answers as its strength says, and gives the least toxic. ``rejection`` draws one
    after another until one is below the threshold, at most as many, and else gives the least toxic of them.

    Strengths 0 and 1 draw one answer: the unsteered model's.
    """

    def __init__(self, folder: SteerFolder, services: ServicesSettings | None = None) -> None:
        record = folder.record
        self.method, self.strength = record.method, record.strength
        self.judge = record.judges[0].name
        self.revision = record.judges[0].revision
        self.threshold = float(record.settings["threshold"]) if record.method == "rejection" else None
        self._services = services

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Raises as ``chooser`` does."""
        chooser = self.chooser(str(policy.device))
        with answering(policy):
            yield _Choosing(policy, chooser)

    def chooser(self, device: str) -> Chooser:
        """What chooses. Raises ConfigError if the judge is no longer the one that the folder was made with."""
        judge = load_scorer(self.judge, device=device, services=self._services)
        refuse_other_version(judge, self.revision, "this steer folder was made", "make the folder anew")
        return Chooser(judge, self.threshold)


def refuse_other_version(judge: Scorer, then: str | None, when: str, what_to_do: str) -> None:
    """Raise ConfigError if both versions of a judge are known, and it isn't the one that it was."""
    now = getattr(judge, "revision", None)
    if None not in (now, then) and now != then:
        raise ConfigError(
            f"the judge {judge.name} is not the one that it was when {when} (version {str(now)[:12]}…, then "
            f"{str(then)[:12]}…): {what_to_do}"
        )


T = TypeVar("T")


class Chooser:
    """Has draws judged, and chooses one for each request. With a threshold, it draws on until one passes."""

    def __init__(self, judge: Scorer, threshold: float | None) -> None:
        self._judge, self._threshold = judge, threshold
        self._limit = FailureLimit(what="answers could not be scored by the judge that chooses")

    def choose(
        self,
        strengths: Sequence[float],
        draw: Callable[[Sequence[tuple[int, int]]], Sequence[T]],
        text: Callable[[T], str],
    ) -> list[T]:
        """An answer to each request, whose strength says how many are drawn at most. ``draw`` gets (request, number of
        the draw) pairs and gives their answers in that order; ``text`` is an answer's."""
        most = [max(1, int(strength)) for strength in strengths]
        found: list[list[tuple[T, float | None]]] = [[] for _ in most]
        wanted = list(range(len(most)))
        if self._threshold is None:
            self._add(found, [(row, number) for row in wanted for number in range(most[row])], draw, text)
            return [_least_toxic(answers) for answers in found]
        for number in range(max(most, default=0)):
            wanted = [row for row in wanted if number < most[row] and not self._passes(found[row])]
            if not wanted:
                break
            self._add(found, [(row, number) for row in wanted], draw, text)
        return [_least_toxic(answers) for answers in found]

    def _passes(self, answers: Sequence[tuple[T, float | None]]) -> bool:
        assert self._threshold is not None
        return any(value is not None and value < self._threshold for _, value in answers)

    def _add(
        self,
        found: Sequence[list[tuple[T, float | None]]],
        asked: Sequence[tuple[int, int]],
        draw: Callable[[Sequence[tuple[int, int]]], Sequence[T]],
        text: Callable[[T], str],
    ) -> None:
        """Draw and judge these; None is unscored."""
        answers = draw(asked)
        verdicts = score_texts(self._judge, [text(answer) for answer in answers], limit=self._limit)
        for (row, _), answer, verdict in zip(asked, answers, verdicts, strict=True):
            found[row].append((answer, verdict.values.get(self._judge.labels[0])))


class _Choosing(Steered):
    def __init__(self, policy: Policy, chooser: Chooser) -> None:
        super().__init__(policy)
        self._chooser = chooser

    def guided(self) -> contextlib.AbstractContextManager[Guide | None]:
        raise NotAvailableError(
            "best-of-n and rejection choose among answers and change no token's probability: ask for those of the "
            "unsteered model (strength 0)"
        )

    def draw(self, requests: Sequence[Request], drawing: Drawing, known: Set[int]) -> Iterator[Sampled]:
        """All draws of a call share batches, and a judge may round by batch too: so if one answer is missing, all are
        drawn again."""
        if len(known) == len(requests):
            return

        def drawn(asked: Sequence[tuple[int, int]]) -> list[Sampled]:
            own = [replace(requests[row], seed=seed_of(requests[row].seed, number)) for row, number in asked]
            found: list[Sampled | None] = [None] * len(own)
            for answer in self._generated(own, drawing, frozenset()):
                found[answer.index] = answer
            return [answer for answer in found if answer is not None]

        strengths = [request.strength for request in requests]
        chosen = self._chooser.choose(strengths, drawn, lambda answer: self.policy.chat.decode(answer.tokens))
        for number, answer in enumerate(chosen):
            yield replace(answer, index=number)


def seed_of(seed: int, number: int) -> int:
    """The seed of a request's draw: the first is the unsteered model's own."""
    return seed if number == 0 else stream_seed("draw", seed, number)


def _least_toxic(answers: Sequence[tuple[T, float | None]]) -> T:
    """The answer of the lowest score, the earliest of equals; the first draw where none has a score."""
    scored = [(value, number) for number, (_, value) in enumerate(answers) if value is not None]
    return answers[min(scored)[1] if scored else 0][0]
