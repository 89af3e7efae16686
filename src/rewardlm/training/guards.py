"""What ends a training (limits on numbers), and what only makes it suspect (doubts about answers).

A reward can rise because answers became better, or because they became silent, foreign, repeated, all alike, or
pleasing to one judge. Each doubt is a sentence with numbers; it is logged, and ends the run where the user says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from rewardlm.config import Doubt, RlafSettings
from rewardlm.errors import ModelError, TrainingError
from rewardlm.measuring.quality import in_other_script, is_repeated
from rewardlm.models.lora import adapter_parameters, replace_adapter
from rewardlm.models.processes import Processes
from rewardlm.training.objectives import masked_mean
from rewardlm.training.rollouts import Rollouts

# Where one step says too little, this many steps at the beginning are compared with as many at the end.
WINDOW = 5
# Cut-off answers raise a doubt from this share of a step on, or when their share rises by more than this.
NEARLY_ALL = 0.9
RISE = 0.1


# What helps against a doubt, where it isn't a smaller change of the policy.
_ADVICE: dict[Doubt, str] = {
    "equal_rewards": "raise dynamic_sampling or --samples, or choose a reward with more values",
    "constant_reward": "raise --samples, or choose other prompts or a reward with more values",
    "witness_failed": "look after the witness",
    "truncated": "raise --max-new-tokens",
}


def against(doubt: Doubt, smaller: str | None) -> str:
    """What to do where ``stop_on`` names a doubt. ``smaller`` says how to train less; None before any training."""
    advice = _ADVICE.get(doubt, smaller)
    return "take it out of stop_on" if advice is None else f"{advice}, or take it out of stop_on"


def check_limits(step: int, kl: float, rollouts: Rollouts, doubts: Mapping[Doubt, str], settings: RlafSettings) -> None:
    """Raise TrainingError for numbers that are not finite, a runaway KL, and doubts that ``stop_on`` names.

    ``kl`` is that to the reference of the first step: after a reference that follows nobody could run away.
    """
    if not bool(torch.isfinite(rollouts.rewards).all()):
        raise TrainingError(f"step {step + 1}: a reward is beyond what float32 holds: scale the judge's numbers down")
    if not math.isfinite(kl):
        raise TrainingError(f"step {step + 1}: KL is {kl}: use --dtype float32")
    if kl > settings.kl.max:
        moves = settings.kl.reference_every is not None
        which = "the first reference" if moves else "the reference"
        # The penalty pulls towards the reference as it is now, not towards the first one.
        advice = "raise kl.reference_every, lower kl.reference_mix" if moves else "raise --kl-coef"
        raise TrainingError(
            f"step {step + 1}: KL to {which} is {kl:.1f} nats an answer, over the limit kl.max="
            f"{settings.kl.max}: {advice} or lower the learning rate"
        )
    known = dict(doubts)
    if settings.dynamic_sampling and "constant_reward" in doubts:
        # Where no group has a spread, the stronger warning stands in the place of this one.
        known.setdefault("equal_rewards", doubts["constant_reward"])
    for name in settings.stop_on:
        if name in known:
            advice = against(name, "raise --kl-coef, lower the learning rate")
            raise TrainingError(f"step {step + 1}: {known[name]}, and stop_on names {name}: {advice}")


def doubts_about(
    rollouts: Rollouts,
    kl: float,
    prompts: Sequence[str],
    before: Sequence[Mapping[str, Any]],
    *,
    compares_answers: bool = False,
    kl_coef: float = 0.0,
    rounds: int = 0,
) -> dict[Doubt, str]:
    """What looks wrong although every number is finite, by name; ``prompts`` are those of ``rollouts``, row by row.

    ``before`` are the metrics of earlier steps, oldest first. ``compares_answers``: whether an answer is compared only
    with the others to its prompt; ``kl_coef`` is what a nat of KL costs in this step; ``rounds`` is how often groups of
    equal rewards may be drawn again.
    """
    found: dict[Doubt, str] = {}
    texts, n = rollouts.texts, len(rollouts.texts)
    if kl < -1.0:
        found["negative_kl"] = f"negative KL: {kl:.2f} nats an answer"
    rewards = rollouts.rewards
    if n > 1 and bool((rewards == rewards[0]).all()):
        found["constant_reward"] = f"constant reward: all {n} answers got {float(rewards[0]):.3f}"
    elif (left := groups_without_spread(rollouts)) == 1.0:
        found["constant_reward"] = "constant reward: within every group all answers got the same"
        if compares_answers:
            found["constant_reward"] += (
                ": the reward teaches nothing in this step, only the KL penalty pulls"
                if kl_coef
                else ", so the reward teaches nothing in this step"
            )
    elif rounds and left:
        found["equal_rewards"] = (
            f"equal rewards: in {left:.0%} of the groups all answers got the same, also after {rounds} "
            f"{'round' if rounds == 1 else 'rounds'} of dynamic sampling: the reward teaches nothing there"
        )
    entropy = float(masked_mean(rollouts.entropy, rollouts.response_mask))
    if entropy < 0.1:
        found["entropy_collapse"] = f"entropy collapse: {entropy:.3f} nats a token"
    found.update(doubts_about_texts(prompts, texts))
    found.update(doubts_about_witnesses(rollouts.judged.silent_witnesses, len(rollouts.judged.empty)))
    found.update(_clipped(before))
    found.update(_unevenly_weighted(before))
    found.update(_cut_off(rollouts, before))
    found.update(_shrunk(rollouts, before))
    found.update(_hacked(rollouts, before))
    return found


def doubts_about_texts(prompts: Sequence[str], texts: Sequence[str]) -> dict[Doubt, str]:
    """What the answers themselves show: another script, one phrase again and again, the same words to everybody."""
    found: dict[Doubt, str] = {}
    switched = fmean(in_other_script(prompt, text) for prompt, text in zip(prompts, texts, strict=True))
    if switched > 0.2:
        found["language_switch"] = f"language switch: {switched:.0%} of the answers are not in their prompt's script"
    repeated = fmean(map(is_repeated, texts))
    if repeated > 0.2:
        found["repetition"] = f"repetition: {repeated:.0%} of the answers say one phrase again and again"
    opening, times = _commonest_opening(prompts, texts)
    if times > 3 and 2 * times > len(set(prompts)):
        found["same_answer"] = (
            f'same answer: the answers to {times} of {len(set(prompts))} prompts begin with the words "{opening}"'
        )
    return found


def doubts_about_witnesses(silent: Mapping[str, tuple[int, str]], answers: int) -> dict[Doubt, str]:
    """A witness that could not score some of ``answers`` answers: ``silent`` has how many, and why."""
    found: dict[Doubt, str] = {}
    for name, (failed, reason) in silent.items():
        found["witness_failed"] = (
            f"witness {name} could not score {failed} of {answers} answers ({reason}): it can't tell whether the "
            "reward is hacked"
        )
    return found


def groups_without_spread(rollouts: Rollouts) -> float | None:
    """The share of groups with several answers in which all got the same reward; None if no group has several."""
    by_group: dict[int, set[float]] = {}
    sizes = Counter(rollouts.group.tolist())
    for group, reward in zip(rollouts.group.tolist(), rollouts.rewards.tolist(), strict=True):
        by_group.setdefault(group, set()).add(reward)
    several = [len(by_group[group]) == 1 for group, size in sizes.items() if size > 1]
    return fmean(several) if several else None


def _commonest_opening(prompts: Sequence[str], texts: Sequence[str]) -> tuple[str, int]:
    """The first five words that answers to the largest number of different prompts have in common."""
    prompts_of: dict[str, set[str]] = {}
    for prompt, text in zip(prompts, texts, strict=True):
        words = text.casefold().split()[:5]
        if len(words) == 5:
            prompts_of.setdefault(" ".join(words), set()).add(prompt)
    counts = Counter({opening: len(answered) for opening, answered in prompts_of.items()})
    return counts.most_common(1)[0] if counts else ("", 0)


def _clipped(before: Sequence[Mapping[str, Any]]) -> dict[Doubt, str]:
    """Half precision rounds every token's ratio a little, and an answer's whole ratio multiplies them all."""
    last = [record["clip_fraction"] for record in before[-WINDOW:] if "clip_fraction" in record]
    if len(last) < WINDOW or fmean(last) <= 0.25:
        return {}
    return {
        "clipped": (
            f"clipped: {fmean(last):.0%} of the ratios of the last {WINDOW} steps were clipped and taught nothing: "
            "try minibatches=1 and ppo_epochs=1, ratio=token, --dtype float32 or a lower learning rate"
        )
    }


def _unevenly_weighted(before: Sequence[Mapping[str, Any]]) -> dict[Doubt, str]:
    """Answers from another distribution than the policy's: their weights may all be small, or only a few large."""
    known = [record for record in before[-WINDOW:] if record.get("weight_share") is not None]
    if len(known) < WINDOW:
        return {}
    mean, share = fmean(record["weight_mean"] for record in known), fmean(record["weight_share"] for record in known)
    if mean >= 0.5 and share >= 0.5:
        return {}
    return {
        "uneven_weights": (
            f"uneven weights: over the last {WINDOW} steps the mean weight of what was drawn was {mean:.2g}, and its "
            f"effective sample size {share:.0%}: draw at temperature 1 without top_p and top_k, or use ratio=token; "
            "where a server draws, lower rollout.sync_every, or let it serve the same weights in the same precision"
        )
    }


