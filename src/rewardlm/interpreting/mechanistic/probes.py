"""Can toxicity be read off the residual stream? Linear probes and the toxic direction, layer by layer, against chance.

A probe that reads toxicity shows that it is there (Alain & Bengio 2016), and not that the model uses it:
``causal_check`` asks that. Functions take and give arrays; ``read_directions`` runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE, LabelledAnswer
from rewardlm.interpreting.findings import BestOfShuffled, Directions, Shuffled
from rewardlm.interpreting.mechanistic.activations import BaseText, read_by
from rewardlm.models.architecture import architecture_of
from rewardlm.models.logprobs import pieces
from rewardlm.models.lora import using
from rewardlm.readouts import (
    HeldOut,
    Readout,
    by_direction,
    by_probe,
    folds_of,
    held_out_by_layer,
    rows_by_group,
    toxic_direction,
)
from rewardlm.stats import BoolArray, FloatArray, rank_p_value


def shuffled(toxic: BoolArray, groups: Sequence[object], rng: np.random.Generator) -> BoolArray:
    """Labels shuffled between groups (answers to one prompt) of equal size; a group's labels stay together. A prompt's
    answers are alike, so labels shuffled row by row would make chance look smaller than it is."""
    by_size: dict[int, list[list[int]]] = {}
    for rows in rows_by_group(groups):
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
    """What the best layer reaches where labels mean nothing, ``number`` times, by a ``score`` as ``held_out_by_layer``
    takes it.

    ``layers`` Float[L, n, M]. Each shuffling is treated as the true labels are: new folds, every layer tried, and the
    best AUC and the best accuracy of all layers kept. So the best true layer is compared with the best by chance, and
    choosing the best is no finding.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        labels = shuffled(toxic, groups, rng)
        fold = folds_of(labels, groups, n_folds, seed)
        each = held_out_by_layer(layers, labels, fold, score)
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
    of_probe, of_mean = (held_out_by_layer(x, toxic, fold, score) for score in (by_probe, by_direction))
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
    arch = architecture_of(policy.causal_lm)
    pooled: dict[int, Tensor] = {}
    with using(policy, None):
        for rows in pieces(policy.causal_lm, prompts, responses, batch_tokens):
            reads = read_by(policy.causal_lm, [*arch.layers, arch.norm], prompts, responses, rows)
            own = torch.stack(reads).split_with_sizes([len(responses[row]) for row in rows], 1)
            pooled |= {row: stream.mean(1).double().cpu() for row, stream in zip(rows, own, strict=True)}
    return torch.stack([pooled[row] for row in range(len(readings))], 1).numpy()
