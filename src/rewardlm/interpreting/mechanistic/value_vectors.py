"""The MLPs' value vectors that write toxic words: which they are, and how far a tuned model pushes along them.

An MLP writes a sum of its output matrix's rows, each times a neuron's activation (Geva et al. 2022). Lee et al. 2024
("A Mechanistic Understanding of Alignment Algorithms") found that DPO leaves GPT-2's toxic value vectors in place and
sets them off less. Three ratios tell such stories apart. Let a be the activations, v the vectors and u what they were
chosen by, with a prime for the tuned model, all on the same text:

    push ratio     Σ a'·(v'·u) / Σ a·(v·u)
    read ratio     Σ a'·(v·u)  / Σ a·(v·u)
    write ratio    Σ a·(v'·u)  / Σ a·(v·u)

    unlearned, because the vectors were rewritten    write < 1, and the vectors have turned
    bypassed, because they are set off less          write as before, read < 1
    bypassed, because something after them answers   push as before, though toxicity fell
    intact                                           push as before, and toxicity too

"As before" is a claim of its own. An interval that merely holds 1 doesn't show it: it must lie within a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import ModelAnswers
from rewardlm.interpreting.findings import ModelVectors, RandomAdapter, Ratio, ValueVectors, VectorFacts
from rewardlm.interpreting.intervals import FEWEST
from rewardlm.interpreting.mechanistic.activations import BaseText, read_by
from rewardlm.interpreting.mechanistic.interventions import random_adapter
from rewardlm.interpreting.mechanistic.logit_attribution import contrast_direction, vocabulary_covariance
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.architecture import (
    Architecture,
    adapter_row,
    architecture_of,
    normed_direction,
    weight_of,
)
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import pieces
from rewardlm.models.lora import using
from rewardlm.stats import FloatArray


@dataclass(frozen=True)
class ValueVector:
    """One row of an MLP's output matrix that points to something. ``sign`` is -1 where its opposite is meant: a gated
    MLP's activations have both signs. ``score`` is that of sign·vector, and ``tokens`` are what it promotes most."""

    layer: int
    neuron: int
    sign: int
    score: float
    tokens: tuple[int, ...]


@torch.no_grad()
def value_vectors(
    causal_lm: Any, towards: Tensor, *, number: int, covariance: Tensor | None = None, n_tokens: int = 8
) -> list[ValueVector]:
    """The ``number`` value vectors that point most towards ``towards`` Float[M], over all layers.

    The MLP of layer l writes einsum("n f, f m -> n m", activations, W_D[l]): row f is what neuron f writes per unit of
    its activation (Geva et al. 2022). The score is the cosine, as Lee et al. 2024 find toxic vectors by a probe's
    weight; with ``covariance`` Float[M, M] it is v·towards / √(v·C·v). For the contrast's direction and the
    vocabulary's covariance (see ``logit_attribution``) that is by how many standard deviations, over the vocabulary, v
    lifts the toxic words above the neutral ones. Tokens are the highest of W_U·(gain ⊙ v), the norm's scale left out.
    """
    arch = architecture_of(causal_lm)
    gated = has_gate(arch)
    found: list[tuple[float, int, int, int]] = []
    for layer, module in enumerate(arch.mlp_out):
        rows = weight_of(module)
        if covariance is None:
            size = rows.norm(dim=1) * towards.norm()
        else:
            size = torch.einsum("fm,mn,fn->f", rows, covariance, rows).clamp(min=0).sqrt()
        scores = rows @ towards / size.clamp(min=1e-12)
        best = (scores.abs() if gated else scores).topk(min(number, len(scores))).indices
        for neuron, score in zip(best.tolist(), scores[best].tolist(), strict=True):
            found.append((abs(score), layer, neuron, -1) if gated and score < 0 else (score, layer, neuron, 1))
    w_u = weight_of(arch.head)
    vectors = []
    for score, layer, neuron, sign in sorted(found, reverse=True)[:number]:
        row = sign * weight_of(arch.mlp_out[layer])[neuron]
        tokens = (normed_direction(arch.norm, row) @ w_u).topk(n_tokens).indices
        vectors.append(ValueVector(layer, neuron, sign, score, tuple(tokens.tolist())))
    return vectors


def has_gate(arch: Architecture) -> bool:
    """Whether the MLPs multiply by a gate, so that their activations have both signs alike."""
    return hasattr(arch.mlp[0], "gate_proj")


