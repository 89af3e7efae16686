"""Preferences as TRL's trainers get them: tokens, and how likely each answer is under the frozen reference.

The reference never changes, so it is asked once for each answer, before a round's first step, by RL's pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rewardlm.config import PreferSettings
from rewardlm.data.chat import shorter_histories
from rewardlm.data.preferences import GivenPreference
from rewardlm.models.budget import Budget
from rewardlm.models.generate import stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import row_stats
from rewardlm.models.lora import REFERENCE, carrying, using
from rewardlm.models.sharding import in_step
from rewardlm.training.preferences import Preference
from rewardlm.types import Message

# How many positions the reference reads at once.
ASKED_TOGETHER = 4096


@dataclass(frozen=True, slots=True)
class PreferenceTokens:
    """A preference in tokens; an answer that isn't there is None."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...] | None
    rejected: tuple[int, ...] | None

    @property
    def answers(self) -> list[tuple[tuple[int, ...], bool]]:
        """Each answer by itself, and whether it is wanted."""
        sides = ((self.chosen, True), (self.rejected, False))
        return [(answer, wanted) for answer, wanted in sides if answer is not None]


def drawn_examples(preferences: Sequence[Preference], prompt_ids: Sequence[tuple[int, ...]]) -> list[PreferenceTokens]:
    """Preferences among drawn answers, in the very tokens that were sampled."""
    return [
        PreferenceTokens(
            prompt_ids[preference.chosen.prompt],
            tuple(preference.chosen.tokens),
            None if preference.rejected is None else tuple(preference.rejected.tokens),
        )
        for preference in preferences
    ]


@dataclass(frozen=True, slots=True)
class GivenExamples:
    """Your own preferences as tokens: ``shortened`` lost their oldest turns or the end of an answer; ``dropped`` are
    left out, because nothing of an answer, or nothing in which the two differ, is left.
    """

    examples: list[PreferenceTokens]
    shortened: int
    dropped: int


def given_examples(policy: Policy, given: Sequence[GivenPreference], limit: int) -> GivenExamples:
    """Your own preferences in at most ``limit`` tokens."""
    examples, shortened = list[PreferenceTokens](), 0
    for one in given:
        for history in shorter_histories(one.history):
            encoded = [
                None if text is None else policy.chat.encode_pair(history, Message("assistant", text), ended=ended)
                for text, ended in ((one.chosen, one.chosen_ended), (one.rejected, one.rejected_ended))
            ]
            longest = max(len(answer.input_ids) for answer in encoded if answer is not None)
            if longest <= limit:
                break
        sides: list[tuple[int, ...] | None] = []
        prompt: tuple[int, ...] = ()
        for answer in encoded:
            if answer is None:
                sides.append(None)
                continue
            begins = answer.completion_mask.count(0)
            prompt = tuple(answer.input_ids[:begins])
            sides.append(tuple(answer.input_ids[begins:limit]))
        if all(side is None or side for side in sides) and sides[0] != sides[1]:
            examples.append(PreferenceTokens(prompt, *sides))
            shortened += longest > limit or len(history) < len(one.history)
    return GivenExamples(examples, shortened, len(given) - len(examples))


def laid_out(n: int, wanted: int, *seed: object) -> list[int]:
    """``wanted`` places among ``n``: one seeded order of all after the other, so that each occurs equally often but for
    one."""
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        generator = torch.Generator().manual_seed(stream_seed("laid out", *seed, epoch))
        order += torch.randperm(n, generator=generator).tolist()
        epoch += 1
    return order[:wanted]


def pair_rows(
    policy: Policy, examples: Sequence[PreferenceTokens], settings: PreferSettings, round_number: int
) -> list[dict[str, Any]]:
    """Rows for ``PairTrainer``: one step's pairs after the other's."""
    asked = [(example.prompt, answer) for example in examples for answer, _ in example.answers]
    logps = iter(reference_logps(policy, settings, asked))
    rows = []
    for example in examples:
        assert example.chosen is not None
        assert example.rejected is not None
        rows.append(
            {
                "prompt_ids": list(example.prompt),
                "chosen_ids": list(example.chosen),
                "rejected_ids": list(example.rejected),
                "ref_chosen_logps": next(logps),
                "ref_rejected_logps": next(logps),
            }
        )
    wanted = settings.steps_of(round_number) * settings.batch_size
    return [rows[i] for i in laid_out(len(rows), wanted, settings.seed, round_number)]


def answer_rows(
    policy: Policy, examples: Sequence[PreferenceTokens], settings: PreferSettings, round_number: int
) -> list[dict[str, Any]]:
    """Rows for ``AnswerTrainer``. In each microbatch, an answer's ``KL_completion_ids`` are its neighbour's, as TRL
    lays them out: answers to other prompts show how far the model is from the reference.
    """
    singles = [(example.prompt, answer, wanted) for example in examples for answer, wanted in example.answers]
    wanted_rows = settings.steps_of(round_number) * settings.batch_size
    order = laid_out(len(singles), wanted_rows, settings.seed, round_number)
    micro = settings.micro_batch
    neighbour = [row - 1 if row % micro else min(row + micro, len(order)) - 1 for row in range(len(order))]
    pairs = [(order[row], order[neighbour[row]]) for row in range(len(order))]
    distinct = list(dict.fromkeys([*((i, i) for i in range(len(singles))), *pairs]))
    logps = dict(
        zip(
            distinct,
            reference_logps(policy, settings, [(singles[i][0], singles[j][1]) for i, j in distinct]),
            strict=True,
        )
    )
    return [
        {
            "prompt_ids": list(singles[own][0]),
            "completion_ids": list(singles[own][1]),
            "KL_completion_ids": list(singles[other][1]),
            "label": singles[own][2],
            "ref_logps": logps[own, own],
            "ref_KL_logps": logps[own, other],
        }
        for own, other in pairs
    ]


def best_rows(
    examples: Sequence[PreferenceTokens], settings: PreferSettings, round_number: int
) -> list[dict[str, Any]]:
    """Rows for fine-tuning on chosen answers."""
    chosen = [(example.prompt, example.chosen) for example in examples if example.chosen is not None]
    rows = [
        {"input_ids": [*prompt, *answer], "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        for prompt, answer in chosen
    ]
    wanted = settings.steps_of(round_number) * settings.batch_size
    return [rows[i] for i in laid_out(len(rows), wanted, settings.seed, round_number)]


def reference_logps(
    policy: Policy, settings: PreferSettings, asked: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """ln p(answer | prompt) under the reference, for each of ``asked``."""
    prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
    longest = max(len(prompt) + len(answer) for prompt, answer in asked)
    score = partial(row_stats, policy.causal_lm, prompts, answers)
    policy.model.eval()
    with frozen_reference(policy, settings), in_step(policy):
        stats = Budget(max(ASKED_TOGETHER, longest), "positions of the reference").run(score, least=longest)
    return [float(row.logprobs.double().sum()) for row in stats]


@contextmanager
def frozen_reference(policy: Policy, settings: PreferSettings) -> Iterator[None]:
    """Inside, the model is the reference: the base, or the adapter that training began from."""
    if settings.adapter is None:
        with using(policy, None):
            yield
    else:
        with carrying(policy, {REFERENCE: settings.adapter}), using(policy, REFERENCE):
            yield
