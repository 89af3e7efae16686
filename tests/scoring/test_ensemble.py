"""Several judges as one, against hand-computed numbers."""

import importlib.util
import math
from pathlib import Path

import pytest
from small_judges import save_adapter, tiny_encoder

from rewardlm.errors import ScorerError
from rewardlm.scoring import record
from rewardlm.scoring.classifier import ClassifierScorer
from rewardlm.scoring.ensemble import Ensemble
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import FailureLimit, cuts, score_texts
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
    assert (mean.name, mean.labels) == ("mean(a,b)", ("toxicity", "a", "b", "disagreement"))
    assert largest.name == "max(a,b)"
    x, y = score_texts(mean, ["x", "y"])
    assert x.values == pytest.approx({"toxicity": 0.4, "a": 0.2, "b": 0.6, "disagreement": 0.4})
    assert y.values == pytest.approx({"toxicity": 0.45, "a": 0.8, "b": 0.1, "disagreement": 0.7})
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


def test_a_text_that_any_member_reads_in_part_is_cut():
    class Short(Fake):
        def cuts(self, texts):
            return [len(text) > 3 for text in texts]

    texts = ["abcd", "abc", "abcde"]
    members = [Fake("a", {}), Short("b", {}), Fake("c", {})]
    assert cuts(Ensemble(members), texts) == [True, False, True]
    assert cuts(members[0], texts) == [False] * 3
    assert cuts(Ensemble(members), []) == []


def test_members_must_be_two_and_distinct():
    a = Fake("a", {})
    for members in ([], [a], [a, Fake("a", {})], [a, Fake("toxicity", {})]):
        with pytest.raises(ScorerError, match="two or more"):
            Ensemble(members)


@pytest.mark.slow
def test_by_name():
    if importlib.util.find_spec("tox_block") is None:
        pytest.skip("tox_block is not installed (pip install --no-deps tox_block==0.1.2)")
    text = "You stupid idiot"
    scorer = load_scorer("mean(lexical, lexical2)")
    assert scorer.name == "mean(lexical,lexical2)"
    verdict = score_texts(scorer, [text])[0]
    parts = [score_texts(load_scorer(n), [text])[0].values["toxicity"] for n in ("lexical", "lexical2")]
    assert verdict.values["toxicity"] == pytest.approx(sum(parts) / 2)


@pytest.fixture
def judge(tmp_path):
    return save_adapter(tmp_path / "judge", tiny_encoder(tmp_path / "encoder"))


def forwards(monkeypatch):
    """Counts the texts that any classifier's network reads."""
    seen = []
    forward = ClassifierScorer._forward

    def counted(self, rows, width):
        seen.extend(rows)
        return forward(self, rows, width)

    monkeypatch.setattr(ClassifierScorer, "_forward", counted)
    return seen


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_two_labels_of_one_judge_share_its_pass(tmp_path, monkeypatch, problem_type):
    judge = save_adapter(tmp_path / "judge", tiny_encoder(tmp_path / "encoder"), problem_type=problem_type)
    texts = ["you are a fool", "hello friend", "kind kind !"]
    seen = forwards(monkeypatch)
    ensemble = load_scorer(f"max({judge},{judge}#hate)")
    assert ensemble.labels == ("toxicity", judge, f"{judge}#hate", "disagreement")
    verdicts = score_texts(ensemble, texts)
    assert len(seen) == len(texts)
    toxicity, hate = (score_texts(load_scorer(name), texts) for name in (judge, f"{judge}#hate"))
    for verdict, one, two in zip(verdicts, toxicity, hate, strict=True):
        a, b = one.values["toxicity"], two.values["hate"]
        expected = {"toxicity": max(a, b), judge: a, f"{judge}#hate": b, "disagreement": abs(a - b)}
        assert verdict.values == pytest.approx(expected)
    assert len({round(v.values["disagreement"], 3) for v in verdicts}) == 3
    assert ensemble.revision == load_scorer(judge).revision


def test_an_ensemble_of_the_same_label_twice_is_none(judge):
    with pytest.raises(ScorerError, match="one label of one judge"):
        load_scorer(f"max({judge},{judge}#toxicity)")
    with pytest.raises(ScorerError, match="has the labels"):
        load_scorer(f"max({judge},{judge}#threat)")


def test_the_preset_of_toxicity_and_hate(judge, monkeypatch):
    monkeypatch.setattr(record, "shipped_folder", lambda name: Path(judge))
    preset, spelt = load_scorer("toxicity+hate"), load_scorer("max(starter,starter#hate)")
    assert preset.name == "toxicity+hate"
    assert preset.labels == spelt.labels == ("toxicity", "starter", "starter#hate", "disagreement")
    texts = ["you are a fool", "", "hello friend"]
    assert score_texts(preset, texts) == score_texts(spelt, texts)


def test_disagreement_of_three_is_between_the_outer_two():
    members = [Fake("a", {"x": 0.5}), Fake("b", {"x": 0.9}), Fake("c", {"x": 0.2})]
    for how in ("mean", "max"):
        assert score_texts(Ensemble(members, how=how), ["x"])[0].values["disagreement"] == pytest.approx(0.7)
    with pytest.raises(ScorerError, match="'disagreement'"):
        Ensemble([Fake("a", {}), Fake("disagreement", {})])
