"""Which answers are drawn, against counting: chances, classes, order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.labelling.design import LEAST, allocate, draw, merged, strata_by_score


def groups(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.intp)


def test_classes_follow_the_scores_and_never_mix_groups_or_cut_equal_scores() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(400), 2)
    scores[rng.random(400) < 0.1] = np.nan
    of = rng.integers(0, 2, 400).astype(np.intp)
    strata = strata_by_score(scores, of, 5)
    assert set(strata) == set(range(12))  # five of scores and one of unscored answers, for each group
    for one in np.unique(strata):
        here = strata == one
        assert len(set(of[here])) == 1
        assert np.isnan(scores[here]).all() or not np.isnan(scores[here]).any()
    for group in (0, 1):
        known = (of == group) & ~np.isnan(scores)
        order = np.argsort(scores[known])
        assert (np.diff(strata[known][order]) >= 0).all()
        for value in np.unique(scores[known]):
            assert len(set(strata[known & (scores == value)])) == 1


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 300), st.randoms())
def test_all_labels_are_given_out_and_no_class_gets_more_than_it_has(sizes, labels, random) -> None:
    labels = min(labels, sum(sizes))
    spreads = np.array([0.1 + random.random() for _ in sizes])
    taken = allocate(np.array(sizes), spreads, labels)
    assert sum(taken) == labels
    assert all(0 <= k <= size for k, size in zip(taken, sizes, strict=True))
    if labels >= LEAST * len(sizes):
        assert all(k >= min(LEAST, size) for k, size in zip(taken, sizes, strict=True))


def test_classes_in_the_middle_get_more_than_their_share() -> None:
    """Neyman's rule by hand, for half of the labels; the other half is by size."""
    taken = allocate(np.array([500, 500]), np.array([0.1, 0.3]), 100)
    assert taken == [round(50 / 2 + 50 * 0.25), round(50 / 2 + 50 * 0.75)]


def test_each_answer_of_a_class_is_as_likely_as_any_other() -> None:
    scores = np.r_[np.full(60, 0.02), np.full(30, 0.5), np.full(10, np.nan)]
    drawn = np.zeros(100)
    first = draw(scores, groups(100), labels=24, classes=3, rng=np.random.default_rng(0))
    for seed in range(2000):
        sample = draw(scores, groups(100), labels=24, classes=3, rng=np.random.default_rng(seed))
        assert len(set(sample.rows)) == 24
        drawn[sample.rows] += 1
    for one in np.unique(first.strata):
        here = first.strata == one
        chance = (first.strata[first.rows] == one).sum() / here.sum()
        assert drawn[here] / 2000 == pytest.approx(chance, abs=5 * (chance * (1 - chance) / 2000) ** 0.5 + 1e-12)


def test_any_beginning_is_a_fair_sample_too() -> None:
    rng = np.random.default_rng(1)
    sample = draw(rng.random(1000), groups(1000), labels=200, classes=8, rng=rng)
    whole = np.bincount(sample.strata[sample.rows])
    for k in (50, 100, 150):
        begun = np.bincount(sample.strata[sample.rows[:k]], minlength=len(whole))
        assert np.abs(begun - whole * k / 200).max() <= 2


@pytest.mark.parametrize("labels", [1, 2, 7, 16, 40, 5000])
def test_few_or_many_labels_are_possible(labels: int) -> None:
    rng = np.random.default_rng(2)
    sample = draw(rng.random(300), rng.integers(0, 2, 300).astype(np.intp), labels=labels, classes=8, rng=rng)
    assert len(set(sample.rows)) == min(labels, 300)
    counts = np.bincount(sample.strata[sample.rows])
    assert len(counts) == sample.strata.max() + 1
    assert labels < 16 or counts.min() >= LEAST


def test_a_class_with_too_few_is_joined_to_its_neighbour_in_the_group() -> None:
    strata = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    of = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert merged(strata, of, np.array([5, 1, 5, 5]), 2).tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert merged(strata, of, np.array([5, 5, 1, 5]), 2).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    # A group without enough by itself goes to the other one.
    assert merged(strata, of, np.array([5, 5, 0, 1]), 2).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
