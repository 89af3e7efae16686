"""Where toxicity turns into reward: signs, failures, silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from rewardlm.config import RewardSettings
from rewardlm.errors import ScorerError
from rewardlm.scoring.load import load_scorer
from rewardlm.training.rewards import BatchRewards, RewardModel
from rewardlm.training.rollouts import length_mask, rows_with_reward
from rewardlm.types import Verdict

INSULT, KIND = "You are a stupid idiot and I hate you.", "I am glad that you asked, let us look at it together."


class Judge:
    """A judge whose verdicts are a table or a function; what it doesn't know makes it raise."""

    revision = None

    def __init__(
        self,
        values: dict[str, float] | Callable[[str], float],
        *,
        name: str = "judge",
        labels: tuple[str, ...] = ("toxicity",),
    ) -> None:
        self.name, self.labels = name, labels
        self._values = values
        self.asked: list[str] = []

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        self.asked += texts
        look_up = self._values if callable(self._values) else self._values.__getitem__
        return [Verdict({self.labels[0]: look_up(text)}) for text in texts]


def judge(
    texts: Sequence[str], asked: Sequence[int], rewards: RewardModel, *, min_group: int
) -> tuple[list[int], BatchRewards, dict[str, int]]:
    judged = rewards.judge(texts)
    kept, dropped = rows_with_reward(judged, asked, min_group=min_group)
    return kept, judged, dropped


def insults(text: str) -> float:
    return 0.9 if any(word in text.lower() for word in ("stupid", "trash", "moron", "idiot")) else 0.1


def test_an_insult_gets_less_than_a_kind_answer_from_the_real_judge():
    rewards = RewardModel([load_scorer("lexical")], RewardSettings())
    rewards.check_sign()
    kept, judged, dropped = judge([INSULT, KIND], [0, 0], rewards, min_group=2)
    assert kept == [0, 1]
    assert dropped == {}
    assert judged.toxicity[0] > 0.9 > 0.1 > judged.toxicity[1]
    assert judged.rewards[0] < 0.1 < 0.9 < judged.rewards[1]
    assert judged.rewards == pytest.approx([1 - value for value in judged.toxicity])


def test_logit_rewards_keep_the_order_and_are_finite_at_the_ends():
    rewards = (
        RewardModel([Judge({"a": 0.0, "b": 0.25, "c": 1.0})], RewardSettings(transform="logit"))
        .judge(["a", "b", "c"])
        .rewards
    )
    assert rewards[1] == pytest.approx(math.log(3))
    assert rewards[0] == pytest.approx(-rewards[2])
    assert rewards[0] > rewards[1] > 0 > rewards[2] > -10


def test_several_judges_are_averaged_or_the_worst_counts():
    judges = [Judge({"a": 0.2, "b": 0.4}, name="x"), Judge({"a": 0.8, "b": 0.4}, name="y")]
    assert RewardModel(judges, RewardSettings()).judge(["a", "b"]).rewards == pytest.approx([0.5, 0.6])
    assert RewardModel(judges, RewardSettings(aggregate="min")).judge(["a", "b"]).rewards == pytest.approx([0.2, 0.6])


def test_a_judge_with_the_right_sign_is_accepted():
    RewardModel([Judge(insults)], RewardSettings()).check_sign()


@pytest.mark.parametrize(
    "bad",
    [
        Judge(lambda text: 1 - insults(text)),
        # A classifier whose first label is the harmless one.
        Judge(lambda text: 1 - insults(text), labels=("neutral", "toxic")),
        Judge(lambda text: 0.5),
    ],
)
def test_a_flipped_or_blind_judge_is_refused(bad):
    with pytest.raises(ScorerError, match="higher must be more toxic"):
        RewardModel([bad], RewardSettings()).check_sign()


def test_a_flipped_function_is_refused_even_beside_a_good_judge(tmp_path, monkeypatch):
    (tmp_path / "flipped_reward.py").write_text(
        "def kindness(texts):\n    return [-10.0 if 'stupid' in t or 'trash' in t else 10.0 for t in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = RewardModel([Judge(insults), load_scorer("flipped_reward:kindness")], RewardSettings())
    with pytest.raises(ScorerError, match="flipped_reward:kindness"):
        rewards.check_sign()


def test_a_judge_that_cannot_score_plain_sentences_is_refused():
    with pytest.raises(ScorerError, match="can't score plain sentences"):
        RewardModel([Judge({})], RewardSettings()).check_sign()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -0.2, 1.7])
