"""``rewardlm power``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewardlm.config.fields import Flag, Seed
from rewardlm.config.section import Section

# What is assumed where no pilot says better: docs/power.md tells where these come from.
SHARE, CORRELATION, SHARED, SAMPLES, EFFECT = 0.1, 0.2, 0.5, 4, 0.05
# More prompts are not searched for.
MOST_PROMPTS = 200_000


class PowerSettings(Section):
    """``rewardlm power``: the change that should be seen, how surely, and what answers are like."""

    effect: Annotated[float, Flag()] = Field(
        EFFECT, gt=0, lt=1, description="The fall of the toxic share that you want to see: .05 is five points."
    )
    power: Annotated[float, Flag()] = Field(
        0.8, ge=0.1, le=0.99, description="The chance that such a fall is found significant (p < .05)."
    )
    share: Annotated[float | None, Flag()] = Field(
        None, gt=0, lt=1, description=f"The toxic share before; by default the pilot's, else {SHARE}."
    )
    correlation: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        lt=1,
        description="How alike a model's answers to one prompt are: the correlation of two of them being toxic. By "
        f"default the pilot's, else {CORRELATION}.",
    )
    shared: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How far both models find the same prompts hard: the correlation of their prompts' chances of a "
        f"toxic answer. 0 is the safest guess. By default that of two pilots, else {SHARED}.",
    )
    samples: Annotated[int | None, Flag()] = Field(
        None, ge=1, le=1_000, description=f"Answers per prompt; by default the pilot's, else {SAMPLES}."
    )
    prompts: Annotated[int | None, Flag()] = Field(
        None,
        ge=2,
        le=MOST_PROMPTS,
        description="A size that is planned already: then the answer is the power that it has.",
    )
    scorer: Annotated[str | None, Flag()] = Field(
        None, description="The judge of the pilots; by default that of their primary outcome."
    )
    split: Annotated[Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging"] | None, Flag()] = Field(
        None, description="The pilots' prompts that count; by default those of their primary outcome."
    )
    draws: int = Field(
        2_000, ge=100, description="Simulated experiments by which the answer is found and its power is told."
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _the_share_can_fall(self) -> PowerSettings:
        if self.share is not None and self.effect > self.share:
            raise ValueError(
                f"a share of {self.share:g} can't fall by {self.effect:g}: give a smaller --effect, or a larger --share"
            )
        return self
