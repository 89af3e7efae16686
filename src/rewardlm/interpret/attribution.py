"""On which tokens does a token rest? Attribution by our own hook on the embeddings, so that any adapter may stay on.

What is explained is always ln p(token | what stands before it), and the scores are signed and in nats:

* ``input_x_gradient``: x_i · ∂ ln p / ∂x_i (Shrikumar et al. 2016), x_i the embedding of token i;
* ``integrated_gradients``: (x_i − b_i) · ∫ ∂ ln p / ∂x_i along the straight line from a baseline b to x (Sundararajan
  et al. 2017); their sum is ln p(x) − ln p(b), which is how its error is known;
* ``occlusion``: what ln p loses where x_i is replaced by the baseline's (Zeiler & Fergus 2014).

A backward pass explains one token of every answer in the batch at once, since rows don't see each other. Only inputs
get gradients, so weights may be frozen, merged or quantised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.errors import ConfigError, ModelError
from rewardlm.models.logprobs import Packed, body_and_head, microbatches, pack, response_states


@dataclass(frozen=True)
class Attributed:
    """K explained tokens of one answer: ``scores`` Float[K, P + R] over prompt and answer, 0 from the token itself on;
    ``logprobs`` Float[K] of the tokens. ``error`` Float[K]: by how much the scores' sum misses what it should be, where
    the method promises one.
    """

    scores: Tensor
    logprobs: Tensor
    error: Tensor | None


Rows = Sequence[Sequence[int]]


def attribute(
    causal_lm: Any,
    prompts: Rows,
    responses: Rows,
    positions: Rows,
    *,
    method: str = "input_x_gradient",
    baseline: int | None = None,
    steps: int = 16,
    budget: int = 512,
    report: Callable[[Sequence[int], Sequence[Attributed]], None] | None = None,
) -> list[Attributed]:
    """Explain the tokens at ``positions`` of each response, in microbatches of at most ``budget`` positions.

    ``baseline`` is the token whose embedding stands for nothing; None is an embedding of zeros. ``report(rows, found)``
    is called as microbatches are done.
    """
    methods: dict[str, Callable[..., list[Attributed]]] = {
        "input_x_gradient": _input_x_gradient,
        "integrated_gradients": _integrated_gradients,
        "occlusion": _occlusion,
    }
    if method not in methods:
        raise ConfigError(f"attribution method {method!r}: expected one of {', '.join(methods)}")
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    result: dict[int, Attributed] = {}
    for rows in microbatches(lengths, budget):
        batch = _Batch(causal_lm, *([of[row] for row in rows] for of in (prompts, responses, positions)))
        found = methods[method](batch, baseline=baseline, steps=steps, budget=budget)
        result.update(zip(rows, found, strict=True))
        if report is not None:
            report(rows, found)
    return [result[row] for row in range(len(lengths))]


class _Batch:
    """B rows, packed whole, and where their explained tokens stand among the flat response tokens."""

    def __init__(self, causal_lm: Any, prompts: Rows, responses: Rows, positions: Rows) -> None:
        self.causal_lm = causal_lm
        self.prompts, self.responses, self.positions = prompts, responses, positions
        self.device = next(causal_lm.parameters()).device
        self.packed: Packed = pack(prompts, responses, self.device, share=False)
        offsets = np.concatenate([[0], np.cumsum([len(response) for response in responses])])
        # Of the explained tokens, one after the other: flat place, row, position in the row, the token.
        self.places = torch.tensor(
            [int(offsets[row]) + at for row, where in enumerate(positions) for at in where], dtype=torch.long
        ).to(self.device)
        self.rows = [row for row, where in enumerate(positions) for _ in where]
        self.ends = [len(prompts[row]) + at for row, where in enumerate(positions) for at in where]
        self.targets = torch.tensor(
            [responses[row][at] for row, where in enumerate(positions) for at in where], device=self.device
        )
        self.sizes = [len(where) for where in positions]

    def logprobs(self, states: Tensor) -> Tensor:
        """Float[n] of the explained tokens from all response tokens' states."""
        return _target_logprobs(self.causal_lm, states[self.places], self.targets)

    def split(self, scores: Tensor, logprobs: Tensor, error: Tensor | None = None) -> list[Attributed]:
        """``scores`` Float[n, L], cut to each row's length and to what stands before the token."""
        before = torch.arange(scores.shape[1])[None] < torch.tensor(self.ends)[:, None]
        scores = torch.where(before, scores.float().cpu(), torch.zeros(()))
        parts = zip(
            scores.split_with_sizes(self.sizes),
            logprobs.float().cpu().split_with_sizes(self.sizes),
            [None] * len(self.sizes) if error is None else error.float().cpu().split_with_sizes(self.sizes),
            strict=True,
        )
        return [
            Attributed(mine[:, : len(self.prompts[row]) + len(self.responses[row])].clone(), own, off)
            for row, (mine, own, off) in enumerate(parts)
        ]


