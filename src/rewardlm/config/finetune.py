"""``rewardlm finetune``, and what both trainings share."""

from __future__ import annotations

from pydantic import Field, model_validator

from rewardlm.config.fields import Resume
from rewardlm.config.model import LoraSettings, ModelSettings


class TrainingSettings(ModelSettings):
    """What both trainings take.

    ``gradient_checkpointing`` runs each layer a second time in the backward pass instead of keeping what it computed:
    the same gradient, more slowly, in less memory.
    ``resume``: ``exact`` refuses to go on without a whole checkpoint. ``inexact`` allows one whose adapter is whole and
    whose optimizer or other state is damaged or missing; these start afresh, and the result is another one than that
    of an undisturbed run.
    ``shard`` divides the base's layers between the processes that torchrun or accelerate started.
    """

    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False
    resume: Resume = "exact"
    shard: bool = False

    @model_validator(mode="after")
    def _an_adapter_has_its_own_rank(self) -> TrainingSettings:
        if self.adapter is not None and "lora" in self.model_fields_set:
            raise ValueError(
                f"lora (--lora-r) is for a fresh adapter, but training goes on from {self.adapter}, whose own rank "
                "stands: leave one of the two out"
            )
        return self


class FinetuneSettings(TrainingSettings):
    """``rewardlm finetune``: counter-narrative fine-tuning by TRL's SFTTrainer."""

    dialogues: str = "starter"
    validation: float = Field(0.1, ge=0, lt=1)
    limit: int | None = Field(None, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    batch_size: int = Field(8, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    max_length: int = Field(512, ge=16)
    checkpoint_every: int = Field(25, ge=1)
