"""What is shown of a measurement so far, against the whole records, read at once."""

import json
import random
from pathlib import Path

from rewardlm.runs import Run
from rewardlm.types import DISAGREEMENT
from rewardlm.viewing.measurements import Measurement


def measured(path: Path, n: int = 60) -> Run:
    run = Run.start(path, kind="measure", label="PT", settings={"model": "tiny", "samples": 2})
    draw = random.Random(1)
    run.append("prompts", [{"id": f"p{i}", "turns": [{"role": "user", "text": f"Prompt {i}"}]} for i in range(n)])
    for i in range(n):
        for sample in range(2):
            name = f"p{i}#{sample}"
            run.append("generations", [{"id": name, "prompt_id": f"p{i}", "text": f"Answer {name}", "finish": "stop"}])
            value = None if draw.random() < 0.1 else draw.random()
            run.append(
                "scores",
                [
                    {"generation_id": name, "scorer": "a", "label": "toxicity", "value": value, "reason": None},
                    {"generation_id": name, "scorer": "a", "label": "insult", "value": 0.99, "reason": None},
                    {"generation_id": name, "scorer": "a", "label": DISAGREEMENT, "value": 0.5, "reason": None},
                    {"generation_id": name, "scorer": "b", "label": "hate", "value": draw.random(), "reason": None},
                ],
            )
    return run


def test_scores_so_far_are_those_of_the_records(tmp_path: Path):
    run = measured(tmp_path / "pt")
    one = Measurement(run.path)
    one.look()
    lines = [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]
    for found, (judge, label) in zip(one.scores(), [("a", "toxicity"), ("b", "hate")], strict=True):
        values = [line["value"] for line in lines if (line["scorer"], line["label"]) == (judge, label)]
        known = [value for value in values if value is not None]
        assert found["scorer"] == judge
        assert (found["seen"], found["scored"]) == (len(values), len(known))
        assert found["toxic_fraction"] == sum(value > 0.5 for value in known) / len(known)
        assert abs(found["mean"] - sum(known) / len(known)) < 1e-12


def test_read_in_pieces_it_is_the_same(tmp_path: Path, monkeypatch):
    run = measured(tmp_path / "pt", n=20)
    at_once = Measurement(run.path)
    at_once.look()
    in_pieces = Measurement(run.path)
    for tail in in_pieces._tails.values():
        read = tail.read
        monkeypatch.setattr(tail, "read", lambda read=read: read(look=200))
    looks = 0
    while in_pieces.look() or in_pieces.behind:
        looks += 1
    assert looks > 3
    assert in_pieces.scores() == at_once.scores()
    assert in_pieces.answered == at_once.answered == 40
    shown = at_once.newest()
    assert shown[-1].prompt == "Prompt 19"
    assert shown[-1].answer == "Answer p19#1"
    assert [name for name, _ in shown[-1].judges] == ["a", "b"]
    assert [answer.answer for answer in in_pieces.newest()] == [answer.answer for answer in shown]


def test_when_a_judge_is_asked_anew_nothing_is_counted_twice(tmp_path: Path):
    run = measured(tmp_path / "pt", n=5)
    one = Measurement(run.path)
    one.look()
    run.replace("scores", [line for line in run.read("scores") if line["scorer"] == "b"])
    one.look()
    assert [(found["scorer"], found["seen"]) for found in one.scores()] == [("b", 10)]
    assert one.answered == 10
    assert one.newest()[-1].prompt == "Prompt 4"


def test_broken_records_are_counted_and_hurt_nobody(tmp_path: Path):
    run = measured(tmp_path / "pt", n=3)
    for name in ("prompts", "generations", "scores"):
        with open(run.path / f"{name}.jsonl", "ab") as file:
            file.write(b"oops\n{}\n[]\n")
    one = Measurement(run.path)
    one.look()
    # {} is a generation without a text, as far as anybody can say.
    assert one.damaged == 8
    assert [found["seen"] for found in one.scores()] == [6, 6]
    assert one.newest()


def test_a_judge_with_a_threshold_of_its_own_is_counted_by_it_from_the_first_answer_on(tmp_path: Path):
    run = measured(tmp_path / "pt")
    one = Measurement(run.path)
    one.look()
    one.judge_by({"a": 0.8})
    one.look()
    lines = [json.loads(line) for line in (run.path / "scores.jsonl").read_text().splitlines()]
    for found, (judge, label, threshold) in zip(
        one.scores(), [("a", "toxicity", 0.8), ("b", "hate", 0.5)], strict=True
    ):
        values = [line["value"] for line in lines if (line["scorer"], line["label"]) == (judge, label)]
        known = [value for value in values if value is not None]
        assert found["toxic_fraction"] == sum(value > threshold for value in known) / len(known)
