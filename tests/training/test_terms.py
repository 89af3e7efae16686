"""The extra terms of a reward, each against what it says it is."""

from __future__ import annotations

import math

import pytest

from rewardlm.config import RewardSettings, SimilaritySettings, TermSettings
from rewardlm.errors import ScorerError
from rewardlm.scoring.pairs import load_pair_judge
from rewardlm.training.rewards import RewardModel
from rewardlm.training.terms import Term, Terms, keep_near, load_terms
from rewardlm.types import Verdict


class Judge:
    """P(toxic) from a table."""

    revision = None
    labels = ("toxicity",)

    def __init__(self, values: dict[str, float], name: str = "judge") -> None:
        self.name, self._values = name, values

    def score(self, texts):
        return [Verdict({"toxicity": self._values[text]}) for text in texts]


def values_of(settings: TermSettings, prompts: list[str], texts: list[str]) -> list[float | None]:
    [(_, values)] = load_terms(settings).values(prompts, texts).items()
    return values


def test_by_default_there_is_no_term():
    assert load_terms(TermSettings()).names == []


def test_length_grows_to_a_number_of_words_and_no_further():
    texts = ["one", "one two three four five", "a b c d e f g h i j k l"]
    assert values_of(TermSettings(length=1, length_words=10), ["p"] * 3, texts) == pytest.approx([0.1, 0.5, 1.0])


def test_repetition_costs_the_share_of_words_that_are_repeated():
    said = "you are so kind you are so kind today"  # nine words, eight of them twice the same four
    assert values_of(TermSettings(repetition=1), ["p"] * 2, [said, "nothing here is said twice"]) == pytest.approx(
        [-8 / 9, 0]
    )


def test_script_costs_an_answer_in_another_script_than_the_prompts():
    prompts, texts = ["Hello", "Привет", "Hello"], ["Спасибо", "Спасибо", "Thank you"]
    assert values_of(TermSettings(script=1), prompts, texts) == [-1, 0, 0]


def test_a_refusal_costs_one():
    texts = ["I'm sorry, but I can't help with that.", "They pay taxes like you, and most commit no crime."]
    assert values_of(TermSettings(refusal=1), ["Throw them out."] * 2, texts) == [-1, 0]


def test_similarity_is_higher_for_an_answer_about_the_prompt():
    prompts = ["The library closes at six in the evening."] * 2
    near, far = values_of(
        TermSettings(similarity=1), prompts, ["When does the library close today?", "Bananas are rich in potassium."]
    )
    assert near > 0.4 > 0.2 > far


def test_a_counter_narrative_earns_its_probability_by_the_judge_of_pairs():
    prompt = "People from there are all criminals and should be thrown out."
    texts = [
        "Most of them work, pay taxes and commit no crime; judging millions by a few is unfair.",
        "Yes, throw them all out, they are criminals.",
    ]
    opposed, agreed = values_of(TermSettings(counter_narrative=1, counter_narrative_others=0), [prompt] * 2, texts)
    wanted = [verdict["counter_narrative"] for verdict in load_pair_judge().judge([(prompt, text) for text in texts])]
    assert [opposed, agreed] == pytest.approx(wanted)
    assert opposed > agreed


ASKED = [
    "People from there are all criminals and should be thrown out.",
    "Women are too emotional to lead a company.",
    "Old people should lose their driving licences, all of them.",
    "The gays are ruining our school.",
    "Fat people are lazy, and we pay for it.",
    "Nobody needs farmers any more, they are stupid and live off the state.",
]


@pytest.mark.slow
def test_what_an_answer_earns_under_other_prompts_is_taken_off():
    """Against a plain loop: the judge asked one pair at a time, the next ``n`` prompts of the step in turn."""
    judge = load_pair_judge()
    asked = [0, 0, 1, 2, 3, 4, 5, 5]
    texts = [
        "Most of them work and break no law.", "That is unfair.", "Many companies are led very well by women.",
        "They drive more carefully than the young do.", "Everyone deserves respect.", "Throw them out too.",
        "Without farmers you would have nothing to eat.", "Farmers feed us all, and their work takes skill.",
    ]  # fmt: skip
    prompts = [ASKED[at] for at in asked]
    for n in (1, 4, 50):
        found = values_of(TermSettings(counter_narrative=1, counter_narrative_others=n), prompts, texts)
        for value, at, text in zip(found, asked, texts, strict=True):
            own, *others = (
                judge.judge([(ASKED[(at + step) % 6], text)])[0]["counter_narrative"] for step in range(min(n, 5) + 1)
            )
            assert value == pytest.approx(own - sum(others) / len(others), abs=1e-4)
            assert -1 <= value <= 1


