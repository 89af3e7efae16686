"""Do the words with the largest shares matter to the model? It reads without them, and with them alone.

These are ERASER's two measures (DeYoung et al. 2020), of ln p in place of p: the tokens of answers are often unlikely.
Let x be what stands before an explained token, and r_k the share k of x that a method ranks highest:

    comprehensiveness = mean over k of  ln p(token | x) − ln p(token | x without r_k)      large: r_k was needed
    sufficiency       = mean over k of  ln p(token | x) − ln p(token | r_k alone)          small: r_k was enough

A method is compared with random orders of the same words, since any words that are taken out cost something. What is
taken out leaves the sequence, and the others keep their positions, so no method's own baseline is favoured. The word
right before the explained token always stays: the prediction is read from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewardlm.models.logprobs import body_and_head, microbatches
from rewardlm.stats import FloatArray
from rewardlm.stream import reading_answers
from rewardlm.trunk import trunk_states

# The shares k of what is taken out or left.
SHARES = (0.1, 0.2, 0.5)
# Random orders a token.
ORDERS = 2


@dataclass(frozen=True)
class Explained:
    """A token that was explained: ``context`` the ids before it, ``token`` its id. ``words`` are the first and last
    place (excluded) of each word in the context, ``sizes`` Float[len(words)] how much of the explanation each has.
    ``seed`` draws the random orders. The answer begins at ``start``, which matters to steered models."""

    context: Sequence[int]
    token: int
    words: Sequence[tuple[int, int]]
    sizes: FloatArray
    seed: int
    start: int = 0


@dataclass(frozen=True)
class Faithfulness:
    """Nats. ``random_…`` are means over random orders of the same words."""

    comprehensiveness: float
    sufficiency: float
    random_comprehensiveness: float
    random_sufficiency: float


def faithfulness(causal_lm: Any, explained: Explained, *, budget: int) -> Faithfulness:
    """Test one token's explanation, in batches of at most ``budget`` positions."""
    last = len(explained.context) - 1
    movable = [number for number, (_, end) in enumerate(explained.words) if end <= last]
    ranked = sorted(movable, key=lambda number: -explained.sizes[number])
    rng = np.random.default_rng(explained.seed)
    rows = [list(range(last + 1))]
    for order in (ranked, *(rng.permutation(movable).tolist() for _ in range(ORDERS))):
        for share in SHARES:
            top = _first_words(explained, order, share)
            # What belongs to none of these words always stays.
            others = {place for number in movable for place in range(*explained.words[number])} - top
            rows += [[place for place in rows[0] if place not in taken] for taken in (top, others)]
    logprobs = _read(causal_lm, explained, rows, budget)
    # For each order and share: without the words, then with them alone.
    drops = (logprobs[0] - logprobs[1:]).view(1 + ORDERS, len(SHARES), 2).mean(1)
    return Faithfulness(*(float(value) for value in (*drops[0], *drops[1:].mean(0))))


def _first_words(explained: Explained, order: Sequence[int], share: float) -> set[int]:
    """The places of the first words of ``order`` that together are ``share`` of all its tokens, one word at least."""
    wanted = share * sum(end - start for start, end in (explained.words[number] for number in order))
    places: set[int] = set()
    for number in order:
        if places and len(places) >= wanted:
            break
        places |= set(range(*explained.words[number]))
    return places


@torch.no_grad()
def _read(causal_lm: Any, explained: Explained, rows: Sequence[Sequence[int]], budget: int) -> Tensor:
    """ln p Float[len(rows)] of the token where only these places of its context are there."""
    body, head = body_and_head(causal_lm)
    device = next(causal_lm.parameters()).device
    context = torch.tensor(explained.context)
    found = torch.zeros(len(rows), dtype=torch.float64)
    # Rows without a tenth of the words stand beside rows of a tenth alone, so much of one pass would be padding.
    for piece in microbatches([len(row) for row in rows], budget, shortest=0.75):
        places = [torch.tensor(rows[row]) for row in piece]
        ends = torch.tensor([len(some) - 1 for some in places])
        positions = pad_sequence(places, batch_first=True)
        mask = torch.arange(positions.shape[1])[None] <= ends[:, None]
        # What the answer is predicted from, of what is left of prompt and answer.
        predicting = (mask & (positions >= explained.start - 1)).flatten().nonzero()[:, 0].to(device)
        with reading_answers(body, predicting):
            states = trunk_states(
                body, context[positions].to(device), mask.long().to(device), positions.to(device), None
            )
        logprobs = head(states[torch.arange(len(piece)), ends]).double().log_softmax(-1)
        found[piece] = logprobs[:, explained.token].cpu()
    return found
