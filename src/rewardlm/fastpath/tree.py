"""Prompts and answers run as one sequence without padding, beginnings that they share only once.

A batch of rows is a tree: the prefix of all prompts, prompts that several rows answer, and each row's own rest. Every
token of it is one position of a single long sequence. Only the attention decides which others it sees, so this works
for every model of transformers that looks its attention up by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rewardlm.fastpath.agreement import agrees
from rewardlm.fastpath.operators import softmax_backward
from rewardlm.trunk import (
    attending,
    cache_argument,
    has_window,
    keeps_keys_and_values,
    looks_attention_up,
    takes_positions,
)

_NAME = "rewardlm_tree"
# Attention is plain products up to this many keys a row: they keep all its weights, which grow quadratically.
_SHORT = 256


@dataclass
class Tree:
    """N tokens in S stretches, each of which follows one before it, or none.

    ``tokens``, ``positions`` Int[N]. ``predicting`` Int[R]: where each response token is predicted from, row after row;
    an answer's last token predicts nothing and is left out. Only for the attention, stretches are padded to Q tokens
    of their own and L that these see: ``queries`` Int[S, Q], ``keys`` Int[S, L], ``sees`` Bool[S, 1, Q, L];
    ``places`` Int[N] says where in S·Q each token is. Where a cache holds what comes before, ``keys`` count from its
    first token, ``queries`` from the first that is run.
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    queries: Tensor
    keys: Tensor
    sees: Tensor
    places: Tensor


@dataclass
class _Stretch:
    tokens: Sequence[int]
    start: int  # Its first token's place among all N.
    before: list[int]  # Places of what it follows.

    @property
    def places(self) -> list[int]:
        return list(range(self.start, self.start + len(self.tokens)))


def tree_of(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    shared: int,
    device: torch.device,
    *,
    held: bool = False,
) -> Tree:
    """The tree of some rows whose prompts all begin with the same ``shared`` tokens and have at least one more;
    ``held`` if a cache has the shared ones already."""
    stretches: list[_Stretch] = []
    n = shared if held else 0

    def add(tokens: Sequence[int], before: list[int]) -> list[int]:
        nonlocal n
        stretches.append(_Stretch(tokens, n, before))
        n += len(tokens)
        return before + stretches[-1].places

    prefix = list(range(shared)) if held or not shared else add(prompts[0][:shared], [])
    answered = Counter(map(tuple, prompts))
    known: dict[tuple[int, ...], list[int]] = {}
    predicting: list[int] = []
    for prompt, response in zip(map(tuple, prompts), responses, strict=True):
        if answered[prompt] > 1 and prompt not in known:
            known[prompt] = add(prompt[shared:], prefix)
        before = known.get(prompt, prefix)
        own = [*prompt[len(before) :], *response[:-1]]
        path = add(own, before) if own else before
        predicting += path[len(prompt) - 1 : len(prompt) - 1 + len(response)]
    first = shared if held else 0
    return _padded(stretches, [place - first for place in predicting], first, device)


def trees_in_turn(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    stops: Sequence[Sequence[int]],
    device: torch.device,
) -> list[Tree]:
    """Rows that are read from stop to stop, ascending places in each response. The k-th tree has the tokens from the
    stop before (that token counts) to the k-th one (this one doesn't), of every row that has it; they predict up to the
    token at the stop. By then a cache holds the tokens of all trees before it. Rows share nothing."""
    trees: list[Tree] = []
    before: list[list[int]] = [[] for _ in prompts]
    n = 0
    for k in range(max(map(len, stops), default=0)):
        first = n
        stretches: list[_Stretch] = []
        predicting: list[int] = []
        for row, (prompt, response, own) in enumerate(zip(prompts, responses, stops, strict=True)):
            if k >= len(own):
                continue
            read = len(before[row])
            stretches.append(_Stretch([*prompt, *response][read : len(prompt) + own[k]], n, before[row]))
            n += len(stretches[-1].tokens)
            before[row] = before[row] + stretches[-1].places
            predicting += [place - first for place in before[row][max(read, len(prompt) - 1) :]]
        trees.append(_padded(stretches, predicting, first, device))
    return trees


