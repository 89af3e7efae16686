"""The lowest layers of an encoder while they are frozen: their output for each text is computed once and kept.

Training then costs only what the upper layers cost. Dropout is off in the frozen part, as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewardlm.errors import ModelError

_BATCH_TOKENS = 2048


class _Reached(Exception):
    """A forward pass came to the first layer that trains; its input was kept."""


class FrozenLayers:
    """The lowest ``count`` layers of ``model`` taken out of it, and put back by ``restore``.

    In between, the first remaining layer reads the states last given to ``feed`` instead of what comes from below.

    Raises ModelError where the model has no list of layers, or too few of them.
    """

    def __init__(self, model: Any, count: int, precision: torch.dtype = torch.float32) -> None:
        self._parent, self._name, self._layers = _layers_of(model, count)
        self._model = model
        self._count = count
        self._precision = precision
        self._fed: Tensor | None = None
        self._hook: Any = None

    @torch.inference_mode()
    def states(self, rows: Sequence[Sequence[int]], padding: int) -> list[Tensor]:
        """BFloat16[T, H] for each row of token ids: the input of the first layer that trains."""
        kept: list[Tensor] = []

        def stop(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        found: dict[int, Tensor] = {}
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        was_training = self._model.training
        self._model.eval()
        hook = self._layers[self._count].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            while order:
                width = len(rows[order[-1]])
                batch = [order.pop() for _ in range(min(len(order), max(1, _BATCH_TOKENS // width)))]
                ids, mask = pad([rows[row] for row in batch], padding)
                try:
                    with torch.autocast("cpu", self._precision, enabled=self._precision != torch.float32):
                        self._model(input_ids=ids, attention_mask=mask)
                except _Reached:
                    states = kept.pop()
                for place, row in enumerate(batch):
                    found[row] = states[place, : len(rows[row])].bfloat16().clone()
        finally:
            hook.remove()
            self._model.train(was_training)
        return [found[row] for row in range(len(rows))]

    def take_out(self) -> None:
        """Take the lowest layers out of the model. Only the upper layers, and what is above the layers, train."""
        base = getattr(self._model, "get_base_model", lambda: self._model)()
        inside = {id(parameter) for parameter in base.base_model.parameters()}
        upper = {id(parameter) for layer in self._layers[self._count :] for parameter in layer.parameters()}
        for parameter in self._model.parameters():
            if id(parameter) in inside and id(parameter) not in upper:
                parameter.requires_grad_(False)
        setattr(self._parent, self._name, self._layers[self._count :])
        self._hook = self._layers[self._count].register_forward_pre_hook(self._replace, with_kwargs=True)

    def feed(self, states: Tensor) -> None:
        """Set the states of the next batch, Float[B, T, H]."""
        self._fed = states

    def restore(self) -> None:
        """Put the frozen layers back; the model is whole again."""
        self._hook.remove()
        setattr(self._parent, self._name, self._layers)

    def _replace(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._fed is None:
            raise RuntimeError("no states were fed for this batch")
        given = args[0] if args else kwargs["hidden_states"]
        states, self._fed = self._fed.to(given.dtype), None
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


def pad(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Int[B, T] and Int[B, T]: the ids, right-padded, and a mask that is 1 where a token is real."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


def pad_states(states: Sequence[Tensor], width: int) -> Tensor:
    """BFloat16[B, T, H], right-padded with zeros."""
    padded = states[0].new_zeros(len(states), width, states[0].shape[-1])
    for place, rows in enumerate(states):
        padded[place, : len(rows)] = rows
    return padded


def frozen_names(model: Any, count: int) -> list[str]:
    """The names of the model's lowest ``count`` layers. Raises ModelError where it has no more than these."""
    if count == 0:
        return []
    lowest = {id(layer) for layer in _layers_of(model, count)[2][:count]}
    return [name for name, module in model.named_modules() if id(module) in lowest]


def _layers_of(model: Any, frozen: int) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the encoder's layers, their name in it, and the layers, which are more than ``frozen``."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers:
                if frozen >= len(child):
                    raise ModelError(f"frozen is {frozen}, and the encoder has {len(child)} layers: freeze fewer")
                return module, name, child
    raise ModelError(f"{type(model).__name__} has no list of {model.config.num_hidden_layers} layers: set frozen=0")
