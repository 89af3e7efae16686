"""``rewardlm score``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from rewardlm.config.fields import Device, Flag, Matching, MaxFailedShare, NamesOrNone, Seed, Thresholds
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings


class ScoreSettings(Section):
    """``rewardlm score``: what to add to a run's stored answers."""

    example: ClassVar = {"scorer": ["lexical"]}

    scorer: Annotated[NamesOrNone, Flag()] = Field([], description="The judges of toxicity to add.")
    similarity: bool = Field(False, description="Compute the similarity of prompt and answer.")
    perplexity: str | None = Field(None, description="The model under which the answers' perplexity is computed.")
    counter_narrative: str | None = Field(
        None, description="The judge of pairs that says which answers are counter-narratives, such as starter_pairs."
    )
    quality_sample: int = Field(
        10_000,
        ge=1,
        description="If there are more answers, a sample of this size, drawn by seed, gets similarity, perplexity and "
        "the judge of pairs.",
    )
    seed: Seed = 0
    device: Device = "auto"
    max_failed_share: MaxFailedShare = 0.01
    thresholds: Thresholds = None
    matching: Matching = "share"
    services: ServicesSettings = Field(ServicesSettings(), description="How judges behind HTTP are asked.")

    @model_validator(mode="after")
    def _something_is_asked(self) -> ScoreSettings:
        if not (self.scorer or self.similarity or self.perplexity or self.counter_narrative):
            raise ValueError(
                "nothing to do: name a judge with --scorer, or say similarity=true, perplexity=MODEL or "
                "counter_narrative=starter_pairs"
            )
        return self
