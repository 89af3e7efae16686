"""Hugging Face classifiers as judges: tiny random ones, against a plain forward of one text at a time."""

import hashlib
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rewardlm.errors import ScorerError
from rewardlm.scoring import classifier
from rewardlm.scoring.classifier import ClassifierScorer, choose_label, split_label
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.scorer import score_texts

WORDS = ["you", "are", "a", "fool", "##ish", "kind", "friend", "hello", "sep", "pad", "[", "]", "!", "."]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def build(folder, labels, problem_type="single_label_classification", *, model=None, positions=64):
    """A folder as save_pretrained leaves it: random weights, spread out so that scores differ."""
    torch.manual_seed(0)
    if model is None:
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            max_position_embeddings=positions,
            initializer_range=0.5,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            problem_type=problem_type,
            **SMALL,
        )
        model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def reference_logits(folder, ids):
    """One text, no padding, no batch."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double()


def encode_by_hand(text):
    """Word pieces of texts made of WORDS alone: no tokenizer needed."""
    return [2, *(VOCABULARY.index(word) for word in text.split()), 3]


@pytest.fixture
def texts():
    draw = random.Random(1)
    return [" ".join(draw.choices(["you", "are", "a", "fool", "kind", "!"], k=n)) for n in [1, 30, 2, 9, 40, 3, 17]]


@pytest.mark.parametrize("budget", [4096, 45])
def test_single_label_equals_a_plain_forward(tmp_path, texts, monkeypatch, budget):
    monkeypatch.setattr(classifier, "_TOKEN_BUDGET", budget)
    folder = build(tmp_path, ["non-toxic", "toxic", "other"])
    scorer = load_scorer(folder)
    assert (scorer.name, scorer.labels) == (folder, ("toxic",))
    verdicts = score_texts(scorer, texts)
    for text, verdict in zip(texts, verdicts, strict=True):
        expected = reference_logits(folder, encode_by_hand(text)).softmax(-1)
        assert verdict.values == pytest.approx({"toxic": float(expected[1])}, abs=1e-5)
    assert len({round(v.values["toxic"], 4) for v in verdicts}) > 3
    assert not any(scorer.cuts(texts))


def test_multi_label_equals_a_plain_forward_with_the_main_label_first(tmp_path, texts):
    folder = build(tmp_path, ["insult", "threat", "toxic"], "multi_label_classification")
    scorer = load_scorer(folder)
    assert scorer.labels == ("toxic", "insult", "threat")
    other = load_scorer(f"{folder}#threat")
    assert (other.name, other.labels) == (f"{folder}#threat", ("threat", "insult", "toxic"))
    for text, verdict, same in zip(texts, scorer.score(texts), other.score(texts), strict=True):
        insult, threat, toxic = reference_logits(folder, encode_by_hand(text)).sigmoid().tolist()
        assert list(verdict.values) == ["toxic", "insult", "threat"]
        assert verdict.values == pytest.approx({"toxic": toxic, "insult": insult, "threat": threat}, abs=1e-5)
        assert verdict.values == pytest.approx(same.values, abs=1e-6)


def test_one_output(tmp_path, texts):
    folder = build(tmp_path, ["LABEL_0"], None)
    with pytest.raises(ScorerError, match="#toxicity if higher is more toxic"):
        load_scorer(folder)
    scorer = load_scorer(f"{folder}#toxicity")
    assert scorer.labels == ("toxicity",)
    for text, verdict in zip(texts, scorer.score(texts), strict=True):
        expected = float(reference_logits(folder, encode_by_hand(text)).sigmoid()[0])
        assert verdict.values == pytest.approx({"toxicity": expected}, abs=1e-5)


def test_a_text_scores_the_same_in_any_company(tmp_path, texts):
    scorer = load_scorer(build(tmp_path, ["no", "toxic"]))
    together = [v.values["toxic"] for v in scorer.score(texts)]
    alone = [scorer.score([text])[0].values["toxic"] for text in texts]
    backwards = [v.values["toxic"] for v in scorer.score(texts[::-1])][::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)


def test_long_texts_are_cut_and_counted(tmp_path):
    folder = build(tmp_path, ["no", "toxic"], positions=16)
    scorer = load_scorer(folder)
    assert scorer.max_length == 16
    long = " ".join(["fool"] * 8 + ["kind"] * 50)
    texts = [long, "you fool", " ".join(["fool"] * 14), " ".join(["fool"] * 15)]
    verdicts = scorer.score(texts)
    # Two of the sixteen positions are the special tokens'.
    assert scorer.cuts(texts) == [len(text.split()) > 14 for text in texts] == [True, False, False, True]
    kept = [2, *[VOCABULARY.index("fool")] * 8, *[VOCABULARY.index("kind")] * 6, 3]
    expected = float(reference_logits(folder, kept).softmax(-1)[1])
    assert verdicts[0].values["toxic"] == pytest.approx(expected, abs=1e-5)


def test_special_tokens_in_a_text_are_plain_text(tmp_path):
    folder = build(tmp_path, ["no", "toxic"])
    verdict = load_scorer(folder).score(["you [SEP] fool"])[0]
    expected = float(reference_logits(folder, encode_by_hand("you [ sep ] fool")).softmax(-1)[1])
    assert verdict.values["toxic"] == pytest.approx(expected, abs=1e-5)


def test_a_text_that_cant_be_encoded_costs_only_itself(tmp_path):
    scorer = load_scorer(build(tmp_path, ["no", "toxic"]))
    good, bad, also = score_texts(scorer, ["you fool", "\ud800", "\0a"])
    assert good.reason is None
    assert also.reason is None
    assert bad.failed


@pytest.mark.parametrize("padding", [None, "[PAD]"])
def test_a_decoder_finds_its_last_token(tmp_path, texts, padding):
    """The model's config names no padding id; without a padding token batches are of one text."""
    sizes = {"vocab_size": len(VOCABULARY), "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**sizes, id2label={0: "no", 1: "hate"}, bos_token_id=2, eos_token_id=3)
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token=padding).save_pretrained(tmp_path)
    for text, verdict in zip(texts, load_scorer(str(tmp_path)).score(texts), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encode_by_hand(text)[1:-1]])).logits
        assert verdict.values == pytest.approx({"hate": float(logits[0].softmax(-1)[1])}, abs=1e-5)


