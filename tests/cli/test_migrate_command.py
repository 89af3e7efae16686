"""``rewardlm judge migrate`` from the shell, and thresholds.yaml in score, compare and report, with judge lexical."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

from rewardlm.runs import Run

KEYS = {"n", "spearman", "threshold", "threshold_same_share", "threshold_same_precision", "map_error"}
RUDE = ("you idiot", "stupid fool", "shut up, moron", "what a pathetic loser", "you are trash")
KIND = ("thank you", "what a lovely day", "see you tomorrow", "I don't agree with this", "the train is late")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """100 texts; the old judge is right in most cases. With a byte order mark, as spreadsheets write it."""
    rng = np.random.default_rng(0)
    lines = ["text,score,label"]
    for number in range(100):
        rude = number % 3 == 0
        score = float(np.clip(rng.normal(0.7 if rude else 0.2, 0.15), 0, 1))
        lines.append(f'"{(RUDE if rude else KIND)[number % 5]} {number}",{score:.3f},{int(rude)}')
    path = tmp_path / "scored.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_json_and_both_files(shell: Shell, scored: Path, tmp_path: Path) -> None:
    done = shell("judge", "migrate", scored, "--to", "lexical", "--out", tmp_path / "moved", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found.keys() >= KEYS
    assert (found["n"], found["threshold"], found["judge"]["name"]) == (100, 0.5, "lexical")
    assert 0 < found["threshold_same_share"] < 1
    assert found["share_same_share"] == found["share"]
    assert (tmp_path / "moved" / "thresholds.yaml").is_file()
    page = (tmp_path / "moved" / "migration.html").read_text(encoding="utf-8")
    assert "From the old judge to lexical" in page
    # The page shows numbers, and no text of the file; nothing in it is fetched.
    assert "pathetic loser" not in page
    assert "default-src &#39;none&#39;" in page
    assert page.count('type="application/json" id="figure-') == 2


def test_the_tables_say_the_same(shell: Shell, scored: Path, tmp_path: Path) -> None:
    done = shell("judge", "migrate", scored, "--to", "lexical", "--out", tmp_path / "moved")
    assert done.code == 0, done.err
    assert "Call a text toxic if lexical scores it above 0." in " ".join(done.out.split())
    assert "Spearman" in done.out
    assert done.out.rstrip().endswith("migration.html")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "lexcial"], "did you mean 'lexical'?"),
        (["--to", "lexical", "--text-column", "comment"], "no column 'comment', only 'text, score, label'"),
        (["--to", "lexical", "--label-column", "toxic"], "no column 'toxic'"),
        (["--to", "lexical", "--threshold", "2"], "threshold"),
        ([], "to"),
    ],
)
def test_mistakes_are_one_line(shell: Shell, scored: Path, tmp_path: Path, more: list[str], said: str) -> None:
    assert said in shell.fails("judge", "migrate", scored, "--out", tmp_path / "moved", *more).err
    assert not (tmp_path / "moved").exists()


def test_all_broken_lines_are_named_at_once(shell: Shell, scored: Path, tmp_path: Path) -> None:
    scored.write_text("text,score\nhello,0.1\nhello,0.2,0.3\nhello,0.1\nhello\n")
    done = shell.fails("judge", "migrate", scored, "--to", "lexical", "--out", tmp_path / "moved")
    assert "line 3: 3 cells; expected 2" in done.err
    assert "also broken: line 5" in done.err


def test_score_records_the_threshold_and_compare_goes_by_it(shell: Shell, scored: Path, tmp_path: Path) -> None:
    moved, run = tmp_path / "moved", tmp_path / "PT"
    threshold = json.loads(shell("judge", "migrate", scored, "--to", "lexical", "--out", moved, "--json").out)[
        "threshold_same_share"
    ]
    answers = tmp_path / "answers.csv"
    answers.write_text(
        "prompt,response,scores.old\n"
        + "".join(f'Hello {i},"{(RUDE, KIND)[i % 2][i % 5]} {i}",0.{i % 10}\n' for i in range(20))
    )
    assert shell("import", answers, "--label", "PT", "--out", run).code == 0
    wrong = shell.fails("score", run, "--scorer", "lexical2", "--thresholds", moved / "thresholds.yaml")
    assert "has thresholds for lexical, but the judges are lexical2" in wrong.err
    # A judge beside it that the file doesn't name keeps 0.5, whichever comes first.
    done = shell("score", run, "--scorer", "lexical2,lexical", "--thresholds", moved, "--json")
    assert done.code == 0, done.err
    assert Run.open(run).meta["thresholds"].keys() == {"lexical"}
    assert Run.open(run).meta["thresholds"]["lexical"]["value"] == threshold
    scores = [record["value"] for record in Run.open(run).read("scores") if record["scorer"] == "lexical"]
    found = json.loads(shell("compare", run, "--json").out)
    by_lexical = found["models"][0]["scorers"]["lexical"]["all"]
    assert by_lexical["toxic_fraction"] == sum(score > threshold for score in scores) / 20
    assert found["settings"]["thresholds"]["lexical"]["value"] == threshold
    plain = json.loads(shell("compare", run, "--thresholds", "none", "--json").out)
    share = plain["models"][0]["scorers"]["lexical"]["all"]["toxic_fraction"]
    assert share == sum(score > 0.5 for score in scores) / 20
    table = " ".join(shell("compare", run).out.split())
    assert "by lexical > 0." in table
    assert "on 100 texts (scored.csv)" in table
    assert shell("report", run, "--out", tmp_path / "page.html").code == 0
    assert "100 texts (scored.csv)" in (tmp_path / "page.html").read_text(encoding="utf-8")
