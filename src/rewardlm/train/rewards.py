"""The ONE place where toxicity turns into reward: a judge says P(toxic), training wants its opposite.

Higher reward is better; higher score is always more toxic. Before the first step, texts whose order nobody doubts are
scored, so that a judge with the wrong label or sign is refused before it teaches a model to insult.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewardlm.config import RewardSettings
from rewardlm.errors import ScorerError
from rewardlm.scoring.scorer import FailureLimit, FunctionScorer, Scorer, score_texts
from rewardlm.types import Verdict

_TOXIC = (
    "You are a stupid, worthless idiot and everybody hates you.",
    "Shut up, you disgusting piece of trash.",
    "What a pathetic moron, go to hell.",
)
_BENIGN = (
    "Thank you, that was a kind thing to say.",
    "The library opens at nine and closes at six.",
    "I see it differently: most of them work hard and pay taxes.",
)


@dataclass(frozen=True)
class Judged:
    """Rewards of one batch: None where an answer could not be judged (drop it), with P(toxic) beside it.

    ``empty`` marks answers without text, which get ``RewardSettings.empty`` or the batch's lowest reward.
    """

    rewards: list[float | None]
    toxicity: list[float | None]
    by_judge: dict[str, list[float | None]]
    empty: list[bool]
    reasons: list[str | None]


class RewardModel:
    """Any scorers as a reward: each text's P(toxic) by each judge, turned round and aggregated."""

    def __init__(self, scorers: Sequence[Scorer], settings: RewardSettings) -> None:
        self.scorers = list(scorers)
        self.settings = settings
        self._limits = {scorer.name: FailureLimit(settings.max_failed_share) for scorer in scorers}

    def check_sign(self) -> None:
        """Raise ScorerError unless every judge finds each toxic text more toxic than each benign one, on average."""
        for scorer in self.scorers:
            verdicts = score_texts(scorer, [*_TOXIC, *_BENIGN], bounded=self._bounded(scorer))
            values = [_main(scorer, verdict) for verdict in verdicts]
            if any(value is None for value in values):
                reason = next(verdict.reason for verdict in verdicts if verdict.reason)
                raise ScorerError(f"reward {scorer.name}: it can't score plain sentences ({reason})")
            numbers = [value for value in values if value is not None]
            toxic = sum(numbers[: len(_TOXIC)]) / len(_TOXIC)
            benign = sum(numbers[len(_TOXIC) :]) / len(_BENIGN)
            if toxic <= benign:
                raise ScorerError(
                    f"reward {scorer.name}: insults get {toxic:.3f} and kind texts {benign:.3f}, but higher must be "
                    "more toxic: choose the toxic label (NAME#label) or turn the function's sign round"
                )

    def judge(self, texts: Sequence[str]) -> Judged:
        """Rewards of answers. Raises ScorerError once more than ``max_failed_share`` of all texts failed."""
        by_judge: dict[str, list[float | None]] = {}
        reasons: list[str | None] = [None] * len(texts)
        for scorer in self.scorers:
            verdicts = score_texts(scorer, texts, bounded=self._bounded(scorer), limit=self._limits[scorer.name])
            by_judge[scorer.name] = [_main(scorer, verdict) for verdict in verdicts]
            for row, verdict in enumerate(verdicts):
                reasons[row] = reasons[row] or verdict.reason
        empty = [not text.strip() for text in texts]
        rewards: list[float | None] = []
        toxicity: list[float | None] = []
        for row in range(len(texts)):
            values = [scores[row] for scores in by_judge.values()]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                rewards.append(None)
                toxicity.append(None)
                continue
            goods = [self._reward(value) for value in known]
            rewards.append(min(goods) if self.settings.aggregate == "min" else sum(goods) / len(goods))
            toxicity.append(sum(known) / len(known))
        return Judged(self._fill_empty(rewards, empty), toxicity, by_judge, empty, reasons)

    def close(self) -> None:
        """The last check of the failure limits. Raises ScorerError as ``judge`` does."""
        for limit in self._limits.values():
            limit.close()

    def failures(self) -> dict[str, list[Any]]:
        """Of every judge: texts seen, texts failed, and the first reason. Part of a checkpoint."""
        return {name: [limit.seen, limit.failed, limit.first_reason] for name, limit in self._limits.items()}

    def restore_failures(self, failures: dict[str, list[Any]]) -> None:
        """Count on from what ``failures`` gave, so that a resumed run judges its judges as an uninterrupted one."""
        for name, (seen, failed, reason) in failures.items():
            limit = self._limits[name]
            limit.seen, limit.failed, limit.first_reason = seen, failed, reason

    def _bounded(self, scorer: Scorer) -> bool:
        # A user's function may give any finite number, unless its logit is asked for.
        return self.settings.transform == "logit" or not isinstance(scorer, FunctionScorer)

    def _reward(self, toxicity: float) -> float:
        if self.settings.transform == "probability":
            return 1 - toxicity
        bounded = min(max(toxicity, 1e-4), 1 - 1e-4)
        return math.log((1 - bounded) / bounded)

    def _fill_empty(self, rewards: list[float | None], empty: list[bool]) -> list[float | None]:
        # Silence must never pay: an empty answer is as bad as the worst one.
        known = [reward for reward in rewards if reward is not None]
        floor = self.settings.empty if self.settings.empty is not None else min(known, default=0.0)
        return [floor if is_empty else reward for reward, is_empty in zip(rewards, empty, strict=True)]


def _main(scorer: Scorer, verdict: Verdict) -> float | None:
    return verdict.values.get(scorer.labels[0])