def _padded(stretches: list[_Stretch], predicting: list[int], first: int, device: torch.device) -> Tree:
    own_places = [torch.tensor(stretch.places) - first for stretch in stretches]
    width = max(len(stretch.tokens) for stretch in stretches)
    own = torch.tensor([len(stretch.tokens) for stretch in stretches])[:, None, None]
    before = torch.tensor([len(stretch.before) for stretch in stretches])[:, None, None]
    keys = pad_sequence([torch.tensor(stretch.before + stretch.places) for stretch in stretches], batch_first=True)
    query, key = torch.arange(width)[None, :, None], torch.arange(keys.shape[1])[None, None]
    # A padding query sees the first key: nobody reads its result, but that must not be NaN.
    sees = (key <= before + query) & (key < before + own)
    places = [row * width + i for row, stretch in enumerate(stretches) for i in range(len(stretch.tokens))]
    positions = [len(stretch.before) + i for stretch in stretches for i in range(len(stretch.tokens))]
    return Tree(
        tokens=torch.tensor([token for stretch in stretches for token in stretch.tokens], device=device),
        positions=torch.tensor(positions, device=device),
        predicting=torch.tensor(predicting, dtype=torch.long, device=device),
        queries=pad_sequence(own_places, batch_first=True).to(device),
        keys=keys.to(device),
        sees=sees[:, None].to(device),
        places=torch.tensor(places, device=device),
    )


def runs_trees(body: Any) -> bool:
    """Whether ``body``'s attention alone decides which token sees which and is looked up by name; tried once."""
    config = body.config.get_text_config()
    suited = (
        looks_attention_up(body, now=_NAME)
        and takes_positions(body)
        and not getattr(config, "alibi", False)
        and not has_window(config)
        and keeps_keys_and_values(body.config)
    )
    return suited and agrees(
        body,
        "running rows as one sequence",
        lambda rows: last_states(lambda tree: tree_states(body, tree).index_select(0, tree.predicting), rows),
        adapters=False,
        instead="rows are run side by side, with padding",
    )


def last_states(run: Callable[[Tree], Tensor], rows: Tensor) -> Tensor:
    """The states Float[B, 3, H] of the last three tokens of ``rows`` Int[B, T]. ``run`` gives the states that a tree's
    response tokens are predicted from. A row's prompt is all but its last two tokens."""
    prompts, answers = rows[:, :-2].tolist(), rows[:, -2:].tolist()
    shared = next(place for place, column in enumerate(zip(*prompts, strict=True)) if len({*column}) > 1)
    # An answer's last token is left out of a tree, so each answer gets one more.
    tree = tree_of(prompts, [[*answer, 0] for answer in answers], shared, rows.device)
    states = run(tree)
    return states.view(len(rows), 3, states.shape[-1])


def tree_states(body: Any, tree: Tree, cache: Any = None) -> Tensor:
    """The trunk's last states, Float[N, H], after what ``cache`` holds, which grows by all N tokens.

    Under gradients, tokens that several rows share get the gradients of all of them.
    """
    arguments: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        arguments[cache_argument(body)] = cache
    token = _seen.set(_Seen(tree))
    try:
        # transformers makes no mask here: none is registered under this name.
        with attending(body, _NAME):
            states: Tensor = body(input_ids=tree.tokens[None], position_ids=tree.positions[None], **arguments)[0]
    finally:
        _seen.reset(token)
    return states[0]


@dataclass
class _Seen:
    """A tree that is being run, and what all of its layers need."""

    tree: Tree
    layout: Layout | None = None


_seen: ContextVar[_Seen] = ContextVar(_NAME)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """``query`` Float[1, heads, N, D], ``key`` and ``value`` Float[1, kv heads, N, D] → Float[1, N, heads, D]."""
    seen = _seen.get()
    tree = seen.tree
    special = any(more.get(name) is not None for name in ("softcap", "s_aux", "position_bias")) or more.get("dropout")
    special = special or value.shape[-1] != query.shape[-1]
    if query.device.type in ("cpu", "meta") and not special:
        if seen.layout is None:
            seen.layout = Layout(tree, query.shape[1], key.shape[1])
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        return attention(query, key, value, seen.layout, scale)[None], None
    rows, _ = sdpa_attention_forward(
        module,
        _by_row(query[0], tree.queries),
        _by_row(key[0], tree.keys),
        _by_row(value[0], tree.keys),
        tree.sees,
        scaling=scaling,
        **more,
    )
    return rows.flatten(0, 1).index_select(0, tree.places)[None], None


def _by_row(states: Tensor, where: Tensor) -> Tensor:
    """``states`` Float[heads, N, D] at ``where`` Int[S, T]: Float[S, heads, T, D]."""
    taken = states.transpose(0, 1).index_select(0, where.flatten())
    return taken.view(*where.shape, *taken.shape[1:]).transpose(1, 2)


