"""Prints comparisons for people on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardlm.config import CompareSettings, ExperimentSettings
    from rewardlm.measuring.comparison import Comparison
    from rewardlm.reporting.subjects import Subject


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
    print_comparison(found, console(80), _subjects(runs, found))


def run_and_show(settings: ExperimentSettings, out: Path) -> None:
    """Run an experiment: progress on stderr, tables and the page's path on stdout."""
    from rewardlm.experiment import run_experiment
    from rewardlm.progress import is_main, say, stage
    from rewardlm.runs import measured_in

    result, page = run_experiment(settings, out, stage=stage, say=say)
    if not is_main():
        return
    from rewardlm.reporting.tables import print_comparison

    print_comparison(result, console(80), _subjects(measured_in([out]), result))
    print(f"\nThe report: {page}")


def _subjects(runs: Sequence[Path], found: Comparison) -> list[Subject]:
    """Who the models of ``found`` are, as their runs say."""
    from rewardlm.reporting.subjects import subjects_of
    from rewardlm.runs import Run

    return subjects_of([Run.open(path) for path in runs], [model.label for model in found.models])


def console(columns: int = 100) -> Any:
    """Where tables are printed, which are made for so many columns: a pipe has no width."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=columns)
