"""Tests and intervals: every "significant" and every interval of the project comes from here.

The unit is the prompt. Its answers are alike, so they count together (a cluster). Functions of means and shares take,
for each of N prompts, the sum of its answers' numbers (``sums`` Float[N]) and how many answers that is (``counts``
[N]; a prompt with 0 is left out). The mean is sum(sums) / sum(counts). For anything else, such as an AUC, there is
``bootstrap_ci95``.

A test and its interval never disagree: the 95 % interval excludes zero exactly where p < .05. A result that the data
can't give is None, never NaN, and no interval has zero width. ``make prove-statistics`` shows how often the tests are
wrong, and how often the intervals hold the true value. scipy is imported inside the functions, because some callers
need ``LEVEL`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

LEVEL = 0.05
N_FLIPS = 10_000

# Up to 13 changed prompts, all ways to flip their signs are tried; up to 300, some are drawn. Beyond these the flips'
# distribution is the normal one, which the t-test knows.
_ENUMERATED = 13
_DRAWN = 300
# If changes are whole numbers, up to so many prompts are counted exactly.
_COUNTED = 1_000
# Fewer numbers than this can't be told from chance by flips: there are 16 ways for five rows up to the sign of all.
_LEAST_ROWS = 5
# Draws of a table that stand in memory together.
_AT_ONCE = 1_000
# Draws of a band's weights, one for each prompt, that stand in memory together.
_BAND_AT_ONCE = 100
# A smaller number counts as no change: its square would underflow.
_NOTHING = 1e-100


@dataclass(frozen=True, slots=True)
class MeanChange:
    """A mean change over ``prompts`` prompts: its 95 % interval and the two-sided p-value of "no change".

    ``mean`` and ``p_value`` are None where there is no prompt, ``ci95`` where there are fewer than two.
    """

    prompts: int
    mean: float | None
    ci95: tuple[float, float] | None
    p_value: float | None


def mean_change(
    sums: ArrayLike,
    counts: ArrayLike | None = None,
    *,
    largest: float | None = None,
    more_variance: float = 0.0,
    n_flips: int = N_FLIPS,
    seed: int = 0,
) -> MeanChange:
    """Is the mean of paired differences zero? ``counts`` None means one answer per prompt.

    Two tests must both say no, and p is the larger of their p-values.

    1. Fisher's randomisation test: if nothing changed, a prompt's change could as well have had the other sign. p is
       the share of ways to flip signs that give a sum as large. With changes of one size this is McNemar's exact test.
       It is exact if both models' scores of a prompt have the same distribution.
    2. A t-test of the ratio (n - 1 degrees of freedom). Its variance includes one more prompt, as far from zero as the
       one that changed most. This test holds for skewed changes, which the first does not. The added prompt
       keeps the variance from being zero if all changes happen to be equal (the idea of Agresti & Coull 1998).

    The interval holds every value that the second test accepts, and zero if the first accepts it: so it excludes zero
    exactly where p < .05. On the side to which the changes are skewed it reaches further, by as much as Johnson (1978,
    Journal of the American Statistical Association 73:536-544) moves a t interval: if many answers became harmless and
    hardly any toxic, t alone would understate the fall.

    ``largest`` is the most that one answer can change (1 for scores), and no interval goes beyond it. If no prompt
    changed, the interval rests on it: up to ``unseen_share`` of the prompts may be of a kind that does change. Without
    ``largest`` there is no interval in that case.

    ``more_variance`` is the variance that the mean has for another reason than which prompts were asked, such as a
    threshold that was itself estimated on other texts. The t-test and the interval include it.

    ``n_flips`` flips are drawn, from ``seed``, if not all can be tried: more than 13 changed prompts with changes of
    unequal size that aren't whole numbers.
    """
    x, w = _known(sums, counts)
    n = len(x)
    if n == 0:
        return MeanChange(0, None, None, None)
    mean = float(x.sum() / w.sum())
    if n == 1:
        return MeanChange(1, mean, None, 1.0)
    if not x.any():
        end = (
            None if largest is None else min(largest, math.hypot(unseen_share(n) * largest, 1.96 * more_variance**0.5))
        )
        return MeanChange(n, 0.0, None if end is None else (-end, end), 1.0)
    most = float(x[np.abs(x).argmax()])
    alone = _standard_error(x, w, extra=most)
    error = math.hypot(alone, more_variance**0.5) if more_variance else alone
    p_value = max(_t_p_value(mean, error, n - 1), flip_p_value(x, n_flips, seed))
    half, shift = t_quantile(n - 1) * error, _skewness_shift(x, w, alone, extra=most)
    low, high = agreeing(mean, mean - half + min(0.0, shift), mean + half + max(0.0, shift), p_value)
    if largest is not None:
        low, high = max(low, -largest), min(high, largest)
    return MeanChange(n, mean, (low, high), p_value)


def difference_of_means(
    sums: ArrayLike, counts: ArrayLike, other_sums: ArrayLike, other_counts: ArrayLike
) -> MeanChange:
    """The mean over one group of prompts minus that over another: Welch's t-test, ``prompts`` those of the smaller.

    Each group's variance includes one more prompt, as far from its group's mean as the farthest. There is no interval
    if a group has fewer than two prompts, or if neither varies.
    """
    groups = [_known(sums, counts), _known(other_sums, other_counts)]
    n = min(len(x) for x, _ in groups)
    if n == 0:
        return MeanChange(0, None, None, None)
    mean, other = (float(x.sum() / w.sum()) for x, w in groups)
    if n == 1:
        return MeanChange(1, mean - other, None, 1.0)
    variances = [_standard_error(x, w, extra=_farthest(x, w)) ** 2 for x, w in groups]
    total = sum(variances)
    if total**0.5 <= np.finfo(np.float64).eps * max(abs(mean), abs(other)):
        return MeanChange(n, mean - other, None, 1.0)  # what spread there is may be rounding
    # As shares, because squares of tiny variances would underflow.
    freedom = 1 / sum((v / total) ** 2 / (len(x) - 1) for v, (x, _) in zip(variances, groups, strict=True))
    p_value = _t_p_value(mean - other, total**0.5, freedom)
    estimate, half = mean - other, t_quantile(freedom) * total**0.5
    return MeanChange(n, estimate, agreeing(estimate, estimate - half, estimate + half, p_value), p_value)


def mean_ci95(sums: ArrayLike, counts: ArrayLike | None = None) -> tuple[float, float] | None:
    """95 % interval of a mean without bounds: t over prompts, with one more that is as far from it as the farthest.

    None for fewer than two prompts, or if all are equal and nothing says how far others may be.
    """
    x, w = _known(sums, counts)
    if len(x) < 2:
        return None
    error = _standard_error(x, w, extra=_farthest(x, w))
    if error == 0:
        return None
    mean, half = float(x.sum() / w.sum()), t_quantile(len(x) - 1) * error
    return mean - half, mean + half


def share_ci95(hits: ArrayLike, counts: ArrayLike | None = None) -> tuple[float, float] | None:
    """95 % interval of a share, sum(hits) / sum(counts), over prompts: Korn & Graubard's (1998, Survey Methodology 24).

    Clopper and Pearson's exact interval for an effective number of answers: as many independent ones as would vary as
    much as these prompts do, at most as many as there are. If prompts don't vary at all (no answer is toxic, say), each
    prompt counts as one answer. None for fewer than two prompts.
    """
    x, w = _known(hits, counts)
    if len(x) < 2:
        return None
    return _beta_interval(x, w, _worth(x, w, extra=0.0, at_most=float(w.sum())))


def estimated_share_ci95(
    sums: ArrayLike,
    counts: ArrayLike,
    *,
    labels: int,
    freedom: float,
    more_variance: float = 0.0,
    third_moment: float | None = None,
) -> tuple[float, float] | None:
    """95 % interval of a share that was not counted but estimated from ``labels`` of some answers.

    ``sums`` are those of numbers whose mean is the estimate (``labelling.estimate``); they may be below 0 or above
    ``counts``. ``freedom`` are the degrees of freedom that the labels leave, and ``more_variance`` is what the share
    varies besides. Where the estimate is 0 or 1, each label counts as one answer, and the interval is exact. None for
    fewer than two prompts.

    Jeffreys' interval for as many independent answers as would make the share vary so: on average it holds in 95 % of
    cases, where the exact one of ``share_ci95`` holds in at least that many (Brown, Cai & DasGupta 2001, Statistical
    Science 16:101-133). An estimate from labels isn't a count, so nothing is exact here anyway. ``third_moment``, E of
    (estimate - share)³, is known: if few labels carry most of what varies, the estimate is more lopsided than a count
    would be, and the interval reaches further on that side, by as much as Johnson (1978) moves one.
    """
    x, w = _known(sums, counts)
    if len(x) < 2:
        return None
    share = min(1.0, max(0.0, float(x.sum() / w.sum())))
    variance = _standard_error(x, w, 0.0) ** 2 + more_variance
    worth, t = float(labels), t_quantile(min(len(x) - 1, freedom))
    if variance > 0 and 0 < share < 1:
        worth = share * (1 - share) / variance * (_normal_quantile() / t) ** 2
    if not 0 < share < 1:
        return _exact_interval(share, min(worth, float(w.sum())))
    low, high = _jeffreys_interval(share, min(worth, float(w.sum())))
    if third_moment is None or variance <= 0:
        return low, high
    of_a_count = (1 - 2 * share) * variance**2 / (share * (1 - share))
    shift = _shift(third_moment - of_a_count, variance, t)
    return max(0.0, low + min(0.0, shift)), min(1.0, high + max(0.0, shift))


def _shift(third_moment: float, variance: float, t: float) -> float:
    """By how much Johnson (1978, Journal of the American Statistical Association 73:536-544) moves a t interval of an
    estimate with this third moment and variance: a reach of the interval at most.
    """
    reach = t * variance**0.5
    return float(min(reach, max(-reach, third_moment * (1 + 2 * t**2) / (6 * variance))))


def share_ci95_redrawn(
    hits: ArrayLike, counts: ArrayLike | None, redrawn: Sequence[ArrayLike], weights: Sequence[float]
) -> tuple[float, float] | None:
    """``share_ci95`` of a share whose rule for what is a hit was itself estimated, on other data.

    ``redrawn`` are the hits [N] by the rules that resamples of those data give, and ``weights`` how often each came up.
    Each end of an exact interval is a quantile of a beta distribution. Here it is that quantile of the mixture of the
    beta distributions of all rules: as if the rule were drawn first and the prompts then. The interval is never
    narrower than ``share_ci95``, and equal to it if all rules agree.
    """
    plain = share_ci95(hits, counts)
    if plain is None or all(np.array_equal(found, hits, equal_nan=True) for found in redrawn):
        return plain
    parts = []
    for found in redrawn:
        x, w = _known(found, counts)
        worth = _worth(x, w, extra=0.0, at_most=float(w.sum()))
        parts.append((float(x.sum() / w.sum()) * worth, worth))
    ends = _mixture_interval(np.array(parts), np.asarray(weights, np.float64) / float(np.sum(weights)))
    return min(plain[0], ends[0]), max(plain[1], ends[1])


def _mixture_interval(parts: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Ends of the mixture of the exact intervals of ``parts`` [B, 2], (hits, answers) each, with ``weights`` [B]."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    hits, misses = parts[:, 0], parts[:, 1] - parts[:, 0]
    # Without a hit the lower end is 0 itself, and without a miss the upper one is 1: there is no distribution.
    some, some_missed = hits > 0, misses > 0

    def below_low(x: float) -> float:
        inside = betainc(np.where(some, hits, 1.0), misses + 1, x)
        return float(weights @ np.where(some, inside, 1.0)) - 0.025

    def below_high(x: float) -> float:
        inside = betainc(hits + 1, np.where(some_missed, misses, 1.0), x)
        return float(weights @ np.where(some_missed, inside, 0.0)) - 0.975

    low = 0.0 if below_low(0.0) >= 0 else float(brentq(below_low, 0.0, 1.0))
    high = 1.0 if below_high(1.0) <= 0 else float(brentq(below_high, 0.0, 1.0))
    return low, high


def answers_worth(hits: ArrayLike, counts: ArrayLike) -> float:
    """The effective number of answers behind the share sum(hits) / sum(counts) of at least two prompts: see
    ``share_ci95``.
    """
    x, w = _known(hits, counts)
    return _worth(x, w, extra=0.0, at_most=float(w.sum()))


@dataclass(frozen=True, slots=True)
class SimultaneousBand:
    """Numbers at several thresholds, Float[T], and their 95 % band, Float[T, 2]: in 95 % of experiments it holds all of
    the true ones at once. It is None for fewer than two prompts.
    """

    values: FloatArray
    ends: FloatArray | None


def share_band95(hits: ArrayLike, counts: ArrayLike, *, n_resamples: int = N_FLIPS, seed: int = 0) -> SimultaneousBand:
    """Shares by several rules for what is a hit, ``hits`` [T, N] of the same N prompts, with a simultaneous band.

    It is ``share_ci95`` at each threshold, with a smaller tail in the place of 2.5 %: such that the largest of all
    standardised errors is beyond its quantile in 5 % of cases. These errors' distribution comes from the prompts'
    residuals with random weights (the multiplier bootstrap, Chernozhukov, Chetverikov & Kato 2013, Annals of Statistics
    41:2786-2819).
    """
    x, w = _known_at_all(hits, counts)
    values = x.sum(axis=1) / w.sum() if len(w) else np.full(len(x), np.nan)
    if len(w) < 2:
        return SimultaneousBand(values, None)
    tail = _tail_of_the_largest(x, w, n_resamples, seed)
    at_most, n = float(w.sum()), _prompts_worth(w)
    ends = [
        _exact_interval(float(share), _worth(one, w, extra=0.0, at_most=at_most, tail=tail, prompts=n), tail)
        for share, one in zip(values, x, strict=True)
    ]
    return SimultaneousBand(values, np.array(ends))


def change_band95(
    sums: ArrayLike, counts: ArrayLike, *, largest: float, n_resamples: int = N_FLIPS, seed: int = 0
) -> SimultaneousBand:
    """Mean paired differences at several thresholds, ``sums`` [T, N], with a simultaneous band: the interval of
    ``mean_change``'s t-test at each, with the smaller tail of ``share_band95``. No answer changes by more than
    ``largest``.
    """
    x, w = _known_at_all(sums, counts)
    n = len(w)
    values = x.sum(axis=1) / w.sum() if n else np.full(len(x), np.nan)
    if n < 2:
        return SimultaneousBand(values, None)
    tail = _tail_of_the_largest(x, w, n_resamples, seed)
    t, unseen = t_quantile(_prompts_worth(w) - 1, tail), unseen_share(n, tail) * largest
    ends = np.empty((len(x), 2))
    for place, (one, mean) in enumerate(zip(x, values.tolist(), strict=True)):
        if not one.any():
            ends[place] = -unseen, unseen
            continue
        most = float(one[np.abs(one).argmax()])
        error = _standard_error(one, w, extra=most)
        shift = _skewness_shift(one, w, error, most, t)
        ends[place] = mean - t * error + min(0.0, shift), mean + t * error + max(0.0, shift)
    return SimultaneousBand(values, np.clip(ends, -largest, largest))


def _prompts_worth(w: FloatArray) -> float:
    """How many prompts with equally many answers these are worth, two at least (Kish 1965, Survey Sampling, 11.2)."""
    return max(2.0, float(w.sum() ** 2 / (w**2).sum()))


def _known_at_all(sums: ArrayLike, counts: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """[T, N] and [N] of the prompts that have any answers."""
    x, w = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    return x[:, w > 0], w[w > 0]


def _tail_of_the_largest(x: FloatArray, w: FloatArray, n_resamples: int, seed: int) -> float:
    """The tail of a normal distribution beyond which the largest error of ``x`` [T, N] lies in 5 % of cases: 2.5 % if
    all errors are alike, less if they differ.
    """
    from scipy.special import ndtr

    residuals = np.array([_residuals(one, w) for one in x])
    errors = np.sqrt((residuals**2).sum(axis=1))
    varies = errors > np.finfo(np.float64).eps * w.sum()
    if not varies.any():
        return LEVEL / 2
    units = residuals[varies] / errors[varies, None]
    rng = np.random.default_rng(seed)
    largest: list[FloatArray] = []
    for start in range(0, n_resamples, _BAND_AT_ONCE):
        weights = rng.standard_normal((min(_BAND_AT_ONCE, n_resamples - start), len(w)))
        largest.append(np.abs(weights @ units.T).max(axis=1))
    return float(min(LEVEL / 2, ndtr(-np.quantile(np.concatenate(largest), 1 - LEVEL))))


def bounded_mean_ci95(values: ArrayLike) -> tuple[float, float] | None:
    """95 % interval of the mean of one number in [0, 1] per prompt, as ``share_ci95``.

    Scores vary less than shares do, so their effective number of answers has no bound. Instead their variance includes
    one more prompt, as far from the mean as the farthest.
    """
    x, w = _known(values, None)
    if len(x) < 2:
        return None
    return _beta_interval(x, w, _worth(x, w, extra=_farthest(x, w), at_most=np.inf))


def unseen_share(prompts: int, tail: float = LEVEL / 2) -> float:
    """The largest share of prompts that may be of a kind that none of ``prompts`` was: the exact 95 % bound (Clopper &
    Pearson 1934) for 0 in ``prompts``.
    """
    return float(1 - tail ** (1 / prompts))


def bootstrap_ci95(
    statistic: Callable[[NDArray[np.intp]], float | None], clusters: ArrayLike, *, n_resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3) of ``statistic`` of some rows.

    ``bootstrap`` says what the arguments are. Returns None where that has no values.
    """
    values = bootstrap(statistic, clusters, n_resamples=n_resamples, seed=seed)
    if not values:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float | None], clusters: ArrayLike, *, n_resamples: int, seed: int
) -> list[float]:
    """``statistic`` of each of ``n_resamples`` resamples of some rows.

    ``clusters`` [N] says to which unit each row belongs; units are drawn with replacement, each with all of its rows.
    Give ``range(N)`` if every row is a unit. ``statistic`` takes the indices of the rows that were drawn. A resample
    for which it returns None (an AUC if one class was not drawn) is left out. There are no values at all if the
    statistic is None for all rows together, or for more than half of the resamples.
    """
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if member.size == 0 or statistic(np.arange(member.size)) is None:
        return []
    order = np.argsort(member, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(member))[:-1])
    units, alone = len(rows_of), len(rows_of) == member.size
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, units, units) for _ in range(n_resamples))
    resamples = (order[chosen] if alone else np.concatenate([rows_of[unit] for unit in chosen]) for chosen in drawn)
    values = [value for rows in resamples if (value := statistic(rows)) is not None]
    return values if 2 * len(values) >= n_resamples else []


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values of tests that are read together (Holm 1979); None stays None and counts as no test.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is below the one before it, or above 1.
    If those below .05 are called significant, the chance that even one of them is wrong is at most 5 %.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        adjusted[place] = least
    return adjusted


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided McNemar p-value: the discordant pairs against a fair coin (McNemar 1947)."""
    from scipy.special import bdtr

    return float(min(1.0, 2 * bdtr(min(better, worse), better + worse, 0.5)))


@dataclass(frozen=True, slots=True)
class AllAlike:
    """``p_value`` of the hypothesis that all columns have one mean, and each column's p-value of having that of the
    others, corrected for all columns. None for a column with fewer than five numbers that can be compared.
    """

    p_value: float | None
    p_adjusted: list[float | None]


def all_alike(values: ArrayLike, *, n_draws: int = N_FLIPS, seed: int = 0) -> AllAlike:
    """Have all columns of ``values`` Float[N, G] one mean? A row is a prompt, NaN a missing number.

    Each column is compared with the others, row by row (``against_others``), by t. Two tests must both say that some
    column differs, and p is the larger of their p-values. In both, the largest |t| of all columns counts (Westfall &
    Young 1993, single step): a column's p is the share of draws in which that is at least its own |t|.

    1. The signs of whole rows of these differences are flipped. This is exact if a row is as likely with all signs
       turned, however unequal the columns' variances are.
    2. The numbers of each row are exchanged among the columns. This is exact if the columns are exchangeable, however
       skewed their numbers are.

    ``n_draws`` of each are drawn, from ``seed``; up to 13 rows, all ways to flip are tried.
    """
    x = np.asarray(values, np.float64)
    valid = ~np.isnan(against_others(x))
    kept = valid.sum(0) >= _LEAST_ROWS
    if not kept.any():
        return AllAlike(None, [None] * x.shape[1])
    own = _sizes_of_t(x)[kept]
    rng = np.random.default_rng(seed)
    if len(x) <= _ENUMERATED:
        signs = np.array(list(product((1.0, -1.0), repeat=len(x))))
    else:
        # The data themselves are one of the ways, so that p is never 0.
        signs = np.vstack([np.ones(len(x)), 2.0 * rng.integers(0, 2, (n_draws, len(x)), dtype=np.int8) - 1])
    differences = np.where(valid, against_others(x), 0.0)[:, kept]
    flipped = _t_of_sums(signs @ differences, (differences**2).sum(0), valid.sum(0)[kept]).max(1)
    reached = np.ones_like(own)
    for start in range(0, n_draws, _AT_ONCE):
        drawn = _exchanged(x, min(_AT_ONCE, n_draws - start), rng)
        reached += (_sizes_of_t(drawn)[:, kept].max(1, keepdims=True) >= own * (1 - 1e-9)).sum(0)
    found = np.maximum((flipped[:, None] >= own * (1 - 1e-9)).mean(0), reached / (1 + n_draws)).tolist()
    p_values = iter(found)
    return AllAlike(min(found), [next(p_values) if one else None for one in kept.tolist()])


def against_others(values: FloatArray) -> FloatArray:
    """Float[…, N, G]: each number minus the mean of its row's others; NaN where it, or every other one, is missing."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    others = known.sum(-1, keepdims=True) - known
    rest = filled.sum(-1, keepdims=True) - filled
    differences: FloatArray = np.where(known & (others > 0), values - rest / np.maximum(others, 1), np.nan)
    return differences


