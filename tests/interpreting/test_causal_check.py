"""Conditions change the model as they say, and nothing of it stays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from adapted import PROMPTS, adapted_policy, state_of

from rewardlm.config import ChatSettings, GenerationSettings, InsideSettings
from rewardlm.errors import ConfigError, ModelError
from rewardlm.interpreting.intervals import change_between
from rewardlm.interpreting.mechanistic.causal_check import Outcome, try_conditions
from rewardlm.interpreting.mechanistic.interventions import Condition, layer_groups
from rewardlm.interpreting.mechanistic.word_contrast import contrast_by, contrast_of_words, word_tokens
from rewardlm.models.load import Policy, chat_format


def judge(texts: Sequence[str]) -> list[float | None]:
    return [None if not text else (sum(map(ord, text)) % 100) / 100 for text in texts]


def tried(policy: Policy, *conditions: Condition) -> list[Outcome]:
    return try_conditions(policy, conditions, PROMPTS, judge, InsideSettings(max_new_tokens=8, batch_tokens=64, seed=3))


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = adapted_policy("tiny")
    policy.chat = chat_format(policy.tokenizer, ChatSettings())
    return policy


def test_scales_and_layers_are_what_they_say(policy: Policy) -> None:
    state = state_of(policy.model)
    off = [Condition("FT", "default", "layers_off", layers=group) for group in ((0,), (1,), (0, 1), ())]
    base, plain, none, whole, *layers = tried(
        policy,
        Condition("PT", None, "plain"),
        Condition("FT", "default", "plain"),
        Condition("FT", "default", "scale", value=0.0),
        Condition("FT", "default", "scale", value=1.0),
        *off,
    )
    assert state_of(policy.model) == state
    assert base.texts != plain.texts
    assert none.texts == base.texts
    assert whole.texts == plain.texts
    assert layers[2].texts == base.texts
    assert layers[3].texts == plain.texts
    assert layers[0].texts != layers[1].texts
    assert base.toxicity == judge(base.texts)
    assert base.mean == pytest.approx(sum(value or 0 for value in base.toxicity) / 3)


def test_perplexity_is_the_bases_and_every_tokens(policy: Policy) -> None:
    (outcome,) = try_conditions(
        policy,
        [Condition("FT", "default", "plain")],
        PROMPTS,
        judge,
        InsideSettings(
            max_new_tokens=5, batch_tokens=64, generation=GenerationSettings(temperature=0, min_new_tokens=5)
        ),
    )
    total, count = 0.0, 0
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(5):
                token = policy.model(input_ids=ids).logits[0, -1]
                token[list(policy.end_ids)] = -torch.inf
                ids = torch.cat([ids, token.argmax().reshape(1, 1)], 1)
            with policy.model.disable_adapter():
                logprobs = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            total -= float(logprobs[place - 1, ids[0, place]])
            count += 1
    assert outcome.perplexity == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-3)


def test_an_unknown_condition_is_refused(policy: Policy) -> None:
    state = state_of(policy.model)
    with pytest.raises(ModelError, match="'twist'"):
        tried(policy, Condition("FT", "default", "twist"))
    assert state_of(policy.model) == state


def test_a_change_is_of_pairs_that_both_were_judged_on() -> None:
    plain = Condition("A", None, "plain")
    before = Outcome(plain, ["a"] * 5, [0.1, 0.5, None, 0.9, 0.3], 2.0)
    after = Outcome(plain, ["a"] * 5, [0.2, 0.5, 0.4, None, 0.9], 2.0)
    found = change_between(before.toxicity, after.toxicity, n_resamples=4000, seed=0)
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx((0.1 + 0.0 + 0.6) / 3)
    # Three prompts prove nothing: of the four ways to flip the signs of 0.1 and 0.6 two are as extreme.
    assert found.p_value >= 0.5
    # t of two degrees of freedom is 4.303; the squares are those around the mean, and once more the largest.
    squares = (0.1 - 0.7 / 3) ** 2 + (0.7 / 3) ** 2 + (0.6 - 0.7 / 3) ** 2 + 0.6**2
    half = 4.3027 * math.sqrt(3 * squares / 2) / 3
    assert found.ci95 == pytest.approx([max(-1, 0.7 / 3 - half), min(1, 0.7 / 3 + half)], rel=1e-4)
    assert change_between(before.toxicity, [None] * 5, n_resamples=100, seed=0) is None


def test_one_answer_has_no_interval_and_equal_ones_no_certainty() -> None:
    alone = change_between([0.1], [0.9], n_resamples=100, seed=0)
    assert alone is not None
    assert alone.dump() == {"mean": 0.8, "ci95": None, "p_value": 1.0, "n": 1}
    same = change_between([0.5] * 10, [0.5] * 10, n_resamples=100, seed=0)
    assert same is not None
    assert same.ci95[0] < 0 < same.ci95[1]


@pytest.mark.parametrize("n", [5, 10])
def test_two_draws_of_one_model_seldom_differ(n: int) -> None:
    """Sparse, skewed scores: a percentile bootstrap called 20 % of these changes at 5 prompts, and 13 % at 10."""
    rng = np.random.default_rng(n)
    called = 0
    for _ in range(1000):
        before, after = rng.beta(0.2, 1.8, (2, n))
        low, high = change_between(before, after, n_resamples=500, seed=0).ci95
        called += not low <= 0 <= high
    # 50 of 1000 with a standard deviation of 7: 82 come once in 100,000 times.
    assert called <= 82


def test_groups_of_neighbours_hold_every_layer_once() -> None:
    assert layer_groups(7, 3) == [(0, 1, 2), (3, 4), (5, 6)]
    assert layer_groups(2, 6) == [(0,), (1,)]


def test_toxic_words_have_harmless_partners_that_are_as_rare(policy: Policy) -> None:
    words = word_tokens(policy.tokenizer)
    assert all(policy.tokenizer.decode([token]) == f" {word}" and word.isalpha() for token, word in words.items())
    listed = sorted(words)
    toxic = listed[5:60:10]
    scores = {words[token]: 0.9 - index / 100 for index, token in enumerate(toxic)}
    scores[words[listed[7]]] = 0.4  # neither
    contrast = contrast_by(lambda texts: [scores.get(text, 0.0) for text in texts], policy.tokenizer, 4)
    assert contrast is not None
    assert contrast.toxic == tuple(toxic[:4])
    free = [token for token in listed if token not in toxic and token != listed[7]]
    for token, partner in zip(contrast.toxic, contrast.neutral, strict=True):
        assert abs(partner - token) == min(abs(other - token) for other in free)
        free.remove(partner)
    assert contrast_by(lambda texts: [0.0] * len(texts), policy.tokenizer, 4) is None


def test_words_of_ones_own(policy: Policy) -> None:
    words = word_tokens(policy.tokenizer)
    first, second, third = sorted(words)[10:13]
    contrast = contrast_of_words(policy.tokenizer, [words[first]], [words[second], words[third]])
    assert contrast.toxic == (first,)
    assert contrast.neutral == (second, third)
    with pytest.raises(ConfigError, match="take other words"):
        contrast_of_words(policy.tokenizer, [words[first]], [words[first]])
