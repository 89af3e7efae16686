"""``rewardlm report``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="The first is the baseline.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Its heading.")] = None,
    redraw: options.Redraw = None,
    config: options.Config = None,
    seed: options.Seed = None,
) -> None:
    """Write one self-contained page about measurements, trainings, or an experiment.

    Settings: threshold, inclusive, n_resamples.
    """
    folders, overrides = options.split_overrides(runs)
    from rewardlm.config import CompareSettings, build
    from rewardlm.reporting.page import build_report

    settings = build(CompareSettings, file=config, flags={"seed": seed, "redraw": redraw}, overrides=overrides)
    typer.echo(build_report(folders, out, title=title, settings=settings))
