"""A steer folder: its record, and its vectors as safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rewardlm.errors import ModelError, RunError
from rewardlm.models.load import Policy, hash_weights
from rewardlm.models.lora import adapter_hash
from rewardlm.runs import write_atomically
from rewardlm.steering.record import RECORD, TENSORS, FittedOn, SteerRecord, read_record

# Methods that would say the same to any model: what they hold is a text or a judge's name.
_OF_ANY_MODEL = ("system", "best-of-n", "rejection", "selfdebias")
_PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SteerFolder:
    """A fitted method: its record and its tensors, by name. ``folder`` is where it is, or will be."""

    record: SteerRecord
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path = Path()

    def treatment(self, strength: float) -> dict[str, Any]:
        """What a run records of a model that answered so."""
        return {
            "method": self.record.method,
            "strength": strength,
            "hash": self.record.hash,
            "settings": self.record.settings,
            "judges": [judge.name for judge in self.record.judges],
            "run": self.record.run and self.record.run["label"],
        }

    def save(self, folder: Path) -> SteerRecord:
        """Write it: the tensors first, so that a folder with a record is whole. Returns the record as it is there."""
        folder.mkdir(parents=True, exist_ok=True)
        record = self.record
        if self.tensors:
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()})
            write_atomically(folder / TENSORS, data)
            record = record.model_copy(update={"tensors_hash": hashlib.sha256(data).hexdigest()})
        write_atomically(folder / RECORD, record.model_dump_json(indent=1).encode())
        return record


def read_steer_folder(folder: Path) -> SteerFolder:
    """What ``SteerFolder.save`` wrote. Raises RunError if it isn't there, is damaged or was changed."""
    record = read_record(folder)
    if record.tensors_hash is None:
        return SteerFolder(record, folder=folder)
    try:
        data = (folder / TENSORS).read_bytes()
        tensors = load(data)
    except (FileNotFoundError, SafetensorError) as error:
        raise RunError(f"{folder / TENSORS} is missing or damaged ({error}): fit it again") from None
    if hashlib.sha256(data).hexdigest() != record.tensors_hash:
        raise RunError(f"{folder / TENSORS} is not what {RECORD} was written with: fit it again")
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]
    if broken:
        raise RunError(f"{folder / TENSORS} holds NaN or infinity in {broken[0]}: fit it again")
    return SteerFolder(record, tensors, folder)


def fitted_on(policy: Policy, adapter: Path | None = None) -> FittedOn:
    """What a record says of ``policy``, before anything is put on it besides its own ``adapter``."""
    hashes = {_name(policy.dtype): policy.weights_hash}
    if policy.quantisation is None and policy.adapter is None and not _rounds_away(policy.dtype):
        hashes |= {name: hash_weights(policy.model, getattr(torch, name)) for name in _PRECISIONS if name not in hashes}
    config = policy.causal_lm.config.get_text_config()
    return FittedOn(
        model=policy.spec,
        model_source=policy.source,
        hashes=hashes,
        quantisation=policy.quantisation,
        adapter=policy.adapter,
        adapter_hash=None if adapter is None else adapter_hash(adapter),
        family=policy.causal_lm.config.model_type,
        layers=getattr(config, "num_hidden_layers", None),
        width=getattr(config, "hidden_size", None),
    )


def refuse_other_model(folder: SteerFolder, where: object, policy: Policy, adapter: str | None) -> None:
    """Raise ModelError if ``folder`` was fitted on another model than ``policy``'s base, or on an adapter that is off
    (``adapter`` is the hash of the one that is on). What was fitted on the bare base may steer an adapter on it.

    Weights in a precision that neither was derived from can't be compared. Then the model's name decides, and the sizes
    of its stream.
    """
    record, theirs = folder.record, folder.record.model
    if record.method in _OF_ANY_MODEL:
        return
    if theirs.adapter_hash not in (None, adapter):
        raise ModelError(
            f"{where} was fitted on {theirs.model} with the adapter {theirs.adapter}: give the same --adapter, at the "
            "strength that it was trained at, or fit one on this model"
        )
    known = theirs.hashes.get(_name(policy.dtype))
    comparable = known is not None and theirs.quantisation == policy.quantisation
    config = policy.causal_lm.config.get_text_config()
    sizes = (getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None))
    if comparable:
        fits, why = known == policy.weights_hash, "the weights have another hash"
    else:
        same = theirs.model_source == policy.source or theirs.model == policy.spec
        fits, why = same and sizes == (theirs.layers, theirs.width), "its name or its sizes differ"
    if not fits:
        raise ModelError(
            f"{where} was fitted on {theirs.model} and is of no use to {policy.spec} ({why}): fit one on {policy.spec}"
        )


def _rounds_away(dtype: torch.dtype) -> bool:
    """Whether weights in ``dtype`` no longer say what they would be in another precision."""
    return dtype != torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
