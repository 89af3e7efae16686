"""Linear maps with LoRA adapters on them, W·x + b + s·B·A·x, as one operation forwards and one backwards.

The adapter's part is added into the base's output instead of beside it, and half-precision activations are not copied
into float32 and back: the adapter's weights are rounded to the activations' precision where they are multiplied, while
they and their optimizer stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse(model: nn.Module) -> None:
    """Make the plain LoRA layers of ``model`` compute this way. What they hold, and what PEFT does with them, stays."""
    module: Any
    for module in model.modules():
        if type(module) is Linear and type(module.get_base_layer()) is nn.Linear:
            module.__class__ = FusedLinear


@dataclass(frozen=True)
class Map:
    """W·x + b, and what an adapter adds, s·B·A·x: ``down`` is A Float[r, in], ``up`` B Float[out, r]."""

    base: nn.Linear
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 1.0


def map_of(module: nn.Module) -> Map | None:
    """What ``module`` computes now, None where that is more than a linear map with one plain adapter."""
    if type(module) is nn.Linear:
        return Map(module)
    if type(module) is not FusedLinear:
        return None
    if module.disable_adapters or module.merged:
        return Map(module.get_base_layer())
    name = module.plain_adapter()
    if name is None:
        return None
    return Map(module.get_base_layer(), module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])


def map_with(module: Any, name: str | None) -> Map | None:
    """What ``module``, whose adapters are off, would compute with the adapter ``name`` on, if it has that one."""
    own = map_of(module)
    if own is None or name is None or name not in getattr(module, "lora_A", {}):
        return own
    return Map(own.base, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])


class FusedLinear(Linear):  # type: ignore[misc]
    """PEFT's layer; everything beyond one unmerged, plain adapter is still computed by PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self.plain_adapter()
        base = self.get_base_layer()
        if name is None or x.dtype != base.weight.dtype:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        rows, scalings = x.reshape(-1, x.shape[-1]), (self.scaling[name],)
        weights = (base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight)
        if torch.is_grad_enabled():
            [found] = Maps.apply(rows, scalings, *weights)  # type: ignore[no-untyped-call]
        else:
            [found], _ = maps_forward(rows, Parts(scalings, weights))
        return found.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def plain_adapter(self) -> str | None:
        """The one adapter that is on, None where there is more to do than to add it."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        if isinstance(self.scaling[name], Tensor):
            # A scale that is a tensor may need a gradient of its own.
            return None
        if self.training and not isinstance(self.lora_dropout[name], nn.Identity):
            return None
        base = self.get_base_layer()
        frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
        return name if frozen else None


class Maps(torch.autograd.Function):
    """W·x + b + s·B·A·x of several (W, b, A, B) that read one x, Float[N, in]; W and b have no gradient.

    Saved for the backward pass: x and A·x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], *weights: Tensor | None) -> tuple[Tensor, ...]:
        outputs, inner = maps_forward(x, Parts(scalings, weights))
        ctx.save_for_backward(x, inner, *weights)
        ctx.scalings = scalings
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, *weights = ctx.saved_tensors
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        for_x, for_weights = maps_backward(x, inner, gradients, Parts(ctx.scalings, weights), needed)
        return for_x, None, *for_weights


class Parts:
    """(W, b) of several maps; for each with an adapter its number, A, B and s."""

    def __init__(self, scalings: Sequence[float], weights: Sequence[Tensor | None]) -> None:
        self.n_weights = len(weights)
        self.bases: list[tuple[Any, Any]] = []
        self.adapters: list[tuple[int, Tensor, Tensor, float]] = []
        for number, scaling in enumerate(scalings):
            weight, bias, down, up = weights[4 * number : 4 * number + 4]
            self.bases.append((weight, bias))
            if down is not None and up is not None:
                self.adapters.append((number, down, up, scaling))
        self.ranks = [len(down) for _, down, _, _ in self.adapters]

    def downs(self, dtype: torch.dtype) -> Tensor:
        """All A, one below the other: Float[Σ r, in]."""
        return _joined([down for _, down, _, _ in self.adapters], 0).to(dtype)


def maps_forward(x: Tensor, parts: Parts) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Every map of ``x``, and A·x of all adapters, Float[N, Σ r]."""
    outputs = tuple(linear(x, weight, bias) for weight, bias in parts.bases)
    if not parts.adapters:
        return outputs, None
    inner = linear(x, parts.downs(x.dtype))
    for (number, _, up, scaling), own in zip(parts.adapters, torch.split(inner, parts.ranks, 1), strict=True):
        outputs[number].addmm_(own, up.to(x.dtype).t(), alpha=scaling)
    return outputs, inner


def maps_backward(
    x: Tensor, inner: Tensor | None, gradients: Sequence[Tensor], parts: Parts, needed: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of ``x`` and of all weights in their order, where ``needed`` (first of x, then of the weights)."""
    for_weights: list[Tensor | None] = [None] * parts.n_weights
    through = for_x = None
    if inner is not None:
        owns = torch.split(inner, parts.ranks, 1)
        backs = [(gradients[number] @ up.to(x.dtype)).mul_(scaling) for number, _, up, scaling in parts.adapters]
        through = _joined(backs, 1)
        if any(needed[1:]):
            for_downs = torch.split(through.t() @ x, parts.ranks)
            for (number, down, up, scaling), own, for_down in zip(parts.adapters, owns, for_downs, strict=True):
                for_weights[4 * number + 2] = for_down.to(down.dtype)
                for_weights[4 * number + 3] = (gradients[number].t() @ own).to(up.dtype).mul_(scaling)
    if needed[0]:
        for_x = gradients[0] @ parts.bases[0][0]
        for gradient, (weight, _) in zip(gradients[1:], parts.bases[1:], strict=True):
            for_x.addmm_(gradient, weight)
        if through is not None:
            for_x.addmm_(through, parts.downs(x.dtype))
    return for_x, for_weights


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """``torch.cat`` without a copy of one part alone."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
