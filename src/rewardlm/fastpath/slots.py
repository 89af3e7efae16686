"""The cache that answers are decoded in, one row a slot, and decoding steps by a model's own modules with it.

All rows end at one column, so that a token for each is one write. Memory is taken once for many steps. Rows that have
ended are taken out and new prompts put in together, in one copy (``rebuild``). Between a row's prompt and column 0
stands padding, which the mask leaves out.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewardlm.trunk import attending, looks_attention_up, trunk_states

_NAME = "rewardlm_slots"
# Columns that a rebuild adds at most: an answer of this length is decoded without another copy.
_ROOM = 32


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values Float[B, heads, C, D] with room beyond the ``cursor``. The model sees what is filled; with
    ``whole`` it sees everything, zeros included, which a mask must leave out."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.cursor = 0

    def place(self, keys: Tensor, values: Tensor, cursor: int) -> None:
        self.keys, self.values, self.cursor = keys, values, cursor
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.cursor + key_states.shape[-2]
        self.keys[:, :, self.cursor : end] = key_states
        self.values[:, :, self.cursor : end] = value_states
        self.cursor = end
        if self.whole:
            return self.keys, self.values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.cursor

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.keys.shape[-2] if self.whole else self.cursor + query_length), 0


class Slots:
    """B rows that are decoded together: ``cache`` for transformers, ``mask`` Int[B, cursor], ``lengths`` Int[B, 1].

    With ``whole`` the mask is as wide as the store, and so is what the model sees. ``lengths`` are how many tokens each
    row has, which is the position of its next one.
    """

    def __init__(self, n_layers: int, device: torch.device, *, whole: bool = False) -> None:
        self.whole = whole
        self.layers = [_SlotLayer(whole) for _ in range(n_layers)]
        self.cache = Cache(layers=self.layers)
        self.cursor = 0
        self.capacity = 0
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.lengths = torch.zeros(0, 1, dtype=torch.long, device=device)
        self._spans: list[int] = []  # Columns that each row takes, padding inside it included.

    @property
    def mask(self) -> Tensor:
        return self._mask if self.whole else self._mask[:, : self.cursor]

    def advance(self) -> tuple[Tensor, Tensor]:
        """Make room for one token a row: returns the mask with it, Int[B, cursor], and its positions, Int[B, 1].

        The model's next pass writes its keys and values.
        """
        positions = self.lengths
        self._mask[:, self.cursor] = 1
        self.cursor += 1
        self._spans = [span + 1 for span in self._spans]
        self.lengths = positions + 1
        return self.mask, positions

    @property
    def is_full(self) -> bool:
        return self.cursor == self.capacity

    def rebuild(self, keep: list[int], room: int, new: tuple[DynamicCache, Tensor, Tensor] | None = None) -> None:
        """Keep the rows ``keep`` in this order, add those of ``new``, and make room for at most ``room`` more tokens.

        ``new`` is a cache, which is emptied, and its mask Int[N, T], both right-aligned, and for each new slot the row
        that it starts from.
        """
        device = self._mask.device
        old_span = max((self._spans[row] for row in keep), default=0)
        new_mask = None if new is None else new[1]
        new_span = 0 if new_mask is None else new_mask.shape[1]
        cursor = max(old_span, new_span)
        capacity = cursor + min(room, _ROOM)
        kept = torch.tensor(keep, dtype=torch.long, device=device)
        first = len(keep)
        n_rows = first + (0 if new is None else len(new[2]))
        mask = torch.zeros(n_rows, capacity, dtype=torch.long, device=device)
        old = slice(self.cursor - old_span, self.cursor)
        mask[:first, cursor - old_span : cursor] = self._mask[kept, old]
        lengths = self.lengths[kept]
        if new is not None and new_mask is not None:
            mask[first:, cursor - new_span : cursor] = new_mask[new[2]]
            lengths = torch.cat([lengths, new_mask.sum(1, keepdim=True)[new[2]]])
        for number, layer in enumerate(self.layers):
            source = None if new is None else new[0].layers[number]
            like = layer if source is None else source
            stores = []
            for name in ("keys", "values"):
                shape = getattr(like, name).shape
                store = getattr(like, name).new_zeros(n_rows, shape[1], capacity, shape[3])
                if first:
                    store[:first, :, cursor - old_span : cursor] = getattr(layer, name)[kept, :, old]
                if source is not None and new is not None:
                    store[first:, :, cursor - new_span : cursor] = getattr(source, name)[new[2]]
                stores.append(store)
            layer.place(stores[0], stores[1], cursor)
            if source is not None:
                # It is copied, so let it go: decoding holds most memory while both are there.
                source.keys = source.values = stores[0].new_empty(0)
        self._mask, self.lengths = mask, lengths
        self.cursor, self.capacity = cursor, capacity
        self._spans = [self._spans[row] for row in keep] + [new_span] * (n_rows - first)


class ModuleSteps:
    """Decoding steps through the modules of ``body``, of any architecture on any device."""

    def __init__(self, body: Any, head: Any) -> None:
        self._body, self._head = body, head
        # On a CPU torch's attention goes row by row: there two products over the slots' whole store take its place.
        self._whole = body.device.type == "cpu" and looks_attention_up(body)

    def slots(self) -> Slots:
        """A store without rows."""
        return Slots(self._body.config.get_text_config().num_hidden_layers, self._body.device, whole=self._whole)

    def states(self, tokens: Int[Tensor, "B"], slots: Slots) -> Float[Tensor, "B H"]:
        """The trunk's last states for one more token a row; ``slots`` grow by it."""
        mask, positions = slots.advance()
        with attending(self._body, _NAME) if self._whole else contextlib.nullcontext():
            return trunk_states(self._body, tokens[:, None], mask, positions, slots.cache)[:, -1]

    def logits(self, states: Float[Tensor, "B H"]) -> Float[Tensor, "B V"]:
        """What the head makes of ``states``."""
        found: Tensor = self._head(states)
        return found


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """``query`` Float[B, heads, 1, D], ``key`` and ``value`` Float[B, kv heads, C, D] → Float[B, 1, heads, D].

    The store is multiplied as it lies in memory, with unfilled columns masked. Its filled part alone would be copied
    first, which takes three times as long in half precision.
    """
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
