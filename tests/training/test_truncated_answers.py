"""Answers that were cut off: counted on every step, charged or left out of the loss where the settings say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from letters import write_letters
from safetensors.torch import load_file
from trl.rewards import get_soft_overlong_punishment

from launched import ONE, TWO, run
from rewardlm.config import RewardSettings, RlafSettings, validate
from rewardlm.errors import ConfigError, TrainingError
from rewardlm.runs import Run
from rewardlm.training import learner, rlaf
from rewardlm.training.advantages import ESTIMATORS, Feedback
from rewardlm.training.rewards import BatchRewards, Ending, RewardModel, soft_overlong
from rewardlm.training.rlaf import train
from rewardlm.training.rollouts import length_mask
from rewardlm.types import Verdict


@pytest.fixture
def letters(tmp_path, monkeypatch) -> Path:
    torch.set_num_threads(1)
    model = write_letters(tmp_path)
    monkeypatch.chdir(tmp_path)
    return model


def settings(model: Path, **changes) -> RlafSettings:
    return RlafSettings(
        **{
            "model": str(model),
            "device": "cpu",
            "dtype": "float32",
            "prompts": "prompts.txt",
            "reward": ["letters_judge:few_a"],
            "witness": [],
            "steps": 3,
            "batch_size": 16,
            "max_new_tokens": 6,
            "samples_every": 1,
            **changes,
        }
    )


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The drafts of every step, as they were sampled."""
    drafts = []
    original = rlaf.sample

    def noted(*arguments, **more):
        drafts.append(original(*arguments, **more))
        return drafts[-1]

    monkeypatch.setattr(rlaf, "sample", noted)
    return drafts


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo"])
def test_every_step_says_how_many_answers_were_cut_off(letters, tmp_path, drawn, algorithm):
    run = train(settings(letters, algorithm=algorithm), tmp_path / "run")
    end = 8  # the end token's id
    shares = [sum(answer.tokens[-1] != end for answer in draft.sampled) / len(draft.sampled) for draft in drawn]
    assert all(0 < share < 1 for share in shares)
    assert [line["truncated_fraction"] for line in run.read("metrics")] == pytest.approx(shares)
    samples = list(run.read("samples"))
    assert {sample["finish"] for sample in samples} == {"stop", "length"}
    for sample in samples:
        texts = {
            text: answer.finish
            for text, answer in zip(drawn[sample["step"] - 1].texts, drawn[sample["step"] - 1].sampled, strict=True)
        }
        assert sample["finish"] == texts[sample["response"]]


# What length costs ----------------------------------------------------------------------------------------------------


class Judge:
    """P(toxic) by text."""

    revision, labels, name = None, ("toxicity",), "judge"

    def __init__(self, values: dict[str, float]) -> None:
        self._values = values

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        return [Verdict({"toxicity": self._values[text]}) for text in texts]


def judged(
    toxicity: list[float], endings: list[Ending], *, max_new_tokens: int | None = None, **changes
) -> BatchRewards:
    """One answer a number; a negative one stands for an answer without text."""
    texts = ["" if value < 0 else f"answer {row}" for row, value in enumerate(toxicity)]
    judge = Judge(dict(zip(texts, toxicity, strict=True)))
    rewards = RewardModel([judge], RewardSettings(**changes), max_new_tokens=max_new_tokens)
    return rewards.rewarded(rewards.opinions(texts, [""] * len(texts), endings))


def test_an_answer_without_an_end_pays_what_trl_takes_off():
    """TRL's online trainers: ``rewards[~contain_eos_token] -= missing_eos_penalty``."""
    toxicity, ended = [0.1, 0.4, 0.9, 0.3], [True, False, False, True]
    endings = [Ending(5, "stop" if end else "length") for end in ended]
    theirs = torch.tensor([1 - value for value in toxicity])
    theirs[~torch.tensor(ended)] -= 0.7
    found = judged(toxicity, endings, missing_eos_penalty=0.7)
    assert found.rewards == pytest.approx(theirs.tolist())
    assert found.truncated == [False, True, True, False]
    assert found.length_penalty == pytest.approx([0, 0.7, 0.7, 0])
    # Toxicity stays what the judge said, and without the setting nothing is paid.
    assert found.toxicity == toxicity
    assert judged(toxicity, endings).rewards == pytest.approx([1 - value for value in toxicity])


@pytest.mark.parametrize(("max_tokens", "cache"), [(20, 4), (20, 20), (20, 1), (100, 20), (7, 3)])
def test_the_soft_penalty_is_dapos_equation_13_and_trls_function(max_tokens, cache):
    theirs = get_soft_overlong_punishment(max_completion_len=max_tokens, soft_punish_cache=cache)
    lengths = list(range(1, max_tokens + 6))
    found = [soft_overlong(n, max_tokens, cache) for n in lengths]
    assert found == pytest.approx(theirs(completion_ids=[[1] * n for n in lengths]))
    for n, value in zip(lengths, found, strict=True):
        if n <= max_tokens - cache:
            assert value == 0
        elif n <= max_tokens:
            assert value == pytest.approx((max_tokens - cache - n) / cache)
        else:
            assert value == -1