class Layout:
    """Where a tree's stretches find their heads, for all layers: the numbers of rows in [N·heads, D] and [N·kv, D].

    Heads that share keys and values are taken together, as if they were more queries: G of them in each of S·kv groups.
    ``queries`` Int[S·kv·G·Q], ``keys`` Int[S·kv·L]; ``places`` Int[N·heads] is the way back from S·kv·G·Q. ``bias``
    Float[S, 1, Q, L] is 0 where a token is seen and -inf where not.
    """

    def __init__(self, tree: Tree, heads: int, kv_heads: int) -> None:
        self.tree = tree
        n_rows, width = tree.queries.shape
        device = tree.queries.device
        head, kv_head = torch.arange(heads, device=device), torch.arange(kv_heads, device=device)
        self.groups, self.heads, self.width = n_rows * kv_heads, heads, width
        self.queries = (tree.queries[:, None] * heads + head[:, None]).flatten()
        self.keys = (tree.keys[:, None] * kv_heads + kv_head[:, None]).flatten()
        row, query = tree.places[:, None] // width, tree.places[:, None] % width
        self.places = ((row * heads + head) * width + query).flatten()
        self.bias = torch.zeros(tree.sees.shape, device=device).masked_fill_(~tree.sees, -torch.inf)


def attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """``query`` Float[N, heads, D], ``key`` and ``value`` Float[N, kv heads, D] → Float[N, heads, D], on a CPU.

    Where a cache holds the prefix, keys and values begin with those of the prefix.
    """
    tree = layout.tree
    if tree.keys.shape[1] > _SHORT:
        queries, keys, values = (
            _by_row(states.transpose(0, 1), where)
            for states, where in ((query, tree.queries), (key, tree.keys), (value, tree.keys))
        )
        rows = scaled_dot_product_attention(queries, keys, values, attn_mask=tree.sees, scale=scale, enable_gqa=True)
        return rows.transpose(1, 2).flatten(0, 1).index_select(0, tree.places)
    found: Tensor = _TreeAttention.apply(query, key, value, layout, scale)  # type: ignore[no-untyped-call]
    return found


class _TreeAttention(torch.autograd.Function):
    """Attention as plain products: on a CPU the general kernel's backward pass takes longer for rows this short."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
        queries, keys, values = _rows(query, key, value, layout)
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(scale)
        # On a CPU, softmax in half precision takes twice as long as in float32 with both conversions.
        wide = scores.view(len(layout.bias), -1, *layout.bias.shape[2:]).float().add_(layout.bias)
        weights = wide.softmax(-1).to(scores.dtype).view_as(scores)
        ctx.save_for_backward(query, key, value, weights)
        ctx.layout, ctx.scale = layout, scale
        return torch.bmm(weights, values).view(-1, values.shape[-1]).index_select(0, layout.places).view_as(query)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        layout, scale = ctx.layout, ctx.scale
        queries, keys, values = _rows(query, key, value, layout)
        size = gradient.shape[-1]
        # The places of padding stay 0.
        of_output = gradient.new_zeros(len(layout.queries), size)
        of_output = of_output.index_copy_(0, layout.places, gradient.reshape(-1, size)).view(len(weights), -1, size)
        for_value = _summed(torch.bmm(weights.transpose(1, 2), of_output), value, layout)
        of_weights = torch.bmm(of_output, values.transpose(1, 2))
        of_scores = softmax_backward(of_weights, weights).mul_(scale)
        for_query = torch.bmm(of_scores, keys).view(-1, query.shape[-1]).index_select(0, layout.places).view_as(query)
        for_key = _summed(torch.bmm(of_scores.transpose(1, 2), queries), key, layout)
        return for_query, for_key, for_value, None, None


def _rows(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Queries Float[S·kv, G·Q, D], keys and values Float[S·kv, L, D] of the stretches."""
    queries, keys, values = (
        states.reshape(-1, states.shape[-1]).index_select(0, where).view(layout.groups, -1, states.shape[-1])
        for states, where in ((query, layout.queries), (key, layout.keys), (value, layout.keys))
    )
    return queries, keys, values


def _summed(grouped: Tensor, states: Tensor, layout: Layout) -> Tensor:
    """Float[S·kv, L, D] summed, in float32, over all stretches that see a token: Float[N, kv, D]."""
    rows = grouped.view(-1, grouped.shape[-1]).float()
    total = rows.new_zeros(states.shape[0] * states.shape[1], rows.shape[1]).index_add_(0, layout.keys, rows)
    return total.to(states.dtype).view_as(states)


AttentionInterface.register(_NAME, _attend)
