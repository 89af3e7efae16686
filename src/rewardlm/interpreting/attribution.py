"""On which earlier tokens does a token rest? A hook on the embeddings answers, so any adapter may stay on.

What is explained is always ln p(token | what stands before it). Scores are signed, in nats:

* ``input_x_gradient``: x_i · ∂ ln p / ∂x_i (Shrikumar et al. 2016), x_i the embedding of token i;
* ``integrated_gradients``: (x_i − b_i) · ∫ ∂ ln p / ∂x_i along the straight line from a baseline b to x (Sundararajan
  et al. 2017). Their sum must be ln p(x) − ln p(b) (completeness). The integral is refined until it nearly is; a token
  that doesn't get there has no scores;
* ``occlusion``: what ln p loses where x_i is replaced by the baseline's (Zeiler & Fergus 2014).

Rows don't see each other, so one backward pass explains one token of every answer in the batch. It leaves out what
stands after these tokens wherever a model can read rows in pieces (``models.logprobs.passes_to_cuts``). Only inputs get
gradients, so weights may be frozen, merged or quantised.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.errors import ConfigError, ModelError
from rewardlm.models.logprobs import body_and_head, microbatches, pack, passes_to_cuts, response_states
from rewardlm.models.threads import side_by_side


@dataclass(frozen=True)
class Completeness:
    """Whether the scores of K explained tokens add up to what they must. All in nats.

    ``difference`` Float[K] is ln p(x) − ln p(baseline); ``gap`` Float[K] the scores' sum minus that. ``bound`` Float[K]
    adds up the gaps of the path's stretches without their signs, so that gaps of opposite signs don't hide each other;
    it is at least ``|gap|``. ``steps`` Int[K] counts the points at which a gradient was taken. ``reached`` Bool[K]:
    ``bound`` is at most ``tolerance`` times ``|difference|``.
    """

    difference: Tensor
    gap: Tensor
    bound: Tensor
    steps: Tensor
    reached: Tensor
    tolerance: float

    def refusal(self, k: int) -> str | None:
        """Why token ``k`` has no scores; None where it has them."""
        if bool(self.reached[k]):
            return None
        return (
            f"the path's stretches miss their sums by {float(self.bound[k]):.3g} nats together (the scores by "
            f"{float(self.gap[k]):.3g}) after {int(self.steps[k])} steps, where the difference from the baseline is "
            f"{float(self.difference[k]):.3g}: expected {self.tolerance:.0%} of it at most; raise "
            "attribution.most_steps, or choose another method"
        )


@dataclass(frozen=True)
class Attributed:
    """K explained tokens of one answer: ``scores`` Float[K, P + R] over prompt and answer, 0 from the token itself on;
    ``logprobs`` Float[K] of the tokens. ``completeness`` where the method promises a sum; a token that doesn't reach
    it is refused, and its scores are NaN.
    """

    scores: Tensor
    logprobs: Tensor
    completeness: Completeness | None = None


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
    tolerance: float = 0.05,
    most_steps: int = 512,
    budget: int = 512,
    report: Callable[[Sequence[int], Sequence[Attributed]], None] | None = None,
) -> list[Attributed]:
    """Explain the tokens at ``positions`` of each response (ascending, none twice), in microbatches of at most
    ``budget`` positions. By ``input_x_gradient`` several microbatches may run at once (``models.threads``).

    ``baseline`` is the token whose embedding stands for nothing; None is an embedding of zeros. ``steps``,
    ``tolerance`` and ``most_steps`` are integrated gradients': so many points to begin with, how far the sum may miss
    as a share of what it should be, and at most so many points a token. ``report(rows, found)`` is called as
    microbatches are done.
    """
    methods: dict[str, Callable[..., list[Attributed]]] = {
        "input_x_gradient": _input_x_gradient,
        "integrated_gradients": _integrated_gradients,
        "occlusion": _occlusion,
    }
    if method not in methods:
        raise ConfigError(f"attribution method {method!r}: expected one of {', '.join(methods)}")
    for row, where in enumerate(positions):
        if any(later <= at for at, later in pairwise(where)):
            raise ConfigError(f"positions {[*where]} of response {row}: expected ascending ones, none twice")
    # What stands after the last explained token says nothing about any.
    read = [response[: max(where, default=-1) + 1] for response, where in zip(responses, positions, strict=True)]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, read, strict=True)]
    result: dict[int, Attributed] = {}

    def explained(rows: Sequence[int]) -> list[Attributed]:
        batch = _Batch(causal_lm, *([of[row] for row in rows] for of in (prompts, read, positions)))
        found = methods[method](
            batch, baseline=baseline, steps=steps, tolerance=tolerance, most_steps=most_steps, budget=budget
        )
        return [_widened(one, len(prompts[row]) + len(responses[row])) for row, one in zip(rows, found, strict=True)]

    batches = microbatches(lengths, budget)
    # The others also read whole rows, whose attention is another one than that of rows in pieces.
    alike = method == "input_x_gradient"
    if alike and len(batches) > 2:
        # Side by side, the first one runs alone: let that be the shortest row.
        shortest, *others = batches
        batches = [part for part in (shortest[:1], shortest[1:], *others) if part]
    turns = side_by_side(causal_lm, explained, batches) if alike else map(explained, batches)
    for rows, found in zip(batches, turns, strict=True):
        result.update(zip(rows, found, strict=True))
        if report is not None:
            report(rows, found)
    return [result[row] for row in range(len(lengths))]


def _widened(found: Attributed, length: int) -> Attributed:
    """``found`` over all ``length`` positions of its row; after the last explained token stands 0, or NaN for a token
    that is refused."""
    scores = torch.nn.functional.pad(found.scores, (0, length - found.scores.shape[1]))
    scores[found.scores.isnan().any(1)] = torch.nan
    return replace(found, scores=scores)


class _Batch:
    """B rows, and of their n explained tokens, row after row, where they stand and what they are."""

    def __init__(self, causal_lm: Any, prompts: Rows, responses: Rows, positions: Rows) -> None:
        self.causal_lm = causal_lm
        self.prompts, self.responses, self.positions = prompts, responses, positions
        self.device = next(causal_lm.parameters()).device
        self.ends = [len(prompts[row]) + at for row, where in enumerate(positions) for at in where]
        self.targets = torch.tensor(
            [responses[row][at] for row, where in enumerate(positions) for at in where], device=self.device
        )
        self.sizes = [len(where) for where in positions]

    @property
    def width(self) -> int:
        """L, the positions of the longest row."""
        return max(len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses, strict=True))

    def logprobs(self) -> Tensor:
        """Float[n] of the explained tokens, by one pass over all rows, padded to L."""
        offsets = np.concatenate([[0], np.cumsum([len(response) for response in self.responses])])
        places = [int(offsets[row]) + at for row, where in enumerate(self.positions) for at in where]
        states = response_states(self.causal_lm, pack(self.prompts, self.responses, self.device, share=False))
        return _target_logprobs(
            self.causal_lm, states[torch.tensor(places, dtype=torch.long, device=self.device)], self.targets
        )

    def split(self, scores: Tensor, logprobs: Tensor) -> list[Attributed]:
        """``scores`` Float[n, L], cut to each row's length and to what stands before the token."""
        before = torch.arange(scores.shape[1])[None] < torch.tensor(self.ends)[:, None]
        scores = torch.where(before, scores.float().cpu(), torch.zeros(()))
        parts = zip(
            scores.split_with_sizes(self.sizes), logprobs.float().cpu().split_with_sizes(self.sizes), strict=True
        )
        return [
            Attributed(mine[:, : len(self.prompts[row]) + len(self.responses[row])].clone(), own)
            for row, (mine, own) in enumerate(parts)
        ]


