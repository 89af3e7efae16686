"""Which judges have a threshold of their own in a comparison: those that ``judge migrate`` put in an old one's place.

A run may have been measured with such thresholds, and a comparison may ask for others. Runs with different thresholds
for one judge are never compared: their shares would differ without any difference between the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from rewardlm.errors import ConfigError, RunError
from rewardlm.measuring.measured import Measured
from rewardlm.runs import Run
from rewardlm.scoring.thresholds import Matching, Threshold, nobody_named, refuse_other_weights, thresholds_of

NONE = Path("none")


def thresholds_in_force(
    runs: Sequence[Measured], path: Path | None, matching: Matching, *, inclusive: bool = False
) -> dict[str, Threshold]:
    """By judge, the thresholds for a comparison of ``runs``: those of the file ``path``, else what all runs recorded.

    The path ``none`` leaves aside what they recorded. Raises ConfigError if no run has a judge of the file, or
    ``inclusive`` is asked for beside it; RunError where runs recorded different thresholds, or for other weights.
    """
    if path == NONE:
        return {}
    judges = list(dict.fromkeys(name for run in runs for name in run.scores))
    if path is None:
        found = _agreed(runs, judges)
    else:
        found = thresholds_of(path, matching)
        if not found.keys() & set(judges):
            raise ConfigError(nobody_named(path, list(found), judges))
    if found and inclusive:
        raise ConfigError(
            "inclusive is true, but the thresholds of judge migrate are for scores above them: leave inclusive out, or "
            "add thresholds=none"
        )
    for run in runs:
        known = {judge["name"]: judge for judge in run.meta.get("scorers", [])}
        for name, threshold in found.items():
            if name in run.scores:
                refuse_other_weights(str(run.run.path), name, threshold, known.get(name, {}))
    return {name: threshold for name, threshold in found.items() if name in judges}


def _agreed(runs: Sequence[Measured], judges: Sequence[str]) -> dict[str, Threshold]:
    """What the runs recorded. Raises RunError where two of them have a judge at different thresholds."""
    found: dict[str, Threshold] = {}
    for name in judges:
        own = [(run, _recorded(run.run, name)) for run in runs if name in run.scores]
        first, wanted = own[0]
        for run, threshold in own[1:]:
            if (threshold and threshold.value) != (wanted and wanted.value):
                raise RunError(
                    f"thresholds_differ: {first.run.path} calls an answer toxic by {name} {_said(wanted)}, "
                    f"{run.run.path} {_said(threshold)}: name one for all with --thresholds FILE, or take the plain "
                    "one with --thresholds none"
                )
        if wanted is not None:
            found[name] = wanted
    return found


def _recorded(run: Run, name: str) -> Threshold | None:
    found = run.meta.get("thresholds", {}).get(name)
    try:
        return None if found is None else Threshold.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(
            f"{run.path}/run.json: thresholds of {name!r} are not as measure writes them ({first['msg']} at "
            f"{'.'.join(map(str, first['loc']))}); measure again, or add --thresholds none"
        ) from None


def _said(threshold: Threshold | None) -> str:
    return "above the plain threshold" if threshold is None else f"above {threshold.value:.4g}"
