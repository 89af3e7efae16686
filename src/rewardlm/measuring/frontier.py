"""Toxicity against what it costs: a point for each run, a curve for each method over its strength, and tests at equal
fluency.

The question is whether training earns its cost. So each model that is no curve's mere point among others (a trained
one, say) is compared with every steering method at a strength that leaves answers as fluent as that model's. Which
strength that is, is chosen on half of the prompts and tested on the other half, and the other way round: a strength
that was chosen because it did well on some prompts would seem better on them than it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewardlm.config import FrontierSettings
from rewardlm.errors import RunError
from rewardlm.measuring import metrics
from rewardlm.measuring.comparable import refuse_incomparable
from rewardlm.measuring.comparison import Split
from rewardlm.measuring.grid import Grid, Rule, prompt_splits
from rewardlm.measuring.independence import is_independent, was_reward
from rewardlm.measuring.measured import Measured, load_measured, on_shared_prompts
from rewardlm.measuring.thresholds import thresholds_in_force
from rewardlm.measuring.utility_scores import mean_accuracies
from rewardlm.runs import CostRecord, Run, unique_labels
from rewardlm.stats import FloatArray, MeanChange, holm, mean_change, mean_ci95

Interval = tuple[float, float]


class Point(BaseModel):
    """One run. ``method`` is ``none`` for the model as it is, how its adapter was trained, or how it was steered (after
    ``+``, where it was both). Runs of one ``curve`` differ in strength alone: the same adapter or steer folder."""

    model_config = ConfigDict(extra="forbid")

    label: str
    method: str
    curve: str
    strength: float
    scored: int
    toxic_fraction: float | None
    toxic_fraction_ci95: Interval | None
    perplexity: float | None = Field(description="Under the base; answers are averaged in the exponent.")
    perplexity_ci95: Interval | None
    prompt_similarity: float | None
    prompt_similarity_ci95: Interval | None
    utility: float | None = Field(
        None, description="Mean accuracy on the tasks of choice that all measured runs share."
    )
    utility_ci95: Interval | None = None
    seconds_per_token: float | None = Field(description="Of answering, judges that choose included; None if unknown.")
    passes_per_token: float | None = Field(description="Tokens that the model read for each that it gave.")
    pareto: bool | None = Field(description="Whether no run is less toxic and as fluent; None where one is unknown.")


class Matched(BaseModel):
    """A curve against a model at equal fluency: ``delta`` is the curve's toxic share minus the model's, over the same
    prompts. ``points`` are the runs that were chosen, by half of the prompts."""

    model_config = ConfigDict(extra="forbid")

    model: str
    method: str
    curve: str
    points: list[str]
    prompts: int
    delta: float | None
    delta_ci95: Interval | None
    p_value: float | None
    p_adjusted: float | None = None
    reason: str | None = Field(None, description="Why there is no test.")


class Frontier(BaseModel):
    """What ``rewardlm frontier`` finds; its dump is ``frontier --json``."""

    model_config = ConfigDict(extra="forbid")

    scorer: str
    split: Split
    prompts: int
    fluency: float
    points: list[Point]
    matched: list[Matched]
    warnings: list[dict[str, str]]

    def curves(self) -> dict[str, list[Point]]:
        """The points of each curve, by strength, from the model that it begins at, if that is here: the model as it is,
        or the trained one that is steered."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.curve, []).append(point)

        def start(method: str) -> list[Point]:
            before = method.rpartition(" + ")[0] or "none"
            begins = [point for point in self.points if (point.method, point.strength) == (before, before != "none")]
            return [] if method == "none" else begins[:1]

        return {
            curve: [*start(points[0].method), *sorted(points, key=lambda point: point.strength)]
            for curve, points in found.items()
        }