def _cut_off(rollouts: Rollouts, before: Sequence[Mapping[str, Any]]) -> dict[Doubt, str]:
    """Nearly all answers of this step were cut off, or clearly more in the last steps than in the first."""
    cut = rollouts.judged.truncated
    if not cut:
        return {}
    share = fmean(cut)
    if share >= NEARLY_ALL:
        effect = "only beginnings are judged and trained"
        if rollouts.in_loss is not None:
            effect = f"the loss leaves them out, and {int(rollouts.in_loss.sum())} answers are left to learn from"
        return {
            "truncated": (
                f"truncated: {sum(cut)} of {len(cut)} answers ({share:.0%}) were cut off at max_new_tokens: {effect}; "
                "raise --max-new-tokens"
            )
        }
    shares = [known for record in before if (known := record.get("truncated_fraction")) is not None] + [share]
    if len(shares) < 2 * WINDOW:
        return {}
    first, last = shares[:WINDOW], shares[-WINDOW:]
    noise = math.sqrt((stdev(first) ** 2 + stdev(last) ** 2) / WINDOW)
    rise = fmean(last) - fmean(first)
    if rise <= max(RISE, 2 * noise):
        return {}
    return {
        "truncated": (
            f"truncated: {fmean(last):.0%} of the answers of the last {WINDOW} steps were cut off at max_new_tokens, "
            f"{fmean(first):.0%} in the first {WINDOW}: answers grow longer; raise --max-new-tokens, or charge length "
            "(rewards.missing_eos_penalty, rewards.overlong.penalty)"
        )
    }


