"""Reinforcement learning from automatic feedback: the loop, to be read from top to bottom.

One copy of the weights serves as policy (adapter on), reference (adapter off, or the fine-tuned adapter that RL
started from) and critic's trunk. Nothing depends on a global random state: prompts, samples and minibatches are drawn
from seeds made of (seed, step), so a run that was killed goes on exactly as if it had not been.
"""

from __future__ import annotations

import math
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewardlm.config import Doubt, KlSettings, RlafSettings
from rewardlm.data.chat import truncate_history
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import DataError, ModelError, RunError, ScorerError, TrainingError
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy, load_policy, resolve_device
from rewardlm.models.logprobs import check_head, forward_rows, microbatches, score_rows
from rewardlm.models.lora import (
    REFERENCE,
    add_lora,
    load_adapter,
    reference,
    save_adapter,
    trainable_parameters,
)
from rewardlm.runs import Run, peak_rss_mb, prompts_hash, rewards_of
from rewardlm.scoring.scorer import cuts, load_scorer
from rewardlm.train.advantages import ESTIMATORS, Feedback
from rewardlm.train.checkpoints import (
    VALUE_HEAD,
    Checkpoint,
    adapter_before,
    latest_checkpoint,
    load_adapter_weights,
    load_state,
    save_checkpoint,
    step_of,
)
from rewardlm.train.objectives import kl_k1, kl_k3, masked_mean, policy_loss, value_loss
from rewardlm.train.rewards import Judged, RewardModel
from rewardlm.train.rollouts import (
    Draft,
    Rollouts,
    judge,
    length_mask,
    sample,
)
from rewardlm.train.value import ValueHead
from rewardlm.types import Prompt

Report = Callable[[int, int, dict[str, Any]], None]

# Not part of what is learnt: a run may be resumed with other values of these.
FREE_SETTINGS = ("device", "micro_batch_tokens", "checkpoint_every", "samples_every", "steps", "resume", "stop_on")


