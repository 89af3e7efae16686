"""How good a judge is, as pure functions on arrays: if a figure of ``judge evaluate`` looks wrong, start here.

``scores`` are Float[N], the judge's P(label). ``positive`` is Bool[N]: True where the text truly has the label.
``targets`` are Float[N] in [0, 1]: 0 and 1, or somebody's own probability (a soft target). N counts scored texts only.
A result is None where the data can't say (no text, one class, no variance). It is never NaN, and never a number by
convention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import mannwhitneyu, rankdata
from typing_extensions import TypedDict

from rewardlm.stats import BoolArray, FloatArray, bootstrap_ci95

THRESHOLD = 0.5
BINS = 15
POWER = -5.0
# With an AUC below this, a judge is reported as at chance.
AT_CHANCE_BELOW = 0.6


def auc(scores: FloatArray, positive: BoolArray) -> float | None:
    """P(a positive text scores higher than a negative one), ties counting one half; None if a class is empty.

    The area under the ROC curve is the Mann-Whitney statistic (Hanley & McNeil 1982): with r the mid-ranks of all
    scores and n1, n0 texts of each class, (sum of r over the positives - n1 (n1 + 1) / 2) / (n1 n0).
    """
    n1 = int(positive.sum())
    n0 = positive.size - n1
    if n1 == 0 or n0 == 0:
        return None
    above = float(rankdata(scores)[positive].sum()) - n1 * (n1 + 1) / 2
    return above / (n1 * n0)


def is_at_chance(value: float | None, interval: Sequence[float] | None = None) -> bool | None:
    """Whether an AUC is below 0.6 or its 95 % interval holds 0.5; None if there is no AUC."""
    if value is None:
        return None
    return value < AT_CHANCE_BELOW or (interval is not None and interval[0] <= 0.5 <= interval[1])


def average_precision(scores: FloatArray, positive: BoolArray) -> float | None:
    """Sum over thresholds of (recall - the recall before) x precision, highest threshold first; None if no positive.

    A threshold is a distinct score, so texts with equal scores come in together. Unlike AUC its value at chance is
    the share of positives.
    """
    if not positive.any():
        return None
    predicted, hits = _at_thresholds(scores, positive)
    precision = hits / predicted
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * precision).sum())


def roc(scores: FloatArray, positive: BoolArray, points: int = 101) -> list[tuple[float, float]] | None:
    """(false positive rate, true positive rate) at ``points`` thresholds at most, from (0, 0) to (1, 1)."""
    if positive.all() or not positive.any():
        return None
    predicted, hits = _at_thresholds(scores, positive)
    true = np.concatenate([[0.0], hits / hits[-1]])
    false = np.concatenate([[0.0], (predicted - hits) / (predicted[-1] - hits[-1])])
    kept = np.unique(np.linspace(0, true.size - 1, min(points, true.size)).round().astype(int))
    return [(float(x), float(y)) for x, y in zip(false[kept], true[kept], strict=True)]


def pearson(x: FloatArray, y: FloatArray) -> float | None:
    """Pearson's correlation; None for fewer than two texts or where one side doesn't vary."""
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    a, b = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None  # 0 where differences are too small to square


def spearman(x: FloatArray, y: FloatArray) -> float | None:
    """Spearman's rank correlation: Pearson's of the mid-ranks."""
    return pearson(rankdata(x), rankdata(y)) if x.size else None


class Bin(TypedDict):
    """One bin of a reliability diagram: its edges, how many texts, their mean score and mean target."""

    low: float
    high: float
    n: int
    score: float
    target: float


def reliability(scores: FloatArray, targets: FloatArray, bins: int = BINS) -> list[Bin]:
    """Texts by score in bins of equal width, [k/bins, (k + 1)/bins), the last one closed; empty bins are left out."""
    edges = np.arange(bins + 1) / bins
    index = np.minimum(np.searchsorted(edges, scores, side="right") - 1, bins - 1)
    found: list[Bin] = []
    for k in np.unique(index):
        inside = index == k
        found.append(
            {
                "low": float(k / bins),
                "high": float((k + 1) / bins),
                "n": int(inside.sum()),
                "score": float(scores[inside].mean()),
                "target": float(targets[inside].mean()),
            }
        )
    return found


def expected_calibration_error(scores: FloatArray, targets: FloatArray, bins: int = BINS) -> float | None:
    """Sum over bins of (share of texts) x |mean score - mean target| (Guo et al. 2017, equation 3).

    The paper compares a bin's accuracy with its confidence. Here, as usual for a binary label, the share of positives
    (or the mean of soft targets) is compared with the mean P(label). 15 bins of equal width over [0, 1].
    """
    if scores.size == 0:
        return None
    return sum(b["n"] * abs(b["score"] - b["target"]) for b in reliability(scores, targets, bins)) / scores.size


def brier(scores: FloatArray, targets: FloatArray) -> float | None:
    """Mean squared difference of score and target (half of Brier's 1950 score for two classes)."""
    return float(((scores - targets) ** 2).mean()) if scores.size else None


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """Shares at one threshold; each is None where its denominator is 0."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    false_positive_rate: float | None
    false_negative_rate: float | None


def at_threshold(scores: FloatArray, positive: BoolArray, threshold: float = THRESHOLD) -> AtThreshold:
    """A text is called positive where score > threshold, strictly, as everywhere in this project.

    F1 is 2 TP / (2 TP + FP + FN) of the positive class; None where there is no positive and none was called one.
    """
    called = scores > threshold
    tp = int((called & positive).sum())
    fp = int((called & ~positive).sum())
    fn = int((~called & positive).sum())
    tn = positive.size - tp - fp - fn
    return AtThreshold(
        accuracy=_ratio(tp + tn, positive.size),
        precision=_ratio(tp, tp + fp),
        recall=_ratio(tp, tp + fn),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        false_positive_rate=_ratio(fp, fp + tn),
        false_negative_rate=_ratio(fn, fn + tp),
    )


def spearman_interval95(
    x: FloatArray, y: FloatArray, *, n_resamples: int, seed: int, clusters: ArrayLike | None = None
) -> tuple[float, float] | None:
    """``bootstrap_ci95`` of ``spearman`` over texts, widened to Bonett and Wright's (2000, Psychometrika 65:23-28).

    With few texts, a bootstrap too often finds an order in chance, and has no width where all texts are in order.
    Bonett and Wright's interval is tanh(artanh r ± 1.96 ((1 + r^2 / 2) / (n - 3))^0.5). Here |r| is at most half-way
    between 1 and the next lower value that n texts can have, 1 - 12 / (n^3 - n). None for fewer than four texts.
    ``clusters`` [N] are equal for copies of one text; then n counts texts, not copies.
    """
    value, units = spearman(x, y), np.arange(x.size) if clusters is None else np.asarray(clusters)
    n = np.unique(units).size
    interval = bootstrap_ci95(lambda rows: spearman(x[rows], y[rows]), units, n_resamples=n_resamples, seed=seed)
    if interval is None or value is None or n < 4:
        return None
    most = 1 - 6 / (n**3 - n)
    r = min(most, max(-most, value))
    half = 1.96 * ((1 + r**2 / 2) / (n - 3)) ** 0.5
    low, high = (float(np.tanh(np.arctanh(r) + side)) for side in (-half, half))
    return min(low, interval[0], value), max(high, interval[1], value)


def auc_interval95(
    scores: FloatArray, positive: BoolArray, *, n_resamples: int, seed: int
) -> tuple[float, float] | None:
    """``bootstrap_ci95`` of ``auc`` over texts, widened to hold 0.5 where the Mann-Whitney test accepts it (p >= .05).

    With few texts, a bootstrap too often finds something in chance; the test is exact there. Where the classes are
    apart in every resample, the bootstrap has no width. Then Newcombe's interval takes its place (2006, Statistics in
    Medicine 25, method 5): that 5 toxic texts scored above 5 others doesn't prove that the next one will.
    """
    interval = bootstrap_ci95(
        lambda rows: auc(scores[rows], positive[rows]), range(scores.size), n_resamples=n_resamples, seed=seed
    )
    if interval is None:
        return None
    low, high = interval
    if low == high and low in (0, 1):
        end = _newcombe_end(int(positive.sum()), int((~positive).sum()))
        low, high = (end, 1.0) if low == 1 else (0.0, 1 - end)
    if mannwhitneyu(scores[positive], scores[~positive]).pvalue >= 0.05:
        low, high = min(low, 0.5), max(high, 0.5)
    return low, high


def _newcombe_end(n1: int, n0: int) -> float:
    """The lower end for an AUC of 1: the t with (1 - t)^2 = 1.96^2 V(t), V by Hanley & McNeil (1982), classes alike."""
    mean = (n1 + n0) / 2

    def distance(t: float) -> float:
        variance = t * (1 - t) / (n1 * n0) * (1 + (mean - 1) * (1 - t) / (2 - t) + (mean - 1) * t / (1 + t))
        return (1 - t) ** 2 - 1.96**2 * variance

    # At t = 1 both sides are 0. Between there and the end that we look for, the variance is the larger side.
    return float(brentq(distance, 1e-12, 1 - 1e-9))


class BiasAucs(TypedDict):
    """See ``bias_aucs``."""

    subgroup_auc: float | None
    bpsn_auc: float | None
    bnsp_auc: float | None


def bias_aucs(scores: FloatArray, positive: BoolArray, subgroup: BoolArray) -> BiasAucs:
    """Three AUCs of Borkan et al. 2019 (arXiv 1903.04561, section 3) for the texts that mention an identity.

    ``subgroup_auc``: among these texts alone. ``bpsn_auc`` (background positive, subgroup negative): low where harmless
    texts that mention the identity score like toxic ones that don't. ``bnsp_auc`` (background negative, subgroup
    positive): low where toxic texts that mention it score like harmless ones that don't. Background is every text
    without the identity, whatever others it mentions.
    """
    bpsn = (positive & ~subgroup) | (~positive & subgroup)
    bnsp = (~positive & ~subgroup) | (positive & subgroup)
    return {
        "subgroup_auc": auc(scores[subgroup], positive[subgroup]),
        "bpsn_auc": auc(scores[bpsn], positive[bpsn]),
        "bnsp_auc": auc(scores[bnsp], positive[bnsp]),
    }


def power_mean(values: Iterable[float | None], power: float = POWER) -> float | None:
    """(mean of v^p)^(1/p) of the values that aren't None.

    With p = -5, as in Jigsaw's 2019 competition on this bias, the worst group weighs most.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if min(known) <= 0:
        return 0.0  # the limit for p < 0
    return float(np.mean(np.asarray(known) ** power) ** (1 / power))


