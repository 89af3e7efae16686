"""Comprehensiveness and sufficiency against a double loop, and on a model of which it is known what it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapted import adapted_policy
from planted import planted

from rewardlm.interpreting.faithfulness import ORDERS, SHARES, Explained, faithfulness
from rewardlm.models.logprobs import body_and_head

CONTEXT = [1, 300, 301, 302, 2, 17, 900, 4, 5, 6, 81, 82]
TOKEN = 83


def explained(sizes: list[float], words: list[tuple[int, int]] | None = None, seed: int = 0) -> Explained:
    words = words or [(place, place + 1) for place in range(len(CONTEXT))]
    return Explained(CONTEXT, TOKEN, words, np.array(sizes), seed)


@torch.no_grad()
def logprob(name: str, kept: list[int]) -> float:
    """By a plain forward pass over what is kept, each token at its old position."""
    body, head = body_and_head(adapted_policy(name).causal_lm)
    ids, positions = torch.tensor([[CONTEXT[place] for place in kept]]), torch.tensor([kept])
    return float(head(body(input_ids=ids, position_ids=positions)[0][0, -1]).log_softmax(-1)[TOKEN])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "opt"])
def test_both_measures_are_a_double_loop(name: str) -> None:
    sizes = [0.1, 0.9, 0.2, 0.8, 0.3, 0.05, 0.7, 0.0, 0.6, 0.4, 0.5, 9.0]
    found = faithfulness(adapted_policy(name).causal_lm, explained(sizes), budget=40)
    everything = list(range(12))
    # The last token stays although its size is the largest: the prediction is read from it.
    ranked = [1, 3, 6, 8, 10, 9, 4, 2, 0, 5, 7]
    whole = logprob(name, everything)
    without, alone = [], []
    for number in (2, 3, 6):  # a tenth, a fifth and a half of eleven tokens, rounded up
        top = ranked[:number]
        without.append(whole - logprob(name, [place for place in everything if place not in top]))
        alone.append(whole - logprob(name, sorted([*top, 11])))
    assert SHARES == (0.1, 0.2, 0.5)
    assert found.comprehensiveness == pytest.approx(np.mean(without), abs=1e-4)
    assert found.sufficiency == pytest.approx(np.mean(alone), abs=1e-4)


def test_random_orders_depend_on_the_seed_and_not_on_the_sizes() -> None:
    model = adapted_policy("tiny").causal_lm
    rng = np.random.default_rng(0)
    one, two, other = (
        faithfulness(model, explained(rng.random(12).tolist(), seed=seed), budget=200) for seed in (0, 0, 1)
    )
    assert one.random_comprehensiveness == two.random_comprehensiveness
    assert one.random_sufficiency == two.random_sufficiency
    assert one.comprehensiveness != two.comprehensiveness
    assert one.random_comprehensiveness != other.random_comprehensiveness
    assert ORDERS >= 2


@pytest.mark.slow
def test_words_go_as_a_whole_and_a_sizes_order_alone_counts() -> None:
    model = adapted_policy("tiny").causal_lm
    words = [(0, 1), (1, 4), (4, 6), (6, 7), (7, 10), (10, 12)]
    found = faithfulness(model, explained([0.1, 0.5, 0.2, 0.05, 0.3, 9.0], words), budget=200)
    # Of ten tokens that can go: one or two are the first word's three, five want the second too. The last word stays.
    kept = [[0, 4, 5, 6, 7, 8, 9, 10, 11], [0, 4, 5, 6, 7, 8, 9, 10, 11], [0, 4, 5, 6, 10, 11]]
    alone = [[1, 2, 3, 10, 11], [1, 2, 3, 10, 11], [1, 2, 3, 7, 8, 9, 10, 11]]
    whole = logprob("tiny", list(range(12)))
    assert found.comprehensiveness == pytest.approx(np.mean([whole - logprob("tiny", k) for k in kept]), abs=1e-4)
    assert found.sufficiency == pytest.approx(np.mean([whole - logprob("tiny", k) for k in alone]), abs=1e-4)


def test_what_a_model_really_reads_beats_random_orders_and_the_contrary_does_not() -> None:
    """The planted model says a toxic word because of the trigger alone, which stands at place 3 of 9."""
    model = planted()
    context = [*model.harmless[:3], model.trigger, *model.harmless[3:8]]
    words = [(place, place + 1) for place in range(9)]
    token = min(model.toxic)
    right, wrong = np.zeros(9), np.arange(9.0)
    right[3], wrong[3] = 1.0, -1.0
    by = [
        faithfulness(model.policy.causal_lm, Explained(context, token, words, sizes, seed), budget=200)
        for sizes in (right, wrong)
        for seed in range(8)
    ]
    gained = [one.comprehensiveness - one.random_comprehensiveness for one in by]
    enough = [one.random_sufficiency - one.sufficiency for one in by]
    assert np.mean(gained[:8]) > 0.3
    assert np.mean(enough[:8]) > 0.3
    assert np.mean(gained[8:]) < -0.3
    assert np.mean(enough[8:]) < -0.3
