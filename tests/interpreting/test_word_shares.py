"""Tokens to words: nothing is lost, kinds are right, and entropies are those known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from rewardlm.config import ModelSettings
from rewardlm.interpreting.word_shares import by_word, entropy_bits, kl_bits, pieces, share_of_kinds, shares, words
from rewardlm.models.load import Policy, load_policy
from rewardlm.types import Message


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))


def encoded(policy: Policy, *turns: str) -> list[int]:
    roles = ("user", "assistant")
    return policy.chat.encode_prompt([Message(roles[i % 2], text) for i, text in enumerate(turns)])  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["They are all the same.", "naïve 😀👩‍👩‍👧 Grüße", "a\n\n  b", "中文字", "x"])
def test_pieces_are_the_text_cut_up(policy: Policy, text: str) -> None:
    ids = encoded(policy, text)
    found = pieces(policy.tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == policy.tokenizer.decode(ids)
    assert text in "".join(found)


def test_words_cover_every_token_once_in_order(policy: Policy) -> None:
    prompt = encoded(policy, "They ruin everything, 😀 always!", "Do they?", "Yes they do.")
    response = policy.tokenizer("People differ, naïve one.", add_special_tokens=False)["input_ids"]
    response = [*response, policy.tokenizer.eos_token_id]
    found = words(policy.tokenizer, prompt, response, ("They ruin everything, 😀 always!", "Do they?", "Yes they do."))
    assert [at for word in found for at in range(word.start, word.end)] == list(range(len(prompt) + len(response)))
    by_kind = {kind: [word.text.strip() for word in found if word.kind == kind] for kind in ("prompt", "answer")}
    assert by_kind["prompt"] == ["They", "ruin", "everything,", "😀", "always!", "Do", "they?", "Yes", "they", "do."]
    assert by_kind["answer"] == ["People", "differ,", "naïve", "one.", "<|im_end|>"]
    template = "".join(word.text for word in found if word.kind == "template")
    assert template.replace("\n", "") == "<|im_start|>user<|im_end|>" + (
        "<|im_start|>assistant<|im_end|><|im_start|>user<|im_end|><|im_start|>assistant"
    )


def test_a_word_of_the_template_in_a_prompt_is_the_prompts(policy: Policy) -> None:
    prompt = encoded(policy, "user")
    (found,) = [word for word in words(policy.tokenizer, prompt, [], ("user",)) if word.kind == "prompt"]
    assert policy.tokenizer.decode(prompt[: found.start]) == "<|im_start|>user\n"


def test_texts_that_are_not_found_leave_all_to_the_prompt(policy: Policy) -> None:
    prompt = encoded(policy, "Something")
    assert {word.kind for word in words(policy.tokenizer, prompt, [], ("another",))} == {"prompt"}


def test_scores_of_words_are_sums_of_their_tokens(policy: Policy) -> None:
    prompt = encoded(policy, "Unbelievably extraordinary people")
    groups = words(policy.tokenizer, prompt, [], ("Unbelievably extraordinary people",))
    assert len(groups) < len(prompt)
    scores = np.random.default_rng(0).normal(size=(3, len(prompt)))
    summed = by_word(scores, groups)
    for k in range(3):
        for at, word in enumerate(groups):
            assert summed[k, at] == pytest.approx(sum(scores[k, i] for i in range(word.start, word.end)))
    of_kinds = share_of_kinds(shares(summed), groups)
    assert sum(of_kinds.values()) == pytest.approx(np.ones(3))
    assert (of_kinds["answer"] == 0).all()


def test_entropies_known_by_hand() -> None:
    rows = np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.125, 0.125]])
    assert entropy_bits(rows) == pytest.approx([0, 2, 1, 1.75])
    assert entropy_bits(shares(np.array([[-3.0, 3.0], [0.0, -7.0]]))) == pytest.approx([1, 0])
    assert np.isnan(entropy_bits(shares(np.zeros((1, 3)))))


def test_divergence_against_scipy_and_by_hand() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(6), 5), rng.dirichlet(np.ones(6), 5)
    n = np.full(5, 6)
    smoothed = [(part + 1e-4) / (part + 1e-4).sum(1, keepdims=True) for part in (p, q)]
    assert kl_bits(p, q, n) == pytest.approx(entropy(smoothed[0], smoothed[1], base=2, axis=1))
    assert kl_bits(p, p, n) == pytest.approx(np.zeros(5), abs=1e-12)
    # Half and half against a quarter and three quarters: 0.5·log2(2) + 0.5·log2(2/3).
    by_hand = 0.5 * 1 + 0.5 * np.log2(2 / 3)
    assert kl_bits(np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]]), np.array([2])) == pytest.approx(by_hand, abs=1e-3)
    # Words that aren't there yet don't count.
    assert kl_bits(np.array([[0.5, 0.5, 0]]), np.array([[0.25, 0.75, 0]]), np.array([2])) == pytest.approx(
        by_hand, abs=1e-3
    )
