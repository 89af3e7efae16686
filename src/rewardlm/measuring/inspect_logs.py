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
from rewardlm.measuring.harness import ForeignAnswer, chat_turns, contents_of, finish_of, message_text
from rewardlm.measuring.table_files import Contents, as_text
from rewardlm.types import Finish, Message

# zipfile.ZIP_ZSTANDARD of Python 3.14.
_ZSTANDARD = 93
# Archives that claim to hold more are refused, not unpacked: one member, and all of them.
_LARGEST, _LARGEST_ALL = 256 * 2**20, 4 * 2**30
# What is kept of a sample; its events are most of a log.
_KEPT = (
    "id", "epoch", "input", "target", "messages", "output", "scores", "metadata", "attachments", "error",
)  # fmt: skip
_ATTACHMENT = "attachment://"
_ENDS: dict[str, Finish] = {"stop": "stop", "max_tokens": "length", "model_length": "length"}
# Grades and words, as inspect_ai counts them; but no answer is no number.
_WORDS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": None, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def is_inspect(log: object) -> bool:
    """Whether ``log`` is the object of a .json log."""
    return isinstance(log, dict) and isinstance(log.get("eval"), dict) and "samples" in log


def log_of(path: Path, content: bytes) -> Any:
    """What an ``.eval`` file holds, as the object that a .json log is. Raises DataError for what can't be read."""
    return _unpacked(path, content) if content.startswith(b"PK") else _parsed(str(path), content)


def read_inspect(path: Path, log: Any, *, label: str, mapping: Mapping[str, str]) -> Contents:
    """The samples of a log: a prompt's id is the sample's, and epochs are its answers.

    The prompt is what the model was sent, with what solvers added, such as a system message. ``mapping`` may name
    places in a sample, such as ``metadata.toxicity``, or ``input`` for the bare question; a score that has several
    numbers is SCORER.KEY. Raises DataError for a file that is no log.
    """
    if not is_inspect(log) or not isinstance(log["samples"] or [], list):
        raise DataError(f"{path} is no log of inspect_ai: expected its eval and samples")
    samples = log["samples"] or []
    notes = []
    status = log.get("status")
    if status != "success":
        notes.append(f"the log's status is {status!r:.40}: only the samples that it has are imported")
    several = sum(len(_choices(sample)) > 1 for sample in samples)
    if several:
        notes.append(f"{several} samples have several choices: the first one counts")
    answers = [_answer(f"{path}, sample {number}", sample) for number, sample in enumerate(samples, 1)]
    answers.sort(key=lambda answer: answer.sample or 0)
    return contents_of(path, answers, kind="inspect_ai", label=label, mapping=mapping, notes=notes)


def _answer(where: str, sample: object) -> ForeignAnswer:
    if not isinstance(sample, dict):
        raise DataError(f"{where}: expected an object, got {type(sample).__name__}")
    identity, epoch = sample.get("id"), sample.get("epoch", 1)
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise DataError(f"{where}: id is {identity!r:.40}: expected a number or a text")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch < 2**31:
        raise DataError(f"{where}: epoch is {epoch!r:.40}: expected a whole number")
    metadata = sample.get("metadata")
    text, finish = _output(where, sample)
    return ForeignAnswer(
        where=where,
        prompt_id=str(identity),
        turns=_asked(where, sample),
        text=text,
        finish=finish,
        values=dict(_values(sample.get("scores"))),
        about=sample,
        known=metadata if isinstance(metadata, dict) else {},
        sample=max(0, epoch - 1),
    )


