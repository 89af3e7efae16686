"""The shapes that annotations promise, seen at run time: in the pure functions, and in what a real step hands on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from jaxtyping import AbstractArray, jaxtyped

from rewardlm.config import RlafSettings
from rewardlm.training import advantages, learner, objectives, rlaf
from rewardlm.training.advantages import ESTIMATORS, Feedback, estimate


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is what ``hint`` says, as far as tensors go; sizes must agree within one ``jaxtyped``."""
    if hint is inspect.Parameter.empty or hint is Any:
        return True
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple and isinstance(value, tuple) and Ellipsis not in get_args(hint):
        return all(fits(one, part) for one, part in zip(value, get_args(hint), strict=True))
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    if isinstance(value, torch.Tensor):
        return hint is torch.Tensor
    return not (hint is type(None) and value is not None)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which asserts that its arguments and its result have the shapes of its annotations."""
    hints, signature = get_type_hints(function), inspect.signature(function)

    def call(*args: Any, **named: Any) -> Any:
        with jaxtyped("context"):
            for name, value in signature.bind(*args, **named).arguments.items():
                assert fits(value, hints.get(name, Any)), f"{function.__name__}: {name} {shape_of(value)}"
            result = function(*args, **named)
            assert fits(result, hints["return"]), f"{function.__name__}: result {shape_of(result)}"
        return result

    return call


def shape_of(value: Any) -> Any:
    return (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else value


def assert_fields_fit(record: Any, type_: type) -> None:
    """All fields of one dataclass at once, so that one B and one R hold for all of them."""
    hints = get_type_hints(type_)
    with jaxtyped("context"):
        for field in fields(record):
            value = getattr(record, field.name)
            assert fits(value, hints[field.name]), f"{type_.__name__}.{field.name}: {shape_of(value)}"


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True, True, True, True]])
GROUP = torch.tensor([0, 0, 1])
B_R, B, N = (3, 4), (3,), 8
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "kl_k1": (objectives.kl_k1, (numbers(*B_R), numbers(*B_R)), {}),
    "kl_k3": (objectives.kl_k3, (numbers(N), numbers(N)), {}),
    "kl_k3_loss": (objectives.kl_k3_loss, (numbers(N), numbers(N), numbers(N)), {}),
    "masked": (objectives.masked, (numbers(*B_R), MASK), {}),
    "masked_mean": (objectives.masked_mean, (numbers(*B_R), MASK), {}),
    "whiten": (objectives.whiten, (numbers(*B_R), MASK), {}),
    "answer_weights": (
        objectives.answer_weights,
        ([3, 1, 4], "grpo"),
        {"step_tokens": 8, "minibatches": 1, "max_new_tokens": 4},
    ),
    "importance": (objectives.importance, (numbers(*B_R), numbers(*B_R), MASK, 2.0), {"per_answer": False}),
    "importance of answers": (objectives.importance, (numbers(*B_R), numbers(*B_R), MASK, 2.0), {"per_answer": True}),
    "policy_loss": (objectives.policy_loss, (numbers(N), numbers(N), numbers(N), 0.2, numbers(N)), {}),
    "policy_loss of answers": (
        objectives.policy_loss,
        (numbers(N), numbers(N), numbers(N), 0.2, numbers(N)),
        {"lengths": [3, 1, 4]},
    ),
    "policy_loss of geometric means": (
        objectives.policy_loss,
        (numbers(N), numbers(N), numbers(N), 0.2, numbers(N)),
        {"lengths": [3, 1, 4], "geometric": True, "clip_range_high": 0.3},
    ),
    "cispo_loss": (objectives.cispo_loss, (numbers(N), numbers(N), numbers(N), 0.2, numbers(N)), {}),
    "value_loss": (objectives.value_loss, (numbers(N), numbers(N), numbers(N), 0.2, 8), {}),
    "charge_empty_answers": (
        advantages.charge_empty_answers,
        (numbers(*B_R), MASK, torch.tensor([False, True, False])),
        {},
    ),
    "token_rewards": (advantages.token_rewards, (numbers(*B), numbers(*B_R), MASK, 0.1), {}),
    "gae": (advantages.gae, (numbers(*B_R), numbers(*B_R), MASK, 1.0, 0.95), {}),
    "group_normalised": (advantages.group_normalised, (numbers(*B), GROUP), {}),
    "group_centred": (advantages.group_centred, (numbers(*B), GROUP), {}),
    "leave_one_out": (advantages.leave_one_out, (numbers(*B), GROUP), {}),
}


def test_every_pure_function_with_shapes_is_called_here() -> None:
    public = {
        name
        for module in (objectives, advantages)
        for name, found in vars(module).items()
        if inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
        if any("Tensor" in str(hint) for hint in found.__annotations__.values())
    }
    estimators = {function.__name__ for function in ESTIMATORS.values()}
    assert public - estimators - {"estimate"} == {function.__name__ for function, _, _ in CALLS.values()}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_takes_and_gives_the_shapes_of_its_annotations(name: str) -> None:
    function, args, named = CALLS[name]
    checked(function)(*args, **named)


@pytest.mark.parametrize("name", [name for name, (_, args, _) in CALLS.items() if isinstance(args[0], torch.Tensor)])
def test_the_check_sees_a_shape_or_a_mask_that_is_not_as_annotated(name: str) -> None:
    """Else the tests above could not fail."""
    function, (first, second, *rest), named = CALLS[name]
    with pytest.raises(AssertionError, match=function.__name__):
        checked(function)(first[:2], second, *rest, **named)
    with pytest.raises(AssertionError, match=function.__name__):
        checked(function)(first, second.to(torch.complex64), *rest, **named)


@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_every_estimator_gives_a_number_for_every_token(algorithm: str) -> None:
    values = numbers(*B_R) if algorithm == "ppo" else None
    feedback = Feedback(numbers(*B), numbers(*B_R), MASK, GROUP, values, 0.1, 1.0, 0.95)
    assert_fields_fit(feedback, Feedback)
    checked(estimate)(ESTIMATORS[algorithm], feedback)
    found, returns = ESTIMATORS[algorithm](feedback)
    assert found.shape == MASK.shape
    assert (returns is None) == (values is None)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "ppo"},
        {"algorithm": "ppo", "critic": "own", "generation": {"temperature": 0.7}},
        {"algorithm": "grpo", "kl": {"penalty": "full"}},
        {"algorithm": "rloo"},
        {"algorithm": "grpo", "kl": {"reference_every": 1}, "loss": "cispo", "entropy_coef": 0.1},
    ],
    ids=["ppo", "own critic, off-policy", "grpo, full KL", "rloo", "moving reference"],
)
def test_what_a_step_hands_on_has_the_shapes_of_its_fields(tmp_path, monkeypatch, changes: dict[str, Any]) -> None:
    seen: dict[str, list[Any]] = {}

    def noted(module: Any, name: str, *, result: bool) -> None:
        function = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            found = function(*args, **named)
            for record in [found] if result else args:
                for one in record if isinstance(record, list) else [record]:
                    if is_dataclass(one) and not isinstance(one, type):
                        seen.setdefault(type(one).__name__, []).append(one)
            return found

        monkeypatch.setattr(module, name, call)

    torch.set_num_threads(1)
    noted(rlaf, "logprobs_and_values", result=True)
    noted(rlaf, "estimate", result=False)
    noted(rlaf, "update", result=False)
    noted(learner, "_gradient", result=False)
    settings = {"model": "tiny", "device": "cpu", "dtype": "float32", "reward": ["lexical"], "witness": []}
    sizes = {"batch_size": 8, "max_new_tokens": 6, "steps": 1, "generation": {"min_new_tokens": 1}}
    rlaf.train(RlafSettings(**{**settings, **sizes, **changes}), tmp_path / "run")

    seen["Rollouts"] = [batch.rollouts for batch in seen["Batch"]]
    kept = len(seen["Rollouts"][0].texts)
    assert len(seen["Answer"]) == 8 >= kept
    for name in ("Answer", "Feedback", "Batch", "Rollouts", "Minibatch"):
        for record in seen[name]:
            assert_fields_fit(record, type(record))
    broken = replace(seen["Batch"][0], advantages=torch.zeros(kept))
    with pytest.raises(AssertionError, match=r"Batch\.advantages"):
        assert_fields_fit(broken, type(broken))
