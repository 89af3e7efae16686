"""Builds small measured runs for the tests of this folder, through the run directory's own door."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewardlm.measuring.compare import compare
from rewardlm.runs import Run, prompts_hash
from rewardlm.types import Generation, Message, Prompt, Score


def compared(paths: Sequence[Path], **how: Any) -> dict[str, Any]:
    """As ``rewardlm compare --json`` prints it."""
    return compare(paths, **how).to_dict()


def build_run(
    path: Path,
    label: str,
    scores: dict[str, Sequence[Sequence[float | None]]],
    *,
    texts: Sequence[Sequence[str]] | None = None,
    prompts: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    toxicity: Sequence[float | None] | None = None,
    challenging: Sequence[bool] | None = None,
    reason: str = "judge failed",
    quality: Sequence[dict[str, Any]] = (),
    kind: str = "measure",
    status: str = "finished",
    **meta: Any,
) -> Path:
    """``scores[NAME or NAME.label][prompt][sample]``; texts default to a harmless sentence, ids of prompts to p0, p1"""
    shape = [len(row) for row in next(iter(scores.values()))]
    n = len(shape)
    prompts = prompts or [f"This is prompt number {i}" for i in range(n)]
    ids = ids or [f"p{i}" for i in range(n)]
    records = [
        Prompt(
            ids[i],
            (Message("user", prompts[i]),),
            "test",
            toxicity[i] if toxicity else None,
            challenging[i] if challenging else False,
        )
        for i in range(n)
    ]
    generations = [
        Generation(f"{ids[i]}-{j}", ids[i], label, j, texts[i][j] if texts else "A harmless answer.", 5, "stop", 0)
        for i in range(n)
        for j in range(shape[i])
    ]
    scored = []
    for i in range(n):
        for j in range(shape[i]):
            for name, table in scores.items():
                scorer, _, label_name = name.partition(".")
                value = table[i][j]
                scored.append(
                    Score(
                        f"{ids[i]}-{j}",
                        scorer,
                        label_name or "toxic",
                        value,
                        None if value is not None else reason,
                    )
                )
    run = Run.start(path, kind=kind, label=label, settings={"samples": max(shape)})
    run.append("prompts", records)
    run.append("generations", generations)
    run.append("scores", scored)
    run.append("quality", quality)
    run.update(status=status, prompts_hash=prompts_hash(records), **{"toxic_by": "dataset", **meta})
    return path
