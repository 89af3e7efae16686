"""``rewardlm score``: another judge over stored answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options


def score(
    run: Annotated[Path, typer.Argument(help="A measurement or an import.")],
    scorer: Annotated[str, typer.Option("--scorer", metavar="NAME[,NAME…]", help="The judges to add.")],
    overrides: options.Overrides = None,
    device: options.Device = None,
) -> None:
    """Let another judge score the answers that RUN holds already."""
    options.refuse_overrides(overrides or [])
    from rewardlm.cli.progress import stage
    from rewardlm.cli.show import show_comparison
    from rewardlm.config import split_outside_brackets
    from rewardlm.measure.scoring import score_run

    for name in split_outside_brackets(scorer):
        with stage(f"score by {name}") as progress:
            score_run(run, name, device=device or "cpu", report=progress.report)
    show_comparison([run])
