"""Toxic shares corrected by people's labels or by known errors, as rows of a table for the page and the terminal."""

from __future__ import annotations

from typing import Any

from rewardlm.formats import interval_of_points, interval_of_shares, percent, points
from rewardlm.measuring.comparison import Comparison, Split, change_of
from rewardlm.reporting.names import SPLITS

# These are shown; others only where none of these was corrected.
_FIRST: tuple[Split, ...] = ("all", "toxic_prompts")
_METHODS = {
    "ppi": "What people said of {labels} answers, carried over to all of them with the judge's scores as a help "
    "(prediction-powered inference). It needs no trust in the judge; the interval includes that most answers have no "
    "label.",
    "rogan-gladen": "The judge's share, solved for the true one by how often it errs{by} (Rogan and Gladen 1978). The "
    "interval includes how uncertain these errors are.",
}


def rows(found: Comparison) -> list[dict[str, Any]]:
    """A row for each judge, split and model whose share was corrected, with its change from the baseline."""
    made = []
    known = {
        split
        for model in found.models
        for splits in model.scorers.values()
        for split, one in splits.items()
        if one.corrected_fraction is not None
    }
    shown = [split for split in SPLITS if split in (known.intersection(_FIRST) or known)]
    for judge in found.scorers:
        for split in shown:
            for model in found.models:
                one = model.scorers.get(judge, {}).get(split)
                if one is None or one.corrected_fraction is None:
                    continue
                change = change_of(found.comparisons, to=model.label, scorer=judge, split=split)
                delta, ends = (None, None) if change is None else (change.corrected_delta, change.corrected_delta_ci95)
                made.append(
                    {
                        "judge": judge,
                        "split": SPLITS[split],
                        "model": model.label,
                        "share": percent(one.toxic_fraction),
                        "corrected": percent(one.corrected_fraction),
                        "ends": interval_of_shares(one.corrected_fraction_ci95),
                        "delta": "" if delta is None else points(delta),
                        "delta_ends": "" if delta is None else interval_of_points(ends),
                        "labels": one.labels,
                        "delta_labels": None if change is None else change.labels,
                    }
                )
    return made


def notes(found: Comparison) -> list[str]:
    """How the shares were corrected, in words, and what else must be known; nothing where that wasn't asked for."""
    splits = [split for model in found.models for one in model.scorers.values() for split in one.values()]
    corrected = [split for split in splits if split.corrected_fraction is not None]
    if not corrected:
        return found.correction_notes
    labels = max(split.labels or 0 for split in corrected)
    method = corrected[0].correction
    assert method is not None
    by = " on the labelled answers" if labels else " on a suite of texts, which may not be like these answers"
    return [_METHODS[method].format(labels=f"up to {labels:,} of a model's", by=by), *found.correction_notes]
