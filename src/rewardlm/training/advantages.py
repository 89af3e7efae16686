"""Advantage estimators: from rewards and KL to how far each token's log-probability is pushed.

Each takes the rollouts' numbers and gives ``advantages`` Float[B, R] and ``returns`` Float[B, R] (or None where nothing
learns a value). ``ESTIMATORS`` names them; a new one is a function of the same signature, and either a line there or
``--algorithm module:function``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewardlm.errors import TrainingError
from rewardlm.scoring.function import load_function
from rewardlm.training.objectives import masked, whiten


@dataclass(frozen=True, slots=True)
class Feedback:
    """What an estimator may look at: B answers, right-padded to R tokens.

    ``kl`` is k1 at each token, ``mask`` True at real tokens, ``group`` equal for answers to the same prompt, ``values``
    None without a critic. ``kl_coef`` is 0 where the KL penalty is a loss of its own; with ``kl.penalty`` k1 the
    estimator subtracts the KL itself. An answer without text has the worst ``rewards`` and ``kl`` of the batch.
    """

    rewards: Float[Tensor, "B"]
    kl: Float[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    group: Int[Tensor, "B"]
    values: Float[Tensor, "B R"] | None
    kl_coef: float
    gamma: float
    gae_lambda: float


# Advantages Float[B, R], and returns Float[B, R] for the critic, None without one.
Estimator = Callable[[Feedback], tuple[Tensor, Tensor | None]]


def charge_empty_answers(
    kl: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], empty: Bool[Tensor, "B"]
) -> Float[Tensor, "B R"]:
    """``kl``, in which an ``empty`` answer (one without text) has at least the highest KL of the others.

    The difference is charged at the last token. One token drifts less from the reference than thirty do, so silence
    would pay where the KL is part of the reward. With the batch's lowest reward and highest KL, it is no better than
    any other answer, whatever the estimator makes of the two.
    """
    total = masked(kl, mask).sum(1)
    if bool(empty.all()):
        return kl
    missing = (total[~empty].max() - total).clamp(min=0) * empty
    return token_rewards(missing, kl, mask, -1.0)


def token_rewards(
    rewards: Float[Tensor, "B"], kl: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], kl_coef: float
) -> Float[Tensor, "B R"]:
    """-kl_coef · kl at every real token, and the answer's reward on top at its last one."""
    per_token = -kl_coef * masked(kl, mask)
    last = mask.long().sum(1) - 1
    per_token[torch.arange(len(rewards), device=rewards.device), last] += rewards
    return per_token


def gae(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), backwards over R.

    Real tokens come first in ``mask``. The state after the last real
    token is terminal: its value is 0. Returns unwhitened advantages and the returns (advantages + values).
    """
    values = masked(values, mask)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], 1)
    deltas = masked(rewards + gamma * following - values, mask)
    advantages = torch.zeros_like(values)
    running = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    advantages = advantages * mask
    return advantages, advantages + values


def ppo(feedback: Feedback) -> tuple[Tensor, Tensor | None]:
    """GAE over KL-shaped token rewards, whitened over the batch."""
    assert feedback.values is not None
    shaped = token_rewards(feedback.rewards, feedback.kl, feedback.mask, feedback.kl_coef)
    advantages, returns = gae(shaped, feedback.values, feedback.mask, feedback.gamma, feedback.gae_lambda)
    return whiten(advantages, feedback.mask), returns


def group_normalised(scores: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """(score - group mean) / (group standard deviation + 1e-4) (Shao et al. 2024, section 4.1.2)."""
    centred = group_centred(scores, group)
    size = _group_total(torch.ones_like(scores), group)
    variance = _group_total(centred.square(), group) / (size - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-4)


def leave_one_out(scores: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """score - mean of the others in its group (Ahmadian et al. 2024, equation 9); 0 in a group of one."""
    # score - (total - score) / (n - 1) = n / (n - 1) · (score - mean), which is exactly 0 where all scores are equal.
    size = _group_total(torch.ones_like(scores), group)
    return group_centred(scores, group) * size / (size - 1).clamp(min=1)


def group_centred(scores: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """score - group mean: without the division, which favours groups that agree (Liu et al. 2025)."""
    mean = _group_total(scores.double(), group) / _group_total(torch.ones_like(scores), group)
    # In float64, where the mean of equal float32 numbers is that number: Adam would turn rounding into a full step.
    return (scores - mean).to(scores.dtype)


def grpo(feedback: Feedback) -> tuple[Tensor, Tensor | None]:
    """Group-normalised reward less the answer's leave-one-out KL penalty, the same for every token of an answer.

    The penalty is not divided by the standard deviation: in a group with nearly equal rewards it would be the whole
    advantage, at any coefficient. So it weighs as much as it does as a loss of its own.
    """
    advantages = group_normalised(feedback.rewards, feedback.group) - leave_one_out(_penalty(feedback), feedback.group)
    return _spread(advantages, feedback.mask), None


def dr_grpo(feedback: Feedback) -> tuple[Tensor, Tensor | None]:
    """As ``grpo``, without division by the group's standard deviation."""
    advantages = group_centred(feedback.rewards, feedback.group) - leave_one_out(_penalty(feedback), feedback.group)
    return _spread(advantages, feedback.mask), None


