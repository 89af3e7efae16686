"""A wrong name, file, column or folder is told before torch is there, and before a folder is made for the run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell

from rewardlm.config import MeasureSettings, RlafSettings
from rewardlm.errors import NotAvailableError, RunError, ScorerError
from rewardlm.preflight import check
from rewardlm.runs import Run

# What is typed, the exit code, and what is said of it.
CHEAP: list[tuple[str, int, list[str]]] = [
    ("measure tyni --out o", 1, ["unknown model 'tyni': did you mean 'tiny'?"]),
    ("measure ./none --out o", 1, ["unknown model './none'"]),
    ("measure empty --out o", 1, ["empty is no model: it has no config.json"]),
    ("measure me/mini --out o", 1, ["can't fetch the model me/mini: HF_HUB_OFFLINE is set", "smollm2-135m"]),
    ("measure tiny --scorer lexcial --out o", 1, ["unknown scorer 'lexcial': did you mean 'lexical'?"]),
    ("measure tiny --scorer mean(lexical,lexcal) --out o", 1, ["'lexcal': did you mean 'lexical'?"]),
    ("measure tiny --scorer starter#hat --out o", 1, ["'hate', not 'hat'"]),
    ("measure tiny --scorer me/judge --out o", 1, ["can't fetch the judge me/judge", "starter, witness and lexical"]),
    ("measure tiny --scorer no_module:f --out o", 1, ["can't import no_module"]),
    ("measure tiny --scorer endpoint --out o", 1, ["services.endpoint.url"]),
    ("measure tiny --scorer perspective --out o", 1, ["PERSPECTIVE_API_KEY"]),
    ("measure tiny --toxic-by nobody --out o", 1, ["unknown scorer 'nobody'"]),
    ("measure tiny counter_narrative=starter_pair --out o", 1, ["did you mean 'starter_pairs'?"]),
    ("measure tiny --prompts none.jsonl --out o", 1, ["none.jsonl: no such file"]),
    ("measure tiny --prompts bad.jsonl --out o", 1, ["bad.jsonl, line 2: not JSON"]),
    ("measure tiny --prompts columns.csv --out o", 1, ["columns.csv, line 2", "'prompt' or 'text'"]),
    ("measure tiny --prompts rtp --out o", 1, ["can't fetch the prompts rtp", "rtp:packaged"]),
    ("measure tiny --prompts rtp:none --out o", 1, ["rtp"]),
    ("measure tiny --prompts good.txt --toxic-by dataset --out o", 2, ["good.txt has no scores: name a scorer"]),
    ("measure tiny --adapter none --out o", 1, ["adapter none: no such folder"]),
    ("measure tiny --device toaster --out o", 1, ["device 'toaster'"]),
    ("measure tiny --out good.txt", 1, ["good.txt is a file"]),
    ("measure tiny --out good.txt/below", 1, ["good.txt is a file"]),
    ("measure tiny --out other", 1, ["other holds a run of kind 'finetune', not 'measure'"]),
    ("finetune tiny --dialogues startr --out o", 1, ["startr"]),
    ("finetune tiny --dialogues none.jsonl --out o", 1, ["none.jsonl: no such file"]),
    ("finetune tiny retain.coef=1 retain.source=none.txt --out o", 1, ["none.txt"]),
    ("rlaf tiny --reward starte --out o", 1, ["did you mean 'starter'?"]),
    ("rlaf tiny --witness nobody --out o", 1, ["unknown scorer 'nobody'"]),
    ("rlaf tiny --algorithm no_module:f --out o", 2, ["algorithm 'no_module:f': can't import no_module"]),
    ("score none --scorer lexical", 1, ["none is not a run"]),
    ("merge tyni --adapter none --out o", 1, ["unknown model 'tyni'"]),
    ("merge tiny --out o", 2, ["nothing to merge: name the adapter with --adapter"]),
    ("merge tiny --adapter none --out o", 1, ["adapter none: no such folder"]),
    ("doctor tyni", 1, ["unknown model 'tyni'"]),
    ("judge evaluate lexcial --suite hatecheck", 1, ["did you mean 'lexical'?", "can't fetch the suite hatecheck"]),
    ("judge evaluate lexical --suite none.csv", 1, ["none.csv"]),
    ("judge train --data none.csv --out o", 1, ["none.csv is not there"]),
    ("judge train --data starter --encoder minilm6 --out o", 1, ["unknown encoder 'minilm6': did you mean 'minilm'?"]),
    ("judge train-pairs --dialogues none.jsonl --out o", 1, ["none.jsonl"]),
    ("judge evaluate-pairs starter_pair", 1, ["did you mean 'starter_pairs'?"]),
    ("judge train --data starter teacher=nobody --out o", 1, ["unknown scorer 'nobody'"]),
    ("judge train --data starter distil=nobody --out o", 1, ["unknown scorer 'nobody'"]),
    ("judge train-pairs hate=none.csv --out o", 1, ["none.csv is not there"]),
    ("judge train-pairs start=starter_pair --out o", 1, ["did you mean 'starter_pairs'?"]),
    ("steer export none --out v.gguf", 1, ["none is no steer folder"]),
    ("steer import tiny none.gguf --out o", 1, ["none.gguf: no such file"]),
    ("run experiment.yaml --out o", 1, ["error: measure: unknown scorer 'lexcial'"]),
    ("run stages.yaml --out o", 1, [
        "\nmeasure, rlaf: unknown scorer 'lexcial'", "\nfinetune: none.jsonl: no such file", "unknown model 'tyni'",
        "\nerror: 3 things are wrong, see above",
    ]),
]  # fmt: skip
# Each command line in one process, which says what it had to load.
PROGRAM = """
import contextlib, io, json, sys
from rewardlm.cli.app import main
for line in json.load(sys.stdin):
    sys.argv[1:] = line.split()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = sorted({"torch", "transformers", "peft", "trl", "datasets"} & sys.modules.keys())
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command line of CHEAP came to."""
    here = tmp_path_factory.mktemp("cheap")
    (here / "bad.jsonl").write_text('{"prompt": "good"}\n{"prompt": \n')
    (here / "columns.csv").write_text("a,b\nx,y\n")
    (here / "good.txt").write_text("Hello\n")
    (here / "empty").mkdir()
    (here / "other").mkdir()
    record = {"kind": "finetune", "label": "FT", "settings": {}, "status": "finished"}
    (here / "other" / "run.json").write_text(json.dumps(record))
    (here / "experiment.yaml").write_text("model: tiny\nmeasure: {scorer: lexcial}\n")
    (here / "stages.yaml").write_text(
        "model: tyni\nmeasure: {scorer: lexcial, part: measure}\nfinetune: {dialogues: none.jsonl}\n"
        "rlaf: {reward: lexcial, part: train}\n"
    )
    lines = [line for line, _, _ in CHEAP]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(lines), capture_output=True, text=True, timeout=240, cwd=here
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in here.iterdir()} == {
        "bad.jsonl", "columns.csv", "good.txt", "empty", "other", "experiment.yaml", "stages.yaml",
    }  # fmt: skip
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("line", "code", "said"), CHEAP, ids=[line for line, _, _ in CHEAP])
def test_it_is_told_before_anything_heavy_is_loaded(
    told: dict[str, Any], line: str, code: int, said: list[str]
) -> None:
    found = told[line]
    assert found["heavy"] == []
    assert found["code"] == code, found
    assert found["out"] == ""
    assert found["err"].splitlines()[-1].startswith("error: ")
    assert "Traceback" not in found["err"]
    for words in said:
        assert words in found["err"]


def test_all_that_is_wrong_is_told_at_once(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = shell.fails(
        "measure", "tyni", "--scorer", "lexcial,starter,nobody", "--prompts", "none.jsonl", "--adapter", "none",
        "--out", "o",
    )  # fmt: skip
    assert done.code == 1
    *each, last = done.err.splitlines()
    assert [line.partition(":")[0] for line in each] == [
        "unknown model 'tyni'", "adapter none", "unknown scorer 'lexcial'", "unknown scorer 'nobody'", "none.jsonl",
    ]  # fmt: skip
    assert last == "error: 5 things are wrong, see above"


def test_the_library_checks_as_early(tmp_path: Path) -> None:
    code = (
        "import sys, rewardlm as rl\n"
        "try: rl.measure('tiny', ['Hello'], 'lexcial', out='o')\n"
        "except Exception as error: print(error, '|', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "did you mean 'lexical'?" in done.stdout
    assert done.stdout.rstrip().endswith("| False")


def test_a_package_that_was_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    missing = {"bitsandbytes", "ray", "wandb", "trackio"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else there(name))
    told = {}
    for name, settings in {
        "load": RlafSettings(model="tiny", load="4bit", reward=["lexical"], trackers=["wandb"]),
        "ray": MeasureSettings(model="tiny", engine="ray", scorer=["lexical"]),
    }.items():
        with pytest.raises(NotAvailableError) as info:
            check(settings)
        assert info.value.exit_code == 1
        told[name] = str(info.value)
    assert told["load"] == (
        "--load 4bit needs the package bitsandbytes: pip install 'rewardlm[quantised]'; "
        "the tracker wandb needs the package wandb: pip install wandb"
    )
    assert told["ray"] == "--engine ray needs the package ray: pip install 'rewardlm[ray]'"
    check(MeasureSettings(model="tiny", scorer=["lexical"]))


def test_a_finished_run_needs_nothing_any_more(tmp_path: Path) -> None:
    """It is returned as it is, also where its judge or its prompts are gone."""
    settings = MeasureSettings(model="tiny", scorer=["gone"], prompts="gone.jsonl")
    with pytest.raises(ScorerError, match="2 things are wrong"):
        check(settings, tmp_path, kind="measure")
    run = Run.start(tmp_path, kind="measure", label="PT", settings={})
    with pytest.raises(ScorerError, match=r"^unknown scorer 'gone'"):  # what it has of prompts will do
        check(settings, tmp_path, kind="measure")
    run.update(status="finished")
    check(settings, tmp_path, kind="measure")
    with pytest.raises(RunError, match="holds a run of kind 'measure'"):
        check(settings, tmp_path, kind="rlaf")
