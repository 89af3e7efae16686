"""Conversations of random Unicode through chat templates: lengths, masks, no control token from a text, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardlm.config import ModelSettings
from rewardlm.data.chat import ChatFormat, truncate_history
from rewardlm.models.load import load_policy
from rewardlm.types import Message

STEADY = settings(derandomize=True, deadline=None, max_examples=60)
# The marks of turns in rendered templates are taken out of texts (private-use characters).
MARKS = "\ue0f0\ue0f1"
PIECES = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|endoftext|>",
        "User:",
        "\nUser:",
        "{{ bos }}",
        "{% raw %}",
        "\u202e",
        "\u200d",
        "e\u0301",
    ]
)
TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | PIECES, max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """An optional system turn, then user and assistant in turn; the user's comes last."""
    found = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for number in range(2 * draw(st.integers(0, 2)) + 1):
        found.append(Message("user" if number % 2 == 0 else "assistant", draw(TEXTS)))
    return found


@pytest.fixture(scope="module", params=["auto", "plain"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    tokenizer: Any = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu")).tokenizer
    return ChatFormat(tokenizer, template=request.param)


def controls(chat: ChatFormat, ids: list[int]) -> list[str]:
    """The control tokens among the ids, in order."""
    special = set(chat.tokenizer.all_special_ids)
    special |= {number for number, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    return [chat.tokenizer.convert_ids_to_tokens(one) for one in ids if one in special]


def harmless(turns: list[Message]) -> list[Message]:
    return [Message(turn.role, "x") for turn in turns]


@given(turns=conversations(), answer=TEXTS)
@STEADY
def test_a_pair_is_the_prompt_and_then_the_answer(chat: ChatFormat, turns: list[Message], answer: str) -> None:
    prompt = chat.encode_prompt(turns)
    pair = chat.encode_pair(turns, Message("assistant", answer))
    assert len(pair.input_ids) == len(pair.completion_mask)
    assert pair.input_ids[: len(prompt)] == prompt
    assert pair.completion_mask == [0] * len(prompt) + [1] * (len(pair.input_ids) - len(prompt))
    assert sum(pair.completion_mask) >= 1, "the end of an answer is learnt, even of an empty one"


@given(turns=conversations(), answer=TEXTS)
@STEADY
def test_a_pair_that_was_cut_off_is_the_same_without_its_end(
    chat: ChatFormat, turns: list[Message], answer: str
) -> None:
    whole = chat.encode_pair(turns, Message("assistant", answer))
    cut = chat.encode_pair(turns, Message("assistant", answer), ended=False)
    assert cut.input_ids == whole.input_ids[: len(cut.input_ids)]
    assert cut.completion_mask == whole.completion_mask[: len(cut.input_ids)]
    end = chat.end_of_turn()
    assert whole.input_ids[-1] == (chat.tokenizer.eos_token_id if end is None else end)
    assert len(cut.input_ids) == len(whole.input_ids) - 1


@given(turns=conversations(), answer=TEXTS)
@STEADY
def test_no_text_becomes_a_control_token(chat: ChatFormat, turns: list[Message], answer: str) -> None:
    """The control tokens are those of the same conversation about nothing."""
    assert controls(chat, chat.encode_prompt(turns)) == controls(chat, chat.encode_prompt(harmless(turns)))
    pair = chat.encode_pair(turns, Message("assistant", answer))
    plain = chat.encode_pair(harmless(turns), Message("assistant", "x"))
    assert controls(chat, pair.input_ids) == controls(chat, plain.input_ids)


@given(answer=TEXTS)
@STEADY
def test_an_answer_comes_back_as_it_was(chat: ChatFormat, answer: str) -> None:
    """Without blanks around it and the marks in it; in the plain format up to where a user would speak."""
    pair = chat.encode_pair([Message("user", "x")], Message("assistant", answer))
    learnt = [one for one, mask in zip(pair.input_ids, pair.completion_mask, strict=True) if mask]
    expected = "".join(letter for letter in answer if letter not in MARKS).strip()
    for stop in chat.stop_strings:
        # The blank that the format puts before an answer may stand before its first line, too.
        expected = f" {expected}".split(stop)[0]
    assert chat.decode(learnt) == expected.strip()


@given(turns=conversations(), room=st.integers(1, 60))
@STEADY
def test_a_history_is_cut_to_its_room(chat: ChatFormat, turns: list[Message], room: int) -> None:
    whole = chat.encode_prompt(turns)
    ids, cut = truncate_history(chat, turns, room)
    assert len(ids) <= room
    assert len(ids) + cut == len(whole)
    assert cut > 0 or ids == whole
    # What stays is the end of a conversation that lacks nothing but its oldest turns; the system's stays in front.
    rules = [turn for turn in turns[:1] if turn.role == "system"]
    shorter = [[*rules, *turns[first:]] for first in range(len(rules), len(turns))]
    assert any(chat.encode_prompt(left)[-len(ids) :] == ids for left in shorter)
