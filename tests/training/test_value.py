"""The critic: what it computes, what it must not touch, and what it refuses to read."""

from __future__ import annotations

import pytest
import torch

from rewardlm.errors import ModelError
from rewardlm.training.advantages import gae
from rewardlm.training.value import ValueHead


def filled(size: int) -> ValueHead:
    head = ValueHead(size)
    with torch.no_grad():
        head.linear.weight.copy_(torch.arange(1.0, size + 1)[None])
        head.linear.bias.fill_(0.5)
    return head


def test_a_fresh_head_is_zero_everywhere():
    assert ValueHead(8)(torch.randn(5, 8)).tolist() == [0.0] * 5


def test_value_by_hand():
    # |(3, 4)| has root mean square √12.5; w = (1, 2), b = 0.5
    expected = (3 * 1 + 4 * 2) / 12.5**0.5 + 0.5
    assert float(filled(2)(torch.tensor([[3.0, 4.0]]))) == pytest.approx(expected, rel=1e-5)
    assert float(filled(2)(torch.tensor([[300.0, 400.0]]))) == pytest.approx(expected, rel=1e-5)


def test_half_precision_states_give_float32_values():
    assert filled(4)(torch.randn(3, 4).bfloat16()).dtype == torch.float32


def test_no_gradient_reaches_the_trunk():
    hidden = torch.randn(3, 4, requires_grad=True)
    head = filled(4)
    head(hidden).sum().backward()
    assert hidden.grad is None
    assert head.linear.weight.grad is not None


def test_saved_weights_come_back_exactly(tmp_path):
    head, other = ValueHead(6), ValueHead(6)
    torch.nn.init.normal_(head.linear.weight)
    head.save(tmp_path / "value_head.safetensors")
    other.load(tmp_path / "value_head.safetensors")
    assert torch.equal(head.linear.weight, other.linear.weight)


def test_unusable_files_are_refused_in_one_line(tmp_path):
    filled(6).save(tmp_path / "six.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "six.safetensors").read_bytes()[:-3])
    torch.save(filled(4).state_dict(), tmp_path / "pickle.pt")
    for path in (tmp_path / "six.safetensors", cut, tmp_path / "pickle.pt", tmp_path / "absent.safetensors"):
        with pytest.raises(ModelError, match=path.name) as caught:
            ValueHead(4).load(path)
        assert "\n" not in str(caught.value)


def test_a_critic_that_starts_at_the_mean_reward_finds_no_position_better_than_another():
    head = ValueHead(4)
    head.start_at(5.0)
    mask = torch.ones(1, 6, dtype=torch.bool)
    values = head(torch.randn(6, 4))[None]
    rewards = torch.zeros(1, 6)
    rewards[0, -1] = 5.0
    advantages, _ = gae(rewards, values.detach(), mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(advantages, torch.zeros(1, 6))
    # From zero, the same answer would have taught that its end is better than its beginning.
    from_zero, _ = gae(rewards, torch.zeros(1, 6), mask, gamma=1.0, gae_lambda=0.95)
    assert from_zero[0, 0] < from_zero[0, -1] - 1
