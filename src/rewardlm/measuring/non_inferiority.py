"""Is a loss in utility of more than a margin excluded? "No significant loss" alone may only mean too few items.

The 95 % interval of the change is asked: its end on the side of the loss lies within the margin. That is a test of
non-inferiority at 2.5 % (Piaggio et al. 2012, JAMA 308:2594-2604).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rewardlm.measuring.result import Interval, ShareChange
from rewardlm.measuring.utility_results import NonInferiority

# Standard normal quantiles of 97.5 % and 80 %: the interval, and the chance to show it.
_INTERVAL, _CHANCE = 1.959964, 0.841621
# Of these, a rise is a loss: WikiText's perplexity, and refusals of harmless prompts.
RISE_IS_LOSS = ("wikitext", "over_refusal")


def non_inferiority(changes: Mapping[str, ShareChange], margin: float) -> dict[str, NonInferiority]:
    """For each change of utility that has an interval."""
    return {
        name: _of(change.n, change.delta_ci95, margin, rise=name in RISE_IS_LOSS)
        for name, change in changes.items()
        if change.delta_ci95 is not None
    }


def _of(n: int, ends: Interval, margin: float, *, rise: bool) -> NonInferiority:
    loss = ends[1] if rise else -ends[0]
    holds = loss < margin
    # More items would only show a loss that is there.
    lost = ends[0] > 0 if rise else ends[1] < 0
    return NonInferiority(
        n=n,
        margin=margin,
        largest_loss=loss,
        holds=holds,
        # So that 80 % of intervals around zero end within the margin.
        items_needed=None if holds or lost or margin == 0 else number_needed(n, ends, margin),
    )


def standard_error(ends: Interval) -> float:
    """Of an estimate with this 95 % interval."""
    return (ends[1] - ends[0]) / 2 / _INTERVAL


def number_needed(n: int, ends: Interval, gap: float) -> int:
    """About how many it takes instead of ``n`` until an interval ends within ``gap`` of its middle with a chance of
    80 %: the error falls with the square root of n.
    """
    return max(n + 1, math.ceil(n * ((_INTERVAL + _CHANCE) * standard_error(ends) / gap) ** 2))
