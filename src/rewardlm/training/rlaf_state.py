"""An RL training's state on disk: adapter, critic, optimizer and counters, saved after a step and put back bit-equal.

A checkpoint is made under a temporary name, flushed to the disk, and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rewardlm.config import Resume
from rewardlm.disk import nothing_left, writing
from rewardlm.errors import TrainingError
from rewardlm.models.lora import CRITIC, REFERENCE, restore_adapter, save_adapter
from rewardlm.models.processes import Processes
from rewardlm.runs import Run
from rewardlm.training.checkpoints import (
    Checkpoint,
    is_whole,
    newest_usable,
    step_of,
    what_is_safe,
    write_manifest,
)
from rewardlm.training.guards import LastGood
from rewardlm.training.learner import Learner
from rewardlm.training.prompt_order import PromptOrder
from rewardlm.training.rewards import RewardModel
from rewardlm.training.rlaf_run import n_logged

KEEP = 2
VALUE_HEAD = "value_head.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


@contextmanager
def _told(step: int, folder: Path) -> Iterator[None]:
    """Inside, a failed write is a TrainingError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"can't write the checkpoint of step {step} ({getattr(error, 'strerror', None) or error}): "
            f"{what_is_safe(folder)}; run the same command again"
        ) from error


def save_checkpoint(run: Path, step: int, learner: Learner, rewards: RewardModel, order: PromptOrder) -> None:
    """Write ``run/checkpoints/step-N`` and drop all but the newest two. Raises DiskFullError, and
    TrainingError where it can't be written for another reason."""
    folder = run / "checkpoints"
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp"
    model = learner.policy.model
    with _told(step, folder), writing(final, safe=what_is_safe(folder)), nothing_left(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_adapter(model, temporary / "adapter")
        if learner.value_head is not None:
            learner.value_head.save(temporary / VALUE_HEAD)
        if learner.own_critic:
            save_adapter(model, temporary, name=CRITIC)
        if learner.moving_reference:
            save_adapter(model, temporary, name=REFERENCE)
        tensors, numbers = _flatten_optimizer(learner.optimizer)
        save_file(tensors, str(temporary / _OPTIMIZER))
        state = {
            "step": step,
            "kl_coef": learner.kl.coef,
            "weights_of_terms": rewards.terms.weights,
            "failures": rewards.failures(),
            "prompts_drawn": order.drawn,
            "optimizer": numbers,
        }
        (temporary / _STATE).write_text(json.dumps(state))
        write_manifest(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    for old in [*sorted(folder.glob("step-*[0-9]"))[:-KEEP], *folder.glob("step-*.tmp")]:
        shutil.rmtree(old)


def resume(
    run: Run,
    how: Resume,
    learner: Learner,
    rewards: RewardModel,
    order: PromptOrder,
    last_good: LastGood,
    processes: Processes,
) -> Checkpoint | None:
    """Put a killed run's state back and drop what it logged afterwards; None where there is no checkpoint yet.

    A step whose checkpoint survived but whose line in metrics.jsonl did not is done again, so that no line is missing.
    Raises as ``newest_usable``, and TrainingError where processes see different files.
    """
    folders = sorted((run.path / "checkpoints").glob("step-*[0-9]"))
    logged = n_logged(run)
    folders = [folder for folder in folders if step_of(folder) <= logged]
    checkpoint = newest_usable(folders, resume=how, needed=("adapter/",))
    if checkpoint is not None:
        restore(checkpoint, learner, rewards, order, last_good)
    step = 0 if checkpoint is None else checkpoint.step
    if len(set(processes.gather(lambda: [step]))) > 1:
        raise TrainingError(
            f"the processes find different checkpoints in {run.path}: --out must be a folder that all share"
        )
    if processes.is_main:
        if checkpoint is not None and checkpoint.damaged:
            run.update(inexact_resume=step)
        run.forget_after(step)
    processes.wait()
    return checkpoint


def restore(
    checkpoint: Checkpoint, learner: Learner, rewards: RewardModel, order: PromptOrder, last_good: LastGood
) -> None:
    """Put everything back as it was after the checkpoint's step, in place; damaged parts stay as they are."""
    folder, model = checkpoint.folder, learner.policy.model
    # The checkpoint's own adapter has not answered yet; the one before it has, or its step would not have been logged.
    before = _adapter_before(folder)
    if before is not None:
        restore_adapter(before / "adapter", model)
    last_good.remember(0 if before is None else step_of(before))
    restore_adapter(folder / "adapter", model)
    if learner.value_head is not None and not checkpoint.lacks(VALUE_HEAD):
        learner.value_head.load(folder / VALUE_HEAD)
    if learner.own_critic and not checkpoint.lacks(CRITIC):
        restore_adapter(folder / CRITIC, model, name=CRITIC)
    if learner.moving_reference and not checkpoint.lacks(REFERENCE):
        restore_adapter(folder / REFERENCE, model, name=REFERENCE)
    order.begin(checkpoint.step)
    if checkpoint.lacks(_STATE):
        return
    state: dict[str, Any] = json.loads((folder / _STATE).read_text())
    learner.kl.coef = state["kl_coef"]
    # Checkpoints from before weights could change have none.
    for name, weight in state.get("weights_of_terms", {}).items():
        rewards.terms.pay(name, weight)
    rewards.restore_failures(state["failures"])
    # Checkpoints from before prompts could be drawn again don't say; then every step drew its own.
    order.begin(checkpoint.step, state.get("prompts_drawn"))
    if not checkpoint.lacks(_OPTIMIZER):
        _fill_optimizer(learner.optimizer, load_file(str(folder / _OPTIMIZER)), state["optimizer"])


def _adapter_before(checkpoint: Path) -> Path | None:
    """The checkpoint before this one, if its adapter is whole."""
    older = [folder for folder in sorted(checkpoint.parent.glob("step-*[0-9]")) if folder.name < checkpoint.name]
    return older[-1] if older and is_whole(older[-1], ("adapter/",)) else None


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state as tensors by "index.name", because a pickle is code, and its other values separately."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, numbers


def _fill_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
