"""A sample drawn evenly over transitions speaks of the run: a planted run where the plain mean is wrong."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rewardlm.interpreting.answers import AnswerSample, ScoredPair
from rewardlm.interpreting.findings import Stratum
from rewardlm.interpreting.intervals import Resampling
from rewardlm.interpreting.stratified import RunMeans, second_draws
from rewardlm.types import Message, Prompt

# What a pair's value is in the mean, by transition, and how many of the run's pairs made it.
LOW, MEDIUM, HIGH = 0.1, 0.5, 0.9
STRATA = {(LOW, LOW): (0.2, 900), (HIGH, LOW): (2.0, 40), (LOW, HIGH): (-1.0, 30), (HIGH, HIGH): (1.5, 30)}
NAMES = {LOW: "low", MEDIUM: "medium", HIGH: "high"}


def sample_of(taken: int, *, a_prompt: int = 1, redraw: tuple[float, float, float] | None = None) -> AnswerSample:
    """``taken`` pairs of every transition, ``a_prompt`` of them in turn to one prompt."""
    ways = [way for way in STRATA for _ in range(taken)]
    pairs = [
        ScoredPair(Prompt(f"p{k // a_prompt}", (Message("user", "Hello"),), "test", None, False), k, way, redraw)
        for k, way in enumerate(ways)
    ]
    strata = [Stratum(from_=NAMES[way[0]], to=NAMES[way[1]], of=of, taken=taken) for way, (_, of) in STRATA.items()]
    return AnswerSample("judge", pairs, [], list(strata), 1000, 0, 1000, None)


def drawn(strata: dict[tuple[float, float], tuple[int, int]]) -> AnswerSample:
    """A sample of one pair a prompt: by transition how many pairs the run made, and how many of them were taken."""
    ways = [way for way, (_, taken) in strata.items() for _ in range(taken)]
    pairs = [
        ScoredPair(Prompt(f"p{k}", (Message("user", "Hello"),), "test", None, False), k, way, (0.8, 0.0, 0.2))
        for k, way in enumerate(ways)
    ]
    rows = [Stratum(from_=NAMES[a], to=NAMES[b], of=of, taken=taken) for (a, b), (of, taken) in strata.items()]
    total = sum(of for of, _ in strata.values())
    return AnswerSample("judge", pairs, [], rows, total, 0, total, None)


def values_of(sample: AnswerSample, rng: np.random.Generator, spread: float = 0.5) -> np.ndarray:
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
        low, high = found.ci95
        weighted.append(found.mean)
        covered += low <= TRUTH <= high
        plain.append(Resampling(200, 0).mean(values, pairs).mean)
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
    assert found.mean == pytest.approx(total / weight)
    assert found.n == 20


def test_a_transition_of_its_own_needs_no_weights() -> None:
    sample = sample_of(8)
    values = values_of(sample, np.random.default_rng(2))
    fell = [number for number, pair in enumerate(sample.pairs) if pair.toxicity == (HIGH, LOW)]
    found = RunMeans(500, 3, sample).mean(values[fell], fell)
    assert found == Resampling(500, 3).mean(values[fell], fell)
    assert found.mean == pytest.approx(values[fell].mean())


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
        differences.append(found.mean)
        covered += found.ci95[0] <= truth <= found.ci95[1]
        noise = rng.normal(size=len(values))
        low, high = RunMeans(200, 0, sample).difference(noise[toxic], toxic, noise[other], other).ci95
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
        low, high = RunMeans(200, 0, sample).mean(values, range(len(values))).ci95
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
        claimed += found.ci95[0] > 0 or found.ci95[1] < 0
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    planted = {number: 3.0 * (way == "high → low") + rng.normal() for number, way in enumerate(ways)}
    found = of_run.against(planted, made, would)
    # 40 of the 70 that were high made it: the others, 3/7 of them, have 3 less.
    assert found.mean == pytest.approx(3 * 3 / 7, abs=0.6)
    assert found.ci95[0] > 0
    assert second_draws(sample_of(8), ways) == {}


@pytest.mark.parametrize("toxic", [1, 2, 4])
def test_a_few_toxic_answers_say_nothing_however_many_others_there_are(toxic: int) -> None:
    """The one toxic answer lies on its own mean, and seemed to have no spread: equal groups differed in 70 of 100."""
    sample = drawn({(LOW, LOW): (140, 25), (LOW, HIGH): (4, 4), (HIGH, LOW): (toxic, toxic)})
    of_run = RunMeans(200, 0, sample)
    values = np.random.default_rng(0).normal(size=len(sample.pairs))
    found = of_run.difference(values[29:], range(29, 29 + toxic), values[:29], range(29))
    assert (found.ci95, found.p_value, found.n) == (None, None, toxic)
    assert found.mean is not None
    ways = [f"{NAMES[before]} → {NAMES[after]}" for before, after in (pair.toxicity for pair in sample.pairs)]
    made, would = second_draws(sample, ways)["high → low"]
    would |= dict.fromkeys(range(20), 0.5)
    assert of_run.against(dict(enumerate(values)), made, would).ci95 is None


@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_five_toxic_answers_keep_the_level(shape: str) -> None:
    rng = np.random.default_rng(7)
    sample = drawn({(LOW, LOW): (140, 20), (LOW, HIGH): (5, 5), (HIGH, LOW): (5, 5)})
    claimed, trials = 0, 600
    for _ in range(trials):
        values = getattr(rng, f"standard_{shape}")(len(sample.pairs))
        found = RunMeans(200, 0, sample).difference(values[25:], range(25, 30), values[:25], range(25))
        assert (found.p_value < 0.05) == (not found.ci95[0] <= 0 <= found.ci95[1])
        claimed += found.p_value < 0.05
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_a_mean_that_rests_on_one_pair_is_as_uncertain_as_one_pair() -> None:
    """One pair stands for 900 of 908: the run's mean is nearly its value, whose spread its own distance hides."""
    rng = np.random.default_rng(8)
    sample = drawn({(LOW, LOW): (900, 1), (HIGH, LOW): (2, 2), (LOW, HIGH): (3, 3), (HIGH, HIGH): (3, 3)})
    held, trials = 0, 600
    for _ in range(trials):
        low, high = RunMeans(200, 0, sample).mean(rng.normal(size=9), range(9)).ci95
        held += low <= 0 <= high
    assert held / trials >= 0.93


