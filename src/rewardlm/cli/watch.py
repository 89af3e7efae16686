"""``rewardlm watch``: a training run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.show import print_json


def watch(
    run: Annotated[Path, typer.Argument(help="A training run, or an experiment, whose current training is shown.")],
    step: Annotated[int | None, typer.Option("--step", help="Show the samples of this step, not the newest.")] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="How many steps the table shows.")] = 8,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing it until it ends, or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between updates.")] = 2.0,
    as_json: options.AsJson = False,
) -> None:
    """Show how a training run is going: its numbers, step by step, and what the model answers."""
    if as_json and follow:
        raise typer.BadParameter("--json says how things are now: leave --follow out")
    if as_json:
        _as_json(run)
        return
    import sys
    import time

    from rich.console import Console
    from rich.live import Live

    from rewardlm.reporting.watch import find_training, training_view

    console = Console() if sys.stdout.isatty() else Console(width=120)
    if follow and console.is_terminal:
        last = min(last, max(3, console.height - 32))  # a terminal cuts off what doesn't fit: the samples first
    found = find_training(run)
    if not follow:
        console.print(training_view(found, step=step, rows=last))
        return
    try:
        with Live(training_view(found, step=step, rows=last), console=console, auto_refresh=False) as live:
            while found.meta.get("status") == "running":
                time.sleep(every)
                found = find_training(run)
                live.update(training_view(found, step=step, rows=last), refresh=True)
    except KeyboardInterrupt:
        return  # This stops the watching, not the training.


def _as_json(run: Path) -> None:
    """The training's state, and its newest line of metrics.jsonl."""
    from rewardlm.reporting.watch import find_training

    found = find_training(run)
    lines = list(found.read("metrics"))
    print_json(
        {
            "run": str(found.path),
            "label": found.label,
            "kind": found.meta["kind"],
            "status": found.meta.get("status"),
            "steps": len(lines),
            "metrics": lines[-1] if lines else None,
        }
    )
