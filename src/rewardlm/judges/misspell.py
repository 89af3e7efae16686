"""Texts as people write them who hide a word from a filter: a letter left out, doubled, swapped, replaced or spaced.

A judge that has only seen clean spelling calls "1d1ot" harmless. These are general habits of typing; nothing here is
made after a test suite.
"""

from __future__ import annotations

import random

_LOOKALIKES = {"a": "4@", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7", "u": "v", "g": "9", "b": "8"}
_SHORTEST = 4  # letters of a word that is still readable with one changed


def misspell(text: str, draw: random.Random) -> str:
    """``text`` with one to three of its longer words written otherwise; as it is where there is no such word."""
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) >= _SHORTEST and word.isalpha()]
    if not long:
        return text
    for number in draw.sample(long, min(len(long), draw.randint(1, 3))):
        words[number] = draw.choice(_WAYS)(words[number], draw)
    return " ".join(words)


def _drop(word: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1 :]


def _double(word: str, draw: random.Random) -> str:
    at = draw.randrange(len(word))
    return word[:at] + word[at] * draw.randint(2, 3) + word[at + 1 :]


def _swap(word: str, draw: random.Random) -> str:
    at = draw.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _replace(word: str, draw: random.Random) -> str:
    return "".join(draw.choice(_LOOKALIKES.get(letter.lower(), letter)) for letter in word)


def _space(word: str, draw: random.Random) -> str:
    return draw.choice(" .-").join(word)


_WAYS = (_drop, _double, _swap, _replace, _space)
