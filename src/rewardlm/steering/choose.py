"""Which layer and strength: answers to prompts that nothing was learnt from, judged, and read again for fluency.

What is chosen is the strength that leaves the smallest toxic share among those whose answers are still fluent: their
perplexity under the unsteered model may be a little above that of its own answers, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from rewardlm.models.generate import Request, stream_seed
from rewardlm.models.load import Policy
from rewardlm.scoring.scorer import FailureLimit, Scorer, score_texts
from rewardlm.stats import rank_p_value, share_ci95
from rewardlm.steering.steered import Drawing, Steered, Steering, Unsteered
from rewardlm.types import Prompt


@dataclass(frozen=True)
class Tried:
    """What answers were like at one strength. Numbers are None where no answer has one."""

    strength: float
    answers: int
    scored: int
    toxic_fraction: float | None
    toxic_fraction_ci95: tuple[float, float] | None
    mean: float | None
    perplexity: float | None

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class Trial:
    """The same prompts answered again and again, by the same random numbers, under different steerings."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        judge: Scorer,
        drawing: Drawing,
        seed: int,
        *,
        toxic_above: float,
    ) -> None:
        self._policy, self._prompts, self._judge = policy, list(prompts), judge
        self._drawing, self._seed, self._toxic_above = drawing, seed, toxic_above
        self._limit = FailureLimit(what="answers could not be scored")

    @property
    def _positions(self) -> int:
        budget = self._drawing.batch_tokens
        return budget if isinstance(budget, int) else budget.size

    def unsteered(self) -> Tried:
        """The model as it is."""
        return self.of(Unsteered(), [0.0])[0]

    def of(self, steering: Steering, strengths: Sequence[float]) -> list[Tried]:
        """What answers are like at each of these strengths, all of which share batches."""
        policy = self._policy
        room = policy.max_positions - self._drawing.max_new_tokens
        with steering.on(policy) as steered:
            requests = [
                steered.request(prompt.turns, stream_seed("steer", "try", self._seed, prompt.id), strength, room)[0]
                for strength in strengths
                for prompt in self._prompts
            ]
            tokens: list[list[int]] = [[] for _ in requests]
            for answer in steered.answers(requests, self._drawing):
                tokens[answer.index] = answer.tokens
        n = len(self._prompts)
        prompts = [Steered(policy).prompts(prompt.turns, 0, room)[0][0] for prompt in self._prompts]
        return [
            self._tried(strength, prompts, tokens[number * n : (number + 1) * n])
            for number, strength in enumerate(strengths)
        ]

    def _tried(self, strength: float, prompts: Sequence[tuple[int, ...]], answers: Sequence[list[int]]) -> Tried:
        texts = [self._policy.chat.decode(tokens) for tokens in answers]
        label = self._judge.labels[0]
        verdicts = score_texts(self._judge, texts, limit=self._limit)
        known = [verdict.values[label] for verdict in verdicts if label in verdict.values]
        hits = np.array([value > self._toxic_above for value in known], dtype=float)
        return Tried(
            strength=strength,
            answers=len(answers),
            scored=len(known),
            toxic_fraction=float(hits.mean()) if known else None,
            toxic_fraction_ci95=share_ci95(hits) if known else None,
            mean=float(np.mean(known)) if known else None,
            perplexity=perplexity_of(self._policy, prompts, answers, self._positions),
        )


def perplexity_of(
    policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_tokens: int
) -> float | None:
    """exp of the mean negative log-probability of all answers' tokens, under the policy as it stands; None without any.

    Steering must be off: this asks whether the model itself could have said it.
    """
    requests = [Request(tuple(prompt), 0, 0.0) for prompt in prompts]
    logprobs = torch.cat(Steered(policy).logprobs(requests, answers, batch_tokens)).double()
    return math.exp(min(float(-logprobs.mean()), 700)) if len(logprobs) else None


def best_of(tried: Sequence[Tried], unsteered: Tried, fluency: float) -> tuple[int, bool]:
    """Which of ``tried`` to take, and whether it is fluent enough: the smallest toxic share, then the lowest mean
    score, then the lowest strength, among those whose perplexity is at most ``fluency`` times the unsteered one. If
    none is, the most fluent one."""
    limit = math.inf if unsteered.perplexity is None else fluency * unsteered.perplexity

    def worth(number: int) -> tuple[float, float, float]:
        one = tried[number]
        share, mean = (math.inf if value is None else value for value in (one.toxic_fraction, one.mean))
        return share, mean, one.strength

    fluent = [number for number, one in enumerate(tried) if one.perplexity is not None and one.perplexity <= limit]
    if fluent:
        return min(fluent, key=worth), True
    perplexity = [math.inf if one.perplexity is None else one.perplexity for one in tried]
    return int(np.argmin(perplexity)), False


def p_value_random(chosen: Tried, random: Sequence[Tried], directions: int) -> float | None:
    """How rarely a random direction leaves no larger toxic share than the chosen one; None where a share isn't known.

    ``directions`` is of how many the chosen one is the best, on other prompts. The best of several random directions is
    better than most random directions, there as here. So p is multiplied by their number (Bonferroni).
    """
    shares = [one.toxic_fraction for one in random if one.toxic_fraction is not None]
    if not shares or chosen.toxic_fraction is None:
        return None
    return min(1.0, directions * rank_p_value(-chosen.toxic_fraction, [-share for share in shares]))
