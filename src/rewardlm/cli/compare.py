"""``rewardlm compare``: tables, tests and audit of two or more runs."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import options


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE]...", help="The first run is the baseline.")],
    scorer: Annotated[str | None, typer.Option("--scorer", help="Only this judge.")] = None,
    redraw: options.Redraw = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")] = False,
    config: options.Config = None,
    seed: options.Seed = None,
) -> None:
    """Hold measurements and imports against each other: toxic share, intervals, paired tests, flow, audit.

    An experiment stands for its measurements. Settings: threshold, inclusive, n_resamples.
    """
    folders, overrides = options.split_overrides(runs)
    from rewardlm.config import CompareSettings, build
    from rewardlm.runs import measured_in

    settings = build(CompareSettings, file=config, flags={"seed": seed, "redraw": redraw}, overrides=overrides)
    measured = measured_in(folders)
    if as_json:
        import json

        from rewardlm.measuring.compare import compare as compare_runs

        found = compare_runs(measured, scorer=scorer, **settings.model_dump())
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
    else:
        from rewardlm.cli.show import show_comparison

        show_comparison(measured, scorer=scorer, settings=settings)
