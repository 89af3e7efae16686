"""Tries on a few tokens whether our own way to run a trunk gives what the model's own forward pass gives.

Code that leaves a model's modules out, or runs several rows as one sequence, computes what it was written for. A model
or an adapter that needs more would be scored and trained wrongly, without an error. So each such way is tried once per
model and set of active adapters, before it is first used. Where it differs by more than rounding, it is not used, and
a warning says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from rewardlm.fastpath.fused import FusedLinear, map_of
from rewardlm.stream import unedited
from rewardlm.trunk import evaluating
from rewardlm.views import unviewed

# How far two ways of computing the same may be apart, as a share of the states' size (L2). A layer rounds some ten
# times, and such errors add up like a random walk: √(10·30 layers) · 2⁻⁹ is 0.03 in bfloat16. SmolLM2's 30 layers with
# a stirred adapter were 0.027 apart in bfloat16, 0.0036 in float16, 4e-6 in float32; without their adapter, 0.33.
# A base in 8 bits rounds what goes into each layer as well, about as much as bfloat16.
_TOLERANCE = {torch.bfloat16: 0.15, torch.float16: 0.02}
_TOLERANCE_OF_WIDER, _TOLERANCE_OF_QUANTISED = 1e-4, 0.15
# How much of a layer's output a stirred adapter makes.
_STIR = 0.1

_tried: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()
_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def agrees(body: Any, way: str, ours: Callable[[Tensor], Tensor], *, adapters: bool, instead: str) -> bool:
    """Whether ``ours`` gives the last states of ``body``'s own forward pass, in evaluation mode and without gradients.

    ``ours`` gets rows Int[3, 6], prompts of 4 tokens with answers of 2. The first two prompts begin alike; the third is
    the first once more, with another answer. It returns the states at a row's last positions, Float[3, T, H]. With
    ``adapters`` the result holds for the adapters that are on. Noise is added to these during the try ("stirred"): an
    adapter that has learnt nothing yet changes nothing, and leaving it out would not show. Afterwards the model is what
    it was, to the bit; no global random state is used.

    The result is kept, so that this costs a few short passes per model and set of adapters. A model on the meta device
    can't be tried. ``way`` and ``instead`` are what a warning says.
    """
    if body.device.type == "meta":
        return True
    known = _tried.setdefault(body, {})
    key = (way, body.dtype, _adapters_on(body) if adapters else None)
    if key not in known:
        # A change of the stream has the strengths of other rows than those that are tried here; so have views.
        with unedited(body), unviewed(body):
            difference, tolerance = _difference(body, ours, adapters), _tolerance(body)
        known[key] = difference <= tolerance
        if not known[key]:
            warn_once(
                body,
                f"{type(body).__name__}: {way} differs from the model's own forward pass by {difference:.2g} of the "
                f"states' size (rounding explains {tolerance:.2g} in {str(body.dtype).removeprefix('torch.')}): "
                f"{instead}",
            )
    return known[key]


def _tolerance(body: Any) -> float:
    # Only quantised weights are integers.
    if not all(parameter.is_floating_point() for parameter in body.parameters()):
        return _TOLERANCE_OF_QUANTISED
    return _TOLERANCE.get(body.dtype, _TOLERANCE_OF_WIDER)


def warn_once(body: nn.Module, sentence: str) -> None:
    """Warn of something about ``body``, once."""
    warned = _warned.setdefault(body, set())
    if sentence not in warned:
        warned.add(sentence)
        warnings.warn(sentence, stacklevel=4)


def _adapters_on(body: nn.Module) -> frozenset[Any]:
    layers = [module for module in body.modules() if isinstance(module, LoraLayer)]
    return frozenset((*layer.active_adapters, layer.disable_adapters, layer.merged) for layer in layers)


@torch.no_grad()
def _difference(body: Any, ours: Callable[[Tensor], Tensor], adapters: bool) -> float:
    """‖ours - theirs‖ / ‖theirs‖; 0 where the model's own states aren't finite, which is reported elsewhere."""
    vocabulary = body.config.get_text_config().vocab_size
    prompts = [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 3]]
    rows = torch.tensor([[*prompt, 5 + 2 * n, 6 + 2 * n] for n, prompt in enumerate(prompts)], device=body.device)
    rows = (rows * 7919 + 11) % vocabulary
    with evaluating(body), _stirred(body) if adapters else contextlib.nullcontext():
        with _pefts_own(body):
            theirs = body(input_ids=rows, use_cache=False)[0].float()
        found = ours(rows).float()
    theirs = theirs[:, -found.shape[1] :]
    if not bool(torch.isfinite(theirs).all()):
        return 0.0
    return float((found - theirs).norm() / theirs.norm().clamp(min=torch.finfo(torch.float32).tiny))


@contextlib.contextmanager
def _pefts_own(body: nn.Module) -> Iterator[None]:
    """Inside, LoRA layers compute as PEFT wrote them."""
    fused: list[Any] = [module for module in body.modules() if type(module) is FusedLinear]
    try:
        for module in fused:
            module.__class__ = Linear
        yield
    finally:
        for module in fused:
            module.__class__ = FusedLinear


@contextlib.contextmanager
def _stirred(body: nn.Module) -> Iterator[None]:
    """Inside, plain adapters that are on get noise in B, worth about ``_STIR`` of their layer's output."""
    generator = torch.Generator().manual_seed(0)
    maps = [map_of(module) for module in body.modules() if type(module) is FusedLinear]
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for one in maps:
            if one is None or one.up is None or one.down is None:
                continue
            # B·A·x is as large as W·x where std(B) · √r · rms(A) · s = rms(W). Eight of W's rows tell its size.
            size = one.base.weight[:8].float().square().mean().sqrt()
            per_unit = one.scaling * len(one.down) ** 0.5 * one.down.float().square().mean().sqrt()
            if float(per_unit) == 0:
                continue
            # Through .data: autograd need not know, because the weights are put back.
            up = one.up.data
            kept.append((up, up.clone()))
            noise = torch.randn(up.shape, generator=generator).to(up)
            up.add_(noise * (_STIR * size / per_unit))
        yield
    finally:
        for up, before in kept:
            up.copy_(before)
