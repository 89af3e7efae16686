"""Do labellers agree? Krippendorff's α: 1 is perfect agreement, 0 is what chance would give.

α = 1 - observed disagreement / expected disagreement (Krippendorff 2004, Content Analysis, chapter 11), for nominal
labels. It takes items that only some labellers saw as they are. Who can't tell has no label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rewardlm.labelling.folder import Label
from rewardlm.stats import FloatArray, bootstrap_ci95

# A resample takes NLTK some milliseconds.
N_RESAMPLES = 500


@dataclass(frozen=True, slots=True)
class Agreement:
    """``alpha`` over the ``items`` that two labellers or more have a label for, with its 95 % interval over items.

    None where it isn't defined: no such item, or all labels are the same. ``pairs`` are the shares of items on which
    two labellers agree, by their names, with how many items that is.
    """

    items: int
    alpha: float | None
    ci95: tuple[float, float] | None
    pairs: dict[tuple[str, str], tuple[float, int]]


def agreement(said: Mapping[str, Mapping[str, Label]], *, seed: int = 0) -> Agreement:
    """Of what each labeller said of each item (``LabelFolder.said``)."""
    items = list(dict.fromkeys(item for of_one in said.values() for item in of_one))
    table = np.array(
        [[np.nan if (label := of_one.get(item)) is None else label for item in items] for of_one in said.values()]
    ).reshape(len(said), len(items))
    table = table[:, (~np.isnan(table)).sum(axis=0) > 1]
    known = dict(zip(said, table, strict=True))
    pairs = {}
    for one, other in combinations(known, 2):
        both = ~np.isnan(known[one]) & ~np.isnan(known[other])
        if both.any():
            pairs[one, other] = float((known[one] == known[other])[both].mean()), int(both.sum())
    n = table.shape[1]
    ends = bootstrap_ci95(lambda rows: _alpha(table[:, rows]), range(n), n_resamples=N_RESAMPLES, seed=seed)
    # Where all agree, resamples can't say how far chance went.
    return Agreement(n, _alpha(table), None if ends is None or ends[0] == ends[1] else ends, pairs)


def _alpha(table: FloatArray) -> float | None:
    """Of labels Float[labellers, items], NaN where there is none; None if there is no difference that could be."""
    from nltk.metrics.agreement import AnnotationTask

    if len(np.unique(table[~np.isnan(table)])) < 2:
        return None
    said = [(labeller, item, label) for (labeller, item), label in np.ndenumerate(table) if not np.isnan(label)]
    return float(AnnotationTask(data=said).alpha())
