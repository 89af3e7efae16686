"""Pairs of a toxic and a harmless answer to one prompt, both the base's own: on them the parts of an adapter are tried.

How much more probable a model finds the harmless ones is its **preference**, in nats a token:

    E = log P(harmless answer) / its tokens − log P(toxic answer) / its tokens

A tuned model's own words are on neither side, so a preference that rose is about toxicity and not about whose words
they are. **Placebo pairs** are two harmless answers in random order: nothing should be found on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import GenerationSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE
from rewardlm.interpreting.findings import PositionKind
from rewardlm.interpreting.mechanistic.activations import ResponseBatch, batch_of
from rewardlm.interpreting.mechanistic.interventions import text_of
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.interpreting.word_shares import words
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import microbatches
from rewardlm.models.lora import using
from rewardlm.scoring.scorer import is_empty

POSITION_KINDS: tuple[PositionKind, ...] = ("template", "hostile", "prompt", "answer")


@dataclass(frozen=True)
class AskedOnce:
    """A prompt as token ids, and what each of its tokens is: of the template, of a hostile word, or of another."""

    prompt: tuple[int, ...]
    kinds: tuple[PositionKind, ...]


@dataclass(frozen=True)
class JudgedPair:
    """Two answers of the base to one prompt, as token ids. Of a placebo pair both are harmless."""

    asked: AskedOnce
    toxic: tuple[int, ...]
    harmless: tuple[int, ...]


@dataclass(frozen=True)
class PairBatch:
    """P pairs side by side: the toxic answers' P texts, then the harmless ones'. ``kinds`` Float[2P, T, 4] is 1 where a
    position is of that kind, and 0 at padding."""

    rows: list[int]
    batch: ResponseBatch
    kinds: Tensor

    def preference(self, logprobs: Tensor) -> Tensor:
        """E of each pair, Float[P], from the texts' mean log-probabilities Float[2P]."""
        toxic, harmless = logprobs.chunk(2)
        return harmless - toxic


def asked_once(tokenizer: Any, prompt: Sequence[int], turns: Sequence[str], judge: ToxicityFunction) -> AskedOnce:
    """What the tokens of a prompt are; ``judge`` says of a single word how toxic it is."""
    found: list[PositionKind] = ["template"] * len(prompt)
    of_prompt = [word for word in words(tokenizer, prompt, (), turns) if word.kind == "prompt"]
    scores = judge([word.text.strip() for word in of_prompt]) if of_prompt else []
    for word, score in zip(of_prompt, scores, strict=True):
        kind: PositionKind = "hostile" if (score or 0.0) > TOXIC_ABOVE else "prompt"
        found[word.start : word.end] = [kind] * (word.end - word.start)
    return AskedOnce(tuple(prompt), tuple(found))


def draw_pairs(
    policy: Policy,
    asked: Sequence[AskedOnce],
    judge: ToxicityFunction,
    *,
    number: int,
    draws: int,
    max_new_tokens: int,
    batch_tokens: int,
    seed: int,
) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """At most ``number`` pairs and as many placebo pairs, one of each a prompt, in the order of ``asked``.

    The base answers every prompt ``draws`` times. Of a prompt that it answered both toxically and not, the most and the
    least toxic answer are a pair; two of its harmless ones are a placebo pair, in an order that ``seed`` draws.
    """
    rng = np.random.default_rng(seed)
    pairs: list[JudgedPair] = []
    placebo: list[JudgedPair] = []
    # A few prompts at a time, so that no more are answered than are needed.
    for start in range(0, len(asked), max(1, number // 2)):
        if len(pairs) >= number:
            break
        own = asked[start : start + max(1, number // 2)]
        with using(policy, None):
            requests = [
                Request(one.prompt, stream_seed(seed, "pairs", start + row, draw))
                for row, one in enumerate(own)
                for draw in range(draws)
            ]
            tokens: list[tuple[int, ...]] = [()] * len(requests)
            for answer in generate(
                policy,
                requests,
                max_new_tokens=max_new_tokens,
                sampling=GenerationSettings(),
                batch_tokens=batch_tokens,
            ):
                tokens[answer.index] = tuple(answer.tokens)
        scores = judge([text_of(policy, one) for one in tokens])
        for row, one in enumerate(own):
            here = range(row * draws, (row + 1) * draws)
            known = [
                (score, tokens[at])
                for at in here
                if (score := scores[at]) is not None and not is_empty(text_of(policy, tokens[at]))
            ]
            known.sort(key=lambda scored: scored[0])
            harmless = [found for score, found in known if score <= TOXIC_ABOVE]
            if harmless and known[-1][0] > TOXIC_ABOVE:
                pairs.append(JudgedPair(one, known[-1][1], harmless[0]))
            if len(harmless) >= 2:
                first, second = rng.permutation(2).tolist()
                placebo.append(JudgedPair(one, harmless[first], harmless[second]))
    return pairs[:number], placebo[:number]


def pair_batches(pairs: Sequence[JudgedPair], device: torch.device, batch_tokens: int) -> Iterator[PairBatch]:
    """All pairs in batches of about equal length."""
    lengths = [2 * (len(p.asked.prompt) + max(len(p.toxic), len(p.harmless))) for p in pairs]
    for rows in microbatches(lengths, batch_tokens):
        own = [pairs[row] for row in rows]
        prompts = [pair.asked.prompt for pair in own] * 2
        batch = batch_of(prompts, [pair.toxic for pair in own] + [pair.harmless for pair in own], device)
        kinds = torch.zeros(*batch.tokens.shape, len(POSITION_KINDS), device=device)
        for place, pair in enumerate([*own, *own]):
            for position, kind in enumerate(pair.asked.kinds):
                kinds[place, position, POSITION_KINDS.index(kind)] = 1
            kinds[place, len(pair.asked.prompt) :, POSITION_KINDS.index("answer")] = 1
        yield PairBatch(list(rows), batch, kinds * batch.mask[..., None])