def test_a_weighted_change_flips_the_signs_of_the_prompts_sums() -> None:
    """By going through all the signs by hand, where these say less than the t-test."""
    sample = drawn({(LOW, LOW): (60, 6), (HIGH, LOW): (4, 4)})
    values = np.array([0.3, 0.31, 0.29, 0.32, 0.28, 0.3, -0.1, 0.2, 0.4, -0.3])
    weighted = np.array([10.0] * 6 + [1.0] * 4) * values / 64
    flips = [abs(np.dot(signs, weighted)) for signs in product((1, -1), repeat=10)]
    flipped = np.mean(np.array(flips) >= abs(weighted.sum()) - 1e-12)
    found = RunMeans(200, 0, sample).change(values, range(10))
    assert found.mean == pytest.approx(weighted.sum())
    assert found.p_value == pytest.approx(flipped)
    assert found.p_value < 0.05
    assert found.ci95[0] > 0


def test_five_prompts_never_show_a_change_of_the_run() -> None:
    sample = drawn({(LOW, LOW): (1133, 4), (HIGH, LOW): (1, 1)})
    found = RunMeans(2000, 0, sample).change([0.30, 0.32, 0.29, 0.31, 0.33], range(5))
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.ci95[0] == 0


def test_skewed_changes_of_the_run_keep_the_level() -> None:
    """Six pairs stand for most of the run. A t-test alone found a change in 12 of 100 where there was none."""
    rng = np.random.default_rng(9)
    sample = drawn({(LOW, LOW): (1133, 6), (HIGH, LOW): (43, 5), (LOW, HIGH): (9, 4), (HIGH, HIGH): (1, 1)})
    claimed, trials = 0, 400
    for _ in range(trials):
        found = RunMeans(200, 0, sample).change(rng.standard_exponential(16) - 1, range(16))
        claimed += found.p_value < 0.05
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_quantiles_of_the_run() -> None:
    sample = sample_of(5)
    places = [0 if pair.toxicity == (LOW, LOW) else 9 for pair in sample.pairs]
    of_run = RunMeans(200, 0, sample)
    assert of_run.quantiles(places, range(20), [0.25, 0.5, 0.89, 0.91]) == [0, 0, 0, 9]
    assert np.median(places) == 9
