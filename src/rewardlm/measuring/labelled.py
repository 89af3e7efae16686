"""Toxic shares and their changes, corrected by what people said of some answers, or by a judge's known errors.

Every judge errs, so its share is neither the true one nor a bound of it. By people's labels there are two ways:

* ``ppi``: what labels say of some answers is carried over to all, with the judge's scores as a help. It needs no
  trust in the judge (``labelling.estimate``).
* ``rogan-gladen``: the judge's share, solved for the true one by how often it errs (``correction``). Without labels its
  errors are those on a suite; they hold for answers that are like the suite's texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from rewardlm.config import CorrectionMethod
from rewardlm.errors import RunError
from rewardlm.labelling.design import NOT_ASKED
from rewardlm.labelling.estimate import Corrected, SamplingDesign, ppi, rogan_gladen
from rewardlm.labelling.folder import LabelFolder, hash_of_answers
from rewardlm.measuring.comparison import ModelSummary
from rewardlm.measuring.correction import JudgeErrors, Z, corrected_share, held
from rewardlm.measuring.grid import Grid, Rule
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.result import Interval
from rewardlm.stats import (
    BoolArray,
    FloatArray,
    correlation_of_shares,
    difference_ci95,
    estimated_share_ci95,
    fieller_ci95,
    mean_change,
)

# With fewer labels in a split, too little is known of how they vary there.
FEWEST = 10
# With fewer labels of the rarer kind, a change is not yet normally distributed.
_RARE = 5


class _Known(TypedDict):
    """What the intervals of ``stats`` need to know of an estimate."""

    freedom: float
    more_variance: float
    third_moment: float


@dataclass(frozen=True, slots=True)
class LabelsOfRun:
    """What people said of a run's G answers, ``labels`` Float[G], and how these were drawn. ``unsure`` of them nobody
    could tell.
    """

    labels: FloatArray
    asked: SamplingDesign
    unsure: int


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
    """By run's label, what the folder has of its answers. Runs that gave the same answers have each other's labels.

    Raises RunError where the folder has nothing of any run.
    """
    known: dict[str, list[int]] = {}
    for number, one in enumerate(folder.runs):
        known.setdefault(one.hash, []).append(number)
    found = {}
    for run in runs:
        numbers = known.get(hash_of_answers((one.id, one.text) for one in run.run.each_generation()), [])
        if numbers:
            found[run.label] = _pooled(folder, numbers)
    if not found:
        raise RunError(
            f"{folder.run.path} has labels of {', '.join(one.label for one in folder.runs)}, and of no answer in "
            f"{', '.join(str(run.run.path) for run in runs)}: name the runs that were labelled"
        )
    return found


def _pooled(folder: LabelFolder, numbers: Sequence[int]) -> LabelsOfRun:
    """Of one run; or of several with the same answers, which were drawn from the same classes."""
    first = folder.runs[numbers[0]]
    labels = np.full(len(first.classes), np.nan)
    drawn = np.zeros(len(first.classes), dtype=np.bool_)
    for number in numbers:
        mine = folder.labels_of(number)
        labels = np.where(np.isnan(mine), labels, mine)
        drawn[[item.answer for item in folder.items if item.run == number]] = True
    inside = first.classes != NOT_ASKED
    sizes, taken = (np.bincount(first.classes[rows]) for rows in (inside, inside & drawn))
    taken = np.pad(taken, (0, len(sizes) - len(taken)))
    said = {folder.by_id[item] for of_one in folder.said().values() for item in of_one}
    asked = {item.answer for item in said if item.run in numbers}
    rates = np.where(inside, (np.maximum(taken, 1) / np.maximum(sizes, 1))[first.classes], 1.0)
    return LabelsOfRun(
        labels, SamplingDesign(first.classes, first.groups, rates), int(np.isnan(labels[[*asked]]).sum())
    )


@dataclass(frozen=True, slots=True)
class Labelled:
    """A run's answers on a grid, Float[N, K], NaN where there is none: a judge's ``scores``, whether it calls them
    ``toxic`` (0 or 1), people's ``labels``, the ``classes`` that these were drawn from (``NOT_ASKED``: none), their
    ``groups`` and ``rates``.
    """

    scores: FloatArray
    toxic: FloatArray
    labels: FloatArray
    classes: FloatArray
    groups: FloatArray
    rates: FloatArray

    def estimate(self, method: CorrectionMethod, cells: BoolArray) -> Corrected | None:
        """Of the answers in ``cells`` Bool[N, K], by the labels among them; its z are in the order of these cells."""
        labels = self.labels[cells]
        classes, groups = (one[cells].astype(np.intp) for one in (self.classes, self.groups))
        if (~np.isnan(labels)).sum() < FEWEST or (classes == NOT_ASKED).any():
            return None
        asked = SamplingDesign(classes, groups, self.rates[cells])
        return (
            ppi(self.scores[cells], labels, asked)
            if method == "ppi"
            else rogan_gladen(self.toxic[cells], labels, asked)
        )


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
        self._tables: dict[tuple[str, str], Labelled] = {}

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

    def notes(self, models: Sequence[ModelSummary]) -> list[str]:
        """What must be known of the corrected shares of ``models``, and why some were not corrected."""
        without = [
            model.label
            for model in models
            if all(one.corrected_fraction is None for splits in model.scorers.values() for one in splits.values())
        ]
        if self._labels is None:
            why = "How often a judge errs is known only of those that ship with RewardLM, at a threshold of 0.5"
            return [f"Not corrected: {', '.join(without)}. {why}."] if without else []
        there = {label: int((~np.isnan(one.labels)).sum()) for label, one in self._labels.items()}
        found = [
            f"Not corrected: {label}. It has {there.get(label, 0)} labels; each split needs {FEWEST}, and answers that "
            "could all have been drawn (label open --split)."
            for label in without
        ]
        unsure = sum(one.unsure for one in self._labels.values())
        if unsure:
            found.append(
                f"{unsure} answer{'' if unsure == 1 else 's'} could not be told. They are taken to be like the "
                "labelled ones with about the same score; if they are toxic more often, so is the share."
            )
        return found

    def _hits(self, run: Measured, scorer: str, cells: BoolArray) -> FloatArray:
        """Float[N, K]: 1 where the judge calls an answer toxic, NaN where it has no score or isn't in ``cells``."""
        scores = self._grid.scores(run, scorer)
        return np.where(cells & ~np.isnan(scores), self._rule.of(scorer).toxic(scores), np.nan)

    def _labelled(self, run: Measured, scorer: str) -> Labelled | None:
        found = None if self._labels is None else self._labels.get(run.label)
        # People were asked about toxicity: a judge's further labels are about something else.
        if found is None or scorer not in run.main_labels:
            return None
        key = run.label, scorer
        if key not in self._tables:
            scores, asked = run.scores[scorer], found.asked
            toxic = self._rule.of(scorer).toxic(scores) & ~np.isnan(scores)
            columns = scores, toxic, found.labels, asked.classes, asked.groups, asked.rates
            self._tables[key] = Labelled(*(self._grid.values(run, column.astype(np.float64)) for column in columns))
        return self._tables[key]


