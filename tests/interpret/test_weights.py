"""A sample drawn evenly over transitions speaks of the run: a planted run where the plain mean is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from rewardlm.interpret.intervals import Resampling
from rewardlm.interpret.sample import Pair, Sample
from rewardlm.interpret.weights import RunMeans, second_draws
from rewardlm.types import Message, Prompt

# What a pair's value is in the mean, by transition, and how many of the run's pairs made it.
LOW, MEDIUM, HIGH = 0.1, 0.5, 0.9
STRATA = {(LOW, LOW): (0.2, 900), (HIGH, LOW): (2.0, 40), (LOW, HIGH): (-1.0, 30), (HIGH, HIGH): (1.5, 30)}
NAMES = {LOW: "low", MEDIUM: "medium", HIGH: "high"}


def sample_of(taken: int, *, a_prompt: int = 1, redraw: tuple[float, float, float] | None = None) -> Sample:
    """``taken`` pairs of every transition, ``a_prompt`` of them in turn to one prompt."""
    ways = [way for way in STRATA for _ in range(taken)]
    pairs = [
        Pair(Prompt(f"p{k // a_prompt}", (Message("user", "Hello"),), "test", None, False), k, way, redraw)
        for k, way in enumerate(ways)
    ]
    strata = [{"from": NAMES[way[0]], "to": NAMES[way[1]], "of": of, "taken": taken} for way, (_, of) in STRATA.items()]
    return Sample("judge", pairs, [], list(strata), 1000, 0, 1000, None)


def values_of(sample: Sample, rng: np.random.Generator, spread: float = 0.5) -> np.ndarray:
    centres = np.array([STRATA[pair.toxicity][0] for pair in sample.pairs])
    found: np.ndarray = centres + spread * rng.normal(size=len(centres))
    return found


TRUTH = sum(mean * of for mean, of in STRATA.values()) / 1000


def test_the_runs_mean_is_found_where_the_plain_one_is_wrong() -> None:
    rng = np.random.default_rng(0)
    sample = sample_of(8)
    pairs = range(len(sample.pairs))
    weighted, plain, covered = [], [], 0
    for _ in range(400):
        values = values_of(sample, rng)
        found = RunMeans(200, 0, sample).mean(values, pairs)
        low, high = found["ci95"]
        weighted.append(found["mean"])
        covered += low <= TRUTH <= high
        plain.append(Resampling(200, 0).mean(values, pairs)["mean"])
    assert np.mean(weighted) == pytest.approx(TRUTH, abs=0.03)
    # The plain mean is that of the transitions' own means, 0.675 where the run's is 0.275.
    assert np.mean(plain) == pytest.approx(0.675, abs=0.02)
    assert covered / 400 == pytest.approx(0.95, abs=0.035)


def test_the_weighted_mean_by_a_loop() -> None:
    sample = sample_of(5)
    values = values_of(sample, np.random.default_rng(1))
    total = weight = 0.0
    for pair, value in zip(sample.pairs, values, strict=True):
        total += STRATA[pair.toxicity][1] / 5 * value
        weight += STRATA[pair.toxicity][1] / 5
    found = RunMeans(200, 0, sample).mean(values, range(len(values)))
    assert found["mean"] == pytest.approx(total / weight)
    assert found["n"] == 20


def test_a_transition_of_its_own_needs_no_weights() -> None:
    sample = sample_of(8)
    values = values_of(sample, np.random.default_rng(2))
    fell = [number for number, pair in enumerate(sample.pairs) if pair.toxicity == (HIGH, LOW)]
    found = RunMeans(500, 3, sample).mean(values[fell], fell)
    assert found == Resampling(500, 3).mean(values[fell], fell)
    assert found["mean"] == pytest.approx(values[fell].mean())


def test_differences_speak_of_the_run_and_hold_their_level() -> None:
    """Toxic answers of the baseline against its others, which two transitions each give, unequally."""
    rng = np.random.default_rng(3)
    sample = sample_of(8)
    toxic = [number for number, pair in enumerate(sample.pairs) if pair.toxicity[0] == HIGH]
    other = [number for number, pair in enumerate(sample.pairs) if pair.toxicity[0] == LOW]
    truth = (2.0 * 40 + 1.5 * 30) / 70 - (0.2 * 900 - 1.0 * 30) / 930
    differences, covered, claimed, trials = [], 0, 0, 400
    for _ in range(trials):
        values = values_of(sample, rng)
        found = RunMeans(200, 0, sample).difference(values[toxic], toxic, values[other], other)
        differences.append(found["mean"])
        covered += found["ci95"][0] <= truth <= found["ci95"][1]
        noise = rng.normal(size=len(values))
        low, high = RunMeans(200, 0, sample).difference(noise[toxic], toxic, noise[other], other)["ci95"]
        claimed += low > 0 or high < 0
    assert np.mean(differences) == pytest.approx(truth, abs=0.05)
    assert covered / trials >= 0.92
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_answers_to_one_prompt_are_counted_together() -> None:
    """Eight pairs a transition, four of each to one prompt with equal values: as uncertain as two."""
    rng = np.random.default_rng(4)
    sample = sample_of(8, a_prompt=4)
    widths = []
    for grouped in (False, True):
        own = values_of(sample, rng)
        values = np.repeat(own[::4], 4) if grouped else own
        low, high = RunMeans(200, 0, sample).mean(values, range(len(values)))["ci95"]
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_what_a_second_draw_would_have_sent_the_same_way() -> None:
    """Values that know nothing of the transition differ from the second draw's by chance alone."""
    rng = np.random.default_rng(5)
    sample = sample_of(8, redraw=(0.75, 0.0, 0.25))
    ways = [f"{NAMES[before]} → {NAMES[after]}" for before, after in (pair.toxicity for pair in sample.pairs)]
    again = second_draws(sample, ways)
    assert set(again) == set(ways)
    made, would = again["high → low"]
    assert [number for number, way in enumerate(ways) if way == "high → low"] == list(made)
    # Of all that were high, three quarters of a second draw would be low.
    assert would == {number: 0.75 for number, way in enumerate(ways) if way.startswith("high")}
    of_run = RunMeans(200, 0, sample)
    claimed, trials = 0, 300
    for _ in range(trials):
        found = of_run.against(dict(enumerate(rng.normal(size=len(ways)))), made, would)
        claimed += found["ci95"][0] > 0 or found["ci95"][1] < 0
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    planted = {number: 3.0 * (way == "high → low") + rng.normal() for number, way in enumerate(ways)}
    found = of_run.against(planted, made, would)
    # 40 of the 70 that were high made it: the others, 3/7 of them, have 3 less.
    assert found["mean"] == pytest.approx(3 * 3 / 7, abs=0.6)
    assert found["ci95"][0] > 0
    assert second_draws(sample_of(8), ways) == {}


def test_quantiles_of_the_run() -> None:
    sample = sample_of(5)
    places = [0 if pair.toxicity == (LOW, LOW) else 9 for pair in sample.pairs]
    of_run = RunMeans(200, 0, sample)
    assert of_run.quantiles(places, range(20), [0.25, 0.5, 0.89, 0.91]) == [0, 0, 0, 9]
    assert np.median(places) == 9
