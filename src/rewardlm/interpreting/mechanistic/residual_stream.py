"""One model's reading of the base's answers: shares in toxic words, the lens, attention, value vectors' activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.interpreting.answers import ModelAnswers, evenly_spread
from rewardlm.interpreting.findings import AttentionShares, LensMeans, LogitShareMeans, StreamReading
from rewardlm.interpreting.intervals import Resampling
from rewardlm.interpreting.mechanistic.activations import BaseText, trace
from rewardlm.interpreting.mechanistic.logit_attribution import LogitShares, direct_attribution, logit_lens
from rewardlm.interpreting.mechanistic.value_vectors import ValueVector, activations_of
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.lora import using


@dataclass(frozen=True)
class StreamArrays:
    """``activations`` Float[N, K] of the value vectors, and ``rows`` Int[N], which row of the text a position is of."""

    activations: Tensor
    rows: Tensor


def read_stream(
    text: BaseText, model: ModelAnswers, contrast: Contrast | None, vectors: Sequence[ValueVector]
) -> tuple[StreamReading, StreamArrays]:
    """Lens, direct attribution and attention of ``model`` on the base's answers."""
    with using(text.policy, model.adapter):
        return _read(text, contrast, vectors)


def read_steered(text: BaseText, contrast: Contrast | None) -> StreamReading:
    """Lens and attention of the model as it stands, its stream being steered. What is changed there is no part's write,
    so there is no direct attribution."""
    summary, _ = _read(text, contrast, (), writes=False)
    return summary


def _read(
    text: BaseText, contrast: Contrast | None, vectors: Sequence[ValueVector], *, writes: bool = True
) -> tuple[StreamReading, StreamArrays]:
    shares: list[dict[str, Tensor]] = []
    attended: list[dict[str, Tensor]] = []
    lenses: list[dict[str, Tensor]] = []
    lens_rows: list[int] = []
    activations: list[Tensor] = []
    positions: list[Tensor] = []
    causal_lm = text.policy.causal_lm
    keep = evenly_spread(sum(len(text.base.responses[row]) for row in text.answered), text.settings.lens_positions)
    seen = 0
    for rows, batch in text.batches(text.answered):
        found = trace(causal_lm, batch, patterns=True)
        if found.patterns is not None:
            starts = torch.tensor([len(text.prompts[row]) for row in rows], device=batch.row.device)[batch.row]
            attended.append(_attended(found.patterns, starts))
        if vectors:
            activations.append(activations_of(found.neurons, vectors).cpu())
        positions.append(torch.tensor(rows)[batch.row.cpu()])
        if contrast is not None:
            if writes:
                shares.append(_on_cpu(direct_attribution(causal_lm, found, contrast)))
            chosen = [i for i in range(len(batch.row)) if seen + i in keep]
            if chosen:
                lens_rows += [rows[int(batch.row[i])] for i in chosen]
                lenses.append(_on_cpu(logit_lens(causal_lm, found.stream[:, chosen], batch.targets[chosen], contrast)))
        seen += len(batch.row)
    whose = torch.cat(positions)
    summary = StreamReading(positions=len(whose), attention=AttentionShares(**_means(attended)))
    if contrast is not None and writes:
        joined = {name: torch.cat([one[name] for one in shares], -2 if "heads" in name else -1) for name in shares[0]}
        summary.shares = _share_means(joined, torch.isin(whose, torch.tensor(text.focus)))
        summary.largest_error = float((LogitShares(**joined).summed() - joined["total"]).abs().max())
    if contrast is not None:
        scores = torch.cat([one["score"] for one in lenses], 1)
        owners = [tuple(text.prompts[row]) for row in lens_rows]
        draws = Resampling(text.settings.n_resamples, text.settings.seed)
        summary.lens = LensMeans(**_means(lenses), score_ci95=draws.by_layer(scores.double().numpy(), owners))
        summary.lens_positions = len(keep)
    return summary, StreamArrays(torch.cat(activations) if vectors else torch.zeros(len(whose), 0), whose)


def _share_means(shares: dict[str, Tensor], positions: Tensor) -> LogitShareMeans:
    return LogitShareMeans(
        **{
            name: (values[..., positions, :].mean(-2) if "heads" in name else values[..., positions].mean(-1)).tolist()
            for name, values in shares.items()
        }
    )


def _on_cpu(found: object) -> dict[str, Tensor]:
    """The tensors of a dataclass, by field."""
    return {name: values.cpu() for name, values in vars(found).items()}


def _means(batches: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """By name, over the positions of all batches, which are dimension 1."""
    return {name: torch.cat([one[name] for one in batches], 1).mean(1).tolist() for name in batches[0]}


def _attended(patterns: Tensor, starts: Tensor) -> dict[str, Tensor]:
    """Where attention Float[L, N, H, T] goes, Float[L, N, H] each: to the first token (where heads with nothing to do
    rest, Xiao et al. 2023), to the rest of the prompt, to the response, which begins at ``starts`` Int[N]; and its
    entropy in bits."""
    place = torch.arange(patterns.shape[-1], device=patterns.device)
    in_prompt = ((place > 0) & (place < starts[:, None])).to(patterns)
    in_response = (place >= starts[:, None]).to(patterns)
    return {
        "first": patterns[..., 0].cpu(),
        "prompt": torch.einsum("lnht,nt->lnh", patterns, in_prompt).cpu(),
        "response": torch.einsum("lnht,nt->lnh", patterns, in_response).cpu(),
        "entropy": -torch.xlogy(patterns, patterns).sum(-1).div(np.log(2)).cpu(),
    }
