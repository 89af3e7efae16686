"""``rewardlm init``: a commented YAML file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewardlm.cli import completion, options
from rewardlm.cli.commands import settings_of
from rewardlm.cli.show import print_json
from rewardlm.errors import ConfigError


def init(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: experiment.yaml, or the command's name.")
    ] = None,
    command: Annotated[
        str,
        typer.Option(
            "--command",
            help="Whose settings: measure, rlaf, finetune, 'judge train' …",
            autocompletion=completion.commands_with_settings,
        ),
    ] = "run",
    as_json: options.AsJson = False,
) -> None:
    """Write FILE: every setting of a command with what it means and its default, for rewardlm run or for --config."""
    from rewardlm.config.template import commented_yaml

    kind = settings_of(command)
    path = file or Path("experiment.yaml" if command == "run" else f"{command.replace(' ', '-')}.yaml")
    # If a model is needed, it is named on the command line, which wins over the file.
    model = " MODEL" if "model" in kind.model_fields and "model" in kind.example else ""
    how = f"rewardlm run {path}" if command == "run" else f"rewardlm {command}{model} --config {path} …"
    heading = f"# {how}\n# Every setting, with what it means and what it may be. Delete what you don't change.\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as opened:
            opened.write(heading + commented_yaml(kind))
    except FileExistsError:
        raise ConfigError(f"{path} exists already: name another FILE, or remove it first") from None
    if as_json:
        print_json({"file": str(path), "command": command})
    else:
        typer.echo(path)
    typer.echo(f"next: {how}", err=True)
