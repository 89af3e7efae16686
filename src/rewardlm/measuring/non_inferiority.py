"""Is a loss in utility of more than a margin excluded? "No significant loss" alone may only mean too few items.

The 95 % interval of the change is asked: its end on the side of the loss lies within the margin. That is a test of
non-inferiority at 2.5 % (Piaggio et al. 2012, JAMA 308:2594-2604). But an interval knows only of changes that were
seen. If answers changed by little, it says nothing of the rare question whose every answer is lost; so of a share, as
much counts as lost as could be of a kind that none of these questions was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rewardlm.measuring.result import Interval, ShareChange
from rewardlm.measuring.utility_results import NonInferiority
from rewardlm.stats import LEVEL, unseen_share

# Standard normal quantiles of 97.5 % and 80 %: the interval, and the chance to show it.
_INTERVAL, _CHANCE = 1.959964, 0.841621
# Of these, a rise is a loss: WikiText's perplexity, and refusals of harmless prompts.
RISE_IS_LOSS = ("wikitext", "over_refusal")


def non_inferiority(changes: Mapping[str, ShareChange], margin: float) -> dict[str, NonInferiority]:
    """For each change of utility that has an interval."""
    return {
        name: _of(change.n, change.delta_ci95, margin, rise=name in RISE_IS_LOSS, share=name != "wikitext")
        for name, change in changes.items()
        if change.delta_ci95 is not None
    }


def _of(n: int, ends: Interval, margin: float, *, rise: bool, share: bool) -> NonInferiority:
    loss = largest_loss(n, ends, rise=rise, share=share)
    holds = loss < margin
    # More items would only show a loss that is there.
    lost = ends[0] > 0 if rise else ends[1] < 0
    needed = None
    if not holds and not lost and margin > 0:
        # So that 80 % of intervals around zero end within the margin.
        needed = max(number_needed(n, ends, margin), number_to_see(margin) if share else 0)
    return NonInferiority(n=n, margin=margin, largest_loss=loss, holds=holds, items_needed=needed)


def largest_loss(n: int, ends: Interval, *, rise: bool, share: bool) -> float:
    """The largest loss that a change's 95 % interval allows; of a ``share`` of ``n``, at least ``unseen_share``."""
    loss = ends[1] if rise else -ends[0]
    return max(loss, unseen_share(n)) if share else loss


def number_to_see(margin: float) -> int:
    """How many must be asked so that a share ``margin`` of them of one kind is seen with a chance of 97.5 %."""
    return 1 if margin >= 1 else math.ceil(math.log(LEVEL / 2) / math.log1p(-margin))


def standard_error(ends: Interval) -> float:
    """Of an estimate with this 95 % interval."""
    return (ends[1] - ends[0]) / 2 / _INTERVAL


def number_needed(n: int, ends: Interval, gap: float) -> int:
    """About how many it takes instead of ``n`` until an interval ends within ``gap`` of its middle with a chance of
    80 %: the error falls with the square root of n.
    """
    return max(n + 1, math.ceil(n * ((_INTERVAL + _CHANCE) * standard_error(ends) / gap) ** 2))
