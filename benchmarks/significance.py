"""How often "significant" is chance, how often a real effect is found, and how often intervals hold what is true.

    make prove-statistics                    all of it, some 15 minutes on one core
    python benchmarks/significance.py --repetitions 200 --only compare

Two equal models are simulated again and again, and the functions that the commands call are asked whether they differ.
At a level of 5 %, they may say so in at most 6 % of the cases. Beside this error rate stands the power: the share of
cases in which a stated effect is found. Then come the 95 % intervals of levels, of changes, and of shares that are
corrected for a judge's errors: how often they hold what is true. Exits with 1 where an error rate is over 6 % by more
than chance.

The simulations look like real measurements: each prompt has its own tendency (a correlation of .3 between its answers),
answers are rarely toxic, scores are skewed, and some prompts have fewer scored answers. In the rows "another shape" the
models differ in how their scores are spread, not in the mean. The last of these rows is extreme: no test of a few
prompts can know of one answer in thirty if none of them gave it. It is shown and not judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rewardlm.config import FrontierSettings, InsideSettings
from rewardlm.interpreting.answers import AnswerSample, ScoredPair
from rewardlm.interpreting.findings import Stratum
from rewardlm.interpreting.intervals import Resampling, change_between
from rewardlm.interpreting.mechanistic.adapter_effects import preference_change
from rewardlm.interpreting.mechanistic.vector_ablation import ablation_effect, takes_more
from rewardlm.interpreting.stratified import RunMeans, second_draws
from rewardlm.judges.metrics import auc, auc_interval95, is_at_chance
from rewardlm.measuring import metrics, primary
from rewardlm.measuring.changes import utility_change
from rewardlm.measuring.comparison import METRICS, SPLITS, Change, Primary
from rewardlm.measuring.correction import JudgeErrors, corrected_share
from rewardlm.measuring.disagreement import difference_of_judges
from rewardlm.measuring.frontier import Cells, at_equal_fluency
from rewardlm.measuring.grid import Rule
from rewardlm.measuring.group_gains import groups_changes
from rewardlm.measuring.non_inferiority import non_inferiority
from rewardlm.measuring.over_refusal import over_refusal_change
from rewardlm.measuring.utility_records import AnswersAboutGroups, AnswersToHarmless
from rewardlm.measuring.utility_results import OverRefusalChange, UtilityChange
from rewardlm.measuring.utility_scores import TaskScores
from rewardlm.stats import difference_of_means
from rewardlm.steering.choose import Tried, best_of, p_value_random
from rewardlm.types import Message, Prompt

Grid = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Grid, Grid]]
Found = dict[str, bool | None]

SIZES = (5, 10, 20, 57, 300)
LEVEL, BAR = 0.05, 0.06
# Flips and resamples per test: fewer than the commands draw, which makes p coarser but not smaller.
FLIPS, RESAMPLES = 1_000, 100
RULE = Rule(0.5, False, FLIPS, 0)
NAN = float("nan")


def tendencies(rng: np.random.Generator, n: int, share: float, correlation: float = 0.3) -> Grid:
    """Each prompt's own chance of a toxic answer [n, 1]: beta, so that answers of one prompt correlate."""
    size = (1 - correlation) / correlation
    return rng.beta(share * size, (1 - share) * size, (n, 1))


def shares(before: float, after: float, samples: int, *, unequal: bool = False) -> Draw:
    """Scores of .1 or .9. A prompt that often gets toxic answers from one model gets them from the other, too."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        one = tendencies(rng, n, before)
        two = one * after / before
        grids = [np.where(rng.random((n, samples)) < chance, 0.9, 0.1) for chance in (one, two)]
        if unequal:
            lost = rng.random((n, samples)) < rng.beta(1, 2, (n, 1))
            grids = [np.where(lost, NAN, grid) for grid in grids]
        return grids[0], grids[1]

    return draw


def skewed(shift: float, samples: int) -> Draw:
    """Logits are normal around each prompt's mean, and so are these means: most scores are near 0, some near 1."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        own = -2.0 + 1.5 * rng.normal(size=(n, 1))
        one, two = (own + moved + 1.5 * rng.normal(size=(n, samples)) for moved in (0.0, shift))
        return 1 / (1 + np.exp(-one)), 1 / (1 + np.exp(-two))

    return draw


def another_shape(a: tuple[float, float], b: tuple[float, float]) -> Draw:
    """Beta distributions of one mean: the second model's answers are more alike."""
    return lambda rng, n: (rng.beta(*a, (n, 1)), rng.beta(*b, (n, 1)))


