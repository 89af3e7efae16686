"""Where a model can be patched, what a pass leaves there, and passes with another model's values in place.

A **site** is what one head or one MLP writes into the residual stream, or the stream itself before a layer. Patching
puts what one model (the donor) had there into a pass of another (the receiver) over the same text (Vig et al. 2020;
Meng et al. 2022; Heimersheim & Nanda 2024, "How to use and interpret activation patching"). Everything behind the site
then computes with it. A head's write is z·W_O, so an adapter on W_O moves with its head.

Shapes: B texts of T tokens, L layers, H heads of width D, M the model's width, F the MLP's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewardlm.interpreting.findings import SiteKind, site_name
from rewardlm.interpreting.mechanistic.activations import ResponseBatch, mean_logprobs
from rewardlm.models.architecture import Architecture, adapter_layers, architecture_of, split_heads
from rewardlm.models.attention import whole_weight
from rewardlm.models.lora import scaled
from rewardlm.trunk import evaluating

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """A head's or an MLP's write, or the stream before layer ``layer`` (L is before the final norm)."""

    kind: SiteKind
    layer: int
    head: int = -1

    @property
    def name(self) -> str:
        """As ``head 3.2``, ``mlp 5``, ``stream 7``."""
        return site_name(self.kind, self.layer, self.head if self.kind == "head" else None)


def sites_of(causal_lm: Any) -> list[Site]:
    """All heads, MLPs and streams, layer by layer. The stream before layer 0 is the embedding, and is left out."""
    arch = architecture_of(causal_lm)
    found = []
    for layer in range(len(arch.layers)):
        found += [Site("head", layer, head) for head in range(arch.n_heads)]
        found += [Site("mlp", layer), Site("stream", layer + 1)]
    return found


@dataclass
class Recorded:
    """What a pass left, a tensor a layer: ``z`` Float[B, T, H, D], ``attention`` and ``mlp`` Float[B, T, M] (writes),
    ``neurons`` Float[B, T, F], ``stream`` Float[B, T, M] (L + 1 of them). ``out`` Float[H, D, M] is W_O as the model
    stood. ``calls`` is how every layer was called, ``attention_calls`` and ``mlp_calls`` how its two parts were.
    ``logprobs`` Float[B] are means over the answers' tokens.
    """

    z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    stream: list[Tensor] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    attention_calls: list[Call] = field(default_factory=list)
    mlp_calls: list[Call] = field(default_factory=list)
    logprobs: Tensor = field(default_factory=lambda: torch.empty(0))


@contextlib.contextmanager
def recording(arch: Architecture, *, gradients: bool = False) -> Iterator[Recorded]:
    """Inside, passes leave what they compute in a ``Recorded``, one pass after the other overwriting it.

    ``gradients`` lets the graph begin at the first layer's input, since the weights are frozen.
    """
    found = Recorded()

    def begins(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls = (found.calls, found.attention_calls, found.mlp_calls)
        for kept in (found.z, found.attention, found.neurons, found.mlp, found.stream, *calls):
            kept.clear()
        if not gradients:
            return None
        hidden, args, kwargs = _taken(args, kwargs)
        return (hidden.detach().requires_grad_(), *args), kwargs

    def enters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, rest, named = _taken(args, kwargs)
        found.stream.append(hidden)
        found.calls.append((rest, named))

    def called(kept: list[Call]) -> Any:
        return lambda module, args, kwargs: kept.append((args, kwargs))

    def attended(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = found.stream[-1].shape[:2]
        found.z.append(args[0].reshape(*shape, arch.n_heads, -1))
        found.attention.append(output)
        # Falcon adds the attention's write to its MLP's in place.
        return output.clone()

    def fired(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        shape = found.stream[-1].shape[:2]
        found.neurons.append(args[0].reshape(*shape, -1))
        found.mlp.append(output)
        return output.clone()

    with contextlib.ExitStack() as stack:

        def hooked(handle: Any) -> None:
            stack.callback(handle.remove)

        hooked(arch.layers[0].register_forward_pre_hook(begins, with_kwargs=True))
        for index, layer in enumerate(arch.layers):
            hooked(layer.register_forward_pre_hook(enters, with_kwargs=True))
            hooked(arch.attention[index].register_forward_pre_hook(called(found.attention_calls), with_kwargs=True))
            hooked(arch.mlp[index].register_forward_pre_hook(called(found.mlp_calls), with_kwargs=True))
            hooked(arch.attention_out[index].register_forward_hook(attended))
            hooked(arch.mlp_out[index].register_forward_hook(fired))
        hooked(arch.norm.register_forward_pre_hook(lambda _, args: found.stream.append(args[0])))
        yield found


def head_outputs(arch: Architecture) -> list[Tensor]:
    """W_O by head, Float[H, D, M] a layer, with an adapter that is on."""
    with torch.no_grad():
        return [split_heads(whole_weight(out), arch.n_heads) for out in arch.attention_out]


def record(causal_lm: Any, batch: ResponseBatch, *, gradients: bool = False) -> Recorded:
    """One pass of the model as it stands over ``batch``."""
    arch = architecture_of(causal_lm)
    with (
        evaluating(causal_lm),
        torch.set_grad_enabled(gradients),
        recording(arch, gradients=gradients) as found,
    ):
        states = arch.body(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)[0]
        found.logprobs = mean_logprobs(arch, states, batch)
    found.out = head_outputs(arch)
    return found


@torch.no_grad()
def by_itself(causal_lm: Any, base: Recorded) -> Recorded:
    """What every head and MLP writes where the model as it stands, with an adapter on, reads the ``base``'s stream.

    So what differs from the base is the adapter's doing at this very place, and no answer to changes before it. To put
    one of these writes into the base is to switch the adapter on in this head or MLP alone. There is no stream.
    """
    arch = architecture_of(causal_lm)
    found = Recorded(out=head_outputs(arch))
    shape = base.stream[0].shape[:2]

    def keep(reads: list[Tensor], writes: list[Tensor], split: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            states = args[0].reshape(*shape, -1).clone()
            reads.append(states.reshape(*shape, split, -1) if split else states)
            writes.append(output.clone())

        return hook

    with evaluating(causal_lm):
        for index in range(len(arch.layers)):
            parts = (
                (arch.attention, arch.attention_out, base.attention_calls, found.z, found.attention, arch.n_heads),
                (arch.mlp, arch.mlp_out, base.mlp_calls, found.neurons, found.mlp, 0),
            )
            for modules, outs, calls, reads, writes, split in parts:
                args, kwargs = calls[index]
                # An MLP that is no module of its own (OPT's) is the layer, whose attention must stay the base's.
                others = adapter_layers(arch.attention[index]).values() if modules is arch.mlp else ()
                handle = outs[index].register_forward_hook(keep(reads, writes, split))
                try:
                    with scaled(others, 0.0):
                        modules[index](*args, **kwargs)
                finally:
                    handle.remove()
    return found


@dataclass(frozen=True)
class Patch:
    """What a receiver gets from a donor: the writes of ``heads`` by layer and of the ``mlps``, and the activations of
    ``neurons`` by layer; where ``at`` Bool[B, T] is True, or everywhere."""

    donor: Recorded
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    mlps: Sequence[int] = ()
    neurons: Mapping[int, Tensor] = field(default_factory=dict)
    at: Tensor | None = None

    @classmethod
    def of(cls, donor: Recorded, sites: Sequence[Site], at: Tensor | None = None) -> Patch:
        """Of heads and MLPs. The stream isn't written by one module: see ``run_from``."""
        heads: dict[int, list[int]] = {}
        for site in sites:
            if site.kind == "head":
                heads.setdefault(site.layer, []).append(site.head)
        return cls(donor, heads, [site.layer for site in sites if site.kind == "mlp"], at=at)

    @property
    def first_layer(self) -> int:
        return min([*self.heads, *self.mlps, *self.neurons], default=0)


