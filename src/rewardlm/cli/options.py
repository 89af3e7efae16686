"""Flags that several commands share, written once. Nothing heavy is imported here: --help must be quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path | None, typer.Option("--config", help="YAML file with settings; flags win over it.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything that is drawn.")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="float32|bfloat16|float16", help="Precision; default: what the device is fast in."),
]
Load = Annotated[str | None, typer.Option("--load", metavar="8bit|4bit", help="Quantise the base on loading.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[Path, typer.Option("--out", help="Directory of the run; the same again goes on where it stopped.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="LoRA adapter to put on: a PEFT folder or a run.")]
Part = Annotated[
    str | None,
    typer.Option("--part", metavar="train|measure|all", help="Half of the prompts, by a hash of their text."),
]
Limit = Annotated[int | None, typer.Option("--limit", help="A seeded sample of this size.")]
Redraw = Annotated[
    Path | None,
    typer.Option("--redraw", help="A second run of the baseline, another --seed: what chance does to its flows."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Any setting, for example lora.r=32.")
]


def model_flags(
    model: str | None, seed: int | None, dtype: str | None, load: str | None, device: str | None, **more: Any
) -> dict[str, Any]:
    """The flags that were given, by the settings' names."""
    return {"model": model, "seed": seed, "dtype": dtype, "load": load, "device": device, **more}


def split_overrides(items: list[str]) -> tuple[list[Path], list[str]]:
    """Of ``RUN… key=value…``: the runs, and the overrides. A folder whose name holds ``=`` is a run."""
    runs, overrides = [], []
    for item in items:
        if "=" in item and not Path(item).exists():
            overrides.append(item)
        else:
            runs.append(Path(item))
    return runs, overrides
