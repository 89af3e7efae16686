"""Reinforcement learning from automatic feedback: the loop, to be read from top to bottom.

One copy of the weights serves as policy (adapter on), reference (adapter off, or the fine-tuned adapter that RL
started from) and critic's trunk. Nothing depends on a global random state: prompts, samples and minibatches are drawn
from seeds made of (seed, step), so a run that was killed goes on exactly as if it had not been. On several processes
each answers, judges and updates its share of the same step.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import OverlongSettings, RlafSettings, TermSettings, flatten, how_asked
from rewardlm.data.chat import truncate_history
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ConfigError, DataError, RewardLMError, RunError, ScorerError, TrainingError
from rewardlm.measuring.audit import same_judge
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy, resolve_device
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import adapter_hash, replace_adapter
from rewardlm.models.processes import Processes
from rewardlm.models.quantised import check_gradients
from rewardlm.models.sharding import load_for
from rewardlm.runs import Run, alone, peak_rss_mb, prompts_hash, reward_lineage, rewards_of
from rewardlm.scoring.lineage import kinship, lineage_of
from rewardlm.scoring.scorer import check_judges, cuts, load_scorer
from rewardlm.training.advantages import Feedback, charge_silence, estimate, load_estimator
from rewardlm.training.checkpoints import (
    VALUE_HEAD,
    Checkpoint,
    adapter_before,
    latest_checkpoint,
    load_adapter_weights,
    load_state,
    save_checkpoint,
    step_of,
)
from rewardlm.training.guards import LastGood, check_limits, doubts_about
from rewardlm.training.learner import Learner, budget_of, corrections, make_learner, minibatches, update, weigh
from rewardlm.training.objectives import kl_k1, kl_k3, masked_mean, real
from rewardlm.training.rewards import Judged, RewardModel
from rewardlm.training.rollouts import Answer, Draft, Rollouts, collate, learnable, mean_of_known, means_by_name, sample
from rewardlm.training.terms import load_terms
from rewardlm.training.trackers import Trackers, check_installed
from rewardlm.types import Prompt

Report = Callable[[int, int, dict[str, Any]], None]

# Not part of what is learnt: a run may be resumed with other values of these.
FREE_SETTINGS = (
    "device",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "samples_every",
    "steps",
    "resume",
    "stop_on",
    "trackers",
    "witness",
    "shard",
)
# What older versions recorded of a run, and what never made a difference.
GONE_SETTINGS = ("value_coef",)
# What runs begun by older versions did before there was a choice.
OLDER_RUNS = {
    "loss_type": "bnpo",
    "ratio": "token",
    "kl.penalty": "k1",
    "importance_cap": 2.0,
    "rewards.std_weight": 1.0,
    "rewards.probe": None,
    "rewards.missing_eos_penalty": 0.0,
    **{f"rewards.overlong.{name}": value for name, value in OverlongSettings().model_dump().items()},
    "mask_truncated_completions": False,
    **{f"rewards.terms.{name}": value for name, value in TermSettings().model_dump().items()},
}


def train(
    settings: RlafSettings,
    out: Path,
    *,
    report: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter in ``out`` and return its run; a finished run is returned as it is, a killed one goes on.

    ``report(step, steps, metrics)`` is called after every step; ``say`` gets a sentence where prompts are too long,
    answers are not the policy's own or are too long for a judge. Raises TrainingError for NaN, a runaway KL, and what
    ``stop_on`` names; the newest adapter whose answers passed these limits is then in ``out/adapter``. Raises
    ScorerError for a judge that has the wrong sign or fails too often, TrainingError where no checkpoint can be gone on
    from, and RunError where another command writes ``out``.
    """
    processes = Processes(cpu=str(resolve_device(settings.device)) == "cpu")
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(alone(out)))
        return _train(settings, out, processes, report, processes.voice(say))


