"""Whether saying nothing can pay: an empty answer's advantage beside those of answers with text, in the whole step.

An answer of one token has had little room to leave the reference. Where the KL is taken off the reward, that relief
must not make it the best of its group.
"""

from __future__ import annotations

import pytest
import torch

from rewardlm.config import RlafSettings
from rewardlm.models.generate import Sampled
from rewardlm.training import rlaf
from rewardlm.training.advantages import ESTIMATORS, Feedback, charge_empty_answers, token_rewards
from rewardlm.training.rlaf import train
from rewardlm.training.rollouts import Answer, Draft

REWARDS = {"one word": 0.99, "two words": 0.98, "three words": 0.97}
TEXTS = [*REWARDS, ""]
# Nats that each answer is from the reference, a token: four in all, and one and a half.
KL = [[1.0] * 4, [1.0] * 4, [1.0] * 4, [1.5]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "penalty"),
    [(name, penalty) for name in ("ppo", "grpo", "dr_grpo", "rloo") for penalty in (None, "k1", "k3")],
)
@pytest.mark.parametrize("coef", [0.05, 1.0])
def test_silence_never_has_the_best_advantage(tmp_path, monkeypatch, algorithm, penalty, coef):
    """A real step but for its answers and their probabilities, which are given."""
    (tmp_path / "silence_judges.py").write_text(
        f"rewards = {REWARDS!r}\n"
        "def judge(texts):\n"
        "    if texts[-1].endswith('taxes.'):  # the check of the sign\n"
        "        return [0.9, 0.9, 0.9, 0.1, 0.1, 0.1]\n"
        "    return [1 - rewards[text] for text in texts]\n"
    )
    monkeypatch.chdir(tmp_path)

    def drawn(policy, settings, prompts, *_):
        tokens = [[5] * len(kl) for kl in KL]
        none = torch.zeros(4)
        return Draft(
            [0] * 4,
            [prompts[0].ids] * 4,
            [Sampled(i, tokens[i], none, none, none, None, "stop") for i in range(4)],
            TEXTS,
        )

    def weighed(learner, settings, draft, *_):
        answers = []
        for row, kl in enumerate(KL):
            reference, left = torch.full((len(kl),), -3.0), torch.tensor(kl)
            answers.append(
                Answer(
                    prompt_index=0,
                    prompt=draft.prompt_ids[row],
                    tokens=draft.sampled[row].tokens,
                    text=draft.texts[row],
                    finish="stop",
                    logprobs=reference + left,
                    sampling_logprobs=reference + left,
                    ref_logprobs=reference,
                    entropy=torch.ones(len(kl)),
                    kl_full=None,
                    values=torch.full((len(kl),), 0.9775) if learner.value_head is not None else None,
                    ref_hidden=None,
                )
            )
        return answers

    seen = {}

    def noted(learner, settings, batch, *_):
        seen.update(advantages=batch.advantages, returns=batch.returns, logged=batch.rollouts.rewards)
        return {}

    monkeypatch.setattr(rlaf, "sample", drawn)
    monkeypatch.setattr(rlaf, "logprobs_and_values", weighed)
    monkeypatch.setattr(rlaf, "update", noted)
    chosen = RlafSettings(
        model="tiny",
        device="cpu",
        dtype="float32",
        prompts="starter",
        limit=1,
        reward=["silence_judges:judge"],
        witness=[],
        algorithm=algorithm,
        samples=4,
        batch_size=4,
        steps=1,
        kl={"penalty": penalty, "coef": coef},
    )
    [line] = train(chosen, tmp_path / "run").read("metrics")
    # What is logged is what was: the reward of the worst, and the KL that there is.
    assert seen["logged"].tolist() == pytest.approx([0.99, 0.98, 0.97, 0.97])
    assert line["kl"] == pytest.approx((4 + 4 + 4 + 1.5) / 4)
    pushed = seen["advantages"].sum(1) / torch.tensor([len(kl) for kl in KL])
    assert float(pushed[3]) < float(pushed[0])
    assert float(pushed[3]) == pytest.approx(float(pushed.min()), abs=1e-6)
    if algorithm == "ppo":
        assert float(seen["returns"][3, 0]) == pytest.approx(float(seen["returns"][:, 0].min()), abs=1e-6)


@pytest.mark.parametrize("algorithm", ESTIMATORS)
@pytest.mark.parametrize("seed", range(20))
def test_silence_is_no_better_than_any_answer_to_its_prompt(algorithm, seed):
    """Rewards and KL of any size, also such as a logit gives: their deviation is over 1 as often as under."""
    generator = torch.Generator().manual_seed(seed)
    group, width = torch.arange(12) // 4, 6
    lengths = torch.randint(1, width + 1, (12,), generator=generator)
    mask = torch.arange(width)[None] < lengths[:, None]
    rewards = 10 ** (3 * torch.rand((), generator=generator) - 2) * torch.randn(12, generator=generator)
    kl = torch.where(mask, 2 * torch.randn(12, width, generator=generator), torch.nan)
    empty = torch.arange(12) % 4 == 3
    rewards[empty] = rewards[~empty].min()
    charged = charge_empty_answers(kl, mask, empty)
    torch.testing.assert_close(charged[~empty], torch.where(mask, kl, 0.0)[~empty])
    if algorithm == "ppo":
        pushed = token_rewards(rewards, charged, mask, 0.3).sum(1)  # the return of an undiscounted answer
        batch = torch.zeros(12)
    else:
        found, _ = ESTIMATORS[algorithm](Feedback(rewards, charged, mask, group, None, 0.3, 1.0, 0.95))
        pushed, batch = found[:, 0], group
    for row in range(12):
        if empty[row]:
            others = pushed[(batch == batch[row]) & ~empty]
            assert float(pushed[row]) <= float(others.min()) + 1e-5 * float(pushed.abs().max())


def test_a_batch_of_silence_is_charged_as_it_is():
    kl, mask = torch.tensor([[0.5], [0.2]]), torch.ones(2, 1, dtype=torch.bool)
    assert torch.equal(charge_empty_answers(kl, mask, torch.tensor([True, True])), kl)
    assert torch.equal(charge_empty_answers(kl, mask, torch.tensor([False, False])), kl)
