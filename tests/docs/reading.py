"""Reads what can't be run: every command by the parser that would read it, up to where it would begin to work."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import ROOT, Block

import rewardlm as rl
from rewardlm.cli import flags
from rewardlm.cli.app import app
from rewardlm.cli.commands import COMMANDS, settings_of, with_settings
from rewardlm.config import build

# In a sentence, words in capitals stand for the reader's own, and … for what is left out.
_LEFT_OUT = {"…", "..."}
LAUNCHERS = ("torchrun", "accelerate")
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
_EXTRAS = re.search(
    r"\[project.optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text("utf-8"), re.DOTALL
)
EXTRAS = set(re.findall(r"^(\w+) = \[", _EXTRAS[1] if _EXTRAS else "", re.MULTILINE))


class Understood(Exception):
    """Ends a command once all that was typed has been understood."""


def commands_in(code: str) -> list[list[str]]:
    """The simple commands of a script, as words: comments and continued lines are resolved, pipes and && divide."""
    code = re.sub(r"<<'?(\w+)'?\n.*?\n\1$", "", code, flags=re.DOTALL | re.MULTILINE)
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;><")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [_without_files(words) for words in found if words]


def _without_files(words: list[str]) -> list[str]:
    """Without ``> FILE``, and without VARIABLE=value before the command."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and not set(word) <= set("<>"):
            kept.append(word)
        skip = bool(word) and set(word) <= set("<>")
    return kept


def read_command(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Raises, or fails the test, where a command is not what its program takes."""
    program, rest = words[0], list(words[1:])
    if program == "rewardlm":
        read_rewardlm(rest, patch)
    elif program == "make":
        targets = [one for one in rest if "=" not in one]
        assert set(targets) <= MAKE, f"make has no target {set(targets) - MAKE}"
    elif program == "pip":
        named = re.findall(r"rewardlm\[([\w,]+)\]", " ".join(rest))
        assert set(",".join(named).split(",")) - {""} <= EXTRAS, f"no such extra: {named}"
    elif program in LAUNCHERS or program == "sbatch":
        _read_launched(program, rest, patch)
    elif program == "python":
        if rest[0] != "-c":
            _read_script(rest)
    elif program == "pytest":
        for path in rest:
            assert path.startswith("-") or (ROOT / path.partition("::")[0]).exists(), f"{path} does not exist"
    elif program == "ray":
        assert rest[0] == "start", f"ray {rest[0]}"
    elif program == ".":
        assert rest == [".venv/bin/activate"]
    elif program in (".venv/bin/pre-commit", "cd", "git", "export", "cat", "ls"):
        pass
    else:
        pytest.fail(f"nobody knows how to read {program!r}: {' '.join(words)}")


def _read_launched(program: str, rest: list[str], patch: pytest.MonkeyPatch) -> None:
    """The launcher's own flags by its own parser, then our command."""
    if program == "sbatch":
        script = next(index for index, word in enumerate(rest) if word.endswith(".sh"))
        assert (ROOT / rest[script]).exists(), rest[script]
        read_rewardlm(rest[script + 1 :], patch)
        return
    at = rest.index("rewardlm")
    assert rest[at - 1] == "-m"
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*rest[: at - 1], "-m", "rewardlm"])
    else:
        from accelerate.commands.launch import launch_command_parser

        assert rest[0] == "launch"
        launch_command_parser().parse_args([*rest[1 : at - 1], "-m", "rewardlm"])
    read_rewardlm(rest[at + 1 :], patch)


def _read_script(rest: Sequence[str]) -> None:
    """A script of ours exists, and its text has the flags."""
    text = (ROOT / rest[0]).read_text("utf-8")
    for flag in (word for word in rest[1:] if word.startswith("--")):
        assert f'"{flag}"' in text, f"{rest[0]} has no {flag}"