def _sizes_of_t(values: FloatArray) -> FloatArray:
    """Float[…, G]: |t| of each column of Float[…, N, G] against the others."""
    found = against_others(values)
    valid = ~np.isnan(found)
    found = np.where(valid, found, 0.0)
    return _t_of_sums(found.sum(-2), (found**2).sum(-2), valid.sum(-2))


def _t_of_sums(sums: FloatArray, squares: FloatArray, counts: NDArray[np.int64]) -> FloatArray:
    """|t| of a mean of zero, of numbers with these sums and sums of squares."""
    n = np.maximum(counts, 2)
    # What spread there is may be rounding.
    spread = np.maximum(squares - sums**2 / n, 1e-12 * squares) * n / (n - 1)
    sizes: FloatArray = np.abs(sums) / np.sqrt(np.where(squares > _NOTHING, spread, np.inf))
    return sizes


def _exchanged(values: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Float[n, N, G]: ``values`` with the numbers of each row in another order; what is missing stays where it is."""
    drawn = np.repeat(values[None], n, axis=0)
    known = ~np.isnan(values)
    whole = known.all(1)
    drawn[:, whole] = rng.permuted(drawn[:, whole], axis=2)
    for row in np.flatnonzero(~whole):
        drawn[:, row, known[row]] = rng.permuted(drawn[:, row, known[row]], axis=1)
    return drawn


def _known(sums: ArrayLike, counts: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Sums and counts of the prompts that have any answers and a number."""
    x = np.asarray(sums, np.float64)
    w = np.ones(x.shape) if counts is None else np.asarray(counts, np.float64)
    kept = (w > 0) & ~np.isnan(x)
    x = x[kept]
    x[np.abs(x) < _NOTHING] = 0.0
    return x, w[kept]


def _residuals(x: FloatArray, w: FloatArray) -> FloatArray:
    """How far each of n > 1 prompts is from the ratio sum(x) / sum(w) of the others, on the scale of ``x``.

    A prompt that has most of the answers draws the ratio to itself, and would seem to be near it. The factor is 1 if
    all have equally many.
    """
    from_all = x - x.sum() / w.sum() * w
    scaled: FloatArray = from_all * (1 - 1 / len(x)) / (1 - w / w.sum())
    return scaled


def _farthest(x: FloatArray, w: FloatArray) -> float:
    return float(np.abs(_residuals(x, w)).max())


def _standard_error(x: FloatArray, w: FloatArray, extra: float) -> float:
    """Of the ratio sum(x) / sum(w) over n > 1 prompts, by the jackknife, with ``extra`` as one more residual."""
    squares = float((_residuals(x, w) ** 2).sum()) + extra**2
    n = len(x)
    return float((squares * n / (n - 1)) ** 0.5 / w.sum())


def _skewness_shift(x: FloatArray, w: FloatArray, error: float, extra: float, t: float | None = None) -> float:
    """By how much Johnson (1978) moves the t interval of a mean: m3 (1 + 2 t^2) / (6 s^2 n), at most by its half width.

    ``error`` is ``_standard_error``, with the same ``extra``, which has a sign here; ``t`` the interval's quantile, by
    default that of 95 %.
    """
    n, t = len(x), t_quantile(len(x) - 1) if t is None else t
    # Divided by the spread of the residuals, so that cubes neither vanish nor overflow.
    spread = error * float(w.sum()) * ((n - 1) / n) ** 0.5
    cubes = float(((_residuals(x, w) / spread) ** 3).sum()) + (extra / spread) ** 3
    shift = cubes * spread * (1 + 2 * t**2) / 6 / float(w.sum())
    return float(np.clip(shift, -t * error, t * error))


def _t_p_value(estimate: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(estimate) / error))


