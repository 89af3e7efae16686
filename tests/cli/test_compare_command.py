"""``compare --redraw`` and ``report --redraw``: a second run of the baseline beside the flows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Shell


@pytest.fixture
def runs(shell: Shell, tmp_path: Path) -> list[Path]:
    """PT, FT and PT again, one answer to each of eight prompts; three of PT's were high, and one of these is again."""
    high = {"PT": {0, 1, 2}, "FT": {0}, "PT2": {0, 7}}
    made = []
    for name, toxic in high.items():
        rows = [f"Prompt {n},An answer of {name} to {n}.,{0.9 if n in toxic else 0.1}" for n in range(8)]
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(["prompt,response,scores.judge", *rows]))
        columns = "prompt=prompt,response=response,scores.judge=scores.judge"
        done = shell("import", table, "--label", name[:2], "--map", columns, "--out", tmp_path / name)
        assert done.code == 0, done.err
        made.append(tmp_path / name)
    return made


def test_what_a_second_run_of_the_baseline_gives_is_printed(shell: Shell, runs: list[Path]) -> None:
    alone = shell("compare", *runs[:2], "--json", "n_resamples=200")
    (entry,) = [one for one in json.loads(alone.out)["comparisons"] if one["split"] == "all"]
    assert entry["flow_redraw"] is None
    done = shell("compare", *runs[:2], "--redraw", runs[2], "--json", "n_resamples=200")
    (entry,) = [one for one in json.loads(done.out)["comparisons"] if one["split"] == "all"]
    assert entry["flow"] == [[5, 0, 0], [0, 0, 0], [2, 0, 1]]
    assert entry["flow_redraw"] == [[4, 0, 1], [0, 0, 0], [2, 0, 1]]
    assert json.loads(done.out)["settings"]["redraw"] == "PT (2)"
    printed = " ".join(shell("compare", *runs[:2], "--redraw", runs[2], "n_resamples=200").out.split())
    assert "Of 3 answers of PT that were high, 2 (66.7 %) are low in FT; a second draw of PT itself makes 2" in printed
    unknown = " ".join(shell("compare", *runs[:2], "n_resamples=200").out.split())
    assert "How much of that is chance is not known" in unknown


def test_the_page_shows_it(shell: Shell, runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert shell("report", *runs[:2], "--redraw", runs[2], "--out", page, "n_resamples=200").code == 0
    assert "a second draw of PT itself makes 2" in page.read_text()


def test_another_model_is_no_second_draw(shell: Shell, runs: list[Path]) -> None:
    assert "same seed" in shell.fails("compare", *runs[:2], "--redraw", runs[0]).err
