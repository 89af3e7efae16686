"""``rewardlm report``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import CompareSettings


@takes(CompareSettings, words="runs")
def report(
    given: Given[CompareSettings],
    runs: options.Runs,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="What the page is about; its heading is the verdict.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write one self-contained page about measurements, trainings, or an experiment.

    Settings: threshold, inclusive, n_resamples.
    """
    settings = given.settings()
    from rewardlm.progress import waiting
    from rewardlm.reporting.page import build_report

    with waiting("report"):
        page = build_report([Path(run) for run in runs], out, title=title, settings=settings)
    if as_json:
        print_json({"page": str(page)})
    else:
        typer.echo(page)
