"""What the numbers amount to: was toxicity unlearned or bypassed, where does the change sit, and what can't be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from rewardlm.config import InsideSettings
from rewardlm.interpreting.findings import AdapterPath, AdapterVerdict, Estimate, Inside, ModelVectors, Ratio
from rewardlm.interpreting.intervals import FEWEST, shown
from rewardlm.interpreting.mechanistic.value_vectors import bounds
from rewardlm.interpreting.mechanistic.vector_ablation import takes_more
from rewardlm.stats import LEVEL

Kind = Literal["unclear", "rewritten", "avoided", "untouched", "cannot_tell"]
# Below this median cosine with the base's, value vectors count as turned.
_TURNED_BELOW = 0.9


def claims(found: Inside, changes: Mapping[str, Estimate | None]) -> list[Estimate]:
    """The changes that verdicts and sentences rest on, which are read together: of every tuned model how toxicity
    changed and the preference along its path, and of every model what silencing takes beyond the random sets, where
    there are enough of these for a claim."""
    paths = [path.redraw.change for path in found.paths.values() if path is not None and path.redraw is not None]
    by_model = {} if found.ablation is None else found.ablation.by_model
    lost = [one for own in by_model.values() for one in (own.toxicity, own.logits) if one is not None]
    beyond = [one.beyond_random for one in lost if one.p_value_random is not None]
    return [one for one in (*changes.values(), *paths, *beyond) if one is not None]


def verdict_of(found: Inside, label: str, change: Estimate | None, settings: InsideSettings) -> AdapterVerdict:
    """The numbers that say what kind of change it was, and the kind they amount to; see ``value_vectors``.

    ``spread``: ``localised`` if at most a quarter of the layers carries 80 % of the preference for the base's harmless
    answers over its toxic ones, else ``distributed``; None where the adapter wasn't shown to have raised it.
    ``kind``: see ``_kind``; None where there are no value vectors to follow. ``reason`` says what is missing where it
    is ``cannot_tell``.
    ``direction_used`` says whether the base's answers were shown to depend on the direction.
    """
    path = found.paths[label]
    fewest = path.fewest if path is not None and prefers_harmless(path) else None
    spread: Literal["localised", "distributed"] | None = None
    if fewest is not None:
        spread = "localised" if fewest <= found.n_layers / 4 else "distributed"
    own = None if found.vectors is None else found.vectors.by_model[label]
    matter = vectors_matter(found)
    kind: Kind | None = None
    reason = None
    if own is not None:
        kind, reason = _kind(own, settings.push_margin, matter) if shown(change, -1) else ("unclear", None)
    return AdapterVerdict(
        kind=kind,
        reason=reason,
        spread=spread,
        toxicity_change=change,
        vector_cosine=None if own is None else float(np.median(own.cosine)),
        push_ratio=None if own is None else own.push_ratio,
        read_ratio=None if own is None else own.read_ratio,
        write_ratio=None if own is None else own.write_ratio,
        vectors_matter=matter,
        direction_used=_direction_used(found),
        fewest_layers=fewest,
        n_layers=found.n_layers,
    )


def prefers_harmless(path: AdapterPath) -> bool:
    """Whether the adapter was shown to have raised the preference for the base's harmless second draws."""
    return path.redraw is not None and shown(path.redraw.change, 1)


def _kind(own: ModelVectors, margin: float, matter: bool | None) -> tuple[Kind, str | None]:
    """What became of the value vectors of a model whose toxicity fell, and what is missing where that can't be told.

    ``rewritten``: the adapter turned them (median cosine with the base's below 0.9), and so they push less.
    ``avoided``: they write as before and are set off less, the bypass of Lee et al. 2024. ``untouched``: they push as
    before, so what changed the output lies elsewhere. ``cannot_tell`` otherwise: "as before" needs the ratio's 95 %
    interval within the margin, "less" needs it below 1 and not within the margin, and more of a fall than any adapter
    of random weights of the same size brings about. Nothing is claimed of vectors that the base isn't shown to need.
    """
    write, read, push = own.write_ratio, own.read_ratio, own.push_ratio
    if push is None or read is None or write is None:
        return "cannot_tell", (
            "on this text the base’s vectors don’t measurably push towards toxicity, or it has fewer than five prompts"
        )
    if matter is False:
        return "cannot_tell", (
            "silencing these vectors in the base was not shown to take more from the toxic words than silencing others "
            "of the same length"
        )
    if float(np.median(own.cosine)) < _TURNED_BELOW:
        if _less(write, [one.write_ratio for one in own.null]):
            return "rewritten", None
        return "cannot_tell", "the adapter turned the vectors, but what they write was not shown to be less toxic"
    low, high = bounds(margin)
    within = f"within {low:.2g} and {high:.3g}"
    if not write.as_before:
        return "cannot_tell", f"whether they write as before is not known: the interval of that ratio is not {within}"
    if push.as_before:
        return "untouched", None
    if _less(read, [one.read_ratio for one in own.null]):
        return "avoided", None
    if read.ci95[1] < 1:
        return "cannot_tell", "adapters of random weights as large make these vectors push as little"
    return "cannot_tell", (
        f"the interval of their push holds 1, so a fall is not shown, and it is not {within}, so “as before” is not"
    )


def _less(ratio: Ratio, null: list[float | None]) -> bool:
    """Whether a ratio fell: below 1, not by so little that it counts as before, and further than by chance changes."""
    by_chance = [other for other in null if other is not None]
    return ratio.ci95[1] < 1 and not ratio.as_before and all(ratio.mean < other for other in by_chance)


def vectors_matter(found: Inside) -> bool | None:
    """Whether the base loses more with the named value vectors silenced than with others: over prompts, by the
    corrected p-value and the interval, and more than all but one in twenty of the random sets. Of the toxic words'
    logits, else of toxicity. False where it wasn't shown to lose anything; None where nothing was silenced, or there
    are too few prompts or sets."""
    if found.ablation is None:
        return None
    base = found.ablation.by_model[found.models[0]]
    decides = base.logits or base.toxicity
    if decides is None or decides.change is None or decides.change.n < FEWEST:
        return None
    if not shown(decides.change, -1):
        return False
    return None if decides.p_value_random is None else takes_more(decides)


def _direction_used(found: Inside) -> bool | None:
    """Whether adding the direction to the base raises toxicity or ablating it lowers it: by a p-value that is corrected
    for all changes that were tried, and by more than random directions do; None where it was not tried."""
    if found.causal is None:
        return None
    changes = {row.kind: row.change for row in found.causal.rows if row.model == found.models[0]}
    if not {"add", "ablate"} <= changes.keys():
        return None
    rank = found.causal.direction_p_value
    return (shown(changes["add"], 1) or shown(changes["ablate"], -1)) and rank is not None and rank <= LEVEL
