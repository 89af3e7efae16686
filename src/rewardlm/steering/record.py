"""A steer folder: ``steer.json`` says what was fitted on which model, ``steer.safetensors`` holds its vectors.

A vector means something in the stream of the model that it was found in, and nothing in another's. So a folder says
whose it is, by a hash of the weights in every precision that they can be compared in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rewardlm.errors import ModelError, RunError
from rewardlm.models.load import Policy, hash_weights
from rewardlm.runs import environment, write_atomically

RECORD, TENSORS = "steer.json", "steer.safetensors"
# Methods that would say the same to any model: what they hold is a text or a judge's name.
_OF_ANY_MODEL = ("system", "best-of-n", "rejection", "selfdebias")
_PRECISIONS = ("float32", "bfloat16", "float16")


class SteerJudge(BaseModel):
    """A judge that the method used, as a run records its own: a gain by it, or by a relative, proves nothing."""

    model_config = ConfigDict(extra="forbid")

    name: str
    labels: list[str]
    revision: str | None = None
    lineage: dict[str, Any] | None = None


class FittedOn(BaseModel):
    """The model: its weights' hash by precision (one alone if they are quantised), and the adapter that was on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    model_source: str
    hashes: dict[str, str]
    quantisation: str | None = None
    adapter: str | None = None
    adapter_hash: str | None = None
    layers: int | None = None
    width: int | None = None


class SteerRecord(BaseModel):
    """What ``steer.json`` holds."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format: Literal[1] = 1
    method: str
    strength: float = Field(description="What measure takes if no strength is given.", ge=0)
    model: FittedOn
    settings: dict[str, Any] = Field(description="The method's settings.")
    judges: list[SteerJudge] = []
    run: dict[str, Any] | None = Field(None, description="The scored run that it was fitted on: label, prompts …")
    adapters: dict[str, dict[str, str]] = Field({}, description="By name: where it was, and a hash of its weights.")
    found: dict[str, Any] = Field({}, description="What fitting found: layers, and what each strength did.")
    tensors_hash: str | None = None
    environment: dict[str, Any] = Field(default_factory=environment)


@dataclass(frozen=True)
class SteerFolder:
    """A fitted method: its record and its tensors, by name."""

    record: SteerRecord
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """SHA-256 of all that answers depend on, other than the strength: not where it was made, or when."""
        told = self.record.model_dump(mode="json", include={"method", "settings", "tensors_hash"})
        told["judges"] = [[judge.name, judge.revision] for judge in self.record.judges]
        told["adapters"] = {name: adapter["hash"] for name, adapter in self.record.adapters.items()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write it: the tensors first, so that a folder with a record is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        record = self.record
        if self.tensors:
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()})
            write_atomically(folder / TENSORS, data)
            record = record.model_copy(update={"tensors_hash": hashlib.sha256(data).hexdigest()})
        write_atomically(folder / RECORD, record.model_dump_json(indent=1).encode())


def read_steer_folder(folder: Path) -> SteerFolder:
    """What ``SteerFolder.save`` wrote. Raises RunError if it isn't there, is damaged or was changed."""
    try:
        record = SteerRecord.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        what = "no such folder" if not folder.exists() else f"it has no {RECORD}"
        raise RunError(f"{folder} is no steer folder: {what}; make one with rewardlm steer fit") from None
    except NotADirectoryError:
        raise RunError(f"{folder} is a file: expected a folder of rewardlm steer fit") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{folder / RECORD} is damaged: {where}: {first['msg']}; fit it again") from None
    if record.tensors_hash is None:
        return SteerFolder(record)
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
    return SteerFolder(record, tensors)


def fitted_on(policy: Policy, adapter_hash: str | None = None) -> FittedOn:
    """What a record says of ``policy``, before anything is put on it besides its own adapter."""
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
        adapter_hash=adapter_hash,
        layers=getattr(config, "num_hidden_layers", None),
        width=getattr(config, "hidden_size", None),
    )


def refuse_other_model(folder: SteerFolder, where: object, policy: Policy) -> None:
    """Raise ModelError if ``folder`` was fitted on another model than ``policy``'s base.

    Weights in a precision that neither was derived from can't be compared. Then the model's name decides, and the sizes
    of its stream.
    """
    record, theirs = folder.record, folder.record.model
    if record.method in _OF_ANY_MODEL:
        return
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
