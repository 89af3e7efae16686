"""What a second draw of the same model does to the buckets: the null beside every flow.

If an answer is toxic, the same model's next answer to the same prompt is mostly not. So most answers that a flow shows
going from high to low would have gone there without any training (regression to the mean). Here the baseline's other
answers to a prompt take the place of the other model's. A flow may claim only the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewardlm.measuring.comparison import Excess
from rewardlm.measuring.metrics import bucket_of
from rewardlm.measuring.result import Interval
from rewardlm.stats import LEVEL, BoolArray, FloatArray, agreeing, unseen_share

Codes = NDArray[np.int8]

# With fewer prompts than this there is no interval.
FEWEST = 5
# The number of relabellings in a test, and the number of prompts above which Student's t takes their place.
_RELABELLINGS = 2_000
_ENOUGH = 400
_AT_A_TIME = 100


@dataclass(frozen=True, slots=True)
class Redraw:
    """``flow`` are expected counts of (prompt, sample) pairs, 3 × 3 as ``metrics.flow``'s and with its row sums. A row
    is None if the flow has pairs in it but none of their prompts has a second draw: then nobody knows what it would do.

    ``excess`` is 3 × 3: by how much the share of a row that goes to a column is larger in the flow than in the second
    draw, None in a row that is empty or not known.
    """

    flow: list[list[float] | None]
    excess: list[list[Excess | None]]


def second_draw(
    before: FloatArray,
    after: FloatArray,
    *,
    pairs: BoolArray | None = None,
    usable: BoolArray | None = None,
    again: FloatArray | None = None,
    n_resamples: int = _RELABELLINGS,
    seed: int = 0,
) -> Redraw | None:
    """What a second draw of the first model would have done in place of ``after``; None if no prompt has one.

    ``before`` and ``after`` are Float[N prompts, K samples], NaN where unscored; ``pairs`` Bool[N, K] are those that
    the flow counts, ``usable`` Bool[N, K] the first model's answers that may stand in for a second draw (by default
    all). ``again`` Float[N, R] are more draws of the first model, from another run.

    A prompt has n draws of the first model, P[b] of them in bucket b, and c[a] pairs in bucket a. A second draw moves
    c[a]·(P[b] − [a = b]) / (n − 1) pairs from a to b: the mean over all ordered pairs of different draws. If both
    models are the same, flow and second draw have the same expectation. Then all draws of a prompt are exchangeable,
    too, so the p-value is that of a permutation test: the draws are dealt to the two models again, ``n_resamples``
    times (at most 2,000), and the difference over its standard error (prompts are clusters) is compared with theirs.
    The test is exact under that null. Because it is studentised, it is right in large samples under any other (Janssen
    1997; Chung & Romano 2013). The interval is the difference ± the same quantile of standard errors, and so excludes
    zero exactly if p < 0.05. If more than 400 prompts can move, or ``n_resamples`` is 0, Student's t takes the place of
    the permutations.
    """
    both = ~np.isnan(before) & ~np.isnan(after)
    both &= True if pairs is None else pairs
    drawn = ~np.isnan(before) & (both | (True if usable is None else usable))
    pool = _codes(before, drawn)
    if again is not None:
        pool = np.concatenate([pool, _codes(again, ~np.isnan(again))], axis=1)
    kept = ((pool >= 0).sum(1) >= 2) & both.any(1)
    if not kept.any():
        return None
    counted = np.zeros(pool.shape, dtype=np.bool_)
    counted[:, : both.shape[1]] = both
    table = _Table(pool[kept], counted[kept], _codes(after, both)[kept])
    # All pairs, even those of the few prompts that have no second draw, so that rows have the flow's sums.
    rows = np.bincount(bucket_of(before[both]), minlength=3)
    flow = [
        (pairs * shares).tolist() if known or not pairs else None
        for pairs, shares, known in zip(rows, table.redrawn, table.known, strict=True)
    ]
    return Redraw(flow, table.excess(min(n_resamples, _RELABELLINGS), seed))


class _Table:
    """The buckets of n prompts' draws, −1 where there is none. ``pool`` [n, W] are those of the first model, of which
    ``counted`` [n, W] are in the flow; ``after`` [n, K] are the other model's, paired with the first K of ``pool``."""

    def __init__(self, pool: Codes, counted: BoolArray, after: Codes) -> None:
        self._width = pool.shape[1]
        self._counted = counted
        draws = np.concatenate([pool, after], axis=1)
        low = np.where(draws < 0, 9, draws).min(1)
        # A prompt whose draws are all in one bucket moves nothing however they are dealt.
        self._moving = draws.max(1) > low
        self._draws = draws[self._moving]
        still = counted[~self._moving].sum(1).astype(float)
        self._still = np.array(
            [[(still[low[~self._moving] == b] ** k).sum() for k in range(3)] for b in range(3)]
        )  # by bucket: prompts, their pairs, the squares of these
        self._moves, self._pairs, redrawn = self._count(self._draws)
        sums = self._pairs.sum(0) + self._still[:, 1]
        redrawn = redrawn.sum(0) + np.diag(self._still[:, 1])
        self.known = sums > 0
        self.redrawn = np.divide(redrawn, sums[:, None], out=np.zeros((3, 3)), where=sums[:, None] > 0)

    def excess(self, number: int, seed: int) -> list[list[Excess | None]]:
        delta, error, prompts = self._studentised(self._moves, self._pairs)
        chance = self._relabelled(number, seed) if number and 0 < len(self._draws) <= _ENOUGH else None
        found: list[list[Excess | None]] = [[None] * 3 for _ in range(3)]
        for a in range(3):
            for b in range(3):
                if prompts[a]:
                    difference = float(delta[a, b])
                    dealt = None if chance is None else (chance[0][:, a, b], chance[1][:, a, b])
                    ci95, p_value = _verdict(difference, float(error[a, b]), int(prompts[a]), dealt)
                    found[a][b] = Excess(delta=difference, ci95=ci95, p_value=p_value, prompts=int(prompts[a]))
        return found

    def _count(self, draws: Codes) -> tuple[FloatArray, FloatArray, FloatArray]:
        """For ``draws`` [..., n, W + K]: flow minus second draw [..., n, 3, 3], pairs [..., n, 3], second draw."""
        counted = self._counted[self._moving]
        pool, after = draws[..., : self._width], draws[..., self._width :]
        of_pool = (pool[..., None] == np.arange(3)).astype(np.float64)
        first = of_pool * counted[..., None]
        pairs, size = first.sum(-2), of_pool.sum((-2, -1))
        others = of_pool.sum(-2)[..., None, :] - np.eye(3)
        redrawn = pairs[..., None] * others / (size[..., None, None] - 1)
        second = (after[..., None] == np.arange(3)).astype(np.float64)
        moved = np.einsum("...ka,...kb->...ab", first[..., : after.shape[-1], :], second)
        return moved - redrawn, pairs, redrawn

    def _studentised(self, moves: FloatArray, pairs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Difference of shares [..., 3, 3], its standard error over prompts, and prompts of each row [..., 3]."""
        total = pairs.sum(-2) + self._still[:, 1]
        squares = (pairs**2).sum(-2) + self._still[:, 2]
        prompts = (pairs > 0).sum(-2) + self._still[:, 0]
        below = np.maximum(total, 1)[..., None]
        delta = moves.sum(-3) / below
        crossed = (moves * pairs[..., None]).sum(-3)
        rest = (moves**2).sum(-3) - 2 * delta * crossed + delta**2 * squares[..., None]
        spread = prompts / np.maximum(prompts - 1, 1)
        error = np.sqrt(np.maximum(rest, 0) * spread[..., None]) / below
        # If sums cancel, what is left is rounding, not a small error.
        return delta, np.where(error < 1e-9, 0.0, error), prompts

    def _relabelled(self, number: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """Differences and standard errors [number, 3, 3] after every prompt's draws were dealt again at random."""
        rng = np.random.default_rng(seed)
        there = self._draws >= 0
        places = np.argsort(~there, axis=1, kind="stable")  # where the draws are, then the holes
        deltas, errors = [], []
        for start in range(0, number, _AT_A_TIME):
            keys = rng.random((min(_AT_A_TIME, number - start), *self._draws.shape))
            order = np.argsort(np.where(there, keys, 2.0), axis=-1)
            dealt = np.empty(keys.shape, dtype=np.int8)
            np.put_along_axis(
                dealt,
                np.broadcast_to(places, keys.shape),
                np.take_along_axis(np.broadcast_to(self._draws, keys.shape), order, -1),
                -1,
            )
            moves, pairs, _ = self._count(dealt)
            delta, error, _ = self._studentised(moves, pairs)
            deltas.append(delta)
            errors.append(error)
        return np.concatenate(deltas), np.concatenate(errors)


def _verdict(
    delta: float, error: float, prompts: int, chance: tuple[FloatArray, FloatArray] | None
) -> tuple[Interval | None, float | None]:
    """Interval and p-value of a difference of shares.

    If no prompt differs from the others, nothing shows how far chance goes. Then the interval is as wide as the share
    of prompts that may be of a kind that was not seen (``stats.unseen_share``).
    """
    if prompts < FEWEST:
        return None, None
    unseen = unseen_share(prompts)
    if chance is None:
        from scipy.stats import t

        quantile = float(t.ppf(1 - LEVEL / 2, prompts - 1))
        error = error or unseen / quantile
        p_value, far = float(2 * t.sf(abs(delta) / error, prompts - 1)), quantile * error
    else:
        deltas, errors = np.abs(chance[0]), chance[1]
        if error:
            with np.errstate(divide="ignore", invalid="ignore"):
                dealt = np.where(errors > 0, deltas / errors, np.where(deltas > 1e-9, np.inf, 0.0))
            found, unit = abs(delta) / error, error
        else:
            dealt, found, unit = deltas, abs(delta), 1.0
        p_value = (1 + int((dealt >= found - 1e-9).sum())) / (1 + dealt.size)
        # p < 0.05 if fewer than ``rank`` relabellings go as far, so the interval reaches to the one of that rank.
        rank = max(1, math.ceil(LEVEL * (1 + dealt.size)) - 1)
        far = float(np.sort(dealt)[-rank]) * unit or unseen
    low, high = agreeing(delta, delta - far, delta + far, p_value)
    return (max(-1.0, low), min(1.0, high)), min(1.0, p_value)


def _codes(scores: FloatArray, there: BoolArray) -> Codes:
    """Int8 of the scores' shape: bucket 0, 1 or 2; −1 where not ``there``."""
    codes = np.full(scores.shape, -1, dtype=np.int8)
    codes[there] = bucket_of(scores[there])
    return codes
