"""Operators of torch that are not in its public interface: all that the fast path calls stand here, and nowhere else.

Each says what it computes and which public way it replaces. A new torch may drop or change one without notice;
``missing`` tells which, and then the fast path is not taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewardlm.stream import is_stream_hook
from rewardlm.views import ViewHook


def silu_backward(gradient: Float[Tensor, "N I"], x: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """The gradient of x from that of silu(x), in one walk. In public: ``torch.autograd.grad(silu(x), x, gradient)``."""
    found: Tensor = torch.ops.aten.silu_backward(gradient, x)
    return found


def softmax_backward(gradient: Float[Tensor, "*S L"], weights: Float[Tensor, "*S L"]) -> Float[Tensor, "*S L"]:
    """The gradient of x from that of ``weights`` = softmax(x), in one walk.

    In public: ``weights * (gradient - (gradient * weights).sum(-1, keepdim=True))``.
    """
    found: Tensor = torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
    return found


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by weights in ``dtype`` that are laid out once and not anew for every product."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: Float[Tensor, "out in"]) -> Tensor:
    """``weight`` as oneDNN would lay it out for a product, opaque to torch. In public: ``weight`` itself."""
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return found


def packed_linear(
    x: Float[Tensor, "B in"], weight: Tensor, bias: Float[Tensor, "out"] | None
) -> Float[Tensor, "B out"]:
    """W·x + b for a ``packed`` W. In public: ``torch.nn.functional.linear`` with W as it was."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody reads or changes what goes into ``module`` or comes out, other than by a change of the stream
    or a view's adapter, which the fast path computes itself (``stream``, ``views``). In public there is no way to know.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return not all(is_stream_hook(hook) or isinstance(hook, ViewHook) for hook in hooks)


def _try_packed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        if packs(dtype):
            one = _one().to(dtype)
            packed_linear(one, packed(one), one[0])


def _one() -> Tensor:
    return torch.ones(1, 1, device="cpu")  # Whatever device is the default now.


_TRIALS: dict[str, Callable[[], object]] = {
    "torch.ops.aten.silu_backward": lambda: silu_backward(_one(), _one()),
    "torch._softmax_backward_data": lambda: softmax_backward(_one(), _one()),
    "torch.ops.mkldnn": _try_packed,
    "torch.nn.Module._forward_hooks": lambda: is_hooked(nn.Identity()),
}


def missing() -> dict[str, str]:
    """The operators that this torch lacks or calls otherwise, each with the error that calling it gave."""
    found = {}
    for name, call in _TRIALS.items():
        try:
            call()
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            found[name] = str(error).splitlines()[0]
    return found
