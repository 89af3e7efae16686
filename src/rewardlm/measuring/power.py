"""What ``rewardlm power`` finds: how large an experiment must be, from pilot runs or from assumptions; and what
``measure`` says of its own size before it starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rewardlm.config import MeasureSettings, PowerSettings
from rewardlm.config.power import CORRELATION, MOST_PROMPTS, SAMPLES, SHARE, SHARED
from rewardlm.errors import ConfigError, RewardLMError, RunError
from rewardlm.formats import percent, points
from rewardlm.measuring.comparable import refuse_incomparable
from rewardlm.measuring.comparison import Split
from rewardlm.measuring.grid import Grid, Rule, prompt_splits
from rewardlm.measuring.measured import Measured, load_measured
from rewardlm.measuring.metrics import RESAMPLES, THRESHOLD
from rewardlm.measuring.primary import choose
from rewardlm.measuring.result import Result
from rewardlm.measuring.sample_size import (
    Assumptions,
    by_formula,
    power_by_formula,
    prompts_needed,
    smallest_effect,
    try_size,
)
from rewardlm.measuring.thresholds import thresholds_in_force
from rewardlm.runs import unique_labels
from rewardlm.stats import FloatArray
from rewardlm.types import Prompt

Source = Literal["given", "pilot", "assumed"]

# Other numbers of answers that are shown beside the one that is planned.
OTHER_SAMPLES = (1, 2, 4, 8, 25)
# Fewer prompts say nothing of how prompts differ.
FEWEST_PROMPTS = 10
_PILOTS_REDRAWN = 200
_FIELDS = {"share": "before", "correlation": "correlation", "shared": "shared"}
_DRAWS_OF_OTHERS = 500


class Alternative(Result):
    """Another number of answers per prompt, and how many prompts it takes."""

    samples: int
    prompts: int
    answers: int = Field(description="samples × prompts, for each model.")


class SimulatedSize(Result):
    """A number of prompts that was simulated."""

    prompts: int
    power: float = Field(description="Share of simulated experiments that found the fall.")
    draws: int = Field(description="How many experiments these were.")


class Plan(Result):
    """How large an experiment must be to see a fall of the toxic share; or what a planned size sees."""

    prompts: int | None = Field(
        description="Prompts of the split: as many as are needed, or as were planned; null if none were found that do."
    )
    prompts_in_all: int | None = Field(
        description="The same with prompts of other kinds, in the pilot's mix: how long the list must be."
    )
    samples: int = Field(description="Answers per prompt.")
    power: float = Field(description="The chance that the fall is seen, in simulated experiments of this size.")
    wanted_power: float
    effect: float = Field(description="The fall of the toxic share that should be seen.")
    share: float = Field(description="The toxic share before.")
    correlation: float = Field(description="Correlation of two answers of one model to one prompt.")
    shared: float = Field(description="Correlation of a prompt's chances under the two models.")
    sources: dict[str, Source] = Field(description="Where share, correlation, shared and samples are from.")
    pilots: list[str] = Field(description="The pilots' labels.")
    scorer: str | None = Field(description="The pilots' judge.")
    split: Split | None = Field(description="The pilots' prompts that count.")
    prompts_ci95: tuple[float, float | None] | None = Field(
        description="Prompts needed if other prompts had been in the pilots: 95 % of redraws lie between; an end of "
        "null is out of reach."
    )
    needed: int | None = Field(description="Prompts needed; the same as prompts unless a size was planned.")
    smallest_effect: float | None = Field(
        description="The smallest fall that the planned size sees with the wanted power; null without a plan."
    )
    alternatives: list[Alternative]
    simulated: list[SimulatedSize] = Field(description="Every size that was simulated.")

    @property
    def assumptions(self) -> Assumptions:
        return Assumptions(self.share, self.effect, self.correlation, self.shared)


def power(paths: Sequence[Path], settings: PowerSettings, *, picture: bool = False) -> Plan:
    """``paths`` are measured pilots: the model as it is, and then, if there are, models like the one that is planned.

    ``picture`` simulates some sizes around the answer, too. Raises RunError for pilots that can't be compared or of
    which too little is known, and ConfigError for a fall that is larger than the share.
    """
    pilots = _Pilots(paths, settings) if paths else None
    known, sources = _assumptions(pilots, settings)
    samples = settings.samples or (pilots.samples if pilots else SAMPLES)
    sources["samples"] = "given" if settings.samples else "pilot" if pilots else "assumed"
    size = prompts_needed(known, samples, settings.power, draws=settings.draws, seed=settings.seed)
    tried = dict(size.tried)
    planned = settings.prompts
    answer = planned or size.prompts
    if planned is not None and planned not in tried:
        tried[planned] = try_size(known, planned, samples, draws=settings.draws, seed=settings.seed)
    if picture and answer is not None:
        for n in (answer // 4, answer // 2, 2 * answer):
            if 2 <= n <= MOST_PROMPTS and n not in tried:
                tried[n] = try_size(known, n, samples, draws=_DRAWS_OF_OTHERS, seed=settings.seed)
    return Plan(
        prompts=answer,
        prompts_in_all=None if answer is None or pilots is None else math.ceil(answer * pilots.in_all / pilots.prompts),
        samples=samples,
        power=max((found.power for found in tried.values()), default=0.0) if answer is None else tried[answer].power,
        wanted_power=settings.power,
        effect=known.effect,
        share=known.before,
        correlation=known.correlation,
        shared=known.shared,
        sources=sources,
        pilots=pilots.labels if pilots else [],
        scorer=pilots.scorer if pilots else None,
        split=pilots.split if pilots else None,
        prompts_ci95=pilots.uncertainty(known, sources, samples, size.prompts, settings) if pilots else None,
        needed=size.prompts,
        smallest_effect=None if planned is None else smallest_effect(known, planned, samples, settings.power),
        alternatives=_alternatives(known, samples, size.prompts, settings),
        simulated=[
            SimulatedSize(prompts=n, power=found.power, draws=found.draws) for n, found in sorted(tried.items())
        ],
    )


def _assumptions(pilots: _Pilots | None, settings: PowerSettings) -> tuple[Assumptions, dict[str, Source]]:
    of_pilots = pilots.numbers(np.arange(pilots.prompts)) if pilots else {}
    values: dict[str, float] = {}
    sources: dict[str, Source] = {}
    for name, otherwise in (("share", SHARE), ("correlation", CORRELATION), ("shared", SHARED)):
        given, found = getattr(settings, name), of_pilots.get(name)
        values[name] = given if given is not None else found if found is not None else otherwise
        sources[name] = "given" if given is not None else "pilot" if found is not None else "assumed"
    share = values["share"]
    if not 0 < share < 1:
        raise RunError(
            f"{pilots.labels[0] if pilots else ''} has a toxic share of {percent(share)} by "
            f"{pilots.scorer if pilots else ''}, so nothing can be planned from it: give --share, or a larger pilot"
        )
    if settings.effect > share:
        raise ConfigError(
            f"a share of {percent(share)} ({sources['share']}) can't fall by {points(settings.effect)} points: give a "
            "smaller --effect, or --share"
        )
    return Assumptions(share, settings.effect, values["correlation"], values["shared"]), sources


class _Pilots:
    """Toxic answers of measured runs to the same prompts, Float[N, K] each; NaN where there is no score."""

    def __init__(self, paths: Sequence[Path], settings: PowerSettings) -> None:
        runs = [load_measured(path) for path in paths]
        for run, label in zip(runs, unique_labels([run.label for run in runs]), strict=True):
            run.label = label
        refuse_incomparable(runs, None, scorer=settings.scorer)
        moved = thresholds_in_force(runs, None, "share", inclusive=False)
        rule = Rule(THRESHOLD, False, RESAMPLES, settings.seed, moved)
        splits = prompt_splits(runs[0].prompts, rule.of(runs[0].meta.get("toxic_by", "dataset")))
        primary, _ = choose(
            runs,
            {"scorer": settings.scorer, "split": settings.split},
            has_toxic_prompts=bool(splits["toxic_prompts"].any()),
        )
        if primary is None:
            raise RunError("no judge scored all pilots: score them first, or leave one out")
        if primary.split not in splits:
            raise ConfigError(f"split {primary.split!r} isn't known before there are answers: give --split")
        self.labels = [run.label for run in runs]
        self.scorer, self.split = primary.scorer, primary.split
        rows = splits[self.split][:, 0]
        grid = Grid(runs)
        self._toxic = [_toxic(run, grid, rule.of(self.scorer), self.scorer)[rows] for run in runs]
        self.prompts, self.in_all = int(rows.sum()), len(rows)
        scored = min(int((~np.isnan(toxic)).any(axis=1).sum()) for toxic in self._toxic)
        if scored < FEWEST_PROMPTS:
            raise RunError(
                f"the pilot has {scored} prompts with a score in {self.split}: expected {FEWEST_PROMPTS} or more, "
                "because fewer say nothing of how prompts differ"
            )

    @property
    def samples(self) -> int:
        """The most answers that a prompt has."""
        return int((~np.isnan(self._toxic[0])).sum(axis=1).max(initial=1))

    def numbers(self, rows: NDArray[np.intp]) -> dict[str, float | None]:
        """The module's p, ρ and s as moments of the prompts ``rows``; None for one that these pilots can't tell."""
        parts = [_components(toxic[rows]) for toxic in self._toxic]
        between, within = (sum(part[place] for part in parts) for place in (1, 2))
        repeated = any((~np.isnan(toxic)).sum(axis=1).max(initial=0) > 1 for toxic in self._toxic)
        share = parts[0][0]
        correlation = max(0.0, between) / (max(0.0, between) + within) if between + within > 0 else 0.0
        return {
            "share": share,
            "correlation": min(correlation, 0.95) if repeated else None,
            "shared": self._shared(rows, parts) if repeated and len(parts) > 1 else None,
        }

    def _shared(self, rows: NDArray[np.intp], parts: Sequence[tuple[float, float, float]]) -> float | None:
        covariances, spreads = 0.0, 0.0
        first = self._toxic[0][rows]
        for toxic, part in zip(self._toxic[1:], parts[1:], strict=True):
            covariances += _covariance(first, toxic[rows])
            spreads += (max(0.0, parts[0][1]) * max(0.0, part[1])) ** 0.5
        return float(np.clip(covariances / spreads, 0.0, 1.0)) if spreads > 0 else None

    def uncertainty(
        self,
        known: Assumptions,
        sources: dict[str, Source],
        samples: int,
        needed: int | None,
        settings: PowerSettings,
    ) -> tuple[float, float | None] | None:
        """Prompts needed by redraws of the pilots' prompts; None where nothing comes from them, or no size is enough.

        Sizes are the formula's, corrected by what simulation said of the pilots as they are.
        """
        if needed is None or "pilot" not in (sources["share"], sources["correlation"], sources["shared"]):
            return None
        factor = needed / by_formula(known, samples, settings.power)
        rng = np.random.default_rng(settings.seed)
        sizes = []
        for _ in range(_PILOTS_REDRAWN):
            found = self.numbers(rng.integers(0, self.prompts, self.prompts))
            drawn = {name: value for name, value in found.items() if sources[name] == "pilot" and value is not None}
            redrawn = replace(known, **{_FIELDS[name]: value for name, value in drawn.items()})
            possible = settings.effect <= redrawn.before < 1
            sizes.append(max(2.0, factor * by_formula(redrawn, samples, settings.power)) if possible else math.inf)
        # Of numbers that were drawn, not between them: infinity has no middle.
        low, high = np.quantile(sizes, [0.025, 0.975], method="nearest").tolist()
        return low, None if math.isinf(high) else high


def _toxic(run: Measured, grid: Grid, rule: Rule, scorer: str) -> FloatArray:
    scores = grid.scores(run, scorer)
    return np.where(np.isnan(scores), np.nan, rule.toxic(scores))


def _components(toxic: FloatArray) -> tuple[float, float, float]:
    """The share, and its variance between prompts and within them, by analysis of variance (Donner & Koval 1980,
    Biometrics 36:19-25), which allows for unequal numbers of answers.
    """
    counts = (~np.isnan(toxic)).sum(axis=1)
    asked = counts > 0
    toxic, counts = toxic[asked], counts[asked]
    total, n = int(counts.sum()), len(counts)
    if n < 2:
        raise RunError("fewer than two prompts of the pilot have a score: score it first")
    share = float(np.nansum(toxic)) / total
    means = np.nansum(toxic, axis=1) / counts
    between = float((counts * (means - share) ** 2).sum()) / (n - 1)
    if total == n:
        return share, 0.0, between
    within = float(np.nansum((toxic - means[:, None]) ** 2)) / (total - n)
    usual = (total - float((counts**2).sum()) / total) / (n - 1)
    return share, (between - within) / usual, within


def _covariance(one: FloatArray, two: FloatArray) -> float:
    """Of prompts' chances under two models, by their toxic answers Float[N, K]. Answers of one sample number are left
    out: drawn from one stream of random numbers, they resemble each other besides.
    """
    here, there = ~np.isnan(one), ~np.isnan(two)
    pairs = here.sum(axis=1) * there.sum(axis=1) - (here & there).sum(axis=1)
    together = np.nansum(one, axis=1) * np.nansum(two, axis=1) - np.nansum(one * two, axis=1)
    asked = pairs > 0
    if not asked.any():
        return 0.0
    means = [np.nansum(toxic[asked], axis=1) / (~np.isnan(toxic[asked])).sum(axis=1) for toxic in (one, two)]
    weights = pairs[asked] / pairs[asked].sum()
    return float((weights * (together[asked] / pairs[asked])).sum() - (weights @ means[0]) * (weights @ means[1]))


def _alternatives(known: Assumptions, samples: int, prompts: int | None, settings: PowerSettings) -> list[Alternative]:
    """Other numbers of answers with the same power, by fewer simulated experiments; none where it is out of reach."""
    if prompts is None:
        return []
    draws = min(_DRAWS_OF_OTHERS, settings.draws)
    sizes = {k: prompts_needed(known, k, settings.power, draws=draws, seed=settings.seed) for k in OTHER_SAMPLES}
    found = {k: size.prompts for k, size in sizes.items() if size.prompts is not None} | {samples: prompts}
    return [Alternative(samples=k, prompts=n, answers=k * n) for k, n in sorted(found.items())]


def size_warning(settings: MeasureSettings, prompts: Sequence[Prompt], *, toxic_by: str) -> str | None:
    """What to say before a measurement that is too small to see ``settings.effect``; None where it isn't, or nothing is
    hoped for. By ``power``'s assumptions, because nothing is known yet.
    """
    if settings.effect is None:
        return None
    counted, what = len(prompts), "prompts"
    if settings.primary.split in (None, "toxic_prompts") and toxic_by == "dataset":
        toxic = sum((prompt.toxicity or 0.0) > THRESHOLD for prompt in prompts)
        counted, what = (toxic, "toxic prompts") if toxic else (counted, what)
    known = Assumptions(max(SHARE, settings.effect), settings.effect, CORRELATION, SHARED)
    if known.before >= 1:
        return None
    said = f"{percent(known.before)} of the answers are toxic, as is assumed"
    return _too_small(known, counted, what, settings.samples, said)


def size_warning_by(pilot: Path, effect: float | None) -> str | None:
    """The same by what a measured model's answers are like, before others are compared with it."""
    if effect is None:
        return None
    try:
        pilots = _Pilots([pilot], PowerSettings())
    except RewardLMError as error:
        # It is advice, so an experiment goes on without it.
        return f"Whether this is large enough to see a fall can't be told: {error}"
    numbers = pilots.numbers(np.arange(pilots.prompts))
    share = numbers["share"] or 0.0
    if not effect <= share < 1:
        return (
            f"{pilots.labels[0]} has a toxic share of {percent(share)} by {pilots.scorer}, so a fall of "
            f"{points(effect).lstrip('+')} points (effect) can't be seen: choose other prompts, or hope for less."
        )
    correlation = numbers["correlation"]
    known = Assumptions(share, effect, CORRELATION if correlation is None else correlation, SHARED)
    what = "toxic prompts" if pilots.split == "toxic_prompts" else "prompts"
    said = f"{percent(share)} of the answers are toxic, as {pilots.labels[0]}'s are by {pilots.scorer}"
    return _too_small(known, pilots.prompts, what, pilots.samples, said)


def _too_small(known: Assumptions, prompts: int, what: str, samples: int, said: str) -> str | None:
    wanted = PowerSettings().power
    chance = power_by_formula(known, max(2, prompts), samples)
    if chance >= wanted:
        return None
    fall = points(known.effect).lstrip("+")
    needed = by_formula(known, samples, wanted)
    sees = smallest_effect(replace(known, effect=known.before), max(2, prompts), samples, wanted)
    more = "" if sees is None else f" This size shows a fall of {points(sees).lstrip('+')} points or more."
    counted = f"{prompts:,} {what if prompts != 1 else what.removesuffix('s')}"
    return (
        f"{counted} × {samples} answer{'s' if samples > 1 else ''}: a chance of only {100 * chance:.0f} % to show a "
        f"fall of the toxic share by {fall} points (effect), if {said}. About {needed:,} {what} have one of "
        f"{100 * wanted:.0f} %.{more} See rewardlm power."
    )