@dataclass(frozen=True)
class Null:
    """Two models without a difference, the same with one (``alternative``), and whether the bar applies."""

    name: str
    draw: Draw
    effect: str
    alternative: Draw
    # Whether only the means are equal, and not the shares above the threshold.
    means_alone: bool = False
    judged: bool = True
    bar: float = BAR


NULLS = [
    *(
        Null(
            f"share {share}, {k} answer{'s'[: k > 1]}",
            shares(share, share, k),
            f"to {share / 3:.2g}",
            shares(share, share / 3, k),
        )
        for share in (0.02, 0.1, 0.3)
        for k in (1, 4)
    ),
    Null(
        "share 0.1, up to 4 scored",
        shares(0.1, 0.1, 4, unequal=True),
        "to 0.033",
        shares(0.1, 0.1 / 3, 4, unequal=True),
    ),
    Null("skewed scores, 1 answer", skewed(0, 1), "logits − 1", skewed(-1, 1)),
    Null("skewed scores, 4 answers", skewed(0, 4), "logits − 1", skewed(-1, 4)),
    Null("another shape", another_shape((0.5, 2), (2, 8)), "to .1", another_shape((0.5, 2), (1, 9)), True),
    Null(
        "another shape, rare peaks",
        another_shape((0.3, 2.7), (1, 9)),
        "to .05",
        another_shape((0.3, 2.7), (0.5, 9.5)),
        True,
    ),
    Null(
        "extreme: rare peaks, then none",
        another_shape((0.3, 2.7), (100, 900)),
        "",
        another_shape((0.3, 2.7), (50, 950)),
        True,
        False,
    ),
]


def below(p_value: float | None) -> bool | None:
    """Whether p is below the level; None where nothing could be tested."""
    return None if p_value is None else p_value < LEVEL


def compared(before: Grid, after: Grid) -> Found:
    """What ``compare`` tests."""
    change = metrics.paired_difference(before, after, n_resamples=FLIPS)
    maxima = metrics.paired_difference_of_maxima(before, after, n_resamples=FLIPS)
    found = {"toxic share": below(change.p_value), "mean score": below(change.mean_p_value)}
    if before.shape[1] > 1:
        found["EMT"] = below(maxima.expected_max_toxicity.p_value)
        found["TP"] = below(maxima.toxicity_probability.p_value)
    return found


def interpreted(before: Grid, after: Grid) -> Found:
    """What ``interpret`` tests: changes over pairs, and two groups of prompts; of scores, as of log-probabilities."""
    draws = Resampling(FLIPS, 0)
    owner = np.repeat(np.arange(len(before)), before.shape[1])
    half = len(before) // 2
    change = change_between(before[:, 0].tolist(), after[:, 0].tolist(), n_resamples=FLIPS, seed=0)
    found = {
        "change": below(draws.change((after - before).ravel(), owner).p_value),
        "causal test": below(None if change is None else change.p_value),
    }
    if half >= 5:
        one, two = before[:half].ravel(), after[half : 2 * half].ravel()
        groups = owner[: len(one)]
        found["two groups"] = below(draws.difference(one, groups, two, groups).p_value)
    return found


def audited(before: Grid, after: Grid) -> Found:
    """What ``audit`` tests: the toxic share of answers that quote their prompt against that of the others."""
    sums = [(grid > 0.5).sum(axis=1) for grid in (before, after)]
    counts = [(~np.isnan(grid)).sum(axis=1) for grid in (before, after)]
    return {"quotation": below(difference_of_means(sums[0], counts[0], sums[1], counts[1]).p_value)}


def two_judges(before: Grid, after: Grid) -> Found:
    """What ``judges_disagree`` tests. The first half of the columns holds one judge's scores of the answers, the
    second half the other's."""
    k = before.shape[1] // 2
    one, two = (before[:, :k], after[:, :k]), (before[:, k:], after[:, k:])
    return {"judges' changes": below(difference_of_judges(one, two, RULE).p_value)}


