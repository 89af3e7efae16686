"""``rewardlm run`` and ``demo``."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rewardlm.config.fields import Depends, Device, Flag, KeysOf, Load, Names, Part, Precision, Seed
from rewardlm.config.finetune import FinetuneSettings, ReplaySettings
from rewardlm.config.interpret import InterpretSettings
from rewardlm.config.measure import MAX_NEW_TOKENS, MeasureSettings, PrimarySettings
from rewardlm.config.model import ChatSettings, GenerationSettings, QuantisationSettings
from rewardlm.config.prefer import PreferSettings
from rewardlm.config.reading import merge
from rewardlm.config.rlaf import RlafSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings
from rewardlm.config.utility import UtilitySettings


class StageMeasure(Section):
    """The measurement that an experiment repeats for each model; each setting means what it does in MeasureSettings."""

    prompts: str = "starter"
    text_column: str | None = Field(None, min_length=1)
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
    effect: float | None = 0.05
    suite: Literal["utility"] | None = None
    utility: UtilitySettings = UtilitySettings()


for _name, _field in StageMeasure.model_fields.items():
    _command = MeasureSettings.model_fields[_name]
    _field.description = _command.description
    # This keeps the bounds; only the command has flags.
    _field.metadata = [one for one in _command.metadata if not isinstance(one, Flag)]
StageMeasure.model_rebuild(force=True)


class StageReplay(ReplaySettings):
    """An experiment's ``finetune.replay``."""

    share: float = Field(
        0.15, ge=0, lt=1, description="Share of the training pairs that are the model's own answers; 0 is none."
    )


class StageFinetune(FinetuneSettings):
    """The keys of an experiment's ``finetune``."""

    replay: StageReplay = Field(
        StageReplay(),
        description="The model's own harmless answers, 15 % of all pairs: they keep it fluent. By default none with "
        "shard, which divides the model that would answer.",
    )

    @property
    def usual_retain_coef(self) -> float:
        """It keeps plain text and fluency, and takes nearly twice the time: docs/finetuning.md."""
        return 4.0

    @model_validator(mode="before")
    @classmethod
    def _a_divided_model_gives_no_answers(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("shard") is True:
            return {"replay": {"share": 0.0}, **given}
        return given


class StageRlaf(RlafSettings):
    """The keys of an experiment's ``rlaf``."""

    after: Literal["finetune", "prefer", "base"] | None = Field(
        None,
        description="Where RL, and its reference, start: from the fine-tuned adapter, from that of the last preference "
        "training, or from the base. By default from the fine-tuned one if there is one, unless rlaf.lora describes a "
        "fresh one.",
    )
    steps: Annotated[int, Flag(), Depends()] = Field(
        30, ge=1, description="Steps of a rollout and its update; 10 after fine-tuning, which does most of the work."
    )
    learning_rate: Annotated[float, Flag(), Depends()] = Field(
        1e-3,
        gt=0,
        description="The policy's. For ppo after another training it is 4e-4 by default, and kl.coef twice its usual "
        "default: with more, answers leave the subject.",
    )


class StagePreference(PreferSettings):
    """The keys of an experiment's ``prefer_again``."""

    adapter_strength: float | None = Field(
        None,
        ge=0,
        description="The model is measured with so much of what the adapter adds; 1, the default, is all. What goes "
        "on from the adapter has all of it.",
    )


class StagePrefer(StagePreference):
    """The keys of an experiment's ``prefer``."""

    after: Literal["finetune", "base"] | None = Field(
        None,
        description="Where preference training, and its reference, start. By default from the fine-tuned adapter if "
        "the experiment has one, unless prefer.lora describes a fresh one.",
    )


_AT_THE_TOP = ("model", "seed", "dtype", "load", "quantisation", "device", "chat")


class ExperimentSettings(Section):
    """``rewardlm run``: PT, FT and RL measured on the same prompts, compared and reported.

    Settings that all stages share are given once, at the top.
    """

    # RL may not train on what is measured, so a file to start from divides the prompts.
    example: ClassVar = {
        "model": "smollm2-135m",
        "measure": {"part": "measure", "samples": 4, "generation": {"top_p": 0.9}},
        "finetune": {},
        "rlaf": {"part": "train"},
        "interpret": {},
    }

    title: str = Field("RewardLM experiment", description="The report's heading.")
    stand_in: bool = Field(
        False,
        description="Put stand_ins over the other settings: a small model and small data, to try the whole "
        "experiment where its own can't be had.",
    )
    stand_ins: dict[str, Any] = Field({}, description="A tree of this file's settings.")
    model: str = Field(description="Hub id, path or alias (smollm2-135m, tiny).")
    seed: Seed = 0
    dtype: Precision = "auto"
    load: Load = None
    quantisation: QuantisationSettings = Field(
        QuantisationSettings(), description="How load stores the base's linear layers."
    )
    device: Device = "auto"
    chat: ChatSettings = Field(ChatSettings(), description="How turns become text.")
    measure: StageMeasure = Field(StageMeasure(), description="The measurement that is repeated for each model.")
    finetune: Annotated[dict[str, Any] | None, KeysOf(StageFinetune, _AT_THE_TOP)] = Field(
        None, description="Settings of rewardlm finetune; by default there is no fine-tuning."
    )
    prefer: Annotated[dict[str, Any] | None, KeysOf(StagePrefer, _AT_THE_TOP)] = Field(
        None, description="Settings of rewardlm prefer; by default there is no preference training."
    )
    prefer_again: Annotated[dict[str, Any] | None, KeysOf(StagePreference, _AT_THE_TOP)] = Field(
        None,
        description="Settings of a second preference training, which starts from the first one's adapter and lets that "
        "model answer; what isn't given is as in prefer. By default there is none.",
    )
    rlaf: Annotated[dict[str, Any] | None, KeysOf(StageRlaf, _AT_THE_TOP)] = Field(
        None, description="Settings of rewardlm rlaf; by default there is no reinforcement learning."
    )
    interpret: Annotated[dict[str, Any] | None, KeysOf(InterpretSettings, ("seed", "load", "device"))] = Field(
        None,
        description="Settings of rewardlm interpret, {} for its defaults, which take minutes; by default nothing is "
        "interpreted.",
    )

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

    @field_validator("rlaf", "prefer", "prefer_again")
    @classmethod
    def _keys_are_known_as_such(cls, stage: dict[str, Any] | None) -> dict[str, Any] | None:
        # A stage's settings are checked later but recorded as they are here, so secrets must be marked as such now.
        if stage is None or stage.get("services") is None:
            return stage
        return {**stage, "services": ServicesSettings.model_validate(stage["services"])}

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