def _train(
    settings: RlafSettings, out: Path, processes: Processes, report: Report | None, say: Callable[[str], None]
) -> Run:
    settings = processes.first(lambda: _as_begun(settings, out, say))
    run = processes.first(lambda: _start(settings, out))
    done = sum(1 for _ in run.read("metrics"))
    if run.finished and done >= settings.steps:
        return run
    device = processes.device or str(resolve_device(settings.device))
    check_installed(settings.trackers)

    # 1. The reward, and whether it points the right way.
    witnesses = _witnesses(settings)
    check_judges([*settings.reward, *witnesses])
    rewards = RewardModel(
        [load_scorer(name, device=device, services=settings.services) for name in settings.reward],
        settings.rewards,
        weights=[settings.rewards.weights.get(name, 1.0) for name in settings.reward],
        witnesses=[load_scorer(name, device=device, services=settings.services) for name in witnesses],
        terms=load_terms(settings.rewards.terms, device=device, services=settings.services),
        max_new_tokens=settings.max_new_tokens,
    )
    rewards.check_sign()

    # 2. Policy, reference and critic on one trunk.
    policy, learner = load_for(settings, processes, lambda policy: make_learner(policy, settings))
    check_head(policy.causal_lm)
    estimator = load_estimator(settings.algorithm)

    # 3. Prompts as token ids.
    prompt_set = load_prompts(settings.prompts, part=settings.part, limit=settings.limit, seed=settings.seed)
    prompts = prompt_set.prompts
    per_step = settings.batch_size // settings.samples_per_prompt
    if not prompts:
        raise DataError(f"{settings.prompts} (part {settings.part}) has no prompts to train on")
    if per_step < processes.size:
        raise TrainingError(f"a step has {per_step} prompts for {processes.size} processes: raise --batch-size")
    prompt_ids, cut = _encode(policy, prompts, settings)
    if cut:
        say(f"{cut:,} of {len(prompts):,} prompts are too long: they lose the beginning of their history")
    if settings.off_policy:
        say(
            f"answers are drawn with other settings than temperature 1, untruncated: every {settings.ratio_of} is "
            f"weighted by its probability under the policy over that of drawing it, at most {settings.importance_cap:g}"
        )
    if settings.lora.dropout:
        say("lora.dropout is left out: the policy that is updated must be the policy that answered")
    identity = {
        "model_hash": policy.weights_hash,
        "prompts_hash": prompts_hash(prompts),
        "adapter_hash": adapter_hash(settings.adapter) if settings.adapter else None,
        "judges": {scorer.name: getattr(scorer, "revision", None) for scorer in rewards.scorers},
    }
    _refuse_others(run, identity)
    if processes.is_main:
        run.update(
            **{**policy.describe(), **identity},
            prompts={"source": settings.prompts, "part": settings.part, "n": len(prompts), "truncated": cut},
            dropped_prompts=prompt_set.dropped,
            processes=processes.size,
        )

    # 4. Where a killed run stopped.
    last_good = LastGood(policy.model, run.path / "adapter", processes)
    checkpoint = latest_checkpoint(run.path, logged=done, resume=settings.resume)
    start = 0 if checkpoint is None else _resume(checkpoint, learner, rewards, last_good)
    fresh_critic = checkpoint is None or VALUE_HEAD in checkpoint.damaged
    if len(set(processes.gather(lambda: [start]))) > 1:
        raise TrainingError(
            f"the processes find other checkpoints in {run.path}: --out must be a folder that all share"
        )
    if processes.is_main:
        if checkpoint is not None and checkpoint.damaged:
            run.update(inexact_resume=start)
        run.forget_after(start)
    processes.wait()
    history = list(run.read("metrics"))
    # Less than these once memory has run out.
    asking, learning = Budget(max(settings.micro_batch_tokens, 4096), "positions of a rollout"), budget_of(settings)

    open_trackers = Trackers(settings.trackers if processes.is_main else [], run, cpu=device.startswith("cpu"))
    with open_trackers as trackers, _stop_noted(run, processes):
        for step in range(start, settings.steps):
            started = time.perf_counter()
            clock = _Clock()

            with last_good.left_behind(step):
                # 5. Answers from the policy as it is now: each process asks its part of the step's prompts.
                chosen = _draw_prompts(len(prompts), per_step, settings.seed, step)
                numbers = processes.span(per_step)
                asked = [chosen[number] for number in numbers]
                with clock("rollout"):
                    draft = processes.together(
                        partial(
                            sample,
                            policy,
                            [prompts[i] for i in asked],
                            [prompt_ids[i] for i in asked],
                            numbers=numbers,
                            samples=settings.samples_per_prompt,
                            max_new_tokens=settings.max_new_tokens,
                            sampling=settings.generation,
                            seed=settings.seed,
                            step=step,
                            batch_tokens=asking,
                            keep_hidden=True,
                        )
                    )

                # 6. Rewards: text in, P(toxic) out, turned round.
                with clock("reward"):
                    asked_to = [prompts[chosen[number]].text for number in draft.asked]
                    of_the_step = [prompts[number].text for number in chosen]
                    opinions = processes.gather(
                        partial(rewards.opinions, draft.texts, asked_to, draft.endings, of_the_step)
                    )
                judged = rewards.rewarded(opinions)
                groups = [number for number in range(per_step) for _ in range(settings.samples_per_prompt)]
                questions = [prompts[chosen[number]].text for number in groups]
                kept, dropped = learnable(judged, groups, min_group=2 if settings.compares_answers else 1)
                if not kept:
                    raise ScorerError(f"step {step + 1}: no answer could be scored ({', '.join(dropped)})")

                # 7. How likely each answer was, under the policy and under the reference, and what the critic expected.
                if step == start and fresh_critic and learner.value_head is not None:
                    learner.value_head.start_at(fmean(reward for reward in judged.rewards if reward is not None))
                with clock("logprobs"):
                    together = _learnt_together(settings, step, kept, draft) if processes.size == 1 else None
                    answers = processes.gather(partial(weigh, learner, settings, draft, learning, together))
                rollouts = collate(answers, judged, kept, dropped, mask_truncated=settings.mask_truncated_completions)
                kl = kl_k1(rollouts.logprobs, rollouts.ref_logprobs) * rollouts.response_mask
                # Of each token, whatever the loss does: whole answers' weights would make the KL vanish from sight.
                weights_of_draw = corrections(settings, rollouts, per_answer=False)
                kl_per_answer = _per_answer(kl, rollouts, weights_of_draw)
                doubts = doubts_about(
                    rollouts,
                    kl_per_answer,
                    [questions[row] for row in kept],
                    history,
                    compares_answers=settings.compares_answers,
                    kl_coef=learner.kl.coef,
                )
                check_limits(step, kl_per_answer, rollouts, doubts, settings)
                last_good.remember(step)

                # 8. Advantages. Silence is the batch's worst answer in both that they are made of.
                silent = torch.tensor([judged.empty[row] for row in kept])
                advantages, returns = estimate(
                    estimator,
                    Feedback(
                        rewards=rollouts.rewards,
                        # What the loss leaves out pays no KL, as in TRL.
                        kl=charge_silence(kl * rollouts.loss_mask, rollouts.response_mask, silent),
                        mask=rollouts.response_mask,
                        group=rollouts.group,
                        values=rollouts.values,
                        kl_coef=learner.kl.coef if settings.kl_penalty == "k1" else 0.0,
                        gamma=settings.gamma,
                        gae_lambda=settings.gae_lambda,
                    ),
                    per_answer=settings.ratio_of == "answer",
                )

                # 9. Epochs of minibatches, one optimizer step each.
                if step == start:
                    check_gradients(policy.model)  # After a pass without them: what could cut them off has happened.
                with clock("update"):
                    losses = update(learner, settings, rollouts, advantages, returns, step, processes, learning)

            kl_coef = learner.kl.coef
            learner.kl.update(kl_per_answer, len(rollouts.responses))

            # 10. Write down what happened, then make it safe. The step counts from here on.
            metrics: dict[str, Any] = {
                "step": step + 1,
                **_metrics(rollouts, weights_of_draw, kl_per_answer, kl_coef, advantages),
                **_weights_in_loss(settings, rollouts),
                **losses,
                "cut": {scorer.name: sum(cuts(scorer, [a.text for a in answers])) for scorer in rewards.scorers},
                "warnings": list(doubts.values()),
                "tokens_per_second": rollouts.n_tokens / (time.perf_counter() - started),
                "peak_rss_mb": peak_rss_mb(),
                "micro_batch_tokens": learning.size,
                "out_of_memory": asking.shortages + learning.shortages,
            }
            if processes.is_main:
                if (step + 1) % settings.samples_every == 0 or step == 0:
                    run.append("samples", _samples(step + 1, answers, questions, judged))
                with clock("checkpoint"):
                    if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                        save_checkpoint(
                            run.path,
                            step + 1,
                            adapter=policy.model,
                            value_head=learner.value_head,
                            optimizer=learner.optimizer,
                            state={"step": step + 1, "kl_coef": learner.kl.coef, "failures": rewards.failures()},
                            own_critic=learner.own_critic,
                        )
                metrics["phase_seconds"] = clock.seconds
                metrics["seconds"] = time.perf_counter() - started
                run.append("metrics", [metrics])
                trackers.log(metrics)
                for text in metrics["warnings"]:
                    warnings.warn(f"step {step + 1}: {text}", stacklevel=2)
                if report is not None:
                    report(step + 1, settings.steps, metrics)
            history.append(metrics)

    # 11. The adapter, where every other command looks for it.
    if processes.is_main:
        replace_adapter(policy.model, run.path / "adapter")
        answers_cut = {
            scorer.name: sum(line.get("cut", {}).get(scorer.name, 0) for line in history) for scorer in rewards.scorers
        }
        for name, n in answers_cut.items():
            if n:
                say(f"{n:,} answers were too long for the judge {name}: it read a part of each")
        for name, (seen, failed, reason) in rewards.failures().items():
            if failed:
                say(f"{failed:,} of {seen:,} answers could not be scored by {name} and taught nothing: {reason}")
        run.update(status="finished", steps=max(start, settings.steps), cut=answers_cut)
    processes.wait()
    return Run.open(run.path)


