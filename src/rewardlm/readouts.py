"""Two kinds of vectors told apart by a line: the difference of means, a linear probe, and their worth on held-out rows.

Arrays in, arrays out: n rows of width M, and which of them are toxic. ``interpreting`` asks whether toxicity can be
read off a model's stream; ``steering`` pushes along what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from rewardlm.stats import BoolArray, FloatArray

# (train [n, M], toxic [n], test [m, M]) → a score of each test row, over 0 meaning toxic.
Readout = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class Probe:
    """A logistic regression on one layer: P(toxic) = σ((x − mean) / spread · weight + bias), Float[M] each."""

    weight: FloatArray
    bias: float
    mean: FloatArray
    spread: FloatArray

    def logits(self, x: FloatArray) -> FloatArray:
        """Float[n, M] → Float[n]."""
        found: FloatArray = (x - self.mean) / self.spread @ self.weight + self.bias
        return found


def fit_probe(x: FloatArray, toxic: BoolArray, *, penalty: float = 1.0, one_unit: bool = False) -> Probe:
    """The minimum of Σ log-loss + penalty/2·‖weight‖² over standardised features, x Float[n, M], both classes present.

    ``one_unit`` divides all features by the same number. Then the penalty falls alike on all directions, and the weight
    is a direction to push along. Otherwise features that hardly vary may have most of the weight.

    The penalty makes the solution lie in the span of the n rows, so of fewer rows than features it is sought there: n
    numbers instead of M. The loss is smooth and convex, and its curvature is known: a few steps of Newton's find it.
    """
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-8 * (np.abs(mean) + 1e-8), spread, 1.0)
    if one_unit:
        spread = np.full_like(spread, np.sqrt(np.mean(np.square(x - mean))))
    standard = (x - mean) / spread
    # standard = rows @ span, where span's own rows are orthonormal: the penalty is the same in both.
    if len(x) < x.shape[1]:
        variances, left = np.linalg.eigh(standard @ standard.T)
        kept = variances > 1e-12 * variances.max()
        rows = left[:, kept] * np.sqrt(variances[kept])
        span = (left[:, kept] / np.sqrt(variances[kept])).T @ standard
    else:
        rows, span = standard, np.eye(x.shape[1])
    with_bias = np.column_stack([rows, np.ones(len(rows))])
    penalties = np.append(np.full(rows.shape[1], penalty), 0.0)
    sign = np.where(toxic, 1.0, -1.0)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        margin = sign * (with_bias @ parameters)
        pull = -sign * expit(-margin)  # d log(1 + e^-m) / dm = -1 / (1 + e^m)
        value = np.logaddexp(0, -margin).sum() + (penalties * parameters**2).sum() / 2
        return float(value), with_bias.T @ pull + penalties * parameters

    def curvature(parameters: FloatArray) -> FloatArray:
        share = expit(with_bias @ parameters)
        found: FloatArray = (with_bias.T * (share * (1 - share))) @ with_bias + np.diag(penalties)
        return found

    # The first steps may be as long as Newton's: the default, 1, would take several more of them.
    options = {"gtol": 1e-8, "initial_trust_radius": 100.0}
    start = np.zeros(with_bias.shape[1])
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options=options).x
    return Probe(found[:-1] @ span, float(found[-1]), mean, spread)


def mean_difference(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """Mean of the toxic rows minus mean of the others, x Float[..., n, M] → Float[..., M] (Marks & Tegmark 2023)."""
    found: FloatArray = x[..., toxic, :].mean(-2) - x[..., ~toxic, :].mean(-2)
    return found


def toxic_direction(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """The difference of means without its part along the harmless rows' mean, x Float[n, M] → Float[M].

    Along it the two means differ only in length.
    """
    return without_common(mean_difference(x, toxic), x[~toxic])


def without_common(found: FloatArray, texts: FloatArray) -> FloatArray:
    """Directions Float[…, M] without their part along the mean of ``texts`` Float[n, M].

    A stream has a large part that all tokens share, in a few dimensions (Sun et al. 2024). Ablating it would take from
    the model what it needs for any text.
    """
    common = texts.mean(0)
    common /= max(float(np.linalg.norm(common)), 1e-12)
    rest: FloatArray = found - (found @ common)[..., None] * common
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
    """Cross-validation over the folds."""
    right: list[tuple[bool, bool]] = []
    aucs: list[tuple[float, int]] = []
    for number in np.unique(fold):
        test = fold == number
        if len(np.unique(toxic[~test])) < 2:
            continue
        scores = score(x[~test], toxic[~test], x[test])
        right += zip(toxic[test].tolist(), ((scores > 0) == toxic[test]).tolist(), strict=True)
        n_toxic, n_other = int(toxic[test].sum()), int((~toxic[test]).sum())
        if n_toxic and n_other:
            above = rankdata(scores)[toxic[test]].sum() - n_toxic * (n_toxic + 1) / 2
            aucs.append((above / (n_toxic * n_other), n_toxic * n_other))
    share = [np.mean([told for is_toxic, told in right if is_toxic is kind]) for kind in (True, False)]
    return HeldOut(float(np.mean(share)), float(np.average([a for a, _ in aucs], weights=[n for _, n in aucs])))


def by_probe(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: the probe's logits."""
    return fit_probe(train, toxic).logits(test)


def by_direction(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: where along the toxic direction, from the middle between both means."""
    middle = (train[toxic].mean(0) + train[~toxic].mean(0)) / 2
    found: FloatArray = (test - middle) @ toxic_direction(train, toxic)
    return found
