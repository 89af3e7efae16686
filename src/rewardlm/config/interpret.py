"""``rewardlm interpret``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rewardlm.config.fields import Device, Dtype, Flag, Seed
from rewardlm.config.model import GenerationSettings
from rewardlm.config.section import Section

METHODS = ("input_x_gradient", "integrated_gradients", "occlusion")


class InsideSettings(Section):
    """How ``rewardlm interpret`` looks inside: how much is read, and what is tried. See interpreting.mechanistic."""

    toxic_words: list[str] = Field(
        [],
        description="Words whose logits are compared with those of neutral_words. An empty list takes the words of the "
        "vocabulary that a judge of words finds most toxic.",
    )
    neutral_words: list[str] = Field(
        [], description="The other side. An empty list takes, for each toxic word, a harmless one that is as rare."
    )
    token_words: int = Field(40, ge=3, description="Words per side if none are given.")
    adapter_answers: int = Field(4, ge=1, description="Answers that are taken apart module by module.")
    lens_positions: int = Field(64, ge=1, description="Positions that the logit lens reads.")
    probe_answers: int = Field(
        100, ge=12, description="Answers that the probe reads, half of them toxic if there are so many."
    )
    probe_folds: int = Field(5, ge=2, description="Folds of the probe's cross-validation.")
    value_vectors: int = Field(16, ge=1, description="Value vectors of the MLPs that are followed.")
    vectors_by: Literal["words", "direction"] = Field(
        "words",
        description="Which value vectors: those that promote the toxic words most, or that lie nearest to the toxic "
        "direction.",
    )
    pairs: int = Field(
        4, ge=1, description="Pairs of an old toxic and a new answer that are followed along the adapter's scale."
    )
    path_steps: int = Field(3, ge=1, description="Steps along that scale; more if the modules' shares don't add up.")
    redraw_pairs: int = Field(
        12,
        ge=1,
        description="Pairs of a toxic and a harmless answer of the base itself, which show whether it prefers the "
        "harmless one.",
    )
    shuffles: int = Field(
        20, ge=20, description="Shuffles of the labels, which show what the probe's best layer reaches by chance."
    )
    random_directions: int = Field(
        20, ge=20, description="Random directions, which show what a direction does by chance."
    )
    push_margin: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="How far the value vectors' push may be from the base's and still count as the same. At 0.2 its "
        "95 % interval must lie between 0.8 and 1.25, the bounds of two equivalent medicines.",
    )
    null_adapters: int = Field(
        2, ge=0, description="Random adapters of the same size, which show what size alone does to the push."
    )
    ablation_prompts: int | None = Field(
        None,
        ge=0,
        description="Prompts that are answered again without the value vectors. By default 10 where there are no words "
        "whose logits could be read instead, else none: a few answers show little.",
    )
    ablation_answers: int = Field(
        12, ge=1, description="Answers on which the words' logits are read without the value vectors."
    )
    random_sets: int = Field(
        20,
        ge=20,
        description="Sets of as many other vectors. How many of these sets take away as much shows whether the base "
        "needs the named ones.",
    )
    causal_prompts: int = Field(
        20,
        ge=0,
        description="Prompts that are answered again under every change, at most as many as are read; 0 "
        "leaves these tests out.",
    )
    max_new_tokens: int = Field(24, ge=1, description="Longest of these answers, in tokens.")
    generation: GenerationSettings = Field(
        GenerationSettings(), description="How they are sampled; by default as the baseline's run sampled its own."
    )
    scales: list[float] = Field(
        [], description="What the adapter is multiplied by, as [0.5,1.5]: 0 and 1 are the base and the model itself."
    )
    layer_groups: int = Field(
        0,
        ge=0,
        description="Groups of neighbouring layers whose adapter is switched off one after another; as many as layers: "
        "one layer at a time.",
    )
    strength: float = Field(1.0, gt=0, description="What the toxic direction is multiplied by before it is added.")
    batch_tokens: int = Field(2048, ge=1, description="Positions that are read or generated side by side.")
    n_resamples: int = Field(2000, ge=100, description="Bootstrap samples of an interval.")
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn here.")

    @model_validator(mode="after")
    def _both_sides_have_words(self) -> InsideSettings:
        if bool(self.toxic_words) != bool(self.neutral_words):
            raise ValueError("toxic_words and neutral_words are compared: give both or neither")
        return self


class CausesSettings(Section):
    """How ``rewardlm interpret`` asks which parts of an adapter do it. See interpreting.causes."""

    pairs: int = Field(
        24, ge=5, description="Pairs of a toxic and a harmless answer of the base, one of each a prompt."
    )
    draws: int = Field(8, ge=2, description="Answers that the base gives to a prompt until it has given such a pair.")
    towards: Literal["auto", "harmless", "own"] = Field(
        "auto",
        description="What a pair's harmless answer is: harmless, the base's own; own, a new one of the tuned model. "
        "auto takes own where the tuned model wasn't shown to prefer the base's harmless answers.",
    )
    exact_sites: int = Field(
        12,
        ge=1,
        description="Heads and MLPs with the largest estimates that are patched exactly, and as many others, by which "
        "the estimates are checked.",
    )
    random_adapters: int = Field(
        20, ge=20, description="Adapters of random weights, as large, which show what any change of a model does."
    )
    random_pairs: int = Field(8, ge=5, description="Pairs on which these are tried.")
    answered: int = Field(
        20, ge=0, description="Prompts that are answered under patches and judged; 0 leaves that out."
    )
    carries: float = Field(
        0.5, gt=0, lt=1, description="A part carries the change if the interval of its share lies above this."
    )
    carries_little: float = Field(
        0.2, gt=0, lt=1, description="A part carries little of it if the interval of its share lies below this."
    )
    unit: Literal["auto", "layer", "module", "head", "rank"] = Field(
        "auto", description="In which parts the adapter is switched on; auto tries all, and takes what is smallest."
    )
    keep: float = Field(0.9, gt=0, le=1, description="Share of the fall of toxicity that the smallest adapter keeps.")
    prompts: int = Field(
        60,
        ge=10,
        description="Prompts on which the smallest adapter is chosen, and as many others that it is tried on.",
    )
    samples: int = Field(
        3, ge=1, description="Answers to each of these prompts; as many again where a part kept enough in the first."
    )
    max_new_tokens: int = Field(24, ge=1, description="Longest of all these answers, in tokens.")
    generation: GenerationSettings = Field(
        GenerationSettings(), description="How they are sampled; by default as the baseline's run sampled its own."
    )
    batch_tokens: int = Field(
        1024, ge=1, description="Positions that are read side by side; four times as many are generated."
    )
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn here.")

    @model_validator(mode="after")
    def _little_is_less(self) -> CausesSettings:
        if self.carries_little >= self.carries:
            raise ValueError(f"carries_little ({self.carries_little:g}) must be below carries ({self.carries:g})")
        return self


class AttributionSettings(Section):
    """Which words of prompt and answer a token rests on, and how that is found."""

    method: Annotated[str, Flag("--method", metavar="|".join([*METHODS, "inseq:NAME"]))] = Field(
        METHODS[0],
        description="input_x_gradient, integrated_gradients (from baseline to the input), occlusion (baseline "
        "takes the place of one token at a time), or inseq:NAME, a method of the package inseq.",
    )
    tokens: Annotated[int, Flag("--tokens")] = Field(
        3, ge=1, description="Tokens that are explained per answer, one drawn from each of so many equal stretches."
    )
    steps: int = Field(16, ge=1, description="Points that integrated gradients (Sundararajan et al. 2017) begin with.")
    tolerance: float = Field(
        0.05, gt=0, description="Points are added until the scores miss their exact sum by at most this share of it."
    )
    most_steps: int = Field(512, ge=1, description="A token that needs more points than this gets no scores.")
    baseline: Literal["end", "zero"] = Field(
        "end", description="What stands for no token: the end token's embedding, or zeros."
    )
    faithfulness_tokens: int = Field(
        15,
        ge=0,
        description="Explained tokens that test the method: their context is read without the words of the largest "
        "shares, and with only these. 0 leaves the test out.",
    )

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS and not re.fullmatch(r"inseq:\w+", method):
            raise ValueError(f"expected {', '.join(METHODS)} or inseq:NAME")
        return method


class InterpretSettings(Section):
    """``rewardlm interpret``: what is read, and of how many answers."""

    limit: Annotated[int, Flag()] = Field(
        30,
        ge=1,
        description="Pairs of a prompt and a sample that are read, drawn evenly over the transitions of toxicity.",
    )
    scorer: Annotated[str | None, Flag()] = Field(
        None, description="The judge that says which answers are toxic; by default one that was no model's reward."
    )
    seed: Seed = 0
    dtype: Annotated[Dtype, Flag()] = Field(
        "auto", description="Precision of the weights; auto: float32 on a CPU, elsewhere the measurement's."
    )
    load: Annotated[Literal["8bit", "4bit"] | None, Flag()] = Field(
        None, description="Quantise the base on loading; by default as the measurement did."
    )
    device: Device = "auto"
    batch_tokens: int = Field(
        512, ge=1, description="Positions of a pass. On a CPU, up to four passes of a small model run at once."
    )
    threshold: float = Field(0.5, ge=0, le=1, description="An answer counts as toxic if its score is above this.")
    parting_kl: float = Field(0.5, gt=0, description="KL per token, in nats, at which two models count as parted.")
    n_resamples: int = Field(2_000, ge=100, description="Bootstrap samples of an interval.")
    attribution: AttributionSettings = Field(
        AttributionSettings(), description="Which words a token rests on, and how that is found."
    )
    look_inside: bool = Field(True, description="Read the residual stream and its directions too.")
    inside: InsideSettings = Field(InsideSettings(), description="How the residual stream is read, and what is tried.")

    heads: bool = Field(False, description="Look at every attention head: where it looks, and what it writes.")
    patching: bool = Field(
        False, description="Put values of each tuned model into the base, and the other way, to see which parts do it."
    )
    minimal_adapter: bool = Field(
        False, description="Look for the smallest part of each adapter that does it, and write it as an adapter."
    )
    causes: CausesSettings = Field(CausesSettings(), description="How heads, patching and minimal_adapter go about it.")

    @property
    def asks_for_causes(self) -> bool:
        """Whether any of heads, patching and minimal_adapter is wanted."""
        return self.heads or self.patching or self.minimal_adapter

    @property
    def word_judge(self) -> str | None:
        """The judge that chooses the toxic words to look for inside; None if they are named, or nothing is read."""
        return "lexical" if self.look_inside and not self.inside.toxic_words else None