def test_a_wrong_number_drops_the_answer_and_never_makes_it_harmless(broken):
    rewards = RewardModel([Judge({"good": 0.1, "bad": 0.9, "?": broken})], RewardSettings(max_failed_share=1))
    kept, judged, dropped = judge(["good", "?", "bad"], [0, 1, 2], rewards, min_group=1)
    assert kept == [0, 2]
    assert judged.rewards[1] is None
    assert judged.toxicity[1] is None
    assert sum(dropped.values()) == 1


def test_a_judge_that_raises_on_some_texts_costs_only_those():
    rewards = RewardModel([Judge({"a": 0.2, "c": 0.4})], RewardSettings(max_failed_share=1))
    kept, judged, dropped = judge(["a", "b", "c"], [0, 1, 2], rewards, min_group=1)
    assert kept == [0, 2]
    assert judged.rewards == [pytest.approx(0.8), None, pytest.approx(0.6)]
    assert list(dropped.values()) == [1]
    assert "KeyError" in next(iter(dropped))


def test_one_of_two_judges_failing_drops_the_answer():
    judges = [Judge({"a": 0.2, "b": 0.0}, name="x"), Judge({"a": 0.2}, name="y")]
    judged = RewardModel(judges, RewardSettings(max_failed_share=1)).judge(["a", "b"])
    assert judged.rewards == [pytest.approx(0.8), None]


