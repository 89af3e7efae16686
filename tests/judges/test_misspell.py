"""Other spellings: readable, repeatable, and of the long words alone."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

from hypothesis import given
from hypothesis import strategies as st

from rewardlm.judges.augment import misspell
from rewardlm.judges.texts import emoji_as_words


@given(st.text("abcdefghij klmnop", min_size=1, max_size=60), st.integers(0, 1000))
def test_short_words_and_the_seed_stay(text: str, seed: int) -> None:
    written = misspell(text, random.Random(seed))
    assert written == misspell(text, random.Random(seed))
    if all(len(word) < 4 for word in text.split(" ")):
        assert written == text


def test_a_changed_text_is_still_like_the_text() -> None:
    text = "those people ruin every single neighbourhood"
    ways = {misspell(text, random.Random(seed)) for seed in range(200)}
    assert text not in ways
    assert len(ways) > 100
    for written in ways:
        letters = "".join(written.translate(str.maketrans("4@31!05$7v98", "aaeiiossuugb")).split())
        assert SequenceMatcher(None, letters, text.replace(" ", "")).ratio() > 0.6, written


def test_numbers_and_punctuated_words_are_left_alone() -> None:
    assert misspell("12345 don't (maybe) 2026", random.Random(0)) == "12345 don't (maybe) 2026"


def test_emoji_become_words() -> None:
    assert emoji_as_words("you \U0001f437").split() == ["you", "pig", "face"]
    # A joined sign: person, skin tone, joiner, and the sign that the joiner adds.
    assert emoji_as_words("\U0001f468\U0001f3ff‍\U0001f33e").split() == ["man", "dark", "skin", "ear", "of", "rice"]
    assert emoji_as_words("plain text, naïve & 100 %") == "plain text, naïve & 100 %"
