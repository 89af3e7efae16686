"""Activation steering: a direction in the residual stream is added, ablated, or added where a probe fires.

With x a state of the stream, v the difference of means from toxic to harmless (its length is the unit of strength),
d̂ the unit direction of toxicity, and α the strength of the row:

    add      x ← x + α·v                          Turner et al. 2023, Rimsky et al. 2024
    ablate   x ← x − α·(x·d̂)·d̂                    Arditi et al. 2024, eq. 4, at every write into the stream, for α = 1
    gated    x ← x + α·1[w·x + b > 0]·v           w and b are a logistic regression's, learnt from answers' mean states

ProFS is an ablation too, of more dimensions and of what MLPs write alone. W' = (I − P)·W is the same as (I − P)
applied to what W writes (Uppaal et al. 2024), so quantised weights and adapters on them need no other treatment:

    profs    m ← m − α·P·m,  P = Σ_i u_i·u_iᵀ     at the output of each edited layer's MLP
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from rewardlm.errors import ModelError
from rewardlm.models.architecture import Architecture, architecture_of
from rewardlm.models.generate import Guide, answering
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder
from rewardlm.steering.steered import Steered
from rewardlm.stream import Change, Edits, Site, edited


def adds(vector: Float[Tensor, "M"]) -> Change:
    """x + α·v."""

    def change(states: Tensor, strengths: Tensor) -> Tensor:
        return states + strengths * vector.to(states)

    return change


def adds_where(vector: Float[Tensor, "M"], weight: Float[Tensor, "M"], bias: float) -> Change:
    """x + α·v where w·x + b > 0."""

    def change(states: Tensor, strengths: Tensor) -> Tensor:
        # In float32: b is the sum of many products, and half precision would move the boundary.
        fires = (states.float() @ weight.to(states.device, torch.float32) + bias > 0)[..., None]
        return states + strengths * fires.to(states.dtype) * vector.to(states)

    return change


def ablates(basis: Float[Tensor, "M K"]) -> Change:
    """x − α·U·Uᵀ·x for an orthonormal basis U."""

    def change(states: Tensor, strengths: Tensor) -> Tensor:
        along = basis.to(states)
        return states - strengths * ((states @ along) @ along.T)

    return change


class StreamSteering:
    """``activation`` and ``profs``: changes of the stream at the sites that the folder names."""

    def __init__(self, method: str, strength: float, changes: Mapping[Site, Change], *, answers_only: bool) -> None:
        self.method, self.strength = method, strength
        self._changes, self._answers_only = changes, answers_only

    @contextlib.contextmanager
    def on(self, policy: Policy) -> Iterator[Steered]:
        """Raises ModelError for a family whose stream isn't known, or a model with other layers."""
        arch = architecture_of(policy.causal_lm)
        modules = {site: module_at(arch, site) for site in self._changes}
        # The adapter is merged before hooks are put on what it is part of.
        with answering(policy):
            edits = Edits(self._changes, answers_only=self._answers_only)
            with edited(arch.body, modules, edits):
                yield _StreamSteered(policy, edits)


def of_activation(folder: SteerFolder) -> StreamSteering:
    """The steering that an ``activation`` folder holds: tensors ``vector.L`` Float[M], ``probe.L.weight`` Float[M],
    ``probe.L.bias`` Float[1] by layer L; ``direction`` Float[M] to ablate."""
    record, tensors = folder.record, folder.tensors
    settings = record.settings
    changes: dict[Site, Change] = {}
    if settings["how"] == "ablate":
        unit = tensors["direction"] / tensors["direction"].norm()
        change = ablates(unit[:, None])
        changes = {(0, "in"): change}
        for number in range(int(record.model.layers or 0)):
            changes |= {(number, "attention"): change, (number, "mlp"): change}
    for name, vector in tensors.items():
        kind, _, layer = name.partition(".")
        if kind != "vector":
            continue
        site: Site = (int(layer), "in")
        if settings["how"] == "gated":
            weight, bias = tensors[f"probe.{layer}.weight"], float(tensors[f"probe.{layer}.bias"])
            changes[site] = adds_where(vector, weight, bias)
        else:
            changes[site] = adds(vector)
    return StreamSteering(record.method, record.strength, changes, answers_only=settings["where"] == "answer")


def of_profs(folder: SteerFolder) -> StreamSteering:
    """The steering that a ``profs`` folder holds: tensors ``basis.L`` Float[M, K] by layer L."""
    changes: dict[Site, Change] = {}
    for name, basis in folder.tensors.items():
        changes[int(name.partition(".")[2]), "mlp"] = ablates(basis)
    return StreamSteering(folder.record.method, folder.record.strength, changes, answers_only=False)


def module_at(arch: Architecture, site: Site) -> torch.nn.Module:
    """The module that reads, or writes, at ``site``. Raises ModelError for a layer that isn't there."""
    layer, kind = site
    n = len(arch.layers)
    if not 0 <= layer < n + (kind == "in"):
        raise ModelError(f"layer {layer}: this model has layers 0 to {n - 1}, and {n} is what its final norm reads")
    if kind == "in":
        return [*arch.layers, arch.norm][layer]  # type: ignore[no-any-return]
    return (arch.attention_out if kind == "attention" else arch.mlp_out)[layer]  # type: ignore[no-any-return]


class _StreamSteered(Steered):
    def __init__(self, policy: Policy, edits: Edits) -> None:
        super().__init__(policy)
        self._guide = StreamGuide(edits)

    @contextlib.contextmanager
    def guided(self) -> Iterator[Guide | None]:
        yield self._guide


class StreamGuide(Guide):
    """Tells the hooks how strongly each row is steered. Logits are the model's."""

    def __init__(self, edits: Edits) -> None:
        self._edits = edits
        # The template's beginning is read as it is only if prompts are.
        self.shares = edits.answers_only

    def begin(self, strengths: Float[Tensor, "B"] | None) -> None:
        self._edits.strengths = strengths
