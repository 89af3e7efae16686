"""Means with 95 % intervals, over answers and along them. What is drawn again are prompts, with all that they gave."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewardlm.measure.metrics import FloatArray, bootstrap_ratio

Interval = dict[str, Any]

# Of fewer prompts than this a bootstrap knows too little: of two it would give the two values themselves.
FEWEST = 5


class Resampling:
    """Percentile bootstraps with ``n_resamples`` draws, from ``seed``."""

    def __init__(self, n_resamples: int, seed: int) -> None:
        self.n_resamples, self.seed = n_resamples, seed

    def mean(self, values: Sequence[float] | FloatArray, clusters: Sequence[int] | NDArray[np.intp]) -> Interval:
        """``{"mean", "ci95", "n"}`` of ``values`` [n], NaN left out; ``clusters`` [n] says which prompt each is of.

        ``mean`` is None where there is nothing, ``ci95`` where there are fewer than five prompts.
        """
        draws, kept = self._draws(values, clusters)
        if not kept.size:
            return {"mean": None, "ci95": None, "n": 0}
        return {"mean": float(kept.mean()), "ci95": _quantiles(draws), "n": int(kept.size)}

    def difference(
        self,
        values: Sequence[float] | FloatArray,
        clusters: Sequence[int] | NDArray[np.intp],
        others: Sequence[float] | FloatArray,
        other_clusters: Sequence[int] | NDArray[np.intp],
    ) -> Interval:
        """The mean of ``values`` minus that of ``others``, two groups of different prompts, each drawn again."""
        draws, kept = self._draws(values, clusters)
        other_draws, other_kept = self._draws(others, other_clusters, apart=1)
        n = int(min(kept.size, other_kept.size))
        if not n:
            return {"mean": None, "ci95": None, "n": 0}
        interval = _quantiles(draws - other_draws) if draws.size and other_draws.size else None
        return {"mean": float(kept.mean() - other_kept.mean()), "ci95": interval, "n": n}

    def along(
        self,
        values: Sequence[float] | FloatArray,
        positions: Sequence[int] | NDArray[np.intp],
        clusters: Sequence[int] | NDArray[np.intp],
        edges: Sequence[int],
    ) -> dict[str, list[Any]]:
        """Means of ``values`` by stretch of ``positions``, from one edge to the next (excluded), each with its band.

        ``{"from", "to", "mean", "low", "high", "n"}``, lists with one entry a stretch that has any value.
        """
        values, positions, clusters = np.asarray(values, float), np.asarray(positions), np.asarray(clusters)
        band: dict[str, list[Any]] = {key: [] for key in ("from", "to", "mean", "low", "high", "n")}
        for start, end in pairwise(edges):
            here = (positions >= start) & (positions < end)
            found = self.mean(values[here], clusters[here])
            if found["n"]:
                low, high = found["ci95"] or (None, None)
                for key, value in zip(band, (start, end - 1, found["mean"], low, high, found["n"]), strict=True):
                    band[key].append(value)
        return band

    def _draws(
        self,
        values: Sequence[float] | FloatArray,
        clusters: Sequence[int] | NDArray[np.intp],
        apart: int = 0,
    ) -> tuple[FloatArray, FloatArray]:
        """Means of drawn samples (none where there are too few prompts), and the values that aren't NaN."""
        array, owner = np.asarray(values, float), np.asarray(clusters, np.intp)
        known = ~np.isnan(array)
        kept = array[known]
        _, owner = np.unique(owner[known], return_inverse=True)
        if not kept.size or owner.max() + 1 < FEWEST:
            return np.empty(0), kept
        sums, counts = np.bincount(owner, kept), np.bincount(owner)
        return bootstrap_ratio(sums, counts, self.n_resamples, self.seed + apart), kept


def stretches(longest: int, number: int = 8) -> list[int]:
    """Edges of at most ``number`` equal stretches of 0 to ``longest`` (excluded): ``[0, 4, 8, …]``."""
    width = max(1, -(-longest // number))
    return [*range(0, longest, width), -(-longest // width) * width]


def _quantiles(draws: FloatArray) -> list[float] | None:
    if not draws.size:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
