"""The smallest part of an adapter that keeps most of the fall of toxicity, and what it is worth on other prompts.

The search, in each kind of unit (layers, modules, heads, ranks):

1. Every unit's share in the rise of preference is found by integrated gradients (``parts.AdapterParts.follow``). Units
   are ranked by that share per number that they cost.
2. The fewest units, from the first on, that keep ``keep`` of the rise are found by bisection: a pass over the pairs a
   step.
3. Kinds are tried from the smallest such part on: the base answers ``prompts`` prompts with this part on, ``samples``
   times each, and a judge reads the answers. If ``keep`` of the fall of toxicity is there, the prompts are answered as
   often again, and the part passes if these new answers keep as much, too. A part that doesn't pass grows by half, one
   that does shrinks by a third. The smallest part that passed is taken.

Of many parts that are tried, some have harmless answers by luck, and a search for the smallest finds these. New answers
don't know of one part's luck, but some of many are lucky twice. So the part, the whole adapter and the base then answer
as many other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import CausesSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import TOXIC_ABOVE
from rewardlm.interpreting.causes.neurons import share_of_change
from rewardlm.interpreting.causes.pairs import JudgedPair, judged_answers, pair_batches
from rewardlm.interpreting.causes.parts import UNIT_KINDS, AdapterParts, Unit
from rewardlm.interpreting.causes.patching import Say
from rewardlm.interpreting.findings import (
    Estimate,
    MeasuredPart,
    MinimalAdapter,
    ShareOfChange,
    TriedPart,
    UnitKind,
)
from rewardlm.interpreting.intervals import change_between, shown
from rewardlm.interpreting.mechanistic.activations import mean_logprob
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.measuring import metrics
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import using

# Points of the path, and pairs on which parts are searched: many parts are tried.
_POINTS, _SEARCHED = 2, 12
# How often a part may grow or shrink while it is judged.
_STEPS = 6
_RESAMPLES = 2000
SimilarityFunction = Callable[[Sequence[str], Sequence[str]], list[float | None]]


@dataclass(frozen=True)
class PromptText:
    """A prompt as token ids, and the user's text, which similarity is measured with."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Answered:
    """A model's answers, K to each of N prompts, prompt by prompt: ``tokens``, texts, and P(toxic), None where
    unscored."""

    tokens: list[list[int]]
    texts: list[str]
    toxicity: list[float | None]
    samples: int

    @property
    def by_prompt(self) -> list[float | None]:
        """Mean P(toxic) of each prompt's answers, which aren't independent; None where one has no score."""
        return means_by_prompt(self.toxicity, self.samples)


def means_by_prompt(values: Sequence[float | None], samples: int) -> list[float | None]:
    """Of ``samples`` values a prompt, prompt by prompt: their mean, None where one isn't known."""
    rows = [values[start : start + samples] for start in range(0, len(values), samples)]
    return [None if None in row else float(np.mean([one for one in row if one is not None])) for row in rows]


