"""The frontier in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewardlm.measuring.frontier import Frontier
from rewardlm.reporting.frontier_page import headings, rows, sentences
from rewardlm.reporting.names import OF_SPLIT
from rewardlm.terminal import plain


def print_frontier(found: Frontier, page: Path | None, console: Console) -> None:
    """Print every run, the tests at equal fluency, what to doubt, and where the page is."""
    console.print(Text(f"Toxic share {OF_SPLIT[found.split]}, by {plain(found.scorer)}"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings(found)):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    for row in rows(found):
        table.add_row(*map(plain, row))
    console.print(table)
    for sentence in sentences(found):
        console.print(Text(plain(sentence)))
    for warning in found.warnings:
        console.print(Text(f"! {plain(warning['message'])}", style="yellow"))
    if page is not None:
        console.print(Text(str(page)))
