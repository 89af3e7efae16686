"""Every attention head of the base and of a tuned model, on the same text: where it looks, and what it writes.

A head compares by W_Q·W_Kᵀ (QK) and writes by W_V·W_O (OV); ``models.attention`` has both as einsum, equal to the
model's own attention. All of this describes; what a head causes is asked by ``patching``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardlm.interpreting.causes.pairs import TOKEN_KINDS, JudgedPair, pair_batches
from rewardlm.interpreting.causes.sites import head_outputs
from rewardlm.interpreting.findings import HeadFacts, HeadLook
from rewardlm.interpreting.mechanistic.activations import trace
from rewardlm.models.architecture import architecture_of, normed_direction, weight_of
from rewardlm.models.attention import head_weights
from rewardlm.models.load import Policy
from rewardlm.models.lora import using

# Tokens that a head is described by, and singular values of its change.
_TOKENS, _SPECTRUM = 6, 4


@dataclass(frozen=True)
class Looked:
    """One model's heads at the positions that answers' tokens are predicted from: ``look`` Float[L, H, 4], the mean
    share of attention by kind of token, and ``z`` Float[L, H, D], the mean of what W_O reads."""

    look: Tensor
    z: Tensor


@torch.no_grad()
def read_heads(policy: Policy, adapter: str, pairs: Sequence[JudgedPair], batch_tokens: int) -> list[HeadFacts]:
    """All heads, layer by layer, on both answers of all pairs."""
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    seen, outs, moved = {}, {}, []
    for name in (None, adapter):
        with using(policy, name):
            seen[name] = looked(policy, pairs, batch_tokens)
            outs[name] = head_outputs(arch)
    for layer in range(len(arch.layers)):
        with using(policy, None):
            base = head_weights(causal_lm, layer)
        with using(policy, adapter):
            tuned = head_weights(causal_lm, layer)
        qk = product_change(base.query, base.key, tuned.query, tuned.key)
        ov = product_change(base.value, base.out.transpose(1, 2), tuned.value, tuned.out.transpose(1, 2))
        moved.append((qk, ov))
    w_u = weight_of(arch.head)
    found = []
    for layer, (qk, ov) in enumerate(moved):
        was, now = (torch.einsum("hd,hdm->hm", seen[name].z[layer], outs[name][layer]) for name in (None, adapter))
        for head in range(arch.n_heads):
            wrote = normed_direction(arch.norm, was[head]) @ w_u
            change = normed_direction(arch.norm, now[head] - was[head]) @ w_u
            found.append(
                HeadFacts(
                    layer=layer,
                    head=head,
                    base=_look(seen[None].look[layer, head]),
                    tuned=_look(seen[adapter].look[layer, head]),
                    qk_change=float(qk.size[head]),
                    ov_change=float(ov.size[head]),
                    qk_spectrum=qk.spectrum[head].tolist(),
                    ov_spectrum=ov.spectrum[head].tolist(),
                    wrote=_tokens(policy.tokenizer, wrote),
                    promotes=_tokens(policy.tokenizer, change),
                    demotes=_tokens(policy.tokenizer, -change),
                )
            )
    return found


@torch.no_grad()
def looked(policy: Policy, pairs: Sequence[JudgedPair], batch_tokens: int) -> Looked:
    """Of the model as it stands."""
    looks: list[Tensor] = []
    reads: list[Tensor] = []
    positions = 0
    for piece in pair_batches(pairs, policy.device, batch_tokens):
        found = trace(policy.causal_lm, piece.batch, patterns=True)
        assert found.patterns is not None
        looks.append(torch.einsum("lnht,ntk->lhk", found.patterns, piece.kinds[piece.batch.row]))
        reads.append(found.head_inputs.sum(1))
        positions += len(piece.batch.row)
    return Looked(torch.stack(looks).sum(0) / positions, torch.stack(reads).sum(0) / positions)


@dataclass(frozen=True)
class ProductChange:
    """How a product of two matrices changed, by head: ``size`` Float[H], ‖change‖ / ‖base's product‖ (Frobenius), and
    ``spectrum`` Float[H, 4], the shares of its largest singular values in the change's square."""

    size: Tensor
    spectrum: Tensor


def product_change(left: Tensor, right: Tensor, new_left: Tensor, new_right: Tensor) -> ProductChange:
    """Of left·rightᵀ to new_left·new_rightᵀ; all Float[H, M, D], and the products, M × M, are never formed.

    Their difference is [L', −L]·[R', R]ᵀ, whose singular values are those of the two factors' triangular parts.
    """
    change = _singular(torch.cat([new_left, -left], -1), torch.cat([new_right, right], -1))
    whole = _singular(left, right).square().sum(-1)
    squares = change.square()
    total = squares.sum(-1)
    spectrum = squares[..., :_SPECTRUM] / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    return ProductChange((total / whole.clamp(min=torch.finfo(total.dtype).tiny)).sqrt(), spectrum)


def _singular(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of left·rightᵀ, largest first; Float[H, K] for Float[H, M, K]."""
    upper = [torch.linalg.qr(side.double(), mode="r").R for side in (left, right)]
    values: Tensor = torch.linalg.svdvals(upper[0] @ upper[1].transpose(-1, -2))
    return values


def _look(shares: Tensor) -> HeadLook:
    return HeadLook(**dict(zip(TOKEN_KINDS, shares.tolist(), strict=True)))


def _tokens(tokenizer: Any, logits: Tensor) -> list[str]:
    """What a write promotes most; nothing where it is none."""
    if tokenizer is None or not bool(logits.any()):
        return []
    return [tokenizer.decode([token]) for token in logits.topk(_TOKENS).indices.tolist()]
