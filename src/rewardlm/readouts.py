"""Two kinds of vectors told apart by a line: the difference of means, a linear probe, and their worth on held-out rows.

Arrays in, arrays out: n rows of width M, and which of them are toxic. Leading dimensions "…" are layers, say: each is
treated by itself, all at once. ``interpreting`` asks whether toxicity can be read off a model's stream; ``steering``
pushes along what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata

from rewardlm.stats import BoolArray, FloatArray

# (train [..., n, M], toxic [n], test [..., m, M]) → a score of each test row [..., m], over 0 meaning toxic.
Readout = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class Probe:
    """Logistic regressions, each on one layer: P(toxic) = σ((x − mean) / spread · weight + bias), Float[..., M] each,
    ``bias`` Float[...]."""

    weight: FloatArray
    bias: FloatArray
    mean: FloatArray
    spread: FloatArray

    def logits(self, x: FloatArray) -> FloatArray:
        """Float[..., n, M] → Float[..., n]."""
        standard = (x - self.mean[..., None, :]) / self.spread[..., None, :]
        found: FloatArray = _times(standard, self.weight) + self.bias[..., None]
        return found


def fit_probe(x: FloatArray, toxic: BoolArray, *, penalty: float = 1.0, one_unit: bool = False) -> Probe:
    """The minimum of Σ log-loss + penalty/2·‖weight‖² over standardised features, x Float[..., n, M], both classes
    present.

    ``one_unit`` divides all features by the same number. Then the penalty falls alike on all directions, and the weight
    is a direction to push along. Otherwise features that hardly vary may have most of the weight.

    The penalty makes the solution lie in the span of the n rows, so of fewer rows than features it is sought there: n
    numbers instead of M.
    """
    mean, spread = x.mean(-2), x.std(-2)
    spread = np.where(spread > 1e-8 * (np.abs(mean) + 1e-8), spread, 1.0)
    if one_unit:
        spread = np.broadcast_to(
            np.sqrt(np.mean(np.square(x - mean[..., None, :]), axis=(-2, -1), keepdims=True))[..., 0], mean.shape
        )
    standard = (x - mean[..., None, :]) / spread[..., None, :]
    # standard = rows @ span, where span's own rows are orthonormal, or zeros: the penalty is the same in both.
    if x.shape[-2] < x.shape[-1]:
        variances, left = np.linalg.eigh(standard @ standard.swapaxes(-1, -2))
        kept = variances > 1e-12 * variances[..., -1:]
        lengths = np.sqrt(np.where(kept, variances, 1.0))[..., None, :]
        left = np.where(kept[..., None, :], left, 0.0)
        rows = left * lengths
        parameters = _fit(rows, toxic, penalty)
        # The span is (left / lengths)ᵀ @ standard.
        weight = _times(standard.swapaxes(-1, -2), _times(left / lengths, parameters[..., :-1]))
    else:
        parameters = _fit(standard, toxic, penalty)
        weight = parameters[..., :-1]
    return Probe(weight, parameters[..., -1], mean, spread)


# A sum of n slopes, each up to 1, is no nearer to 0 than this by rounding.
_SLOPE = 1e-8
_STEPS = 100


def _fit(rows: FloatArray, toxic: BoolArray, penalty: float) -> FloatArray:
    """The weights of rows Float[..., n, r] and the bias, Float[..., r + 1], by Newton's method.

    The loss is smooth and convex. A step along which it doesn't fall as its slope promises (Armijo's rule) is halved.
    """
    with_bias = np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], -1)
    penalties = np.append(np.full(rows.shape[-1], penalty), 0.0)
    sign = np.where(toxic, 1.0, -1.0)

    def loss(at: FloatArray) -> FloatArray:
        found: FloatArray = np.logaddexp(0, -sign * _times(with_bias, at)).sum(-1) + (penalties * at**2).sum(-1) / 2
        return found

    found = np.zeros((*rows.shape[:-2], len(penalties)))
    value = loss(found)
    for _ in range(_STEPS):
        share = expit(_times(with_bias, found))
        slope = _times(with_bias.swapaxes(-1, -2), share - toxic) + penalties * found
        if np.abs(slope).max() < _SLOPE:
            break
        weighted = with_bias * (share * (1 - share))[..., None]
        curvature = with_bias.swapaxes(-1, -2) @ weighted + np.diag(penalties)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        promised = (slope * step).sum(-1)
        part = np.ones_like(value)
        for _ in range(_STEPS):
            after = loss(found - part[..., None] * step)
            # Near the minimum a fall is smaller than the loss is exact.
            falls = after <= value - 1e-4 * part * promised + 1e-12 * np.abs(value)
            if falls.all():
                break
            part = np.where(falls, part, part / 2)
        found, value = found - part[..., None] * step, after
    return found


def _times(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    """Float[..., n, m] times Float[..., m]."""
    found: FloatArray = (matrix @ vector[..., None])[..., 0]
    return found


def mean_difference(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """Mean of the toxic rows minus mean of the others, x Float[..., n, M] → Float[..., M] (Marks & Tegmark 2023)."""
    found: FloatArray = x[..., toxic, :].mean(-2) - x[..., ~toxic, :].mean(-2)
    return found


def toxic_direction(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """The difference of means without its part along the harmless rows' mean, x Float[..., n, M] → Float[..., M].

    Along it the two means differ only in length.
    """
    return without_common(mean_difference(x, toxic), x[..., ~toxic, :])


def without_common(found: FloatArray, texts: FloatArray) -> FloatArray:
    """Directions Float[..., M] without their part along the mean of ``texts`` Float[..., n, M], or Float[n, M] for all.

    A stream has a large part that all tokens share, in a few dimensions (Sun et al. 2024). Ablating it would take from
    the model what it needs for any text.
    """
    common = texts.mean(-2)
    common = common / np.linalg.norm(common, axis=-1, keepdims=True).clip(1e-12)
    rest: FloatArray = found - (found * common).sum(-1, keepdims=True) * common
    return rest


def folds_of(toxic: BoolArray, groups: Sequence[object], n_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold Int[n] for each row: rows of one group (answers to one prompt) stand together, toxic ones are spread."""
    order = rows_by_group(groups)
    np.random.default_rng(seed).shuffle(order)
    fold = np.zeros(len(toxic), dtype=np.int64)
    counts = np.zeros((n_folds, 2), dtype=np.int64)
    # The groups with most toxic rows first, each to the fold that has fewest such rows, then fewest rows.
    for rows in sorted(order, key=lambda rows: -int(toxic[rows].sum())):
        n_toxic = int(toxic[rows].sum())
        first, second = (counts[:, 0], counts.sum(1)) if n_toxic else (counts.sum(1), counts[:, 0])
        chosen = int(np.lexsort((second, first))[0])
        fold[rows] = chosen
        counts[chosen] += (n_toxic, len(rows) - n_toxic)
    return fold


