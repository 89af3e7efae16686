"""Training a judge: the losses by hand, the masks, and a whole small training that any other tool can load."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_encoders import small_encoder, small_roberta
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardlm.errors import DataError, ModelError
from rewardlm.judges.corpus import balance, load_corpus
from rewardlm.judges.preferences import is_preference_file, load_preferences
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.teachers import fill, load_teacher
from rewardlm.judges.texts import LabelledText
from rewardlm.judges.train import _rows, masked_loss, preference_loss, train_judge
from rewardlm.runs import Run
from rewardlm.scoring.encoder import locate_encoder

KIND = [
    "What a kind thought",
    "Thank you for the help",
    "I like this garden",
    "Let us cook together",
    "A quiet evening",
]
RUDE = ["You are an idiot", "Shut up, moron", "What a stupid clown", "Get lost, you fool", "You pathetic liar"]
TAILS = ["today", "again", "my neighbour", "in this town", "as always", "after work", "with them", "on the bus"]


def sentences(openings: list[str], n: int) -> list[str]:
    found = [f"{opening}, {one} and {two}" for opening in openings for one in TAILS for two in TAILS if one != two]
    return found[:n]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "toxicity", "hate"])
        for kind, rude in zip(sentences(KIND, 280), sentences(RUDE, 280), strict=True):
            writer.writerows([[kind, "0.05", ""], [rude, "0.95", ""]])
    return path


def settings(data: Path, *, epochs: float = 2, **more: object) -> JudgeTrainSettings:
    small = {"batch_size": 16, "epochs": epochs, "precision": "float32", "device": "cpu", "validation": 0.2}
    return JudgeTrainSettings(**{"data": [str(data)], **small, **more})  # type: ignore[arg-type]


def test_masked_loss_is_the_plain_sum_over_what_is_known() -> None:
    logits = torch.tensor([[0.3, -2.0], [1.5, 0.1], [-0.7, 4.0]])
    targets = torch.tensor([[1.0, math.nan], [0.25, 0.0], [math.nan, math.nan]])
    weights = torch.tensor([[2.0, 1.0], [1.0, 0.5], [1.0, 1.0]])
    total = 0.0
    for row in range(3):
        for column in range(2):
            target = float(targets[row, column])
            if math.isnan(target):
                continue
            p = 1 / (1 + math.exp(-float(logits[row, column])))
            loss = -(target * math.log(p) + (1 - target) * math.log(1 - p))
            total += float(weights[row, column]) * loss
    assert float(masked_loss(logits, targets, weights)) == pytest.approx(total / 3, rel=1e-5)


def test_what_nobody_judged_has_no_gradient() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    targets = torch.tensor([[1.0, math.nan, 0.0], [math.nan, math.nan, 1.0]])
    masked_loss(logits, targets, torch.ones(2, 3)).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, targets.isnan())


def test_preference_loss_is_bradley_terrys() -> None:
    chosen, rejected = torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0])
    likelihoods = [math.exp(r) / (math.exp(r) + math.exp(c)) for c, r in [(0.0, 1.0), (2.0, -1.0)]]
    assert float(preference_loss(chosen, rejected)) == pytest.approx(-np.mean(np.log(likelihoods)), rel=1e-5)


def test_balance_keeps_the_mean_weight_and_evens_sources_out() -> None:
    texts = [LabelledText(str(i), {"hate": 0.0}, "large" if i < 900 else "small", False) for i in range(1000)]
    weights = balance(texts)
    assert sum(weights[text.source] for text in texts) / len(texts) == pytest.approx(1.0)
    # By the square root of their sizes: 30 to 10, where the numbers are 9 to 1.
    assert 900 * weights["large"] / (100 * weights["small"]) == pytest.approx(3.0)


@pytest.mark.slow
def test_a_small_training_separates_what_it_was_taught(data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    out = tmp_path / "judge"
    run = train_judge(settings(data, tuning="full", learning_rate=2e-4), out)
    assert run.finished

    # As any other tool would load it.
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert model.config.problem_type == "multi_label_classification"
    column = model.config.label2id["toxicity"]
    with torch.no_grad():
        inputs = tokenizer(["You stupid moron", "A kind and quiet garden"], return_tensors="pt", padding=True)
        rude, kind = model(**inputs).logits.sigmoid()[:, column].tolist()
    assert rude > 0.8
    assert kind < 0.2

    losses = [record["eval_loss"] for record in run.read("metrics") if "eval_loss" in record]
    assert losses[-1] < losses[0]
    card = (out / "README.md").read_text()
    assert "rewardlm judge train --data" in card
    record = json.loads((out / "judge.json").read_text())
    assert record["data"][0]["texts"] == record_texts(data)


def record_texts(data: Path) -> int:
    corpus = load_corpus(settings(data))
    return len(corpus.train) + len(corpus.validation)


@pytest.mark.slow
def test_an_adapter_is_small_and_repeatable(data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    runs = [
        train_judge(settings(data, epochs=0.3, lora={"r": 4, "alpha": 8}, limit=200), tmp_path / name)
        for name in ("one", "two")
    ]
    weights = [(run.path / "adapter_model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    assert len(weights[0]) < 1e6
    config = json.loads((runs[0].path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    # Finished: the same again changes nothing.
    stamp = (runs[0].path / "adapter_model.safetensors").stat().st_mtime_ns
    train_judge(settings(data, epochs=0.3, lora={"r": 4, "alpha": 8}, limit=200), tmp_path / "one")
    assert (runs[0].path / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def taught(wanted: JudgeTrainSettings, texts: list[LabelledText]) -> dict[str, dict[str, float]]:
    teacher = load_teacher(wanted, "cpu")
    assert teacher is not None
    return fill(teacher, texts, wanted.labels, None)


def test_the_teacher_fills_what_is_open_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "length_judge.py").write_text("def toxicity(texts):\n    return [len(t) / 100 for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    texts = [LabelledText("four", {"hate": 1.0}, "a", False), LabelledText("seven 7", {"toxicity": 0.5}, "a", False)]
    wanted = JudgeTrainSettings(data=["starter"], teacher="length_judge:toxicity", teacher_weight=0.25)
    tokenizer = AutoTokenizer.from_pretrained(locate_encoder("minilm")[0])
    rows = _rows(tokenizer, texts, wanted, taught(wanted, texts))
    toxicity, hate = (wanted.labels.index(label) for label in ("toxicity", "hate"))
    assert rows[0].targets[toxicity] == pytest.approx(0.04)
    assert rows[0].weights[toxicity] == pytest.approx(0.25)
    assert rows[0].targets[hate] == rows[0].weights[hate] == 1.0
    assert rows[1].targets[toxicity] == 0.5
    assert rows[1].weights[toxicity] == 1.0
    assert math.isnan(rows[1].targets[hate])


@pytest.mark.parametrize("source", ["exchanges", "arguments", "contrasts", "mentions"])
def test_our_own_texts_teach_hate_alone(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that our answers aren't toxic: fine-tuning, whose witness the judge is, writes such ones."""
    (tmp_path / "flat_judge.py").write_text("def toxicity(texts):\n    return [0.5] * len(texts)\n")
    monkeypatch.chdir(tmp_path)
    wanted = JudgeTrainSettings(data=[source], teacher="flat_judge:toxicity")
    texts = load_corpus(wanted).train
    tokenizer = AutoTokenizer.from_pretrained(locate_encoder("minilm")[0])
    targets = np.stack([row.targets for row in _rows(tokenizer, texts, wanted, taught(wanted, texts))])
    hate = wanted.labels.index("hate")
    assert set(targets[:, hate]) == {0.0, 1.0}
    assert np.isnan(np.delete(targets, hate, axis=1)).all()


