"""The run of an RL training: how it begins, and what each step writes down."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rewardlm.config import RlafSettings, how_asked
from rewardlm.runs import Run
from rewardlm.training.judged_run import recorded_rewards
from rewardlm.training.learner import Batch, importance_weights
from rewardlm.training.objectives import kl_k3, masked_mean
from rewardlm.training.rewards import BatchRewards
from rewardlm.training.rollouts import Answer, mean_of_known, means_by_name

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


def start_run(settings: RlafSettings, out: Path) -> Run:
    """Begin a run in ``out``, or open the one that is there; its rewards are recorded before anything is learnt."""
    recorded = settings.resolved().model_dump(mode="json")
    free = [*FREE_SETTINGS, *how_asked(recorded)]
    if _who_draws_changed(out, recorded):
        # Answers of a server are weighted, and not the same in another attempt.
        free.remove("rollout.url")
    run = Run.start(
        out,
        kind="rlaf",
        label="RL",
        settings=recorded,
        free=free,
        refresh=True,
        # Every setting that came later leaves a training as it was, unless it is given. Similarity had no limit.
        defaults=RlafSettings(model=settings.model, rewards={"terms": {"similarity_enough": 1.0}}).model_dump(
            mode="json"
        ),
    )
    if not is_complete(run, settings):
        run.update(status="running", stopped=None, **recorded_rewards(settings))
    return run


def _who_draws_changed(out: Path, recorded: Mapping[str, Any]) -> bool:
    """Whether answers were drawn here and are to be drawn by a server, or the other way round."""
    if not (out / "run.json").exists():
        return False
    before = Run.open(out).meta["settings"].get("rollout") or {}
    return (before.get("url") is None) != (recorded["rollout"]["url"] is None)


def n_logged(run: Run) -> int:
    """How many steps metrics.jsonl has."""
    return sum(1 for _ in run.read("metrics"))


def is_complete(run: Run, settings: RlafSettings) -> bool:
    """Whether nothing is left to do; a finished run is continued by asking for more steps."""
    return run.finished and n_logged(run) >= settings.steps


def rollout_metrics(settings: RlafSettings, batch: Batch, kl_coef: float) -> dict[str, Any]:
    """Means over a step's answers; ``kl_coef`` is what a nat of KL cost in it."""
    rollouts = batch.rollouts
    mask, judged = rollouts.response_mask, rollouts.judged
    weights = importance_weights(settings, rollouts, per_answer=False)
    k3 = kl_k3(rollouts.logprobs, rollouts.ref_logprobs)
    spread = torch.std(rollouts.rewards) if len(rollouts.rewards) > 1 else torch.zeros(())
    gap = (rollouts.logprobs - rollouts.sampling_logprobs).abs()
    return {
        "reward_mean": float(rollouts.rewards.mean()),
        "reward_std": float(spread),
        **rollouts.toxicity_by_name(),
        "disagreement": mean_of_known(judged.disagreement),
        "terms": means_by_name(judged.terms),
        "kl": rollouts.mean_per_answer(rollouts.kl, weights),
        "kl_k3": rollouts.mean_per_answer(k3, weights),
        "kl_full": None if rollouts.kl_full is None else rollouts.mean_per_answer(rollouts.kl_full),
        "kl_coef": kl_coef,
        "entropy": float(masked_mean(rollouts.entropy, mask)),
        # How far the sampling distribution is from the policy: by rounding, or by the sampling settings.
        "sampling_gap": float(masked_mean(gap, mask)),
        "advantage_std": float(batch.advantages[mask].std()) if int(mask.sum()) > 1 else 0.0,
        "response_tokens": float(mask.sum(1).float().mean()),
        "empty_fraction": fmean(judged.empty),
        # Over all answers, with those that the judges could not score.
        "truncated_fraction": fmean(judged.truncated),
        "length_penalty": fmean(judged.length_penalty),
        "answers": len(rollouts.responses),
        "dropped": rollouts.dropped,
        **_weights_in_loss(settings, batch),
    }


def _weights_in_loss(settings: RlafSettings, batch: Batch) -> dict[str, float]:
    """Figures on the weights π/μ that the loss gives to tokens or answers: their mean, ``weight_mean``, and their
    effective sample size as a share, ``weight_share``, (Σw)² / (n Σw²) (Kish 1965). Empty where none are needed."""
    if batch.importance is None:
        return {}
    weights = batch.importance
    each = (weights[:, 0] if settings.per_answer else weights[batch.rollouts.response_mask]).double()
    return {
        "weight_mean": float(each.mean()),
        "weight_share": float(each.sum().square() / (len(each) * each.square().sum()).clamp(min=1e-300)),
    }


def samples(step: int, answers: Sequence[Answer], prompts: Sequence[str], judged: BatchRewards) -> list[dict[str, Any]]:
    """The first answer to each of four prompts: what judges, witnesses and terms said, and its reward or why not."""
    first = {answer.prompt_index: row for row, answer in reversed(list(enumerate(answers)))}
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


class Clock:
    """Seconds since a step began, and those of each phase by name."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.phases: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started
