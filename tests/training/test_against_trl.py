"""GRPO's and RLOO's losses, gradients and advantages against TRL's own trainers, on the same weights and answers.

A real GRPOTrainer or RLOOTrainer is built for every comparison. Only its sampling is replaced, by answers that are
given; padding, masks, log-probabilities, reference, advantages and loss are TRL's. What differs on purpose:

- the old log-probabilities are given to both: in TRL's first update they are the new ones, and no ratio is clipped;
- ``bnpo`` under gradient accumulation: TRL averages its microbatches' means, ours is the mean over the minibatch;
- an answer without a score: TRL gives it advantage 0 and leaves it in the loss's averages, ours drops it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rewardlm.config import KlSettings, LoraSettings, ModelSettings, RlafSettings
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import add_lora, reference
from rewardlm.training import learner, rlaf
from rewardlm.training.advantages import (
    ESTIMATORS,
    Feedback,
    estimate,
    group_centred,
    group_normalised,
    leave_one_out,
)
from rewardlm.training.learner import Batch, KlController, Learner
from rewardlm.training.objectives import kl_k1, masked
from rewardlm.training.rollouts import Rollouts, length_mask

# TRL's own, of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")

TINY = ModelSettings(model="tiny", device="cpu", dtype="float32")
LORA = LoraSettings(r=4)
GROUPS, GROUP_SIZE = 3, 4
N = GROUPS * GROUP_SIZE
MAX_NEW_TOKENS = 12  # more than the longest answer has, so that dr_grpo's constant is no length that occurs
LOSS_TYPES = ("grpo", "bnpo", "dapo", "dr_grpo")

Trainer = GRPOTrainer | RLOOTrainer
Gradients = dict[str, Tensor]


@dataclass
class Case:
    """Four answers of 1 to 9 tokens to each of three prompts of 2 to 12, under an adapter that isn't zero."""

    policy: Policy
    rollouts: Rollouts

    @property
    def adapter(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.policy.model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def case() -> Case:
    torch.set_num_threads(1)
    policy = load_policy(TINY)
    add_lora(policy, LORA, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in Case(policy, None).adapter.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def draw(length: int) -> list[int]:
        return torch.randint(3, 1500, (length,), generator=generator).tolist()

    asked = [(1, 7, *draw(length)) for length in (10, 0, 4)]
    prompts = [prompt for prompt in asked for _ in range(GROUP_SIZE)]
    responses = [draw(length) for length in (9, 3, 1, 6, 2, 8, 5, 5, 1, 7, 4, 9)]
    # The end token is also what pads: inside an answer and at its end it is a token like others.
    end = policy.tokenizer.eos_token_id
    assert end == policy.tokenizer.pad_token_id
    responses[1][-1] = responses[5][2] = responses[5][-1] = end
    mask = length_mask(responses)
    logprobs, entropy = score_rows(policy.causal_lm, prompts, responses, 10**6)
    with reference(policy):
        ref_logprobs, _ = score_rows(policy.causal_lm, prompts, responses, 10**6)
    # Near the new ones, so that some ratios are clipped and others not.
    old = logprobs + 0.2 * torch.randn(mask.shape, generator=generator)
    # One group agrees, the others don't.
    rewards = torch.cat([torch.randn(8, generator=generator), torch.full((4,), 0.3)])
    rollouts = Rollouts(
        prompts=prompts,
        responses=responses,
        response_mask=mask,
        logprobs=torch.where(mask, old, math.nan),  # what is padding must not count, whatever it holds
        sampling_logprobs=torch.where(mask, old, math.nan),
        ref_logprobs=torch.where(mask, ref_logprobs, math.nan),
        entropy=entropy,
        kl_full=None,
        ref_hidden=None,
        values=None,
        rewards=rewards,
        group=torch.arange(GROUPS).repeat_interleave(GROUP_SIZE),
        texts=[""] * N,
        judged=None,
    )
    return Case(policy, rollouts)


# Ours ---------------------------------------------------------------------------------------------------------------


def ours(
    case: Case, advantages: Tensor, beta: float = 0.0, **changes: Any
) -> tuple[float, Gradients, list[list[int]], dict[str, float]]:
    """One ``learner.update``: the loss, the last minibatch's gradient, each minibatch's rows, and all it returned."""
    settings = RlafSettings(
        **{
            **TINY.model_dump(),
            "kl": KlSettings(penalty="k3", coef=beta),
            "batch_size": N,
            "samples": GROUP_SIZE,
            "max_new_tokens": MAX_NEW_TOKENS,
            # Twice from the same weights: a step's only update would take itself for the old policy.
            "ppo_epochs": 2,
            "minibatches": 1,
            "micro_batch_tokens": 10**6,
            "max_grad_norm": 1e9,
            **changes,
        }
    )
    adapter = case.adapter
    optimizer = torch.optim.SGD(adapter.values(), lr=0.0)  # leaves the gradients where they can be read
    learns = Learner(case.policy, None, optimizer, KlController(settings.kl))
    minibatches: list[list[int]] = []
    backward = learner._backward

    def noted(*arguments: Any) -> dict[str, float]:
        minibatches.append(arguments[4])
        return backward(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "_backward", noted)
        found = learner.update(learns, settings, Batch(case.rollouts, advantages, None), step=0)
    loss = found["policy_loss"] + beta * found.get("kl_loss", 0.0)
    return loss, {name: p.grad.clone() for name, p in adapter.items()}, minibatches, found


def our_advantages(case: Case, algorithm: str, kl_coef: float = 0.0) -> Tensor:
    rollouts = case.rollouts
    # The log-probabilities of the policy itself, of which TRL's penalty is made too.
    logprobs, _ = score_rows(case.policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)
    feedback = Feedback(
        rewards=rollouts.rewards,
        kl=kl_k1(logprobs, rollouts.ref_logprobs),
        mask=rollouts.response_mask,
        group=rollouts.group,
        values=None,
        kl_coef=kl_coef,
        gamma=1.0,
        gae_lambda=0.95,
    )
    advantages, _ = estimate(ESTIMATORS[algorithm], feedback)
    return advantages


# TRL's --------------------------------------------------------------------------------------------------------------


def build_trainer(
    kind: type[Trainer], case: Case, folder: Path, *, rewards: list[float | None] | None = None, **changes: Any
) -> Trainer:
    """A real trainer of TRL's on a copy of the case's weights; its answers and rewards are the case's."""
    n = len(case.rollouts.responses)
    given = case.rollouts.rewards.tolist() if rewards is None else rewards
    adapted = case.policy.model.peft_config["default"]
    built = kind(
        load_policy(TINY).model,
        reward_funcs=lambda completions, **_: given,
        args=(GRPOConfig if kind is GRPOTrainer else RLOOConfig)(
            **{
                "output_dir": str(folder),
                "per_device_train_batch_size": n,
                "num_generations": GROUP_SIZE,
                "temperature": 1.0,
                "gradient_checkpointing": False,
                "bf16": False,
                "use_cpu": True,
                "report_to": "none",
                **changes,
            }
        ),
        train_dataset=Dataset.from_dict({"prompt": [""] * n}),
        processing_class=case.policy.tokenizer,
        peft_config=LoraConfig(
            r=adapted.r,
            lora_alpha=adapted.lora_alpha,
            target_modules=sorted(adapted.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    copy_adapter(built, case.adapter)
    # What Trainer.train would set; nothing else of its loop is needed.
    built.current_gradient_accumulation_steps = built.args.gradient_accumulation_steps
    answers = (list(map(list, case.rollouts.prompts)), case.rollouts.responses)
    if kind is GRPOTrainer:
        built._generate = lambda prompts: (*answers, None, case.rollouts.texts, None, {}, None, None)
    else:
        built._generate = lambda prompts: (*answers, case.rollouts.texts)
    return built


def copy_adapter(built: Trainer, adapter: Mapping[str, Tensor]) -> None:
    copied = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert copied.keys() == adapter.keys()
    with torch.no_grad():
        for name, parameter in adapter.items():
            copied[name].copy_(parameter)


@pytest.fixture
def trainer(case: Case, tmp_path: Path) -> Callable[..., Trainer]:
    def build(kind: type[Trainer], rewards: list[float | None] | None = None, **changes: Any) -> Trainer:
        given = {"max_completion_length": MAX_NEW_TOKENS, "epsilon": 0.2, "epsilon_high": 0.2, **changes}
        return build_trainer(kind, case, tmp_path, rewards=rewards, **given)

    return build


def scored(built: Trainer, case: Case, *, with_our_old: bool = True) -> dict[str, Tensor]:
    """TRL's batch for the case's answers, with the case's old log-probabilities or TRL's own."""
    inputs = built._generate_and_score_completions([{"prompt": ""}] * len(case.rollouts.responses))
    assert torch.equal(inputs["completion_mask"].bool(), case.rollouts.response_mask)
    old = case.rollouts.logprobs.nan_to_num(0.0)
    if with_our_old and isinstance(built, GRPOTrainer):
        inputs["old_per_token_logps"] = old
    elif with_our_old:
        inputs["old_logps"] = old.sum(1)
    return inputs


def part(inputs: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: value if value.dim() == 0 else value[rows] for name, value in inputs.items()}


def theirs(built: Trainer, *batches: dict[str, Tensor]) -> tuple[float, Gradients]:
    """TRL's loss of the batches, added up, and its gradient."""
    built.model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = built._compute_loss(built.model, batch)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in built.model.named_parameters() if p.requires_grad}


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert_close(found[1], expected[1])


def assert_close(found: Gradients, expected: Gradients, tight: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=tight * scale, rtol=10 * tight, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_clipped_as_trl(found: dict[str, float], built: Trainer) -> None:
    [share] = built._metrics["train"]["clip_ratio/region_mean"]
    assert found["clip_fraction"] == pytest.approx(share, abs=1e-6)
    assert 0.1 < share < 0.9


# GRPO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpos_loss_and_gradient_are_trls_own(case, trainer, loss_type, beta):
    scale, algorithm = ("none", "dr_grpo") if loss_type == "dr_grpo" else ("group", "grpo")
    built = trainer(GRPOTrainer, loss_type=loss_type, scale_rewards=scale, beta=beta)
    inputs = scored(built, case)
    advantages = our_advantages(case, algorithm)
    loss, gradients, _, found = ours(case, advantages, beta, algorithm=algorithm, loss_type=loss_type)
    assert_same((loss, gradients), theirs(built, inputs))
    assert_clipped_as_trl(found, built)
    if beta:
        [kl] = built._metrics["train"]["kl"]
        assert kl > 0.01
        assert beta * found["kl_loss"] > 1e-3
        if loss_type in ("bnpo", "dapo"):  # the others' loss is another mean than what TRL logs
            assert found["kl_loss"] == pytest.approx(kl, rel=1e-4)


def test_an_upper_bound_apart_from_the_lower_is_trls_own(case, trainer):
    built = trainer(GRPOTrainer, loss_type="dapo", beta=0.0, epsilon=0.05, epsilon_high=0.25)
    inputs = scored(built, case)
    loss, gradients, _, found = ours(
        case, our_advantages(case, "grpo"), algorithm="grpo", clip_range=0.05, clip_range_high=0.25
    )
    assert_same((loss, gradients), theirs(built, inputs))
    assert_clipped_as_trl(found, built)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gspos_loss_and_gradient_are_trls_own(case, trainer, loss_type):
    """The ratio is an answer's geometric mean, and its bounds are narrow."""
    built = trainer(
        GRPOTrainer,
        loss_type=loss_type,
        beta=0.0,
        importance_sampling_level="sequence",
        epsilon=0.003,
        epsilon_high=0.006,
    )
    inputs = scored(built, case)
    loss, gradients, _, found = ours(
        case,
        our_advantages(case, "grpo"),
        algorithm="grpo",
        loss_type=loss_type,
        ratio="sequence",
        clip_range=0.003,
        clip_range_high=0.006,
    )
    assert_same((loss, gradients), theirs(built, inputs))
    assert_clipped_as_trl(found, built)


def test_gspo_counts_answers_unless_told_otherwise():
    assert RlafSettings(**TINY.model_dump(), algorithm="grpo", ratio="sequence").token_weights == "grpo"


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_cispos_loss_and_gradient_are_trls_own(case, trainer, beta):
    """TRL's epsilon_high is the cap itself, ours how far it is above 1."""
    built = trainer(GRPOTrainer, loss_type="cispo", beta=beta, epsilon_high=1.1)
    inputs = scored(built, case)
    loss, gradients, _, found = ours(
        case, our_advantages(case, "grpo"), beta, algorithm="grpo", loss="cispo", clip_range_high=0.1
    )
    assert_same((loss, gradients), theirs(built, inputs))
    # TRL counts those with a positive advantage alone, but caps all.
    [share] = built._metrics["train"]["cispo_clip_ratio"]
    assert 0 < share < found["capped_fraction"] < 1
    assert "clip_fraction" not in found


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_the_bonus_for_entropy_is_trls_own(case, trainer, loss_type):
    built = trainer(GRPOTrainer, loss_type=loss_type, beta=0.0, entropy_coef=0.2)
    inputs = scored(built, case)
    loss, gradients, _, found = ours(
        case, our_advantages(case, "grpo"), algorithm="grpo", loss_type=loss_type, entropy_coef=0.2
    )
    assert_same((loss + 0.2 * found["entropy_loss"], gradients), theirs(built, inputs))
    plain, _, _, without = ours(case, our_advantages(case, "grpo"), algorithm="grpo", loss_type=loss_type)
    # The loss is what is left of terms of both signs: float32's rounding shows in its sixth digit.
    assert (plain, "entropy_loss" in without) == (pytest.approx(loss, rel=1e-5), False)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_minibatch_of_grpo_counts_what_it_counts_in_trl(case, trainer, loss_type):
    """Two optimizer steps on one batch of answers: dapo's average is over the tokens of both."""
    built = trainer(
        GRPOTrainer, loss_type=loss_type, beta=0.1, per_device_train_batch_size=N // 2, steps_per_generation=2
    )
    inputs = scored(built, case)
    loss, gradients, minibatches, _ = ours(
        case, our_advantages(case, "grpo"), 0.1, algorithm="grpo", loss_type=loss_type, minibatches=2, ppo_epochs=1
    )
    each = [theirs(built, part(inputs, rows)) for rows in minibatches]
    sizes = [sum(len(case.rollouts.responses[row]) for row in rows) for rows in minibatches]
    assert sizes[0] != sizes[1]
    # What ours returns is the mean over minibatches; the gradients are the last one's.
    assert_same((loss, gradients), ((each[0][0] + each[1][0]) / 2, each[1][1]))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trls_accumulated_microbatches_are_our_whole_minibatch(case, trainer, loss_type):
    built = trainer(
        GRPOTrainer, loss_type=loss_type, beta=0.1, per_device_train_batch_size=N // 3, gradient_accumulation_steps=3
    )
    inputs = scored(built, case)
    pieces = [part(inputs, list(range(start, start + N // 3))) for start in range(0, N, N // 3)]
    loss, gradients, minibatches, _ = ours(
        case, our_advantages(case, "grpo"), 0.1, algorithm="grpo", loss_type=loss_type, micro_batch_tokens=60
    )
    assert len(minibatches) > 1  # ours is cut too, elsewhere
    assert_same((loss, gradients), theirs(built, *pieces))


def test_bnpos_mean_is_over_the_minibatch_and_trls_over_its_microbatches(case, trainer):
    built = trainer(
        GRPOTrainer, loss_type="bnpo", beta=0.0, per_device_train_batch_size=N // 3, gradient_accumulation_steps=3
    )
    inputs = scored(built, case)
    pieces = [list(range(start, start + N // 3)) for start in range(0, N, N // 3)]
    sizes = [sum(len(case.rollouts.responses[row]) for row in rows) for rows in pieces]
    # Each of TRL's microbatches, weighted by the tokens that it has, gives the mean over all.
    built.current_gradient_accumulation_steps = 1
    each = [theirs(built, part(inputs, rows)) for rows in pieces]
    shares = [size / sum(sizes) for size in sizes]
    expected = (
        sum(share * one[0] for share, one in zip(shares, each, strict=True)),
        {name: sum(s * one[1][name] for s, one in zip(shares, each, strict=True)) for name in each[0][1]},
    )
    loss, gradients, _, _ = ours(case, our_advantages(case, "grpo"), algorithm="grpo", loss_type="bnpo")
    assert_same((loss, gradients), expected)


@pytest.mark.parametrize(
    ("scale", "algorithm", "estimator"), [("group", "grpo", group_normalised), ("none", "dr_grpo", group_centred)]
)
def test_grpos_advantages_and_reference_are_trls_own(case, trainer, scale, algorithm, estimator):
    inputs = scored(trainer(GRPOTrainer, scale_rewards=scale, beta=0.1), case)
    rollouts, mask = case.rollouts, case.rollouts.response_mask
    found = estimator(rollouts.rewards, rollouts.group)
    torch.testing.assert_close(found, inputs["advantages"], atol=1e-6, rtol=1e-5)
    assert torch.equal(found[8:], torch.zeros(4))  # the group that agrees
    torch.testing.assert_close(
        our_advantages(case, algorithm), inputs["advantages"][:, None] * mask, atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(rollouts.ref_logprobs[mask], inputs["ref_per_token_logps"][mask], atol=1e-4, rtol=1e-5)


# RLOO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rloos_loss_and_gradient_are_trls_own(case, trainer, beta):
    # Nearly all of the twelve answers' ratios are outside of so narrow a range.
    built = trainer(RLOOTrainer, beta=beta, epsilon=0.02, epsilon_high=0.02)
    inputs = scored(built, case)
    advantages = our_advantages(case, "rloo", kl_coef=beta)
    torch.testing.assert_close(
        advantages, inputs["advantages"][:, None] * case.rollouts.response_mask, atol=1e-5, rtol=1e-5
    )
    # TRL's penalty is part of the reward, as ours is with kl.penalty=k1: it is in the advantages.
    loss, gradients, _, found = ours(
        case, advantages, algorithm="rloo", ratio="answer", clip_range=0.02, kl=KlSettings(penalty="k1", coef=beta)
    )
    assert_same((loss, gradients), theirs(built, inputs))
    assert_clipped_as_trl(found, built)


def test_rloos_log_probabilities_are_trls_own(case, trainer):
    rollouts = case.rollouts
    inputs = trainer(RLOOTrainer)._generate_and_score_completions([{"prompt": ""}] * N)
    logprobs, _ = score_rows(case.policy.causal_lm, rollouts.prompts, rollouts.responses, 10**6)
    torch.testing.assert_close(logprobs.sum(1), inputs["old_logps"], atol=1e-4, rtol=1e-5)


# Our defaults -------------------------------------------------------------------------------------------------------


@dataclass
class Update:
    """One optimizer step of ours: the adapter before it, the rows it learnt from, and their gradient."""

    rows: list[int]
    adapter: Gradients
    gradients: Gradients


# Minutes of the same for losses that the tests above compare.
MORE = pytest.mark.skipif("REWARDLM_PROVE" not in os.environ, reason="more settings of the same: make prove-policy")
# What docs/rlaf.md says of each: TRL's own defaults beside what stands here.
_DEFAULTS = {"beta": 0.2, "num_iterations": 1, "steps_per_generation": 4}
TRLS = {
    "grpo": (GRPOTrainer, _DEFAULTS),
    "dr_grpo": (GRPOTrainer, {**_DEFAULTS, "loss_type": "dr_grpo", "scale_rewards": "none"}),
    "rloo": (RLOOTrainer, {"beta": 0.2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("dr_grpo", marks=MORE), pytest.param("rloo", marks=MORE)])
def test_a_step_of_a_training_with_our_defaults_is_trls(tmp_path, monkeypatch, algorithm):
    """The second step of a real training, all of whose settings are the defaults but for how fast it moves."""
    torch.set_num_threads(1)
    settings = RlafSettings(**TINY.model_dump(), algorithm=algorithm, steps=2, learning_rate=1e-2, witness=["none"])
    updates: list[Update] = []
    step: dict[str, Any] = {}
    rows: list[int] = []
    run_update, backward, apply = rlaf.update, learner._backward, learner._apply

    def adapter_of(policy: Policy) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in policy.model.named_parameters() if p.requires_grad}

    def noted_update(*arguments: Any) -> dict[str, float]:
        updates.clear()
        copied = {name: p.detach().clone() for name, p in adapter_of(arguments[0].policy).items()}
        batch = arguments[2]
        step.update(policy=arguments[0].policy, rollouts=batch.rollouts, advantages=batch.advantages, adapter=copied)
        step["losses"] = run_update(*arguments)
        return step["losses"]

    def noted_backward(*arguments: Any) -> dict[str, float]:
        rows.extend(arguments[4])
        return backward(*arguments)

    def noted_apply(found: Learner, *more: Any) -> float:
        adapter = adapter_of(found.policy)
        updates.append(
            Update(
                list(rows),
                {name: p.detach().clone() for name, p in adapter.items()},
                {name: p.grad.clone() for name, p in adapter.items()},
            )
        )
        rows.clear()
        return apply(found, *more)

    monkeypatch.setattr(rlaf, "update", noted_update)
    monkeypatch.setattr(learner, "_backward", noted_backward)
    monkeypatch.setattr(learner, "_apply", noted_apply)
    rlaf.train(settings, tmp_path / "run")

    rollouts, n = step["rollouts"], settings.batch_size
    assert len(rollouts.responses) == n
    kind, changes = TRLS[algorithm]
    case = Case(step["policy"], rollouts)
    changes = {**changes, "max_completion_length": settings.max_new_tokens}
    built = build_trainer(
        kind, case, tmp_path, per_device_train_batch_size=n // changes.get("steps_per_generation", 1), **changes
    )
    copy_adapter(built, step["adapter"])
    inputs = scored(built, case, with_our_old=len(updates) > 1)  # a step's only update is its own old policy in both
    mask = rollouts.response_mask
    torch.testing.assert_close(
        masked(step["advantages"], mask), inputs["advantages"][:, None] * mask, atol=1e-4, rtol=1e-4
    )
    assert len(updates) == (1 if algorithm == "rloo" else 4)
    losses = []
    for update in updates:
        assert len(update.rows) == n // changes.get("steps_per_generation", 1)
        copy_adapter(built, update.adapter)
        loss, gradients = theirs(built, part(inputs, update.rows))
        losses.append(loss)
        # Sums over some thousand tokens in another order, in float32.
        assert_close(update.gradients, gradients, 5e-5)
    found = step["losses"]
    ours = found["policy_loss"] + settings.kl_settings.coef * found.get("kl_loss", 0.0)
    assert ours == pytest.approx(sum(losses) / len(losses), rel=1e-4, abs=1e-6)
    shares = built._metrics["train"]["clip_ratio/region_mean"]
    assert found["clip_fraction"] == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    # The penalty is a part of it that shows.
    assert found.get("kl_loss", 1.0) > 1e-3


# Answers without a score --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "estimator"),
    [
        (GRPOTrainer, {"scale_rewards": "group"}, group_normalised),
        (GRPOTrainer, {"scale_rewards": "none"}, group_centred),
        (RLOOTrainer, {"beta": 0.0}, leave_one_out),
    ],
)
def test_an_answer_without_a_score_leaves_trls_advantages_to_the_others(case, trainer, kind, changes, estimator):
    rewards = case.rollouts.rewards.tolist()
    rewards[2] = rewards[5] = None
    inputs = trainer(kind, rewards, **changes)._generate_and_score_completions([{"prompt": ""}] * N)
    kept = [row for row, reward in enumerate(rewards) if reward is not None]
    found = estimator(case.rollouts.rewards[kept], case.rollouts.group[kept])
    torch.testing.assert_close(found, inputs["advantages"][kept], atol=1e-6, rtol=1e-5)
    assert inputs["advantages"][[2, 5]].tolist() == [0.0, 0.0]
