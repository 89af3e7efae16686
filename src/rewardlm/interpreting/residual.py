"""The residual stream, written out: what embedding, heads, MLPs and the adapter each add to it, and to the logits.

A transformer's layers only ever add to a stream of vectors, so the stream before the final norm is a sum of writes
(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). With z what the attention's output matrix
reads and m what the MLP's reads,

    stream[n, :] = embedding[n, :]
                 + Σ_l Σ_h einsum("n d, d m -> n m", z[l, n, h], W_O[l, h]) + b_O[l]      every head, and the bias
                 + Σ_l     einsum("n f, f m -> n m", m[l, n],    W_D[l])    + b_D[l]      every MLP, and the bias
                 + Σ_l     (alpha / r)·B·A·z[l, n] + (alpha / r)·B·A·m[l, n]              what LoRA wrote itself

The norm after it is linear once its scale is held at the value that it had, so each write has a share in any logit.
One forward pass and hooks, on the model as it stands: plain, or with an unmerged adapter. Shapes: N positions, L
layers, H heads of width D, M the model's width, F the MLP's, V the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rewardlm.errors import ModelError
from rewardlm.models.logprobs import body_and_head, pack, predicting_mask
from rewardlm.models.lora import scaled


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
class Layout:
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


def layout_of(causal_lm: Any) -> Layout:
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
    return Layout(
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


@dataclass(frozen=True)
class Batch:
    """B sequences of prompt and response, right-padded to T: ``tokens`` Int[B, T], ``mask`` Bool[B, T] (real tokens),
    ``where`` Bool[B, T] (the N positions that the response's tokens follow from), ``targets`` Int[N] (those tokens),
    ``row`` Int[N] (whose they are)."""

    tokens: Tensor
    mask: Tensor
    where: Tensor
    targets: Tensor
    row: Tensor


def batch_of(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Token ids as a batch. Raises ModelError where a prompt has no tokens."""
    packed = pack(prompts, responses, device)
    n_shared = len(packed.prefix)
    start = packed.prefix.expand(len(prompts), -1)
    tokens = torch.cat([start, packed.tokens], 1)
    mask = torch.cat([packed.mask.new_ones(len(prompts), n_shared), packed.mask], 1)
    response = torch.cat([packed.mask.new_zeros(len(prompts), n_shared), packed.response_mask], 1)
    where = predicting_mask(response)
    return Batch(tokens, mask, where, tokens[response], where.nonzero()[:, 0])


@dataclass(frozen=True)
class Trace:
    """What one forward pass left at N positions, in float32.

    ``stream`` Float[L+1, N, M]: before each layer, and what the final norm reads; ``stream[0]`` is the embedding's
    write, positions and the embedding's own norm or scale included. ``head_inputs`` Float[L, N, H, D]: z.
    ``neurons`` Float[L, N, F]: the activations that the MLP's output matrix reads. ``attention_writes``,
    ``mlp_writes`` Float[L, N, M]: a sublayer's whole write. ``final`` Float[N, M]: what the model's head reads.
    ``patterns`` Float[L, N, H, T], where asked for: how much each position attends to which.
    ``adapter`` where asked for: by module, as ``self_attn.q_proj``, its write Float[L, N, M]; see ``trace``.
    """

    stream: Tensor
    head_inputs: Tensor
    neurons: Tensor
    attention_writes: Tensor
    mlp_writes: Tensor
    final: Tensor
    patterns: Tensor | None
    adapter: dict[str, Tensor] | None


@torch.no_grad()
def trace(causal_lm: Any, batch: Batch, *, patterns: bool = False, adapter: bool = False) -> Trace:
    """Run the model once on ``batch`` and keep what its parts read and wrote at ``batch.where``.

    ``patterns`` keeps the attention too, which needs transformers' plain implementation of it.
    ``adapter`` adds what the active adapter wrote in every layer, by module. A module that writes into the stream
    (W_O, W_D) wrote (alpha / r)·B·A·x, exactly. The others only change what their sublayer computes, so theirs is a
    difference: the sublayer's write minus its write with that module's adapter off and the same input. ``attention``
    and ``mlp`` are the whole sublayer's, all its adapters on minus all off; what modules do together is in these alone.

    Raises ModelError for a family that is not known here.
    """
    layout = layout_of(causal_lm)
    where, n_heads = batch.where, layout.n_heads
    kept: dict[str, list[Tensor]] = {
        name: [] for name in ("stream", "z", "neurons", "attention", "mlp", "final", "patterns")
    }
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str, states: Tensor) -> None:
        kept[name].append(_at(states, where))

    def sees(name: str) -> Any:
        return lambda module, args, kwargs: keep(name, _first(args, kwargs))

    def read_and_wrote(read: str, wrote: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            keep(read, args[0])
            keep(wrote, output)

        return hook

    def attends(module: Any, args: Any, output: tuple[Tensor, Tensor | None]) -> None:
        weights = output[1]
        if weights is None:
            raise ModelError(f"{type(module).__name__} gives no attention weights: ask without patterns")
        keep("patterns", weights.transpose(1, 2))

    def called(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = (args, kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(causal_lm))
        if patterns:
            stack.enter_context(plain_attention(causal_lm))

        def hooked(handle: Any) -> None:
            stack.callback(handle.remove)

        for index, layer in enumerate(layout.layers):
            hooked(layer.register_forward_pre_hook(sees("stream"), with_kwargs=True))
            hooked(layout.attention_out[index].register_forward_hook(read_and_wrote("z", "attention")))
            hooked(layout.mlp_out[index].register_forward_hook(read_and_wrote("neurons", "mlp")))
            if patterns:
                hooked(layout.attention[index].register_forward_hook(attends))
            if adapter:
                for module in (layout.attention[index], layout.mlp[index]):
                    hooked(module.register_forward_pre_hook(called, with_kwargs=True))
        hooked(layout.norm.register_forward_pre_hook(sees("stream"), with_kwargs=True))
        keep("final", layout.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0])
    z = torch.stack(kept["z"])
    found = Trace(
        stream=torch.stack(kept["stream"]),
        head_inputs=z.reshape(*z.shape[:-1], n_heads, -1),
        neurons=torch.stack(kept["neurons"]),
        attention_writes=torch.stack(kept["attention"]),
        mlp_writes=torch.stack(kept["mlp"]),
        final=kept["final"][0],
        patterns=torch.stack(kept["patterns"]) if patterns else None,
        adapter=None,
    )
    if not adapter:
        return found
    with evaluating(causal_lm):
        return replace(found, adapter=_adapter_writes(layout, found, where, calls))


def head_writes(layout: Layout, found: Trace, layer: int) -> Tensor:
    """What each head's base weights wrote in ``layer``: Float[N, H, M], einsum("n h d, h d m -> n h m", z, W_O)."""
    w_o = _by_head(weight_of(layout.attention_out[layer]), layout.n_heads)
    return torch.einsum("nhd,hdm->nhm", found.head_inputs[layer], w_o)


@dataclass(frozen=True)
class Contrast:
    """Two sets of token ids: the score is the mean logit of ``toxic`` minus the mean logit of ``neutral``."""

    toxic: tuple[int, ...]
    neutral: tuple[int, ...]

    def of(self, logits: Tensor) -> Tensor:
        """The score of logits Float[..., V]: Float[...]."""
        return logits[..., list(self.toxic)].mean(-1) - logits[..., list(self.neutral)].mean(-1)


@dataclass(frozen=True)
class LogitShares:
    """Shares of each part in the contrast's score, which add up to it: Float[N], with L and H where a part has them.

    ``heads`` and ``adapter_heads`` Float[L, N, H], ``attention_bias``, ``mlp``, ``mlp_bias``, ``adapter_mlp``
    Float[L, N]. ``constant`` is what reads no part of the stream: the final norm's shift and the head's bias.
    ``total`` Float[N] is the score by the model itself.
    """

    embedding: Tensor
    heads: Tensor
    attention_bias: Tensor
    adapter_heads: Tensor
    mlp: Tensor
    mlp_bias: Tensor
    adapter_mlp: Tensor
    constant: Tensor
    total: Tensor

    def summed(self) -> Tensor:
        """All shares together, Float[N]: ``total`` but for rounding."""
        by_layer = self.heads.sum(-1) + self.adapter_heads.sum(-1) + self.attention_bias
        by_layer = by_layer + self.mlp + self.mlp_bias + self.adapter_mlp
        return self.embedding + by_layer.sum(0) + self.constant


@torch.no_grad()
def direct_attribution(causal_lm: Any, found: Trace, contrast: Contrast) -> LogitShares:
    """Direct logit attribution (Elhage et al. 2021; nostalgebraist's logit lens, part by part).

    With w = mean_toxic W_U[t] - mean_neutral W_U[t], g and s the final norm's gain and shift, and σ(n) the scale that
    it had at position n, the score is (Σ parts)·u / σ(n) + s·w + bias, where u = g ⊙ w, less its mean if the norm
    subtracts the stream's (LayerNorm does, RMSNorm doesn't). A head's share is then einsum("n h d, h d -> n h",
    z, W_O u) / σ, so no write needs to be formed. Direct effects alone: what a part makes later parts do is theirs.
    """
    layout = layout_of(causal_lm)
    w, bias = _contrast_row(layout.head, contrast)
    u, shift = through_norm(layout.norm, w), _norm_shift(layout.norm) @ w
    per_scale = 1 / _norm_scale(layout.norm, found.stream[-1])
    heads, adapter_heads, attention_bias = [], [], []
    mlp, mlp_bias, adapter_mlp = [], [], []
    for z, neurons, attention_out, mlp_out in zip(
        found.head_inputs, found.neurons, layout.attention_out, layout.mlp_out, strict=True
    ):
        heads.append(torch.einsum("nhd,hd->nh", z, _by_head(weight_of(attention_out) @ u, layout.n_heads)))
        adapter_heads.append(torch.einsum("nhd,hd->nh", z, _by_head(_adapter_reads(attention_out, u), layout.n_heads)))
        attention_bias.append(per_scale.new_full(per_scale.shape, float(_bias_of(attention_out, u) @ u)))
        mlp.append(torch.einsum("nf,f->n", neurons, weight_of(mlp_out) @ u))
        adapter_mlp.append(torch.einsum("nf,f->n", neurons, _adapter_reads(mlp_out, u)))
        mlp_bias.append(per_scale.new_full(per_scale.shape, float(_bias_of(mlp_out, u) @ u)))
    by_head = per_scale[None, :, None]
    return LogitShares(
        embedding=found.stream[0] @ u * per_scale,
        heads=torch.stack(heads) * by_head,
        attention_bias=torch.stack(attention_bias) * per_scale,
        adapter_heads=torch.stack(adapter_heads) * by_head,
        mlp=torch.stack(mlp) * per_scale,
        mlp_bias=torch.stack(mlp_bias) * per_scale,
        adapter_mlp=torch.stack(adapter_mlp) * per_scale,
        constant=per_scale.new_full(per_scale.shape, float(shift + bias)),
        total=found.final @ w + bias,
    )


@torch.no_grad()
def share_of_writes(causal_lm: Any, found: Trace, writes: Tensor, contrast: Contrast) -> Tensor:
    """Direct share in the contrast's score of any writes Float[..., N, M], at the trace's own scales: Float[..., N]."""
    layout = layout_of(causal_lm)
    u = through_norm(layout.norm, _contrast_row(layout.head, contrast)[0])
    return writes @ u / _norm_scale(layout.norm, found.stream[-1])


@torch.no_grad()
def contrast_direction(causal_lm: Any, contrast: Contrast) -> Tensor:
    """u of ``direct_attribution``, Float[M]: a write v changes the contrast's score by v·u over the norm's scale."""
    layout = layout_of(causal_lm)
    return through_norm(layout.norm, _contrast_row(layout.head, contrast)[0])


@torch.no_grad()
def vocabulary_covariance(causal_lm: Any) -> Tensor:
    """C Float[M, M], with which v·C·v is the variance over the vocabulary of the logits that a write v adds, times the
    norm's scale squared."""
    layout = layout_of(causal_lm)
    rows = weight_of(layout.head).T * layout.norm.weight.float()
    if _centres(layout.norm):
        rows = rows - rows.mean(1, keepdim=True)
    rows = rows - rows.mean(0)
    return torch.einsum("vm,vn->mn", rows, rows) / len(rows)


@dataclass(frozen=True)
class Lens:
    """What the head would say if the model ended after each layer (nostalgebraist 2020), Float[L+1, N] each.

    ``score`` is the contrast's, ``target_logprob`` that of the token that came (nats), ``entropy`` in nats,
    ``kl`` the final distribution's divergence from it, KL(final ‖ layer), in nats: 0 in the last row.
    """

    score: Tensor
    target_logprob: Tensor
    entropy: Tensor
    kl: Tensor


@torch.no_grad()
def logit_lens(causal_lm: Any, stream: Tensor, targets: Tensor, contrast: Contrast) -> Lens:
    """The final norm and the head on every layer's stream Float[L+1, N, M], with ``targets`` Int[N].

    Unlike direct attribution, each layer is normed by its own scale.
    """
    layout = layout_of(causal_lm)
    weight_type = next(layout.norm.parameters()).dtype
    rows: dict[str, list[Tensor]] = {"score": [], "target_logprob": [], "entropy": [], "kl": []}
    last = layout.head(layout.norm(stream[-1].to(weight_type))).float().log_softmax(-1)
    for states in stream:
        logits = layout.head(layout.norm(states.to(weight_type))).float()
        logprobs = logits.log_softmax(-1)
        rows["score"].append(contrast.of(logits))
        rows["target_logprob"].append(logprobs.gather(-1, targets[:, None]).squeeze(-1))
        rows["entropy"].append(-(logprobs.exp() * logprobs).sum(-1))
        rows["kl"].append((last.exp() * (last - logprobs)).sum(-1))
    return Lens(**{name: torch.stack(values) for name, values in rows.items()})


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


def _adapter_writes(
    layout: Layout,
    found: Trace,
    where: Tensor,
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]],
) -> dict[str, Tensor]:
    """See ``trace``: the adapter's writes by module, Float[L, N, M]; a layer without that module wrote nothing."""
    writes: dict[str, list[Tensor]] = {}
    nothing = torch.zeros_like(found.attention_writes[0])

    def add(name: str, index: int, write: Tensor) -> None:
        rows = writes.setdefault(name, [nothing] * len(layout.layers))
        rows[index] = write

    def without(module: Any, out: Any, switched_off: Iterable[LoraLayer]) -> Tensor:
        # What ``out`` writes, since Bloom's sublayers give back the stream with their write added.
        wrote: list[Tensor] = []
        handle = out.register_forward_hook(lambda _, __, output: wrote.append(_at(output, where)))
        args, kwargs = calls[module]
        try:
            with scaled(switched_off, 0.0):
                module(*args, **kwargs)
        finally:
            handle.remove()
        return wrote[0]

    parts = (
        ("attention", layout.attention, layout.attention_out, found.attention_writes, found.head_inputs.flatten(-2)),
        ("mlp", layout.mlp, layout.mlp_out, found.mlp_writes, found.neurons),
    )
    for part, sublayers, outs, whole, reads in parts:
        for index, (sublayer, out) in enumerate(zip(sublayers, outs, strict=True)):
            others = [] if part == "attention" else [*adapter_layers(layout.attention[index]).values()]
            within = {
                name: layer
                for name, layer in adapter_layers(sublayer).items()
                if _is_on(layer) and not any(layer is other for other in others)
            }
            if not within:
                continue
            path = next(name for name, module in layout.layers[index].named_modules() if module is sublayer)
            for name, layer in within.items():
                if layer is out:
                    write = torch.einsum("ni,im->nm", reads[index], _adapter_weight(layer))
                else:
                    write = whole[index] - without(sublayer, out, [layer])
                add(f"{path}.{name}".lstrip("."), index, write)
            add(part, index, whole[index] - without(sublayer, out, within.values()))
    return {name: torch.stack(rows) for name, rows in writes.items()}


