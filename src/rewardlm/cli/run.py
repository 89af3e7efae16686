"""``rewardlm run``: a whole experiment from one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options


def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="See examples/.")],
    overrides: options.Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory; default runs/ and the file's name.")] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    load: options.Load = None,
    device: options.Device = None,
) -> None:
    """Measure, fine-tune, reinforce, measure again, compare and report: everything that EXPERIMENT.yaml says."""
    from rewardlm.cli.show import run_and_show
    from rewardlm.config import ExperimentSettings, build, read_yaml

    settings = build(
        ExperimentSettings,
        defaults=read_yaml(experiment),
        file=config,
        flags=options.model_flags(None, seed, dtype, load, device),
        overrides=overrides or [],
    )
    run_and_show(settings, out or Path("runs") / experiment.stem)