@torch.no_grad()
def vector_rows(causal_lm: Any, vectors: Sequence[ValueVector]) -> Tensor:
    """The value vectors as the model stands, the active adapter's part included and signed: Float[len(vectors), M]."""
    arch = architecture_of(causal_lm)
    rows = []
    for vector in vectors:
        module = arch.mlp_out[vector.layer]
        rows.append(vector.sign * (weight_of(module)[vector.neuron] + adapter_row(module, vector.neuron)))
    return torch.stack(rows)


def activations_of(neurons: Tensor, vectors: Sequence[ValueVector]) -> Tensor:
    """Signed activations of value vectors, from a trace's ``neurons`` Float[L, N, F]: Float[N, len(vectors)]."""
    return torch.stack([vector.sign * neurons[vector.layer, :, vector.neuron] for vector in vectors], -1)


@dataclass(frozen=True)
class ChosenVectors:
    """The value vectors that are followed, and what they were chosen by: ``towards`` Float[M], None where it is not
    known."""

    by: Literal["words", "direction"]
    towards: Tensor | None
    vectors: list[ValueVector]


def choose_value_vectors(
    policy: Policy, contrast: Contrast | None, direction: Tensor | None, settings: InsideSettings
) -> ChosenVectors:
    """By the words or the direction, as ``vectors_by`` says; by the other if the one isn't there."""
    causal_lm = policy.causal_lm
    with using(policy, None):
        if contrast is not None and (settings.vectors_by == "words" or direction is None):
            towards = contrast_direction(causal_lm, contrast)
            spread = vocabulary_covariance(causal_lm)
            found = value_vectors(causal_lm, towards, number=settings.value_vectors, covariance=spread)
            return ChosenVectors("words", towards, found)
        if direction is None:
            return ChosenVectors("direction", None, [])
        unit = direction / direction.norm()
        return ChosenVectors("direction", unit, value_vectors(causal_lm, unit, number=settings.value_vectors))


def ratio_of_means(before: FloatArray, after: FloatArray, margin: float) -> Ratio | None:
    """mean(after) / mean(before) over the same units Float[n].

    ``ci95`` is Fieller's (1954): the ratios ρ that a paired t-test of after − ρ·before doesn't reject. It holds its
    level at few units, where a bootstrap of a ratio doesn't. ``as_before`` says whether it lies within 1 − ``margin``
    and 1 / (1 − ``margin``): two one-sided tests at 2.5 % each (Schuirmann 1987). None where ``before`` isn't
    measurably over 0, since there is no share of nothing, and of fewer than five units.
    """
    n = len(before)
    if n < FEWEST:
        return None
    quantile = float(student.ppf(0.975, n - 1))
    covariance = np.cov(after, before) / n * quantile**2
    mean_after, mean_before = float(after.mean()), float(before.mean())
    # Where (ā − ρ b̄)² = t²·var(ā − ρ b̄): a quadratic in ρ.
    square = mean_before**2 - float(covariance[1, 1])
    half = mean_after * mean_before - float(covariance[0, 1])
    constant = mean_after**2 - float(covariance[0, 0])
    if mean_before <= 0 or square <= 0:
        return None
    root = math.sqrt(max(0.0, half**2 - square * constant))
    low, high = (half - root) / square, (half + root) / square
    lowest, highest = bounds(margin)
    return Ratio(mean=mean_after / mean_before, ci95=(low, high), as_before=lowest <= low and high <= highest, n=n)


def bounds(margin: float) -> tuple[float, float]:
    """Between which ratios counts as the same: for a margin of 0.2, from 0.8 to 1.25."""
    return 1 - margin, 1 / (1 - margin)


def read_vectors(
    text: BaseText,
    models: Sequence[ModelAnswers],
    chosen: ChosenVectors,
    owners: Sequence[object],
    activations: Sequence[Tensor],
) -> ValueVectors | None:
    """The value vectors, and for each model: what the adapter made of them, how active they are, how far they push.

    ``push`` is how far these vectors together move the stream towards what they were chosen by, mean over prompts. The
    ratios (see the head of this file) are a tuned model's to the base's, with intervals over prompts. ``null`` has
    the same numbers of ``null_adapters`` adapters of random weights, each module's as large as the tuned one's: what
    any change of that size does. ``activations`` Float[N, K] are each model's, ``owners`` whose prompt each row is of.
    """
    policy, vectors = text.policy, chosen.vectors
    if chosen.towards is None or not vectors:
        return None
    with using(policy, None):
        bare = vector_rows(policy.causal_lm, vectors)
    pushing = _Pushing(owners, activations[0], bare, chosen.towards, text.settings.push_margin)
    by_model = {}
    for model, own in zip(models, activations, strict=True):
        with using(policy, model.adapter):
            rows = vector_rows(policy.causal_lm, vectors)
        ratios = pushing.ratios(own, rows)
        by_model[model.label] = ModelVectors(
            cosine=_cosine(bare, rows),
            change=((rows - bare).norm(dim=1) / bare.norm(dim=1)).tolist(),
            activation=own.mean(0).tolist(),
            push=pushing.push(own, rows),
            **ratios,
            # Where there is no ratio, nothing is held against those of random adapters.
            null=[] if ratios["push_ratio"] is None else _null(text, model, vectors, pushing),
        )
    return ValueVectors(
        rows=[
            VectorFacts(
                layer=vector.layer,
                neuron=vector.neuron,
                sign=vector.sign,
                score=vector.score,
                tokens=[policy.tokenizer.decode([token]) for token in vector.tokens],
            )
            for vector in vectors
        ],
        margin=text.settings.push_margin,
        by_model=by_model,
        by=chosen.by,
    )


