"""What a fitted steering says of itself, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewardlm.formats import number, percent
from rewardlm.steering.record import SteerRecord


def sentences(record: SteerRecord) -> Iterator[str]:
    """What was found, and what to doubt of it."""
    found = record.found
    if found.get("toxic_above", 0.5) < 0.5:
        yield (
            f"few answers are above 0.5, so those above {number(found['toxic_above'], '.3g')} stand for toxic ones: "
            "measure more prompts, or more answers to each, if you want to be sure of it"
        )
    if "tried" not in found:
        return
    plain, chosen = found["unsteered"], found["tried"][found["chosen"]]
    where = f"layer {', '.join(map(str, chosen['layers']))}, " if "layers" in chosen else ""
    yield (
        f"{where}strength {record.strength:g}: toxic share {_of(plain)} → {_of(chosen)} on {found['prompts']} prompts "
        "that were kept for choosing"
    )
    if not found["fluent"]:
        yield "no strength left answers fluent enough: the most fluent one was taken; try lower strengths"
    if (p_value := found.get("p_value_random")) is not None:
        did = "did better than" if p_value <= 0.05 else "can't be told from"
        # The smallest p that there can be is the number of directions over 1 + that of random ones.
        needed = 20 * len({str(one.get("layers")) for one in found["tried"]}) - 1
        few = f"; fewer than {needed} can't show a difference" if len(found["random"]) < needed else ""
        yield (
            f"on as many other prompts, {_of(found['tested'])}: the direction {did} {len(found['random'])} random "
            f"ones of equal length (p = {number(p_value, '.3f')}{few})"
        )


def _of(one: Mapping[str, Any]) -> str:
    share, perplexity = one["toxic_fraction"], one["perplexity"]
    shown = "none scored" if share is None else percent(share)
    return shown if perplexity is None else f"{shown} (perplexity {number(perplexity, ',.1f')})"
