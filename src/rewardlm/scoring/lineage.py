"""What and whom a judge learnt from, so that a witness can be told from a relative of the reward.

A judge that is trained here records its teachers, theirs, its encoder, its data, and the texts that it read as numbers
(hashes, from which no text can be read). Runs keep a summary of it, so that the audit never loads a judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardlm.scoring.scorer import PRESETS
from rewardlm.scoring.trained import RECORD, SHIPPED, judge_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Beside judge.json: which texts the judge read, itself or through the judges that taught it.
READ = "read.safetensors"
_KEY = "sha256_64"

# What is known of judges that others made: neither was taught by a judge of this package, and of neither is there a
# list of its texts.
THIRD_PARTIES: dict[str, tuple[str, ...]] = {
    "lexical": ("davidson", "jigsaw"),
    "lexical2": ("jigsaw",),
    "perspective": (),
    "endpoint": (),
}


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A judge, or one that taught it: ``taught`` names whom, None for the judge itself.

    Folders of two judges may have one name, so where there is a ``revision`` it alone says who is who.
    """

    name: str
    revision: str | None
    taught: str | None = None


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
        """As ``to_dict`` wrote it; of a run that has none, nothing is known."""
        if not found:
            return Lineage(name, False)
        family = tuple(Ancestor(one["judge"], one["revision"], one["taught"]) for one in found["family"])
        return Lineage(name, found["known"], family, tuple(found["encoders"]), tuple(found["data"]))


def lineage_of(spec: str) -> Lineage:
    """The lineage of the judge that ``--scorer spec`` means: of all members, where it is an ensemble.

    Reads ``judge.json`` and no weights but to hash those of an adapter. A classifier of the hub is taken for a third
    party's: nothing of this package taught it.
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
    # A label behind an ensemble's bracket names none of its judges.
    parts = (part.strip().partition("#")[0] for part in re.split(r"[(),]", re.sub(r"\)\.[^(),]*", ")", name)))
    found: set[str] = set()
    for part in parts:
        preset = next((spec for alias, spec in PRESETS.items() if part == alias or part.startswith(alias + ".")), None)
        found |= {part} if preset is None else members(preset)
    return found - {"", "mean", "max"}


def count_read(lineage: Lineage, texts: Iterable[str]) -> int | None:
    """How many of the different ``texts`` the judge, or a judge that taught it, was trained on; None: nobody knows.

    ``texts`` are normalised (``data.dialogues.normalised``), as those were that the judge's list is of.
    """
    import numpy as np

    lists = [read_numbers(folder) for folder in lineage.folders]
    if not lists or any(numbers is None for numbers in lists):
        return None
    asked = np.asarray(sorted({text_number(text) for text in texts}), np.uint64)
    return int(np.isin(asked, np.concatenate([numbers for numbers in lists if numbers is not None])).sum())


def text_number(text: str) -> int:
    """The first 64 bits of SHA-256 of a normalised text: equal texts have equal numbers, and no text can be read."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def write_read(folder: Path, texts: Iterable[str], teachers: Sequence[NDArray[np.uint64]] = ()) -> int:
    """Store the numbers of ``texts``, normalised, and of what the teachers read, sorted, 8 bytes each; how many."""
    import numpy as np
    from safetensors.numpy import save_file

    own = np.asarray(sorted({text_number(text) for text in texts}), np.uint64)
    numbers = np.unique(np.concatenate([own, *teachers]))
    save_file({_KEY: numbers}, str(folder / READ))
    return len(numbers)


def read_numbers(folder: Path) -> NDArray[np.uint64] | None:
    """UInt64[N], sorted: the numbers of the texts that the judge in ``folder`` read; None where it has no such list."""
    from safetensors.numpy import load_file

    path = folder / READ
    if not path.is_file():
        return None
    numbers: NDArray[np.uint64] = load_file(str(path))[_KEY]
    return numbers


def teachers_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of ``judge.json`` of those that taught a judge directly."""
    return [*record.get("distilled", []), *([record["teacher"]] if isinstance(record.get("teacher"), dict) else [])]


def _of_member(name: str) -> Lineage:
    folder = judge_folder(name)
    if folder is None:
        kind = name.partition(":")[0].partition("#")[0]
        if kind in THIRD_PARTIES:
            return Lineage(name, True, (Ancestor(name, None),), (), THIRD_PARTIES[kind])
        # A function may call any judge.
        return Lineage(name, ":" not in name and kind not in SHIPPED, (Ancestor(name, None),))
    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if (folder / RECORD).is_file() else {}
    family = [Ancestor(name, revision_of(folder)), *_teachers(record, folder.name)]
    # No judge of texts teaches one of pairs.
    known = record.get("kind") == "pairs" or (folder / READ).is_file()
    known = known and all(entry.get("known", False) for entry in teachers_of(record))
    encoders, data = _sources(record)
    return Lineage(name, known, tuple(family), encoders, data, (folder,))


def _teachers(record: Mapping[str, Any], taught: str) -> Iterator[Ancestor]:
    for entry in teachers_of(record):
        yield Ancestor(entry["judge"], entry["revision"], taught)
        yield from _teachers(entry, entry["judge"])


def _sources(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Encoders and data sets of a judge and of all who taught it."""
    encoders = [record["encoder"]] if record.get("encoder") else []
    data = [source["kind"] for source in record.get("data", [])]
    for entry in teachers_of(record):
        more = _sources(entry)
        encoders += more[0]
        data += more[1]
    return _once(encoders), _once(data)


def revision_of(folder: Path) -> str | None:
    """What tells the weights in ``folder`` from others: SHA-256 of them, as ``scoring.classifier`` records it.

    Of an adapter its own alone: on which encoder it stands says ``judge.json``.
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
