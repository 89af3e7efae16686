"""The run of a training that learns from its own judged answers, by RL or by preferences: who judges, what it must go
on with when it is resumed, and what stops it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from rewardlm.config import RewardedSettings
from rewardlm.data.prompts import prompts_of
from rewardlm.errors import ConfigError, DataError, DiskFullError, RewardLMError, RunError
from rewardlm.measuring.independence import AUDITED_TERMS, same_judge
from rewardlm.models.load import Policy
from rewardlm.models.lora import adapter_hash
from rewardlm.models.processes import Processes
from rewardlm.runs import Run, paid_for, prompts_hash, reward_lineage, rewards_of
from rewardlm.scoring.lineage import kinship, lineage_of
from rewardlm.scoring.load import check_judges, check_rewards, load_reward, load_scorer
from rewardlm.training.rewards import RewardModel
from rewardlm.training.rollouts import encode_prompts
from rewardlm.training.terms import load_terms
from rewardlm.types import Prompt


def load_rewards(settings: RewardedSettings, device: str) -> RewardModel:
    """The judges that reward, those that only watch, and the terms."""
    watching = witnesses(settings)
    check_rewards(settings.reward, settings.services)
    check_judges(watching, settings.services)
    return RewardModel(
        [load_reward(name, device=device, services=settings.services) for name in settings.reward],
        settings.reward_settings,
        weights=[settings.rewards.weights.get(name, 1.0) for name in settings.reward],
        witnesses=[load_scorer(name, device=device, services=settings.services) for name in watching],
        terms=load_terms(
            settings.reward_settings.terms,
            device=device,
            services=settings.services,
            measured=settings.measured_terms,
        ),
        max_new_tokens=settings.max_new_tokens,
    )


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """The prompts that a training asks, each as tokens too; ``n_cut`` of them are too long and lost their beginning."""

    prompts: list[Prompt]
    ids: list[tuple[int, ...]]
    n_cut: int

    @property
    def note(self) -> str | None:
        """A sentence for the user about those that are too long."""
        if not self.n_cut:
            return None
        return f"{self.n_cut:,} of {len(self.prompts):,} prompts are too long: they lose the beginning of their history"


def ask_prompts(
    settings: RewardedSettings, run: Run, policy: Policy, rewards: RewardModel, processes: Processes
) -> EncodedPrompts:
    """Load the prompts, check that a resumed ``run`` has the parts that it began with, and record all that.

    Raises DataError where there are no prompts, and RunError where something is another than before.
    """
    found = prompts_of(settings)
    prompts = found.prompts
    if not prompts:
        raise DataError(f"{settings.prompts} (part {settings.part}) has no prompts to train on")
    asked = EncodedPrompts(prompts, *encode_prompts(policy, prompts, settings))
    identity = Identity.of(settings, policy, prompts, rewards)
    identity.check(run)
    if processes.is_main:
        run.update(
            **{**policy.describe(), **asdict(identity)},
            prompts={"source": settings.prompts, "part": settings.part, "n": len(prompts), "truncated": asked.n_cut},
            dropped_prompts=found.dropped,
            processes=processes.size,
        )
    return asked


def recorded_rewards(settings: RewardedSettings) -> dict[str, Any]:
    """What run.json says of who rewards, so that the audit knows whose word is no proof: those of an earlier training
    too, if this one goes on from its adapter.
    """
    terms = settings.reward_settings.terms
    inherited = rewards_of(settings.adapter) if settings.adapter else []
    earlier = paid_for(settings.adapter) if settings.adapter else []
    paid = [name for name in AUDITED_TERMS if getattr(terms, name) or name in settings.chosen_by]
    # A judge of counter-narratives is a reward like any other: its share must not be the proof afterwards.
    judges = [*settings.reward, *([terms.counter_narrative_judge] if terms.counter_narrative else [])]
    return {
        "rewards": list(dict.fromkeys([*inherited, *judges])),
        "reward_lineage": {
            **(reward_lineage(settings.adapter) if settings.adapter else {}),
            **{name: lineage_of(name).to_dict() for name in judges},
        },
        "paid_for": list(dict.fromkeys([*earlier, *paid])),
    }


def witnesses(settings: RewardedSettings) -> list[str]:
    """The judges that only watch. Raises ConfigError where one of them is also a judge of the reward."""
    if settings.witness is None:
        # The first that is no judge of the reward and not related to one.
        rewards = [lineage_of(reward) for reward in settings.reward]
        for name in ("witness", "lexical"):
            if not any(kinship(lineage_of(name), reward) for reward in rewards):
                return [name]
        return []
    for name in settings.witness:
        for reward in settings.reward:
            if same_judge(name, reward):
                raise ConfigError(
                    f"witness {name} is a judge of the reward ({reward}): name a judge that this training does not use"
                )
    return settings.witness


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same when a run is resumed; ``judges`` are the revisions of the reward's judges, ``term_judges``
    those of its terms'.
    """

    model_hash: str
    prompts_hash: str
    adapter_hash: str | None
    judges: dict[str, str | None]
    term_judges: dict[str, str]

    @classmethod
    def of(
        cls,
        settings: RewardedSettings,
        policy: Policy,
        prompts: Sequence[Prompt],
        rewards: RewardModel,
    ) -> Identity:
        """The identity of a run with these parts."""
        return cls(
            policy.weights_hash,
            prompts_hash(prompts),
            adapter_hash(settings.adapter) if settings.adapter else None,
            {judge.name: getattr(judge, "revision", None) for judge in rewards.scorers},
            rewards.terms.revisions,
        )

    def check(self, run: Run) -> None:
        """Raise RunError where ``run`` began with something else."""
        what = {
            "model_hash": "other weights",
            "prompts_hash": "other prompts",
            "adapter_hash": "another adapter to start from",
            "judges": "other revisions of its judges",
            "term_judges": "another revision of what judges its terms (rewards.terms)",
        }
        for name, value in asdict(self).items():
            before = run.meta.get(name)
            if before is not None and before != value:
                raise RunError(f"{run.path} began with {what[name]}: use the same again, or choose another --out")


@contextmanager
def stop_noted(run: Run, processes: Processes) -> Iterator[None]:
    """Inside, whatever ends the training early is recorded in the run, for anyone who looks at it later."""
    try:
        yield
    except (RewardLMError, KeyboardInterrupt) as error:
        if processes.is_main:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            # On a disk that is full this can't be written either; what is raised says more.
            with suppress(DiskFullError):
                run.update(status="stopped", stopped=reason)
        raise
