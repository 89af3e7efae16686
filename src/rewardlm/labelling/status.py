"""How far labelling is, and whether labellers agree: what ``label status`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rewardlm.formats import interval, number, percent
from rewardlm.labelling.agreement import agreement
from rewardlm.labelling.folder import LabelFolder


class LabellerStatus(BaseModel):
    """What one labeller said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: int = Field(description="Answers that they labelled, with those that they could not tell.")
    yes: int = Field(description="Of these, toxic.")
    unsure: int = Field(description="Of these, those that they could not tell.")
    median_seconds: float | None = Field(description="Time for one, from the showing of the text; null if unknown.")


class PairStatus(BaseModel):
    """How often two labellers agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labellers: tuple[str, str]
    items: int = Field(description="Items that both have a label for.")
    agree: float = Field(description="Share of these on which they say the same.")


class LabelStatus(BaseModel):
    """``rewardlm label status --json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int = Field(description="Answers that were chosen.")
    labelled: int = Field(description="Of these, those with a label; who could not tell gave none.")
    runs: dict[str, int] = Field(description="By run, how many of its answers have a label.")
    labellers: dict[str, LabellerStatus]
    shared: int = Field(description="Answers that two labellers or more have a label for.")
    alpha: float | None = Field(description="Krippendorff's alpha over these; null where it isn't defined.")
    alpha_ci95: tuple[float, float] | None = Field(description="Its 95 % interval, over answers.")
    pairs: list[PairStatus]

    def lines(self) -> Iterator[str]:
        """The same for a terminal."""
        yield f"{self.labelled} of {self.items} answers are labelled"
        for run, n in self.runs.items():
            yield f"  {run}: {n}"
        for name, one in self.labellers.items():
            pace = "" if one.median_seconds is None else f", {number(one.median_seconds, '.1f')} s each"
            yield f"{name}: {one.labels} labels, {one.yes} yes, {one.unsure} can't tell{pace}"
        for pair in self.pairs:
            first, second = pair.labellers
            yield f"{first} and {second} agree on {percent(pair.agree)} of {pair.items} answers"
        if self.alpha is not None:
            ends = interval(self.alpha_ci95, lambda end: number(end, ".2f"))
            within = "" if self.alpha_ci95 is None else f", 95 % interval {ends}"
            yield f"Krippendorff's alpha: {number(self.alpha, '.2f')} over {self.shared} answers{within}"


def status(folder: LabelFolder) -> LabelStatus:
    """Of all that was said so far."""
    said = folder.said()
    agreed = agreement(said)
    runs = {
        run.label: int((~np.isnan(folder.labels_of(number_of_run))).sum())
        for number_of_run, run in enumerate(folder.runs)
    }
    return LabelStatus(
        items=len(folder.items),
        labelled=sum(runs.values()),
        runs=runs,
        labellers={
            name: LabellerStatus(
                labels=len(of_one),
                yes=sum(label == 1 for label in of_one.values()),
                unsure=sum(label is None for label in of_one.values()),
                median_seconds=_median([one.seconds for one in folder.lines if one.labeller == name]),
            )
            for name, of_one in said.items()
        },
        shared=agreed.items,
        alpha=agreed.alpha,
        alpha_ci95=agreed.ci95,
        pairs=[PairStatus(labellers=both, items=n, agree=share) for both, (share, n) in agreed.pairs.items()],
    )


def _median(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return statistics.median(known) if known else None