def rloo(feedback: Feedback) -> tuple[Tensor, Tensor | None]:
    """Leave-one-out reward less the answer's KL penalty, the same for every token of an answer."""
    return _spread(leave_one_out(feedback.rewards - _penalty(feedback), feedback.group), feedback.mask), None


ESTIMATORS: dict[str, Estimator] = {"ppo": ppo, "grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def load_estimator(algorithm: str) -> Estimator:
    """One of ``ESTIMATORS`` by name, or a user's function ``module:function`` of a Feedback.

    Raises TrainingError if there is no such function.
    """
    if algorithm in ESTIMATORS:
        return ESTIMATORS[algorithm]
    try:
        return load_function(algorithm)
    except ValueError as error:
        raise TrainingError(f"algorithm {algorithm!r}: {error}") from error


def estimate(estimator: Estimator, feedback: Feedback, *, per_answer: bool = False) -> tuple[Tensor, Tensor | None]:
    """What ``estimator`` returns, checked: a user's own may be wrong. With ``per_answer`` an answer's tokens must share
    one advantage, because the loss is about whole answers.

    Raises TrainingError for another shape, for numbers that are not finite, and for a critic without returns to learn
    from.
    """
    # Copies, so that what it changes in place is not changed in the log.
    values = ((field.name, getattr(feedback, field.name)) for field in fields(feedback))
    copies: dict[str, Any] = {name: value.clone() for name, value in values if isinstance(value, Tensor)}
    try:
        advantages, returns = estimator(replace(feedback, **copies))
    except Exception as error:
        raise TrainingError(
            f"the estimator failed ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]}): expected "
            "(advantages, returns), each Float[B, R], returns None without a critic"
        ) from error
    advantages = _checked("advantages", advantages, feedback.mask)
    if returns is not None or feedback.values is not None:
        returns = _checked("returns", returns, feedback.mask)
    first = advantages[:, :1] * feedback.mask
    if per_answer and not bool(torch.isclose(masked(advantages, feedback.mask), first).all()):
        raise TrainingError(
            "the estimator's advantages differ between an answer's tokens, but the ratio is that of whole answers: use "
            "ratio=token"
        )
    return advantages, returns


def _checked(name: str, found: Any, mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """What an estimator found, without a gradient. Raises TrainingError where it isn't a finite number a token."""
    if not isinstance(found, Tensor) or found.shape != mask.shape:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TrainingError(
            f"the estimator's {name} are {what}: expected a tensor of {tuple(mask.shape)}, a number for every token"
        )
    if not bool(torch.isfinite(masked(found, mask)).all()):
        raise TrainingError(f"the estimator's {name} hold NaN or infinity")
    return found.detach().float()


def _penalty(feedback: Feedback) -> Float[Tensor, "B"]:
    """What each answer's KL costs."""
    return feedback.kl_coef * masked(feedback.kl, feedback.mask).sum(1)


def _spread(advantages: Float[Tensor, "B"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    return advantages[:, None] * mask


def _group_total(scores: Float[Tensor, "B"], group: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """For each answer, the sum of its group's ``scores``."""
    _, index = torch.unique(group, return_inverse=True)
    return scores.new_zeros(int(index.max()) + 1).index_add(0, index, scores)[index]
