"""``rewardlm import``: tables that other tools made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.errors import ConfigError


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv or .jsonl with prompts, responses and scores.")],
    overrides: options.Overrides = None,
    *,
    out: options.Out,
    label: Annotated[str | None, typer.Option("--label", help="What tables call this model, for example PT.")] = None,
    columns: Annotated[
        str | None,
        typer.Option("--map", help="prompt=COL,response=COL,prompt_toxicity=COL,scores.NAME=COL"),
    ] = None,
    config: options.Config = None,
    seed: options.Seed = None,
) -> None:
    """Turn a table of answers and scores into a run that compare and report understand."""
    from rewardlm.config import ImportSettings, build

    flags = {"label": label, "map": _mapping(columns), "seed": seed}
    settings = build(ImportSettings, file=config, flags=flags, overrides=overrides or [])
    from rewardlm.cli.show import show_comparison
    from rewardlm.measure.imported import import_table

    import_table(file, out, label=settings.label, mapping=settings.map)
    show_comparison([out])


def _mapping(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    mapping = {}
    for item in text.split(","):
        key, equals, column = item.partition("=")
        if not equals or not column:
            raise ConfigError(f"--map {item!r}: expected NAME=COLUMN, for example prompt=question")
        mapping[key.strip()] = column.strip()
    return mapping
