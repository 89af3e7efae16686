"""Advantage estimators against plain loops, and on a problem whose best policy is known."""

from __future__ import annotations

import itertools
import math
import statistics
import sys

import pytest
import torch

from rewardlm.errors import TrainingError
from rewardlm.training.advantages import (
    ESTIMATORS,
    Feedback,
    charge_empty_answers,
    dr_grpo,
    estimate,
    gae,
    group_centred,
    group_normalised,
    grpo,
    leave_one_out,
    load_estimator,
    ppo,
    rloo,
    token_rewards,
)
from rewardlm.training.objectives import policy_loss, value_loss


def ragged(seed: int, rows: int = 6, width: int = 9) -> tuple[torch.Generator, torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator).tolist()
    lengths[0], lengths[1] = width, 1
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    return generator, mask, lengths


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.97, 1.0), (0.5, 0.5)])
def test_gae_is_the_double_sum(gamma, lam, seed):
    generator, mask, lengths = ragged(seed)
    rewards = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    values = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    advantages, returns = gae(
        torch.where(mask, rewards, math.nan), torch.where(mask, values, math.nan), mask, gamma, lam
    )
    for row, length in enumerate(lengths):
        for t in range(mask.shape[1]):
            expected = 0.0
            for ahead in range(t, length):
                following = float(values[row, ahead + 1]) if ahead + 1 < length else 0.0
                delta = float(rewards[row, ahead]) + gamma * following - float(values[row, ahead])
                expected += (gamma * lam) ** (ahead - t) * delta
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-12)
            if t < length:
                assert float(returns[row, t]) == pytest.approx(expected + float(values[row, t]), abs=1e-12)


def test_gae_with_lambda_one_gives_discounted_returns():
    generator, mask, lengths = ragged(11)
    rewards = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    values = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    _, returns = gae(rewards, values, mask, 0.9, 1.0)
    for row, length in enumerate(lengths):
        for t in range(length):
            expected = sum(0.9 ** (k - t) * float(rewards[row, k]) for k in range(t, length))
            assert float(returns[row, t]) == pytest.approx(expected, abs=1e-12)


def test_the_reward_stands_on_the_last_real_token_and_the_penalty_on_each():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    kl = torch.tensor([[1.0, 2.0, math.nan], [1.0, -1.0, 3.0], [0.5, math.nan, math.nan]])
    got = token_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, mask, 0.1)
    expected = torch.tensor([[-0.1, 9.8, 0.0], [-0.1, 0.1, 19.7], [29.95, 0.0, 0.0]])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seed", range(5))
def test_group_estimators_are_plain_loops_over_ragged_groups(seed):
    generator = torch.Generator().manual_seed(seed)
    # Groups of 5, 3, 2 and 1, their rows mixed and their numbers not contiguous, as after dropped answers.
    group = torch.tensor([7, 2, 7, 40, 7, 2, 9, 7, 40, 2, 7])[torch.randperm(11, generator=generator)]
    scores = torch.randn(11, generator=generator, dtype=torch.float64)
    normalised, left_out = group_normalised(scores, group), leave_one_out(scores, group)
    centred = group_centred(scores, group)
    for row in range(11):
        members = [float(scores[k]) for k in range(11) if group[k] == group[row]]
        others = [float(scores[k]) for k in range(11) if group[k] == group[row] and k != row]
        assert float(centred[row]) == pytest.approx(float(scores[row]) - statistics.fmean(members), abs=1e-12)
        if not others:
            assert float(normalised[row]) == 0
            assert float(left_out[row]) == 0
            continue
        deviation = statistics.stdev(members)
        assert float(normalised[row]) == pytest.approx(
            (float(scores[row]) - statistics.fmean(members)) / (deviation + 1e-4), abs=1e-12
        )
        assert float(left_out[row]) == pytest.approx(float(scores[row]) - statistics.fmean(others), abs=1e-12)


