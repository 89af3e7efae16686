"""How many blocks of each page were run, and how many read; the run of the tests ends by saying so."""

from __future__ import annotations

COUNTS: dict[str, dict[str, int]] = {}


def count(page: str, what: str) -> None:
    """One more block of ``page`` that was run or read."""
    of_page = COUNTS.setdefault(page, {})
    of_page[what] = of_page.get(what, 0) + 1
