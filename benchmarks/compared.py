"""Turns the workers' reports into the numbers that are shown: medians, ratios, limits, bars, tables. No torch.

A ratio is our seconds over the peer's in one round, in which they ran one after the other; the median of the rounds is
shown. η is the limit's time over ours. The limit uses the faster of the calibrations before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from limits import (
    Decoder,
    Machine,
    positions_to_weigh,
    reference_seconds,
    rollout_seconds,
    scorer_seconds,
    update_seconds,
)
from work import Job, Told

# The share of a peer's seconds that ours may take at most, by job and dtype; for the meter by answers per prompt, too.
RATIO_BARS = {
    ("ppo", "float32"): 0.4,
    ("ppo", "bfloat16"): 1 / 3,
    ("grpo", "float32"): 0.5,
    ("grpo", "bfloat16"): 0.5,
    ("rloo", "float32"): 0.5,
    ("rloo", "bfloat16"): 0.5,
    ("sft", "float32"): 0.5,
    ("sft", "bfloat16"): 0.5,
    ("dpo", "float32"): 0.5,
    ("dpo", "bfloat16"): 0.5,
    # Nearly all of it is what the meter does with several answers to a prompt.
    ("pairs", "float32"): 1 / 3,
    ("pairs", "bfloat16"): 1 / 3,
    ("meter", "float32"): 1 / 1.7,
    ("meter", "bfloat16"): 1 / 2,
    ("meter ×8", "float32"): 1 / 3,
    ("meter ×8", "bfloat16"): 1 / 3,
}
MEMORY_BARS = {"ppo": 1 / 3, "grpo": 1 / 2, "rloo": 1 / 2, "sft": 1 / 2, "dpo": 1 / 2}
ETA_BAR = 0.5
HELP_BAR = 0.4  # seconds
GROWTH_BAR = 64  # MiB
# How many questions the meter takes at a time (rewardlm.measuring.engines.WINDOW), and how many prompts preference
# training does (rewardlm.training.drawn.CHUNK).
WINDOW, CHUNK = 256, 32


def compare(job: Job, rounds: Sequence[tuple[Told, Told]], calibrations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that is known of one part from its ``rounds`` of (ours, peer)."""
    ours, peer = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    for told in (*ours, *peer):
        if job.what not in ("meter", "pairs") and told.updates != job.updates:
            raise ValueError(
                f"{job.what}: {told.updates:g} optimizer steps a step, expected {job.updates} on both sides"
            )
    ratios = [median(a.seconds) / median(b.seconds) for a, b in rounds]
    rates = {
        dtype: Machine(
            max(found["bandwidth"] for found in calibrations), max(found["rate"][dtype] for found in calibrations)
        )
        for dtype in calibrations[0]["rate"]
    }
    name = "meter ×8" if job.what == "meter" and job.samples > 1 else job.what
    memory = [told.peak_mib for told in ours], [told.peak_mib for told in peer]
    return {
        "what": name,
        "dtype": job.dtype,
        "episodes": job.episodes,
        "samples": job.samples,
        "ours": {"seconds": [told.seconds for told in ours], "peak_mib": memory[0], "versions": ours[0].versions},
        "peer": {"seconds": [told.seconds for told in peer], "peak_mib": memory[1], "versions": peer[0].versions},
        "losses": {"ours": ours[0].losses, "peer": peer[0].losses},
        "pairs": {"ours": ours[0].pairs, "peer": peer[0].pairs},
        "answer_tokens": {"ours": ours[0].answer_tokens, "peer": peer[0].answer_tokens or None},
        "peer_parts": [told.parts for told in peer if told.parts],
        "ratio": median(ratios),
        "ratios": ratios,
        "ratio_bar": RATIO_BARS[name, job.dtype],
        "memory_ratio": median(memory[0]) / median(memory[1]),
        "memory_bar": MEMORY_BARS.get(name),
        "phases": phases(job, ours, rates),
        "profile": next((told.profile for told in ours if told.profile), []),
        "calibrations": list(calibrations),
    }


def phases(job: Job, tolds: Sequence[Told], machines: dict[str, Machine]) -> list[dict[str, Any]]:
    """For each phase of our step and for the whole: median seconds, the limit's seconds, η."""
    seconds: dict[str, list[float]] = {}
    limits: dict[str, list[float]] = {}
    for told in tolds:
        for number, lengths in enumerate(told.lengths):
            least = limit(job, lengths, told.weights, machines)
            spent = {**(told.parts[number] if told.parts else {}), "whole": told.seconds[number]}
            for name, value in spent.items():
                seconds.setdefault(name, []).append(value)
            for name, value in {**least, "whole": sum(least.values())}.items():
                limits.setdefault(name, []).append(value)
    rows = []
    for name, values in seconds.items():
        least_seconds = median(limits[name]) if name in limits else None
        pairs = zip(limits.get(name, ()), values, strict=False)
        rows.append(
            {
                "phase": name,
                "seconds": median(values),
                "limit": least_seconds,
                "eta": None if least_seconds is None else median(least / value for least, value in pairs),
            }
        )
    return rows


