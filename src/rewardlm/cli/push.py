"""``rewardlm push``: a trained adapter to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.show import print_json


def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished finetune, rlaf or prefer, such as EXPERIMENT/train/RL.")
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.")],
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured", metavar="RUN", help="Measurements for the card, baseline first; default: its experiment's."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="As the hub names it: apache-2.0 …")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only its owner sees a new repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder, and send nothing.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="The folder; default: push/ in RUN.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Upload an adapter with a card made from its runs: results with intervals, the audit's warnings, data and their
    licences, how to load it. It goes to $HF_ENDPOINT, or else to the public hub, with the hub's own log-in.
    """
    from rewardlm.publish import prepare, upload
    from rewardlm.runs import Run

    folder = prepare(Run.open(run), repo, out or run / "push", measured=measured, licence=licence)
    address = None if dry_run else upload(folder, repo, private=private)
    if as_json:
        print_json({"folder": str(folder), "url": address})
    else:
        typer.echo(address or folder)
