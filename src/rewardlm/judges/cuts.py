"""Thresholds of a new judge that stand for an old one's, and a curve from its scores to the old scale: pure functions.

Scores are Float[N] in [0, 1]. A text is flagged where its score is above the threshold, strictly, as everywhere in this
project. A threshold matters only by which scores lie above it, so it is looked for among the gaps between neighbouring
scores. ``migrate`` says what the numbers are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewardlm.stats import BoolArray, FloatArray

IntArray = NDArray[np.int64]
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Cut:
    """A threshold, and how many of the texts it flags. Every threshold t with ``low`` <= t < ``high`` flags the same
    texts.
    """

    threshold: float
    low: float
    high: float
    flagged: int


def cut_at_share(scores: FloatArray, flagged: int) -> Cut:
    """The cut that flags as nearly as possible ``flagged`` of the N > 0 texts; of two that are as near, the one that
    flags fewer.

    Equal scores can't be told apart, so the number itself may be out of reach.
    """
    edges, counts = _cuts(scores)
    distance = np.abs(counts - flagged)
    # The highest cut is the last one: it flags the fewest.
    return _cut(edges, counts, int(counts.size - 1 - distance[::-1].argmin()))


def cut_at_precision(scores: FloatArray, positive: BoolArray, hits: int, flagged: int) -> Cut | None:
    """The lowest cut whose precision is at least ``hits`` / ``flagged``: of those, it finds the most positives.

    None if no cut is that precise. Whole numbers are compared, so that rounding decides nothing.
    """
    edges, counts = _cuts(scores)
    found = _above(scores[positive], edges)
    enough = np.flatnonzero((counts > 0) & (found * flagged >= hits * counts))
    return _cut(edges, counts, int(enough[0])) if enough.size else None


def _cuts(scores: FloatArray) -> tuple[FloatArray, IntArray]:
    """Edges of the gaps between neighbouring scores, 0 and 1 among them, and how many texts each gap's cut flags.

    Gap k lies between edges k and k + 1. If a text scored 1, the last gap is empty: a threshold of 1 itself.
    """
    edges = np.unique(np.concatenate([scores, [0.0, 1.0]]))
    if (scores == 1).any():
        edges = np.append(edges, 1.0)
    counts = _above(scores, edges)
    return edges, counts


def _above(scores: FloatArray, edges: FloatArray) -> IntArray:
    """For each gap, how many scores lie above its lower edge."""
    return scores.size - np.searchsorted(np.sort(scores), edges[:-1], side="right").astype(np.int64)


def _cut(edges: FloatArray, counts: IntArray, place: int) -> Cut:
    low, high = float(edges[place]), float(edges[place + 1])
    middle = (low + high) / 2
    # Between two neighbouring numbers there is none.
    return Cut(middle if middle < high else low, low, high, int(counts[place]))


@dataclass(frozen=True, slots=True)
class MonotoneMap:
    """Straight lines between the points (``x``, ``y``), both rising; constant beyond the outer ones."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Scores on the old scale, of the shape of ``scores``; NaN stays NaN."""
        mapped: FloatArray = np.interp(scores, self.x, self.y)
        return mapped


def fit_map(new: FloatArray, old: FloatArray) -> MonotoneMap:
    """The monotone curve nearest to ``old`` in squares, as a function of ``new`` (isotonic regression; Barlow et al.
    1972). Texts with the same new score share one value.
    """
    from scipy.optimize import isotonic_regression

    x, place, counts = np.unique(new, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=old) / counts
    y = np.asarray(isotonic_regression(means, weights=counts).x)
    # Of a level piece, both ends say all.
    inner = np.zeros(x.size, dtype=np.bool_)
    inner[1:-1] = (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:])
    return MonotoneMap(tuple(x[~inner].tolist()), tuple(y[~inner].tolist()))


@dataclass(frozen=True, slots=True)
class MappedTexts:
    """Float[N] each: what the curve says of texts that it wasn't fitted to, and what the mean of the others says."""

    mapped: FloatArray
    constant: FloatArray


def map_held_out(
    new: FloatArray, old: FloatArray, texts: ArrayLike, *, seed: int, folds: int = FOLDS
) -> MappedTexts | None:
    """Every text's old score as a curve gives it that was fitted to other texts (cross-validation in ``folds`` parts).

    ``texts`` [N] are equal for copies of one text, which stay in one part. None if there are fewer than two texts.
    """
    mapped, constant = np.empty(new.size), np.empty(new.size)
    parts = list(_parts(texts, folds, seed))
    if len(parts) < 2:
        return None
    for inside in parts:
        mapped[inside] = fit_map(new[~inside], old[~inside])(new[inside])
        constant[inside] = old[~inside].mean()
    return MappedTexts(mapped, constant)


def _parts(texts: ArrayLike, folds: int, seed: int) -> Iterator[BoolArray]:
    """Bool[N] for each part. There are as many parts as texts, if these are fewer than ``folds``."""
    distinct, member = np.unique(np.asarray(texts), return_inverse=True)
    part = np.random.default_rng(seed).permutation(distinct.size) % folds
    for number in range(min(folds, distinct.size)):
        yield part[member] == number