@pytest.mark.parametrize("size", range(1, 12))
def test_a_group_of_equal_scores_pushes_nobody(size):
    """Not even by a rounding of their mean, which Adam would make a step of."""
    scores, group = torch.full((size,), 0.7), torch.zeros(size, dtype=torch.long)
    for estimator in (group_normalised, leave_one_out, group_centred):
        assert estimator(scores, group).tolist() == [0] * size


@pytest.mark.parametrize(
    ("estimator", "size"), [(grpo, 0.5 / (1 / math.sqrt(2) + 1e-4) - 0.2), (dr_grpo, 0.3), (rloo, 0.8)]
)
def test_group_estimators_take_the_kl_off_the_answer_and_spread_over_its_tokens(estimator, size):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    kl = torch.tensor([[1.0, 2.0, math.nan], [0.5, 0.5, 0.0]])
    advantages, returns = estimator(
        Feedback(torch.tensor([1.0, 0.0]), kl, mask, torch.tensor([0, 0]), None, 0.1, 1.0, 0.95)
    )
    # scores 1 - 0.3 = 0.7 and 0 - 0.1 = -0.1: leave-one-out ±0.8. The other two centre the rewards alone, ±0.5, which
    # GRPO divides by their sample deviation 1/√2, and take off what each KL costs above the other's, ±0.2, undivided.
    assert returns is None
    torch.testing.assert_close(advantages, torch.tensor([[size, size, 0.0], [-size, -size, -size]]))


@pytest.mark.parametrize("samples", [2, 3, 4])
@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_with_k1_the_expected_push_is_the_gradient_of_the_exact_kl(estimator, samples):
    """Equal rewards, answers of one of three tokens: every group that can be drawn, weighted by its probability."""
    logits = torch.tensor([0.9, 0.1, -0.6], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.2, 0.4, 0.1], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)[0]
    pushed = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=samples):
        drawn = list(draw)
        kl = (logprobs - reference).detach()[drawn]
        feedback = Feedback(
            torch.full((samples,), 0.5).double(), kl[:, None], torch.ones(samples, 1, dtype=torch.bool),
            torch.zeros(samples, dtype=torch.long), None, 0.2, 1.0, 0.95,
        )  # fmt: skip
        advantages = estimator(feedback)[0][:, 0]
        chance = logprobs.detach()[drawn].sum().exp()
        surrogate = (advantages * logprobs[drawn]).mean()
        pushed += chance * torch.autograd.grad(surrogate, logits, retain_graph=True)[0]
    torch.testing.assert_close(pushed, -0.2 * exact, atol=1e-9, rtol=1e-6)


def test_ppo_whitens_advantages_and_leaves_returns_as_they_are():
    mask = torch.tensor([[True, True], [True, False]])
    feedback = Feedback(
        torch.tensor([1.0, 3.0]), torch.zeros(2, 2), mask, torch.tensor([0, 1]), torch.zeros(2, 2), 0.05, 1.0, 1.0
    )
    advantages, returns = ppo(feedback)
    # raw advantages 1, 1 and 3: mean 5/3, squared deviations (4 + 4 + 16) / 9, variance 24/9/2 = 4/3
    unit = math.sqrt(4 / 3)
    expected = torch.tensor([[-2 / 3 / unit, -2 / 3 / unit], [4 / 3 / unit, 0.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0], [3.0, 0.0]]))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo"])
