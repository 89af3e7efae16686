"""Which of an adapter's layers carry an effect: shares add up, by finite differences and by hand."""

from __future__ import annotations

import pytest
import torch
from adapted import PROMPTS, RESPONSES, adapted_policy, state_of
from small_models import random_policy

from rewardlm.errors import ModelError
from rewardlm.interpreting.mechanistic.activations import batch_of, mean_logprob
from rewardlm.interpreting.mechanistic.adapter_effects import fewest_layers, path_shares
from rewardlm.models.logprobs import row_stats


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_shares_along_the_scale_add_up_to_the_whole_effect(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)

    def effect() -> torch.Tensor:
        return mean_logprob(policy.causal_lm, batch).mean()

    state = state_of(policy.model)
    found = path_shares(policy.causal_lm, effect, steps=24)
    assert state_of(policy.model) == state
    with torch.no_grad():
        after = float(effect())
        with policy.model.disable_adapter():
            before = float(effect())
    assert (found.before, found.after) == pytest.approx((before, after), abs=1e-5)
    assert abs(after - before) > 0.05
    assert sum(found.by_module.values()) == pytest.approx(after - before, abs=2e-3)
    assert found.by_layer.sum() == pytest.approx(after - before, abs=2e-3)


def test_few_steps_become_more_where_shares_miss_the_effect() -> None:
    """An adapter that bends the model: four points miss by more than 5 %, which the finer path does not."""
    policy = adapted_policy("tiny")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(4)

    def effect() -> torch.Tensor:
        return mean_logprob(policy.causal_lm, batch).mean()

    found = path_shares(policy.causal_lm, effect, steps=1)
    assert found.steps > 1
    assert found.adds_up
    whole = found.after - found.before
    assert sum(found.by_module.values()) == pytest.approx(whole, abs=0.05 * abs(whole))


def test_shares_that_never_add_up_say_so() -> None:
    """An effect with a step in it has no gradient there, so no path sums to it."""
    policy = adapted_policy("tiny")
    layers = [module for module in policy.causal_lm.modules() if hasattr(module, "lora_B")]

    def effect() -> torch.Tensor:
        nothing = 0 * layers[0].lora_B["default"].weight.sum()
        return float(layers[0].scaling["default"] > 0.9 * 1.5) + nothing

    found = path_shares(policy.causal_lm, effect, steps=4)
    assert (found.before, found.after) == (0, 1)
    assert found.steps == 64
    assert not found.adds_up
    assert found.missing == pytest.approx(1)


@pytest.mark.slow
def test_a_share_is_the_integral_of_finite_differences() -> None:
    policy = adapted_policy("tiny")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    layers = {n: m for n, m in policy.causal_lm.named_modules() if hasattr(m, "lora_B")}
    found = path_shares(policy.causal_lm, lambda: mean_logprob(policy.causal_lm, batch).mean(), steps=12)
    kept = {name: dict(layer.scaling) for name, layer in layers.items()}

    def effect(t: float, other: str, by: float) -> float:
        for name, layer in layers.items():
            layer.scaling["default"] = kept[name]["default"] * (t + (by if name == other else 0))
        with torch.no_grad():
            return float(mean_logprob(policy.causal_lm, batch).double().mean())

    for name in list(layers)[::5]:
        points, step = 40, 0.02
        slopes = [
            (effect((i + 0.5) / points, name, step) - effect((i + 0.5) / points, name, -step)) / (2 * step)
            for i in range(points)
        ]
        assert found.by_module[name] == pytest.approx(sum(slopes) / points, abs=2e-3), name


def test_an_adapter_in_one_layer_has_all_shares_there() -> None:
    policy = adapted_policy("tiny")
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name and ".layers.0." in name:
                parameter.zero_()
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = path_shares(policy.causal_lm, lambda: mean_logprob(policy.causal_lm, batch).mean(), steps=8)
    assert found.by_layer[0] == 0
    assert abs(found.by_layer[1]) > 0.01
    with pytest.raises(ModelError, match="no adapter is on"):
        path_shares(random_policy("tiny").causal_lm, lambda: torch.zeros(()), steps=2)


def test_mean_logprobs_are_those_of_the_one_shift() -> None:
    policy = adapted_policy("gpt_neox")
    stats = row_stats(policy.causal_lm, PROMPTS, RESPONSES, 512)
    with torch.no_grad():
        found = mean_logprob(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))
    assert found.tolist() == pytest.approx([float(row.logprobs.mean()) for row in stats], abs=1e-5)


@pytest.mark.parametrize(
    ("shares", "fewest"),
    [
        ([1, 0, 0, 0], 1),
        ([1, 1, 1, 1, 1], 4),
        ([5, -1, 0, 0], 1),  # the whole is 4, and 5 is more than 3.2
        ([-2, -2, -1], 2),  # the same for an effect below 0
        ([0.3, 0.5, 0.2], 2),
        ([0, 0, 0], 3),
    ],
)
def test_the_fewest_layers_by_hand(shares: list[float], fewest: int) -> None:
    assert fewest_layers(shares) == fewest