@pytest.mark.parametrize(
    ("changes", "max_tokens", "cache"),
    [({}, 25, 5), ({"cache_tokens": 10}, 25, 10), ({"max_tokens": 15}, 15, 3), ({"max_tokens": 3}, 3, 1)],
)
def test_the_soft_penalty_is_paid_in_units_of_reward(changes, max_tokens, cache):
    lengths = [1, 10, 13, 20, 21, 25]
    endings = [Ending(n, "length" if n == 25 else "stop") for n in lengths]
    found = judged([0.2] * 6, endings, max_new_tokens=25, overlong={"penalty": 2.0, **changes})
    expected = [0.8 + 2 * soft_overlong(n, max_tokens, cache) for n in lengths]
    assert found.rewards == pytest.approx(expected)
    assert min(found.rewards) == pytest.approx(-1.2)


def test_both_penalties_add_up():
    endings = [Ending(20, "length"), Ending(20, "stop")]
    found = judged(
        [0.5, 0.5], endings, max_new_tokens=20, missing_eos_penalty=0.25, overlong={"penalty": 1.0, "cache_tokens": 4}
    )
    assert found.rewards == pytest.approx([0.5 - 1.25, 0.5 - 1.0])


@pytest.mark.parametrize("empty", [None, 0.0])
@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("changes", [{"missing_eos_penalty": 3.0}, {"overlong": {"penalty": 3.0, "cache_tokens": 10}}])
def test_silence_is_no_way_round_a_penalty_for_length(changes, algorithm, empty):
    """All others are harmless and pay for their length: the empty answer still has the least advantage."""
    endings = [Ending(12, "length"), Ending(12, "length"), Ending(9, "stop"), Ending(1, "stop")]
    found = judged([0.01, 0.02, 0.03, -1], endings, max_new_tokens=12, empty=empty, **changes)
    advantages, _ = ESTIMATORS[algorithm](
        Feedback(
            rewards=torch.tensor(found.rewards),
            kl=torch.zeros(4, 12),
            mask=length_mask([[0] * ending.n_tokens for ending in endings]),
            group=torch.zeros(4, dtype=torch.long),
            values=None,
            kl_coef=0.0,
            gamma=1.0,
            gae_lambda=1.0,
        )
    )
    assert float(advantages[3, 0]) <= float(advantages[:3, 0].min()) + 1e-6
    assert float(advantages[3, 0]) < 0


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo"])
def test_silence_does_not_pay_where_all_others_are_left_out_of_the_loss(algorithm):
    """The others still say what an answer is worth: else the empty one would be the mean of those that are learnt."""
    endings = [Ending(6, "length"), Ending(6, "length"), Ending(6, "length"), Ending(1, "stop")]
    found = judged([0.01, 0.02, 0.03, -1], endings)
    advantages, _ = ESTIMATORS[algorithm](
        Feedback(
            rewards=torch.tensor(found.rewards),
            kl=torch.zeros(4, 6),
            mask=length_mask([[0] * ending.n_tokens for ending in endings]),
            group=torch.zeros(4, dtype=torch.long),
            values=torch.zeros(4, 6) if algorithm == "ppo" else None,
            kl_coef=0.2,
            gamma=1.0,
            gae_lambda=1.0,
        )
    )
    assert float(advantages[3, 0]) < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_tokens": 9}, r"cache_tokens 9 is more than max_tokens 6"),
        ({"max_tokens": 20, "cache_tokens": 4}, r"begins at 16 tokens, but max_new_tokens 6 ends answers before"),
    ],
)
def test_a_soft_penalty_that_nobody_can_pay_is_refused(changes, message):
    rewards = {"overlong": {"penalty": 1.0, **changes}}
    with pytest.raises(ConfigError, match=message):
        validate(RlafSettings, {"model": "tiny", "max_new_tokens": 6, "rewards": rewards})


# In the loop ----------------------------------------------------------------------------------------------------------


