"""Checkpoints: written whole or not at all, checked by hash when read. RLAF's are ours; SFT's get a manifest too.

A checkpoint is made under a temporary name, flushed to the disk, and renamed; its manifest holds every file's
SHA-256. A truncated one is passed over, with a warning, for the one before it; where none is whole, the user decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rewardlm.config import Resume
from rewardlm.errors import TrainingError
from rewardlm.models.lora import CRITIC, POLICY, save_adapter
from rewardlm.runs import write_atomically
from rewardlm.training.value import ValueHead

KEEP = 2
MANIFEST = "manifest.json"
VALUE_HEAD = "value_head.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_MISSING = "is missing"


def save_checkpoint(
    run: Path,
    step: int,
    *,
    adapter: Any,
    value_head: ValueHead | None,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    own_critic: bool = False,
) -> None:
    """Write ``run/checkpoints/step-N`` and drop all but the newest two. Raises TrainingError if the disk is full.

    ``own_critic``: the model has the critic's adapter beside the policy's.
    """
    folder = run / "checkpoints"
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_adapter(adapter, temporary / "adapter")
        if value_head is not None:
            value_head.save(temporary / VALUE_HEAD)
        if own_critic:
            save_adapter(adapter, temporary, name=CRITIC)
        tensors, numbers = _flatten_optimizer(optimizer)
        save_file(tensors, str(temporary / _OPTIMIZER))
        (temporary / _STATE).write_text(json.dumps({**state, "optimizer": numbers}))
        write_manifest(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        raise TrainingError(
            f"can't write the checkpoint of step {step} ({getattr(error, 'strerror', None) or error}): the one before "
            "it is intact; make room and run the same command again"
        ) from error
    for old in [*sorted(folder.glob("step-*[0-9]"))[:-KEEP], *folder.glob("step-*.tmp")]:
        shutil.rmtree(old)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run goes on. ``damaged`` names files that are missing or changed: there are some where it was allowed."""

    folder: Path
    damaged: frozenset[str] = frozenset()

    @property
    def step(self) -> int:
        return step_of(self.folder)


def step_of(folder: Path) -> int:
    """The step that ``step-000012`` or ``checkpoint-12`` was written after."""
    return int(folder.name.rpartition("-")[2])


def latest_checkpoint(run: Path, *, logged: int, resume: Resume) -> Checkpoint | None:
    """The newest usable checkpoint of a step up to ``logged``; None if there is none. Raises as ``newest_usable``.

    A step whose checkpoint survived and whose line in metrics.jsonl did not is done again, so that no line is missing.
    """
    folders = [folder for folder in sorted((run / "checkpoints").glob("step-*[0-9]")) if step_of(folder) <= logged]
    return newest_usable(folders, resume=resume, needed=("adapter/",))


def adapter_before(checkpoint: Path) -> Path | None:
    """The checkpoint of ours before this one, if its adapter is whole."""
    older = [folder for folder in sorted(checkpoint.parent.glob("step-*[0-9]")) if folder.name < checkpoint.name]
    return older[-1] if older and not _lacks(_damage(older[-1]), ("adapter/",)) else None


def newest_whole(folders: Sequence[Path]) -> Path | None:
    """As ``newest_usable``, where nothing but a whole checkpoint will do."""
    found = newest_usable(folders, resume="exact", needed=())
    return None if found is None else found.folder


