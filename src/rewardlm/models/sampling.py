"""One token from a row's logits: drawn by the row's own number in [0, 1), with its log-probabilities and entropy.

The vocabulary is walked through as rarely as possible: it is as wide as all of a small model's layers together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from rewardlm.config import GenerationSettings

# Tokens in a block: a draw finds its block by the blocks' sums first, then its token in the block.
_BLOCK = 256
# How many logits a CPU's cache holds at once.
_IN_CACHE = 1 << 19
# The nucleus is looked for among this many likeliest tokens before all are sorted, which takes seven times as long.
_LIKELIEST = (256, 4096)
# A draw is at most this share of its sum, so that it stays below whatever rounding does.
_BELOW = 1 - 1e-12


@dataclass
class Drawn:
    """For B rows: the ``tokens`` Int[B], their ``logprobs`` and ``sampling_logprobs`` and the ``entropy`` Float[B]."""

    tokens: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor
    entropy: Tensor


class Sampler:
    """Draws by the settings of a generation; ``end_ids`` are the tokens that ``min_new_tokens`` holds back.

    ``entropy`` False leaves the entropy out, which saves one of few walks through the vocabulary, and gives 0 for it.
    """

    def __init__(self, settings: GenerationSettings, end_ids: Tensor, *, entropy: bool = True) -> None:
        self.settings = settings
        self._entropy = entropy
        self._end_ids = end_ids
        self._processors = _processors(settings)

    def draw(self, logits: Tensor, uniforms: Tensor, barred: Tensor | None = None) -> Drawn:
        """A token for each row of ``logits`` Float[B, V]; ``uniforms`` Float[B] in [0, 1), float64.

        ``barred`` Bool[B, V] are tokens that must not be drawn. ``logprobs`` and ``entropy`` are those of the unchanged
        logits; NaN or infinity there makes both NaN.
        """
        pieces = [
            self._draw(logits[piece].float(), uniforms[piece], None if barred is None else barred[piece])
            for piece in in_cache(logits)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return Drawn(
            torch.cat([piece.tokens for piece in pieces]),
            torch.cat([piece.logprobs for piece in pieces]),
            torch.cat([piece.sampling_logprobs for piece in pieces]),
            torch.cat([piece.entropy for piece in pieces]),
        )

    def barred(self, logits: Tensor, ages: Sequence[int], so_far: Sequence[Sequence[int]]) -> Tensor | None:
        """Which tokens can't be drawn yet, or again, Bool[B, V]; None where all can. ``logits`` Float[B, V] only have
        the shape. ``ages`` says how many tokens each row has, ``so_far`` which, prompt included; it may be empty where
        no n-gram is banned."""
        held = [age < self.settings.min_new_tokens for age in ages]
        size = self.settings.no_repeat_ngram_size
        if not size and not any(held):
            return None
        barred = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        barred[:, self._end_ids] = torch.tensor(held, device=logits.device)[:, None]
        for row, tokens in enumerate(so_far if size else ()):
            barred[row, _would_repeat(tokens, size)] = True
        return barred

    def _draw(self, logits: Tensor, uniforms: Tensor, barred: Tensor | None) -> Drawn:
        settings = self.settings
        own = Distribution(logits)
        scores = logits if barred is None else logits.masked_fill(barred, -torch.inf)
        if self._processors:
            scores = self._processors(None, scores)
        entropy = own.entropy() if self._entropy else torch.zeros_like(own.normaliser)
        if settings.temperature == 0:
            tokens = scores.argmax(-1)
            logprobs = own.logprobs(tokens)
            return Drawn(tokens, logprobs, torch.zeros_like(logprobs), entropy)
        drawn_from = own if scores is logits else Distribution(scores)
        if settings.top_p < 1:
            drawn_from = drawn_from.nucleus(settings.top_p)
        tokens = drawn_from.draw(uniforms)
        logprobs = own.logprobs(tokens)
        return Drawn(tokens, logprobs, logprobs if drawn_from is own else drawn_from.logprobs(tokens), entropy)


def in_cache(logits: Tensor) -> list[slice]:
    """Rows of ``logits`` Float[B, V] to process together: few on a CPU, so that repeated walks stay in its cache."""
    rows = max(1, _IN_CACHE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return [slice(start, min(start + rows, len(logits))) for start in range(0, len(logits), rows)]


class Distribution:
    """The softmax of ``logits`` Float[B, V], kept unnormalised, with its sums by block of the vocabulary.

    ``normaliser`` Float[B] is log Z. NaN or infinity among a row's logits makes all its numbers NaN.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.largest = logits.amax(-1, keepdim=True)
        self._sum_up((logits - self.largest).exp_())

    def _sum_up(self, weights: Tensor) -> None:
        logits = self.logits
        self.weights = weights
        blocked = pad(self.weights, (0, -logits.shape[-1] % _BLOCK)) if logits.shape[-1] % _BLOCK else self.weights
        self.blocks = blocked.view(len(logits), -1, _BLOCK)
        self.sums = self.blocks.sum(-1)
        self.cumulative = self.sums.double().cumsum(-1)
        self.normaliser = self.largest.squeeze(-1) + self.cumulative[:, -1].log().float()

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Of one token a row, Int[B] → Float[B]."""
        return self.logits.gather(-1, tokens[:, None]).squeeze(-1) - self.normaliser

    def likeliest(self, tokens: Tensor) -> Tensor:
        """Whether no other token is likelier than each of ``tokens`` Int[B], one a row: Bool[B]."""
        return (self.logits.gather(-1, tokens[:, None]) == self.largest).squeeze(-1)

    def others(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For all tokens but ``tokens`` Int[B], one a row: their distribution Float[B, V], 0 at the token itself, and
        their probability 1 - p(token) Float[B, 1], computed so that no digits cancel out near 0.

        The distribution overwrites the unnormalised one: nothing else can be asked afterwards.
        """
        own = self.weights.gather(-1, tokens[:, None])
        self.weights.scatter_(-1, tokens[:, None], 0)
        rest = self.weights.sum(-1, keepdim=True)
        # Where all others have weight 0, they stay 0 here instead of becoming 0 / 0.
        distribution = self.weights.div_(rest.clamp(min=torch.finfo(rest.dtype).tiny))
        return distribution, rest / (rest + own)

    def nucleus(self, top_p: float) -> Distribution:
        """Only the smallest set of likeliest tokens that holds ``top_p`` (nucleus sampling, Holtzman et al. 2020).

        Tokens as likely as the set's last one are in it too, so that the order of equals doesn't matter. Without such
        ties the set is that of transformers' ``TopPLogitsWarper``, which sorts the vocabulary of every row.
        """
        wanted = top_p * self.cumulative[:, -1:]
        least = torch.empty_like(self.largest)
        left = torch.arange(len(wanted), device=wanted.device)
        for k in (*_LIKELIEST, self.weights.shape[-1]):
            among = self.weights if len(left) == len(wanted) else self.weights[left]
            likeliest = among.topk(min(k, among.shape[-1]), -1).values
            mass = likeliest.double().cumsum(-1)
            # A token is in the set if the likelier ones hold less than what is wanted.
            within = (mass[:, :-1] < wanted[left]).sum(-1, keepdim=True)
            least[left] = likeliest.gather(-1, within)
            left = left[mass[:, -1] < wanted[left].squeeze(-1)]
            if not len(left):
                break
        kept = copy.copy(self)
        kept._sum_up(self.weights.masked_fill(self.weights < least, 0))
        return kept

    def entropy(self) -> Tensor:
        """log Z - E[logit]: Float[B], in nats."""
        return self.normaliser - self._expected(self.logits)

    def kl(self, other: Distribution) -> Tensor:
        """KL(this ‖ other) over the vocabulary, exactly: Float[B], in nats."""
        return self._expected(self.logits - other.logits) - (self.normaliser - other.normaliser)

    def _expected(self, values: Tensor) -> Tensor:
        """E[values] Float[B] of ``values`` Float[B, V]."""
        weighted: Tensor = torch.linalg.vecdot(self.weights, values)
        return weighted / self.cumulative[:, -1].float()

    def draw(self, uniforms: Tensor) -> Tensor:
        """One token a row by inverting the distribution function at ``uniforms``: its block first, then in the block.

        A token of probability 0 is never drawn. The target lies below the sum in which it is looked for, even after
        rounding, so the sum passes it at a token that adds to the sum.
        """
        rows = torch.arange(len(uniforms), device=uniforms.device)
        total = self.cumulative[:, -1]
        target = torch.minimum(uniforms * total, total * _BELOW)
        block = torch.searchsorted(self.cumulative, target[:, None], right=True).squeeze(-1)
        block = block.clamp(max=self.sums.shape[-1] - 1)  # Only NaN passes the end; the caller reports it.
        inner = self.blocks[rows, block].double().cumsum(-1)
        share = self.sums[rows, block].double()
        rest = (target - (self.cumulative[rows, block] - share)).clamp(min=0) * inner[:, -1] / share
        rest = torch.minimum(rest, inner[:, -1] * _BELOW)
        within = torch.searchsorted(inner, rest[:, None], right=True).squeeze(-1).clamp(max=_BLOCK - 1)
        return (block * _BLOCK + within).clamp(max=self.logits.shape[-1] - 1)


def _processors(settings: GenerationSettings) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if settings.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    return processors


def _would_repeat(tokens: Sequence[int], size: int) -> list[int]:
    """Which tokens would complete an n-gram of this size that ``tokens`` hold already. These are a row's own: a padded
    batch would ban those of its padding too."""
    start = len(tokens) - size + 1
    return [tokens[i + size - 1] for i in range(start) if tokens[i : i + size - 1] == tokens[start:]]
