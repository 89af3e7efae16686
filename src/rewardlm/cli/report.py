"""``rewardlm report``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Measurements, trainings, or an experiment.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option("--title", help="Its heading.")] = None,
) -> None:
    """Write one self-contained page about RUNs; the first measurement is the baseline."""
    folders, overrides = options.split_overrides(runs)
    options.refuse_overrides(overrides)
    from rewardlm.report.page import build_report

    typer.echo(build_report(folders, out, title=title))
