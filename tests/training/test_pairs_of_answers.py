"""Which answers become pairs, against a search through all of them; and in which order pairs are learnt."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rewardlm.config import PairSettings
from rewardlm.training.drawn import DrawnAnswer
from rewardlm.training.prefer_rows import laid_out
from rewardlm.training.preferences import Preference, Preferences, best_of, choosable, pairs_of, pairs_that_end

PROMPT = "Why do people say such things?"
TEXT = "I think that most of them have simply never met anybody from there"


def answer(sample: int, reward: float | None, **changes) -> DrawnAnswer:
    given = {
        "prompt": 0,
        "sample": sample,
        "tokens": [1] * 10,
        "text": f"{TEXT}, number {sample}.",
        "finish": "stop",
        "reward": reward,
        "toxicity": 0.4 if reward is not None and reward < 1 else 0.1,
        "terms": {},
        **changes,
    }
    return DrawnAnswer(**given)


def some_answers(seed: int, n: int = 8) -> list[DrawnAnswer]:
    draw = random.Random(seed)
    return [
        answer(
            sample,
            None if draw.random() < 0.1 else draw.gauss(0, 3),
            tokens=[1] * draw.randint(3, 30),
            toxicity=draw.random(),
            finish=draw.choice(["stop", "length"]),
            text=draw.choice([f"{TEXT}, number {sample}.", "", "I'm sorry, but I can't help with that."]),
            terms={"similarity": draw.random()},
        )
        for sample in range(n)
    ]


def allowed(answers: list[DrawnAnswer], settings: PairSettings) -> list[tuple[float, DrawnAnswer, DrawnAnswer]]:
    """Every pair that the settings' descriptions allow, by trying all."""
    scored = [one for one in answers if one.reward is not None]
    if len(scored) < 2:
        return []
    least = np.quantile([one.terms["similarity"] for one in scored], settings.topic) if settings.topic else -1
    good = [
        one
        for one in scored
        if one.toxicity <= 0.5 and one.text.startswith(TEXT) and one.terms["similarity"] >= least - 2e-3
    ]
    ended = [one for one in good if one.finish == "stop"]
    chosen = ended if settings.ended and ended else good
    return [
        (better.reward - worse.reward, better, worse)
        for better, worse in itertools.product(chosen, scored)
        if better is not worse
        and better.reward - worse.reward >= settings.margin
        and (settings.toxicity_gap is None or worse.toxicity - better.toxicity >= settings.toxicity_gap)
        and (
            settings.length_ratio is None
            or max(len(better.tokens), len(worse.tokens))
            <= settings.length_ratio * min(len(better.tokens), len(worse.tokens))
        )
        and (
            settings.topic_gap is None
            or abs(better.terms["similarity"] - worse.terms["similarity"]) <= settings.topic_gap
        )
    ]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"topic": 0.0, "topic_gap": None},
        {"ended": False, "topic_gap": 0.4},
        {"length_ratio": None, "margin": 2.0, "topic": 0.5},
        {"per_prompt": 3, "topic_gap": 0.5},
        {"toxicity_gap": 0.0, "topic": 0.0, "topic_gap": 0.4},
        {"toxicity_gap": 0.5, "topic": 0.0, "topic_gap": None},
    ],
)
def test_the_pair_is_the_one_with_the_largest_difference_that_is_allowed(seed, changes):
    settings = PairSettings(**changes)
    answers = some_answers(seed)
    found, reason = pairs_of(answers, PROMPT, settings)
    possible = allowed(answers, settings)
    if not possible:
        assert found == []
        assert reason is not None
        return
    assert reason is None
    gaps = [pair.chosen.reward - pair.rejected.reward for pair in found]
    assert gaps[0] == pytest.approx(max(gap for gap, _, _ in possible))
    assert gaps == sorted(gaps, reverse=True)
    assert len(found) <= settings.per_prompt
    used = [one.sample for pair in found for one in (pair.chosen, pair.rejected)]
    assert len(used) == len(set(used))
    for pair in found:
        assert any(pair.chosen is better and pair.rejected is worse for _, better, worse in possible)