def test_what_was_paid_for_length_is_taken_off_the_reward_of_a_step(letters, tmp_path, drawn):
    once = {"steps": 1, "generation": {"min_new_tokens": 2}}  # none of the answers is empty: each pays its own
    free = train(settings(letters, **once), tmp_path / "free")
    rewards = {"missing_eos_penalty": 0.5, "overlong": {"penalty": 0.25, "cache_tokens": 2}}
    charged = train(settings(letters, rewards=rewards, **once), tmp_path / "charged")
    [before], [after] = free.read("metrics"), charged.read("metrics")
    assert drawn[0].texts == drawn[1].texts  # the same answers
    paid = sum(
        0.5 * (answer.finish == "length") + 0.25 * min(1, max(0, (len(answer.tokens) - 4) / 2))
        for answer in drawn[1].sampled
    )
    assert all(text.strip() for text in drawn[1].texts)
    assert before["length_penalty"] == 0
    assert after["length_penalty"] == pytest.approx(paid / 16)
    assert before["reward_mean"] - after["reward_mean"] == pytest.approx(paid / 16, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_penalty_for_a_missing_end_teaches_to_end(letters, tmp_path, algorithm):
    """Of a judge that likes all answers alike, and a penalty: what can be learnt is to end."""
    (tmp_path / "alike_judge.py").write_text(
        "def alike(texts):\n    return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
    )
    chosen = settings(
        letters,
        algorithm=algorithm,
        reward=["alike_judge:alike"],
        steps=40,
        batch_size=64,
        ppo_epochs=1,
        minibatches=1,
        learning_rate=1e-2,
        kl={"coef": 0.0},
        rewards={"missing_eos_penalty": 1.0},
        checkpoint_every=100,
    )
    lines = list(train(chosen, tmp_path / "run").read("metrics"))
    first, last = ([line["truncated_fraction"] for line in part] for part in (lines[:5], lines[-5:]))
    assert sum(last) / 5 < 0.5 * sum(first) / 5


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo"])
def test_a_step_without_an_answer_that_ended_changes_nothing_and_says_so(letters, tmp_path, algorithm):
    """min_new_tokens holds the end back: no answer can end by itself."""
    chosen = settings(
        letters, algorithm=algorithm, mask_truncated_completions=True, generation={"min_new_tokens": 6}, steps=2
    )
    with pytest.warns(UserWarning, match=r"16 of 16 answers \(100%\) were cut off .* 0 answers are left to learn"):
        run = train(chosen, tmp_path / "run")
    for line in run.read("metrics"):
        assert (line["truncated_fraction"], line["updates"]) == (1, 0)
        assert "policy_loss" not in line
    weights = load_file(str(run.path / "adapter" / "adapter_model.safetensors"))
    assert not any(bool(tensor.any()) for name, tensor in weights.items() if "lora_B" in name)


def test_the_guard_can_end_the_run(letters, tmp_path):
    chosen = settings(letters, generation={"min_new_tokens": 6}, stop_on=["truncated"])
    with pytest.raises(TrainingError, match=r"step 1: truncated: 16 of 16 answers .* stop_on names truncated"):
        train(chosen, tmp_path / "run")


def test_answers_are_scored_with_those_that_are_learnt_from_in_one_pass(letters, tmp_path, drawn, monkeypatch):
    """In half precision a pass of other rows rounds otherwise, and the first ratios would not be 1."""
    scored, learnt = [], []
    score, gradient = rlaf.logprobs_and_values, learner._gradient
    monkeypatch.setattr(rlaf, "logprobs_and_values", lambda *a: scored.append(a[4]) or score(*a))
    monkeypatch.setattr(learner, "_gradient", lambda *a: learnt.append(a[3].rows) or gradient(*a))
    train(settings(letters, mask_truncated_completions=True, ppo_epochs=1, steps=1), tmp_path / "run")
    [*together, rest], [draft] = scored[0], drawn
    assert [rows for rows in together if rows] == learnt
    ended = [row for row, answer in enumerate(draft.sampled) if answer.finish == "stop"]
    assert 0 < len(ended) < len(draft.sampled)
    assert sorted(row for rows in together for row in rows) == ended
    assert sorted([*ended, *rest]) == list(range(len(draft.sampled)))


@pytest.mark.slow
def test_two_processes_leave_out_the_same_answers_as_one(letters, tmp_path):
    """Few answers that ended, so that a process may have none of a minibatch's."""
    arguments = ["rlaf", str(letters), "--prompts", "prompts.txt", "--reward", "letters_judge:few_a"]
    arguments += ["--steps", "2", "--batch-size", "12", "--max-new-tokens", "6"]
    arguments += ["--device", "cpu", "--dtype", "float32"]
    arguments += ["--witness", "none", "--algorithm", "grpo", "mask_truncated_completions=true", "minibatches=3"]
    arguments += ["rewards.missing_eos_penalty=0.5", "rewards.overlong.penalty=0.5", "learning_rate=0.001"]
    found = []
    for how, out in ((ONE, "one"), (TWO, "two")):
        done = run(how, [*arguments, "--out", out], tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(Run.open(tmp_path / out))
    alone, together = (list(training.read("metrics")) for training in found)
    shares = [line["truncated_fraction"] for line in alone]
    assert all(0 < share < 1 for share in shares), shares
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs["updates"] == mine["updates"]
        for number in ("truncated_fraction", "length_penalty", "reward_mean", "policy_loss", "grad_norm"):
            assert theirs[number] == pytest.approx(mine[number], rel=2e-3, abs=2e-4), (mine["step"], number)
    weights = [load_file(str(training.path / "adapter" / "adapter_model.safetensors")) for training in found]
    assert any(bool(tensor.any()) for name, tensor in weights[0].items() if "lora_B" in name)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=0)
