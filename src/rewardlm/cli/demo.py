"""``rewardlm demo``: the whole experiment on the embedded default, nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import completion, options
from rewardlm.cli.flags import Given, takes
from rewardlm.config import ExperimentSettings


@takes(ExperimentSettings)
def demo(
    given: Given[ExperimentSettings],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="quick|full",
            help="A quarter of an hour, or about an hour, on 2 cores.",
            autocompletion=completion.presets(lambda: ("quick", "full")),
        ),
    ] = "quick",
    out: Annotated[Path | None, typer.Option("--out", help="Directory; default runs/demo-PRESET.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """PT, FT and RL of SmolLM2-135M on RealToxicityPrompts, from measuring to the page."""
    import os

    # The demo must give the same result with and without a network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from rewardlm.cli.show import run_and_show
    from rewardlm.experiment import preset_settings

    run_and_show(given.settings(preset_settings(preset)), out or Path("runs") / f"demo-{preset}", as_json=as_json)
