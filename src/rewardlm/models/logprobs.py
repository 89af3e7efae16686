"""Log-probabilities of given tokens under a causal LM: the ONE place where logits and tokens are shifted.

The logits at position t speak about the token at t + 1. Everything that needs log-probabilities, entropies or the
hidden state that an answer's token was predicted from gets them here, so an off-by-one error can only be here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from rewardlm import fastpath
from rewardlm.errors import ModelError
from rewardlm.models.budget import trim_heap
from rewardlm.models.sampling import Distribution, in_cache
from rewardlm.stream import reading_answers
from rewardlm.trunk import keeps_keys_and_values, trunk_states


@dataclass
class TokenStats:
    """For N response tokens, row after row; ``hidden`` is the state that each was predicted from.

    ``likeliest``: whether no other token was likelier. ``kl``: the exact divergence of the next-token distributions,
    where others were given to compare with. Log-probabilities and ``kl`` carry a gradient; ``entropy`` does where that
    was asked for.
    """

    logprobs: Float[Tensor, "N"]
    entropy: Float[Tensor, "N"]
    likeliest: Bool[Tensor, "N"]
    hidden: Float[Tensor, "N H"]
    kl: Float[Tensor, "N"] | None = None


@dataclass
class Packed:
    """B sequences that begin with the same ``prefix``, their rests right-padded to T.

    Masks are made from lengths, never from ``tokens != pad``: SmolLM2 pads with its end token. ``mask`` is True where
    there is no padding. ``tree`` is the same without padding, for models that can run it; None where every row must be
    whole.
    """

    prefix: Int[Tensor, "S"]
    tokens: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    tree: fastpath.Tree | None


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device, *, share: bool = True
) -> Packed:
    """Prompt and response of each row joined, what all prompts share taken out, padded with token 0.

    ``share`` False leaves every row whole, for callers that want each row's own gradient of its prompt's beginning.
    """
    shared = shared_prefix(prompts)
    shared = shared if share else 0
    rows = [torch.tensor([*prompt[shared:], *response]) for prompt, response in zip(prompts, responses, strict=True)]
    tokens = pad_sequence(rows, batch_first=True)
    position = torch.arange(tokens.shape[1])[None]
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) - shared for prompt in prompts])[:, None]
    mask = position < ends
    return Packed(
        torch.tensor(prompts[0][:shared], dtype=torch.long, device=device),
        tokens.to(device),
        mask.to(device),
        (mask & (position >= starts)).to(device),
        fastpath.tree_of(prompts, responses, shared, device) if share else None,
    )


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, at most one less than the shortest has.

    Every row keeps a prompt token of its own: the first token of its answer is predicted from that one's state.
    """
    _check_prompts(prompts)
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, min(map(len, prompts)) - 1)


def _check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    if min(map(len, prompts)) < 1:
        raise ModelError("a prompt has no tokens: the first token of an answer would have nothing to be predicted from")


def body_and_head(causal_lm: Any) -> tuple[Any, Any]:
    """The transformer's trunk and its language-model head, so that the head runs on response tokens only."""
    body, head = causal_lm.base_model, causal_lm.get_output_embeddings()
    if head is None or body is causal_lm:
        raise ModelError(f"{type(causal_lm).__name__} has no separable language-model head: not supported")
    return body, head


@torch.no_grad()
def check_head(causal_lm: Any) -> None:
    """Refuse architectures whose logits are more than head(trunk): soft-capping or scaling would be left out.

    Raises ModelError if the logits of four tokens differ by more than 1 % of their spread.
    """
    body, head = body_and_head(causal_lm)
    tokens = torch.tensor([[1, 2, 3, 4]], device=next(causal_lm.parameters()).device)
    ours = head(body(input_ids=tokens)[0]).float()
    theirs = causal_lm(input_ids=tokens).logits.float()
    difference = float((ours - theirs).abs().max())
    if difference > 0.01 * float(theirs.std()) + 1e-3:
        raise ModelError(
            f"{type(causal_lm).__name__}: its logits are not head(trunk) (they differ by {difference:.3g}): "
            "not supported"
        )