def _asked(where: str, sample: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the model was sent before its last answer, with what solvers added; else the sample's input."""
    messages = _whole(sample.get("messages"), sample.get("attachments"))
    messages = messages if isinstance(messages, list) else []
    roles = [_role(one) for one in messages]
    if "assistant" in roles:
        before = messages[: len(roles) - 1 - roles[::-1].index("assistant")]
        # What tools said isn't a turn; the last user's turn was answered with their help.
        while before and _role(before[-1]) != "user":
            before = before[:-1]
        kept = [one for one in before if _role(one) in ("system", "developer", "user", "assistant")]
        if kept:
            return chat_turns(where, kept)
    asked = _whole(sample.get("input"), sample.get("attachments"))
    if isinstance(asked, str):
        return (Message("user", as_text(where, "input", asked)),)
    if not isinstance(asked, list):
        raise DataError(f"{where}: input is {type(asked).__name__}: expected a text or a list of messages")
    return chat_turns(where, asked)


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _choices(sample: object) -> list[Any]:
    output = sample.get("output") if isinstance(sample, dict) else None
    found = output.get("choices") if isinstance(output, dict) else None
    return found if isinstance(found, list) else []


def _output(where: str, sample: Mapping[str, Any]) -> tuple[str | None, Finish | None]:
    """The first choice's text and how it ended; no text for a sample that failed."""
    choices = _choices(sample)
    if not choices or not isinstance(choices[0], dict) or sample.get("error"):
        return None, None
    message = choices[0].get("message")
    content = message.get("content") if isinstance(message, dict) else None
    text = as_text(where, "output", message_text(_whole(content, sample.get("attachments"))))
    return text, finish_of(_ENDS, choices[0].get("stop_reason"))


def _whole(value: Any, attachments: object) -> Any:
    """``value`` with what stands in the attachments put in its place, if it is there."""
    if isinstance(value, str) and value.startswith(_ATTACHMENT) and isinstance(attachments, dict):
        return attachments.get(value.removeprefix(_ATTACHMENT), value)
    if isinstance(value, list):
        return [_whole(one, attachments) for one in value]
    if isinstance(value, dict):
        return {key: _whole(one, attachments) for key, one in value.items()}
    return value


def _values(scores: object) -> Iterator[tuple[str, object]]:
    """Each scorer's number: grades and words as inspect_ai counts them, a dictionary's by SCORER.KEY."""
    for name, score in scores.items() if isinstance(scores, dict) else ():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, dict):
            for key, part in value.items():
                yield f"{name}.{key}", _number(part)
        else:
            yield name, _number(value)


def _number(value: object) -> object:
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return float(word)
    except ValueError:
        return value


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({getattr(error, 'msg', type(error).__name__)})") from None


def _unpacked(path: Path, content: bytes) -> dict[str, Any]:
    """The whole log from an archive; a run that was killed has no header yet, but a journal."""
    try:
        listed = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise DataError(f"{path}: not a whole zip archive ({error})") from None
    # Members that lie in each other would unpack to more than an archive can hold.
    if sum(one.file_size for one in listed) > _LARGEST_ALL or sum(one.compress_size for one in listed) > len(content):
        raise DataError(f"{path}: the archive claims to hold more than it can: expected at most {_LARGEST_ALL:,} bytes")
    members = {one.filename: one for one in listed}
    head = next((members[name] for name in ("header.json", "_journal/start.json") if name in members), None)
    if head is None:
        raise DataError(f"{path} is no log of inspect_ai: expected header.json in the archive")
    log = _parsed(f"{path}, {head.filename}", _member(path, content, head))
    if not isinstance(log, dict):
        raise DataError(f"{path}, {head.filename}: expected an object")
    names = [name for name in members if name.startswith("samples/") and name.endswith(".json")]
    samples = [_kept(_parsed(f"{path}, {name}", _member(path, content, members[name]))) for name in names]
    return {"status": "started", **log, "samples": samples}


def _kept(sample: Any) -> Any:
    return {name: sample[name] for name in _KEPT if name in sample} if isinstance(sample, dict) else sample


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
            found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)
        elif member.compress_type == zipfile.ZIP_STORED:
            found = packed
        else:
            raise DataError(f"{where}: compressed in a way ({member.compress_type}) that RewardLM can't read")
    except (zlib.error, OSError, ValueError) as error:
        raise DataError(f"{where}: can't be unpacked ({error}): the archive is damaged") from None
    if zlib.crc32(found) != member.CRC:
        raise DataError(f"{where}: the archive is damaged: its checksum is another")
    return found
