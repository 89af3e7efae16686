"""Texts that are taught a second time, otherwise written: in another spelling, or about another group of people.

A judge that has only seen clean spelling calls "1d1ot" harmless: people hide a word from a filter by a letter left out,
doubled, swapped, replaced or spaced. These are general habits of typing; nothing here is made after a test suite.

A judge learns "the word Muslim is hateful" where its data have more hate than harmless texts about Muslims, and it
knows nothing of groups that its data lack. What is hateful of one group is hateful of another (counterfactual data
augmentation; Zhao et al. 2018, arXiv 1804.06876). Only whole names that hardly mean anything else are taken; slurs
stay, and so do women, who belong to any of these groups.
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

# Of each group: what comes before "people", "man" and the like, and how its people are called together.
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
    """A share of the texts in another spelling: they mean what they meant. A word judge's reading of them would not."""
    draw = random.Random(stream_seed("misspell", seed))
    chosen = draw.sample(list(texts), round(share * len(texts)))
    return [dataclasses.replace(text, text=misspell(text.text, draw)) for text in chosen]


def regrouped(texts: Sequence[LabelledText], unseen: Collection[str], share: float, seed: int) -> list[LabelledText]:
    """A share of the texts that name a group of people, about others: they are as hateful, or as harmless.

    None of them has a wording that is ``unseen``.
    """
    if share == 0:
        return []
    draw = random.Random(stream_seed("regroup", seed))
    # Made from a template, a text about others may be one that there is.
    known = {wording(text.text) for text in texts}
    changed = []
    for text in texts:
        about_others = regroup(text.text, draw)
        if (key := wording(about_others)) not in known and key not in unseen:
            changed.append(dataclasses.replace(text, text=about_others))
    return draw.sample(changed, round(share * len(changed)))


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


def regroup(text: str, draw: random.Random) -> str:
    """``text`` about other groups, each of its groups another one throughout; as it is where it names none."""
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
