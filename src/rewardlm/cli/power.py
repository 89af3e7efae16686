"""``rewardlm power``: how large an experiment must be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import console, print_json
from rewardlm.config import PowerSettings


@takes(PowerSettings, words="pilots")
def power(
    given: Given[PowerSettings],
    pilots: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PILOT]... [KEY=VALUE]...",
            help="Measured runs: the model as it is, then one like those that will be compared with it.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a page with the curves to this file, too.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """How many prompts and answers it takes to see a fall of the toxic share, from a pilot or from assumptions.

    Answers to one prompt resemble each other, so ten answers to it are not ten prompts.
    """
    settings = given.settings()
    from rewardlm.measuring.power import power as plan
    from rewardlm.progress import waiting
    from rewardlm.runs import measured_in

    measured = measured_in([Path(pilot) for pilot in pilots]) if pilots else []
    with waiting("power"):
        found = plan(measured, settings, picture=out is not None)
    page = None
    if out is not None:
        from rewardlm.reporting.power_page import write_power_page

        page = write_power_page(found, out)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    from rewardlm.reporting.power_page import print_power

    print_power(found, page, console())
