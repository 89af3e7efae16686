"""The run of a preference training: how it begins, where a killed one goes on, and what each round writes down."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rewardlm.config import LABELS, USUAL_MAX_TOXICITY, Doubt, PreferSettings, how_asked
from rewardlm.errors import RunError, TrainingError
from rewardlm.gguf import sha256
from rewardlm.models.processes import Processes
from rewardlm.runs import Run
from rewardlm.training.checkpoints import MANIFEST, Checkpoint, is_whole, newest_usable, step_of
from rewardlm.training.drawn import Chunk, DrawnAnswer
from rewardlm.training.guards import NEARLY_ALL, doubts_about_texts, doubts_about_witnesses
from rewardlm.training.judged_run import recorded_rewards
from rewardlm.training.preferences import Preference
from rewardlm.training.rewards import BatchRewards
from rewardlm.training.rollouts import mean_of_known, means_by_name
from rewardlm.types import Prompt

# Not part of what is learnt: a run may be resumed with other values of these.
FREE_SETTINGS = (
    "device",
    "gradient_checkpointing",
    "checkpoint_every",
    "samples_every",
    "resume",
    "stop_on",
    "trackers",
    "witness",
    "shard",
    "answers",
)
# Without these files a checkpoint of a trainer can't be resumed, not even inexactly.
_NEEDED = ("adapter_", "trainer_state.json")


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on: in a round, after its first ``steps`` steps, with the weights of ``checkpoint``; None begins
    anew.
    """

    round_number: int
    steps: int
    checkpoint: Checkpoint | None


def start_run(settings: PreferSettings, out: Path) -> Run:
    """Begin a run in ``out``, or open the one that is there; its rewards are recorded before anything is learnt."""
    recorded = settings.resolved().model_dump(mode="json")
    label, free = LABELS[settings.method], (*FREE_SETTINGS, *how_asked(recorded))
    # What a run from before these settings did: so it is said, and not begun to be done on the way.
    defaults = {
        "retain": {**recorded["retain"], "coef": 0.0},
        "rewards": {"terms": {"similarity_enough": 1.0}},
        "pairs": {"max_toxicity": USUAL_MAX_TOXICITY},
    }
    run = Run.start(out, kind="prefer", label=label, settings=recorded, free=free, refresh=True, defaults=defaults)
    if not run.finished:
        rewards = recorded_rewards(settings) if settings.draws else {}
        run.update(status="running", stopped=None, **rewards)
    return run


def checkpoints_of(run: Run, round_number: int) -> Path:
    """Where a round's trainer writes its checkpoints."""
    return run.path / "checkpoints" / f"round-{round_number + 1:03d}"


def steps_before(settings: PreferSettings, round_number: int) -> int:
    """Optimizer steps of all earlier rounds."""
    return sum(settings.steps_of(number) for number in range(round_number))


def resume(run: Run, settings: PreferSettings, processes: Processes) -> ResumePoint:
    """Where a killed run stopped; what it logged after its last whole checkpoint is dropped. Raises TrainingError as
    ``newest_usable``, and where processes see different files.
    """
    place = processes.first(lambda: _find(run, settings))
    if not all(processes.gather(lambda: [place.checkpoint is None or place.checkpoint.folder.is_dir()])):
        raise TrainingError(f"the processes see different files in {run.path}: --out must be a folder that all share")
    return place


def _find(run: Run, settings: PreferSettings) -> ResumePoint:
    folders = []
    for round_folder in sorted((run.path / "checkpoints").glob("round-*")):
        for folder in sorted(round_folder.glob("checkpoint-*"), key=step_of):
            if (folder / MANIFEST).exists():
                folders.append(folder)
            else:
                shutil.rmtree(folder)  # a killed process left it half written
    found = newest_usable(folders, resume=settings.resume, needed=_NEEDED)
    if found is None:
        run.forget_after(0)
        return ResumePoint(0, 0, None)
    round_number = step_of(found.folder.parent) - 1
    step = steps_before(settings, round_number) + found.step
    if found.damaged:
        run.update(inexact_resume=step)
    run.forget_after(step)
    if found.step >= settings.steps_of(round_number):
        return ResumePoint(round_number + 1, 0, found)
    return ResumePoint(round_number, found.step, found)


def end_of_round(run: Run, settings: PreferSettings, round_number: int) -> Path | None:
    """The checkpoint after a round's last step; None where there is none, or its adapter is damaged."""
    folder = checkpoints_of(run, round_number) / f"checkpoint-{settings.steps_of(round_number)}"
    return folder if is_whole(folder, ("adapter_",)) else None


