"""Reinforcement learning from automatic feedback: the loop, to be read from top to bottom.

One copy of the weights serves as policy (adapter on), reference (adapter off, or the fine-tuned adapter that RL
started from) and critic's trunk. Nothing depends on a global random state: prompts, samples and minibatches are drawn
from seeds made of (seed, step), so a run that was killed goes on exactly as if it had not been. On several processes
each answers, judges and updates its share of the same step.

Beside this file stand the run and its records (``rlaf_run``) and checkpoints (``rlaf_state``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rewardlm.config import Doubt, RlafSettings
from rewardlm.errors import ScorerError, TrainingError
from rewardlm.models.budget import Budget
from rewardlm.models.load import resolve_device
from rewardlm.models.logprobs import check_head
from rewardlm.models.lora import replace_adapter
from rewardlm.models.processes import Processes, writing
from rewardlm.models.quantised import check_gradients
from rewardlm.models.sharding import load_for
from rewardlm.progress import ProgressCallback
from rewardlm.runs import Run, peak_rss_mb
from rewardlm.scoring.scorer import cuts
from rewardlm.training.advantages import Estimator, Feedback, charge_empty_answers, estimate, load_estimator
from rewardlm.training.guards import LastGood, check_limits, doubts_about
from rewardlm.training.judged_run import EncodedPrompts, ask_prompts, load_rewards, stop_noted
from rewardlm.training.learner import (
    Batch,
    Learner,
    budget_of,
    importance_weights,
    logprobs_and_values,
    make_learner,
    minibatches,
    update,
)
from rewardlm.training.prompt_order import PromptOrder
from rewardlm.training.retain import retained
from rewardlm.training.rewards import BatchRewards, Opinion, RewardModel
from rewardlm.training.rlaf_run import Clock, is_complete, rollout_metrics, samples, start_run
from rewardlm.training.rlaf_state import VALUE_HEAD, resume, save_checkpoint
from rewardlm.training.rollouts import (
    Answer,
    Draft,
    Rollouts,
    StepPrompt,
    collate,
    equal_groups,
    rows_with_reward,
    sample,
)
from rewardlm.training.served_rollouts import ServedRollouts
from rewardlm.training.terms import keep_near
from rewardlm.training.trackers import Trackers, check_installed
from rewardlm.types import Prompt


def train(
    settings: RlafSettings,
    out: Path,
    *,
    report: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train an adapter in ``out`` and return its run; a finished run is returned as it is, a killed one goes on.

    ``report(step, steps, metrics)`` is called after every step; ``say`` gets a sentence about prompts that are too
    long, sampling that is not the policy's own, and answers that a judge could not read. Raises TrainingError for NaN,
    a runaway KL, and what ``stop_on`` names; the newest adapter whose answers passed these limits is then in
    ``out/adapter``. Raises ScorerError for a judge that has the wrong sign or fails too often, TrainingError where no
    checkpoint can be resumed, and RunError where another command writes ``out``.
    """
    with writing(out, settings.device) as processes:
        return _train(settings, out, processes, report, processes.voice(say))


