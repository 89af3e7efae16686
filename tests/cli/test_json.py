"""``--json``: one object on stdout, whatever is said beside it, with the keys that docs/command-line.md names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell

from rewardlm.cli.commands import COMMANDS, load
from rewardlm.runs import Run

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text("utf-8")
COMPARE = {"models", "comparisons", "warnings", "primary", "settings"}


def documented(command: str) -> set[str]:
    """The keys that the table names for a command."""
    (row,) = [
        line for line in DOCUMENTED.splitlines() if line.startswith("| `") and f"`{command}`" in line.split("|")[1]
    ]
    keys = set(re.findall(r"`([a-z_0-9]+)`", row.split("|")[2])) - {"compare"}
    return keys | (COMPARE if "keys of `compare`" in row else set())


def told(shell: Shell, *typed: object) -> dict[str, Any]:
    done = shell(*typed, "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.fixture
def imported(shell: Shell, tmp_path: Path) -> Path:
    table = tmp_path / "t.csv"
    table.write_text("prompt,response,scores.mine\nHello,Good morning,0.1\nHi,You fool,0.9\n")
    found = told(shell, "import", table, "--label", "PT", "--out", tmp_path / "PT")
    assert documented("import") <= found.keys()
    assert found["run"] == str(tmp_path / "PT")
    assert found["models"][0]["scorers"]["mine"]["all"]["toxic_fraction"] == 0.5
    return tmp_path / "PT"


def test_every_command_has_it_and_its_keys_are_documented(shell: Shell) -> None:
    import inspect

    for command in COMMANDS.keys() - {"view", "judge serve"}:  # they have no result: they answer until they are stopped
        assert "as_json" in inspect.signature(load(command)).parameters, command
        # interpret's are in a page of their own, as are a suite's.
        assert documented(command) or command == "interpret", command


def test_a_table_of_answers(shell: Shell, imported: Path, tmp_path: Path) -> None:
    found = told(shell, "compare", imported)
    assert documented("compare") - {"json"} <= found.keys()
    page = told(shell, "report", imported, "--out", tmp_path / "page.html")
    assert page == {"page": str(tmp_path / "page.html")}
    assert documented("report") == page.keys()
    exported = told(shell, "export", imported, "--out", tmp_path / "a.csv")
    assert exported.keys() == documented("export")
    assert Path(exported["file"]).exists()


def shouting(texts: list[str]) -> list[float]:
    """A judge that costs nothing."""
    return [float(text.isupper()) for text in texts]


def test_what_takes_no_model(shell: Shell, tmp_path: Path) -> None:
    assert told(shell, "init", tmp_path / "e.yaml") == {"file": str(tmp_path / "e.yaml"), "command": "run"}
    assert documented("init") == {"file", "command"}
    assert told(shell, "settings", "score").keys() == documented("settings")
    assert told(shell, "judge", "list", "lexical").keys() == documented("judge list")
    assert told(shell, "doctor").keys() == documented("doctor")  # with a model: tests/test_planner.py


def test_a_training_that_is_under_way(shell: Shell, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "RL", kind="rlaf", label="RL", settings={})
    run.append("metrics", [{"step": 1, "kl": 0.5}, {"step": 2, "kl": 0.25}])
    found = told(shell, "watch", run.path)
    assert found.keys() == documented("watch")
    assert (found["label"], found["kind"], found["status"], found["steps"]) == ("RL", "rlaf", "running", 2)
    assert found["metrics"] == {"step": 2, "kl": 0.25}
    assert "leave --follow out" in shell.fails("watch", run.path, "--json", "--follow").err


def test_a_mistake_prints_no_json(shell: Shell, tmp_path: Path) -> None:
    shell.fails("measure", "tyni", "--out", tmp_path / "o", "--json")
    shell.fails("compare", tmp_path, "--json")


@pytest.mark.slow
def test_scored(shell: Shell, imported: Path) -> None:
    scored = told(shell, "score", imported, "--scorer", "test_json:shouting")
    assert documented("score") <= scored.keys()
    assert set(scored["models"][0]["scorers"]) == {"mine", "test_json:shouting"}


@pytest.mark.slow
def test_measured_and_trained(shell: Shell, tmp_path: Path) -> None:
    small = ["--limit", "4", "--max-new-tokens", "4"]
    judge = ["--scorer", "lexical"]
    found = told(
        shell, "measure", "tiny", *small, *judge, "similarity=false", "counter_narrative=null", "--out", tmp_path / "PT"
    )
    assert documented("measure") <= found.keys()
    assert found["models"][0]["generations"] == 4
    tuned = told(shell, "finetune", "tiny", "--limit", "4", "max_steps=1", "--out", tmp_path / "FT")
    assert tuned.keys() == documented("finetune")
    assert (Path(tuned["adapter"]) / "adapter_config.json").exists()
    learnt = told(
        shell, "rlaf", "tiny", *small, "--reward", "lexical", "--witness", "none", "--steps", "2", "--batch-size", "4",
        "--out", tmp_path / "RL",
    )  # fmt: skip
    assert learnt.keys() == documented("rlaf")
    assert (learnt["steps"], learnt["metrics"]["step"]) == (2, 2)
    merged = told(shell, "merge", "tiny", "--adapter", tmp_path / "FT", "--out", tmp_path / "merged")
    assert documented("merge") <= merged.keys()
    pushed = told(shell, "push", tmp_path / "FT", "me/detox", "--dry-run")
    assert pushed.keys() == documented("push")
    assert pushed["url"] is None


@pytest.mark.slow
def test_an_experiment(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(
        "model: tiny\nmeasure: {limit: 4, max_new_tokens: 4, scorer: lexical, similarity: false, perplexity: false, "
        "counter_narrative: null}\nfinetune: {limit: 4, max_steps: 1}\n"
    )
    found = told(shell, "run", tmp_path / "e.yaml", "--out", tmp_path / "o")
    assert documented("run") <= found.keys()
    assert found["run"] == str(tmp_path / "o")
    assert Path(found["report"]).exists()
    assert [model["label"] for model in found["models"]] == ["PT", "FT"]