class KlController:
    """The KL coefficient: fixed, or pulled towards a target (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, settings: KlSettings) -> None:
        self.settings = settings
        self.coef = settings.coef

    def update(self, kl: float, answers: int) -> None:
        """``kl`` in nats per answer, averaged over ``answers`` of them."""
        if self.settings.target is None:
            return
        error = min(max(kl / self.settings.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * answers / self.settings.horizon


@dataclass
class Learner:
    """What training changes: the adapter inside ``policy``, the critic, their optimizer and the KL controller."""

    policy: Policy
    value_head: ValueHead | None
    optimizer: torch.optim.Optimizer
    kl: KlController


def train(
    settings: RlafSettings,
    out: Path,
    *,
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter in ``out`` and return its run; a finished run is returned as it is, a killed one goes on.

    ``report(step, steps, metrics)`` is called after every step; ``say`` gets a sentence where prompts are too long, or
    answers are for a judge. Raises TrainingError for NaN, a runaway KL, and what ``stop_on`` names; the newest adapter
    whose answers passed these limits is then in ``out/adapter``. Raises ScorerError for a judge that has the wrong sign
    or fails too often, and TrainingError where no checkpoint can be gone on from.
    """
    run = Run.start(out, kind="rlaf", label="RL", settings=settings.model_dump(mode="json"), free=FREE_SETTINGS)
    done = sum(1 for _ in run.read("metrics"))
    if run.finished and done >= settings.steps:
        return run
    inherited = rewards_of(settings.adapter) if settings.adapter else []
    run.update(status="running", rewards=list(dict.fromkeys([*inherited, *settings.reward])))
    device = str(resolve_device(settings.device))

    # 1. The reward, and whether it points the right way.
    rewards = RewardModel([load_scorer(name, device=device) for name in settings.reward], settings.rewards)
    rewards.check_sign()

    # 2. Policy, reference and critic on one trunk.
    policy = load_policy(settings)
    check_head(policy.causal_lm)
    learner = _learner(policy, settings)

    # 3. Prompts as token ids.
    prompt_set = load_prompts(settings.prompts, part=settings.part, limit=settings.limit, seed=settings.seed)
    prompts = prompt_set.prompts
    per_step = settings.batch_size // settings.samples_per_prompt
    if not prompts:
        raise DataError(f"{settings.prompts} (part {settings.part}) has no prompts to train on")
    prompt_ids, cut = _encode(policy, prompts, settings)
    if cut and say is not None:
        say(f"{cut:,} of {len(prompts):,} prompts are too long: they lose the beginning of their history")
    _refuse_others(run, model_hash=policy.weights_hash, prompts_hash=prompts_hash(prompts))
    run.update(
        **policy.describe(),
        prompts={"source": settings.prompts, "part": settings.part, "n": len(prompts), "truncated": cut},
        prompts_hash=prompts_hash(prompts),
        dropped_prompts=prompt_set.dropped,
    )

    # 4. Where a killed run stopped.
    last_good = _LastGood(policy.model, run.path / "adapter")
    checkpoint = latest_checkpoint(run.path, logged=done, resume=settings.resume)
    start = 0 if checkpoint is None else _resume(checkpoint, learner, rewards, last_good)
    if checkpoint is not None and checkpoint.damaged:
        run.update(inexact_resume=start)
    fresh_critic = checkpoint is None or VALUE_HEAD in checkpoint.damaged
    run.forget_after(start)

    for step in range(start, settings.steps):
        started = time.perf_counter()
        clock = _Clock()

        with last_good.left_behind(step):
            # 5. Answers from the policy as it is now.
            chosen = [int(i) for i in _draw_prompts(len(prompts), per_step, settings.seed, step)]
            with clock("rollout"):
                draft = sample(
                    policy,
                    [prompts[i] for i in chosen],
                    [prompt_ids[i] for i in chosen],
                    samples=settings.samples_per_prompt,
                    max_new_tokens=settings.max_new_tokens,
                    seed=settings.seed,
                    step=step,
                    batch_tokens=max(settings.micro_batch_tokens, 4096),
                    keep_hidden=learner.value_head is not None,
                )

            # 6. Rewards: text in, P(toxic) out, turned round.
            with clock("reward"):
                kept, judged, dropped = judge(draft, rewards, min_group=1 if settings.algorithm == "ppo" else 2)
            if not kept:
                raise ScorerError(f"step {step + 1}: no answer could be scored ({', '.join(dropped)})")

            # 7. How likely each answer was, under the policy and under the reference.
            if step == start and fresh_critic and learner.value_head is not None:
                learner.value_head.start_at(fmean(reward for reward in judged.rewards if reward is not None))
            with clock("logprobs"):
                rollouts = _rollouts(learner, settings, draft, kept, judged, dropped)
            kl = kl_k1(rollouts.logprobs, rollouts.ref_logprobs) * rollouts.response_mask
            kl_per_answer = float(kl.sum(1).mean())
            doubts = _doubts(rollouts, kl_per_answer, [prompts[i].text for i in chosen])
            _check_limits(step, kl_per_answer, rollouts, doubts, settings)
            last_good.remember(step)

            # 8. Advantages.
            advantages, returns = ESTIMATORS[settings.algorithm](
                Feedback(
                    rewards=rollouts.rewards,
                    kl=kl,
                    mask=rollouts.response_mask,
                    group=rollouts.group,
                    values=rollouts.values,
                    kl_coef=learner.kl.coef,
                    gamma=settings.gamma,
                    gae_lambda=settings.gae_lambda,
                )
            )

            # 9. Epochs of minibatches, one optimizer step each.
            with clock("update"):
                losses = _update(learner, settings, rollouts, advantages, returns, step)

        kl_coef = learner.kl.coef
        learner.kl.update(kl_per_answer, len(rollouts.responses))

        # 10. Write down what happened, then make it safe. The step counts from here on.
        metrics: dict[str, Any] = {
            "step": step + 1,
            **_metrics(rollouts, kl_per_answer, kl_coef, advantages),
            **losses,
            "cut": {scorer.name: sum(cuts(scorer, draft.texts)) for scorer in rewards.scorers},
            "warnings": list(doubts.values()),
            "tokens_per_second": rollouts.n_tokens / (time.perf_counter() - started),
            "peak_rss_mb": peak_rss_mb(),
        }
        if (step + 1) % settings.samples_every == 0 or step == 0:
            run.append("samples", _samples(step + 1, draft, [prompts[i] for i in chosen], judged))
        with clock("checkpoint"):
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                save_checkpoint(
                    run.path,
                    step + 1,
                    adapter=policy.model,
                    value_head=learner.value_head,
                    optimizer=learner.optimizer,
                    state={"step": step + 1, "kl_coef": learner.kl.coef, "failures": rewards.failures()},
                )
        metrics["phase_seconds"] = clock.seconds
        metrics["seconds"] = time.perf_counter() - started
        run.append("metrics", [metrics])
        for text in metrics["warnings"]:
            warnings.warn(f"step {step + 1}: {text}", stacklevel=2)
        if report is not None:
            report(step + 1, settings.steps, metrics)

    # 11. The adapter, where every other command looks for it.
    rewards.close()
    save_adapter(policy.model, run.path / "adapter")
    answers_cut = {
        scorer.name: sum(line.get("cut", {}).get(scorer.name, 0) for line in run.read("metrics"))
        for scorer in rewards.scorers
    }
    for name, n in answers_cut.items():
        if n and say is not None:
            say(f"{n:,} answers were too long for the judge {name}: it read a part of each")
    run.update(status="finished", steps=max(start, settings.steps), cut=answers_cut)
    return run


