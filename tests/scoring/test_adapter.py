"""Judges that were trained here, against plain transformers and peft; and files that must not become judges."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_judges import LABELS, needs_minilm, save_adapter, save_full, tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardlm.errors import NotAvailableError, ScorerError
from rewardlm.scoring import classifier, record
from rewardlm.scoring.classifier import ClassifierScorer
from rewardlm.scoring.encoder import MINILM, MINILM_REVISION, locate_encoder
from rewardlm.scoring.load import load_scorer
from rewardlm.scoring.record import Calibration, read_record
from rewardlm.scoring.scorer import cuts, score_texts

SENTENCES = [
    "You are a kind friend.",
    "Shut up, you fool!",
    "The library opens at nine and closes at six, except on the days on which it does not open at all.",
    "No.",
    "I see it differently: most of them work hard, pay their taxes and want to be left in peace, as you do.",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def judge(tmp_path: Path, encoder: str) -> Path:
    return Path(save_adapter(tmp_path / "judge", encoder))


@pytest.fixture(scope="module")
def minilm_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    return Path(save_adapter(folder, locate_encoder("minilm")[0], name=MINILM, half=True, max_length=128))


def plain(folder: Path, base: str, texts: list[str], *, max_length: int = 512) -> torch.Tensor:
    """Probabilities by peft's own loading, unmerged, one text at a time without padding; Float[N, L]."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            rows.append(adapted(**inputs).logits[0])
    return torch.stack(rows).sigmoid()


def distance(folder: Path, base: str, scorer: ClassifierScorer, texts: list[str]) -> float:
    expected = plain(folder, base, texts)
    found = torch.tensor([[verdict.values[label] for label in LABELS] for verdict in scorer.score(texts)])
    assert expected.std(0).min() > 0.01, "the texts must differ, or everything is near everything"
    return float((found - expected).abs().max())


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@needs_minilm
def test_an_adapter_on_minilm_equals_peft(minilm_judge: Path) -> None:
    base = locate_encoder("minilm")[0]
    scorer = ClassifierScorer(str(minilm_judge), precision="float32")
    assert (scorer.labels, scorer.max_length) == (("toxicity", "insult", "hate"), 128)
    assert distance(minilm_judge, base, scorer, SENTENCES) < 1e-5
    weights = (minilm_judge / "adapter_model.safetensors").read_bytes()
    assert scorer.revision == f"{hashlib.sha256(weights).hexdigest()}@{MINILM_REVISION}"


