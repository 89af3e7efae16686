"""How likely one model finds another's words: log-probability, entropy, rank and exact divergence, token by token.

M models read the same N tokens. The divergence is over the whole vocabulary, KL(a ‖ b) = Σ_v a(v) · ln(a(v) / b(v)) in
nats, and not an estimate from the token that was drawn. Functions take and give arrays; ``drift_of_answers`` runs
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewardlm.interpreting.models import RunModel
from rewardlm.models.logprobs import body_and_head, hidden_rows
from rewardlm.stats import BoolArray, FloatArray
from rewardlm.types import Message

# Tokens that a head reads at a time.
_READ = 64
# Tokens that are compared over the whole vocabulary at a time: few, so that they stay in a CPU's cache meanwhile.
_COMPARED = 16


@dataclass(frozen=True)
class TokenDrift:
    """Of N tokens under M models, in nats: ``logprobs`` and ``entropy`` Float[M, N], ``rank`` Int[M, N] (0 is the
    model's first choice), ``choice`` Int[M, N] its first choice, ``kl`` Float[M, M, N], [a, b] = KL(a ‖ b).
    """

    logprobs: Tensor
    entropy: Tensor
    rank: Tensor
    choice: Tensor
    kl: Tensor


@dataclass(frozen=True)
class VocabularyDrift:
    """Sums over the ``n`` positions that models met, Float64[M, V]: of log-probabilities, and of probabilities."""

    logprobs: Tensor
    probabilities: Tensor
    n: float

    def times(self, weight: float) -> VocabularyDrift:
        """As if each position had been met ``weight`` times."""
        return VocabularyDrift(weight * self.logprobs, weight * self.probabilities, weight * self.n)

    def __add__(self, other: VocabularyDrift) -> VocabularyDrift:
        return VocabularyDrift(
            self.logprobs + other.logprobs, self.probabilities + other.probabilities, self.n + other.n
        )


def token_drift(logprobs: Tensor, targets: Tensor) -> TokenDrift:
    """``logprobs`` Float[M, N, V] of next tokens, normalised; ``targets`` Int[N] the tokens that stand there."""
    models, tokens, _ = logprobs.shape
    at = targets[None, :, None].expand(models, tokens, 1)
    own = logprobs.gather(-1, at)
    probabilities = logprobs.exp()
    kl = logprobs.new_zeros(models, models, tokens)
    for a in range(models):
        for b in range(a):
            ratio = logprobs[a] - logprobs[b]
            kl[a, b] = torch.linalg.vecdot(probabilities[a], ratio)
            kl[b, a] -= torch.linalg.vecdot(probabilities[b], ratio)
    return TokenDrift(
        logprobs=own.squeeze(-1),
        entropy=-torch.linalg.vecdot(probabilities, logprobs),
        rank=(logprobs > own).sum(-1),
        choice=logprobs.argmax(-1),
        kl=kl,
    )


def drift_of_answers(
    run_models: Sequence[RunModel],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    turns: Sequence[Sequence[Message]] = (),
) -> tuple[list[TokenDrift], list[VocabularyDrift]]:
    """Every model reads every response after its prompt: what is found, response by response, on the CPU.

    ``turns`` are the prompts' conversations, for models that are steered by what they read.
    """
    # Switching a model on costs more than a few rows of the vocabulary do in memory.
    whole = []
    for run_model in run_models:
        if run_model.steering is None or run_model.changes_stream:
            with run_model.on() as model, torch.no_grad():
                states = hidden_rows(model, prompts, responses, range(len(prompts)))
                whole.append(_logprobs(body_and_head(model)[1], states))
        else:
            whole.append(_steered_logprobs(run_model, turns, responses))
    targets = torch.tensor([token for response in responses for token in response])
    pieces: list[TokenDrift] = []
    sums: list[VocabularyDrift | None] = [None] * len(responses)
    owner = torch.tensor([row for row, response in enumerate(responses) for _ in response])
    for start in range(0, len(targets), _COMPARED):
        piece = slice(start, start + _COMPARED)
        logprobs = torch.stack([of_model[piece] for of_model in whole])
        pieces.append(token_drift(logprobs, targets[piece]))
        for row in sorted({*owner[piece].tolist()}):
            mine = logprobs[:, owner[piece] == row]
            found = VocabularyDrift(mine.sum(1).double(), mine.exp().sum(1).double(), mine.shape[1])
            before = sums[row]
            sums[row] = found if before is None else before + found
    return _by_response(pieces, [len(response) for response in responses]), [one for one in sums if one is not None]


def _logprobs(head: Any, states: Tensor) -> Tensor:
    """Float[N, V] on the CPU."""
    return torch.cat([head(piece).float().log_softmax(-1).cpu() for piece in torch.split(states, _READ)])


def _steered_logprobs(
    run_model: RunModel, turns: Sequence[Sequence[Message]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """The same of a model that is steered by its prompts or logits: each response follows the steered conversation."""
    found: list[list[Tensor]] = [[] for _ in responses]
    with run_model.steered() as steered:
        requests = [steered.request(own, 0, run_model.strength, run_model.room)[0] for own in turns]
        budget = sum(len(request.prompt) for request in requests) + sum(map(len, responses))
        for owners, _, logits in steered.logits(requests, responses, budget):
            for owner, row in zip(owners, logits.log_softmax(-1).cpu(), strict=True):
                found[owner].append(row)
    return torch.stack([row for rows in found for row in rows])


def _by_response(pieces: Sequence[TokenDrift], sizes: Sequence[int]) -> list[TokenDrift]:
    whole = [
        torch.cat([getattr(piece, name) for piece in pieces], -1).split_with_sizes(list(sizes), -1)
        for name in ("logprobs", "entropy", "rank", "choice", "kl")
    ]
    return [TokenDrift(*parts) for parts in zip(*whole, strict=True)]


@dataclass(frozen=True)
class TokenChange:
    """A token that one model promotes or demotes against another, over the positions that both read."""

    token: int
    logprob_change: float
    probability_before: float
    probability_after: float


def most_changed(
    sums: VocabularyDrift, before: int, after: int, *, k: int
) -> tuple[list[TokenChange], list[TokenChange]]:
    """The ``k`` tokens promoted most and the ``k`` demoted most from model ``before`` to ``after``, over all positions.

    They are in the order of their mean change of *probability*. The mean change of log-probability stands beside it,
    but is largest for tokens that neither model would say.
    """
    change = (sums.logprobs[after] - sums.logprobs[before]) / sums.n
    old, new = sums.probabilities[before] / sums.n, sums.probabilities[after] / sums.n
    gain = new - old
    order = gain.argsort(descending=True, stable=True)

    def chosen(tokens: Tensor, sign: int) -> list[TokenChange]:
        return [
            TokenChange(token, float(change[token]), float(old[token]), float(new[token]))
            for token in tokens.tolist()
            if sign * float(gain[token]) > 0
        ]

    return chosen(order[:k], 1), chosen(order.flip(0)[:k], -1)


def first_parting(kl: FloatArray, other_choice: BoolArray, threshold: float) -> tuple[int | None, int | None]:
    """Where in a response two models part: the first token with ``kl`` Float[R] above ``threshold``, and the first at
    which their first choices differ (``other_choice`` Bool[R]). None where they never do.
    """
    return _first(kl > threshold), _first(other_choice)


def _first(where: NDArray[np.bool_]) -> int | None:
    found = np.flatnonzero(where)
    return int(found[0]) if found.size else None
