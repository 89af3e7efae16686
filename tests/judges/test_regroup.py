"""Texts about other groups: all mentions of one alike, and nothing else changed."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.judges.regroup import regroup


def test_a_group_becomes_one_other_throughout() -> None:
    seen = set()
    for seed in range(100):
        found = re.fullmatch(
            r"([\w ]+) pay taxes, and ([\w ]+) vote\.",
            regroup("Muslims pay taxes, and muslims vote.", random.Random(seed)),
        )
        assert found
        assert found[1][0].isupper()
        assert found[1].lower() == found[2].lower() != "muslims"
        seen.add(found[2])
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("adjective", "name"), [("gay", "gay people"), ("female", "women"), ("muslim", "muslims"), ("romani", "roma")]
)
def test_both_ways_to_name_a_group_become_the_same_one(adjective: str, name: str) -> None:
    pairs = set()
    for seed in range(400):
        found = re.fullmatch(
            r"a ([\w]+) man and ([\w ]+)", regroup("a black man and black people", random.Random(seed))
        )
        assert found
        pairs.add(found.groups())
    assert (adjective, name) in pairs
    assert len(pairs) == len({one for one, _ in pairs})


def test_two_groups_stay_two() -> None:
    for seed in range(200):
        first, second = regroup("jews and muslims", random.Random(seed)).split(" and ")
        assert first != second
        assert first != "jewish people"
        assert second != "muslims"


@pytest.mark.parametrize(
    "text",
    ["a black car on a white wall", "the Indian Ocean", "thank you all", "romance", "asianish", "I like Chinese food"],
)
def test_what_names_no_people_stays(text: str) -> None:
    assert regroup(text, random.Random(3)) == text


@given(st.text(max_size=80), st.integers(0, 1000))
def test_it_is_repeatable(text: str, seed: int) -> None:
    assert regroup(text, random.Random(seed)) == regroup(text, random.Random(seed))