def _is_on(layer: LoraLayer) -> bool:
    return not layer.disable_adapters and not layer.merged and any(a in layer.scaling for a in layer.active_adapters)


def _factors(module: Any) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(alpha / r), A Float[r, in] and B Float[out, r] of each adapter that is on; none where it is off or merged."""
    if isinstance(module, LoraLayer) and _is_on(module):
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
    for scaling, a, b in _factors(module):
        row = row + scaling * (b @ a[:, index])
    return row


def _adapter_weight(module: Any) -> Tensor:
    """(alpha / r)·(B·A)ᵀ, Float[in, out], of the adapters that are on."""
    weight = torch.zeros(module.in_features, module.out_features, device=next(module.parameters()).device)
    for scaling, a, b in _factors(module):
        weight = weight + scaling * (b @ a).T
    return weight


def _adapter_reads(module: Any, u: Tensor) -> Tensor:
    """(alpha / r)·Aᵀ·Bᵀ·u, Float[in]: what the adapter's write along ``u`` is, by input."""
    width = weight_of(module).shape[0]
    reads = u.new_zeros(width)
    for scaling, a, b in _factors(module):
        reads = reads + scaling * (a.T @ (b.T @ u))
    return reads


def _bias_of(module: Any, like: Tensor) -> Tensor:
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    return torch.zeros_like(like) if base.bias is None else base.bias.float()


