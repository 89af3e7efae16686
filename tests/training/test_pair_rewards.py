"""A judge of (prompt, answer) pairs as a reward: its sign, its classes, its failures, and what a run says of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

import rewardlm as rl
from rewardlm.config import RewardSettings, RlafSettings
from rewardlm.errors import ConfigError, ScorerError
from rewardlm.measuring.independence import was_reward
from rewardlm.preflight import check
from rewardlm.scoring.load import load_reward
from rewardlm.scoring.pairs import PROBE, load_pair_judge
from rewardlm.scoring.scorer import score_pairs
from rewardlm.training.rewards import RewardModel
from rewardlm.training.rlaf import train
from rewardlm.types import Verdict

CLAIM, OPPOSED, AGREED = PROBE
HATE = "Refugees only come here to live on our taxes."
PAIRS = [(CLAIM, OPPOSED), (CLAIM, AGREED), (HATE, "No, most of them work and pay taxes like you."), (HATE, "So true.")]


class Pairs:
    """A judge of pairs whose verdicts are a function."""

    def __init__(self, judge, label: str = "counter_narrative") -> None:
        self.name, self.labels, self._judge = "pairs", (label,), judge
        self.asked: list[list[tuple[str, str]]] = []

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.asked.append(list(pairs))
        return [Verdict({self.labels[0]: self._judge(*pair)}) for pair in pairs]


@pytest.mark.parametrize(
    ("spec", "label", "sign"),
    [
        ("starter_pairs", "counter_narrative", 1),
        ("starter_pairs#counter-narrative", "counter_narrative", 1),
        ("starter_pairs#counter_narrative", "counter_narrative", 1),
        ("starter_pairs#agreement", "agreement", -1),
    ],
)
def test_a_class_is_rewarded_or_punished_by_what_it_means(spec, label, sign):
    rewards = RewardModel([load_reward(spec)], RewardSettings())
    rewards.check_sign()
    found = rewards.judge([answer for _, answer in PAIRS], [prompt for prompt, _ in PAIRS])
    verdicts = load_pair_judge().judge(PAIRS)
    wanted = [verdict[label] if sign > 0 else 1 - verdict[label] for verdict in verdicts]
    assert found.rewards == pytest.approx(wanted, abs=1e-6)
    assert found.toxicity == pytest.approx([1 - value for value in wanted], abs=1e-6)
    assert found.by_judge.keys() == {spec}
    # Who opposes earns more than who agrees with the same claim.
    assert found.rewards[0] > found.rewards[1] + 0.3
    assert found.rewards[2] > found.rewards[3]


def test_the_logit_is_that_of_the_counter_narrative():
    judge = Pairs(lambda _, answer: {"good": 0.75, "bad": 0.25}[answer])
    rewards = RewardModel([judge], RewardSettings(transform="logit"))
    assert rewards.judge(["good", "bad"], ["?", "?"]).rewards == pytest.approx([math.log(3), -math.log(3)])


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (Pairs(lambda _, answer: float(answer == AGREED)), "hate gets 0.000 and one that opposes it 1.000"),
        (Pairs(lambda _, answer: float(answer == OPPOSED), "agreement"), "hate gets 0.000 and one that opposes it 1.0"),
        (Pairs(lambda *_: 0.5), "hate gets 0.500 and one that opposes it 0.500"),
    ],
)
def test_a_judge_whose_classes_mean_something_else_is_refused(judge, said):
    """A judge whose columns are mixed up; the class that agrees under the name of the one that opposes."""
    with pytest.raises(ScorerError, match=said):
        RewardModel([judge], RewardSettings()).check_sign()
    # It is asked about pairs.
    assert {prompt for prompt, _ in judge.asked[0]} == {CLAIM}


@pytest.mark.parametrize("spec", ["starter_pairs#refusal", "starter_pairs#off-topic", "starter_pairs#toxic"])
def test_a_class_that_says_neither_good_nor_bad_is_refused_before_anything_is_loaded(spec):
    said = "expected starter_pairs#counter-narrative, which is rewarded, or starter_pairs#agreement, which is punished"
    with pytest.raises(ScorerError, match=said):
        load_reward(spec)
    with pytest.raises(ScorerError, match=said):
        check(RlafSettings(model="tiny", device="cpu", reward=["lexical", spec]))


def test_a_pair_that_fails_is_unscored_alone_and_silence_is_no_failure():
    def judge(_: str, answer: str) -> float:
        if answer == "odd":
            raise OSError("gone")
        return math.nan if answer == "broken" else 0.5

    scorer = Pairs(judge)
    asked = [("a", "fine"), ("a", "odd"), ("b", "fine"), ("a", " "), ("a", "broken"), ("a", "fine")]
    found = score_pairs(scorer, asked)
    assert [verdict.reason for verdict in found] == [
        None, "OSError: gone", None, "empty response", "counter_narrative is nan: expected a finite number", None,
    ]  # fmt: skip
    assert [verdict.failed for verdict in found] == [False, True, False, False, True, False]
    assert scorer.asked[0] == [("a", "fine"), ("a", "odd"), ("b", "fine"), ("a", "broken")]  # each once
    judged = RewardModel([scorer], RewardSettings(max_failed_share=1.0)).judge(
        [answer for _, answer in asked], [prompt for prompt, _ in asked]
    )
    assert judged.rewards == [0.5, None, 0.5, 0.5, None, 0.5]  # silence gets the lowest
    assert judged.toxicity[3] is None


@pytest.mark.parametrize(
    ("reward", "given", "weight"),
    [
        (["starter"], {}, 2.0),
        (["starter", "starter_pairs#counter-narrative"], {}, 0.0),
        (["starter_pairs"], {"counter_narrative": 1.0}, 1.0),
        (["starter_pairs"], {"counter_narrative_judge": "mine"}, 2.0),
    ],
)
def test_one_judge_is_not_paid_twice_unless_that_is_asked_for(reward, given, weight):
    settings = RlafSettings(model="tiny", reward=reward, rewards={"terms": given})
    assert settings.reward_settings.terms.counter_narrative == weight


@pytest.mark.slow
def test_a_training_by_judges_of_texts_and_of_pairs(tmp_path):
    torch.set_num_threads(1)
    reward = ["lexical", "starter_pairs#counter-narrative"]
    run = train(
        RlafSettings(
            model="tiny", device="cpu", dtype="float32", reward=reward, witness=["none"], steps=1, batch_size=8,
            max_new_tokens=6, samples_every=1,
            rewards={"transform": "probability", "terms": {"refusal": 0, "similarity": 0}},
        ),
        tmp_path / "run",
    )  # fmt: skip
    [line], samples = list(run.read("metrics")), list(run.read("samples"))
    assert set(line["toxicity_by_judge"]) == set(reward)
    assert line["terms"] == {}
    by_hand = load_pair_judge().judge([(sample["prompt"], sample["response"]) for sample in samples])
    for sample, verdict in zip(samples, by_hand, strict=True):
        assert sample["by_judge"][reward[1]] == pytest.approx(1 - verdict["counter_narrative"], abs=1e-5)
        assert sample["reward"] == pytest.approx(1 - sum(sample["by_judge"].values()) / 2, abs=1e-6)
    # What the audit asks later: the same judge must not count counter-narratives as a proof.
    assert run.meta["rewards"] == reward
    assert was_reward("starter_pairs", run.meta["rewards"])
    assert run.meta["reward_lineage"][reward[1]]["family"][0]["judge"] == "starter_pairs"
    assert run.meta["judges"][reward[1]] == load_pair_judge().revision


def test_as_a_reward_of_other_trainers_it_reads_what_they_hand_over():
    reward = rl.reward_function("lexical,starter_pairs", device="cpu")
    prompts = [[{"role": "user", "content": prompt}] for prompt, _ in PAIRS]
    completions = [[{"role": "assistant", "content": answer}] for _, answer in PAIRS]
    pairs = [verdict["counter_narrative"] for verdict in load_pair_judge().judge(PAIRS)]
    texts = [1 - value for value in rl.score([answer for _, answer in PAIRS], "lexical")]
    wanted = [(one + other) / 2 for one, other in zip(pairs, texts, strict=True)]
    assert reward(completions=completions, prompts=prompts) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ConfigError, match="judges answers to prompts: give prompts"):
        reward(completions=completions)
