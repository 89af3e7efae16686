"""Training runs on a page: their curves, and what training itself warned of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewardlm.reporting import figures
from rewardlm.runs import Run


def training_records(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """The records of metrics.jsonl by the run's label; a repeated label gets its folder's name beside it."""
    training: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        label = run.label if run.label not in training else f"{run.label} ({run.path.name})"
        training[label] = list(run.read("metrics"))
    return training


def training_sections(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What training.html.j2 shows of each run: its label, curves and warnings."""
    return [
        {"label": label, "curves": figures.training_figures(records), "warnings": _warnings(records)}
        for label, records in training.items()
    ]


def _warnings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The warnings of training, one per kind: the kind is the text before the colon."""
    kinds: dict[str, list[tuple[Any, str]]] = {}
    for record in records:
        for warning in record.get("warnings") or []:
            kinds.setdefault(str(warning).partition(":")[0], []).append((record.get("step"), str(warning)))
    return [
        f"step {found[0][0]}: {found[0][1]}" + (f" (and {len(found) - 1:,} more such steps)" if len(found) > 1 else "")
        for found in kinds.values()
    ]
