"""Sentences, and their offsets in UTF-16 code units, checked against Python's own UTF-16."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardlm.serving.sentences import sentences, utf16_length, whole


def test_a_text_of_nothing_but_marks_takes_no_longer_than_another() -> None:
    """Tried from every mark anew, these would take minutes."""
    begun = time.process_time()
    for text in ("!" * 200_000 + "a", "a" + ".!" * 100_000 + "a", "!)" * 100_000 + "a", '?"' * 100_000):
        found = sentences(text)
        assert found[0].begin == 0
        assert found[-1].end == len(text)
    assert time.process_time() - begun < 10


def cut(text: str, begin: int, end: int) -> str:
    """What a language that counts UTF-16 code units (JavaScript, Java) takes for text.slice(begin, end)."""
    return text.encode("utf-16-le")[2 * begin : 2 * end].decode("utf-16-le")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The example of Google's documentation: [0, 31) and [32, 56).
        (
            "What kind of idiot name is foo? Sorry, I like your name.",
            [(0, 31, "What kind of idiot name is foo?"), (32, 56, "Sorry, I like your name.")],
        ),
        ("no mark at the end", [(0, 18, "no mark at the end")]),
        ("  One.  Two!  ", [(2, 6, "One."), (8, 12, "Two!")]),
        ("😀 hi. 😀!", [(0, 6, "😀 hi."), (7, 10, "😀!")]),
        ("line one\nline two", [(0, 8, "line one"), (9, 17, "line two")]),
        ('He said "Go!" Then he went.', [(0, 13, 'He said "Go!"'), (14, 27, "Then he went.")]),
        ("version 1.2 of it", [(0, 17, "version 1.2 of it")]),
        ("你好。再见！", [(0, 3, "你好。"), (3, 6, "再见！")]),
        ("What?!?! Yes...", [(0, 8, "What?!?!"), (9, 15, "Yes...")]),
        ("Hi.\u200b\n\u200b", [(0, 4, "Hi.\u200b")]),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text: str, expected: list[tuple[int, int, str]]) -> None:
    assert [(span.begin, span.end, span.text) for span in sentences(text)] == expected


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_offsets_are_those_of_utf_16(text: str) -> None:
    spans = sentences(text)
    for span in spans:
        assert cut(text, span.begin, span.end) == span.text
        assert span.text == span.text.strip() != ""
    assert all(one.end <= other.begin for one, other in pairwise(spans))
    assert utf16_length(text) == len(text.encode("utf-16-le")) // 2 == whole(text).end


@given(st.text(alphabet="ab .!?\n😀é", max_size=60))
def test_nothing_that_is_seen_is_left_out(text: str) -> None:
    covered = set()
    units = text.encode("utf-16-le")
    for span in sentences(text):
        covered |= set(range(span.begin, span.end))
    for unit in set(range(len(units) // 2)) - covered:
        assert units[2 * unit : 2 * unit + 2].decode("utf-16-le").isspace()