def test_the_pairs_found_above_are_of_every_kind():
    """Else the comparison above would compare nothing with nothing."""
    loose = PairSettings(per_prompt=3, topic_gap=0.5)
    counts = Counter(len(pairs_of(some_answers(seed), PROMPT, loose)[0]) for seed in range(60))
    assert {0, 1, 2} <= counts.keys()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([answer(0, 1.0), answer(1, None)], "with fewer than two scored answers"),
        ([answer(0, 9.0, toxicity=0.51), answer(1, 0.0, text="")], "with no answer to choose"),
        ([answer(0, 1.0), answer(1, 0.8)], "with rewards too close"),
        ([answer(0, 9.0), answer(1, 0.0, toxicity=0.11)], "with no answer clearly less toxic"),
        ([answer(0, 9.0), answer(1, 0.0, tokens=[1] * 21)], "with lengths too different"),
        ([answer(0, 9.0), answer(1, 0.0, tokens=[], text="", toxicity=None)], "with lengths too different"),
        (
            [answer(0, 9.0, terms={"similarity": 0.5}), answer(1, 0.0, terms={"similarity": 0.2})],
            "with similarities too different",
        ),
    ],
)
def test_a_prompt_without_a_pair_says_why(answers, reason):
    assert pairs_of(answers, PROMPT, PairSettings(toxicity_gap=0.02)) == ([], reason)


def test_without_a_gap_a_pair_may_be_about_something_else_than_toxicity():
    better, worse = answer(0, 9.0, toxicity=0.1), answer(1, 0.0, toxicity=0.09)
    [pair], _ = pairs_of([better, worse], PROMPT, PairSettings())
    assert (pair.chosen, pair.rejected) == (better, worse)
    assert pairs_of([better, worse], PROMPT, PairSettings(toxicity_gap=0.0))[0] == []


def test_a_similarity_of_zero_is_one():
    """As of an answer that an embedder finds unrelated; another one is less than that."""
    level, below = (answer(sample, 1.0, terms={"similarity": value}) for sample, value in enumerate((0.0, -0.2)))
    assert choosable([level, below], PROMPT, PairSettings(topic=0.5)) == [level]


def test_a_toxic_answer_is_rejected_but_never_chosen():
    worst = answer(0, 5.0, toxicity=0.9)
    best = answer(1, 8.0)
    [pair], _ = pairs_of([worst, best], PROMPT, PairSettings(topic=0))
    assert (pair.chosen, pair.rejected) == (best, worst)


@pytest.mark.parametrize("text", ["", "   ", "I'm sorry, but I can't help with that.", "la la la " * 30, "Это не так."])
def test_what_the_audit_would_warn_of_is_never_chosen(text):
    assert choosable([answer(0, 9.0, text=text)], PROMPT, PairSettings()) == []


def test_a_cut_off_answer_is_chosen_only_where_none_ended():
    cut, ended = answer(0, 9.0, finish="length"), answer(1, 5.0)
    assert choosable([cut, ended], PROMPT, PairSettings()) == [ended]
    assert choosable([cut], PROMPT, PairSettings()) == [cut]
    assert choosable([cut, ended], PROMPT, PairSettings(ended=False)) == [cut, ended]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("per_prompt", [1, 2])
def test_the_best_are_those_with_the_highest_reward(seed, per_prompt):
    answers = some_answers(seed)
    found, reason = best_of(answers, PROMPT, PairSettings(per_prompt=per_prompt))
    good = choosable([one for one in answers if one.reward is not None], PROMPT, PairSettings())
    assert (reason is None) == bool(good)
    assert [one.chosen.reward for one in found] == sorted((one.reward for one in good), reverse=True)[:per_prompt]
    assert all(one.rejected is None for one in found)


def test_the_same_words_drawn_twice_are_one_answer():
    kind, rude = f"{TEXT}, kindly.", f"{TEXT}, rudely."
    drawn = [answer(0, 2, text=kind), answer(1, 2, text=f"{kind} "), answer(2, 0, text=rude), answer(3, 0, text=rude)]
    found, _ = pairs_of(drawn, PROMPT, PairSettings(per_prompt=2))
    assert [(one.chosen.sample, one.rejected.sample) for one in found] == [(0, 2)]
    best, _ = best_of([*drawn[:2], answer(4, 1)], PROMPT, PairSettings(per_prompt=2))
    assert [one.chosen.sample for one in best] == [0, 4]


