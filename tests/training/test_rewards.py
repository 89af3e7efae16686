"""Where toxicity turns into reward: signs, failures, silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest

from rewardlm.config import RewardSettings
from rewardlm.errors import ScorerError
from rewardlm.scoring.load import load_scorer
from rewardlm.training.rewards import BatchRewards, Ending, RewardModel
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
    assert RewardModel([Judge({})], RewardSettings()).judge(["", " "]).rewards == [0.0, 0.0]


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


# What is said, and what is refused ------------------------------------------------------------------------------------


def test_what_check_sign_says_in_full():
    turned = Judge(lambda text: 1 - insults(text), name="turned")
    with pytest.raises(ScorerError) as refused:
        RewardModel([turned], RewardSettings()).check_sign()
    assert str(refused.value) == (
        "reward turned: insults get 0.100 and kind texts 0.900, but higher must be more toxic: choose the toxic label "
        "(NAME#label), reverse the function's sign, or give rewards.probe sentences in the judge's language"
    )
    with pytest.raises(ScorerError) as refused:
        RewardModel([Judge(insults)], RewardSettings(), witnesses=[Judge({}, name="mute")]).check_sign()
    assert str(refused.value).startswith("witness mute: it can't score plain sentences (KeyError: ")


def test_names_that_occur_twice_are_all_told():
    with pytest.raises(ScorerError) as refused:
        RewardModel([Judge(insults, name=name) for name in "zaza"], RewardSettings())
    assert str(refused.value) == "a, z is named twice among rewards and witnesses: name each judge once"


def test_the_judge_that_fails_too_often_is_named():
    with pytest.raises(ScorerError, match=r"3 of 3 texts could not be scored .*the first: broken: KeyError: 'a'$"):
        RewardModel([Judge(insults), Judge({}, name="broken")], RewardSettings()).judge(["a", "b", "c"])


def test_judges_and_weights_must_be_as_many():
    judges = [Judge({"a": 0.2}, name="x"), Judge({"a": 0.8}, name="y")]
    with pytest.raises(ValueError, match="zip"):
        RewardModel(judges, RewardSettings(), weights=[1.0]).judge(["a"])
    with pytest.raises(ValueError, match="zip"):
        RewardModel(judges, RewardSettings(aggregate="min"), weights=[1.0]).judge(["a"])
    with pytest.raises(ValueError, match="zip"):
        RewardModel([Judge({"a": 0.2})], RewardSettings()).judge(["a", "b"], ["one prompt"])


def test_silence_pays_for_its_length_too():
    """The set reward less the most that an answer can be charged; the batch's lowest is charged already."""
    charges = {"missing_eos_penalty": 0.5, "overlong": {"penalty": 2.0, "cache_tokens": 4}}
    for empty, wanted in ((-1.0, -1.0 - 0.5 - 2.0), (None, 0.9)):
        rewards = RewardModel([Judge({"good": 0.1})], RewardSettings(empty=empty, **charges), max_new_tokens=8)
        assert rewards.judge(["good", ""]).rewards == pytest.approx([0.9, wanted])


def test_a_penalty_for_length_needs_to_know_where_answers_end():
    charges = {"penalty": 2.0, "cache_tokens": 4}
    with pytest.raises(ValueError, match=r"rewards\.overlong needs to know where answers are cut off"):
        RewardModel([Judge(insults)], RewardSettings(overlong=charges))
    RewardModel([Judge(insults)], RewardSettings(overlong={**charges, "max_tokens": 6}))
    RewardModel([Judge(insults)], RewardSettings(overlong=charges), max_new_tokens=8)


def test_the_longest_answers_pay_by_their_length():
    """Equation 13 of Yu et al. (2025), with L_max 8 and L_cache 4; an answer that was cut off pays besides."""
    settings = RewardSettings(missing_eos_penalty=0.25, overlong={"penalty": 2.0, "cache_tokens": 4})
    rewards = RewardModel([Judge(lambda text: 0.5)], settings, max_new_tokens=8)
    lengths = [1, 4, 5, 7, 8, 9]
    endings = [Ending(n, "length" if n >= 8 else "stop") for n in lengths]
    judged = rewards.rewarded(rewards.opinions(["text"] * 6, [""] * 6, endings))
    wanted = [2.0 * min(1.0, max(0.0, (n - 4) / 4)) + 0.25 * (n >= 8) for n in lengths]
    assert judged.length_penalty == pytest.approx(wanted)
    assert judged.rewards == pytest.approx([0.5 - paid for paid in wanted])
    assert judged.truncated == [False] * 4 + [True] * 2


def test_the_reason_of_an_answer_without_a_reward_is_the_first_judges():
    judges = [Judge({"a": 0.1, "b": 0.1}, name="x"), Judge({"a": 0.1}, name="y"), Judge({}, name="z")]
    judged = RewardModel(judges, RewardSettings(max_failed_share=1)).judge(["a", "b"])
    assert judged.reasons == ["KeyError: 'a'", "KeyError: 'b'"]
    assert judged.by_judge == {"x": [0.1, 0.1], "y": [0.1, None], "z": [None, None]}
    assert (judged.toxicity, judged.disagreement, judged.terms) == ([None, None], [None, None], {})


def test_failures_are_counted_once_where_rows_were_judged_before():
    rewards = RewardModel([Judge({"a": 0.1})], RewardSettings(max_failed_share=1))
    opinions = rewards.opinions(["a", "?", "!"], ["", "", ""])
    rewards.rewarded(opinions)
    rewards.rewarded(opinions, fresh=[2])
    assert rewards.failures() == {"judge": [4, 3, "judge: KeyError: '?'"]}
    resumed = RewardModel([Judge({"a": 0.1})], RewardSettings())
    resumed.restore_failures(rewards.failures())
    assert resumed.failures() == rewards.failures()


def test_logits_of_certain_judges_are_those_of_one_in_ten_thousand():
    rewards = RewardModel([Judge({"a": 0.0, "b": 1.0, "c": 1e-3})], RewardSettings(transform="logit"))
    judged = rewards.judge(["a", "b", "c"]).rewards
    assert judged == pytest.approx([math.log(9999), -math.log(9999), math.log(999)])
