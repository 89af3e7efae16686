"""Attention heads by their weights: what a head compares (QK) and what it writes (OV), in every family that
``architecture`` knows.

Let x[b, t, m] be what a layer's attention reads, and R the rotation by position where a family has one (Elhage et al.
2021, "A Mathematical Framework for Transformer Circuits"):

    q[b, t, h, d]       = R einsum("btm,hmd->bthd", x, W_Q) + b_Q        k, v alike; grouped heads share W_K and W_V
    pattern[b, h, q, k] = softmax_k(scale · einsum("bqhd,bkhd->bhqk", q, k) + bias + mask)             QK
    z[b, q, h, d]       = einsum("bhqk,bkhd->bqhd", pattern, v)
    write[b, q, h, n]   = einsum("bqhd,hdn->bqhn", z, W_O)                                             OV

Shapes: B texts of T tokens, H heads of width D, M the model's width. Everything is float32, adapters that are on
included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardlm.models.architecture import adapter_weight, architecture_of, bias_of, split_heads, weight_of


@dataclass(frozen=True)
class HeadWeights:
    """One layer's heads: ``query``, ``key``, ``value`` Float[H, M, D] with biases Float[H, D], ``out`` Float[H, D, M].

    Heads that share a key and a value have equal ones here. ``scale`` multiplies q·k.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor
    out: Tensor
    scale: float


@torch.no_grad()
def head_weights(causal_lm: Any, layer: int) -> HeadWeights:
    """The heads of layer ``layer``, as the model stands. Raises ModelError for a family that is not known here."""
    arch = architecture_of(causal_lm)
    inner = _inner(arch.attention[layer])
    config, n_heads = causal_lm.config, arch.n_heads
    if hasattr(inner, "q_proj"):
        parts = [_with_bias(module) for module in (inner.q_proj, inner.k_proj, inner.v_proj)]
        width = parts[0].shape[1] // n_heads
        parts = [part.reshape(len(part), -1, width) for part in parts]
    elif hasattr(inner, "c_attn"):
        parts = [part.reshape(len(part), n_heads, -1) for part in _with_bias(inner.c_attn).chunk(3, 1)]
    else:
        parts = _unfused(_with_bias(inner.query_key_value), config, n_heads)
    # Heads first; a group's key and value come once for each of its heads.
    query, key, value = (part.repeat_interleave(n_heads // part.shape[1], 1).transpose(0, 1) for part in parts)
    out = arch.attention_out[layer]
    return HeadWeights(
        query=query[:, :-1],
        key=key[:, :-1],
        value=value[:, :-1],
        query_bias=query[:, -1],
        key_bias=key[:, -1],
        value_bias=value[:, -1],
        out=split_heads(whole_weight(out), n_heads),
        scale=_scale(inner),
    )


def whole_weight(module: Any) -> Tensor:
    """The weight of a linear module, Float[in, out], with what the adapters that are on add to it."""
    return weight_of(module) + adapter_weight(module)


@torch.no_grad()
def attention_pattern(causal_lm: Any, layer: int, weights: HeadWeights, x: Tensor, call: Mapping[str, Any]) -> Tensor:
    """How much every position attends to which, Float[B, H, T, T], by the weights alone.

    ``x`` Float[B, T, M] is what the attention of ``layer`` read, and ``call`` with what else it was called: rotations,
    ALiBi's biases and the mask, which depend on positions and not on weights.
    """
    inner = _inner(architecture_of(causal_lm).attention[layer])
    query = torch.einsum("btm,hmd->bthd", x, weights.query) + weights.query_bias
    key = torch.einsum("btm,hmd->bthd", x, weights.key) + weights.key_bias
    if hasattr(inner, "q_norm"):  # Qwen3 norms each head's
        query, key = inner.q_norm(query).float(), inner.k_norm(key).float()
    alibi, rotations = call.get("alibi"), call.get("position_embeddings")
    if rotations is not None and alibi is None:
        query, key = (_rotated(part, *rotations) for part in (query, key))
    scores = weights.scale * torch.einsum("bqhd,bkhd->bhqk", query, key)
    if alibi is not None:
        bias = alibi.float().reshape(len(x), scores.shape[1], 1, -1)
        # Falcon scales its biases together with the scores.
        scores = scores + (weights.scale * bias if causal_lm.config.model_type == "falcon" else bias)
    lowest = torch.finfo(torch.float32).min
    if getattr(inner, "attention_type", None) is not None:  # GPT-Neo keeps its window in a buffer
        scores = scores.masked_fill(~inner.bias[..., : x.shape[1], : x.shape[1]], lowest)
    mask = call.get("attention_mask")
    if mask is not None:
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, lowest)
    return scores.softmax(-1)


@torch.no_grad()
def head_writes(weights: HeadWeights, pattern: Tensor, x: Tensor) -> Tensor:
    """What each head wrote into the stream, Float[B, T, H, M], from a ``pattern`` and what was read; the output bias,
    which no head has for itself, is left out.
    """
    value = torch.einsum("bkm,hmd->bkhd", x, weights.value) + weights.value_bias
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, value)
    return torch.einsum("bqhd,hdn->bqhn", z, weights.out)


