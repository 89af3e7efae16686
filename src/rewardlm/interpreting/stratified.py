"""A sample that was drawn evenly over transitions, weighted back to the run that it is from.

A rare transition gives as many pairs to the sample as one that nearly all pairs made. So a plain mean over the sample
says nothing about the run. Here each pair counts for as many of the run's pairs as it stands for: w = of / taken of its
transition (Horvitz & Thompson 1952; over the sum of weights: Hájek 1971).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from rewardlm.interpreting.answers import AnswerSample, bucket
from rewardlm.interpreting.findings import Estimate
from rewardlm.interpreting.intervals import FEWEST, Resampling, adjust
from rewardlm.measuring.metrics import BUCKETS
from rewardlm.stats import FloatArray, agreeing, flip_p_value

Pairs = Sequence[int] | NDArray[np.intp]
Values = Sequence[float] | FloatArray


class RunMeans(Resampling):
    """Means over the run, from values of the sample's pairs. Where ``Resampling`` takes a prompt's number, this takes
    the pair's.

    If all pairs at hand stand for equally many, weights change nothing and the interval is ``Resampling``'s own. Else
    the interval is linearised (double sampling for stratification, Cochran 1977, 12.2). Let e be the influence of a
    pair on the mean. Transition h has m_h prompts and a share W_h of the run's pairs; the run has M prompts:

        V = Σ_prompts (Σ_h √(m_h / (m_h − 1)) (e_h,prompt − mean e_h))² + extra² + Σ_h (Σ e_h)² / W_h / M

    The first term is the sampling within transitions; a prompt's answers stay together. A transition with one prompt
    has no spread of its own, so the jackknife stands in: how far the mean moves if that prompt is left out. ``extra``
    is one more prompt, as far off as the farthest, as in ``stats``. Without it a few values that happen to be alike
    would seem certain. The last term is there because the run's shares of transitions come from M prompts. Student's t
    has Satterthwaite's degrees of freedom, since the mean may rest on the few pairs of one transition.

    A change has a second test, which flips the signs of the prompts' weighted sums as ``stats.mean_change`` does. p is
    the larger of the two. Fewer than five prompts give no interval.
    """

    def __init__(self, n_resamples: int, seed: int, sample: AnswerSample) -> None:
        super().__init__(n_resamples, seed)
        ways: list[tuple[str, str]] = [(stratum.from_, stratum.to) for stratum in sample.strata]
        numbers: dict[str, int] = {}
        self._prompt = np.array([numbers.setdefault(pair.prompt.id, len(numbers)) for pair in sample.pairs], np.intp)
        self._stratum = np.array([ways.index((pair.buckets[0], pair.buckets[-1])) for pair in sample.pairs], np.intp)
        of = np.array([stratum.of for stratum in sample.strata], float)
        taken = np.array([stratum.taken for stratum in sample.strata], float)
        self.weights: FloatArray = (of / np.maximum(taken, 1))[self._stratum]
        self._shares = of / of.sum()
        self._prompts_of_run = sample.prompts

    def mean(self, values: Values, clusters: Pairs) -> Estimate:
        """``clusters`` Int[n] are the values' pairs, of which each may have several."""
        found = self._influence(values, clusters)
        if not found.n or self._alike(found.pairs):
            return super().mean(*self._by_prompt_of(values, clusters))
        return self._interval(found.mean, [self._spread(found)], found.n)

    def change(self, values: Values, clusters: Pairs) -> Estimate:
        """The same with ``p_value``: is the run's mean zero?"""
        found = self._influence(values, clusters)
        if not found.n or self._alike(found.pairs):
            return super().change(*self._by_prompt_of(values, clusters))
        sums: FloatArray = np.bincount(self._prompt, found.share_of_mean).astype(float)
        flipped = flip_p_value(sums, self.n_resamples, self.seed)
        return self._tested(found.mean, [self._spread(found, from_zero=True)], found.n, at_least=flipped)

    def difference(self, values: Values, clusters: Pairs, others: Values, other_clusters: Pairs) -> Estimate:
        """The run's mean of ``values`` minus that of ``others``, of different pairs, with ``p_value``."""
        one, two = (self._influence(*each) for each in ((values, clusters), (others, other_clusters)))
        here = np.concatenate([one.pairs, two.pairs])
        if not one.n or not two.n or self._alike(here):
            return super().difference(
                *self._by_prompt_of(values, clusters), *self._by_prompt_of(others, other_clusters)
            )
        return self._tested(one.mean - two.mean, [self._spread(one), self._spread(two)], min(one.n, two.n))

    def against(
        self, values: Mapping[int, float], members: Mapping[int, float], others: Mapping[int, float]
    ) -> Estimate:
        """The mean of ``values`` (by pair) over ``members`` minus that over ``others``, each of which says by how much
        a pair belongs to it; they may share pairs."""
        one, two = (self._membership(values, share) for share in (members, others))
        if not one.n or not two.n:
            return Estimate(mean=None, ci95=None, n=0)
        return self._interval(one.mean - two.mean, [self._spread(one), self._spread(two)], min(one.n, two.n))

    def quantiles(self, values: Values, pairs: Pairs, levels: Sequence[float]) -> list[float]:
        """Of the run: the smallest values that at least these shares of it don't exceed. One value or more a pair."""
        found = np.quantile(
            np.asarray(values, float), levels, weights=self.weights[np.asarray(pairs)], method="inverted_cdf"
        )
        return [float(value) for value in found]

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
        size = len(self.weights)
        below = float((self.weights * counts).sum())
        if not below:
            return _Mean(float("nan"), np.zeros(size), np.zeros(size), np.empty(0, np.intp), 0)
        parts, shares = self.weights * sums / below, self.weights * counts / below
        return _Mean(float(parts.sum()), parts, shares, np.flatnonzero(counts), n)

    def _spread(self, of: _Mean, *, from_zero: bool = False) -> _Spread:
        """What a mean varies by, from each prompt and each transition; ``from_zero``: the extra prompt is as far from
        zero as the farthest, else as far from the mean of its transition."""
        influence = of.share_of_mean - of.mean * of.share
        by_prompt = np.zeros(int(self._prompt.max()) + 1)
        totals_of, parts = np.zeros(len(self._shares)), np.zeros((len(self._shares), 2))
        farthest: tuple[float, int] = (0.0, 0)
        for stratum in np.unique(self._stratum[of.pairs]):
            here = self._stratum == stratum
            prompts, owner = np.unique(self._prompt[here], return_inverse=True)
            totals, share, part = (np.bincount(owner, each[here]) for each in (influence, of.share, of.share_of_mean))
            m = int((share > 0).sum())
            # One prompt alone: the mean of the others is 1 / (1 - its share) times as far as the mean of all.
            # With that prompt alone there is no mean of the others, and no interval.
            scale = 1 / max(1 - share.max(), 1e-9) if m == 1 else (m / (m - 1)) ** 0.5
            apart = scale * (totals if m == 1 else totals - totals.mean())
            by_prompt[prompts] += apart
            parts[stratum] = float((apart**2).sum()), max(1, m - 1)
            totals_of[stratum] = totals.sum()
            far = float(np.abs(scale * part if from_zero else apart).max())
            farthest = max(farthest, (far, int(stratum)))
        extra, stratum = farthest
        parts[stratum, 0] += extra**2
        return _Spread(len(np.unique(self._prompt[of.pairs])), by_prompt, extra, totals_of, parts[parts[:, 1] > 0])

    def _interval(self, mean: float, groups: Sequence[_Spread], n: int) -> Estimate:
        """Of one mean or of the difference of two, without a test."""
        tested = self._tested(mean, groups, n)
        return Estimate(mean=mean, ci95=tested.ci95, n=n)

    def _tested(self, estimate: float, groups: Sequence[_Spread], n: int, *, at_least: float = 0.0) -> Estimate:
        """Of one mean or of the difference of two: is it zero? p is ``at_least`` another test's."""
        nothing = Estimate(mean=estimate, ci95=None, p_value=None, n=n)
        if min(group.prompts for group in groups) < FEWEST:
            return nothing
        one, *others = groups
        # Two groups may share prompts and transitions: what a prompt does to both cancels.
        by_prompt = one.by_prompt - sum(other.by_prompt for other in others)
        totals = one.totals - sum(other.totals for other in others)
        between = float((totals[self._shares > 0] ** 2 / self._shares[self._shares > 0]).sum()) / self._prompts_of_run
        variance = float((by_prompt**2).sum()) + sum(group.extra**2 for group in groups) + between
        if variance <= 0:
            # Without any spread nothing says how far off the run's mean may be: so no interval, not one without width.
            return nothing
        parts = np.concatenate([*(group.parts for group in groups), [[between, max(1, self._prompts_of_run - 1)]]])
        shares = parts[:, 0] / parts[:, 0].sum()
        freedom = float(1 / (shares**2 / parts[:, 1]).sum())
        error = variance**0.5
        p_value = max(float(2 * student.sf(abs(estimate) / error, freedom)), at_least)
        half = float(student.ppf(0.975, freedom) * error)
        ends = agreeing(estimate, estimate - half, estimate + half, p_value)
        return Estimate(mean=estimate, ci95=ends, p_value=p_value, n=n)


