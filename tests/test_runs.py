"""The run directory: records survive a kill, settings can't change underneath, names stay inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewardlm.errors import DiskFullError, RunError
from rewardlm.judges.evaluate import evaluate
from rewardlm.judges.pairs import PairJudgeSettings, train_pair_judge
from rewardlm.judges.settings import JudgeEvaluateSettings, JudgeTrainSettings
from rewardlm.judges.train import train_judge
from rewardlm.measuring.imported import import_table
from rewardlm.runs import Run, alone, environment, expand, prompts_hash, write_atomically
from rewardlm.types import Generation, Message, Prompt, Score

ANSWER = {
    "id": "1",
    "prompt_id": "p",
    "model": "PT",
    "sample": 0,
    "text": "t",
    "n_tokens": 1,
    "finish": "stop",
    "seed": 0,
}

SETTINGS = {"model": "tiny", "seed": 0, "generation": {"top_p": 0.9, "top_k": 0}, "device": "cpu"}


def start(path: Path, **changes: object) -> Run:
    return Run.start(path, kind="measure", label="PT", settings={**SETTINGS, **changes}, free=("device",))


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    prompts = [
        Prompt(
            "p1", (Message("user", "a\n\u2028\x00"), Message("assistant", "b"), Message("user", "ü😀")), "s", 0.25, True
        ),
        Prompt("p2", (Message("user", "\ud800"),), "s"),
    ]
    answers = [
        Generation("p1#0", "p1", "PT", 0, "text\r\n", 3, "stop", 2**62),
        Generation("p1#1", "p1", "PT", 1, "text", 2, "stop", 0, tokens=(5, 2)),
    ]
    scores = [Score("p1#0", "lexical", "toxicity", 0.5), Score("p1#0", "x", "y", None, "why")]
    run.append("prompts", prompts)
    run.append("generations", answers)
    run.append("scores", scores[:1])
    run.append("scores", scores[1:])
    again = Run.open(tmp_path / "run", kind="measure")
    assert again.prompts() == prompts
    assert again.generations() == answers
    assert again.scores() == scores
    assert (again.label, again.finished) == ("PT", False)
    run.update(status="finished")
    assert Run.open(tmp_path / "run").finished


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_half_a_last_line_is_dropped_and_the_next_record_starts_a_line(tmp_path: Path, cut: int) -> None:
    run = start(tmp_path / "run")
    run.append("metrics", [{"step": 1, "text": "äöü"}, {"step": 2}])
    file = tmp_path / "run" / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    complete = [json.loads(line) for line in whole[:-cut].split(b"\n")[:-1]]
    assert list(run.read("metrics")) == complete
    resumed = start(tmp_path / "run")
    resumed.append("metrics", [{"step": 3}])
    assert list(resumed.read("metrics")) == [*complete, {"step": 3}]


def test_a_line_that_is_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    run.append("metrics", [{"step": 1}, {"step": 2}])
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step"\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2"):
        list(run.read("metrics"))


def test_nan_is_not_written(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append("metrics", [{"loss": 1.0}, {"loss": float("nan")}])
    assert list(run.read("metrics")) == [], "a batch is written whole or not at all"


def test_the_same_settings_resume_and_free_ones_may_differ(tmp_path: Path) -> None:
    start(tmp_path / "run").update(note=1)
    assert start(tmp_path / "run", device="cuda").meta["note"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"generation": {"top_p": 0.8, "top_k": 0}}, "generation.top_p was 0.9, now 0.8"),
        ({"new": 3}, "new was None, now 3"),
        ({"model": ["a"]}, r"model was 'tiny', now \['a'\]"),
    ],
)
def test_other_settings_are_an_error_that_names_them(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    start(tmp_path / "run").append("generations", [ANSWER])
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunError, match=said):
        start(tmp_path / "run", **changes)
    assert list(Run.open(tmp_path / "run").read("generations")) == [ANSWER]
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_says_which_it_is(tmp_path: Path) -> None:
    assert repr(start(tmp_path / "run")) == f"Run('{tmp_path / 'run'}', measure, 'PT', running)"


def test_a_run_that_stopped_before_its_first_result_is_begun_anew(tmp_path: Path) -> None:
    """Else a mistyped name, put right, would be refused as another setting."""
    run = start(tmp_path / "run", model="tinny")
    run.append("prompts", [{"id": 1}])
    run.update(prompts_hash="x")
    again = start(tmp_path / "run")
    assert again.meta["settings"]["model"] == "tiny"
    assert "prompts_hash" not in again.meta
    assert list(again.read("prompts")) == []


@pytest.mark.parametrize("result", ["finished", "folder", "metrics"])
def test_what_took_time_is_never_begun_anew(tmp_path: Path, result: str) -> None:
    run = start(tmp_path / "run")
    if result == "finished":
        run.update(status="finished")
    elif result == "folder":
        (run.path / "checkpoints").mkdir()
    else:
        run.append("metrics", [{"step": 1}])
    with pytest.raises(RunError, match="other settings"):
        start(tmp_path / "run", seed=5)


def test_another_kind_is_an_error(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(RunError, match="kind 'measure', not 'sft'"):
        Run.start(tmp_path / "run", kind="sft", label="FT", settings={})
    with pytest.raises(RunError, match="'sft' run is needed"):
        Run.open(tmp_path / "run", kind="sft")


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match="not a run"):
        start(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        start(tmp_path / "file")
    with pytest.raises(RunError, match="can't make the directory"):
        start(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"kind": "measure"}', "\x00", '{"kind":"measure","label":1}']
)
def test_a_damaged_run_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json") as info:
        Run.open(tmp_path)
    assert "\n" not in str(info.value)


def test_no_run_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(RunError, match="not a run"):
            Run.open(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"run\.json: No space left on device; it is as it was"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_atomic_writes_replace_and_leave_nothing_behind(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"1" * 1000)
    write_atomically(tmp_path / "x", b"2")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"2"


@pytest.mark.parametrize("whole", [b"", b"{}\n", b"{}\n" * 50_000])
@pytest.mark.parametrize("rest", [0, 1, 65_535, 65_536, 200_000])
def test_what_a_kill_left_is_cut_off_however_long_it_is(tmp_path: Path, whole: bytes, rest: int) -> None:
    run = start(tmp_path / "run")
    file = run.path / "generations.jsonl"
    file.write_bytes(whole + b"x" * rest)
    run.mend()
    assert file.read_bytes() == whole


def test_a_failed_rewrite_in_pieces_leaves_the_old_records(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    run.append("metrics", [{"step": 1}, {"step": 2}])

    def records():
        yield from run.read("metrics")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.replace("metrics", records())
    assert list(run.read("metrics")) == [{"step": 1}, {"step": 2}]
    run.replace("metrics", (record for record in run.read("metrics") if record["step"] == 2))
    assert list(run.read("metrics")) == [{"step": 2}]


def test_an_experiment_stands_for_its_runs(tmp_path: Path) -> None:
    for name in ("measure/PT", "train/RL", "measure/RL"):
        start(tmp_path / "e" / name)
    other = start(tmp_path / "other")
    experiment = Run.start(tmp_path / "e", kind="experiment", label="E", settings={})
    experiment.update(runs=["measure/PT", "train/RL", "measure/RL"])
    found = [run.path for run in expand([other.path, tmp_path / "e"])]
    assert found == [other.path, *(tmp_path / "e" / name for name in ("measure/PT", "train/RL", "measure/RL"))]
    experiment.update(runs=["measure/PT", "."])
    with pytest.raises(RunError, match="lists itself"):
        list(expand([tmp_path / "e"]))
    with pytest.raises(RunError, match="not a run"):
        list(expand([tmp_path / "none"]))


def test_a_stage_of_an_experiment_may_be_moved_and_no_other_run(tmp_path: Path) -> None:
    home = tmp_path / "experiment"
    Run.start(home, kind="experiment", label="E", settings={})

    def stage(home: Path, adapter: Path) -> Run:
        return start(home / "measure" / "FT", adapter=str(adapter), nested={"path": str(adapter)})

    first = stage(home, home / "train" / "FT" / "adapter")
    first.append("generations", [ANSWER])
    assert str(tmp_path) not in (first.path / "run.json").read_text()
    moved = home.rename(tmp_path / "elsewhere")
    again = stage(moved, moved / "train" / "FT" / "adapter")
    assert list(again.read("generations")) == [ANSWER]
    # Another adapter of the moved experiment, and the old place, which is another folder now, are other settings.
    for other in (moved / "train" / "RL" / "adapter", home / "train" / "FT" / "adapter"):
        with pytest.raises(RunError, match="adapter was 'train/FT/adapter'"):
            stage(moved, other)
    alone = start(tmp_path / "alone", adapter=str(tmp_path / "x"))
    assert alone.meta["settings"]["adapter"] == str(tmp_path / "x")


def test_a_stage_that_recorded_whole_paths_goes_on(tmp_path: Path) -> None:
    Run.start(tmp_path, kind="experiment", label="E", settings={})
    run = start(tmp_path / "measure" / "FT", adapter="x")
    run.update(settings={**run.meta["settings"], "adapter": str(tmp_path / "train" / "FT")}, note=1)
    run.append("generations", [ANSWER])
    assert start(tmp_path / "measure" / "FT", adapter=str(tmp_path / "train" / "FT")).meta["note"] == 1


def test_the_hash_of_prompts_sees_ids_turns_and_order_alone() -> None:
    a, b = Prompt("1", (Message("user", "x"),), "s"), Prompt("2", (Message("user", "y"),), "s")
    assert prompts_hash([a, b]) != prompts_hash([b, a])
    assert prompts_hash([a]) == prompts_hash([Prompt("1", (Message("user", "x"),), "other", 0.9, True)])
    assert prompts_hash([a]) != prompts_hash([Prompt("1", (Message("assistant", "x"),), "s")])
    assert prompts_hash([Prompt("1", (Message("user", "x"), Message("user", "y")), "s")]) != prompts_hash(
        [Prompt("1", (Message("user", "xy"),), "s")]
    )


def test_the_environment_tells_nothing_of_its_user() -> None:
    text = json.dumps(environment())
    assert environment()["versions"]["torch"]
    for secret in (os.path.expanduser("~"), os.uname().nodename, os.getcwd()):
        assert secret not in text


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("generations", {"id": None}, "id is None"),
        ("generations", {"text": 7}, "text is 7"),
        ("generations", {"sample": "0"}, "sample is '0'"),
        ("prompts", {"turns": "hello"}, "turns is 'hello'"),
        ("prompts", {"toxicity": [1]}, r"toxicity is \[1\]"),
        ("scores", {"value": "0.5"}, "value is '0.5'"),
        ("prompts", {"turns": [{"role": "user"}]}, "turns is .*not a list of role and text"),
        ("prompts", {"turns": [{"role": "user", "text": 3}]}, "turns is .*not a list of role and text"),
        ("prompts", {"turns": ["hello"]}, "turns is .*not a list of role and text"),
        ("prompts", {"turns": []}, r"turns is \[\]"),
        ("generations", {"model": ...}, "model is missing"),
        ("generations", {"tokens": "abc"}, "tokens is 'abc'"),
        ("prompts", {"colour": "red"}, "it has the field 'colour', which no record has"),
        ("scores", {"generation_id": ...}, "generation_id is missing"),
        ("scores", {"value": True}, "value is True"),
        ("scores", {"value": float("nan")}, "value is nan"),
        ("scores", {"value": 10**400}, "value is a huge number"),
        ("generations", {"seed": False}, "seed is False"),
        ("metrics", {"step": ...}, "step is missing"),
        ("metrics", {"step": "1"}, "step is '1'"),
        ("scores", None, "a list, not an object"),
    ],
)
def test_a_record_that_was_changed_by_hand_is_named(
    tmp_path: Path, name: str, change: dict[str, object] | None, said: str
) -> None:
    run = start(tmp_path / "run")
    run.append("prompts", [Prompt("p1", (Message("user", "a"),), "s", 0.25)])
    run.append("generations", [Generation("p1#0", "p1", "PT", 0, "text", 3, "stop", 1)])
    run.append("scores", [Score("p1#0", "x", "y", None, "why")])
    run.append("metrics", [{"step": 1, "loss": 0.5}])
    (record,) = run.read(name)
    changed = [] if change is None else {k: v for k, v in {**record, **change}.items() if v is not ...}
    with open(run.path / f"{name}.jsonl", "a") as file:
        file.write(json.dumps(changed) + "\n")
    with pytest.raises(RunError, match=rf"{name}\.jsonl, line 2: {said}"):
        list(run.read(name))


@pytest.mark.parametrize("line", ['{"step": ' + "9" * 5000 + "}", "[" * 20_000, '{"a": "\xff"}', "{"])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    run = start(tmp_path / "run")
    with open(run.path / "metrics.jsonl", "a", encoding="latin-1") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 1: not JSON"):
        list(run.read("metrics"))


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 20_000, "{", "\xff"])
def test_a_damaged_run_json_is_told(tmp_path: Path, text: str) -> None:
    run = start(tmp_path / "run")
    (run.path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run.open(run.path)


def test_a_place_where_nothing_was_begun_is_left_as_it_was(tmp_path: Path) -> None:
    new = tmp_path / "new" / "run"
    with alone(new), pytest.raises(RunError, match="another command"), alone(new):
        pass
    assert not new.exists()
    with alone(tmp_path / "run"):
        start(tmp_path / "run")
    assert Run.open(tmp_path / "run").label == "PT"
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"), alone(tmp_path / "file"):
        start(tmp_path / "file")


@pytest.mark.slow
def test_a_process_that_a_large_one_started_reports_its_own_peak():
    """Linux lets the resource usage of a program begin at what its parent held."""
    ask = "from rewardlm.runs import peak_rss_mb; a = peak_rss_mb(); b = bytearray(200 << 20); print(a, peak_rss_mb())"

    def asked() -> list[float]:
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
        return [float(number) for number in done.stdout.split()]

    small = asked()
    ballast = bytearray(os.urandom(1 << 20)) * 1200
    beside = asked()
    assert len(ballast) > 1e9
    for before, after in (small, beside):
        assert before < 500
        assert after - before == pytest.approx(200, rel=0.1)


def test_no_command_writes_where_another_does(tmp_path: Path) -> None:
    table = tmp_path / "answers.csv"
    table.write_text("prompt,response\nHow are you?,Fine.\n")
    taken = tmp_path / "taken"
    writers = [
        lambda: train_judge(JudgeTrainSettings(data=["starter"]), taken),
        lambda: train_pair_judge(PairJudgeSettings(dialogues="starter"), taken),
        lambda: import_table(table, taken, label="PT"),
        lambda: evaluate(JudgeEvaluateSettings(judge=["lexical"], suite=[str(table)]), taken),
    ]
    with alone(taken):
        for write in writers:
            with pytest.raises(RunError, match="taken is being written by another command"):
                write()
    assert not taken.exists()
