"""``rewardlm run``: a whole experiment from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import ExperimentSettings


@takes(ExperimentSettings)
def run(
    given: Given[ExperimentSettings],
    experiment: Annotated[
        Path, typer.Argument(metavar="EXPERIMENT.yaml", help="See examples/, or write one with rewardlm init.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Directory; default runs/ and the file's name.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure, fine-tune, reinforce, measure again, compare and report: everything that EXPERIMENT.yaml says."""
    settings = given.settings(base=experiment)
    from rewardlm.cli.show import run_and_show

    run_and_show(settings, out or Path("runs") / experiment.stem, as_json=as_json)