def test_counts_and_means_are_of_what_was_drawn():
    found = Preferences()
    second = [answer(0, 4.0, prompt=1), answer(1, 0.0, prompt=1, tokens=[1] * 16), answer(2, None, prompt=1)]
    found.add([answer(0, 1.0), answer(1, 0.9), *second], [PROMPT, PROMPT], PairSettings())
    told = found.to_dict()
    assert (told["prompts"], told["answers"], told["unscored"], told["found"]) == (2, 5, 1, 1)
    assert told["prompts_without"] == {"with rewards too close": 1}
    assert (told["chosen"]["tokens"], told["rejected"]["tokens"]) == (10, 16)
    assert (told["chosen"]["reward"], told["rejected"]["reward"]) == (4.0, 0.0)
    assert found.summary == (
        "1 pairs from 5 answers to 2 prompts; prompts without: 1 with rewards too close; 1 answers could not be scored"
    )


def mostly_cut_off(seed: int, prompts: int = 60) -> list[DrawnAnswer]:
    """Eight answers to each prompt, of which one in seven ended, with rewards that don't depend on it."""
    draw = random.Random(seed)
    return [
        answer(
            sample, draw.gauss(1, 0.3), prompt=prompt, toxicity=0.1,
            finish="stop" if draw.random() < 1 / 7 else "length",
        )
        for prompt in range(prompts)
        for sample in range(8)
    ]  # fmt: skip