def _as_begun(settings: RlafSettings, out: Path, say: Callable[[str], None]) -> RlafSettings:
    """Where ``kl.penalty`` is left open, the k1 of a run that was begun when that was every algorithm's default."""
    if settings.kl.penalty is not None or not (out / "run.json").exists():
        return settings
    meta = Run.open(out).meta
    begun = flatten(meta["settings"]).get("kl.penalty", OLDER_RUNS["kl.penalty"])
    if meta["kind"] != "rlaf" or begun != "k1" or settings.kl_penalty == "k1":
        return settings
    say(f"kl.penalty stays k1, with which this run began; {settings.algorithm}'s default is {settings.kl_penalty} now")
    return settings.model_copy(update={"kl": settings.kl.model_copy(update={"penalty": begun})})


def _start(settings: RlafSettings, out: Path) -> Run:
    recorded = settings.resolved().model_dump(mode="json")
    terms = settings.rewards.terms
    run = Run.start(
        out,
        kind="rlaf",
        label="RL",
        settings=recorded,
        free=(*FREE_SETTINGS, *GONE_SETTINGS, *how_asked(recorded)),
        added=("services", "quantisation"),
        filled={
            **OLDER_RUNS,
            "critic": "trunk" if settings.algorithm == "ppo" else None,
            # Then nothing was taken off; where the term is off it doesn't matter.
            "rewards.terms.counter_narrative_others": 0 if terms.counter_narrative else terms.counter_narrative_others,
        },
    )
    if not run.finished or sum(1 for _ in run.read("metrics")) < settings.steps:
        inherited = rewards_of(settings.adapter) if settings.adapter else []
        # A judge of counter-narratives is a reward like any other: its share must not be the proof afterwards.
        judges = [*settings.reward, *([terms.counter_narrative_judge] if terms.counter_narrative else [])]
        run.update(
            status="running",
            stopped=None,
            rewards=list(dict.fromkeys([*inherited, *judges])),
            reward_lineage={
                **(reward_lineage(settings.adapter) if settings.adapter else {}),
                **{name: lineage_of(name).to_dict() for name in judges},
            },
        )
    return run


