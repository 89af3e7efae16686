"""``rewardlm merge``: a folder with a model whose adapter is merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import print_json
from rewardlm.config import MergeSettings


@takes(MergeSettings)
def merge(
    given: Given[MergeSettings],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged model, in safetensors.")],
    as_json: options.AsJson = False,
) -> None:
    """Write MODEL with --adapter merged into its weights, and say how much that changed what it answers."""
    settings = given.settings(model=model)
    from rewardlm.preflight import check

    check(settings)
    from rewardlm.models.merging import merge as run_merge
    from rewardlm.progress import say, stage

    with stage(f"merge {settings.adapter} into {settings.model}") as progress:
        record = run_merge(settings, out, say=say, report=progress.report)
    if as_json:
        print_json({"folder": str(out), **record})
    else:
        typer.echo(out)