def frontier(paths: Sequence[Path], settings: FrontierSettings) -> Frontier:
    """Compare the runs at ``paths``, which answered the same prompts, or those that all of them answered
    (``settings.shared``); their order doesn't matter.

    Raises RunError for runs that can't be compared, or that share no judge, or no prompt.
    """
    if not paths:
        raise RunError("no run is named: give the runs of the base, of trained and of steered models")
    runs = [load_measured(Path(path)) for path in paths]
    for run, label in zip(runs, unique_labels([run.label for run in runs]), strict=True):
        run.label = label
    asked = {run.label: len(run.prompts) for run in runs}
    if settings.shared:
        runs = on_shared_prompts(runs)
    refuse_incomparable(runs, scorer=settings.scorer, advice=_OTHER_PROMPTS)
    scorer, warnings = _judge(runs, settings.scorer)
    moved = thresholds_in_force(runs, None, "share")
    rule = Rule(settings.threshold, False, settings.n_resamples, settings.seed, moved).of(scorer)
    splits = prompt_splits(runs[0].prompts, rule)
    split: Split = settings.split or ("toxic_prompts" if splits["toxic_prompts"].any() else "all")
    if not splits[split].any():
        raise RunError(f"these runs have no prompts in the split {split}: choose another one with --split")
    grid, inside = Grid(runs), splits[split][:, 0]
    scores = {run.label: grid.scores(run, scorer)[inside] for run in runs}
    cells = {run.label: _cells(run, grid, inside, scores[run.label], rule) for run in runs}
    shares_ci95 = {label: metrics.toxic_fraction_ci95(own, **rule.of_intervals()) for label, own in scores.items()}
    warnings += _warnings(runs, asked)
    utility = mean_accuracies([run.utility for run in runs])
    points = [
        _point(run, curve, cells[run.label], shares_ci95[run.label], able)
        for run, curve, able in zip(runs, _curves(runs), utility, strict=True)
    ]
    matched = _matched(points, cells, settings)
    return Frontier(
        scorer=scorer,
        split=split,
        prompts=int(inside.sum()),
        fluency=settings.fluency,
        points=_with_front(points),
        matched=matched,
        warnings=warnings,
    )


@dataclass(frozen=True)
class Cells:
    """A run's answers to N prompts, as sums over each prompt: how many were ``scored``, how many of these were
    ``toxic``, and the sum and number of the known values of ``log_perplexity`` and ``similarity``. Float[N] each."""

    scored: FloatArray
    toxic: FloatArray
    log_perplexity: tuple[FloatArray, FloatArray]
    similarity: tuple[FloatArray, FloatArray]

    def perplexity(self, prompts: Any = slice(None)) -> float | None:
        """Over some of the prompts."""
        sums, counts = (part[prompts] for part in self.log_perplexity)
        return math.exp(min(sums.sum() / counts.sum(), 700)) if counts.sum() else None

    def share(self, prompts: Any = slice(None)) -> float | None:
        """The toxic share over some of the prompts."""
        scored = self.scored[prompts].sum()
        return float(self.toxic[prompts].sum() / scored) if scored else None


def _cells(run: Measured, grid: Grid, inside: Any, scores: FloatArray, rule: Rule) -> Cells:
    """``scores`` Float[N, K] are those of the N prompts ``inside``."""
    with np.errstate(divide="ignore"):
        logs = np.log(grid.values(run, run.quality.perplexity)[inside])
    return Cells(
        scored=(~np.isnan(scores)).sum(1).astype(float),
        toxic=rule.toxic(scores).sum(1).astype(float),
        log_perplexity=_sums(logs),
        similarity=_sums(grid.values(run, run.quality.prompt_similarity)[inside]),
    )