def _refuse_others(run: Run, **found: str) -> None:
    """A run that goes on must go on with the weights and prompts that it began with. Raises RunError."""
    for name, value in found.items():
        before = run.meta.get(name)
        if before is not None and before != value:
            raise RunError(
                f"{run.path} began with other {'weights' if name == 'model_hash' else 'prompts'} "
                f"({before[:12]}…, now {value[:12]}…): put them back, or choose another --out"
            )


def _learner(policy: Policy, settings: RlafSettings) -> Learner:
    """The trainable adapter (fresh, or a copy of ``settings.adapter``), the critic and one optimizer for both."""
    if settings.adapter is None:
        add_lora(policy, settings.lora, seed=settings.seed)
    else:
        load_adapter(policy, settings.adapter, trainable=True)
        load_adapter(policy, settings.adapter, name=REFERENCE)
        policy.model.set_adapter("default")
    policy.model.eval()  # Dropout off: the policy that is updated must be the policy that answered.
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_("lora_" in name and f".{REFERENCE}." not in name)
    value_head = None
    parameters = trainable_parameters(policy.model)
    groups: list[dict[str, Any]] = [{"params": parameters, "lr": settings.learning_rate}]
    if settings.algorithm == "ppo":
        value_head = ValueHead(policy.causal_lm.get_input_embeddings().embedding_dim).to(policy.device)
        groups.append({"params": list(value_head.parameters()), "lr": settings.value_learning_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.95))
    return Learner(policy, value_head, optimizer, KlController(settings.kl))


def _encode(policy: Policy, prompts: list[Prompt], settings: RlafSettings) -> tuple[list[tuple[int, ...]], int]:
    limit = min(settings.max_prompt_tokens, policy.max_positions - settings.max_new_tokens)
    encoded = [truncate_history(policy.chat, prompt.turns, limit) for prompt in prompts]
    return [tuple(ids) for ids, _ in encoded], sum(cut > 0 for _, cut in encoded)


def _draw_prompts(n: int, per_step: int, seed: int, step: int) -> list[int]:
    """Indices of this step's prompts: epochs of seeded permutations, computed from the step alone."""
    drawn: list[int] = []
    position = step * per_step
    while len(drawn) < per_step:
        epoch, offset = divmod(position, n)
        order = np.random.default_rng(stream_seed("prompts", seed, epoch)).permutation(n)
        piece = order[offset : offset + per_step - len(drawn)].tolist()
        drawn += piece
        position += len(piece)
    return drawn