class _Mean(NamedTuple):
    """A mean, what every pair of the sample gives to it and its share of the weight, Float[P] each, the pairs that it
    is over, and its n."""

    mean: float
    share_of_mean: FloatArray
    share: FloatArray
    pairs: NDArray[np.intp]
    n: int


class _Spread(NamedTuple):
    """Of a mean: how many prompts it is over, by how much each of the sample's moves it Float[M], the extra prompt's,
    the influence of every transition Float[H], and (variance, degrees of freedom) of those that it is over."""

    prompts: int
    by_prompt: FloatArray
    extra: float
    totals: FloatArray
    parts: FloatArray


def second_draws(
    sample: AnswerSample, transitions: Sequence[str]
) -> dict[str, tuple[dict[int, float], dict[int, float]]]:
    """By transition: which pairs made it, and by how much pairs would have in a second draw of the baseline.

    Empty where the baseline answered every prompt once.
    """
    found: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    for way in sorted(set(transitions)):
        before, after = way.split(" → ")
        to = BUCKETS.index(after)
        made = {pair: 1.0 for pair, own in enumerate(transitions) if own == way}
        would: dict[int, float] = {}
        for pair, one in enumerate(sample.pairs):
            if one.buckets[0] == before and one.redraw is not None and one.redraw[to]:
                would[pair] = one.redraw[to]
        if any(one.redraw is not None for one in sample.pairs):
            found[way] = made, would
    return found


