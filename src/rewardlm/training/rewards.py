"""The ONE place where toxicity turns into reward: a judge says P(toxic), training wants its opposite.

Higher reward is better; higher score is always more toxic. Of a judge of pairs, agreement with the prompt's claim
counts as toxic, or whatever is no counter-narrative to it. Before the first step, texts whose order nobody doubts are
scored, so that a judge with the wrong label or sign is refused before it teaches a model to insult.

It works in two halves, because answers may be scored in several processes and rewarded only together: ``opinions`` asks
the judges, ``rewarded`` makes rewards of what they said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rewardlm.config import RewardSettings
from rewardlm.errors import ScorerError
from rewardlm.scoring.function import FunctionScorer
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, PROBE
from rewardlm.scoring.scorer import EMPTY, FailureLimit, PairScorer, Scorer, is_empty, score_pairs, score_texts
from rewardlm.training.terms import Terms
from rewardlm.types import Finish, Verdict

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
# The reason for an answer without a term's value; the failure limit counts it as a judge's failure.
_NO_TERM = "has no value"


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: after ``n_tokens``, its end token included, by itself ("stop") or cut off ("length")."""

    n_tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class Opinion:
    """What was found out about one answer: each judge's and each witness's verdict, each extra term's value, and how
    it ended, where that is known.
    """

    text: str
    verdicts: dict[str, Verdict]
    witnesses: dict[str, Verdict]
    terms: dict[str, float | None]
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class BatchRewards:
    """Rewards of one batch: None where an answer could not be judged (drop it), with P(toxic) beside it.

    ``by_judge``, ``by_witness`` and ``terms`` are the values that went in, by name; ``disagreement`` is the highest
    minus the lowest judge's P(toxic), None with a single judge. ``silent_witnesses``: how many answers a witness could
    not score, and the first reason. ``empty`` marks answers without text, which get ``RewardSettings.empty`` or the
    batch's lowest reward. ``truncated`` says of each answer whose end is known whether it was cut off, and
    ``length_penalty`` what that or its length cost it.
    """

    rewards: list[float | None]
    toxicity: list[float | None]
    by_judge: dict[str, list[float | None]]
    by_witness: dict[str, list[float | None]]
    terms: dict[str, list[float | None]]
    disagreement: list[float | None]
    empty: list[bool]
    reasons: list[str | None]
    silent_witnesses: dict[str, tuple[int, str]] = field(default_factory=dict)
    truncated: list[bool] = field(default_factory=list)
    length_penalty: list[float] = field(default_factory=list)


