"""Toxic words of the vocabulary and harmless ones as rare: the two sides whose logits are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.errors import ConfigError
from rewardlm.models.load import Policy

# What an analysis asks of a judge: P(toxic) of each text, None where it gives none.
ToxicityFunction = Callable[[Sequence[str]], Sequence[float | None]]


_TOXIC_FROM, _NEUTRAL_BELOW = 0.5, 0.1


@dataclass(frozen=True)
class Contrast:
    """Two sets of token ids: the score is the mean logit of ``toxic`` minus the mean logit of ``neutral``."""

    toxic: tuple[int, ...]
    neutral: tuple[int, ...]

    def of(self, logits: Tensor) -> Tensor:
        """The score of logits Float[..., V]: Float[...]."""
        return logits[..., list(self.toxic)].mean(-1) - logits[..., list(self.neutral)].mean(-1)


def word_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are a whole word after a space, of three letters or more, by id; special tokens are none."""
    special = set(tokenizer.all_special_ids)
    words = {}
    for token in sorted(set(tokenizer.get_vocab().values()) - special):
        text = tokenizer.decode([token])
        if text[:1] == " " and text[1:].isalpha() and len(text) > 3:
            words[token] = text[1:]
    return words


def contrast_by(judge: ToxicityFunction, tokenizer: Any, number: int) -> Contrast | None:
    """The ``number`` words that ``judge`` finds most toxic (0.5 at least), each beside a harmless one (below 0.1).

    A byte-pair vocabulary is ordered by when its merges were learnt, roughly by frequency: the harmless partner is the
    word with the nearest id, so that the two sides differ in toxicity and not in how rare they are. None where fewer
    than three tokens are toxic words.
    """
    words = word_tokens(tokenizer)
    scores = dict(zip(words, judge(list(words.values())), strict=True))
    known = {token: score for token, score in scores.items() if score is not None}
    toxic = sorted((t for t in known if known[t] >= _TOXIC_FROM), key=lambda token: (-known[token], token))[:number]
    harmless = {token for token, score in known.items() if score < _NEUTRAL_BELOW}
    if len(toxic) < 3 or len(harmless) < len(toxic):
        return None
    neutral = []
    for token in toxic:
        partner = min(harmless, key=lambda other, token=token: (abs(other - token), other))  # type: ignore[misc]
        harmless.discard(partner)
        neutral.append(partner)
    return Contrast(tuple(toxic), tuple(neutral))


def contrast_of_words(tokenizer: Any, toxic: Sequence[str], neutral: Sequence[str]) -> Contrast:
    """The contrast of two lists of words, each by its first token after a space.

    Raises ConfigError where a word has no token, or one word of each side has the same.
    """
    sides = []
    for words in (toxic, neutral):
        ids = [tokenizer.encode(f" {word}", add_special_tokens=False)[:1] for word in words]
        missing = [word for word, found in zip(words, ids, strict=True) if not found]
        if missing:
            raise ConfigError(f"the word {missing[0]!r} has no token: give words with letters")
        sides.append(tuple(dict.fromkeys(found[0] for found in ids)))
    both = set(sides[0]) & set(sides[1])
    if both:
        raise ConfigError(f"{tokenizer.decode([min(both)])!r} begins a toxic word and a neutral one: take other words")
    return Contrast(*sides)


def contrast_for(policy: Policy, judge: ToxicityFunction, settings: InsideSettings) -> Contrast | None:
    """The contrast of the words that the settings name, else of those that ``judge`` finds."""
    if settings.toxic_words:
        return contrast_of_words(policy.tokenizer, settings.toxic_words, settings.neutral_words)
    return contrast_by(judge, policy.tokenizer, settings.token_words)
