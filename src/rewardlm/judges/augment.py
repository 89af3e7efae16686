"""Variants of training texts: the same text in another spelling, or about another group of people.

A judge that has only seen clean spelling calls "1d1ot" harmless. People hide a word from a filter by dropping,
doubling, swapping, replacing or spacing its letters. These are general habits of typing; none is copied from a test
suite.

Where the data have more hateful than harmless texts about Muslims, a judge learns that the word "Muslim" is hateful.
It also knows nothing about groups that its data lack. But a text that is hateful about one group is hateful about
another, so the group is swapped (counterfactual data augmentation; Zhao et al. 2018, arXiv 1804.06876). Only whole
names that hardly mean anything else are swapped. Slurs stay, and so do women, who belong to any of these groups.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Collection, Sequence

from rewardlm.data.split import wording
from rewardlm.judges.texts import LabelledText
from rewardlm.models.generate import stream_seed

_LOOKALIKES = {"a": "4@", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7", "u": "v", "g": "9", "b": "8"}
_SHORTEST = 4  # letters of a word that is still readable with one changed

# By the adjective before "people", "man" and the like: the names of the whole group. The first name is the one written.
_GROUPS: dict[str, tuple[str, ...]] = {
    "african": ("africans",),
    "arab": ("arabs",),
    "asian": ("asians",),
    "black": ("black people", "blacks"),
    "chinese": ("chinese people",),
    "christian": ("christians",),
    "disabled": ("disabled people", "the disabled"),
    "gay": ("gay people", "gays", "homosexuals"),
    "hindu": ("hindus",),
    "immigrant": ("immigrants", "migrants"),
    "indian": ("indians",),
    "indigenous": ("indigenous people",),
    "jewish": ("jewish people", "jews", "the jews"),
    "latino": ("latinos", "hispanics"),
    "lesbian": ("lesbians",),
    "mexican": ("mexicans",),
    "muslim": ("muslims",),
    "refugee": ("refugees",),
    "trans": ("trans people", "transgender people"),
    "white": ("white people",),
}
_PEOPLE = "person|man|woman|guy|girl|boy|kid|child|people|men|women|guys|girls|boys|kids|children|folks"
_BY_NAME = {name: group for group, names in _GROUPS.items() for name in names}
# The longest name first: "the jews" before "jews".
_NAMES = "|".join(sorted(_BY_NAME, key=len, reverse=True))
_MENTION = re.compile(rf"\b(?:(?P<name>{_NAMES})|(?P<group>{'|'.join(_GROUPS)})(?= (?:{_PEOPLE})\b))\b", re.IGNORECASE)


def misspelt(texts: Sequence[LabelledText], share: float, seed: int) -> list[LabelledText]:
    """A share of the texts in another spelling, with the same labels. A judge of words would misread them."""
    draw = random.Random(stream_seed("misspell", seed))
    chosen = draw.sample(list(texts), round(share * len(texts)))
    return [dataclasses.replace(text, text=misspell(text.text, draw)) for text in chosen]


def regrouped(texts: Sequence[LabelledText], unseen: Collection[str], share: float, seed: int) -> list[LabelledText]:
    """A share of the texts that name a group of people, rewritten about another group; the labels stay.

    No rewritten text has a wording in ``unseen``.
    """
    if share == 0:
        return []
    draw = random.Random(stream_seed("regroup", seed))
    # Where texts come from a template, the rewritten one may exist already.
    known = {wording(text.text) for text in texts}
    changed = []
    for text in texts:
        about_others = regroup(text.text, draw)
        if (key := wording(about_others)) not in known and key not in unseen:
            changed.append(dataclasses.replace(text, text=about_others))
    return draw.sample(changed, round(share * len(changed)))


def misspell(text: str, draw: random.Random) -> str:
    """``text`` with one to three of its longer words misspelt; unchanged where it has no such word."""
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


def regroup(text: str, draw: random.Random) -> str:
    """``text`` with each group replaced by another one, the same throughout; unchanged where it names none."""
    others: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        name = match["name"]
        group = _BY_NAME[name.lower()] if name else match["group"].lower()
        if group not in others:
            # Two groups don't become one: "Jews and Muslims" stays about two.
            others[group] = draw.choice(sorted(_GROUPS.keys() - {group} - set(others.values())))
        written = _GROUPS[others[group]][0] if name else others[group]
        return written[0].upper() + written[1:] if match[0][0].isupper() else written

    return _MENTION.sub(other, text)
