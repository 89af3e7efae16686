"""The scripts beside the package run for minutes or hours, so no test runs them all: what they import is there."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(file for room in ("benchmarks", "examples", "recipes", ".ci") for file in (ROOT / room).rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each ``from rewardlm… import name``, also of those inside functions."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rewardlm":
            yield from ((node.module, alias.name) for alias in node.names)


def exists(module: str, name: str) -> bool:
    there = importlib.import_module(module)
    is_package = hasattr(there, "__path__")
    return hasattr(there, name) or (is_package and importlib.util.find_spec(f"{module}.{name}") is not None)


@pytest.mark.slow
@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_script_imports_only_what_there_is(file: Path) -> None:
    assert [f"{module}.{name}" for module, name in imported(file) if not exists(module, name)] == []


def test_what_there_is_not_is_seen() -> None:
    assert exists("rewardlm", "measure")
    assert exists("rewardlm", "judges")
    assert not exists("rewardlm", "nothing")
    assert not exists("rewardlm.judges.results", "nothing")
