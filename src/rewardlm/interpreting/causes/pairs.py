"""Pairs of a toxic and a harmless answer to one prompt, on which the parts of an adapter are tried.

How much more probable a model finds the harmless ones is its **preference**, in nats a token:

    E = log P(harmless answer) / its tokens − log P(toxic answer) / its tokens

Both answers are the base's. A tuned model's own words are on neither side, so a preference that rose isn't about whose
words they are. Many an adapter doesn't raise it: it moves the model to answers that the base would not have given. Then
a harmless answer of the tuned model takes the other's place (``own_pairs``), and what is found is about the change to
its own words.

**Placebo pairs** are chosen alike, but no answer is toxic: the base's most and least toxic of the harmless ones; with
own pairs, the base's harmless one and the tuned model's. What does as much there isn't about toxic answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewardlm.config import CausesSettings
from rewardlm.interpreting.answers import TOXIC_ABOVE
from rewardlm.interpreting.findings import PositionKind, TokenKind
from rewardlm.interpreting.mechanistic.activations import ResponseBatch, batch_of
from rewardlm.interpreting.mechanistic.interventions import answers_to, text_of
from rewardlm.interpreting.mechanistic.word_contrast import ToxicityFunction
from rewardlm.interpreting.word_shares import words
from rewardlm.models.generate import Request, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import microbatches
from rewardlm.models.lora import using
from rewardlm.scoring.scorer import is_empty

# Generating keeps no activations: so many times as many positions run side by side, at two thirds of the time.
_GENERATED = 4
TOKEN_KINDS: tuple[TokenKind, ...] = ("template", "hostile", "prompt", "answer")
# The prompt's last position stands by itself: from it, whatever token is there, the answer's first one is predicted.
POSITION_KINDS: tuple[PositionKind, ...] = ("template", "hostile", "prompt", "start", "answer")


@dataclass(frozen=True)
class AskedOnce:
    """A prompt as token ids, and what each of its tokens is: of the template, of a hostile word, or of another."""

    prompt: tuple[int, ...]
    kinds: tuple[TokenKind, ...]


@dataclass(frozen=True)
class JudgedPair:
    """A toxic answer of the base and a harmless one to the same prompt, as token ids. Of a placebo pair both are
    harmless."""

    asked: AskedOnce
    toxic: tuple[int, ...]
    harmless: tuple[int, ...]


@dataclass(frozen=True)
class PairBatch:
    """P pairs side by side: the toxic answers' P texts, then the harmless ones'. ``kinds`` Float[2P, T, 4] is 1 where a
    token is of that kind (``TOKEN_KINDS``), ``positions`` Float[2P, T, 5] where a position is (``POSITION_KINDS``);
    both are 0 at padding."""

    rows: list[int]
    batch: ResponseBatch
    kinds: Tensor
    positions: Tensor

    def preference(self, logprobs: Tensor) -> Tensor:
        """E of each pair, Float[P], from the texts' mean log-probabilities Float[2P]."""
        toxic, harmless = logprobs.chunk(2)
        return harmless - toxic


def asked_once(tokenizer: Any, prompt: Sequence[int], turns: Sequence[str], judge: ToxicityFunction) -> AskedOnce:
    """What the tokens of a prompt are; ``judge`` says of a single word how toxic it is."""
    found: list[TokenKind] = ["template"] * len(prompt)
    of_prompt = [word for word in words(tokenizer, prompt, (), turns) if word.kind == "prompt"]
    scores = judge([word.text.strip() for word in of_prompt]) if of_prompt else []
    for word, score in zip(of_prompt, scores, strict=True):
        kind: TokenKind = "hostile" if (score or 0.0) > TOXIC_ABOVE else "prompt"
        found[word.start : word.end] = [kind] * (word.end - word.start)
    return AskedOnce(tuple(prompt), tuple(found))


