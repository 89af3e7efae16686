"""One decoding step of a Llama-shaped model on a CPU, without its modules.

With one token a row, calling some dozen small modules a layer takes as long as the products do. Here a layer is four
products (queries, keys and values in one; gate and up in one) and what lies between them. Their weights are laid out
once for the processor's matrix unit. lean.py runs many tokens at once (prompts, scoring, learning).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache
from transformers.activations import ACT2FN
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from rewardlm.fastpath import operators
from rewardlm.fastpath.agreement import agrees, warn_once
from rewardlm.fastpath.fused import FusedLinear, Map, map_of, map_with
from rewardlm.fastpath.slots import Slots
from rewardlm.stream import changes_of
from rewardlm.trunk import cache_argument, has_window
from rewardlm.views import Views, views_of

# Models whose layers differ in sizes and biases alone, and the modules that they are made of.
_FAMILY: dict[type, set[type]] = {
    getattr(of, f"{name}Model"): {
        *(getattr(of, name + part) for part in ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm")),
        getattr(of, f"{name}RotaryEmbedding"),
        nn.Embedding,
        nn.ModuleList,
        type(ACT2FN["silu"]),
    }
    for name, of in (("Llama", llama), ("Mistral", mistral), ("Qwen2", qwen2))
}
# Bytes: with larger models memory is scarcer than time, and products take longer than the calls between them.
_LARGEST_COPY = 4 << 30


def is_plain_llama(body: Any) -> bool:
    """Whether ``body`` can do without its modules: hooked, quantised or otherwise adapted ones are needed.

    Warns of an adapter on something else than a linear map (on the embeddings, say), or of one that is more than
    W·x + s·B·A·x, because it makes everything slower.
    """
    # A model on the meta device is asked about before it is loaded.
    if type(body) not in _FAMILY or body.device.type not in ("cpu", "meta"):
        return False
    if has_window(body.config) or (body.training and body.config.attention_dropout):
        return False
    if any(map(operators.is_hooked, body.modules())):
        return False
    foreign = next(_foreign(body, _FAMILY[type(body)]), None)
    if foreign is None:
        return True
    name, module = foreign
    if _is_lasting_adapter(module):
        warn_once(
            body,
            f"the adapter on {name} ({type(module).__name__}) is more than a plain LoRA of a linear map: "
            f"{type(body).__name__} is run through its modules, which is slower",
        )
    return False


def _foreign(body: nn.Module, known: set[type]) -> Iterator[tuple[str, nn.Module]]:
    """Modules of ``body`` that compute something unknown here, with their names; plain maps are known."""
    left = [("", body)]
    while left:
        name, module = left.pop()
        if map_of(module) is not None and "forward" not in vars(module):
            continue
        if type(module) not in known or "forward" in vars(module):
            yield name, module
            continue
        left += [(f"{name}.{child}".lstrip("."), inner) for child, inner in module.named_children()]


def _is_lasting_adapter(module: Any) -> bool:
    """Whether ``module`` is foreign because of the kind of adapter, and not because of what is being done with it."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return True
    if not isinstance(module, BaseTunerLayer) or type(module.get_base_layer()) not in (nn.Linear, nn.Embedding):
        return False
    if type(module) is not FusedLinear:
        return True
    return any(name in module.lora_variant or module.lora_bias.get(name) for name in module.active_adapters)


def lays_out(body: Any) -> bool:
    """Whether decoding takes a copy of ``body``'s weights, laid out anew: they must fit into memory twice."""
    if not is_plain_llama(body):
        return False
    size: int = sum(parameter.nbytes for parameter in body.parameters())
    return size <= _LARGEST_COPY and agrees(
        body,
        "decoding without modules",
        partial(_stepped, body),
        adapters=True,
        instead="it decodes through its modules, which is slower",
    )


def _stepped(body: Any, rows: Tensor) -> Tensor:
    """The states of the last two tokens of ``rows`` Int[B, T] by decoding steps; the modules run the others."""
    before = rows[:, :-2]
    cache = DynamicCache()
    body(input_ids=before, use_cache=True, **{cache_argument(body): cache})
    steps = Steps(body, nn.Identity())
    slots = steps.slots()
    slots.rebuild([], 2, (cache, torch.ones_like(before), torch.arange(len(rows))))
    return torch.stack([steps.states(tokens, slots) for tokens in rows[:, -2:].t()], 1)