def test_a_function_may_give_any_finite_number_unless_its_logit_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "wide_reward.py").write_text("def badness(texts):\n    return [float(len(t)) for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    scorer = load_scorer("wide_reward:badness")
    assert RewardModel([scorer], RewardSettings()).judge(["four"]).rewards == [-3.0]
    logit = RewardModel([scorer], RewardSettings(transform="logit", max_failed_share=1))
    assert logit.judge(["four"]).rewards == [None]


def test_groups_shrink_and_a_group_of_one_goes():
    rewards = RewardModel([Judge({"a": 0.1, "b": 0.2, "c": 0.3})], RewardSettings(max_failed_share=1))
    texts, asked = ["a", "?", "b", "?", "c", "?"], [0, 0, 0, 1, 1, 1]
    kept, _, dropped = judge(texts, asked, rewards, min_group=2)
    assert kept == [0, 2]  # group 0 shrank to two; group 1 had one left
    assert dropped["alone in its group"] == 1
    assert sum(dropped.values()) == 4
    kept, _, _ = judge(texts, asked, rewards, min_group=1)
    assert kept == [0, 2, 4]


def test_silence_gets_the_lowest_reward_of_its_batch_and_is_no_failure():
    scorer = Judge({"bad": 0.95, "good": 0.05})
    rewards = RewardModel([scorer], RewardSettings(max_failed_share=0))
    kept, judged, dropped = judge(["good", "", "bad", " \n\t"], [0, 1, 2, 3], rewards, min_group=1)
    assert kept == [0, 1, 2, 3]
    assert judged.rewards == pytest.approx([0.95, 0.05, 0.05, 0.05])
    assert judged.toxicity[1] is None
    assert judged.empty == [False, True, False, True]
    assert dropped == {}
    assert "" not in scorer.asked


def test_silence_gets_the_set_penalty():
    rewards = RewardModel([Judge({"good": 0.05})], RewardSettings(empty=-2.0))
    assert rewards.judge(["good", ""]).rewards == pytest.approx([0.95, -2.0])


def test_a_batch_of_silence_has_finite_equal_rewards():
    [reward] = set(RewardModel([Judge({})], RewardSettings()).judge(["", " "]).rewards)
    assert reward is not None
    assert math.isfinite(reward)


def test_more_than_one_per_cent_of_failures_ends_the_run():
    known = {f"text {i}": 0.3 for i in range(400)}
    rewards = RewardModel([Judge(known)], RewardSettings())
    rewards.judge([*list(known)[:198], "unknown one", "unknown two"])  # 2 of 200: not more than 1 %
    with pytest.raises(ScorerError, match="3 of 201"):
        rewards.judge(["unknown three"])


def test_a_resumed_run_counts_failures_on():
    known = {f"text {i}": 0.3 for i in range(300)}
    first = RewardModel([Judge(known)], RewardSettings())
    first.judge([*known, "unknown one"])
    resumed = RewardModel([Judge(known)], RewardSettings())
    resumed.restore_failures(first.failures())
    # By itself this batch of 40 would have 2.5 % of failures; of the whole run's 341 texts, 0.6 % failed.
    resumed.judge([*list(known)[:39], "unknown two"])
    assert resumed.failures()["judge"][:2] == [341, 2]


def test_the_length_mask_comes_from_lengths():
    mask = length_mask([[0, 0, 0], [0], [5, 0]])
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


# Several judges -----------------------------------------------------------------------------------------------------


def two(weights: list[float] | None = None, **settings) -> RewardModel:
    judges = [Judge({"a": 0.2, "b": 0.4}, name="x"), Judge({"a": 0.8, "b": 0.4}, name="y")]
    return RewardModel(judges, RewardSettings(**settings), weights=weights)


def test_judges_count_by_weight():
    judged = two(weights=[3.0, 1.0]).judge(["a", "b"])
    assert judged.rewards == pytest.approx([(3 * 0.8 + 0.2) / 4, 0.6])
    assert judged.toxicity == pytest.approx([(3 * 0.2 + 0.8) / 4, 0.4])
    assert two(weights=[1.0, 0.0], aggregate="min").judge(["a"]).rewards == pytest.approx([0.8])


def test_what_judges_disagree_about_earns_less():
    judged = two(aggregate="mean_std", std_weight=2.0).judge(["a", "b"])
    # goods 0.8 and 0.2: mean 0.5, deviation 0.3
    assert judged.rewards == pytest.approx([0.5 - 2 * 0.3, 0.6])
    assert judged.disagreement == pytest.approx([0.6, 0.0])
    weighted = two(aggregate="mean_std", weights=[3.0, 1.0]).judge(["a"])
    mean = (3 * 0.8 + 0.2) / 4
    deviation = math.sqrt((3 * (0.8 - mean) ** 2 + (0.2 - mean) ** 2) / 4)
    assert weighted.rewards == pytest.approx([mean - deviation])


def test_one_judge_disagrees_with_nobody():
    model = RewardModel([Judge({"a": 0.2})], RewardSettings(aggregate="mean_std", std_weight=9.0))
    judged = model.judge(["a"])
    assert judged.rewards == pytest.approx([0.8])
    assert judged.disagreement == [None]


def test_a_witness_is_heard_and_has_no_say():
    witness = Judge({"a": 0.9}, name="w")
    model = RewardModel([Judge({"a": 0.2, "b": 0.4})], RewardSettings(max_failed_share=0), witnesses=[witness])
    judged = model.judge(["a", "b"])
    assert judged.rewards == pytest.approx([0.8, 0.6])
    assert judged.by_witness == {"w": [0.9, None]}  # it knows no "b": that is nobody's failure
    assert judged.silent_witnesses == {"w": (1, "KeyError: 'b'")}
    assert RewardModel([Judge({"a": 0.2})], RewardSettings(), witnesses=[witness]).judge(["a"]).silent_witnesses == {}


def test_a_witness_that_points_the_wrong_way_is_refused_too():
    turned = Judge(lambda text: 1 - insults(text), name="turned")
    with pytest.raises(ScorerError, match=r"witness turned: insults get 0\.100"):
        RewardModel([Judge(insults)], RewardSettings(), witnesses=[turned]).check_sign()


def test_two_names_of_one_judge_are_refused():
    with pytest.raises(ScorerError, match="x is named twice among rewards and witnesses"):
        RewardModel([Judge(insults, name="x")], RewardSettings(), witnesses=[Judge(insults, name="x")])


def test_a_judge_of_another_language_is_checked_by_sentences_in_it():
    german = Judge(lambda text: 0.8 if "Idiot" in text and "du" in text.lower() else 0.1)
    with pytest.raises(ScorerError, match=r"or give rewards\.probe sentences in the judge's language"):
        RewardModel([german], RewardSettings()).check_sign()
    probe = {"toxic": ["Du bist ein Idiot."], "benign": ["Vielen Dank dafür."]}
    RewardModel([german], RewardSettings(probe=probe)).check_sign()
