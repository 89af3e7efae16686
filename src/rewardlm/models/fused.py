"""A linear map with a LoRA adapter on it, W·x + s·B·A·x, as one operation forwards and one backwards.

The adapter's part is added into the base's output instead of beside it, and half-precision activations are not copied
into float32 and back: the adapter's weights are rounded to the activations' precision where they are multiplied, while
they and their optimizer stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse(model: nn.Module) -> None:
    """Have the plain LoRA layers of ``model`` compute so; what they hold, and what PEFT does with them, stays."""
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


class FusedLinear(Linear):  # type: ignore[misc]
    """PEFT's layer; whatever it can do beyond one unmerged, plain adapter is left to it."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = None if args or kwargs else self.plain_adapter()
        base = self.get_base_layer()
        if name is None or x.dtype != base.weight.dtype:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        arguments = (x.reshape(-1, x.shape[-1]), base.weight, base.bias, down, up, self.scaling[name])
        if torch.is_grad_enabled():
            found = _LoraLinear.apply(*arguments)  # type: ignore[no-untyped-call]
        else:
            found, _ = _forward(*arguments)
        return found.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    def plain_adapter(self) -> str | None:
        """The one adapter that is on, None where there is more to do than to add it."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        if isinstance(self.scaling[name], Tensor):
            # Who follows the adapter along its scale wants that scale's gradient.
            return None
        if self.training and not isinstance(self.lora_dropout[name], nn.Identity):
            return None
        base = self.get_base_layer()
        frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
        return name if frozen else None


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """W·x + s·B·A·x Float[N, out] and A·x Float[N, r]."""
    result = linear(x, weight, bias)
    inner = x @ down.to(x.dtype).t()
    return result.addmm_(inner, up.to(x.dtype).t(), alpha=scaling), inner


class _LoraLinear(torch.autograd.Function):
    """Saved for the backward pass: the input and A·x; W has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        result, inner = _forward(x, weight, bias, down, up, scaling)
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.scaling = scaling
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, weight, down, up = ctx.saved_tensors
        for_x = for_down = for_up = None
        through = (gradient @ up.to(gradient.dtype)).mul_(ctx.scaling)
        if ctx.needs_input_grad[0]:
            for_x = (gradient @ weight).addmm_(through, down.to(gradient.dtype))
        if ctx.needs_input_grad[3]:
            for_down = (through.t() @ x).to(down.dtype)
        if ctx.needs_input_grad[4]:
            for_up = (gradient.t() @ inner).mul_(ctx.scaling).to(up.dtype)
        return for_x, None, None, for_down, for_up, None
