"""Best of n and rejection, against draws that are made one by one and judged by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small_models import tiny_policy
from small_steering import QUESTIONS, answered

from rewardlm.config import GenerationSettings
from rewardlm.errors import ConfigError
from rewardlm.models.generate import Request, Sampled, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.steering.folder import SteerFolder, fitted_on
from rewardlm.steering.record import SteerJudge, SteerRecord, refuse_strength
from rewardlm.steering.selection import Selection, _least_toxic, seed_of
from rewardlm.steering.steered import Drawing
from rewardlm.types import Message

JUDGE = '''
"""P(toxic) by the text's length."""
asked = []


def judge(texts):
    asked.extend(texts)
    return [len(text) % 97 / 97 for text in texts]
'''


@pytest.fixture
def judge(written_module: Callable[[str, str], Any]) -> Any:
    return written_module("choosing_judge", JUDGE)


def selection(method: str, **settings: Any) -> Selection:
    judge = SteerJudge(name="choosing_judge:judge", labels=["toxicity"])
    model = fitted_on(tiny_policy())
    return Selection(
        SteerFolder(SteerRecord(method=method, strength=4, model=model, settings=settings, judges=[judge]))
    )


def drawn(policy: Policy, row: int, number: int, n: int = 12) -> list[int]:
    """The draw of that number to a question, alone."""
    prompt = tuple(policy.chat.encode_prompt([Message("user", QUESTIONS[row])]))
    seed = seed_of(stream_seed("test", row), number)
    (one,) = generate(policy, [Request(prompt, seed)], max_new_tokens=n, sampling=GenerationSettings())
    return one.tokens


def value(policy: Policy, tokens: Sequence[int]) -> float | None:
    text = policy.chat.decode(tokens)
    return len(text) % 97 / 97 if text else None


def test_the_best_of_n_is_the_lowest_of_n_draws(judge: Any) -> None:
    policy = tiny_policy()
    got = answered(policy, selection("best-of-n"), [4.0, 1.0, 2.0, 4.0, 3.0], n=12)
    for row, most in enumerate((4, 1, 2, 4, 3)):
        draws = [drawn(policy, row, number) for number in range(most)]
        worst = 2.0
        best = draws[0]
        for tokens in draws:
            score = value(policy, tokens)
            if score is not None and score < worst:
                worst, best = score, tokens
        assert got[row].tokens == best


def test_an_unscored_answer_is_no_harmless_one() -> None:
    """One without a score is given only where no other has one."""
    nothing = torch.zeros(0)
    draws = [Sampled(number, [number], nothing, nothing, nothing, None, "stop") for number in range(4)]

    def chosen(scores: Sequence[float | None]) -> int:
        return _least_toxic(list(zip(draws, scores, strict=True))).index

    assert chosen([None, 0.9, None, 0.8]) == 3
    assert chosen([None, 0.5, 0.5, None]) == 1
    assert chosen([None, None, None, None]) == 0


def test_rejection_gives_the_first_that_passes(judge: Any) -> None:
    policy = tiny_policy()
    threshold = 0.3
    got = answered(policy, selection("rejection", threshold=threshold), [6.0] * 5, n=12)
    later = 0
    for row in range(5):
        scored = [(tokens, value(policy, tokens)) for tokens in (drawn(policy, row, number) for number in range(6))]
        passing = [number for number, (_, score) in enumerate(scored) if score is not None and score < threshold]
        known = [score for _, score in scored if score is not None]
        wanted = passing[0] if passing else [score for _, score in scored].index(min(known))
        later += wanted > 0
        assert got[row].tokens == scored[wanted][0]
    assert later, "every first draw passed"


def test_rejection_asks_no_more_than_it_must(judge: Any) -> None:
    answered(tiny_policy(), selection("rejection", threshold=1.0), [6.0] * 5, n=12)
    assert len(judge.asked) <= 5


def test_strengths_that_mean_nothing_are_refused() -> None:
    for wrong in (1.5, -1.0):
        with pytest.raises(ConfigError, match="how many answers"):
            refuse_strength("best-of-n", wrong, GenerationSettings())


def test_known_answers_are_not_drawn_again_and_missing_ones_are_the_same(judge: Any) -> None:
    """A resumed window: what is missing comes out as in a whole one."""
    policy = tiny_policy()
    whole = [answer.tokens for answer in answered(policy, selection("best-of-n"), [3.0] * 5, n=12)]
    with selection("best-of-n").on(policy) as steered:
        requests = [
            steered.request([Message("user", text)], stream_seed("test", row), 3.0, 400)[0]
            for row, text in enumerate(QUESTIONS)
        ]
        drawing = Drawing(12, GenerationSettings())
        judge.asked.clear()
        assert list(steered.answers(requests, drawing, frozenset(range(5)))) == []
        assert not judge.asked
        again = {answer.index: answer.tokens for answer in steered.answers(requests, drawing, frozenset({0, 3}))}
    assert all(again[row] == whole[row] for row in (1, 2, 4))
