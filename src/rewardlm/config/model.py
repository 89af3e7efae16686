"""How a model is loaded, asked and adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rewardlm.config.fields import Dtype
from rewardlm.config.section import Section


class GenerationSettings(Section):
    """How answers are sampled. Temperature 0 is greedy; top_k 0 and top_p 1 switch truncation off."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_new_tokens: int = Field(0, ge=0)
    no_repeat_ngram_size: int = Field(0, ge=0)


class ChatSettings(Section):
    """How turns become text: the model's own template, a plain one, or the user's.

    ``template``: ``auto`` (the model's, else plain), ``plain``, or a path to a Jinja chat template.
    ``user`` and ``assistant`` are the role names of the plain template (``<human>:`` and ``<bot>:`` in 2023).
    """

    template: str = "auto"
    user: str = "User:"
    assistant: str = "Assistant:"
    system: str | None = None


class LoraSettings(Section):
    """Low-rank adapters (Hu et al. 2021): W + (alpha / r)·B·A on the target modules."""

    r: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class QuantisationSettings(Section):
    """How ``--load`` holds the base's linear layers, by bitsandbytes: docs/quantisation.md.

    Of 4bit: ``kind`` says which 16 values there are, ``double`` whether the blocks' scales are quantised too, and
    ``compute_dtype`` what products are taken in (auto: the model's ``dtype``, which embeddings, norms and the head
    keep). Of 8bit: inputs of ``outliers`` or more are multiplied as they are, not rounded; 0 rounds all.
    """

    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute_dtype: Dtype = "auto"
    outliers: float = Field(6.0, ge=0)


class ModelSettings(Section):
    """What every command that loads a model takes."""

    model: str
    adapter: Path | None = None
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    quantisation: QuantisationSettings = QuantisationSettings()
    device: str = "auto"
    chat: ChatSettings = ChatSettings()
