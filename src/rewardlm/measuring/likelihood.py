"""How likely a model finds given texts: the endings of multiple-choice items, and running text in windows.

As lm-evaluation-harness does it: a plain text is continued, without a chat template. The log-probability of an ending
is the sum over its tokens, given the context. Running text is read in windows of W tokens that each follow the token
before (the first one follows the model's start token), and the last window reaches back so that it is as long as the
others. Every token counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewardlm.data.utility import Item
from rewardlm.errors import ModelError
from rewardlm.models.generate import Request
from rewardlm.steering.steered import Steered


@dataclass(frozen=True)
class Continuation:
    """``tokens`` after ``context`` (token ids); the last ``counted`` of them are summed."""

    context: list[int]
    tokens: list[int]
    counted: int


class Likelihood:
    """Log-probabilities under a policy that is steered at ``strength``. Endings and running text count as answers: so a
    method that steers answers alone doesn't steer the context of an item.

    Raises ModelError where the model has too few positions to read anything.
    """

    def __init__(self, steered: Steered, strength: float, *, window: int, batch_tokens: int) -> None:
        self._steered, self._strength, self._batch_tokens = steered, strength, batch_tokens
        self._tokenizer = steered.policy.tokenizer
        start = self._tokenizer.bos_token_id
        self._start = self._tokenizer.eos_token_id if start is None else start
        # Models such as Gemma are at a loss without their start token, and their tokenizers write it.
        begins = self._tokenizer("a")["input_ids"][:1] == [self._start]
        openings = steered.openings if strength else ("",)
        self._openings = [[self._start] * begins + self._ids(opening) for opening in openings]
        # Of the positions, for an ending with the context that is left of it.
        self._room = steered.policy.max_positions - max(map(len, self._openings))
        self.window = min(window, self._room - 1)
        if self.window < 1:
            raise ModelError(
                f"{steered.policy.spec} has too few positions ({steered.policy.max_positions}) to read texts"
            )

    def of(self, items: Sequence[Item]) -> list[list[float]]:
        """ln p of each item's endings. Raises ModelError where one isn't finite."""
        continuations: list[Continuation] = []
        owners: list[tuple[int, int]] = []
        for number, item in enumerate(items):
            for place, ending in enumerate(item.endings):
                for one in self._continuations(item.context, ending):
                    continuations.append(one)
                    owners.append((number, place))
        found = [[0.0] * len(item.endings) for item in items]
        requests = [self._request(one.context) for one in continuations]
        answers = [one.tokens for one in continuations]
        logprobs = self._steered.logprobs(requests, answers, self._batch_tokens)
        for (number, place), one, values in zip(owners, continuations, logprobs, strict=True):
            found[number][place] += float(values[len(values) - one.counted :].double().sum())
        if not all(math.isfinite(value) for values in found for value in values):
            raise ModelError(
                f"{self._steered.policy.spec} gives a text the log-probability NaN or infinity: the adapter or the "
                "steering is broken, or the precision too low; try --dtype float32"
            )
        return found

    def _request(self, context: list[int]) -> Request:
        views = [tuple([*opening, *context] or [self._start]) for opening in self._openings]
        return Request(views[0], 0, self._strength, tuple(views[1:]))

    def _continuations(self, context: str, ending: str) -> Iterator[Continuation]:
        if not context:
            yield from self._windows(self._ids(ending))
            return
        # A blank at the seam belongs to the ending: byte-level tokenizers join it with the first word.
        stripped = context.rstrip()
        before, whole = self._ids(stripped), self._ids(context + ending)
        tokens = whole[len(before) :]
        room = self._room - len(tokens)
        if room < 1:
            raise ModelError(
                f"an ending of {len(tokens)} tokens leaves no room for its context in the {self._room} positions of "
                f"{self._steered.policy.spec}: leave the task out (utility.tasks=…)"
            )
        yield Continuation(before[-room:], tokens, len(tokens))

    def _windows(self, ids: list[int]) -> Iterator[Continuation]:
        for start in range(0, len(ids), self.window):
            end = min(start + self.window, len(ids))
            first = max(0, end - self.window)
            yield Continuation(ids[max(0, first - 1) : first], ids[first:end], end - start)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        return ids
