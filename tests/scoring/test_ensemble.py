"""Several judges as one, against hand-computed numbers."""

import importlib.util
import math

import pytest

from rewardlm.errors import ScorerError
from rewardlm.scoring.ensemble import Ensemble
from rewardlm.scoring.scorer import FailureLimit, load_scorer, score_texts
from rewardlm.types import Verdict


class Fake:
    labels = ("main", "other")

    def __init__(self, name, values):
        self.name = name
        self.values = values

    def score(self, texts):
        return [
            v if isinstance(v, Verdict) else Verdict({"main": v, "other": 0.9}) for v in (self.values[t] for t in texts)
        ]


def test_mean_and_maximum_of_the_main_labels():
    members = [Fake("a", {"x": 0.2, "y": 0.8}), Fake("b", {"x": 0.6, "y": 0.1})]
    mean, largest = Ensemble(members), Ensemble(members, how="max")
    assert (mean.name, mean.labels) == ("mean(a,b)", ("toxicity", "a", "b"))
    assert largest.name == "max(a,b)"
    x, y = score_texts(mean, ["x", "y"])
    assert x.values == pytest.approx({"toxicity": 0.4, "a": 0.2, "b": 0.6})
    assert y.values == pytest.approx({"toxicity": 0.45, "a": 0.8, "b": 0.1})
    assert [v.values["toxicity"] for v in score_texts(largest, ["x", "y"])] == [0.6, 0.8]


def test_a_text_that_one_member_cant_score_is_unscored():
    declined = Verdict(reason="not English")
    members = [Fake("a", {"x": 0.2, "y": 0.2, "z": 0.2}), Fake("b", {"x": math.nan, "y": declined, "z": 1.0})]
    limit = FailureLimit(max_share=1)
    x, y, z = score_texts(Ensemble(members, how="max"), ["x", "y", "z"], limit=limit)
    assert x.failed
    assert x.reason.startswith("b: main is nan")
    assert (y.reason, y.failed) == ("b: not English", False)
    assert z.values["toxicity"] == 1.0
    assert (limit.seen, limit.failed) == (3, 1)


def test_a_member_out_of_range_is_found_though_the_mean_is_in_range():
    members = [Fake("a", {"x": 1.5}), Fake("b", {"x": 0.1})]
    assert "a is 1.5" in score_texts(Ensemble(members), ["x"])[0].reason
    assert score_texts(Ensemble(members), ["x"], bounded=False)[0].values["toxicity"] == pytest.approx(0.8)


def test_members_must_be_two_and_distinct():
    a = Fake("a", {})
    for members in ([], [a], [a, Fake("a", {})], [a, Fake("toxicity", {})]):
        with pytest.raises(ScorerError, match="two or more"):
            Ensemble(members)


def test_by_name():
    if importlib.util.find_spec("tox_block") is None:
        pytest.skip("tox_block is not installed (pip install --no-deps tox_block==0.1.2)")
    text = "You stupid idiot"
    scorer = load_scorer("mean(lexical, lexical2)")
    assert scorer.name == "mean(lexical,lexical2)"
    verdict = score_texts(scorer, [text])[0]
    parts = [score_texts(load_scorer(n), [text])[0].values["toxicity"] for n in ("lexical", "lexical2")]
    assert verdict.values["toxicity"] == pytest.approx(sum(parts) / 2)
