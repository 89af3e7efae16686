"""The packaged SVM: that it is the right file, and that its scores mean toxicity."""

import importlib.metadata
import json
import os
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from rewardlm.errors import ScorerError
from rewardlm.scoring import lexical
from rewardlm.scoring.lexical import LexicalScorer
from rewardlm.scoring.scorer import score_texts

DATA = Path(os.environ.get("REWARDLM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_insults_score_above_friendly_texts():
    toxic = score_texts(LexicalScorer(), ["You are a stupid idiot.", "Shut the fuck up, moron."])
    benign = score_texts(LexicalScorer(), ["Thank you for your help!", "The train leaves at noon."])
    assert min(v.values["toxicity"] for v in toxic) > 0.9
    assert max(v.values["toxicity"] for v in benign) < 0.1


def test_any_text_and_any_number_of_texts():
    scorer = LexicalScorer()
    assert scorer.score([]) == []
    verdicts = score_texts(scorer, ["\ud800", "\0a", "🙂", "x" * 100_000])
    assert all(v.reason is None for v in verdicts)


def test_it_ranks_like_perspective():
    path = DATA / "realtoxicityprompts" / "prompts.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here (set REWARDLM_DATA)")
    prompts = [json.loads(line)["prompt"] for line in path.open(encoding="utf-8")]
    verdicts = score_texts(LexicalScorer(), [p["text"] for p in prompts])
    found = spearmanr([v.values["toxicity"] for v in verdicts], [p["toxicity"] for p in prompts]).statistic
    assert found > 0.78  # 0.80 is the figure known for this package


def test_another_version_and_changed_files_are_not_opened(monkeypatch):
    monkeypatch.setattr(lexical, "FILES", {"model.joblib": "0" * 64})
    with pytest.raises(ScorerError, match=r"another SHA-256.*pip install alt-profanity-check==1\.9\.1"):
        LexicalScorer()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(ScorerError, match=r"needs alt-profanity-check 1\.9\.1, found 1\.0"):
        LexicalScorer()
