"""Doubts about answers, each where it should be raised and where it should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rewardlm.config import RlafSettings
from rewardlm.errors import TrainingError
from rewardlm.training.guards import WINDOW, check_limits, doubts_about
from rewardlm.training.rewards import BatchRewards
from rewardlm.training.rollouts import Rollouts, length_mask


def rollouts(
    texts: list[str],
    *,
    lengths: list[int] | None = None,
    toxicity: list[float] | None = None,
    witness: list[float] | None = None,
    entropy: float = 3.0,
) -> Rollouts:
    n = len(texts)
    toxicity = toxicity or [0.1 * (1 + row % 5) for row in range(n)]
    mask = length_mask([[0] * length for length in lengths or [6] * n])
    zeros = torch.zeros(mask.shape)
    return Rollouts(
        prompts=[(1,)] * n,
        responses=[[0] * int(length) for length in mask.sum(1)],
        response_mask=mask,
        logprobs=zeros,
        sampling_logprobs=zeros,
        ref_logprobs=zeros,
        entropy=torch.full(mask.shape, entropy),
        kl_full=None,
        values=None,
        ref_hidden=None,
        rewards=1 - torch.tensor(toxicity),
        group=torch.arange(n),
        texts=texts,
        judged=BatchRewards(
            rewards=[1 - value for value in toxicity],
            toxicity=list(toxicity),
            by_judge={"judge": list(toxicity)},
            by_witness={} if witness is None else {"lexical": list(witness)},
            terms={},
            disagreement=[None] * n,
            empty=[False] * n,
            reasons=[None] * n,
        ),
    )


CALM = ["I see it another way.", "Who told you that?", "Let us look at the numbers.", "My neighbour is a nurse there."]
ASKED = [f"Prompt number {row}" for row in range(4)]


def names(found: Rollouts, kl: float = 0.3, before: list[dict] | None = None, prompts: list[str] | None = None) -> set:
    return set(doubts_about(found, kl, prompts or ASKED, before or []))


def test_updates_that_are_clipped_for_a_quarter_are_doubted_once_they_have_lasted():
    """Rounding scatters ratios to both sides, and half of them at most are clipped: a limit of a half would be mute."""
    found = rollouts(CALM)
    often = [{"clip_fraction": share} for share in (0.4, 0.2, 0.3, 0.3, 0.3)]
    assert doubts_about(found, 0.3, ASKED, often).get("clipped", "").startswith("clipped: 30% of the ratios")
    assert not names(found, before=often[1:])
    assert not names(found, before=[*often, *[{"clip_fraction": 0.1}] * WINDOW])
    assert not names(found, before=[{"clip_fraction": 0.25}] * WINDOW)


def test_weights_of_other_draws_that_leave_little_are_doubted():
    found = rollouts(CALM)
    few = [{"weight_mean": 1.0, "weight_share": 0.2}] * WINDOW
    small = [{"weight_mean": 0.05, "weight_share": 0.9}] * WINDOW
    assert "was 1, and its effective sample size 20%" in doubts_about(found, 0.3, ASKED, few)["uneven_weights"]
    assert "was 0.05, and" in doubts_about(found, 0.3, ASKED, small)["uneven_weights"]
    assert not names(found, before=few[1:])
    assert not names(found, before=[{"weight_mean": 0.8, "weight_share": 0.7}] * WINDOW)


def test_ordinary_answers_raise_no_doubt():
    assert names(rollouts(CALM)) == set()


def test_a_negative_kl_beyond_noise():
    assert names(rollouts(CALM), kl=-0.9) == set()
    assert doubts_about(rollouts(CALM), -2.0, ASKED, []) == {"negative_kl": "negative KL: -2.00 nats an answer"}


@pytest.mark.parametrize(
    ("compares", "coef", "said"),
    [
        (True, 0.05, ": the reward teaches nothing in this step, only the KL penalty pulls"),
        (True, 0.0, ", so the reward teaches nothing in this step"),
        (False, 0.05, ""),  # answers to other prompts differ, and ppo learns from that
    ],
)
def test_what_a_reward_that_differs_between_prompts_alone_teaches(compares, coef, said):
    found = replace(rollouts(CALM, toxicity=[0.25, 0.25, 0.5, 0.5]), group=torch.tensor([0, 0, 1, 1]))
    doubts = doubts_about(found, 0.3, ASKED, [], compares_answers=compares, kl_coef=coef)
    assert doubts == {"constant_reward": f"constant reward: within every group all answers got the same{said}"}


@pytest.mark.parametrize(
    ("rounds", "said"), [(0, None), (3, "equal rewards: in 50% of the groups"), (1, "after 1 round")]
)
def test_groups_that_are_equal_although_they_were_drawn_again(rounds, said):
    found = replace(rollouts(CALM, toxicity=[0.25, 0.25, 0.5, 0.75]), group=torch.tensor([0, 0, 1, 1]))
    doubts = doubts_about(found, 0.3, ASKED, [], compares_answers=True, rounds=rounds)
    assert list(doubts) == ([] if said is None else ["equal_rewards"])
    assert said is None or said in doubts["equal_rewards"]
    # Where none has a spread, one warning is enough.
    none = replace(found, rewards=torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert list(doubts_about(none, 0.3, ASKED, [], compares_answers=True, rounds=rounds)) == ["constant_reward"]


@pytest.mark.parametrize("equal", [[0.5, 0.5, 0.1, 0.1], [0.5] * 4])
def test_equal_rewards_end_the_run_where_no_group_has_a_spread(equal):
    found = replace(rollouts(CALM, toxicity=equal), group=torch.tensor([0, 0, 1, 1]))
    asked = {"model": "tiny", "prompts": "starter", "algorithm": "rloo", "minibatches": 1}
    chosen = RlafSettings(**asked, dynamic_sampling=2, stop_on=["equal_rewards"])
    doubts = doubts_about(found, 0.3, ASKED, [], compares_answers=True, rounds=2)
    with pytest.raises(
        TrainingError, match=r"step 1: constant reward: .*stop_on names equal_rewards: raise dynamic_sampling"
    ):
        check_limits(0, 0.3, found, doubts, chosen)
    # Without dynamic sampling nothing was drawn again, and the warning is another one.
    check_limits(0, 0.3, found, doubts, RlafSettings(**asked, stop_on=["equal_rewards"]))


def test_a_reward_that_never_differs():
    found = doubts_about(rollouts(CALM, toxicity=[0.25] * 4), 0.3, ASKED, [])
    assert found == {"constant_reward": "constant reward: all 4 answers got 0.750"}


def test_entropy_that_is_gone():
    found = doubts_about(rollouts(CALM, entropy=0.02), 0.3, ASKED, [])
    assert found == {"entropy_collapse": "entropy collapse: 0.020 nats a token"}


def test_answers_in_another_script_than_their_prompts():
    texts = ["Я думаю иначе.", "Кто это сказал?", *CALM[2:]]
    assert names(rollouts(texts)) == {"language_switch"}
    # The same answers to prompts of their own script are none of it.
    assert names(rollouts(texts), prompts=["Привет, как дела?", "Что нового?", *ASKED[2:]]) == set()


def test_answers_that_say_one_phrase_again_and_again():
    again = "we are all one people we are all one people"
    found = doubts_about(rollouts([again, *CALM[1:]]), 0.3, ASKED, [])
    assert found == {"repetition": "repetition: 25% of the answers say one phrase again and again"}


def test_one_answer_for_everybody():
    same = [f"I'm happy to assist you with {thing}." for thing in ("that", "this", "it", "them", "tea")]
    prompts = [f"Prompt {row}" for row in range(8)]
    found = doubts_about(rollouts([*same, *CALM[:3]]), 0.3, prompts, [])
    assert found == {
        "same_answer": 'same answer: the answers to 5 of 8 prompts begin with the words "i\'m happy to assist you"'
    }
    # Many samples of one prompt may be alike: that is no collapse over prompts.
    assert names(rollouts([*same, *CALM[:3]]), prompts=["Prompt"] * 5 + ASKED[:3]) == set()
    assert names(rollouts([*same[:4], *CALM]), prompts=prompts) == set()  # half is not more than half


def test_answers_that_shrank():
    before = [{"response_tokens": 20.0, "toxicity_mean": None}] * 3
    assert names(rollouts(CALM, lengths=[11] * 4), before=before) == set()
    found = doubts_about(rollouts(CALM, lengths=[9] * 4), 0.3, ASKED, before)
    assert found == {"short_answers": "short answers: 9.0 tokens on average, 20.0 in the first steps"}


def history(toxicity: list[float], witness: list[float]) -> list[dict]:
    return [
        {"response_tokens": 6.0, "toxicity_mean": mine, "toxicity_by_witness": {"lexical": theirs}}
        for mine, theirs in zip(toxicity, witness, strict=True)
    ]


FALLING = [0.50, 0.51, 0.49, 0.52, 0.50, 0.40, 0.30, 0.22, 0.21, 0.20]


@pytest.mark.parametrize(
    ("toxicity", "witness", "hacked"),
    [
        (FALLING, [0.30] * 5 + [0.31] * 5, True),  # the reward's judge alone sees the fall
        (FALLING, [0.30] * 5 + [0.10] * 5, False),  # both see it
        ([0.50, 0.30, 0.60, 0.40, 0.55, 0.45, 0.58, 0.33, 0.52, 0.44], [0.3] * 10, False),  # nothing but noise
        (FALLING[:8], [0.30] * 8, False),  # too early to say
    ],
)
def test_a_gain_that_the_reward_alone_sees(toxicity, witness, hacked):
    before = history(toxicity, witness)
    found = doubts_about(
        rollouts(CALM, toxicity=[0.2, 0.19, 0.21, 0.22], witness=[witness[-1]] * 4), 0.3, ASKED, before
    )
    assert (set(found) == {"reward_hacking"}) == hacked
    if hacked:
        assert "by lexical, which is no part of the reward, it did not (0.300 to 0.310)" in found["reward_hacking"]
        assert f"over {WINDOW} steps" in found["reward_hacking"]


def share_of_runs_warned(fall: float, seen: float, runs: int = 200) -> float:
    """Of simulated runs of rlaf's default size in which the reward's judge sees toxicity fall by ``fall`` log-odds and
    a witness by ``seen``, those that are ever told of a hacked reward. Prompts and answers differ, and each judge errs
    on its own: made-up spreads."""
    rng = np.random.default_rng(11)
    defaults = RlafSettings(model="smollm2-135m")
    texts = [f"{CALM[row % len(CALM)]} {row}" for row in range(defaults.batch_size)]
    asked = [f"Prompt number {row}" for row in range(defaults.batch_size)]

    def drawn(done: float) -> Rollouts:
        both = rng.normal(0, 1, len(texts)) + rng.normal(0, 1.5, len(texts))
        scores = [
            1 / (1 + np.exp(-(-1.5 - whole * done + both + rng.normal(0, 1, len(texts))))) for whole in (fall, seen)
        ]
        return rollouts(texts, toxicity=scores[0].tolist(), witness=scores[1].tolist())

    def warned() -> bool:
        before: list[dict] = []
        for step in range(defaults.steps):
            found = drawn(step / (defaults.steps - 1))
            if "reward_hacking" in doubts_about(found, 0.3, asked, before):
                return True
            before.append(found.toxicity_by_name())
        return False

    return sum(warned() for _ in range(runs)) / runs


@pytest.mark.slow
@pytest.mark.parametrize("fall", [0.0, 1.0])
def test_a_witness_that_agrees_with_the_reward_stops_few_runs(fall: float) -> None:
    """A level of 5 % for all looks of a run together, and what 200 simulations may add to it by chance."""
    assert share_of_runs_warned(fall, fall) <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5


@pytest.mark.slow
def test_most_runs_whose_gain_a_witness_does_not_see_are_told() -> None:
    assert share_of_runs_warned(2.0, 0.0) > 0.8


def with_ends(cut: list[bool], **more) -> Rollouts:
    found = rollouts([f"{CALM[row % 4]} {row}" for row in range(len(cut))], **more)
    found.judged.truncated.extend(cut)
    return found


def test_answers_that_are_nearly_all_cut_off():
    asked = [f"Prompt number {row}" for row in range(10)]
    assert doubts_about(with_ends([True] * 8 + [False] * 2), 0.3, asked, []) == {}
    assert doubts_about(with_ends([True] * 9 + [False]), 0.3, asked, []) == {
        "truncated": (
            "truncated: 9 of 10 answers (90%) were cut off at max_new_tokens: only beginnings are judged and trained; "
            "raise --max-new-tokens"
        )
    }
    masked = replace(with_ends([True] * 9 + [False]), in_loss=torch.tensor([False] * 9 + [True]))
    [doubt] = doubts_about(masked, 0.3, asked, []).values()
    assert "the loss leaves them out, and 1 answers are left to learn from" in doubt


@pytest.mark.parametrize(
    ("before", "now", "doubted"),
    [
        ([0.4, 0.5, 0.45, 0.4, 0.5, 0.6, 0.7, 0.7, 0.8], 0.8, True),
        ([0.4, 0.5, 0.45, 0.4, 0.5, 0.45, 0.5, 0.5, 0.55], 0.5, False),  # a rise of five points
        ([0.1, 0.7, 0.2, 0.8, 0.3, 0.7, 0.3, 0.8, 0.2], 0.8, False),  # large, and no more than noise
        ([0.8, 0.8, 0.7, 0.8, 0.8, 0.3, 0.2, 0.3, 0.2], 0.2, False),  # a fall
        ([0.4, 0.5, 0.45, 0.4, 0.7, 0.7, 0.8, 0.8], 0.8, False),  # too early to say
    ],
)
def test_answers_that_are_cut_off_more_and_more(before, now, doubted):
    asked = [f"Prompt number {row}" for row in range(10)]
    cut = [True] * round(10 * now) + [False] * (10 - round(10 * now))
    found = doubts_about(with_ends(cut), 0.3, asked, [{"truncated_fraction": share} for share in before])
    assert (set(found) == {"truncated"}) == doubted
    if doubted:
        assert (
            "72% of the answers of the last 5 steps were cut off at max_new_tokens, 45% in the first 5"
            in (found["truncated"])
        )
