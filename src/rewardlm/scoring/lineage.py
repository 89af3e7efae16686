"""What a judge learnt from, and from whom, so that a witness can be told from a relative of the reward.

A judge that is trained here records its teachers, their teachers, its encoder, its data, and hashes of the texts that
it read. No text can be read from the hashes. Runs keep a summary of it, so that the audit never loads a judge.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from rewardlm.errors import ScorerError
from rewardlm.scoring.ensemble import PRESETS
from rewardlm.scoring.record import SHIPPED, JudgeRecord, Teacher, all_sources, judge_folder, read_record
from rewardlm.typed import mistake

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Beside judge.json: which texts the judge read, itself or through the judges that taught it.
READ = "read.safetensors"
_KEY = "sha256_64"

# The data of judges that others made, as far as it is known. No judge of this package taught any of them, and none has
# a list of its texts.
THIRD_PARTIES: dict[str, tuple[str, ...]] = {
    "lexical": ("davidson", "jigsaw"),
    "lexical2": ("jigsaw",),
    "perspective": (),
    "endpoint": (),
}


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A judge, or a judge that taught it. ``taught`` names the pupil; it is None for the judge itself.

    Two judges' folders may have the same name, so where there is a ``revision`` it alone tells judges apart.
    """

    name: str
    revision: str | None
    taught: str | None = None


class _RecordedAncestor(TypedDict):
    judge: str
    revision: str | None
    taught: str | None


class _Recorded(TypedDict):
    """What ``Lineage.to_dict`` gives."""

    known: bool
    family: list[_RecordedAncestor]
    encoders: list[str]
    data: list[str]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is known of where a judge's opinion comes from.

    ``known`` False: nobody recorded its teachers, and it may be anybody's relative. ``encoders`` are its own and its
    teachers'; ``data`` names the data sets of all of them.
    """

    name: str
    known: bool
    family: tuple[Ancestor, ...] = ()
    encoders: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    folders: tuple[Path, ...] = field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """What a run records of it."""
        return {
            "known": self.known,
            "family": [{"judge": one.name, "revision": one.revision, "taught": one.taught} for one in self.family],
            "encoders": list(self.encoders),
            "data": list(self.data),
        }

    @staticmethod
    def of_dict(name: str, found: Mapping[str, Any] | None) -> Lineage:
        """Read what ``to_dict`` wrote. Where a run has none, nothing is known."""
        if not found:
            return Lineage(name, False)
        if (wrong := mistake(_Recorded, found)) is not None:
            raise ScorerError(f"the lineage that a run recorded of {name!r:.60} was changed by hand: {wrong}")
        family = tuple(Ancestor(one["judge"], one["revision"], one["taught"]) for one in found["family"])
        return Lineage(name, found["known"], family, tuple(found["encoders"]), tuple(found["data"]))


def lineage_of(spec: str) -> Lineage:
    """The lineage of the judge that ``--scorer spec`` means: of all members, where it is an ensemble.

    Reads ``judge.json``, and weights only to hash them. A classifier from the hub counts as a third party's: nothing of
    this package taught it.
    """
    parts = [_of_member(name) for name in sorted(members(spec))]
    return Lineage(
        spec,
        all(part.known for part in parts),
        tuple(dict.fromkeys(one for part in parts for one in part.family)),
        _once(name for part in parts for name in part.encoders),
        _once(name for part in parts for name in part.data),
        tuple(dict.fromkeys(folder for part in parts for folder in part.folders)),
    )


def kinship(judge: Lineage, reward: Lineage) -> str | None:
    """How a judge and a reward are related: a clause for a warning; None where they aren't, as far as is known."""
    for one in judge.family:
        for other in reward.family:
            if not _is_same(one, other):
                continue
            if one.taught is None and other.taught is None:
                return f"both are {one.name}"
            if one.taught is None:
                return f"{one.name} taught {other.taught}"
            if other.taught is None:
                return f"{other.name} taught {one.taught}"
            return f"{one.name} taught both: {one.taught} and {other.taught}"
    return None


def members(name: str) -> set[str]:
    """The classifiers behind a scorer's name, without labels: those of ensembles, of ensembles in them, of presets."""
    if os.path.isdir(name):
        return {name}
    name = name.strip()
    preset = next((spec for alias, spec in PRESETS.items() if name == alias or name.startswith(alias + ".")), None)
    if preset is not None:
        return members(preset)
    # A label after an ensemble's closing bracket names none of its judges.
    ensemble = re.fullmatch(r"(?:mean|max)\((.*)\)(?:[.#][^(),]*)?", name, re.DOTALL)
    inside = None if ensemble is None else _parts(ensemble[1])
    # A column of somebody's table may be called "toxicity (v2)" or "a, b": that is one judge.
    return {name.partition("#")[0]} - {""} if inside is None else set().union(*map(members, inside))