def drop_older_rounds(run: Run, round_number: int) -> None:
    """Remove the checkpoints of rounds before this one, which has whole ones of its own."""
    for folder in (run.path / "checkpoints").glob("round-*"):
        if step_of(folder) <= round_number:
            shutil.rmtree(folder)


def round_metrics(chunks: Sequence[Chunk], pairs: int) -> dict[str, Any]:
    """Means over a round's answers, named as in RL's metrics."""
    judged = [chunk.judged for chunk in chunks]
    answers = [answer for chunk in chunks for answer in chunk.answers]
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    toxicity = list(chain.from_iterable(one.toxicity for one in judged))
    return {
        "reward_mean": fmean(rewards) if rewards else None,
        "reward_std": stdev(rewards) if len(rewards) > 1 else None,
        "toxicity_mean": mean_of_known(toxicity),
        "toxic_fraction": mean_of_known([None if value is None else float(value > 0.5) for value in toxicity]),
        "toxicity_by_judge": means_by_name(_columns(judged, "by_judge")),
        "toxicity_by_witness": means_by_name(_columns(judged, "by_witness")),
        "disagreement": mean_of_known(list(chain.from_iterable(one.disagreement for one in judged))),
        "terms": means_by_name(_columns(judged, "terms")),
        "response_tokens": fmean(len(answer.tokens) for answer in answers),
        "empty_fraction": fmean(chain.from_iterable(one.empty for one in judged)),
        "truncated_fraction": fmean(answer.finish == "length" for answer in answers),
        "answers": len(answers),
        "pairs": pairs,
    }


