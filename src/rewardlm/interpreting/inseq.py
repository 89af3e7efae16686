"""Attribution by methods of the package inseq (Sarti et al. 2023) that RewardLM doesn't have itself.

inseq knows no adapters. It gets the model inside PEFT's wrapper, merged where ``RunModel.on`` merges, and our token
ids, since it would encode texts again. It explains one answer at a time, every token up to the last one asked for.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rewardlm.errors import ConfigError
from rewardlm.interpreting.attribution import Attributed, Rows
from rewardlm.models.logprobs import score_rows
from rewardlm.trunk import attending


def attribute_by_inseq(
    causal_lm: Any,
    tokenizer: Any,
    prompts: Rows,
    responses: Rows,
    positions: Rows,
    name: str,
    *,
    report: Callable[[Sequence[int], Sequence[Attributed]], None] | None = None,
    **settings: Any,
) -> list[Attributed]:
    """As ``attribution.attribute``, by inseq's method ``name``; ``settings`` are that method's own.

    A method that explains an output explains ln p(token), and its scores are summed over the embedding's dimensions.
    Methods that explain none (attention) give what inseq gives, averaged over layers and heads. Raises ConfigError
    without inseq, and for a name that it doesn't know.
    """
    if importlib.util.find_spec("inseq") is None:
        raise ConfigError(
            f"attribution.method inseq:{name} needs the package inseq: pip install --no-deps inseq captum and "
            "what they import (docs/interpretation.md), or choose input_x_gradient, integrated_gradients or occlusion"
        )
    import inseq
    from inseq.data.batch import Batch, BatchEmbedding, BatchEncoding, DecoderOnlyBatch

    known = inseq.list_feature_attribution_methods()
    if name not in known:
        raise ConfigError(f"attribution.method inseq:{name}: inseq has {', '.join(sorted(known))}")
    # It sets the tokenizer's padding side.
    peer = inseq.load_model(causal_lm, name, tokenizer=copy.deepcopy(tokenizer), device=str(causal_lm.device))
    method = peer.attribution_method
    explains_output = bool(method.use_predicted_target)
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id
    result = []
    for row, (prompt, response, where) in enumerate(zip(prompts, responses, positions, strict=True)):
        ids = torch.tensor([[*prompt, *response]], device=causal_lm.device)
        nothing = torch.full_like(ids, unknown)
        encoding = BatchEncoding(ids, torch.ones_like(ids), [tokenizer.convert_ids_to_tokens(ids[0])], nothing)
        embedding = BatchEmbedding(peer.embed_ids(ids), peer.embed_ids(nothing))
        batch = DecoderOnlyBatch.from_batch(Batch(encoding, embedding))
        scores = torch.zeros(len(where), len(prompt) + len(response))
        for k, at in enumerate(where):
            before = len(prompt) + at
            # Step by step: the sequences that it puts together lose tokens that are also the padding.
            with attending(causal_lm, "eager"):
                output = method.attribute(
                    batch,
                    attributed_fn=_target_logprob if explains_output else peer.get_attributed_fn(None),
                    attr_pos_start=before,
                    attr_pos_end=before + 1,
                    show_progress=False,
                    output_step_attributions=True,
                    attribution_args=dict(settings),
                )
            found: Tensor = output.step_attributions[0].target_attributions[0].detach().float().cpu()
            if found.dim() > 1:
                found = found.flatten(1).sum(-1) if explains_output else found.flatten(1).mean(-1)
            scores[k, :before] = found[:before]
        attributed = Attributed(scores, _logprobs(causal_lm, ids, len(prompt), where))
        result.append(attributed)
        if report is not None:
            report([row], [attributed])
    return result


def _target_logprob(args: Any) -> Tensor:
    """Float[B]: ln p of the target, as an inseq step function; its own cross-entropy fails on a batch of one."""
    logits: Tensor = args.attribution_model.output2logits(args.forward_output).float()
    return logits.log_softmax(-1).gather(-1, args.target_ids.reshape(-1, 1).to(logits.device)).squeeze(-1)


@torch.no_grad()
def _logprobs(causal_lm: Any, ids: Tensor, prompt: int, where: Sequence[int]) -> Tensor:
    logprobs, _ = score_rows(causal_lm, [ids[0, :prompt].tolist()], [ids[0, prompt:].tolist()], ids.shape[1])
    return logprobs[0, list(where)]
