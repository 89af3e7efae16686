"""Which directions of the residual stream carry toxicity, what writes along them, and what happens without them.

Three kinds of evidence, from the weakest to the strongest: a probe can read toxicity off the stream (Alain & Bengio
2016), so it is there; value vectors of the MLPs point along it (Geva et al. 2022; Lee et al. 2024), so the model can
write it; adding or removing it changes what the model says (Arditi et al. 2024), so it is used. Arrays in, arrays out;
whatever a context manager here changes, it puts back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch import Tensor

from rewardlm.errors import ModelError
from rewardlm.interpreting.residual import (
    Batch,
    Layout,
    adapter_layers,
    adapter_row,
    evaluating,
    layout_of,
    normed_direction,
    weight_of,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """A logistic regression on one layer: P(toxic) = σ((x − mean) / spread · weight + bias), Float[M] each."""

    weight: Floats
    bias: float
    mean: Floats
    spread: Floats

    def logits(self, x: Floats) -> Floats:
        """Float[n, M] → Float[n]."""
        found: Floats = (x - self.mean) / self.spread @ self.weight + self.bias
        return found


def fit_probe(x: Floats, toxic: Bools, *, penalty: float = 1.0) -> Probe:
    """The minimum of Σ log-loss + penalty/2·‖weight‖² over standardised features, x Float[n, M], both classes present.

    The penalty makes the solution lie in the span of the n rows, so it is sought there: n numbers instead of M.
    """
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-8 * (np.abs(mean) + 1e-8), spread, 1.0)
    standard = (x - mean) / spread
    left, singular, right = np.linalg.svd(standard, full_matrices=False)
    rows = left * singular
    sign = np.where(toxic, 1.0, -1.0)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weight, bias = parameters[:-1], parameters[-1]
        margin = sign * (rows @ weight + bias)
        pull = -sign * np.exp(-np.logaddexp(0, margin))  # d log(1 + e^-m) / dm = -1 / (1 + e^m)
        value = np.logaddexp(0, -margin).sum() + penalty / 2 * weight @ weight
        return float(value), np.append(rows.T @ pull + penalty * weight, pull.sum())

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return Probe(right.T @ found[:-1], float(found[-1]), mean, spread)


def mean_difference(x: Floats, toxic: Bools) -> Floats:
    """Mean of the toxic rows minus mean of the others, x Float[..., n, M] → Float[..., M] (Marks & Tegmark 2023)."""
    found: Floats = x[..., toxic, :].mean(-2) - x[..., ~toxic, :].mean(-2)
    return found


def toxic_direction(x: Floats, toxic: Bools) -> Floats:
    """The difference of means without its part along the harmless rows' mean, x Float[n, M] → Float[M].

    A stream has a large part that every token shares, in a few dimensions (Sun et al. 2024). Where the two means differ
    along it, they differ in length, and to take that away would take from a model what it needs for any text.
    """
    common = x[~toxic].mean(0)
    common /= max(float(np.linalg.norm(common)), 1e-12)
    difference = mean_difference(x, toxic)
    found: Floats = difference - (difference @ common) * common
    return found


def folds_of(toxic: Bools, groups: Sequence[object], n_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold Int[n] for each row: rows of one group (answers to one prompt) stand together, toxic ones are spread."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    order = list(members.values())
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


@dataclass(frozen=True)
class HeldOut:
    """How well toxicity is read off rows that were not learnt from. ``accuracy`` is balanced: the mean of both
    classes' shares that were told right, 0.5 by guessing. ``auc``: a toxic row's chance to score over another, over
    pairs within one fold."""

    accuracy: float
    auc: float


def held_out(
    x: Floats, toxic: Bools, fold: NDArray[np.int64], score: Callable[[Floats, Bools, Floats], Floats]
) -> HeldOut:
    """Cross-validation: ``score(train, toxic, test)`` gives test rows' scores, over 0 meaning toxic."""
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


def by_probe(train: Floats, toxic: Bools, test: Floats) -> Floats:
    """A score for ``held_out``: the probe's logits."""
    return fit_probe(train, toxic).logits(test)


def by_direction(train: Floats, toxic: Bools, test: Floats) -> Floats:
    """A score for ``held_out``: where along the toxic direction, from the middle between both means."""
    middle = (train[toxic].mean(0) + train[~toxic].mean(0)) / 2
    found: Floats = (test - middle) @ toxic_direction(train, toxic)
    return found


