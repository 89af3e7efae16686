"""What a model takes in memory, found with a few of its layers: most models have many, and all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from torch import nn


class _HasModel(Protocol):
    @property
    def causal_lm(self) -> Any: ...


S = TypeVar("S", bound=_HasModel)


def by_layers(trace: Callable[..., int], of: S, *sizes: int, **how: bool) -> int:
    """``trace(of, …)``, in the time that a few layers take where all are alike: what each layer adds is the difference
    between four of them and three. Other models are traced whole.
    """
    found = _alike(of.causal_lm)
    if found is None:
        return trace(of, *sizes, **how)
    fewer, more = [trace(of, *sizes, **how) for _ in _cut(of.causal_lm, *found, (3, 4))]
    return more + (more - fewer) * (len(found[2]) - 4)


def _alike(causal_lm: Any) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """Where the layers are (parent, name, list) if there are more than four, all alike; else None."""
    config = causal_lm.config.get_text_config()
    number = config.num_hidden_layers
    for path, module in causal_lm.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number > 4:
            first = _described(module[0])
            if len({*(getattr(config, "layer_types", None) or [""])}) > 1 or any(
                _described(layer) != first for layer in module
            ):
                return None
            parent, _, name = path.rpartition(".")
            return causal_lm.get_submodule(parent), name, module
    return None


def _described(layer: nn.Module) -> list[Any]:
    """Everything that can make two layers behave differently, except their place in the model."""
    return [
        (
            path,
            type(module),
            [
                (name, tuple(one.shape), one.dtype, one.requires_grad)
                for name, one in module.named_parameters(recurse=False)
            ],
            {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, bool | int | float | str) and not name.endswith(("layer_idx", "layer_id"))
            },
        )
        for path, module in layer.named_modules()
    ]


def _cut(causal_lm: Any, parent: nn.Module, name: str, layers: nn.ModuleList, counts: Sequence[int]) -> Iterator[int]:
    """Each of ``counts``, while the model has only so many of its layers; then it has all of them again."""
    config = causal_lm.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    try:
        for count in counts:
            setattr(parent, name, layers[:count])
            config.num_hidden_layers = count
            if kinds:
                config.layer_types = kinds[:count]
            yield count
    finally:
        setattr(parent, name, layers)
        config.num_hidden_layers = len(layers)
        if kinds:
            config.layer_types = kinds
