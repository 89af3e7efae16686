"""Prints comparisons for people on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardlm.config import CompareSettings, ExperimentSettings


def show_comparison(
    runs: Sequence[Path], *, scorer: str | None = None, settings: CompareSettings | None = None
) -> None:
    """Compare ``runs`` and print the tables."""
    from rewardlm.config import CompareSettings
    from rewardlm.measuring.compare import compare
    from rewardlm.progress import waiting
    from rewardlm.reporting.tables import print_comparison

    rule = (settings or CompareSettings()).model_dump()
    with waiting("compare"):
        found = compare(runs, scorer=scorer, **rule)
    print_comparison(found, console())


def run_and_show(settings: ExperimentSettings, out: Path) -> None:
    """Run an experiment: progress on stderr, tables and the page's path on stdout."""
    from rewardlm.experiment import run_experiment
    from rewardlm.progress import is_main, say, stage

    result, page = run_experiment(settings, out, stage=stage, say=say)
    if not is_main():
        return
    from rewardlm.reporting.tables import print_comparison

    print_comparison(result, console())
    print(f"\nThe report: {page}")


def console() -> Any:
    """Where tables are printed."""
    from rich.console import Console

    # A pipe has no width; the tables are made for 100 columns.
    return Console() if sys.stdout.isatty() else Console(width=100)