def _train(
    settings: RlafSettings, out: Path, processes: Processes, report: ProgressCallback | None, say: Callable[[str], None]
) -> Run:
    run = processes.first(lambda: start_run(settings, out))
    if is_complete(run, settings):
        return run

    # 1. The reward; policy, reference and critic on one trunk; the prompts; where a killed run stopped.
    training = setup(settings, run, processes, report, say)
    learner = training.learner
    # One process hands adapters over, and takes them away.
    server = training.server if processes.is_main and training.server is not None else nullcontext()
    with training.trackers, stop_noted(run, processes), server:
        for step in range(training.first_step, settings.steps):
            clock = Clock()
            with training.last_good.left_behind(step):
                # 2. Rollouts: answers from the policy as it is now, rewards from the judges, log-probabilities under
                #    policy and reference, values from the critic.
                experience = collect(training, step, clock)

                # 3. Beyond a limit nothing is learnt: the run ends with the newest adapter within all limits.
                check_limits(step, experience.kl_origin, experience.rollouts, experience.doubts, settings)
                training.last_good.remember(step)

                # 4. Advantages, and returns for the critic, from rewards, KL and values.
                batch = estimate_advantages(training, experience)

                # 5. Epochs of minibatches, one optimizer step each.
                losses = learn(training, batch, step, clock)

            # 6. The KL coefficient follows the KL, what similarity is paid the similarity, and a reference that moves
            #    follows the policy.
            learner.kl.update(experience.kl, len(batch.rollouts.responses))
            keep_near(
                training.rewards.terms,
                settings.similarity,
                experience.similarities,
                begun=settings.reward_settings.terms.similarity or 0.0,
            )
            learner.move_reference(settings.kl, step + 1)

            # 7. The step's line in metrics.jsonl, and a checkpoint.
            record(training, step, experience, batch, losses, clock)

    # 8. The adapter, where every other command looks for it.
    return finish(training, say)


@dataclass(frozen=True, slots=True)
class Training:
    """The parts of a training, which its steps share; learner, order, history and budgets change in place."""

    settings: RlafSettings
    run: Run
    processes: Processes
    rewards: RewardModel
    learner: Learner
    estimator: Estimator
    prompts: list[Prompt]
    prompt_ids: list[tuple[int, ...]]
    order: PromptOrder
    server: ServedRollouts | None
    last_good: LastGood
    first_step: int
    critic_is_new: bool
    history: list[dict[str, Any]]
    trackers: Trackers
    report: ProgressCallback | None
    # Positions that run at once: fewer than the settings say once memory has run out.
    rollout_budget: Budget
    update_budget: Budget


@dataclass(frozen=True, slots=True)
class Experience:
    """What the policy did in one step: all its answers, the prompt of each, and those with a reward as rollouts.

    ``kl`` is in nats an answer, and so is ``kl_origin``, the KL to the first step's reference; ``kl_coef`` is what a
    nat costs in this step, ``similarity_weight`` what similarity is paid, where that is adapted. ``redrawn`` counts the
    groups that were replaced, round by round. ``doubts`` say what looks wrong.
    """

    answers: list[Answer]
    prompts: list[str]
    rollouts: Rollouts
    kl: float
    kl_origin: float
    kl_coef: float
    similarity_weight: float | None
    redrawn: list[int]
    doubts: dict[Doubt, str]

    @property
    def similarities(self) -> list[float | None]:
        """Of all answers to their prompts; empty where similarity earns nothing."""
        return self.rollouts.judged.terms.get("similarity", [])


# 1. Setup ------------------------------------------------------------------------------------------------------------


def setup(
    settings: RlafSettings,
    run: Run,
    processes: Processes,
    report: ProgressCallback | None,
    say: Callable[[str], None],
) -> Training:
    """Everything that the steps need, loaded and checked, in the state that a killed run left."""
    device = processes.device or str(resolve_device(settings.device))
    check_installed(settings.trackers)
    rewards = load_rewards(settings, device)
    rewards.check_sign()
    policy, learner = load_for(settings, processes, lambda policy: make_learner(policy, settings))
    check_head(policy.causal_lm)
    learner.held = retained(policy, settings, run, processes, say)
    estimator = load_estimator(settings.algorithm)
    per_step = settings.batch_size // settings.samples_per_prompt
    if per_step < processes.size:
        raise TrainingError(f"a step has {per_step} prompts for {processes.size} processes: raise --batch-size")
    asked = ask_prompts(settings, run, policy, rewards, processes)
    announce(settings, asked, say)
    last_good = LastGood(policy.model, run.adapter, processes)
    order = PromptOrder(len(asked.prompts), per_step=per_step, seed=settings.seed)
    checkpoint = resume(run, settings.resume, learner, rewards, order, last_good, processes)
    return Training(
        settings=settings,
        run=run,
        processes=processes,
        rewards=rewards,
        learner=learner,
        estimator=estimator,
        prompts=asked.prompts,
        prompt_ids=asked.ids,
        order=order,
        server=ServedRollouts(settings, policy, run.path / "served") if settings.rollout.url is not None else None,
        last_good=last_good,
        first_step=0 if checkpoint is None else checkpoint.step,
        critic_is_new=checkpoint is None or checkpoint.lacks(VALUE_HEAD),
        history=list(run.read("metrics")),
        trackers=Trackers(settings.trackers if processes.is_main else [], run, cpu=device.startswith("cpu")),
        report=report,
        rollout_budget=Budget(max(settings.micro_batch_tokens, 4096), "positions of a rollout"),
        update_budget=budget_of(settings),
    )


