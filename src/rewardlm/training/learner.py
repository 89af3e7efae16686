"""What training changes, and how: the policy's adapter, the critic, their optimizer, and one step's update of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewardlm.config import KlSettings, RlafSettings
from rewardlm.errors import ConfigError, TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import forward_rows, hidden_rows, pieces, row_stats
from rewardlm.models.lora import (
    CRITIC,
    ORIGIN,
    REFERENCE,
    adapter_parameters,
    add_critic,
    add_lora,
    add_reference,
    head_is_shared,
    is_of_adapter,
    load_adapter,
    move_reference,
    origin,
    reference,
    using,
)
from rewardlm.models.processes import Processes
from rewardlm.models.sharding import in_step
from rewardlm.training.objectives import (
    answer_weights,
    cispo_loss,
    importance,
    kl_k3_loss,
    policy_loss,
    value_loss,
)
from rewardlm.training.retain import Retained
from rewardlm.training.rollouts import Answer, Draft, Rollouts
from rewardlm.training.value import ValueHead

# What one update averages over its minibatches; those that the settings leave out are not reported.
_LOSSES = ("policy_loss", "value_loss", "kl_loss", "entropy_loss", "retain_kl")


class KlController:
    """The KL coefficient: fixed, or pulled towards a target (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, settings: KlSettings) -> None:
        if settings.coef is None:
            raise ValueError("kl.coef is None: give RlafSettings.kl_settings, which says what that stands for")
        self.settings = settings
        self.coef = settings.coef

    def update(self, kl: float, answers: int) -> None:
        """``kl`` in nats per answer, averaged over ``answers`` of them."""
        if self.settings.target is None:
            return
        error = min(max(kl / self.settings.target - 1, -0.2), 0.2)
        # Never below zero, which would reward leaving the reference: a batch may be larger than the horizon.
        self.coef *= max(0.5, 1 + error * answers / self.settings.horizon)