def token_stats(
    causal_lm: Any,
    packed: Packed,
    *,
    chunk: int = 128,
    kl_to: Float[Tensor, "N H"] | None = None,
    kl_from: Float[Tensor, "N H"] | None = None,
    entropy_gradient: bool = False,
    recompute: bool = False,
) -> TokenStats:
    """Log-probability, entropy and predicting hidden state of every response token.

    The head runs on response positions alone, ``chunk`` at a time, in float32 from log-sum-exp on, so the [tokens,
    vocabulary] tensor never stands in memory whole. Nor is it computed twice: with a frozen head, the forward pass also
    finds the gradients, while the chunk's probabilities are there. Only where a divergence, the entropy
    (``entropy_gradient``) or the head itself has a gradient does the backward pass compute a chunk's logits again.
    Temperature is 1.

    Given another model's states of the same tokens, ``kl`` is a divergence over the vocabulary:
    KL(this ‖ other) for ``kl_to``, KL(other ‖ this) for ``kl_from``. Both models must share their head.
    ``recompute`` as in ``response_states``.
    """
    head = body_and_head(causal_lm)[1]
    predicted_from = response_states(causal_lm, packed, recompute=recompute)
    targets = packed.tokens[packed.response_mask]
    differentiated = torch.is_grad_enabled() and predicted_from.requires_grad
    if kl_to is None and _is_frozen_linear(head) and not (differentiated and (kl_from is not None or entropy_gradient)):
        logprobs, entropy, likeliest, kl = frozen_head_stats(head, predicted_from, targets, chunk, kl_from)
        return TokenStats(logprobs, entropy, likeliest, predicted_from, kl)
    parts = []
    for start in range(0, len(targets), chunk):
        piece = slice(start, start + chunk)
        arguments = (
            head,
            predicted_from[piece],
            targets[piece],
            None if kl_to is None else kl_to[piece],
            None if kl_from is None else kl_from[piece],
            entropy_gradient,
        )
        if torch.is_grad_enabled():
            parts.append(checkpoint(_head_stats, *arguments, use_reentrant=False))
        else:
            parts.append(_head_stats(*arguments))
    if not parts:
        nothing = predicted_from.new_zeros(0).float()
        return TokenStats(nothing, nothing, nothing.bool(), predicted_from, nothing)
    logprobs, entropy, likeliest, kl = (torch.cat(part) for part in zip(*parts, strict=True))
    return TokenStats(logprobs, entropy, likeliest, predicted_from, None if kl_to is None and kl_from is None else kl)


def response_states(causal_lm: Any, packed: Packed, *, recompute: bool = False) -> Float[Tensor, "N H"]:
    """The trunk's last state that each response token is predicted from. Changes of the stream (``stream``) are made
    with one strength for all rows.

    ``recompute`` (gradient checkpointing) keeps only each layer's input for the backward pass, and runs the layer again
    there. It needs whole rows (``pack`` without sharing): a layer that runs twice would write a cache twice.
    """
    body, _ = body_and_head(causal_lm)
    tree = _tree(body, packed)
    if tree is not None:
        return fastpath.predicting_states(body, tree)
    n_rows, width = packed.tokens.shape
    n_shared = len(packed.prefix)
    if recompute:
        assert not n_shared
        positions = torch.arange(width, device=packed.tokens.device)[None].expand(n_rows, -1)
        with recomputed(body):
            states = trunk_states(body, packed.tokens, packed.mask.long(), positions, None)
        return states[predicting_mask(packed.response_mask)]
    where = predicting_mask(packed.response_mask)
    predicting = _places(where)
    cache = DynamicCache(config=causal_lm.config) if n_shared else None
    if cache is not None:
        # Once for all rows. Under gradients the cache is part of the graph, so the prefix gets every row's gradient.
        prefix = packed.prefix[None]
        before = torch.arange(n_shared, device=prefix.device)[None]
        with reading_answers(body, predicting[:0]):
            trunk_states(body, prefix, torch.ones_like(prefix), before, cache)
        cache.batch_repeat_interleave(n_rows)
    mask = torch.cat([packed.mask.new_ones(n_rows, n_shared), packed.mask], 1).long()
    positions = torch.arange(n_shared, n_shared + width, device=mask.device)[None].expand(n_rows, -1)
    with reading_answers(body, predicting):
        states = trunk_states(body, packed.tokens, mask, positions, cache)
    return states[where]


