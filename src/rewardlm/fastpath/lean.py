"""A Llama-shaped model's trunk over a tree of rows, for scoring and learning, without its modules.

The arithmetic is the same as the modules', in fewer and larger pieces. Maps that read the same input (queries, keys and
values, say) run with all their adapters at once. Norms, rotation and gating keep only what their backward pass needs.
After its attention, the last layer computes only where a response token is predicted. Only adapters learn here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from rewardlm.fastpath.agreement import agrees
from rewardlm.fastpath.fused import Map, Maps, Parts, map_of, map_with, maps_backward, maps_forward
from rewardlm.fastpath.llama import is_plain_llama, signed
from rewardlm.fastpath.operators import silu_backward
from rewardlm.fastpath.tree import Layout, Tree, attention, last_states
from rewardlm.stream import changes_of
from rewardlm.views import views_of

_MapOf = Callable[[nn.Module], Map | None]


def is_lean(body: Any) -> bool:
    """Whether ``body`` is a Llama-shaped model on a CPU, with plain adapters at most, and nothing else learns."""
    if not is_plain_llama(body) or any(
        parameter.requires_grad for name, parameter in body.named_parameters() if "lora_" not in name
    ):
        return False
    return agrees(
        body,
        "a pass without modules",
        partial(last_states, partial(states, body, cache=None)),
        adapters=True,
        instead="it is run through its modules, which is slower",
    )


def states(body: Any, tree: Tree, cache: Any) -> Float[Tensor, "R H"]:
    """The last states that ``tree``'s answer tokens are predicted from, after what ``cache`` holds, which grows."""
    x = embedding(tree.tokens, body.embed_tokens.weight)
    cos, sin = (part[0, :, None] for part in body.rotary_emb(x[None], tree.positions[None]))
    sin = signed(sin)
    layout = Layout(tree, body.config.num_attention_heads, body.config.num_key_value_heads)
    changed = changes_of(body)
    views = views_of(body)
    of = map_of if views is None else partial(map_with, name=views.of_all)
    # Where answers are predicted from, among the tokens that are run; None once only these are left.
    predicting: Tensor | None = tree.predicting
    for number, layer in enumerate(body.layers):
        own, mlp = layer.self_attn, layer.mlp
        x = changed((number, "in"), x, predicting)
        mixed = _normed_maps(x, layer.input_layernorm, [own.q_proj, own.k_proj, own.v_proj], of)
        query, key, value = (part.view(len(x), -1, own.head_dim) for part in mixed)
        query, key = _Turn.apply(query, cos, sin), _Turn.apply(key, cos, sin)  # type: ignore[no-untyped-call]
        if cache is not None:
            found = cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], number)
            key, value = (part[0].transpose(0, 1) for part in found)
        attended = attention(query, key, value, layout, own.scaling).flatten(1)
        if number == len(body.layers) - 1:
            attended, x = attended.index_select(0, tree.predicting), x.index_select(0, tree.predicting)
            predicting = None
        scalings, weights = _weights([own.o_proj], of)
        written = Maps.apply(attended, scalings, *weights)[0]  # type: ignore[no-untyped-call]
        x = x + changed((number, "attention"), written, predicting)
        gate, up = _normed_maps(x, layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], of)
        scalings, weights = _weights([mlp.down_proj], of)
        written = _GatedMap.apply(gate, up, scalings, *weights)  # type: ignore[no-untyped-call]
        x = x + changed((number, "mlp"), written, predicting)
    x = changed((len(body.layers), "in"), x, predicting)
    final: Tensor = _Norm.apply(x, body.norm.weight, body.norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return final


def _normed_maps(x: Tensor, norm: Any, modules: Sequence[nn.Module], of: _MapOf) -> tuple[Tensor, ...]:
    """What each of ``modules`` makes of ``x`` Float[N, H] after ``norm``: Float[N, out]."""
    scalings, weights = _weights(modules, of)
    arguments = (x, norm.weight, norm.variance_epsilon, scalings, *weights)
    found: tuple[Tensor, ...] = _NormedMaps.apply(*arguments)  # type: ignore[no-untyped-call]
    return found


def _weights(modules: Sequence[nn.Module], of: _MapOf) -> tuple[list[float], list[Tensor | None]]:
    """s of each module's adapter, and every module's W, b, A and B in one list."""
    maps = [found for found in map(of, modules) if found is not None]
    weights = [part for one in maps for part in (one.base.weight, one.base.bias, one.down, one.up)]
    return [one.scaling for one in maps], weights


class _NormedMaps(torch.autograd.Function):
    """``Maps`` of w·x / rms(x), which is computed again in the backward pass instead of being kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, eps: float, scalings: list[float], *weights: Tensor | None
    ) -> tuple[Tensor, ...]:
        inverse = _inverse_rms(x, eps)
        outputs, inner = maps_forward(_normed(x, inverse, norm), Parts(scalings, weights))
        ctx.save_for_backward(x, norm, inverse, inner, *weights)
        ctx.scalings = scalings
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, norm, inverse, inner, *weights = ctx.saved_tensors
        parts = Parts(ctx.scalings, weights)
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        for_normed, for_weights = maps_backward(_normed(x, inverse, norm), inner, gradients, parts, needed)
        for_x = None if for_normed is None else _through_norm(for_normed, x, inverse, norm)
        return for_x, None, None, None, *for_weights


class _GatedMap(torch.autograd.Function):
    """``Maps`` of silu(gate)·up, one map; gate and up are kept, their product is not."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, scalings: list[float], *weights: Tensor | None) -> Tensor:
        outputs, inner = maps_forward(silu(gate).mul_(up), Parts(scalings, weights))
        ctx.save_for_backward(gate, up, inner, *weights)
        ctx.scalings = scalings
        return outputs[0]

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, inner, *weights = ctx.saved_tensors
        opened = silu(gate)
        parts, needed = Parts(ctx.scalings, weights), (True, *ctx.needs_input_grad[3:])
        for_gated, for_weights = maps_backward(opened * up, inner, [gradient], parts, needed)
        assert for_gated is not None
        for_gate = silu_backward(for_gated * up, gate)
        return for_gate, opened.mul_(for_gated), None, *for_weights


class _Norm(torch.autograd.Function):
    """w·x / rms(x), the division in float32 (Zhang & Sennrich 2019, equation 4); w has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, eps: float) -> Tensor:
        inverse = _inverse_rms(x, eps)
        ctx.save_for_backward(x, norm, inverse)
        return _normed(x, inverse, norm)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, norm, inverse = ctx.saved_tensors
        return _through_norm(gradient, x, inverse, norm), None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Float[N, 1], float32 at least."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    inverse: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return inverse


def _normed(x: Tensor, inverse: Tensor, norm: Tensor) -> Tensor:
    return torch.mul(x, inverse).to(x.dtype).mul_(norm)


def _through_norm(gradient: Tensor, x: Tensor, inverse: Tensor, norm: Tensor) -> Tensor:
    """The gradient of ``x``, from ``gradient``, that of what ``_normed`` gives."""
    normed = torch.mul(x, inverse)
    along = (gradient * norm).to(inverse.dtype)
    share = torch.linalg.vecdot(along, normed)[:, None] / x.shape[-1]
    return along.addcmul(normed, share, value=-1).mul_(inverse).to(x.dtype)


class _Turn(torch.autograd.Function):
    """Rotary position embedding of ``x`` Float[N, heads, D] by the cosine and the ``signed`` sine: each half of D with
    the other (Su et al. 2021, section 3.2.2, in the order of transformers)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return (gradient * cos).add_((gradient * sin).roll(cos.shape[-1] // 2, -1)), None, None