@dataclass
class Learner:
    """What training changes: the adapter inside ``policy``, the critic, their optimizer and the KL controller.

    The critic is ``value_head``, on the policy's states or, with ``own_critic``, on those of an adapter of its own.
    With ``moving_reference`` the reference is an adapter that follows the policy. ``held`` is the plain text on which
    the policy is held to its base.
    """

    policy: Policy
    value_head: ValueHead | None
    optimizer: torch.optim.Optimizer
    kl: KlController
    own_critic: bool = False
    moving_reference: bool = False
    held: Retained | None = None

    @property
    def learning_rate(self) -> float:
        """The policy's, as it is now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def follow(self, settings: RlafSettings, step: int) -> None:
        """Set the learning rates that the schedule has for a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.rate_at(step)

    def move_reference(self, settings: KlSettings, steps: int) -> None:
        """Let the reference follow, where it is due after so many ``steps``."""
        if settings.reference_every is not None and steps % settings.reference_every == 0:
            move_reference(self.policy, settings.reference_mix)

    def critic_parameters(self) -> list[torch.nn.Parameter]:
        """The value head's, and its adapter's if it has one."""
        if self.value_head is None:
            return []
        own = adapter_parameters(self.policy.model, CRITIC) if self.own_critic else []
        return [*self.value_head.parameters(), *own]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from: B answers of at most R tokens, and how far each token's log-probability is pushed.

    Numbers count where ``rollouts.loss_mask`` is True. ``returns`` are what the critic learns, None without one;
    ``importance`` is π/μ of answers that were not drawn from the policy itself, None where they were.
    """

    rollouts: Rollouts
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"] | None
    importance: Float[Tensor, "B R"] | None = None


@dataclass(frozen=True, slots=True)
class Minibatch:
    """One optimizer step's part of a batch.

    This process learns from ``rows``. Each token of a row has the weight ``weights[row]``, which is set for the
    minibatch of all processes; ``n_tokens`` counts that one's tokens.
    """

    rows: list[int]
    weights: Float[Tensor, "B"]
    n_tokens: int


def make_learner(policy: Policy, settings: RlafSettings) -> Learner:
    """The trainable adapter (fresh, or a copy of ``settings.adapter``), the critic and one optimizer for both; and what
    the policy is compared with, where that is an adapter too.

    Raises ConfigError for a KL over the vocabulary where the adapter is on the language-model head too.
    """
    moving = settings.kl.reference_every is not None
    if settings.adapter is None:
        add_lora(policy, settings.lora, seed=settings.seed)
        if moving:
            add_reference(policy, settings.lora, seed=settings.seed)
    else:
        load_adapter(policy, settings.adapter, trainable=True)
        for name in (REFERENCE, ORIGIN) if moving else (REFERENCE,):
            load_adapter(policy, settings.adapter, name=name)
        policy.model.set_adapter("default")
    own_critic = settings.critic_kind == "own"
    if own_critic:
        add_critic(policy, settings.lora, seed=settings.seed)
    policy.model.eval()  # Dropout off: the policy that is updated must be the policy that answered.
    for name, parameter in policy.model.named_parameters():
        frozen = is_of_adapter(name, REFERENCE) or is_of_adapter(name, ORIGIN)
        parameter.requires_grad_("lora_" in name and not frozen)
    if settings.kl_penalty == "full" and not head_is_shared(policy):
        raise ConfigError(
            "kl.penalty full compares distributions by one language-model head, but the adapter is on the head too: "
            "take the head out of lora.targets, or use kl.penalty=k3"
        )
    value_head = None
    groups: list[dict[str, Any]] = [{"params": adapter_parameters(policy.model), "lr": settings.learning_rate}]
    if settings.critic_kind is not None:
        value_head = ValueHead(policy.causal_lm.get_input_embeddings().weight.shape[1]).to(policy.device)
        groups.append({"params": list(value_head.parameters()), "lr": settings.value_learning_rate})
    if own_critic:
        groups.append({"params": adapter_parameters(policy.model, CRITIC), "lr": settings.value_learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
    return Learner(policy, value_head, optimizer, KlController(settings.kl_settings), own_critic, moving)


def budget_of(settings: RlafSettings) -> Budget:
    """How many positions a microbatch may have, to begin with."""
    # Processes that share a divided model make each pass together: one that tried again would leave the others waiting.
    return Budget(settings.micro_batch_tokens, "micro_batch_tokens", again=not settings.shard)


def minibatches(settings: RlafSettings, step: int, epoch: int, n: int) -> list[list[int]]:
    """Which of ``n`` rows each optimizer step of an epoch has, in the order of the steps."""
    order = np.random.default_rng(stream_seed("minibatch", settings.seed, step, epoch)).permutation(n)
    return [rows.tolist() for rows in np.array_split(order, min(settings.minibatches, n))]


def importance_weights(settings: RlafSettings, rollouts: Rollouts, *, per_answer: bool) -> Float[Tensor, "B R"] | None:
    """π/μ of answers that were not drawn from the policy itself, of each token or of whole answers; None where they
    were."""
    if not settings.off_policy:
        return None
    return importance(
        rollouts.logprobs,
        rollouts.sampling_logprobs,
        rollouts.response_mask,
        settings.importance_cap,
        per_answer=per_answer,
    )


# Before the update ---------------------------------------------------------------------------------------------------


def logprobs_and_values(
    learner: Learner,
    settings: RlafSettings,
    draft: Draft,
    budget: Budget | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Answer]:
    """How likely each drafted answer was under policy and reference, and what the critic expected of it.

    Where the model rounds (half precision, quantised weights), its numbers depend on which rows run together. There a
    pass has only rows of one of ``groups``, the minibatches that will learn from them; together these are all rows. So
    the minibatches' own passes begin with a ratio of 1.
    """
    policy, prompts, responses = learner.policy, draft.prompt_ids, draft.responses
    budget = budget or budget_of(settings)
    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    hidden = [sampled.hidden for sampled in draft.sampled if sampled.hidden is not None]
    with in_step(policy):
        if not policy.rounds and len(hidden) == len(responses):
            # What sampling saw is exact to float32's rounding.
            logprobs = [sampled.logprobs for sampled in draft.sampled]
            entropy = [sampled.entropy for sampled in draft.sampled]
        else:
            # One token at a time and many at once round differently: the ratio would not start at 1. And what a server
            # drew, this model has not seen.
            score = partial(
                row_stats,
                policy.causal_lm,
                prompts,
                responses,
                keep_hidden=True,
                groups=groups,
                recompute=settings.gradient_checkpointing,
            )
            scored = budget.run(score, least=longest)
            logprobs, entropy = [row.logprobs for row in scored], [row.entropy for row in scored]
            hidden = [row.hidden for row in scored if row.hidden is not None]
        values = budget.run(partial(_values, learner, draft, hidden), least=longest)
        compared = partial(
            row_stats,
            policy.causal_lm,
            prompts,
            responses,
            groups=groups if policy.rounds else None,
            recompute=policy.rounds and settings.gradient_checkpointing,
        )
        with reference(policy):
            refer = partial(
                compared,
                kl_from=hidden if head_is_shared(policy) else None,
                keep_hidden=settings.kl_penalty == "full",
            )
            referred = budget.run(refer, least=longest)
        first = None
        if learner.moving_reference:
            with origin(policy):
                first = budget.run(compared, least=longest)
    return [
        Answer(
            prompt_index=draft.prompt_index[row],
            prompt=prompts[row],
            tokens=responses[row],
            text=draft.texts[row],
            finish=sampled.finish,
            logprobs=logprobs[row],
            sampling_logprobs=sampled.sampling_logprobs,
            ref_logprobs=referred[row].logprobs,
            entropy=entropy[row],
            kl_full=referred[row].kl,
            values=values[row] if values is not None else None,
            ref_hidden=referred[row].hidden,
            origin_logprobs=None if first is None else first[row].logprobs,
        )
        for row, sampled in enumerate(draft.sampled)
    ]


@torch.no_grad()
def _values(learner: Learner, draft: Draft, hidden: list[Tensor], tokens: int) -> list[Float[Tensor, "R"]] | None:
    """The critic's V(s) before each token of each answer, in microbatches of at most ``tokens`` positions."""
    policy, head = learner.policy, learner.value_head
    if head is None:
        return None
    if not learner.own_critic:
        return [head(states.to(policy.device)).cpu() for states in hidden]
    prompts, responses = draft.prompt_ids, draft.responses
    values: dict[int, Tensor] = {}
    with using(policy, CRITIC):
        for rows in pieces(policy.causal_lm, prompts, responses, tokens):
            found = head(hidden_rows(policy.causal_lm, prompts, responses, rows)).cpu()
            values.update(zip(rows, found.split_with_sizes([len(responses[row]) for row in rows]), strict=True))
    return [values[row] for row in range(len(responses))]