def seen_by_two(before: float, after: float, other_after: float, samples: int) -> Draw:
    """By one judge the toxic share goes to ``after``, by the other to ``other_after``. They see the same answers, and
    each errs on one in ten, independently."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        own = tendencies(rng, n, before)

        def seen(share: float, other: float) -> Grid:
            level = rng.random((n, samples))
            wrong = rng.random((2, n, samples)) < 0.1
            hits = [level < own * one / before for one in (share, other)]
            return np.hstack([np.where(hit ^ slip, 0.9, 0.1) for hit, slip in zip(hits, wrong, strict=True)])

        return seen(before, before), seen(after, other_after)

    return draw


def read_together(before: Grid, after: Grid) -> Found:
    """Is anything significant in a table of three judges and five splits? The judges see the same answers."""
    entries = []
    rng = np.random.default_rng(int(abs(before.sum()) * 1e6))
    for judge in range(3):
        for split in range(5):
            part = slice(None) if split == 0 else np.arange(len(before)) % 5 != split
            noise = rng.random(before.shape) < 0.1
            one, two = (np.where(noise, 1 - grid, grid)[part] for grid in (before, after))
            change = metrics.paired_difference(one, two, n_resamples=FLIPS)
            unasked = [*(of for of in METRICS if of != "toxic_fraction"), "delta_worst"]
            known = {"scorer": f"j{judge}", "split": SPLITS[split], "p_value": change.p_value, "flow_excess": None}
            entries.append(Change.model_construct(**known, **{f"{of}_p_value": None for of in unasked}))
    entries = primary.adjust(entries, Primary(scorer="j0", split=SPLITS[0], metric="toxic_fraction"))
    others = [entry.p_adjusted for entry in entries[1:] if entry.p_adjusted is not None]
    return {"any of 14, Holm": any(p < LEVEL for p in others)}


def judged(scores: Grid, positive: Grid) -> Found:
    """What ``judge evaluate`` says: is the AUC better, or worse, than chance?"""
    truth = positive[:, 0] > 0
    interval = auc_interval95(scores[:, 0], truth, n_resamples=RESAMPLES, seed=0)
    if interval is None:
        return {"AUC": None}
    # Without the rule that an AUC of less than .6 is at chance.
    return {"AUC": not is_at_chance(max(0.6, auc(scores[:, 0], truth) or 0), interval)}


def guesses(shift: float) -> Draw:
    """A judge's scores, and which texts are truly toxic: ``shift`` standard deviations apart."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        positive = rng.random((n, 1)) < 0.4
        return rng.normal(size=(n, 1)) + shift * positive, positive.astype(float)

    return draw


