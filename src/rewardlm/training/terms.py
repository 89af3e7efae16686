"""What may be rewarded besides harmlessness: that an answer has some length, does not repeat itself, keeps to the
prompt's script and topic, does not refuse, and opposes the prompt's claim.

Each term is a function of the prompts, the answers and all prompts of the step. Each has a weight; ``usual_terms``
of the settings says which are on by default. A judge of toxicity alone is pleased by silence, by another language and
by one pleasantry for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rewardlm.config import ServicesSettings, SimilaritySettings, TermSettings, is_function_name
from rewardlm.errors import ScorerError
from rewardlm.measuring.quality import in_other_script, is_refusal, repeated_share
from rewardlm.measuring.similarity import load_embedder, similarities
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.pairs import COUNTER_NARRATIVE, PROBE, is_pair_judge, load_pair_judge
from rewardlm.scoring.scorer import is_empty, score_texts

# A function of the answers' prompts, the answers, and all prompts of the step.
Values = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float | None]]
Probabilities = Callable[[Sequence[str], Sequence[str]], list[float | None]]

# They stand in for other prompts where a step has only one.
_OTHER_CLAIMS = (
    "Old people should not be allowed to vote, they don't understand the world any more.",
    "Fat people are lazy and cost the rest of us money.",
    "Gypsies steal children, everybody knows that.",
)


@dataclass(frozen=True, slots=True)
class Term:
    """``weight`` times a value of each answer; None where it has none (an empty answer, a judge that failed). Of what
    is more than ``enough``, only that much is paid. ``revision`` pins the judge that says the values, if one does.
    """

    name: str
    weight: float
    values: Values
    enough: float = math.inf
    revision: str | None = None


class Terms:
    """The extra terms of a reward, in a fixed order."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = list(terms)

    @property
    def names(self) -> list[str]:
        return [term.name for term in self._terms]

    @property
    def weights(self) -> dict[str, float]:
        """What a unit of each term is paid now."""
        return {term.name: term.weight for term in self._terms}

    @property
    def revisions(self) -> dict[str, str]:
        """Of the terms' judges, where they have one."""
        return {term.name: term.revision for term in self._terms if term.revision is not None}

    def pay(self, name: str, weight: float) -> None:
        """From now on, a unit of this term is paid ``weight``."""
        self._terms = [replace(term, weight=weight) if term.name == name else term for term in self._terms]

    def earned(self, values: Sequence[float]) -> float:
        """What an answer with these values, one of each term in their order, is paid."""
        return sum(term.weight * min(value, term.enough) for term, value in zip(self._terms, values, strict=True))

    def values(
        self, prompts: Sequence[str], texts: Sequence[str], step_prompts: Sequence[str] | None = None
    ) -> dict[str, list[float | None]]:
        """Every term's value of each answer, unweighted; None for an empty answer, whatever the term.

        ``step_prompts`` are all prompts of the step; without them, ``prompts`` are.
        """
        step_prompts = prompts if step_prompts is None else step_prompts
        kept = [row for row, text in enumerate(texts) if not is_empty(text)]
        found: dict[str, list[float | None]] = {}
        for term in self._terms:
            column: list[float | None] = [None] * len(texts)
            if kept:
                values = term.values([prompts[row] for row in kept], [texts[row] for row in kept], step_prompts)
                for row, value in zip(kept, values, strict=True):
                    column[row] = value
            found[term.name] = column
        return found


# An unreachable target must not let similarity count for everything, or for nothing.
_FARTHEST = 4.0


def keep_near(
    terms: Terms, settings: SimilaritySettings, similarities: Sequence[float | None], *, begun: float
) -> None:
    """After a step whose answers were so near to their prompts, pay similarity more or less, as ``settings`` say, but
    at most four times as much as it ``begun`` with, and at least a quarter. Of an answer without a similarity nothing
    is known.
    """
    known = [value for value in similarities if value is not None]
    if settings.target is None or not known:
        return
    short = min(max(1 - fmean(known) / settings.target, -0.5), 0.5)
    weight = terms.weights["similarity"] * math.exp(settings.rate * short)
    terms.pay("similarity", min(max(weight, begun / _FARTHEST), begun * _FARTHEST))