def t_quantile(freedom: float, tail: float = LEVEL / 2) -> float:
    """The quantile of Student's t beyond which ``tail`` lies, by default 2.5 %."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - tail))


def _normal_quantile(tail: float = LEVEL / 2) -> float:
    from scipy.special import ndtri

    return float(-ndtri(tail))


def agreeing(estimate: float, low: float, high: float, p_value: float) -> tuple[float, float]:
    """``low`` and ``high``, moved so that they exclude zero exactly where p < .05, and else include it."""
    if p_value >= LEVEL:
        return min(low, 0.0), max(high, 0.0)
    # The skewness, or rounding at p = .05 to the last digit, could leave zero inside.
    tiny = np.finfo(np.float64).tiny
    return (max(low, tiny), high) if estimate > 0 else (low, min(high, -tiny))


def flip_p_value(changes: FloatArray, n_flips: int, seed: int) -> float:
    """Share of the ways to flip the signs of ``changes`` [N] whose sum is at least as large, in size, as the real one.

    1 if nothing changed. 0, which leaves the decision to the t-test, if there are too many changes to try.
    """
    changed = changes[changes != 0]
    if not len(changed):
        return 1.0
    sizes = np.abs(changed)
    m = len(changed)
    observed = abs(float(changed.sum())) * (1 - 1e-12)
    if np.allclose(sizes, sizes[0], rtol=1e-9, atol=0):
        rose = int((changed > 0).sum())
        return mcnemar(rose, m - rose)
    # Beyond 2^53 every float is a whole number.
    if m <= _COUNTED and sizes.max() < 2**53 and bool((sizes == np.round(sizes)).all()):
        return _flips_of_counts(sizes.astype(np.int64), observed)
    if m <= _ENUMERATED:
        signs = np.array(list(product((1.0, -1.0), repeat=m)))
        return float((np.abs(signs @ sizes) >= observed).mean())
    if m > _DRAWN:
        return 0.0
    rising = np.random.default_rng(seed).integers(0, 2, (n_flips, m), dtype=np.int8)
    flipped = np.abs(2 * (rising @ sizes) - sizes.sum())
    # The data themselves are one of the ways, so that p is never 0 (Davison & Hinkley 1997, 4.2.5).
    return (1 + int((flipped >= observed).sum())) / (1 + n_flips)


def _flips_of_counts(sizes: NDArray[np.int64], observed: float) -> float:
    """The same exactly, for whole numbers: among m changes of one size, the number that rise is binomial, and the
    distributions of the sums of each size are convolved.
    """
    from scipy.special import gammaln

    chances = np.ones(1)
    for size, m in zip(*(one.tolist() for one in np.unique(sizes, return_counts=True)), strict=True):
        rising = np.arange(m + 1)
        of_size = np.exp(gammaln(m + 1) - gammaln(rising + 1) - gammaln(m - rising + 1) - m * math.log(2))
        chances = _spread(chances, of_size, 2 * size)
    total = len(chances) // 2
    reached = np.abs(np.arange(-total, total + 1)) >= observed
    return float(min(1.0, chances[reached].sum()))


def _spread(chances: FloatArray, of_size: FloatArray, step: int) -> FloatArray:
    """The convolution of ``chances`` with ``of_size``, whose numbers stand ``step`` places apart."""
    found = np.zeros(len(chances) + step * (len(of_size) - 1))
    if len(of_size) <= step:
        for place, chance in enumerate(of_size.tolist()):
            found[place * step : place * step + len(chances)] += chance * chances
        return found
    # Places with the same remainder are mixed among themselves.
    for first in range(min(step, len(chances))):
        found[first::step] = np.convolve(chances[first::step], of_size)
    return found


def _worth(
    x: FloatArray,
    w: FloatArray,
    *,
    extra: float,
    at_most: float,
    tail: float = LEVEL / 2,
    prompts: float | None = None,
) -> float:
    """The effective number of independent answers behind the share of n > 1 prompts; n if they don't vary. ``prompts``
    is what these are worth, by default all of them.
    """
    n, share = float(len(x)) if prompts is None else prompts, float(x.sum() / w.sum())
    variance = _standard_error(x, w, extra) ** 2
    worth = n
    if variance > 0:
        worth = share * (1 - share) / variance * (_normal_quantile(tail) / t_quantile(n - 1, tail)) ** 2
    return min(worth, at_most)


def _beta_interval(x: FloatArray, w: FloatArray, worth: float) -> tuple[float, float]:
    return _exact_interval(float(x.sum() / w.sum()), worth)


def _exact_interval(share: float, worth: float, tail: float = LEVEL / 2) -> tuple[float, float]:
    """Clopper and Pearson's (1934) for ``share`` of ``worth`` independent answers, which needn't be a whole number."""
    from scipy.special import betaincinv

    hits = share * worth
    low = float(betaincinv(hits, worth - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, worth - hits, 1 - tail)) if share < 1 else 1.0
    return low, high


def correlation_of_shares(
    sums: ArrayLike, other_sums: ArrayLike, counts: ArrayLike, *, more_variance: tuple[float, float]
) -> float:
    """Of two shares that were estimated on the same prompts, each of which varies by ``more_variance`` besides."""
    (x, w), (y, _) = _known(sums, counts), _known(other_sums, counts)
    if len(x) < 2:
        return 0.0
    both = float((_residuals(x, w) * _residuals(y, w)).sum()) * len(x) / (len(x) - 1) / float(w.sum()) ** 2
    alone = [_standard_error(one, w, 0.0) ** 2 + more for one, more in zip((x, y), more_variance, strict=True)]
    return both / math.sqrt(alone[0] * alone[1]) if min(alone) > 0 else 0.0


def _jeffreys_interval(share: float, worth: float) -> tuple[float, float]:
    """Jeffreys' 95 % interval for ``share`` of ``worth`` independent answers, which needn't be a whole number."""
    from scipy.special import betaincinv

    hits, misses = share * worth, (1 - share) * worth
    low = float(betaincinv(hits + 0.5, misses + 0.5, LEVEL / 2)) if share > 0 else 0.0
    high = float(betaincinv(hits + 0.5, misses + 0.5, 1 - LEVEL / 2)) if share < 1 else 1.0
    return low, high


def difference_ci95(
    before: float,
    before_ci95: tuple[float, float],
    after: float,
    after_ci95: tuple[float, float],
    *,
    correlation: float = 0.0,
) -> tuple[float, float]:
    """95 % interval of ``after`` - ``before``, of two estimates with intervals of their own and this ``correlation``:
    Zou's (2007, Psychological Methods 12:399-413), which keeps how lopsided these are.
    """
    delta = after - before

    def reach(of_after: float, of_before: float) -> float:
        return math.sqrt(max(0.0, of_after**2 + of_before**2 - 2 * correlation * of_after * of_before))

    down = reach(after - after_ci95[0], before_ci95[1] - before)
    up = reach(after_ci95[1] - after, before - before_ci95[0])
    return delta - down, delta + up


def fieller_ci95(
    quotient: float,
    over: float,
    fixed: FloatArray,
    slope: FloatArray,
    *,
    freedom: float,
    more_variance: float = 0.0,
    third_moment: float = 0.0,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """95 % interval of a ``quotient`` u / v, where v, ``over``, is uncertain (Fieller 1954, Journal of the Royal
    Statistical Society B 16:175-185): from the least to the largest π ``within`` these ends for which u - π·v can't be
    told from zero by t.

    For any π, u - π·v is the sum over N prompts of ``fixed`` + π·``slope``, Float[N] each, up to a constant; the
    quotient varies by ``more_variance`` besides. Where v itself can't be told from zero, all π may do, or all but those
    between two. If the quotient is lopsided, by ``third_moment``, E of (estimate - quotient)³, the interval reaches
    further on that side, by as much as Johnson (1978) moves one.
    """
    n = len(fixed)
    t = t_quantile(min(n - 1, freedom))
    t2 = t**2
    one, two = fixed - fixed.mean(), slope - slope.mean()
    of_fixed, of_both, of_slope = (float((a * b).sum()) * n / (n - 1) for a, b in ((one, one), (one, two), (two, two)))
    of_fixed += more_variance * over**2
    # over² (quotient - π)² ≤ t² (of_fixed + 2 π of_both + π² of_slope)
    square = over**2 - t2 * of_slope
    half = over**2 * quotient + t2 * of_both
    rest = over**2 * quotient**2 - t2 * of_fixed
    under = half**2 - square * rest
    low, high = within
    if square == 0 or under < 0:
        return within
    one_end, other_end = sorted(((half - under**0.5) / square, (half + under**0.5) / square))
    if square > 0:
        variance = (of_fixed + 2 * quotient * of_both + quotient**2 * of_slope) / over**2
        shift = _shift(third_moment, variance, t) if variance > 0 else 0.0
        return max(low, one_end + min(0.0, shift)), min(high, other_end + max(0.0, shift))
    return (low if one_end >= low else max(low, other_end)), (high if other_end <= high else min(high, one_end))


def rank_p_value(observed: float, by_chance: Sequence[float]) -> float:
    """How often chance goes as far as what was observed. The observation counts as one draw (Phipson & Smyth 2010), so
    of 20 draws it is 1/21 at least."""
    return float((1 + sum(value >= observed for value in by_chance)) / (1 + len(by_chance)))