def announce(settings: RlafSettings, asked: EncodedPrompts, say: Callable[[str], None]) -> None:
    """Tell the user what happens otherwise than they may expect."""
    if asked.note is not None:
        say(asked.note)
    what = "answer" if settings.per_answer else "token"
    if settings.rollout.url is not None:
        say(
            f"answers are drawn by a server: every {what} is weighted by its probability under the policy over the "
            f"server's, at most {settings.importance_cap:g}; a run that goes on is not bit-equal to one that nobody "
            "disturbed"
        )
    elif settings.off_policy:
        say(
            f"answers are not drawn at temperature 1 without truncation: every {what} is weighted by its "
            f"probability under the policy over that of drawing it, at most {settings.importance_cap:g}"
        )
    if settings.lora.dropout:
        say("lora.dropout is left out: the policy that is updated must be the policy that answered")


# 2. Rollouts ---------------------------------------------------------------------------------------------------------


def collect(training: Training, step: int, clock: Clock) -> Experience:
    """One step's answers, their rewards, and how likely they were. Raises ScorerError where none could be scored.

    Each process answers, judges and scores its part of the prompts; ``gather`` returns the results of all.
    """
    settings, processes, learner, rewards = training.settings, training.processes, training.learner, training.rewards

    # Answers from the policy as it is now, or from a server's copy of it. Rewards: text in, P(toxic) out, and its
    # opposite is the reward.
    if training.server is not None and training.server.is_due(step):
        server = training.server
        with clock("sync"):
            server.adapter = processes.first(lambda: server.sync(step))
    prompts = draw_prompts(training, range(training.order.per_step))
    draft, opinions = answer(training, prompts, range(len(prompts)), step, clock)
    judged = rewards.rewarded(opinions)
    draft, judged, redrawn = draw_again(training, prompts, draft, opinions, judged, step, clock)
    group = [prompt.index for prompt in prompts for _ in range(settings.samples_per_prompt)]
    kept, dropped = rows_with_reward(judged, group, min_group=2 if settings.compares_answers else 1)
    if not kept:
        raise ScorerError(f"step {step + 1}: no answer could be scored ({', '.join(dropped)})")

    # How likely each answer was, under the policy and under the reference, and what the critic expected.
    if step == training.first_step and training.critic_is_new and learner.value_head is not None:
        learner.value_head.start_at(fmean(reward for reward in judged.rewards if reward is not None))
    with clock("logprobs"):
        passes = update_passes(settings, step, kept, draft) if processes.size == 1 else None
        answers = processes.gather(
            lambda: logprobs_and_values(learner, settings, draft, training.update_budget, passes)
        )
    rollouts = collate(answers, judged, kept, dropped, mask_truncated=settings.mask_truncated_completions)

    # Weighted by each token's π/μ, whatever the loss does: the weights of whole answers would hide the KL.
    weights = importance_weights(settings, rollouts, per_answer=False)
    kl, kl_origin = (rollouts.mean_per_answer(each, weights) for each in (rollouts.kl, rollouts.kl_origin))
    questions = [prompts[index].text for index in group]
    doubts = doubts_about(
        rollouts,
        kl,
        [questions[row] for row in kept],
        training.history,
        compares_answers=settings.compares_answers,
        kl_coef=learner.kl.coef,
        rounds=settings.dynamic_sampling,
    )
    paid = None if settings.similarity.target is None else rewards.terms.weights["similarity"]
    return Experience(answers, questions, rollouts, kl, kl_origin, learner.kl.coef, paid, redrawn, doubts)


