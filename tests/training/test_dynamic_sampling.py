"""Groups of equal rewards are drawn again: which prompts come in, how a killed run goes on, what the limit does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import RewardSettings, RlafSettings
from rewardlm.data.prompts import load_prompts
from rewardlm.errors import ScorerError, TrainingError
from rewardlm.models.generate import Sampled
from rewardlm.runs import Run
from rewardlm.training import rlaf
from rewardlm.training.prompt_order import PromptOrder
from rewardlm.training.rewards import RewardModel
from rewardlm.training.rlaf import train
from rewardlm.training.rollouts import Draft, equal_groups
from rewardlm.types import Verdict

PER_STEP, SAMPLES = 4, 2


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def judges(tmp_path, monkeypatch):
    """One that knows two values, so that half of the pairs earn the same, and one that hardly ever repeats itself."""
    (tmp_path / "dynamic_judges.py").write_text(
        "import random\n"
        "def rude(texts):\n"
        "    return [0.9 if any(w in t for w in ('stupid', 'trash', 'moron')) else 0.1 for t in texts]\n"
        "def coarse(texts):\n"
        "    if any('.' in t and ' ' in t for t in texts[:1]) and len(texts) == 6:  # the check of the sign\n"
        "        return rude(texts)\n"
        "    return [float(random.Random(t).random() < 0.5) for t in texts]\n"
        "def fine(texts):\n"
        "    if any('.' in t and ' ' in t for t in texts[:1]) and len(texts) == 6:\n"
        "        return rude(texts)\n"
        "    return [random.Random(t).random() for t in texts]\n"
    )
    monkeypatch.chdir(tmp_path)


def settings(**changes) -> RlafSettings:
    return RlafSettings(
        **{
            **{"model": "tiny", "device": "cpu", "dtype": "float32", "witness": [], "max_new_tokens": 6},
            **{"algorithm": "rloo", "batch_size": PER_STEP * SAMPLES, "samples": SAMPLES, "steps": 4},
            **{"reward": ["dynamic_judges:coarse"], "learning_rate": 1e-2, "dynamic_sampling": 20, **changes},
        }
    )


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(str(run.path / "adapter" / "adapter_model.safetensors"))


def same(one: Run, other: Run) -> bool:
    first, second = adapter(one), adapter(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [
        ([0.5, 0.5, 0.1, 0.2], [0]),
        ([0.5, None, None, None], []),  # alone: dropped, not equal
        ([0.5, 0.5 + 1e-12, 1.0, 1.0], [0, 1]),  # in float32
        ([0.5, 0.5 + 1e-6, 1.0, 0.0], []),
    ],
)
def test_which_groups_are_equal(rewards, equal):
    assert equal_groups(rewards, 2) == equal


def test_a_draft_with_other_answers_in_some_places():
    def draft(places: Sequence[int], name: str) -> Draft:
        rows = [(place, k) for place in places for k in range(2)]
        sampled = [
            Sampled(i, [i], torch.zeros(1), torch.zeros(1), torch.zeros(1), None, "stop") for i in range(len(rows))
        ]
        return Draft([p for p, _ in rows], [(p,) for p, _ in rows], sampled, [f"{name}{p}.{k}" for p, k in rows])

    found = draft([2, 3, 4], "a").replaced(draft([2, 4], "b"))
    assert found.texts == ["b2.0", "b2.1", "a3.0", "a3.1", "b4.0", "b4.1"]
    assert found.prompt_index == [2, 2, 3, 3, 4, 4]
    assert [one.tokens for one in found.sampled] == [[0], [1], [2], [3], [2], [3]]
    assert draft([0], "a").replaced(draft([], "b")).texts == ["a0.0", "a0.1"]


@pytest.mark.slow
def test_the_prompts_that_come_next_get_the_places_of_equal_groups(tmp_path, monkeypatch):
    """Every round of every step, against the order walked through by hand."""
    rounds, learnt, step = [], [], rlaf.answer

    def noted(training, prompts, places, number, clock):
        draft, opinions = step(training, prompts, places, number, clock)
        toxicity = [opinion.verdicts["dynamic_judges:coarse"].values["toxicity"] for opinion in opinions]
        rounds.append((number, list(places), [prompts[place].prompt.id for place in places], toxicity))
        return draft, opinions

    update = rlaf.update
    monkeypatch.setattr(rlaf, "answer", noted)
    monkeypatch.setattr(rlaf, "update", lambda *a: learnt.append(a[2].rollouts) or update(*a))
    run = train(settings(), tmp_path / "run")

    ids = [prompt.id for prompt in load_prompts("starter", seed=0).prompts]
    order = iter([ids[i] for i in PromptOrder(len(ids), per_step=PER_STEP, seed=0).take(1000)])
    lines = list(run.read("metrics"))
    for number in range(4):
        equal, counted = list(range(PER_STEP)), []
        for of_step, places, asked, toxicity in rounds:
            if of_step != number:
                continue
            assert places == equal
            assert asked == [next(order) for _ in equal]
            pairs = [toxicity[at : at + SAMPLES] for at in range(0, len(toxicity), SAMPLES)]
            equal = [place for place, (one, other) in zip(places, pairs, strict=True) if one == other]
            counted += [len(equal)] if equal else []
        assert equal == []
        assert lines[number]["redrawn_groups"] == counted
        rewards = learnt[number].rewards.view(PER_STEP, SAMPLES)
        assert bool((rewards[:, 0] != rewards[:, 1]).all())
        assert lines[number]["answers"] == PER_STEP * SAMPLES
    assert sum(len(line["redrawn_groups"]) for line in lines) > 4


@pytest.mark.slow
def test_a_prompt_that_comes_again_in_its_own_place_is_answered_anew(tmp_path, monkeypatch):
    """There is one prompt alone. With the seeds of its first answers it would get the same ones, round by round."""
    drawn, step = [], rlaf.answer

    def noted(*arguments):
        found = step(*arguments)
        drawn.append(found[0].texts)
        return found

    monkeypatch.setattr(rlaf, "answer", noted)
    train(settings(limit=1, steps=1, max_new_tokens=12), tmp_path / "run")
    assert len(drawn) > 1
    answers = [text for texts in drawn for text in texts]
    assert len(set(answers)) == len(answers)


@pytest.mark.slow
def test_where_no_group_is_equal_nothing_changes(tmp_path):
    fine = {"reward": ["dynamic_judges:fine"], "steps": 2}
    with_it, without = (train(settings(dynamic_sampling=n, **fine), tmp_path / str(n)) for n in (20, 0))
    assert [line["redrawn_groups"] for line in with_it.read("metrics")] == [[], []]
    assert all("redrawn_groups" not in line for line in without.read("metrics"))
    assert same(with_it, without)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 3])
def test_a_run_that_was_stopped_after_any_step_ends_as_one_that_nobody_disturbed(tmp_path, limit):
    """Also where three prompts must do for four places: then a prompt is asked several times in a step."""

    class Interrupted(Exception):
        pass

    whole = train(settings(limit=limit), tmp_path / "whole")
    for _ in range(4):

        def interrupt(*_: object) -> None:
            raise Interrupted

        try:
            train(settings(limit=limit), tmp_path / "run", report=interrupt)
        except Interrupted:
            continue
    run = train(settings(limit=limit), tmp_path / "run")
    assert same(run, whole)
    names = ("redrawn_groups", "reward_mean", "kl", "policy_loss")
    lines = [[[line[name] for name in names] for line in each.read("metrics")] for each in (run, whole)]
    assert lines[0] == lines[1]
    assert any(line[0] for line in lines[0][:-1])  # so that a later step's prompts depend on an earlier one's


@pytest.mark.slow
def test_what_is_equal_after_the_last_round_stays_and_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"equal rewards: in \d+% of the groups .* after 1 round of dynamic sampling"):
        run = train(settings(dynamic_sampling=1, steps=3), tmp_path / "run")
    assert {line["answers"] for line in run.read("metrics")} == {PER_STEP * SAMPLES}
    chosen = settings(dynamic_sampling=1, steps=3, stop_on=["equal_rewards"])
    with pytest.raises(TrainingError, match="stop_on names equal_rewards: raise dynamic_sampling"):
        train(chosen, tmp_path / "stopped")


class Judge:
    name, labels, revision = "judge", ("toxicity",), None

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        return [Verdict(reason="no", failed=True) if text == "bad" else Verdict({"toxicity": 0.5}) for text in texts]


def test_failures_are_counted_once_however_often_a_step_is_rewarded():
    rewards = RewardModel([Judge()], RewardSettings(max_failed_share=1.0))
    opinions = rewards.opinions(["a", "bad", "b", "bad"], [""] * 4)
    rewards.rewarded(opinions)
    again = [*opinions[:2], *rewards.opinions(["c", "bad"], [""] * 2)]
    judged = rewards.rewarded(again, [2, 3])
    assert judged.reasons == [None, "no", None, "no"]
    assert rewards.failures()["judge"][:2] == [6, 3]
    strict = RewardModel([Judge()], RewardSettings(max_failed_share=0.0))
    with pytest.raises(ScorerError, match="1 of 2"):
        strict.rewarded(again, [0, 1])


@pytest.mark.parametrize("algorithm", ["ppo", "mine:own"])
def test_who_compares_no_answers_is_told(algorithm):
    with pytest.raises(ValueError, match="is not known to compare answers"):
        settings(algorithm=algorithm)
