"""Passes side by side on a CPU: each in a thread of its own, which has a part of PyTorch's threads.

Many operations of a small model are too short to be divided among cores, or aren't divided at all. So passes that each
have a core are done sooner than one after the other on all of them (``benchmarks/side_by_side.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from rewardlm.models.logprobs import body_and_head
from rewardlm.stream import edits_of
from rewardlm.trunk import scales_by_length
from rewardlm.views import views_of

Item = TypeVar("Item")
Found = TypeVar("Found")

# Each pass has its own activations in memory.
MOST = 4
# Bytes of weights. Operations of larger models are worth dividing, and their activations are large.
SMALL = 2**30


def side_by_side(causal_lm: Any, work: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    """``work`` of each item, in their order. It runs passes of ``causal_lm``, all by the same attention, and switches
    nothing on or off that other passes would notice.

    Passes run one after the other on a device, of a large model, and where a module or a block keeps something of the
    pass that runs: quantised weights, positions that are scaled by a pass's length, a stream that is changed, rows
    that are different views.
    """
    threads = min(_passes(causal_lm), len(items) - 1)
    if threads < 2:
        yield from map(work, items)
        return
    gradients = torch.is_grad_enabled()

    def apart(item: Item) -> Found:
        with torch.set_grad_enabled(gradients):
            return work(item)

    # A quicker way to run a model is tried once, with the model's own way beside it (fastpath.agreement). Meanwhile no
    # other pass may run.
    yield work(items[0])
    each = torch.get_num_threads() // threads
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        # Where one fails or the caller stops, those that haven't begun are left out.
        yield from pool.map(apart, items[1:])


def _passes(causal_lm: Any) -> int:
    body, _ = body_and_head(causal_lm)
    weights = [*causal_lm.parameters()]
    small = sum(weight.numel() * weight.element_size() for weight in weights) <= SMALL
    plain = all(weight.is_floating_point() for weight in weights) and not scales_by_length(causal_lm.config)
    unchanged = edits_of(body) is None and views_of(body) is None
    if weights[0].device.type == "cpu" and small and plain and unchanged:
        return min(MOST, torch.get_num_threads())
    return 1
