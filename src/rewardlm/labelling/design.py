"""Which answers people label: a stratified random sample, so that what they say holds for all answers.

Answers are sorted into classes (strata) by the judge's score. Scores near 0 or 1 leave little to find out, those in the
middle much. So more of the latter are drawn, as Neyman (1934, Journal of the Royal Statistical Society 97:558-625)
divides a sample: in proportion to a class's size times the spread that is expected in it. Half of the labels are
divided by size alone, because a judge may be sure and wrong. How likely each answer was to be drawn is known, and
``estimate`` takes it into account.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewardlm.stats import FloatArray

IntArray = NDArray[np.intp]
# The class of an answer that could not be drawn.
NOT_ASKED = -1
# The share of the labels that is divided by the classes' sizes alone.
BY_SIZE = 0.5
# Fewer labels than this say nothing about how much a class varies.
LEAST = 2
# How many labels there are for each class, at least: each class costs a degree of freedom.
_A_CLASS = 8
# What the spread of an answer's label is at least taken to be: a score of 0 or 1 is no certainty.
_LEAST_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """Of G answers, the class of each, ``strata`` Int[G] from 0, and the rows that are to be labelled, in the order in
    which people should see them: so many from the front are a random sample of each class, too.
    """

    strata: IntArray
    rows: IntArray


def strata_by_score(scores: FloatArray, groups: IntArray, classes: int) -> IntArray:
    """The class of each answer, Int[G], numbered from 0 without gaps.

    ``scores`` Float[G] are P(toxic), NaN where the judge has none; ``groups`` Int[G] are never mixed. Each group's
    scored answers are cut into up to ``classes`` classes of about the same sum of expected spreads (Dalenius & Hodges
    1959, Journal of the American Statistical Association 54:88-101). Equal scores are in one class.
    """
    found = np.zeros(len(scores), dtype=np.intp)
    for place, group in enumerate(np.unique(groups)):
        known = (groups == group) & ~np.isnan(scores)
        values = np.sort(scores[known])
        sums = np.cumsum(_spread(values))
        # The cuts are scores; a score that is equal to a cut is in the class above it.
        wanted = np.arange(1, classes) / classes * (sums[-1] if len(sums) else 0.0)
        cuts = np.unique(values[np.searchsorted(sums, wanted)]) if len(values) else values
        first = place * (classes + 1)
        found[groups == group] = first + classes  # unscored
        found[known] = first + np.searchsorted(cuts, scores[known], side="right")
    return np.unique(found, return_inverse=True)[1].astype(np.intp)


def draw(scores: FloatArray, groups: IntArray, *, labels: int, classes: int, rng: np.random.Generator) -> Sample:
    """Draw ``labels`` answers, or all if there are fewer; ``strata_by_score`` says what the arguments are.

    Classes are merged with a neighbour until each has room for ``LEAST`` labels, and there are eight for each.
    """
    strata = strata_by_score(scores, groups, classes)
    n = min(labels, len(scores))
    strata = merged(strata, groups, np.bincount(strata), LEAST)
    while strata.max(initial=0) + 1 > max(1, n // _A_CLASS):
        sizes = np.bincount(strata)
        strata = merged(strata, groups, sizes, int(sizes.min()) + 1, across=True)
    taken = allocate(np.bincount(strata), _spreads(scores, strata), n)
    chosen = [rng.permutation(np.flatnonzero(strata == number))[:k] for number, k in enumerate(taken)]
    # Within its class each answer has a place between 0 and 1, so that any beginning has a fair share of every class.
    places = np.concatenate([(np.arange(len(rows)) + rng.random(len(rows))) / max(1, len(rows)) for rows in chosen])
    rows = np.concatenate(chosen)
    return Sample(strata, rows[np.argsort(places, kind="stable")].astype(np.intp))


def merged(
    strata: IntArray, groups: IntArray, counts: NDArray[np.int64], least: int, *, across: bool = False
) -> IntArray:
    """The classes again, each one whose ``counts`` is below ``least`` joined to the neighbour with the fewer.

    Classes are numbered by group and score, so neighbours have numbers side by side. Those of different ``groups`` are
    joined only ``across``, or where a group has no other class.
    """
    strata = strata.copy()
    counts = counts.copy()
    group_of = {int(number): int(groups[strata == number][0]) for number in np.unique(strata)}
    while len(group_of) > 1:
        few = [number for number in group_of if counts[number] < least]
        if not few:
            break
        number = min(few, key=lambda one: (counts[one], one))
        below = max((one for one in group_of if one < number), default=None)
        above = min((one for one in group_of if one > number), default=None)
        beside = [one for one in (below, above) if one is not None]
        same = [one for one in beside if group_of[one] == group_of[number]]
        to = min(beside if across or not same else same, key=lambda one: (counts[one], one))
        strata[strata == number] = to
        counts[to] += counts[number]
        counts[number] = 0
        del group_of[number]
    return np.unique(strata, return_inverse=True)[1].astype(np.intp)


def allocate(sizes: NDArray[np.int64], spreads: FloatArray, labels: int) -> list[int]:
    """How many of ``labels`` each class of ``sizes`` Int[H] gets: at least ``LEAST``, at most all of it."""
    by_size = sizes / sizes.sum()
    by_spread = sizes * spreads / (sizes * spreads).sum()
    wanted = labels * (BY_SIZE * by_size + (1 - BY_SIZE) * by_spread)
    taken = np.minimum(sizes, np.maximum(min(LEAST, labels // len(sizes)), np.floor(wanted).astype(np.int64)))
    while taken.sum() != labels:
        step = 1 if taken.sum() < labels else -1
        free = taken < sizes if step > 0 else taken > min(LEAST, labels // len(sizes))
        lacking = np.where(free, step * (wanted - taken), -np.inf)
        taken[int(lacking.argmax())] += step
    return [int(k) for k in taken]


def _spread(scores: FloatArray) -> FloatArray:
    """The standard deviation that a label of an answer with this score is expected to have, but never none."""
    spread: FloatArray = np.sqrt(scores * (1 - scores)) + _LEAST_SPREAD
    return spread


def _spreads(scores: FloatArray, strata: IntArray) -> FloatArray:
    """That of each class, Float[H], at its mean score; of unscored answers, the largest there is."""
    found = []
    for number in range(int(strata.max(initial=0)) + 1):
        known = scores[(strata == number) & ~np.isnan(scores)]
        found.append(float(known.mean()) if len(known) else 0.5)
    return _spread(np.array(found))
