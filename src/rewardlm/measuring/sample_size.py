"""How many prompts show a change: a formula to begin with, and simulated experiments to end with.

A prompt has a chance of a toxic answer under either model. Answers to it are draws from that chance, so they resemble
each other, and more of them replace only a part of the prompts that are missing. With toxic shares p and p′, K answers
per prompt, ``correlation`` ρ of two answers of one model to a prompt, and ``shared`` s, the correlation of a prompt's
chances under the two models, a prompt's change has the variance

    V = pq (ρ + (1 − ρ)/K) + p′q′ (ρ + (1 − ρ)/K) − 2 s ρ √(pq · p′q′)

(Donner & Klar 2000, Design and Analysis of Cluster Randomization Trials, with pairs), and a change e is seen with power
1 − β on about n = (z_.975 + z_{1−β})² V / e² prompts. ``stats.mean_change`` asks for a little more than the normal
test that this is about. So ``prompts_needed`` tries sizes with that very test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rewardlm.config.power import MOST_PROMPTS
from rewardlm.stats import LEVEL, FloatArray, mean_change

# Simulated experiments hold at most so many answers, so that the largest sizes take seconds.
_MOST_ANSWERS = 100_000_000
# Sizes that are tried at most.
_TRIES = 12


@dataclass(frozen=True)
class Assumptions:
    """What two models' answers are like: the toxic share ``before``, its fall ``effect``, and the module's ρ and s."""

    before: float
    effect: float
    correlation: float
    shared: float

    @property
    def after(self) -> float:
        return max(0.0, self.before - self.effect)

    def variance(self, samples: int) -> float:
        """V: of a prompt's change, with so many answers by each model."""
        spread = self.correlation + (1 - self.correlation) / samples
        one, two = (share * (1 - share) for share in (self.before, self.after))
        return (one + two) * spread - 2 * self._covariance

    @cached_property
    def _covariance(self) -> float:
        """Of a prompt's chances under both models: s ρ √(pq · p′q′), or the most that such chances can have."""
        one, two = (share * (1 - share) for share in (self.before, self.after))
        return min(self.shared * self.correlation * math.sqrt(one * two), self._latent.most)

    @cached_property
    def _latent(self) -> _Latent:
        return _Latent.of(self.before, self.after, self.correlation)

    @cached_property
    def _likeness(self) -> float:
        return self._latent.likeness(self._covariance)

    def changes(self, prompts: int, samples: int, rng: np.random.Generator) -> FloatArray:
        """Float[prompts]: by how much the number of toxic answers changes for each prompt of a simulated experiment."""
        chances = self._latent.draw(prompts, self._likeness, rng)
        before, after = (rng.binomial(samples, chance) for chance in chances)
        found: FloatArray = (after - before).astype(np.float64)
        return found


