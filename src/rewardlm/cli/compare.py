"""``rewardlm compare``: tables, tests and audit of two or more runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import CompareSettings


@takes(CompareSettings, words="runs")
def compare(
    given: Given[CompareSettings],
    runs: options.Runs,
    scorer: Annotated[str | None, typer.Option("--scorer", help="Only this judge.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare measurements and imports with the first: toxic share, intervals, paired tests, flow, audit.

    An experiment stands for its measurements. Settings: threshold, inclusive, n_resamples.
    """
    settings = given.settings()
    from rewardlm.runs import measured_in

    measured = measured_in([Path(run) for run in runs])
    if as_json:
        import json

        from rewardlm.measuring.compare import compare as compare_runs
        from rewardlm.progress import waiting

        with waiting("compare"):
            found = compare_runs(measured, scorer=scorer, **settings.model_dump())
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
    else:
        from rewardlm.cli.show import show_comparison

        show_comparison(measured, scorer=scorer, settings=settings)
