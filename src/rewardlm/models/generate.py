"""Sampling answers: batches by token budget, the shared prefix prefilled once, ended rows taken out.

Each row draws its randomness from a seed of its own, so an answer depends on (seed, prompt, sample) and not on which
other prompts happened to be in its batch. (Floating-point sums may still differ in the last bit between batch shapes,
which now and then tips a token.) The log-probability kept with every token is the model's own, at temperature 1 and
before any truncation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rewardlm.config import GenerationSettings
from rewardlm.errors import ModelError
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import body_and_head, shared_prefix, trunk_states
from rewardlm.types import Finish


@dataclass(frozen=True)
class Request:
    """One answer to sample: the prompt's token ids and the seed of its own random stream."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Sampled:
    """One answer: ``tokens`` R (the end token included, if it came), ``logprobs`` and ``entropy`` Float[R],
    ``hidden`` Float[R, H].

    ``sampling_logprobs`` Float[R] are those of the distribution that was drawn from: other than ``logprobs`` only where
    temperature, truncation or a ban changed it, and 0 where greedy.
    """

    index: int
    tokens: list[int]
    logprobs: Tensor
    sampling_logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None
    finish: Finish


def stream_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same stream on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batches(requests: Sequence[Request], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests in batches of at most ``batch_tokens`` positions, padding and answers included.

    Sorted by length and prompt, longest first: little padding, equal prompts side by side, and what does not fit
    in memory shows at once.
    """
    order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), requests[i].prompt))
    result: list[list[int]] = []
    width = 0
    for index in order:
        if not result or (len(result[-1]) + 1) * (width + max_new_tokens) > batch_tokens:
            result.append([])
            width = len(requests[index].prompt)
        result[-1].append(index)
    return result


@torch.inference_mode()
def generate(
    policy: Policy,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    sampling: GenerationSettings,
    batch_tokens: int = 4096,
    keep_hidden: bool = False,
    known: Set[int] = frozenset(),
) -> Iterator[Sampled]:
    """Answers as their batches finish. Raises ModelError for NaN logits or a prompt that leaves no room.

    ``known`` are indices of requests whose answers the caller has: a batch of known ones alone is passed over, any
    other is run whole, so that a resumed run's batches, and with them its rounding, are those of the first time.

    ``keep_hidden`` keeps the trunk's last state that each token was drawn from, for a value head.
    """
    limit = policy.max_positions
    for request in requests:
        if len(request.prompt) + max_new_tokens > limit:
            raise ModelError(
                f"a prompt of {len(request.prompt)} tokens and {max_new_tokens} new ones exceed the model's "
                f"{limit} positions: shorten the prompt or --max-new-tokens"
            )
    for batch in batches(requests, max_new_tokens, batch_tokens):
        if all(index in known for index in batch):
            continue
        yield from _generate_batch(policy, requests, batch, max_new_tokens, sampling, keep_hidden)


def _generate_batch(
    policy: Policy,
    requests: Sequence[Request],
    batch: list[int],
    max_new_tokens: int,
    sampling: GenerationSettings,
    keep_hidden: bool,
) -> Iterator[Sampled]:
    body, head = body_and_head(policy.causal_lm)
    device = policy.device
    rows = torch.tensor(batch)
    cache, attention_mask, hidden = _prefill(policy, [requests[i].prompt for i in batch])
    uniforms = torch.from_numpy(
        np.stack([np.random.default_rng(requests[i].seed).random(max_new_tokens) for i in batch])
    ).to(device)
    processors = _processors(sampling)
    end_ids = torch.tensor(sorted(policy.end_ids), device=device)
    stops = policy.chat.stop_strings
    tokens: list[list[int]] = [[] for _ in batch]
    logprobs: list[list[Tensor]] = [[] for _ in batch]
    sampling_logprobs: list[list[Tensor]] = [[] for _ in batch]
    entropy: list[list[Tensor]] = [[] for _ in batch]
    states: list[list[Tensor]] = [[] for _ in batch]
    finish: list[Finish] = ["length" for _ in batch]
    alive = torch.arange(len(batch))  # positions in ``batch`` of the rows that still run
    for step in range(max_new_tokens):
        logits = head(hidden).float()
        if not bool(torch.isfinite(logits.sum())):
            raise ModelError(
                f"the logits of {policy.spec} hold NaN or infinity at new token {step + 1} "
                f"(dtype {policy.dtype}): the adapter is broken or the precision too low; try --dtype float32"
            )
        scores = logits
        if step < sampling.min_new_tokens:
            scores = scores.index_fill(-1, end_ids, -torch.inf)
        if sampling.no_repeat_ngram_size:
            so_far = [[*requests[batch[position]].prompt, *tokens[position]] for position in alive.tolist()]
            scores = _without_repeats(scores, so_far, sampling.no_repeat_ngram_size)
        if processors:
            scores = processors(None, scores)
        chosen = scores.argmax(-1) if sampling.temperature == 0 else _draw(scores, uniforms[alive.to(device), step])
        normaliser = logits.logsumexp(-1)
        chosen_logprobs = (logits.gather(-1, chosen[:, None]).squeeze(-1) - normaliser).cpu()
        if sampling.temperature == 0:
            drawn_logprobs = torch.zeros_like(chosen_logprobs)
        elif scores is logits:
            drawn_logprobs = chosen_logprobs
        else:
            drawn_logprobs = scores.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1).cpu()
        step_entropy = (normaliser - (torch.softmax(logits, -1) * logits).sum(-1)).cpu()
        ended = torch.isin(chosen, end_ids).cpu()
        kept = hidden.float().cpu() if keep_hidden else None
        for row, position in enumerate(alive.tolist()):
            tokens[position].append(int(chosen[row]))
            logprobs[position].append(chosen_logprobs[row])
            sampling_logprobs[position].append(drawn_logprobs[row])
            entropy[position].append(step_entropy[row])
            if kept is not None:
                states[position].append(kept[row])
            if not ended[row] and stops and _stopped(policy, tokens[position], stops):
                ended[row] = True
            if ended[row]:
                finish[position] = "stop"
        if bool(ended.all()) or step == max_new_tokens - 1:
            break
        running = ~ended
        if bool(ended.any()):
            keep = running.nonzero().squeeze(-1)
            alive, chosen = alive[keep], chosen[keep.to(device)]
            cache.batch_select_indices(keep.to(device))
            attention_mask = attention_mask[keep.to(device)]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(alive), 1)], 1)
        positions = attention_mask.sum(1, keepdim=True) - 1
        hidden = trunk_states(body, chosen[:, None], attention_mask, positions, cache)[:, -1]
    for position, index in enumerate(rows.tolist()):
        yield Sampled(
            index,
            tokens[position],
            torch.stack(logprobs[position]),
            torch.stack(sampling_logprobs[position]),
            torch.stack(entropy[position]),
            torch.stack(states[position]) if keep_hidden else None,
            finish[position],
        )


def _prefill(policy: Policy, prompts: list[tuple[int, ...]]) -> tuple[DynamicCache, Tensor, Tensor]:
    """Cache and mask of the prompts, and the last state Float[B, H] that the first new token follows from.

    What all prompts begin with (the template's system turn) is run once and its cache repeated; prompts that occur more
    than once (k samples) are run once. Between prefix and rest stand left pads, which mask and positions step over; but
    sliding windows count cells of the cache, pads too, so such models get whole prompts.
    """
    body, _ = body_and_head(policy.causal_lm)
    device = policy.device
    unique = list(dict.fromkeys(prompts))
    shared = 0 if _has_window(policy.causal_lm.config) else shared_prefix(unique)
    cache = DynamicCache(config=policy.causal_lm.config)
    if shared:
        prefix = torch.tensor([unique[0][:shared]], device=device)
        trunk_states(body, prefix, torch.ones_like(prefix), torch.arange(shared, device=device)[None], cache)
        cache.batch_repeat_interleave(len(unique))
    rests = [prompt[shared:] for prompt in unique]
    tokens = _left_padded(rests, device)
    lengths = torch.tensor([len(rest) for rest in rests], device=device)[:, None]
    width = tokens.shape[1]
    rest_mask = (torch.arange(width, device=device)[None] >= width - lengths).long()
    attention_mask = torch.cat([rest_mask.new_ones(len(unique), shared), rest_mask], 1)
    positions = (shared + rest_mask.cumsum(1) - 1).clamp(min=0)
    hidden = trunk_states(body, tokens, attention_mask, positions, cache)[:, -1]
    if len(unique) < len(prompts):
        where = {prompt: row for row, prompt in enumerate(unique)}
        index = torch.tensor([where[prompt] for prompt in prompts], device=device)
        cache.batch_select_indices(index)
        attention_mask, hidden = attention_mask[index], hidden[index]
    return cache, attention_mask, hidden


def _has_window(config: Any) -> bool:
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + [*row] for row in rows], device=device)


def _processors(sampling: GenerationSettings) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


def _without_repeats(scores: Tensor, so_far: Sequence[Sequence[int]], size: int) -> Tensor:
    """``scores`` Float[B, V] with -inf where a token would complete an n-gram that its row holds already.

    From the rows themselves: a padded batch would ban the n-grams of its padding too.
    """
    scores = scores.clone()
    for row, tokens in enumerate(so_far):
        start = len(tokens) - size + 1
        banned = [tokens[i + size - 1] for i in range(start) if tokens[i : i + size - 1] == tokens[start:]]
        scores[row, banned] = -torch.inf
    return scores


def _draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row by inverting the distribution function at ``uniforms`` in [0, 1): Int[B]."""
    cumulative = torch.softmax(scores, -1).double().cumsum(-1)
    # Scaled by the last sum, so that rounding can't push a draw past the end.
    target = uniforms.double()[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return chosen.clamp(max=scores.shape[-1] - 1)


def _stopped(policy: Policy, tokens: list[int], stops: Sequence[str]) -> bool:
    # A stop string is short: the last 16 tokens hold it.
    text = policy.tokenizer.decode(tokens[-16:], skip_special_tokens=True)
    return any(stop in text for stop in stops)