def draw_prompts(training: Training, places: Sequence[int], round: int = 0) -> list[StepPrompt]:
    """The next prompts in the order, for these places among those that all processes together ask in a step."""
    drawn = zip(places, training.order.take(len(places)), strict=True)
    return [StepPrompt(place, training.prompts[i], training.prompt_ids[i], round) for place, i in drawn]


def answer(
    training: Training, prompts: Sequence[StepPrompt], places: Sequence[int], step: int, clock: Clock
) -> tuple[Draft, list[Opinion]]:
    """This process's answers to the step's ``prompts`` at ``places``, and what was said of all processes' answers.

    A place belongs to one process, whatever prompt gets it.
    """
    settings, processes, rewards, server = training.settings, training.processes, training.rewards, training.server
    own = processes.span(len(prompts))
    mine = [prompts[place] for place in places if place in own]

    def draw() -> Draft:
        if server is not None:
            return server.sample(mine, step)
        return sample(training.learner.policy, settings, mine, step, training.rollout_budget)

    with clock("rollout"):
        draft = processes.each(draw)
    with clock("reward"):
        asked = [prompts[place].text for place in draft.prompt_index]
        step_prompts = [prompt.text for prompt in prompts]
        opinions = processes.gather(lambda: rewards.opinions(draft.texts, asked, draft.endings, step_prompts))
    return draft, opinions


def draw_again(
    training: Training,
    prompts: list[StepPrompt],
    draft: Draft,
    opinions: list[Opinion],
    judged: BatchRewards,
    step: int,
    clock: Clock,
) -> tuple[Draft, BatchRewards, list[int]]:
    """Dynamic sampling (DAPO; Yu et al. 2025, section 3.2): groups whose answers all earn the same teach nothing, so
    the prompts that come next get their places, for ``dynamic_sampling`` rounds at most.

    Changes ``prompts`` and ``opinions`` in place. Returns draft and rewards as they are then, and how many groups each
    round replaced. What is equal after the last round stays.
    """
    samples, redrawn = training.settings.samples_per_prompt, list[int]()
    for round in range(1, training.settings.dynamic_sampling + 1):
        equal = equal_groups(judged.rewards, samples)
        if not equal:
            break
        for prompt in draw_prompts(training, equal, round):
            prompts[prompt.index] = prompt
        again, found = answer(training, prompts, equal, step, clock)
        draft = draft.replaced(again)
        fresh = [group * samples + k for group in equal for k in range(samples)]
        for row, opinion in zip(fresh, found, strict=True):
            opinions[row] = opinion
        judged = training.rewards.rewarded(opinions, fresh)
        redrawn.append(len(equal))
    return draft, judged, redrawn


def update_passes(settings: RlafSettings, step: int, kept: list[int], draft: Draft) -> list[list[int]]:
    """Rows of the draft, a list for each minibatch of the first epoch, and last those that no minibatch learns from."""
    learnt = set(kept)
    if settings.mask_truncated_completions:
        learnt = {row for row in kept if draft.sampled[row].finish == "stop"}
    rows = [
        [kept[row] for row in minibatch if kept[row] in learnt]
        for minibatch in minibatches(settings, step, 0, len(kept))
    ]
    return [*rows, sorted(set(range(len(draft.texts))) - learnt)]


# 4. Advantages -------------------------------------------------------------------------------------------------------


