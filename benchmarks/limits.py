"""How fast a machine could be at most: the arithmetic of answering, weighing, learning and judging.

A decoder with ``body`` weights in its layers and ``head`` weights in its language-model head reads all of them for each
step of decoding, and multiplies each with every token: two operations per weight and token forward, two more backward
where the weights themselves are frozen (LoRA). Attention, norms and sampling count as free, so real times can come near
these and not reach them. Seconds, bytes, tokens; standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoder:
    """Weights in the layers and in the head (tied embeddings count once, as head). A position of the KV cache takes
    2 · ``layers`` · ``kv_width`` numbers of ``width`` bytes; ``kv_width`` is the number of KV heads times their size.
    """

    body: int
    head: int
    layers: int
    kv_width: int
    width: int

    @property
    def weight_bytes(self) -> int:
        return (self.body + self.head) * self.width

    @property
    def cache_bytes(self) -> int:
        """κ: what one position takes in the cache."""
        return 2 * self.layers * self.kv_width * self.width


@dataclass(frozen=True)
class Machine:
    """``bandwidth`` of reading, in bytes a second; ``rate`` of matrix products, in operations a second."""

    bandwidth: float
    rate: float


def distinct_prefixes(rows: Iterable[Sequence[int]]) -> int:
    """How many positions must be run if every shared prefix is run once: the nodes of the rows' trie."""
    known: set[tuple[int, ...]] = set()
    for row in set(map(tuple, rows)):
        known.update(row[:end] for end in range(1, len(row) + 1))
    return len(known)


def prefill_seconds(decoder: Decoder, machine: Machine, prompts: Sequence[Sequence[int]]) -> float:
    """2·P_b·ΣT/F, with shared prefixes run once, and the head once per row, for its first token."""
    operations = 2 * decoder.body * distinct_prefixes(prompts) + 2 * decoder.head * len(prompts)
    return operations / machine.rate


def decode_seconds(
    decoder: Decoder, machine: Machine, prompt_lengths: Sequence[int], answer_lengths: Sequence[int]
) -> float:
    """The answers' tokens after the first. All rows run side by side, each until its end.

    A step of b rows takes max((w·P + κ·ΣL)/B, 2·(P_b + P_h)·b/F). L is what a row has in the cache: its prompt and its
    answer's tokens except the newest.
    """
    seconds = 0.0
    for step in range(1, max(answer_lengths, default=0)):
        held = [
            prompt + step - 1 for prompt, answer in zip(prompt_lengths, answer_lengths, strict=True) if answer > step
        ]
        read = (decoder.weight_bytes + decoder.cache_bytes * sum(held)) / machine.bandwidth
        seconds += max(read, 2 * (decoder.body + decoder.head) * len(held) / machine.rate)
    return seconds


def rollout_seconds(
    decoder: Decoder, machine: Machine, prompts: Sequence[Sequence[int]], answer_lengths: Sequence[int]
) -> float:
    """Prefill and decoding of one answer to each of ``prompts``. Lengths are in tokens, end token included."""
    decoding = decode_seconds(decoder, machine, [len(prompt) for prompt in prompts], answer_lengths)
    return prefill_seconds(decoder, machine, prompts) + decoding


def positions_to_weigh(prompts: Sequence[Sequence[int]], answer_lengths: Sequence[int]) -> int:
    """U: the positions of one pass over prompts and answers. An answer's last token needs no pass: nothing follows."""
    return distinct_prefixes(prompts) + sum(length - 1 for length in answer_lengths if length)


def reference_seconds(decoder: Decoder, machine: Machine, positions: int, answer_tokens: int) -> float:
    """One pass forward: 2·P_b·U/F + 2·P_h·R/F."""
    return (2 * decoder.body * positions + 2 * decoder.head * answer_tokens) / machine.rate


def update_seconds(decoder: Decoder, machine: Machine, positions: int, answer_tokens: int, epochs: int) -> float:
    """LoRA forward and backward, without gradients of frozen weights: (4·P_b·U + 4·P_h·R)/F an epoch.

    The adapter's own products, a few percent, are left out.
    """
    return epochs * (4 * decoder.body * positions + 4 * decoder.head * answer_tokens) / machine.rate


def scorer_seconds(weights: int, machine: Machine, tokens: int) -> float:
    """An encoder with ``weights`` weights in its layers over ``tokens``, special ones included: 2·P_s·ΣT/F."""
    return 2 * weights * tokens / machine.rate
