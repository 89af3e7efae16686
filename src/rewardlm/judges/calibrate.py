"""Make a judge's probabilities mean what they say: of the texts that get 0.7, seven in ten should be toxic.

Temperature (Guo et al. 2017, arXiv 1706.04599) and Platt scaling (Platt 1999) are linear in the logit, so they are
folded into the head, and any other tool that loads the judge has them. Isotonic regression is not: our own scorer
applies it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

Floats = NDArray[np.floating[Any]]

# Fewer texts than this say too little of how sure a judge should be.
MINIMUM = 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one label. Linear: logit ← ``scale``·logit + ``shift``. Isotonic: P ← interpolation of (``x``, ``y``)."""

    kind: str
    scale: float = 1.0
    shift: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()


def weigh(sources: Sequence[str], targets: Floats, *, evenly: bool) -> Floats:
    """Float[N]: what each text counts when a label is calibrated; 0 where it tells nothing.

    A source of one class (only hate, say) would teach that being sure is always right, and one of few texts counts
    for too much: both are left out, unless all are such. ``evenly``: the others count the same, as nobody knows which
    of them a user's texts are like; otherwise texts do.

    Args:
        sources: of each text, N of them.
        targets: Float[N], probabilities or 0 and 1.
    """
    names = np.asarray(sources)
    telling = {}
    for name in np.unique(names):
        own = targets[names == name]
        if len(own) >= MINIMUM and (own < 0.5).any() and (own >= 0.5).any():
            telling[name] = len(own)
    counts = telling or {name: int((names == name).sum()) for name in np.unique(names)}
    return np.asarray([(1 / counts[name] if evenly else 1.0) if name in counts else 0.0 for name in names])


def fit(kind: str, logits: Floats, targets: Floats, weights: Floats) -> Calibration | None:
    """The calibration of one label by maximum likelihood.

    None where fewer than ``MINIMUM`` texts count, or all have one target: probabilities stay as they are then.

    Args:
        kind: temperature, platt or isotonic.
        logits: Float[N].
        targets: Float[N], probabilities or 0 and 1.
        weights: Float[N], not negative.
    """
    counts = weights > 0
    if counts.sum() < MINIMUM or np.ptp(targets[counts]) == 0:
        return None
    if kind == "isotonic":
        return _isotonic(expit(logits), targets, weights)

    def loss(parameters: Floats) -> float:
        z = np.exp(parameters[0]) * logits + (parameters[1] if kind == "platt" else 0.0)
        return float(-np.average(targets * log_expit(z) + (1 - targets) * log_expit(-z), weights=weights))

    start = np.zeros(2 if kind == "platt" else 1)
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9, "maxiter": 2000}).x
    return Calibration(kind, float(np.exp(found[0])), float(found[1]) if kind == "platt" else 0.0)


def fold(head: Any, labels: Sequence[str], calibrations: Mapping[str, Calibration]) -> None:
    """Write the linear calibrations into ``head``, a torch Linear with an output a label; a shift needs its bias."""
    for row, label in enumerate(labels):
        found = calibrations.get(label)
        if found is None or found.kind == "isotonic":
            continue
        head.weight.data[row] *= found.scale
        if head.bias is not None:
            head.bias.data[row] = head.bias.data[row] * found.scale + found.shift
        elif found.shift:
            raise ValueError(f"{label}: a head without a bias has no place for the shift {found.shift}")


def _isotonic(probabilities: Floats, targets: Floats, weights: Floats) -> Calibration:
    """Pool adjacent violators, then the blocks' means as knots of a line that also has its ends."""
    from scipy.optimize import isotonic_regression

    # Equal probabilities are one point: which of them comes first must not matter.
    points, where = np.unique(probabilities, return_inverse=True)
    mass = np.bincount(where, weights)
    means = np.bincount(where, weights * targets) / np.maximum(mass, 1e-12)
    fitted = isotonic_regression(means, weights=np.maximum(mass, 1e-12)).x
    # A block's two ends are all that is needed of it.
    edge = np.concatenate([[True], np.diff(fitted) > 1e-12, [True]])
    keep = edge[:-1] | edge[1:]
    x, y = points[keep], np.clip(fitted[keep], 0.0, 1.0)
    return Calibration("isotonic", x=tuple(map(float, x)), y=tuple(map(float, y)))
