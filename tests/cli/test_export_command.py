"""``rewardlm export`` and ``import`` as a shell sees them: every format, notes on stderr, mistakes in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from command_line import Shell

from rewardlm.runs import Run


@pytest.fixture
def tables(tmp_path: Path, shell: Shell) -> list[Path]:
    runs = []
    for label, scores in (("PT", (0.9, 0.8, 0.1)), ("RL", (0.1, 0.7, 0.2))):
        table = tmp_path / f"{label}.csv"
        with open(table, "w", newline="") as file:
            csv.writer(file).writerows(
                [
                    ["prompt", "response", "prompt_toxicity", "scores.x"],
                    *([f"Prompt {i}", f"=Answer {i}", 0.2 * i, score] for i, score in enumerate(scores)),
                ]
            )
        assert shell("import", table, "--label", label, "--out", tmp_path / label).code == 0
        runs.append(tmp_path / label)
    return runs


def test_every_format(shell: Shell, tmp_path: Path, tables: list[Path]) -> None:
    for suffix in ("parquet", "jsonl", "csv", "tex", "md", "yaml"):
        done = shell("export", *tables, "--out", tmp_path / "new" / f"all.{suffix}", "n_resamples=100")
        assert (done.code, done.out.strip()) == (0, str(tmp_path / "new" / f"all.{suffix}")), done
    folder = tmp_path / "new"
    assert pyarrow.parquet.read_table(folder / "all.parquet").column("scores.x").to_pylist() == [
        0.9, 0.8, 0.1, 0.1, 0.7, 0.2,
    ]  # fmt: skip
    assert [json.loads(line)["run"] for line in (folder / "all.jsonl").open()] == ["PT"] * 3 + ["RL"] * 3
    with open(folder / "all.csv", newline="") as file:
        assert {row["response"] for row in csv.DictReader(file)} == {f"'=Answer {i}" for i in range(3)}
    assert r"\toprule" in (folder / "all.tex").read_text()
    assert "| RL | x | all prompts | 3 |" in (folder / "all.md").read_text()
    assert yaml.safe_load((folder / "all.yaml").read_text())["output_type"] == "generate_until"
    assert len((folder / "all.prompts.jsonl").read_text().splitlines()) == 3
    assert not list(folder.glob("*.tmp"))


def test_an_experiment_stands_for_its_measurements(shell: Shell, tmp_path: Path, tables: list[Path]) -> None:
    home = Run.start(tmp_path / "home", kind="experiment", label="E", settings={})
    Run.start(tmp_path / "home" / "train", kind="rlaf", label="RL", settings={})
    home.update(runs=["train", *(f"../{run.name}" for run in tables)])
    assert shell("export", tmp_path / "home", "--out", tmp_path / "all.jsonl").code == 0
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 6
    done = shell.fails("export", tmp_path / "home" / "train", "--out", tmp_path / "t.csv")
    assert "only measured or imported runs" in done.err


def test_what_was_left_out_is_said(shell: Shell, tmp_path: Path) -> None:
    row = {"entry_type": "attempt", "uuid": "u", "seq": 0, "status": 2, "probe_classname": "p.X", "prompt": "Q",
           "outputs": ["a"], "detector_results": {"mitigation.MitigationBypass": [1.0]}}  # fmt: skip
    (tmp_path / "r.report.jsonl").write_text(json.dumps(row) + "\n")
    done = shell("import", tmp_path / "r.report.jsonl", "--label", "G", "--out", tmp_path / "G")
    assert done.code == 0
    assert "note: detector 'mitigation.MitigationBypass' is left out" in done.err
    assert "note: the file has no scores" in done.err
    done = shell("export", tmp_path / "G", "--out", tmp_path / "G.yaml")
    assert "note: the task can't express" in done.err


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("x.xlsx", (), "the suffix is the format, one of .parquet, .jsonl, .csv, .tex, .md, .yaml; got .xlsx"),
        ("x", (), "got none"),
        ("x.csv", ("--scorer", "x"), "--scorer goes with .tex and .md"),
        ("x.md", ("--scorer", "y"), "no scores by 'y'"),
        ("PT/x.csv", (), "among the records of the run"),
    ],
)
def test_mistakes_are_one_line(
    shell: Shell, tmp_path: Path, tables: list[Path], out: str, more: tuple[str, ...], said: str
) -> None:
    assert said in shell.fails("export", *tables, "--out", tmp_path / out, *more).err
    assert not (tmp_path / out).exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['rewardlm', 'export', '--help']\nfrom rewardlm.cli.app import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'pyarrow', 'numpy'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_rows_and_tables_load_no_torch(tmp_path: Path, tables: list[Path]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport rewardlm.reporting.paper\n"
        "import rewardlm.measuring.harness_task\n"
        "from rewardlm.measuring.exported import export_answers\n"
        f"export_answers([Path({str(tables[0])!r})], Path({str(tmp_path / 'x.parquet')!r}))\n"
        "assert not {'torch', 'transformers'} & {name.split('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