def read_rewardlm(words: list[str], patch: pytest.MonkeyPatch, *, sentence: bool = False) -> None:
    """``rewardlm`` with these words is understood: command, flags, the settings' names and values.

    Of a command in a ``sentence``, required arguments may be missing, and words with … are left out.
    """
    words = [word for word in words if not set(word) & {"…"} and word not in _LEFT_OUT]
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    name = " ".join(words[:2]) if words[0] in groups and len(words) > 1 else words[0]
    assert name in COMMANDS or name.startswith("-") or name in groups, f"rewardlm has no command {name!r}"
    if words[0] in ("--help", "--version"):
        return
    if sentence:
        _read_flags(name, words, patch)
        return
    original = flags.Given.settings

    def understood(self: Any, *defaults: Any, **arguments: Any) -> None:
        given = self
        if self.file is not None and not Path(self.file).exists():
            given = flags.Given(self.kind, None, self.flags, self.overrides)
        original(given, *defaults, **arguments)
        raise Understood

    with patch.context() as only:
        only.setattr(flags.Given, "settings", understood)
        only.chdir(ROOT)
        command, _, context = _resolved(words)
        if getattr(command.callback, "settings", None) is None:
            return  # No settings: that the parser took it is all that can be known.
        with pytest.raises(Understood), context:
            command.invoke(context)


def _resolved(words: list[str]) -> tuple[Any, list[str], Any]:
    """The command, what is left, and its context: everything has been parsed, nothing run."""
    import typer.main

    command: Any = typer.main.get_command(app)
    context = None
    left = list(words)
    while hasattr(command, "get_command"):
        found = command.get_command(None, left[0])
        assert found is not None, f"no command {left[0]!r}"
        command, left = found, left[1:]
    context = command.make_context("rewardlm", left)
    return command, left, context


def _read_flags(name: str, words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """The flags of a command in a sentence exist, and so do the settings that it names."""
    import typer.main

    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.get_command(None, part)
    if not hasattr(command, "params"):
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in {*known, "--help"}, f"rewardlm {name} has no {word}"
    if name not in COMMANDS or getattr(command.callback, "settings", None) is None:
        return
    kind = settings_of(name)
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and re.fullmatch(r"[a-z_.]+", key) and not word.startswith("--"):
            assert _is_setting(kind, key.split(".")), f"{name} has no setting {key}"


def is_any_setting(key: str) -> bool:
    """Whether any command has the setting. A part in capitals is a name of the reader's own."""
    path = [part for part in key.split(".") if not part.isupper()]
    return any(_is_setting(kind, path) for kind in with_settings().values())


def flags_of_all() -> set[str]:
    """The flags of every command."""
    import typer.main

    def below(command: Any) -> set[str]:
        found = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name in getattr(command, "list_commands", lambda _: [])(None):
            found |= below(command.get_command(None, name))
        return found

    return below(typer.main.get_command(app)) | {"--help"}


def _is_setting(kind: Any, path: Sequence[str]) -> bool:
    from rewardlm.config.describe import describe

    here = describe(kind)
    for part in path:
        found = next((setting for setting in here if setting.name == part), None)
        if found is None:
            return False
        if not found.below:
            return True  # a value, or a mapping whose keys are the reader's own
        here = list(found.below)
    return True


def read_python(block: Block) -> None:
    """It compiles; what it imports can be imported, and every name of ours exists, with the keywords that it takes."""
    tree = ast.parse(block.code.replace("…", "..."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                # Asking a lazy module for the name would load it: trl's trainers take ten seconds.
                is_there = alias.name in dir(module) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert is_there, f"{block}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rl":
            assert hasattr(rl, node.attr), f"{block}: rewardlm has no {node.attr}"
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        for alias in getattr(node, "names", [])
        if isinstance(alias, ast.alias)
    }
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    bound |= {argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unknown = used - bound - set(dir(builtins)) - {"rl"}
    assert not unknown, f"{block}: {unknown} is defined nowhere"


def read_yaml(block: Block) -> None:
    """It is what the command in its first line takes, ``# rewardlm COMMAND``; without one, an experiment."""
    named = re.match(r"# .*?rewardlm (judge [a-z-]+|[a-z]+)", block.code)
    content = yaml.safe_load(block.code)
    assert isinstance(content, dict), f"{block}: no mapping"
    kind = settings_of(named[1] if named else "run")
    build(kind, defaults={**kind.example, **content})
