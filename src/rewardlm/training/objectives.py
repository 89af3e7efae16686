"""The losses and estimators of policy-gradient fine-tuning: pure functions of tensors, torch alone.

Shapes: B answers, right-padded to R tokens; N real tokens, one answer after the other; S is any shape. Every mask is
True where the token is real; what stands under False never counts, not even NaN. Each token's weight is fixed for the
whole minibatch, so a minibatch has the same gradient when it is cut into microbatches or shared between processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_k1(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """log p - log q of the sampled tokens: an unbiased estimate of KL(p ‖ q) that may be negative."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """(r - 1) - log r with r = q / p: an unbiased estimate of KL(p ‖ q), never negative (Schulman 2020,
    "Approximating KL").
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def kl_k3_loss(
    logprobs: Float[Tensor, "*S"], old_logprobs: Float[Tensor, "*S"], ref_logprobs: Float[Tensor, "*S"]
) -> Float[Tensor, "*S"]:
    """k3 times the ratio p / p_old: a loss whose expected gradient over tokens drawn from p_old is that of KL(p ‖ q)
    (DeepSeek-AI 2025, DeepSeek-V3.2).

    k3 alone has the right mean and the wrong gradient: its derivative, 1 - q / p, doesn't know that p draws the tokens
    too, and is on average that of KL(q ‖ p).
    """
    return torch.exp(logprobs - old_logprobs) * kl_k3(logprobs, ref_logprobs)


def masked(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """``values`` where ``mask`` is True, 0 elsewhere. A product would let NaN through."""
    return torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Mean over True positions; 0 where there are none."""
    return masked(values, mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """Mean 0 and variance 1 over True positions, 0 elsewhere. With fewer than two it only subtracts the mean."""
    mean = masked_mean(values, mask)
    centred = masked(values - mean, mask)
    count = mask.sum()
    if count < 2:
        return centred
    variance = centred.square().sum() / (count - 1)
    return centred / (variance + 1e-8).sqrt()


def answer_weights(
    lengths: Sequence[int], loss_type: str, *, step_tokens: int, minibatches: int, max_new_tokens: int
) -> Float[Tensor, "B"]:
    """The weight of each answer's tokens in the minibatch's loss; ``lengths`` in tokens.

    The length of an answer that the loss leaves out is 0: it still counts as one of the B answers, but has no tokens.

    Four ways to average have a name in the field; the fifth is for ratios of whole answers:

    - ``bnpo``: over the minibatch's tokens, 1 / Σ|o| (as PPO does);
    - ``dapo``: over the step's tokens, an equal part for each minibatch (Yu et al. 2025, equation 8);
    - ``grpo``: over each answer's tokens, then over answers, 1 / (B·|o|) (Shao et al. 2024, equation 3): a token of a
      short answer counts more;
    - ``dr_grpo``: over the tokens that B answers could have, 1 / (B·max_new_tokens) (Liu et al. 2025, section 3.2);
    - ``answers``: over answers, 1 / B: for sums over an answer's tokens.
    """
    sizes = torch.tensor(lengths, dtype=torch.float64)
    if loss_type == "bnpo":
        weights = torch.full_like(sizes, 1 / float(sizes.sum()))
    elif loss_type == "dapo":
        weights = torch.full_like(sizes, minibatches / step_tokens)
    elif loss_type == "grpo":
        weights = 1 / (len(sizes) * sizes.clamp(min=1))
    elif loss_type == "dr_grpo":
        weights = torch.full_like(sizes, 1 / (len(sizes) * max_new_tokens))
    elif loss_type == "answers":
        weights = torch.full_like(sizes, 1 / len(sizes))
    else:
        raise ValueError(f"loss type {loss_type!r}: expected bnpo, dapo, grpo, dr_grpo or answers")
    return weights.float()


def importance(
    logprobs: Float[Tensor, "B R"],
    sampling_logprobs: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    cap: float,
    *,
    per_answer: bool,
) -> Float[Tensor, "B R"]:
    """π/μ of tokens that were sampled from μ (another temperature, a truncated distribution), at most ``cap``.

    Multiplied into the loss, it gives the mean under the policy π itself. The cap bounds the variance and leaves a bias
    (Espeholt et al. 2018; Yao et al. 2025, truncated importance sampling). Tokens that μ never draws stay unseen. With
    ``per_answer`` the ratio is that of whole answers, the same at each token.
    """
    log_ratio = masked(logprobs - sampling_logprobs, mask)
    if per_answer:
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    # Capped before the exponential, which an unlucky answer's sum would overflow.
    return masked(log_ratio.clamp(max=math.log(cap)).exp(), mask)


def policy_loss(
    logprobs: Float[Tensor, "N"],
    old_logprobs: Float[Tensor, "N"],
    advantages: Float[Tensor, "N"],
    clip_range: float,
    weights: Float[Tensor, "N"] | float,
    *,
    clip_range_high: float | None = None,
    lengths: Sequence[int] | None = None,
    geometric: bool = False,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), summed over N tokens times their ``weights``.

    With ``lengths`` (of each answer, in tokens; their sum is N) the ratio is that of whole answers, as in RLOO
    (Ahmadian et al. 2024), and the sum is over answers; advantage and weight are those of an answer's first token. If
    it is ``geometric`` too, the ratio is the geometric mean of the tokens' ratios (GSPO; Zheng et al. 2025, equation
    7), and an answer weighs as much as its tokens together.

    Returns the loss and three sums: how many ratios were clipped, the ratios themselves, and how many there are. A
    ratio is clipped above 1 + clip_range_high (by default clip_range; apart in DAPO, Yu et al. 2025, section 3.1) where
    its advantage is positive, and below 1 - clip_range where it is negative: no gradient flows there.
    """
    lowest, highest = 1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high)
    log_ratio = logprobs - old_logprobs
    if lengths is not None:
        by_answer = log_ratio.split_with_sizes(list(lengths))
        log_ratio = torch.stack([piece.mean() if geometric else piece.sum() for piece in by_answer])
        first = torch.tensor([0, *lengths[:-1]], device=advantages.device).cumsum(0)
        advantages = advantages[first]
        if isinstance(weights, Tensor):
            # All tokens of an answer weigh the same.
            sizes = torch.tensor(lengths, device=weights.device)
            weights = weights[first] * sizes if geometric else weights[first]
    ratio = torch.exp(log_ratio)
    clipped = ratio.clamp(lowest, highest)
    losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    with torch.no_grad():
        above, below = (ratio > highest) & (advantages > 0), (ratio < lowest) & (advantages < 0)
    return (losses * weights).sum(), _counts(ratio, above | below)


