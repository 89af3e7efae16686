"""The run directory of an RL training: how it begins, what it must go on with, which judges only watch, how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rewardlm.config import RlafSettings, how_asked
from rewardlm.errors import ConfigError, RewardLMError, RunError
from rewardlm.measuring.independence import same_judge
from rewardlm.models.load import Policy
from rewardlm.models.lora import adapter_hash
from rewardlm.models.processes import Processes
from rewardlm.runs import Run, prompts_hash, reward_lineage, rewards_of
from rewardlm.scoring.lineage import kinship, lineage_of
from rewardlm.scoring.scorer import Scorer
from rewardlm.types import Prompt

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
    run = Run.start(
        out,
        kind="rlaf",
        label="RL",
        settings=recorded,
        free=(*FREE_SETTINGS, *how_asked(recorded)),
        filled={},  # What may differ is stored as it is now.
    )
    if not is_complete(run, settings):
        terms = settings.rewards.terms
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


def n_logged(run: Run) -> int:
    """How many steps metrics.jsonl has."""
    return sum(1 for _ in run.read("metrics"))


def is_complete(run: Run, settings: RlafSettings) -> bool:
    """Whether nothing is left to do; a finished run is continued by asking for more steps."""
    return run.finished and n_logged(run) >= settings.steps


def witnesses(settings: RlafSettings) -> list[str]:
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


@dataclass(frozen=True, slots=True)
class Identity:
    """What a run that goes on must go on with; ``judges`` are the revisions of those of the reward."""

    model_hash: str
    prompts_hash: str
    adapter_hash: str | None
    judges: dict[str, str | None]

    @classmethod
    def of(
        cls, settings: RlafSettings, policy: Policy, prompts: Sequence[Prompt], judges: Sequence[Scorer]
    ) -> Identity:
        """The identity of a run with these parts."""
        return cls(
            policy.weights_hash,
            prompts_hash(prompts),
            adapter_hash(settings.adapter) if settings.adapter else None,
            {judge.name: getattr(judge, "revision", None) for judge in judges},
        )

    def check(self, run: Run) -> None:
        """Raise RunError where ``run`` began with something else."""
        what = {
            "model_hash": "other weights",
            "prompts_hash": "other prompts",
            "adapter_hash": "an adapter to start from that was other",
            "judges": "other revisions of its judges",
        }
        for name, value in asdict(self).items():
            before = run.meta.get(name)
            if before is not None and before != value:
                raise RunError(f"{run.path} began with {what[name]}: put them back, or choose another --out")


@contextmanager
def stop_noted(run: Run, processes: Processes) -> Iterator[None]:
    """Inside, what ends the training early is written into the run, for those who look at it later."""
    try:
        yield
    except (RewardLMError, KeyboardInterrupt) as error:
        if processes.is_main:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            run.update(status="stopped", stopped=reason)
        raise
