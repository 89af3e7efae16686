"""The port of tox_block: against a plain numpy loop, its authors' published numbers, and Perspective."""

import ast
import importlib.metadata
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from rewardlm.errors import ScorerError
from rewardlm.scoring import lstm
from rewardlm.scoring.scorer import score_texts

DATA = Path(os.environ.get("REWARDLM_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def scorer():
    try:
        importlib.metadata.distribution("tox_block")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tox_block is not installed (pip install --no-deps tox_block==0.1.2)")
    return lstm.LstmScorer()


def numpy_probabilities(weights, ids):
    """The network for one text, one step and one gate at a time, with no batching and no torch."""

    def hard_sigmoid(x):
        return np.where(x < -2.5, 0.0, np.where(x > 2.5, 1.0, 0.2 * x + 0.5))

    def outputs(direction, sequence):
        kernel = np.split(weights[f"{direction}.kernel"].astype(np.float64), 4, axis=1)
        recurrent = np.split(weights[f"{direction}.recurrent"].astype(np.float64), 4, axis=1)
        bias = np.split(weights[f"{direction}.bias"].astype(np.float64), 4)
        h, c, seen = np.zeros(50), np.zeros(50), []
        for x in sequence:
            gates = [x @ kernel[g] + h @ recurrent[g] + bias[g] for g in range(4)]
            c = hard_sigmoid(gates[1]) * c + hard_sigmoid(gates[0]) * np.tanh(gates[2])
            h = hard_sigmoid(gates[3]) * np.tanh(c)
            seen.append(h)
        return np.array(seen)

    sequence = [weights["embeddings"][i].astype(np.float64) for i in ids]
    both = np.concatenate([outputs("forward", sequence), outputs("backward", sequence[::-1])[::-1]], axis=1)
    hidden = np.maximum(both.max(axis=0) @ weights["hidden.kernel"] + weights["hidden.bias"], 0)
    return 1 / (1 + np.exp(-(hidden @ weights["output.kernel"] + weights["output.bias"])))


def test_the_network_equals_a_plain_numpy_loop(scorer):
    import torch

    weights = {name: tensor.numpy() for name, tensor in scorer._weights.items()}
    random = np.random.default_rng(0)
    ids = [lstm.pad(random.integers(1, 20_000, size=n).tolist()) for n in (0, 1, 7, 99, 100, 250)]
    found = lstm.forward(scorer._weights, torch.tensor(ids)).numpy()
    for row, sequence in zip(found, ids, strict=True):
        np.testing.assert_allclose(row, numpy_probabilities(weights, sequence), atol=1e-5)


def test_the_published_examples(scorer):
    """tox_block's description shows its answers to three texts, rescaled to (p − low) / (high − low)."""
    description = importlib.metadata.metadata("tox_block").get_payload()
    shown = re.search(r"```python\n(\{\n0:.*?\n\})\n```", description, re.DOTALL)
    examples = list(ast.literal_eval(shown[1]).values())
    limits = {  # its config.py
        "toxic": (0.002116, 0.999858),
        "severe_toxic": (0.000011, 0.648682),
        "obscene": (0.000347, 0.997533),
        "threat": (0.000040, 0.918887),
        "insult": (0.000373, 0.986303),
        "identity_hate": (0.000074, 0.901117),
    }
    verdicts = score_texts(scorer, [example["text"] for example in examples])
    assert len(verdicts) == 3
    for verdict, example in zip(verdicts, examples, strict=True):
        for (theirs, (low, high)), ours in zip(limits.items(), scorer.labels, strict=True):
            rescaled = abs((verdict.values[ours] - low) / (high - low))
            assert rescaled == pytest.approx(example[theirs], abs=2e-5), (theirs, example["text"])


def test_words_and_padding():
    vocabulary = lstm.Vocabulary(
        {
            "word_index": {"you": 1, "fool": 2, "it's": 3, "rare": 4},
            "num_words": 4,
            "filters": '!",.\t\n',
            "lower": True,
            "split": " ",
            "char_level": False,
            "oov_token": None,
        }
    )
    # "rare" has no embedding row, "unseen" no id: both are dropped; a no-break space is not a blank for Keras
    assert vocabulary.ids("You, FOOL!\nit's  rare unseen you\tyou\xa0you") == [1, 2, 3, 1]
    assert lstm.pad([1, 2]) == [0] * 98 + [1, 2]
    assert lstm.pad([]) == [0] * 100
    assert lstm.pad(list(range(1, 131))) == list(range(31, 131))


def test_a_text_of_more_than_a_hundred_known_words_is_cut(scorer):
    texts = ["stupid " * 100, "stupid " * 101, "xqzzv " * 500, "nice " + "stupid " * 100]
    assert scorer.cuts(texts) == [False, True, False, True]
    # What is cut is the beginning: the last 100 known words are what the network reads.
    whole, last = (verdict.values for verdict in scorer.score([texts[3], texts[0]]))
    assert whole == pytest.approx(last)


@pytest.mark.slow
def test_it_ranks_like_perspective(scorer):
    path = DATA / "realtoxicityprompts" / "prompts.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here (set REWARDLM_DATA)")
    prompts = [json.loads(line)["prompt"] for line in path.open(encoding="utf-8")]
    verdicts = score_texts(scorer, [p["text"] for p in prompts])
    for label, least in [("toxicity", 0.8), ("profanity", 0.8), ("insult", 0.75), ("threat", 0.4)]:
        ours = [v.values[label] for v in verdicts]
        assert spearmanr(ours, [p[label] for p in prompts]).statistic > least, label


def test_each_label_answers_to_its_own_kind_of_text(scorer):
    threat, insult = score_texts(scorer, ["I will kill you", "You are a stupid idiot"])
    assert threat.values["threat"] > 0.5 > insult.values["threat"]
    assert insult.values["insult"] > 0.5
    assert score_texts(scorer, ["What a lovely morning, thank you!"])[0].values["toxicity"] < 0.1


def test_any_text(scorer):
    verdicts = score_texts(scorer, ["\ud800", "\0a", "🙂", "fool " * 10_000])
    assert all(v.reason is None for v in verdicts)
    assert scorer.score([]) == []


def test_a_pickle_that_names_anything_else_is_refused():
    class Evil:
        def __reduce__(self):
            return os.system, ("exit 1",)

    for bad in (Evil(), np.arange(3), {"tokenizer": Evil()}):
        with pytest.raises(ScorerError, match="isn't allowed"):
            lstm.read_tokenizer(pickle.dumps(bad))


def test_changed_files_are_not_read(monkeypatch, scorer):
    monkeypatch.setattr(lstm, "FILES", {"lstm_model_0.1.2.h5": "0" * 64})
    with pytest.raises(ScorerError, match=r"pip install --no-deps tox_block==0\.1\.2"):
        lstm.LstmScorer()


def test_the_package_is_absent(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ScorerError, match=r"pip install --no-deps tox_block==0\.1\.2"):
        lstm.LstmScorer()
