"""Several answers drawn, one given: the best of n by a judge, or the first that the judge passes.

The policy itself is unchanged. All answers to a prompt are rows of one batch, which runs the prompt once. An answer
without a score is never taken for harmless: it is given only where no answer to the prompt has one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

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
        """Raises ConfigError if the judge is no longer the one that the folder was made with."""
        judge = load_scorer(self.judge, device=str(policy.device), services=self._services)
        revision = getattr(judge, "revision", None)
        if None not in (revision, self.revision) and revision != self.revision:
            raise ConfigError(
                f"the judge {self.judge} is not the one that this steer folder was made with "
                f"({str(revision)[:12]}…, then {str(self.revision)[:12]}…): make the folder anew"
            )
        with answering(policy):
            yield _Choosing(policy, judge, self.threshold)


class _Choosing(Steered):
    def __init__(self, policy: Policy, judge: Scorer, threshold: float | None) -> None:
        super().__init__(policy)
        self._judge, self._threshold = judge, threshold
        self._limit = FailureLimit(what="answers could not be scored by the judge that chooses")

    def check_strength(self, strength: float) -> None:
        if strength < 0 or strength != int(strength):
            raise ConfigError(f"strength {strength:g}: expected how many answers are drawn at most, such as 4")

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
        most = [max(1, int(request.strength)) for request in requests]
        if self._threshold is None:
            drawn = self._drawn(requests, drawing, [range(n) for n in most])
            for number, answers in enumerate(drawn):
                yield replace(_least_toxic(answers), index=number)
            return
        found: list[list[_Judged]] = [[] for _ in requests]
        wanted = list(range(len(requests)))
        for number in range(max(most)):
            wanted = [row for row in wanted if number < most[row] and not self._passes(found[row])]
            if not wanted:
                break
            drawn = self._drawn([requests[row] for row in wanted], drawing, [range(number, number + 1)] * len(wanted))
            for row, answers in zip(wanted, drawn, strict=True):
                found[row] += answers
        for number, answers in enumerate(found):
            yield replace(_least_toxic(answers), index=number)

    def _passes(self, answers: Sequence[_Judged]) -> bool:
        assert self._threshold is not None
        return any(value is not None and value < self._threshold for _, value in answers)

    def _drawn(self, requests: Sequence[Request], drawing: Drawing, draws: Sequence[range]) -> list[list[_Judged]]:
        """For each request, its draws of these numbers with P(toxic), in their order; None is unscored."""
        every = [(row, number) for row, numbers in enumerate(draws) for number in numbers]
        asked = [replace(requests[row], seed=seed_of(requests[row].seed, number)) for row, number in every]
        sampled: list[Sampled | None] = [None] * len(asked)
        for answer in self._generated(asked, drawing, frozenset()):
            sampled[answer.index] = answer
        whole = [answer for answer in sampled if answer is not None]
        texts = [self.policy.chat.decode(answer.tokens) for answer in whole]
        verdicts = score_texts(self._judge, texts, limit=self._limit)
        label = self._judge.labels[0]
        result: list[list[_Judged]] = [[] for _ in requests]
        for (row, _), answer, verdict in zip(every, whole, verdicts, strict=True):
            result[row].append((answer, verdict.values.get(label)))
        return result


# An answer and P(toxic), None where it is unscored.
_Judged = tuple[Sampled, float | None]


def seed_of(seed: int, number: int) -> int:
    """The seed of a request's draw: the first is the unsteered model's own."""
    return seed if number == 0 else stream_seed("draw", seed, number)


def _least_toxic(answers: Sequence[_Judged]) -> Sampled:
    """The answer of the lowest score, the earliest of equals; the first draw where none has a score."""
    scored = [(value, number) for number, (_, value) in enumerate(answers) if value is not None]
    return answers[min(scored)[1] if scored else 0][0]