class Right(TypedDict):
    """How many texts both judges get right, only the first, only the second, and neither."""

    both: int
    first: int
    second: int
    neither: int


class Confusion(TypedDict):
    """See ``confusion``."""

    n: int
    table: list[list[int]]
    agreement: float | None
    kappa: float | None
    spearman: float | None
    right: Right


def confusion(first: FloatArray, second: FloatArray, positive: BoolArray, threshold: float = THRESHOLD) -> Confusion:
    """Two judges on texts that both scored: which texts each calls positive, and which it gets right.

    ``table`` is [[neither, the second alone], [the first alone, both]]; ``kappa`` is Cohen's (1960): agreement beyond
    what their shares of positives give by chance; None where that chance is 1.
    """
    a, b = first > threshold, second > threshold
    right_a, right_b = a == positive, b == positive
    n = positive.size
    agreement = _ratio(int((a == b).sum()), n)
    kappa = None
    if agreement is not None:
        chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
        kappa = (agreement - chance) / (1 - chance) if chance < 1 else None
    return {
        "n": n,
        "table": [[int((~a & ~b).sum()), int((~a & b).sum())], [int((a & ~b).sum()), int((a & b).sum())]],
        "agreement": agreement,
        "kappa": kappa,
        "spearman": spearman(first, second),
        "right": {
            "both": int((right_a & right_b).sum()),
            "first": int((right_a & ~right_b).sum()),
            "second": int((~right_a & right_b).sum()),
            "neither": int((~right_a & ~right_b).sum()),
        },
    }


def _at_thresholds(scores: FloatArray, positive: BoolArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts and positives with a score of at least t, for every distinct score t, the highest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)
    return last + 1, np.cumsum(positive[order])[last]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
