"""How much of an adapter's effect the MLPs' neurons carry, group by group, and what that says of toxicity.

A neuron writes its activation times its **value vector**, a row of the MLP's output matrix. Lee et al. 2024 found that
DPO leaves the toxic value vectors and sets them off less; Yang et al. 2024 (arXiv:2411.06424) that this explains
little, and that four large groups of neurons carry the effect together. Here groups are formed by two signs: does the
value vector point towards the toxic words, and did training raise or lower the activation?

A group's **share** is what is found by patching: with the tuned model's activations of this group alone put into the
base, how much of the whole change of preference comes about (``into``)? And with the base's put into the tuned model,
how much of it is lost (``out_of``)? Shares of groups need not add up to 1, because parts act together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from rewardlm.config import CausesSettings
from rewardlm.interpreting.causes.pairs import JudgedPair, pair_batches
from rewardlm.interpreting.causes.patching import change_over_pairs
from rewardlm.interpreting.causes.sites import Patch, Recorded, by_itself, record, with_patch
from rewardlm.interpreting.findings import CausalVerdict, Estimate, GroupName, NeuronGroup, ShareOfChange, TopNeuron
from rewardlm.interpreting.intervals import shown
from rewardlm.interpreting.mechanistic.activations import mean_logprob
from rewardlm.interpreting.mechanistic.value_vectors import ratio_of_means
from rewardlm.models.architecture import adapter_layers, architecture_of, normed_direction, weight_of
from rewardlm.models.attention import whole_weight
from rewardlm.models.load import Policy
from rewardlm.models.lora import scaled, using
from rewardlm.stats import FloatArray

GROUPS: tuple[GroupName, ...] = ("toxic_down", "toxic_up", "against_up", "against_down")


def neuron_groups(
    policy: Policy,
    adapter: str,
    pairs: Sequence[JudgedPair],
    towards: Tensor,
    named: Sequence[tuple[int, int]],
    settings: CausesSettings,
) -> tuple[list[NeuronGroup], CausalVerdict]:
    """The groups' shares, and the verdict. ``towards`` Float[M] points to the toxic words (``contrast_direction``);
    ``named`` are (layer, neuron) of the value vectors that do so most.
    """
    causal_lm = policy.causal_lm
    groups: dict[GroupName, dict[int, Tensor]] = {
        "named": _by_layer(named),
        **_by_signs(policy, adapter, pairs, towards, settings.batch_tokens),
    }
    groups["all"] = {
        layer: torch.arange(len(weight_of(out))) for layer, out in enumerate(architecture_of(causal_lm).mlp_out)
    }
    before, after, into, out_of = _shares(policy, adapter, pairs, groups, settings.batch_tokens)
    change = after - before
    rows = []
    for name in into:
        which = groups.get(name)
        rows.append(
            NeuronGroup(
                name=name,
                neurons=None if which is None else sum(len(one) for one in which.values()),
                into=share_of_change(change, into[name]),
                out_of=share_of_change(change, out_of[name]),
                effect=float(into[name].mean()),
                lost=float(out_of[name].mean()),
            )
        )
    whole = change_over_pairs(change, settings)
    vectors = next(row.out_of for row in rows if row.name == "vectors")
    return rows, causal_verdict(whole, vectors, settings, touched=bool(_on_value_vectors(causal_lm, adapter)))


def causal_verdict(
    change: Estimate, vectors: ShareOfChange | None, settings: CausesSettings, *, touched: bool = True
) -> CausalVerdict:
    """``unlearned`` if most of the change is lost once the MLPs' output matrices are the base's again: then what the
    value vectors write was changed. ``bypassed`` if hardly any of it is: they could write as before, and something else
    keeps the model from it. The margins are ``carries`` and ``carries_little`` of the settings; the share's whole
    interval must lie beyond them. ``cannot_tell`` in between, ``unclear`` where the preference wasn't shown to rise.
    An adapter that hasn't ``touched`` these matrices can't have unlearned anything.
    """

    def says(kind: str, reason: str) -> CausalVerdict:
        return CausalVerdict(
            kind=kind,  # type: ignore[arg-type]
            reason=reason,
            change=change,
            vectors=vectors,
            carries=settings.carries,
            carries_little=settings.carries_little,
        )

    if not shown(change, 1):
        return says("unclear", "the preference for the harmless answers was not shown to rise on these pairs")
    if not touched:
        return says("bypassed", "the adapter leaves the MLPs’ output matrices, and so all value vectors, as they were")
    if vectors is None:
        return says("cannot_tell", "the rise is too unsteady for shares of it")
    low, high = vectors.ci95
    mean, ends = f"{100 * vectors.mean:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"
    share = f"{mean} of the rise (95 % interval {ends})"
    if low > settings.carries:
        return says("unlearned", f"{share} is lost once the MLPs write by the base’s value vectors again")
    if high < settings.carries_little:
        return says("bypassed", f"only {share} is lost once the MLPs write by the base’s value vectors again")
    return says("cannot_tell", f"{share} is lost with the base’s value vectors: neither most of it nor hardly any")


def top_neurons(
    policy: Policy, adapter: str, pairs: Sequence[JudgedPair], *, number: int, batch_tokens: int
) -> list[TopNeuron]:
    """The neurons at which the adapter, by itself, raises or lowers the preference most, estimated from the gradient at
    the base: (a'·v' − a·v)·∂E/∂write, with activations a and value vectors v.
    """
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    with using(policy, None):
        rows = [weight_of(out) for out in arch.mlp_out]
    with using(policy, adapter):
        new_rows = [whole_weight(out) for out in arch.mlp_out]
    total = [torch.zeros(len(one)) for one in rows]
    for piece in pair_batches(pairs, policy.device, batch_tokens):
        with using(policy, None):
            base = record(causal_lm, piece.batch, gradients=True)
            at = torch.autograd.grad(piece.preference(base.logprobs).sum(), base.mlp)
        with using(policy, adapter):
            alone = by_itself(causal_lm, base)
        with torch.no_grad():
            for layer, gradient in enumerate(at):
                slope = gradient.reshape(*piece.batch.tokens.shape, -1).float() * piece.batch.mask[..., None]
                now = alone.neurons[layer] * torch.einsum("btm,fm->btf", slope, new_rows[layer])
                was = base.neurons[layer] * torch.einsum("btm,fm->btf", slope, rows[layer])
                total[layer] += (now - was).sum((0, 1)).cpu()
    by_neuron = torch.stack(total) / len(pairs)
    width = by_neuron.shape[1]
    w_u = weight_of(arch.head)
    found = []
    for place in by_neuron.flatten().abs().topk(number).indices.tolist():
        layer, neuron = divmod(place, width)
        tokens = (normed_direction(arch.norm, rows[layer][neuron]) @ w_u).topk(6).indices.tolist()
        found.append(
            TopNeuron(
                layer=layer,
                neuron=neuron,
                estimate=float(by_neuron[layer, neuron]),
                tokens=[] if policy.tokenizer is None else [policy.tokenizer.decode([token]) for token in tokens],
            )
        )
    return found


def _by_layer(neurons: Sequence[tuple[int, int]]) -> dict[int, Tensor]:
    found: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        found.setdefault(layer, []).append(neuron)
    return {layer: torch.tensor(own) for layer, own in found.items()}


@torch.no_grad()
def _by_signs(
    policy: Policy, adapter: str, pairs: Sequence[JudgedPair], towards: Tensor, batch_tokens: int
) -> dict[GroupName, dict[int, Tensor]]:
    """The four groups, by layer. Activations are means over the answers' positions; a neuron that is set off as before
    is in none."""
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    n = len(arch.layers)
    sums: dict[str | None, list[Tensor]] = {
        name: [torch.zeros(len(weight_of(out))) for out in arch.mlp_out] for name in (None, adapter)
    }
    for piece in pair_batches(pairs, policy.device, batch_tokens):
        where = piece.kinds[..., -1].bool()
        for name, total in sums.items():
            with using(policy, name):
                seen = record(causal_lm, piece.batch)
            for layer in range(n):
                total[layer] += seen.neurons[layer][where].float().sum(0).cpu()
    groups: dict[GroupName, dict[int, Tensor]] = {name: {} for name in GROUPS}
    for layer, out in enumerate(arch.mlp_out):
        with using(policy, None):
            toxic = (weight_of(out) @ towards > 0).cpu()
        now, was = sums[adapter][layer], sums[None][layer]
        rose, fell = now > was, now < was
        for name, which in zip(GROUPS, (toxic & fell, toxic & rose, ~toxic & rose, ~toxic & fell), strict=True):
            groups[name][layer] = which.nonzero()[:, 0]
    return groups


@torch.no_grad()
def _shares(
    policy: Policy,
    adapter: str,
    pairs: Sequence[JudgedPair],
    groups: dict[GroupName, dict[int, Tensor]],
    batch_tokens: int,
) -> tuple[FloatArray, FloatArray, dict[GroupName, FloatArray], dict[GroupName, FloatArray]]:
    """E of base and tuned model, Float[N pairs] each, and by group how far E rises and falls, Float[N] each.

    Besides the groups there are ``attention``, all that heads write, and ``vectors``: the adapter on the MLPs' output
    matrices alone, or everywhere else.
    """
    causal_lm = policy.causal_lm
    arch = architecture_of(causal_lm)
    heads = {layer: list(range(arch.n_heads)) for layer in range(len(arch.layers))}
    of_vectors = _on_value_vectors(causal_lm, adapter)
    layers = [layer for layer in adapter_layers(causal_lm).values() if adapter in layer.scaling]
    others = [layer for layer in layers if not any(layer is one for one in of_vectors)]
    names: list[GroupName] = [*groups, "attention", "vectors"]
    before, after = np.zeros(len(pairs)), np.zeros(len(pairs))
    into = {name: np.zeros(len(pairs)) for name in names}
    out_of = {name: np.zeros(len(pairs)) for name in names}
    for piece in pair_batches(pairs, policy.device, batch_tokens):

        def numbers(logprobs: Tensor, piece: Any = piece) -> FloatArray:
            found: FloatArray = piece.preference(logprobs).double().cpu().numpy()
            return found

        with using(policy, None):
            base = record(causal_lm, piece.batch)
        with using(policy, adapter):
            tuned = record(causal_lm, piece.batch)
        before[piece.rows], after[piece.rows] = numbers(base.logprobs), numbers(tuned.logprobs)

        def patch(donor: Recorded, name: GroupName) -> Patch:
            return Patch(donor, heads=heads) if name == "attention" else Patch(donor, neurons=groups[name])

        for name in names[:-1]:
            with using(policy, None):
                rise = with_patch(causal_lm, piece.batch, base, patch(tuned, name)) - base.logprobs
            with using(policy, adapter):
                fall = tuned.logprobs - with_patch(causal_lm, piece.batch, tuned, patch(base, name))
            into[name][piece.rows], out_of[name][piece.rows] = numbers(rise), numbers(fall)
        with using(policy, adapter), scaled(others, 0.0):
            alone = mean_logprob(causal_lm, piece.batch)
        with using(policy, adapter), scaled(of_vectors, 0.0):
            without = mean_logprob(causal_lm, piece.batch)
        into["vectors"][piece.rows] = numbers(alone - base.logprobs)
        out_of["vectors"][piece.rows] = numbers(tuned.logprobs - without)
    return before, after, into, out_of


def _on_value_vectors(causal_lm: Any, adapter: str) -> list[LoraLayer]:
    """The adapter's layers on the MLPs' output matrices."""
    layers = [layer for out in architecture_of(causal_lm).mlp_out for layer in adapter_layers(out).values()]
    return [layer for layer in layers if adapter in layer.scaling]


def share_of_change(change: FloatArray, part: FloatArray) -> ShareOfChange | None:
    """mean(part) / mean(change) over the same prompts, Float[N] each, with Fieller's interval; None where the change
    isn't measurably over 0.
    """
    found = ratio_of_means(change, part, 0.2)
    return None if found is None else ShareOfChange(mean=found.mean, ci95=found.ci95, n=found.n)
