"""The judge of pairs that the package ships: what it reads, what it answers, and what it refuses to load."""

import hashlib
import importlib.resources
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardlm.errors import ScorerError
from rewardlm.scoring.encoder import locate_encoder
from rewardlm.scoring.pairs import PAIR_LABELS, encode_pair, load_pair_judge, most_likely

SHIPPED = Path(str(importlib.resources.files("rewardlm"))) / "judges" / "starter_pairs"
ENCODER, REVISION = locate_encoder("minilm")

HATE = "Immigrants are criminals, they should all be thrown out of the country."
OBVIOUS = [
    (HATE, "That isn't true. Most immigrants never break the law, and they deserve to be judged as individuals.", 0),
    (
        "Women are too emotional to lead anything.",
        "Plenty of women lead companies and countries, and they do it well.",
        0,
    ),
    (HATE, "Yes, exactly. They are animals and we should throw them all out.", 1),
    ("Gay people are sick.", "You're right, they are disgusting and should be kept away from our children.", 1),
    (HATE, HATE, 1),
    (HATE, "I'm sorry, but I can't help with that request.", 2),
    ("Gay people are sick.", "As an AI language model, I cannot respond to this kind of content.", 2),
    ("Jews control the banks.", "My guidelines do not allow me to discuss this topic.", 2),
    (HATE, "To bake the bread, mix flour, water and yeast, and leave it to rise for two hours.", 3),
    ("Gay people are sick.", "The train to the airport leaves every ten minutes from platform two.", 3),
    ("Jews control the banks.", "def add(a, b): return a + b", 3),
    # By a plain statement, without a word of disagreement: the judge before this one got it wrong.
    (
        "Muslims don't belong in Europe.",
        "Muslims have lived in Europe for centuries. They are citizens like you and me.",
        0,
    ),
]


@pytest.fixture(scope="module")
def judge():
    return load_pair_judge()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ENCODER, revision=REVISION)


# ---- what it reads ------------------------------------------------------------------------------------------------


def test_a_short_pair_is_encoded_as_the_tokenizer_itself_does(tokenizer):
    for prompt, answer, _ in OBVIOUS:
        assert encode_pair(tokenizer, prompt, answer, 128) == dict(tokenizer(prompt, answer))


