"""The losses and estimators of policy-gradient fine-tuning: pure functions of tensors, torch alone.

Shapes: B answers, right-padded to R tokens. Every mask is True where the token is real; what stands under False never
counts. Sums are divided by ``normaliser``, the number of real tokens of the whole minibatch, so that a minibatch
cut into microbatches has the same gradient as one that is not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log q of the sampled tokens: unbiased for KL(p ‖ q), of either sign. Any shape."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(r - 1) - log r with r = q / p: unbiased for KL(p ‖ q), never negative (Schulman 2020, "Approximating KL")."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def real(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask`` is True, 0 elsewhere. A product would let NaN through."""
    return torch.where(mask.bool(), values, torch.zeros_like(values))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over True positions; 0 where there are none."""
    return real(values, mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over True positions, 0 elsewhere. With fewer than two it only takes the mean off."""
    mean = masked_mean(values, mask)
    centred = real(values - mean, mask)
    count = mask.sum()
    if count < 2:
        return centred
    variance = centred.square().sum() / (count - 1)
    return centred / (variance + 1e-8).sqrt()


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_range: float, normaliser: float | Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), summed over N tokens and divided by ``normaliser``.

    All inputs Float[N]. Returns the loss and sums: how many ratios were clipped, and the ratio itself.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range).sum()
    return losses.sum() / normaliser, {"clipped": outside, "ratio": ratio.detach().sum()}


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None, normaliser: float | Tensor
) -> Tensor:
    """Half the squared error, all Float[N]. With ``clip_range``, in the values' units, the worse of it and that of
    values held within so much of the old ones, as in PPO's reference implementation.
    """
    if clip_range is None:
        return 0.5 * (values - returns).square().sum() / normaliser
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    worst = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * worst.sum() / normaliser
