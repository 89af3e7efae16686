"""``rewardlm judge`` from the shell: flags, JSON alone on stdout, one-line errors, and quick help."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell

from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.runs import Run

KEYS = {
    "n", "scored", "auc", "auc_ci95", "average_precision", "spearman", "spearman_ci95", "pearson", "ece", "brier",
    "accuracy", "f1", "label", "judge", "suite", "by_functionality", "by_target", "bias", "texts_per_second",
}  # fmt: skip


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "own.csv"
    rows = [f"you {word} number {i},{label}" for i in range(20) for word, label in (("idiot", 1), ("friend", 0))]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("list", ["--dir", "--measure", "--suite", "--limit", "--out", "--json", "--config", "--seed", "--device"]),
        ("train", ["--data", "--encoder", "--out", "--limit", "--config", "--seed", "--device"]),
        ("evaluate", ["--suite", "--label", "--json", "--limit", "--out", "--config", "--seed", "--device"]),
    ],
)
def test_flags_are_there(shell: Shell, command: str, flags: list[str]) -> None:
    done = shell("judge", command, "--help")
    assert done.code == 0
    assert not [flag for flag in flags if f"{flag} " not in done.out]


def test_one_judge_and_one_suite_are_one_flat_object(shell: Shell, suite: Path) -> None:
    done = shell("judge", "evaluate", "lexical", "--suite", suite, "--json", "n_resamples=100")
    assert done.code == 0
    found = json.loads(done.out)
    assert found.keys() >= KEYS
    assert (found["n"], found["judge"], found["suite"], found["label"]) == (40, "lexical", "own", "toxicity")
    assert found["auc"] == 1
    assert found["by_functionality"] is None
    assert found["texts_per_second"] > 0


def test_more_are_results_and_confusion(shell: Shell, suite: Path) -> None:
    other = suite.with_name("scores.jsonl")
    other.write_text('{"text": "you idiot", "score": 0.9}\n{"text": "hello", "score": 0.1}\n')
    done = shell(
        "judge", "evaluate", "lexical,lexical2", "--suite", suite, "--suite", other, "--json", "speed=false",
        "n_resamples=100",
    )  # fmt: skip
    found = json.loads(done.out)
    assert [(r["judge"], r["suite"]) for r in found["results"]] == [
        ("lexical", "own"), ("lexical", "scores"), ("lexical2", "own"), ("lexical2", "scores"),
    ]  # fmt: skip
    assert [(c["suite"], c["judges"]) for c in found["confusion"]] == [
        ("own", ["lexical", "lexical2"]),
        ("scores", ["lexical", "lexical2"]),
    ]
    assert all(r["texts_per_second"] is None for r in found["results"])


@pytest.mark.slow
def test_tables_hold_the_numbers_and_no_markup(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "[red]own[bold].csv"
    path.write_text("text,label,functionality,group\nyou idiot,1,\x1b[31minsult,women\nhello,0,greeting,women\n")
    done = shell("judge", "evaluate", "lexical,lexical2", "--suite", path, "--limit", "2", "speed=false")
    assert done.code == 0
    assert "[red]own[bold]: 2 texts, 1 positive" in done.out
    assert "AUC" in done.out
    assert "\x1b" not in done.out
    assert "where lexical (toxicity) and lexical2 (toxicity) agree" in done.out


def test_a_run_resumes_and_a_config_file_counts(shell: Shell, suite: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"judge: lexical\nsuite: {suite}\nspeed: false\nn_resamples: 100\nseed: 3\n")
    first = shell("judge", "evaluate", "lexical", "--config", config, "--out", tmp_path / "run", "--json")
    assert first.code == 0, first.err
    assert Run.open(tmp_path / "run", kind="judge-evaluation").meta["settings"]["seed"] == 3
    again = shell("judge", "evaluate", "lexical", "--config", config, "--out", tmp_path / "run", "--json")
    assert again.out == first.out
    refused = shell.fails("judge", "evaluate", "lexical", "--config", config, "--out", tmp_path / "run", "--seed", 4)
    assert "seed was 3, now 4" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["evaluate"], 2, "NAME"),
        (["evaluate", "lexical"], 2, "'suite' is missing"),
        (["evaluate", "lexical", "--suite", "none.csv"], 1, "no such name or file"),
        (["evaluate", "lexical", "--suite", "bad.csv"], 1, "bad.csv, line 3: 'label' is 'maybe'"),
        (["evaluate", "lexical", "--suite", "bad.csv", "--json"], 1, "line 3"),
        (["evaluate", "nonsense", "--suite", "good.csv"], 1, "unknown scorer 'nonsense'"),
        (["evaluate", "lexical", "--suite", "good.csv", "--label", "hate"], 1, "labels toxicity, not 'hate'"),
        (["evaluate", "lexical", "--suite", "good.csv", "--suite", "good.csv"], 2, "named twice"),
        (["evaluate", "lexical,lexical", "--suite", "good.csv"], 2, "named twice"),
        (["evaluate", "lexical", "--suite", "good.csv", "--limit", "0"], 2, "limit"),
        (["evaluate", "lexical", "--suite", "good.csv", "sede=1"], 2, "did you mean 'seed'"),
        (["evaluate", "lexical", "--suite", "good.csv", "--card"], 2, "no judge.json"),
        (["evaluate", "perspective", "--suite", "good.csv"], 1, "PERSPECTIVE_API_KEY"),
        (["list", "nonsense"], 2, "'nonsense' is not listed"),
        (["list", "--dir", "none"], 2, "no folder"),
        (["list", "--out", "f.json"], 2, "--measure"),
        (["train", "--out", "o"], 2, "'data' is missing"),
        (["train", "--data", "starter"], 2, "--out"),
        (["train", "starter", "--out", "o"], 2, "put sources after --data"),
        (["train", "--data", "starter", "--out", "o", "epoch=2"], 2, "did you mean 'epochs'"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("text,label\na,0\nb,maybe\n")
    (tmp_path / "good.csv").write_text("text,label\na,0\nb,1\n")
    done = shell.fails("judge", *arguments)
    assert said in done.err, done
    assert done.code == code, done


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "A", "B", "C"],
        ["--data", "A,B", "--data", "C"],
        ["--data", "A", "B", "lora.r=4", "C"],
        ["--data", "A", "--data", "B", "--seed", "0", "C"],
    ],
)
def test_training_takes_sources_in_every_way(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    import rewardlm.judges.train

    seen: list[Any] = []

    def train(settings: JudgeTrainSettings, out: Path, **_: Any) -> Run:
        seen.append((settings, out))
        return Run(out, {})

    monkeypatch.setattr(rewardlm.judges.train, "train_judge", train)
    monkeypatch.chdir(tmp_path)
    for name in "ABC":
        (tmp_path / name).write_text("text,label\nYou fool.,1\n")
    done = shell("judge", "train", *arguments, "--encoder", "minilm", "--out", tmp_path / "j", "--epochs", "2")
    assert done.code == 0, done.err
    settings, out = seen[0]
    assert settings.data == ["A", "B", "C"]
    assert (settings.encoder, settings.epochs, out) == ("minilm", 2, tmp_path / "j")
    assert done.out.strip() == str(tmp_path / "j")
    assert settings.lora.r == (4 if "lora.r=4" in arguments else JudgeTrainSettings(data=["A"]).lora.r)


def test_list_prints_tables_and_json(shell: Shell) -> None:
    done = shell("judge", "list")
    assert done.code == 0
    for name in ("starter", "witness", "lexical", "lexical2", "perspective", "2026-12-31"):
        assert name in done.out
    assert "lexical is at chance on hatecheck as a whole (0.47)" in done.out
    found = json.loads(shell("judge", "list", "lexical", "--json").out)
    assert [judge["name"] for judge in found["judges"]] == ["lexical"]
    assert found["judges"][0]["figures"]["hatecheck"]["auc"] == pytest.approx(0.468, abs=0.001)


def test_list_measures_on_request(shell: Shell, suite: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = shell("judge", "list", "lexical", "--measure", "--suite", suite, "--out", file, "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)["judges"][0]["figures"]
    assert list(shown) == ["own"]
    assert json.loads(file.read_text())["judges"]["lexical"]["figures"] == shown


@pytest.mark.slow
def test_help_is_quick() -> None:
    def seconds(*arguments: str) -> float:
        """CPU seconds: the clock's are also other processes'."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    bare, asked = [], []
    for _ in range(5):
        bare.append(seconds("-c", "import typer"))
        asked.append(seconds("-m", "rewardlm", "judge", "--help"))
    # Held against what any Typer program costs, so that a busy machine doesn't decide.
    assert min(asked) < 3 * min(bare) + 0.1
