"""What a shell completes after a command, a flag or a key: names that are known without loading anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rewardlm.config.describe import Setting

# Folders and files are completed too: the shell adds them if nothing here fits.
_MODELS = ("smollm2-135m", "tiny")
_PROMPTS = ("starter", "starter-plain", "rtp:packaged", "rtp:packaged:toxic", "rtp", "dialoconan")
_DIALOGUES = ("starter", "starter-plain", "dialoconan")
_SUITES = ("hatecheck", "rtp", "jigsaw")
_ALGORITHMS = ("ppo", "grpo", "dr_grpo", "rloo")
_METHODS = ("input_x_gradient", "integrated_gradients", "occlusion", "inseq:")
_DEVICES = ("auto", "cpu", "cuda")
_ENCODERS = ("minilm",)


def _judges() -> Iterable[str]:
    from rewardlm.scoring.load import KNOWN

    return KNOWN


_BY_KEY: dict[str, Callable[[], Iterable[str]]] = {
    "scorer": _judges,
    "reward": _judges,
    "judge": _judges,
    "witness": lambda: ["none", *_judges()],
    "toxic_by": lambda: ["dataset", *_judges()],
    "prompts": lambda: _PROMPTS,
    "dialogues": lambda: _DIALOGUES,
    "suite": lambda: _SUITES,
    "algorithm": lambda: _ALGORITHMS,
    "attribution.method": lambda: _METHODS,
    "device": lambda: _DEVICES,
    "encoder": lambda: _ENCODERS,
}


def completing(setting: Setting) -> Callable[[str], list[str]] | None:
    """What completes a setting's flag: its choices, or names that are known; None where there is nothing to offer."""
    choices = setting.choices
    if choices is not None:
        return _beginning(lambda: map(str, choices))
    known = _BY_KEY.get(setting.key)
    return _beginning(known) if known is not None else None


def models(incomplete: str) -> list[str]:
    """Aliases of models."""
    return _after_a_comma(_MODELS, incomplete)


def judges(incomplete: str) -> list[str]:
    """Names of judges, separated by commas."""
    return _after_a_comma(_judges(), incomplete)


def presets(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Names of presets, which are looked up when they are asked for."""
    return _beginning(names)


def commands_with_settings(incomplete: str) -> list[str]:
    """Commands that ``rewardlm settings`` can list."""
    from rewardlm.cli.commands import with_settings

    return [name for name in with_settings() if name.startswith(incomplete)]


def overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """``KEY=`` of the command's settings, and the choices after it."""
    kind: Any = getattr(ctx.command.callback, "settings", None)
    if kind is None:
        return []
    from rewardlm.config.describe import describe, leaves

    key, equals, value = incomplete.partition("=")
    found = list(leaves(describe(kind)))
    if not equals:
        return [f"{setting.key}=" for setting in found if setting.key.startswith(incomplete)]
    complete = next((completing(setting) for setting in found if setting.key == key), None)
    return [f"{key}={one}" for one in complete(value)] if complete is not None else []


def _beginning(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return _after_a_comma(names(), incomplete)

    return complete


def _after_a_comma(names: Iterable[str], incomplete: str) -> list[str]:
    """Completes the last name of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
