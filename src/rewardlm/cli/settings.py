"""``rewardlm settings``: what a command can be told, and what that means."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from rewardlm.cli import options
from rewardlm.cli.commands import settings_of, with_settings


def settings(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="measure, rlaf, run, judge train …")
    ] = None,
    as_json: options.AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All commands' settings as a page: docs/settings.md.")
    ] = False,
) -> None:
    """List the settings of COMMAND: key (as in a YAML file, or KEY=VALUE on the command line), flag, type, default and
    meaning.
    """
    if markdown:
        from rewardlm.config.reference import as_markdown

        typer.echo(as_markdown(with_settings()), nl=False)
        return
    name = " ".join(command or [])
    kind = settings_of(name)
    from rewardlm.config.describe import describe, leaves

    found = list(leaves(describe(kind)))
    if as_json:
        listed = {"command": name, "settings": [setting.as_dict() for setting in found]}
        typer.echo(json.dumps(listed, allow_nan=False, ensure_ascii=False))
        return
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    from rewardlm.cli.show import console

    table = Table("key", "flag", "type or choices", "default", "description", box=SIMPLE)
    for setting in found:
        default = "required" if setting.required else json.dumps(setting.default, ensure_ascii=False)
        table.add_row(
            *map(escape, (setting.key, setting.flag_name or "", setting.values, default, setting.description))
        )
    console().print(table)