def _sums(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Float[N, K] → sums and counts of what is known, Float[N]."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(1), known.sum(1).astype(float)


def method_of(run: Run) -> tuple[str, float]:
    """What was done to a run's model, and how strongly: 1 is an adapter as it was trained, 0 the model as it is."""
    meta = run.meta
    if meta["kind"] == "import":
        return "imported", 1.0
    scale = meta.get("adapter_strength")
    trained = None
    if meta.get("adapter") and scale != 0:
        trained = meta.get("trained_by") or "adapter"
    treatment = meta.get("treatment")
    if treatment is not None and treatment["strength"] > 0:
        method = treatment["method"]
        return (method if trained is None else f"{trained} + {method}"), float(treatment["strength"])
    if trained is None:
        return "none", 0.0
    return trained, 1.0 if scale is None else float(scale)


def is_point_of_a_curve(run: Run) -> bool:
    """Whether the run's model was steered, or has its adapter at another strength than it was trained at."""
    method, strength = method_of(run)
    return _is_steering(method) or strength not in (0, 1)


def _judge(runs: Sequence[Measured], wanted: str | None) -> tuple[str, list[dict[str, str]]]:
    """The judge, and what speaks against it."""
    shared = [name for name in runs[0].judges if all(name in run.scores for run in runs)]
    if wanted is None and not shared:
        raise RunError("these runs share no judge: add one to all of them with rewardlm score RUN --scorer NAME")
    free = [name for name in shared if all(is_independent(run, name) for run in runs)]
    free = free or [name for name in shared if not any(was_reward(name, run.rewards) for run in runs)]
    chosen = wanted or (free or shared)[0]
    used = [run.label for run in runs if was_reward(chosen, run.rewards)]
    related = [run.label for run in runs if run.label not in used and not is_independent(run, chosen)]
    warnings = []
    if used:
        warnings.append(
            _warning(
                "judge_is_reward", f"{chosen} trained, or steered, {', '.join(used)}: its verdict on these is no proof"
            )
        )
    if related:
        warnings.append(
            _warning(
                "judge_taught_reward",
                f"{chosen} is, or may be, a relative of a judge that trained or steered {', '.join(related)}",
            )
        )
    return chosen, warnings


_OTHER_PROMPTS = "measure both on one list, or compare what all of them answered: shared=true"


def _warnings(runs: Sequence[Measured], asked: Mapping[str, int]) -> list[dict[str, str]]:
    """What speaks against the comparison. ``asked`` is how many prompts each run was asked, by label."""
    found = []
    more = [f"{run.label} was asked {asked[run.label]:,}" for run in runs if asked[run.label] > len(run.prompts)]
    if more:
        found.append(
            _warning(
                "prompts_left_out",
                f"only the {len(runs[0].prompts):,} prompts that all runs were asked are compared: {', '.join(more)}",
            )
        )
    under = {str(run.meta["perplexity_under"]["hash"]) for run in runs if run.meta.get("perplexity_under")}
    if len(under) > 1:
        found.append(
            _warning(
                "perplexity_differs",
                "perplexities are under different weights, so fluency can't be compared: "
                "rewardlm score RUN perplexity=MODEL with one model for all",
            )
        )
    read = [run.label for run in runs if run.meta.get("prompts_fitted_on")]
    if read:
        found.append(
            _warning("steering_read_prompts", f"the steering of {', '.join(read)} was fitted on some of these prompts")
        )
    if not any(method_of(run.run)[0] == "none" for run in runs):
        found.append(_warning("no_base", "no run is of the model as it is, from which every curve begins: measure it"))
    return found


def _warning(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def _curves(runs: Sequence[Measured]) -> list[str]:
    """Each run's curve: its method, and how, where a method has kinds; numbered where two have the same name."""
    keys: list[tuple[str, ...]] = []
    names: dict[tuple[str, ...], str] = {}
    for run in runs:
        method, treatment = method_of(run.run)[0], run.meta.get("treatment")
        of_adapter = str(run.meta.get("adapter_hash")) if method != "none" else ""
        steered = None if treatment is None or not treatment["strength"] > 0 else treatment
        keys.append((method, of_adapter, "" if steered is None else steered["hash"]))
        kind = "add" if steered is None else str(steered["settings"].get("how", "add"))
        names[keys[-1]] = method if kind == "add" else f"{method}, {kind}"
    unique = dict(zip(names, unique_labels(list(names.values())), strict=True))
    return [unique[key] for key in keys]


def _point(
    run: Measured, curve: str, cells: Cells, share_ci95: Interval | None, able: tuple[float, Interval | None] | None
) -> Point:
    """``able`` is the run's utility with its interval, if it has any."""
    method, strength = method_of(run.run)
    similarity, known = cells.similarity
    cost: CostRecord = run.meta.get("cost") or {}
    tokens = cost.get("tokens") or 0
    logs = mean_ci95(*cells.log_perplexity)
    return Point(
        label=run.label,
        method=method,
        curve=curve,
        strength=strength,
        scored=int(cells.scored.sum()),
        toxic_fraction=cells.share(),
        toxic_fraction_ci95=share_ci95,
        perplexity=cells.perplexity(),
        perplexity_ci95=None if logs is None else (math.exp(min(logs[0], 700)), math.exp(min(logs[1], 700))),
        prompt_similarity=float(similarity.sum() / known.sum()) if known.sum() else None,
        prompt_similarity_ci95=mean_ci95(similarity, known),
        utility=None if able is None else able[0],
        utility_ci95=None if able is None else able[1],
        seconds_per_token=cost["seconds"] / tokens if tokens else None,
        passes_per_token=cost["passes"] / tokens if tokens else None,
        pareto=None,
    )


def _with_front(points: Sequence[Point]) -> list[Point]:
    """Mark the front: no other run is at least as good in toxic share and in fluency, and better in one.

    Answers more fluent than the base's own are no merit, since a model that repeats itself has a low perplexity. So
    perplexities below the base's count as the base's.
    """
    base = min((p.perplexity for p in points if p.method == "none" and p.perplexity is not None), default=0.0)

    def place(point: Point) -> tuple[float, float] | None:
        if point.toxic_fraction is None or point.perplexity is None:
            return None
        return point.toxic_fraction, max(point.perplexity, base)

    places = [place(point) for point in points]

    def best(own: tuple[float, float]) -> bool:
        return not any(
            other is not None and other != own and other[0] <= own[0] and other[1] <= own[1] for other in places
        )

    return [
        point.model_copy(update={"pareto": None if own is None else best(own)})
        for point, own in zip(points, places, strict=True)
    ]


def _matched(points: Sequence[Point], cells: Mapping[str, Cells], settings: FrontierSettings) -> list[Matched]:
    """Every steering method against every model that isn't one: the base and the trained ones."""
    steered = {point.label: _is_steering(point.method) for point in points}
    models = [point for point in points if not steered[point.label] and point.strength in (0, 1)]
    curves: dict[str, list[Point]] = {}
    for point in points:
        if steered[point.label]:
            curves.setdefault(point.curve, []).append(point)
    base = next((cells[point.label] for point in points if point.method == "none"), None)
    found = [_against(model, curve, base, cells, settings) for model in models for curve in curves.values()]
    adjusted = holm([one.p_value for one in found])
    return [one.model_copy(update={"p_adjusted": p}) for one, p in zip(found, adjusted, strict=True)]


def _is_steering(method: str) -> bool:
    trained = {"none", "imported", "adapter", "finetune", "rlaf", "prefer"}
    return not set(method.split("+")) <= trained


def _against(
    model: Point, curve: Sequence[Point], base: Cells | None, cells: Mapping[str, Cells], settings: FrontierSettings
) -> Matched:
    """One curve against one model."""
    own, strengths = cells[model.label], [(point.strength, cells[point.label]) for point in curve]
    found = at_equal_fluency(own, strengths, base, settings)
    known = {"model": model.label, "method": curve[0].method, "curve": curve[0].curve}
    if found is None:
        is_known = None not in (own.perplexity(), *(theirs.perplexity() for _, theirs in strengths))
        reason = NOT_FLUENT if is_known else _NO_PERPLEXITY
        return Matched(**known, points=[], prompts=0, delta=None, delta_ci95=None, p_value=None, reason=reason)
    chosen, change = found
    return Matched(
        **known,
        points=list(dict.fromkeys(curve[number].label for number in chosen)),
        prompts=change.prompts,
        delta=change.mean,
        delta_ci95=change.ci95,
        p_value=change.p_value,
    )


NOT_FLUENT = "no strength that was measured is as fluent"
_NO_PERPLEXITY = "perplexity isn't known: rewardlm score RUN perplexity=MODEL"


def at_equal_fluency(
    own: Cells, curve: Sequence[tuple[float, Cells]], base: Cells | None, settings: FrontierSettings
) -> tuple[list[int], MeanChange] | None:
    """Which strengths of ``curve``, each with its cells, were chosen on either half of the prompts, and by how much
    their toxic share differs from ``own`` on the other half. None if on one half no strength is as fluent."""
    n = len(own.scored)
    first = np.arange(n) % 2 == 0
    differences, known = np.zeros(n), np.zeros(n, dtype=bool)
    chosen: list[int] = []
    for tested in (first, ~first):
        number = _most_harmless(curve, own, base, ~tested, settings.fluency)
        if number is None:
            return None
        chosen.append(number)
        theirs = curve[number][1]
        both = tested & (own.scored > 0) & (theirs.scored > 0)
        differences[both] = theirs.toxic[both] / theirs.scored[both] - own.toxic[both] / own.scored[both]
        known |= both
    return chosen, mean_change(differences[known], largest=1.0, n_flips=settings.n_resamples, seed=settings.seed)


def _most_harmless(
    curve: Sequence[tuple[float, Cells]], own: Cells, base: Cells | None, prompts: Any, margin: float
) -> int | None:
    """The strength of the smallest toxic share among those as fluent as ``own``, over these prompts; without any
    perplexity there is none. As on the front, to be more fluent than the base is no merit."""
    limit = own.perplexity(prompts)
    if limit is None:
        return None
    limit = max(limit, (base and base.perplexity(prompts)) or 0.0)
    options: list[tuple[float, float, int]] = []
    for number, (strength, theirs) in enumerate(curve):
        perplexity, share = theirs.perplexity(prompts), theirs.share(prompts)
        if perplexity is not None and share is not None and perplexity <= (1 + margin) * limit:
            options.append((share, strength, number))
    return min(options)[2] if options else None
