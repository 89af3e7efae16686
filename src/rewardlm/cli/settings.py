"""``rewardlm settings``: the settings of a command, and what they mean."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Annotated, Any

import typer

from rewardlm.cli import completion, options
from rewardlm.cli.commands import settings_of, with_settings

# The least width at which a table of keys, types and descriptions can be read.
_WIDE = 100


def settings(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="measure, rlaf, run, judge train …",
            autocompletion=completion.commands_with_settings,
        ),
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

    from rewardlm.cli.show import console

    where = console() if sys.stdout.isatty() else console(120)
    if where.width < _WIDE:
        _as_list(found)
        return
    from rich.box import SIMPLE
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
    where.print(table, highlight=False)


def _as_list(settings: list[Any]) -> None:
    """Print one setting below the other, for a terminal that is too narrow for a table."""
    for setting in settings:
        default = "required" if setting.required else f"default: {json.dumps(setting.default, ensure_ascii=False)}"
        typer.echo(f"{setting.key}  {setting.flag_name}" if setting.flag else setting.key)
        width = max(40, shutil.get_terminal_size().columns - 1)
        for text in (f"{setting.values.replace('|', ' | ')}; {default}", setting.description):
            typer.echo(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
