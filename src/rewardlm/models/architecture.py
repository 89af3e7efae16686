"""The parts of a transformer by what they do, and their weights, with an adapter's. Families name them differently.

``architecture_of`` is the one place that knows how families name layers, norms and output matrices. The rest reads a
part's weight, bias or LoRA factors from what it gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rewardlm.errors import ModelError
from rewardlm.models.logprobs import body_and_head


@dataclass(frozen=True)
class _Names:
    """Where a family keeps its parts: layers and norm in the trunk, attention and MLP in a layer (an MLP that is no
    module of its own is the layer: ""), and in these what they write by."""

    layers: str
    norm: str
    attention: str
    attention_out: str
    mlp: str
    mlp_out: str


_LLAMA = _Names("layers", "norm", "self_attn", "o_proj", "mlp", "down_proj")
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _Names("h", "ln_f", "attn", "c_proj", "mlp", "c_proj"),
    "gpt_neox": _Names("layers", "final_layer_norm", "attention", "dense", "mlp", "dense_4h_to_h"),
    "falcon": _Names("h", "ln_f", "self_attention", "dense", "mlp", "dense_4h_to_h"),
    "bloom": _Names("h", "ln_f", "self_attention", "dense", "mlp", "dense_4h_to_h"),
    "gpt_neo": _Names("h", "ln_f", "attn", "attention.out_proj", "mlp", "c_proj"),
    "opt": _Names("decoder.layers", "decoder.final_layer_norm", "self_attn", "out_proj", "", "fc2"),
}


@dataclass(frozen=True)
class Architecture:
    """A model's parts by what they do, whatever its family calls them. ``attention_out[l]`` is W_O of layer l,
    ``mlp_out[l]`` is W_D; a part with an adapter on it is PEFT's layer around it."""

    body: Any
    head: Any
    norm: Any
    layers: list[Any]
    attention: list[Any]
    attention_out: list[Any]
    mlp: list[Any]
    mlp_out: list[Any]
    n_heads: int


def architecture_of(causal_lm: Any) -> Architecture:
    """The parts of a transformers model (inside of PEFT's wrapper). Raises ModelError for a family not known here, and
    for one that norms its stream after each write (OPT-350m)."""
    kind = causal_lm.config.model_type
    names = _FAMILIES.get(kind)
    if names is None:
        raise ModelError(
            f"the residual stream of a {kind!r} model can't be taken apart: expected one of {', '.join(_FAMILIES)}"
        )
    body, head = body_and_head(causal_lm)
    layers = list(body.get_submodule(names.layers))
    attention = [layer.get_submodule(names.attention) for layer in layers]
    mlp = [layer.get_submodule(names.mlp) for layer in layers]
    try:
        norm = body.get_submodule(names.norm)
    except AttributeError:
        raise ModelError(
            f"the residual stream of this {kind!r} model can't be taken apart: it has no final norm, so writes are "
            "normed one after another and don't add up"
        ) from None
    return Architecture(
        body=body,
        head=head,
        norm=norm,
        layers=layers,
        attention=attention,
        attention_out=[module.get_submodule(names.attention_out) for module in attention],
        mlp=mlp,
        mlp_out=[module.get_submodule(names.mlp_out) for module in mlp],
        n_heads=int(causal_lm.config.num_attention_heads),
    )


def weight_of(module: Any) -> Tensor:
    """The base weight of a linear module as Float[in, out] in float32, whether stored so (GPT-2) or transposed.

    A quantised module's is what it does to the unit vectors.
    """
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    weight: Tensor = base.weight
    if not weight.is_floating_point():
        unit = torch.eye(base.in_features, device=weight.device)
        seen: Tensor = base(unit) - base(torch.zeros_like(unit[:1]))
        return seen.float()
    return weight.float() if isinstance(base, Conv1D) else weight.float().T


