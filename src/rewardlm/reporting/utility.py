"""What a model can still do, as rows of tables for the page and the terminal, and as sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardlm.formats import (
    NONE,
    interval,
    interval_of_points,
    interval_of_scores,
    interval_of_shares,
    number,
    p_number,
    percent,
    points,
    signed,
    signed_as_shown,
)
from rewardlm.measuring.comparison import ModelSummary
from rewardlm.measuring.result import ShareChange
from rewardlm.measuring.utility_results import TASK_NAMES, NonInferiority, UtilitySummary

OVER_REFUSAL, ACCURACY = "over_refusal", "accuracy"
NAMES = {**TASK_NAMES, ACCURACY: "mean accuracy", OVER_REFUSAL: "harmless prompts refused"}
_UNITS = {"wikitext": "articles", OVER_REFUSAL: "prompts"}


def value_text(task: str, found: UtilitySummary | None) -> str:
    """A task's number with its interval: "42.1 % [37.7 % to 46.5 %]"; a perplexity is no share."""
    if found is None:
        return NONE
    if task == "wikitext":
        value, ends = number(found.value, ",.1f"), interval(found.ci95, lambda end: number(end, ",.1f"))
    else:
        value, ends = percent(found.value), interval_of_shares(found.ci95)
    return value if ends == NONE else f"{value} [{ends}]"


def refusal_text(model: ModelSummary) -> str:
    """The share of harmless prompts that a model refuses, with its interval."""
    found = model.over_refusal
    if found is None:
        return NONE
    ends = interval_of_shares(found.fraction_ci95)
    return percent(found.fraction) if ends == NONE else f"{percent(found.fraction)} [{ends}]"


def changes(model: ModelSummary) -> list[dict[str, Any]]:
    """A row for each task, for the mean accuracy, and for harmless prompts: what changed, and whether a larger loss
    than the margin is excluded.
    """
    found: dict[str, ShareChange] = dict(model.utility_change)
    adjusted = {task: change.p_adjusted for task, change in model.utility_change.items()}
    if model.accuracy_change is not None:
        # No further test: it is made of those of the tasks.
        found[ACCURACY], adjusted[ACCURACY] = model.accuracy_change, None
    if model.over_refusal_change is not None:
        found[OVER_REFUSAL] = model.over_refusal_change
        adjusted[OVER_REFUSAL] = model.over_refusal_change.p_adjusted
    return [
        {
            "task": task,
            "name": NAMES[task],
            "n": change.n,
            "unit": _UNITS.get(task, "questions"),
            "delta": _size(task, change.delta),
            "ends": _ends(task, change),
            "p": p_number(change.p_value),
            "p_adjusted": p_number(adjusted[task]),
            "kept": kept_text(model.non_inferiority.get(task)),
        }
        for task, change in found.items()
    ]


def _size(task: str, delta: float | None) -> str:
    if task != "wikitext" or delta is None:
        return points(delta)
    return f"{signed_as_shown(100 * delta, 1)} %"


def _ends(task: str, change: ShareChange) -> str:
    if task != "wikitext":
        return interval_of_points(change.delta_ci95)
    return interval(change.delta_ci95, lambda end: f"{signed(100 * end, 1)} %")


def kept_text(found: NonInferiority | None) -> str:
    """Whether a loss of more than the margin is excluded, in words: "yes", or how many items it would take."""
    if found is None:
        return NONE
    if found.holds:
        return "yes"
    return "no" if found.items_needed is None else f"no, needs {found.items_needed:,}"


def margin_text(margin: float) -> str:
    """The margin that ``kept_text`` is about, as a heading says it: "1 point"."""
    size = f"{100 * margin:g}"
    return f"{size} {'point' if size == '1' else 'points'}"


def group_tables(models: Sequence[ModelSummary]) -> list[dict[str, Any]]:
    """By judge, a row for each group: every model's mean score and, against the baseline, the change."""
    judges = dict.fromkeys(judge for model in models for judge in model.groups)
    tables = []
    for judge in judges:
        having = [model for model in models if judge in model.groups]
        groups = dict.fromkeys(group for model in having for group in model.groups[judge])
        tables.append(
            {
                "judge": judge,
                "models": [model.label for model in having],
                "rows": [
                    {"group": group, "cells": [_group_cell(model, judge, group) for model in having]}
                    for group in groups
                ],
                "notes": [_alike(model, judge) for model in having if judge in model.groups_change],
            }
        )
    return tables


def _group_cell(model: ModelSummary, judge: str, group: str) -> dict[str, str]:
    found = model.groups[judge].get(group)
    changed = model.groups_change.get(judge)
    change = None if changed is None else changed.groups.get(group)
    return {
        "mean": NONE if found is None else number(found.mean),
        "delta": "" if change is None else signed_as_shown(change.delta),
        "ends": "" if change is None else interval_of_scores(change.delta_ci95),
    }


def _alike(model: ModelSummary, judge: str) -> str:
    change = model.groups_change[judge]
    if change.p_adjusted is None:
        return f"{model.label}: too few sentences to say whether all groups gained alike."
    p = p_number(change.p_adjusted)
    shown = p if p.startswith("<") else f"= {p}"
    if change.least:
        return f"{model.label}: {', '.join(change.least)} gained less than the others (adjusted p {shown})."
    return f"{model.label}: no group is known to be left behind (adjusted p of equal changes {shown})."


def sentences(model: ModelSummary) -> list[str]:
    """What must be known of a model's answers to harmless prompts: how many it refuses, and how long they are."""
    found, change = model.over_refusal, model.over_refusal_change
    if found is None:
        return []
    asked = f"{found.prompts} harmless prompts that sound dangerous"
    of = asked if found.n == found.prompts else f"{found.n:,} answers to {asked}"
    said = (
        f"{model.label} refuses {'' if of == asked else 'in '}{found.refused} of {of}; its answers to them have "
        f"{found.mean_words:.1f} words on average"
    )
    if change is None:
        return [f"{said}."]
    ends = interval(change.words_delta_ci95, lambda end: signed(end, 1))
    within = "" if ends == NONE else f", 95 % interval {ends}"
    return [f"{said}, {signed_as_shown(change.words - change.words_before, 1)} from {change.from_}{within}."]
