"""GGUF files, llama.cpp's format, as models that can be measured and trained: converted once to safetensors.

transformers reads many architectures out of GGUF, with tokenizer and chat template, but slowly: it computes each weight
from its quantised form. So this is done once, in float32, which holds the file's weights exactly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewardlm.config import cache_folder
from rewardlm.errors import ModelError

_MAGIC = b"GGUF"
_INSTEAD = (
    "convert it to a folder with config.json and safetensors, take the model that it was made from, or have llama.cpp "
    "serve it: rewardlm measure NAME --engine openai --url http://127.0.0.1:8080/v1"
)


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or that a folder without config.json holds; None where it is something else.

    Raises ModelError where a folder holds several, and one has to be named.
    """
    if path.is_file():
        with open(path, "rb") as file:
            return path if path.suffix.lower() == ".gguf" or file.read(4) == _MAGIC else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise ModelError(
            f"{path} holds {len(found)} GGUF files ({found[0].name}, {found[1].name}, …): name one of them"
        )
    return found[0] if found else None


def converted(path: Path, log: Callable[[str], Any]) -> Path:
    """The cache folder with the model of the GGUF file ``path``; it is made if it is missing or the file has changed.

    ``log(title)`` is a context manager for something that has ``report(done, total, text)``. Raises ModelError if
    transformers can't read the file.
    """
    stat = path.stat()
    made_from = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    name = f"{path.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"
    folder = cache_folder() / "gguf" / name
    if not (folder / "manifest.json").exists():
        _refuse_full_disk(path, _check(path))
        with log(f"converting {path.name}, once, into {folder}") as stage:
            convert(path, folder, {"made_from": made_from}, report=stage.report)
    return folder


def configuration(path: Path) -> Any:
    """The configuration of the model in the GGUF file ``path``. Weights aren't read."""
    from transformers import AutoConfig

    _check(path)
    with _says_why(path):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    # The weights are used dequantised.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def convert(
    path: Path, folder: Path, manifest: dict[str, str], report: Callable[[int, int, str], None] | None = None
) -> None:
    """Convert the GGUF file ``path`` into ``folder``: float32 weights as safetensors, the tokenizer with its chat
    template, and ``manifest``. If ``manifest`` has the key ``model.safetensors``, it gets the weights' SHA-256. Makes
    the whole folder, or nothing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        here = Path(temporary) / "model"
        with _says_why(path), _reporting(report):
            quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = quantised.config
        # The weights were dequantised on reading; a config that says otherwise could not be loaded again.
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.generation_config = quantised.generation_config
        plain.save_pretrained(here)
        tokenizer.save_pretrained(here)
        if "model.safetensors" in manifest:
            manifest["model.safetensors"] = sha256(here / "model.safetensors")
        (here / "manifest.json").write_text(json.dumps(manifest))
        try:
            os.replace(here, folder)
        except OSError:
            # Another process converted it meanwhile; its copy is as good as ours.
            if not (folder / "manifest.json").exists():
                raise


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path) -> int:
    """How many weights the GGUF file holds. Raises ModelError if it is not a whole one, or can't be read here."""
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise ModelError(f"{path} is named .gguf, but is not a GGUF file: expected its first bytes to be 'GGUF'")
    if "-of-0" in path.stem:
        raise ModelError(
            f"{path} is one part of a GGUF file: join them first (llama-gguf-split --merge {path.name} WHOLE.gguf)"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path}: to read GGUF files, pip install 'rewardlm[packaged]', which brings the package gguf")
    from gguf import GGUFReader

    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)
    except Exception as error:  # The reader lets numpy's exceptions through.
        raise ModelError(
            f"{path}: the GGUF file is damaged or cut off ({_one_line(error)}): download it again"
        ) from None


def _refuse_full_disk(path: Path, weights: int) -> None:
    size, cache = weights * 4, cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < size:
        raise ModelError(
            f"{path}: its weights take {size / 2**30:.1f} GiB in float32, and {cache} has {free / 2**30:.1f} GiB free: "
            "make room, or set REWARDLM_CACHE to another folder"
        )


@contextmanager
def _says_why(path: Path) -> Iterator[None]:
    """Inside, what transformers raises about a GGUF file becomes a ModelError with the format and the architecture."""
    try:
        yield
    except Exception as error:  # For an architecture that it half knows, it raises exceptions of many types.
        raise ModelError(
            f"{path}: transformers can't read this GGUF file of the architecture {_architecture(path)!r} "
            f"({_one_line(error)}): {_INSTEAD}"
        ) from error


def _architecture(path: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("general.architecture")
    return "unknown" if field is None else bytes(field.parts[field.data[0]]).decode("utf-8", "replace")


@contextmanager
def _reporting(report: Callable[[int, int, str], None] | None) -> Iterator[None]:
    """Inside, transformers reports its progress to ``report`` instead of drawing a bar of its own."""
    from transformers import modeling_gguf_pytorch_utils as theirs

    def each(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            if report is not None:
                report(number, len(tensors), "tensors")
            yield tensor
        if report is not None:
            report(len(tensors), len(tensors), "tensors")

    before = theirs.tqdm
    theirs.tqdm = each
    try:
        yield
    finally:
        theirs.tqdm = before


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
