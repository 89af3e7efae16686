"""A sample that was drawn evenly over transitions, weighted back to the run that it is from.

A transition that few pairs made gives as many pairs to the sample as one that nearly all made. So a plain mean over the
sample says nothing about the run. Here each pair counts for as many of the run's pairs as it stands for: w = of / taken
of its transition (Horvitz & Thompson 1952, over the sum of weights: Hájek 1971).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from rewardlm.interpret.intervals import FEWEST, Interval, Resampling
from rewardlm.interpret.sample import Sample
from rewardlm.measure.metrics import FloatArray

Pairs = Sequence[int] | NDArray[np.intp]
Values = Sequence[float] | FloatArray


class RunMeans(Resampling):
    """Means over the run, from values of the sample's pairs. Where ``Resampling`` takes a prompt's number, this takes
    the pair's.

    Where all pairs at hand stand for as many, weights would change nothing and the interval is ``Resampling``'s own.
    Else it is linearised (double sampling for stratification, Cochran 1977, 12.2): with e the influence of a pair on
    the mean, m_h prompts in transition h, N pairs in the run of which a share W_h made it, and M prompts in the run,

        V = Σ_prompts (Σ_h √(m_h / (m_h − 1)) (e_h,prompt − mean e_h))² + Σ_h (Σ e_h)² / W_h / M

    The first is the sampling within transitions, answers to one prompt together; the second that the run's shares of
    transitions are those of M prompts. Student's t has Satterthwaite's degrees of freedom: the mean may rest on the few
    pairs of one transition.
    """

    def __init__(self, n_resamples: int, seed: int, sample: Sample) -> None:
        super().__init__(n_resamples, seed)
        ways = [(str(stratum["from"]), str(stratum["to"])) for stratum in sample.strata]
        numbers: dict[str, int] = {}
        self._prompt = np.array([numbers.setdefault(pair.prompt.id, len(numbers)) for pair in sample.pairs], np.intp)
        self._stratum = np.array([ways.index((pair.buckets[0], pair.buckets[-1])) for pair in sample.pairs], np.intp)
        of, taken = (np.array([stratum[key] for stratum in sample.strata], float) for key in ("of", "taken"))
        self.weights: FloatArray = (of / np.maximum(taken, 1))[self._stratum]
        self._shares = of / of.sum()
        self._prompts_of_run = sample.prompts

    def mean(self, values: Values, clusters: Pairs) -> Interval:
        """``{"mean", "ci95", "n"}``; ``clusters`` Int[n] are the values' pairs, of which each may have several."""
        found = self._plain_or_linearised(values, clusters)
        return super().mean(*self._by_prompt_of(values, clusters)) if found is None else found[0]

    def change(self, values: Values, clusters: Pairs) -> Interval:
        """The same with ``p_value``: is the run's mean zero?"""
        found = self._plain_or_linearised(values, clusters)
        if found is None:
            return super().change(*self._by_prompt_of(values, clusters))
        return {**found[0], "p_value": found[1]}

    def difference(self, values: Values, clusters: Pairs, others: Values, other_clusters: Pairs) -> Interval:
        """The run's mean of ``values`` minus that of ``others``, of different pairs, with ``p_value``."""
        one, two = (self._influence(*each) for each in ((values, clusters), (others, other_clusters)))
        here = np.concatenate([one.pairs, two.pairs])
        if not len(one.pairs) or not len(two.pairs) or self._alike(here):
            return super().difference(
                *self._by_prompt_of(values, clusters), *self._by_prompt_of(others, other_clusters)
            )
        interval, p_value = self._interval(one.mean - two.mean, one.influence - two.influence, here, min(one.n, two.n))
        return {**interval, "p_value": p_value}

    def against(
        self, values: Mapping[int, float], members: Mapping[int, float], others: Mapping[int, float]
    ) -> Interval:
        """The mean of ``values`` (by pair) over ``members`` minus that over ``others``, each of which says by how much
        a pair belongs to it; they may share pairs."""
        one, two = (self._membership(values, share) for share in (members, others))
        if not one.n or not two.n:
            return {"mean": None, "ci95": None, "n": 0}
        here = np.concatenate([one.pairs, two.pairs])
        return self._interval(one.mean - two.mean, one.influence - two.influence, here, min(one.n, two.n))[0]

    def quantiles(self, values: Values, pairs: Pairs, levels: Sequence[float]) -> list[float]:
        """Of the run: the smallest values that at least these shares of it don't exceed. One value or more a pair."""
        found = np.quantile(
            np.asarray(values, float), levels, weights=self.weights[np.asarray(pairs)], method="inverted_cdf"
        )
        return [float(value) for value in found]

    def _plain_or_linearised(self, values: Values, clusters: Pairs) -> tuple[Interval, float | None] | None:
        """None where all weights are alike."""
        found = self._influence(values, clusters)
        if not found.n or self._alike(found.pairs):
            return None
        return self._interval(found.mean, found.influence, found.pairs, found.n)

    def _alike(self, pairs: NDArray[np.intp]) -> bool:
        return bool(np.ptp(self.weights[pairs]) < 1e-9)

    def _by_prompt_of(self, values: Values, clusters: Pairs) -> tuple[FloatArray, NDArray[np.intp]]:
        return np.asarray(values, float), self._prompt[np.asarray(clusters, np.intp)]

    def _influence(self, values: Values, clusters: Pairs) -> _Mean:
        """Of the ratio Σ w·(sum of a pair's values) / Σ w·(their number)."""
        array, pairs = np.asarray(values, float), np.asarray(clusters, np.intp)
        known = ~np.isnan(array)
        size = len(self.weights)
        sums = np.bincount(pairs[known], array[known], minlength=size).astype(float)
        return self._ratio(sums, np.bincount(pairs[known], minlength=size).astype(float), int(known.sum()))

    def _membership(self, values: Mapping[int, float], share: Mapping[int, float]) -> _Mean:
        size = len(self.weights)
        sums, counts = np.zeros(size), np.zeros(size)
        for pair, weight in share.items():
            if pair in values and not np.isnan(values[pair]):
                sums[pair], counts[pair] = weight * values[pair], weight
        return self._ratio(sums, counts, int((counts > 0).sum()))

    def _ratio(self, sums: FloatArray, counts: FloatArray, n: int) -> _Mean:
        below = float((self.weights * counts).sum())
        if not below:
            return _Mean(float("nan"), np.zeros(len(self.weights)), np.empty(0, np.intp), 0)
        mean = float((self.weights * sums).sum()) / below
        return _Mean(mean, self.weights * (sums - mean * counts) / below, np.flatnonzero(counts), n)

    def _interval(
        self, estimate: float, influence: FloatArray, pairs: NDArray[np.intp], n: int
    ) -> tuple[Interval, float | None]:
        """The interval, and the p-value of zero."""
        if len(np.unique(self._prompt[pairs])) < FEWEST:
            return {"mean": estimate, "ci95": None, "n": n}, None
        within = np.zeros(int(self._prompt.max()) + 1)
        parts: list[tuple[float, float]] = []
        between = 0.0
        for stratum in np.unique(self._stratum):
            here = self._stratum == stratum
            prompts, owner = np.unique(self._prompt[here], return_inverse=True)
            totals, m = np.bincount(owner, influence[here]), len(prompts)
            # A transition with one prompt has no spread of its own; the distance from the mean stands in for it.
            apart = totals if m == 1 else (totals - totals.mean()) * np.sqrt(m / (m - 1))
            within[prompts] += apart
            parts.append((float((apart**2).sum()), max(1.0, m - 1)))
            between += float(totals.sum()) ** 2 / self._shares[stratum] / self._prompts_of_run
        parts.append((between, max(1.0, self._prompts_of_run - 1)))
        variance = float((within**2).sum()) + between
        if variance <= 0:
            # Without any spread nothing says how far the run's mean may be: no interval, rather than one without width.
            return {"mean": estimate, "ci95": None, "n": n}, None
        freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / df for part, df in parts)
        error = np.sqrt(variance)
        far = float(student.ppf(0.975, freedom) * error)
        p_value = float(2 * student.sf(abs(estimate) / error, freedom))
        return {"mean": estimate, "ci95": [estimate - far, estimate + far], "n": n}, p_value


class _Mean:
    """A mean, the influence Float[P] of every pair of the sample on it, the pairs that it is over, and its n."""

    __slots__ = ("influence", "mean", "n", "pairs")

    def __init__(self, mean: float, influence: FloatArray, pairs: NDArray[np.intp], n: int) -> None:
        self.mean, self.influence, self.pairs, self.n = mean, influence, pairs, n


def second_draws(sample: Sample, transitions: Sequence[str]) -> dict[str, tuple[dict[int, float], dict[int, float]]]:
    """By transition: which pairs made it, and by how much pairs would have in a second draw of the baseline.

    Empty where the baseline answered every prompt once.
    """
    found: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    for way in sorted(set(transitions)):
        before, after = way.split(" → ")
        to = ("low", "medium", "high").index(after)
        made = {pair: 1.0 for pair, own in enumerate(transitions) if own == way}
        would: dict[int, float] = {}
        for pair, one in enumerate(sample.pairs):
            if one.buckets[0] == before and one.redraw is not None and one.redraw[to]:
                would[pair] = one.redraw[to]
        if any(one.redraw is not None for one in sample.pairs):
            found[way] = made, would
    return found
