"""A training in the terminal: what is shown of a run's records, and what never reaches the terminal."""

from __future__ import annotations

import io
import os
import re

import pytest
from rich.console import Console

from rewardlm.errors import RunError
from rewardlm.reporting.watch import find_training, sparkline, training_view
from rewardlm.runs import Run


def line(step: int, **more) -> dict:
    return {
        "step": step,
        "seconds": 2.0,
        "reward_mean": 0.1 * step,
        "toxicity_mean": 1 - 0.1 * step,
        "toxicity_by_witness": {"lexical": 0.4},
        "kl": 0.5 * step,
        "response_tokens": 20.0,
        "warnings": [],
        **more,
    }


def sample(step: int, **more) -> dict:
    said = {"prompt": f"prompt of {step}", "response": f"answer of {step}", "reward": 0.75, "toxicity": 0.25}
    return {"step": step, **said, "by_judge": {"starter": 0.25}, "by_witness": {"lexical": 0.125}, **more}


@pytest.fixture
def run(tmp_path) -> Run:
    settings = {"model": "tiny", "algorithm": "grpo", "reward": ["starter"], "steps": 30}
    run = Run.start(tmp_path / "rl", kind="rlaf", label="RL", settings=settings)
    run.append("metrics", [line(step) for step in range(1, 11)])
    run.append("samples", [sample(5), sample(10)])
    return run


def shown(run: Run, **more) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(training_view(run, **more))
    return console.export_text()


def test_the_head_says_where_the_training_is_and_when_it_will_end(run):
    head = shown(run).splitlines()[0]
    for part in ("grpo of tiny", "step 10 of 30", "reward starter", "2.0 s a step", "about 0:00:40 left", "running"):
        assert part in head
    run.update(status="finished")
    assert "left" not in shown(run).splitlines()[0]


def test_the_table_has_the_last_steps_and_the_curves_all(run):
    text = shown(run, rows=3)
    steps = [int(row.split()[0]) for row in text.splitlines() if re.match(r" +\d+ +\d", row)]
    assert steps == [8, 9, 10]
    course = next(row for row in text.splitlines() if row.startswith("reward"))
    assert "0.1 → 1" in course
    assert "▁" in course
    assert "█" in course
    assert re.search(r"step +reward .*by lexical", text)


def test_the_newest_samples_are_shown_or_those_of_a_step(run):
    assert "answer of 10" in shown(run)
    assert "answer of 5" not in shown(run)
    found = shown(run, step=5)
    assert "answer of 5" in found
    assert "reward 0.75, starter 0.25, lexical (witness) 0.125" in found
    with pytest.raises(RunError, match=r"no samples of step 7; steps with samples: 5, 10"):
        shown(run, step=7)


def test_answers_that_were_cut_off_are_counted_and_marked(run):
    assert "cut off" not in shown(run)
    run.append("metrics", [line(step, truncated_fraction=0.25 * (step - 10)) for step in (11, 12, 13)])
    run.append("samples", [sample(13, finish="length"), sample(13, response="whole", finish="stop")])
    text = shown(run)
    assert re.search(r"step +reward .* cut off", text)
    assert re.search(r"cut off +[▁▂▃▄▅▆▇█]+ +0.25 → 0.75", text)
    cut, whole = text.split("answer of 13")[1].split("whole")
    assert "end cut off" in cut
    assert "cut off" not in whole


def test_warnings_are_shown_and_counted(run):
    run.append("metrics", [line(step, warnings=[f"language switch: {step}0 %"]) for step in range(11, 16)])
    text = shown(run)
    assert "warning, step 15: language switch: 150 %" in text
    assert "step 11" not in text
    assert "(5 warnings in all)" in text


def test_what_a_model_says_never_commands_the_terminal(run):
    hostile = "\x1b[2J\x1b]0;owned\x07[bold red]loud[/]\u202egnp\x00\r\nnext"
    run.append("samples", [sample(11, prompt=hostile, response=hostile, by_judge={hostile: 0.5})])
    run.append("metrics", [line(11, warnings=[hostile])])
    text = shown(run)
    assert not set(text) & set("\x1b\x07\x00\r\u202e")
    assert "[bold red]loud[/]" in text


def test_a_run_that_has_just_begun_and_one_of_fine_tuning_are_shown_too(tmp_path):
    young = Run.start(
        tmp_path / "young", kind="rlaf", label="RL", settings={"model": "tiny", "reward": ["a"], "steps": 3}
    )
    assert "step 0 of 3" in shown(young)
    tuned = Run.start(tmp_path / "ft", kind="finetune", label="FT", settings={"model": "tiny"})
    tuned.append("metrics", [{"step": s, "loss": 4 - s, "seconds": 1.0, "learning_rate": 1e-4} for s in (1, 2)])
    text = shown(tuned)
    assert "fine-tuning of tiny" in text
    assert "3 → 2" in text


def test_of_an_experiment_the_training_under_way_is_found(tmp_path):
    home = Run.start(tmp_path / "all", kind="experiment", label="E", settings={})
    with pytest.raises(RunError, match="has not begun to train"):
        find_training(home.path)
    for name, kind, when in (("finetune", "finetune", 100), ("rlaf", "rlaf", 200), ("measure/PT", "measure", 300)):
        inner = Run.start(home.path / name, kind=kind, label=name, settings={"model": "tiny"})
        for file in inner.path.iterdir():
            os.utime(file, (when, when))
    assert find_training(home.path).meta["kind"] == "rlaf"
    os.utime(home.path / "finetune" / "run.json", (400, 400))
    assert find_training(home.path).meta["kind"] == "finetune"
    with pytest.raises(RunError, match="kind 'measure': watch shows trainings"):
        find_training(home.path / "measure" / "PT")


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([1.0], 8, "▁"),
        ([0.0, 7.0], 8, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 2, 7, 7, 14, 14], 3, "▁▄█"),  # means 1, 7, 14: the middle is at 6/13 of seven steps
        ([2.0, 2.0], 8, "▁▁"),
        ([3, 1, 2, -4], 40, "█▆▇▁"),
    ],
)
def test_a_sparkline_is_the_means_of_equal_shares(values, width, line):
    assert sparkline(values, width) == line
