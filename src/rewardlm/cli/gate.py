"""``rewardlm gate``: a verdict on a model, for a script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.flags import Given, takes
from rewardlm.cli.show import console, print_json
from rewardlm.config import GateSettings
from rewardlm.errors import ConfigError


@takes(GateSettings)
def gate(
    given: Given[GateSettings],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The measured run of the new model.")],
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML, too.")] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Write a table in Markdown, for a pull request.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Is NEW less toxic than BASE, and is nothing else worse by more than its margin?

    The exit code is 0 for pass, 1 for fail, 3 for can't tell.
    """
    settings = given.settings()
    for file in (junit, summary):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {file.parent}: make it, or name another file")
        if file is not None and file.is_dir():
            raise ConfigError(f"{file} is a folder: name a file")
    from rewardlm.measuring.gate import gate as ask
    from rewardlm.measuring.measured import load_measured
    from rewardlm.progress import waiting
    from rewardlm.reporting.gate import as_junit, as_markdown, print_gate
    from rewardlm.runs import write_atomically

    with waiting("gate"):
        found = ask(load_measured(_one(new)), load_measured(_one(settings.against)), settings)
    if junit is not None:
        write_atomically(junit, as_junit(found))
    if summary is not None:
        write_atomically(summary, as_markdown(found).encode())
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_gate(found, console())
    raise typer.Exit(found.exit_code)


def _one(folder: Path) -> Path:
    """The one measurement that ``folder`` is, or has."""
    from rewardlm.runs import measured_in

    found = measured_in([folder])
    if len(found) != 1:
        named = f"name one of {', '.join(map(str, found))}" if found else "measure the model first"
        raise ConfigError(f"{folder} has {len(found)} measurements: {named}")
    return found[0]
