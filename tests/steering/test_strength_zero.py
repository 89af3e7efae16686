"""Strength 0 is the unsteered model, to the bit, for every method; and whatever a method does, it undoes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import tiny_policy
from small_steering import answered, assert_unchanged, folder_of, saved_adapter, state_of

from rewardlm.steering.load import load_steering
from rewardlm.steering.steered import Steering, Unsteered

METHODS = (
    "system", "best-of-n", "rejection", "activation", "ablation", "gated", "dexperts", "selfdebias", "task-vector",
    "profs", "pplm",
)  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    names = ("expert", "anti_expert", "toxic")
    made = {name: saved_adapter(tiny_policy, folder / name, seed, 0.3) for seed, name in enumerate(names)}
    return made.__getitem__


@pytest.fixture(params=METHODS)
def steering(request: pytest.FixtureRequest, adapters: Callable[[str], Path]) -> Steering:
    return load_steering(folder_of(request.param, adapters))


def test_strength_0_is_the_unsteered_model_to_the_bit(steering: Steering) -> None:
    wanted = answered(tiny_policy(), Unsteered(), [0.0] * 5, n=12)
    got = answered(tiny_policy(), steering, [0.0] * 5, n=12)
    assert [answer.tokens for answer in got] == [answer.tokens for answer in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
        assert one.finish == other.finish


def test_rows_of_strength_0_stay_unsteered_beside_others(steering: Steering) -> None:
    whole = {"system": 1.0}.get(steering.method, 2.0)
    wanted = answered(tiny_policy(), Unsteered(), [0.0] * 5, n=12)
    got = answered(tiny_policy(), steering, [0.0, whole, 0.0, whole, whole], n=12)
    assert [got[row].tokens for row in (0, 2)] == [wanted[row].tokens for row in (0, 2)]


def test_a_steered_answer_differs_and_the_model_is_left_as_it_was(steering: Steering) -> None:
    policy = tiny_policy()
    before = state_of(policy)
    whole = {"system": 1.0, "selfdebias": 1e4, "best-of-n": 4.0, "rejection": 4.0}.get(steering.method, 3.0)
    wanted = answered(policy, Unsteered(), [0.0] * 5, n=24)
    got = answered(policy, steering, [whole] * 5, n=24)
    if steering.method != "rejection":  # Random answers are not toxic, so the first one passes.
        assert [answer.tokens for answer in got] != [answer.tokens for answer in wanted]
    assert_unchanged(policy, before)


def test_the_model_is_left_as_it_was_after_an_error(steering: Steering) -> None:
    policy = tiny_policy()
    before = state_of(policy)
    with pytest.raises(KeyError), steering.on(policy):
        raise KeyError
    assert_unchanged(policy, before)