def sample_of_run(n: int) -> AnswerSample:
    """``n`` pairs of as many prompts, drawn over transitions as ``interpret`` does: nearly all stayed low."""
    buckets = {"low": 0.1, "high": 0.9}
    few = max(1, n // 6)
    taken = {("low", "low"): n - 3 * few, ("low", "high"): few, ("high", "low"): few, ("high", "high"): few}
    strata = [
        Stratum(from_=a, to=b, of=20 * number if a == b == "low" else number, taken=number)
        for (a, b), number in taken.items()
    ]
    ways = [way for way, number in taken.items() for _ in range(number)]
    pairs = [
        ScoredPair(
            Prompt(str(k), (Message("user", ""),), "", None, False), 0, (buckets[a], buckets[b]), (0.8, 0.0, 0.2)
        )
        for k, (a, b) in enumerate(ways)
    ]
    of = sum(20 * number if way == ("low", "low") else number for way, number in taken.items())
    return AnswerSample("judge", pairs, [], strata, of, 0, of, None)


def of_the_run(before: Grid, after: Grid) -> Found:
    """What ``interpret`` says of a run by a weighted sample: a change, toxic against other answers (where nothing
    distinguishes them), and a transition beyond chance. The effect is the same in all groups, so the power shown for
    the last two is their error rate again."""
    sample = sample_of_run(len(before))
    draws = RunMeans(FLIPS, 0, sample)
    values = after.mean(axis=1) - before.mean(axis=1)
    toxic = [k for k, pair in enumerate(sample.pairs) if pair.toxicity[0] > 0.5]
    other = [k for k, pair in enumerate(sample.pairs) if pair.toxicity[0] <= 0.5]
    ways = ["low → high" if pair.toxicity == (0.1, 0.9) else "low → low" for pair in sample.pairs]
    made, would = second_draws(sample, ways)["low → high"]
    beyond = draws.against(dict(enumerate(values)), made, would).ci95
    return {
        "change": below(draws.change(values, range(len(values))).p_value),
        "toxic check": below(draws.difference(values[toxic], toxic, values[other], other).p_value),
        "beyond chance": None if beyond is None else not beyond[0] <= 0 <= beyond[1],
    }


def inside(before: Grid, after: Grid) -> Found:
    """What verdicts on the inside rest on: the preference along the path, and whether the base needs the named value
    vectors. Column 0 is a prompt's score before and after. Column k of ``after`` is what the k-th set of vectors takes
    from the score; the first set is the named one, the others are random."""
    settings = InsideSettings(n_resamples=FLIPS)
    plain, takes = before[:, 0], after[:, 1:]
    sets = [(plain - one).tolist() for one in takes.T]
    preferred = preference_change(before[:, 0].tolist(), after[:, 0].tolist(), range(len(before)), settings)
    found = ablation_effect(plain.tolist(), sets[0], sets[1:], settings, largest=None)
    return {"preference": below(preferred.p_value), "vectors needed": takes_more(found)}


def sets_of_vectors(named: float) -> Draw:
    """Preferences that rose by ``named``, and 21 sets whose effects differ as much as prompts do; the first set's
    is larger by ``named``."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        before, after = rng.normal(size=(n, 22)), rng.normal(size=(n, 22))
        after[:, 0] += named
        after[:, 1:] += rng.normal(size=21)
        after[:, 1] += named
        return before, after

    return draw


STRENGTHS = (1.0, 2.0, 4.0, 8.0)


def directions(layers: int, random: int, pull: float) -> Draw:
    """Toxic answers to as many prompts, 0 or 1: to choose by, under the named direction of each layer at each strength;
    then to others, under these and ``random`` random directions. All are long, and change the log-odds of a toxic
    answer by their own amounts, ± .5 at the largest strength; the named ones by ``pull`` less."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        moved = 0.5 * rng.normal(size=(layers, 1, 1 + random))
        moved[:, :, 0] -= pull
        moved = moved * np.array(STRENGTHS)[:, None] / max(STRENGTHS)

        def answers(logits: Grid) -> Grid:
            own = -1.5 + 1.5 * rng.normal(size=(n, 1))
            return (rng.random((n, logits.size)) < 1 / (1 + np.exp(-own - logits.ravel()))).astype(float)

        return answers(moved[:, :, :1]), answers(moved)

    return draw


def tried(strength: float, answers: Grid) -> Tried:
    """What ``steer fit`` knows of answers, all of which are fluent here."""
    share = float(answers.mean())
    return Tried(strength, len(answers), len(answers), share, None, share, 1.0)


def steered(before: Grid, after: Grid) -> Found:
    """What ``steer fit`` says of a direction: that it does better than random ones."""
    layers = before.shape[1] // len(STRENGTHS)
    chosen, _ = best_of([tried(x, one) for x, one in zip(STRENGTHS * layers, before.T, strict=True)], UNSTEERED, 1.25)
    cells = after.reshape(len(after), before.shape[1], -1)[:, chosen]
    own, *random = (tried(STRENGTHS[chosen % len(STRENGTHS)], one) for one in cells.T)
    return {"direction": below(p_value_random(own, random, layers))}


UNSTEERED = Tried(0.0, 1, 1, 1.0, None, 1.0, 1.0)


def strengths_of(share: float, steered_share: float) -> Draw:
    """A model's toxic answers and their log-perplexities, one a prompt; then those of a method at four strengths."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        chance, fluency = tendencies(rng, n, share), 2.7 + 0.3 * rng.normal(size=(n, 1))

        def answers(of: int, times: float) -> Grid:
            toxic = (rng.random((n, of)) < chance * times).astype(float)
            return np.hstack([toxic, fluency + 0.3 * rng.normal(size=(n, of))])

        return answers(1, 1.0), answers(len(STRENGTHS), steered_share / share)

    return draw


def on_the_frontier(before: Grid, after: Grid) -> Found:
    """What ``frontier`` tests: a method at its best strength of equal fluency, against a model."""
    ones = np.ones(len(before))

    def cells(toxic: Grid, logs: Grid) -> Cells:
        return Cells(scored=ones, toxic=toxic, log_perplexity=(logs, ones), similarity=(logs, ones))

    k = len(STRENGTHS)
    curve = [(x, cells(after[:, number], after[:, k + number])) for number, x in enumerate(STRENGTHS)]
    found = at_equal_fluency(cells(before[:, 0], before[:, 1]), curve, None, FrontierSettings(n_resamples=FLIPS))
    return {"at equal fluency": None if found is None else below(found[1].p_value)}


GROUPS = [f"group {number}" for number in range(8)]


def about_groups(offset: float, fall: float, left_behind: float = 0.0) -> Draw:
    """Scores of answers about eight groups, one a sentence: logits around each sentence's own, which fall by ``fall``;
    those about the first group by ``left_behind`` less. ``offset`` is by how much groups' logits differ (their standard
    deviation), before and after: a judge that is biased, and scores that vary more about some groups than about others.
    """

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        own = -1.5 + rng.normal(size=(n, 1)) + offset * rng.normal(size=len(GROUPS))
        down = np.full(len(GROUPS), fall)
        down[0] -= left_behind
        logits = (own - moved + 1.5 * rng.normal(size=(n, len(GROUPS))) for moved in (0.0, down))
        before, after = (1 / (1 + np.exp(-one)) for one in logits)
        return before, after

    return draw


def by_group(before: Grid, after: Grid) -> Found:
    """What ``compare`` and the audit say of groups: that they didn't gain alike, and which gained least."""
    sentences = [str(number) for number in range(len(before))]
    runs = [
        AnswersAboutGroups(sentences, GROUPS, np.ones(grid.shape, np.intp), {"j": grid[:, :, None]})
        for grid in (before, after)
    ]
    change = groups_changes("PT", *runs, Rule(0.5, False, RESAMPLES, 0))["j"]
    return {"groups alike": below(change.p_value), "left behind": bool(change.least)}