def _by_head(weight: Tensor, n_heads: int) -> Tensor:
    """Float[H·D, …] → Float[H, D, …]."""
    return weight.reshape(n_heads, weight.shape[0] // n_heads, *weight.shape[1:])


def _contrast_row(head: Any, contrast: Contrast) -> tuple[Tensor, float]:
    """The contrast as one row of the head, Float[M], and its bias."""
    weight = weight_of(head)
    for scaling, a, b in _factors(head):
        weight = weight + scaling * (b @ a).T
    bias = _bias_of(head, weight[0])
    return contrast.of(weight), float(contrast.of(bias))


def through_norm(norm: Any, w: Tensor) -> Tensor:
    """u Float[M] with (norm's input)·u / scale + shift·w = (norm's output)·w, for w Float[M]."""
    u: Tensor = norm.weight.float() * w
    return u - u.mean() if _centres(norm) else u


def normed_direction(norm: Any, v: Tensor) -> Tensor:
    """What the norm makes of a part v Float[M] of its input, times its scale: gain ⊙ v, without v's mean in LayerNorm.

    The transpose of ``through_norm``: normed_direction(v)·w = v·through_norm(w).
    """
    seen: Tensor = norm.weight.float() * (v - v.mean() if _centres(norm) else v)
    return seen


def _norm_shift(norm: Any) -> Tensor:
    bias: Tensor | None = getattr(norm, "bias", None)
    return torch.zeros_like(norm.weight).float() if bias is None else bias.float()


def _norm_scale(norm: Any, states: Tensor) -> Tensor:
    """What the norm divides Float[N, M] by: Float[N]."""
    if _centres(norm):
        return (states.var(-1, unbiased=False) + float(norm.eps)).sqrt()
    return (states.square().mean(-1) + float(norm.variance_epsilon)).sqrt()


def _centres(norm: Any) -> bool:
    return isinstance(norm, nn.LayerNorm)


def _at(states: Tensor, where: Tensor) -> Tensor:
    """States of all positions, whose rows OPT's MLP strings together, at ``where`` alone, Float[N, …], float32.

    Indexing by a mask copies: Falcon adds the attention's write to its MLP's in place.
    """
    return (states.reshape(*where.shape, -1) if states.dim() == 2 else states)[where].float()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


@contextlib.contextmanager
def evaluating(causal_lm: Any) -> Iterator[None]:
    """Inside, no module drops anything out; each is then in the mode that it was found in."""
    training = [module for module in causal_lm.modules() if module.training]
    try:
        causal_lm.eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def plain_attention(causal_lm: Any) -> Iterator[None]:
    """Inside, attention is computed step by step, so that its weights can be seen: fused kernels never form them."""
    config = causal_lm.config
    before = config._attn_implementation
    try:
        config._attn_implementation = "eager"
        yield
    finally:
        config._attn_implementation = before
