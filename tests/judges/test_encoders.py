"""Judges on encoders of other shapes than BERT's: heads of several layers, poolers that are new, decoders."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small_encoders import small_encoder, small_roberta
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
)

from rewardlm.errors import ModelError, TrainingError
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.train import train_judge
from rewardlm.judges.trainer import head_of
from rewardlm.scoring.classifier import ClassifierScorer

WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "roberta": small_roberta,
    "distilbert": lambda **more: DistilBertConfig(**more, dim=32, hidden_dim=64, n_layers=2, n_heads=4),
    "electra": lambda **more: ElectraConfig(**WIDE, **more, embedding_size=32),
    "deberta_v2": lambda **more: DebertaV2Config(**WIDE, **more, pooler_hidden_size=32),
    "modernbert": lambda **more: ModernBertConfig(**WIDE, **more),
    "gpt2": lambda **more: GPT2Config(**more, n_embd=32, n_layer=2, n_head=4, n_positions=80),
    "llama": lambda **more: LlamaConfig(**WIDE, **more),
}
# What a classifier of each has that its base model hasn't.
FRESH = {
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "electra": ["classifier"],
    "deberta_v2": ["pooler", "classifier"],
    "modernbert": ["head", "classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
}
KIND = ["a kind thought", "thank you all", "we like gardens", "let us cook"]
RUDE = ["you stupid idiot", "shut up moron", "what a clown", "get lost fool"]
TAILS = ["today", "again", "in this town", "as always", "after work", "on the bus", "at home", "for once"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "toxicity", "hate"])
        for opening, one, two in itertools.product(KIND + RUDE, TAILS, TAILS):
            writer.writerow([f"{opening} {one} {two}", float(opening in RUDE), ""])
    return path


def encoder(family: str, folder: Path) -> str:
    """A random model of the family without a head."""
    return small_encoder(FAMILIES[family], folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_adapter_on_any_encoder_learns_and_loads_elsewhere(family: str, data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = encoder(family, tmp_path / "encoder")
    settings = JudgeTrainSettings(
        data=[str(data)], encoder=base, labels=["toxicity"], lora={"r": 4, "alpha": 8}, epochs=6, batch_size=16,
        learning_rate=5e-3, precision="float32", device="cpu", validation=0.2,
    )  # fmt: skip
    out = train_judge(settings, tmp_path / "judge").path

    scorer = ClassifierScorer(str(out), precision="float32")
    texts = [f"{opening} {tail} somewhere" for opening in KIND + RUDE for tail in TAILS[:3]]
    found = torch.tensor([verdict.values["toxicity"] for verdict in scorer.score(texts)])
    assert found[:12].max() < 0.5 < found[12:].min(), found

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(out)).eval()
    # PEFT names heads as they are usually called besides.
    assert set(adapted.peft_config["default"].modules_to_save) == {*FRESH[family], "classifier", "score"}
    tokenizer = AutoTokenizer.from_pretrained(base)
    for text, probability in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = adapted(**tokenizer(text, return_tensors="pt")).logits
        # The adapter is stored in half precision.
        assert float(logits.sigmoid()) == pytest.approx(float(probability), abs=1e-5), text


def classifier(family: str, labels: int, folder: Path) -> str:
    """As ``encoder``, with a head for ``labels`` labels, as somebody's classifier would be published."""
    encoder(family, folder)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels).save_pretrained(folder)
    return str(folder)


def assert_learns(base: str, data: Path, out: Path, **more: object) -> None:
    """A short training on the encoder ``base`` tells kind texts from rude ones."""
    torch.set_num_threads(1)
    chosen = {"lora": {"r": 4, "alpha": 8}, "learning_rate": 5e-3, **more}
    settings = JudgeTrainSettings(
        data=[str(data)], encoder=base, labels=["toxicity"], epochs=3, batch_size=16, precision="float32",
        device="cpu", validation=0.2, **chosen,
    )  # fmt: skip
    scorer = ClassifierScorer(str(train_judge(settings, out).path), precision="float32")
    kind, rude = (verdict.values["toxicity"] for verdict in scorer.score(["let us cook at home", "shut up moron"]))
    assert kind < 0.5 < rude


@pytest.mark.slow
@pytest.mark.parametrize(("family", "labels"), [("roberta", 3), ("roberta", 1), ("distilbert", 3), ("gpt2", 1)])
def test_a_classifier_of_other_labels_is_an_encoder_too(family: str, labels: int, data: Path, tmp_path: Path) -> None:
    assert_learns(classifier(family, labels, tmp_path / "encoder"), data, tmp_path / "judge")


@pytest.mark.slow
def test_a_decoder_without_a_padding_token_finds_its_last_words(data: Path, tmp_path: Path) -> None:
    base = encoder("gpt2", tmp_path / "encoder")
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        path = tmp_path / "encoder" / name
        found = json.loads(path.read_text())
        assert found.pop(key) is not None
        path.write_text(json.dumps(found))
    (tmp_path / "encoder" / "special_tokens_map.json").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(base).pad_token_id is None
    assert_learns(base, data, tmp_path / "judge")


def test_targets_that_are_no_layers_are_named(data: Path, tmp_path: Path) -> None:
    settings = JudgeTrainSettings(
        data=[str(data)],
        encoder=encoder("llama", tmp_path / "encoder"),
        labels=["toxicity"],
        lora={"targets": ["nose"]},
    )
    with pytest.raises(ModelError, match=r"lora\.targets \['nose'\]"):
        train_judge(settings, tmp_path / "judge")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_all_weights_can_be_trained_too(family: str, data: Path, tmp_path: Path) -> None:
    assert_learns(encoder(family, tmp_path / "encoder"), data, tmp_path / "judge", tuning="full", learning_rate=2e-3)


@pytest.mark.slow
def test_a_judge_of_one_label_is_asked_for_that(data: Path, tmp_path: Path) -> None:
    lines = data.read_text().replace("text,toxicity,hate", "text,hate,toxicity")
    (tmp_path / "hate.csv").write_text(lines)
    base = encoder("llama", tmp_path / "encoder")
    settings = JudgeTrainSettings(
        data=[str(tmp_path / "hate.csv")], encoder=base, labels=["hate"], main="hate", epochs=0.2, device="cpu"
    )
    out = str(train_judge(settings, tmp_path / "judge").path)
    for spec in (out, f"{out}#hate"):
        scorer = ClassifierScorer(spec)
        assert scorer.labels == ("hate",)
        assert scorer.score(["a kind thought"])[0].values.keys() == {"hate"}


def test_a_model_without_a_head_is_refused() -> None:
    model = AutoModel.from_config(FAMILIES["llama"](vocab_size=64))
    model.config.num_labels = 5
    with pytest.raises(TrainingError, match="no linear layer with 5 outputs"):
        head_of(model)