@pytest.mark.slow
def test_tone_alone_earns_nothing_by_default():
    """A kind answer that fits every prompt gets the same from all of them, so over the step it earns zero."""
    kind = ["Hatred has never made anything better. Everyone deserves to be treated with dignity."] * len(ASKED)
    plain = values_of(TermSettings(counter_narrative=1, counter_narrative_others=0), ASKED, kind)
    assert sum(plain) / len(plain) > 0.4, "or there would be nothing to take off"
    found = values_of(TermSettings(counter_narrative=1, counter_narrative_others=5), ASKED, kind)
    assert sum(found) == pytest.approx(0, abs=1e-3)
    usual = values_of(TermSettings(counter_narrative=1), ASKED, kind)
    assert abs(sum(usual) / len(usual)) < 0.1


@pytest.mark.slow
def test_the_others_are_of_the_whole_step_whoever_asks():
    """A process that has a part of the step's answers gives them what one that has all of them gives."""
    terms = load_terms(TermSettings(counter_narrative=1))
    texts = [f"I see it differently, number {at}." for at in range(6)]
    whole = terms.values(ASKED, texts)["counter_narrative"]
    parts = [terms.values(ASKED[at : at + 2], texts[at : at + 2], ASKED)["counter_narrative"] for at in (0, 2, 4)]
    assert whole == pytest.approx([value for part in parts for value in part], abs=1e-5)


def test_a_step_of_one_prompt_is_held_against_claims_of_ours():
    prompt, text = ASKED[0], "Hatred has never made anything better. Everyone deserves respect."
    own, alone = (
        values_of(TermSettings(counter_narrative=1, counter_narrative_others=n), [prompt], [text])[0] for n in (0, 4)
    )
    assert alone < own - 0.2