def estimate_advantages(training: Training, experience: Experience) -> Batch:
    """What to learn from the rollouts. Advantages come from rewards and KL, and an empty answer gets the batch's worst
    of both."""
    settings, rollouts = training.settings, experience.rollouts
    advantages, returns = estimate(
        training.estimator,
        Feedback(
            rewards=rollouts.rewards,
            # An answer that the loss leaves out pays no KL, as in TRL.
            kl=charge_empty_answers(rollouts.kl * rollouts.loss_mask, rollouts.response_mask, rollouts.empty),
            mask=rollouts.response_mask,
            group=rollouts.group,
            values=rollouts.values,
            kl_coef=experience.kl_coef if settings.kl_penalty == "k1" else 0.0,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
        ),
        per_answer=settings.per_answer,
    )
    importance = importance_weights(settings, rollouts, per_answer=settings.per_answer)
    return Batch(rollouts, advantages, returns, importance)


# 5. The update -------------------------------------------------------------------------------------------------------


def learn(training: Training, batch: Batch, step: int, clock: Clock) -> dict[str, float]:
    """Update policy and critic, and return the losses."""
    learner = training.learner
    if step == training.first_step:
        check_gradients(learner.policy.model)  # After a pass without gradients, which may have blocked them.
    learner.follow(training.settings, step)
    with clock("update"):
        return update(learner, training.settings, batch, step, training.processes, training.update_budget)


# 7. and 8. Records --------------------------------------------------------------------------------------------------


def record(
    training: Training, step: int, experience: Experience, batch: Batch, losses: dict[str, float], clock: Clock
) -> None:
    """Append the step to the run, and save a checkpoint where one is due; the first process writes."""
    settings, run, rewards, rollouts = training.settings, training.run, training.rewards, batch.rollouts
    done = step + 1
    texts = [answer.text for answer in experience.answers]
    metrics: dict[str, Any] = {
        "step": done,
        **rollout_metrics(settings, batch, experience.kl_coef),
        **losses,
        **({} if experience.similarity_weight is None else {"similarity_weight": experience.similarity_weight}),
        **({} if settings.has_constant_rate else {"learning_rate": training.learner.learning_rate}),
        **({"kl_origin": experience.kl_origin} if training.learner.moving_reference else {}),
        **({"redrawn_groups": experience.redrawn} if settings.dynamic_sampling else {}),
        "cut": {scorer.name: sum(cuts(scorer, texts)) for scorer in rewards.scorers},
        "warnings": list(experience.doubts.values()),
        "tokens_per_second": rollouts.n_tokens / clock.seconds,
        "peak_rss_mb": peak_rss_mb(),
        "micro_batch_tokens": training.update_budget.size,
        "out_of_memory": training.rollout_budget.shortages + training.update_budget.shortages,
    }
    training.history.append(metrics)
    if not training.processes.is_main:
        return
    if done % settings.samples_every == 0 or step == 0:
        run.append("samples", samples(done, experience.answers, experience.prompts, rollouts.judged))
    with clock("checkpoint"):
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save_checkpoint(run.path, done, training.learner, rewards, training.order)
    metrics["phase_seconds"] = clock.phases
    metrics["seconds"] = clock.seconds
    run.append("metrics", [metrics])
    training.trackers.log(metrics)
    for text in experience.doubts.values():
        warnings.warn(f"step {done}: {text}", stacklevel=2)
    if training.report is not None:
        training.report(done, settings.steps, metrics)


def finish(training: Training, say: Callable[[str], None]) -> Run:
    """Write the adapter, say what judges could not read, and close the run."""
    run, rewards = training.run, training.rewards
    if training.processes.is_main:
        replace_adapter(training.learner.policy.model, run.adapter)
        cut = {
            scorer.name: sum(line.get("cut", {}).get(scorer.name, 0) for line in training.history)
            for scorer in rewards.scorers
        }
        for name, n in cut.items():
            if n:
                say(f"{n:,} answers were too long for the judge {name}: it read a part of each")
        for name, (seen, failed, reason) in rewards.failures().items():
            if failed:
                say(f"{failed:,} of {seen:,} answers could not be scored by {name} and taught nothing: {reason}")
        run.update(status="finished", steps=max(training.first_step, training.settings.steps), cut=cut)
    training.processes.wait()
    return Run.open(run.path)