def _rollouts(
    learner: Learner,
    settings: RlafSettings,
    draft: Draft,
    kept: list[int],
    judged: Judged,
    dropped: dict[str, int],
) -> Rollouts:
    policy = learner.policy
    prompts = [draft.prompt_ids[row] for row in kept]
    responses = [draft.sampled[row].tokens for row in kept]
    mask = length_mask(responses)
    if policy.dtype == torch.float32:
        # Sampled untruncated at temperature 1, so what sampling saw is exact to float32's rounding.
        logprobs = pad_sequence([draft.sampled[row].logprobs for row in kept], batch_first=True)
        entropy = pad_sequence([draft.sampled[row].entropy for row in kept], batch_first=True)
    else:
        # One token at a time and many at once round differently: below float32 the ratio would start off 1.
        logprobs, entropy = score_rows(policy.causal_lm, prompts, responses, settings.micro_batch_tokens)
    with reference(policy):
        ref_logprobs, _ = score_rows(policy.causal_lm, prompts, responses, settings.micro_batch_tokens)
    values = None
    if learner.value_head is not None:
        with torch.no_grad():
            values = torch.zeros_like(logprobs)
            for row, source in enumerate(kept):
                states = draft.sampled[source].hidden
                assert states is not None
                values[row, : len(states)] = learner.value_head(states.to(policy.device)).cpu()
    return Rollouts(
        prompts=prompts,
        responses=responses,
        response_mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        values=values,
        rewards=torch.tensor([judged.rewards[row] for row in kept], dtype=torch.float32),
        group=torch.tensor([draft.asked[row] for row in kept]),
        texts=[draft.texts[row] for row in kept],
        judged=judged,
        dropped=dropped,
    )


def _update(
    learner: Learner,
    settings: RlafSettings,
    rollouts: Rollouts,
    advantages: Tensor,
    returns: Tensor | None,
    step: int,
) -> dict[str, float]:
    """``ppo_epochs`` passes in ``minibatches`` pieces; each piece in microbatches with one global normaliser."""
    policy, device = learner.policy, learner.policy.device
    sizes = rollouts.response_mask.sum(1).tolist()
    lengths = [len(p) + len(r) for p, r in zip(rollouts.prompts, rollouts.responses, strict=True)]
    totals = {"policy_loss": 0.0, "value_loss": 0.0, "clip_fraction": 0.0, "ratio": 0.0, "grad_norm": 0.0}
    first_ratio = math.nan
    updates = 0
    for epoch in range(settings.ppo_epochs):
        order = np.random.default_rng(stream_seed("minibatch", settings.seed, step, epoch)).permutation(len(sizes))
        for minibatch in np.array_split(order, min(settings.minibatches, len(sizes))):
            n_tokens = sum(sizes[row] for row in minibatch)
            learner.optimizer.zero_grad(set_to_none=True)
            sums = dict.fromkeys(("policy_loss", "value_loss", "clipped", "ratio"), 0.0)
            for piece in microbatches([lengths[row] for row in minibatch], settings.micro_batch_tokens):
                rows = [int(minibatch[i]) for i in piece]
                _, stats = forward_rows(policy.causal_lm, rollouts.prompts, rollouts.responses, rows)

                def flat(values: Tensor, rows: list[int] = rows) -> Tensor:
                    return values[rows][rollouts.response_mask[rows]].to(device)

                loss, counts = policy_loss(
                    stats.logprobs,
                    flat(rollouts.logprobs),
                    flat(advantages),
                    settings.clip_range,
                    n_tokens,
                )
                sums["policy_loss"] += float(loss.detach())
                sums["clipped"] += float(counts["clipped"])
                sums["ratio"] += float(counts["ratio"])
                if learner.value_head is not None:
                    assert returns is not None
                    assert rollouts.values is not None
                    value = value_loss(
                        learner.value_head(stats.hidden),
                        flat(rollouts.values),
                        flat(returns),
                        settings.value_clip_range,
                        n_tokens,
                    )
                    sums["value_loss"] += float(value.detach())
                    loss = loss + settings.value_coef * value
                loss.backward()  # type: ignore[no-untyped-call]
            norm = _apply(learner, settings.max_grad_norm, step)
            updates += 1
            if math.isnan(first_ratio):
                first_ratio = sums["ratio"] / n_tokens
            totals["policy_loss"] += sums["policy_loss"]
            totals["value_loss"] += sums["value_loss"]
            totals["clip_fraction"] += sums["clipped"] / n_tokens
            totals["ratio"] += sums["ratio"] / n_tokens
            totals["grad_norm"] += norm
    result = {name: total / updates for name, total in totals.items()}
    if learner.value_head is None:
        del result["value_loss"]
    return {**result, "first_ratio": first_ratio, "updates": updates}