@contextlib.contextmanager
def embeddings_changed(causal_lm: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, ``change`` of the token embeddings Float[B, L, H] is what the model goes on with."""
    module = causal_lm.get_input_embeddings()
    handle = module.register_forward_hook(lambda _module, _arguments, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def _target_logprobs(causal_lm: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = body_and_head(causal_lm)[1](states).float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _gradients_along(
    batch: _Batch, point: Callable[[Tensor], Tensor], direction: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Float[n, L] direction_i · ∂ ln p(token) / ∂x_i at ``point`` of the embeddings, and ln p Float[n] there."""
    leaf: Tensor | None = None
    way: Tensor | None = None

    def change(output: Tensor) -> Tensor:
        nonlocal leaf, way
        way = direction(output.detach()).float()
        leaf = point(output.detach()).clone().requires_grad_()
        return leaf

    with torch.enable_grad(), embeddings_changed(batch.causal_lm, change):
        states = response_states(batch.causal_lm, batch.packed)
    if leaf is None or way is None:
        raise ModelError(f"{type(batch.causal_lm).__name__} has run without its token embeddings: not supported")
    # The head first, for all tokens at once: each log-probability depends on one state alone.
    chosen = states.detach()[batch.places]
    logprobs, slopes = [], []
    for piece, targets in zip(torch.split(chosen, 128), torch.split(batch.targets, 128), strict=True):
        with torch.enable_grad():
            tip = piece.clone().requires_grad_()
            values = _target_logprobs(batch.causal_lm, tip, targets)
            slopes.append(torch.autograd.grad(values.sum(), tip)[0])
        logprobs.append(values.detach())
    slope = torch.cat(slopes)
    scores = way.new_zeros(len(batch.rows), way.shape[1])
    number = [place for size in batch.sizes for place in range(size)]
    # The k-th token of every row in one backward pass.
    for k in range(max(batch.sizes, default=0)):
        mine = [place for place, order in enumerate(number) if order == k]
        toward = torch.zeros_like(states)
        toward[batch.places[mine]] = slope[mine]
        (gradient,) = torch.autograd.grad(states, leaf, grad_outputs=toward, retain_graph=True)
        rows = [batch.rows[place] for place in mine]
        scores[mine] = torch.einsum("blh,blh->bl", gradient.float()[rows], way[rows])
    return scores, torch.cat(logprobs)


def _input_x_gradient(batch: _Batch, **_: Any) -> list[Attributed]:
    return batch.split(*_gradients_along(batch, lambda x: x, lambda x: x))


def _integrated_gradients(batch: _Batch, *, baseline: int | None, steps: int, **_: Any) -> list[Attributed]:
    """By Gauss-Legendre quadrature with ``steps`` points, which is exact for polynomials of degree 2·steps − 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    nothing = _baseline(batch.causal_lm, baseline)
    scores = torch.zeros(())
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):

        def between(x: Tensor, share: float = float(node)) -> Tensor:
            return nothing + share * (x - nothing)

        found, _values = _gradients_along(batch, between, lambda x: x - nothing)
        scores = scores.to(found.device) + float(weight) * found
    with torch.no_grad():
        at_input = batch.logprobs(response_states(batch.causal_lm, batch.packed))
        with embeddings_changed(batch.causal_lm, lambda x: nothing.expand_as(x).clone()):
            at_baseline = batch.logprobs(response_states(batch.causal_lm, batch.packed))
    return batch.split(scores, at_input, scores.sum(1) - (at_input - at_baseline))


@torch.no_grad()
def _occlusion(batch: _Batch, *, baseline: int | None, budget: int, **_: Any) -> list[Attributed]:
    """One forward pass a token of the input: since a token sees what is before it, each serves all explained tokens."""
    nothing = _baseline(batch.causal_lm, baseline)
    whole = batch.logprobs(response_states(batch.causal_lm, batch.packed))
    scores = whole.new_zeros(len(batch.rows), batch.packed.tokens.shape[1])
    first = 0
    for row, size in enumerate(batch.sizes):
        mine = slice(first, first + size)
        first += size
        if not size:
            continue
        prompt, response, positions = batch.prompts[row], batch.responses[row], batch.positions[row]
        last = len(prompt) + max(positions)
        at_a_time = max(1, budget // (len(prompt) + len(response)))
        for start in range(0, last, at_a_time):
            hidden = range(start, min(start + at_a_time, last))
            copies = _Batch(
                batch.causal_lm, [prompt] * len(hidden), [response] * len(hidden), [positions] * len(hidden)
            )

            def without(x: Tensor, hidden: range = hidden) -> Tensor:
                x = x.clone()
                x[torch.arange(len(hidden)), torch.tensor(hidden)] = nothing.to(x.dtype)
                return x

            with embeddings_changed(batch.causal_lm, without):
                left = copies.logprobs(response_states(batch.causal_lm, copies.packed))
            scores[mine, start : start + len(hidden)] = whole[mine][:, None] - left.view(len(hidden), size).T
    return batch.split(scores, whole)


@torch.no_grad()
def _baseline(causal_lm: Any, token: int | None) -> Tensor:
    """Float[H]: the embedding that stands for nothing."""
    embeddings = causal_lm.get_input_embeddings()
    device = next(causal_lm.parameters()).device
    of_token: Tensor = embeddings(torch.tensor([[token or 0]], device=device))[0, 0]
    return torch.zeros_like(of_token) if token is None else of_token
