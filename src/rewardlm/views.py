"""One request as several rows of a batch, each with an adapter of its own on the one base.

Rows stand request by request, and a request's views in a fixed order: row r·V + v is view v of request r. The base's
products run once for all rows. What an adapter adds is computed for its own rows alone. As with ``stream``, hooks do
this wherever a model's modules run, and ``fastpath`` asks ``views_of`` where they don't.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from rewardlm.in_force import InForce


class Views:
    """The adapter of each of a request's V views: its name, or None for the base. ``rows`` is how many rows, views
    counted one by one, the pass that runs now has; None: it is the base's."""

    def __init__(self, adapters: Sequence[str | None]) -> None:
        self.adapters = tuple(adapters)
        self.rows: int | None = None
        self._alone: int | None = None

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def are_one(self) -> bool:
        """Whether all rows are of one view now."""
        return self._alone is not None

    @property
    def of_all(self) -> str | None:
        """The adapter that all rows have now."""
        return None if self._alone is None else self.adapters[self._alone]

    @contextlib.contextmanager
    def alone(self, view: int) -> Iterator[None]:
        """Inside, all rows are of this view."""
        self._alone = view
        try:
            yield
        finally:
            self._alone = None


class ViewHook:
    """The hook on one LoRA layer whose own adapters are off: output[view v] += s·B·A·input[view v]."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def __call__(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        views, n = self._views, len(self._views)
        if views.are_one:
            return output if views.of_all is None else output + _added(layer, views.of_all, args[0])
        if views.rows is None:
            return output
        # OPT strings its rows together before it calls its MLP.
        x, found = (one.reshape(views.rows, -1, one.shape[-1]) for one in (args[0], output))
        found = found.clone()
        for view, name in enumerate(views.adapters):
            if name is not None:
                found[view::n] += _added(layer, name, x[view::n])
        return found.reshape(output.shape)


def _added(layer: Any, name: str, x: Tensor) -> Tensor | float:
    """s·B·A·x of a layer's adapter; 0 where it has none of this name."""
    if name not in layer.lora_A:
        return 0.0
    down, up = (part[name].weight.to(x.dtype) for part in (layer.lora_A, layer.lora_B))
    added: Tensor = linear(linear(x, down), up) * layer.scaling[name]
    return added


_on: InForce[Views] = InForce("this model's rows have views already: leave that block first")


def views_of(body: nn.Module) -> Views | None:
    """The views that the rows of ``body`` are now."""
    return _on.of(body)


def viewed(body: nn.Module, layers: Mapping[str, Any], views: Views) -> contextlib.AbstractContextManager[Views]:
    """Inside, the rows of every pass through ``body`` are ``views``; ``layers`` are its LoRA layers, by any name, with
    their adapters off. Afterwards the hooks are gone. Raises RuntimeError inside of another such block."""
    hooks = (layer.register_forward_hook(ViewHook(views)) for layer in layers.values())
    return _on.holding(body, views, hooks)


@contextlib.contextmanager
def unviewed(body: nn.Module) -> Iterator[None]:
    """Inside, rows of ``body`` have no views: all are the base's."""
    views = views_of(body)
    if views is None:
        yield
        return
    before, views.rows = views.rows, None
    try:
        with _on.without(body):
            yield
    finally:
        views.rows = before