def test_each_estimator_finds_the_known_best_policy(algorithm):
    """Two tokens at each of two positions, a reward for every 1, a KL penalty of weight 1 to the uniform policy.

    The best policy is the reference tilted by exp(reward / weight): P(1) = e / (1 + e) = 0.731. GRPO in pairs sees who
    is better and not by how much: with p = P(1), averaged over the other answer, a 1 has an advantage of
    (1 - p + p²) / √2 over a 0. The KL balances it where that is the log odds: p = 0.632.
    """
    best, size = math.e / (1 + math.e), 8
    if algorithm == "grpo":
        size = 2
        for _ in range(100):
            best = 1 / (1 + math.exp(-(1 - best + best**2) / math.sqrt(2)))
        assert best == pytest.approx(0.632, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(2, 2, requires_grad=True)
    critic = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logits, critic], lr=0.02)
    rows, width = 128, 2
    mask, group = torch.ones(rows, width, dtype=torch.bool), torch.arange(rows) // size
    probabilities = []
    for step in range(300):
        with torch.no_grad():
            chances = logits.softmax(-1)
            tokens = torch.stack(
                [torch.multinomial(p, rows, replacement=True, generator=generator) for p in chances], 1
            )
            old = logits.log_softmax(-1)[torch.arange(width), tokens]
            values = critic.expand(rows, width).clone()
            advantages, returns = ESTIMATORS[algorithm](
                Feedback(
                    rewards=tokens.sum(1).float(),
                    kl=old - math.log(0.5),
                    mask=mask,
                    group=group,
                    values=values if algorithm == "ppo" else None,
                    kl_coef=1.0,
                    gamma=1.0,
                    gae_lambda=0.95,
                )
            )
        for _ in range(2):
            new = logits.log_softmax(-1)[torch.arange(width), tokens]
            loss, _ = policy_loss(new[mask], old[mask], advantages[mask], 0.2, 1 / (rows * width))
            if returns is not None:
                now = critic.expand(rows, width)
                loss = loss + value_loss(now[mask], values[mask], returns[mask], 0.2, rows * width)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step >= 200:
            probabilities.append(logits.detach().softmax(-1)[:, 1])
    found = torch.stack(probabilities).mean(0)
    assert found.tolist() == pytest.approx([best, best], abs=0.04)


# A user's own estimator ----------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_estimators.py").write_text(
        "import torch\n"
        "number = 3\n"
        "def reinforce(f):\n"
        "    return f.rewards[:, None] * f.mask, None\n"
        "def per_answer(f):\n"
        "    return f.rewards, None\n"
        "def broken(f):\n"
        "    return torch.full(f.mask.shape, float('nan')), None\n"
        "def forgetful(f):\n"
        "    return f.rewards[:, None] * f.mask\n"
    )
    monkeypatch.chdir(tmp_path)


def feedback(values=None) -> Feedback:
    mask = torch.tensor([[True, True], [True, False]])
    return Feedback(torch.tensor([1.0, 3.0]), torch.zeros(2, 2), mask, torch.tensor([0, 1]), values, 0.1, 1.0, 0.95)


def test_an_estimator_of_ones_own_is_found_by_name(module):
    advantages, returns = estimate(load_estimator("own_estimators:reinforce"), feedback())
    assert advantages.tolist() == [[1, 1], [3, 0]]
    assert returns is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all:f", "can't import nowhere_at_all"),
        ("own_estimators:f", "own_estimators has no 'f'"),
        ("own_estimators:number", "it is a int: expected a function"),
    ],
)
def test_an_estimator_that_is_not_there_is_named(module, name, said):
    with pytest.raises(TrainingError, match=said):
        load_estimator(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("per_answer", r"advantages are shape \(2,\): expected a tensor of \(2, 2\)"),
        ("broken", "advantages hold NaN"),
        ("forgetful", r"advantages are shape \(2,\)"),  # two rows unpack as two values: only the shape tells
    ],
)
def test_an_estimator_that_returns_something_else_is_refused(module, name, said):
    found = load_estimator(f"own_estimators:{name}")
    with pytest.raises(TrainingError, match=said):
        estimate(found, feedback())


def test_a_critic_needs_returns_to_learn_from(module):
    with pytest.raises(TrainingError, match="returns are a NoneType"):
        estimate(load_estimator("own_estimators:reinforce"), feedback(values=torch.zeros(2, 2)))


def test_what_an_estimator_changes_in_place_stays_with_it(module, tmp_path):
    (tmp_path / "own_in_place.py").write_text(
        "def centre(f):\n"
        "    f.rewards.sub_(f.rewards.mean())\n"
        "    return (f.rewards[:, None] * f.mask).long(), None\n"
        "def stray(f):\n"
        "    return f.rewards[:, None] @ f.mask.float(), None\n"
    )
    given = feedback()
    advantages, _ = estimate(load_estimator("own_in_place:centre"), given)
    assert given.rewards.tolist() == [1.0, 3.0]
    assert advantages.dtype == torch.float32  # whole numbers are numbers
    with pytest.raises(TrainingError, match=r"the estimator failed \(RuntimeError"):
        estimate(load_estimator("own_in_place:stray"), given)


