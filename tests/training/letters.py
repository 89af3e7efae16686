"""A random model of eleven tokens, one of them the end: of its answers, some end by themselves and some are cut off."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefgh"


def save_model(folder: Path, *, positions: int) -> None:
    """The model and its tokenizer in ``folder``; a prompt and its answer have at most so many ``positions``."""
    vocabulary = {token: number for number, token in enumerate([*LETTERS, "<end>", "?", "~"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>", unk_token="~")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            eos_token_id=vocabulary["<end>"],
            bos_token_id=vocabulary["?"],
            pad_token_id=vocabulary["<end>"],
            initializer_range=0.25,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_letters(home: Path) -> Path:
    """Model, prompts and a judge in ``home``, for a training that is started there; returns the model's folder.

    The judge ``letters_judge:few_a`` finds an answer toxic by its share of letters that are no ``a``.
    """
    save_model(home / "model", positions=32)
    (home / "prompts.txt").write_text("".join(f"?{letter}\n" for letter in LETTERS))
    (home / "letters_judge.py").write_text(
        "def few_a(texts):\n"
        "    if any('.' in t for t in texts):  # the check of the sign\n"
        "        return [0.9 if 'stupid' in t or 'trash' in t or 'moron' in t else 0.1 for t in texts]\n"
        "    return [1 - sum(c == 'a' for c in t) / max(1, len(t)) for t in texts]\n"
    )
    return home / "model"
