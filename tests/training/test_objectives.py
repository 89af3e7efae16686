"""The losses against closed forms and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rewardlm.training.objectives import (
    answer_weights,
    cispo_loss,
    importance,
    kl_k1,
    kl_k3,
    kl_k3_loss,
    masked_mean,
    policy_loss,
    value_loss,
    whiten,
)

GARBAGE = [math.nan, math.inf, 1e30]


def distributions(seed: int, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    return p, q


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_expected_estimate_is_the_exact_kl(estimator, seed):
    p, q = distributions(seed)
    exact = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    expected = sum(
        math.exp(a) * float(estimator(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))
        for a, b in zip(p.tolist(), q.tolist(), strict=True)
    )
    assert expected == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("moved", [0.0, 0.5])
def test_the_k3_loss_has_the_gradient_of_the_exact_kl_whoever_drew_the_tokens(moved, seed):
    """Summed over the vocabulary of the old policy: ∂KL(p ‖ q)/∂logits, on policy and after it has moved."""
    start, q = distributions(seed)
    logits = (start + moved * torch.randn(7, generator=torch.Generator().manual_seed(seed)).double()).requires_grad_()
    p = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)
    expected = (start.exp() * kl_k3_loss(p, start, q)).sum()
    (found,) = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-9)
    assert expected.item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-12)
    # Without the ratio it is on policy the other divergence's, KL(q ‖ p).
    (plain,) = torch.autograd.grad((p.exp().detach() * kl_k3(p, q)).sum(), logits, retain_graph=True)
    (other,) = torch.autograd.grad((q.exp() * (q - p)).sum(), logits)
    torch.testing.assert_close(plain, other, atol=1e-12, rtol=1e-9)
    assert float((plain - exact).abs().max()) > 0.01


def test_k3_is_never_negative_and_k1_is_of_either_sign():
    p, q = distributions(3)
    assert bool((kl_k3(p, q) >= 0).all())
    assert bool((kl_k1(p, q) < 0).any())
    assert bool((kl_k1(p, q) > 0).any())


def test_k3_keeps_its_digits_near_zero():
    # e^x - 1 - x ≈ x²/2: computed as exp(x) - 1 - x in float32 it would be 0 or noise.
    p, q = torch.tensor(-2.0), torch.tensor(-2.0 + 2**-10)
    assert float(kl_k3(p, q)) == pytest.approx(2**-21, rel=1e-3)


def test_masked_mean_counts_real_positions_only():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert float(masked_mean(values, mask)) == pytest.approx(13 / 3)
    assert float(masked_mean(values, torch.zeros_like(mask))) == 0.0


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_under_the_mask_never_counts(garbage):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = torch.tensor([[1.0, 5.0, 0.0], [3.0, 0.0, 0.0]])
    dirty = torch.where(mask, clean, torch.tensor(garbage))
    torch.testing.assert_close(masked_mean(dirty, mask), masked_mean(clean, mask))
    torch.testing.assert_close(whiten(dirty, mask), whiten(clean, mask))


def test_whiten_by_hand():
    # mean 3, sum of squares 4 + 4 + 0 = 8, variance 8 / (3 - 1) = 4, deviation 2
    values = torch.tensor([[1.0, 5.0], [3.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_whitened_values_have_mean_zero_and_variance_one(seed):
    generator = torch.Generator().manual_seed(seed)
    values = 7 + 3 * torch.randn(5, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 9, generator=generator) < 0.6
    whitened = whiten(values, mask)
    assert bool((whitened[~mask] == 0).all())
    real = [x for x, keep in zip(whitened.flatten().tolist(), mask.flatten().tolist(), strict=True) if keep]
    mean = sum(real) / len(real)
    assert mean == pytest.approx(0, abs=1e-12)
    assert sum((x - mean) ** 2 for x in real) / (len(real) - 1) == pytest.approx(1, rel=1e-6)


def test_whiten_of_one_value_and_of_equal_values_is_finite():
    mask = torch.tensor([[True, False]])
    assert whiten(torch.tensor([[4.0, 0.0]]), mask).tolist() == [[0.0, 0.0]]
    equal = whiten(torch.full((2, 2), 0.5), torch.ones(2, 2, dtype=torch.bool))
    assert float(equal.abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Inside [0.8, 1.2] nothing is clipped: -A·r, and d/dlogp = -A·r.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -1.0, 0.9, 0.9),
        # A good token that already became likelier stops at 1.2; a bad one that already became rarer stops at 0.8.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, -1.0, 0.8, 0.0),
        # On the other side the clip never helps: max(-A·r, -A·clip(r)) is the unclipped term.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -1.0, 1.5, 1.5),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, loss, slope):
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    value, sums = policy_loss(logprobs, torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]).double(), 0.2, 1)
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert value.item() == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope)
    assert float(sums["ratio"]) == pytest.approx(ratio)
    # Clipped is what has left the range and has no gradient: on the other side of it one flows.
    assert int(sums["clipped"]) == (slope == 0)


def test_policy_loss_sums_over_tokens_times_what_each_counts():
    logprobs = torch.tensor([1.1, 0.5, 1.5]).log()
    value, sums = policy_loss(logprobs, torch.zeros(3), torch.tensor([2.0, -1.0, -1.0]), 0.2, 1 / 8)
    assert float(value) == pytest.approx((-2.2 + 0.8 + 1.5) / 8)
    assert int(sums["clipped"]) == 1  # the last has left the range too, but its gradient flows


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.25, 2.0, -2.5, False),  # beyond 1.2, but within 1.28
        (1.5, 2.0, -2.56, True),  # stops at 1.28
        (0.75, -1.0, 0.8, True),  # below, it stops at 0.8 as ever
        (0.75, 1.0, -0.75, False),
    ],
)
def test_the_upper_bound_may_be_another_than_the_lower(ratio, advantage, loss, clipped):
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage]).double()
    value, sums = policy_loss(logprobs, old, advantages, 0.2, 1, clip_range_high=0.28)
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert value.item() == pytest.approx(loss)
    assert float(gradient) == pytest.approx(0 if clipped else loss)
    assert int(sums["clipped"]) == clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [(1.1, 2.0, 1.1), (1.5, 2.0, 1.2), (1.5, -1.0, 1.2), (0.1, 2.0, 0.1), (0.1, -1.0, 0.1)],
)
def test_cispo_by_hand(ratio, advantage, weight):
    """-min(ratio, 1.2)·A·log p, with a gradient of that weight whatever the sign, beyond the cap too."""
    logprobs = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-2.0 - math.log(ratio)], dtype=torch.float64)
    value, sums = cispo_loss(logprobs, old, torch.tensor([advantage]).double(), 0.2, 0.5)
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert value.item() == pytest.approx(0.5 * weight * advantage * 2.0)
    assert float(gradient) == pytest.approx(-0.5 * weight * advantage)
    assert float(sums["ratio"]) == pytest.approx(ratio)
    assert (int(sums["clipped"]), int(sums["n"])) == (ratio > 1.2, 1)


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        # old value 1.0, clip ±0.2
        (1.1, 2.0, 0.5 * 0.81, -0.9),  # inside: ½(1.1 - 2)²
        (1.5, 2.0, 0.5 * 0.64, 0.0),  # moved towards the target beyond the clip: (1.2 - 2)² is the worse, and is flat
        (0.5, 2.0, 0.5 * 2.25, -1.5),  # moved away: (0.5 - 2)² is the worse
        (1.5, 0.0, 0.5 * 2.25, 1.5),  # away, on the other side
        (0.5, 0.0, 0.5 * 0.64, 0.0),  # towards, on the other side: clipped at 0.8
    ],
)
def test_value_loss_by_hand(value, target, loss, slope):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    result = value_loss(values, torch.ones(1, dtype=torch.float64), torch.tensor([target]).double(), 0.2, 1)
    (gradient,) = torch.autograd.grad(result, values)
    assert result.item() == pytest.approx(loss)
    assert float(gradient) == pytest.approx(slope)


def test_without_a_clip_the_critic_moves_as_far_as_the_error_says():
    """Logit rewards: from 0 towards 9 within one step, where a clip of ±0.2 would leave no gradient after 0.2."""
    values = torch.tensor([3.0, -1.0], dtype=torch.float64, requires_grad=True)
    old, targets = torch.zeros(2, dtype=torch.float64), torch.tensor([9.0, -9.2], dtype=torch.float64)
    loss = value_loss(values, old, targets, None, 4)
    (gradient,) = torch.autograd.grad(loss, values)
    assert loss.item() == pytest.approx(0.5 * ((3 - 9) ** 2 + (-1 + 9.2) ** 2) / 4)
    assert gradient.tolist() == pytest.approx([(3 - 9) / 4, (-1 + 9.2) / 4])
    (clipped,) = torch.autograd.grad(value_loss(values, old, targets, 0.2, 4), values)
    assert clipped.tolist() == [0.0, 0.0]


# Answers of 4, 1 and 5 tokens in one of two minibatches of a step of 30 tokens, at most 8 new tokens.
@pytest.mark.parametrize(
    ("loss_type", "weights"),
    [
        ("bnpo", [1 / 10, 1 / 10, 1 / 10]),
        ("dapo", [2 / 30, 2 / 30, 2 / 30]),
        ("grpo", [1 / 12, 1 / 3, 1 / 15]),
        ("dr_grpo", [1 / 24, 1 / 24, 1 / 24]),
        ("answers", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_what_a_token_counts_by_hand(loss_type, weights):
    found = answer_weights([4, 1, 5], loss_type, step_tokens=30, minibatches=2, max_new_tokens=8)
    assert found.tolist() == pytest.approx(weights)


def test_an_unknown_loss_type_is_named():
    with pytest.raises(ValueError, match="loss type 'sum': expected bnpo"):
        answer_weights([1], "sum", step_tokens=1, minibatches=1, max_new_tokens=1)


def test_the_ratio_of_whole_answers_by_hand():
    # Answers of two tokens and one: ratios 1.1·1.2 = 1.32 and 0.5; advantages 2 and -1, weights a half each.
    logprobs = torch.tensor([1.1, 1.2, 0.5]).log().double().requires_grad_()
    loss, sums = policy_loss(
        logprobs,
        torch.zeros(3).double(),
        torch.tensor([2.0, 2.0, -1.0]).double(),
        0.2,
        torch.tensor([0.5, 0.5, 0.5]).double(),
        lengths=[2, 1],
    )
    # The first is clipped at 1.2, the second at 0.8: flat both.
    assert loss.item() == pytest.approx(0.5 * (-2 * 1.2 + 0.8))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == [0, 0, 0]
    assert (int(sums["clipped"]), int(sums["n"])) == (2, 2)
    assert float(sums["ratio"]) == pytest.approx(1.82)
    loss, _ = policy_loss(
        logprobs, logprobs.detach(), torch.tensor([2.0, 2.0, -1.0]).double(), 0.2, 0.5, lengths=[2, 1]
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == pytest.approx([-1, -1, 0.5])  # on policy: -weight · advantage for every token


def test_the_geometric_mean_of_an_answers_ratios_by_hand():
    # Ratios 1.1·1.2 and 0.5: their roots are √1.32 = 1.1489 and 0.5; a token weighs a quarter.
    logprobs = torch.tensor([1.1, 1.2, 0.5]).log().double().requires_grad_()
    old, advantages = torch.zeros(3).double(), torch.tensor([2.0, 2.0, 1.0]).double()
    weights = torch.full((3,), 0.25).double()
    loss, sums = policy_loss(logprobs, old, advantages, 0.2, weights, lengths=[2, 1], geometric=True)
    assert loss.item() == pytest.approx(-(0.5 * 2 * math.sqrt(1.32) + 0.25 * 0.5))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.tolist() == pytest.approx([-0.25 * 2 * math.sqrt(1.32)] * 2 + [-0.25 * 0.5])
    assert (int(sums["clipped"]), int(sums["n"])) == (0, 2)
    assert float(sums["ratio"]) == pytest.approx(math.sqrt(1.32) + 0.5)


@pytest.mark.parametrize("per_answer", [False, True])
def test_importance_by_hand(per_answer):
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[0.5, 0.9], [0.1, math.nan]]).log()
    drawn = torch.tensor([[0.4, 0.3], [0.4, math.nan]]).log()
    found = importance(logprobs, drawn, mask, 2.0, per_answer=per_answer)
    # tokens: 1.25, 3 → capped at 2, 0.25; answers: 1.25·3 = 3.75 → capped at 2, 0.25
    wanted = [[2.0, 2.0], [0.25, 0.0]] if per_answer else [[1.25, 2.0], [0.25, 0.0]]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_importance_of_an_unlucky_answer_is_finite():
    gap = torch.full((1, 400), 3.0)
    found = importance(gap, torch.zeros(1, 400), torch.ones(1, 400, dtype=torch.bool), 2.0, per_answer=True)
    assert found.unique().tolist() == [2.0]


def test_weighted_by_importance_a_mean_is_the_policys_own():
    """E_μ[π/μ · f] = E_π[f], summed over a vocabulary; the cap is above every ratio."""
    p, m = distributions(5)
    values = torch.arange(7.0).double()
    weights = importance(p[None], m[None], torch.ones(1, 7, dtype=torch.bool), 1e6, per_answer=False)[0]
    assert float((m.exp() * weights * values).sum()) == pytest.approx(float((p.exp() * values).sum()), abs=1e-9)