# Pieces in which a row is read, at most. A backward pass goes through them one by one: many small ones would cost more
# than what they leave out.
_PIECES = 4


@dataclass
class Pass:
    """A pass over M positions, padding counted in: ``rows`` and ``places`` Int[M] say which row each is of, and which
    of its positions. ``run`` gives the states Float[n, H] that the tokens at ``cuts`` Int[n, 2] are predicted from: of
    each, its row and the number of the cut there."""

    rows: Int[Tensor, "M"]
    places: Int[Tensor, "M"]
    cuts: Int[Tensor, "n 2"]
    run: Callable[[], Tensor]


def passes_to_cuts(
    causal_lm: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], cuts: Sequence[Sequence[int]]
) -> list[Pass]:
    """Passes that read B rows as far as their last cuts, to be run in this order; ``cuts`` are places in each response,
    strictly ascending. Rows share nothing, so each has its own gradient.

    A model that runs trees reads rows in pieces, from cut to cut or from every second one and so on: what stands in
    later pieces takes no part in a backward pass from a cut. Other models have one pass for all.
    """
    _check_prompts(prompts)
    most = max(map(len, cuts))
    if not most:
        return []
    body = body_and_head(causal_lm)[0]
    device = next(causal_lm.parameters()).device
    if fastpath.runs_trees(body):
        stops, cuts_of_pieces = _in_pieces(cuts, min(most, _PIECES))
        cache = DynamicCache(config=causal_lm.config)
        trees = fastpath.trees_in_turn(prompts, responses, stops, device)
        return [_pass_of_tree(body, tree, cache, *own) for tree, own in zip(trees, cuts_of_pieces, strict=True)]
    stops, [(numbers, places)] = _in_pieces(cuts, 1)
    read = [response[: own[-1] + 1] if own else [] for response, own in zip(responses, stops, strict=True)]
    packed = pack(prompts, read, device, share=False)
    every, width = torch.arange(packed.tokens.numel()), packed.tokens.shape[1]
    return [Pass(every // width, every % width, numbers, lambda: response_states(causal_lm, packed)[places.to(device)])]


def _in_pieces(cuts: Sequence[Sequence[int]], n_pieces: int) -> tuple[list[list[int]], list[tuple[Tensor, Tensor]]]:
    """Cuts in so many pieces, each with about as many. First the last cut of each row's pieces. Then, for each piece,
    which cuts are in it (row and number, Int[n, 2]), and their places Int[n] among the tokens that it predicts."""
    most = max(map(len, cuts))
    spans = [range(piece * most // n_pieces, (piece + 1) * most // n_pieces) for piece in range(n_pieces)]
    stops = [[where[min(span[-1], len(where) - 1)] for span in spans if span[0] < len(where)] for where in cuts]
    found = []
    for piece, span in enumerate(spans):
        numbers: list[tuple[int, int]] = []
        places: list[int] = []
        n = 0
        for row, where in enumerate(cuts):
            if span[0] < len(where):
                first = stops[row][piece - 1] + 1 if piece else 0
                own = span[: len(where) - span[0]]
                numbers += [(row, k) for k in own]
                places += [n + where[k] - first for k in own]
                n += stops[row][piece] + 1 - first
        found.append((torch.tensor(numbers), torch.tensor(places)))
    return stops, found


def _pass_of_tree(body: Any, tree: fastpath.Tree, cache: DynamicCache, cuts: Tensor, places: Tensor) -> Pass:
    """``places`` Int[n] are those of ``cuts`` among what the tree predicts. Its stretches are the rows in ``cuts``."""
    rows = torch.tensor(sorted({*cuts[:, 0].tolist()}))
    return Pass(
        rows=rows[tree.places.cpu() // tree.queries.shape[1]],
        places=tree.positions.cpu(),
        cuts=cuts,
        run=lambda: fastpath.predicting_states(body, tree, cache)[places.to(body.device)],
    )


def predicting_places(causal_lm: Any, packed: Packed) -> Int[Tensor, "N"]:
    """Where each response token is predicted from, among all tokens of the last pass of ``response_states``."""
    tree = _tree(body_and_head(causal_lm)[0], packed)
    return _places(predicting_mask(packed.response_mask)) if tree is None else tree.predicting


def _tree(body: Any, packed: Packed) -> fastpath.Tree | None:
    """The rows as one sequence, where ``body`` runs them so."""
    return packed.tree if packed.tree is not None and fastpath.runs_trees(body) else None


def _places(where: Bool[Tensor, "B T"]) -> Int[Tensor, "N"]:
    """Where the mask is True, counted row after row."""
    return where.flatten().nonzero()[:, 0]


@contextlib.contextmanager
def recomputed(body: Any, **how: Any) -> Iterator[None]:
    """Inside, a forward pass keeps each layer's input and nothing else; ``how`` goes to ``checkpoint``.

    transformers' own switch needs layers in training mode, but RL runs without dropout. Raises ModelError for a model
    whose layers can't do this.
    """
    layers = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(f"{type(body).__name__} can't recompute its layers: leave gradient_checkpointing out")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **how)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def predicting_mask(response_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True where a position's state speaks about a token of the response: those tokens' mask, one earlier.

    The first column of ``response_mask`` has nothing before it, and is taken to be a prompt's.
    """
    mask = torch.zeros_like(response_mask)
    mask[:, :-1] = response_mask[:, 1:]  # THE shift
    return mask


def microbatches(lengths: Sequence[int], budget: int, *, shortest: float = 0.0) -> list[list[int]]:
    """Rows sorted by length in pieces of at most ``budget`` positions, padding included; a longer row stands alone.

    No row has less than ``shortest`` of the length of its piece's longest one.
    """
    pieces: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        # Lengths grow, so this row's is the width of the piece if it joins.
        alike = bool(pieces) and lengths[pieces[-1][0]] >= shortest * lengths[row]
        if alike and (len(pieces[-1]) + 1) * lengths[row] <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


def pieces(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    budget: int,
    *,
    recompute: bool = False,
) -> list[list[int]]:
    """All rows, in pieces that ``causal_lm`` runs as at most ``budget`` positions; a longer row stands alone.

    Answers to one prompt stand side by side, so that the model runs the prompt once. Where it can't, or where
    ``recompute`` needs whole rows, rows are sorted by length.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    if not prompts or recompute or not fastpath.runs_trees(body_and_head(causal_lm)[0]):
        return microbatches(lengths, budget)
    shared = shared_prefix(prompts)
    found: list[list[int]] = []
    held = 0
    for row in sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), tuple(prompts[row]), lengths[row], row)):
        known = bool(found) and tuple(prompts[row]) == tuple(prompts[found[-1][-1]])
        own = len(responses[row]) + (0 if known else len(prompts[row]) - shared)
        if found and held + own <= budget:
            found[-1].append(row)
            held += own
        else:
            found.append([row])
            held = lengths[row]
    return found


def forward_rows(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    kl_to: Sequence[Float[Tensor, "R H"]] | None = None,
    kl_from: Sequence[Float[Tensor, "R H"]] | None = None,
    entropy_gradient: bool = False,
    recompute: bool = False,
) -> TokenStats:
    """Token statistics of some rows, flat in the order of ``rows``, answer after answer.

    ``kl_to`` and ``kl_from`` as in ``token_stats``, but for all rows, a tensor each; the rest as there.
    """
    device = next(causal_lm.parameters()).device

    def flat(states: Sequence[Tensor] | None) -> Tensor | None:
        return None if states is None else torch.cat([states[row] for row in rows]).to(device)

    packed = _packed(causal_lm, prompts, responses, rows, recompute)
    return token_stats(
        causal_lm,
        packed,
        kl_to=flat(kl_to),
        kl_from=flat(kl_from),
        entropy_gradient=entropy_gradient,
        recompute=recompute,
    )


def hidden_rows(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    recompute: bool = False,
) -> Float[Tensor, "N H"]:
    """``hidden`` of ``forward_rows`` alone: the head is not run."""
    packed = _packed(causal_lm, prompts, responses, rows, recompute)
    return response_states(causal_lm, packed, recompute=recompute)


def _packed(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    rows: Sequence[int],
    recompute: bool,
) -> Packed:
    # Where processes run a divided model together, each forward pass needs a backward pass of its own, so a shared
    # prefix can't have a pass before it. A tree is one pass.
    divided = torch.is_grad_enabled() and isinstance(causal_lm.base_model, FSDPModule)
    alone = not divided or fastpath.runs_trees(body_and_head(causal_lm)[0])
    device = next(causal_lm.parameters()).device
    if device.type == "cpu":
        # Between two microbatches little memory is in use.
        trim_heap()
    share = alone and not recompute and keeps_keys_and_values(causal_lm.config)
    return pack([prompts[row] for row in rows], [responses[row] for row in rows], device, share=share)


@dataclass
class RowStats:
    """As TokenStats, for one answer of R tokens, on the CPU; ``hidden`` only with ``keep_hidden``."""

    logprobs: Float[Tensor, "R"]
    entropy: Float[Tensor, "R"]
    hidden: Float[Tensor, "R H"] | None
    kl: Float[Tensor, "R"] | None


@torch.no_grad()
def row_stats(
    causal_lm: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    budget: int,
    *,
    kl_from: Sequence[Float[Tensor, "R H"]] | None = None,
    keep_hidden: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
    recompute: bool = False,
) -> list[RowStats]:
    """Token statistics of every row under the model as it stands, in microbatches of at most ``budget`` positions.

    A microbatch has rows of only one of ``groups`` (together all rows), so it rounds as another pass over that group
    does. With ``recompute`` it rounds as a pass that recomputes its layers, which has whole rows.
    """
    found: dict[int, RowStats] = {}
    microbatches = [
        [group[i] for i in piece]
        for group in ([range(len(prompts))] if groups is None else groups)
        for piece in pieces(
            causal_lm, [prompts[row] for row in group], [responses[row] for row in group], budget, recompute=recompute
        )
    ]
    for rows in microbatches:
        stats = forward_rows(causal_lm, prompts, responses, rows, kl_from=kl_from, recompute=recompute)
        sizes = [len(responses[row]) for row in rows]
        for row, logprobs, entropy, hidden, kl in zip(
            rows,
            stats.logprobs.cpu().split_with_sizes(sizes),
            stats.entropy.cpu().split_with_sizes(sizes),
            stats.hidden.cpu().split_with_sizes(sizes),
            [None] * len(rows) if stats.kl is None else stats.kl.cpu().split_with_sizes(sizes),
            strict=True,
        ):
            found[row] = RowStats(logprobs, entropy, hidden.clone() if keep_hidden else None, kl)
    return [found[row] for row in range(len(prompts))]


def score_rows(
    causal_lm: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Log-probabilities and entropies of all rows under the model as it stands, on the CPU."""
    stats = row_stats(causal_lm, prompts, responses, budget)
    return (
        pad_sequence([row.logprobs for row in stats], batch_first=True),
        pad_sequence([row.entropy for row in stats], batch_first=True),
    )


def vocabulary_kl(logits: Float[Tensor, "N V"], other_logits: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """KL(p ‖ q) of next-token distributions, exactly, in nats."""
    logprobs, other_logprobs = logits.log_softmax(-1), other_logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - other_logprobs)).sum(-1)


def _is_frozen_linear(head: Any) -> bool:
    return type(head) is torch.nn.Linear and not any(parameter.requires_grad for parameter in head.parameters())


def frozen_head_stats(
    head: Any,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, "N"],
    chunk: int,
    kl_from: Float[Tensor, "N H"] | None = None,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"], Bool[Tensor, "N"], Float[Tensor, "N"] | None]:
    """Log-probabilities, entropies, whether a token is the likeliest and, where ``kl_from`` is there, KL(other ‖ this),
    by a frozen head. Only log-probabilities carry a gradient, and where they do there is no KL.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        found = _FrozenHeadStats.apply(hidden, head.weight, head.bias, targets, chunk)  # type: ignore[no-untyped-call]
        return *found, None
    return _head_stats_without_gradient(head, hidden, targets, chunk, kl_from)


@torch.no_grad()
def _head_stats_without_gradient(
    head: Any, hidden: Tensor, targets: Tensor, chunk: int, kl_from: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    logprobs, entropy, kl = hidden.new_empty(3, len(hidden), dtype=torch.float32)
    likeliest = torch.empty_like(targets, dtype=torch.bool)
    for start in range(0, len(hidden), chunk):
        piece = slice(start, start + chunk)
        logits = head(hidden[piece])
        others = None if kl_from is None else head(kl_from[piece].to(hidden.dtype))
        for rows in in_cache(logits):
            own, at = Distribution(logits[rows].float()), slice(start + rows.start, start + rows.stop)
            logprobs[at], entropy[at] = own.logprobs(targets[at]), own.entropy()
            likeliest[at] = own.likeliest(targets[at])
            if others is not None:
                kl[at] = Distribution(others[rows].float()).kl(own)
    return logprobs, entropy, likeliest, None if kl_from is None else kl


class _FrozenHeadStats(torch.autograd.Function):
    """d log p(t) / d h = W[t] - Σ_v p(v)·W[v], Float[N, H]: known in the forward pass, whatever the loss is.

    It is computed as (1 - p(t))·(W[t] - Σ_{v≠t} q(v)·W[v]), where q(v) = p(v) / (1 - p(t)) is the distribution over the
    other tokens. In the form above, half precision would round p(t) to 1 for a nearly certain token (bfloat16 from
    .998 on), and the difference to 0.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, entropy = hidden.new_empty(2, len(hidden), dtype=torch.float32)
        likeliest = torch.empty_like(targets, dtype=torch.bool)
        slopes = torch.empty_like(hidden)
        for start in range(0, len(hidden), chunk):
            piece = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[piece], weight, bias)
            shares = logprobs.new_empty(len(logits), 1)
            for rows in in_cache(logits):
                own, at = Distribution(logits[rows].float()), slice(start + rows.start, start + rows.stop)
                logprobs[at], entropy[at] = own.logprobs(targets[at]), own.entropy()
                likeliest[at] = own.likeliest(targets[at])
                # These replace the logits, which are not needed any more.
                logits[rows], shares[rows] = own.others(targets[at])
            slopes[piece] = (weight[targets[piece]].float() - logits @ weight).mul_(shares)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropy, likeliest)
        return logprobs, entropy, likeliest

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None, None


def _head_stats(
    head: Any,
    hidden: Tensor,
    targets: Tensor,
    kl_to: Tensor | None,
    kl_from: Tensor | None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, whether a token is the likeliest, and divergences, for a chunk of N tokens whose
    logits are all in memory."""
    logits = head(hidden).float()
    log_normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    # H = log Z - E[logit], without a second [tokens, vocabulary] tensor of log-probabilities. Where it is only watched,
    # it carries no gradient.
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = log_normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
    with torch.no_grad():
        likeliest = logits.gather(-1, targets[:, None]).squeeze(-1) == logits.amax(-1)
        other = kl_from if kl_to is None else kl_to
        other_logits = None if other is None else head(other.to(hidden.dtype)).float()
    if other_logits is None:
        kl = torch.zeros_like(logprobs)
    else:
        kl = vocabulary_kl(other_logits, logits) if kl_to is None else vocabulary_kl(logits, other_logits)
    return logprobs, entropy, likeliest, kl