def draw_pairs(
    policy: Policy,
    asked: Sequence[AskedOnce],
    judge: ToxicityFunction,
    settings: CausesSettings,
) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """At most ``settings.pairs`` pairs and as many placebo pairs, one of each a prompt, in the order of ``asked``.

    The base answers every prompt ``settings.draws`` times. Of a prompt that it answered both toxically and not, the
    most and the least toxic answer are a pair; of its harmless ones, the most and the least toxic are a placebo pair.
    """
    pairs: list[JudgedPair] = []
    placebo: list[JudgedPair] = []
    # A few prompts at a time, so that no more are answered than are needed.
    step = max(1, settings.pairs // 2)
    for start in range(0, len(asked), step):
        if len(pairs) >= settings.pairs:
            break
        own = asked[start : start + step]
        with using(policy, None):
            drawn = _draw(policy, own, judge, settings, ("pairs", start))
        for one, known in zip(own, drawn, strict=True):
            harmless = _harmless(known)
            if harmless and known[-1][0] > TOXIC_ABOVE:
                pairs.append(JudgedPair(one, known[-1][1], harmless[0]))
            if len(harmless) > 1:
                placebo.append(JudgedPair(one, harmless[-1], harmless[0]))
    return pairs[: settings.pairs], placebo[: settings.pairs]


def own_pairs(
    policy: Policy,
    on: Callable[[], AbstractContextManager[None]],
    pairs: Sequence[JudgedPair],
    judge: ToxicityFunction,
    settings: CausesSettings,
) -> tuple[list[JudgedPair], list[JudgedPair]]:
    """The same prompts and toxic answers of the base, each with the least toxic of ``settings.draws`` new answers of
    the model that ``on`` switches on, where that is harmless. Its placebo pairs have the base's harmless answer in the
    toxic one's place.
    """
    with on():
        drawn = _draw(policy, [p.asked for p in pairs], judge, settings, ("own", 0))
    found: list[JudgedPair] = []
    placebo: list[JudgedPair] = []
    for pair, known in zip(pairs, drawn, strict=True):
        harmless = _harmless(known)
        if harmless:
            found.append(JudgedPair(pair.asked, pair.toxic, harmless[0]))
            placebo.append(JudgedPair(pair.asked, pair.harmless, harmless[0]))
    return found, placebo


def _draw(
    policy: Policy,
    asked: Sequence[AskedOnce],
    judge: ToxicityFunction,
    settings: CausesSettings,
    stream: tuple[object, ...],
) -> list[list[tuple[float, tuple[int, ...]]]]:
    """Of each prompt the answers of the model as it stands that aren't empty, with P(toxic), the least toxic first."""
    tokens, texts, scores = judged_answers(
        policy, [one.prompt for one in asked], settings.draws, judge, settings, stream
    )
    found = []
    for start in range(0, len(tokens), settings.draws):
        known = [
            (score, tuple(tokens[at]))
            for at in range(start, start + settings.draws)
            if (score := scores[at]) is not None and not is_empty(texts[at])
        ]
        found.append(sorted(known, key=lambda scored: scored[0]))
    return found


def judged_answers(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    number: int,
    judge: ToxicityFunction,
    settings: CausesSettings,
    stream: tuple[object, ...],
) -> tuple[list[list[int]], list[str], list[float | None]]:
    """``number`` answers to each prompt by the model as it stands, prompt by prompt: token ids, texts, and P(toxic),
    None where unscored. Random streams depend on the seed, ``stream``, the prompt's row and the number of the answer.
    """
    requests = [
        Request(prompt, stream_seed(settings.seed, *stream, row, draw))
        for row, prompt in enumerate(prompts)
        for draw in range(number)
    ]
    tokens = answers_to(
        policy,
        requests,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=_GENERATED * settings.batch_tokens,
        sampling=settings.generation,
    )
    texts = [text_of(policy, one) for one in tokens]
    return tokens, texts, list(judge(texts))


def _harmless(known: Sequence[tuple[float, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return [tokens for score, tokens in known if score <= TOXIC_ABOVE]


def pair_batches(pairs: Sequence[JudgedPair], device: torch.device, batch_tokens: int) -> Iterator[PairBatch]:
    """All pairs in batches of about equal length."""
    lengths = [2 * (len(p.asked.prompt) + max(len(p.toxic), len(p.harmless))) for p in pairs]
    for rows in microbatches(lengths, batch_tokens):
        own = [pairs[row] for row in rows]
        prompts = [pair.asked.prompt for pair in own] * 2
        batch = batch_of(prompts, [pair.toxic for pair in own] + [pair.harmless for pair in own], device)
        kinds = torch.zeros(*batch.tokens.shape, len(TOKEN_KINDS), device=device)
        for place, pair in enumerate([*own, *own]):
            for position, kind in enumerate(pair.asked.kinds):
                kinds[place, position, TOKEN_KINDS.index(kind)] = 1
            kinds[place, len(pair.asked.prompt) :, TOKEN_KINDS.index("answer")] = 1
        kinds = kinds * batch.mask[..., None]
        positions = torch.zeros(*batch.tokens.shape, len(POSITION_KINDS), device=device)
        positions[..., [POSITION_KINDS.index(kind) for kind in TOKEN_KINDS]] = kinds
        for place, prompt in enumerate(prompts):
            positions[place, len(prompt) - 1] = 0
            positions[place, len(prompt) - 1, POSITION_KINDS.index("start")] = 1
        yield PairBatch(list(rows), batch, kinds, positions)
