"""RewardLM: make a chat model less toxic, and prove it.

>>> import rewardlm as rl
>>> rl.score(["You are a worthless idiot."], judge="lexical")[0] > 0.5
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewardlm.api import Scores as Scores
    from rewardlm.api import compare as compare
    from rewardlm.api import finetune as finetune
    from rewardlm.api import frontier as frontier
    from rewardlm.api import gate as gate
    from rewardlm.api import interpret as interpret
    from rewardlm.api import load_judge as load_judge
    from rewardlm.api import measure as measure
    from rewardlm.api import power as power
    from rewardlm.api import prefer as prefer
    from rewardlm.api import report as report
    from rewardlm.api import reward_function as reward_function
    from rewardlm.api import rlaf as rlaf
    from rewardlm.api import score as score
    from rewardlm.api import steer as steer
    from rewardlm.errors import RewardLMError as RewardLMError
    from rewardlm.measuring.comparison import Comparison as Comparison
    from rewardlm.runs import Run as Run
    from rewardlm.types import Dialogue as Dialogue
    from rewardlm.types import Generation as Generation
    from rewardlm.types import Message as Message
    from rewardlm.types import Prompt as Prompt
    from rewardlm.types import Score as Score
    from rewardlm.types import Verdict as Verdict

# The module of each name. A name is imported when it is first used, so that `import rewardlm` takes no time.
_FROM = {
    "rewardlm.api": (
        "Scores", "compare", "finetune", "frontier", "gate", "interpret", "load_judge", "measure", "power",
        "prefer", "report", "reward_function", "rlaf", "score", "steer",
    ),
    "rewardlm.errors": ("RewardLMError",),
    "rewardlm.measuring.comparison": ("Comparison",),
    "rewardlm.runs": ("Run",),
    "rewardlm.types": ("Dialogue", "Generation", "Message", "Prompt", "Score", "Verdict"),
}  # fmt: skip
_WHERE = {name: module for module, names in _FROM.items() for name in names}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("rewardlm")
    if name not in _WHERE:
        raise AttributeError(f"module 'rewardlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