def cispo_loss(
    logprobs: Float[Tensor, "N"],
    old_logprobs: Float[Tensor, "N"],
    advantages: Float[Tensor, "N"],
    clip_range_high: float,
    weights: Float[Tensor, "N"] | float,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """CISPO (MiniMax 2025, MiniMax-M1, equations 4 and 5): -min(ratio, 1 + clip_range_high) · advantage · log p, with
    the capped ratio as a constant, summed over N tokens times their ``weights``.

    A ratio over the cap weighs less, but keeps its gradient. There is no lower bound, as in the paper's own training.
    Returns what ``policy_loss`` does; clipped are the ratios over the cap.
    """
    ratio = torch.exp(logprobs.detach() - old_logprobs)
    losses = -ratio.clamp(max=1 + clip_range_high) * advantages * logprobs
    return (losses * weights).sum(), _counts(ratio, ratio > 1 + clip_range_high)


def _counts(ratio: Float[Tensor, "M"], clipped: Bool[Tensor, "M"]) -> dict[str, Tensor]:
    return {"clipped": clipped.sum(), "ratio": ratio.detach().sum(), "n": torch.tensor(len(ratio))}


def value_loss(
    values: Float[Tensor, "N"],
    old_values: Float[Tensor, "N"],
    returns: Float[Tensor, "N"],
    clip_range: float | None,
    normaliser: float,
) -> Float[Tensor, ""]:
    """Half the squared error over ``normaliser``. With ``clip_range``, in the values' units, each error is the larger
    of two: the value's own, and that of the value clipped to this distance from the old one, as in PPO's reference
    implementation.
    """
    if clip_range is None:
        return 0.5 * (values - returns).square().sum() / normaliser
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    worst = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * worst.sum() / normaliser
