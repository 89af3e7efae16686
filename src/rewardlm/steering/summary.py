"""What a fitted steering says of itself, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewardlm.formats import number, percent
from rewardlm.steering.record import SteerRecord


def sentences(record: SteerRecord) -> Iterator[str]:
    """What was found, and what to doubt of it."""
    found = record.found
    if "unsteered" not in found:
        return
    plain = found["unsteered"]
    chosen = next(
        one for one in found["tried"] if one["layers"] == found["layers"] and one["strength"] == record.strength
    )
    layers = ", ".join(map(str, found["layers"]))
    yield (
        f"layer {layers}, strength {record.strength:g}: toxic share {_of(plain)} → {_of(chosen)} on "
        f"{found['prompts']} prompts that were kept for choosing"
    )
    if not found["fluent"]:
        yield "no strength left answers fluent enough: the most fluent one was taken; try lower strengths"
    if (p_value := found["p_value_random"]) is not None:
        did = "did" if p_value <= 0.05 else "did not do"
        yield (
            f"the direction {did} better than {len(found['random'])} random ones of equal length "
            f"(p = {number(p_value, '.3f')})"
        )


def _of(one: Mapping[str, Any]) -> str:
    share, perplexity = one["toxic_fraction"], one["perplexity"]
    shown = "none scored" if share is None else percent(share)
    return shown if perplexity is None else f"{shown} (perplexity {number(perplexity, ',.1f')})"