def means_of_answers(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """What run.json says of answers to compare with others: how many, and means over them."""
    answers = [answer for chunk in chunks for answer in chunk.answers]
    means = round_metrics(chunks, 0)
    return {
        "answers": len(answers),
        "reward": means["reward_mean"],
        "toxicity": means["toxicity_mean"],
        "by_witness": means["toxicity_by_witness"],
        "ended": fmean(answer.finish == "stop" for answer in answers),
        "words": fmean(len(answer.text.split()) for answer in answers),
    }


def said_of_trained(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A sentence for the user from two of ``means_of_answers``: of the first round's answers, and the trained
    model's.
    """
    columns = [("reward", before["reward"], after["reward"]), ("P(toxic)", before["toxicity"], after["toxicity"])]
    columns += [(f"by {name}", before["by_witness"].get(name), now) for name, now in after["by_witness"].items()]
    told = [f"{name} {old:.3f} → {now:.3f}" for name, old, now in columns if old is not None and now is not None]
    told += [
        f"ended {before['ended']:.0%} → {after['ended']:.0%}",
        f"words {before['words']:.0f} → {after['words']:.0f}",
    ]
    return f"the trained model, {after['answers']} answers: {', '.join(told)}"


def add_warnings(run: Run, found: Sequence[str]) -> None:
    """Put warnings that came after the last step into its line of metrics.jsonl, each once."""
    *earlier, last = run.read("metrics")
    warned = list(dict.fromkeys([*last["warnings"], *found]))
    if warned != last["warnings"]:
        run.replace("metrics", [*earlier, {**last, "warnings": warned}])


def _columns(judged: Sequence[BatchRewards], name: str) -> dict[str, list[float | None]]:
    names = dict.fromkeys(key for one in judged for key in getattr(one, name))
    return {key: [value for one in judged for value in getattr(one, name)[key]] for key in names}


def doubts_about_round(
    chunks: Sequence[Chunk], prompts: Sequence[Prompt], first: Sequence[Chunk] | None
) -> dict[Doubt, str]:
    """What looks wrong in a round's answers, by name, as in RL; ``first`` are those of the first round, where these are
    later ones.
    """
    answers = [answer for chunk in chunks for answer in chunk.answers]
    asked = [prompts[answer.prompt].text for answer in answers]
    found = doubts_about_texts(asked, [answer.text for answer in answers])
    rewards = {answer.reward for answer in answers if answer.reward is not None}
    if len(rewards) == 1 and len(answers) > 1:
        found["constant_reward"] = f"constant reward: all {len(answers)} answers got {rewards.pop():.3f}"
    silent: dict[str, tuple[int, str]] = {}
    for chunk in chunks:
        for name, (failed, reason) in chunk.judged.silent_witnesses.items():
            silent[name] = (silent.get(name, (0, reason))[0] + failed, silent.get(name, (0, reason))[1])
    found.update(doubts_about_witnesses(silent, len(answers)))
    cut = fmean(answer.finish == "length" for answer in answers)
    if cut >= NEARLY_ALL:
        found["truncated"] = (
            f"truncated: {cut:.0%} of the answers were cut off at max_new_tokens: only beginnings are judged and "
            "learnt; raise --max-new-tokens"
        )
    if first is not None:
        found.update(_hacked(first, chunks))
    return found


def _hacked(first: Sequence[Chunk], now: Sequence[Chunk]) -> dict[Doubt, str]:
    """The reward's judges see toxicity fall beyond chance since the first round, and a witness does not."""

    def known(chunks: Sequence[Chunk], name: str | None = None) -> list[float]:
        columns = [c.judged.toxicity if name is None else c.judged.by_witness.get(name, []) for c in chunks]
        return [value for column in columns for value in column if value is not None]

    before, after = known(first), known(now)
    if min(len(before), len(after)) < 2:
        return {}
    noise = sqrt(stdev(before) ** 2 / len(before) + stdev(after) ** 2 / len(after))
    if fmean(after) > fmean(before) - 2 * noise:
        return {}
    for name in dict.fromkeys(name for chunk in now for name in chunk.judged.by_witness):
        seen_before, seen_after = known(first, name), known(now, name)
        if seen_before and seen_after and fmean(seen_after) >= fmean(seen_before):
            return {
                "reward_hacking": (
                    f"reward hacking: by the reward's judges toxicity fell from {fmean(before):.3f} to "
                    f"{fmean(after):.3f} since the first round, but by {name}, which is no part of the reward, it did "
                    f"not ({fmean(seen_before):.3f} to {fmean(seen_after):.3f})"
                )
            }
    return {}


def shown_samples(
    step: int, chunks: Sequence[Chunk], prompts: Sequence[Prompt], every: int
) -> Iterator[dict[str, Any]]:
    """The first answer to each ``every``-th prompt of a round: what judges, witnesses and terms said; its reward."""
    firsts = [
        (chunk.judged, row, answer) for chunk in chunks for row, answer in enumerate(chunk.answers) if not answer.sample
    ]
    for judged, row, answer in firsts[::every]:
        yield {
            "step": step,
            "prompt": prompts[answer.prompt].text,
            "response": answer.text,
            "finish": answer.finish,
            "reward": answer.reward,
            "reason": judged.reasons[row],
            "toxicity": answer.toxicity,
            "by_judge": {name: values[row] for name, values in judged.by_judge.items()},
            "by_witness": {name: values[row] for name, values in judged.by_witness.items()},
            "terms": dict(answer.terms),
        }


def written_preference(preference: Preference, prompts: Sequence[Prompt], round_number: int) -> dict[str, Any]:
    """A line of preferences.jsonl: TRL's conversational format (chosen and rejected, or a completion where only the
    best answers count), with where each answer comes from beside it.
    """
    prompt, rejected = prompts[preference.chosen.prompt], preference.rejected

    def side(answer: DrawnAnswer) -> list[Mapping[str, str]]:
        return [{"role": "assistant", "content": answer.text}]

    named = (
        {"completion": preference.chosen} if rejected is None else {"chosen": preference.chosen, "rejected": rejected}
    )
    return {
        "round": round_number + 1,
        "prompt": [{"role": turn.role, "content": turn.text} for turn in prompt.turns],
        **{name: side(answer) for name, answer in named.items()},
        **{f"{name}_finish": answer.finish for name, answer in named.items()},
        "prompt_id": prompt.id,
        "samples": [preference.chosen.sample, None if rejected is None else rejected.sample],
        "rewards": [preference.chosen.reward, None if rejected is None else rejected.reward],
    }


def check_file(run: Run, preferences: Path | None) -> None:
    """Raise RunError where a finished run learnt from a file that has other contents now."""
    path = None if preferences is None else preferences.expanduser()
    if path is not None and path.is_file() and sha256(path) != run.meta["preferences"]["sha256"]:
        raise RunError(f"{path} has changed since {run.path} learnt from it: choose another --out")


def check_same(run: Run, about: Mapping[str, Any]) -> None:
    """Raise RunError where a run of your own preferences began with other weights, another adapter or another file."""
    what = {
        "model_hash": "other weights",
        "adapter_hash": "another adapter to start from",
        "preferences": "other preferences",
    }
    for name, described in what.items():
        before = run.meta.get(name)
        if before is not None and before != about.get(name):
            raise RunError(f"{run.path} began with {described}: use the same again, or choose another --out")
