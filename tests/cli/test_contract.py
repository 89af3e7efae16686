"""The command line's names and flags are a contract, and a mistake is one line on stderr with an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Shell

COMMON = ["--config", "--seed", "--dtype", "--load", "--device", "--out"]
FLAGS = {
    "demo": ["--preset", *COMMON],
    "run": COMMON,
    "measure": [
        "--adapter", "--prompts", "--scorer", "--label", "--samples", "--max-new-tokens", "--limit", "--engine",
        "--url", "--batch-tokens", "--part", "--toxic-by", "--preset", "--thresholds", "--steer", "--strength",
        "--adapter-strength", "--suite", *COMMON,
    ],
    "steer fit": [
        "--method", "--run", "--judge", "--strength", "--direction", "--how", "--expert", "--anti-expert",
        "--toxic-adapter", "--adapter", *COMMON,
    ],
    "steer export": ["--out"],
    "steer import": ["--dtype", "--device", "--load", "--out"],
    "power": ["--effect", "--power", "--share", "--correlation", "--samples", "--json"],
    "gate": ["--against", "--config", "--json", "--junit", "--summary"],
    "frontier": ["--scorer", "--split", "--out", "--config", "--seed"],
    "score": ["--scorer", "--thresholds", "--config", "--seed", "--device"],
    "import": ["--label", "--map", "--out", "--config", "--seed"],
    "merge": ["--adapter", "--dtype", "--load", "--device", "--out", "--config"],
    "watch": ["--step", "--last", "--follow", "--every"],
    "view": ["--port", "--host", "--no-browser"],
    "init": ["--command"],
    "settings": ["--json"],
    "judge list": ["--dir", "--measure", "--suite", "--limit", "--out", "--json", "--config", "--seed", "--device"],
    "judge train": [
        "--data", "--encoder", "--epochs", "--learning-rate", "--batch-size", "--lora-r", "--limit", "--out",
        "--config", "--seed", "--device",
    ],
    "judge evaluate": [
        "--suite", "--label", "--limit", "--out", "--card", "--json", "--config", "--seed", "--device",
    ],
    "judge serve": ["--host", "--port", "--allow-anyone", "--device", "--config"],
    "judge migrate": [
        "--to", "--text-column", "--score-column", "--label-column", "--threshold", "--out", "--json", "--config",
        "--seed", "--device",
    ],
    "judge train-pairs": [
        "--dialogues", "--encoder", "--epochs", "--learning-rate", "--batch-size", "--lora-r", "--out", "--config",
        "--seed", "--device",
    ],
    "judge evaluate-pairs": ["--dialogues", "--limit", "--card", "--json", "--config", "--seed", "--device"],
    "compare": ["--scorer", "--redraw", "--thresholds", "--json", "--config", "--seed"],
    "finetune": [
        "--adapter", "--dialogues", "--epochs", "--learning-rate", "--batch-size", "--limit", "--lora-r", *COMMON,
    ],
    "rlaf": [
        "--adapter", "--prompts", "--part", "--limit", "--reward", "--algorithm", "--steps", "--batch-size",
        "--max-new-tokens", "--samples", "--ppo-epochs", "--minibatches", "--kl-coef", "--kl-target", "--lora-r",
        "--learning-rate", "--witness", "--critic", "--kl-penalty", "--tracker", *COMMON,
    ],
    "interpret": ["--json", "--limit", "--scorer", "--method", "--tokens", *COMMON],
    "report": ["--out", "--title", "--redraw", "--config", "--seed"],
    "export": ["--scorer", "--out", "--config", "--seed"],
    "push": ["--measured", "--license", "--private", "--dry-run", "--out"],
    "doctor": ["--tokens", "--max-new-tokens", "--lora-r", "--device", "--json"],
}  # fmt: skip


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_there(shell: Shell, command: str) -> None:
    done = shell(*command.split(), "--help")
    assert done.code == 0
    assert done.err == ""
    # These answer until they are stopped, and have no result to print.
    flags = [*FLAGS[command], *([] if command in ("view", "judge serve") else ["--json"])]
    missing = [flag for flag in flags if f"{flag} " not in done.out]
    assert not missing


def test_help_names_every_command(shell: Shell) -> None:
    done = shell("--help")
    assert done.code == 0
    assert all(f"\n  {command.split()[0]} " in done.out for command in FLAGS)
    assert "..." not in done.out.partition("Commands:")[2]
    judge = shell("judge", "--help").out
    assert all(f"\n  {command.split()[1]} " in judge for command in FLAGS if command.startswith("judge "))
    steer = shell("steer", "--help").out
    assert all(f"\n  {command.split()[1]} " in steer for command in FLAGS if command.startswith("steer "))


@pytest.mark.parametrize(("typed", "meant"), [(["mesure"], "'measure'"), (["judge", "evalute"], "'evaluate'")])
def test_a_typing_error_in_a_command_is_told_the_nearest(shell: Shell, typed: list[str], meant: str) -> None:
    assert f"Did you mean {meant}" in shell.fails(*typed).err


def test_version(shell: Shell) -> None:
    from importlib.metadata import version

    assert shell("--version").out.strip() == version("rewardlm")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nonsense"], 2, "nonsense"),
        (["measure"], 2, "model"),
        (["measure", "tiny"], 2, "--out"),
        (["measure", "tiny", "--out", "o", "--nonsense"], 2, "--nonsense"),
        (["measure", "tiny", "--out", "o", "--samples", "two"], 2, "--samples"),
        (["measure", "tiny", "--out", "o", "--limit", "0"], 2, "limit"),
        (["measure", "tiny", "--out", "o", "--samples", "0"], 2, "samples"),
        (["measure", "tiny", "--out", "o", "--dtype", "float8"], 2, "dtype"),
        (["measure", "tiny", "--out", "o", "--engine", "cloud"], 2, "engine"),
        (["measure", "tiny", "--out", "o", "--engine", "openai"], 2, "--url"),
        (["measure", "tiny", "--out", "o", "--url", "http://127.0.0.1:1/v1"], 2, "--engine openai"),
        pytest.param(
            ["measure", "tiny", "--out", "o", "--engine", "openai", "--url", "http://127.0.0.1:1/v1"],
            1,
            "--url",
            marks=pytest.mark.slow,  # it tries again for a while
        ),
        (["measure", "tiny", "--out", "o", "--preset", "huge"], 2, "rtp-paper, chat, quick"),
        (["measure", "tiny", "--out", "o", "sampels=2"], 2, "did you mean 'samples'"),
        (["measure", "tiny", "--out", "o", "generation.top_q=2"], 2, "did you mean 'generation.top_p'"),
        (["measure", "tiny", "--out", "o", "nonsense"], 2, "key.sub=value"),
        (["measure", "tiny", "--out", "o", "--config", "none.yaml"], 2, "no such file"),
        (["measure", "tiny", "--out", "o", "--config", "bad.yaml"], 2, "bad.yaml, line "),
        (["measure", "no-such-model", "--out", "o"], 1, "unknown model 'no-such-model'"),
        (["measure", "tiny", "--out", "o", "--device", "toaster"], 1, "toaster"),
        (["measure", "tiny", "--out", "o", "--load", "3bit"], 2, "load"),
        (["measure", "tiny", "--out", "o", "--scorer", "nonsense"], 1, "unknown scorer 'nonsense'"),
        (["doctor", "tiny", "--lora-r", "0"], 2, "--lora-r': Input should be greater"),
        (["settings"], 2, "no command is named: expected one of demo, run, measure"),
        (["measure", "tiny", "--out", "o", "--scorer", "lexical,lexical"], 2, "named twice"),
        (["measure", "tiny", "--out", "o", "--scorer", ""], 2, "at least one"),
        (["measure", "tiny", "--out", "o", "--scorer", "perspective"], 1, "PERSPECTIVE_API_KEY"),
        (["measure", "tiny", "--out", "o", "--scorer", "endpoint"], 1, "services.endpoint.url"),
        (["measure", "tiny", "--out", "o", "--scorer", "endpoint:x"], 1, "services.endpoints.x.url"),
        (["measure", "tiny", "--out", "o", "--scorer", "no_module:f"], 1, "no_module"),
        (["measure", "tiny", "--out", "o", "--prompts", "none.jsonl"], 1, "none.jsonl"),
        (["measure", "tiny", "--out", "o", "--prompts", "bad.jsonl"], 1, "line 2"),
        (["measure", "tiny", "--out", "o", "--prompts", "empty.txt"], 1, "empty.txt"),
        (["measure", "tiny", "--out", "o", "--adapter", "none"], 1, "none"),
        (["measure", "tiny", "--out", "bad.yaml"], 1, "is a file"),
        (["measure", "tiny", "--out", "bad.yaml/below"], 1, "bad.yaml"),
        (["merge", "tiny", "--out", "o"], 2, "--adapter"),
        (["merge", "tiny", "--out", "o", "--adapter", "none"], 1, "no such folder"),
        (["merge", "no-such-model", "--out", "o", "--adapter", "none"], 1, "unknown model"),
        (["finetune", "no-such-model", "--out", "o"], 1, "unknown model"),
        (["finetune", "tiny", "--out", "o", "--dialogues", "none.jsonl"], 1, "none.jsonl"),
        (["finetune", "tiny", "--out", "o", "--epochs", "0"], 2, "epochs"),
        (["rlaf", "tiny", "--out", "o", "--algorithm", "dpo"], 2, "algorithm"),
        (["rlaf", "tiny", "--out", "o", "--algorithm", "grpo", "--batch-size", "6"], 2, "divisible"),
        (["rlaf", "tiny", "--out", "o", "--reward", "nonsense"], 1, "nonsense"),
        (["score", "none", "--scorer", "lexical"], 1, "not a run"),
        (["score", "none"], 2, "name a judge with --scorer"),
        (["score", "none", "--scorer", "lexical", "a=b"], 2, "known: scorer, similarity, perplexity"),
        (["score", "none", "--scorer", "lexical,"], 2, "can't read the list"),
        (["score", "none", "--scorer", "lexical", "--config", "bad.yaml"], 2, "bad.yaml, line "),
        (["score", "none", "--scorer", "lexical", "max_failed_share=2"], 2, "max_failed_share"),
        (["finetune", "tiny", "--out", "o", "--adapter", "a", "--lora-r", "4"], 2, "which keeps its own rank"),
        (["rlaf", "tiny", "--out", "o", "--adapter", "a", "--lora-r", "4"], 2, "which keeps its own rank"),
        (["compare"], 2, "RUN"),
        (["compare", "none"], 1, "not a run"),
        (["compare", "none", "--json"], 1, "not a run"),
        (["report", "none"], 1, "not a run"),
        (["report"], 2, "RUN"),
        (["import", "none.csv", "--label", "PT", "--out", "o"], 1, "none.csv"),
        (["import", "bad.jsonl", "--label", "PT", "--out", "o"], 1, "bad.jsonl"),
        (["import", "empty.txt", "--label", "PT", "--out", "o"], 1, "empty.txt"),
        (["import", "none.csv", "--label", "PT", "--map", "prompt", "--out", "o"], 2, "NAME=COLUMN"),
        (["import", "none.csv", "--out", "o"], 2, "'label' is missing"),
        (["import", "none.csv", "--label", "PT", "--out", "o", "lable=x"], 2, "did you mean 'label'"),
        (["judge", "serve"], 2, "NAME"),
        (["judge", "serve", "nonsense"], 1, "unknown scorer 'nonsense'"),
        (["judge", "serve", "lexical", "--port", "70000"], 2, "port"),
        (["judge", "serve", "lexical", "--host", "0.0.0.0"], 2, "REWARDLM_SERVE_KEY, or give --allow-anyone"),
        (["judge", "serve", "lexical", "--host", "192.0.2.1", "allow_anyone=true"], 2, "can't listen on 192.0.2.1"),
        (["judge", "serve", "starter", "attributes.TOXICITY=hat"], 2, "did you mean 'hate'"),
        (["judge", "serve", "lexical", "attributes.toxic=hate"], 2, "attributes"),
        (["judge", "serve", "lexical", "aliases.a=b"], 2, "aliases name b"),
        (["judge", "serve", "lexical", "key_variable=NO_SUCH_KEY"], 2, "NO_SUCH_KEY, which is not set"),
        (["run", "none.yaml"], 2, "no such file"),
        (["run", "bad.yaml"], 2, "bad.yaml"),
        (["demo", "--preset", "huge"], 2, "quick or full"),
        (["interpret", "a", "b", "--out", "c"], 1, "not a run"),
        (["interpret", "a", "b"], 2, "--out"),
        (["interpret", "a", "b", "--out", "c", "--method", "lime"], 2, "inseq:NAME"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("a: [1, 2\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "good"}\n{"prompt": \n')
    (tmp_path / "empty.txt").write_text("")
    done = shell.fails(*arguments)
    assert done.code == code, done
    assert said in done.err, done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: tiny\nmeasures: {}\n", "did you mean 'measure"),
        ("title: x\n", "'model' is missing"),
        ("model: tiny\nmeasure: {limit: 0}\n", "limit"),
        ("model: tiny\nmeasure: {topp: 1}\n", "measure.topp"),
        ("model: tiny\nfinetune: {epoch: 1}\n", "epoch"),
        ("model: tiny\nrlaf: {after: finetune}\n", "no finetune section"),
        ("model: tiny\nrlaf: {after: sft}\n", "after"),
        ("model: tiny\nrlaf: {}\n", "the prompts that are measured"),
        (
            "model: tiny\nfinetune: {}\nrlaf: {part: train, after: finetune, lora: {r: 4}}\nmeasure: {part: measure}\n",
            "own rank",
        ),
        ("model: tiny\nmeasure: {part: measure}\nrlaf: {part: train, batch_size: 3, algorithm: grpo}\n", "divisible"),
        ("model: tiny\nfinetune: 3\n", "finetune"),
    ],
)
def test_an_experiments_mistakes_are_told_before_anything_runs(
    shell: Shell, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(text)
    done = shell.fails("run", file, "--out", tmp_path / "o")
    assert done.code == 2
    assert said in done.err, done.err
    assert not (tmp_path / "o").exists()


def test_a_label_that_climbs_out_writes_nothing_outside(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("prompt,response,scores.x\nhi,ho,0.5\nhu,he,0.7\n")
    for number, label in enumerate(["../../x", "x" * 300, "<script>alert(1)</script>", "a\0b"]):
        out = tmp_path / "runs" / str(number)
        (tmp_path / "label.yaml").write_text(json.dumps({"label": label}))
        assert shell("import", file, "--config", tmp_path / "label.yaml", "--out", out).code == 0
        assert json.loads((out / "run.json").read_text())["label"] == label
    assert sorted(p.name for p in tmp_path.iterdir()) == ["label.yaml", "runs", "t.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["../../x", "x" * 300, "a/../b", "a\nb/c"])
def test_a_model_that_climbs_out_writes_nothing_outside(shell: Shell, tmp_path: Path, model: str) -> None:
    shell.fails("measure", model, "--limit", 2, "--out", tmp_path / "runs" / "o")
    # It is told before anything is written.
    assert list(tmp_path.iterdir()) == []


def test_as_a_module_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rewardlm", "measure", "nonsense", "--out", str(tmp_path / "o"), "--limit", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    script = f"{sys.executable} -m rewardlm --help | head -n 0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert "Traceback" not in done.stderr
