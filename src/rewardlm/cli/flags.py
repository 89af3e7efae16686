"""A command's flags, made from its settings: a field that is marked ``Flag()`` has one; its description is the help."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_origin

import typer

from rewardlm.cli.completion import completing
from rewardlm.cli.options import Config, Overrides
from rewardlm.config import Section, build
from rewardlm.config.describe import Setting, describe, leaves

S = TypeVar("S", bound=Section)
_METAVARS: dict[Any, str] = {int: "<int>", float: "<float>"}


@dataclass(frozen=True)
class Given(Generic[S]):
    """The settings that a user gave to a command: ``--config``, flags by the settings' keys, and overrides."""

    kind: type[S]
    file: Path | None
    flags: Mapping[str, Any]
    overrides: Sequence[str]

    def settings(self, defaults: Mapping[str, Any] | None = None, *, base: Path | None = None, **arguments: Any) -> S:
        """The settings, checked. ``arguments`` are settings that are not flags, such as ``model``. All that was given
        wins over ``defaults`` and the file ``base``. Raises one ConfigError for all mistakes.
        """
        flags = {**self.flags, **arguments}
        return build(self.kind, defaults=defaults, base=base, file=self.file, flags=flags, overrides=self.overrides)


def takes(kind: type[S], *, words: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function into a command with the flags of ``kind``, ``--config``, and ``KEY.SUB=VALUE`` for any setting.
    The function's first parameter must be ``given: Given[kind]``.

    ``words`` names the parameter with a list of runs or names, among which overrides may appear. Without it they have
    an argument of their own.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        flags = {setting.key.replace(".", "_"): setting for setting in _flagged(kind)}

        @functools.wraps(function)
        def command(*, config: Path | None, **values: Any) -> None:
            given = {setting.key: values.pop(name) for name, setting in flags.items()}
            # Drop what was not given: a switch is False then, and a list is empty.
            given = {key: value for key, value in given.items() if value is not False and value not in (None, [])}
            if words is None:
                overrides = values.pop("overrides") or []
            else:
                values[words], overrides = split_overrides(values[words] or [])
            function(Given(kind, config, given, overrides), **values)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        more = [] if words else [_parameter("overrides", Overrides)]
        more += [_parameter(name, _option(setting)) for name, setting in flags.items()]
        # Typer makes a command's arguments and options from its function's signature.
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        vars(command).update(
            __signature__=inspect.Signature([*parameters, *more, _parameter("config", Config)]), settings=kind
        )
        return command

    return decorate


def split_overrides(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split ``RUN… key=value…`` into runs or names, and overrides. A file whose name holds ``=`` is not an override."""
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    return [item for item in items if item not in overrides], overrides


def _flagged(kind: type[Section]) -> list[Setting]:
    """A command's own flags first, then those that it shares with others."""
    found = [setting for setting in leaves(describe(kind)) if setting.flag is not None]

    def classes_that_have(setting: Setting) -> int:
        return sum(setting.key.partition(".")[0] in getattr(one, "model_fields", ()) for one in kind.__mro__)

    return sorted(found, key=classes_that_have)


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(setting: Setting) -> Any:
    """The flag as Typer takes it. Values are checked with all settings, so that a mistake reads the same anywhere."""
    flag, kind = setting.flag, setting.kind
    assert flag is not None
    several = "NAME[,NAME…]" if get_origin(kind) is list else _METAVARS.get(kind)
    metavar = flag.metavar or ("|".join(setting.choices) if setting.choices else several)
    says_nothing = setting.default is False or setting.default in (None, [], {})
    default = "" if says_nothing else f" [default: {_as_text(setting.default)}]"
    parsed: Any = kind if kind in (bool, Path) else str
    read = flag.read or (_as_number if kind in _METAVARS else None)
    complete = completing(setting)
    return Annotated[
        list[parsed] | None if flag.many else parsed | None,
        typer.Option(
            setting.flag_name,
            metavar=metavar,
            parser=read,
            help=setting.description + default,
            autocompletion=complete,
        ),
    ]


def _as_number(text: str) -> Any:
    """A number, if ``text`` is one. Anything else stays as it is and is reported with the other mistakes."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _as_text(default: Any) -> str:
    if isinstance(default, list):
        return ",".join(default)
    return default if isinstance(default, str) else json.dumps(default)
