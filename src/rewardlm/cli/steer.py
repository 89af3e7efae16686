"""``rewardlm steer``: models that are changed while they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import SteerFitSettings


@takes(SteerFitSettings)
def fit(
    given: Given[SteerFitSettings],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for what is found; one that is there is replaced.")],
    as_json: options.AsJson = False,
) -> None:
    """Find how to steer MODEL by --method, and write it to --out, for rewardlm measure --steer."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings, out, kind="steer")
    from rewardlm.progress import say, stage
    from rewardlm.steering.fit import fit as fit_method
    from rewardlm.steering.summary import sentences

    with stage(f"steer fit {settings.method}") as progress:
        found = fit_method(settings, out, report=progress.report)
    record = found.record
    if as_json:
        shown = record.model_dump(mode="json", exclude={"environment": True, "run": {"prompt_hashes"}})
        print_json({"steer": str(out), **shown})
        return
    for sentence in sentences(record):
        say(sentence)
    print(out)
