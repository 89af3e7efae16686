"""What may be written into Markdown: names of labels, judges, models and data sets, which somebody else chose."""

from __future__ import annotations

import re
import unicodedata

_LINE_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What would make a list or a rule of a line that begins with it.
_MARKER = re.compile(r"[-+](?=\s|$)|-{2,}$|(?<=\d)[.)](?=\s|$)")


def markdown(text: str) -> str:
    r"""``text`` so that Markdown shows it as it is, in a table's cell and at the start of a line too: ``|`` is ``\|``,
    a line break ``<br>``. Control characters, and those that turn others around, become blanks.
    """
    shown = "<br>".join("".join(map(_letter, line)) for line in _LINE_BREAK.split(text)).strip()
    digits = len(shown) - len(shown.lstrip("0123456789"))
    return f"{shown[:digits]}\\{shown[digits:]}" if _MARKER.match(shown, digits) else shown


def _letter(letter: str) -> str:
    if letter in _HTML:
        return _HTML[letter]
    if letter in "\\`*_{}[]#!|~$":
        return "\\" + letter
    return " " if unicodedata.category(letter).startswith("C") else letter
