"""Texts about one group of people rewritten to be about another: what is hateful of one is hateful of the other.

A judge learns "the word Muslim is hateful" where its data have more hate than harmless texts about Muslims, and it
knows nothing of groups that its data lack. A text that is taught a second time about others takes both away
(counterfactual data augmentation; Zhao et al. 2018, arXiv 1804.06876). Only whole names that hardly mean anything else
are taken; slurs stay, and so do women, who belong to any of these groups.
"""

from __future__ import annotations

import random
import re

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
