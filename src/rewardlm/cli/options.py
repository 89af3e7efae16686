"""Arguments that several commands share and that are not settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import completion

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Hub id, path or alias of a model (smollm2-135m, tiny).", autocompletion=completion.models
    ),
]
Runs = Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="The first run is the baseline.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...",
        help="Any setting, such as lora.r=32: see rewardlm settings.",
        autocompletion=completion.overrides,
    ),
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings; flags win over it.")]
Out = Annotated[Path, typer.Option("--out", help="Directory of the run; run the same command again to resume it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]
