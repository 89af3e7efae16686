"""Fine-tuning's loss by RL's pass: no padding, beginnings that rows share run once, and the head on answers alone.

TRL's trainer has a batch as tokens and labels. Here its rows become prompts and answers. Their log-probabilities are
computed as in RL (``models.logprobs``) and summed as in TRL: the same loss, the same gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewardlm import fastpath
from rewardlm.errors import ModelError
from rewardlm.models.logprobs import body_and_head, check_head, forward_rows, pieces
from rewardlm.trunk import drops_out

# How many positions go forwards and backwards at once: fewer take less memory for the same gradient.
POSITIONS = 512
_UNLABELLED = -100


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch's rows, each cut in two where its labels begin; ``labelled`` says which tokens of an answer have one."""

    prompts: list[list[int]]
    answers: list[list[int]]
    labelled: list[Bool[Tensor, "R"]]


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over ``tokens`` labelled tokens: the negative log-likelihood in nats, with a gradient where gradients are
    on; the entropy; and how many of them were the likeliest token in their place."""

    nll: Float[Tensor, ""]
    entropy: float = 0.0
    likeliest: int = 0
    tokens: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.nll + other.nll,
            self.entropy + other.entropy,
            self.likeliest + other.likeliest,
            self.tokens + other.tokens,
        )


def why_plain(model: Any, device: torch.device, *, recompute: bool) -> str | None:
    """Why fine-tuning ``model``, a PEFT model, on ``device`` must leave its loss to TRL's own pass; None where it
    needn't. ``recompute`` is gradient checkpointing, which runs a layer's modules twice.
    """
    causal_lm = model.get_base_model()
    name = type(causal_lm).__name__
    if not fastpath.is_open():
        return "REWARDLM_FASTPATH has shut the fast path"
    if device.type != "cpu":
        return f"TRL has kernels of its own for {device.type}"
    if recompute:
        return "gradient_checkpointing runs a model's own layers again"
    if drops_out(model):
        return f"{name} or its adapter has dropout, which is drawn for each row by itself"
    if not fastpath.runs_trees(body_and_head(causal_lm)[0]):
        return f"the rows of {name} can't run as one sequence"
    if causal_lm.device.type != "meta":  # nothing can be tried there
        try:
            check_head(causal_lm)
        except ModelError as error:
            return str(error)
    return None


def rows_of(inputs: Mapping[str, Int[Tensor, "B T"]]) -> Rows:
    """A batch as TRL's collator pads it: ``input_ids``, ``labels`` and ``attention_mask``.

    Tokens after a row's last label are dropped, because no label depends on them. A row's first token doesn't count,
    because nothing predicts it.
    """
    rows = Rows([], [], [])
    columns = (inputs["input_ids"], inputs["labels"], inputs["attention_mask"].bool())
    for tokens, labels, mask in zip(*columns, strict=True):
        labelled = labels[mask] != _UNLABELLED
        labelled[:1] = False
        places = labelled.nonzero().flatten().tolist()
        first, end = (places[0], places[-1] + 1) if places else (len(labelled), len(labelled))
        real = tokens[mask].tolist()
        rows.prompts.append(real[:first])
        rows.answers.append(real[first:end])
        rows.labelled.append(labelled[first:end])
    return rows


def split(causal_lm: Any, rows: Rows) -> list[list[int]]:
    """The numbers of all rows that have a label, in pieces of at most ``POSITIONS``; a longer row stands alone."""
    numbers = [number for number, answer in enumerate(rows.answers) if answer]
    prompts, answers = [rows.prompts[number] for number in numbers], [rows.answers[number] for number in numbers]
    return [[numbers[i] for i in piece] for piece in pieces(causal_lm, prompts, answers, POSITIONS)]


def loss_of(causal_lm: Any, rows: Rows, numbers: list[int]) -> Loss:
    """The loss of some rows, in one pass."""
    stats = forward_rows(causal_lm, rows.prompts, rows.answers, numbers)
    labelled = torch.cat([rows.labelled[number] for number in numbers]).to(stats.logprobs.device)
    return Loss(
        -stats.logprobs[labelled].sum(),
        float(stats.entropy[labelled].sum()),
        int(stats.likeliest[labelled].sum()),
        int(labelled.sum()),
    )