def _witnesses(settings: RlafSettings) -> list[str]:
    """The judges that only watch. Raises ConfigError where one of them is, or is a part of, the reward."""
    if settings.witness is None:
        # The first that neither is nor is related to a judge of the reward.
        rewards = [lineage_of(reward) for reward in settings.reward]
        for name in ("witness", "lexical"):
            if not any(kinship(lineage_of(name), reward) for reward in rewards):
                return [name]
        return []
    for name in settings.witness:
        for reward in settings.reward:
            if same_judge(name, reward):
                raise ConfigError(
                    f"witness {name} is a judge of the reward ({reward}): a witness must not be trained on"
                )
    return settings.witness


def _refuse_others(run: Run, found: Mapping[str, Any]) -> None:
    """A run that goes on must go on with what it began with. Raises RunError."""
    what = {
        "model_hash": "other weights",
        "prompts_hash": "other prompts",
        "adapter_hash": "an adapter to start from that was other",
        "judges": "other revisions of its judges",
    }
    for name, value in found.items():
        before = run.meta.get(name)
        if before is not None and before != value:
            raise RunError(f"{run.path} began with {what[name]}: put them back, or choose another --out")


@contextmanager
def _stop_noted(run: Run, processes: Processes) -> Iterator[None]:
    """Inside, what ends the training early is written into the run, for those who look at it later."""
    try:
        yield
    except (RewardLMError, KeyboardInterrupt) as error:
        if processes.is_main:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            run.update(status="stopped", stopped=reason)
        raise