def adapter_layers(module: Any) -> dict[str, LoraLayer]:
    """The LoRA layers below ``module`` by their path. Raises ModelError if one is no plain LoRA."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        if layer.lora_variant or any(layer.lora_bias.values()):
            raise ModelError(
                f"the adapter on {name} is a variant of LoRA with more than (alpha / r)·B·A: not supported"
            )
    return layers


def adapter_is_on(layer: LoraLayer) -> bool:
    """Whether the layer adds an adapter's part of its own: not disabled, and not merged into the weight."""
    return not layer.disable_adapters and not layer.merged and any(a in layer.scaling for a in layer.active_adapters)


def adapter_factors(module: Any) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(alpha / r), A Float[r, in] and B Float[out, r] of each adapter that is on; none where it is off or merged."""
    if isinstance(module, LoraLayer) and adapter_is_on(module):
        adapter_layers(module)
        for name in module.active_adapters:
            if name in module.scaling:
                yield (
                    float(module.scaling[name]),
                    module.lora_A[name].weight.float(),
                    module.lora_B[name].weight.float(),
                )


def adapter_row(module: Any, index: int) -> Tensor:
    """(alpha / r)·B·A[:, index], Float[out]: what the adapters that are on add to a row of ``weight_of(module)``."""
    row = torch.zeros(module.out_features if isinstance(module, LoraLayer) else weight_of(module).shape[1])
    row = row.to(next(module.parameters()).device)
    for scaling, a, b in adapter_factors(module):
        row = row + scaling * (b @ a[:, index])
    return row


def adapter_weight(module: Any) -> Tensor:
    """(alpha / r)·(B·A)ᵀ, Float[in, out], of the adapters that are on."""
    weight = torch.zeros(module.in_features, module.out_features, device=next(module.parameters()).device)
    for scaling, a, b in adapter_factors(module):
        weight = weight + scaling * (b @ a).T
    return weight


def adapter_reads(module: Any, u: Tensor) -> Tensor:
    """(alpha / r)·Aᵀ·Bᵀ·u, Float[in]: what the adapter's write along ``u`` is, by input."""
    width = weight_of(module).shape[0]
    reads = u.new_zeros(width)
    for scaling, a, b in adapter_factors(module):
        reads = reads + scaling * (a.T @ (b.T @ u))
    return reads


def bias_of(module: Any, like: Tensor) -> Tensor:
    """The base's bias in float32; zeros ``like`` the given vector where it has none."""
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return torch.zeros_like(like) if base.bias is None else base.bias.float()


def split_heads(weight: Tensor, n_heads: int) -> Tensor:
    """Float[H·D, …] → Float[H, D, …]."""
    return weight.reshape(n_heads, weight.shape[0] // n_heads, *weight.shape[1:])


def through_norm(norm: Any, w: Tensor) -> Tensor:
    """u Float[M] with (norm's input)·u / scale + shift·w = (norm's output)·w, for w Float[M]."""
    u: Tensor = norm.weight.float() * w
    return u - u.mean() if centres(norm) else u


def normed_direction(norm: Any, v: Tensor) -> Tensor:
    """What the norm makes of a part v Float[M] of its input, times its scale: gain ⊙ v, without v's mean in LayerNorm.

    The transpose of ``through_norm``: normed_direction(v)·w = v·through_norm(w).
    """
    seen: Tensor = norm.weight.float() * (v - v.mean() if centres(norm) else v)
    return seen


def norm_shift(norm: Any) -> Tensor:
    """What the norm adds in the end, Float[M]; zeros for RMSNorm."""
    bias: Tensor | None = getattr(norm, "bias", None)
    return torch.zeros_like(norm.weight).float() if bias is None else bias.float()


def norm_scale(norm: Any, states: Tensor) -> Tensor:
    """What the norm divides Float[N, M] by: Float[N]."""
    if centres(norm):
        return (states.var(-1, unbiased=False) + float(norm.eps)).sqrt()
    return (states.square().mean(-1) + float(norm.variance_epsilon)).sqrt()


def centres(norm: Any) -> bool:
    """Whether the norm subtracts its input's mean, as LayerNorm does and RMSNorm doesn't."""
    return isinstance(norm, nn.LayerNorm)
