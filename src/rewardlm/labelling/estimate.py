"""What people say of some answers, carried over to all: prediction-powered inference for a stratified sample.

Each answer i gets a number z_i. Its mean over all answers, or over any part of them, estimates what people would say of
these. With the judge's score f_i, the label y_i where there is one, and the share π_i of its class that was labelled:

    z_i = λ·f_i + c + [i is labelled] · (y_i - λ·f_i - c) / π_i

where c is the mean of y - λ·f over the labels of i's class. That is the regression estimator of survey sampling
(Cochran 1977, Sampling Techniques, section 7.3), known as PPI++ for models as judges (Angelopoulos, Duchi & Zrnic 2023,
arXiv 2311.01453). It needs no trust in the judge, and λ, chosen so that the variance is least, makes it no worse
than labels alone. Between prompts, z varies as much as the estimate does over prompts and labels together, so the
intervals of ``stats``, whose unit is the prompt, hold for means of z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewardlm.labelling.design import LEAST, IntArray, merged
from rewardlm.stats import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class Quotient:
    """A share π = u / v as Fieller's method needs it: ``over`` is v, and u - π·v varies, for any π, as the sum over
    answers of ``fixed`` + π·``slope``, Float[G] each, does over prompts.
    """

    over: float
    fixed: FloatArray
    slope: FloatArray


@dataclass(frozen=True, slots=True)
class Corrected:
    """``z`` Float[G] of G answers: its mean is the corrected share. It rests on so many ``labels`` in so many
    ``classes``, of which ``rare`` aren't of the commonest kind. As far as the share varies with which answers were
    labelled, its variance is ``label_variance`` and its third moment ``label_third_moment``. A share that is a quotient
    says so in ``quotient``.
    """

    z: FloatArray
    labels: int
    classes: int
    rare: int
    label_variance: float
    label_third_moment: float
    quotient: Quotient | None = None

    @property
    def freedom(self) -> int:
        """Degrees of freedom that the labels leave."""
        return max(1, self.labels - self.classes)

    @property
    def unseen_variance(self) -> float:
        """What ``label_variance`` lacks of that of a single error of the judge, which stands for as many answers as a
        label does on average: where labels happen to show no error, that is no proof that there is none (the idea of
        Agresti & Coull 1998).
        """
        return max(0.0, 1 / self.labels**2 - self.label_variance)


@dataclass(frozen=True, slots=True)
class SamplingDesign:
    """How G answers were drawn: the class of each, ``classes`` Int[G], the group that classes don't mix as far as there
    are labels for each, ``groups`` Int[G], and the share of its class that was to be labelled, ``rates`` Float[G].
    """

    classes: IntArray
    groups: IntArray
    rates: FloatArray


def ppi(scores: FloatArray, labels: FloatArray, asked: SamplingDesign) -> Corrected | None:
    """By ``labels`` Float[G], from 0 to 1 (toxic), NaN where there is none. ``scores`` Float[G] are any judge's, NaN
    where unscored.

    A class with fewer than two labels is merged with a neighbour; labels then count by the rates at which they were
    drawn. None with fewer than two labels in all.
    """
    known = ~np.isnan(labels)
    if known.sum() < LEAST:
        return None
    classes = _with_labels(asked, known)
    weights = _weights(classes, known, asked.rates)
    # Whether an answer has a score is known of all, so any number may stand for a missing one.
    f = np.where(np.isnan(scores), 0.0, scores)
    lam = _slope(f, labels, known, classes)
    means, apart = _carried_over(labels - lam * f, classes, weights)
    return _corrected(lam * f + means, apart, labels, classes)


def rogan_gladen(toxic: FloatArray, labels: FloatArray, asked: SamplingDesign) -> Corrected | None:
    """The judge's share, solved for the true one by how often it errs on the labels; arguments as of ``ppi``, but for
    ``toxic`` Float[G], 1 where the judge calls an answer toxic.

    With the judge's share p, and a and b the weighted shares of toxic and of other labelled answers that it calls
    toxic, it is π = (p - b) / (a - b) (Rogan & Gladen 1978). z is what an answer contributes to it to first order, so
    it varies as π does, where p, a and b come from the same answers. None without labels of both kinds, or where the
    judge is no better than a guess.
    """
    known = ~np.isnan(labels)
    if known.sum() < LEAST:
        return None
    classes = _with_labels(asked, known)
    weights = _weights(classes, known, asked.rates)
    said = np.where(known, labels, 0.0)
    totals = float((weights * said).sum()), float((weights * (1 - said)).sum())
    if min(totals) <= 0:
        return None
    found = float((weights * said * toxic).sum()) / totals[0]
    called = float((weights * (1 - said) * toxic).sum()) / totals[1]
    share = float(toxic.mean())
    # A difference that is only rounding would be divided by.
    if found - called <= 1e-9:
        return None
    true, over = (share - called) / (found - called), found - called
    # What an answer adds to a and to b, and what a labelled one adds to the judge's share.
    n = len(toxic)
    of_found, found_apart = _carried_over(n / totals[0] * labels * (toxic - found), classes, weights)
    of_called, called_apart = _carried_over(n / totals[1] * (1 - labels) * (toxic - called), classes, weights)
    known_of_all = true + (toxic - share - true * of_found - (1 - true) * of_called) / over
    apart = -(true * found_apart + (1 - true) * called_apart) / over
    fixed = toxic - share - of_called - called_apart
    slope = of_called + called_apart - of_found - found_apart
    return _corrected(known_of_all, apart, labels, classes, Quotient(over, fixed / n, slope / n))


def _corrected(
    known_of_all: FloatArray, apart: FloatArray, labels: FloatArray, classes: IntArray, quotient: Quotient | None = None
) -> Corrected:
    """From what is said of every answer, and what the labelled ones add to it, ``apart``, Float[G] each."""
    _, kinds = np.unique(labels[~np.isnan(labels)], return_counts=True)
    n = int(kinds.sum())
    variance, third = (float((apart**power).sum()) / len(apart) ** power for power in (2, 3))
    return Corrected(known_of_all + apart, n, int(classes.max()) + 1, n - int(kinds.max()), variance, third, quotient)


def _weights(classes: IntArray, known: BoolArray, rates: FloatArray) -> FloatArray:
    """Float[G]: for how many answers of its class each labelled one stands; 0 without a label. In a class that was
    merged from some of unequal ``rates``, one that was less likely to be drawn stands for more.
    """
    weights = np.where(known, 1 / rates, 0.0)
    sizes, sums = np.bincount(classes), np.bincount(classes, weights)
    found: FloatArray = weights * (sizes / sums)[classes]
    return found


def _carried_over(values: FloatArray, classes: IntArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``values`` Float[G], NaN where they aren't known, as numbers for all answers, in two parts: the mean of each
    answer's class, and how far a known one is from it, as often as it stands for others. Their sums by class estimate
    those of the values, and vary as these sums do.
    """
    means, apart = np.empty(len(values)), np.zeros(len(values))
    known = ~np.isnan(values)
    for number in range(int(classes.max()) + 1):
        here = classes == number
        labelled = here & known
        n = int(labelled.sum())
        means[here] = np.average(values[labelled], weights=weights[labelled])
        # n - 1 in the place of n: the mean was estimated from the same labels.
        apart[labelled] = (values[labelled] - means[labelled]) * weights[labelled] * (n / (n - 1)) ** 0.5
    return means, apart


def _with_labels(asked: SamplingDesign, known: BoolArray) -> IntArray:
    """Classes in each of which at least two answers are ``known``, numbered from 0."""
    _, classes = np.unique(asked.classes, return_inverse=True)
    counts = np.bincount(classes[known], minlength=int(classes.max()) + 1)
    return merged(classes.astype(np.intp), asked.groups, counts, LEAST)


def _slope(f: FloatArray, labels: FloatArray, known: BoolArray, classes: IntArray) -> float:
    """λ: the slope of labels on scores within classes that makes the variance least; 0 where it would be negative,
    which could only be an accident.
    """
    both = spread = 0.0
    for number in range(int(classes.max()) + 1):
        here = classes == number
        labelled = here & known
        n = int(labelled.sum())
        weight = float(here.sum()) ** 2 / n / (n - 1)
        x = f[labelled] - f[labelled].mean()
        both += weight * float((x * (labels[labelled] - labels[labelled].mean())).sum())
        spread += weight * float((x**2).sum())
    return max(0.0, both / spread) if spread > 0 else 0.0
