"""``rewardlm interpret``."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rewardlm.config.fields import Dtype
from rewardlm.config.section import Section


class InsideSettings(Section):
    """How ``rewardlm interpret`` looks inside: how much is read, and what is tried. See interpreting.mechanistic.

    ``toxic_words`` and ``neutral_words`` are the two sides whose logits are compared; without them, the
    ``token_words`` words of the vocabulary that a word judge finds most toxic, each with a harmless one as rare.
    ``adapter_answers`` are taken apart module by module, ``lens_positions`` read by the lens, ``probe_answers`` by the
    probe (half of them toxic if there are so many). ``value_vectors`` of the MLPs are followed, those that promote the
    toxic words most, or that lie nearest to the toxic direction. ``pairs`` of an old toxic and a new answer are
    followed along the adapter's scale in ``path_steps`` steps, and in more where these miss the whole; ``redraw_pairs``
    of a toxic and a harmless answer of the base itself say whether it prefers the harmless. ``shuffles`` of the labels
    say what the probe's best layer reaches by chance, and ``random_directions`` what a direction does by chance.
    ``causal_prompts`` different ones, at most as many as are read, are answered again, in ``max_new_tokens``, under
    every change; 0 leaves these tests out. ``ablation_prompts`` likewise without the value vectors; the words' logits
    are then read on ``ablation_answers``, and once more without each of ``random_sets`` sets of as many others: how
    many of these take as much is the test whether the base needs the named ones. ``push_margin`` is how far the
    vectors' push may be from the base's and count as the same: at 0.2 its 95 % interval must lie between 0.8 and 1.25,
    the bounds within which two medicines count as equivalent. ``null_adapters`` of random weights say what a change of
    the adapter's size does to the push by itself. ``scales`` multiply the adapter, ``layer_groups`` of neighbouring
    layers are switched off one after another (as many as layers: one layer at a time), ``strength`` times the toxic
    direction is added.
    """

    toxic_words: list[str] = []
    neutral_words: list[str] = []
    token_words: int = Field(40, ge=3)
    adapter_answers: int = Field(6, ge=1)
    lens_positions: int = Field(96, ge=1)
    probe_answers: int = Field(100, ge=12)
    probe_folds: int = Field(5, ge=2)
    value_vectors: int = Field(16, ge=1)
    vectors_by: Literal["words", "direction"] = "words"
    pairs: int = Field(4, ge=1)
    path_steps: int = Field(4, ge=1)
    redraw_pairs: int = Field(12, ge=1)
    shuffles: int = Field(20, ge=20)
    random_directions: int = Field(20, ge=20)
    push_margin: float = Field(0.2, gt=0, lt=1)
    null_adapters: int = Field(2, ge=0)
    ablation_prompts: int = Field(10, ge=0)
    ablation_answers: int = Field(12, ge=1)
    random_sets: int = Field(20, ge=20)
    causal_prompts: int = Field(30, ge=0)
    max_new_tokens: int = Field(24, ge=1)
    scales: list[float] = [0.0, 0.5, 1.0, 1.5]
    layer_groups: int = Field(5, ge=1)
    strength: float = Field(1.0, gt=0)
    batch_tokens: int = Field(2048, ge=1)
    n_resamples: int = Field(2000, ge=100)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _both_sides_have_words(self) -> InsideSettings:
        if bool(self.toxic_words) != bool(self.neutral_words):
            raise ValueError("toxic_words and neutral_words are compared: give both or neither")
        return self


class AttributionSettings(Section):
    """Which words of prompt and answer a token rests on, and how that is found.

    ``method``: ``input_x_gradient``, ``integrated_gradients`` (from ``baseline`` to the input), ``occlusion`` (one
    token at a time replaced by ``baseline``), or ``inseq:NAME``, another method of the package inseq. ``baseline``:
    every token's embedding is that of the end token, or ``zero``. Of each answer ``tokens`` are explained, one drawn
    from each of so many equal stretches.

    Integrated gradients begin with ``steps`` points and refine until the scores miss their sum by at most ``tolerance``
    of it; a token that takes more than ``most_steps`` points has no scores.

    ``faithfulness_tokens`` of the explained tokens test the method: their context is read without the words that have
    the largest shares, and with these alone (see interpreting.faithfulness). 0 leaves the test out.
    """

    method: str = "input_x_gradient"
    tokens: int = Field(8, ge=1)
    steps: int = Field(16, ge=1)
    tolerance: float = Field(0.05, gt=0)
    most_steps: int = Field(512, ge=1)
    baseline: Literal["end", "zero"] = "end"
    faithfulness_tokens: int = Field(30, ge=0)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        known = ("input_x_gradient", "integrated_gradients", "occlusion")
        if method not in known and not re.fullmatch(r"inseq:\w+", method):
            raise ValueError(f"expected {', '.join(known)} or inseq:NAME")
        return method


class InterpretSettings(Section):
    """``rewardlm interpret``: what is read of how many answers.

    ``limit`` pairs of a prompt and a sample are drawn evenly over the transitions of toxicity, by ``scorer`` (None: a
    judge that was nobody's reward). ``parting_kl``, in nats, is where two models count as parted. ``dtype`` is else
    float32 on a CPU and the measurement's on a device, ``load`` the measurement's. ``look_inside`` False leaves out the
    residual stream and its directions.
    """

    limit: int = Field(30, ge=1)
    scorer: str | None = None
    seed: int = Field(0, ge=0)
    dtype: Dtype = "auto"
    load: Literal["8bit", "4bit"] | None = None
    device: str = "auto"
    batch_tokens: int = Field(512, ge=1)
    threshold: float = Field(0.5, ge=0, le=1)
    parting_kl: float = Field(0.5, gt=0)
    n_resamples: int = Field(2_000, ge=100)
    attribution: AttributionSettings = AttributionSettings()
    look_inside: bool = True
    inside: InsideSettings = InsideSettings()

    @property
    def word_judge(self) -> str | None:
        """The judge that chooses the toxic words to look for inside; None where they are named, or nobody looks."""
        return "lexical" if self.look_inside and not self.inside.toxic_words else None