class RewardModel:
    """Any scorers as a reward: each judge's P(toxic) of a text, inverted and aggregated, and extra terms.

    ``weights`` are the judges', 1 each by default. ``max_new_tokens`` is where answers are cut off: the soft penalty
    for length needs it. ``witnesses`` read every answer too, but have no say: where the reward's judges see a gain that
    witnesses don't, the reward has been hacked. Raises ScorerError where a name occurs twice.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer | PairScorer],
        settings: RewardSettings,
        *,
        weights: Sequence[float] | None = None,
        witnesses: Sequence[Scorer] = (),
        terms: Terms | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        named = [scorer.name for scorer in (*scorers, *witnesses)]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ScorerError(f"{', '.join(twice)} is named twice among rewards and witnesses: name each judge once")
        self.scorers = list(scorers)
        self.witnesses = list(witnesses)
        self.settings = settings
        self.terms = terms or Terms([])
        if settings.overlong.penalty and max_new_tokens is None and settings.overlong.max_tokens is None:
            raise ValueError("rewards.overlong needs to know where answers are cut off: give max_new_tokens")
        self._overlong = settings.overlong.limits(max_new_tokens or 1)
        self._weights = list(weights) if weights is not None else [1.0] * len(self.scorers)
        names = [*(scorer.name for scorer in scorers), *self.terms.names]
        self._limits = {name: FailureLimit(settings.max_failed_share) for name in names}

    def check_sign(self) -> None:
        """Raise ScorerError unless every judge and witness finds toxic texts more toxic than benign ones on average, or
        if it reads pairs, an answer that agrees with hate more toxic than one that opposes it.
        """
        probe = self.settings.probe
        for scorer in (*self.scorers, *self.witnesses):
            role = "reward" if scorer in self.scorers else "witness"
            toxic, benign = (probe.toxic, probe.benign) if probe else (list(_TOXIC), list(_BENIGN))
            if isinstance(scorer, PairScorer):
                claim, opposed, agreed = PROBE
                toxic, benign = [agreed], [opposed]
                verdicts = score_pairs(scorer, [(claim, agreed), (claim, opposed)])
            else:
                verdicts = score_texts(scorer, [*toxic, *benign], bounded=self._bounded(scorer))
            values = [_toxicity(scorer, verdict) for verdict in verdicts]
            if any(value is None for value in values):
                reason = next(verdict.reason for verdict in verdicts if verdict.reason)
                raise ScorerError(f"{role} {scorer.name}: it can't score plain sentences ({reason})")
            numbers = [value for value in values if value is not None]
            insults, kind = fmean(numbers[: len(toxic)]), fmean(numbers[len(toxic) :])
            if insults <= kind and isinstance(scorer, PairScorer):
                raise ScorerError(
                    f"{role} {scorer.name}: an answer that agrees with hate gets {insults:.3f} and one that opposes it "
                    f"{kind:.3f}, but higher must be more toxic: choose another judge of pairs"
                )
            if insults <= kind:
                raise ScorerError(
                    f"{role} {scorer.name}: insults get {insults:.3f} and kind texts {kind:.3f}, but higher must be "
                    "more toxic: choose the toxic label (NAME#label), reverse the function's sign, or give "
                    "rewards.probe sentences in the judge's language"
                )

    def opinions(
        self,
        texts: Sequence[str],
        prompts: Sequence[str],
        endings: Sequence[Ending] | None = None,
        step_prompts: Sequence[str] | None = None,
    ) -> list[Opinion]:
        """What every judge, witness and term says of each answer; ``endings`` are for penalties on length.

        Only terms and judges of pairs read prompts: each answer's own, and ``step_prompts``, all prompts of the step,
        of which other processes may answer some (None: ``prompts`` are all).
        """
        pairs = list(zip(prompts, texts, strict=True))
        verdicts = {
            s.name: score_pairs(s, pairs)
            if isinstance(s, PairScorer)
            else score_texts(s, texts, bounded=self._bounded(s))
            for s in self.scorers
        }
        watched = {s.name: score_texts(s, texts, bounded=False) for s in self.witnesses}
        terms = self.terms.values(prompts, texts, step_prompts)
        return [
            Opinion(
                text,
                {name: column[row] for name, column in verdicts.items()},
                {name: column[row] for name, column in watched.items()},
                {name: column[row] for name, column in terms.items()},
                None if endings is None else endings[row],
            )
            for row, text in enumerate(texts)
        ]

    def rewarded(self, opinions: Sequence[Opinion], fresh: Sequence[int] | None = None) -> BatchRewards:
        """Rewards of a step's answers. Raises ScorerError once more than ``max_failed_share`` of all texts failed.

        ``fresh`` are the rows that no call before had: failures are counted once. By default all are.
        """
        empty = [is_empty(opinion.text) for opinion in opinions]
        by_judge = {s.name: [_toxicity(s, opinion.verdicts[s.name]) for opinion in opinions] for s in self.scorers}
        terms = {name: [opinion.terms[name] for opinion in opinions] for name in self.terms.names}
        length_penalty = [0.0 if o.ending is None else self._length_penalty(o.ending) for o in opinions]
        rewards: list[float | None] = []
        toxicity: list[float | None] = []
        disagreement: list[float | None] = []
        for row, paid in enumerate(length_penalty):
            known = [value for scores in by_judge.values() if (value := scores[row]) is not None]
            extra = [value for values in terms.values() if (value := values[row]) is not None]
            if len(known) < len(by_judge) or len(extra) < len(terms):
                for column in (rewards, toxicity, disagreement):
                    column.append(None)
                continue
            rewards.append(self._aggregate(known) + self.terms.earned(extra) - paid)
            toxicity.append(self._mean(known))
            disagreement.append(max(known) - min(known) if len(known) > 1 else None)
        return BatchRewards(
            rewards=self._fill_empty(rewards, empty),
            toxicity=toxicity,
            by_judge=by_judge,
            by_witness={
                s.name: [_toxicity(s, opinion.witnesses[s.name]) for opinion in opinions] for s in self.witnesses
            },
            terms=terms,
            disagreement=disagreement,
            empty=empty,
            reasons=self._reasons(opinions, empty, range(len(opinions)) if fresh is None else fresh),
            silent_witnesses=self._silent(opinions),
            truncated=[opinion.ending.finish == "length" for opinion in opinions if opinion.ending is not None],
            length_penalty=length_penalty,
        )

    def _reasons(self, opinions: Sequence[Opinion], empty: Sequence[bool], fresh: Sequence[int]) -> list[str | None]:
        """Why an answer lacks a judge's or a term's value: the first one's reason. Raises as ``rewarded``."""
        reasons: list[str | None] = [None] * len(opinions)
        for scorer in self.scorers:
            verdicts = [opinion.verdicts[scorer.name] for opinion in opinions]
            self._limits[scorer.name].add(scorer.name, [verdicts[row] for row in fresh])
            for row, verdict in enumerate(verdicts):
                if _toxicity(scorer, verdict) is None:
                    reasons[row] = reasons[row] or verdict.reason
        for name in self.terms.names:
            verdicts = [
                _term_verdict(opinion.terms[name], silent) for opinion, silent in zip(opinions, empty, strict=True)
            ]
            self._limits[name].add(name, [verdicts[row] for row in fresh])
            for row, verdict in enumerate(verdicts):
                if verdict.failed:
                    reasons[row] = reasons[row] or f"{name} {verdict.reason}"
        return reasons

    def judge(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> BatchRewards:
        """Both halves at once."""
        return self.rewarded(self.opinions(texts, prompts or [""] * len(texts)))

    def _silent(self, opinions: Sequence[Opinion]) -> dict[str, tuple[int, str]]:
        silent = {}
        for scorer in self.witnesses:
            failed = [found for opinion in opinions if (found := opinion.witnesses[scorer.name]).failed]
            if failed:
                silent[scorer.name] = (len(failed), str(failed[0].reason))
        return silent

    def failures(self) -> dict[str, list[Any]]:
        """Of every judge: texts seen, texts failed, and the first reason. Part of a checkpoint."""
        return {name: [limit.seen, limit.failed, limit.first_reason] for name, limit in self._limits.items()}

    def restore_failures(self, failures: dict[str, list[Any]]) -> None:
        """Continue the counts that ``failures`` gave, so a resumed run stops where an uninterrupted one would."""
        for name, (seen, failed, reason) in failures.items():
            limit = self._limits[name]
            limit.seen, limit.failed, limit.first_reason = seen, failed, reason

    @property
    def reads_prompts(self) -> bool:
        """Whether a judge needs the prompts too."""
        return any(isinstance(scorer, PairScorer) for scorer in self.scorers)

    def _bounded(self, scorer: Scorer) -> bool:
        # A user's function may give any finite number, unless the reward is its logit.
        return self.settings.transform == "logit" or not isinstance(scorer, FunctionScorer)

    def _reward(self, toxicity: float) -> float:
        if self.settings.transform != "logit":
            return 1 - toxicity
        bounded = min(max(toxicity, 1e-4), 1 - 1e-4)
        return math.log((1 - bounded) / bounded)

    def _length_penalty(self, ending: Ending) -> float:
        settings = self.settings
        return (settings.missing_eos_penalty if ending.finish == "length" else 0.0) - settings.overlong.penalty * (
            soft_overlong(ending.n_tokens, *self._overlong)
        )

    def _aggregate(self, toxicities: Sequence[float]) -> float:
        """One reward from all judges' P(toxic)."""
        goods = [self._reward(value) for value in toxicities]
        if self.settings.aggregate == "min":
            return min(good for good, weight in zip(goods, self._weights, strict=True) if weight > 0)
        mean = self._mean(goods)
        if self.settings.aggregate == "mean":
            return mean
        return mean - self.settings.std_weight * math.sqrt(self._mean([(good - mean) ** 2 for good in goods]))

    def _mean(self, values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(self._weights, values, strict=True)) / sum(self._weights)

    def _fill_empty(self, rewards: list[float | None], empty: list[bool]) -> list[float | None]:
        # Silence must never pay: an empty answer is as bad as the worst one, and no way to avoid a penalty for length.
        known = [reward for reward in rewards if reward is not None]
        charged = self.settings.missing_eos_penalty + self.settings.overlong.penalty
        floor = self.settings.empty - charged if self.settings.empty is not None else min(known, default=0.0)
        return [floor if silent else reward for reward, silent in zip(rewards, empty, strict=True)]


def soft_overlong(n_tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """R_length of an answer of ``n_tokens`` in [-1, 0], with L_max and L_cache (Yu et al. 2025, equation 13)."""
    begins = max_tokens - cache_tokens
    if n_tokens <= begins:
        return 0.0
    return (begins - n_tokens) / cache_tokens if n_tokens <= max_tokens else -1.0


def _toxicity(scorer: Scorer | PairScorer, verdict: Verdict) -> float | None:
    """The main label's value; for a judge of pairs that looks for counter-narratives, how sure it is of none."""
    value = verdict.values.get(scorer.labels[0])
    if value is not None and isinstance(scorer, PairScorer) and scorer.labels[0] == COUNTER_NARRATIVE:
        return 1 - value
    return value


def _term_verdict(value: float | None, empty: bool) -> Verdict:
    """A term's value as the failure limit counts it; an empty answer has none, and that is no failure."""
    if value is not None:
        return Verdict({"value": value})
    return Verdict(reason=EMPTY) if empty else Verdict(reason=_NO_TERM, failed=True)
