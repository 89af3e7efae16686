"""Can toxicity be read off the residual stream? Linear probes and the toxic direction, layer by layer, against chance.

A probe that reads toxicity shows that it is there (Alain & Bengio 2016), and not that the model uses it:
``causal_check`` asks that. Functions take and give arrays; ``read_directions`` runs the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE, LabelledAnswer
from rewardlm.interpreting.findings import BestOfShuffled, Directions, Shuffled
from rewardlm.interpreting.intervals import rank_p_value
from rewardlm.interpreting.mechanistic.activations import BaseText, batches, trace
from rewardlm.models.lora import using
from rewardlm.stats import BoolArray, FloatArray

# (train [n, M], toxic [n], test [m, M]) → a score of each test row, over 0 meaning toxic.
Readout = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class Probe:
    """A logistic regression on one layer: P(toxic) = σ((x − mean) / spread · weight + bias), Float[M] each."""

    weight: FloatArray
    bias: float
    mean: FloatArray
    spread: FloatArray

    def logits(self, x: FloatArray) -> FloatArray:
        """Float[n, M] → Float[n]."""
        found: FloatArray = (x - self.mean) / self.spread @ self.weight + self.bias
        return found


def fit_probe(x: FloatArray, toxic: BoolArray, *, penalty: float = 1.0) -> Probe:
    """The minimum of Σ log-loss + penalty/2·‖weight‖² over standardised features, x Float[n, M], both classes present.

    The penalty makes the solution lie in the span of the n rows, so it is sought there: n numbers instead of M.
    """
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-8 * (np.abs(mean) + 1e-8), spread, 1.0)
    standard = (x - mean) / spread
    left, singular, right = np.linalg.svd(standard, full_matrices=False)
    rows = left * singular
    sign = np.where(toxic, 1.0, -1.0)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        weight, bias = parameters[:-1], parameters[-1]
        margin = sign * (rows @ weight + bias)
        pull = -sign * np.exp(-np.logaddexp(0, margin))  # d log(1 + e^-m) / dm = -1 / (1 + e^m)
        value = np.logaddexp(0, -margin).sum() + penalty / 2 * weight @ weight
        return float(value), np.append(rows.T @ pull + penalty * weight, pull.sum())

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Probe(right.T @ found[:-1], float(found[-1]), mean, spread)


def mean_difference(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """Mean of the toxic rows minus mean of the others, x Float[..., n, M] → Float[..., M] (Marks & Tegmark 2023)."""
    found: FloatArray = x[..., toxic, :].mean(-2) - x[..., ~toxic, :].mean(-2)
    return found


def toxic_direction(x: FloatArray, toxic: BoolArray) -> FloatArray:
    """The difference of means without its part along the harmless rows' mean, x Float[n, M] → Float[M].

    A stream has a large part that all tokens share, in a few dimensions (Sun et al. 2024). Along it the two means
    differ only in length, and ablating it would take from the model what it needs for any text.
    """
    common = x[~toxic].mean(0)
    common /= max(float(np.linalg.norm(common)), 1e-12)
    difference = mean_difference(x, toxic)
    found: FloatArray = difference - (difference @ common) * common
    return found


def folds_of(toxic: BoolArray, groups: Sequence[object], n_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold Int[n] for each row: rows of one group (answers to one prompt) stand together, toxic ones are spread."""
    order = _rows_by_group(groups)
    np.random.default_rng(seed).shuffle(order)
    fold = np.zeros(len(toxic), dtype=np.int64)
    counts = np.zeros((n_folds, 2), dtype=np.int64)
    # The groups with most toxic rows first, each to the fold that has fewest such rows, then fewest rows.
    for rows in sorted(order, key=lambda rows: -int(toxic[rows].sum())):
        n_toxic = int(toxic[rows].sum())
        first, second = (counts[:, 0], counts.sum(1)) if n_toxic else (counts.sum(1), counts[:, 0])
        chosen = int(np.lexsort((second, first))[0])
        fold[rows] = chosen
        counts[chosen] += (n_toxic, len(rows) - n_toxic)
    return fold


def _rows_by_group(groups: Sequence[object]) -> list[list[int]]:
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return list(members.values())