def by_transition(
    transitions: Sequence[str],
    values: Mapping[str, Mapping[int, float]],
    draws: Resampling,
    clusters: Sequence[int] | None = None,
) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """``values`` by name and pair → by transition, in the order of the buckets: how many pairs made it, and an estimate
    of every name, corrected over all transitions. ``clusters`` says which prompt a pair is of, where ``draws`` doesn't
    know."""
    found: dict[str, tuple[int, dict[str, Estimate]]] = {}
    for transition in sorted(set(transitions), key=transition_order):
        pairs = [number for number, way in enumerate(transitions) if way == transition]
        estimates = {}
        for name, by_pair in values.items():
            here = [pair for pair in pairs if pair in by_pair]
            estimate = draws.change if name.endswith("_change") else draws.mean
            owners = here if clusters is None else [clusters[pair] for pair in here]
            estimates[name] = estimate([by_pair[pair] for pair in here], owners)
        found[transition] = len(pairs), estimates
    for name in values:
        adjust([estimates[name] for _, estimates in found.values()])
    return found


def beyond_redraw(
    sample: AnswerSample, transitions: Sequence[str], values: Mapping[str, Mapping[int, float]], draws: RunMeans
) -> dict[str, dict[str, Estimate]]:
    """By transition and name: the mean minus that of the answers which a second draw of the baseline would have sent
    the same way. ``values`` must be of the baseline's own answers; empty where it answered every prompt once."""
    return {
        way: {name: draws.against(by_pair, made, would) for name, by_pair in values.items()}
        for way, (made, would) in second_draws(sample, transitions).items()
    }


def transition_order(transition: str) -> tuple[int, ...]:
    """For sorting: low before medium before high, by where a pair came from first."""
    return tuple(BUCKETS.index(name) for name in transition.split(" → "))


def transitions_of(sample: AnswerSample, model: int) -> list[str]:
    """Of each pair, as "high → low", how toxicity went from the baseline to ``model``."""
    return [f"{bucket(pair.toxicity[0])} → {bucket(pair.toxicity[model])}" for pair in sample.pairs]
