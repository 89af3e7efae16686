"""Rollouts: what the policy answered, what the judges said of it, and how likely it was, in one set of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewardlm.config import GenerationSettings
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Request, Sampled, answering, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.sharding import in_step
from rewardlm.training.rewards import Ending, Judged
from rewardlm.types import Finish, Prompt


@dataclass(frozen=True)
class Draft:
    """Answers as sampled, before the judges: row i answers ``asked[i]``, an index into the step's prompts."""

    asked: list[int]
    prompt_ids: list[tuple[int, ...]]
    sampled: list[Sampled]
    texts: list[str]

    @property
    def endings(self) -> list[Ending]:
        return [Ending(len(sampled.tokens), sampled.finish) for sampled in self.sampled]


@dataclass(frozen=True)
class Answer:
    """One answer of R tokens and how likely it was; on the CPU, so that it can be sent to another process.

    ``finish`` says whether it ended by itself or was cut off.
    ``logprobs``, ``sampling_logprobs``, ``ref_logprobs``, ``entropy`` Float[R]; ``kl_full`` Float[R], exact, where it
    can be had; ``values`` Float[R] where there is a critic; ``ref_hidden`` Float[R, H] where the KL is a loss over the
    whole vocabulary.
    """

    asked: int
    prompt: tuple[int, ...]
    tokens: list[int]
    text: str
    finish: Finish
    logprobs: Tensor
    sampling_logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    kl_full: Tensor | None
    values: Tensor | None
    ref_hidden: Tensor | None


@dataclass
class Rollouts:
    """B answers to learn from, their prompts' and answers' ids as lists, their numbers right-padded to R.

    ``logprobs``, ``ref_logprobs``, ``sampling_logprobs``, ``entropy`` Float[B, R]; ``response_mask`` Bool[B, R];
    ``kl_full`` and ``values`` Float[B, R] or None; ``rewards`` Float[B]; ``group`` Int[B]. Unjudged answers are not in
    here; ``dropped`` says how many and why. ``finish`` says of each whether it ended by itself or was cut off;
    ``in_loss`` Bool[B] is False for those that others are compared with but that the loss leaves out, None for none.
    """

    prompts: list[tuple[int, ...]]
    responses: list[list[int]]
    response_mask: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    kl_full: Tensor | None
    values: Tensor | None
    ref_hidden: list[Tensor] | None
    rewards: Tensor
    group: Tensor
    texts: list[str]
    judged: Judged
    dropped: dict[str, int] = field(default_factory=dict)
    finish: list[Finish] = field(default_factory=list)
    in_loss: Tensor | None = None

    @property
    def loss_mask(self) -> Tensor:
        """Bool[B, R], True at the real tokens of the answers that the loss is about."""
        return self.response_mask if self.in_loss is None else self.response_mask & self.in_loss[:, None]

    @property
    def n_tokens(self) -> int:
        return int(self.response_mask.sum())

    def toxicity_by_name(self) -> dict[str, Any]:
        """P(toxic), averaged over all answers that have one: of the reward together, of each judge, each witness."""
        judged = self.judged
        toxic = [None if value is None else float(value > 0.5) for value in judged.toxicity]
        return {
            "toxicity_mean": mean_of_known(judged.toxicity),
            "toxic_fraction": mean_of_known(toxic),
            "toxicity_by_judge": means_by_name(judged.by_judge),
            "toxicity_by_witness": means_by_name(judged.by_witness),
        }


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[tuple[int, ...]],
    *,
    numbers: Sequence[int],
    samples: int,
    max_new_tokens: int,
    sampling: GenerationSettings,
    seed: int,
    step: int,
    batch_tokens: int | Budget,
    keep_hidden: bool,
) -> Draft:
    """``samples`` answers to each prompt from the policy as it is; prompt i is number ``numbers[i]`` of its step."""
    asked = [i for i in range(len(prompts)) for _ in range(samples)]
    requests = [
        Request(
            prompt_ids[i],
            # The row in the whole step, whichever process it is drawn in.
            stream_seed("rollout", seed, step, prompts[i].id, row % samples, numbers[i] * samples + row % samples),
        )
        for row, i in enumerate(asked)
    ]
    with answering(policy), in_step(policy):
        drawn = generate(
            policy,
            requests,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            batch_tokens=batch_tokens,
            keep_hidden=keep_hidden,
            # Below float32 all is computed again, at once (learner.weigh).
            entropy=policy.dtype == torch.float32,
        )
        sampled = sorted(drawn, key=lambda answer: answer.index)
    return Draft(
        [numbers[i] for i in asked],
        [request.prompt for request in requests],
        sampled,
        [policy.chat.decode(answer.tokens) for answer in sampled],
    )


def learnable(judged: Judged, asked: Sequence[int], *, min_group: int) -> tuple[list[int], dict[str, int]]:
    """Rows that can be learnt from, and how many fell out for which reason.

    An answer that some judge could not score is dropped, never called harmless; a group left with fewer than
    ``min_group`` answers has nothing to compare and goes too.
    """
    dropped: dict[str, int] = {}
    kept = []
    for row, reward in enumerate(judged.rewards):
        if reward is None:
            reason = judged.reasons[row] or "unscored"
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            kept.append(row)
    sizes = {prompt: sum(asked[row] == prompt for row in kept) for prompt in set(asked)}
    alone = [row for row in kept if sizes[asked[row]] < min_group]
    if alone:
        dropped["alone in its group"] = len(alone)
        kept = [row for row in kept if sizes[asked[row]] >= min_group]
    return kept, dropped


def collate(
    answers: Sequence[Answer],
    judged: Judged,
    kept: Sequence[int],
    dropped: dict[str, int],
    *,
    mask_truncated: bool = False,
) -> Rollouts:
    """The ``kept`` rows of a step as one batch; ``mask_truncated`` leaves answers that were cut off out of the loss."""
    rows = [answers[row] for row in kept]

    def padded(name: str) -> Tensor:
        return pad_sequence([getattr(answer, name) for answer in rows], batch_first=True)

    return Rollouts(
        prompts=[answer.prompt for answer in rows],
        responses=[answer.tokens for answer in rows],
        response_mask=length_mask([answer.tokens for answer in rows]),
        logprobs=padded("logprobs"),
        sampling_logprobs=padded("sampling_logprobs"),
        ref_logprobs=padded("ref_logprobs"),
        entropy=padded("entropy"),
        kl_full=None if rows[0].kl_full is None else padded("kl_full"),
        values=None if rows[0].values is None else padded("values"),
        ref_hidden=[answer.ref_hidden for answer in rows if answer.ref_hidden is not None] or None,
        rewards=torch.tensor([judged.rewards[row] for row in kept], dtype=torch.float64).float(),
        group=torch.tensor([answer.asked for answer in rows]),
        texts=[answer.text for answer in rows],
        judged=judged,
        dropped=dropped,
        finish=[answer.finish for answer in rows],
        in_loss=torch.tensor([answer.finish == "stop" for answer in rows]) if mask_truncated else None,
    )


def length_mask(responses: Sequence[Sequence[int]]) -> Tensor:
    """Bool[B, R], True where an answer has a token: from lengths, because the end token may also be the pad."""
    lengths = torch.tensor([len(response) for response in responses])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of what is not None; None if nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def means_by_name(by_name: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """``mean_of_known`` of each, without those that have none."""
    means = {name: mean_of_known(values) for name, values in by_name.items()}
    return {name: mean for name, mean in means.items() if mean is not None}
