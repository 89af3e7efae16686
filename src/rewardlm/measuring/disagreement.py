"""Do two judges see a change differently, by more than chance explains?

Judges err, each in its own way, so two judges rarely report the same change. Where nothing changed, one reports a small
fall and the other a small rise in half of all cases. That is noise. So the difference between the two changes is itself
tested, over prompts, on the answers that both judges scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rewardlm.measuring.changes import Splits
from rewardlm.measuring.comparison import Change, Split, change_of
from rewardlm.measuring.grid import Grid, Rule
from rewardlm.measuring.measured import Measured
from rewardlm.stats import LEVEL, FloatArray, MeanChange, holm, mean_change

# The splits in which judges are compared.
_SPLITS: tuple[Split, ...] = ("toxic_prompts", "all")


@dataclass(frozen=True, slots=True)
class JudgesDisagree:
    """Two judges' changes of the toxic share in ``split``, and by how much they differ (``one`` minus ``two``).

    ``p_adjusted`` is corrected (Holm) for all pairs of judges and both splits of this model.
    """

    split: Split
    one: Change
    two: Change
    difference: MeanChange
    p_adjusted: float


def difference_of_judges(
    one: tuple[FloatArray, FloatArray], two: tuple[FloatArray, FloatArray], rule: Rule, rule_of_two: Rule | None = None
) -> MeanChange:
    """The change of the toxic share by one judge minus that by the other, over prompts.

    Each judge gives its scores [N, K] before and after. A cell counts where both judges scored it in both models.
    ``rule_of_two`` is what is toxic to the second judge, by default the same as to the first.
    """
    known = ~np.isnan(np.stack([*one, *two])).any(axis=0)
    rules = (rule, rule, rule_of_two or rule, rule_of_two or rule)
    before, after, other_before, other_after = (
        own.toxic(scores).astype(np.float64) for own, scores in zip(rules, (*one, *two), strict=True)
    )
    cells = np.where(known, (after - before) - (other_after - other_before), 0.0)
    return mean_change(cells.sum(axis=1), known.sum(axis=1), largest=2.0, n_flips=rule.n_resamples, seed=rule.seed)


def judges_that_disagree(
    baseline: Measured, run: Measured, own: Sequence[Change], grid: Grid, splits: Splits, rule: Rule
) -> Iterator[JudgesDisagree]:
    """Pairs of judges, one of which saw the toxic share fall and the other saw it rise, beyond chance.

    Each pair comes once at most: on toxic prompts, else on all. ``own`` are the changes from ``baseline`` to ``run``.
    """
    judges = [judge for judge in run.judges if judge in baseline.scores]
    asked = [(one, two, split) for one, two in combinations(judges, 2) for split in _SPLITS]
    found = []
    for one, two, split in asked:
        a, b, c, d = (
            np.where(splits[split], grid.scores(model, judge), np.nan)
            for judge in (one, two)
            for model in (baseline, run)
        )
        found.append(difference_of_judges((a, b), (c, d), rule.of(one), rule.of(two)))
    told = set()
    adjusted = holm([difference.p_value for difference in found])
    for (one, two, split), difference, p_adjusted in zip(asked, found, adjusted, strict=True):
        if p_adjusted is None or p_adjusted >= LEVEL or (one, two) in told:
            continue
        by_one, by_two = (change_of(own, to=run.label, scorer=judge, split=split) for judge in (one, two))
        if by_one is None or by_two is None or by_one.delta is None or by_two.delta is None:
            continue
        if by_one.delta * by_two.delta < 0:
            told.add((one, two))
            yield JudgesDisagree(split, by_one, by_two, difference, p_adjusted)
