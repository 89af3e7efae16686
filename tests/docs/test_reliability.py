"""docs/reliability.md names tests that there are, and all files of faults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", (ROOT / "docs" / "reliability.md").read_text("utf-8"))))


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named: str) -> None:
    file, *parts = named.split("::")
    text = (ROOT / file).read_text("utf-8")
    for part in parts:
        assert re.search(rf"^ *(def|class) {re.escape(part)}\b", text, re.MULTILINE), named


def test_every_file_of_faults_is_named_and_make_runs_what_is_named() -> None:
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert files <= {named.partition("::")[0] for named in NAMED}
    pattern = re.search(r"grep -oE '([^']+)' docs/reliability\.md", (ROOT / "Makefile").read_text("utf-8"))
    assert pattern is not None
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert {found[0] for found in re.finditer(pattern[1].replace("\\\\", "\\"), text)} == set(NAMED)
