import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewardlm import runs
from rewardlm.runs import Run, alone
from rewardlm.viewing import followed
from rewardlm.viewing.folders import Place, find_runs
from rewardlm.viewing.followed import FollowedRun
from rewardlm.viewing.following import Follower, curves_since

SETTINGS = {"model": "tiny", "reward": ["lexical"], "algorithm": "ppo", "steps": 10}


def metric(step: int, **more) -> dict:
    return {"step": step, "reward_mean": step / 10, "seconds": 2.0, "warnings": [], **more}


@pytest.fixture
def training(tmp_path: Path) -> Run:
    run = Run.start(tmp_path / "rl", kind="rlaf", label="RL", settings=SETTINGS)
    run.append("metrics", [metric(step) for step in range(1, 5)])
    return run


def follow(run: Run) -> FollowedRun:
    return FollowedRun(Place.of(str(run.path)), run.path.resolve())


def test_a_run_that_a_command_holds_is_running_however_long_it_is_silent(training):
    one = follow(training)
    with alone(training.path):
        one.look(now=time.time() + 1_000_000)
    assert one.state == "running"
    assert one.how_to_go_on(None) is None


def test_a_run_that_nobody_holds_any_more_was_killed_and_says_how_to_go_on(training):
    one = follow(training)
    one.look(now=time.time())
    assert one.state == "running"  # Somebody may hold it where we can't see.
    one.look(now=time.time() + 11)
    assert one.state == "killed"
    assert "step 4" in one.how_to_go_on(None)
    assert f"rewardlm rlaf tiny … --out {training.path}" in one.how_to_go_on(None)
    assert one.seconds_left is None


def test_a_slow_run_elsewhere_gets_the_time_of_its_steps(training):
    training.append("metrics", [metric(5, seconds=100.0) for _ in range(20)])
    one = follow(training)
    one.look(now=time.time() + 200)
    assert one.state == "running"
    one.look(now=time.time() + 400)
    assert one.state == "killed"


def test_where_nobody_can_say_who_holds_a_run_it_is_silent_after_a_while(training, monkeypatch):
    monkeypatch.setattr(followed, "is_held", lambda path: None)
    one = follow(training)
    one.look(now=time.time() + 60)
    assert one.state == "running"
    one.look(now=time.time() + 200)
    assert one.state == "silent"
    assert "nothing has been written since" in one.status_text()


def test_a_lock_is_seen_without_being_tried(training):
    assert runs.is_held(training.path) is False
    with alone(training.path):
        assert runs.is_held(training.path) is True
    assert runs.is_held(training.path) is False
    assert runs.is_held(training.path / "not there") is None


def test_what_a_run_says_of_its_end_is_shown(training):
    one = follow(training)
    training.update(status="stopped", stopped="the KL ran away")
    one.look()
    assert (one.state, one.status_text()) == ("stopped", "the KL ran away")
    training.update(status="finished", stopped=None)
    one.look()
    assert (one.state, one.how_to_go_on(None)) == ("finished", None)


def test_a_resumed_run_forgets_what_is_done_again(training):
    one = follow(training)
    one.look()
    before = one.generation
    training.forget_after(2)
    training.append("metrics", [metric(3, reward_mean=0.99)])
    one.look()
    assert one.curves.columns["step"] == [1, 2, 3]
    assert one.curves.columns["reward_mean"] == [0.1, 0.2, 0.99]
    # A page that knew four steps of the old file gets all of the new one.
    assert curves_since(one, before, 4)["from"] == 0
    assert curves_since(one, one.generation, 2)["columns"]["step"] == [3]
    assert curves_since(one, one.generation, 99)["from"] == 0


def test_time_left_is_by_the_pace_of_late(training):
    one = follow(training)
    with alone(training.path):
        one.look()
    assert one.seconds_left == pytest.approx(2.0 * 6)


def test_doubts_are_named_once_a_kind(training):
    training.append("metrics", [metric(5, warnings=["hacked: a", "shrunk: b"]), metric(6, warnings=["hacked: c"])])
    one = follow(training)
    one.look()
    assert {(found["text"], found["first"], found["last"], found["n"]) for found in one.doubts()} == {
        ("hacked: c", 5, 6, 2),
        ("shrunk: b", 5, 5, 1),
    }


def test_lines_that_were_changed_by_hand_are_counted_and_the_rest_is_shown(training):
    with open(training.path / "metrics.jsonl", "ab") as file:
        file.write(b"not json\n[1]\n" + json.dumps(metric(5)).encode() + b"\n")
    one = follow(training)
    one.look()
    assert one.curves.columns["step"] == [1, 2, 3, 4, 5]
    assert "2 lines hold no record" in one.damaged()


def test_every_change_has_a_new_version_and_no_change_has_none(training):
    one = follow(training)
    versions = []
    for act in (
        lambda: None,
        lambda: None,
        lambda: training.append("metrics", [metric(5)]),
        lambda: training.append("samples", [{"step": 5, "prompt": "p", "response": "r"}]),
        lambda: training.update(status="finished"),
        lambda: None,
    ):
        act()
        one.look()
        versions.append(one.version)
    changes = [later - earlier for earlier, later in itertools.pairwise(versions)]
    assert [change > 0 for change in changes] == [False, True, True, True, False]


def test_a_run_that_is_removed_leaves_the_page_and_a_broken_one_is_named(training, tmp_path):
    follower = Follower([Place.of(str(tmp_path))])
    follower.look()
    assert [run["label"] for run in follower.state()["runs"]] == ["RL"]
    (training.path / "run.json").write_text("{")
    follower.look()
    assert any("damaged" in str(run["problem"]) for run in follower.state()["runs"])
    Follower([Place.of(str(tmp_path))]).look()
    (training.path / "run.json").unlink()
    follower.look()
    state = follower.state()
    assert state["runs"] == []
    assert state["waiting"] == [{"place": str(tmp_path), "there": True}]


