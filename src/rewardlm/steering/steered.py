"""What a steering is: a context manager over a policy, inside which answers are drawn, each request at a strength.

Strength 0 is the unsteered model, for every method: such requests are drawn by the model itself, in the batches that it
would have without steering. So their answers are equal to the bit, and not only by arithmetic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

from rewardlm.config import GenerationSettings
from rewardlm.data.chat import truncate_history
from rewardlm.errors import ConfigError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Guide, Request, Sampled, generate
from rewardlm.models.load import Policy
from rewardlm.types import Message


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn: see ``models.generate.generate``."""

    max_new_tokens: int
    sampling: GenerationSettings
    batch_tokens: int | Budget = 4096


class Steering(Protocol):
    """A way to change a model's answers without training it."""

    @property
    def method(self) -> str: ...

    @property
    def strength(self) -> float:
        """The strength that is taken if none is given."""
        ...

    def on(self, policy: Policy) -> contextlib.AbstractContextManager[Steered]:
        """Inside, ``policy`` can answer steered. Afterwards it is what it was, whatever was raised."""
        ...


class Steered:
    """A policy that can answer steered. As it stands here it is the unsteered one: each method changes what it must.

    ``read`` counts the tokens that the model has read to draw answers, those that were thrown away and those of a
    request's further rows too: a cost that doesn't depend on the machine.

    ``openings`` is what each view of a request has in front of a plain text, where there is no conversation whose turns
    the method could change.
    """

    openings: tuple[str, ...] = ("",)

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.read = 0

    def check_strength(self, strength: float) -> None:
        """Raise ConfigError for a strength that means nothing to the method."""
        if strength < 0:
            raise ConfigError(f"strength {strength:g}: expected 0 (unsteered) or more")

    def prompts(self, turns: Sequence[Message], strength: float, room: int) -> tuple[list[tuple[int, ...]], int]:
        """The token ids of the conversation as each view of a request reads it, at most ``room``, and how many tokens
        of it were cut."""
        ids, cut = truncate_history(self.policy.chat, turns, room)
        return [tuple(ids)], cut

    def request(self, turns: Sequence[Message], seed: int, strength: float, room: int) -> tuple[Request, int]:
        """A request to answer ``turns`` at this strength, and how many tokens of the conversation were cut."""
        views, cut = self.prompts(turns, strength, room) if strength else Steered.prompts(self, turns, 0, room)
        return Request(views[0], seed, strength, tuple(views[1:])), cut

    def answers(
        self, requests: Sequence[Request], drawing: Drawing, known: Set[int] = frozenset()
    ) -> Iterator[Sampled]:
        """Answers as they come, by the requests' numbers; those in ``known`` the caller has.

        As ``generate`` does, this draws again what shares a batch with an answer that is wanted, so that a resumed run
        has the batches of the first time.
        """
        plain = [number for number, request in enumerate(requests) if request.strength == 0]
        steered = [number for number, request in enumerate(requests) if request.strength != 0]
        for numbers, draw in ((plain, self._unsteered), (steered, self.draw)):
            if not numbers:
                continue
            own = [requests[number] for number in numbers]
            found = draw(own, drawing, frozenset(index for index, number in enumerate(numbers) if number in known))
            for answer in found:
                yield replace(answer, index=numbers[answer.index])

    def draw(self, requests: Sequence[Request], drawing: Drawing, known: Set[int]) -> Iterator[Sampled]:
        """Answers to requests of strengths above 0."""
        return self._generated(requests, drawing, known)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the policy is the unsteered one."""
        yield

    def _unsteered(self, requests: Sequence[Request], drawing: Drawing, known: Set[int]) -> Iterator[Sampled]:
        with self.off():
            yield from self._generated(requests, drawing, known)

    def _generated(
        self, requests: Sequence[Request], drawing: Drawing, known: Set[int], guide: Guide | None = None
    ) -> Iterator[Sampled]:
        """Answers of the policy as it stands, with ``guide`` beside it."""
        self.policy.guide = guide
        try:
            for answer in generate(
                self.policy,
                requests,
                max_new_tokens=drawing.max_new_tokens,
                sampling=drawing.sampling,
                batch_tokens=drawing.batch_tokens,
                entropy=False,
                known=known,
            ):
                self.read += len(answer.tokens) * (1 if guide is None else guide.views)
                yield answer
        finally:
            self.policy.guide = None
            if guide is not None:
                guide.begin(None)


class Unsteered:
    """The model itself."""

    method = "none"
    strength = 0.0

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Inside, the adapter is merged where that makes answers faster."""
        from rewardlm.models.generate import answering

        with answering(policy):
            yield Steered(policy)
