"""The entry point: one Typer app whose commands are in commands.py, and every error is one line."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from rewardlm.cli.commands import Commands, JudgeCommands
from rewardlm.cli.interrupts import second_one_ends
from rewardlm.cli.quiet import quieten
from rewardlm.errors import ConfigError, RewardLMError

_PLAIN: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}
app = typer.Typer(
    name="rewardlm",
    cls=Commands,
    help="Make a chat model less toxic, and prove that it became so.",
    pretty_exceptions_enable=False,
    **_PLAIN,
)
app.add_typer(typer.Typer(cls=JudgeCommands, help="List, train and evaluate judges.", **_PLAIN), name="judge")


# What several processes can do together; anything else each would do once more, in the others' files.
_SHARED = ("measure", "finetune", "rlaf", "run", "demo")


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("rewardlm"))
        raise typer.Exit
    if _several() and context.invoked_subcommand not in _SHARED:
        raise ConfigError(
            f"{context.invoked_subcommand} is for one process: start it without torchrun or accelerate launch "
            f"({', '.join(_SHARED)} can be shared out)"
        )


def _several() -> bool:
    """Whether a launcher started more than this process; torch isn't there to be asked."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def main() -> None:
    """Run the command line. A user's mistake is one line on stderr and an exit code; a traceback is a bug of ours."""
    with second_one_ends():
        code = _run()
    if _several():
        from rewardlm.models.processes import leave

        leave(code)
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that was typed."""
    quieten()
    # oneDNN keeps a thousand kernels, one a shape, each with scratch space: hundreds of MB once all lengths have been.
    # What PyTorch keeps above it, for half precision, is as much again.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    warnings.showwarning = _warn
    try:
        code = app(standalone_mode=False)
        if code == 130:
            # Typer turns an interrupt into this and says nothing.
            raise KeyboardInterrupt
    except RewardLMError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        describe = getattr(error, "format_message", None)
        return _fail(describe() if describe else str(error), getattr(error, "exit_code", 2))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted: the same command again goes on where this one stopped", 130)
    except BrokenPipeError:
        # The reader of our output went away (rewardlm … | head): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        # A full disk, a folder that may not be written: the machine's state, no bug of ours.
        return _fail(f"{error.filename or 'input or output failed'}: {error.strerror}", 1)
    return code if isinstance(code, int) else 0


def _warn(message: Warning | str, *_details: object, **_more: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"error: {line}" if line else "error: see rewardlm --help", file=sys.stderr)
    return code
