"""``rewardlm run`` and ``demo``."""

from __future__ import annotations

import copy
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rewardlm.config.fields import Dtype, Names, Part
from rewardlm.config.measure import MAX_NEW_TOKENS, PrimarySettings
from rewardlm.config.model import ChatSettings, GenerationSettings, QuantisationSettings
from rewardlm.config.reading import merge
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings


class StageMeasure(Section):
    """The measurement that an experiment repeats for each model; see MeasureSettings."""

    prompts: str = "starter"
    part: Part = "all"
    limit: int | None = None
    scorer: Names = ["starter", "witness", "lexical"]
    samples: int = 1
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_tokens: int = 8192
    toxic_by: str | None = None
    similarity: bool = True
    perplexity: bool = True
    counter_narrative: str | None = "starter_pairs"
    max_failed_share: float = Field(0.01, ge=0, le=1)
    generation: GenerationSettings = GenerationSettings()
    services: ServicesSettings = ServicesSettings()
    primary: PrimarySettings = PrimarySettings()


class ExperimentSettings(Section):
    """``rewardlm run``: PT, FT and RL measured on the same prompts, compared and reported.

    ``finetune`` and ``rlaf`` take the keys of their commands without model, seed, dtype, load, quantisation and device,
    which stand once at the top. ``rlaf.after`` starts RL from the fine-tuned adapter. ``interpret`` takes the keys of
    ``rewardlm interpret`` (``interpret: {}`` is its defaults, a matter of minutes); without it nothing is interpreted.
    ``stand_in=true`` puts ``stand_ins``, a tree of settings, over the others: a small model and small data with which
    the whole experiment can be tried where its own can't be had.
    """

    title: str = "RewardLM experiment"
    stand_in: bool = False
    stand_ins: dict[str, Any] = {}
    model: str
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    quantisation: QuantisationSettings = QuantisationSettings()
    device: str = "auto"
    chat: ChatSettings = ChatSettings()
    measure: StageMeasure = StageMeasure()
    finetune: dict[str, Any] | None = None
    rlaf: dict[str, Any] | None = None
    interpret: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _stand_ins_take_their_place(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("stand_in") is not True:
            return data
        stand_ins = data.get("stand_ins")
        if not isinstance(stand_ins, dict) or not stand_ins:
            raise ValueError("stand_in is true, but the experiment has no stand_ins to put in place")
        tree = copy.deepcopy(data)
        merge(tree, stand_ins)
        return tree

    @field_validator("rlaf")
    @classmethod
    def _keys_are_known_as_such(cls, rlaf: dict[str, Any] | None) -> dict[str, Any] | None:
        # A stage's settings are checked later, but are recorded as they stand here: what is secret must say so.
        if rlaf is None or rlaf.get("services") is None:
            return rlaf
        return {**rlaf, "services": ServicesSettings.model_validate(rlaf["services"])}

    def common(self) -> dict[str, Any]:
        """The settings that every stage shares."""
        return {
            "model": self.model,
            "seed": self.seed,
            "dtype": self.dtype,
            "load": self.load,
            "quantisation": self.quantisation.model_dump(),
            "device": self.device,
            "chat": self.chat.model_dump(),
        }
