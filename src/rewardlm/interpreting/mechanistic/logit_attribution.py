"""Who writes toxic words: direct logit attribution of every head and MLP, and the logit lens after every layer.

The final norm is linear once its scale is held at the value that it had, so each write to the stream has a share in any
logit. Shapes as in ``activations``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardlm.interpreting.mechanistic.activations import Trace
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.architecture import (
    adapter_factors,
    adapter_reads,
    architecture_of,
    bias_of,
    centres,
    norm_scale,
    norm_shift,
    split_heads,
    through_norm,
    weight_of,
)


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
    z, W_O u) / σ, so no write needs to be formed. Only direct effects count: what a part makes later parts do is
    counted as theirs.
    """
    arch = architecture_of(causal_lm)
    w, bias = _contrast_row(arch.head, contrast)
    u, shift = through_norm(arch.norm, w), norm_shift(arch.norm) @ w
    per_scale = 1 / norm_scale(arch.norm, found.stream[-1])
    heads, adapter_heads, attention_bias = [], [], []
    mlp, mlp_bias, adapter_mlp = [], [], []
    for z, neurons, attention_out, mlp_out in zip(
        found.head_inputs, found.neurons, arch.attention_out, arch.mlp_out, strict=True
    ):
        heads.append(torch.einsum("nhd,hd->nh", z, split_heads(weight_of(attention_out) @ u, arch.n_heads)))
        adapter_heads.append(torch.einsum("nhd,hd->nh", z, split_heads(adapter_reads(attention_out, u), arch.n_heads)))
        attention_bias.append(per_scale.new_full(per_scale.shape, float(bias_of(attention_out, u) @ u)))
        mlp.append(torch.einsum("nf,f->n", neurons, weight_of(mlp_out) @ u))
        adapter_mlp.append(torch.einsum("nf,f->n", neurons, adapter_reads(mlp_out, u)))
        mlp_bias.append(per_scale.new_full(per_scale.shape, float(bias_of(mlp_out, u) @ u)))
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
    arch = architecture_of(causal_lm)
    u = through_norm(arch.norm, _contrast_row(arch.head, contrast)[0])
    return writes @ u / norm_scale(arch.norm, found.stream[-1])


@torch.no_grad()
def contrast_direction(causal_lm: Any, contrast: Contrast) -> Tensor:
    """u of ``direct_attribution``, Float[M]: a write v changes the contrast's score by v·u over the norm's scale."""
    arch = architecture_of(causal_lm)
    return through_norm(arch.norm, _contrast_row(arch.head, contrast)[0])


@torch.no_grad()
def vocabulary_covariance(causal_lm: Any) -> Tensor:
    """C Float[M, M], with which v·C·v is the variance over the vocabulary of the logits that a write v adds, times the
    norm's scale squared."""
    arch = architecture_of(causal_lm)
    rows = weight_of(arch.head).T * arch.norm.weight.float()
    if centres(arch.norm):
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
    arch = architecture_of(causal_lm)
    weight_type = next(arch.norm.parameters()).dtype
    rows: dict[str, list[Tensor]] = {"score": [], "target_logprob": [], "entropy": [], "kl": []}
    last = arch.head(arch.norm(stream[-1].to(weight_type))).float().log_softmax(-1)
    for states in stream:
        logits = arch.head(arch.norm(states.to(weight_type))).float()
        logprobs = logits.log_softmax(-1)
        rows["score"].append(contrast.of(logits))
        rows["target_logprob"].append(logprobs.gather(-1, targets[:, None]).squeeze(-1))
        rows["entropy"].append(-(logprobs.exp() * logprobs).sum(-1))
        rows["kl"].append((last.exp() * (last - logprobs)).sum(-1))
    return Lens(**{name: torch.stack(values) for name, values in rows.items()})


def _contrast_row(head: Any, contrast: Contrast) -> tuple[Tensor, float]:
    """The contrast as one row of the head, Float[M], and its bias."""
    weight = weight_of(head)
    for scaling, a, b in adapter_factors(head):
        weight = weight + scaling * (b @ a).T
    bias = bias_of(head, weight[0])
    return contrast.of(weight), float(contrast.of(bias))
