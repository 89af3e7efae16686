"""A Llama-shaped model's trunk over a tree of rows, for scoring and learning, without its modules.

The same arithmetic as the modules', in fewer and larger pieces: what queries, keys and values read is multiplied with
their adapters at once, norms, rotation and gating keep what their backward pass needs and nothing else, and the last
layer computes on only where a response token is predicted. Only adapters learn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, silu

from rewardlm.models.fused import map_of
from rewardlm.models.llama import is_plain_llama
from rewardlm.models.tree import Tree, attention, tree_states


def predicting_states(body: Any, tree: Tree, cache: Any = None) -> Tensor:
    """The last states that ``tree``'s response tokens are predicted from, Float[R, H], of any model that runs trees.

    They come after the prefix that ``cache`` holds, which grows by all N tokens.
    """
    if is_lean(body):
        return _states(body, tree, cache)
    return tree_states(body, tree, cache).index_select(0, tree.predicting)


def is_lean(body: Any) -> bool:
    """Whether ``body`` is such a model on a CPU with nothing on it but plain adapters, and nothing else that learns."""
    return is_plain_llama(body) and not any(
        parameter.requires_grad for name, parameter in body.named_parameters() if "lora_" not in name
    )


def _states(body: Any, tree: Tree, cache: Any) -> Tensor:
    x = embedding(tree.tokens, body.embed_tokens.weight)
    cos, sin = (part[0, :, None] for part in body.rotary_emb(x[None], tree.positions[None]))
    bias = tree.bias()
    heads, kv_heads = body.config.num_attention_heads, body.config.num_key_value_heads
    for number, layer in enumerate(body.layers):
        own, mlp = layer.self_attn, layer.mlp
        query, key, value = _maps(_norm(x, layer.input_layernorm), [own.q_proj, own.k_proj, own.v_proj])
        query = _Turn.apply(query.view(len(x), heads, -1), cos, sin)  # type: ignore[no-untyped-call]
        key = _Turn.apply(key.view(len(x), kv_heads, -1), cos, sin)  # type: ignore[no-untyped-call]
        value = value.view(len(x), kv_heads, -1)
        if cache is not None:
            found = cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], number)
            key, value = (states[0].transpose(0, 1) for states in found)
        attended = attention(query, key, value, tree, bias, own.scaling).flatten(1)
        if number == len(body.layers) - 1:
            attended, x = attended.index_select(0, tree.predicting), x.index_select(0, tree.predicting)
        x = x + _maps(attended, [own.o_proj])[0]
        gate, up = _maps(_norm(x, layer.post_attention_layernorm), [mlp.gate_proj, mlp.up_proj])
        gated: Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
        x = x + _maps(gated, [mlp.down_proj])[0]
    return _norm(x, body.norm)


def _norm(x: Tensor, module: Any) -> Tensor:
    found: Tensor = _RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return found


def _maps(x: Tensor, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Each of ``modules`` of the same ``x`` Float[N, in]: Float[N, out]."""
    maps = [map_of(module) for module in modules]
    weights = [part for one in maps if one for part in (one.base.weight, one.base.bias, one.down, one.up)]
    found: tuple[Tensor, ...] = _Maps.apply(x, [one.scaling for one in maps if one], *weights)  # type: ignore[no-untyped-call]
    return found


class _Maps(torch.autograd.Function):
    """W·x + b + s·B·A·x of several (W, b, A, B), all A in one product; W and b have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: list[float], *weights: Tensor | None) -> tuple[Tensor, ...]:
        bases, adapters = _sorted_out(scalings, weights)
        outputs = [linear(x, weight, bias) for weight, bias in bases]
        inner = None
        if adapters:
            inner = x @ torch.cat([down for _, down, _, _ in adapters]).to(x.dtype).t()
            for (number, _, up, scaling), part in zip(adapters, _parts(inner, adapters), strict=True):
                outputs[number].addmm_(part, up.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, inner, *weights)
        ctx.scalings = scalings
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, *weights = ctx.saved_tensors
        bases, adapters = _sorted_out(ctx.scalings, weights)
        for_weights: list[Tensor | None] = [None] * len(weights)
        for_x = through = None
        if adapters:
            through = torch.cat(
                [(gradients[number] @ up.to(x.dtype)).mul_(scaling) for number, _, up, scaling in adapters], 1
            )
            for_downs = torch.split((through.t() @ x).to(adapters[0][1].dtype), [len(a[1]) for a in adapters])
            for (number, _, up, scaling), part, for_down in zip(
                adapters, _parts(inner, adapters), for_downs, strict=True
            ):
                for_weights[4 * number + 2] = for_down
                for_weights[4 * number + 3] = (gradients[number].t() @ part).to(up.dtype).mul_(scaling)
        if ctx.needs_input_grad[0]:
            for_x = gradients[0] @ bases[0][0]
            for gradient, (weight, _) in zip(gradients[1:], bases[1:], strict=True):
                for_x.addmm_(gradient, weight)
            if through is not None:
                for_x.addmm_(through, torch.cat([down for _, down, _, _ in adapters]).to(x.dtype))
        return for_x, None, *for_weights


def _sorted_out(
    scalings: Sequence[float], weights: Sequence[Tensor | None]
) -> tuple[list[tuple[Any, Any]], list[tuple[int, Tensor, Tensor, float]]]:
    """(W, b) of every map, and of those with an adapter their number, A, B and s."""
    bases, adapters = [], []
    for number, scaling in enumerate(scalings):
        weight, bias, down, up = weights[4 * number : 4 * number + 4]
        bases.append((weight, bias))
        if down is not None and up is not None:
            adapters.append((number, down, up, scaling))
    return bases, adapters


def _parts(inner: Tensor, adapters: Sequence[tuple[int, Tensor, Tensor, float]]) -> tuple[Tensor, ...]:
    """Each adapter's A·x."""
    return torch.split(inner, [len(down) for _, down, _, _ in adapters], 1)


class _RmsNorm(torch.autograd.Function):
    """w·x / rms(x), the division in float32 (Zhang & Sennrich 2019, equation 4); w has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).to(x.dtype) * weight

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = torch.mul(x, inverse)
        along = (gradient * weight).float()
        share = torch.linalg.vecdot(along, normed)[:, None] / x.shape[-1]
        return along.addcmul(normed, share, value=-1).mul_(inverse).to(x.dtype), None, None


class _Turn(torch.autograd.Function):
    """Rotary position embedding of ``x`` Float[N, heads, D]: each half of D with the other (Su et al. 2021, section
    3.2.2, in the order of transformers)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return (x * cos).addcmul_(x.roll(half, -1), signed)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = cos.shape[-1] // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return (gradient * cos).add_((gradient * signed).roll(half, -1)), None, None


class _Gate(torch.autograd.Function):
    """silu(gate)·up, of which only gate and up are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        for_up = silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), for_up
