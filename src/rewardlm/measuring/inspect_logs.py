"""inspect_ai's logs (``.eval``, ``.json``) as prompts, answers and scores.

An ``.eval`` file is a zip archive: ``header.json``, and a JSON file for each sample and epoch below ``samples/``. Newer
versions compress with Zstandard, which Python's zipfile doesn't read yet, so its members are read here. A ``.json`` log
is one object with all samples. Long texts may stand in a sample's ``attachments`` instead of in their place.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewardlm.errors import DataError
from rewardlm.measuring.harness import ForeignAnswer, contents_of
from rewardlm.measuring.table_files import Contents, as_text, turns_of
from rewardlm.types import Finish, Message

# zipfile.ZIP_ZSTANDARD of Python 3.14.
_ZSTANDARD = 93
# A member that claims to be larger is refused, not unpacked.
_LARGEST = 256 * 2**20
_ATTACHMENT = "attachment://"
_ENDS: dict[object, Finish] = {"stop": "stop", "max_tokens": "length", "model_length": "length"}
# Grades, as inspect_ai counts them.
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def is_inspect(log: object) -> bool:
    """Whether ``log`` is the object of a .json log."""
    return isinstance(log, dict) and isinstance(log.get("eval"), dict) and "samples" in log


def read_inspect(path: Path, content: bytes, *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The samples of a log, those of one id as samples of one prompt in the order of their epochs.

    A prompt's id is the sample's. ``mapping`` may name places in a sample, such as ``metadata.toxicity``; a score that
    has several numbers is SCORER.KEY. Raises DataError for a file that is no log.
    """
    log = _unpacked(path, content) if content.startswith(b"PK") else _parsed(str(path), content)
    if not is_inspect(log):
        raise DataError(f"{path} is no log of inspect_ai: expected its eval and samples")
    samples = sorted(enumerate(log["samples"] or []), key=lambda pair: (_epoch(path, *pair), pair[0]))
    notes = []
    status = log.get("status")
    if status != "success":
        notes.append(f"the log's status is {status!r}: only the samples that it has are imported")
    return contents_of(
        path,
        (_answer(f"{path}, sample {number + 1}", sample) for number, sample in samples),
        kind="inspect_ai",
        label=label,
        mapping=mapping,
        notes=notes,
    )


def _epoch(path: Path, number: int, sample: object) -> int:
    where = f"{path}, sample {number + 1}"
    if not isinstance(sample, dict):
        raise DataError(f"{where}: expected an object, got {type(sample).__name__}")
    epoch = sample.get("epoch", 1)
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise DataError(f"{where}: epoch is {epoch!r}: expected a whole number")
    return epoch


def _answer(where: str, sample: Mapping[str, Any]) -> ForeignAnswer:
    identity = sample.get("id")
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise DataError(f"{where}: id is {identity!r}: expected a number or a text")
    attachments = sample.get("attachments") or {}
    asked = _whole(where, sample.get("input"), attachments)
    turns = (Message("user", as_text(where, "input", asked)),) if isinstance(asked, str) else _turns(where, asked)
    metadata = sample.get("metadata")
    text, finish = _output(where, sample, attachments)
    return ForeignAnswer(
        where=where,
        prompt_id=str(identity),
        turns=turns,
        text=text,
        finish=finish,
        values=dict(_values(sample.get("scores"))),
        about=sample,
        known=metadata if isinstance(metadata, dict) else {},
    )


def _turns(where: str, messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise DataError(f"{where}: input is {type(messages).__name__}: expected a text or a list of messages")
    plain = [
        {**message, "content": _text_of(message.get("content"))} if isinstance(message, dict) else message
        for message in messages
    ]
    return turns_of(where, plain)


def _output(where: str, sample: Mapping[str, Any], attachments: object) -> tuple[str | None, Finish | None]:
    """The first choice's text and how it ended; no text for a sample that failed."""
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None, None
    message = choices[0].get("message")
    content = message.get("content") if isinstance(message, dict) else None
    text = as_text(where, "output", _text_of(_whole(where, content, attachments)))
    return text, _ENDS.get(choices[0].get("stop_reason"))


def _text_of(content: object) -> object:
    """A message's text; of its parts, those that are text."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(part for part in parts if isinstance(part, str))


def _whole(where: str, value: Any, attachments: object) -> Any:
    """``value`` with what stands in the attachments put in its place."""
    if isinstance(value, str) and value.startswith(_ATTACHMENT):
        name = value.removeprefix(_ATTACHMENT)
        if not isinstance(attachments, dict) or name not in attachments:
            raise DataError(f"{where}: the text {value!r:.60} is not among the sample's attachments")
        return attachments[name]
    if isinstance(value, list):
        return [_whole(where, one, attachments) for one in value]
    if isinstance(value, dict):
        return {key: _whole(where, one, attachments) for key, one in value.items()}
    return value


def _values(scores: object) -> Iterator[tuple[str, object]]:
    """Each scorer's number: grades as inspect_ai counts them, a dictionary's by SCORER.KEY."""
    for name, score in scores.items() if isinstance(scores, dict) else ():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, dict):
            for key, part in value.items():
                yield f"{name}.{key}", _number(part)
        else:
            yield name, _number(value)


def _number(value: object) -> object:
    return _GRADES.get(value, value) if isinstance(value, str) else value


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({getattr(error, 'msg', type(error).__name__)})") from None


def _unpacked(path: Path, content: bytes) -> dict[str, Any]:
    """The whole log from an archive; a run that was killed has no header yet, but a journal."""
    try:
        members = {one.filename: one for one in zipfile.ZipFile(io.BytesIO(content)).infolist()}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a whole zip archive ({error})") from None
    head = next((members[name] for name in ("header.json", "_journal/start.json") if name in members), None)
    if head is None:
        raise DataError(f"{path} is no log of inspect_ai: expected header.json in the archive")
    log = _parsed(f"{path}, {head.filename}", _member(path, content, head))
    if not isinstance(log, dict):
        raise DataError(f"{path}, {head.filename}: expected an object")
    names = [name for name in members if name.startswith("samples/") and name.endswith(".json")]
    samples = [_parsed(f"{path}, {name}", _member(path, content, members[name])) for name in names]
    return {"status": "started", **log, "samples": samples}


def _member(path: Path, content: bytes, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes, whichever way they are compressed."""
    where = f"{path}, {member.filename}"
    if member.file_size > _LARGEST:
        raise DataError(f"{where}: {member.file_size:,} bytes: expected at most {_LARGEST:,}")
    try:
        name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    except struct.error:
        raise DataError(f"{where}: the archive is cut off") from None
    start = member.header_offset + 30 + name + extra
    packed = content[start : start + member.compress_size]
    try:
        if member.compress_type == _ZSTANDARD:
            import pyarrow

            found: bytes = pyarrow.Codec("zstd").decompress(packed, member.file_size, asbytes=True)
        elif member.compress_type == zipfile.ZIP_DEFLATED:
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _LARGEST)
        elif member.compress_type == zipfile.ZIP_STORED:
            found = packed
        else:
            raise DataError(f"{where}: compressed in a way ({member.compress_type}) that RewardLM can't read")
    except (zlib.error, OSError, ValueError) as error:
        raise DataError(f"{where}: can't be unpacked ({error}): the archive is damaged") from None
    if zlib.crc32(found) != member.CRC:
        raise DataError(f"{where}: the archive is damaged: its checksum is another")
    return found