def _parts(text: str) -> list[str] | None:
    """What commas divide outside of brackets; None if the brackets don't match."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            return None
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return None if depth else parts


def count_read(lineage: Lineage, texts: Iterable[str]) -> int | None:
    """How many of the different ``texts`` the judge, or a judge that taught it, was trained on; None: nobody knows.

    ``texts`` must be normalised (``data.dialogues.normalised``), like those in the judge's list.
    """
    import numpy as np

    lists = [read_hashes(folder) for folder in lineage.folders]
    known = [hashes for hashes in lists if hashes is not None]
    if not lists or len(known) < len(lists):
        return None
    unique = np.asarray(sorted({text_hash(text) for text in texts}), np.uint64)
    return int(np.isin(unique, np.concatenate(known)).sum())


def text_hash(text: str) -> int:
    """The first 64 bits of SHA-256 of a normalised text: equal texts have equal hashes, which hide the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def write_hashes(folder: Path, texts: Iterable[str], teachers: Sequence[NDArray[np.uint64]] = ()) -> int:
    """Store the hashes of normalised ``texts`` and those of the teachers, sorted, 8 bytes each. Returns how many."""
    import numpy as np
    from safetensors.numpy import save_file

    own = np.asarray(sorted({text_hash(text) for text in texts}), np.uint64)
    hashes = np.unique(np.concatenate([own, *teachers]))
    save_file({_KEY: hashes}, str(folder / READ))
    return len(hashes)


def read_hashes(folder: Path) -> NDArray[np.uint64] | None:
    """UInt64[N], sorted: the hashes of the texts that the judge in ``folder`` read; None where it has no such list."""
    from safetensors.numpy import load_file

    path = folder / READ
    if not path.is_file():
        return None
    try:
        hashes: NDArray[np.uint64] = load_file(str(path))[_KEY]
    except Exception as error:  # safetensors raises its own, undocumented types
        raise ScorerError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): expected {_KEY}") from None
    if hashes.dtype.name != "uint64" or hashes.ndim != 1:
        raise ScorerError(f"{path} is damaged: expected a list of hashes, got {hashes.dtype} of shape {hashes.shape}")
    return hashes


def _of_member(name: str) -> Lineage:
    folder = judge_folder(name)
    if folder is None:
        kind = name.partition(":")[0].partition("#")[0]
        if kind in THIRD_PARTIES:
            return Lineage(name, True, (Ancestor(name, None),), (), THIRD_PARTIES[kind])
        # A function may call any judge.
        return Lineage(name, ":" not in name and kind not in SHIPPED, (Ancestor(name, None),))
    family = [Ancestor(name, _revision_of(folder))]
    record = read_record(folder)
    if record is None:
        return Lineage(name, False, tuple(family), folders=(folder,))
    # A judge of pairs has no teachers.
    known = record.kind == "pairs" or (folder / READ).is_file()
    return Lineage(
        name,
        known and all(teacher.known for teacher in record.teachers),
        (*family, *_ancestors(record, folder.name)),
        _once(encoder for encoder in _encoders(record) if encoder),
        _once(source.kind for source in all_sources(record)),
        (folder,),
    )


def _ancestors(judge: JudgeRecord | Teacher, taught: str) -> Iterator[Ancestor]:
    for teacher in judge.teachers:
        yield Ancestor(teacher.judge, teacher.revision, taught)
        yield from _ancestors(teacher, teacher.judge)


def _encoders(judge: JudgeRecord | Teacher) -> Iterator[str | None]:
    yield judge.encoder
    for teacher in judge.teachers:
        yield from _encoders(teacher)


def _revision_of(folder: Path) -> str | None:
    """What tells the weights in ``folder`` from others: their SHA-256, as ``scoring.classifier`` records it.

    For an adapter, only its own weights count; ``judge.json`` names its encoder.
    """
    from rewardlm.scoring.encoder import sha256_of

    adapter = folder / "adapter_model.safetensors"
    weights = [adapter] if adapter.is_file() else sorted(folder.glob("model*.safetensors"))
    return sha256_of(weights) if weights else None


def _is_same(one: Ancestor, other: Ancestor) -> bool:
    if one.revision and other.revision:
        return one.revision.partition("@")[0] == other.revision.partition("@")[0]
    return one.name == other.name


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