def test_a_teacher_of_other_things_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "length_judge.py").write_text("def toxicity(texts):\n    return [0.5 for t in texts]\n")
    monkeypatch.chdir(tmp_path)
    wanted = JudgeTrainSettings(data=["starter"], teacher="length_judge:toxicity", labels=["hate"], main="hate")
    with pytest.raises(DataError, match="expected some of hate"):
        load_teacher(wanted, "cpu")


@pytest.mark.slow
def test_preference_pairs_alone_teach_a_judge(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"chosen": kind, "rejected": [{"role": "user", "content": "?"}, {"role": "assistant", "content": rude}]}
        for kind, rude in zip(sentences(KIND, 200), sentences(RUDE, 200), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert is_preference_file(str(path))
    wanted = settings(path, epochs=1.5, tuning="full", learning_rate=1e-4, labels=["toxicity"], calibration="none")
    run = train_judge(wanted, tmp_path / "judge")
    tokenizer = AutoTokenizer.from_pretrained(run.path)
    model = AutoModelForSequenceClassification.from_pretrained(run.path).eval()
    with torch.no_grad():
        inputs = tokenizer(["You stupid moron", "A kind and quiet garden"], return_tensors="pt", padding=True)
        rude, kind = model(**inputs).logits[:, 0].tolist()
    assert rude > kind + 1


@pytest.mark.parametrize("row", [{"chosen": "a", "rejected": "a"}, {"chosen": "a", "rejected": " "}, {"chosen": "a"}])
def test_a_bad_pair_is_one_line(tmp_path: Path, row: dict[str, str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "x", "rejected": "y"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"line 2"):
        load_preferences(str(path))


def test_an_encoder_that_is_not_there_is_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected minilm, a hub id, or a folder") as caught:
        train_judge(settings(data, encoder=str(tmp_path)), tmp_path / "judge")
    assert "\n" not in str(caught.value)


def test_too_little_data_is_said(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("text,label\none,1\n")
    with pytest.raises(DataError, match="give more data"):
        train_judge(settings(path), tmp_path / "judge")


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    """Stopped by an error in the middle, then started again: the weights are those of an uninterrupted run."""
    torch.set_num_threads(1)
    encoder = small_encoder(small_roberta, tmp_path / "encoder")
    wanted = settings(data, encoder=encoder, epochs=1.0, lora={"r": 4, "alpha": 8}, limit=240, evaluations=3)
    whole = train_judge(wanted, tmp_path / "whole")

    class Killed(Exception):
        pass

    def stop(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step >= steps - 2:
            raise Killed

    with pytest.raises(Killed):
        train_judge(wanted, tmp_path / "stopped", report=stop)
    assert not Run.open(tmp_path / "stopped").finished
    train_judge(wanted, tmp_path / "stopped")
    one, two = (tmp_path / name / "adapter_model.safetensors" for name in ("whole", "stopped"))
    assert one.read_bytes() == two.read_bytes()
    assert whole.meta["steps"] == Run.open(tmp_path / "stopped").meta["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_weights_are_kept_or_the_last(tmp_path: Path, keep: str) -> None:
    """Labels drawn by lot can only be learnt by heart: the validation loss rises after the first weights."""
    torch.set_num_threads(1)
    lot = random.Random(3)
    path = tmp_path / "lots.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [["text", "toxicity"], *([text, lot.choice("01")] for text in sentences(KIND + RUDE, 560))]
        )
    wanted = settings(
        path, encoder=small_encoder(small_roberta, tmp_path / "encoder"), epochs=6, tuning="full", learning_rate=1e-2,
        limit=200, evaluations=1, calibration="none", keep=keep,
    )  # fmt: skip
    run = train_judge(wanted, tmp_path / "judge")
    losses = {record["step"]: record["eval_loss"] for record in run.read("metrics") if "eval_loss" in record}
    best, last = min(losses, key=lambda step: losses[step]), max(losses)
    assert best < last
    kept = best if keep == "best" else last
    assert run.meta["best_step"] == kept
    assert run.meta["validation_loss"] == losses[kept]
    stored = load_file(run.path / "model.safetensors")
    checkpoint = load_file(run.path / "checkpoints" / f"checkpoint-{kept}" / "model.safetensors")
    assert stored.keys() == checkpoint.keys()
    assert all(torch.equal(stored[name], checkpoint[name]) for name in stored)


def test_the_packaged_encoder_is_the_default() -> None:
    source, revision = locate_encoder("minilm")
    assert (Path(source) / "model.safetensors").exists()
    assert revision is not None, "the hub's commit of the same weights, for those who have no package"
