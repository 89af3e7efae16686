"""The sentences of a text, and where they stand: what Perspective's ``spanScores`` are about."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewardlm.scoring.scorer import is_empty

# A sentence ends with its marks and what closes after them, before white space or the end; or with a line.
# Marks are read from the first of a row, and not given back: every shorter row would be tried as well, and a text of
# nothing but marks would take minutes.
_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|$)|[。！？]+[」』）]*|[\n\r\u2028\u2029]+""")


@dataclass(frozen=True, slots=True)
class Span:
    """``text`` stands from ``begin`` to before ``end``, counted in UTF-16 code units."""

    begin: int
    end: int
    text: str


def whole(text: str) -> Span:
    """All of ``text`` as one span."""
    return Span(0, utf16_length(text), text)


def sentences(text: str) -> list[Span]:
    """The sentences of ``text`` in order, without the white space around them; parts in which nothing is seen are left
    out.

    Offsets are counted in UTF-16 code units, so that a character outside the basic plane (an emoji) counts two. So
    Google's API defines them: "The values are the UTF-16 codepoint range", with an exclusive end (SpanScore in the
    discovery document of commentanalyzer v1alpha1).
    """
    found = []
    start, units = 0, 0
    ends = [match.end() for match in _END.finditer(text)]
    for end in [*ends, len(text)]:
        part = text[start:end]
        inner = part.strip()
        if inner and not is_empty(inner):
            begin = units + utf16_length(part[: len(part) - len(part.lstrip())])
            found.append(Span(begin, begin + utf16_length(inner), inner))
        units += utf16_length(part)
        start = end
    return found


def utf16_length(text: str) -> int:
    """How many UTF-16 code units ``text`` has."""
    return len(text) + sum(character > "\uffff" for character in text) if not text.isascii() else len(text)