# The update ----------------------------------------------------------------------------------------------------------


def update(
    learner: Learner,
    settings: RlafSettings,
    batch: Batch,
    step: int,
    processes: Processes | None = None,
    budget: Budget | None = None,
) -> dict[str, float]:
    """``ppo_epochs`` passes in ``minibatches`` pieces, one optimizer step each.

    A minibatch is shared between the processes, and each share is cut into microbatches of ``budget``. Every token's
    weight is set for the whole minibatch, so smaller microbatches change nothing. With one update a step every ratio is
    exactly 1. Answers that the loss leaves out keep their place in a minibatch but have no tokens there. A minibatch of
    such answers alone makes no update; where no update was made, only the number of updates (0) is returned.
    Raises TrainingError for a gradient that is not finite or reaches no adapter.
    """
    processes = processes or Processes(cpu=True)
    budget = budget or budget_of(settings)
    prompts, responses = batch.rollouts.prompts, batch.rollouts.responses
    totals = dict.fromkeys((*_LOSSES, "clip_fraction", "ratio", "grad_norm"), 0.0)
    first_ratio = math.nan
    updates = 0
    for epoch in range(settings.ppo_epochs):
        for rows in minibatches(settings, step, epoch, len(responses)):
            minibatch = _minibatch(settings, batch, rows, processes)
            if not minibatch.n_tokens:
                continue
            longest = max((len(prompts[row]) + len(responses[row]) for row in minibatch.rows), default=1)
            with in_step(learner.policy):
                number = step * settings.ppo_epochs * settings.minibatches + updates
                sums = budget.run(partial(_gradient, learner, settings, batch, minibatch, number), least=longest)
            norm = _apply(learner, settings.max_grad_norm, step, processes)
            sums = processes.sums(sums)
            updates += 1
            ratio = sums["ratio"] / sums["n"]
            if math.isnan(first_ratio):
                first_ratio = ratio
            for name in _LOSSES:
                totals[name] += sums[name]
            totals["clip_fraction"] += sums["clipped"] / sums["n"]
            totals["ratio"] += ratio
            totals["grad_norm"] += norm
    if not updates:
        return {"updates": 0}
    result = {name: total / updates for name, total in totals.items()}
    if learner.value_head is None:
        del result["value_loss"]
    if settings.kl_penalty == "k1":
        del result["kl_loss"]
    if not settings.entropy_coef:
        del result["entropy_loss"]
    if learner.held is None:
        del result["retain_kl"]
    if settings.loss == "cispo":
        # Over the cap a ratio weighs less, but still teaches: it isn't clipped as PPO's are.
        result["capped_fraction"] = result.pop("clip_fraction")
    return {**result, "first_ratio": first_ratio, "updates": updates}


