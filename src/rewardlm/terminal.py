"""What may be written to a terminal."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """Without control characters: a name must not move the cursor, colour the terminal, or turn what follows around."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)