# The loss in utility that must be excluded: of 10 points, because 300 questions can say little about one point.
MARGIN = 0.1


def questions(lost: float, won: float) -> Draw:
    """Questions that are answered rightly (1) or wrongly (0), before and after. Of all questions, so many are lost and
    so many won.
    """

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        change = rng.choice([-1.0, 0.0, 1.0], (n, 1), p=[lost, 1 - lost - won, won])
        before = np.where(change == 0, rng.integers(0, 2, (n, 1)), (1 - change) / 2)
        return before, before + change

    return draw


def articles(rise: float) -> Draw:
    """Articles' log-perplexities, each around its own, which rise by the logarithm of 1 + ``rise``."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        before = 3.5 + 0.4 * rng.normal(size=(n, 1))
        return before, before + np.log1p(rise) + 0.1 * rng.standard_t(4, size=(n, 1))

    return draw


def refusals(before: float, after: float, always: float = 0.0) -> Draw:
    """Eight answers to each harmless prompt, of which such shares refuse (1). The second model also refuses every
    answer to a share ``always`` of the prompts.
    """

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        own = tendencies(rng, n, before)
        later = own + (1 - own) * (after - before) / (1 - before)
        one, two = ((rng.random((n, 8)) < chance).astype(float) for chance in (own, later))
        two[rng.random(n) < always] = 1.0
        return one, two

    return draw


def of_a_task(before: Grid, after: Grid) -> dict[str, UtilityChange | OverRefusalChange]:
    """What ``compare`` finds of a task, by its name: questions, articles of the same length, or harmless prompts, which
    alone have several answers each.
    """
    ids, counts = tuple(map(str, range(len(before)))), np.ones(len(before))
    if before.shape[1] > 1:
        refused = over_refusal_change("PT", *map(answers_to_harmless, (before, after)), RULE)
        return {} if refused is None else {"over_refusal": refused}
    choice = bool(np.isin(before, (0.0, 1.0)).all())
    tasks = [TaskScores(ids, grid[:, 0], counts, grid[:, 0] if choice else None) for grid in (before, after)]
    return {"piqa" if choice else "wikitext": utility_change("PT", *tasks, RULE)}


def answers_to_harmless(refused: Grid) -> AnswersToHarmless:
    """A run's answers of one word each, from whether each refuses."""
    n, samples = refused.shape
    sums, answers = refused.sum(axis=1), np.full(n, samples)
    words = np.full(n, float(samples))
    return AnswersToHarmless(list(map(str, range(n))), ["own"] * n, [""] * n, answers, sums, sums, words, words)


def changed(before: Grid, after: Grid) -> Found:
    """Whether ``compare`` and the audit see a change of utility beyond chance."""
    (change,) = of_a_task(before, after).values()
    return {"utility": below(change.p_value)}


def excluded(before: Grid, after: Grid) -> Found:
    """Whether ``compare`` says that no more than the margin was lost."""
    found = [one.holds for one in non_inferiority(of_a_task(before, after), MARGIN).values()]
    return {"loss excluded": found[0] if found else None}


# Where the models differ, all answers differ alike, and these tests ask whether some differ more than others. So the
# power shown beside them is their error rate again.
DIFFERENCES = {"toxic check", "beyond chance"}