def signed(sin: Tensor) -> Tensor:
    """The sine of a rotary embedding with its first half's sign changed, so that the rotation needs only one roll."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], -1)


class Steps:
    """The weights of ``body`` and ``head`` as they are now, adapter included, for decoding token by token."""

    def __init__(self, body: Any, head: Any) -> None:
        self._body, self._head = body, head
        config = body.config
        views = views_of(body)
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._eps = config.rms_norm_eps
        self._layers = [
            _Layer(
                layer.input_layernorm.weight,
                _Product([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj], views),
                _Product([layer.self_attn.o_proj], views),
                layer.post_attention_layernorm.weight,
                _Product([layer.mlp.gate_proj, layer.mlp.up_proj], views),
                _Product([layer.mlp.down_proj], views),
                layer.self_attn.head_dim,
                layer.self_attn.scaling,
            )
            for layer in body.layers
        ]
        own = type(head) is nn.Linear and not operators.is_hooked(head)
        self._logits = _Product([head]) if own else head

    def slots(self) -> Slots:
        """A store without rows."""
        return Slots(len(self._layers), self._body.device, whole=True)

    def states(self, tokens: Int[Tensor, "B"], slots: Slots) -> Float[Tensor, "B H"]:
        """The trunk's last states for one more token a row; ``slots`` grow by it."""
        mask, positions = slots.advance()
        x = embedding(tokens, self._body.embed_tokens.weight)
        cos, sin = self._body.rotary_emb(x, positions)
        sin = signed(sin)
        bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(mask == 0, -torch.inf)[:, None, None]
        changed = changes_of(self._body)
        for number, (layer, store) in enumerate(zip(self._layers, slots.layers, strict=True)):
            x = changed((number, "in"), x)
            mixed = layer.mix(rms_norm(x, x.shape[-1:], layer.norm, self._eps))
            attended = self._attend(layer, mixed, cos, sin, bias, store)
            x = x + changed((number, "attention"), layer.out(attended))
            inner = layer.gate_up(rms_norm(x, x.shape[-1:], layer.mlp_norm, self._eps))
            gate, up = inner.chunk(2, -1)
            x = x + changed((number, "mlp"), layer.down(silu(gate).mul_(up)))
        x = changed((len(self._layers), "in"), x)
        return rms_norm(x, x.shape[-1:], self._body.norm.weight, self._eps)

    def logits(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """What the head makes of ``states``."""
        found: Tensor = self._logits(states)
        return found

    def _attend(self, layer: _Layer, mixed: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, store: Any) -> Tensor:
        """``mixed`` Float[B, (heads + 2·kv heads)·D]: queries, keys and values side by side → Float[B, heads·D]."""
        rows, width = len(mixed), layer.head_width
        turned, values = torch.split(mixed.view(rows, -1, width), [self._heads + self._kv_heads, self._kv_heads], 1)
        turned = (turned * cos).add_(turned.roll(width // 2, -1) * sin)
        queries, keys = torch.split(turned, [self._heads, self._kv_heads], 1)
        keys, values = store.update(keys[:, :, None], values[:, :, None])
        # The heads that share keys and values stand side by side, as query positions would.
        grouped = queries.view(rows, self._kv_heads, -1, width)
        attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=layer.scale)
        return attended.reshape(rows, -1)


class _Product:
    """W·x + b of linear maps that read the same x, side by side, with their adapters; those of ``views`` by row."""

    def __init__(self, modules: Sequence[Any], views: Views | None = None) -> None:
        maps = [found for found in map(map_of, modules) if found is not None]
        weight = torch.cat([one.base.weight for one in maps]) if len(maps) > 1 else maps[0].base.weight
        self._bias = None
        if any(one.base.bias is not None for one in maps):
            self._bias = torch.cat(
                [weight.new_zeros(one.base.out_features) if one.base.bias is None else one.base.bias for one in maps]
            )
        self._down = self._up = None
        downs = [one.down for one in maps if one.down is not None]
        if downs:
            down, up = torch.cat(downs), _side_by_side(maps)
            if weight.dtype == torch.float32:
                weight = torch.addmm(weight, up, down)
            else:
                # A sum in half precision would round an early, small adapter away.
                self._down, self._up = down.to(weight.dtype), up.t().to(weight.dtype).contiguous()
        self._of_views: _OfViews | None = None
        if views is not None:
            self._of_views = _OfViews.found(modules, views, weight.dtype)
        self._packs = operators.packs(weight.dtype)
        self._weight = operators.packed(weight) if self._packs else weight

    def __call__(self, x: Tensor) -> Tensor:
        multiply = operators.packed_linear if self._packs else linear
        result = multiply(x, self._weight, self._bias)
        if self._of_views is not None:
            self._of_views.add(x, result)
        if self._down is None or self._up is None:
            return result
        return result.addmm_(linear(x, self._down), self._up)


@dataclass
class _Layer:
    norm: Tensor
    mix: _Product
    out: _Product
    mlp_norm: Tensor
    gate_up: _Product
    down: _Product
    head_width: int
    scale: float


@dataclass
class _OfViews:
    """The adapters of views ``first`` to the last: ``down`` Float[views, in, r] and ``up`` Float[views, r, out], for
    some maps side by side. A view without one, or with a smaller one, has zeros there."""

    first: int
    number: int
    down: Tensor
    up: Tensor

    @classmethod
    def found(cls, modules: Sequence[Any], views: Views, dtype: torch.dtype) -> _OfViews | None:
        """What these modules have, or None."""
        parts: list[tuple[Tensor, Tensor] | None] = []
        for name in views.adapters:
            owns = [own for module in modules if (own := map_with(module, name)) is not None]
            downs = [own.down for own in owns if own.down is not None]
            parts.append((torch.cat(downs).t(), _side_by_side(owns).t()) if downs else None)
        some = [part for part in parts if part is not None]
        if not some:
            return None
        first = next(view for view, part in enumerate(parts) if part is not None)
        down, up = some[0]
        n_views, rank = len(parts) - first, max(part[0].shape[1] for part in some)
        found = cls(
            first,
            len(parts),
            down.new_zeros(n_views, len(down), rank, dtype=dtype),
            up.new_zeros(n_views, rank, up.shape[1], dtype=dtype),
        )
        for view, part in enumerate(parts[first:]):
            if part is not None:
                found.down[view, :, : part[0].shape[1]], found.up[view, : len(part[1])] = part
        return found

    def add(self, x: Float[Tensor, "N in"], result: Float[Tensor, "N out"]) -> None:
        """Into ``result``, what each row's own adapter makes of it."""
        own, sums = (
            rows.view(-1, self.number, rows.shape[-1])[:, self.first :].transpose(0, 1) for rows in (x, result)
        )
        sums.add_(torch.bmm(torch.bmm(own, self.down), self.up))


def _side_by_side(maps: Sequence[Map]) -> Tensor:
    """s·B of all maps, each for its own A: Float[Σ out, Σ r]."""
    found: Tensor = torch.block_diag(  # type: ignore[no-untyped-call]
        *(torch.zeros(one.base.out_features, 0) if one.up is None else one.up * one.scaling for one in maps)
    )
    return found
