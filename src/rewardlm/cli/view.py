"""``rewardlm view``: a page about runs, also while they go on."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.cli import pages


def view(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or folders that hold runs now or later.")],
    port: pages.Port = 0,
    host: pages.Host = "127.0.0.1",
    no_browser: pages.NoBrowser = False,
) -> None:
    """Show runs on a local page: follow those that go on, open those that are finished. It only reads."""
    with pages.serving("view", host, others="can read these runs"):
        from rewardlm.viewing.serve import serve

        serve(runs, host=host, port=port, browser=not no_browser, say=typer.echo)