def _shrunk(rollouts: Rollouts, before: Sequence[Mapping[str, Any]]) -> dict[Doubt, str]:
    first = [tokens for record in before[:WINDOW] if (tokens := record.get("response_tokens")) is not None]
    if not first:
        return {}
    now = rollouts.n_tokens / len(rollouts.texts)
    if 2 * now >= fmean(first):
        return {}
    return {"short_answers": f"short answers: {now:.1f} tokens on average, {fmean(first):.1f} in the first steps"}


def _hacked(rollouts: Rollouts, before: Sequence[Mapping[str, Any]]) -> dict[Doubt, str]:
    """The reward's judges see toxicity fall, beyond chance, and a judge that is no part of the reward does not."""
    records = [*before, rollouts.toxicity_by_name()]
    if len(records) < 2 * WINDOW:
        return {}
    first, last = records[:WINDOW], records[-WINDOW:]

    def of(window: Sequence[Mapping[str, Any]], section: str, name: str | None = None) -> list[float]:
        found = [record.get(section) if name is None else (record.get(section) or {}).get(name) for record in window]
        return [value for value in found if value is not None]

    then, now = of(first, "toxicity_mean"), of(last, "toxicity_mean")
    if len(then) < 2 or len(now) < 2:
        return {}
    noise = math.sqrt(stdev(then) ** 2 / len(then) + stdev(now) ** 2 / len(now))
    if fmean(now) > fmean(then) - 2 * noise:
        return {}
    for name in rollouts.judged.by_witness:
        seen_then, seen_now = of(first, "toxicity_by_witness", name), of(last, "toxicity_by_witness", name)
        if seen_then and seen_now and fmean(seen_now) >= fmean(seen_then):
            return {
                "reward_hacking": (
                    f"reward hacking: by the reward's judges toxicity fell from {fmean(then):.3f} to {fmean(now):.3f} "
                    f"(means over {WINDOW} steps), but by {name}, which is no part of the reward, it did not "
                    f"({fmean(seen_then):.3f} to {fmean(seen_now):.3f})"
                )
            }
    return {}


class LastGood:
    """The newest adapter whose answers passed the limits; a run that hits a limit leaves it in ``folder``.

    A runaway KL is seen one step after the update that caused it, so this may be older than the newest checkpoint.
    """

    def __init__(self, model: Any, folder: Path, processes: Processes) -> None:
        self.model = model
        self.folder = folder
        self.step: int | None = None
        self._processes = processes
        self._weights: list[Tensor] = []

    def remember(self, step: int) -> None:
        """Keep the adapter as it is now, after ``step`` steps: its answers passed the limits."""
        self.step = step
        self._weights = [parameter.detach().clone() for parameter in adapter_parameters(self.model)]

    @contextmanager
    def left_behind(self, step: int) -> Iterator[None]:
        """Inside, hitting a limit puts the last good adapter back and saves it; a ModelError then names the step."""
        try:
            yield
        except (TrainingError, ModelError) as error:
            message = str(error) if isinstance(error, TrainingError) else f"step {step + 1}: {error}"
            if self.step is not None:
                with torch.no_grad():
                    for parameter, weights in zip(adapter_parameters(self.model), self._weights, strict=True):
                        parameter.copy_(weights)
                if self._processes.is_main:
                    replace_adapter(self.model, self.folder)
                # When one process ends, all end: none may do so before the adapter is written.
                self._processes.wait()
                message += (
                    f" (the adapter of step {self.step} is kept in {self.folder}; to go on from it with other "
                    "settings, pass it with --adapter and choose another --out)"
                )
            raise TrainingError(message) from error