def _inner(attention: Any) -> Any:
    """The module that has the projections: GPT-Neo wraps it once more."""
    return getattr(attention, "attention", attention)


def _scale(inner: Any) -> float:
    """GPT-Neo doesn't scale."""
    return float(getattr(inner, "scaling", getattr(inner, "inv_norm_factor", 1.0)))


def _with_bias(module: Any) -> Tensor:
    """Float[M + 1, out]: the weight, and its bias as one more row."""
    weight = whole_weight(module)
    return torch.cat([weight, bias_of(module, weight[0])[None]])


def _unfused(fused: Tensor, config: Any, n_heads: int) -> list[Tensor]:
    """Queries, keys and values Float[M + 1, heads, D] from one matrix, in each family's order."""
    rows = len(fused)
    if getattr(config, "new_decoder_architecture", False):  # Falcon-40B: a group's queries, its key, its value
        grouped = fused.reshape(rows, config.num_kv_heads, n_heads // config.num_kv_heads + 2, -1)
        return [grouped[:, :, :-2].flatten(1, 2), grouped[:, :, -2], grouped[:, :, -1]]
    if getattr(config, "multi_query", False):  # Falcon-7B: all queries, one key, one value
        heads = fused.reshape(rows, n_heads + 2, -1)
        return [heads[:, :-2], heads[:, -2:-1], heads[:, -1:]]
    by_head = fused.reshape(rows, n_heads, 3, -1)
    return [by_head[:, :, 0], by_head[:, :, 1], by_head[:, :, 2]]


def _rotated(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on the first dimensions of each head, as many as there are angles."""
    turned, rest = part[..., : cos.shape[-1]], part[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    cos, sin = cos.float()[:, :, None], sin.float()[:, :, None]
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def head_rows(causal_lm: Any, layer: int) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Which outputs and inputs of a layer's attention modules belong to which head, by the module's name in it: by head
    (as ``head 3.2``), ``rows`` of what computes queries, keys and values, or ``columns`` of what the output matrix
    reads. Keys and values that several heads share are those of ``keys 3.0``.
    """
    arch = architecture_of(causal_lm)
    attention = arch.attention[layer]
    inner = _inner(attention)
    names = {id(module): name for name, module in attention.named_modules()}
    n_heads = arch.n_heads
    found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}

    def add(module: Any, side: str, places: Tensor) -> None:
        """``places`` Int[heads, D]: of as many heads as there are, or of groups that share them."""
        heads = len(places)
        kind = "head" if heads == n_heads else "keys"
        rows = found.setdefault(names[id(module)], {})
        for number, own in enumerate(places.tolist()):
            name = f"{kind} {layer}.{number}"
            side_, before = rows.get(name, (side, ()))
            rows[name] = (side_, (*before, *own))

    def width_of(module: Any) -> Tensor:
        return torch.arange(weight_of(module).shape[1])[None]

    if hasattr(inner, "q_proj"):
        width = weight_of(inner.q_proj).shape[1] // n_heads
        for module in (inner.q_proj, inner.k_proj, inner.v_proj):
            add(module, "rows", width_of(module).reshape(-1, width))
    elif hasattr(inner, "c_attn"):
        for part in width_of(inner.c_attn).chunk(3, 1):
            add(inner.c_attn, "rows", part.reshape(n_heads, -1))
    else:
        for part in _unfused(width_of(inner.query_key_value), causal_lm.config, n_heads):
            add(inner.query_key_value, "rows", part[0])
    out = arch.attention_out[layer]
    add(out, "columns", torch.arange(weight_of(out).shape[0]).reshape(n_heads, -1))
    return found