@dataclass(frozen=True)
class _Latent:
    """Prompts' chances, as Φ of a normal number z each: Φ((cut + √a·z) / √(1 − a)), so that a share p and a correlation
    ρ come out. ``weights`` are the a of both models.
    """

    shares: tuple[float, float]
    cuts: tuple[float, float]
    weights: tuple[float, float]

    @classmethod
    def of(cls, before: float, after: float, correlation: float) -> _Latent:
        from scipy.special import ndtri

        shares = before, after
        first, second = (_weight(share, correlation) for share in shares)
        cuts = float(ndtri(before)), float(ndtri(after)) if after > 0 else -math.inf
        return cls(shares, cuts, (first, second))

    @property
    def most(self) -> float:
        """The largest covariance of a prompt's two chances: both follow one and the same normal number."""
        return self.covariance(1.0)

    def covariance(self, likeness: float) -> float:
        """Of a prompt's chances, if the normal numbers behind them have this correlation."""
        if self.shares[1] <= 0:
            return 0.0
        joint = both_below(*self.cuts, likeness * math.sqrt(self.weights[0] * self.weights[1]))
        return joint - self.shares[0] * self.shares[1]

    def draw(self, prompts: int, likeness: float, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Two Float[prompts]: chances under either model; ``likeness`` is that of the normal numbers behind them."""
        one = rng.standard_normal(prompts)
        two = likeness * one + math.sqrt(1 - likeness**2) * rng.standard_normal(prompts)
        first, second = (_chance(*pair) for pair in zip(self.cuts, self.weights, (one, two), strict=True))
        return first, second

    def likeness(self, covariance: float) -> float:
        """The correlation of the normal numbers behind chances of that covariance."""
        from scipy.optimize import brentq

        if covariance <= 0 or self.shares[1] <= 0:
            return 0.0
        if covariance >= self.most * (1 - 1e-9):
            return 1.0
        return float(brentq(lambda r: self.covariance(r) - covariance, 0.0, 1.0, xtol=1e-6))


def _weight(share: float, correlation: float) -> float:
    """a: so that two answers with a common normal number have this correlation of being toxic."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    if correlation <= 0 or not 0 < share < 1:
        return 0.0
    cut = float(ndtri(share))
    wanted = share**2 + correlation * share * (1 - share)
    return float(brentq(lambda a: both_below(cut, cut, a) - wanted, 0.0, 1.0, xtol=1e-9))


def _chance(cut: float, weight: float, z: FloatArray) -> FloatArray:
    from scipy.special import ndtr

    found: FloatArray = ndtr((cut + math.sqrt(weight) * z) / math.sqrt(max(1e-12, 1 - weight)))
    return found


def both_below(one: float, two: float, correlation: float) -> float:
    """The chance that two standard normal numbers with this correlation lie below ``one`` and ``two`` (Owen 1956,
    Annals of Mathematical Statistics 27:1075-1090).
    """
    from scipy.special import ndtr, owens_t

    if correlation >= 1 - 1e-12:
        return float(ndtr(min(one, two)))
    # The formula divides by both limits.
    h, k = (limit if limit else 1e-15 for limit in (one, two))
    root = math.sqrt(1 - correlation**2)
    apart = 0.0 if h * k > 0 else 0.5
    found = (ndtr(h) + ndtr(k)) / 2 - apart
    found -= owens_t(h, (k / h - correlation) / root) + owens_t(k, (h / k - correlation) / root)
    return float(found)


def by_formula(known: Assumptions, samples: int, power: float) -> int:
    """About how many prompts see the fall with that power: the module's formula, with one more prompt in the variance
    of the mean, as far from zero as a prompt can be, because ``stats.mean_change`` has one.
    """
    from scipy.special import ndtri

    ratio = float(((ndtri(1 - LEVEL / 2) + ndtri(power)) / known.effect) ** 2)
    # (z / e)² (n V + 1) = n²
    half = ratio * known.variance(samples) / 2
    return max(2, math.ceil(half + math.sqrt(half**2 + ratio)))


def power_by_formula(known: Assumptions, prompts: int, samples: int) -> float:
    """The same turned round: about what power so many prompts have."""
    from scipy.special import ndtr, ndtri

    error = math.sqrt(prompts * known.variance(samples) + 1) / prompts
    return float(ndtr(known.effect / error - ndtri(1 - LEVEL / 2)))


def smallest_effect(known: Assumptions, prompts: int, samples: int, power: float) -> float | None:
    """The smallest fall that so many prompts see with that power, by the formula; None where not even a fall to 0 is
    seen.
    """
    low, high = 0.0, known.before
    if power_by_formula(replace(known, effect=high), prompts, samples) < power:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = power_by_formula(replace(known, effect=middle), prompts, samples) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def simulated_power(known: Assumptions, prompts: int, samples: int, *, draws: int, seed: int) -> float:
    """The share of simulated experiments in which ``stats.mean_change`` finds the fall (p < .05, and below zero)."""
    found = 0
    for draw in range(draws):
        # A stream of its own for each, so that the first experiments of two sizes resemble each other.
        rng = np.random.default_rng((seed, draw))
        changes = known.changes(prompts, samples, rng)
        change = mean_change(changes, np.full(prompts, samples), largest=1.0)
        found += change.p_value is not None and change.p_value < LEVEL and (change.mean or 0.0) < 0
    return found / draws


@dataclass(frozen=True)
class TriedSize:
    """What simulated experiments of one size found: their power, and how many experiments that were."""

    power: float
    draws: int


@dataclass(frozen=True)
class Size:
    """How many prompts are needed: None where no size up to ``MOST_PROMPTS`` was enough. ``tried`` has every size that
    was simulated.
    """

    prompts: int | None
    tried: Mapping[int, TriedSize]


def try_size(known: Assumptions, prompts: int, samples: int, *, draws: int, seed: int) -> TriedSize:
    """Simulate experiments of one size: ``draws``, or as many as are quick."""
    affordable = max(200, min(draws, _MOST_ANSWERS // (prompts * samples)))
    return TriedSize(simulated_power(known, prompts, samples, draws=affordable, seed=seed), affordable)


def prompts_needed(known: Assumptions, samples: int, power: float, *, draws: int, seed: int) -> Size:
    """The fewest prompts by which simulated experiments see the fall with that power, within their own error.

    The formula gives a first size. Near it, z_power rises with √n by e/√V, so each simulated size says what the next
    one should be; where sizes on both sides are known, it lies between them.
    """
    from scipy.special import ndtri

    n = by_formula(known, samples, power)
    slope = known.effect / math.sqrt(known.variance(samples))
    tried: dict[int, TriedSize] = {}
    low, high = 1, MOST_PROMPTS + 1
    while low < n < high and len(tried) < _TRIES:
        found = tried[n] = try_size(known, n, samples, draws=draws, seed=seed)
        low, high = (n, high) if found.power < power else (low, n)
        if abs(found.power - power) <= _error(power, found):
            break
        bounded = min(max(found.power, 0.5 / found.draws), 1 - 0.5 / found.draws)
        n = math.ceil((math.sqrt(n) + (float(ndtri(power)) - float(ndtri(bounded))) / slope) ** 2)
        if not low < n < high:
            n = math.ceil((low + high) / 2) if high <= MOST_PROMPTS else 2 * low
    enough = [size for size, found in tried.items() if found.power >= power - _error(power, found)]
    return Size(min(enough) if enough else None, dict(sorted(tried.items())))


def _error(power: float, found: TriedSize) -> float:
    """The Monte-Carlo error of a power."""
    return math.sqrt(power * (1 - power) / found.draws)
