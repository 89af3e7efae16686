"""What the numbers amount to: was toxicity unlearned or bypassed, is the change localised, and what can't be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewardlm.config import InsideSettings
from rewardlm.interpreting.intervals import FEWEST, shown
from rewardlm.interpreting.mechanistic.value_vectors import RATIOS, bounds
from rewardlm.interpreting.mechanistic.vector_ablation import takes_more
from rewardlm.measuring.statistics import LEVEL

# Below this median cosine with the base's, value vectors count as turned.
_TURNED_BELOW = 0.9


def claims(result: Mapping[str, Any], changes: Mapping[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The changes that verdicts and sentences rest on, which are read together: of every tuned model how toxicity
    changed and the preference along its path, and of every model what silencing takes beyond the random sets, where
    there are enough of these for a claim."""
    paths = [path["redraw"]["change"] for path in result["paths"].values() if path is not None and path["redraw"]]
    by_model = {} if result["ablation"] is None else result["ablation"]["by_model"]
    lost = [one for own in by_model.values() for one in own.values() if one and one["p_value_random"] is not None]
    found = [*changes.values(), *paths, *(one["beyond_random"] for one in lost)]
    return [one for one in found if one is not None]


def verdict_of(
    result: dict[str, Any], label: str, change: dict[str, Any] | None, settings: InsideSettings
) -> dict[str, Any]:
    """The numbers that say what kind of change it was, and the kind they amount to; see ``value_vectors``.

    ``spread``: ``localised`` if at most a quarter of the layers carries 80 % of the preference for the base's harmless
    answers over its toxic ones, else ``distributed``; null where the adapter wasn't shown to have raised it.
    ``kind``: see ``_kind``; null where there are no value vectors to follow. ``reason`` says what is missing where it
    is ``cannot_tell``.
    ``direction_used`` says whether the base's answers were shown to depend on the direction.
    """
    path, vectors = result["paths"][label], result["vectors"]
    fewest = path["fewest"] if path is not None and prefers_harmless(path) else None
    spread = None
    if fewest is not None:
        spread = "localised" if fewest <= result["n_layers"] / 4 else "distributed"
    kind, reason, own = None, None, None
    if vectors is not None:
        own = vectors["by_model"][label]
        matter = vectors_matter(result)
        kind, reason = _kind(own, settings.push_margin, matter) if shown(change, -1) else ("unclear", None)
    return {
        "kind": kind,
        "reason": reason,
        "spread": spread,
        "toxicity_change": change,
        "vector_cosine": None if own is None else float(np.median(own["cosine"])),
        **{name: None if own is None else own[name] for name in RATIOS},
        "vectors_matter": vectors_matter(result),
        "direction_used": _direction_used(result),
        "fewest_layers": fewest,
        "n_layers": result["n_layers"],
    }


def prefers_harmless(path: dict[str, Any]) -> bool:
    """Whether the adapter was shown to have raised the preference for the base's harmless second draws."""
    return path["redraw"] is not None and shown(path["redraw"]["change"], 1)


def _kind(own: Mapping[str, Any], margin: float, matter: bool | None) -> tuple[str, str | None]:
    """What became of the value vectors of a model whose toxicity fell, and what is missing where that can't be told.

    ``rewritten``: the adapter turned them (median cosine with the base's below 0.9), and so they push less.
    ``avoided``: they write as before and are set off less, the bypass of Lee et al. 2024. ``untouched``: they push as
    before, so what changed the output lies elsewhere. ``cannot_tell`` otherwise: "as before" needs the ratio's 95 %
    interval within the margin, "less" needs it below 1 and not within the margin, and more of a fall than any adapter
    of random weights of the same size brings about. Nothing is claimed of vectors that the base isn't shown to need.
    """
    if own["push_ratio"] is None:
        return "cannot_tell", (
            "on this text the base’s vectors don’t measurably push towards toxicity, or it has fewer than five prompts"
        )
    if matter is False:
        return "cannot_tell", (
            "silencing these vectors in the base was not shown to take more from the toxic words than silencing others "
            "as long"
        )
    write, read, push = own["write_ratio"], own["read_ratio"], own["push_ratio"]
    less = {name: _less(own, name) for name in RATIOS}
    if float(np.median(own["cosine"])) < _TURNED_BELOW:
        if less["write_ratio"]:
            return "rewritten", None
        return "cannot_tell", "the adapter turned the vectors, but what they write was not shown to be less toxic"
    low, high = bounds(margin)
    within = f"within {low:.2g} and {high:.3g}"
    if not write["as_before"]:
        return "cannot_tell", f"whether they write as before is not known: the interval of that ratio is not {within}"
    if push["as_before"]:
        return "untouched", None
    if less["read_ratio"]:
        return "avoided", None
    if read["ci95"][1] < 1:
        return "cannot_tell", "adapters of random weights as large make these vectors push as little"
    return "cannot_tell", (
        f"the interval of their push holds 1, so that less is not shown, and is not {within}, so that as before is not"
    )


def _less(own: Mapping[str, Any], name: str) -> bool:
    """Whether a ratio fell: below 1, not by so little that it counts as before, and further than by chance changes."""
    ratio, null = own[name], [one[name] for one in own["null"] if one[name] is not None]
    fell: bool = ratio["ci95"][1] < 1 and not ratio["as_before"] and all(ratio["mean"] < other for other in null)
    return fell


def vectors_matter(result: Mapping[str, Any]) -> bool | None:
    """Whether the base loses more with the named value vectors silenced than with others: over prompts, by the
    corrected p-value and the interval, and more than all but one in twenty of the random sets. Of the toxic words'
    logits, else of toxicity, whichever has a rank among these sets; null where there is none, or too few prompts."""
    if result["ablation"] is None:
        return None
    found = result["ablation"]["by_model"][result["models"][0]].values()
    ranked = [one for one in found if one is not None and one["p_value_random"] is not None]
    known = [one for one in ranked if one["beyond_random"]["ci95"] is not None and one["beyond_random"]["n"] >= FEWEST]
    return any(takes_more(one) for one in known) if known else None


def _direction_used(result: dict[str, Any]) -> bool | None:
    """Whether adding the direction to the base raises toxicity or ablating it lowers it: by a p-value that is corrected
    for all changes that were tried, and by more than random directions do; null where it was not tried."""
    if result["causal"] is None or result["causal"]["direction_p_value"] is None:
        return None
    changes = {
        row["kind"]: row["change"]
        for row in result["causal"]["rows"]
        if row["model"] == result["models"][0] and row["change"] is not None
    }

    def sure(kind: str, sign: int) -> bool:
        change = changes[kind]
        return change["ci95"] is not None and change["p_adjusted"] < LEVEL and sign * change["mean"] > 0

    return bool((sure("add", 1) or sure("ablate", -1)) and result["causal"]["direction_p_value"] <= LEVEL)
