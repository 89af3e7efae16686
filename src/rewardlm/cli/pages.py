"""What commands that serve a local page (``view``, ``label open``) share: their flags, and how they begin and end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from rewardlm.errors import ConfigError

Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")]
Host = Annotated[str, typer.Option("--host", help="127.0.0.1 lets only this machine connect.")]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")]


@contextmanager
def serving(command: str, host: str, *, others: str) -> Iterator[None]:
    """Inside, the page's server is imported and runs until Ctrl-C, which is no error.

    ``others`` says what everybody can do who reaches ``host``: the user is warned unless that is this machine alone.
    Raises ConfigError where the extra's packages are missing.
    """
    from rewardlm.listening import is_local

    try:
        if not is_local(host):
            typer.echo(f"warning: anyone who can reach {host} {others}; there is no password", err=True)
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ConfigError(f"{command} needs the package {error.name}: pip install 'rewardlm[view]'") from None
    except KeyboardInterrupt:
        # Before the server was up. It stops nothing but the page.
        return
