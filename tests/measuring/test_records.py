"""Records as arrays: held against plain loops over the same records."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run

from rewardlm.measuring import quality
from rewardlm.measuring.measured import load_measured
from rewardlm.measuring.model_quality import sample_of
from rewardlm.measuring.records import Positions
from rewardlm.runs import Run


def test_positions_are_those_of_a_dict() -> None:
    draw = random.Random(0)
    ids = [f"prompt {draw.randrange(10**9)}#{n % 5}" for n in range(5000)]
    positions = Positions(array("q", map(hash, ids)))
    where = {name: at for at, name in enumerate(ids)}
    asked = [*draw.sample(ids, 2000), "nobody", ""]
    assert positions.of(asked).tolist() == [where.get(name, -1) for name in asked]
    assert not positions.repeated
    assert Positions(array("q", map(hash, [*ids, ids[17]]))).repeated
    assert Positions(array("q")).of(["a"]).tolist() == [-1]


def test_texts_are_seen_as_a_loop_over_them_sees_them(tmp_path: Path) -> None:
    draw = random.Random(1)
    pieces = [
        "so so so so so so so so",
        "",
        "  ",
        "I can't assist with that.",
        "他们和我们一样好",
        "they are fine people",
        "no",
    ]
    prompts = [f"why are they fine people {n}" for n in range(40)]
    texts = [[" ".join(draw.choices(pieces, k=draw.randrange(1, 4))) for _ in range(3)] for _ in prompts]
    scores = [[draw.random() for _ in row] for row in texts]
    path = build_run(tmp_path / "run", "PT", {"a": scores}, texts=texts, prompts=prompts)
    # Written in another order than asked, as a resumed run or several workers do.
    for name in ("generations", "scores"):
        file = path / f"{name}.jsonl"
        rows = file.read_bytes().splitlines(keepends=True)
        draw.shuffle(rows)
        file.write_bytes(b"".join(rows))
    measured = load_measured(path)
    found = measured.quality
    for at in range(measured.answers):
        row, sample = int(measured.prompt_rows[at]), int(measured.samples[at])
        text, prompt = texts[row][sample], prompts[row]
        assert measured.scores["a"][at] == scores[row][sample]
        assert found.empty[at] == (not text.strip())
        assert found.repeated[at] == quality.is_repeated(text)
        assert found.refusal[at] == quality.is_refusal(text)
        assert found.non_latin[at] == quality.is_mostly_outside(text, "LATIN")
        assert found.other_script[at] == quality.in_other_script(prompt, text)
        assert found.quoting[at] == ("fine people" in text and "they are fine people" in prompt)
        assert found.words[at] == len(text.split())
    assert found.distinct == pytest.approx([quality.distinct(texts, n) for n in (1, 2, 3)])


def test_an_unfinished_prompts_answers_count_for_distinct(tmp_path: Path) -> None:
    texts = [["a b c", "a b d"], ["a a"]]
    path = build_run(tmp_path / "run", "PT", {"a": [[0.1, 0.2], [0.3]]}, texts=texts)
    # Prompt 1: a b c d over six words; prompt 2: one of two.
    assert load_measured(path).quality.distinct[0] == pytest.approx((4 / 6 + 1 / 2) / 2)


def test_later_scores_stand(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", "PT", {"a": [[0.1], [None], [0.3]]}, reason="it broke")
    line = '{{"generation_id": "p{}-0", "scorer": "a", "label": "toxic", "value": {}, "reason": {}}}\n'
    with open(path / "scores.jsonl", "a") as file:
        file.write(line.format(1, 0.7, "null") + line.format(2, "null", '"asked again in vain"'))
    measured = load_measured(path)
    np.testing.assert_array_equal(measured.scores["a"], [0.1, 0.7, np.nan])
    assert measured.reasons["a"] == {2: "asked again in vain"}


def test_a_sample_is_drawn_by_seed_and_only_where_there_are_more() -> None:
    assert sample_of(10, 10, 0) is None
    chosen = sample_of(1000, 10, 3)
    assert chosen is not None
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen == sample_of(1000, 10, 3) != sample_of(1000, 10, 4)


def test_a_table_of_a_run_names_judges_as_compare_does(tmp_path: Path) -> None:
    """The main label is the first with a value, also where the first record has none."""
    build_run(tmp_path / "run", "PT", {"a.insult": [[None], [0.2]], "a.threat": [[0.7], [0.4]], "b": [[None], [None]]})
    table = Run.open(tmp_path / "run").to_pandas()
    measured = load_measured(tmp_path / "run")
    named = {column for column in table.columns if column.split(".")[0] in ("a", "b")}
    assert named == measured.scores.keys() == {"a", "a.insult", "b"}
    for name, values in measured.scores.items():
        assert table[name].astype(float).to_numpy() == pytest.approx(values, nan_ok=True)


def test_a_notebook_shows_a_long_run_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_run(tmp_path / "run", "PT", {"a": [[0.1 + i / 10_000] for i in range(5000)]})
    run, lines = Run.open(tmp_path / "run"), 0
    read = Run.read

    def counted(self: Run, name: str) -> Iterator[dict[str, Any]]:
        nonlocal lines
        for record in read(self, name):
            lines += name != "prompts"
            yield record

    monkeypatch.setattr(Run, "read", counted)
    shown = run._repr_html_()
    assert all(f"This is prompt number {i}<" in shown for i in range(5))
    assert "0.100" in shown
    assert "number 5<" not in shown
    assert lines < 600
