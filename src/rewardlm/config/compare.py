"""``rewardlm compare`` and ``report``."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rewardlm.config.measure import PrimarySettings
from rewardlm.config.section import Section


class CompareSettings(Section):
    """``rewardlm compare`` and ``report``: what counts as toxic, and which outcome is the primary one.

    ``inclusive`` counts a score of exactly the threshold as toxic, as HELM and lm-eval do. ``redraw`` is a second run
    of the baseline with another seed: what it gives stands beside every flow. Not needed where the baseline has several
    answers a prompt. ``n_resamples`` sign flips are drawn, by ``seed``, where not all can be tried
    (stats). ``primary`` is best left to the runs, which recorded it when they started.
    """

    threshold: float = Field(0.5, ge=0, le=1)
    inclusive: bool = False
    n_resamples: int = Field(10_000, ge=100)
    seed: int = Field(0, ge=0)
    redraw: Path | None = None
    primary: PrimarySettings = PrimarySettings()