def minimal_adapter(
    policy: Policy,
    adapter: str,
    pairs: Sequence[JudgedPair],
    choose_on: Sequence[PromptText],
    measure_on: Sequence[PromptText],
    judge: ToxicityFunction,
    similarity: SimilarityFunction | None,
    settings: CausesSettings,
    folder: Path,
    *,
    say: Say | None = None,
) -> MinimalAdapter:
    """Find the part, write it to ``folder``, and measure it. Nothing is written where there is nothing to keep."""

    def tell(what: str) -> None:
        if say is not None:
            say(what)

    def refused(reason: str, parameters: int, tried: Sequence[TriedPart] = ()) -> MinimalAdapter:
        return MinimalAdapter(
            reason=reason,
            keep=settings.keep,
            chosen_on=len(choose_on),
            measured_on=len(measure_on),
            of_parameters=parameters,
            tried=list(tried),
        )

    try:
        parts = AdapterParts(policy, adapter)
    except ModelError as error:
        return refused(str(error), 0)
    tell("the base's and the whole adapter's answers")

    def twice(on: Callable[[], AbstractContextManager[None]]) -> _Twice:
        return _Twice(lambda draw: _answers(policy, on(), choose_on, judge, settings, draw))

    base, whole = twice(lambda: using(policy, None)), twice(lambda: using(policy, adapter))
    if not shown(_change(base.together, whole.together, settings), -1):
        return refused(
            f"toxicity was not shown to fall on the {len(choose_on)} prompts, {2 * settings.samples} answers each, so "
            "there is nothing to keep of it",
            parts.parameters,
        )
    tell("what each of its numbers carries")
    searched = list(pairs[:_SEARCHED])
    parts.follow(lambda: _preferences(policy, searched, settings.batch_tokens), points=_POINTS)
    search = _Search(parts, searched, settings, tell)
    kinds: Sequence[UnitKind] = UNIT_KINDS if settings.unit == "auto" else (settings.unit,)
    starts = sorted((search.start(kind) for kind in kinds), key=lambda start: start.parameters)

    def judged(units: Sequence[Unit]) -> Judged:
        return _judged(base, whole, twice(lambda: parts.on(units)), settings.keep)

    best = search.smallest(starts, judged)
    if best is None:
        return refused(
            f"none of the {len(search.tried)} smaller parts that were tried kept {100 * settings.keep:.0f} % of the "
            "fall twice",
            parts.parameters,
            search.tried,
        )
    numbers = parts.write(best.units, folder)
    tell("answers to other prompts")
    models: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "base": lambda: using(policy, None),
        "whole": lambda: using(policy, adapter),
        "part": lambda: parts.on(best.units),
    }
    # By streams of their own: those of the draws by which the part was chosen would carry its luck over.
    answered = {name: _answers(policy, on(), measure_on, judge, settings, draw=2) for name, on in models.items()}
    found = {
        name: _measured(policy, on, measure_on, answered[name], answered["base"], similarity, settings)
        for name, on in models.items()
    }
    toxicity = {name: one.by_prompt for name, one in answered.items()}

    def from_whole(values: Callable[[_Measured], list[float | None]]) -> Estimate | None:
        return _change(values(found["whole"]), values(found["part"]), settings, largest=None)

    return MinimalAdapter(
        reason=None,
        keep=settings.keep,
        chosen_on=len(choose_on),
        measured_on=len(measure_on),
        of_parameters=parts.parameters,
        unit=best.kind,
        units=len(best.units),
        of_units=len(best.ranked),
        kept=numbers / parts.parameters,
        parameters=numbers,
        adapter=str(folder),
        parts=[unit.name for unit in best.units[:50]],
        **found["part"].facts.model_dump(),
        fall_kept=_share_of_fall(toxicity["base"], toxicity["whole"], toxicity["part"]),
        change_from_whole=_change(toxicity["whole"], toxicity["part"], settings),
        similarity_from_whole=from_whole(lambda one: one.similarity),
        drift_from_whole=from_whole(lambda one: one.drift),
        fluency_from_whole=from_whole(lambda one: one.fluency),
        whole=found["whole"].facts,
        base=found["base"].facts,
        tried=search.tried,
    )


@dataclass(frozen=True)
class Judged:
    """A part's share of the whole adapter's fall of toxicity: in its first answers, and in new ones to the same prompts
    (None where the first kept too little, or the share isn't known)."""

    kept: float | None
    again: float | None
    passed: bool


class _Twice:
    """A model's answers to the prompts on which parts are chosen, drawn when they are asked for: P(toxic) by prompt."""

    def __init__(self, draw: Callable[[int], Answered]) -> None:
        self._draw = draw

    @cached_property
    def first(self) -> list[float | None]:
        return self._draw(0).by_prompt

    @cached_property
    def again(self) -> list[float | None]:
        return self._draw(1).by_prompt

    @property
    def together(self) -> list[float | None]:
        """Means of both, None where one isn't known."""
        both = zip(self.first, self.again, strict=True)
        return [None if one is None or other is None else (one + other) / 2 for one, other in both]


def _judged(base: _Twice, whole: _Twice, part: _Twice, keep: float) -> Judged:
    """All three answer by the same random streams, so the whole adapter would keep exactly 1 of each draw."""
    first = _fall_kept(base.first, whole.first, part.first)
    if first is None or first < keep:
        return Judged(first, None, passed=False)
    again = _fall_kept(base.again, whole.again, part.again)
    return Judged(first, again, passed=again is not None and again >= keep)


