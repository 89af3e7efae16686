"""Who the models of a page are: the model before training, a fine-tuned one, one that learnt from a judge, or others.

A label is only a name that somebody chose. What was done to a model is read from its run: does it have an adapter,
and what kind of training wrote that?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewardlm.errors import RunError
from rewardlm.runs import TRAININGS, Run, trained_by

# base: no adapter. tuned: with an adapter whose training nobody knows. steered: changed while it answers, whatever its
# adapter. imported: answers out of a table.
Kind = Literal[
    "base", "finetune", "rlaf", "finetune+rlaf", "prefer", "finetune+prefer", "tuned", "steered", "imported", "unknown"
]

# As the subject of a sentence: "Fine-tuning lowered …".
DOING: dict[Kind, str] = {
    "finetune": "fine-tuning",
    "rlaf": "reinforcement learning",
    "finetune+rlaf": "reinforcement learning after fine-tuning",
    "prefer": "preference training",
    "finetune+prefer": "preference training after fine-tuning",
    "steered": "steering",
}
# What the model is, in a list of models.
BEING: dict[Kind, str] = {
    "base": "before training",
    "finetune": "fine-tuned",
    "rlaf": "trained by reinforcement learning",
    "finetune+rlaf": "fine-tuned, then trained by reinforcement learning",
    "prefer": "trained on preferences among its own answers",
    "finetune+prefer": "fine-tuned, then trained on preferences among its own answers",
    "tuned": "with an adapter",
    "steered": "steered while it answers",
    "imported": "imported answers",
    "unknown": "",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of the page. ``rewards`` are the judges that it was trained on, None where nobody recorded that."""

    label: str
    kind: Kind
    rewards: Sequence[str] | None

    @property
    def doing(self) -> str:
        """What was done to it: "fine-tuning (FT)", or its label where that is all that is known."""
        return f"{DOING[self.kind]} ({self.label})" if self.kind in DOING else self.label

    @property
    def being(self) -> str:
        """What it is: "fine-tuned"; empty where nothing is known."""
        return BEING[self.kind]


def subjects_of(runs: Sequence[Run], labels: Sequence[str]) -> list[Subject]:
    """The models of measured ``runs``, under the labels that they have in a comparison."""
    return [Subject(label, kind_of_run(run), run.meta.get("rewards")) for run, label in zip(runs, labels, strict=True)]


def kind_of_run(run: Run) -> Kind:
    """What a measured run's model is."""
    if run.meta["kind"] == "import":
        return "imported"
    if is_steered(run):
        return "steered"
    adapter = run.meta.get("adapter")
    if not adapter:
        return "unknown" if run.meta.get("rewards") is None else "base"
    return _kind_of_adapter(Path(adapter), run.meta)


def is_steered(run: Run) -> bool:
    """Whether the run's model was steered: at strength 0 it was the model itself."""
    treatment = run.meta.get("treatment")
    return treatment is not None and treatment["strength"] > 0


def described(about: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Subject]:
    """The models as a page's ``about`` (``page.render_page``) has them; its entries may give their ``kind``."""
    known = {entry["label"]: entry for entry in about}
    return [
        Subject(label, known[label].get("kind") or "unknown", known[label].get("rewards"))
        if label in known
        else Subject(label, "unknown", None)
        for label in labels
    ]


def _kind_of_adapter(adapter: Path, meta: Mapping[str, Any]) -> Kind:
    try:
        trained = meta.get("trained_by") or trained_by(adapter)
    except RunError:
        trained = None
    if trained is None:
        # The training isn't here. It was when the model was measured, unless the rewards are not known.
        rewards = meta.get("rewards")
        return "tuned" if rewards is None else "rlaf" if rewards else "finetune"
    kinds = trained.split("+")
    if not set(kinds) <= {*TRAININGS}:
        return "tuned"
    if kinds[-1] == "finetune":
        return "finetune"
    if kinds[-1] == "prefer":
        return "finetune+prefer" if "finetune" in kinds else "prefer"
    return "finetune+rlaf" if "finetune" in kinds else "rlaf"
