"""Which prompts a step asks, and which come next where groups are drawn again: epochs of seeded permutations."""

from __future__ import annotations

import numpy as np

from rewardlm.models.generate import stream_seed


class PromptOrder:
    """The numbers of ``n`` prompts, one epoch after the other, each in a seeded order of its own.

    ``drawn`` counts those that were taken. It is part of a checkpoint, because a step may have taken more than its own.
    """

    def __init__(self, n: int, *, per_step: int, seed: int) -> None:
        self.n = n
        self.per_step = per_step
        self.drawn = 0
        self._seed = seed

    def begin(self, step: int, drawn: int | None = None) -> None:
        """Go on with ``step``, counted from 0, when ``drawn`` were taken; by default no step took more than its own."""
        self.drawn = step * self.per_step if drawn is None else drawn

    def take(self, count: int) -> list[int]:
        """The next ``count`` prompts."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(self.drawn, self.n)
            order = np.random.default_rng(stream_seed("prompts", self._seed, epoch)).permutation(self.n)
            piece = order[offset : offset + count - len(found)].tolist()
            found += piece
            self.drawn += len(piece)
        return found
