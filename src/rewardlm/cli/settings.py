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
    import sys

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("key and flag", "type or choices, and default", "description", box=SIMPLE)
    # A key that is cut off can't be copied.
    table.columns[0].no_wrap = True
    for setting in found:
        default = "required" if setting.required else f"default: {json.dumps(setting.default, ensure_ascii=False)}"
        named = f"{setting.key}\n  {setting.flag_name}" if setting.flag else setting.key
        values = setting.values.replace("|", " | ")
        table.add_row(escape(named), escape(f"{values}\n{default}"), escape(setting.description))
    (Console() if sys.stdout.isatty() else Console(width=120)).print(table, highlight=False)