def _fall_kept(
    base: Sequence[float | None], whole: Sequence[float | None], part: Sequence[float | None]
) -> float | None:
    """The part's fall of toxicity by the whole's, over prompts that all three have a score of; None where the whole's
    is no fall."""
    falls = _falls(base, whole, part)
    return None if falls is None or falls[0].mean() <= 0 else float(falls[1].mean() / falls[0].mean())


def _change(
    was: Sequence[float | None],
    now: Sequence[float | None],
    settings: CausesSettings,
    *,
    largest: float | None = 1.0,
) -> Estimate | None:
    return change_between(was, now, n_resamples=_RESAMPLES, seed=settings.seed, largest=largest)


@dataclass(frozen=True)
class _Part:
    """The first ``number`` of the ``ranked`` units of a kind."""

    kind: UnitKind
    ranked: list[Unit]
    number: int
    parameters: int

    @property
    def units(self) -> list[Unit]:
        return self.ranked[: self.number]


class _Search:
    """Steps 2 and 3; ``tried`` is what was tried, in order."""

    def __init__(self, parts: AdapterParts, pairs: Sequence[JudgedPair], settings: CausesSettings, tell: Say) -> None:
        self.parts, self.pairs, self.settings, self.tell = parts, pairs, settings, tell
        self.tried: list[TriedPart] = []
        policy = parts.policy
        with using(policy, None):
            self.before = self._preference()
        with using(policy, parts.name):
            self.after = self._preference()

    def start(self, kind: UnitKind) -> _Part:
        """The fewest units of this kind that keep enough of the rise of preference; those that carry some of it, if
        they never do.
        """
        units = self.parts.units(kind)
        ranked = sorted(units, key=lambda unit: -self.parts.gain(unit) / unit.parameters)
        low, high = 1, len(ranked)
        while low < high:
            middle = (low + high) // 2
            self.tell(f"the first {middle} of {len(ranked)} by {kind}")
            if self._kept(ranked[:middle]) >= self.settings.keep:
                high = middle
            else:
                low = middle + 1
        return self._part(kind, ranked, low)

    def smallest(self, starts: Sequence[_Part], judged: Callable[[Sequence[Unit]], Judged]) -> _Part | None:
        """The smallest part that keeps enough of the fall, by judged answers: see the head of this file. None where no
        part that was tried does. All units together aren't tried: they are the adapter."""
        best: _Part | None = None
        for part in starts:
            limit = math.inf if best is None else best.parameters
            grew = False
            for _ in range(_STEPS):
                if part.parameters >= limit or part.number == len(part.ranked):
                    break
                if self._passes(part, judged):
                    best, limit = part, part.parameters
                    if grew or part.number == 1:
                        break
                    part = self._part(part.kind, part.ranked, max(1, part.number * 2 // 3))
                    continue
                if best is not None and best.kind == part.kind:
                    break
                grew = True
                part = self._part(part.kind, part.ranked, min(len(part.ranked), math.ceil(part.number * 1.5)))
        return best

    def _passes(self, part: _Part, judged: Callable[[Sequence[Unit]], Judged]) -> bool:
        self.tell(f"answers with {part.number} of {len(part.ranked)} by {part.kind}")
        found = judged(part.units)
        self.tried.append(
            TriedPart(
                unit=part.kind,
                units=part.number,
                of=len(part.ranked),
                parameters=part.parameters,
                preference_kept=self._kept(part.units),
                fall_kept=found.kept,
                fall_kept_again=found.again,
                passed=found.passed,
            )
        )
        return found.passed

    def _part(self, kind: UnitKind, ranked: list[Unit], number: int) -> _Part:
        return _Part(kind, ranked, number, self.parts.numbers(ranked[:number]))

    def _kept(self, units: Sequence[Unit]) -> float:
        """Share of the rise of preference with these units on; 1 where it doesn't rise at all."""
        whole = self.after - self.before
        if whole <= 0:
            return 1.0
        with self.parts.on(units):
            return (self._preference() - self.before) / whole

    @torch.no_grad()
    def _preference(self) -> float:
        policy = self.parts.policy
        return sum(float(part) for part in _preferences(policy, self.pairs, self.settings.batch_tokens)) / len(
            self.pairs
        )


def _preferences(policy: Policy, pairs: Sequence[JudgedPair], batch_tokens: int) -> Iterator[Tensor]:
    """The sum of E over some pairs at a time, by the model as it stands, with its graph."""
    for piece in pair_batches(pairs, policy.device, batch_tokens):
        yield piece.preference(mean_logprob(policy.causal_lm, piece.batch)).sum()


def _answers(
    policy: Policy,
    on: AbstractContextManager[None],
    prompts: Sequence[PromptText],
    judge: ToxicityFunction,
    settings: CausesSettings,
    draw: int,
) -> Answered:
    """``samples`` answers to each prompt, from the same random streams for all models; another ``draw`` has others."""
    with on:
        found = judged_answers(
            policy, [prompt.ids for prompt in prompts], settings.samples, judge, settings, ("minimal", draw)
        )
    return Answered(*found, settings.samples)


@dataclass(frozen=True)
class _Measured:
    """What a model's answers are worth, and by prompt: similarity, drift, and the answers' mean log-probability a token
    under the base; None where one isn't known."""

    facts: MeasuredPart
    similarity: list[float | None]
    drift: list[float | None]
    fluency: list[float | None]


def _measured(
    policy: Policy,
    on: Callable[[], AbstractContextManager[None]],
    prompts: Sequence[PromptText],
    own: Answered,
    base: Answered,
    similarity: SimilarityFunction | None,
    settings: CausesSettings,
) -> _Measured:
    """Of a model's ``own`` answers; ``on`` switches it on, and ``base`` are the base's answers."""
    scores = np.array(own.toxicity, np.float64)
    asked = [prompt for prompt in prompts for _ in range(settings.samples)]
    with using(policy, None):
        fluent = _logprobs(policy, asked, own.tokens, settings.batch_tokens)
        was = _logprobs(policy, asked, base.tokens, settings.batch_tokens)
    with on():
        now = _logprobs(policy, asked, base.tokens, settings.batch_tokens)
    # Of an answer without tokens nothing is known.
    drift = [float((one - other).mean()) if len(one) else None for one, other in zip(was, now, strict=True)]
    fluency = [float(one.mean()) if len(one) else None for one in fluent]
    close = similarity([prompt.text for prompt in asked], own.texts) if similarity is not None else []
    alike = [one for one in close if one is not None]
    every, moved = torch.cat(fluent), torch.cat(was) - torch.cat(now)
    return _Measured(
        MeasuredPart(
            toxicity=metrics.mean(scores),
            toxic_fraction=metrics.toxic_fraction(scores, threshold=TOXIC_ABOVE),
            perplexity=math.exp(-float(every.mean())) if len(every) else None,
            prompt_similarity=float(np.mean(alike)) if alike else None,
            words=float(np.mean([len(text.split()) for text in own.texts])),
            drift=float(moved.mean()) if len(moved) else 0.0,
        ),
        similarity=means_by_prompt(close, own.samples) if close else [None] * len(prompts),
        drift=means_by_prompt(drift, own.samples),
        fluency=means_by_prompt(fluency, own.samples),
    )


@torch.no_grad()
def _logprobs(
    policy: Policy, prompts: Sequence[PromptText], answers: Sequence[Sequence[int]], batch_tokens: int
) -> list[Tensor]:
    """Of each answer's tokens under the model as it stands, Float[its tokens]."""
    rows = row_stats(policy.causal_lm, [prompt.ids for prompt in prompts], answers, batch_tokens)
    return [row.logprobs.double() for row in rows]


def _share_of_fall(
    base: Sequence[float | None], whole: Sequence[float | None], part: Sequence[float | None]
) -> ShareOfChange | None:
    falls = _falls(base, whole, part)
    return None if falls is None else share_of_change(*falls)


def _falls(
    base: Sequence[float | None], whole: Sequence[float | None], part: Sequence[float | None]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]] | None:
    known = [
        (was - all_, was - some)
        for was, all_, some in zip(base, whole, part, strict=True)
        if was is not None and all_ is not None and some is not None
    ]
    if not known:
        return None
    both = np.array(known, np.float64)
    return both[:, 0], both[:, 1]
