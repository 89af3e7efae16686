"""Is a judge independent of a model's training? It must be neither the reward nor a relative of it, under any name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from rewardlm.measuring.measured import Measured
from rewardlm.scoring.lineage import Lineage, kinship, members

# The start of a folder's name that depends on where the command was given.
_FOLDERS_ABOVE = re.compile(r"^(?:~|\.\.?(?=/))/?(?:\.\./)*")

# Terms of RL's reward (rewards.terms) that the audit measures by the same means: what each pays a model for.
AUDITED_TERMS = {
    "similarity": "staying close to its prompts",
    "refusal": "not refusing",
    "script": "keeping to the prompt's script",
    "repetition": "not repeating itself",
}


def same_judge(judge: str, reward: str) -> bool:
    """Whether both names stand for one classifier, whatever label they pick of it, or for ensembles that share one.

    ``ID#label`` picks a label, ``NAME.label`` is another label of NAME, ``mean(a,b)`` and ``max(a,b)`` are
    ensembles of a and b, and so are the presets: both members of ``toxicity+hate`` are ``starter``. One folder has
    many names: ``./j``, ``j/`` and ``/home/j`` may all be ``j``, and are taken to be it.
    """
    return any(_are_one(one, two) for one in members(judge) for two in members(reward))


def _are_one(judge: str, reward: str) -> bool:
    one, two = (_FOLDERS_ABOVE.sub("", posixpath.normpath(name)) for name in (judge, reward))
    if one.startswith("/") != two.startswith("/"):
        # One name is absolute and one is not: compare as many folders, from the end, as both have.
        parts = min(name.strip("/").count("/") for name in (one, two)) + 1
        one, two = ("/".join(name.strip("/").split("/")[-parts:]) for name in (one, two))
    return one == two or one.startswith(two + ".") or two.startswith(one + ".")


def was_reward(judge: str, rewards: Sequence[str]) -> bool:
    """Whether ``judge`` is one of ``rewards``, whatever it is called there."""
    return any(same_judge(judge, reward) for reward in rewards)


class _Unknown:
    """Stands for a lineage that nobody recorded."""


UNKNOWN = _Unknown()


def kinship_of(run: Measured, judge: str) -> tuple[str, str] | _Unknown | None:
    """The reward of the run's model that ``judge`` is a relative of, and how; None if it is independent.

    ``UNKNOWN`` if a lineage is missing. Whether a judge was the reward itself is another question (``same_judge``).
    """
    judged = next((entry.get("lineage") for entry in run.meta.get("scorers", []) if entry["name"] == judge), None)
    mine = Lineage.of_dict(judge, judged)
    unknown = False
    for reward in run.rewards:
        if same_judge(judge, reward):
            continue
        other = Lineage.of_dict(reward, (run.meta.get("reward_lineage") or {}).get(reward))
        how = kinship(mine, other)
        if how is not None:
            return reward, how
        unknown |= not (mine.known and other.known)
    return UNKNOWN if unknown else None


def is_independent(run: Measured, judge: str) -> bool:
    """Whether ``judge`` was nobody's reward and is known to be no relative of one."""
    return not was_reward(judge, run.rewards) and kinship_of(run, judge) is None
