"""Attention of one new token a row, as two batched products over the slots' whole store.

On a CPU the general kernel works row by row; and a product of the store as it lies in memory, unfilled columns masked,
takes a third of the time of one of its filled part in half precision, which would be copied first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "rewardlm_slots"


def takes_whole_store(body: Any, device: torch.device) -> bool:
    """Whether ``body`` looks its attention up by name, so that ours can be put in its place, and it pays."""
    known = getattr(body, "_supports_attention_backend", False)
    return bool(known) and device.type == "cpu" and body.config._attn_implementation == "sdpa"


@contextlib.contextmanager
def one_token(body: Any, on: bool) -> Iterator[None]:
    """Inside, ``body`` attends by ``_attend`` if ``on``."""
    if not on:
        yield
        return
    before = body.config._attn_implementation
    body.config._attn_implementation = _NAME
    try:
        yield
    finally:
        body.config._attn_implementation = before


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """``query`` Float[B, heads, 1, D], ``key`` and ``value`` Float[B, kv heads, C, D] → Float[B, 1, heads, D]."""
    special = any(more.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    if special or query.shape[2] != 1 or attention_mask is None or attention_mask.dtype != torch.bool:
        general: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return general
    rows, heads, _, width = query.shape
    # The heads that share keys and values stand in the place of query positions.
    grouped = query.reshape(rows, key.shape[1], -1, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).mul_(width**-0.5 if scaling is None else scaling)
    if attention_mask.shape[1] != 1:
        attention_mask = attention_mask.reshape(rows, key.shape[1], -1, attention_mask.shape[-1])
    weights = scores.masked_fill_(~attention_mask, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).reshape(rows, 1, heads, -1), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