def test_positions_of_roberta_start_after_the_padding_id(tmp_path):
    config = RobertaConfig(vocab_size=len(VOCABULARY), max_position_embeddings=20, pad_token_id=0, **SMALL)
    config.id2label = {0: "no", 1: "hate"}
    folder = build(tmp_path, [], model=RobertaForSequenceClassification(config))
    scorer = load_scorer(folder)
    assert scorer.max_length == 19
    assert score_texts(scorer, ["fool " * 100])[0].reason is None


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (["toxic", "severe_toxic", "obscene"], 0),
        (["nothate", "hate"], 1),
        (["NON_HATE", "HATE"], 1),
        (["non-offensive", "offensive"], 1),
        (["Hate-Speech", "normal"], 0),
        (["toxicity"], 0),
    ],
)
def test_the_label_that_says_toxic(names, index):
    assert choose_label("m", names, None) == index


@pytest.mark.parametrize(
    "names",
    [
        ["LABEL_0", "LABEL_1"],
        ["hate", "offensive", "neither"],
        ["non-toxic", "nothate"],
        ["LABEL_0"],
        ["a", "a"],
    ],
)
def test_an_ambiguous_label_lists_all(names):
    with pytest.raises(ScorerError) as caught:
        choose_label("m", names, None)
    assert all(repr(name) in str(caught.value) for name in names)


def test_a_label_by_name():
    assert choose_label("m", ["LABEL_0", "LABEL_1"], "LABEL_0") == 0
    assert choose_label("m", ["Toxic", "Clean"], "toxic") == 0
    assert choose_label("m", ["hate", "Hate"], "Hate") == 1
    for names, wanted in [(["hate", "Hate"], "HATE"), (["a", "b"], "toxicity"), (["a", "b"], "")]:
        with pytest.raises(ScorerError, match="ID#label"):
            choose_label("m", names, wanted)


def test_a_folder_may_have_a_number_sign_in_its_name(tmp_path):
    (tmp_path / "run#3").mkdir()
    assert split_label(f"{tmp_path}/run#3") == (f"{tmp_path}/run#3", None)
    assert split_label(f"{tmp_path}/run#3#toxic") == (f"{tmp_path}/run#3", "toxic")
    assert split_label("owner/name") == ("owner/name", None)


def test_pickled_weights_are_refused(tmp_path):
    folder = build(tmp_path, ["no", "toxic"])
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ScorerError, match=r"pickled weights .* are refused"):
        load_scorer(folder)


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    config = BertConfig(vocab_size=len(VOCABULARY), id2label={0: "no", 1: "toxic"}, **SMALL)
    folder = build(tmp_path, [], model=BertModel(config))
    with pytest.raises(ScorerError, match=r"classifier\.weight"):
        load_scorer(folder)


def test_broken_folders_give_one_line(tmp_path):
    for name in ("nothing", "truncated", "config", "shape"):
        (tmp_path / name).mkdir()
        if name != "nothing":
            build(tmp_path / name, ["no", "toxic"])
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "config" / "config.json").write_text('{"model_type": "no-such-model"}')
    tensors = load_file(tmp_path / "shape" / "model.safetensors")
    tensors["classifier.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "shape" / "model.safetensors", metadata={"format": "pt"})
    for name in ("nothing", "truncated", "config", "shape"):
        with pytest.raises(ScorerError) as caught:
            ClassifierScorer(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_numbers_give_no_score(tmp_path):
    folder = build(tmp_path, ["no", "toxic"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["classifier.bias"][:] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    verdict = score_texts(load_scorer(folder), ["you fool"])[0]
    assert verdict.failed
    assert "nan" in verdict.reason


def test_the_revision_is_that_of_the_weights(tmp_path):
    (tmp_path / "a").mkdir()
    folder = build(tmp_path / "a", ["no", "toxic"])
    shutil.copytree(folder, tmp_path / "b")
    expected = hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert load_scorer(folder).revision == expected
    assert load_scorer(str(tmp_path / "b")).revision == expected