def newest_usable(folders: Sequence[Path], *, resume: Resume, needed: tuple[str, ...]) -> Checkpoint | None:
    """The last of ``folders``, oldest first, whose files are as its manifest says; None if there are no folders.

    A damaged one is passed over with a warning. Where none is whole, ``resume`` "inexact" takes the newest whose files
    that begin with one of ``needed`` are whole. Raises TrainingError where that leaves none, because to begin anew
    would throw away what may be hours; and, unless inexact, where a file was taken out: no crash does that.
    """
    damage: dict[Path, dict[str, str]] = {}
    for folder in reversed(folders):
        damage[folder] = _damage(folder)
        if not damage[folder]:
            for newer in list(damage)[:-1]:
                _warn(f"checkpoint {newer.name} is damaged ({_first(damage[newer])}): the one before it is used")
            return Checkpoint(folder)
        if resume == "exact" and _MISSING in damage[folder].values():
            raise TrainingError(
                f"checkpoint {folder}: {_first(damage[folder])}, so the run can't go on exactly: put it back, remove "
                "this folder to go on from the checkpoint before it, or allow resume=inexact"
            )
    if not folders:
        return None
    usable = [folder for folder in damage if not _lacks(damage[folder], needed)]
    if resume == "inexact" and usable:
        lost = sorted(damage[usable[0]])
        _warn(
            f"checkpoint {usable[0].name} is damaged ({', '.join(lost)}): the run goes on with these afresh, and is no "
            "longer bit-equal to an undisturbed one"
        )
        return Checkpoint(usable[0], frozenset(lost))
    newest = folders[-1]
    raise TrainingError(
        f"no checkpoint in {newest.parent} is whole (the newest, {newest.name}: {_first(damage[newest])}): remove "
        f"{newest.parent.parent} to start anew"
        + (", or go on from its adapter with resume=inexact" if usable and resume == "exact" else "")
    )


def write_manifest(folder: Path) -> None:
    """Flush every file in ``folder`` to the disk, then write their SHA-256 into its manifest: then it is whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {str(path.relative_to(folder)): _flushed_hash(path) for path in files}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def load_adapter_weights(checkpoint: Path, model: Any, *, name: str = POLICY) -> None:
    """Put an adapter of a checkpoint of ours, the policy's or the critic's, into ``model``, in place."""
    folder = "adapter" if name == POLICY else name
    saved = load_file(str(checkpoint / folder / "adapter_model.safetensors"))
    unknown = set_peft_model_state_dict(model, saved, adapter_name=name).unexpected_keys
    if unknown:
        raise TrainingError(
            f"{checkpoint} holds an adapter on other layers than this run's ({unknown[0]}, …): choose another --out"
        )


def load_state(
    checkpoint: Checkpoint,
    *,
    model: Any,
    value_head: ValueHead | None,
    optimizer: torch.optim.Optimizer,
    own_critic: bool = False,
) -> dict[str, Any]:
    """Put adapter, critic and optimizer back as they were, in place, and return the rest of the state.

    What is damaged stays as it is, and is missing from what is returned.
    """
    folder, damaged = checkpoint.folder, checkpoint.damaged
    load_adapter_weights(folder, model)
    if value_head is not None and VALUE_HEAD not in damaged:
        value_head.load(folder / VALUE_HEAD)
    if own_critic and not any(name.startswith(f"{CRITIC}/") for name in damaged):
        load_adapter_weights(folder, model, name=CRITIC)
    if _STATE in damaged:
        return {}
    state: dict[str, Any] = json.loads((folder / _STATE).read_text())
    numbers = state.pop("optimizer")
    if _OPTIMIZER not in damaged:
        _fill_optimizer(optimizer, load_file(str(folder / _OPTIMIZER)), numbers)
    return state


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state as tensors by "index.name", because a pickle is code; other values apart."""
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


def _damage(folder: Path) -> dict[str, str]:
    """What is wrong with a checkpoint, by file; empty if it is whole."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {MANIFEST: "is missing or not JSON"}
    damage = {}
    for name, wanted in manifest.items():
        file = folder / name
        if not file.exists():
            damage[name] = _MISSING
        elif hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            damage[name] = "has another hash"
    return damage


def _lacks(damage: dict[str, str], needed: tuple[str, ...]) -> bool:
    # Without a manifest nothing says that a file is whole.
    return any(name == MANIFEST or name.startswith(needed) for name in damage)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _first(damage: dict[str, str]) -> str:
    """Of several damages the missing file first: it is what no crash does."""
    name, problem = min(damage.items(), key=lambda item: item[1] != _MISSING)
    return f"{name} {problem}"


def _flushed_hash(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
