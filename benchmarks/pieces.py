"""The pieces that the fast path is made of, each beside what it replaced: ``python benchmarks/pieces.py``.

CPU milliseconds of one thread at SmolLM2-135M's sizes, the shortest of several rounds that alternate the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from rewardlm.fastpath.operators import packed, packed_linear
from rewardlm.fastpath.tree import Layout, attention, tree_of
from rewardlm.models.sampling import Distribution, in_cache

HIDDEN, INNER, VOCABULARY, HEADS, KV_HEADS, SIZE = 576, 1536, 49152, 9, 3, 64
DTYPES = (torch.float32, torch.bfloat16)
Pair = tuple[Callable[[], object], Callable[[], object]]


def main() -> None:
    """Every piece in both dtypes."""
    torch.set_num_threads(1)
    table = Table("piece", "dtype", "before, ms", "now, ms")
    for dtype in DTYPES:
        for name, pair in {
            "attention of 16 rows under gradients": attentions(dtype),
            "120 products of 16 rows": products(dtype, 16),
            "120 products of 64 rows": products(dtype, 64),
        }.items():
            table.add_row(name, str(dtype).removeprefix("torch."), *(f"{1000 * seconds:.1f}" for seconds in both(pair)))
    table.add_row("numbers of 128 rows", "bfloat16", *(f"{1000 * seconds:.1f}" for seconds in both(numbers())))
    table.add_row("entropy of 128 rows", "float32", *(f"{1000 * seconds:.1f}" for seconds in both(entropies())))
    Console().print(table)


def both(pair: Pair, rounds: int = 5) -> tuple[float, float]:
    """CPU seconds of each, the first call not counted."""
    best = [float("inf")] * 2
    for number in range(rounds + 1):
        for side, call in enumerate(pair):
            begun = time.process_time()
            call()
            if number:
                best[side] = min(best[side], time.process_time() - begun)
    return best[0], best[1]


def attentions(dtype: torch.dtype) -> Pair:
    """One layer's attention: 16 rows of 21 prompt and 32 answer tokens after a prefix of 38, forward and backward."""
    prompts = [[1] * 38 + [100 + row] + [5] * 20 for row in range(16)]
    tree = tree_of(prompts, [[7] * 32 for _ in prompts], 38, torch.device("cpu"))
    rows, _, width, keys = tree.sees.shape
    flat = [learning(dtype, len(tree.tokens), heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    padded = [
        learning(dtype, rows, heads, length, SIZE)
        for heads, length in ((HEADS, width), (KV_HEADS, keys), (KV_HEADS, keys))
    ]
    layout = Layout(tree, HEADS, KV_HEADS)

    def general() -> Tensor:
        query, key, value = padded
        times = HEADS // KV_HEADS
        key, value = (states.repeat_interleave(times, 1) for states in (key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=tree.sees)

    def ours() -> Tensor:
        return attention(flat[0], flat[1], flat[2], layout, SIZE**-0.5)

    return (
        lambda: torch.autograd.grad(general().sum(), padded),
        lambda: torch.autograd.grad(ours().sum(), flat),
    )


def learning(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers that want a gradient."""
    return torch.randn(shape).to(dtype).requires_grad_()


def products(dtype: torch.dtype, rows: int) -> Pair:
    """As many products as SmolLM2 has in a decoding step, each with its own weights, which are read from memory."""
    x = torch.randn(rows, HIDDEN).to(dtype)
    plain = [torch.randn(INNER, HIDDEN).to(dtype) for _ in range(120)]
    laid_out = [packed(weight) for weight in plain]
    return (
        lambda: [linear(x, weight) for weight in plain],
        lambda: [packed_linear(x, weight, None) for weight in laid_out],
    )


def numbers() -> Pair:
    """Log-probabilities and entropies of a chunk's logits: all rows at once, and as many at a time as a cache holds."""
    logits = torch.randn(128, VOCABULARY).bfloat16()
    targets = torch.arange(128)

    def of(rows: slice) -> tuple[Tensor, Tensor]:
        found = Distribution(logits[rows].float())
        return found.logprobs(targets[rows]), found.entropy()

    return lambda: of(slice(None)), lambda: [of(rows) for rows in in_cache(logits)]


def entropies() -> Pair:
    """Entropies of a chunk of logits, once their softmax is there."""
    found = Distribution(torch.randn(128, VOCABULARY))
    return lambda: torch.bmm(found.weights[:, None], found.logits[:, :, None]), found.entropy


if __name__ == "__main__":
    main()
