"""``rewardlm finetune``, and what both trainings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rewardlm.config.fields import Depends, Flag, Resume, TextColumn
from rewardlm.config.model import LoraSettings, ModelSettings


class TrainingSettings(ModelSettings):
    """What both trainings take."""

    lora: Annotated[LoraSettings, Depends()] = Field(
        LoraSettings(), description="The fresh adapter; not to be given beside adapter, whose own rank stands."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Run each layer a second time in the backward pass instead of keeping what it computed: the same "
        "gradient, more slowly, in less memory.",
    )
    resume: Resume = Field(
        "exact",
        description="exact refuses to go on without a whole checkpoint; inexact starts damaged optimizer or other "
        "state afresh, and gives another result than an undisturbed run.",
    )
    shard: bool = Field(
        False, description="Divide the base's layers between the processes that torchrun or accelerate started."
    )

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

    dialogues: Annotated[str, Flag()] = Field(
        "starter",
        description="starter, starter-plain, dialoconan, a CONAN file, a .jsonl of messages, or a table of prompts and "
        "answers.",
    )
    text_column: TextColumn = None
    answer_column: Annotated[str | None, Flag()] = Field(
        None,
        min_length=1,
        description="The column or key that holds the answers, in a table with one exchange a row; by default answer, "
        "response, completion or counter_narrative.",
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="Share of the dialogues that is held out; none shares a user turn with the others."
    )
    limit: Annotated[int | None, Flag()] = Field(None, ge=1, description="A seeded sample of so many pairs.")
    epochs: Annotated[float, Flag()] = Field(1.0, gt=0, description="Passes over the pairs.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps after which training ends, whatever epochs.")
    learning_rate: Annotated[float, Flag()] = Field(3e-4, gt=0, description="Peak of the cosine schedule.")
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak.")
    batch_size: Annotated[int, Flag()] = Field(8, ge=1, description="Pairs an optimizer step.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Pairs in memory at once; by default batch_size. Fewer take less memory for the same gradient.",
    )
    max_length: int = Field(
        512,
        ge=16,
        description="Longest sample, in tokens; a longer one loses its oldest turns, or the end of the answer.",
    )
    checkpoint_every: int = Field(25, ge=1, description="Optimizer steps between two checkpoints.")
