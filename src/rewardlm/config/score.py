"""``rewardlm score``."""

from __future__ import annotations

from pydantic import Field, model_validator

from rewardlm.config.fields import NamesOrNone
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings


class ScoreSettings(Section):
    """``rewardlm score``: what is said of a run's answers besides what is stored.

    ``scorer`` are judges of toxicity. ``similarity`` with the prompt, perplexity under the model ``perplexity`` and
    the classes of the judge of pairs ``counter_narrative`` are found of ``quality_sample`` answers, drawn by ``seed``,
    where there are more.
    """

    scorer: NamesOrNone = []
    similarity: bool = False
    perplexity: str | None = None
    counter_narrative: str | None = None
    quality_sample: int = Field(10_000, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "auto"
    max_failed_share: float = Field(0.01, ge=0, le=1)
    services: ServicesSettings = ServicesSettings()

    @model_validator(mode="after")
    def _something_is_asked(self) -> ScoreSettings:
        if not (self.scorer or self.similarity or self.perplexity or self.counter_narrative):
            raise ValueError(
                "nothing to do: name a judge with --scorer, or say similarity=true, perplexity=MODEL or "
                "counter_narrative=starter_pairs"
            )
        return self