@contextlib.contextmanager
def patched(arch: Architecture, patch: Patch, out: Sequence[Tensor]) -> Iterator[None]:
    """Inside, passes of the receiver have the donor's values at the patch. ``out`` is the receiver's W_O by head."""

    def attends(layer: int, heads: Sequence[int]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            # W_O by head is float32, whatever the model is.
            theirs = patch.donor.z[layer][:, :, heads].float()
            own = args[0].reshape(*theirs.shape[:2], arch.n_heads, -1)[:, :, heads].float()
            new = torch.einsum("bthd,hdm->btm", theirs, patch.donor.out[layer][heads])
            old = torch.einsum("bthd,hdm->btm", own, out[layer][heads])
            return output + chosen(new, old, patch.at).sub(old).to(output).reshape(output.shape)

        return hook

    def fires(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            theirs = patch.donor.mlp[layer].to(output).reshape(*patch.donor.neurons[layer].shape[:2], -1)
            # A copy: Falcon adds to it in place, and the donor's own must stay for the next patch.
            return chosen(theirs, output.reshape(theirs.shape), patch.at).reshape(output.shape).clone()

        return hook

    def activates(layer: int, which: Tensor) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            theirs = patch.donor.neurons[layer]
            active = args[0].clone().reshape(theirs.shape)
            active[..., which] = chosen(theirs[..., which].to(active), active[..., which], patch.at)
            return (active.reshape(args[0].shape), *args[1:])

        return hook

    with contextlib.ExitStack() as stack:
        for layer, heads in patch.heads.items():
            stack.callback(arch.attention_out[layer].register_forward_hook(attends(layer, heads)).remove)
        for layer in patch.mlps:
            stack.callback(arch.mlp_out[layer].register_forward_hook(fires(layer)).remove)
        for layer, which in patch.neurons.items():
            stack.callback(arch.mlp_out[layer].register_forward_pre_hook(activates(layer, which)).remove)
        yield


@torch.no_grad()
def run_from(causal_lm: Any, batch: ResponseBatch, layer: int, hidden: Tensor, receiver: Recorded) -> Tensor:
    """Mean log-probabilities of the answers, Float[B], where the stream before ``layer`` is ``hidden`` Float[B, T, M].

    The layers before it need not run again: nothing there is changed. The rest are called as in ``receiver``.
    """
    arch = architecture_of(causal_lm)
    with evaluating(causal_lm):
        for index in range(layer, len(arch.layers)):
            args, kwargs = receiver.calls[index]
            output = arch.layers[index](hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return mean_logprobs(arch, arch.norm(hidden), batch)


@torch.no_grad()
def with_patch(causal_lm: Any, batch: ResponseBatch, receiver: Recorded, patch: Patch) -> Tensor:
    """Mean log-probabilities of the answers, Float[B], of the model as it stands with the patch in place."""
    start = patch.first_layer
    with patched(architecture_of(causal_lm), patch, receiver.out):
        return run_from(causal_lm, batch, start, receiver.stream[start], receiver)


@torch.no_grad()
def with_stream(
    causal_lm: Any, batch: ResponseBatch, receiver: Recorded, donor: Recorded, layer: int, at: Tensor | None = None
) -> Tensor:
    """The same, where the stream before ``layer`` is the donor's: everywhere, or where ``at`` Bool[B, T] is True."""
    return run_from(causal_lm, batch, layer, chosen(donor.stream[layer], receiver.stream[layer], at), receiver)


def chosen(theirs: Tensor, own: Tensor, at: Tensor | None) -> Tensor:
    """``theirs`` Float[B, T, …] where ``at`` Bool[B, T] is True, and ``own`` elsewhere; without ``at`` theirs."""
    return theirs if at is None else torch.where(at[..., None], theirs, own)


def _taken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a layer is called with, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}