def shuffled(toxic: Bools, groups: Sequence[object], rng: np.random.Generator) -> Bools:
    """Labels dealt again between the groups (answers to one prompt), each group's staying together: a prompt's answers
    are alike, so labels dealt row by row would make chance look smaller than it is. Groups swap with such of their
    size."""
    members: dict[object, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    by_size: dict[int, list[list[int]]] = {}
    for rows in members.values():
        by_size.setdefault(len(rows), []).append(rows)
    found = toxic.copy()
    for alike in by_size.values():
        for rows, source in zip(alike, rng.permutation(len(alike)).tolist(), strict=True):
            found[rows] = toxic[alike[source]]
    return found


def best_of_shuffled(
    layers: Floats,
    toxic: Bools,
    groups: Sequence[object],
    score: Callable[[Floats, Bools, Floats], Floats],
    *,
    n_folds: int,
    number: int,
    seed: int,
) -> list[HeldOut]:
    """What the best layer reaches where labels mean nothing, ``number`` times, by a ``score`` as ``held_out`` takes it.

    ``layers`` Float[L, n, M]. With each shuffling all is done as with the real labels: folds anew, every layer tried,
    and of all layers the best AUC and the best accuracy kept. So the best of the real layers is held against the best
    of chance's, and choosing it is no finding.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        labels = shuffled(toxic, groups, rng)
        fold = folds_of(labels, groups, n_folds, seed)
        each = [held_out(layer, labels, fold, score) for layer in layers]
        found.append(HeldOut(max(one.accuracy for one in each), max(one.auc for one in each)))
    return found


def rank_p_value(real: float, by_chance: Sequence[float]) -> float:
    """How often chance goes as far as the real one, itself counted (Phipson & Smyth 2010): of 20, 1/21 is the least."""
    return float((1 + sum(value >= real for value in by_chance)) / (1 + len(by_chance)))


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
    vocabulary's covariance (see interpreting.residual) that is by how many standard deviations, over the vocabulary, v
    lifts the toxic words above the neutral ones. Tokens are the highest of W_U·(gain ⊙ v), the norm's scale left out.
    """
    layout = layout_of(causal_lm)
    gated = has_gate(layout)
    found: list[tuple[float, int, int, int]] = []
    for layer, module in enumerate(layout.mlp_out):
        rows = weight_of(module)
        if covariance is None:
            size = rows.norm(dim=1) * towards.norm()
        else:
            size = torch.einsum("fm,mn,fn->f", rows, covariance, rows).clamp(min=0).sqrt()
        scores = rows @ towards / size.clamp(min=1e-12)
        best = (scores.abs() if gated else scores).topk(min(number, len(scores))).indices
        for neuron, score in zip(best.tolist(), scores[best].tolist(), strict=True):
            found.append((abs(score), layer, neuron, -1) if gated and score < 0 else (score, layer, neuron, 1))
    w_u = weight_of(layout.head)
    vectors = []
    for score, layer, neuron, sign in sorted(found, reverse=True)[:number]:
        row = sign * weight_of(layout.mlp_out[layer])[neuron]
        tokens = (normed_direction(layout.norm, row) @ w_u).topk(n_tokens).indices
        vectors.append(ValueVector(layer, neuron, sign, score, tuple(tokens.tolist())))
    return vectors


def has_gate(layout: Layout) -> bool:
    """Whether the MLPs multiply by a gate, so that their activations have both signs alike."""
    return hasattr(layout.mlp[0], "gate_proj")


@torch.no_grad()
def vector_rows(causal_lm: Any, vectors: Sequence[ValueVector]) -> Tensor:
    """The value vectors as the model stands, the active adapter's part included and signed: Float[len(vectors), M]."""
    layout = layout_of(causal_lm)
    rows = []
    for vector in vectors:
        module = layout.mlp_out[vector.layer]
        rows.append(vector.sign * (weight_of(module)[vector.neuron] + adapter_row(module, vector.neuron)))
    return torch.stack(rows)


def activations_of(neurons: Tensor, vectors: Sequence[ValueVector]) -> Tensor:
    """Signed activations of value vectors, from a trace's ``neurons`` Float[L, N, F]: Float[N, len(vectors)]."""
    return torch.stack([vector.sign * neurons[vector.layer, :, vector.neuron] for vector in vectors], -1)


@contextlib.contextmanager
def added(causal_lm: Any, layer: int, vector: Tensor) -> Iterator[None]:
    """Inside, ``vector`` Float[M] is added to what layer ``layer`` reads, at every position (L is the final norm).

    Arditi et al. 2024, eq. 3; Turner et al. 2023.
    """
    layout = layout_of(causal_lm)
    modules = [*layout.layers, layout.norm]
    if not 0 <= layer < len(modules):
        raise ModelError(f"layer {layer}: expected 0 to {len(modules) - 1}, the last being the final norm")

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + vector.to(args[0]), *args[1:]), kwargs
        states = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": states + vector.to(states)}

    handle = modules[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def ablated(causal_lm: Any, direction: Tensor) -> Iterator[None]:
    """Inside, nothing is ever written along ``direction`` Float[M]: x ← x − (x·d̂)·d̂ for the embedding and the output
    of every attention and MLP (Arditi et al. 2024, eq. 4). The stream then has no part along it, at any layer."""
    layout = layout_of(causal_lm)
    unit = direction / direction.norm()

    def without(states: Tensor) -> Tensor:
        along = unit.to(states)
        rest: Tensor = states - torch.einsum("...m,m->...", states, along)[..., None] * along
        return rest

    def reads(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": without(kwargs["hidden_states"])}

    def writes(module: Any, args: Any, output: Tensor) -> Tensor:
        return without(output)

    with contextlib.ExitStack() as stack:
        stack.callback(layout.layers[0].register_forward_pre_hook(reads, with_kwargs=True).remove)
        for module in (*layout.attention_out, *layout.mlp_out):
            stack.callback(module.register_forward_hook(writes).remove)
        yield


PATH_GAP = 0.05
MOST_PATH_STEPS = 64


@dataclass(frozen=True)
class PathShares:
    """What an adapter's modules contribute to an effect: ``by_module`` sums to ``after`` − ``before``, but for what is
    ``missing``. ``by_layer`` Float[L] are their sums, those outside of all layers left out. ``steps`` points were read.
    """

    before: float
    after: float
    by_module: dict[str, float]
    by_layer: Floats
    steps: int

    @property
    def missing(self) -> float:
        return self.after - self.before - sum(self.by_module.values())

    @property
    def adds_up(self) -> bool:
        """Whether at most 5 % of the effect is missing: of other shares it can't be said whose they are."""
        return abs(self.missing) <= PATH_GAP * abs(self.after - self.before)


def path_shares(causal_lm: Any, effect: Callable[[], Tensor], *, steps: int) -> PathShares:
    """Integrated gradients over the adapter's scale (Sundararajan et al. 2017, with modules in place of pixels).

    With E(s) the effect where module i's B·A is multiplied by s_i, module i's share is ∫₀¹ ∂E/∂s_i (t, …, t) dt, taken
    at ``steps`` Gauss-Legendre points. Shares add up to E(1, …, 1) − E(0, …, 0), which switching modules off one by one
    doesn't do. Where they miss it by more than 5 %, twice as many points are read, and so on while they are at most
    64; see ``adds_up``. ``effect()`` runs the model as it stands and gives a scalar with its graph. One backward pass a
    point.

    Raises ModelError where no adapter is on.
    """
    layers = adapter_layers(causal_lm)
    layers = {name: layer for name, layer in layers.items() if any(a in layer.scaling for a in layer.active_adapters)}
    if not layers:
        raise ModelError("no adapter is on: its modules have no shares in anything")
    found = {name: dict(layer.scaling) for name, layer in layers.items()}
    device = next(causal_lm.parameters()).device

    def at(t: float) -> Tensor:
        scale = torch.full((len(layers),), t, device=device, requires_grad=True)
        for index, (name, layer) in enumerate(layers.items()):
            for adapter in layer.scaling:
                layer.scaling[adapter] = found[name][adapter] * scale[index]
        return scale

    def integral(steps: int) -> dict[str, float]:
        total = torch.zeros(len(layers), dtype=torch.float64)
        for point, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True):
            with torch.enable_grad():
                scale = at(float(point + 1) / 2)
                (gradient,) = torch.autograd.grad(effect(), scale)
            total += float(weight) / 2 * gradient.double().cpu()
        return dict(zip(layers, total.tolist(), strict=True))

    layout = layout_of(causal_lm)
    try:
        with evaluating(causal_lm):
            with torch.no_grad():
                at(0.0)
                before = float(effect())
                for name, layer in layers.items():
                    layer.scaling.update(found[name])
                after = float(effect())
            while True:
                by_module = integral(steps)
                shares = PathShares(
                    before, after, by_module, np.array(_sums(layout, causal_lm, by_module)), steps=steps
                )
                if shares.adds_up or 2 * steps > MOST_PATH_STEPS:
                    return shares
                steps *= 2
    finally:
        for name, layer in layers.items():
            layer.scaling.update(found[name])


def _sums(layout: Layout, causal_lm: Any, by_module: Mapping[str, float]) -> list[float]:
    paths = {id(module): name for name, module in causal_lm.named_modules()}
    prefixes = [f"{paths[id(layer)]}." for layer in layout.layers]
    return [sum(share for name, share in by_module.items() if name.startswith(prefix)) for prefix in prefixes]


def fewest_layers(shares: Sequence[float], share: float = 0.8) -> int:
    """The fewest layers whose shares add up to ``share`` of the whole effect; all of them if the effect is 0 or they
    never do."""
    whole = float(np.sum(shares))
    if whole == 0:
        return len(shares)
    reached = np.cumsum(np.sort(np.asarray(shares) / whole)[::-1]) >= share
    return int(np.argmax(reached)) + 1 if reached.any() else len(shares)


def mean_logprob(causal_lm: Any, batch: Batch) -> Tensor:
    """The mean log-probability (nats) of each row's response tokens, Float[B], with its graph."""
    layout = layout_of(causal_lm)
    states = layout.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0][batch.where]
    logprobs = layout.head(states).float().log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    n_rows = batch.tokens.shape[0]
    sums = logprobs.new_zeros(n_rows).index_add(0, batch.row, logprobs)
    means: Tensor = sums / torch.bincount(batch.row, minlength=n_rows).clamp(min=1)
    return means