def _encode(policy: Policy, prompts: list[Prompt], settings: RlafSettings) -> tuple[list[tuple[int, ...]], int]:
    limit = min(settings.max_prompt_tokens, policy.max_positions - settings.max_new_tokens)
    encoded = [truncate_history(policy.chat, prompt.turns, limit) for prompt in prompts]
    return [tuple(ids) for ids, _ in encoded], sum(cut > 0 for _, cut in encoded)


def _learnt_together(settings: RlafSettings, step: int, kept: Sequence[int], draft: Draft) -> list[list[int]]:
    """The drafted answers as the first epoch's minibatches learn from them, and last those that none learns from."""
    learnt = set(kept)
    if settings.mask_truncated_completions:
        learnt = {row for row in kept if draft.sampled[row].finish == "stop"}
    rows = [
        [kept[row] for row in minibatch if kept[row] in learnt]
        for minibatch in minibatches(settings, step, 0, len(kept))
    ]
    return [*rows, sorted(set(range(len(draft.texts))) - learnt)]


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


def _per_answer(values: Tensor, rollouts: Rollouts, weights_of_draw: Tensor | None) -> float:
    """Float[B, R], a number a token, summed over each answer and averaged: under the policy, whoever drew it."""
    if weights_of_draw is not None:
        values = values * weights_of_draw
    return float(real(values, rollouts.response_mask).sum(1).mean())