def _minibatch(settings: RlafSettings, batch: Batch, rows: list[int], processes: Processes) -> Minibatch:
    """This process's share of one optimizer step's ``rows``, without those that have no token in the loss."""
    lengths = batch.rollouts.loss_mask.sum(1).tolist()
    n_tokens = sum(lengths[row] for row in rows)
    weights = torch.zeros(len(lengths))
    if n_tokens:
        weights[rows] = answer_weights(
            [lengths[row] for row in rows],
            settings.token_weights,
            step_tokens=sum(lengths),
            minibatches=min(settings.minibatches, len(lengths)),
            max_new_tokens=settings.max_new_tokens,
        )
    return Minibatch(processes.share([row for row in rows if lengths[row]]), weights, n_tokens)


def _gradient(
    learner: Learner, settings: RlafSettings, batch: Batch, minibatch: Minibatch, update: int, tokens: int
) -> dict[str, float]:
    """A minibatch's gradient in microbatches of at most ``tokens`` positions; its losses and counts, summed. It is the
    run's optimizer step number ``update``.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    sums = dict.fromkeys((*_LOSSES, "clipped", "ratio", "n"), 0.0)
    if learner.held is not None:
        sums["retain_kl"] = learner.held.add_gradient(update)
    prompts = [batch.rollouts.prompts[row] for row in minibatch.rows]
    responses = [batch.rollouts.responses[row] for row in minibatch.rows]
    recompute = settings.gradient_checkpointing
    for piece in pieces(learner.policy.causal_lm, prompts, responses, tokens, recompute=recompute):
        found = _backward(learner, settings, batch, minibatch, [minibatch.rows[i] for i in piece])
        for name, value in found.items():
            sums[name] += value
    return sums


def _backward(
    learner: Learner, settings: RlafSettings, batch: Batch, minibatch: Minibatch, rows: list[int]
) -> dict[str, float]:
    """Add the gradient of some rows of a minibatch to what is there, and return their losses and counts."""
    policy, rollouts, recompute = learner.policy, batch.rollouts, settings.gradient_checkpointing
    mask = rollouts.response_mask[rows]
    lengths = mask.sum(1)

    def flat(values: Float[Tensor, "B R"] | None) -> Float[Tensor, "N"]:
        assert values is not None
        return values[rows][mask].to(policy.device)

    weights = minibatch.weights[rows].repeat_interleave(lengths).to(policy.device)
    corrected = weights if batch.importance is None else weights * flat(batch.importance)
    stats = forward_rows(
        policy.causal_lm,
        rollouts.prompts,
        rollouts.responses,
        rows,
        kl_to=rollouts.ref_hidden if settings.kl_penalty == "full" else None,
        entropy_gradient=settings.entropy_coef > 0,
        recompute=recompute,
    )
    # The step's only update learns from the policy as it is, so this pass also gives the old log-probabilities,
    # without another pass's rounding.
    only = settings.ppo_epochs * min(settings.minibatches, len(rollouts.responses)) == 1
    old_logprobs = stats.logprobs.detach() if only else flat(rollouts.logprobs)
    advantages = flat(batch.advantages)
    if settings.loss == "cispo":
        loss, counts = cispo_loss(stats.logprobs, old_logprobs, advantages, settings.highest_clip, corrected)
    else:
        loss, counts = policy_loss(
            stats.logprobs,
            old_logprobs,
            advantages,
            settings.clip_range,
            corrected,
            clip_range_high=settings.clip_range_high,
            lengths=lengths.tolist() if settings.per_answer else None,
            geometric=settings.ratio_of == "sequence",
        )
    found = {"policy_loss": float(loss.detach()), **{name: float(count) for name, count in counts.items()}}
    kl_loss = None
    if settings.kl_penalty == "k3":
        kl_loss = (kl_k3_loss(stats.logprobs, old_logprobs, flat(rollouts.ref_logprobs)) * corrected).sum()
    elif settings.kl_penalty == "full":
        assert stats.kl is not None
        # The exact sum doesn't depend on the token that was drawn there, so that token's π/μ is left out.
        kl_loss = (stats.kl * weights).sum()
    if kl_loss is not None:
        found["kl_loss"] = float(kl_loss.detach())
        loss = loss + learner.kl.coef * kl_loss
    if settings.entropy_coef:
        # A mean over the minibatch's tokens, whatever the policy's loss averages over (as in TRL). It is exact at each
        # token, so like the exact KL it needs no weight.
        entropy_loss = -stats.entropy.sum() / minibatch.n_tokens
        found["entropy_loss"] = float(entropy_loss.detach())
        loss = loss + settings.entropy_coef * entropy_loss

    def critic_loss(head: ValueHead, hidden: Float[Tensor, "N H"]) -> Float[Tensor, ""]:
        values = head(hidden, detach=not learner.own_critic)
        old_values, returns = flat(rollouts.values), flat(batch.returns)
        value = value_loss(values, old_values, returns, settings.value_clip_range, minibatch.n_tokens)
        found["value_loss"] = float(value.detach())
        return value

    if learner.value_head is not None and not learner.own_critic:
        loss = loss + critic_loss(learner.value_head, stats.hidden)
    loss.backward()  # type: ignore[no-untyped-call]
    if learner.value_head is not None and learner.own_critic:
        with using(policy, CRITIC):
            hidden = hidden_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, rows, recompute=recompute)
            critic_loss(learner.value_head, hidden).backward()  # type: ignore[no-untyped-call]
    return found


def _apply(learner: Learner, max_norm: float, step: int, processes: Processes) -> float:
    """Add up the processes' gradients, clip and step; returns the adapter's gradient norm. Raises TrainingError,
    before anything changes, where a gradient is missing or not finite.

    Adapter and critic are clipped apart: the critic's errors, in units of reward, would otherwise decide how far the
    policy may go.
    """
    adapter, critic = adapter_parameters(learner.policy.model), learner.critic_parameters()
    if not processes.sum_gradients(adapter):
        raise TrainingError(
            f"step {step + 1}: no gradient reaches the adapter; nothing was updated: set lora.targets to layers "
            "that the answers pass through"
        )
    norms = [float(torch.nn.utils.clip_grad_norm_(adapter, max_norm))]
    if critic:
        processes.sum_gradients(critic)
        norms.append(float(torch.nn.utils.clip_grad_norm_(critic, max_norm)))
    broken = [norm for norm in norms if not math.isfinite(norm)]
    if broken:
        raise TrainingError(
            f"step {step + 1}: the gradient's norm is {broken[0]}; the update was not applied: "
            "lower the learning rate or use --dtype float32"
        )
    learner.optimizer.step()
    return norms[0]
