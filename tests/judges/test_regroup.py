"""Texts about other groups: all mentions of one alike, and nothing else changed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.judges.augment import _GROUPS, regroup, regrouped
from rewardlm.judges.corpus import load_corpus
from rewardlm.judges.settings import JudgeTrainSettings

_NAMED = [names[0] for names in _GROUPS.values()]


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
    ("adjective", "name"), [("gay", "gay people"), ("jewish", "jewish people"), ("muslim", "muslims")]
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
    [
        "a black car on a white wall",
        "the Indian Ocean",
        "thank you all",
        "romance",
        "asianish",
        "I like Chinese food",
        "two egg whites",
        "AS Roma won",
        "women work",
    ],
)
def test_what_names_no_people_stays(text: str) -> None:
    assert regroup(text, random.Random(3)) == text


NAMES = st.sampled_from(["muslims", "black people", "a gay man", "the jews", "gardens", "work", "and", "immigrants"])


@given(st.lists(NAMES, max_size=8).map(" ".join), st.integers(0, 1000))
def test_it_is_repeatable_and_leaves_the_other_words(text: str, seed: int) -> None:
    written = regroup(text, random.Random(seed))
    assert written == regroup(text, random.Random(seed))
    assert (written == text) == (not {"muslims", "black", "gay", "jews", "immigrants"} & set(text.split()))
    for word in ("gardens", "work", "and"):
        assert written.split().count(word) == text.split().count(word)


def test_a_share_of_the_training_texts_is_taught_about_others(tmp_path: Path) -> None:
    rows = [f"muslims like {thing}" for thing in ("tea", "work", "songs", "cars", "books", "walks", "trees", "rain")]
    rows += [f"I like {thing}" for thing in ("tea", "work", "songs", "cars")]
    # Of one thing everything is said already: nothing about others is new.
    rows += [f"{name} like bread" for names in _GROUPS.values() for name in names]
    data, excluded = tmp_path / "data.csv", tmp_path / "excluded.csv"
    data.write_text("text,hate\n" + "".join(f"{row},0\n" for row in rows))
    excluded.write_text("text,label\n" + "".join(f"{name} like tea,0\n" for name in _NAMED if name != "muslims"))

    settings = JudgeTrainSettings(data=[str(data)], exclude=[str(excluded)], labels=["hate"], main="hate", regrouped=1)
    corpus = load_corpus(settings)
    texts = {text.text for text in corpus.train}
    about_muslims = {text for text in texts if text.startswith("muslims like ")} - {"muslims like bread"}
    found = regrouped(corpus.train, corpus.unseen, 1.0, 0)
    # Those about tea could only become texts that are excluded, those about bread only texts that there are.
    assert {text.text.split(" like ")[1] for text in found} == {t.split(" like ")[1] for t in about_muslims} - {"tea"}
    assert not {text.text for text in found} & texts
    assert {(text.labels["hate"], text.source) for text in found} == {(0.0, "data")}
    assert found == regrouped(corpus.train, corpus.unseen, 1.0, 0)
    half = regrouped(corpus.train, corpus.unseen, 0.5, 0)
    assert len(half) == round(len(found) / 2)
    assert regrouped(corpus.train, corpus.unseen, 0.0, 0) == []
