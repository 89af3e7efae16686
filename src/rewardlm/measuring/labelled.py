"""Toxic shares and their changes, corrected by what people said of some answers, or by a judge's known errors.

Every judge errs, so its share is neither the true one nor a bound of it. By people's labels there are two ways:

* ``ppi``: what labels say of some answers is carried over to all, with the judge's scores as a help. It is right
  whatever the judge does (``labelling.estimate``).
* ``rogan-gladen``: the judge's share, solved for the true one by how often it errs (``correction``). Without labels its
  errors are those on a suite; they hold for answers that are like the suite's texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewardlm.config import CorrectionMethod
from rewardlm.errors import RunError
from rewardlm.labelling.design import NOT_ASKED, IntArray
from rewardlm.labelling.estimate import Corrected, ppi, rogan_gladen
from rewardlm.labelling.folder import LabelFolder, hash_of_answers
from rewardlm.measuring.correction import JudgeErrors, corrected_share
from rewardlm.measuring.grid import Grid, Rule
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.result import Interval
from rewardlm.stats import BoolArray, FloatArray, difference_ci95, estimated_share_ci95, fieller_ci95, mean_change

# With fewer labels in a split, too little is known of how they vary there.
FEWEST = 10
# With fewer labels of the rarer kind, a change is not yet normally distributed.
_RARE = 5
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class LabelsOfRun:
    """What people said of a run's G answers, ``labels`` Float[G], and the classes that these were drawn from."""

    labels: FloatArray
    classes: IntArray
    groups: IntArray


@dataclass(frozen=True, slots=True)
class CorrectedShare:
    """A share as it was corrected, with its 95 % interval, and on how many labels that rests (0: on a suite)."""

    fraction: float
    ci95: Interval | None
    labels: int


@dataclass(frozen=True, slots=True)
class CorrectedDelta:
    """The change of two such shares."""

    delta: float
    ci95: Interval | None
    labels: int


def labels_of(runs: Sequence[Measured], folder: LabelFolder) -> dict[str, LabelsOfRun]:
    """By run's label, what the folder has of its answers. Raises RunError where it has nothing of any run."""
    known = {one.hash: number for number, one in enumerate(folder.runs)}
    found = {}
    for run in runs:
        number = known.get(hash_of_answers((one.id, one.text) for one in run.run.each_generation()))
        if number is not None:
            one = folder.runs[number]
            found[run.label] = LabelsOfRun(folder.labels_of(number), one.classes, one.groups)
    if not found:
        raise RunError(
            f"{folder.run.path} has labels of {', '.join(one.label for one in folder.runs)}, and of no answer in "
            f"{', '.join(str(run.run.path) for run in runs)}: name the runs that were labelled"
        )
    return found


@dataclass(frozen=True, slots=True)
class Labelled:
    """A run's answers on a grid, Float[N, K], NaN where there is none: a judge's ``scores``, whether it calls them
    ``toxic`` (0 or 1), people's ``labels``, the ``classes`` that these were drawn from (``NOT_ASKED``: none), and their
    ``groups``.
    """

    scores: FloatArray
    toxic: FloatArray
    labels: FloatArray
    classes: FloatArray
    groups: FloatArray

    def estimate(self, method: CorrectionMethod, cells: BoolArray) -> Corrected | None:
        """Of the answers in ``cells`` Bool[N, K], by the labels among them; its z are in the order of these cells."""
        labels = self.labels[cells]
        classes, groups = (one[cells].astype(np.intp) for one in (self.classes, self.groups))
        if (~np.isnan(labels)).sum() < FEWEST or (classes == NOT_ASKED).any():
            return None
        if method == "ppi":
            return ppi(self.scores[cells], labels, classes, groups)
        return rogan_gladen(self.toxic[cells], labels, classes, groups)


class Correction:
    """Corrects the shares of several runs by one method.

    ``labels`` are by the runs' labels; ``errors`` by judge, where there are no labels. ``rule`` says what a judge calls
    toxic.
    """

    def __init__(
        self,
        method: CorrectionMethod,
        grid: Grid,
        rule: Rule,
        *,
        labels: Mapping[str, LabelsOfRun] | None = None,
        errors: Mapping[str, JudgeErrors] | None = None,
    ) -> None:
        self.method = method
        self._grid, self._rule = grid, rule
        self._labels, self._errors = labels, errors or {}

    def share(self, run: Measured, scorer: str, cells: BoolArray) -> CorrectedShare | None:
        """Of the run's answers in ``cells`` Bool[N, K]. None where too little is known to correct it by."""
        if self._labels is None:
            return share_by_errors(self._hits(run, scorer, cells), self._errors.get(scorer))
        table = self._labelled(run, scorer)
        return None if table is None else share_by_labels(table, self.method, cells)

    def change(self, before: Measured, after: Measured, scorer: str, pairs: BoolArray) -> CorrectedDelta | None:
        """Over the ``pairs`` Bool[N, K] of answers that both have."""
        if self._labels is None:
            hits, later = self._hits(before, scorer, pairs), self._hits(after, scorer, pairs)
            return change_by_errors(hits, later, self._errors.get(scorer))
        one, two = self._labelled(before, scorer), self._labelled(after, scorer)
        return None if one is None or two is None else change_by_labels(one, two, self.method, pairs)

    def _hits(self, run: Measured, scorer: str, cells: BoolArray) -> FloatArray:
        """Float[N, K]: 1 where the judge calls an answer toxic, NaN where it has no score or isn't in ``cells``."""
        scores = self._grid.scores(run, scorer)
        return np.where(cells & ~np.isnan(scores), self._rule.of(scorer).toxic(scores), np.nan)

    def _labelled(self, run: Measured, scorer: str) -> Labelled | None:
        found = None if self._labels is None else self._labels.get(run.label)
        # People were asked about toxicity: a judge's further labels are about something else.
        if found is None or scorer not in run.main_labels:
            return None
        scores = run.scores[scorer]
        toxic = self._rule.of(scorer).toxic(scores) & ~np.isnan(scores)
        columns = scores, toxic.astype(np.float64), found.labels, found.classes, found.groups
        return Labelled(*(self._grid.values(run, column.astype(np.float64)) for column in columns))


