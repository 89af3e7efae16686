"""Is a loss in utility of more than a margin excluded? "No significant loss" alone may only mean too few items.

The 95 % interval of the change is asked: its end on the side of the loss lies within the margin. That is a test of
non-inferiority at 2.5 % (Piaggio et al. 2012, JAMA 308:2594-2604). But an interval knows only of changes that were
seen. Where answers changed by little, it says nothing of the rare question whose every answer is lost. So the largest
loss of a share is larger than the interval says: see ``largest_loss``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rewardlm.measuring.result import Interval, ShareChange
from rewardlm.measuring.utility_results import NonInferiority
from rewardlm.stats import LEVEL, t_quantile, unseen_share

# Standard normal quantiles of 97.5 % and 80 %: the interval, and the chance to show it.
_INTERVAL, _CHANCE = 1.959964, 0.841621
# Of these, a rise is a loss: WikiText's perplexity, and refusals of harmless prompts.
RISE_IS_LOSS = ("wikitext", "over_refusal")
# These are no single task of choice.
_OTHERS = ("wikitext", "over_refusal", "accuracy")


def non_inferiority(changes: Mapping[str, ShareChange], margin: float) -> dict[str, NonInferiority]:
    """For each change of utility that has an interval."""
    asked: dict[str, int | None] = {name: change.n for name, change in changes.items()}
    if "wikitext" in asked:
        asked["wikitext"] = None
    if "accuracy" in asked:
        asked["accuracy"] = of_all_tasks(change.n for name, change in changes.items() if name not in _OTHERS)
    return {
        name: _of(change.n, change.delta_ci95, margin, rise=name in RISE_IS_LOSS, asked=asked[name])
        for name, change in changes.items()
        if change.delta_ci95 is not None
    }


def _of(n: int, ends: Interval, margin: float, *, rise: bool, asked: int | None) -> NonInferiority:
    loss = largest_loss(ends, rise=rise, asked=asked)
    holds = loss < margin
    # More items would only show a loss that is there.
    lost = ends[0] > 0 if rise else ends[1] < 0
    needed = None
    if not holds and not lost and margin > 0:
        # So that 80 % of intervals around zero end within the margin; if nothing changed, the interval is exact.
        exact = asked is not None and nothing_changed(ends, asked)
        about = n + 1 if exact else number_needed(n, widened(ends, asked), margin)
        needed = max(about, 0 if asked is None else math.ceil(n * number_to_see(margin) / asked))
    return NonInferiority(n=n, margin=margin, largest_loss=loss, holds=holds, items_needed=needed)


def largest_loss(ends: Interval, *, rise: bool, asked: int | None) -> float:
    """The largest loss that a change with the 95 % interval ``ends`` allows; ``asked`` is of how many prompts or
    questions it is a share, None where it is none.

    A share may have lost more than was seen, in two ways. The interval is ``widened``. And a kind of prompt that the
    new model always fails may be missing among those that were asked: ``unseen_share`` of all prompts may be of it, and
    the others have lost what they have.
    """
    low, high = widened(ends, asked)
    loss = high if rise else -low
    if asked is None:
        return loss
    unseen = unseen_share(asked)
    return max(loss, unseen + min(0.0, loss) * (1 - unseen))


def widened(ends: Interval, asked: int | None) -> Interval:
    """The interval as if one more of ``asked`` prompts had changed in all its answers (the idea of Agresti & Coull
    1998), which few changes of a part of the answers don't foresee. As it is where it is of no share, or exact.
    """
    if asked is None or asked < 2 or nothing_changed(ends, asked):
        return ends
    half = (ends[1] - ends[0]) / 2
    more = math.hypot(half, t_quantile(asked - 1) / asked) - half
    return ends[0] - more, ends[1] + more


def of_all_tasks(numbers: Iterable[int]) -> int:
    """Of how many questions a mean over tasks is a share: a question of the shortest task weighs most."""
    found = list(numbers)
    return min(sum(found), len(found) * min(found))


def nothing_changed(ends: Interval, asked: int) -> bool:
    """Then the interval is ``unseen_share`` to both sides, and exact."""
    return ends[0] == -ends[1] and math.isclose(ends[1], unseen_share(asked), rel_tol=1e-6)


def number_to_see(margin: float) -> int:
    """How many prompts hold one of a kind that is a share ``margin`` > 0 of all, with a chance of 97.5 %."""
    return 1 if margin >= 1 else math.ceil(math.log(LEVEL / 2) / math.log1p(-margin))


def standard_error(ends: Interval) -> float:
    """Of an estimate with this 95 % interval."""
    return (ends[1] - ends[0]) / 2 / _INTERVAL


def number_needed(n: int, ends: Interval, gap: float) -> int:
    """About how many it takes instead of ``n`` until an interval ends within ``gap`` of its middle with a chance of
    80 %: the error falls with the square root of n.
    """
    return max(n + 1, math.ceil(n * ((_INTERVAL + _CHANCE) * standard_error(ends) / gap) ** 2))