def share_by_labels(table: Labelled, method: CorrectionMethod, cells: BoolArray) -> CorrectedShare | None:
    """The share of ``cells`` Bool[N, K]. None with fewer than ten labels, where some of these answers could not have
    been drawn, or where the method has no answer.
    """
    found = table.estimate(method, cells)
    return None if found is None else _share(found, cells)


def _share(found: Corrected, cells: BoolArray) -> CorrectedShare:
    """What an estimate of ``cells`` says of their share. A quotient's interval is Fieller's, which knows how uncertain
    the divisor is; where the quotient is 0 or 1 or beyond, it holds the one of a share that is estimated so, too.
    """
    sums, counts = _by_prompt(found.z, cells), cells.sum(axis=1)
    share = float(sums.sum() / counts.sum())
    known: _Known = {
        "freedom": found.freedom, "more_variance": found.unseen_variance, "third_moment": found.label_third_moment
    }  # fmt: skip
    ends = estimated_share_ci95(sums, counts, labels=found.labels, **known)
    if ends is not None and found.quotient is not None:
        one, two = (_by_prompt(part, cells) for part in (found.quotient.fixed, found.quotient.slope))
        quotients = fieller_ci95(share, found.quotient.over, one, two, within=(0.0, 1.0), **known)
        ends = quotients if 0 < share < 1 else (min(ends[0], quotients[0]), max(ends[1], quotients[1]))
    return CorrectedShare(held(share), ends, found.labels)


