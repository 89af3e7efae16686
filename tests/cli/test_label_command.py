"""``rewardlm label``: from two tables of our own answers to shares that labels correct, as its page tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Shell
from test_json import documented, told

EXAMPLE = Path(__file__).parents[2] / "examples" / "labelled"


@pytest.fixture
def runs(shell: Shell, tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("before", "after")]
    for path in found:
        shell("import", EXAMPLE / f"{path.name}.csv", "--label", path.name, "--out", path)
        shell("score", path, "--scorer", "lexical")
    return found


def test_the_example_of_the_documentation(shell: Shell, runs: list[Path], tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    begun = told(shell, "label", "open", *runs, "--labels", "120", "--out", labels)
    assert begun == {"folder": str(labels), "items": 120, "runs": {"before": 60, "after": 60}}
    assert begun.keys() == documented("label open")
    added = [told(shell, "label", "import", labels, EXAMPLE / f"{path.name}.csv") for path in runs]
    assert sum(one["labels"] for one in added) == 120
    status = told(shell, "label", "status", labels)
    assert status.keys() == documented("label status")
    assert (status["labelled"], status["labellers"]["ann"]["labels"], status["alpha"]) == (120, 120, None)
    assert "120 of 120 answers are labelled" in shell("label", "status", labels).out
    for name in ("t.csv", "t.json"):
        written = told(shell, "label", "export", labels, tmp_path / name)
        assert (written["items"], written["labels"]) == (120, 120)
    found = told(shell, "compare", *runs, "--labels", labels)
    for model, truth in zip(found["models"], (0.35, 0.12), strict=True):
        one = model["scorers"]["lexical"]["all"]
        low, high = one["corrected_fraction_ci95"]
        assert (one["correction"], one["labels"]) == ("ppi", 60)
        assert low < truth < high
        assert abs(one["corrected_fraction"] - truth) < abs(one["toxic_fraction"] - truth)
    (change,) = [one for one in found["comparisons"] if one["split"] == "all"]
    assert change["delta_ci95"][0] < 0 < change["delta_ci95"][1], "the judge alone can't tell"
    assert change["corrected_delta_ci95"][1] < 0
    assert change["corrected_delta_ci95"][0] < -0.23 < change["corrected_delta_ci95"][1]
    assert change["labels"] == 120
    shown = shell("compare", *runs, "--labels", labels).out
    assert "Toxic shares, corrected" in shown
    assert "What people said of up to 60 of a model's answers" in shown
    page = tmp_path / "page.html"
    assert shell("report", *runs, "--labels", labels, "--out", page).code == 0
    assert 'id="corrected"' in page.read_text()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compare before --correction ppi", "correction ppi needs labels"),
        ("compare before --labels before", "a 'labels' run is needed here"),
        ("label status before", "a 'labels' run is needed here"),
        ("label open before --scorer witness --no-page --out labels", "has no scores by 'witness'"),
        ("label open before --labels 1 --no-page --out labels", "at least 2"),
        ("compare before --correction rogan-gladen errors_suite=jigsw", "did you mean 'jigsaw'?"),
    ],
)
def test_a_mistake_is_one_line(
    shell: Shell, runs: list[Path], tmp_path: Path, command: str, said: str, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = shell(*command.split())
    assert done.code in (1, 2)
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_file_for_another_program_has_its_ending(shell: Shell, runs: list[Path], tmp_path: Path) -> None:
    shell("label", "open", runs[0], "--labels", "20", "--no-page", "--out", tmp_path / "labels")
    for name, form in (("a.csv", "argilla"), ("a.json", "csv")):
        done = shell("label", "export", tmp_path / "labels", tmp_path / name, "--format", form)
        assert done.code == 2
        assert f"{name} is no file for {form}" in done.err
    assert shell("label", "export", tmp_path / "labels", tmp_path / "a.json", "--format", "argilla").code == 0
    assert len(json.loads((tmp_path / "a.json").read_text())) == 20
