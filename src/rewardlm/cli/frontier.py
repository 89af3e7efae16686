"""``rewardlm frontier``: toxicity against what it costs, for steered and trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import console, print_json
from rewardlm.config import FrontierSettings


@takes(FrontierSettings, words="runs")
def frontier(
    given: Given[FrontierSettings],
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN... [KEY=VALUE]...", help="Runs of the base, of steered and of trained models."),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write a page with figures to this file, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")] = False,
) -> None:
    """Toxic share against fluency, topic and cost: a curve for each method, and tests at equal fluency.

    You can name the folder of an experiment instead of its runs.
    """
    settings = given.settings()
    from rewardlm.measuring.frontier import frontier as find
    from rewardlm.progress import waiting
    from rewardlm.runs import measured_in

    with waiting("frontier"):
        found = find(measured_in([Path(run) for run in runs]), settings)
    page = None
    if out is not None:
        from rewardlm.reporting.frontier_page import write_frontier_page

        page = write_frontier_page(found, out)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    from rewardlm.reporting.frontier_tables import print_frontier

    print_frontier(found, page, console())