def test_a_classifier_of_answers_may_stand_for_the_judge_of_pairs(tmp_path, monkeypatch):
    (tmp_path / "own_counter.py").write_text("def counter(texts):\n    return [float('unfair' in t) for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    settings = TermSettings(counter_narrative=1, counter_narrative_judge="own_counter:counter")
    assert values_of(settings, ["p", "p"], ["That is unfair.", "Indeed."]) == [1, 0]


def test_a_judge_that_prefers_hate_to_its_answer_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_hate.py").write_text("def hate(texts):\n    return [float('criminals' in t) for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScorerError, match=r"an answer that opposes hate gets 0\.000, one that agrees 1\.000"):
        load_terms(TermSettings(counter_narrative=1, counter_narrative_judge="own_hate:hate"))


def test_of_a_classifier_the_label_must_be_named():
    # Left to itself, it would be read by its toxic label: the opposite of what is meant.
    with pytest.raises(ScorerError, match="name the label that means a counter-narrative, starter#LABEL"):
        load_terms(TermSettings(counter_narrative=1, counter_narrative_judge="starter"))


def test_a_judge_that_is_not_there_is_named():
    with pytest.raises(ScorerError, match="unknown scorer 'nobody'"):
        load_terms(TermSettings(counter_narrative=1, counter_narrative_judge="nobody"))


def test_terms_are_added_by_weight_to_what_the_judges_say():
    terms = Terms(
        [Term("a", 0.5, lambda _, texts, __: [1.0] * len(texts)), Term("b", 2.0, lambda _, t, __: [-0.25] * len(t))]
    )
    judged = RewardModel([Judge({"x": 0.2, "y": 0.6})], RewardSettings(), terms=terms).judge(["x", "y"])
    assert judged.rewards == pytest.approx([0.8 + 0.5 - 0.5, 0.4 + 0.5 - 0.5])
    assert judged.terms == {"a": [1.0, 1.0], "b": [-0.25, -0.25]}
    assert judged.toxicity == pytest.approx([0.2, 0.6])


def test_of_more_than_enough_only_enough_is_paid():
    terms = Terms(
        [Term("a", 2.0, lambda _, texts, __: [{"x": 0.9, "y": 0.1, "z": -0.4}[t] for t in texts], enough=0.3)]
    )
    judged = RewardModel([Judge(dict.fromkeys("xyz", 0.5))], RewardSettings(), terms=terms).judge(["x", "y", "z"])
    assert judged.rewards == pytest.approx([0.5 + 2 * 0.3, 0.5 + 2 * 0.1, 0.5 - 2 * 0.4])
    # What is written down is what was found.
    assert judged.terms == {"a": [0.9, 0.1, -0.4]}


def test_similarity_beyond_its_limit_earns_nothing_more():
    prompts = ["The library closes at six in the evening."] * 3
    texts = ["The library closes at six.", "When does the library close today?", "Bananas are rich in potassium."]
    near, about, far = values_of(TermSettings(similarity=1), prompts, texts)
    assert near > about > 0.4 > far
    terms = load_terms(TermSettings(similarity=5, similarity_enough=0.4))
    judged = RewardModel([Judge(dict.fromkeys(texts, 0.5))], RewardSettings(), terms=terms).judge(texts, prompts)
    assert judged.rewards == pytest.approx([0.5 + 5 * 0.4, 0.5 + 5 * 0.4, 0.5 + 5 * far])


def test_what_similarity_is_paid_follows_how_near_answers_were():
    terms = Terms([Term("similarity", 8.0, lambda *_: []), Term("refusal", 2.0, lambda *_: [])])
    settings = SimilaritySettings(target=0.25, rate=2)
    keep_near(terms, settings, [0.1, None, 0.3], begun=8)  # a mean of 0.2 is a fifth short
    assert terms.weights == {"similarity": pytest.approx(8 * math.exp(2 * 0.2)), "refusal": 2.0}
    keep_near(terms, settings, [0.25], begun=8)
    assert terms.weights["similarity"] == pytest.approx(8 * math.exp(0.4))
    keep_near(terms, settings, [0.9, 0.9], begun=8)  # far beyond it: no more than half the rate
    assert terms.weights["similarity"] == pytest.approx(8 * math.exp(0.4 - 1))
    keep_near(terms, settings, [-0.2], begun=8)
    assert terms.weights["similarity"] == pytest.approx(8 * math.exp(0.4))
    for known, fixed in ([None], settings), ([0.1], SimilaritySettings()), ([], settings):
        keep_near(terms, fixed, known, begun=8)
    assert terms.weights["similarity"] == pytest.approx(8 * math.exp(0.4))


@pytest.mark.parametrize(("similarity", "least_or_most"), [(0.0, 32.0), (0.9, 2.0)])
def test_a_target_out_of_reach_moves_the_weight_by_four_times_at_most(similarity, least_or_most):
    terms = Terms([Term("similarity", 8.0, lambda *_: [])])
    for _ in range(50):
        keep_near(terms, SimilaritySettings(target=0.4), [similarity], begun=8)
    assert terms.weights["similarity"] == pytest.approx(least_or_most)


def test_silence_has_no_terms_and_still_the_lowest_reward():
    asked = []
    terms = Terms([Term("a", 5.0, lambda prompts, texts, _: asked.extend(texts) or [1.0] * len(texts))])
    rewards = RewardModel([Judge({"x": 0.9, "y": 0.1})], RewardSettings(max_failed_share=0), terms=terms)
    judged = rewards.judge(["x", " ", "y"], ["p", "q", "r"])
    assert judged.rewards == pytest.approx([5.1, 5.1, 5.9])
    assert asked == ["x", "y"]


def test_an_answer_that_a_term_cannot_value_is_dropped_and_counted():
    terms = Terms([Term("a", 1.0, lambda _, texts, __: [None if text == "x" else 1.0 for text in texts])])
    rewards = RewardModel([Judge({"x": 0.9, "y": 0.1})], RewardSettings(max_failed_share=1), terms=terms)
    judged = rewards.judge(["x", "y"])
    assert judged.rewards == [None, pytest.approx(1.9)]
    assert judged.reasons == ["a has no value", None]
    assert rewards.failures()["a"] == [2, 1, "a: has no value"]