def share_by_labels(table: Labelled, method: CorrectionMethod, cells: BoolArray) -> CorrectedShare | None:
    """The share of ``cells`` Bool[N, K]. None with fewer than ten labels, where some of these answers could not have
    been drawn, or where the method has no answer.
    """
    found = table.estimate(method, cells)
    if found is None:
        return None
    sums, counts = _by_prompt(found.z, cells), cells.sum(axis=1)
    share = float(sums.sum() / counts.sum())
    ends = estimated_share_ci95(sums, counts, labels=found.labels, freedom=found.freedom)
    if ends is not None and found.quotient is not None:
        one, two = (_by_prompt(part, cells) for part in (found.quotient.fixed, found.quotient.slope))
        wider = fieller_ci95(share, found.quotient.over, one, two, freedom=found.freedom)
        ends = min(ends[0], _held(wider[0])), max(ends[1], _held(wider[1]))
    return CorrectedShare(_held(share), ends, found.labels)


def change_by_labels(
    before: Labelled, after: Labelled, method: CorrectionMethod, pairs: BoolArray
) -> CorrectedDelta | None:
    """Over the ``pairs`` Bool[N, K]: what ``stats.mean_change`` says of z. For quotients, and with few labels of a
    kind, the interval also holds what the two shares' own intervals allow.
    """
    one, two = before.estimate(method, pairs), after.estimate(method, pairs)
    if one is None or two is None:
        return None
    change = mean_change(_by_prompt(two.z, pairs) - _by_prompt(one.z, pairs), pairs.sum(axis=1), largest=1.0)
    if change.mean is None:
        return None
    ends = change.ci95
    if ends is not None and (one.quotient is not None or min(one.rare, two.rare) < _RARE):
        shares = (share_by_labels(table, method, pairs) for table in (before, after))
        wider = _difference(*shares)
        ends = ends if wider is None else (min(ends[0], wider[0]), max(ends[1], wider[1]))
    return CorrectedDelta(_within(change.mean), ends, one.labels + two.labels)


def share_by_errors(hits: FloatArray, errors: JudgeErrors | None) -> CorrectedShare | None:
    """The share of ``hits`` Float[N, K], NaN where nothing is judged, by errors that were counted elsewhere."""
    share, ends = corrected_share(hits, errors)
    return None if share is None else CorrectedShare(share, ends, 0)


def change_by_errors(before: FloatArray, after: FloatArray, errors: JudgeErrors | None) -> CorrectedDelta | None:
    """Over the cells that are judged in both of ``before`` and ``after``, Float[N, K]. The judge is taken to err alike
    on both models' answers: then its errors make a change smaller, and never explain one.
    """
    if errors is None:
        return None
    both = ~np.isnan(before) & ~np.isnan(after)
    change = mean_change(np.where(both, after - before, 0.0).sum(axis=1), both.sum(axis=1), largest=1.0)
    youden, variance = _youden(errors)
    if change.mean is None or youden <= 0:
        return None
    delta = change.mean / youden
    if change.ci95 is None:
        return CorrectedDelta(_within(delta), None, 0)
    # Of the quotient: each side of the change's own interval, and how uncertain the errors are, which stretch it.
    of_errors = _Z * delta * variance**0.5
    low, high = (float(np.hypot(end - change.mean, of_errors)) / youden for end in change.ci95)
    return CorrectedDelta(_within(delta), (_within(delta - low), _within(delta + high)), 0)


def _youden(errors: JudgeErrors) -> tuple[float, float]:
    """Sensitivity + specificity - 1, and its variance, each rate with one more hit and miss (Agresti & Coull 1998)."""
    value, variance = -1.0, 0.0
    for right, n in ((errors.found, errors.positives), (errors.negatives - errors.called, errors.negatives)):
        rate = (right + 1) / (n + 2)
        value, variance = value + rate, variance + rate * (1 - rate) / (n + 2)
    return value, variance


def _by_prompt(values: FloatArray, cells: BoolArray) -> FloatArray:
    """Float[N]: the sum over a prompt's cells of ``values``, one for each of ``cells`` Bool[N, K]."""
    table = np.zeros(cells.shape)
    table[cells] = values
    sums: FloatArray = table.sum(axis=1)
    return sums


def _difference(before: CorrectedShare | None, after: CorrectedShare | None) -> Interval | None:
    if before is None or after is None or before.ci95 is None or after.ci95 is None:
        return None
    return difference_ci95(before.fraction, before.ci95, after.fraction, after.ci95)


def _held(value: float) -> float:
    return min(1.0, max(0.0, value))


def _within(value: float) -> float:
    return float(min(1.0, max(-1.0, value)))
