"""Prints results on stdout, for people or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardlm.config import CompareSettings, ExperimentSettings
    from rewardlm.measuring.comparison import Comparison
    from rewardlm.reporting.subjects import Subject
    from rewardlm.runs import Run


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


def print_json(value: object) -> None:
    """One JSON object on stdout, and nothing else there."""
    import json

    print(json.dumps(value, allow_nan=False))


def show_run(run: Path, *, as_json: bool, **more: Any) -> None:
    """Print the table of a measurement or an import, or as JSON what ``compare`` says, with ``run`` and ``more``."""
    if not as_json:
        show_comparison([run])
        return
    from rewardlm.measuring.compare import compare

    print_json({"run": str(run), **more, **compare([run]).to_dict()})


def show_training(run: Run, *, as_json: bool) -> None:
    """Print where a training's adapter is; as JSON, also how many steps it took and its last line of metrics.jsonl."""
    if not as_json:
        print(run.adapter)
        return
    lines = list(run.read("metrics"))
    last = lines[-1] if lines else None
    print_json({"run": str(run.path), "adapter": str(run.adapter), "steps": len(lines), "metrics": last})


def show_judge(folder: Path, *, as_json: bool) -> None:
    """Print where a trained judge is; as JSON, also its judge.json."""
    if not as_json:
        print(folder)
        return
    from rewardlm.scoring.record import RECORD, read_json

    print_json({"judge": str(folder), **read_json(folder / RECORD)})


def run_and_show(settings: ExperimentSettings, out: Path, *, as_json: bool = False) -> None:
    """Run an experiment: progress on stderr, tables and the page's path on stdout, or all that as JSON."""
    from rewardlm.experiment import run_experiment
    from rewardlm.progress import is_main, say, stage
    from rewardlm.runs import measured_in

    result, page = run_experiment(settings, out, stage=stage, say=say)
    if not is_main():
        return
    if as_json:
        print_json({"run": str(out), "report": str(page), **result.to_dict()})
        return
    from rewardlm.reporting.tables import print_comparison

    print_comparison(result, console(80), _subjects(measured_in([out]), result))
    print(f"\nThe report: {page}")


def _subjects(runs: Sequence[Path], found: Comparison) -> list[Subject]:
    """What the runs say about the models of ``found``."""
    from rewardlm.reporting.subjects import subjects_of
    from rewardlm.runs import Run

    return subjects_of([Run.open(path) for path in runs], [model.label for model in found.models])


def console(columns: int = 100) -> Any:
    """The console for tables. ``columns`` is the width for a pipe, which has none of its own."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=columns)
