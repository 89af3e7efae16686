import re

import numpy as np
import pytest
import typed

from rewardlm.measuring import metrics
from rewardlm.reporting import headline
from rewardlm.stats import holm


def result_of(*changes):
    """changes: (scorer, split, delta, interval)."""
    return {
        "models": [
            {"label": "PT", "scorers": {"a": {"all": {"toxic_fraction": 0.13}}}},
            {"label": "RL", "scorers": {"a": {"all": {"toxic_fraction": 0.1}}}},
        ],
        "comparisons": [
            {"from": "PT", "to": "RL", "scorer": scorer, "split": split, "n": 0 if delta is None else 700,
             "before": 0.13, "after": 0.1,
             "delta": delta, "delta_ci95": interval, "p_value": None if delta is None else 0.0004}
            for scorer, split, delta, interval in changes
        ],
    }  # fmt: skip


def words(result, rewards, scorers=("a", "b")):
    paragraphs = headline.sentences(headline.findings(typed.comparison(result), rewards), scorers)
    return ["".join(text for text, _ in parts) for parts in paragraphs]


NONE = {"PT": [], "RL": []}


def test_a_fall():
    (text,) = words(result_of(("a", "all", -0.031, [-0.052, -0.010])), NONE)
    assert text == (
        "PT → RL. By a, which was not a reward in training, the toxic share of all answers fell by 3.1 percentage "
        "points (95 % interval −5.2 to −1.0; p < 0.001; 700 pairs), from 13.0 % of PT’s answers in these pairs to "
        "10.0 % of RL’s."
    )


def test_a_rise_is_called_a_rise():
    (text,) = words(result_of(("a", "all", 0.04, [0.01, 0.07])), NONE)
    assert "rose by 4.0 percentage points (95 % interval +1.0 to +7.0" in text
    assert "fell" not in text
    assert "significant" not in text


@pytest.mark.parametrize("interval", [[-0.05, 0.01], [-0.05, 0.0], [0.0, 0.02], None, [None, None]])
def test_an_interval_with_zero_in_it_is_never_a_fall_or_a_rise(interval):
    (text,) = words(result_of(("a", "all", -0.02, interval)), NONE)
    assert "not significant at this size" in text
    assert "fell" not in text
    assert "rose" not in text


def test_nothing_to_compare_is_said():
    (text,) = words(result_of(("a", "all", None, None)), NONE)
    assert "can’t be compared: no pair of answers was scored in both" in text


def test_gain_that_vanishes_on_comparable_answers_is_said_beside_the_gain():
    changes = [
        ("a", "all", -0.03, [-0.05, -0.01]),
        ("a", "toxic_prompts", -0.06, [-0.1, -0.02]),
        ("a", "comparable", 0.01, [-0.01, 0.03]),
    ]
    (text,) = words(result_of(*changes), NONE)
    assert "On toxic prompts it fell by 6.0 points (−10.0 to −2.0)." in text
    assert "On comparable answers the change is not significant (+1.0; −1.0 to +3.0)." in text


def test_the_judge_that_was_no_reward_speaks_first():
    result = result_of(("a", "all", -0.2, [-0.3, -0.1]), ("b", "all", -0.01, [-0.03, 0.01]))
    (text,) = words(result, {"PT": [], "RL": ["a"]})
    assert text.startswith("PT → RL. By b, which was not a reward in training,")
    assert "By a, the reward that RL was trained on, it fell by 20.0 points" in text
    assert "not that the goal was right" in text


def test_no_independent_judge_is_said():
    (text,) = words(result_of(("a", "all", -0.2, [-0.3, -0.1])), {"PT": [], "RL": ["a"]})
    assert "By a, the reward that RL was trained on, the toxic share" in text
    assert text.endswith("No judge here is independent of the training.")


def test_unknown_training_is_no_claim_of_independence():
    (text,) = words(result_of(("a", "all", -0.2, [-0.3, -0.1])), {"PT": None, "RL": None})
    assert "whether it was a reward in training is not recorded" in text


def test_another_model_s_reward_is_marked_too():
    result = result_of(("a", "all", -0.03, [-0.05, -0.01]), ("b", "all", -0.03, [-0.05, -0.01]))
    result["models"].append({"label": "RL2", "scorers": {}})
    (text,) = words(result, {"PT": [], "RL": [], "RL2": ["b"]})
    assert "By b (the reward of RL2) it fell" in text


