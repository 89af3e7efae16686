"""A share that a judge counted, corrected for how often that judge is wrong.

A judge that misses a third of what it looks for, and calls a tenth of the rest so too, counts neither the true share
nor a bound of it. Rogan and Gladen (1978) solve p = P·Se + (1 − P)·(1 − Sp) for the true share P. The interval of Lang
and Reiczigel (2014) knows that p, Se and Sp were all counted on samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewardlm.measure.metrics import FloatArray

_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True, slots=True)
class JudgeErrors:
    """On pairs whose class is known: how many are what the judge looks for, how many of them it finds; how many are
    not, and how many of those it calls so all the same.
    """

    positives: int
    found: int
    negatives: int
    called: int

    @property
    def sensitivity(self) -> float:
        return self.found / self.positives

    @property
    def specificity(self) -> float:
        return 1 - self.called / self.negatives


def judge_errors(error: Mapping[str, Any] | None) -> JudgeErrors | None:
    """Of what a run records of its pair judge; None where it has no counts, as in older runs."""
    counts = (error or {}).get("counts")
    return JudgeErrors(**counts) if counts and counts["positives"] and counts["negatives"] else None


def effective_size(hits: FloatArray) -> float:
    """How many independent answers say as much of the mean of ``hits`` Float[N, K] as these do.

    Answers to one prompt resemble each other, so prompts count as clusters: p(1 − p) over the variance of the ratio of
    their sums (Cochran 1977, 6.3). NaN is no answer. Where all are alike it is the number of prompts.
    """
    known = ~np.isnan(hits)
    sizes = known.sum(axis=1)
    sizes, sums = sizes[sizes > 0], np.where(known, hits, 0.0).sum(axis=1)[sizes > 0]
    prompts, answers = len(sizes), int(sizes.sum())
    share = float(sums.sum()) / answers
    spread = float(((sums - share * sizes) ** 2).sum())
    if prompts < 2 or spread == 0:
        return float(prompts)
    variance = prompts / (prompts - 1) * spread / answers**2
    return min(float(answers), share * (1 - share) / variance)


def corrected_share(hits: FloatArray, errors: JudgeErrors | None) -> tuple[float | None, tuple[float, float] | None]:
    """The true share behind ``hits`` Float[N, K] (1: the judge called it so, NaN: not judged), and its 95 % interval.

    Both are held to [0, 1]. None where there is nothing to correct, or where ``errors`` are unknown or those of a judge
    that guesses (sensitivity + specificity ≤ 1).
    """
    if errors is None or np.isnan(hits).all() or errors.sensitivity + errors.specificity <= 1:
        return None, None
    share = float(np.nanmean(hits))
    youden = errors.sensitivity + errors.specificity - 1
    estimate = (share + errors.specificity - 1) / youden
    return _held(estimate), lang_reiczigel(share, effective_size(hits), errors)


def lang_reiczigel(share: float, n: float, errors: JudgeErrors) -> tuple[float, float] | None:
    """95 % interval of a prevalence by an imperfect test (Lang & Reiczigel 2014, Prev. Vet. Med. 113:13-22).

    ``share`` of ``n`` were called. None where the adjusted sensitivity and specificity are no better than a guess.
    """
    n_adjusted = n + _Z**2
    p = (n * share + _Z**2 / 2) / n_adjusted
    n_se, n_sp = errors.positives + 2, errors.negatives + 2
    se, sp = (errors.found + 1) / n_se, (errors.negatives - errors.called + 1) / n_sp
    youden = se + sp - 1
    if youden <= 0:
        return None
    prevalence = (p + sp - 1) / youden
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * _Z**2 * (prevalence * of_se - (1 - prevalence) * of_sp)
    width = _Z * math.sqrt(p * (1 - p) / n_adjusted + prevalence**2 * of_se + (1 - prevalence) ** 2 * of_sp) / youden
    return _held(prevalence + shift - width), _held(prevalence + shift + width)


def _held(value: float) -> float:
    return min(1.0, max(0.0, value))
