"""RLAF's checkpoints: what is passed over, what is refused, and that resuming is exact wherever the run broke off.

Runs are broken off here by taking files away or by a real limit on file sizes; tests/faults kills processes.
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewardlm.config import RlafSettings
from rewardlm.errors import DiskFullError, TrainingError
from rewardlm.runs import Run
from rewardlm.training import rlaf
from rewardlm.training.rlaf import train

pytestmark = pytest.mark.slow

STEPS = 4
SETTINGS = {
    "model": "tiny",
    "device": "cpu",
    "dtype": "float32",
    "batch_size": 4,
    "max_new_tokens": 4,
    "witness": [],
    "learning_rate": 1e-2,
    "lora": {"r": 4},
    "kl": {"coef": 0.1, "target": 0.5, "horizon": 20},
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def settings(**changes) -> RlafSettings:
    return RlafSettings(**{**SETTINGS, "steps": STEPS, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run that nobody disturbed."""
    torch.set_num_threads(1)
    return train(settings(), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def broken(whole, tmp_path) -> Path:
    """A copy of it as it was just before its adapter was written."""
    folder = tmp_path / "run"
    shutil.copytree(whole.path, folder)
    shutil.rmtree(folder / "adapter")
    Run.open(folder).update(status="running")
    return folder


EXACT = ("step", "reward_mean", "kl", "kl_coef", "policy_loss", "value_loss", "grad_norm", "entropy")


def assert_same_run(found: Run, whole: Run) -> None:
    one = load_file(str(found.path / "adapter" / "adapter_model.safetensors"))
    other = load_file(str(whole.path / "adapter" / "adapter_model.safetensors"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [[{key: line[key] for key in EXACT} for line in run.read("metrics")] for run in (found, whole)]
    assert records[0] == records[1]
    assert list(found.read("samples")) == list(whole.read("samples"))
    critic = Path("checkpoints") / f"step-{STEPS:06d}" / "value_head.safetensors"
    one, other = load_file(str(found.path / critic)), load_file(str(whole.path / critic))
    assert all(torch.equal(one[name], other[name]) for name in one)


def drop_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def test_two_checkpoints_are_kept(whole):
    assert sorted(path.name for path in (whole.path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_no_pickle_is_written(whole):
    assert {path.suffix for path in whole.path.rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".md",
    }


@pytest.mark.parametrize(
    "file", ["optimizer.safetensors", "adapter/adapter_model.safetensors", "state.json", "manifest.json"]
)
def test_a_truncated_checkpoint_is_passed_over_with_a_warning(whole, broken, file):
    path = broken / "checkpoints" / f"step-{STEPS:06d}" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"step-000004 is damaged .*the one before it is used"):
        found = train(settings(), broken)
    assert_same_run(found, whole)


def truncate(broken: Path, file: str, steps: tuple[int, ...] = (STEPS - 1, STEPS)) -> None:
    for step in steps:
        path = broken / "checkpoints" / f"step-{step:06d}" / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("file", ["value_head.safetensors", "adapter/adapter_model.safetensors", "manifest.json"])
def test_with_every_checkpoint_damaged_the_run_is_refused_and_nothing_is_lost(whole, broken, file):
    truncate(broken, file)
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file() and path.name != "run.json"}
    with pytest.raises(TrainingError, match=rf"no checkpoint in .*step-000004: {file} .*remove .* to start anew") as e:
        train(settings(), broken)
    # The way out is named where there is one: an adapter that is whole.
    assert ("resume=inexact" in str(e.value)) == (file == "value_head.safetensors")
    assert {path: path.read_bytes() for path in before} == before
    assert not (broken / "adapter").exists()
    for folder in (broken / "checkpoints").iterdir():
        shutil.rmtree(folder)
    assert_same_run(train(settings(), broken), whole)


@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "manifest.json"])
def test_without_a_whole_adapter_there_is_no_inexact_resume_either(broken, file):
    truncate(broken, file)
    with pytest.raises(TrainingError, match=r"to start anew$"):
        train(settings(resume="inexact"), broken)


def test_a_missing_optimizer_is_refused_with_the_reason(broken):
    (broken / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"optimizer\.safetensors is missing.*resume=inexact"):
        train(settings(), broken)
    assert not (broken / "adapter").exists()


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_an_older_whole_checkpoint_is_preferred_to_a_newer_inexact_one(whole, broken, how):
    if how == "missing":
        (broken / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.safetensors").unlink()
    else:
        truncate(broken, "optimizer.safetensors", (STEPS,))
    with pytest.warns(UserWarning, match=r"step-000004 is damaged .*the one before it is used"):
        found = train(settings(resume="inexact"), broken)
    assert_same_run(found, whole)
    assert "inexact_resume" not in found.meta


@pytest.mark.parametrize("file", ["optimizer.safetensors", "value_head.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_an_inexact_resume_goes_on_from_the_newest_adapter_and_says_so(whole, broken, monkeypatch, file, how):
    if how == "missing":
        for folder in (broken / "checkpoints").iterdir():
            (folder / file).unlink()
    else:
        truncate(broken, file)
    began = []
    update = rlaf.update

    def first(learner, chosen, *arguments):
        if not began:
            own = dict(learner.policy.model.named_parameters())
            moments = [tuple(sorted(state)) for state in learner.optimizer.state_dict()["state"].values()]
            weights = {name: own[name].detach().clone() for name in own if "lora_" in name}
            began.append((weights, moments, learner.value_head.linear.weight.detach().clone(), learner.kl.coef))
        return update(learner, chosen, *arguments)

    monkeypatch.setattr(rlaf, "update", first)
    with pytest.warns(UserWarning, match=rf"step-000004 is damaged \({file}\): .*no longer bit-equal"):
        found = train(settings(resume="inexact", steps=STEPS + 2), broken)
    assert found.meta["inexact_resume"] == STEPS
    assert [line["step"] for line in found.read("metrics")] == [1, 2, 3, 4, 5, 6]
    weights, moments, head, coefficient = began[0]
    checkpoint = whole.path / "checkpoints" / f"step-{STEPS:06d}"
    for name, tensor in load_file(str(checkpoint / "adapter" / "adapter_model.safetensors")).items():
        stem, _, leaf = name.rpartition(".")
        assert torch.equal(weights[f"{stem}.default.{leaf}"], tensor), name
    # What is whole is kept; what isn't starts as in a new run. The optimizer's numbers are in both of its files.
    assert bool(moments) == (file == "value_head.safetensors")
    assert bool(head.any()) == (file != "value_head.safetensors")
    saved = json.loads((checkpoint / "state.json").read_text())["kl_coef"]
    assert saved != SETTINGS["kl"]["coef"]
    assert coefficient == (SETTINGS["kl"]["coef"] if file == "state.json" else saved)


def test_how_a_run_is_resumed_is_no_other_setting(whole, broken):
    assert_same_run(train(settings(resume="inexact"), broken), whole)


def test_broken_off_between_a_checkpoint_and_its_line_in_the_metrics(whole, broken):
    drop_last_line(broken / "metrics.jsonl")
    assert_same_run(train(settings(), broken), whole)


def test_broken_off_in_the_middle_of_a_line(whole, broken):
    path = broken / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert_same_run(train(settings(), broken), whole)


def test_broken_off_in_the_middle_of_a_checkpoint(whole, broken):
    # Written under a temporary name and not renamed yet; the metrics know nothing of the step.
    newest = broken / "checkpoints" / f"step-{STEPS:06d}"
    shutil.move(newest, newest.with_name(newest.name + ".tmp"))
    drop_last_line(broken / "metrics.jsonl")
    found = train(settings(), broken)
    assert_same_run(found, whole)
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_broken_off_before_the_adapter_was_written(whole, broken):
    assert_same_run(train(settings(), broken), whole)


def test_rare_checkpoints_resume_as_exactly(whole, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(step, steps, metrics):
        if step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(settings(checkpoint_every=2), tmp_path / "run", report=interrupt)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert_same_run(train(settings(checkpoint_every=2), tmp_path / "run"), whole)


def test_a_longer_run_goes_on_from_a_finished_one(whole, tmp_path):
    train(settings(steps=2), tmp_path / "run")
    assert_same_run(train(settings(), tmp_path / "run"), whole)


def test_no_room_for_a_checkpoint_leaves_the_one_before_intact(whole, tmp_path, monkeypatch):
    save = rlaf.save_checkpoint

    def cramped(run, step, *everything):
        if step < 3:
            return save(run, step, *everything)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))  # the kernel refuses to make any file longer
        try:
            return save(run, step, *everything)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(rlaf, "save_checkpoint", cramped)
    with pytest.raises(
        DiskFullError, match=r"step-000003: (File too large|No space left on device); the checkpoint of step 2 is safe"
    ):
        train(settings(), tmp_path / "run")
    monkeypatch.undo()
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*[0-9]"))] == [
        "step-000001",
        "step-000002",
    ]
    assert_same_run(train(settings(), tmp_path / "run"), whole)