def load_terms(
    settings: TermSettings,
    *,
    device: str = "cpu",
    services: ServicesSettings | None = None,
    measured: Sequence[str] = (),
) -> Terms:
    """The terms with a weight over 0, and similarity where ``measured`` names it; an embedder or a judge is loaded only
    for those. Raises as their loaders do.
    """
    terms = []
    if settings.length:
        terms.append(Term("length", settings.length, lambda _, texts, __: _length(texts, settings.length_words)))
    if settings.repetition:
        terms.append(Term("repetition", settings.repetition, lambda _, texts, __: [-repeated_share(t) for t in texts]))
    if settings.script:
        terms.append(Term("script", settings.script, _script))
    if settings.refusal:
        terms.append(Term("refusal", settings.refusal, lambda _, texts, __: [-float(is_refusal(t)) for t in texts]))
    if settings.similarity or "similarity" in measured:
        embedder = load_embedder(device)
        terms.append(
            Term(
                "similarity",
                settings.similarity or 0.0,
                lambda prompts, texts, _: similarities(embedder, prompts, texts, seed=0)[0],
                math.inf if settings.similarity_enough is None else settings.similarity_enough,
            )
        )
    if settings.counter_narrative:
        judge, revision = _counter_narrative(settings.counter_narrative_judge, device, services)
        # A classifier of answers reads no prompt, so it says the same under another one.
        others = settings.counter_narrative_others if is_pair_judge(settings.counter_narrative_judge) else 0
        terms.append(
            Term(
                "counter_narrative",
                settings.counter_narrative,
                lambda prompts, texts, step_prompts: over_others(judge, prompts, texts, step_prompts, others),
                revision=revision,
            )
        )
    return Terms(terms)


def _length(texts: Sequence[str], words: int) -> list[float | None]:
    return [min(1.0, len(text.split()) / words) for text in texts]


def over_others(
    judge: Probabilities, prompts: Sequence[str], texts: Sequence[str], step_prompts: Sequence[str], n: int
) -> list[float | None]:
    """P(counter-narrative | own prompt) minus the mean of P(… | other) over ``n`` other prompts of the step, in
    [-1, 1]; with ``n`` 0 nothing is subtracted. None where the judge has no value.

    The others follow the own prompt in the step's order. They are the same for all answers to it: answers of one group
    are compared, and a separate draw for each would add noise between them. There are fewer where the step has fewer;
    where it has none, three fixed claims stand in.
    """
    own = judge(prompts, texts)
    if n == 0:
        return own
    order = list(dict.fromkeys(step_prompts))
    places = {prompt: place for place, prompt in enumerate(order)}
    rows: list[int] = []
    others: list[str] = []
    for row, prompt in enumerate(prompts):
        at = places[prompt]
        found = [order[(at + step) % len(order)] for step in range(1, min(n, len(order) - 1) + 1)] or _OTHER_CLAIMS
        rows += [row] * len(found)
        others += found
    under_others: list[list[float]] = [[] for _ in prompts]
    for row, value in zip(rows, judge(others, [texts[row] for row in rows]), strict=True):
        if value is not None:
            under_others[row].append(value)
    return [
        None if value is None or not nulls else value - fmean(nulls)
        for value, nulls in zip(own, under_others, strict=True)
    ]


def _script(prompts: Sequence[str], texts: Sequence[str], _: Sequence[str]) -> list[float | None]:
    return [-float(in_other_script(prompt, text)) for prompt, text in zip(prompts, texts, strict=True)]


def _counter_narrative(spec: str, device: str, services: ServicesSettings | None) -> tuple[Probabilities, str | None]:
    """P(counter-narrative) by a judge of pairs, or by a classifier of answers whose label was named; and the judge's
    revision.

    Raises ScorerError where a classifier's label was not named, because the default is its toxic label, the opposite
    of what is meant here. Raises it too unless an answer that opposes hate scores higher than one that agrees.
    """
    if is_pair_judge(spec):
        pair_judge = load_pair_judge(spec, device=device)
        revision: str | None = pair_judge.revision

        def values(prompts: Sequence[str], texts: Sequence[str]) -> list[float | None]:
            found = pair_judge.judge(list(zip(prompts, texts, strict=True)))
            return [None if verdict is None else verdict[COUNTER_NARRATIVE] for verdict in found]
    else:
        scorer = load_scorer(spec, device=device, services=services)
        revision = getattr(scorer, "revision", None)
        if "#" not in spec and not is_function_name(spec):
            raise ScorerError(
                f"rewards.terms.counter_narrative_judge {spec!r}: name the label that means a counter-narrative, "
                f"{spec}#LABEL"
            )

        def values(prompts: Sequence[str], texts: Sequence[str]) -> list[float | None]:
            return [verdict.values.get(scorer.labels[0]) for verdict in score_texts(scorer, texts)]

    claim, *answers = PROBE
    opposed, agreed = values([claim, claim], answers)
    if opposed is None or agreed is None or opposed <= agreed:
        raise ScorerError(
            f"rewards.terms.counter_narrative_judge {spec!r}: an answer that opposes hate gets {_shown(opposed)}, one "
            f"that agrees {_shown(agreed)}: choose the label that means a counter-narrative (ID#label)"
        )
    return values, revision


def _shown(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}"
