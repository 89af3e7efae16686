"""Which judge was it? Its version and the hash of its weights, from its files alone, without loading it.

A version is a digest of all that a score follows from: weights, encoder, labels, calibration, longest input, tokenizer.
So a judge that is changed has a new version, and nobody has to remember to give it one. A judge's figures, which
``judge evaluate --card`` adds to judge.json, change no score and therefore no version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rewardlm.config import split_names
from rewardlm.scoring import lexical, lstm
from rewardlm.scoring.encoder import encoder_revision, sha256_of
from rewardlm.scoring.ensemble import PRESETS
from rewardlm.scoring.record import judge_folder, read_record

UNVERSIONED = "unversioned"
# The package of a judge, and the SHA-256 of its files.
_PACKAGED = {"lexical": (lexical.PACKAGE, lexical.FILES), "lexical2": (lstm.PACKAGE, lstm.FILES)}
_ENSEMBLE = re.compile(r"(mean|max)\((.*)\)", re.DOTALL)
# What a folder of a judge holds besides its weights and judge.json, and what a score depends on.
_FILES = (
    "config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "spiece.model", "spm.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
# What of judge.json a score depends on.
_ENTRIES = (
    "labels", "main", "problem_type", "encoder", "encoder_revision", "encoder_layers", "max_length", "calibration",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JudgeVersion:
    """``version`` changes whenever a score may; ``weights`` is ``sha256:…`` of the weights' files, or the commit of a
    hub's repository, None of what has no weights here (a function, a service).
    """

    judge: str
    version: str
    weights: str | None

    @property
    def known(self) -> str | None:
        """``version``, or None where nothing tells it."""
        return None if self.version == UNVERSIONED else self.version


def version_of(name: str, *, revision: str | None = None) -> JudgeVersion:
    """The version of the judge that ``--scorer name`` means. ``revision`` is that of the loaded judge, where there is
    one: a judge from a hub, behind HTTP or in a function has no files here, and without it is ``unversioned``.

    Raises ScorerError where judge.json can't be read.
    """
    if ensemble := _ENSEMBLE.fullmatch(PRESETS.get(name, name)):
        members = [version_of(member) for member in split_names([ensemble[2]])]
        if any(member.version == UNVERSIONED for member in members):
            # Of judges without files here only their own revisions tell, which the ensemble joins with "+".
            return JudgeVersion(name, _digest(ensemble[1], revision) if revision else UNVERSIONED, None)
        weights = [member.weights for member in members]
        parts = [[member.judge, member.version] for member in members]
        joined = (
            None if None in weights else f"sha256:{hashlib.sha256(' '.join(map(str, weights)).encode()).hexdigest()}"
        )
        return JudgeVersion(name, _digest(ensemble[1], parts), joined)
    if name in _PACKAGED:
        return _of_a_package(name, *_PACKAGED[name])
    if (folder := judge_folder(name)) is not None:
        return _of_a_folder(name, folder)
    return JudgeVersion(name, revision or UNVERSIONED, revision if revision and _is_commit(revision) else None)


def _of_a_package(name: str, package: str, files: Mapping[str, str]) -> JudgeVersion:
    try:
        number = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return JudgeVersion(name, UNVERSIONED, None)
    # A judge refuses files with other hashes, so these are what it has.
    hashes = " ".join(files[file] for file in sorted(files))
    return JudgeVersion(name, number, f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}")


def _of_a_folder(name: str, folder: Path) -> JudgeVersion:
    weights = sorted(folder.glob("adapter_model.safetensors")) or sorted(folder.glob("model*.safetensors"))
    if not weights:
        return JudgeVersion(name, UNVERSIONED, None)
    found = sha256_of(weights)
    files = {file: sha256_of([folder / file]) for file in _FILES if (folder / file).is_file()}
    record = read_record(folder)
    entries = {} if record is None else {key: value for key, value in asdict(record).items() if key in _ENTRIES}
    # An encoder that lies in a folder may be edited, and one may come from a package or from a hub, which differ.
    encoder = None if record is None or record.encoder is None else encoder_revision(record.encoder)
    return JudgeVersion(name, _digest(found, files, entries, encoder), f"sha256:{found}")


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision) is not None
