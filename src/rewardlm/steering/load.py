"""A steering by its folder: what ``measure --steer`` puts on a model."""

from __future__ import annotations

from collections.abc import Callable

from rewardlm.config import ServicesSettings
from rewardlm.errors import RunError
from rewardlm.steering.activation import of_activation, of_profs
from rewardlm.steering.adapters import Dexperts, TaskVector
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.pplm import Pplm
from rewardlm.steering.selection import Selection
from rewardlm.steering.selfdebias import SelfDebiasing
from rewardlm.steering.steered import Steering
from rewardlm.steering.system import SystemPrompt


def load_steering(folder: SteerFolder, services: ServicesSettings | None = None) -> Steering:
    """The steering that ``folder`` holds; ``services`` says how a judge over HTTP is asked.

    Raises RunError for a method that is unknown here, and what the methods raise where an adapter is gone.
    """
    method = folder.record.method
    methods: dict[str, Callable[[SteerFolder], Steering]] = {
        "best-of-n": lambda one: Selection(one, services),
        "rejection": lambda one: Selection(one, services),
        "system": SystemPrompt,
        "activation": of_activation,
        "dexperts": Dexperts,
        "selfdebias": SelfDebiasing,
        "task-vector": TaskVector,
        "profs": of_profs,
        "pplm": Pplm,
    }
    if method not in methods:
        raise RunError(f"a steer folder of the method {method!r}: this rewardlm knows {', '.join(sorted(methods))}")
    try:
        return methods[method](folder)
    except KeyError as error:
        raise RunError(f"{folder.folder}: a steer folder of the method {method} lacks {error}: fit it again") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        # Settings of another type, or vectors of another shape or name, than fitting wrote.
        reason = " ".join(str(error).split())[:120]
        raise RunError(
            f"{folder.folder}: its settings or vectors are not as steer fit --method {method} writes them ({reason}): "
            "fit it again"
        ) from error
