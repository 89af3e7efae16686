"""Answers of several runs on one grid of prompts and samples, its splits, and the rule for what counts as toxic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np

from rewardlm.measuring import metrics
from rewardlm.measuring.comparison import Split
from rewardlm.measuring.measured import Measured
from rewardlm.measuring.records import IntArray
from rewardlm.scoring.thresholds import Threshold
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.types import Prompt


class _Toxic(TypedDict):
    threshold: float
    inclusive: bool


class _Uncertain(_Toxic):
    redrawn: tuple[float, ...]


class _Tested(_Uncertain):
    n_resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as toxic, and how chance is drawn.

    ``moved`` are the judges that have a threshold of their own, estimated on other texts; ``redrawn`` are those that
    resamples of these texts give.
    """

    threshold: float
    inclusive: bool
    n_resamples: int
    seed: int
    moved: Mapping[str, Threshold] = field(default_factory=dict)
    redrawn: tuple[float, ...] = ()

    def of(self, judge: str) -> Rule:
        """The rule for one judge's scores."""
        own = self.moved.get(judge)
        return self if own is None else replace(self, threshold=own.value, redrawn=own.redrawn)

    def toxic(self, scores: FloatArray) -> BoolArray:
        return metrics.is_toxic(scores, **self.of_toxic())

    def of_toxic(self) -> _Toxic:
        """As arguments of the functions of ``metrics`` that count."""
        return {"threshold": self.threshold, "inclusive": self.inclusive}

    def of_intervals(self) -> _Uncertain:
        """As arguments of those that give a share's interval."""
        return {**self.of_toxic(), "redrawn": self.redrawn}

    def of_tests(self) -> _Tested:
        """As arguments of those that test a change."""
        return {**self.of_intervals(), "n_resamples": self.n_resamples, "seed": self.seed}


class Grid:
    """Puts per-generation arrays [G] of any of the runs on one grid [N prompts, K samples]."""

    def __init__(self, runs: Sequence[Measured]) -> None:
        rows = {prompt.id: row for row, prompt in enumerate(runs[0].prompts)}
        numbers = [found for run in runs for found in (run.samples, np.arange(run.samples_refused))]
        samples = self._samples = np.unique(np.concatenate(numbers))
        self.shape = (len(rows), max(1, len(samples)))
        self._cells: dict[str, IntArray] = {}
        for run in runs:
            here = np.array([rows[prompt.id] for prompt in run.prompts], dtype=np.intp)
            columns = np.searchsorted(samples, run.samples)
            self._cells[run.label] = here[run.prompt_rows] * self.shape[1] + columns

    def scores(self, run: Measured, scorer: str) -> FloatArray:
        """Float[N, K]: NaN where there is no score."""
        return self.values(run, run.scores[scorer])

    def values(self, run: Measured, values: FloatArray) -> FloatArray:
        """Float[N, K]: NaN where there is no generation."""
        cells = np.full(self.shape, np.nan)
        cells.flat[self._cells[run.label]] = values
        return cells

    def flags(self, run: Measured, flags: BoolArray) -> BoolArray:
        """Bool[N, K]: False where there is no generation."""
        cells = np.zeros(self.shape, dtype=np.bool_)
        cells.flat[self._cells[run.label]] = flags
        return cells

    def exists(self, run: Measured) -> BoolArray:
        return self.flags(run, np.ones(run.answers, dtype=np.bool_))

    def refused(self, run: Measured) -> BoolArray:
        """Bool[N, K]: questions of a finished run that got no answer, such as those that a server refused."""
        asked = np.zeros(self.shape, dtype=np.bool_)
        asked[:, : len(self._samples)] = self._samples < run.samples_refused
        return asked & ~self.exists(run)


def prompt_splits(prompts: Sequence[Prompt], rule: Rule) -> dict[Split, BoolArray]:
    """Bool[N, 1] for the splits that depend on the prompt alone; an unjudged prompt is in neither half."""
    toxicity = np.array([math.nan if p.toxicity is None else p.toxicity for p in prompts], dtype=np.float64)
    toxic = rule.toxic(toxicity)
    members: dict[Split, BoolArray] = {
        "all": np.ones(len(prompts), dtype=np.bool_),
        "toxic_prompts": toxic,
        "nontoxic_prompts": ~toxic & ~np.isnan(toxicity),
        "challenging": np.array([prompt.challenging for prompt in prompts], dtype=np.bool_),
    }
    return {name: flags[:, None] for name, flags in members.items()}


def answers_in(run: Measured, grid: Grid, splits: Mapping[Split, BoolArray]) -> dict[Split, BoolArray]:
    """Bool[N, K] by split: the run's own answers in it."""
    exists = grid.exists(run)
    cells: dict[Split, BoolArray] = {name: exists & rows for name, rows in splits.items()}
    cells["comparable"] = grid.flags(run, run.quality.comparable)
    return cells
