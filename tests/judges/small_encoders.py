"""Encoders of a few thousand random weights, for tests of how judges are trained and not of what they know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, RobertaConfig

from rewardlm.config import ModelSettings
from rewardlm.models.load import load_policy


def small_roberta(**more: Any) -> PreTrainedConfig:
    """Two layers, 32 wide."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return RobertaConfig(**shape, **more, max_position_embeddings=80)


def small_encoder(shape: Callable[..., PreTrainedConfig], folder: Path) -> str:
    """A random model of this ``shape`` without a head, as its maker would publish it; it has tiny's tokenizer."""
    tokenizer = load_policy(ModelSettings(model="tiny", device="cpu")).tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModel.from_config(shape(vocab_size=len(tokenizer), **special), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