def _apply(learner: Learner, max_norm: float, step: int) -> float:
    """Clip and step; the adapter's gradient norm. Raises TrainingError, before anything changes, where a gradient is
    missing or not finite.

    Adapter and critic are clipped apart: the critic is detached, and its errors, in units of reward, would otherwise
    decide how far the policy may go.
    """
    adapter = trainable_parameters(learner.policy.model)
    if all(parameter.grad is None for parameter in adapter):
        raise TrainingError(
            f"step {step + 1}: no gradient reaches the adapter (quantised weights on a CPU do this): "
            "load in full precision"
        )
    norms = [float(torch.nn.utils.clip_grad_norm_(adapter, max_norm))]
    if learner.value_head is not None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(learner.value_head.parameters(), max_norm)))
    broken = [norm for norm in norms if not math.isfinite(norm)]
    if broken:
        raise TrainingError(
            f"step {step + 1}: the gradient's norm is {broken[0]}; the update was not applied: "
            "lower the learning rate or use --dtype float32"
        )
    learner.optimizer.step()
    return norms[0]


def _check_limits(step: int, kl: float, rollouts: Rollouts, doubts: dict[Doubt, str], settings: RlafSettings) -> None:
    if not math.isfinite(kl) or not bool(torch.isfinite(rollouts.rewards).all()):
        raise TrainingError(f"step {step + 1}: KL is {kl}: use --dtype float32")
    if kl > settings.kl.max:
        raise TrainingError(
            f"step {step + 1}: KL to the reference is {kl:.1f} nats an answer, over the limit kl.max="
            f"{settings.kl.max}: raise --kl-coef or lower the learning rate"
        )
    for name in settings.stop_on:
        if name in doubts:
            raise TrainingError(
                f"step {step + 1}: {doubts[name]}, and stop_on names {name}: raise --kl-coef, lower the learning rate, "
                "or take it out of stop_on"
            )


def _doubts(rollouts: Rollouts, kl: float, prompts: Sequence[str]) -> dict[Doubt, str]:
    """What looks wrong with a step's answers although every number is finite: a sentence each, by name."""
    found: dict[Doubt, str] = {}
    if kl < -1.0:
        found["negative_kl"] = f"negative KL: {kl:.2f} nats an answer"
    rewards = rollouts.rewards
    if len(rewards) > 1 and bool((rewards == rewards[0]).all()):
        found["constant_reward"] = f"constant reward: all {len(rewards)} answers got {float(rewards[0]):.3f}"
    entropy = float(masked_mean(rollouts.entropy, rollouts.response_mask))
    if entropy < 0.1:
        found["entropy_collapse"] = f"entropy collapse: {entropy:.3f} nats a token"
    asked, answered = _non_latin(prompts), _non_latin(rollouts.texts)
    if answered > asked + 0.2:
        found["language_switch"] = (
            f"language switch: {answered:.0%} of the answers are not in Latin script, {asked:.0%} of prompts"
        )
    return found


