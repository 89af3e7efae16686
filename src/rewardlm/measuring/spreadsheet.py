"""Cells that a spreadsheet would run as a formula, made harmless in a way that can be undone exactly.

Answers are written by models that were asked for the worst; one that begins with ``=`` or ``@`` is a formula to
whoever opens the table with a double click. An apostrophe in front makes it text there.
"""

from __future__ import annotations

import re

# Programs differ in what they skip before the sign: blanks, line breaks, zero-width characters. The wide signs
# are read as the plain ones by East Asian versions. Apostrophes are let through so that one of ours can be told
# from one that stood there before: that makes the rule reversible.
_FORMULA = re.compile(r"'*(?:[\t\r]|[\s\x00-\x20\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠])")


def defuse(text: str) -> str:
    """``text`` with an apostrophe in front where a spreadsheet might read a formula."""
    return "'" + text if _FORMULA.match(text) else text


def undo_defuse(text: str) -> str:
    """What ``defuse`` was given: ``undo_defuse(defuse(text)) == text`` for every text."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text, 1) else text
