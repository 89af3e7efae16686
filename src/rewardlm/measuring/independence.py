"""Is a judge independent of a model's training? It may not be the reward, nor a relative of it, under any name."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from rewardlm.measuring.measured import Measured
from rewardlm.scoring.lineage import Lineage, kinship, members

# At the start of a folder's name: where it lies depends on where the command was given.
_FOLDERS_ABOVE = re.compile(r"^(?:~|\.\.?(?=/))/?(?:\.\./)*")


def same_judge(judge: str, reward: str) -> bool:
    """Both names stand for one classifier, whatever label is picked of it, or share one in an ensemble.

    ``ID#label`` picks a label, ``NAME.label`` is another label of NAME, ``mean(a,b)`` and ``max(a,b)`` are
    ensembles of a and b, and so are the presets: ``toxicity+hate`` is ``starter``, twice. One folder has many names:
    ``./j``, ``j/`` and ``/home/j`` may be ``j``, and are taken to be it.
    """
    return any(_are_one(one, two) for one in members(judge) for two in members(reward))


def _are_one(judge: str, reward: str) -> bool:
    one, two = (_FOLDERS_ABOVE.sub("", posixpath.normpath(name)) for name in (judge, reward))
    if one.startswith("/") != two.startswith("/"):
        # An absolute name and one from somewhere: as many folders as both have.
        parts = min(name.strip("/").count("/") for name in (one, two)) + 1
        one, two = ("/".join(name.strip("/").split("/")[-parts:]) for name in (one, two))
    return one == two or one.startswith(two + ".") or two.startswith(one + ".")


def was_reward(judge: str, rewards: Sequence[str]) -> bool:
    """Whether ``judge`` is one of ``rewards``, whatever it is called there."""
    return any(same_judge(judge, reward) for reward in rewards)


class _Unknown:
    """That nobody recorded a lineage."""


UNKNOWN = _Unknown()


def kinship_of(run: Measured, judge: str) -> tuple[str, str] | _Unknown | None:
    """The reward of the run's model that ``judge`` is a relative of, and how; None where it is independent.

    ``UNKNOWN`` where a lineage is lacking. That a judge was the reward itself is another question (``same_judge``).
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