def _metrics(rollouts: Rollouts, kl: float, kl_coef: float, advantages: Tensor) -> dict[str, Any]:
    mask = rollouts.response_mask
    k3 = kl_k3(rollouts.logprobs, rollouts.ref_logprobs) * mask
    known = [value for value in rollouts.judged.toxicity if value is not None]
    judges = {
        name: float(np.mean(values))
        for name, scores in rollouts.judged.by_judge.items()
        if (values := [score for score in scores if score is not None])
    }
    spread = torch.std(rollouts.rewards) if len(rollouts.rewards) > 1 else torch.zeros(())
    return {
        "reward_mean": float(rollouts.rewards.mean()),
        "reward_std": float(spread),
        "toxicity_mean": float(np.mean(known)) if known else None,
        "toxic_fraction": float(np.mean([value > 0.5 for value in known])) if known else None,
        "toxicity_by_judge": judges,
        "kl": kl,
        "kl_k3": float(k3.sum(1).mean()),
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(rollouts.entropy, mask)),
        "advantage_std": float(advantages[mask].std()) if int(mask.sum()) > 1 else 0.0,
        "response_tokens": float(mask.sum(1).float().mean()),
        "empty_fraction": float(np.mean(rollouts.judged.empty)),
        "answers": len(rollouts.responses),
        "dropped": rollouts.dropped,
    }


def _non_latin(texts: Sequence[str]) -> float:
    """Share of texts most of whose letters are not Latin."""
    outside = 0
    for text in texts:
        latin = ["LATIN" in unicodedata.name(letter, "") for letter in text if letter.isalpha()]
        outside += 2 * sum(latin) < len(latin)
    return outside / max(1, len(texts))


def _samples(step: int, draft: Draft, prompts: list[Prompt], judged: Judged) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "prompt": prompts[draft.asked[row]].text,
            "response": draft.texts[row],
            "reward": judged.rewards[row],
            "toxicity": judged.toxicity[row],
        }
        for row in range(min(4, len(draft.texts)))
    ]


def _resume(checkpoint: Checkpoint, learner: Learner, rewards: RewardModel, last_good: _LastGood) -> int:
    """Put everything back as it was after the checkpoint's step, and return that step."""
    model = learner.policy.model
    # The checkpoint's own adapter has not answered yet; the one before it has, or its step would not have been logged.
    before = adapter_before(checkpoint.folder)
    if before is not None:
        load_adapter_weights(before, model)
    last_good.remember(0 if before is None else step_of(before))
    state = load_state(checkpoint, model=model, value_head=learner.value_head, optimizer=learner.optimizer)
    learner.kl.coef = state.get("kl_coef", learner.kl.coef)
    rewards.restore_failures(state.get("failures", {}))
    return checkpoint.step


class _LastGood:
    """The newest adapter whose answers passed the limits: what a run that hits one leaves in ``folder``.

    A runaway KL is seen one step after the update that caused it, so this may be older than the newest checkpoint.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.step: int | None = None
        self._weights: list[Tensor] = []

    def remember(self, step: int) -> None:
        """The adapter as it is now, after ``step`` steps, is sound."""
        self.step = step
        self._weights = [parameter.detach().clone() for parameter in trainable_parameters(self.model)]

    @contextmanager
    def left_behind(self, step: int) -> Iterator[None]:
        """Inside, a limit that is hit puts the last good adapter back and saves it; NaN logits name the step."""
        try:
            yield
        except (TrainingError, ModelError) as error:
            message = str(error) if isinstance(error, TrainingError) else f"step {step + 1}: {error}"
            if self.step is not None:
                with torch.no_grad():
                    for parameter, weights in zip(trainable_parameters(self.model), self._weights, strict=True):
                        parameter.copy_(weights)
                save_adapter(self.model, self.folder)
                message += f" (the adapter of step {self.step} is kept in {self.folder})"
            raise TrainingError(message) from error


class _Clock:
    """Seconds a phase, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