def test_whole_answers_need_one_advantage_each(module):
    given = feedback(values=torch.tensor([[0.3, -0.4], [0.1, 0.0]]))
    with pytest.raises(TrainingError, match="advantages differ between an answer's tokens"):
        estimate(ppo, given, per_answer=True)
    assert estimate(rloo, feedback(), per_answer=True)[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "return f.rewards, None",
            "the estimator's advantages are shape (2,): expected a tensor of (2, 2), a number for every token",
        ),
        (
            "return f.rewards[:, None] * f.mask, [1.0]",
            "the estimator's returns are a list: expected a tensor of (2, 2), a number for every token",
        ),
        ("return f.kl / 0, None", "the estimator's advantages hold NaN or infinity"),
        ("return f.kl, f.kl + float('inf')", "the estimator's returns hold NaN or infinity"),
        (
            "raise ValueError('no\\n  such   number ' + 300 * 'x')",
            f"the estimator failed (ValueError: no such number {'x' * 173}): expected (advantages, returns), each "
            "Float[B, R], returns None without a critic",
        ),
        (
            "return torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None",
            "the estimator's advantages differ between an answer's tokens, but the ratio is that of whole answers: use "
            "ratio=token",
        ),
    ],
)
def test_what_is_wrong_with_an_estimator_is_said_in_full(tmp_path, monkeypatch, body, said):
    (tmp_path / "wrong_estimators.py").write_text(f"import torch\ndef wrong(f):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_estimators", raising=False)
    with pytest.raises(TrainingError) as refused:
        estimate(load_estimator("wrong_estimators:wrong"), feedback(), per_answer=True)
    assert str(refused.value) == said


def test_an_estimator_that_is_not_found_is_said_in_full():
    with pytest.raises(TrainingError, match=r"^algorithm 'nowhere_at_all:f': \S"):
        load_estimator("nowhere_at_all:f")
    assert {name: load_estimator(name) for name in ("ppo", "grpo", "dr_grpo", "rloo")} == {
        "ppo": ppo, "grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo,
    }  # fmt: skip


def test_returns_are_kept_where_there_is_no_critic_to_learn_them():
    """Numbers without a gradient, whatever stands under the mask."""

    def own(f: Feedback):
        found = torch.where(f.mask, f.rewards[:, None].double(), math.nan).requires_grad_()
        return found, 2 * found

    advantages, returns = estimate(own, feedback(), per_answer=True)
    assert (advantages.dtype, returns.dtype, advantages.requires_grad) == (torch.float32, torch.float32, False)
    assert advantages.nan_to_num(9.0).tolist() == [[1, 1], [3, 9]]
    assert returns.nan_to_num(9.0).tolist() == [[2, 2], [6, 9]]


def test_silence_is_charged_the_highest_kl_of_the_others_at_its_last_token():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, False], [True, False, False]])
    kl = torch.tensor([[1.0, 2.0, math.nan], [1.0, 1.0, -1.5], [0.25, 0.5, math.nan], [4.0, math.nan, math.nan]])
    silent = torch.tensor([False, False, True, True])
    # The others' KL is 3 and 0.5: the first silent answer lacks 2.25, and the second has 4 already.
    found = charge_empty_answers(kl, mask, silent)
    torch.testing.assert_close(
        torch.where(mask, found, 0.0),
        torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, -1.5], [0.25, 2.75, 0.0], [4.0, 0.0, 0.0]]),
    )
    assert charge_empty_answers(kl, mask, torch.ones(4, dtype=torch.bool)) is kl
    # Nobody is silent: nothing is charged.
    torch.testing.assert_close(
        torch.where(mask, charge_empty_answers(kl, mask, silent & ~silent) - kl, 0.0), mask * 0.0
    )
