"""Make a judge's probabilities mean what they say: of the texts that get 0.7, seven in ten should be toxic.

Temperature (Guo et al. 2017, arXiv 1706.04599) and Platt scaling (Platt 1999) are linear in the logit, so they are
folded into the head: any other tool that loads the judge gets them. Isotonic regression (Zadrozny
and Elkan 2002; centred: Oron and Flournoy 2017, Statistics in Biopharmaceutical Research 9) is not linear. It comes
after Platt scaling, and only our own scorer applies it; other tools still get the Platt scaling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from rewardlm.scoring.record import Calibration

Floats = NDArray[np.floating[Any]]

# Fewer texts than this say too little about how sure a judge should be.
MINIMUM = 50
# With fewer texts, a source's share of positives is uncertain by more than 0.05, the calibration error aimed for.
SOURCE_MINIMUM = 100
# With fewer texts, a free curve follows their noise.
ISOTONIC_MINIMUM = 500


def text_weights(sources: Sequence[str], targets: Floats, *, evenly: bool) -> Floats:
    """Float[N]: the weight of each text when a label is calibrated; 0 where its source is left out.

    A source with one class (only hate, say) would teach that being sure is always right, and a source with few texts
    would count for too much. Both are left out, unless there is no other source. With ``evenly``, the remaining sources
    weigh the same, because nobody knows which of them a user's texts resemble. Without it, the remaining texts do.

    Args:
        sources: the source of each text, N of them.
        targets: Float[N], probabilities or 0 and 1.
    """
    names = np.asarray(sources)
    telling = {}
    for name in np.unique(names):
        own = targets[names == name]
        if len(own) >= SOURCE_MINIMUM and (own < 0.5).any() and (own >= 0.5).any():
            telling[name] = len(own)
    counts = telling or {name: int((names == name).sum()) for name in np.unique(names)}
    return np.asarray([(1 / counts[name] if evenly else 1.0) if name in counts else 0.0 for name in names])


def fit(kind: str, logits: Floats, targets: Floats, weights: Floats, *, shift: bool = True) -> Calibration | None:
    """The calibration of one label by maximum likelihood.

    None where fewer than ``MINIMUM`` texts count, or all have the same target; probabilities then stay as they are.

    Args:
        kind: temperature, platt or isotonic. Isotonic is platt, then a curve if ``ISOTONIC_MINIMUM`` texts count.
        logits: Float[N].
        targets: Float[N], probabilities or 0 and 1.
        weights: Float[N], not negative.
        shift: whether the linear part may have a shift.
    """
    counts = weights > 0
    logits, targets, weights = logits[counts], targets[counts], weights[counts]
    if len(logits) < MINIMUM or np.ptp(targets) == 0:
        return None

    def loss(parameters: Floats) -> float:
        z = np.exp(parameters[0]) * logits + (parameters[1] if shifts else 0.0)
        return float(-np.average(targets * log_expit(z) + (1 - targets) * log_expit(-z), weights=weights))

    shifts = shift and kind != "temperature"
    options = {"xatol": 1e-5, "fatol": 1e-9, "maxiter": 2000}
    found = minimize(loss, np.zeros(1 + shifts), method="Nelder-Mead", options=options).x
    linear = Calibration(
        "platt" if shifts else "temperature", float(np.exp(found[0])), float(found[1]) if shifts else 0.0
    )
    if kind != "isotonic" or len(logits) < ISOTONIC_MINIMUM:
        return linear
    x, y = _isotonic(expit(linear.scale * logits + linear.shift), targets, weights)
    return replace(linear, kind="isotonic", x=x, y=y)


def fold(head: Any, labels: Sequence[str], calibrations: Mapping[str, Calibration]) -> None:
    """Fold the linear part into ``head``, a torch Linear with one output per label. A shift needs a bias in it."""
    for row, label in enumerate(labels):
        found = calibrations.get(label)
        if found is None:
            continue
        head.weight.data[row] *= found.scale
        if head.bias is not None:
            head.bias.data[row] = head.bias.data[row] * found.scale + found.shift
        elif found.shift:
            raise ValueError(f"{label}: a head without a bias has no place for the shift {found.shift}")


def _isotonic(probabilities: Floats, targets: Floats, weights: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Pool adjacent violators, and a line through the pools' centres (centred isotonic regression).

    Steps would give texts with different scores the same probability, which costs ranking and leaves RL no slope to
    climb. The line ends at (0, 0) and (1, 1).

    An outermost pool may hold one class only. A probability of 0 or 1 would be an even worse reward, because the reward
    is the logit. So such a pool is no surer than the median of Jeffreys's posterior for as many texts of one class (a
    median stays one in logits), and no less sure than its neighbour.
    """
    from scipy.optimize import isotonic_regression
    from scipy.stats import beta

    # Equal probabilities are one point: which of them comes first must not matter.
    points, where = np.unique(probabilities, return_inverse=True)
    mass = np.bincount(where, weights)
    fitted = isotonic_regression(np.bincount(where, weights * targets) / mass, weights=mass)
    starts = fitted.blocks[:-1]
    pooled = np.add.reduceat(mass, starts)
    texts = pooled**2 / np.add.reduceat(np.bincount(where, weights**2), starts)  # effective numbers
    x = (np.add.reduceat(mass * points, starts) / pooled).tolist()
    y = fitted.x[starts].tolist()
    y[0] = max(y[0], min([beta.median(0.5, texts[0] + 0.5), *y[1:2]]))
    y[-1] = min(y[-1], max([1 - beta.median(0.5, texts[-1] + 0.5), *y[-2:-1]]))
    if x[0] > 0:
        x, y = [0.0, *x], [0.0, *y]
    if x[-1] < 1:
        x, y = [*x, 1.0], [*y, 1.0]
    return tuple(x), tuple(y)
