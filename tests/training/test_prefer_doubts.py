"""When preference training warns of a reward that is hacked: on simulated judges, whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from rewardlm.training.drawn import Chunk, DrawnAnswer
from rewardlm.training.prefer_run import doubts_about_round
from rewardlm.training.rewards import BatchRewards
from rewardlm.types import Message, Prompt

PROMPTS = [Prompt(f"p{n}", (Message("user", f"prompt {n}"),), "test") for n in range(200)]


def chunk(rng: np.random.Generator, asked: list[int], samples: int, mine: float, witness: float) -> Chunk:
    """Answers whose scores lie about ``mine`` by the reward's judge and about ``witness`` by a witness, in log-odds.
    Prompts differ by 1, answers to one of them by 1.5, and each judge errs by 1 besides: made-up spreads."""
    answers, scores = list[DrawnAnswer](), list[tuple[float, float]]()
    for prompt in asked:
        hard = np.random.default_rng(prompt).normal()
        for sample in range(samples):
            text = rng.normal(0, 1.5)
            both = [centre + hard + text + rng.normal() for centre in (mine, witness)]
            scores.append(tuple(1 / (1 + np.exp(-np.array(both)))))
            answers.append(DrawnAnswer(prompt, sample, [1], f"{prompt} says {sample}", "stop", rng.random(), 0.5, {}))
    empty = [None] * len(answers)
    judged = BatchRewards(
        [answer.reward for answer in answers], [one for one, _ in scores], {}, {"w": [other for _, other in scores]},
        {}, empty, [False] * len(answers), empty,
    )  # fmt: skip
    return Chunk(answers, judged)


def warned(rng: np.random.Generator, fall: float, seen: float) -> bool:
    """Whether it is doubted after one round of 64 prompts × 8 answers and a look at 32 of the trained model, where
    the judge sees a ``fall`` (in log-odds) and the witness one of ``seen``."""
    first = chunk(rng, [*rng.permutation(200)[:64]], 8, -1.5, -1.5)
    trained = chunk(rng, [*rng.permutation(200)[:32]], 1, -1.5 - fall, -1.5 - seen)
    return "reward_hacking" in doubts_about_round([trained], PROMPTS, [first])


def share(fall: float, seen: float, times: int = 200) -> float:
    rng = np.random.default_rng(7)
    return float(np.mean([warned(rng, fall, seen) for _ in range(times)]))


@pytest.mark.slow
@pytest.mark.parametrize("fall", [0.0, 0.5, 1.0, 2.0])
def test_a_witness_that_agrees_is_seldom_said_not_to(fall: float) -> None:
    """A level of 5 %, and what 200 simulations may add to it by chance."""
    assert share(fall, fall) <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.slow
def test_a_witness_that_sees_no_gain_is_told() -> None:
    assert share(3.0, -0.5) > 0.8


def test_what_nobody_saw_is_no_doubt() -> None:
    rng = np.random.default_rng(1)
    first, trained = chunk(rng, [*range(8)], 4, 2, -1), chunk(rng, [*range(8)], 1, -4, 1)
    assert "reward_hacking" in doubts_about_round([trained], PROMPTS, [first])
    unseen = [None] * len(trained.answers)
    for judged in (
        BatchRewards([], unseen, {}, trained.judged.by_witness, {}, [], [], []),
        BatchRewards([], trained.judged.toxicity, {}, {"w": unseen}, {}, [], [], []),
        BatchRewards([], trained.judged.toxicity, {}, {}, {}, [], [], []),
    ):
        assert "reward_hacking" not in doubts_about_round([Chunk(trained.answers, judged)], PROMPTS, [first])