def _weights_in_loss(settings: RlafSettings, rollouts: Rollouts) -> dict[str, float]:
    """Of the weights π/μ that the loss gives to tokens or answers: ``weight_mean``, and ``weight_share``, the share of
    them that would say as much if all weighed alike, (Σw)² / (n Σw²) (Kish 1965). Nothing where none are needed."""
    per_answer = settings.ratio_of == "answer"
    weights = corrections(settings, rollouts, per_answer=per_answer)
    if weights is None:
        return {}
    each = (weights[:, 0] if per_answer else weights[rollouts.response_mask]).double()
    return {
        "weight_mean": float(each.mean()),
        "weight_share": float(each.sum().square() / (len(each) * each.square().sum()).clamp(min=1e-300)),
    }


def _metrics(
    rollouts: Rollouts, weights_of_draw: Tensor | None, kl: float, kl_coef: float, advantages: Tensor
) -> dict[str, Any]:
    mask, judged = rollouts.response_mask, rollouts.judged
    k3 = kl_k3(rollouts.logprobs, rollouts.ref_logprobs)
    spread = torch.std(rollouts.rewards) if len(rollouts.rewards) > 1 else torch.zeros(())
    gap = (rollouts.logprobs - rollouts.sampling_logprobs).abs()
    return {
        "reward_mean": float(rollouts.rewards.mean()),
        "reward_std": float(spread),
        **rollouts.toxicity_by_name(),
        "disagreement": mean_of_known(judged.disagreement),
        "terms": means_by_name(judged.terms),
        "kl": kl,
        "kl_k3": _per_answer(k3, rollouts, weights_of_draw),
        "kl_full": None if rollouts.kl_full is None else _per_answer(rollouts.kl_full, rollouts, None),
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(rollouts.entropy, mask)),
        # How far what was drawn from is from what is trained: rounding, or the sampling settings.
        "sampling_gap": float(masked_mean(gap, mask)),
        "advantage_std": float(advantages[mask].std()) if int(mask.sum()) > 1 else 0.0,
        "response_tokens": float(mask.sum(1).float().mean()),
        "empty_fraction": fmean(judged.empty),
        # Of all answers, those too that the judges could not score.
        "truncated_fraction": fmean(judged.truncated),
        "length_penalty": fmean(judged.length_penalty),
        "answers": len(rollouts.responses),
        "dropped": rollouts.dropped,
    }


def _samples(step: int, answers: list[Answer], prompts: list[str], judged: Judged) -> list[dict[str, Any]]:
    """The first answer to each of four prompts: what judges, witnesses and terms said, what it earned, or why not."""
    first = {answer.asked: row for row, answer in reversed(list(enumerate(answers)))}
    return [
        {
            "step": step,
            "prompt": prompts[row],
            "response": answers[row].text,
            "finish": answers[row].finish,
            "reward": judged.rewards[row],
            "reason": judged.reasons[row],
            "toxicity": judged.toxicity[row],
            "by_judge": {name: values[row] for name, values in judged.by_judge.items()},
            "by_witness": {name: values[row] for name, values in judged.by_witness.items()},
            "terms": {name: values[row] for name, values in judged.terms.items()},
            "kl": float((answers[row].logprobs - answers[row].ref_logprobs).sum()),
        }
        for row in sorted(first.values())[:4]
    ]


def _resume(checkpoint: Checkpoint, learner: Learner, rewards: RewardModel, last_good: LastGood) -> int:
    """Put everything back as it was after the checkpoint's step, and return that step."""
    model = learner.policy.model
    # The checkpoint's own adapter has not answered yet; the one before it has, or its step would not have been logged.
    before = adapter_before(checkpoint.folder)
    if before is not None:
        load_adapter_weights(before, model)
    last_good.remember(0 if before is None else step_of(before))
    state = load_state(
        checkpoint,
        model=model,
        value_head=learner.value_head,
        optimizer=learner.optimizer,
        own_critic=learner.own_critic,
    )
    learner.kl.coef = state.get("kl_coef", learner.kl.coef)
    rewards.restore_failures(state.get("failures", {}))
    return checkpoint.step


class _Clock:
    """Seconds a phase, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
