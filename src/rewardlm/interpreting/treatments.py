"""How a run's model was treated while it answered, and what of an interpretation can see that.

An adapter at another strength, and one that is taken away (a task vector), are adapters like any other. A change of the
stream is there in every pass. What changes the prompt, the logits or the choice among answers is not in the model, so
there is nothing to look at inside; how likely it makes a token can be asked, where it has a probability at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardlm.config import InterpretSettings
from rewardlm.errors import RunError
from rewardlm.runs import Run
from rewardlm.steering.adapters import Dexperts
from rewardlm.steering.folder import SteerFolder, read_steer_folder
from rewardlm.steering.steered import Steering

PARTS = ("drift", "attribution", "inside")


@dataclass(frozen=True)
class Treatment:
    """The steer folder that a run was measured with, and how strongly."""

    folder: SteerFolder
    strength: float

    @property
    def method(self) -> str:
        return self.folder.record.method


def treatment_of(run: Run) -> Treatment | None:
    """What steered the run's model; None if nothing did. Raises RunError if the folder is gone or not what it was."""
    recorded = run.meta.get("treatment")
    if recorded is None or not recorded["strength"]:
        return None
    path = found_in(run, run.setting("steer", str), "steer folder")
    folder = read_steer_folder(path)
    if folder.record.hash != recorded["hash"]:
        raise RunError(
            f"{run.path}: its steer folder {path} was made anew since then (hash {recorded['hash'][:12]}…, now "
            f"{folder.record.hash[:12]}…): measure it again"
        )
    return Treatment(folder, float(recorded["strength"]))


def found_in(run: Run, named: Any, what: str) -> Path:
    """The folder that the run's settings name; of a stage of an experiment, whose paths are kept relative to it, below
    the experiment. Raises RunError if it is gone."""
    path = Path(named)
    candidates = [path] if path.is_absolute() else [run.path.absolute().parent.parent / path, path]
    for folder in candidates:
        if folder.exists():
            return folder.resolve()
    raise RunError(f"{run.path}: its {what} {path} is gone: put it back, or measure again")


def left_out(steering: Steering, settings: InterpretSettings) -> dict[str, str]:
    """Of ``PARTS`` those that can't be had, or not wholly, of a model that is steered so, each with the reason."""
    method = steering.method
    if method in ("best-of-n", "rejection"):
        return dict.fromkeys(PARTS, "it chooses among the unsteered model’s answers, and no probability changes")
    if method == "pplm":
        return dict.fromkeys(PARTS, "it moves its past as it draws, and can’t read answers that are there already")
    if method in ("activation", "profs"):
        found = {"inside": "no weight wrote what is changed in its stream, so only its lens and attention can be read"}
        if settings.attribution.method.startswith("inseq:"):
            found["attribution"] = "inseq runs models by itself, and can’t steer the positions of an answer"
        return found
    why = {
        "system": "it reads another prompt than the baseline, so what words count for can’t be compared",
        "selfdebias": "its probabilities are made of those of several prompts",
        "dexperts": "its probabilities are made of those of three models",
    }[method]
    found = {"attribution": why, "inside": why}
    if isinstance(steering, Dexperts) and steering.top_p < 1:
        found["drift"] = (
            f"its filter (top_p {steering.top_p:g}) leaves most tokens no probability at all, so a divergence from it "
            "is infinite"
        )
    return found
