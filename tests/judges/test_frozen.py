"""Lower layers that are frozen and read each text once: the same network, the same gradients, less work."""

from __future__ import annotations

import copy
import csv
import itertools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small_encoders import small_encoder
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    MPNetConfig,
    RobertaConfig,
)

from rewardlm.config import build
from rewardlm.errors import ConfigError, ModelError
from rewardlm.judges.frozen import FrozenLayers, frozen_names, pad_states
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.train import train_judge
from rewardlm.scoring.classifier import ClassifierScorer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda **more: LlamaConfig(**SMALL, **more),
    "mpnet": lambda **more: MPNetConfig(**SMALL, **more, max_position_embeddings=80),
    "roberta": lambda **more: RobertaConfig(**SMALL, **more, max_position_embeddings=80),
}
ROWS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def encoder(family: str, folder: Path) -> str:
    return small_encoder(FAMILIES[family], folder)


def batch(padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((len(ROWS), 6), padding)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(ROWS):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


@pytest.mark.parametrize("family", list(FAMILIES))
def test_kept_states_give_the_whole_networks_logits_and_gradients(family: str, tmp_path: Path) -> None:
    """Against the whole network under autograd, whose lower layers simply get no update."""
    base = encoder(family, tmp_path / "encoder")
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32).eval()
    whole.config.pad_token_id = 1
    part = copy.deepcopy(whole)
    ids, mask = batch(1)
    expected = whole(input_ids=ids, attention_mask=mask).logits
    expected.square().sum().backward()

    frozen = FrozenLayers(part, 2)
    states = frozen.states(ROWS, 1)
    assert [tuple(state.shape) for state in states] == [(6, 32), (2, 32), (4, 32)]
    frozen.take_out()
    names = dict(whole.named_parameters())
    frozen.feed(pad_states(states, 6))
    found = part(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)  # states are kept in bfloat16
    found.square().sum().backward()
    frozen.restore()
    trained = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
    below = frozen_names(part, 2)
    assert len(below) == 2
    assert trained
    assert not [name for name in trained if any(name.startswith(f"{layer}.") for layer in below)]
    for name, parameter in trained.items():
        reference = names[name].grad
        assert reference is not None, name
        assert parameter.grad is not None, name
        assert (parameter.grad - reference).norm() <= 0.06 * reference.norm() + 1e-6, name
    # Whole again: without states that are fed.
    torch.testing.assert_close(part(input_ids=ids, attention_mask=mask).logits, expected)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.csv"
    words = ["today", "again", "in this town", "as always", "after work", "on the bus", "at home", "for once"]
    said = {"a kind thought": 0, "thank you all": 0, "you stupid idiot": 1, "shut up moron": 1}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "toxicity"])
        for (opening, label), one, two in itertools.product(said.items(), words, words):
            writer.writerow([f"{opening} {one} {two}", label])
    return path


def wanted(data: Path, base: str, **more: object) -> JudgeTrainSettings:
    usual = {
        "labels": ["toxicity"], "epochs": 3, "batch_size": 16, "precision": "float32", "device": "cpu",
        "validation": 0.2, "lora": {"r": 4, "alpha": 8}, "learning_rate": 5e-3,
    }  # fmt: skip
    return JudgeTrainSettings(data=[str(data)], encoder=base, **{**usual, **more})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tuning"), [("llama", "lora"), ("mpnet", "full"), ("mpnet", "lora"), ("roberta", "full")]
)
def test_a_judge_learns_on_frozen_layers_and_leaves_them_alone(
    family: str, tuning: str, data: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    base = encoder(family, tmp_path / "encoder")
    rate = 5e-3 if tuning == "lora" else 2e-3
    out = train_judge(wanted(data, base, frozen=2, tuning=tuning, learning_rate=rate), tmp_path / "judge").path
    scorer = ClassifierScorer(str(out), precision="float32")
    kind, rude = (verdict.values["toxicity"] for verdict in scorer.score(["thank you all at home", "shut up moron"]))
    assert kind < 0.5 < rude
    before = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    same = dict(before.named_parameters())
    changed = {
        name
        for name, parameter in scorer._model.named_parameters()
        if "classifier" not in name and "score" not in name and not torch.equal(parameter, same[name])
    }
    assert changed
    lower = frozen_names(before, 2)
    assert not [name for name in changed if "embed" in name or any(name.startswith(f"{one}.") for one in lower)]


@pytest.mark.slow
def test_a_judge_on_the_lowest_layers_loads_by_its_record(data: Path, tmp_path: Path) -> None:
    """With transformers and peft, an encoder that was cut to as many layers gives the same."""
    torch.set_num_threads(1)
    base = encoder("llama", tmp_path / "encoder")
    out = train_judge(wanted(data, base, layers=3, frozen=1), tmp_path / "judge").path
    assert json.loads((out / "judge.json").read_text())["encoder_layers"] == 3
    scorer = ClassifierScorer(str(out), precision="float32")
    assert len(scorer._model.model.layers) == 3
    kind, rude = (verdict.values["toxicity"] for verdict in scorer.score(["thank you all at home", "shut up moron"]))
    assert kind < 0.5 < rude
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = AutoConfig.from_pretrained(base, num_hidden_layers=3, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    cut = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(cut, str(out)).eval()
    with torch.no_grad():
        logits = adapted(**tokenizer("shut up moron", return_tensors="pt")).logits
    assert float(logits.sigmoid()) == pytest.approx(rude, abs=1e-5)
    # A judge that is taught by it says on which layers it stands, and so does its card.
    assert "(its lowest 3 layers)" in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_killed_training_on_frozen_layers_goes_on_as_if_nothing_had_happened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewardlm.judges.trainer import Watch

    torch.set_num_threads(1)
    base = encoder("llama", tmp_path / "encoder")
    settings = wanted(data, base, frozen=2, epochs=2)
    whole = train_judge(settings, tmp_path / "whole").path

    save = Watch.on_save

    def killed(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        save(self, args, state, control, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_save", killed)
        with pytest.raises(KeyboardInterrupt):
            train_judge(settings, tmp_path / "again")
    again = train_judge(settings, tmp_path / "again").path
    texts = ["thank you all at home", "shut up moron", "what a day"]
    scores = [
        [verdict.values["toxicity"] for verdict in ClassifierScorer(str(folder), precision="float32").score(texts)]
        for folder in (whole, again)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_too_many_frozen_layers_are_refused(data: Path, tmp_path: Path) -> None:
    base = encoder("llama", tmp_path / "encoder")
    with pytest.raises(ModelError, match="frozen is 4, and the encoder has 4 layers"):
        train_judge(wanted(data, base, frozen=4), tmp_path / "judge")
    for overrides, said in (
        (["layers=2", "frozen=2"], "leave at least one"),
        (["layers=2", "tuning=full"], "tuning=lora"),
    ):
        with pytest.raises(ConfigError, match=said):
            build(JudgeTrainSettings, overrides=["data=starter", *overrides])
