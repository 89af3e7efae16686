"""Rollouts: what the policy answered, what the judges said of it, and how likely it was, in one set of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewardlm.config import RewardedSettings, RlafSettings
from rewardlm.data.chat import truncate_history
from rewardlm.models.budget import Budget
from rewardlm.models.generate import Request, Sampled, answering, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.sharding import in_step
from rewardlm.scoring.scorer import is_empty
from rewardlm.training.objectives import kl_k1, masked
from rewardlm.training.rewards import BatchRewards, Ending
from rewardlm.types import Finish, Prompt


@dataclass(frozen=True, slots=True)
class StepPrompt:
    """A prompt as one step asks it: ``index`` is its place among the step's prompts, ``ids`` its tokens, and ``round``
    that of dynamic sampling in which it got its place; 0 from the beginning."""

    index: int
    prompt: Prompt
    ids: tuple[int, ...]
    round: int = 0

    @property
    def text(self) -> str:
        return self.prompt.text


@dataclass(frozen=True, slots=True)
class Draft:
    """Answers as sampled, before the judges: row i answers the step's prompt ``prompt_index[i]``."""

    prompt_index: list[int]
    prompt_ids: list[tuple[int, ...]]
    sampled: list[Sampled]
    texts: list[str]

    @property
    def responses(self) -> list[list[int]]:
        return [sampled.tokens for sampled in self.sampled]

    @property
    def endings(self) -> list[Ending]:
        return [Ending(len(sampled.tokens), sampled.finish) for sampled in self.sampled]

    def replaced(self, other: Draft) -> Draft:
        """These answers in the prompts' order, those to ``other``'s prompts replaced by ``other``'s."""
        again = set(other.prompt_index)
        rows = [(self, row) for row, index in enumerate(self.prompt_index) if index not in again]
        rows += [(other, row) for row in range(len(other.prompt_index))]
        rows.sort(key=lambda found: (found[0].prompt_index[found[1]], found[1]))
        return Draft(
            [draft.prompt_index[row] for draft, row in rows],
            [draft.prompt_ids[row] for draft, row in rows],
            [draft.sampled[row] for draft, row in rows],
            [draft.texts[row] for draft, row in rows],
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of R tokens and how likely it was; on the CPU, so that it can be sent to another process.

    ``prompt_index`` is its prompt's place in the step, ``finish`` says whether it ended by itself or was cut off.
    ``kl_full`` is the exact KL, None where it can't be computed. ``values`` are there with a critic, ``ref_hidden``
    where the KL is a loss over the whole vocabulary, and ``origin_logprobs``, under the first reference, where the
    reference moves.
    """

    prompt_index: int
    prompt: tuple[int, ...]
    tokens: list[int]
    text: str
    finish: Finish
    logprobs: Float[Tensor, "R"]
    sampling_logprobs: Float[Tensor, "R"]
    ref_logprobs: Float[Tensor, "R"]
    entropy: Float[Tensor, "R"]
    kl_full: Float[Tensor, "R"] | None
    values: Float[Tensor, "R"] | None
    ref_hidden: Float[Tensor, "R H"] | None
    origin_logprobs: Float[Tensor, "R"] | None = None


@dataclass(frozen=True, slots=True)
class Rollouts:
    """B answers to learn from, their prompts' and answers' ids as lists, their numbers right-padded to R.

    ``response_mask`` is True at real tokens; what stands elsewhere never counts. ``group`` is equal for answers to the
    same prompt. Answers without a reward are not in here: ``dropped`` says how many and why, and ``judged`` has all of
    the step's. ``in_loss`` is False for answers that serve for comparison but are left out of the loss; None where none
    is left out.
    """

    prompts: list[tuple[int, ...]]
    responses: list[list[int]]
    response_mask: Bool[Tensor, "B R"]
    logprobs: Float[Tensor, "B R"]
    sampling_logprobs: Float[Tensor, "B R"]
    ref_logprobs: Float[Tensor, "B R"]
    entropy: Float[Tensor, "B R"]
    kl_full: Float[Tensor, "B R"] | None
    values: Float[Tensor, "B R"] | None
    ref_hidden: list[Float[Tensor, "R H"]] | None
    rewards: Float[Tensor, "B"]
    group: Int[Tensor, "B"]
    texts: list[str]
    judged: BatchRewards
    dropped: dict[str, int] = field(default_factory=dict)
    in_loss: Bool[Tensor, "B"] | None = None
    origin_logprobs: Float[Tensor, "B R"] | None = None

    @property
    def kl(self) -> Float[Tensor, "B R"]:
        """k1 at every real token, 0 elsewhere."""
        return masked(kl_k1(self.logprobs, self.ref_logprobs), self.response_mask)

    @property
    def kl_origin(self) -> Float[Tensor, "B R"]:
        """``kl`` to the reference of the first step, whether or not the reference has moved since."""
        if self.origin_logprobs is None:
            return self.kl
        return masked(kl_k1(self.logprobs, self.origin_logprobs), self.response_mask)

    @property
    def loss_mask(self) -> Bool[Tensor, "B R"]:
        """True at the real tokens of the answers that the loss is about."""
        return self.response_mask if self.in_loss is None else self.response_mask & self.in_loss[:, None]

    @property
    def empty(self) -> Bool[Tensor, "B"]:
        """True for an answer without text."""
        return torch.tensor([is_empty(text) for text in self.texts])

    @property
    def n_tokens(self) -> int:
        return int(self.response_mask.sum())

    def mean_per_answer(self, values: Float[Tensor, "B R"], importance: Float[Tensor, "B R"] | None = None) -> float:
        """``values`` summed over each answer, then averaged; with ``importance``, the mean under the policy itself."""
        if importance is not None:
            values = values * importance
        return float(masked(values, self.response_mask).sum(1).mean())

    def toxicity_by_name(self) -> dict[str, Any]:
        """Mean P(toxic) of all answers that have one: by the reward's judges together, each judge and each witness."""
        judged = self.judged
        toxic = [None if value is None else float(value > 0.5) for value in judged.toxicity]
        return {
            "toxicity_mean": mean_of_known(judged.toxicity),
            "toxic_fraction": mean_of_known(toxic),
            "toxicity_by_judge": means_by_name(judged.by_judge),
            "toxicity_by_witness": means_by_name(judged.by_witness),
        }


def answer_seed(settings: RlafSettings, step: int, prompt: StepPrompt, k: int) -> int:
    """The seed of answer ``k`` to a step's prompt: another one in each round of dynamic sampling, because a prompt may
    come again in its own place."""
    place = prompt.round * settings.batch_size + prompt.index * settings.samples_per_prompt + k
    return stream_seed("rollout", settings.seed, step, prompt.prompt.id, k, place)


def encode_prompts(
    policy: Policy, prompts: Sequence[Prompt], settings: RewardedSettings
) -> tuple[list[tuple[int, ...]], int]:
    """Each prompt's tokens, without the oldest turns where it is too long, and how many prompts were too long."""
    limit = min(settings.max_prompt_tokens, policy.max_positions - settings.max_new_tokens)
    encoded = [truncate_history(policy.chat, prompt.turns, limit) for prompt in prompts]
    return [tuple(ids) for ids, _ in encoded], sum(cut > 0 for _, cut in encoded)


def sample(policy: Policy, settings: RlafSettings, prompts: Sequence[StepPrompt], step: int, budget: Budget) -> Draft:
    """``samples_per_prompt`` answers to each prompt from the policy as it is.

    Each has a random stream of its own, made of (seed, step, prompt, sample), so it is the same whichever process draws
    it.
    """
    samples = settings.samples_per_prompt
    answered = [(prompt, k) for prompt in prompts for k in range(samples)]
    requests = [Request(prompt.ids, answer_seed(settings, step, prompt, k)) for prompt, k in answered]
    with answering(policy), in_step(policy):
        drawn = generate(
            policy,
            requests,
            max_new_tokens=settings.max_new_tokens,
            sampling=settings.generation,
            batch_tokens=budget,
            keep_hidden=True,
            # Below float32 it is computed again, for all tokens at once (learner.logprobs_and_values).
            entropy=policy.dtype == torch.float32,
        )
        sampled = sorted(drawn, key=lambda answer: answer.index)
    return Draft(
        [prompt.index for prompt, _ in answered],
        [prompt.ids for prompt, _ in answered],
        sampled,
        [policy.chat.decode(answer.tokens) for answer in sampled],
    )


def rows_with_reward(judged: BatchRewards, group: Sequence[int], *, min_group: int) -> tuple[list[int], dict[str, int]]:
    """Rows that can be learnt from, and how many were dropped for which reason; ``group`` is each row's.

    An answer that some judge could not score is dropped, never called harmless; a group left with fewer than
    ``min_group`` answers has nothing to compare and goes too.
    """
    kept = [row for row, reward in enumerate(judged.rewards) if reward is not None]
    dropped = dict(
        Counter(judged.reasons[row] or "unscored" for row, reward in enumerate(judged.rewards) if reward is None)
    )
    sizes = Counter(group[row] for row in kept)
    compared = [row for row in kept if sizes[group[row]] >= min_group]
    if len(compared) < len(kept):
        dropped["alone in its group"] = len(kept) - len(compared)
    return compared, dropped


def equal_groups(rewards: Sequence[float | None], samples: int) -> list[int]:
    """Groups of ``samples`` answers in a row, by number, in which all answers that have a reward have the same, and
    several have one.

    Equal in float32, as advantages are made of them: more digits than that teach nothing.
    """
    found = []
    for group in range(len(rewards) // samples):
        own = rewards[group * samples : (group + 1) * samples]
        known = [np.float32(reward) for reward in own if reward is not None]
        if len(known) > 1 and len(set(known)) == 1:
            found.append(group)
    return found


def collate(
    answers: Sequence[Answer],
    judged: BatchRewards,
    kept: Sequence[int],
    dropped: dict[str, int],
    *,
    mask_truncated: bool = False,
) -> Rollouts:
    """The ``kept`` rows of a step as one batch; ``mask_truncated`` leaves answers that were cut off out of the loss."""
    rows = [answers[row] for row in kept]

    def padded(name: str) -> Float[Tensor, "B R"]:
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
        group=torch.tensor([answer.prompt_index for answer in rows]),
        texts=[answer.text for answer in rows],
        judged=judged,
        dropped=dropped,
        in_loss=torch.tensor([answer.finish == "stop" for answer in rows]) if mask_truncated else None,
        origin_logprobs=None if rows[0].origin_logprobs is None else padded("origin_logprobs"),
    )


def length_mask(responses: Sequence[Sequence[int]]) -> Bool[Tensor, "B R"]:
    """True where an answer has a token: from lengths, because the end token may also be the pad."""
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
