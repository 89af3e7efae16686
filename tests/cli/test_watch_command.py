"""``rewardlm watch`` as a shell sees it."""

from __future__ import annotations

import threading
import time

from command_line import Shell

from rewardlm.runs import Run


def made(path) -> Run:
    run = Run.start(path, kind="rlaf", label="RL", settings={"model": "tiny", "reward": ["lexical"], "steps": 2})
    run.append("metrics", [{"step": 1, "reward_mean": 0.5, "seconds": 0.1, "warnings": []}])
    run.append("samples", [{"step": 1, "prompt": "p", "response": "first answer", "reward": 0.5, "toxicity": 0.5}])
    return run


def test_watch_prints_a_run(shell: Shell, tmp_path):
    made(tmp_path / "rl")
    done = shell("watch", tmp_path / "rl")
    assert done.code == 0
    assert "step 1 of 2" in done.out
    assert "first answer" in done.out


def test_watch_follows_until_the_training_ends(shell: Shell, tmp_path):
    run = made(tmp_path / "rl")

    def finish() -> None:
        time.sleep(0.6)
        run.append("metrics", [{"step": 2, "reward_mean": 0.75, "seconds": 0.1, "warnings": []}])
        run.update(status="finished")

    training = threading.Thread(target=finish)
    training.start()
    started = time.monotonic()
    done = shell("watch", tmp_path / "rl", "--follow", "--every", "0.2")
    training.join()
    assert done.code == 0
    assert time.monotonic() - started > 0.5
    assert "step 2 of 2" in done.out
    assert "finished" in done.out


def test_what_can_not_be_watched_is_one_line(shell: Shell, tmp_path):
    assert "is not a run" in shell.fails("watch", tmp_path).err
    made(tmp_path / "rl")
    assert "no samples of step 9; steps with samples: 1" in shell.fails("watch", tmp_path / "rl", "--step", 9).err
