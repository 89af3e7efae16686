"""Where benchmarks write their tables: between two marks of a page, ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results.md"


def write_between(name: str, text: str, page: Path = RESULTS) -> None:
    """Put ``text`` in the place of what stands between the marks of ``name``; exits where the page lacks them."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not end:
        sys.exit(f"{page} has no <!-- {name} --> with <!-- /{name} --> after it: put them where the tables belong")
    page.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}", encoding="utf-8")
