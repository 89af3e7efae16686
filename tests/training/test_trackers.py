"""Trackers: real event files of tensorboard, read back, and what must never be in them."""

from __future__ import annotations

import json
import sys

import pytest

from rewardlm.config import RlafSettings
from rewardlm.errors import NotAvailableError, ScorerError
from rewardlm.runs import Run
from rewardlm.training import trackers
from rewardlm.training.rlaf import train
from rewardlm.training.trackers import Trackers

CANARY = "canary-7f3a-token"


@pytest.fixture
def settings(tmp_path) -> RlafSettings:
    prompts = tmp_path / f"{CANARY}.txt"
    prompts.write_text(f"What do you think of {CANARY}?\nTell me about tea.\n")
    return RlafSettings(
        model="tiny", device="cpu", dtype="float32", prompts=str(prompts), reward=["lexical"], steps=3, batch_size=4,
        max_new_tokens=4, trackers=["tensorboard"], samples_every=1,
    )  # fmt: skip


@pytest.mark.slow
def test_tensorboard_has_every_number_and_no_text(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(settings, tmp_path / "run")
    # The settings lie in a folder of their own below it.
    [file] = (tmp_path / "run" / "rewardlm").glob("events.out.tfevents.*")
    found = reading.EventAccumulator(str(file.parent))
    found.Reload()
    lines = list(run.read("metrics"))
    for name in ("reward_mean", "kl", "grad_norm", "toxicity_by_judge.lexical", "phase_seconds.update"):
        values = [event.value for event in found.Scalars(name)]
        section, _, key = name.partition(".")
        wanted = [line[section][key] if key else line[section] for line in lines]
        assert values == pytest.approx(wanted, rel=1e-5), name
        assert [event.step for event in found.Scalars(name)] == [1, 2, 3]
    written = [path for path in (tmp_path / "run" / "rewardlm").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_without_trackers_accelerate_is_not_asked(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "Accelerator", None)
    run = train(settings.model_copy(update={"trackers": []}), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("events.out*"))
    assert run.finished


def test_a_tracker_that_is_not_installed_is_said_before_step_one(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(NotAvailableError, match="trackers wandb: not installed; pip install wandb"):
        train(settings.model_copy(update={"trackers": ["wandb"]}), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_tracker_that_fails_on_the_way_does_not_stop_the_training(settings, tmp_path, monkeypatch):
    calls = []

    def unreachable(self, values, step):
        calls.append(step)
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(trackers.Accelerator, "log", unreachable)
    with pytest.warns(UserWarning, match=r"the tracker tensorboard failed \(nobody answers\)"):
        run = train(settings, tmp_path / "run")
    assert calls == [1]
    assert len(list(run.read("metrics"))) == 3
    assert run.finished


def test_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    """Two trackers, the first of them broken: the second gets every step."""
    got: dict[str, list[int]] = {}

    class Stub:
        def __init__(self, log_with, **_):
            self.name, self.trackers = log_with, []

        def init_trackers(self, *_, **__):
            got[self.name] = []

        def log(self, _, step):
            if self.name == "wandb" and step == 2:
                raise ConnectionError("nobody answers")
            got[self.name].append(step)

    monkeypatch.setattr(trackers, "Accelerator", Stub)
    run = Run.start(tmp_path / "run", kind="rlaf", label="RL", settings={})
    with Trackers(["wandb", "trackio"], run, cpu=True) as both:
        both.log({"step": 1})
        with pytest.warns(UserWarning, match="the tracker wandb failed"):
            both.log({"step": 2})
        both.log({"step": 3})
    assert got == {"wandb": [1], "trackio": [1, 2, 3]}


def test_what_goes_out_is_numbers_and_short_words(tmp_path):
    run = Run.start(tmp_path / "run", kind="rlaf", label="RL", settings={"a": {"b": 1, "c": "word"}, "path": "/x/y"})
    assert trackers._plain(run.meta["settings"]) == {"a.b": 1, "a.c": "word"}
    assert json.dumps(trackers._plain({"loss": 0.5, "warnings": ["said"], "dropped": {}})) == '{"loss": 0.5}'
    Trackers([], run, cpu=True).log({"step": 1})
    assert trackers._plain({"by": {"/home/someone/judge": 0.5}}) == {"judge": 0.5}


@pytest.mark.slow
def test_a_tracker_that_fails_at_its_end_takes_nothing_with_it(settings, tmp_path, monkeypatch):
    def broken(self):
        raise ConnectionError("the line is cut")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", broken)
    with pytest.warns(UserWarning, match="the line is cut"):
        run = train(settings, tmp_path / "run")
    assert run.finished
    assert (run.path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_failed_before_its_first_step_may_be_put_right_with_a_tracker_on(settings, tmp_path):
    with pytest.raises(ScorerError):
        train(settings.model_copy(update={"reward": ["lexcial"]}), tmp_path / "run")
    assert train(settings, tmp_path / "run").finished


def test_stdout_belongs_to_results(tmp_path, capsys):
    class Chatty:
        def finish(self):
            print("see my dashboard")

    found = Trackers([], Run.start(tmp_path / "run", kind="rlaf", label="RL", settings={}), cpu=True)
    found._guarded("chatty", Chatty().finish)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "see my dashboard\n")
