"""Rollouts: what the policy answered, what the judges said of it, and how likely it was, in one set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewardlm.config import GenerationSettings
from rewardlm.models.generate import Request, Sampled, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import merged
from rewardlm.train.rewards import Judged, RewardModel
from rewardlm.types import Prompt


@dataclass
class Rollouts:
    """B answers to learn from, their prompts' and answers' ids as lists, their numbers right-padded to R.

    ``logprobs``, ``ref_logprobs``, ``entropy`` Float[B, R]; ``response_mask`` Bool[B, R]; ``values`` Float[B, R] or
    None; ``rewards`` Float[B]; ``group`` Int[B]. Unjudged answers are not in here; ``dropped`` says how many and why.
    """

    prompts: list[tuple[int, ...]]
    responses: list[list[int]]
    response_mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    rewards: Tensor
    group: Tensor
    texts: list[str]
    judged: Judged
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return int(self.response_mask.sum())


@dataclass(frozen=True)
class Draft:
    """Answers as sampled, before the judges: row i answers ``asked[i]``, an index into the step's prompts."""

    asked: list[int]
    prompt_ids: list[tuple[int, ...]]
    sampled: list[Sampled]
    texts: list[str]


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[tuple[int, ...]],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    step: int,
    batch_tokens: int,
    keep_hidden: bool,
) -> Draft:
    """``samples`` answers to each prompt from the policy as it is: temperature 1, nothing truncated."""
    asked = [i for i in range(len(prompts)) for _ in range(samples)]
    requests = [
        Request(prompt_ids[i], stream_seed("rollout", seed, step, prompts[i].id, row % samples, row))
        for row, i in enumerate(asked)
    ]
    with merged(policy):
        drawn = generate(
            policy,
            requests,
            max_new_tokens=max_new_tokens,
            sampling=GenerationSettings(),
            batch_tokens=batch_tokens,
            keep_hidden=keep_hidden,
        )
        sampled = sorted(drawn, key=lambda answer: answer.index)
    return Draft(
        asked,
        [request.prompt for request in requests],
        sampled,
        [policy.chat.decode(answer.tokens) for answer in sampled],
    )


def judge(draft: Draft, rewards: RewardModel, *, min_group: int) -> tuple[list[int], Judged, dict[str, int]]:
    """Rows of the draft that can be learnt from, their verdicts, and how many fell out for which reason.

    An answer that no judge could score is dropped, never called harmless; a group left with fewer than
    ``min_group`` answers has nothing to compare and goes too.
    """
    judged = rewards.judge(draft.texts)
    dropped: dict[str, int] = {}
    kept = []
    for row, reward in enumerate(judged.rewards):
        if reward is None:
            reason = judged.reasons[row] or "unscored"
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append(row)
    sizes = {asked: sum(draft.asked[row] == asked for row in kept) for asked in set(draft.asked)}
    alone = [row for row in kept if sizes[draft.asked[row]] < min_group]
    if alone:
        dropped["alone in its group"] = len(alone)
        kept = [row for row in kept if sizes[draft.asked[row]] >= min_group]
    return kept, judged, dropped


def length_mask(responses: Sequence[Sequence[int]]) -> Tensor:
    """Bool[B, R], True where an answer has a token: from lengths, because the end token may also be the pad."""
    lengths = torch.tensor([len(response) for response in responses])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]