@pytest.mark.slow
@needs_minilm
def test_half_precision_moves_probabilities_little_and_alone_as_in_company(minilm_judge: Path) -> None:
    base = locate_encoder("minilm")[0]
    scorer = ClassifierScorer(str(minilm_judge), precision="bfloat16")
    assert scorer.precision == "bfloat16"
    draw = random.Random(0)
    words = " ".join(SENTENCES).split()
    texts = [" ".join(draw.choices(words, k=n)) for n in (1, 2, 3, 8, 8, 9, 20, 21, 60)]
    assert 0 < distance(minilm_judge, base, scorer, texts) < 0.01
    together = [verdict.values["toxicity"] for verdict in scorer.score(texts)]
    alone = [scorer.score([text])[0].values["toxicity"] for text in texts]
    others = scorer.score([*SENTENCES, *texts[::-1]])
    backwards = [verdict.values["toxicity"] for verdict in others[len(SENTENCES) :]][::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert [verdict.values["toxicity"] for verdict in scorer.score(texts)] == together


@pytest.mark.parametrize("able", [True, False])
def test_the_precision_is_chosen_for_judges_of_ours_alone(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(classifier, "_multiplies_in_bf16", lambda device: able)
    assert ClassifierScorer(str(judge)).precision == ("bfloat16" if able else "float32")
    assert ClassifierScorer(str(judge), precision="float32").precision == "float32"
    others = save_full(tmp_path / "others")
    assert ClassifierScorer(f"{others}#hate").precision == "float32"


def test_labels_by_name(judge: Path, encoder: str) -> None:
    assert load_scorer(str(judge)).labels == ("toxicity", "insult", "hate")
    hate = load_scorer(f"{judge}#hate")
    assert (hate.name, hate.labels) == (f"{judge}#hate", ("hate", "insult", "toxicity"))
    with pytest.raises(ScorerError, match=r"'insult', 'toxicity', 'hate', not 'threat'"):
        load_scorer(f"{judge}#threat")
    texts = ["you fool !", "hello friend ."]
    expected = plain(judge, encoder, texts)[:, LABELS.index("hate")]
    found = [verdict.values["hate"] for verdict in ClassifierScorer(f"{judge}#hate", precision="float32").score(texts)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_single_label_judge_has_shares(tmp_path: Path, encoder: str) -> None:
    folder = Path(save_adapter(tmp_path, encoder, problem_type="single_label_classification"))
    expected = plain(folder, encoder, ["you are a fool"]).logit().softmax(-1)[0]
    verdict = ClassifierScorer(str(folder), precision="float32").score(["you are a fool"])[0]
    assert verdict.values == pytest.approx({"toxicity": float(expected[1])}, abs=1e-5)


def test_the_longest_input_is_the_judges(tmp_path: Path, encoder: str) -> None:
    folder = Path(save_adapter(tmp_path, encoder, max_length=8))
    scorer = ClassifierScorer(str(folder), precision="float32")
    long = "you fool " + "kind " * 20
    assert cuts(scorer, [long, "you fool", "a a a a a a", "a a a a a a a", ""]) == [True, False, False, True, False]
    expected = plain(folder, encoder, [long], max_length=8)[0]
    assert [scorer.score([long])[0].values[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


def interpolate(x: list[float], y: list[float], p: float) -> float:
    if p <= x[0]:
        return y[0]
    for (x0, y0), (x1, y1) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        if p <= x1:
            return y0 + (y1 - y0) * (p - x0) / (x1 - x0)
    return y[-1]


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_isotonic_calibration_is_applied_to_its_label_alone(tmp_path: Path, encoder: str, kind: str) -> None:
    x, y = [0.1, 0.4, 0.45, 0.9], [0.0, 0.2, 0.2, 1.0]
    curves = {"hate": {"kind": "isotonic", "x": x, "y": y, "scale": 1.0, "shift": 0.0}}
    if kind == "adapter":
        folder = Path(save_adapter(tmp_path, encoder, calibration=curves))
    else:
        folder = Path(save_full(tmp_path, record={"calibration": curves, "max_length": 9}))
    scorer = ClassifierScorer(str(folder), precision="float32")
    draw = random.Random(3)
    texts = [" ".join(draw.choices(["you", "are", "a", "fool", "kind", "!"], k=n)) for n in range(1, 30)]
    if kind == "adapter":
        raw = plain(folder, encoder, texts)
    else:
        assert scorer.max_length == 9
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            inputs = [tokenizer(text, truncation=True, max_length=9, return_tensors="pt") for text in texts]
            raw = torch.cat([model(**row).logits.sigmoid() for row in inputs])
    verdicts = scorer.score(texts)
    hate = raw[:, LABELS.index("hate")].tolist()
    assert min(hate) < 0.4
    assert max(hate) > 0.45
    assert [v.values["hate"] for v in verdicts] == pytest.approx([interpolate(x, y, p) for p in hate], abs=3e-5)
    assert [v.values["toxicity"] for v in verdicts] == pytest.approx(raw[:, 1].tolist(), abs=1e-5)


def test_interpolation_keeps_order_and_nan() -> None:
    curve = Calibration("isotonic", x=(0.2, 0.5), y=(0.1, 0.7))
    found = curve.curve(torch.tensor([0.0, 0.2, 0.35, 0.5, 1.0, math.nan]).double().numpy())
    assert found[:5].tolist() == pytest.approx([0.1, 0.1, 0.4, 0.7, 0.7])
    assert math.isnan(found[5])


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({"kind": "platt", "scale": 2}, "'platt': expected isotonic"),
        ("isotonic", "expected isotonic"),
        ({"kind": "isotonic", "x": [0.1, 0.2], "y": [0.5, 0.4]}, "not monotone"),
        ({"kind": "isotonic", "x": [0.2, 0.2], "y": [0.4, 0.5]}, "not monotone"),
        ({"kind": "isotonic", "x": [0.1, 1.2], "y": [0.4, 0.5]}, "leaves"),
        ({"kind": "isotonic", "x": [0.1, 0.2], "y": [-0.1, 0.5]}, "leaves"),
        ({"kind": "isotonic", "x": [0.1], "y": [0.4, 0.5]}, "1 x and 2 y"),
        ({"kind": "isotonic", "x": [], "y": []}, "0 x and 0 y"),
        ({"kind": "isotonic", "x": [0.1, "a"], "y": [0.4, 0.5]}, "list of numbers"),
        ({"kind": "isotonic", "y": [0.4, 0.5]}, "list of numbers"),
        ({"kind": "isotonic", "x": [0.1, math.nan], "y": [0.4, 0.5]}, "list of numbers"),
    ],
)
def test_a_calibration_that_is_none_is_refused(judge: Path, curve: object, said: str) -> None:
    change(judge / "judge.json", calibration={"hate": curve})
    with pytest.raises(ScorerError, match="hate.*" + said):
        read_record(judge)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": []}, "labels"),
        ({"labels": "toxicity"}, "labels"),
        ({"labels": ["toxicity", "toxicity", "hate"]}, "same name"),
        ({"main": "threat"}, "main is 'threat'"),
        ({"problem_type": "regression"}, "problem_type"),
        ({"max_length": "long"}, "max_length"),
        ({"max_length": 2}, "max_length"),
        ({"calibration": {"threat": {}}}, "calibration"),
        ({"kind": "pairs"}, "judge of pairs"),
        ({"labels": ["toxicity", "hate"]}, "can't load the judge"),  # a head for three
    ],
)
def test_a_record_that_is_wrong_is_one_line(judge: Path, changes: dict[str, Any], said: str) -> None:
    change(judge / "judge.json", **changes)
    with pytest.raises(ScorerError, match=said) as caught:
        load_scorer(str(judge))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_record_that_is_no_json_is_one_line(judge: Path, text: str) -> None:
    (judge / "judge.json").write_text(text)
    with pytest.raises(ScorerError, match=r"judge\.json") as caught:
        load_scorer(str(judge))
    assert "\n" not in str(caught.value)


def test_an_adapter_without_its_record_has_no_labels(judge: Path) -> None:
    (judge / "judge.json").unlink()
    with pytest.raises(ScorerError, match=r"without judge\.json"):
        load_scorer(str(judge))


def break_weights(folder: Path, what: str, tmp_path: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    lora = next(name for name in tensors if "lora_B" in name)
    if what == "no head":
        tensors = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    elif what == "half a head":
        del tensors["base_model.model.classifier.bias"]
    elif what == "no lora":
        del tensors[lora]
    elif what == "nan":
        tensors["base_model.model.classifier.weight"][0, 0] = math.nan
    elif what == "infinite lora":
        tensors[lora][0, 0] = math.inf
    elif what == "too many":
        tensors["base_model.model.bert.encoder.layer.9.output.dense.lora_A.weight"] = tensors[lora].clone()
    save_file(tensors, path)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif what == "pickled":
        torch.save(load_file(path), folder / "adapter_model.bin")
        path.unlink()
    elif what == "wide base":
        wide = tiny_encoder(tmp_path / "wide", hidden_size=64)
        change(folder / "adapter_config.json", base_model_name_or_path=wide)
    elif what == "deep base":
        deep = tiny_encoder(tmp_path / "deep", num_hidden_layers=5)
        change(folder / "adapter_config.json", base_model_name_or_path=deep)
    elif what == "shallow base":
        shallow = tiny_encoder(tmp_path / "shallow", num_hidden_layers=1)
        change(folder / "adapter_config.json", base_model_name_or_path=shallow)
    elif what == "no base":
        change(folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    elif what == "no name of a base":
        change(folder / "adapter_config.json", base_model_name_or_path=None)
        change(folder / "judge.json", encoder=None)
    elif what == "pickled base":
        base = Path(tiny_encoder(tmp_path / "pickled"))
        torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
        (base / "model.safetensors").unlink()
        change(folder / "adapter_config.json", base_model_name_or_path=str(base))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no head", "can't load the judge|lacks weights"),
        ("half a head", "can't load the judge|lacks weights"),
        ("no lora", "lacks weights .*lora_B"),
        ("nan", r"not finite .*classifier\.weight"),
        ("infinite lora", "not finite .*lora_B"),
        ("too many", "no place for"),
        ("truncated", "can't load the judge"),
        ("pickled", "pickled adapters .* are refused"),
        ("wide base", "can't load the judge .*size mismatch"),
        ("deep base", "lacks weights"),
        ("shallow base", "no place for"),
        ("no base", "can't load the judge"),
        ("no name of a base", "names no base model"),
        ("pickled base", "pickled weights .* are refused"),
    ],
)
def test_weights_that_would_judge_at_random_are_refused(judge: Path, tmp_path: Path, what: str, said: str) -> None:
    load_scorer(str(judge))
    break_weights(judge, what, tmp_path)
    with pytest.raises(ScorerError, match=said) as caught:
        load_scorer(str(judge))
    assert "\n" not in str(caught.value)


def test_a_base_with_a_head_of_its_own_gets_the_judges(judge: Path, tmp_path: Path) -> None:
    """As after training on a published classifier of two other labels."""
    base = save_full(tmp_path / "base")
    two = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
    two.save_pretrained(base)
    change(judge / "adapter_config.json", base_model_name_or_path=base)
    scorer = ClassifierScorer(str(judge), precision="float32")
    three = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    adapted = PeftModel.from_pretrained(three, str(judge)).eval()
    with torch.no_grad():
        logits = adapted(**AutoTokenizer.from_pretrained(base)("you fool", return_tensors="pt")).logits[0]
    found = scorer.score(["you fool"])[0].values
    assert [found[label] for label in LABELS] == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)


