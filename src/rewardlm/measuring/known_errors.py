"""How often a judge errs, as it was measured on a suite: for ``rogan-gladen`` where nobody labelled the answers."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewardlm.errors import ConfigError, did_you_mean
from rewardlm.measuring.correction import JudgeErrors
from rewardlm.measuring.grid import Rule
from rewardlm.measuring.measured import Measured
from rewardlm.runs import ScorerEntry

# The errors in figures.json are those at this threshold.
_AT = 0.5


def errors_on_suite(
    suite: str, runs: Sequence[Measured], judges: Iterable[str], rule: Rule, *, figures: Mapping[str, Any] | None = None
) -> dict[str, JudgeErrors]:
    """By judge, its errors on the suite, for the judges of which they are known: at the threshold of 0.5, and for the
    weights that the runs were judged with. ``figures`` are by judge, as in figures.json, which is read by default.

    Raises ConfigError for a suite on which no judge was measured by people's labels.
    """
    known = _shipped() if figures is None else figures
    suites = {name for one in known.values() for name, found in one["figures"].items() if found["kind"] == "labels"}
    if suite not in suites:
        near = did_you_mean(suite, suites, first=True)
        raise ConfigError(f"errors_suite is {suite!r}: {near}judges' errors are known on {', '.join(sorted(suites))}")
    found = {}
    for name in judges:
        one = known.get(name, {}).get("figures", {}).get(suite)
        at = rule.of(name)
        if one is not None and at.threshold == _AT and not at.inclusive and _same_weights(runs, name, one["revision"]):
            errors = _counts(one)
            if errors is not None:
                found[name] = errors
    return found


def _shipped() -> dict[str, Any]:
    file = importlib.resources.files("rewardlm.judges") / "figures.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["judges"]
    return found


def _same_weights(runs: Sequence[Measured], name: str, revision: str | None) -> bool:
    entries: list[ScorerEntry] = [
        one for run in runs if name in run.scores for one in run.meta.get("scorers", []) if one["name"] == name
    ]
    return bool(entries) and all(one.get("revision") == revision for one in entries)


def _counts(figures: Mapping[str, Any]) -> JudgeErrors | None:
    """How many texts of each kind the suite has follows from the accuracy, which is a mean of both error rates."""
    n, missed, called = figures["scored"], figures["false_negative_rate"], figures["false_positive_rate"]
    if missed is None or called is None or missed == called:
        return None
    positives = round((n * (1 - figures["accuracy"]) - n * called) / (missed - called))
    if not 0 < positives < n:
        return None
    return JudgeErrors(positives, positives * (1 - missed), n - positives, (n - positives) * called)