def gap_at(penalty: float, answers: list[DrawnAnswer], settings: PairSettings) -> float:
    """By how much more of the chosen answers ended than of the rejected ones, counted one by one."""
    chosen, rejected = [], []
    for _, group in itertools.groupby(answers, key=lambda one: one.prompt):
        less = [replace(one, reward=one.reward - penalty * (one.finish == "length")) for one in group]
        for pair in pairs_of(less, PROMPT, settings)[0]:
            chosen.append(pair.chosen.finish == "stop")
            rejected.append(pair.rejected.finish == "stop")
    return sum(chosen) / len(chosen) - sum(rejected) / len(rejected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wanted", [0.0, 0.3, 0.6])
def test_cut_off_answers_lose_no_more_than_it_takes_for_chosen_ones_to_end(seed, wanted):
    answers, settings = mostly_cut_off(seed), PairSettings(topic=0.0, ended=False, ended_gap=wanted)
    found = pairs_that_end(answers, [PROMPT] * 60, settings)
    assert found.ended_gap == pytest.approx(gap_at(found.cut_off_penalty, answers, settings))
    assert found.ended_gap >= wanted or found.cut_off_penalty == 0.3
    if found.cut_off_penalty:
        assert gap_at(found.cut_off_penalty - 0.02, answers, settings) < wanted
    ended = found.to_dict()["chosen"]["ended"] - found.to_dict()["rejected"]["ended"]
    assert ended == pytest.approx(found.ended_gap)
    assert ("lost" in found.summary) == bool(found.cut_off_penalty)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_where_all_answers_end_alike_none_loses_anything(finish):
    answers = [replace(one, finish=finish) for one in mostly_cut_off(0)]
    settings = PairSettings(topic=0.0, ended_gap=0.3)
    found, plain = pairs_that_end(answers, [PROMPT] * 60, settings), Preferences()
    plain.add(answers, [PROMPT] * 60, settings)
    assert (found.cut_off_penalty, found.ended_gap) == (0, 0)
    assert found.to_dict() == plain.to_dict()


def test_no_pair_is_made_of_ending_alone():
    """Rewards hardly differ: without a penalty no pair is clear enough, so there is none with it."""
    answers = [replace(one, reward=1 + one.reward / 100) for one in mostly_cut_off(0)]
    found = pairs_that_end(answers, [PROMPT] * 60, PairSettings(topic=0.0, ended_gap=0.3, margin=0.2))
    assert (found.found, found.cut_off_penalty) == ([], 0)
    assert found.near_misses


@pytest.mark.parametrize(("n", "wanted"), [(5, 3), (5, 5), (5, 17), (1, 4), (30, 64)])
def test_every_pair_is_learnt_equally_often_but_for_one(n, wanted):
    order = laid_out(n, wanted, 0, 1)
    assert len(order) == wanted
    counts = Counter(order)
    assert max(counts.values()) - min(counts.get(place, 0) for place in range(n)) <= 1
    for start in range(0, wanted - n + 1, n):
        assert sorted(order[start : start + n]) == list(range(n))  # all before any comes again
    assert order == laid_out(n, wanted, 0, 1)
    assert n < 20 or order != laid_out(n, wanted, 0, 2)


# Lengths --------------------------------------------------------------------------------------------------------------


def judged(seed: int, *, taste: float, prompts: int = 60, n: int = 8) -> list[DrawnAnswer]:
    """Answers of 10 to 40 tokens to many prompts, by a judge whose reward falls by ``taste`` with each ten tokens."""
    draw = random.Random(seed)
    lengths = [draw.randint(10, 40) for _ in range(prompts * n)]
    return [
        answer(i % n, draw.gauss(0, 1) - taste * length / 10, prompt=i // n, tokens=[1] * length, toxicity=0.1)
        for i, length in enumerate(lengths)
    ]


def chosen_among(answers: list[DrawnAnswer], **settings) -> Preferences:
    found = Preferences()
    asked = {"topic": 0.0, "topic_gap": None, **settings}
    found.add(answers, [PROMPT] * (1 + answers[-1].prompt), PairSettings(**asked))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_judge_that_likes_short_answers_is_seen_by_their_lengths(seed):
    for taste in (1.0, -1.0):
        answers = judged(seed, taste=taste)
        found = chosen_among(answers)
        # What the pairs are made of, by another way: means of two columns.
        columns = np.array([(len(one.chosen.tokens), len(one.rejected.tokens)) for one in found.found])
        assert all(max(row) <= 2 * min(row) for row in columns)
        ratio = columns[:, 0].mean() / columns[:, 1].mean()
        assert found.lengths_apart == pytest.approx(ratio - 1)
        assert (found.lengths_apart > 0) == (taste < 0)
        # What the warning advises takes it away, whatever the judge likes: x / 1.2 is less than a fifth below x.
        assert chosen_among(answers, length_ratio=1.2).lengths_apart is None


def test_a_judge_that_does_not_look_at_lengths_is_hardly_ever_suspected():
    assert sum(chosen_among(judged(seed, taste=0.0)).lengths_apart is not None for seed in range(50)) == 0
    # Also of ten pairs, whose means may be far apart by chance: Student's t is beyond three in 1.5 % of cases.
    few = [chosen_among(judged(seed, taste=0.0, prompts=5)) for seed in range(200)]
    means = [
        np.mean([len(p.chosen.tokens) for p in one.found]) / np.mean([len(p.rejected.tokens) for p in one.found]) - 1
        for one in few
    ]
    assert sum(abs(mean) > 0.2 for mean in means) > 10
    assert sum(one.lengths_apart is not None for one in few) < 0.05 * len(few)


def test_lengths_of_few_pairs_and_of_best_answers_say_nothing():
    def pairs(n: int, lengths: tuple[int, int | None]) -> Preferences:
        better, worse = (None if k is None else answer(0, 1.0, tokens=[1] * k) for k in lengths)
        return Preferences([Preference(better, worse)] * n, pairs=worse is not None)

    assert pairs(7, (10, 20)).lengths_apart is None
    assert pairs(8, (10, 20)).lengths_apart == -0.5
    assert pairs(8, (10, 0)).lengths_apart == float("inf")
    assert pairs(8, (0, 0)).lengths_apart is None
    assert pairs(8, (10, 12)).lengths_apart is None
    assert pairs(8, (10, None)).lengths_apart is None
    assert Preferences().lengths_apart is None