def test_the_revision_names_adapter_and_base(judge: Path, encoder: str, tmp_path: Path) -> None:
    adapter, base = (
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (judge / "adapter_model.safetensors", Path(encoder) / "model.safetensors")
    )
    assert load_scorer(str(judge)).revision == f"{adapter}@{base}"


def test_a_whole_classifier_uses_its_record(tmp_path: Path) -> None:
    folder = save_full(tmp_path / "a", record={"max_length": 12})
    scorer = load_scorer(folder)
    assert (scorer.labels[0], scorer.max_length) == ("toxicity", 12)
    with pytest.raises(ScorerError, match="more than one"):
        load_scorer(save_full(tmp_path / "b"))  # toxicity or hate? only the record says
    with pytest.raises(ScorerError, match=r"judge\.json has the labels"):
        load_scorer(save_full(tmp_path / "c", record={"labels": ["toxicity", "hate", "insult"]}))


def test_the_shipped_judge_by_name(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "shipped_folder", lambda name: judge)
    starter, hate = load_scorer("starter"), load_scorer("starter#hate")
    assert (starter.name, starter.labels) == ("starter", ("toxicity", "insult", "hate"))
    assert (hate.name, hate.labels[0]) == ("starter#hate", "hate")
    texts = ["you are a fool", "hello friend"]
    assert score_texts(starter, texts) == score_texts(load_scorer(str(judge)), texts)
    with pytest.raises(ScorerError, match="starter has the labels"):
        load_scorer("starter#threat")


@pytest.mark.parametrize("name", ["starter", "starter#hate", "toxicity+hate", "mean(lexical,starter)"])
def test_a_copy_without_a_judge_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "shipped_folder", lambda name: None)
    with pytest.raises(NotAvailableError, match="ships no judge"):
        load_scorer(name)


def test_a_judge_may_move(judge: Path, tmp_path: Path) -> None:
    texts = ["you are a fool", "hello friend"]
    before = load_scorer(str(judge)).score(texts)
    shutil.move(judge, tmp_path / "moved")
    assert load_scorer(str(tmp_path / "moved")).score(texts) == before
