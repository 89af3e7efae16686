"""Prints comparisons for people on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardlm.config import ExperimentSettings


def show_comparison(runs: Sequence[Path], *, scorer: str | None = None) -> dict[str, Any]:
    """Compare ``runs``, print the tables, and return the comparison."""
    from rich.console import Console

    from rewardlm.measure.compare import compare
    from rewardlm.report.tables import print_comparison

    result = compare(runs, scorer=scorer)
    print_comparison(result, Console())
    return result


def run_and_show(settings: ExperimentSettings, out: Path) -> None:
    """Run an experiment: progress on stderr, tables and the page's path on stdout."""
    from rewardlm.cli.progress import say, stage
    from rewardlm.experiment import run_experiment

    result, page = run_experiment(settings, out, stage=stage, say=say)
    from rich.console import Console

    from rewardlm.report.tables import print_comparison

    print_comparison(result, Console())
    print(f"\nThe report: {page}")