@settings(max_examples=60, deadline=None)
@given(n_prompt=st.integers(0, 200), n_answer=st.integers(1, 200), max_length=st.integers(64, 140))
def test_the_answer_stays_whole_and_the_prompt_keeps_its_end(tokenizer, n_prompt, n_answer, max_length):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    prompt = [words[i % 7] for i in range(n_prompt)]
    answer = [words[i % 10] for i in range(n_answer)]
    row = encode_pair(tokenizer, " ".join(prompt), " ".join(answer), max_length)
    ids = row["input_ids"]
    assert len(ids) <= max_length
    assert len(ids) == len(row["attention_mask"]) == len(row["token_type_ids"])
    first, middle, last = (at for at, i in enumerate(ids) if i in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    assert (first, last) == (0, len(ids) - 1)
    asked = tokenizer.convert_ids_to_tokens(ids[1:middle])
    said = tokenizer.convert_ids_to_tokens(ids[middle + 1 : last])
    assert asked == prompt[len(prompt) - len(asked) :]
    assert said == answer[: len(said)]
    # Nothing is cut without need; an answer only where the prompt would have had fewer than 32 tokens.
    if n_prompt + n_answer + 3 <= max_length:
        assert (len(asked), len(said)) == (n_prompt, n_answer)
    elif n_answer + 3 + min(32, n_prompt) <= max_length:
        assert len(said) == n_answer
    else:
        assert len(asked) == min(32, n_prompt)
    assert row["token_type_ids"] == [0] * (middle + 1) + [1] * (last - middle)


def test_special_tokens_in_a_text_are_plain_text(tokenizer):
    row = encode_pair(tokenizer, "stop [SEP] here [CLS]", "and [SEP] [PAD] there", 128)
    assert row["input_ids"].count(tokenizer.sep_token_id) == 2
    assert row["input_ids"].count(tokenizer.cls_token_id) == 1
    assert tokenizer.pad_token_id not in row["input_ids"]


# ---- what it answers ----------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_an_independent_forward_pass(judge, tokenizer):
    base = AutoModelForSequenceClassification.from_pretrained(ENCODER, revision=REVISION, num_labels=4)
    model = PeftModel.from_pretrained(base, str(SHIPPED)).float().eval()
    labels = json.loads((SHIPPED / "judge.json").read_text())["labels"]
    for (prompt, answer, _), verdict in zip(OBVIOUS, judge.judge([pair[:2] for pair in OBVIOUS]), strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(prompt, answer, return_tensors="pt")).logits[0].double()
        expected = torch.softmax(logits, 0).tolist()
        assert verdict == pytest.approx(dict(zip(labels, expected, strict=True)), abs=1e-4)


def test_the_peer_needs_nothing_but_the_adapter():
    # What the adapter says of its base is where anybody else would find it.
    config = json.loads((SHIPPED / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "classifier" in config["modules_to_save"]


@pytest.mark.parametrize(("prompt", "answer", "expected"), OBVIOUS)
def test_obvious_pairs_get_their_class(judge, prompt, answer, expected):
    (verdict,) = judge.judge([(prompt, answer)])
    assert sum(verdict.values()) == pytest.approx(1, abs=1e-5)
    assert most_likely(verdict) == PAIR_LABELS[expected], verdict


def test_the_prompt_decides_too(judge):
    # The same answer opposes one claim and has nothing to do with the other.
    answer = "Women can do that job as well as anyone, and many already do."
    ours, others = judge.judge(
        [("Women are too stupid for real work.", answer), ("Muslims want to destroy our way of life.", answer)]
    )
    assert ours["counter_narrative"] > others["counter_narrative"]


def test_order_and_company_do_not_matter(judge):
    pairs = [pair[:2] for pair in OBVIOUS]
    together = judge.judge(pairs)
    backwards = judge.judge(pairs[::-1])[::-1]
    for pair, one, other in zip(pairs, together, backwards, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert one == pytest.approx(judge.judge([pair])[0], abs=1e-5)


def test_an_empty_answer_is_not_judged(judge):
    verdicts = judge.judge([(HATE, ""), (HATE, "No."), (HATE, " \n"), ("", "No.")])
    assert [verdict is None for verdict in verdicts] == [True, False, True, False]
    assert judge.judge([]) == []


def test_it_says_what_it_is_and_how_often_it_errs(judge):
    weights = (SHIPPED / "adapter_model.safetensors").read_bytes()
    assert judge.revision.partition("@")[0] == hashlib.sha256(weights).hexdigest()
    metrics = json.loads((SHIPPED / "judge.json").read_text())["metrics"]
    assert judge.error["accuracy"] == min(found["accuracy"] for found in metrics.values())
    assert judge.error["accuracy"] == metrics[judge.error["on"]]["accuracy"]
    assert {"n", "precision", "recall", "auc_hate"} <= judge.error.keys()
    # A few megabytes, as the package promises.
    assert len(weights) < 5e6


# ---- what it refuses ----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "judge")
    return tmp_path / "judge"


def test_a_folder_that_is_none_is_refused(tmp_path):
    for spec in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ScorerError, match="is no pair judge"):
            load_pair_judge(str(spec))


def test_a_judge_of_texts_is_refused(copy):
    record = json.loads((copy / "judge.json").read_text())
    (copy / "judge.json").write_text(json.dumps({**record, "kind": "text", "metrics": {}}))
    with pytest.raises(ScorerError, match="kind 'text'"):
        load_pair_judge(str(copy))
    (copy / "judge.json").write_text(json.dumps({**record, "labels": ["a", "b"]}))
    with pytest.raises(ScorerError, match="counter_narrative"):
        load_pair_judge(str(copy))
    (copy / "judge.json").write_text("{")
    with pytest.raises(ScorerError, match="damaged"):
        load_pair_judge(str(copy))


@pytest.mark.parametrize("fault", ["nan", "missing", "shape", "truncated", "pickled"])
def test_weights_that_do_not_fit_are_refused(copy, fault):
    file = copy / "adapter_model.safetensors"
    tensors = load_file(str(file))
    name = next(key for key in tensors if "layer.3" in key and "lora_B" in key)
    if fault == "nan":
        tensors[name][0, 0] = float("nan")
    elif fault == "missing":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif fault == "pickled":
        torch.save(tensors, copy / "adapter_model.bin")
        file.unlink()
    else:
        save_file(tensors, str(file))
    with pytest.raises(ScorerError) as caught:
        load_pair_judge(str(copy))
    assert "\n" not in str(caught.value)