def limit(job: Job, lengths: dict[str, Any], weights: dict[str, Any], machines: dict[str, Machine]) -> dict[str, float]:
    """The least seconds of each phase of a step, or of the meter's run, with these prompts and answers."""
    decoder, machine = Decoder(**weights["policy"]), machines[job.dtype]
    prompts, answers = lengths["prompts"], lengths["answers"]
    if job.what == "sft":
        return {"update": update_seconds(decoder, machine, positions_to_weigh(prompts, answers), sum(answers), 1)}
    if job.what == "dpo":
        positions = positions_to_weigh(prompts, answers)
        return {
            "logprobs": reference_seconds(decoder, machine, positions, sum(answers)),
            "update": update_seconds(decoder, machine, positions, sum(answers), 1),
        }
    judging = scorer_seconds(weights["judge"]["weights"], machines[weights["judge"]["dtype"]], lengths["judged"])
    if job.what in ("meter", "pairs"):
        together = WINDOW if job.what == "meter" else CHUNK * job.samples
        windows = [slice(start, start + together) for start in range(0, len(prompts), together)]
        return {
            "rollout": sum(rollout_seconds(decoder, machine, prompts[piece], answers[piece]) for piece in windows),
            "reward": judging,
        }
    positions = positions_to_weigh(prompts, answers)
    return {
        "rollout": rollout_seconds(decoder, machine, prompts, answers),
        "reward": judging,
        "logprobs": reference_seconds(decoder, machine, positions, sum(answers)),
        "update": update_seconds(decoder, machine, positions, sum(answers), job.epochs),
    }


def bars(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars for this part, what was found, and whether they are met."""
    found = [(f"{part['what']} seconds, ours / peer", part["ratio"], "at most", part["ratio_bar"])]
    if part["memory_bar"] is not None:
        found.append((f"{part['what']} peak memory, ours / peer", part["memory_ratio"], "at most", part["memory_bar"]))
    for row in part["phases"]:
        if row["phase"] in ("rollout", "whole") and row["eta"] is not None:
            whole = "run" if part["what"].startswith(("meter", "pairs")) else "step"
            of = "rollouts" if row["phase"] == "rollout" else whole
            found.append((f"{part['what']} η of the {of}", row["eta"], "at least", ETA_BAR))
    return [
        {
            "what": what,
            "dtype": part["dtype"],
            "found": value,
            "bar": f"{side} {bar:.2f}",
            "met": value <= bar if side == "at most" else value >= bar,
        }
        for what, value, side, bar in found
    ]


def tables(parts: Sequence[dict[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and rows of what is shown, for the terminal and for docs/performance.md."""
    sides = [
        [
            part["what"],
            part["dtype"],
            str(part["episodes"]),
            f"{median(all_of(part['ours'])):.1f}",
            f"{median(all_of(part['peer'])):.1f}",
            f"**{part['ratio']:.2f}**" + (spread(part["ratios"]) if len(part["ratios"]) > 1 else ""),
            f"{part['ratio_bar']:.2f}",
            f"{median(part['ours']['peak_mib']):,.0f}",
            f"{median(part['peer']['peak_mib']):,.0f}",
            f"{part['memory_ratio']:.2f}" + (f" ({part['memory_bar']:.2f})" if part["memory_bar"] else ""),
        ]
        for part in parts
    ]
    phased = [
        [
            part["what"],
            part["dtype"],
            "the whole" if row["phase"] == "whole" else row["phase"],
            f"{row['seconds']:.2f}",
            "" if row["limit"] is None else f"{row['limit']:.2f}",
            "" if row["eta"] is None else f"{row['eta']:.2f}",
        ]
        for part in parts
        for row in part["phases"]
    ]
    kinds = list(dict.fromkeys(row["kind"] for part in parts for row in part["profile"]))
    profiled = [
        [part["what"], part["dtype"], *(f"{share_of(part, kind):.0%}" for kind in kinds)]
        for part in parts
        if part["profile"]
    ]
    return [
        (
            [
                "",
                "dtype",
                "answers",
                "ours s",
                "peer s",
                "ours / peer",
                "bar",
                "ours MiB",
                "peer MiB",
                "ours / peer (bar)",
            ],
            sides,
        ),
        (["", "dtype", "phase", "seconds", "limit", "η"], phased),
        (["", "dtype", *kinds], profiled),
    ]


def all_of(side: dict[str, Any]) -> list[float]:
    """The seconds of all rounds."""
    return [seconds for one in side["seconds"] for seconds in one]


def spread(values: Sequence[float]) -> str:
    """From the smallest to the largest."""
    return f" ({min(values):.2f}–{max(values):.2f})"


def share_of(part: dict[str, Any], kind: str) -> float:
    """The share of a profiled step that this kind of operator took."""
    return sum(row["share"] for row in part["profile"] if row["kind"] == kind)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page; nothing where there are no rows."""
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