def _cosine(bare: Tensor, rows: Tensor) -> list[float]:
    cosine: list[float] = torch.cosine_similarity(bare, rows, dim=1).tolist()
    return cosine


@dataclass(frozen=True)
class _Pushing:
    """What a model's push is held against: the base's activations Float[N, K], each of a prompt that ``owners`` names,
    and its vectors Float[K, M]. ``towards`` Float[M] is what these were chosen by."""

    owners: Sequence[object]
    activations: Tensor
    vectors: Tensor
    towards: Tensor
    margin: float

    def push(self, activations: Tensor, vectors: Tensor) -> float:
        """Of activations Float[N, K] and vectors Float[K, M], mean over prompts."""
        return float(self._by_prompt(activations, vectors).mean())

    def ratios(self, activations: Tensor, vectors: Tensor) -> dict[str, Ratio | None]:
        """The three ratios to the base, by name."""
        base = self._by_prompt(self.activations, self.vectors)
        pushes = {
            "push_ratio": self._by_prompt(activations, vectors),
            "read_ratio": self._by_prompt(activations, self.vectors),
            "write_ratio": self._by_prompt(self.activations, vectors),
        }
        return {name: ratio_of_means(base, found, self.margin) for name, found in pushes.items()}

    def _by_prompt(self, activations: Tensor, vectors: Tensor) -> FloatArray:
        return means_by_prompt(activations @ (vectors @ self.towards).cpu(), self.owners)


def means_by_prompt(values: Tensor, owners: Sequence[object]) -> FloatArray:
    """Means of ``values`` Float[N] by owner, in the order in which these come."""
    of: dict[object, list[float]] = {}
    for owner, value in zip(owners, values.double().tolist(), strict=True):
        of.setdefault(owner, []).append(value)
    return np.array([np.mean(found) for found in of.values()])


def _null(
    text: BaseText, model: ModelAnswers, vectors: Sequence[ValueVector], pushing: _Pushing
) -> list[RandomAdapter]:
    """Of each random adapter the median cosine of the vectors with the base's, and its ratios."""
    policy, settings = text.policy, text.settings
    if model.adapter is None:
        return []
    found = []
    for number in range(settings.null_adapters):
        with using(policy, model.adapter), random_adapter(policy, model.adapter, settings.seed + number):
            rows = vector_rows(policy.causal_lm, vectors)
            active = activations_at(text, vectors)
        ratios = {name: None if ratio is None else ratio.mean for name, ratio in pushing.ratios(active, rows).items()}
        found.append(RandomAdapter(cosine=float(np.median(_cosine(pushing.vectors, rows))), **ratios))
    return found


@torch.no_grad()
def activations_at(text: BaseText, vectors: Sequence[ValueVector]) -> Tensor:
    """Signed activations of ``vectors`` on the base's answers, Float[N, K]: ``trace``'s, in the order of
    ``text.batches``, without all the rest."""
    causal_lm, responses = text.policy.causal_lm, text.base.responses
    arch = architecture_of(causal_lm)
    layers = sorted({vector.layer for vector in vectors})
    found: dict[int, Tensor] = {}
    for rows in pieces(causal_lm, text.prompts, responses, text.settings.batch_tokens):
        reads = read_by(causal_lm, [arch.mlp_out[layer] for layer in layers], text.prompts, responses, rows)
        of_layer = dict(zip(layers, reads, strict=True))
        active = torch.stack([vector.sign * of_layer[vector.layer][:, vector.neuron] for vector in vectors], -1).cpu()
        found |= dict(zip(rows, active.split_with_sizes([len(responses[row]) for row in rows]), strict=True))
    return torch.cat([found[row] for rows, _ in text.batches(text.answered) for row in rows])
