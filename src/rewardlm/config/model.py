"""How a model is loaded, asked and adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rewardlm.config.fields import Device, Dtype, Flag, Load, Precision, Seed
from rewardlm.config.section import Section


class GenerationSettings(Section):
    """How answers are sampled."""

    temperature: float = Field(1.0, ge=0, description="Divides the logits before sampling; 0 is greedy.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens that make up this probability; 1 takes all."
    )
    top_k: int = Field(0, ge=0, description="Sample from this many of the likeliest tokens; 0 takes all.")
    min_new_tokens: int = Field(0, ge=0, description="Tokens that an answer has at least before it may end.")
    no_repeat_ngram_size: int = Field(0, ge=0, description="Never repeat an n-gram of this many tokens; 0 allows it.")


class ChatSettings(Section):
    """How turns become text: the model's own template, a plain one, or the user's."""

    template: str = Field(
        "auto", description="auto (the model's own, else plain), plain, or the path of a Jinja chat template."
    )
    user: str = Field("User:", description="The user's name in the plain template, such as <human>: in 2023.")
    assistant: str = Field("Assistant:", description="The model's name in the plain template, such as <bot>: in 2023.")
    system: str | None = Field(None, description="System turn before every prompt; by default none.")


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021): W + (alpha / r)·B·A on the target modules."""

    r: Annotated[int, Flag()] = Field(16, ge=1, description="Rank of the adapter.")
    alpha: float = Field(32, gt=0, description="Its scale: what it adds is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of its inputs that training drops.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the modules that get it, or all-linear: every linear layer but the head."
    )


class QuantisationSettings(Section):
    """How ``--load`` stores the base's linear layers, by bitsandbytes: docs/quantisation.md."""

    kind: Literal["nf4", "fp4"] = Field("nf4", description="Which 16 values 4bit has (nf4: Dettmers et al. 2023).")
    double: bool = Field(True, description="With 4bit, quantise the blocks' scales too.")
    compute_dtype: Dtype = Field(
        "auto",
        description="With 4bit, the precision of matrix products; auto is the model's dtype, which embeddings, norms "
        "and the head keep.",
    )
    outliers: float = Field(
        6.0, ge=0, description="With 8bit, inputs of at least this size are not rounded; 0 rounds all."
    )


class ModelSettings(Section):
    """What every command that loads a model takes."""

    example: ClassVar = {"model": "smollm2-135m"}

    model: str = Field(description="Hub id, path or alias (smollm2-135m, tiny).")
    adapter: Annotated[Path | None, Flag()] = Field(
        None, description="LoRA adapter to put on: a PEFT folder or a run of finetune, rlaf or prefer."
    )
    seed: Seed = 0
    dtype: Precision = "auto"
    load: Load = None
    quantisation: QuantisationSettings = Field(
        QuantisationSettings(), description="How load stores the base's linear layers."
    )
    device: Device = "auto"
    chat: ChatSettings = Field(ChatSettings(), description="How turns become text.")


class MergeSettings(ModelSettings):
    """``rewardlm merge``: ``dtype`` is the precision that is saved, ``load`` says which base to merge into."""

    dtype: Annotated[Dtype, Flag()] = Field("auto", description="Precision of the saved weights; auto: float32.")
    load: Annotated[Literal["8bit", "4bit"] | None, Flag()] = Field(
        None, description="Merge into the base's weights as this quantisation rounds them; by default as they are."
    )
    adapter_strength: Annotated[float | None, Flag()] = Field(
        None,
        ge=0,
        description="Multiplies what the adapter adds before it is merged, as measure --adapter-strength does.",
    )
