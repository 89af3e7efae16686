"""``rewardlm merge``: an adapter made part of the model's own weights, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options


def merge(
    model: Annotated[str, typer.Argument(help="Hub id, path or alias (smollm2-135m, tiny).")],
    overrides: options.Overrides = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged model, in safetensors.")],
    adapter: options.Adapter = None,
    config: options.Config = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="float32|bfloat16|float16", help="What it is saved in; default: float32."),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option("--load", metavar="8bit|4bit", help="Merge into what the base's weights stand for when held so."),
    ] = None,
    device: options.Device = None,
) -> None:
    """Write MODEL with --adapter merged into its weights, and say how much that changed what it answers."""
    from rewardlm.config import ModelSettings, build

    settings = build(
        ModelSettings,
        file=config,
        flags=options.model_flags(model, None, dtype, load, device, adapter=adapter),
        overrides=overrides or [],
    )
    from rewardlm.models.merging import merge as run_merge
    from rewardlm.progress import say

    run_merge(settings, out, say=say)
    typer.echo(out)