def test_a_damaged_run_is_named_from_the_start(training, tmp_path):
    (training.path / "run.json").write_text("{")
    follower = Follower([Place.of(str(tmp_path))])
    follower.look()
    assert "damaged" in follower.state()["broken"][0]


def test_an_experiment_goes_on_as_its_stages_do(tmp_path):
    home = Run.start(tmp_path / "e", kind="experiment", label="E", settings={})
    stage = Run.start(tmp_path / "e" / "train" / "RL", kind="rlaf", label="RL", settings=SETTINGS)
    stage.append("metrics", [metric(1)])
    follower = Follower([Place.of(str(tmp_path / "e"))])

    def states() -> dict:
        follower.look()
        return {run["label"]: run for run in follower.state()["runs"]}

    with alone(stage.path):
        assert [states()[label]["state"] for label in ("E", "RL")] == ["running", "running"]
    long_ago = time.time() - 1_000
    for file in [*home.path.glob("*.json"), *stage.path.glob("*.json*")]:
        os.utime(file, (long_ago, long_ago))
    found = states()
    assert [found[label]["state"] for label in ("E", "RL")] == ["killed", "killed"]
    assert found["RL"]["experiment"] == found["E"]["id"]
    assert f"rewardlm run … --out {tmp_path / 'e'}" in found["RL"]["go_on"]


def test_runs_that_come_later_are_picked_up(tmp_path):
    follower = Follower([Place.of(str(tmp_path / "runs"))])
    follower.look()
    assert follower.state()["waiting"] == [{"place": str(tmp_path / "runs"), "there": False}]
    Run.start(tmp_path / "runs" / "rl", kind="rlaf", label="RL", settings=SETTINGS)
    follower.look()
    state = follower.state()
    assert state["waiting"] == []
    assert [run["label"] for run in state["runs"]] == ["RL"]
    assert len(find_runs(follower.places[0])) == 1


def test_a_link_in_a_run_is_a_problem_and_nothing_of_it_is_read(training, tmp_path):
    (tmp_path / "secret").write_text(json.dumps(metric(9, reward_mean=0.123456)) + "\n")
    (training.path / "metrics.jsonl").unlink()
    (training.path / "metrics.jsonl").symlink_to(tmp_path / "secret")
    one = follow(training)
    one.look()
    assert "is a link" in one.problem
    assert one.curves.n == 0


def test_a_bug_met_in_one_run_is_told_and_the_others_are_followed(training, tmp_path, monkeypatch, capsys):
    Run.start(tmp_path / "other", kind="rlaf", label="other", settings=SETTINGS)
    follower = Follower([Place.of(str(tmp_path))])
    look = FollowedRun.look

    def broken(run, now=None):
        if run.run.label == "RL":
            raise ZeroDivisionError("oops")
        look(run, now)

    monkeypatch.setattr(FollowedRun, "look", broken)
    follower.look()
    follower.look()
    state = {run["label"]: run for run in follower.state()["runs"]}
    assert state["RL"]["problem"] == "ZeroDivisionError: oops"
    assert state["other"]["problem"] is None
    assert capsys.readouterr().err.count("Traceback") == 1


def test_the_pace_of_a_measurement_is_that_of_answers_seen_coming(tmp_path):
    run = Run.start(tmp_path / "pt", kind="measure", label="PT", settings={"model": "tiny", "samples": 1})
    run.update(prompts={"n": 100})
    run.append("generations", [{"id": f"{n}#0", "prompt_id": str(n), "text": "x"} for n in range(40)])
    one = follow(run)
    with alone(run.path):
        one.look(now=1000.0)
        assert one.seconds_left is None
        run.append("generations", [{"id": f"{n}#0", "prompt_id": str(n), "text": "x"} for n in range(40, 50)])
        one.look(now=1020.0)
    # Ten answers in twenty seconds; fifty are left.
    assert one.seconds_left == pytest.approx(100.0)


WRITER = """
import sys, time
from pathlib import Path
from rewardlm.runs import Run, alone
out = Path(sys.argv[1])
with alone(out):
    run = Run.start(out, kind="rlaf", label="RL", settings={"model": "tiny", "steps": 9})
    first = sum(1 for _ in run.read("metrics")) + 1
    for step in range(first, 10_000):
        run.append("metrics", [{"step": step, "reward_mean": 0.5, "seconds": 0.02, "warnings": []}])
        time.sleep(0.02)
"""


def test_a_process_that_writes_is_followed_killed_and_followed_again(tmp_path):
    """Without a model, in seconds; ``test_view_command`` does it with a real training."""
    follower = Follower([Place.of(str(tmp_path / "rl"))])

    def until(state: str, *, later: float = 0.0, more_than: int = 0) -> dict:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            follower.look()
            for run in follower._runs.values():
                run.look(now=time.time() + later)
            (found,) = follower.state()["runs"] or [{"state": "none", "n": 0}]
            if found["state"] == state and found["n"] > more_than:
                return found
            time.sleep(0.05)
        raise AssertionError(f"never {state}: {found}")

    seen = 0
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "rl")])
        try:
            # Long silent, as far as the clock says; but a command holds it.
            seen = until("running", later=1_000, more_than=seen)["n"]
            assert until("running", more_than=seen)["n"] > seen
        finally:
            writer.kill()
            writer.wait()
        killed = until("killed", later=11)
        written = [line["step"] for line in Run.open(tmp_path / "rl").read("metrics")]
        assert written == list(range(1, len(written) + 1))
        assert killed["n"] == len(written)
        seen = killed["n"]
