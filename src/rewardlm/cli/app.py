"""The entry point: one Typer app. Its commands are in commands.py, and every error is one line."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
import warnings
from typing import Any

import typer

from rewardlm.cli.commands import RESUMED, Commands, JudgeCommands, LabelCommands, SteerCommands
from rewardlm.cli.interrupts import Interrupts, second_one_ends
from rewardlm.cli.quiet import quieten
from rewardlm.disk import is_full
from rewardlm.disk import said as full_disk
from rewardlm.errors import ConfigError, RewardLMError, did_you_mean
from rewardlm.terminal import plain

_PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    name="rewardlm",
    cls=Commands,
    help="Make a chat model less toxic, and prove it.",
    pretty_exceptions_enable=False,
    **_PLAIN,
)
judge = typer.Typer(cls=JudgeCommands, help="List, train, evaluate and serve judges.", add_completion=False, **_PLAIN)
app.add_typer(judge, name="judge")
steer = typer.Typer(cls=SteerCommands, help="Change a model while it answers.", add_completion=False, **_PLAIN)
app.add_typer(steer, name="steer")
label = typer.Typer(cls=LabelCommands, help="Let people say which answers are toxic.", add_completion=False, **_PLAIN)
app.add_typer(label, name="label")


# After how many new objects Python looks for garbage among them, and after how many such looks among older ones.
RARELY = (10_000, 10, 10)
# Commands that several processes can share. Any other command would run once in each, on the same files.
_SHARED = ("measure", "finetune", "rlaf", "prefer", "run", "demo")


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        _print_version()
        raise typer.Exit
    if _several() and context.invoked_subcommand not in _SHARED:
        raise ConfigError(
            f"{context.invoked_subcommand} is for one process: start it without torchrun or accelerate launch "
            f"(only {', '.join(_SHARED)} can use several)"
        )


def _print_version() -> None:
    from importlib.metadata import version

    print(version("rewardlm"))


def _several() -> bool:
    """Whether a launcher started other processes beside this one. Torch isn't loaded yet, so it can't be asked."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def main() -> None:
    """Run the command line. A user's mistake is one line on stderr and an exit code; a traceback is a bug of ours."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by the caller (>&-): what is printed goes nowhere, as in a shell's own commands.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        stream = getattr(sys, name)
        if stream.errors == "strict" and stream.encoding.lower().replace("-", "") != "utf8":
            # It gets a question mark for what it can't show.
            stream.reconfigure(errors="replace")
    with second_one_ends(several=_several()) as asked:
        code = _flushed(_run(asked))
    if _several():
        from rewardlm.models.processes import leave

        leave(code)
    sys.exit(code)


def _run(asked: Interrupts) -> int:
    """The exit code of the command that was typed; ``asked`` says by which signal it was stopped."""
    if sys.argv[1:] == ["--version"]:
        # Typer loads pydantic to read a command line, which takes longer than all the rest.
        _print_version()
        return 0
    quieten()
    # oneDNN keeps a thousand kernels, one per shape, each with scratch space: hundreds of MB once all lengths have
    # occurred. PyTorch's own cache on top, for half precision, takes as much again.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    # Libraries make a million objects that all stay. To look through them for garbage, again and again while they load,
    # took an eighth of a short command's time.
    gc.set_threshold(*RARELY)
    warnings.showwarning = _warn
    try:
        # Completion and help use this name, however the command was started.
        code = app(standalone_mode=False, prog_name="rewardlm")
        if code == 130:
            # Typer turns an interrupt into this and says nothing.
            raise KeyboardInterrupt
    except RewardLMError as error:
        for problem in error.problems:
            print(plain(problem), file=sys.stderr)
        return _fail(f"{error.summary}, see above" if error.problems else str(error), error.exit_code)
    except typer.TyperException as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_interrupted(asked), asked.code)
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as error:
        if is_full(error):
            name = getattr(error, "filename", None) or "the output or a file"
            return _fail(full_disk(error, str(name), "what was written before is safe"), 1)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        # A folder that may not be written: the machine's state, not a bug of ours.
        advice = {errno.EROFS: "write to another place", errno.EACCES: "change who may write there"}.get(error.errno)
        said = f"{error.filename or 'input or output failed'}: {error.strerror}"
        return _fail(said if advice is None else f"{said}; {advice}, and run the same command again", 1)
    return code if isinstance(code, int) else 0


def _misused(error: Any) -> int:
    """The exit code of a command line that Typer couldn't read."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        # rewardlm, rewardlm judge or rewardlm steer alone: print the help, and exit with the code that Typer uses.
        typer.echo(str(error))
        return 2
    command = context.command_path.removeprefix("rewardlm").strip() if context is not None else ""
    flag, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if flag is not None and hasattr(error, "possibilities"):
        known = [name[2:] for one in context.command.params for name in one.opts if name.startswith("--")]
        hint = did_you_mean(str(flag).lstrip("-"), known).replace("'", "--", 1).replace("'", "")
        return _fail(f"rewardlm {command} has no {flag}: {hint or 'see'} rewardlm {command} --help", 2)
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        named = parameter.opts[0] if parameter.param_type_name == "option" else _placeholder(parameter)
        meaning = str(getattr(parameter, "help", None) or "").rstrip(".")
        return _fail(f"rewardlm {command} needs {named}: {meaning or 'see its help'}; rewardlm {command} --help", 2)
    said = error.format_message().rstrip(".")
    more = f"{'' if said.endswith('?') else ';'} rewardlm {command} --help" if context is not None else ""
    return _fail(f"{said}{more}", getattr(error, "exit_code", 2))


def _placeholder(argument: Any) -> str:
    """What stands for an argument in a command's usage: MODEL, RUN."""
    return str(argument.metavar or argument.name).split()[0].strip("[]").removesuffix("...")


def _interrupted(asked: Interrupts) -> str:
    """The message after an interrupt."""
    resumed = " ".join(sys.argv[1:]).startswith(RESUMED)
    return f"{asked}: run the same command again to go on where it stopped" if resumed else str(asked)


def _flushed(code: int) -> int:
    """The exit code once everything is written: a full disk is noticed here, not by the interpreter on its way out."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _nobody_reads() or code
    except OSError as error:
        _discard_output()
        return code or _fail(f"can't write the output: {error.strerror}", 1)
    return code


def _nobody_reads() -> int:
    """The reader of our output went away (rewardlm … | head): nothing to say, and nobody to say it to."""
    _discard_output()
    return 0


def _discard_output() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(message: Warning | str, *_details: object, **_more: object) -> None:
    print(plain(f"warning: {' '.join(str(message).split())}"), file=sys.stderr)


def _fail(message: str, code: int) -> int:
    line = plain(" ".join(message.split()))
    print(f"error: {line}" if line else "error: see rewardlm --help", file=sys.stderr)
    return code
