"""One model's reading of the base's answers: shares in toxic words, the lens, attention, value vectors' activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import ModelAnswers, evenly_spread
from rewardlm.interpreting.mechanistic.activations import batches, trace
from rewardlm.interpreting.mechanistic.logit_attribution import LogitShares, direct_attribution, logit_lens
from rewardlm.interpreting.mechanistic.value_vectors import ValueVector, activations_of
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.load import Policy
from rewardlm.models.lora import using


@dataclass
class Read:
    """What is kept of one model's reading of the base's answers: a summary for the result, and arrays for later.

    ``activations`` Float[N, K] of the value vectors, ``rows`` Int[N] whose position it is (rows of the run),
    ``score`` Float[N], the contrast's.
    """

    summary: dict[str, Any]
    activations: Tensor
    rows: Tensor
    score: Tensor | None


def read_stream(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    base: ModelAnswers,
    subject: ModelAnswers,
    usable: Sequence[int],
    focus: Sequence[int],
    contrast: Contrast | None,
    vectors: Sequence[ValueVector],
    settings: InsideSettings,
) -> Read:
    """Lens, direct attribution and attention of ``subject`` on the base's answers."""
    shares: list[dict[str, Tensor]] = []
    attended: list[dict[str, Tensor]] = []
    lenses: list[dict[str, Tensor]] = []
    activations: list[Tensor] = []
    positions: list[Tensor] = []
    causal_lm = policy.causal_lm
    n_positions = sum(len(base.responses[row]) for row in usable)
    keep = evenly_spread(n_positions, settings.lens_positions)
    seen = 0
    with using(policy, subject.adapter):
        for rows, batch in batches(policy, prompts, base.responses, usable, settings):
            found = trace(causal_lm, batch, patterns=True)
            if found.patterns is not None:
                starts = torch.tensor([len(prompts[row]) for row in rows], device=batch.row.device)[batch.row]
                attended.append(_attended(found.patterns, starts))
            if vectors:
                activations.append(activations_of(found.neurons, vectors).cpu())
            positions.append(torch.tensor(rows)[batch.row.cpu()])
            if contrast is not None:
                own = _on_cpu(direct_attribution(causal_lm, found, contrast))
                shares.append(own)
                chosen = [i for i in range(len(batch.row)) if seen + i in keep]
                if chosen:
                    lens = logit_lens(causal_lm, found.stream[:, chosen], batch.targets[chosen], contrast)
                    lenses.append({name: values.cpu() for name, values in vars(lens).items()})
            seen += len(batch.row)
    whose = torch.cat(positions)
    in_focus = torch.isin(whose, torch.tensor(focus))
    summary: dict[str, Any] = {
        "positions": len(whose),
        "attention": {name: torch.cat([one[name] for one in attended], 1).mean(1).tolist() for name in attended[0]},
    }
    score = None
    if contrast is not None:
        joined = {name: torch.cat([one[name] for one in shares], -2 if "heads" in name else -1) for name in shares[0]}
        score = joined["total"]
        summed = LogitShares(**joined).summed()
        summary["shares"] = {
            name: values[..., in_focus, :].mean(-2).tolist()
            if "heads" in name
            else values[..., in_focus].mean(-1).tolist()
            for name, values in joined.items()
        }
        summary["largest_error"] = float((summed - score).abs().max())
        summary["lens"] = {name: torch.cat([one[name] for one in lenses], 1).mean(1).tolist() for name in lenses[0]}
        summary["lens_positions"] = len(keep)
    kept = torch.cat(activations) if vectors else torch.zeros(len(whose), 0)
    return Read(summary, kept, whose, score)


def _on_cpu(shares: LogitShares) -> dict[str, Tensor]:
    """The fields of ``shares``, on the CPU."""
    return {name: values.cpu() for name, values in vars(shares).items()}


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
