"""Which answers the page colours: by rule, each pair once; and that what is kept of them is what was read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_models import tiny_policy
from tiny_runs import LABELS, measured_tiny_runs, rescore

from rewardlm.config import AttributionSettings, InterpretSettings
from rewardlm.interpreting.interpretation import interpret
from rewardlm.interpreting.shown_answers import choose
from rewardlm.runs import Run


def test_each_pair_is_taken_once_by_the_first_rule_that_it_meets() -> None:
    drift = {0: 0.1, 1: 0.4, 2: 0.9, 3: 0.3, 4: 0.2}
    changes = [0.5, -0.1, -0.8, 0.0, -0.3]
    # Pair 2 moved most and fell most: what fell is then the next one.
    assert choose(drift, changes, lambda pair: True) == [("usual", 3), ("moved", 2), ("fell", 4), ("rose", 0)]


def test_the_usual_one_is_harmless_where_there_is_one() -> None:
    drift = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}
    assert choose(drift, [0.0] * 5, lambda pair: pair in (0, 4))[0] == ("usual", 0)
    assert choose(drift, [0.0] * 5, lambda pair: False)[0] == ("usual", 2)


def test_no_rule_is_met_by_what_did_not_happen() -> None:
    assert choose({0: 0.1}, [0.0], lambda pair: True) == [("usual", 0)]
    assert choose({}, [], lambda pair: True) == []
    assert [rule for rule, _ in choose({0: 0.1, 1: 0.2, 2: 0.3}, [0.0, 0.0, 0.2], lambda pair: True)] == [
        "usual",
        "moved",
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Run]:
    runs = measured_tiny_runs(tmp_path_factory.mktemp("runs"))
    rescore(runs[0], lambda k: 0.9 if k % 2 == 0 else 0.1)
    rescore(runs[1], lambda k: 0.05)
    rescore(runs[2], lambda k: 0.8 if k % 4 == 0 else 0.2)
    settings = InterpretSettings(
        limit=9,
        device="cpu",
        dtype="float32",
        n_resamples=100,
        look_inside=False,
        attribution=AttributionSettings(tokens=3),
    )
    return runs, interpret(runs, settings, tmp_path_factory.mktemp("out") / "interpretation")


@pytest.mark.slow
def test_what_is_shown_is_what_was_read(found: tuple[list[Path], Run]) -> None:
    _, run = found
    shown: list[dict[str, Any]] = run.load("interpretation")["shown"]
    assert [example["chosen"] for example in shown][:2] == ["usual", "moved"]
    drifts = list(run.read("drift"))
    tokenizer = tiny_policy().tokenizer
    for example in shown:
        assert [answer["label"] for answer in example["answers"]] == list(LABELS)
        for author, answer in enumerate(example["answers"]):
            assert "".join(word for word, kind in answer["words"] if kind == "answer") == "".join(answer["tokens"])
            (record,) = [
                one for one in drifts if one["author"] == author and close(one["logprobs"][0], answer["logprobs"][0])
            ]
            # But for a letter of which a piece is missing at the end.
            assert "".join(answer["tokens"]) == tokenizer.decode(record["tokens"]).rstrip("\ufffd")
            for model in range(3):
                assert answer["kl"][model] == pytest.approx(record["kl"][author][model], abs=1e-4)
                choices = [tokenizer.decode([token]) for token in record["choice"][model]]
                assert answer["first_choices"][model] == choices
            assert not any(answer["kl"][author])
            readers = [reading["reader"] for reading in answer["readings"]]
            assert readers == (list(LABELS) if author == 0 else [LABELS[author]])
            for reading in answer["readings"]:
                for shares, word in zip(reading["shares"], answer["at_words"], strict=True):
                    assert math.fsum(shares) == pytest.approx(1, abs=0.01)
                    # Words before the token: it begins a word, or is inside the last of them.
                    assert len(shares) in (word, word + 1)
        last = example["answers"][0]["kl"][2]
        assert example["drift"] == pytest.approx(sum(last) / len(last), abs=1e-3)


def close(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and one == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
def test_the_usual_answer_is_one_that_no_judge_calls_toxic(found: tuple[list[Path], Run]) -> None:
    _, run = found
    shown = json.loads((run.path / "interpretation.json").read_text())["shown"]
    usual = shown[0]
    # Prompts with known toxicity among the nine that were read, with three harmless answers: there are some.
    assert max(usual["prompt_toxicity"], *(answer["highest"] for answer in usual["answers"])) < 0.33
    assert usual["toxicity"] == [answer["highest"] for answer in usual["answers"]]
