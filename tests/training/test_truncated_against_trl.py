"""Answers that are left out of the loss because they were cut off, against TRL's ``mask_truncated_completions``.

The trainers, answers and comparisons are those of test_against_trl.py; here four of twelve answers were cut off, among
them two of one group, and one that has a group's best reward. TRL zeroes their completion mask and so their KL; their
rewards stay in the group's mean and deviation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_against_trl import (
    GROUP_SIZE,
    LOSS_TYPES,
    Case,
    N,
    assert_same,
    case,  # noqa: F401  a fixture
    ours,
    theirs,
    trainer,  # noqa: F401  a fixture
)
from trl import GRPOTrainer, RLOOTrainer

from rewardlm.config import KlSettings, RlafSettings
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import reference
from rewardlm.training.advantages import ESTIMATORS, Feedback, estimate
from rewardlm.training.learner import minibatches
from rewardlm.training.objectives import kl_k1
from rewardlm.training.rollouts import length_mask

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
CUT = {0, 3, 6, 9}


@pytest.fixture
def cut(case) -> Case:  # noqa: F811
    """The case with an end token at the end of every answer that was not cut off."""
    end = case.policy.tokenizer.eos_token_id
    whole = case.rollouts
    responses = [[*response[:-1], response[-1] if row in CUT else end] for row, response in enumerate(whole.responses)]
    assert not any(responses[row][-1] == end for row in CUT)
    mask = length_mask(responses)
    logprobs, _ = score_rows(case.policy.causal_lm, whole.prompts, responses, 10**6)
    with reference(case.policy):
        ref_logprobs, _ = score_rows(case.policy.causal_lm, whole.prompts, responses, 10**6)
    noise = 0.2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    rewards = whole.rewards.clone()
    rewards[3] = rewards[:4].max() + 1
    rollouts = replace(
        whole,
        responses=responses,
        response_mask=mask,
        logprobs=torch.where(mask, logprobs + noise, torch.nan),
        ref_logprobs=torch.where(mask, ref_logprobs, torch.nan),
        rewards=rewards,
        in_loss=torch.tensor([row not in CUT for row in range(N)]),
    )
    # The trainers read the case's own rollouts.
    case.rollouts = rollouts
    yield case
    case.rollouts = whole


def advantages_of(cut: Case, algorithm: str, kl_coef: float = 0.0) -> torch.Tensor:
    """As the loop asks for them: what the loss leaves out has a reward and no KL."""
    rollouts = cut.rollouts
    logprobs, _ = score_rows(cut.policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)
    kl = torch.where(rollouts.loss_mask, kl_k1(logprobs, rollouts.ref_logprobs), 0.0)
    feedback = Feedback(
        rewards=rollouts.rewards,
        kl=kl,
        mask=rollouts.response_mask,
        group=rollouts.group,
        values=None,
        kl_coef=kl_coef,
        gamma=1.0,
        gae_lambda=0.95,
    )
    return estimate(ESTIMATORS[algorithm], feedback)[0]


def scored(built, cut: Case) -> dict[str, torch.Tensor]:
    inputs = built._generate_and_score_completions([{"prompt": ""}] * N)
    assert torch.equal(inputs["completion_mask"].bool(), cut.rollouts.loss_mask)
    old = torch.where(cut.rollouts.loss_mask, cut.rollouts.logprobs, 0.0)
    if isinstance(built, GRPOTrainer):
        inputs["old_per_token_logps"] = old
    else:
        inputs["old_logps"] = old.sum(1)
    return inputs


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_leaves_out_what_was_cut_off_as_trl_does(cut, trainer, loss_type, beta):  # noqa: F811
    scale, algorithm = ("none", "dr_grpo") if loss_type == "dr_grpo" else ("group", "grpo")
    built = trainer(GRPOTrainer, loss_type=loss_type, scale_rewards=scale, beta=beta, mask_truncated_completions=True)
    inputs = scored(built, cut)
    advantages = advantages_of(cut, algorithm)
    # Compared with those that were cut off, too.
    torch.testing.assert_close(advantages[:, 0], inputs["advantages"], atol=1e-5, rtol=1e-5)
    loss, gradients, _, _ = ours(cut, advantages, beta, algorithm=algorithm, loss_type=loss_type)
    assert_same((loss, gradients), theirs(built, inputs))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_minibatch_counts_what_was_cut_off_as_trl_does(cut, trainer, loss_type):  # noqa: F811
    built = trainer(
        GRPOTrainer,
        loss_type=loss_type,
        beta=0.1,
        per_device_train_batch_size=N // 2,
        steps_per_generation=2,
        mask_truncated_completions=True,
    )
    inputs = scored(built, cut)
    advantages = advantages_of(cut, "grpo")
    settings = RlafSettings(model="tiny", batch_size=N, samples=GROUP_SIZE, algorithm="grpo", minibatches=2)
    halves = minibatches(settings, 0, 0, N)
    loss, gradients, learnt, _ = ours(
        cut, advantages, 0.1, algorithm="grpo", loss_type=loss_type, minibatches=2, ppo_epochs=1
    )
    assert [set(rows) for rows in learnt] == [set(rows) - CUT for rows in halves]
    each = [
        theirs(built, {name: value if value.dim() == 0 else value[rows] for name, value in inputs.items()})
        for rows in halves
    ]
    assert_same((loss, gradients), ((each[0][0] + each[1][0]) / 2, each[1][1]))


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rloo_leaves_out_what_was_cut_off_as_trl_does(cut, trainer, beta):  # noqa: F811
    built = trainer(RLOOTrainer, beta=beta, mask_truncated_completions=True)
    inputs = scored(built, cut)
    advantages = advantages_of(cut, "rloo", kl_coef=beta)
    torch.testing.assert_close(advantages[:, 0], inputs["advantages"], atol=1e-5, rtol=1e-5)
    loss, gradients, _, _ = ours(
        cut, advantages, algorithm="rloo", ratio="answer", kl=KlSettings(penalty="k1", coef=beta)
    )
    # TRL's ratio of an answer without tokens is 1: a constant in the loss, without a gradient.
    constant = -sum(float(inputs["advantages"][row]) for row in CUT) / N
    assert constant != 0
    assert_same((loss + constant, gradients), theirs(built, inputs))
