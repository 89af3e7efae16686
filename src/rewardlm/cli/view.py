"""``rewardlm view``: a page about runs, also while they go on."""

from __future__ import annotations

from typing import Annotated

import typer

from rewardlm.errors import ConfigError


def view(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or folders that hold runs now or later.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="127.0.0.1 lets only this machine connect.")] = "127.0.0.1",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")] = False,
) -> None:
    """Show runs on a local page: follow those that go on, open those that are finished. It only reads."""
    try:
        try:
            from rewardlm.listening import is_local
            from rewardlm.viewing.serve import serve
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "starlette", "uvicorn"):
                raise
            raise ConfigError(f"view needs the package {error.name}: pip install 'rewardlm[view]'") from None
        if not is_local(host):
            typer.echo(f"warning: anyone who can reach {host} can read these runs; there is no password", err=True)
        serve(runs, host=host, port=port, browser=not no_browser, say=typer.echo)
    except KeyboardInterrupt:
        # Before the server was up. It stops nothing but the view.
        return
