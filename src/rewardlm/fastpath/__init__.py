"""A faster way to the same numbers, mostly for CPUs: rows without padding, Llama-shaped models without their modules.

This file is the package's only door: nothing outside imports what is behind it. ``REWARDLM_FASTPATH=0`` shuts it. Then,
and for every model that is not supported, ``models`` runs the model's own forward pass with transformers' cache. "Fast
path" is PyTorch's own word: kernels that take the place of a module's code where nothing about the module forbids it.
docs/performance.md says what it is worth.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from rewardlm.errors import ConfigError
from rewardlm.fastpath import fused, lean, llama, operators, tree
from rewardlm.fastpath.slots import ModuleSteps, Slots
from rewardlm.fastpath.tree import Tree, tree_of, trees_in_turn
from rewardlm.stream import edits_of, reading_answers
from rewardlm.views import views_of

__all__ = [
    "Slots", "Steps", "Tree",
    "copies_weights", "decoder", "fuse", "is_open", "predicting_states", "prefill", "runs_trees", "tree_of",
    "trees_in_turn",
]  # fmt: skip

Steps = llama.Steps | ModuleSteps


def is_open() -> bool:
    """Whether the fast path is used: not with ``REWARDLM_FASTPATH=0`` in the environment (set it before a model is
    loaded), nor, with a warning, where this torch lacks one of the private operators. Raises ConfigError for any value
    but 0 and 1.
    """
    wanted = os.environ.get("REWARDLM_FASTPATH", "1")
    if wanted not in ("0", "1"):
        raise ConfigError(f"REWARDLM_FASTPATH={wanted!r}: expected 1 (the default) or 0 (the models' own forward pass)")
    return wanted == "1" and _has_operators()


@cache
def _has_operators() -> bool:
    missing = operators.missing()
    if missing:
        names = "; ".join(f"{name} ({error})" for name, error in missing.items())
        warnings.warn(
            f"torch {torch.__version__} does not have what the fast path calls: {names}: models are run by their own "
            "forward pass, which is slower",
            stacklevel=4,
        )
    return not missing


def fuse(model: nn.Module) -> None:
    """Make the plain LoRA layers of ``model`` compute in one operation each way; PEFT's methods work as before."""
    if is_open():
        fused.fuse(model)


def runs_trees(body: Any) -> bool:
    """Whether ``body`` is supported: its rows can be run as one sequence, by ``predicting_states`` and ``prefill``.

    Rows must stay rows while they are different views, or where the stream's changes need that.
    """
    edits, views = edits_of(body), views_of(body)
    rows = (views is not None and not views.are_one) or (edits is not None and not edits.fits_a_sequence)
    return is_open() and not rows and tree.runs_trees(body)


def predicting_states(body: Any, rows: Tree, cache: DynamicCache | None = None) -> Float[Tensor, "R H"]:
    """The last states that the R answer tokens of ``rows`` are predicted from, with gradients where they are on.

    They follow what ``cache`` holds; it grows by all tokens of ``rows``. ``body`` must run trees.
    Where its stream is changed, with a strength for each of the R, or one for all.
    """
    if lean.is_lean(body):
        return lean.states(body, rows, cache)
    with reading_answers(body, rows.predicting):
        return tree.tree_states(body, rows, cache).index_select(0, rows.predicting)


def prefill(
    body: Any, prompts: Sequence[Sequence[int]], cache: DynamicCache, shared: int
) -> tuple[Int[Tensor, "N T"], Float[Tensor, "N H"]]:
    """Run prompts that begin with the same ``shared`` tokens, which ``cache`` holds, and give each a row there.

    Returns the mask of what the cache then holds, padded on the left, and each prompt's last state. ``body`` must run
    trees.
    """
    rows = tree_of(prompts, [[0]] * len(prompts), shared, body.device, held=True)
    hidden = predicting_states(body, rows, cache)
    # A prompt's keys as a row of its own, with its padding on the left.
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=body.device)[:, None]
    column = torch.arange(rows.keys.shape[1], device=body.device)[None] - (rows.keys.shape[1] - lengths)
    places = rows.keys.gather(1, column.clamp(min=0))
    for layer in cache.layers:
        layer.keys, layer.values = (
            layer.keys[0][:, places].transpose(0, 1),
            layer.values[0][:, places].transpose(0, 1),
        )
    return (column >= 0).long(), hidden


def copies_weights(body: Any) -> bool:
    """Whether ``decoder`` takes a copy of ``body``'s weights, adapter included: they must fit into memory twice."""
    return is_open() and llama.lays_out(body)


def decoder(body: Any, head: Any) -> Steps:
    """Decoding steps of ``body`` with its adapter as it is now: ``slots()`` is a new store, ``states(tokens, slots)``
    runs one more token a row, Int[B] → Float[B, H], and ``logits(states)`` is Float[B, V]. Changes of the stream are
    made as they are at each step, with the strengths of its B rows.
    """
    return llama.Steps(body, head) if is_open() and llama.lays_out(body) else ModuleSteps(body, head)
