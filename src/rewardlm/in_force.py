"""What is in force in a model's trunk while a block runs: its hooks, and an entry by which others know of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

T = TypeVar("T")


class InForce(Generic[T]):
    """At most one thing of a kind for each trunk. ``clash`` is the message for a second one."""

    def __init__(self, clash: str) -> None:
        self._clash = clash
        self._of: WeakKeyDictionary[nn.Module, T] = WeakKeyDictionary()

    def of(self, body: nn.Module) -> T | None:
        """What is in force in ``body`` now."""
        return self._of.get(body)

    @contextlib.contextmanager
    def holding(self, body: nn.Module, what: T, hooks: Iterable[RemovableHandle]) -> Iterator[T]:
        """Inside, ``what`` is in force, by ``hooks``, which are registered as they are iterated over. Afterwards they
        are gone, whatever happened. Raises RuntimeError inside of another such block, before any hook."""
        if body in self._of:
            raise RuntimeError(self._clash)
        with contextlib.ExitStack() as held:
            for hook in hooks:
                held.callback(hook.remove)
            self._of[body] = what
            held.callback(self._of.pop, body, None)
            yield what

    @contextlib.contextmanager
    def without(self, body: nn.Module) -> Iterator[None]:
        """Inside, nothing is in force in ``body`` as far as others know. Its hooks stay."""
        what = self._of.pop(body, None)
        try:
            yield
        finally:
            if what is not None:
                self._of[body] = what
