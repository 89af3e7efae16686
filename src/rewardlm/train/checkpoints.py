"""Checkpoints: written whole or not at all, checked by hash when read. RLAF's are ours; SFT's get a manifest too.

A checkpoint is made under a temporary name, flushed to the disk, and renamed; its manifest holds every file's
SHA-256. A truncated one is passed over, with a warning, for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rewardlm.errors import TrainingError
from rewardlm.models.lora import save_adapter
from rewardlm.runs import write_atomically
from rewardlm.train.value import ValueHead

KEEP = 2
MANIFEST = "manifest.json"


def save_checkpoint(
    run: Path,
    step: int,
    *,
    adapter: Any,
    value_head: ValueHead | None,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write ``run/checkpoints/step-N`` and drop all but the newest two. Raises TrainingError if the disk is full."""
    folder = run / "checkpoints"
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_adapter(adapter, temporary / "adapter")
        if value_head is not None:
            value_head.save(temporary / "value_head.safetensors")
        tensors, numbers = _flatten_optimizer(optimizer)
        save_file(tensors, str(temporary / "optimizer.safetensors"))
        (temporary / "state.json").write_text(json.dumps({**state, "optimizer": numbers}))
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


def latest_checkpoint(run: Path, *, logged: int) -> Path | None:
    """The newest whole checkpoint of a step up to ``logged``; damaged ones are warned of. None if there is none.

    A step whose checkpoint survived and whose line in metrics.jsonl did not is done again, so that no line is missing.
    Raises TrainingError as ``newest_whole`` does.
    """
    folders = sorted((run / "checkpoints").glob("step-*[0-9]"))
    return newest_whole([folder for folder in folders if int(folder.name.removeprefix("step-")) <= logged])


def newest_whole(folders: Sequence[Path]) -> Path | None:
    """The last of ``folders``, oldest first, whose files are as its manifest says; None if there is none.

    A damaged one is passed over with a warning. Raises TrainingError if a file was taken out of one: no crash does
    that, and going on without an optimizer would silently give another adapter.
    """
    for folder in reversed(folders):
        problem = _problem(folder)
        if problem is None:
            return folder
        warnings.warn(f"checkpoint {folder.name} is damaged ({problem}): the one before it is used", stacklevel=2)
    return None


def write_manifest(folder: Path) -> None:
    """Flush every file in ``folder`` to the disk, then write their SHA-256 into its manifest: then it is whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {str(path.relative_to(folder)): _flushed_hash(path) for path in files}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def load_state(
    checkpoint: Path, *, model: Any, value_head: ValueHead | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put adapter, critic and optimizer back as they were, in place, and return the rest of the state."""
    saved = load_file(str(checkpoint / "adapter" / "adapter_model.safetensors"))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, tensor in saved.items():
            stem, _, leaf = key.rpartition(".")
            own[f"{stem}.default.{leaf}"].copy_(tensor)
    if value_head is not None:
        value_head.load(checkpoint / "value_head.safetensors")
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    _fill_optimizer(optimizer, load_file(str(checkpoint / "optimizer.safetensors")), state.pop("optimizer"))
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


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return f"{MANIFEST} is missing or not JSON"
    for name, wanted in manifest.items():
        file = folder / name
        if not file.exists():
            raise TrainingError(
                f"checkpoint {folder}: {name} is missing, so the run can't go on exactly: put it back, or remove this "
                "folder to go on from the checkpoint before it"
            )
        if hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            return f"{name} has another hash"
    return None


def _flushed_hash(path: Path) -> str:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
