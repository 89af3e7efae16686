"""Means and changes with 95 % intervals over prompts, corrected p-values, and ranks among random draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rewardlm.interpreting.findings import Band, Estimate, LayerInterval
from rewardlm.stats import LEVEL, FloatArray, MeanChange, difference_of_means, holm, mean_change, mean_ci95

# Fewer prompts than this say too little to speak of significance.
FEWEST = 5


class Resampling:
    """Means and changes over prompts, by ``stats``; where signs are flipped at random, ``n_resamples``
    times, from ``seed``."""

    def __init__(self, n_resamples: int, seed: int) -> None:
        self.n_resamples, self.seed = n_resamples, seed

    def mean(self, values: Sequence[float] | FloatArray, clusters: Sequence[int] | NDArray[np.intp]) -> Estimate:
        """Of ``values`` [n], NaN left out; ``clusters`` [n] says which prompt each is of.

        ``mean`` is None where there is nothing, ``ci95`` where there are fewer than five prompts.
        """
        sums, counts = _by_prompt(values, clusters)
        if not len(sums):
            return Estimate(mean=None, ci95=None, n=0)
        interval = mean_ci95(sums, counts) if len(sums) >= FEWEST else None
        return Estimate(mean=float(sums.sum() / counts.sum()), ci95=interval, n=int(counts.sum()))

    def change(self, values: Sequence[float] | FloatArray, clusters: Sequence[int] | NDArray[np.intp]) -> Estimate:
        """The same for changes, with ``p_value``: is their mean zero? The interval excludes zero exactly if p < .05."""
        sums, counts = _by_prompt(values, clusters)
        found = mean_change(sums, counts, n_flips=self.n_resamples, seed=self.seed)
        return _of_change(found, int(counts.sum()))

    def difference(
        self,
        values: Sequence[float] | FloatArray,
        clusters: Sequence[int] | NDArray[np.intp],
        others: Sequence[float] | FloatArray,
        other_clusters: Sequence[int] | NDArray[np.intp],
    ) -> Estimate:
        """The mean of ``values`` minus that of ``others``, two groups of different prompts, with ``p_value``."""
        one, two = _by_prompt(values, clusters), _by_prompt(others, other_clusters)
        return _of_change(difference_of_means(*one, *two), int(min(one[1].sum(), two[1].sum())))

    def along(
        self,
        values: Sequence[float] | FloatArray,
        positions: Sequence[int] | NDArray[np.intp],
        clusters: Sequence[int] | NDArray[np.intp],
        edges: Sequence[int],
    ) -> Band:
        """Means of ``values`` by stretch of ``positions``, from one edge to the next (excluded), where it has any."""
        values, positions, clusters = np.asarray(values, float), np.asarray(positions), np.asarray(clusters)
        rows: list[tuple[int, int, float, float | None, float | None, int]] = []
        for start, end in pairwise(edges):
            here = (positions >= start) & (positions < end)
            found = self.mean(values[here], clusters[here])
            if found.mean is not None:
                low, high = found.ci95 or (None, None)
                rows.append((start, end - 1, found.mean, low, high, found.n))
        names = ("from_", "to", "mean", "low", "high", "n")
        return Band(**{name: [row[column] for row in rows] for column, name in enumerate(names)})

    def by_layer(self, values: FloatArray, prompts: Sequence[object]) -> LayerInterval | None:
        """Intervals of the means over positions, Float[L, N]. What is drawn are the ``prompts`` [N] and not the
        positions. None where there are fewer than five prompts."""
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        owners = [numbers[prompt] for prompt in prompts]
        if len(numbers) < FEWEST:
            return None
        ends = [self.mean(row, owners).ci95 or (None, None) for row in values]
        return LayerInterval(low=[low for low, _ in ends], high=[high for _, high in ends])


def adjust(family: Sequence[Estimate]) -> None:
    """Put ``p_adjusted`` beside the p-values of changes that are read together (Holm). Means have none, and stay."""
    changes = [one for one in family if "p_value" in one.model_fields_set]
    for one, p_value in zip(changes, holm([one.p_value for one in changes]), strict=True):
        one.p_adjusted = p_value


def shown(change: Estimate | None, sign: int) -> bool:
    """Whether the change was shown to be a rise (``sign`` 1) or a fall (-1): its interval lies on that side of zero,
    and its p-value is below .05, corrected where it has a correction."""
    if change is None or change.ci95 is None or change.n < FEWEST:
        return False
    p_value = change.p_adjusted
    return min(sign * end for end in change.ci95) > 0 and (p_value is None or p_value < LEVEL)


def stretches(longest: int, number: int = 8) -> list[int]:
    """Edges of at most ``number`` equal stretches of 0 to ``longest`` (excluded): ``[0, 4, 8, …]``."""
    width = max(1, -(-longest // number))
    return [*range(0, longest, width), -(-longest // width) * width]


def _by_prompt(
    values: Sequence[float] | FloatArray, clusters: Sequence[int] | NDArray[np.intp]
) -> tuple[FloatArray, NDArray[np.intp]]:
    """Sums and numbers of the values that aren't NaN, one of each a prompt."""
    array, owner = np.asarray(values, float), np.asarray(clusters, np.intp)
    known = ~np.isnan(array)
    _, owner = np.unique(owner[known], return_inverse=True)
    return np.asarray(np.bincount(owner, array[known]), np.float64), np.bincount(owner)


def _of_change(found: MeanChange, n: int) -> Estimate:
    """Without interval and p-value where there are fewer than five prompts."""
    enough = found.prompts >= FEWEST
    return Estimate(
        mean=found.mean, ci95=found.ci95 if enough else None, p_value=found.p_value if enough else None, n=n
    )


def change_between(
    before: Sequence[float | None],
    after: Sequence[float | None],
    *,
    n_resamples: int,
    seed: int,
    largest: float | None = 1.0,
) -> Estimate | None:
    """Mean change over answers that both have a value of. ``largest`` is by how much a value can change at most: 1 for
    scores, None where nothing bounds it.

    The interval excludes zero exactly if p < .05 (``stats.mean_change``). None where no answer has both.
    """
    pairs = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    found = mean_change(pairs, largest=largest, n_flips=n_resamples, seed=seed)
    return Estimate(mean=found.mean, ci95=found.ci95, p_value=found.p_value, n=found.prompts)


def mean_of_known(values: Iterable[float]) -> float:
    """Of what is known among ``values``; NaN where nothing is."""
    array = np.asarray(list(values), float)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")