FAMILIES: list[tuple[str, Callable[[Grid, Grid], Found], list[Null]]] = [
    ("compare", compared, NULLS),
    ("interpret", interpreted, [null for null in NULLS if null.name.startswith(("share 0.1, 4", "skewed", "another"))]),
    ("audit", audited, [null for null in NULLS if null.name.startswith("share") and "up to" not in null.name]),
    (
        "two judges",
        two_judges,
        [
            Null(
                f"both see 0.3 to {after}, {k}",
                seen_by_two(0.3, after, after, k),
                "one alone",
                seen_by_two(0.3, 0.05, 0.3, k),
            )
            for after in (0.3, 0.1)
            for k in (1, 4)
        ],
    ),
    ("read together", read_together, [null for null in NULLS if null.name.startswith("share 0.3")]),
    ("run", of_the_run, [null for null in NULLS if null.name.startswith("skewed")]),
    ("inside", inside, [Null("one more random set", sets_of_vectors(0), "+3", sets_of_vectors(3))]),
    (
        "steer fit",
        steered,
        [
            Null(f"{of}, {random} random", directions(layers, random, 0), "odds ÷ 20", directions(layers, random, 3))
            for layers, random, of in ((1, 20, "one direction"), (3, 79, "best of 3"))
        ],
    ),
    (
        "frontier",
        on_the_frontier,
        [
            Null(f"best of 4 strengths, {share}", strengths_of(share, share), f"to {low}", strengths_of(share, low))
            for share, low in ((0.1, 0.033), (0.25, 0.1))
        ],
    ),
    (
        "groups",
        by_group,
        [
            Null("no gain, a biased judge", about_groups(1.0, 0.0), "1 of 8 none", about_groups(0, 3, 3)),
            Null("all gain alike", about_groups(0.0, 2.0), "1 of 8 none", about_groups(0, 2, 2)),
        ],
    ),
    (
        "utility",
        changed,
        [
            Null("questions, 1 in 5 changed", questions(0.1, 0.1), "10 points lost", questions(0.2, 0.1)),
            Null("questions, 1 in 20 changed", questions(0.025, 0.025), "10 points lost", questions(0.125, 0.025)),
            Null("articles", articles(0.0), "+10 %", articles(0.1)),
            Null("2 % of 8 answers refuse", refusals(0.02, 0.02), "5 %", refusals(0.02, 0.05)),
        ],
    ),
    # Here the "null" is a loss as large as the margin, which may be excluded in 2.5 % of cases: the bar is 3.
    (
        "no loss",
        excluded,
        [
            Null("10 points lost, 1 in 5 changed", questions(0.15, 0.05), "none lost", questions(0.05, 0.05), bar=0.03),
            Null("10 points lost, 1 in 10 changed", questions(0.1, 0.0), "none lost", questions(0.02, 0.02), bar=0.03),
            Null("perplexity + 10 %", articles(0.1), "none", articles(0.0), bar=0.03),
            Null("2 % of 8 answers refuse, then 12 %", refusals(0.02, 0.12), "2 %", refusals(0.02, 0.02), bar=0.03),
            Null("1 in 10 always refused", refusals(0.02, 0.02, 0.1021), "2 %", refusals(0.02, 0.02), bar=0.03),
            Null("1 in 20, and 5 % more", refusals(0.02, 0.07, 0.0538), "2 %", refusals(0.02, 0.02), bar=0.03),
        ],
    ),
    ("judge", judged, [Null("an AUC of .5", guesses(0), "to .76", guesses(1))]),
]


def rates(
    ask: Callable[[Grid, Grid], Found], draw: Draw, n: int, repetitions: int, seed: int
) -> dict[str, tuple[int, int]]:
    """For each question: how often it was found significant, and how often it was asked."""
    rng = np.random.default_rng([seed, n])
    counts: dict[str, list[int]] = {}
    for _ in range(repetitions):
        for name, found in ask(*draw(rng, n)).items():
            count = counts.setdefault(name, [0, 0])
            # What can't be tested is not called significant.
            count[0] += bool(found)
            count[1] += 1
    return {name: (found, asked) for name, (found, asked) in counts.items()}


def over_the_bar(found: int, asked: int, bar: float = BAR) -> bool:
    """Whether a true rate at the bar would give as many in fewer than one of 10,000 simulations."""
    return bool(found > stats.binom.ppf(0.9999, asked, bar))


@dataclass(frozen=True)
class Kind:
    """An interval that is shown: that of the statistic ``of`` on data from ``draw``."""

    name: str
    draw: Draw
    interval: Callable[[Grid], tuple[float, float] | None]
    of: Callable[[Grid], float | None]


def level(grid: Grid) -> tuple[float, float] | None:
    """The interval of a mean in ``interpret``."""
    found = Resampling(FLIPS, 0).mean(grid.ravel(), np.repeat(np.arange(len(grid)), grid.shape[1])).ci95
    return None if found is None else (found[0], found[1])


def numbers(spread: Callable[[np.random.Generator, int], Grid]) -> Draw:
    """One model's numbers of any kind."""
    return lambda rng, n: (spread(rng, n), np.empty((n, 0)))


Counts = Callable[[np.random.Generator, int], NDArray[np.int64]]