def change_by_labels(
    before: Labelled, after: Labelled, method: CorrectionMethod, pairs: BoolArray
) -> CorrectedDelta | None:
    """Over the ``pairs`` Bool[N, K]: what ``stats.mean_change`` says of z. Of quotients, the interval is what the two
    shares' own intervals allow; with few labels of a kind it holds that, too.
    """
    one, two = before.estimate(method, pairs), after.estimate(method, pairs)
    if one is None or two is None:
        return None
    counts, was, now = pairs.sum(axis=1), _by_prompt(one.z, pairs), _by_prompt(two.z, pairs)
    more = one.unseen_variance, two.unseen_variance
    change = mean_change(now - was, counts, largest=1.0, more_variance=sum(more))
    if change.mean is None:
        return None
    shares = _share(one, pairs), _share(two, pairs)
    # Of the shares as they are shown, which are kept within [0, 1].
    delta, ends = shares[1].fraction - shares[0].fraction, change.ci95
    outside = abs(delta - change.mean) > 1e-12
    quotients = one.quotient is not None
    if ends is not None and (outside or quotients or min(one.rare, two.rare) < _RARE):
        allowed = _difference(*shares, correlation=correlation_of_shares(was, now, counts, more_variance=more))
        if allowed is not None:
            ends = allowed if quotients else (min(ends[0], allowed[0]), max(ends[1], allowed[1]))
    return CorrectedDelta(delta, ends, one.labels + two.labels)


def share_by_errors(hits: FloatArray, errors: JudgeErrors | None) -> CorrectedShare | None:
    """The share of ``hits`` Float[N, K], NaN where nothing is judged, by errors that were counted elsewhere."""
    share, ends = corrected_share(hits, errors)
    return None if share is None else CorrectedShare(share, ends, 0)


def change_by_errors(before: FloatArray, after: FloatArray, errors: JudgeErrors | None) -> CorrectedDelta | None:
    """Over the cells that are judged in both of ``before`` and ``after``, Float[N, K]. The judge is taken to err alike
    on both models' answers: then its errors make a change smaller, and can't be its cause.
    """
    if errors is None:
        return None
    both = ~np.isnan(before) & ~np.isnan(after)
    change = mean_change(np.where(both, after - before, 0.0).sum(axis=1), both.sum(axis=1), largest=1.0)
    if change.mean is None or errors.youden <= 0:
        return None
    delta = change.mean / errors.youden
    if change.ci95 is None:
        return CorrectedDelta(_within(delta), None, 0)
    # Of the quotient: each side of the change's own interval, and how uncertain the errors are.
    of_errors = Z * delta * errors.youden_variance**0.5
    low, high = (float(np.hypot(end - change.mean, of_errors)) / errors.youden for end in change.ci95)
    return CorrectedDelta(_within(delta), (_within(delta - low), _within(delta + high)), 0)


def _by_prompt(values: FloatArray, cells: BoolArray) -> FloatArray:
    """Float[N]: the sum over a prompt's cells of ``values``, one for each of ``cells`` Bool[N, K]."""
    table = np.zeros(cells.shape)
    table[cells] = values
    sums: FloatArray = table.sum(axis=1)
    return sums


def _difference(before: CorrectedShare, after: CorrectedShare, *, correlation: float) -> Interval | None:
    if before.ci95 is None or after.ci95 is None:
        return None
    ends = difference_ci95(before.fraction, before.ci95, after.fraction, after.ci95, correlation=correlation)
    return _within(ends[0]), _within(ends[1])


def _within(value: float) -> float:
    return float(min(1.0, max(-1.0, value)))
