"""A share that a judge counted, corrected for how often that judge is wrong.

Take a judge that misses a third of what it looks for, and calls a tenth of the rest so too. Its count is neither the
true share nor a bound of it. Rogan and Gladen (1978) solve p = P·Se + (1 − P)·(1 − Sp) for the true share P, where p is
the judge's share, Se its sensitivity and Sp its specificity. The interval of Lang and Reiczigel (2014) takes into
account that p, Se and Sp were all counted on samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardlm.stats import FloatArray, answers_worth

Z = 1.959963984540054  # of 95 %
_MANY = 10**9  # counts of a judge that surely does not err


@dataclass(frozen=True, slots=True)
class JudgeErrors:
    """A judge's counts on texts whose class is known. ``positives`` are what it looks for, and it ``found`` so many of
    them; ``negatives`` are not, and it ``called`` so many of them hits all the same. From a sample that isn't a plain
    one, they are the counts of a plain one that would say as much.
    """

    positives: float
    found: float
    negatives: float
    called: float

    @property
    def sensitivity(self) -> float:
        return self.found / self.positives

    @property
    def specificity(self) -> float:
        return 1 - self.called / self.negatives

    @property
    def youden(self) -> float:
        """Youden's index: what a change of the true share is multiplied by in the judge's; 0 for one that guesses."""
        return self.sensitivity + self.specificity - 1

    @property
    def youden_variance(self) -> float:
        """Its variance, with one more hit and miss of each kind (Agresti & Coull 1998)."""
        rates = (
            ((self.found + 1) / (self.positives + 2), self.positives + 2),
            ((self.negatives - self.called + 1) / (self.negatives + 2), self.negatives + 2),
        )
        return sum(rate * (1 - rate) / n for rate, n in rates)


def judge_errors(error: Mapping[str, Any] | None) -> JudgeErrors | None:
    """The errors that a run records of its pair judge; None without counts."""
    counts = (error or {}).get("counts")
    if not counts or not counts["positives"] or not counts["negatives"]:
        return None
    return JudgeErrors(counts["positives"], counts["found"], counts["negatives"], counts["called"])


def effective_size(hits: FloatArray) -> float | None:
    """The number of independent answers by which the mean of ``hits`` Float[N, K] (NaN is no answer) would be known as
    well as it is.

    Answers to one prompt resemble each other, so prompts count as clusters (``stats.answers_worth``). None for
    fewer than two prompts.
    """
    known = ~np.isnan(hits)
    if known.any(axis=1).sum() < 2:
        return None
    return answers_worth(np.where(known, hits, 0.0).sum(axis=1), known.sum(axis=1))


def corrected_share(hits: FloatArray, errors: JudgeErrors | None) -> tuple[float | None, tuple[float, float] | None]:
    """The true share behind ``hits`` Float[N, K] (1: the judge called it one, NaN: not judged), and its 95 % interval.

    Both are kept within [0, 1]. None if there is nothing to correct, ``errors`` are unknown, or the judge only guesses
    (sensitivity + specificity ≤ 1). One prompt has no interval.

    If the judge calls fewer answers hits than its false alarms alone would give, an interval kept within [0, 1] would
    lose its width. If chance explains it, the interval is made as wide as that of a true share of 0. If not
    (``errors_fit``), false alarms are rarer here than ``errors`` say, and nobody knows by how much: the upper end is
    that of a judge without any. If more are called than the judge can find, it is the same, the other way round.
    """
    if errors is None or np.isnan(hits).all() or errors.sensitivity + errors.specificity <= 1:
        return None, None
    share, false_alarms = float(np.nanmean(hits)), 1 - errors.specificity
    estimate = (share - false_alarms) / (errors.sensitivity - false_alarms)
    n = effective_size(hits)
    found = None if n is None else lang_reiczigel(share, n, errors)
    if n is None or found is None:
        return held(estimate), None
    low, high = found
    if high <= 0:
        none_is_false = JudgeErrors(errors.positives, errors.found, _MANY, 0)
        low, high = 0.0, (lang_reiczigel(share, n, none_is_false) or (0, 1))[1]
    elif low >= 1:
        all_are_found = JudgeErrors(_MANY, _MANY, errors.negatives, errors.called)
        low, high = (lang_reiczigel(share, n, all_are_found) or (0, 1))[0], 1.0
    elif estimate < 0:
        high = max(high, (lang_reiczigel(false_alarms, n, errors) or found)[1])
    elif estimate > 1:
        low = min(low, (lang_reiczigel(errors.sensitivity, n, errors) or found)[0])
    return held(estimate), (held(low), held(high))


def errors_fit(hits: FloatArray, errors: JudgeErrors | None) -> bool | None:
    """Whether some true share explains how many of ``hits`` Float[N, K] there are, by a judge with these errors.

    False if the share of hits is lower than false alarms alone would make it, or higher than what the judge can find,
    and chance explains neither: the 95 % interval lies outside of [0, 1]. None if there is no such interval.
    """
    n = effective_size(hits)
    if errors is None or n is None or errors.sensitivity + errors.specificity <= 1:
        return None
    found = lang_reiczigel(float(np.nanmean(hits)), n, errors)
    return None if found is None else found[0] < 1 and found[1] > 0


def lang_reiczigel(share: float, n: float, errors: JudgeErrors) -> tuple[float, float] | None:
    """95 % interval of a prevalence by an imperfect test (Lang & Reiczigel 2014, Prev. Vet. Med. 113:13-22).

    The judge called ``share`` of ``n`` answers hits. One end or both may lie outside of [0, 1]. None if the adjusted
    sensitivity and specificity are no better than a guess.
    """
    n_adjusted = n + Z**2
    p = (n * share + Z**2 / 2) / n_adjusted
    n_se, n_sp = errors.positives + 2, errors.negatives + 2
    se, sp = (errors.found + 1) / n_se, (errors.negatives - errors.called + 1) / n_sp
    youden = se + sp - 1
    if youden <= 0:
        return None
    prevalence = (p + sp - 1) / youden
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * Z**2 * (prevalence * of_se - (1 - prevalence) * of_sp)
    width = Z * math.sqrt(p * (1 - p) / n_adjusted + prevalence**2 * of_se + (1 - prevalence) ** 2 * of_sp) / youden
    return prevalence + shift - width, prevalence + shift + width


def held(value: float) -> float:
    """Within [0, 1], as a share is."""
    return min(1.0, max(0.0, value))