@dataclass(frozen=True)
class HeldOut:
    """How well toxicity is read off rows that were not learnt from. ``accuracy`` is balanced: the mean of both
    classes' shares that were told right, 0.5 by guessing. ``auc``: a toxic row's chance to score over another, over
    pairs within one fold."""

    accuracy: float
    auc: float


def held_out(x: FloatArray, toxic: BoolArray, fold: NDArray[np.int64], score: Readout) -> HeldOut:
    """Cross-validation over the folds."""
    right: list[tuple[bool, bool]] = []
    aucs: list[tuple[float, int]] = []
    for number in np.unique(fold):
        test = fold == number
        if len(np.unique(toxic[~test])) < 2:
            continue
        scores = score(x[~test], toxic[~test], x[test])
        right += zip(toxic[test].tolist(), ((scores > 0) == toxic[test]).tolist(), strict=True)
        n_toxic, n_other = int(toxic[test].sum()), int((~toxic[test]).sum())
        if n_toxic and n_other:
            above = rankdata(scores)[toxic[test]].sum() - n_toxic * (n_toxic + 1) / 2
            aucs.append((above / (n_toxic * n_other), n_toxic * n_other))
    share = [np.mean([told for is_toxic, told in right if is_toxic is kind]) for kind in (True, False)]
    return HeldOut(float(np.mean(share)), float(np.average([a for a, _ in aucs], weights=[n for _, n in aucs])))