def rows_by_group(groups: Sequence[object]) -> list[list[int]]:
    """The rows of each group, in the order in which groups first occur."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return list(members.values())


@dataclass(frozen=True)
class HeldOut:
    """How well toxicity is read off rows that were not learnt from. ``accuracy`` is balanced: the mean of both
    classes' shares that were told right, 0.5 by guessing. ``auc``: a toxic row's chance to score over another, over
    pairs within one fold."""

    accuracy: float
    auc: float


def held_out(x: FloatArray, toxic: BoolArray, fold: NDArray[np.int64], score: Readout) -> HeldOut:
    """Cross-validation over the folds, x Float[n, M]."""
    [found] = held_out_by_layer(x[None], toxic, fold, score)
    return found


def held_out_by_layer(layers: FloatArray, toxic: BoolArray, fold: NDArray[np.int64], score: Readout) -> list[HeldOut]:
    """The same of every layer by itself, ``layers`` Float[L, n, M]."""
    right: dict[bool, list[BoolArray]] = {True: [], False: []}
    aucs: list[tuple[FloatArray, int]] = []
    for number in np.unique(fold):
        test = fold == number
        if len(np.unique(toxic[~test])) < 2:
            continue
        scores = score(layers[:, ~test], toxic[~test], layers[:, test])
        mine = toxic[test]
        for kind, told in right.items():
            told.append(((scores > 0) == kind)[:, mine == kind])
        n_toxic, n_other = int(mine.sum()), int((~mine).sum())
        if n_toxic and n_other:
            above = rankdata(scores, axis=-1)[:, mine].sum(-1) - n_toxic * (n_toxic + 1) / 2
            aucs.append((above / (n_toxic * n_other), n_toxic * n_other))
    accuracy = np.mean([np.concatenate(told, 1).mean(1) for told in right.values()], axis=0)
    auc = np.average([found for found, _ in aucs], axis=0, weights=[n for _, n in aucs])
    return [HeldOut(float(share), float(area)) for share, area in zip(accuracy, auc, strict=True)]


def by_probe(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: the probe's logits."""
    return fit_probe(train, toxic).logits(test)


def by_direction(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: where along the toxic direction, from the middle between both means."""
    middle = (train[..., toxic, :].mean(-2) + train[..., ~toxic, :].mean(-2)) / 2
    return _times(test - middle[..., None, :], toxic_direction(train, toxic))
