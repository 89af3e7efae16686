"""``rewardlm steer``, ``measure --steer`` and ``frontier`` as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Shell

from rewardlm.runs import Run

QUICK = [
    "--scorer", "lexical", "--max-new-tokens", "8", "--limit", "6", "--device", "cpu", "similarity=false",
    "counter_narrative=null",
]  # fmt: skip


@pytest.mark.slow
def test_from_fit_to_frontier(shell: Shell, tmp_path: Path) -> None:
    best, told = tmp_path / "best", tmp_path / "told"
    done = shell("steer", "fit", "tiny", "--method", "best-of-n", "--judge", "lexical", "--out", best, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["steer"], found["method"], found["strength"]) == (str(best), "best-of-n", 4.0)
    done = shell("steer", "fit", "tiny", "--method", "system", "--out", told)
    assert (done.code, done.out.strip()) == (0, str(told)), done.err
    runs: dict[str, list[object]] = {
        "PT": [],
        "best": ["--steer", best, "--strength", "2"],
        "told": ["--steer", told],
        "zero": ["--steer", told, "--strength", "0"],
    }
    for label, more in runs.items():
        done = shell("measure", "tiny", *QUICK, *more, "--label", label, "--out", tmp_path / "runs" / label)
        assert done.code == 0, done.err
    answers = {
        label: sorted((one.id, one.text) for one in Run.open(tmp_path / "runs" / label).generations()) for label in runs
    }
    assert answers["zero"] == answers["PT"] != answers["told"]
    paths = [tmp_path / "runs" / label for label in ("PT", "best", "told")]
    done = shell("frontier", *paths, "--out", tmp_path / "page.html", "--json", "n_resamples=100")
    assert done.code == 0, done.err
    points = {point["label"]: point for point in json.loads(done.out)["points"]}
    assert {label: (point["method"], point["strength"]) for label, point in points.items()} == {
        "PT": ("none", 0.0), "best": ("best-of-n", 2.0), "told": ("system", 1.0),
    }  # fmt: skip
    assert points["best"]["passes_per_token"] > 1.5
    page = (tmp_path / "page.html").read_text()
    assert "best of n" in page
    assert "At equal fluency" in page
    # The report of the same runs has it too; that of runs of one kind has not.
    for named, there in ((paths, True), (paths[:1], False)):
        done = shell("report", *named, "--out", tmp_path / "report.html")
        assert done.code == 0, done.err
        assert ("Steering and training at equal fluency" in (tmp_path / "report.html").read_text()) is there
    table = shell("frontier", *paths, "n_resamples=100")
    assert table.code == 0
    assert all(label in table.out for label in runs if label != "zero")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steer", "fit", "tiny", "--out", "o"], "method"),
        (["steer", "fit", "tiny", "--method", "magic", "--out", "o"], "activation"),
        (["steer", "fit", "tiny", "--method", "activation", "--out", "o"], "name a measured run with --run"),
        (["steer", "fit", "tiny", "--method", "system", "--run", "r", "--out", "o"], "is not a run"),
        (["steer", "fit", "tiny", "--method", "system", "--judge", "lexical", "--out", "o"], "asks no judge without"),
        (["steer", "fit", "tiny", "--method", "dexperts", "--expert", "a", "--out", "o"], "--anti-expert"),
        (["steer", "fit", "tiny", "--method", "task-vector", "--out", "o"], "--toxic-adapter"),
        (
            ["steer", "fit", "tiny", "--method", "task-vector", "--toxic-adapter", "none", "--out", "o"],
            "no such folder",
        ),
        (["steer", "fit", "tiny", "--method", "activation", "--run", "none", "--out", "o"], "is not a run"),
        (["steer", "fit", "tiny", "--method", "best-of-n", "--judge", "nonsense", "--out", "o"], "unknown scorer"),
        (["measure", "tiny", "--steer", "none", "--scorer", "lexical", "--out", "o"], "is no steer folder"),
        (["measure", "tiny", "--strength", "1", "--scorer", "lexical", "--out", "o"], "name the folder with --steer"),
        (["measure", "tiny", "--adapter-strength", "1", "--scorer", "lexical", "--out", "o"], "--adapter"),
        (["steer", "export", "none", "--out", "v.gguf"], "is no steer folder"),
        (["frontier", "none"], "is not a run"),
    ],
)
def test_mistakes_are_one_line(
    shell: Shell, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in shell.fails(*arguments).err
    assert not (tmp_path / "o" / "run.json").exists()
