"""A user's own Python function, ``module:function``: as a judge here, as an estimator or a term in ``training``."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rewardlm.errors import ScorerError
from rewardlm.scoring.scorer import in_one_line
from rewardlm.types import Verdict


class FunctionScorer:
    """A user's Python function ``texts -> sequence of floats``, written ``module:function``.

    The module is looked for in the current directory too, as a script there would find it.
    """

    labels: tuple[str, ...] = ("toxicity",)
    revision: str | None = None

    def __init__(self, spec: str) -> None:
        self.name = spec
        try:
            self._function = load_function(spec)
        except ValueError as error:
            raise ScorerError(f"scorer {spec!r}: {error}") from error

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        values = self._function(list(texts))
        if isinstance(values, str | bytes | Mapping):
            raise TypeError(f"{self.name} returned a {type(values).__name__}: expected a sequence of floats")
        # ``score_texts`` finds what isn't a number: there it costs one text, here it would cost the batch.
        return [Verdict({"toxicity": value}) for value in values]


def load_function(spec: str) -> Callable[..., Any]:
    """What ``module:name`` names; the module may lie in the current directory, where a script would find it.

    Raises ValueError, in words for the user, if it can't be imported, isn't there or can't be called.
    """
    module_name, _, attribute = spec.partition(":")
    with _current_directory_importable():
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"can't import {module_name} ({in_one_line(error)})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module_name} has no {attribute!r}; check the spelling")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"it is a {type(found).__name__}: expected a function")
    return _without_exit(found, attribute)


def _without_exit(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``function``, in which whatever is raised is an error like any other: exit() must not end the command as if all
    were done. Only an interrupt is the user's."""

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        try:
            return function(*given, **named)
        except SystemExit as error:
            raise RuntimeError(f"{name} called exit({error.code!r})") from error
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise RuntimeError(f"{name} raised {type(error).__name__}: {error}") from error

    return called


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    directory = os.getcwd()
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if directory in sys.path:  # unless the module itself took it out
            sys.path.remove(directory)