def by_probe(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: the probe's logits."""
    return fit_probe(train, toxic).logits(test)


def by_direction(train: FloatArray, toxic: BoolArray, test: FloatArray) -> FloatArray:
    """A readout: where along the toxic direction, from the middle between both means."""
    middle = (train[toxic].mean(0) + train[~toxic].mean(0)) / 2
    found: FloatArray = (test - middle) @ toxic_direction(train, toxic)
    return found


def shuffled(toxic: BoolArray, groups: Sequence[object], rng: np.random.Generator) -> BoolArray:
    """Labels shuffled between groups (answers to one prompt) of equal size; a group's labels stay together. A prompt's
    answers are alike, so labels shuffled row by row would make chance look smaller than it is."""
    by_size: dict[int, list[list[int]]] = {}
    for rows in _rows_by_group(groups):
        by_size.setdefault(len(rows), []).append(rows)
    found = toxic.copy()
    for alike in by_size.values():
        for rows, source in zip(alike, rng.permutation(len(alike)).tolist(), strict=True):
            found[rows] = toxic[alike[source]]
    return found


def best_of_shuffled(
    layers: FloatArray,
    toxic: BoolArray,
    groups: Sequence[object],
    score: Readout,
    *,
    n_folds: int,
    number: int,
    seed: int,
) -> list[HeldOut]:
    """What the best layer reaches where labels mean nothing, ``number`` times, by a ``score`` as ``held_out`` takes it.

    ``layers`` Float[L, n, M]. Each shuffling is treated as the true labels are: new folds, every layer tried, and the
    best AUC and the best accuracy of all layers kept. So the best true layer is compared with the best by chance, and
    choosing the best is no finding.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        labels = shuffled(toxic, groups, rng)
        fold = folds_of(labels, groups, n_folds, seed)
        each = [held_out(layer, labels, fold, score) for layer in layers]
        found.append(HeldOut(max(one.accuracy for one in each), max(one.auc for one in each)))
    return found


def read_directions(text: BaseText, labelled: Sequence[LabelledAnswer]) -> tuple[Directions, Tensor | None]:
    """Probe and toxic direction on every layer of the base's stream, averaged over each response's positions.

    They are learnt from the base's answers and from what is ``labelled``. A tuned model's harmless answers would teach
    the opposite: on them the base's stream says what the base would have answered.

    The direction Float[M], not normed, is that of the layer where it tells held-out answers apart best (see
    ``toxic_direction``). None, with the reason, where either class has fewer answers than there are folds.
    """
    settings = text.settings
    readings: list[LabelledAnswer] = [
        (text.prompts[row], text.base.responses[row], toxicity)
        for row in text.answered
        if (toxicity := text.base.toxicity[row]) is not None
    ]
    readings += [reading for reading in labelled if reading[1]]
    readings = list({(tuple(p), tuple(r)): (p, r, t) for p, r, t in readings}.values())
    chosen = _balanced([toxicity > TOXIC_ABOVE for _, _, toxicity in readings], settings)
    toxic = np.array([readings[index][2] > TOXIC_ABOVE for index in chosen], dtype=bool)
    groups = [tuple(readings[index][0]) for index in chosen]
    n_toxic, n_other = int(toxic.sum()), int((~toxic).sum())
    if min(n_toxic, n_other, len({g for g, t in zip(groups, toxic, strict=True) if t})) < settings.probe_folds:
        reason = (
            f"{n_toxic} toxic and {n_other} other answers to different prompts could be read, and "
            f"{settings.probe_folds} folds need as many of each"
        )
        return Directions(n=len(chosen), n_toxic=n_toxic, reason=reason), None
    x = _pooled(text, [readings[index] for index in chosen])
    fold = folds_of(toxic, groups, settings.probe_folds, settings.seed)
    of_probe = [held_out(layer, toxic, fold, by_probe) for layer in x]
    of_mean = [held_out(layer, toxic, fold, by_direction) for layer in x]
    best = int(np.argmax([held.auc for held in of_mean[1:]])) + 1
    probe_chance, mean_chance = (
        best_of_shuffled(
            x[1:], toxic, groups, score, n_folds=settings.probe_folds, number=settings.shuffles, seed=settings.seed
        )
        for score in (by_probe, by_direction)
    )
    difference = toxic_direction(x[best], toxic)
    found = Directions(
        n=len(chosen),
        n_toxic=n_toxic,
        reason=None,
        layer=best,
        folds=settings.probe_folds,
        probe_accuracy=[held.accuracy for held in of_probe],
        probe_auc=[held.auc for held in of_probe],
        mean_accuracy=[held.accuracy for held in of_mean],
        mean_auc=[held.auc for held in of_mean],
        majority=float(max(toxic.mean(), 1 - toxic.mean())),
        shuffled=Shuffled(
            number=settings.shuffles,
            probe=_against_chance(of_probe, probe_chance),
            mean=_against_chance(of_mean, mean_chance),
        ),
        # The best layer's, as the best layer's of the true labels is what one looks at.
        shuffled_accuracy=float(np.mean([one.accuracy for one in probe_chance])),
        length=float(np.linalg.norm(difference)),
        stream_length=float(np.linalg.norm(x[best], axis=-1).mean()),
    )
    return found, torch.tensor(difference, dtype=torch.float32, device=text.policy.device)


def _against_chance(by_layer: Sequence[HeldOut], by_chance: Sequence[HeldOut]) -> BestOfShuffled:
    """The best layer's AUC, the embedding left out, among those of shuffled labels."""
    aucs = [one.auc for one in by_chance]
    return BestOfShuffled(auc=aucs, p_value=rank_p_value(max(held.auc for held in by_layer[1:]), aucs))


def _balanced(toxic: Sequence[bool], settings: InsideSettings) -> list[int]:
    """At most ``probe_answers`` indices drawn by the seed, half of them toxic where there are so many."""
    order = np.random.default_rng(settings.seed).permutation(len(toxic)).tolist()
    kinds = [[index for index in order if toxic[index] is kind] for kind in (True, False)]
    half = settings.probe_answers // 2
    n_toxic = min(len(kinds[0]), max(half, settings.probe_answers - len(kinds[1])))
    return sorted(kinds[0][:n_toxic] + kinds[1][: settings.probe_answers - n_toxic])


def _pooled(text: BaseText, readings: Sequence[LabelledAnswer]) -> FloatArray:
    """The base's stream averaged over each response's positions: Float[L+1, n, M]."""
    policy, batch_tokens = text.policy, text.settings.batch_tokens
    prompts, responses = [r[0] for r in readings], [r[1] for r in readings]
    pooled: dict[int, Tensor] = {}
    with using(policy, None):
        for rows, batch in batches(policy, prompts, responses, range(len(readings)), batch_tokens):
            stream = trace(policy.causal_lm, batch).stream
            for index, row in enumerate(rows):
                pooled[row] = stream[:, batch.row == index].mean(1).double().cpu()
    return torch.stack([pooled[row] for row in range(len(readings))], 1).numpy()