@contextlib.contextmanager
def embeddings_changed(causal_lm: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, the model reads ``change`` of its token embeddings Float[B, L, H], in this thread."""
    module, mine = causal_lm.get_input_embeddings(), threading.get_ident()

    def hook(_module: Any, _arguments: Any, output: Tensor) -> Tensor | None:
        return change(output) if threading.get_ident() == mine else None

    # PyTorch numbers hooks, and gives one number twice if two are registered at once.
    with _registering:
        handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


_registering = threading.Lock()


def _target_logprobs(causal_lm: Any, states: Tensor, targets: Tensor) -> Tensor:
    logits: Tensor = body_and_head(causal_lm)[1](states).float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def _gradients_along(batch: _Batch, nothing: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Float[n, L] (x_i − b) · ∂ ln p(token) / ∂x_i at b + share · (x − b), and ln p Float[n] there; ``nothing`` is b
    Float[H], ``shares`` Float[B] are the rows'.
    """
    causal_lm = batch.causal_lm
    passes = passes_to_cuts(causal_lm, batch.prompts, batch.responses, batch.positions)
    # Of each pass: x − b, the embeddings that it read, and the states that explained tokens are predicted from.
    ways: list[Tensor] = []
    leaves: list[Tensor] = []
    states: list[Tensor] = []
    for one in passes:

        def change(output: Tensor, share: Tensor = shares[one.rows, None]) -> Tensor:
            way = output.detach().flatten(0, -2) - nothing
            ways.append(way.float())
            leaves.append((nothing + share.to(way) * way).requires_grad_())
            return leaves[-1].view_as(output)

        with torch.enable_grad(), embeddings_changed(causal_lm, change):
            states.append(one.run())
        if len(leaves) != len(states):
            raise ModelError(
                f"{type(causal_lm).__name__} doesn't read its token embeddings exactly once, as attribution needs: "
                "this model is not supported"
            )
    logprobs = torch.zeros(len(batch.ends), device=batch.device)
    scores = torch.zeros(len(batch.ends), batch.width, device=batch.device)
    first = torch.tensor([0, *batch.sizes]).cumsum(0)
    for turn, (one, predicting) in enumerate(zip(passes, states, strict=True)):
        row, number = one.cuts.unbind(1)
        tokens = first[row] + number  # Of all explained ones.
        logprobs[tokens], slopes = _through_head(causal_lm, predicting.detach(), batch.targets[tokens])
        # The k-th token of every row in one backward pass, through this pass and those before it.
        for k in {*number.tolist()}:
            kth = number == k
            toward = torch.zeros_like(predicting)
            toward[kth] = slopes[kth]
            gradients = torch.autograd.grad(predicting, leaves[: turn + 1], grad_outputs=toward, retain_graph=True)
            token_of_row = torch.full((len(batch.sizes),), -1).index_put((row[kth],), tokens[kth])
            for earlier, way, gradient in zip(passes, ways, gradients, strict=False):
                token = token_of_row[earlier.rows]
                known = token >= 0
                along = torch.linalg.vecdot(gradient.float(), way)
                scores[token[known], earlier.places[known]] = along[known]
    return scores, logprobs


def _through_head(causal_lm: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """ln p Float[n] of ``targets`` and its gradient by ``states`` Float[n, H], for all tokens at once: each depends on
    one state alone."""
    logprobs, slopes = [], []
    for piece, own in zip(torch.split(states, 128), torch.split(targets, 128), strict=True):
        with torch.enable_grad():
            tip = piece.clone().requires_grad_()
            values = _target_logprobs(causal_lm, tip, own)
            slopes.append(torch.autograd.grad(values.sum(), tip)[0])
        logprobs.append(values.detach())
    return torch.cat(logprobs), torch.cat(slopes)


def _input_x_gradient(batch: _Batch, **_: Any) -> list[Attributed]:
    nothing = _baseline(batch.causal_lm, None)
    return batch.split(*_gradients_along(batch, nothing, torch.ones(len(batch.sizes))))


# Points of a Gauss-Legendre rule on one stretch of the path: exact for polynomials of degree 15.
_POINTS = 8


class _Path:
    """The straight path of one row's embeddings from a baseline to themselves, and what ln p does along it."""

    def __init__(self, batch: _Batch, row: int, nothing: Tensor, budget: int) -> None:
        self._lm, self._nothing = batch.causal_lm, nothing
        self._prompt, self._response, self.positions = batch.prompts[row], batch.responses[row], batch.positions[row]
        self.length = len(self._prompt) + len(self._response)
        self.ends = [len(self._prompt) + at for at in self.positions]
        self._at_a_time = max(1, budget // self.length)

    @torch.no_grad()
    def values(self, shares: Sequence[float]) -> Tensor:
        """ln p Float[len(shares), K] of every token at these shares of the way."""
        found = []
        for copies, some in self._copies(shares, range(len(self.positions))):
            with embeddings_changed(self._lm, partial(self._point, some)):
                found.append(copies.logprobs())
        return torch.cat(found).view(len(shares), -1).double().cpu()

    def integral(self, start: float, end: float, points: int, tokens: Sequence[int]) -> Tensor:
        """(x − b) · ∫ ∂ ln p / ∂x from ``start`` to ``end``, Float[K, L]; 0 for what isn't among ``tokens``."""
        nodes, weights = np.polynomial.legendre.leggauss(points)
        shares = (start + (nodes + 1) / 2 * (end - start)).tolist()
        found = [_gradients_along(copies, self._nothing, some)[0] for copies, some in self._copies(shares, tokens)]
        slopes = torch.cat(found).double().cpu()
        weighted = torch.from_numpy(weights / 2 * (end - start))
        total = torch.zeros(len(self.positions), slopes.shape[-1], dtype=torch.float64)
        total[list(tokens)] = torch.einsum("p,pkl->kl", weighted, slopes.view(points, len(tokens), -1))
        return total

    def _copies(self, shares: Sequence[float], tokens: Sequence[int]) -> Iterator[tuple[_Batch, Tensor]]:
        """The row once a share, some at a time, and these shares."""
        positions = [self.positions[k] for k in tokens]
        for first in range(0, len(shares), self._at_a_time):
            some = torch.tensor(shares[first : first + self._at_a_time])
            n = len(some)
            yield _Batch(self._lm, [self._prompt] * n, [self._response] * n, [positions] * n), some

    def _point(self, shares: Tensor, x: Tensor) -> Tensor:
        """Of embeddings Float[n, L, H], those at the rows' ``shares`` Float[n] of the way."""
        return self._nothing + shares.to(x)[:, None, None] * (x - self._nothing)


@dataclass(frozen=True)
class _Segment:
    """A part of a path: ``integral`` Float[K, L], and ``gap`` Float[K], by how much its sum misses what ln p changed
    from ``start`` to ``end``, where it is ``before`` and ``after`` Float[K]."""

    start: float
    end: float
    before: Tensor
    after: Tensor
    integral: Tensor

    @property
    def gap(self) -> Tensor:
        return self.integral.sum(1) - (self.after - self.before)


def _integrated_gradients(
    batch: _Batch, *, baseline: int | None, steps: int, tolerance: float, most_steps: int, budget: int
) -> list[Attributed]:
    """By Gauss-Legendre quadrature on stretches of each row's path, refined where ln p is steep."""
    nothing = _baseline(batch.causal_lm, baseline)
    return [
        _complete(_Path(batch, row, nothing, budget), steps, tolerance, most_steps) for row in range(len(batch.prompts))
    ]


def _complete(path: _Path, steps: int, tolerance: float, most_steps: int) -> Attributed:
    """Integrate until the sum of every token is what it must be, or ``most_steps`` points are spent.

    What a stretch must add up to is known without any integral: the change of ln p from its start to its end, a forward
    pass each. So the stretch that misses most is halved, again and again (adaptive quadrature, with the true error in
    place of an estimate). A token that is done is not differentiated any more.
    """
    n = len(path.positions)
    points = min(steps, _POINTS)
    edges = np.linspace(0, 1, -(-steps // points) + 1).tolist()
    values = path.values(edges)
    difference = values[-1] - values[0]
    scores = torch.full((n, path.length), torch.nan, dtype=torch.float64)
    gap, bound = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    spent, reached = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
    left = list(range(n))
    stretches = [
        _Segment(start, end, values[k], values[k + 1], path.integral(start, end, points, left))
        for k, (start, end) in enumerate(pairwise(edges))
        if left
    ]
    taken = points * len(stretches)
    while left:
        gaps = torch.stack([stretch.gap for stretch in stretches])
        gap[left], bound[left], spent[left] = gaps.sum(0)[left], gaps.abs().sum(0)[left], taken
        reached[left] = (bound <= tolerance * difference.abs())[left]
        for k in left:
            if reached[k]:
                scores[k] = sum(stretch.integral[k] for stretch in stretches)
        left = [k for k in left if not reached[k]]
        if not left or taken + 2 * points > most_steps:
            break
        # A difference of 0 is never reached, and must not choose the stretch for the others.
        share = gaps[:, left].abs() / difference[left].abs().clamp(min=1e-3)
        worst = stretches.pop(int(share.max(1).values.argmax()))
        middle = (worst.start + worst.end) / 2
        between = path.values([middle])[0]
        stretches += [
            _Segment(worst.start, middle, worst.before, between, path.integral(worst.start, middle, points, left)),
            _Segment(middle, worst.end, between, worst.after, path.integral(middle, worst.end, points, left)),
        ]
        taken += 2 * points
    before = torch.arange(path.length)[None] < torch.tensor(path.ends, dtype=torch.long)[:, None]
    scores = torch.where(before | ~reached[:, None], scores, 0.0).float()
    return Attributed(scores, values[-1].float(), Completeness(difference, gap, bound, spent, reached, tolerance))


@torch.no_grad()
def _occlusion(batch: _Batch, *, baseline: int | None, budget: int, **_: Any) -> list[Attributed]:
    """One forward pass for each input token. It serves all explained tokens, since each sees only what is before it."""
    nothing = _baseline(batch.causal_lm, baseline)
    whole = batch.logprobs()
    scores = whole.new_zeros(len(batch.ends), batch.width)
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
                left = copies.logprobs()
            scores[mine, start : start + len(hidden)] = whole[mine][:, None] - left.view(len(hidden), size).T
    return batch.split(scores, whole)


@torch.no_grad()
def _baseline(causal_lm: Any, token: int | None) -> Tensor:
    """Float[H]: the embedding that stands for nothing."""
    embeddings = causal_lm.get_input_embeddings()
    device = next(causal_lm.parameters()).device
    of_token: Tensor = embeddings(torch.tensor([[token or 0]], device=device))[0, 0]
    return torch.zeros_like(of_token) if token is None else of_token