def one_has_25(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """One prompt has 25 answers, the others one each."""
    return np.array([25] + [1] * (n - 1))


def geometric(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """Five answers a prompt on average, most have fewer; 25 at most."""
    return np.minimum(rng.geometric(0.2, n), 25)


def two_models(before: float, after: float, counts: Counts) -> Draw:
    """As ``shares``, with ``counts`` answers per prompt."""
    draw = shares(before, after, 25)

    def cut(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        one, two = draw(rng, n)
        missing = np.arange(25) >= counts(rng, n)[:, None]
        return np.where(missing, NAN, one), np.where(missing, NAN, two)

    return cut


def one_model(share: float, counts: Counts) -> Draw:
    """1 for a toxic answer, else 0, with ``counts`` answers per prompt."""
    draw = two_models(share, share, counts)

    def cut(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        grid = draw(rng, n)[0]
        return np.where(np.isnan(grid), NAN, grid > 0.5), np.empty((n, 0))

    return cut


def nested(before: float, after: float) -> Draw:
    """One answer a prompt; no prompt becomes toxic that wasn't."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Grid, Grid]:
        level = rng.random((n, 1))
        return np.where(level < before, 0.9, 0.1), np.where(level < after, 0.9, 0.1)

    return draw


INTERVALS = [
    *(
        Kind(f"toxic share {share}, {k}", shares(share, share, k), metrics.toxic_fraction_ci95, metrics.toxic_fraction)
        for share in (0.02, 0.1, 0.3)
        for k in (1, 4)
    ),
    Kind(
        "toxic share 0.1, up to 4",
        shares(0.1, 0.1, 4, unequal=True),
        metrics.toxic_fraction_ci95,
        metrics.toxic_fraction,
    ),
    *(
        Kind(f"{name} of {k}", skewed(0, k), interval, of)
        for k in (4, 25)
        for name, interval, of in (
            ("EMT", metrics.expected_max_toxicity_ci95, metrics.expected_max_toxicity),
            ("TP", metrics.toxicity_probability_ci95, metrics.toxicity_probability),
        )
    ),
    Kind(
        "mean in interpret, normal",
        numbers(lambda rng, n: rng.normal(size=(n, 1)) + rng.normal(size=(n, 3))),
        level,
        metrics.mean,
    ),
    Kind(
        "mean in interpret, lognormal",
        numbers(lambda rng, n: np.exp(0.5 * rng.normal(size=(n, 1)))),
        level,
        metrics.mean,
    ),
    *(
        Kind(f"toxic share {share}, {name}", one_model(share, counts), metrics.toxic_fraction_ci95, metrics.mean)
        for share in (0.05, 0.2)
        for name, counts in (("one has 25", one_has_25), ("geometric", geometric))
    ),
]
# A name, both models' answers, which number of the change, and its true value where that is known.
CHANGES: list[tuple[str, Draw, str, float | None]] = [
    ("share .1 to 0, none rises, 1", nested(0.1, 0), "delta", -0.1),
    ("share .3 to .1, none rises, 1", nested(0.3, 0.1), "delta", -0.2),
    *(
        (f"share {name}, {k}", shares(before, after, k), "delta", after - before)
        for name, before, after in ((".1 to .033", 0.1, 0.1 / 3), (".3 to .1", 0.3, 0.1))
        for k in (1, 4)
    ),
    ("share .3 to .1, one has 25", two_models(0.3, 0.1, one_has_25), "delta", -0.2),
    *((f"mean, skewed, {k}", skewed(-1, k), "mean_delta", None) for k in (1, 4)),
]


def print_errors(repetitions: int, only: str | None) -> list[str]:
    """The table of error rates and power; what is over the bar."""
    failed = []
    print(
        f"\nError rate at a level of 5 %, in % ± its Monte-Carlo error; in brackets the power at the effect. "
        f"{repetitions:,} repetitions a cell."
    )
    print(f"{'':14}{'two equal models':34}{'effect':16}{'asked':18}" + "".join(f"{f'n = {n}':>17}" for n in SIZES))
    for family, ask, nulls in FAMILIES:
        if only not in (None, family):
            continue
        for null in nulls:
            cells: dict[str, list[str]] = {}
            for n in SIZES:
                wrong = rates(ask, null.draw, n, repetitions, 1)
                right = rates(ask, null.alternative, n, max(100, repetitions // 4), 2)
                for name, (found, asked) in wrong.items():
                    if null.means_alone and name == "toxic share":
                        continue
                    rate, power = found / asked, right[name][0] / right[name][1]
                    error = (max(rate, 1 / asked) * (1 - rate) / asked) ** 0.5
                    bad = null.judged and over_the_bar(found, asked, null.bar)
                    cells.setdefault(name, [""] * SIZES.index(n)).append(
                        f"{100 * rate:.1f}±{100 * error:.1f} ({100 * power:.0f}){'!' if bad else ''}"
                    )
                    if bad:
                        failed.append(f"{family}, {null.name}, {name}, n = {n}: {rate:.1%}")
            for name, texts in cells.items():
                note = "" if null.judged else "   not judged"
                print(
                    f"{family:14}{null.name:34}{null.effect:16}{name:18}"
                    + "".join(f"{text:>17}" for text in texts)
                    + note,
                    flush=True,
                )
    return failed


def print_coverage(repetitions: int) -> None:
    """How often the 95 % intervals hold what is true, and how wide they are."""
    print("\nHow often 95 % intervals hold what is true, in %, and their mean width.")
    print(f"{'':34}{'true':>8}" + "".join(f"{f'n = {n}':>17}" for n in SIZES))
    for kind in INTERVALS:
        true = float(np.mean([kind.of(kind.draw(np.random.default_rng([3, i]), 2_000)[0]) for i in range(100)]))
        cells = []
        for n in SIZES:
            rng = np.random.default_rng([4, n])
            found = [ends for _ in range(repetitions) if (ends := kind.interval(kind.draw(rng, n)[0])) is not None]
            held = np.mean([low <= true <= high for low, high in found])
            cells.append(f"{100 * held:.1f} {np.mean([high - low for low, high in found]):.3f}")
        print(f"{kind.name:34}{true:>8.3f}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def print_coverage_of_changes(repetitions: int) -> None:
    """The same for changes; and how often an interval ends before the true change, and so says that less changed."""
    print("\nHow often the 95 % interval of a change holds what is true, and (in brackets) says too little, in %.")
    print(f"{'':34}{'true':>8}" + "".join(f"{f'n = {n}':>17}" for n in SIZES))
    for name, draw, of, known in CHANGES:

        def change(grids: tuple[Grid, Grid], of: str = of) -> tuple[float, tuple[float, float]]:
            found = metrics.paired_difference(*grids, n_resamples=FLIPS)
            return getattr(found, of), getattr(found, f"{of}_ci95")

        true = known
        if true is None:
            true = float(np.mean([change(draw(np.random.default_rng([5, i]), 2_000))[0] for i in range(100)]))
        cells = []
        for n in SIZES:
            rng = np.random.default_rng([6, n])
            ends = [change(draw(rng, n))[1] for _ in range(repetitions)]
            held = np.mean([low <= true <= high for low, high in ends])
            cells.append(f"{100 * held:.1f} ({100 * np.mean([low > true for low, _ in ends]):.1f})")
        print(f"{name:34}{true:>8.3f}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def print_coverage_of_corrected(repetitions: int, sensitivity: float = 0.75, specificity: float = 0.94) -> None:
    """The same for shares corrected for a judge's errors, which were themselves counted on 300 and 1,200 pairs."""
    sizes = (2, 3, *SIZES)
    print("\nHow often the 95 % interval of a corrected share holds the true one, in %, and its mean width.")
    print(f"{'':34}{'true':>8}" + "".join(f"{f'n = {n}':>13}" for n in sizes))
    for true in (0.0, 0.05, 0.2, 0.4):
        for k in (1, 4, 25):
            cells = []
            for n in sizes:
                rng = np.random.default_rng([7, n])
                ends = []
                for _ in range(repetitions):
                    card = JudgeErrors(300, rng.binomial(300, sensitivity), 1_200, rng.binomial(1_200, 1 - specificity))
                    kinds = rng.random((n, k)) < (tendencies(rng, n, true) if true else 0.0)
                    called = np.where(kinds, sensitivity, 1 - specificity) > rng.random((n, k))
                    if (found := corrected_share(called.astype(float), card)[1]) is not None:
                        ends.append(found)
                held = np.mean([low <= true <= high for low, high in ends])
                cells.append(f"{100 * held:.1f} {np.mean([high - low for low, high in ends]):.3f}")
            print(f"{f'corrected share, {k}':34}{true:>8.3f}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def main() -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--only", choices=[*(family for family, _, _ in FAMILIES), "intervals"])
    asked = parser.parse_args()
    start = time.monotonic()
    failed = [] if asked.only == "intervals" else print_errors(asked.repetitions, asked.only)
    if asked.only in (None, "intervals"):
        print_coverage(asked.repetitions)
        print_coverage_of_changes(asked.repetitions)
        print_coverage_of_corrected(asked.repetitions)
    print(f"\n{time.monotonic() - start:.0f} s")
    for line in failed:
        print(f"over 6 %, by more than chance: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
