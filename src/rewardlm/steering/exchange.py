"""Steering vectors for other programs, and from them: one safetensors file, or a control vector of llama.cpp in GGUF.

llama.cpp (``--control-vector-scaled FILE:STRENGTH``) adds ``direction.N`` to what layer N leaves in the stream, at
every position. Layer N + 1 reads that, so its ``direction.N`` is our ``vector.(N + 1)``. It knows no ``direction.0``.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from rewardlm.config import SteerImportSettings
from rewardlm.errors import ConfigError, ModelError, NotAvailableError, RunError
from rewardlm.runs import alone, write_atomically
from rewardlm.steering.fit import load_for
from rewardlm.steering.folder import SteerFolder, fitted_on, read_steer_folder
from rewardlm.steering.record import SteerRecord

_ARCHITECTURE = "controlvector"
_NEEDED = "control vectors need the package gguf: pip install 'rewardlm[packaged]'"


def export(folder: Path, out: Path) -> None:
    """Write the vectors of the steer folder to ``out``: a .gguf, or a .safetensors file with the record as metadata.

    Raises ConfigError for another kind of file, or what a control vector can't say.
    """
    found = read_steer_folder(folder)
    if not found.tensors:
        raise ConfigError(f"{folder} ({found.record.method}) holds no vectors, so there is nothing to export")
    if out.suffix == ".safetensors":
        tensors = {name: tensor.contiguous() for name, tensor in found.tensors.items()}
        write_atomically(out, save(tensors, {"format": "pt", "steer": found.record.model_dump_json()}))
    elif out.suffix == ".gguf":
        _write_control_vector(found, folder, out)
    else:
        raise ConfigError(f"{out}: expected a name that ends in .safetensors or .gguf")


def _write_control_vector(found: SteerFolder, folder: Path, out: Path) -> None:
    record = found.record
    if record.method != "activation" or record.settings.get("how") != "add":
        raise ConfigError(
            f"{folder} ({record.method}) is more than vectors that are added, and a control vector is no more: export "
            "it as .safetensors"
        )
    if record.settings.get("where") == "answer":
        warnings.warn(
            f"{folder} steers the tokens of answers alone, and llama.cpp adds its vector to prompts, too: for the same "
            "answers there, fit it with activation.where=all",
            stacklevel=3,
        )
    vectors = {int(name.partition(".")[2]): tensor for name, tensor in found.tensors.items()}
    early = [layer for layer in vectors if layer < 2]
    if early:
        raise ConfigError(
            f"{folder} changes what layer {early[0]} reads, and llama.cpp's first control vector is for layer 2: fit "
            "it with activation.layers=[2] or later"
        )
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise NotAvailableError(_NEEDED) from None
    with tempfile.TemporaryDirectory() as elsewhere:
        whole = Path(elsewhere) / "vectors.gguf"
        writer = GGUFWriter(str(whole), _ARCHITECTURE)
        try:
            writer.add_string(f"{_ARCHITECTURE}.model_hint", record.model.family or "")
            writer.add_uint32(f"{_ARCHITECTURE}.layer_count", int(record.model.layers or max(vectors)))
            for layer, vector in sorted(vectors.items()):
                writer.add_tensor(f"direction.{layer - 1}", vector.float().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        write_atomically(out, whole.read_bytes())


def import_control_vector(settings: SteerImportSettings, out: Path) -> SteerFolder:
    """A steer folder for the model, from a control vector of llama.cpp, which nobody fitted here: added at every
    position, away from nothing in particular. Its strength is 1.

    Raises RunError for a file that is none, and ModelError for one of another model's width or layers.
    """
    vectors = _read_control_vector(settings.file)
    with alone(out):
        policy = load_for(settings)
        model = fitted_on(policy, settings.adapter)
        for layer, vector in vectors.items():
            if len(vector) != model.width or not 1 <= layer <= int(model.layers or layer):
                raise ModelError(
                    f"{settings.file}: direction.{layer - 1} has width {len(vector)}, and {settings.model} has "
                    f"{model.layers} layers of width {model.width}: it was made for another model"
                )
        record = SteerRecord(
            method="activation",
            strength=1.0,
            model=model,
            settings={"how": "add", "where": "all", "direction": "imported"},
            found={"layers": sorted(vectors), "file_hash": hashlib.sha256(settings.file.read_bytes()).hexdigest()},
        )
        folder = SteerFolder(record, {f"vector.{layer}": vector for layer, vector in vectors.items()})
        folder.save(out)
        return folder


def _read_control_vector(file: Path) -> dict[int, torch.Tensor]:
    """By layer that reads it: Float[M]."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise NotAvailableError(_NEEDED) from None
    try:
        reader = GGUFReader(str(file))
        architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
        found = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    except Exception as error:  # The reader raises what it meets first in a damaged file.
        raise RunError(f"{file} can't be read as GGUF ({' '.join(str(error).split())[:200]})") from None
    names = {name: name.partition(".")[2] for name in found if name.startswith("direction.")}
    if architecture != _ARCHITECTURE or not names or not all(number.isdigit() for number in names.values()):
        raise RunError(f"{file} holds {architecture!r}, not a control vector: expected tensors called direction.N")
    vectors = {int(number) + 1: torch.from_numpy(found[name].reshape(-1)) for name, number in names.items()}
    broken = [layer for layer, vector in vectors.items() if not bool(torch.isfinite(vector).all())]
    if broken:
        raise RunError(f"{file}: direction.{broken[0] - 1} holds NaN or infinity")
    return vectors
