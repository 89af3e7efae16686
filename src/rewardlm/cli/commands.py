"""The commands, a line about each, and where they are: a command's file is loaded when it is first needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from rewardlm.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rewardlm.config import Section

# The name, where its function is (below rewardlm.cli), and what ``rewardlm --help`` says of it.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "The whole experiment on an embedded model, nothing downloaded."),
    "init": ("init:init", "Write a commented YAML file to start from."),
    "settings": ("settings:settings", "List a command's settings and what they mean."),
    "run": ("run:run", "A whole experiment from one file, from measuring to the report."),
    "measure": ("measure:measure", "Send prompts to a model and judge its answers."),
    "score": ("score:score", "Score stored answers with another judge."),
    "import": ("imports:import_", "Turn a table of answers and scores into a run."),
    "export": ("export:export", "Write runs for other tools, and tables for a paper."),
    "compare": ("compare:compare", "Compare runs with the first: tests, flow, audit."),
    "label open": ("label:open_", "Label answers on a local page, by keyboard."),
    "label export": ("label:export", "Write answers and labels for other programs."),
    "label import": ("label:import_", "Read labels from a file."),
    "label status": ("label:status", "How far labelling is, and whether labellers agree."),
    "power": ("power:power", "How many prompts and answers it takes to see a change."),
    "gate": ("gate:gate", "Pass, fail or can't tell, for a script: did nothing break?"),
    "frontier": ("frontier:frontier", "Toxicity against what it costs: steering and training."),
    "finetune": ("finetune:finetune", "Teach a model counter-narratives."),
    "rlaf": ("rlaf:rlaf", "Train a model against judges: PPO, GRPO, RLOO."),
    "prefer": ("prefer:prefer", "Train a model on its own judged answers: DPO, KTO, best of n."),
    "watch": ("watch:watch", "Show how a training run is going."),
    "view": ("view:view", "Follow and open runs on a local page."),
    "merge": ("merge:merge", "Write a model with its adapter merged into its weights."),
    "judge list": ("judge:list_", "Every judge that can be used here, with its figures."),
    "judge train": ("judge:train", "Fine-tune an encoder into a judge of several labels."),
    "judge evaluate": ("judge:evaluate", "What judges get right and wrong on a suite."),
    "judge serve": ("judge:serve", "Answer requests in Perspective's format, and in others."),
    "judge migrate": ("judge_migrate:migrate", "What a new judge's thresholds are in the place of an old one's."),
    "judge train-pairs": ("judge_pairs:train_pairs", "Teach an encoder to recognise counter-narratives."),
    "judge evaluate-pairs": ("judge_pairs:evaluate_pairs", "What a judge of pairs gets right and wrong."),
    "steer fit": ("steer:fit", "Find how to steer a model, for measure --steer."),
    "steer export": ("steer:export", "Write vectors as safetensors, or for llama.cpp."),
    "steer import": ("steer:import_", "Take a control vector of llama.cpp."),
    "interpret": ("interpret:interpret", "Look inside models: what training changed."),
    "report": ("report:report", "Write one self-contained page about runs."),
    "push": ("push:push", "Upload an adapter to the hub, with a card."),
    "doctor": ("doctor:doctor", "What is installed, what is fast, and what fits."),
}

# Commands that go on where they stopped when they are run again.
RESUMED = ("demo", "run", "measure", "finetune", "rlaf", "prefer", "interpret", "judge train", "judge evaluate ")


def load(name: str) -> Callable[..., None]:
    """The function of a command."""
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(f"rewardlm.cli.{module}"), function)
    return found


def with_settings() -> dict[str, type[Section]]:
    """The settings of every command that has some."""
    return {name: kind for name in COMMANDS if (kind := getattr(load(name), "settings", None)) is not None}


def settings_of(name: str) -> type[Section]:
    """The settings of a command. Raises ConfigError where there are none."""
    kind: type[Section] | None = getattr(load(name), "settings", None) if name in COMMANDS else None
    if kind is None:
        known = with_settings()
        problem = f"no settings of {name!r}" if name else "no command is named"
        near = did_you_mean(name, known, first=True)
        raise ConfigError(f"{problem}: {near}expected one of {', '.join(known)}")
    return kind


class Command(TyperCommand):
    """A command whose help ends with examples, and with where all of its settings are listed."""

    above = ""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """What stands below the flags."""
        from rewardlm.cli.examples import EXAMPLES

        name = f"{self.above}{self.name}"
        with formatter.section("Examples"):
            for example in EXAMPLES.get(name, ()):
                formatter.write(f"{'':{formatter.current_indent}}# {example.what}\n")
                # Never wrapped, whatever the terminal's width: it is there to be copied.
                formatter.write(f"{'':{formatter.current_indent}}{example.line}\n")
        if getattr(self.callback, "settings", None) is not None:
            formatter.write_paragraph()
            formatter.write_text(
                f"Every setting, with its default and what it means: rewardlm settings {name}. "
                f'All of them in a file to start from: rewardlm init {_file_for(name)} --command "{name}".'
            )


def _file_for(name: str) -> str:
    return f"{name.replace(' ', '-')}.yaml"


class Commands(TyperGroup):
    """A group that knows the names of its commands, those that begin with ``above``, and loads one when it is run."""

    above = ""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._lines = {
            name.removeprefix(self.above): line
            for name, (_, line) in COMMANDS.items()
            if name.startswith(self.above) and " " not in name.removeprefix(self.above)
        }
        # Typer lists these names, and suggests them for a typing error.
        self.commands: dict[str, Any] = {**dict.fromkeys(self._lines), **self.commands}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, loaded; None where there is none."""
        if self.commands.get(cmd_name) is None and cmd_name in self._lines:
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            kind = type("Command", (Command,), {"above": self.above})
            alone.command(cmd_name, cls=kind)(load(self.above + cmd_name))
            self.commands[cmd_name] = typer.main.get_command(alone)
        return self.commands.get(cmd_name)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names of commands that begin with ``incomplete``, without loading them, and the group's own flags."""
        named = [
            SimpleNamespace(value=name, type="plain", help=self._lines.get(name))
            for name in self.commands
            if name.startswith(incomplete)
        ]
        return [*named, *super(TyperGroup, self).shell_complete(ctx, incomplete)]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Where to begin."""
        from rewardlm.cli.examples import EXAMPLES

        with formatter.section("Examples"):
            for example in EXAMPLES[self.above.strip()]:
                formatter.write(f"{'':{formatter.current_indent}}# {example.what}\n")
                formatter.write(f"{'':{formatter.current_indent}}{example.line}\n")
        formatter.write_paragraph()
        formatter.write_text(
            f"More about a command, with examples: rewardlm {self.above}COMMAND --help. "
            f"All of its settings: rewardlm settings {self.above}COMMAND."
        )

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """One line per command, without loading it."""
        groups = {name: group.get_short_help_str() for name, group in self.commands.items() if name not in self._lines}
        with formatter.section("Commands"):
            formatter.write_dl([*self._lines.items(), *groups.items()])


class JudgeCommands(Commands):
    """``rewardlm judge …``."""

    above = "judge "


class LabelCommands(Commands):
    """``rewardlm label …``."""

    above = "label "


class SteerCommands(Commands):
    """``rewardlm steer …``."""

    above = "steer "
