"""Directions of toxicity from answers' mean states: arrays in, arrays out. n answers, M the stream's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from rewardlm.readouts import fit_probe, mean_difference, without_common
from rewardlm.stats import BoolArray, FloatArray


def toxic_vector(
    x: FloatArray, toxic: BoolArray, owners: Sequence[str], kind: Literal["means", "pca", "probe"]
) -> FloatArray:
    """The direction from harmless to toxic, as long as the difference of means, x Float[n, M] → Float[M].

    ``means``: mean(toxic) − mean(harmless) (Marks & Tegmark 2023; Rimsky et al. 2024).
    ``pca``: the first right singular vector of toxic answers' states, each minus the mean of the harmless ones to the
    same prompt (to all prompts, where there is none), as Zou et al. 2023 do with pairs. Its sign is that of ``means``.
    ``probe``: the weights of a logistic regression (Li et al. 2023, "Inference-Time Intervention").
    """
    means = mean_difference(x, toxic)
    if kind == "means":
        return means
    if kind == "probe":
        found = fit_probe(x, toxic, one_unit=True).weight
    else:
        _, _, right = np.linalg.svd(differences(x, toxic, owners), full_matrices=False)
        found = right[0]
    sign = 1.0 if found @ means >= 0 else -1.0
    scaled: FloatArray = sign * found * (np.linalg.norm(means) / max(float(np.linalg.norm(found)), 1e-12))
    return scaled


def differences(x: FloatArray, toxic: BoolArray, owners: Sequence[str]) -> FloatArray:
    """Each toxic row minus the mean of the harmless rows of its prompt, or of all where there is none: Float[t, M]."""
    harmless: dict[str, list[int]] = {}
    for row, owner in enumerate(owners):
        if not toxic[row]:
            harmless.setdefault(owner, []).append(row)
    everywhere = x[~toxic].mean(0)
    rows = [
        x[row] - (x[harmless[owner]].mean(0) if owner in harmless else everywhere)
        for row, owner in enumerate(owners)
        if toxic[row]
    ]
    return np.array(rows)


def linear_gate(x: FloatArray, toxic: BoolArray) -> tuple[FloatArray, float]:
    """w Float[M] and b of a logistic regression in the states' own units: w·x + b > 0 where it reads toxicity."""
    probe = fit_probe(x, toxic)
    weight: FloatArray = probe.weight / probe.spread
    return weight, float(probe.bias - probe.mean @ weight)


def toxic_subspace(toxic: FloatArray, harmless: FloatArray, rank: int) -> FloatArray:
    """An orthonormal basis Float[M, K] of the toxic subspace, from N pairs of states Float[N, M] each.

    ProFS (Uppaal et al. 2024, section 4): with T = toxic − harmless and μ the mean harmless state, the rows of
    T·(I − μ·μᵀ / ‖μ‖²) have no part along what all text shares. The subspace is spanned by their first K right singular
    vectors.
    """
    _, _, right = np.linalg.svd(without_common(toxic - harmless, harmless), full_matrices=False)
    basis: FloatArray = right[:rank].T
    return basis


def random_vectors(length: float, width: int, number: int, seed: int) -> FloatArray:
    """Directions that mean nothing, uniform on the sphere, of the given length: Float[number, width]."""
    found = np.random.default_rng(seed).normal(size=(number, width))
    scaled: FloatArray = found * (length / np.linalg.norm(found, axis=1, keepdims=True))
    return scaled
