"""Tokens become words, and attribution scores of words become shares, entropies and divergences.

What stands before an explained token is of three kinds: the template's own tokens (the same in every prompt), the
prompt's words, and the answer so far. A word is what stands between blanks. A control token is a word of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rewardlm.stats import FloatArray

Kind = Literal["template", "prompt", "answer"]
KINDS: tuple[Kind, ...] = ("template", "prompt", "answer")
# Added to every word's share before a divergence, so that a word that one model ignores doesn't make it infinite.
_SMOOTHING = 1e-4


@dataclass(frozen=True, slots=True)
class Word:
    """Tokens ``start`` to ``end`` (excluded) of prompt and answer together."""

    text: str
    kind: Kind
    start: int
    end: int


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text. A letter that is spread over tokens goes to the last of them."""
    found, so_far = [], ""
    for end in range(1, len(ids) + 1):
        text: str = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd")
        found.append(whole[len(so_far) :] if whole.startswith(so_far) else "")
        so_far = whole if whole.startswith(so_far) else so_far
    return found


def words(tokenizer: Any, prompt: Sequence[int], response: Sequence[int], turns: Sequence[str]) -> list[Word]:
    """The words of prompt and response; ``turns`` are the texts that were put into the template.

    If the turns can't be found in the decoded prompt (the tokenizer changes letters), every token counts as the
    prompt's.
    """
    control = {*tokenizer.all_special_ids}
    found = pieces(tokenizer, prompt)
    kinds: list[Kind] = _kinds(found, turns)
    result = _grouped(found, kinds, [token in control for token in prompt], 0)
    answer = pieces(tokenizer, response)
    return result + _grouped(answer, ["answer"] * len(answer), [token in control for token in response], len(prompt))


def _kinds(found: Sequence[str], turns: Sequence[str]) -> list[Kind]:
    text = "".join(found)
    before = len(text)
    spans = []
    # From the end: a template's own words, such as a system turn's, stand in front.
    for turn in reversed([turn.strip() for turn in turns]):
        # Turns that were cut off, because the history was too long, are not there.
        start = text.rfind(turn, 0, before)
        if start >= 0 and turn:
            spans.append((start, start + len(turn)))
            before = start
    if not spans:
        return ["prompt"] * len(found)
    kinds: list[Kind] = []
    position = 0
    for piece in found:
        inside = any(position < end and start < position + max(len(piece), 1) for start, end in spans)
        kinds.append("prompt" if inside else "template")
        position += len(piece)
    return kinds


def _grouped(found: Sequence[str], kinds: Sequence[Kind], control: Sequence[bool], offset: int) -> list[Word]:
    result: list[Word] = []
    open_ = False
    before = ""
    for place, (piece, kind) in enumerate(zip(found, kinds, strict=True)):
        begins = not open_ or control[place] or piece[:1].isspace() or before.endswith("\n") or result[-1].kind != kind
        if begins:
            result.append(Word(piece, kind, offset + place, offset + place + 1))
        else:
            last = result[-1]
            result[-1] = Word(last.text + piece, kind, last.start, offset + place + 1)
        open_ = not control[place]
        before = piece or before
    return result


def by_word(scores: FloatArray, groups: Sequence[Word]) -> FloatArray:
    """Float[K, L] of tokens → Float[K, W] of words, signed: their sum stays what it was."""
    if not groups:
        return np.zeros((len(scores), 0))
    return np.stack([scores[:, word.start : word.end].sum(1) for word in groups], 1)


def shares(word_scores: FloatArray) -> FloatArray:
    """Float[K, W]: |score| over the row's sum of them. A row without any is NaN."""
    size = np.abs(word_scores)
    with np.errstate(invalid="ignore"):
        result: FloatArray = size / size.sum(-1, keepdims=True)
    return result


def entropy_bits(distribution: FloatArray) -> FloatArray:
    """−Σ p log₂ p along the last axis: 0 where one word has all, log₂ n where n words share evenly."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(distribution > 0, distribution * np.log2(distribution), 0.0)
    result: FloatArray = np.where(np.isnan(distribution).any(-1), np.nan, -terms.sum(-1))
    return result


def kl_bits(p: FloatArray, q: FloatArray, n: FloatArray) -> FloatArray:
    """KL(p ‖ q) in bits along the last axis, over the first ``n`` words of each row, each with a little added to it."""
    in_row = np.arange(p.shape[-1]) < np.asarray(n)[..., None]
    p, q = (np.where(in_row, part + _SMOOTHING, 0.0) for part in (p, q))
    p, q = (part / part.sum(-1, keepdims=True) for part in (p, q))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(in_row, p * np.log2(p / q), 0.0)
    result: FloatArray = terms.sum(-1)
    return result


def share_of_kinds(distribution: FloatArray, groups: Sequence[Word]) -> dict[Kind, FloatArray]:
    """Float[K] by kind: what the template, the prompt's words (the *prompt dependence*) and the answer so far have."""
    kinds = np.array([word.kind for word in groups])
    unknown = np.isnan(distribution).any(-1)
    return {kind: np.where(unknown, np.nan, distribution[..., kinds == kind].sum(-1)) for kind in KINDS}
