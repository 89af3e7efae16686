"""What a steering is: a context manager over a policy, inside which answers are drawn, each request at a strength.
Answers that are there already can be read: how likely is each token under the steering?

Strength 0 is the unsteered model, for every method: such requests are drawn by the model itself, in the batches that it
would have without steering. So their answers are equal to the bit, and not only by arithmetic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewardlm.config import GenerationSettings
from rewardlm.data.chat import truncate_history
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Guide, Request, Sampled, generate
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import body_and_head, hidden_rows, pieces
from rewardlm.models.sampling import Distribution, in_cache
from rewardlm.types import Message

# Tokens whose logits over the whole vocabulary stand in memory at a time.
_CHUNK = 128


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
        with self.guided() as guide:
            yield from self._generated(requests, drawing, known, guide)

    @torch.no_grad()
    def logprobs(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]], batch_tokens: int
    ) -> list[Float[Tensor, "T"]]:
        """ln p of each token of each given answer (token ids) to its request, by the model that is steered at the
        request's strength, on the CPU: before sampling's temperature and nucleus. At strength 0 they are the model's
        own.

        DExperts' filter is a part of the method, so a token outside of the base's nucleus has -inf. A pass has at most
        ``batch_tokens`` positions, or one answer. Raises NotAvailableError for methods without probabilities.
        """
        found: list[list[float]] = [[] for _ in requests]
        for owners, tokens, logits in self.logits(requests, answers, batch_tokens):
            for rows in in_cache(logits):
                values = Distribution(logits[rows]).logprobs(tokens[rows]).tolist()
                for owner, value in zip(owners[rows], values, strict=True):
                    found[owner].append(value)
        return [torch.tensor(values) for values in found]

    @torch.no_grad()
    def logits(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]], batch_tokens: int
    ) -> Iterator[tuple[list[int], Int[Tensor, "n"], Float[Tensor, "n V"]]]:
        """As ``logprobs``, but whole distributions, some tokens at a time: whose each token is (the answer's number),
        the tokens, and the float32 logits that they would be drawn from. An answer's tokens come in their order."""
        causal_lm = self.policy.causal_lm
        head = body_and_head(causal_lm)[1]
        # Strength by strength: then rows that share a prompt can be run as one sequence.
        for strength in dict.fromkeys(request.strength for request in requests):
            numbers = [n for n, request in enumerate(requests) if request.strength == strength and answers[n]]
            given = [answers[n] for n in numbers]
            with self.at(strength) as guide:
                views = [requests[n].views(1 if guide is None else guide.views) for n in numbers]
                longest = [max(prompts, key=len) for prompts in views]
                with _alone(guide, 0):
                    batches = pieces(causal_lm, longest, given, batch_tokens)
                for rows in batches:
                    states = []
                    for view, prompts in enumerate(zip(*views, strict=True)):
                        with _alone(guide, view):
                            states.append(hidden_rows(causal_lm, prompts, given, rows))
                    owners = [numbers[row] for row in rows for _ in given[row]]
                    tokens = torch.tensor([token for row in rows for token in given[row]], device=states[0].device)
                    for start in range(0, len(owners), _CHUNK):
                        piece = slice(start, start + _CHUNK)
                        found = torch.stack([head(of_view[piece]) for of_view in states], 1)
                        if guide is None:
                            found = found[:, 0]
                        else:
                            found = guide.logits(found, torch.full((len(found),), strength, device=found.device))
                        yield owners[piece], tokens[piece], found.float()

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[Guide | None]:
        """Inside, passes are those of requests of this strength. What is given makes the logits of their views one;
        None: the policy's own are those of the steered model."""
        if not strength:
            with self.off():
                yield None
            return
        with self.guided() as guide:
            if guide is None:
                yield None
                return
            guide.begin(torch.tensor([strength], device=self.policy.device))
            try:
                yield guide
            finally:
                guide.begin(None)

    def guided(self) -> contextlib.AbstractContextManager[Guide | None]:
        """Inside, requests of strengths above 0 can be run, guided by what is given: None where the policy needs no
        guide. Raises NotAvailableError for methods that give no probabilities to given tokens."""
        return contextlib.nullcontext()

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


def _alone(guide: Guide | None, view: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if guide is None else guide.alone(view)


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
