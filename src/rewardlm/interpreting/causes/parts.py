"""An adapter in parts: switched on layer by layer, module by module, head by head or rank by rank, and written so.

Each module's B·A is taken as its singular value decomposition U·S·Vᵀ, so that ranks are in order of size and don't
overlap. A part keeps some ranks, some rows of B (the queries, keys and values of a head) or some columns of A (what a
head's z gives to W_O) of some modules, and is zero elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from rewardlm.errors import ModelError
from rewardlm.interpreting.findings import UnitKind
from rewardlm.models.architecture import adapter_layers, architecture_of
from rewardlm.models.attention import head_rows
from rewardlm.models.load import Policy
from rewardlm.models.lora import adds_more_than_maps, using

UNIT_KINDS: tuple[UnitKind, ...] = ("layer", "module", "head", "rank")


@dataclass(frozen=True)
class Piece:
    """Of one module: all of it, or some ``ranks``, ``rows`` of B or ``columns`` of A."""

    module: str
    ranks: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Unit:
    """What is switched on together, and how many numbers of the adapter it is."""

    name: str
    pieces: tuple[Piece, ...]
    parameters: int


@dataclass
class Factors:
    """A module's α/r·B·A = ``b``·``a`` with a = √S·Vᵀ Float[r, in], b = U·√S Float[out, r], and what it was.

    ``b_gain`` and ``a_gain`` are sums over points of a path of b ⊙ ∂E/∂b and a ⊙ ∂E/∂a: how much of a rise of E every
    number carries.
    """

    layer: LoraLayer
    a: Tensor
    b: Tensor
    kept_a: Tensor
    kept_b: Tensor
    scaling: float
    a_gain: Tensor = field(init=False)
    b_gain: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.a_gain, self.b_gain = torch.zeros_like(self.a), torch.zeros_like(self.b)


class AdapterParts:
    """The parts of the adapter ``name`` on ``policy``. Raises ModelError for one that is more than B·A on linear
    modules, which has no such parts.
    """

    def __init__(self, policy: Policy, name: str) -> None:
        if adds_more_than_maps(policy, name):
            raise ModelError("the adapter changes more than linear maps by B·A, so it can't be taken apart")
        self.policy, self.name = policy, name
        adapted = adapter_layers(policy.causal_lm)
        if any(name in one.lora_embedding_A for one in adapted.values()):
            raise ModelError("the adapter changes the embedding too, so it can't be taken apart")
        layers = {path: one for path, one in adapted.items() if name in one.lora_A}
        self.factors = {path: _factors(layer, name) for path, layer in layers.items()}

    @property
    def parameters(self) -> int:
        """Numbers of the whole adapter."""
        return sum(one.a.numel() + one.b.numel() for one in self.factors.values())

    def units(self, kind: UnitKind) -> list[Unit]:
        """The adapter in units of this kind. What has no head is a unit of its own: a layer's MLP, or a module."""
        if kind == "module":
            return [self._unit(path, [Piece(path)]) for path in self.factors]
        if kind == "rank":
            return [
                self._unit(f"{path} rank {rank}", [Piece(path, ranks=(rank,))])
                for path, one in self.factors.items()
                for rank in range(len(one.a))
                if bool(one.a[rank].any())
            ]
        arch = architecture_of(self.policy.causal_lm)
        paths = {id(module): path for path, module in self.policy.causal_lm.named_modules()}
        found, taken = [], set()
        for number, layer in enumerate(arch.layers):
            prefix = f"{paths[id(layer)]}."
            own = [path for path in self.factors if path.startswith(prefix)]
            taken |= {*own}
            if kind == "layer":
                found.append(self._unit(f"layer {number}", [Piece(path) for path in own]))
            else:
                found += self._heads(number, own, f"{paths[id(arch.attention[number])]}.")
        rest = [self._unit(path, [Piece(path)]) for path in self.factors if path not in taken]
        return [unit for unit in (*found, *rest) if unit.pieces]

    def _heads(self, number: int, own: Sequence[str], attention: str) -> list[Unit]:
        by_head: dict[str, list[Piece]] = {}
        where = head_rows(self.policy.causal_lm, number)
        for path in own:
            if not path.startswith(attention):
                by_head.setdefault(f"mlp {number}", []).append(Piece(path))
                continue
            module = path.removeprefix(attention)
            for head, (side, places) in where[module].items():
                by_head.setdefault(head, []).append(
                    Piece(path, rows=places) if side == "rows" else Piece(path, columns=places)
                )
        return [self._unit(name, pieces) for name, pieces in by_head.items()]

    def _unit(self, name: str, pieces: Sequence[Piece]) -> Unit:
        return Unit(name, tuple(pieces), sum(self._numbers(piece) for piece in pieces))

    def _numbers(self, piece: Piece) -> int:
        one = self.factors[piece.module]
        rank, width, height = len(one.a), one.a.shape[1], one.b.shape[0]
        if piece.ranks is not None:
            return len(piece.ranks) * (width + height)
        if piece.rows is not None:
            return rank * (width + len(piece.rows))
        if piece.columns is not None:
            return rank * (len(piece.columns) + height)
        return rank * (width + height)

    def gain(self, unit: Unit) -> float:
        """How much of the rise along the path the unit carries; see ``follow``."""
        total = 0.0
        for piece in unit.pieces:
            one = self.factors[piece.module]
            if piece.ranks is not None:
                total += float(one.b_gain[:, list(piece.ranks)].sum())
            elif piece.rows is not None:
                total += float(one.b_gain[list(piece.rows)].sum())
            elif piece.columns is not None:
                total += float(one.a_gain[:, list(piece.columns)].sum())
            else:
                total += float(one.b_gain.sum())
        return total

    def follow(self, effect: Callable[[], Iterator[Tensor]], *, points: int) -> None:
        """Gains by integrated gradients along the adapter's scale (Sundararajan et al. 2017), at ``points``
        Gauss-Legendre points: ∫₀¹ w ⊙ ∂E/∂w (t·w) dt. ``effect`` gives E in pieces, each with its graph.
        """
        for one in self.factors.values():
            one.a_gain.zero_()
            one.b_gain.zero_()
        places, shares = np.polynomial.legendre.leggauss(points)
        for t, share in zip(((places + 1) / 2).tolist(), (shares / 2).tolist(), strict=True):
            scaled_down = {path: (one.a, t * one.b) for path, one in self.factors.items()}
            with self._set(scaled_down), using(self.policy, self.name):
                sides = [self._weights(one) for one in self.factors.values()]
                flat = [weight for pair in sides for weight in pair]
                before = [weight.requires_grad for weight in flat]
                try:
                    for weight in flat:
                        weight.requires_grad_(True)
                    with torch.enable_grad():
                        for part in effect():
                            gradients = torch.autograd.grad(part, flat, allow_unused=True)
                            for one, at_a, at_b in zip(
                                self.factors.values(), gradients[::2], gradients[1::2], strict=True
                            ):
                                # B is t times as long here, so the gate that multiplies it has b as its derivative.
                                if at_b is not None:
                                    one.b_gain += share * at_b * one.b / one.scaling
                                if at_a is not None and t > 0:
                                    one.a_gain += share * at_a * one.a / t
                finally:
                    for weight, wanted in zip(flat, before, strict=True):
                        weight.requires_grad_(wanted)

    def numbers(self, units: Sequence[Unit]) -> int:
        """How many numbers of the adapter these units keep together."""
        return sum(int((a != 0).sum()) + int((b != 0).sum()) for a, b in self.masked(units).values())

    def masked(self, units: Sequence[Unit]) -> dict[str, tuple[Tensor, Tensor]]:
        """a and b of every module that the units keep something of, zero where they don't."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for unit in units:
            for piece in unit.pieces:
                one = self.factors[piece.module]
                a, b = found.setdefault(piece.module, (torch.zeros_like(one.a), torch.zeros_like(one.b)))
                if piece.ranks is not None:
                    ranks = list(piece.ranks)
                    a[ranks], b[:, ranks] = one.a[ranks], one.b[:, ranks]
                elif piece.rows is not None:
                    rows = list(piece.rows)
                    a.copy_(one.a)
                    b[rows] = one.b[rows]
                elif piece.columns is not None:
                    columns = list(piece.columns)
                    b.copy_(one.b)
                    a[:, columns] = one.a[:, columns]
                else:
                    a.copy_(one.a)
                    b.copy_(one.b)
        return found

    @contextlib.contextmanager
    def on(self, units: Sequence[Unit]) -> Iterator[None]:
        """Inside, the policy is the base with these units of the adapter alone."""
        kept = self.masked(units)
        nothing = {
            path: (torch.zeros_like(one.a), torch.zeros_like(one.b))
            for path, one in self.factors.items()
            if path not in kept
        }
        with self._set({**nothing, **kept}), using(self.policy, self.name):
            yield

    @contextlib.contextmanager
    def _set(self, values: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Inside, modules have these a and b; afterwards what they had before, to the bit."""
        try:
            with torch.no_grad():
                for path, (a, b) in values.items():
                    one = self.factors[path]
                    weight_a, weight_b = self._weights(one)
                    weight_a.copy_(a)
                    weight_b.copy_(b / one.scaling)
            yield
        finally:
            with torch.no_grad():
                for path in values:
                    one = self.factors[path]
                    weight_a, weight_b = self._weights(one)
                    weight_a.copy_(one.kept_a)
                    weight_b.copy_(one.kept_b)

    def _weights(self, one: Factors) -> tuple[Tensor, Tensor]:
        return one.layer.lora_A[self.name].weight, one.layer.lora_B[self.name].weight

    def write(self, units: Sequence[Unit], folder: Path) -> int:
        """Write these units as an adapter in PEFT's format: modules of which nothing is kept are not in it, and ranks
        that are zero neither. Returns how many of its numbers aren't zero.
        """
        tensors, ranks, numbers = {}, {}, 0
        for path, (a, b) in self.masked(units).items():
            live = (a.any(1) & b.any(0)).nonzero()[:, 0]
            if not len(live):
                continue
            a, b = a[live].contiguous().cpu(), b[:, live].contiguous().cpu()
            numbers += int((a != 0).sum()) + int((b != 0).sum())
            ranks[path] = len(live)
            tensors[f"base_model.model.{path}.lora_A.weight"] = a
            tensors[f"base_model.model.{path}.lora_B.weight"] = b
        if not ranks:
            raise ModelError("nothing of the adapter is kept, so there is nothing to write")
        config = copy.deepcopy(self.policy.model.peft_config[self.name])
        most = max(ranks.values())
        config.r, config.lora_alpha, config.inference_mode = most, most, True
        config.target_modules = set(ranks)
        # α/r is 1 everywhere: the scale is in the numbers.
        config.rank_pattern = {path: rank for path, rank in ranks.items() if rank != most}
        config.alpha_pattern = dict(config.rank_pattern)
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        config.use_rslora = False
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return numbers


@torch.no_grad()
def _factors(layer: LoraLayer, name: str) -> Factors:
    """U·S·Vᵀ of α/r·B·A without forming it: QR of both factors, then the decomposition of an r × r matrix."""
    a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
    q_b, r_b = torch.linalg.qr(scaling * b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s.sqrt()
    # Of a module that is narrower than the adapter's rank there are fewer singular values: the other ranks are zero.
    missing = len(a) - len(s)
    return Factors(
        layer=layer,
        a=torch.cat([(root[:, None] * (v @ q_a.T)).to(a), a.new_zeros(missing, a.shape[1])]),
        b=torch.cat([(q_b @ u * root).to(b), b.new_zeros(len(b), missing)], 1),
        kept_a=a.detach().clone(),
        kept_b=b.detach().clone(),
        scaling=scaling,
    )
