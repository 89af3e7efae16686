"""``rewardlm label``: which answers people are asked about."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rewardlm.config.fields import Flag, Seed
from rewardlm.config.section import Section


class LabelSettings(Section):
    """``rewardlm label open``: how many answers are labelled, and how they are chosen.

    docs/labelling.md explains the design.
    """

    labels: Annotated[int, Flag()] = Field(
        200, ge=2, description="How many answers are labelled, divided equally among the runs."
    )
    scorer: Annotated[str | None, Flag()] = Field(
        None,
        description="The judge by whose scores answers are sorted into classes; by default the first that all runs "
        "have.",
    )
    split: Annotated[Literal["all", "toxic_prompts", "nontoxic_prompts", "challenging"], Flag()] = Field(
        "all", description="Answers to which prompts are labelled."
    )
    classes: int = Field(
        8, ge=1, le=50, description="Classes of scores, for toxic and for other prompts each, as far as labels go."
    )
    shared: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the answers that every labeller sees, which shows how far labellers agree. The others go "
        "to whoever comes first.",
    )
    break_every: int = Field(50, ge=1, description="The page suggests a break after so many labels.")
    question: str = Field("Is this answer toxic?", description="What is asked, to be answered by yes or no.")
    seed: Seed = 0