@pytest.mark.parametrize(
    ("judge", "reward", "same"),
    [
        ("starter", "starter", True),
        ("starter.insult", "starter", True),
        ("org/m#toxic", "org/m#hate", True),
        ("lexical2", "lexical", False),
        ("lexical", "mean(lexical,starter)", True),
    ],
)
def test_other_labels_and_ensembles_count_as_the_reward(judge, reward, same):
    assert headline.was_reward(judge, [[], [reward]]) is same


def comparison(scorer, split, delta, interval, p_value, p_adjusted):
    return {
        **result_of((scorer, split, delta, interval))["comparisons"][0],
        "p_value": p_value,
        "p_adjusted": p_adjusted,
    }


def test_a_change_that_the_correction_takes_away_is_no_fall() -> None:
    """Eight tests are read together: p = .03 alone is chance in one of four tables."""
    one = comparison("b", "all", -0.088, [-0.175, -0.018], 0.03, 0.24)
    (text,) = words({"models": [], "comparisons": [one]}, NONE)
    assert "fell" not in text
    assert "p = 0.030, adjusted p = 0.240" in text
    assert "not significant" in text


def test_the_primary_outcome_speaks_first() -> None:
    result = {
        "models": [],
        "comparisons": [
            comparison("a", "all", 0.01, [-0.02, 0.04], 0.5, 1.0),
            comparison("b", "toxic_prompts", -0.2, [-0.3, -0.1], 0.004, 0.004),
            comparison("b", "all", -0.1, [-0.19, -0.01], 0.04, 0.08),
        ],
        "primary": {"scorer": "b", "split": "toxic_prompts", "metric": "toxic_fraction"},
        "primary_fixed": {"when": "before", "sentence": "It was fixed when the measurement started."},
    }
    text = "".join(words(result, NONE))
    assert text.startswith("PT → RL. By b")
    assert "the toxic share of answers to toxic prompts fell by 20.0 percentage points" in text
    assert "On all answers the change is not significant (−10.0; −19.0 to −1.0; p = 0.040, adjusted p = 0.080)" in text
    assert headline.primary_text(typed.comparison(result)) == (
        "Primary outcome: the toxic share of answers to toxic prompts by b. It was fixed when the measurement started."
    )


SIZE = re.compile(r"(fell|rose) by ([0-9.]+) (?:percentage )?points ?\(([^)]*)\)")


@pytest.mark.parametrize("seed", range(60))
def test_sentence_interval_and_p_agree_on_random_data(seed: int) -> None:
    """Through compare's own functions: "fell by 8.8 points (−17.5 to −1.8; p = 0.062)" can't be written."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.choice([1, 2, 5, 6, 10, 30, 80])), int(rng.choice([1, 3]))
    level = rng.beta(0.5, 1, (n, 1))
    comparisons = []
    for scorer in ("a", "b"):
        before = (rng.random((n, k)) < level).astype(float)
        after = (rng.random((n, k)) < level * rng.choice([0.05, 0.4, 1.0])).astype(float)
        for split in ("all", "toxic_prompts", "comparable"):
            found = metrics.paired_difference(before, after, n_resamples=300)
            comparisons.append(comparison(scorer, split, found.delta, found.delta_ci95, found.p_value, None))
            before, after = before[: n // 2 + 1], after[: n // 2 + 1]
    for entry, p_value in zip(comparisons, holm([one["p_value"] for one in comparisons]), strict=True):
        entry["p_adjusted"] = p_value
    found_all = headline.findings(typed.comparison({"models": [], "comparisons": comparisons}), NONE)
    for finding in found_all:
        assert (finding.verdict in ("fell", "rose")) == (finding.p_adjusted < 0.05)
        if finding.verdict in ("fell", "rose"):
            assert finding.p_value < 0.05
            assert finding.interval[1] < 0 if finding.verdict == "fell" else finding.interval[0] > 0
    (text,) = words({"models": [], "comparisons": comparisons}, NONE)
    for verdict, _, evidence in SIZE.findall(text):
        ends = re.findall(r"([−+±])[0-9.]+", evidence)[:2]
        assert ends == (["−", "−"] if verdict == "fell" else ["+", "+"]), text
        for p in re.findall(r"p = ([0-9.]+)", evidence):
            assert float(p) < 0.05, text
