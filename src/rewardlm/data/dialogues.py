"""Dialogues of hate speech and counter-narratives: where they come from, how they become training samples.

Three steps, one function each: ``load_dialogues`` reads a source and counts what is irregular in it,
``split_by_component`` sets a validation part aside that shares no user turn with the rest, and ``pairs``
makes one sample of every user turn and its answer, with all antecedent turns.
"""

from __future__ import annotations

import importlib.resources
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rewardlm.data import conan
from rewardlm.data.files import (
    HUB_ID,
    TABLES,
    Ids,
    Row,
    answer_ended,
    column,
    columns,
    headless,
    hub_rows,
    read_jsonl,
    read_table,
)
from rewardlm.errors import ConfigError, DataError
from rewardlm.typed import shown
from rewardlm.types import Dialogue, DialogueSet, Message

Split = Literal["train", "validation"]
SPLITS: tuple[str, ...] = get_args(Split)
# Our own texts. The first has vivid answers, which are hard to predict. The second has answers in plain words, which a
# small model can learn from a few hundred examples; many of its prompts break off, as texts from the web do.
OURS = {"starter": "dialogues.jsonl", "starter-plain": "plain.jsonl"}
SOURCES = (
    "starter, starter-plain, dialoconan, or the path of DIALOCONAN.csv, DIALOCONAN.json, Multitarget-CONAN.csv, "
    "CONAN.csv, a .jsonl of messages or a table of prompts and answers, each optionally with :train or :validation"
)

_MESSAGES = '"messages": a list of {"role": …, "content": …}'
# Names of a table's columns: those that hold all turns as a list, those with the user's text, those with its answer.
TURNS = ("messages", "conversations", "conversation")
_QUESTIONS = ("prompt", "text")
_ANSWERS = ("answer", "response", "completion", "counter_narrative")
# Turns as ShareGPT names their speakers.
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Pair:
    """One training sample: ``history`` ends with the user's turn that ``answer`` answers; ``ended`` is False where that
    answer was cut off.

    ``id`` is the dialogue's id, a colon and the pair's number in it, from 1.
    """

    id: str
    dialogue_id: str
    history: tuple[Message, ...]
    answer: Message
    ended: bool = True


@dataclass(frozen=True, slots=True)
class PairSet:
    """The samples, and how many pairs were dropped and why: ``total == len(pairs) + sum(dropped.values())``.

    ``notes`` counts what was changed without dropping a pair.
    """

    pairs: list[Pair]
    dropped: dict[str, int]
    notes: dict[str, int]
    total: int
    n_dialogues: int

    @property
    def summary(self) -> str:
        """One sentence, such as ``3,059 dialogues, 8,312 pairs, 1 dropped (1 blank turn)``."""
        sentence = f"{self.n_dialogues:,} dialogues, {self.total:,} pairs"
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
            sentence += f", {sum(self.dropped.values()):,} dropped ({reasons})"
        return sentence


def normalised(text: str) -> str:
    """A form in which texts that say the same are equal: NFKC, case folded, every run of blanks as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def load_dialogues(
    source: str, *, unanswered: bool = False, text_column: str | None = None, answer_column: str | None = None
) -> DialogueSet:
    """Dialogues of ``source``.

    ``starter`` and ``starter-plain`` are our own; ``dialoconan`` fetches the publisher's file once into
    ``$REWARDLM_CACHE`` (or ``~/.cache/rewardlm``) and checks its SHA-256; a path leads to DIALOCONAN.csv or .json,
    Multitarget-CONAN.csv or CONAN.csv (its English rows), told apart by their header, or to a table (.jsonl, .csv,
    .tsv, .parquet, a .json list) whose column ``messages`` holds all turns, or whose columns hold a user's text and its
    answer (a column such as ``answer_finish`` beside it holds ``length`` where that was cut off);
    ``owner/name`` is such a table on the hub. ``text_column`` and ``answer_column`` name these columns if
    they have other names. Each source may be followed by ``:train`` or ``:validation``, the parts of
    ``split_by_component`` with its defaults.

    In DIALOCONAN a turn's role is its position, because its type label is wrong in places; a turn without a
    partner at the end is left out (the one dialogue of five turns ends with two answers); a dialogue with
    two targets has both, as ``A/B``. In all CONAN files line ends inside a text become blanks and those
    around it go; the texts of a jsonl stay exactly as they are. Blank turns stay, for ``pairs`` to drop.
    Repeated dialogues stay too.

    A jsonl's dialogues alternate user and assistant, after an optional system turn, with at least one
    answer. With ``unanswered`` they are used as prompts: a user's turn alone is enough, and the last one must
    not be blank.

    Raises DataError, in one line, for a source that is unknown, unreachable or not as described.
    """
    name, split = _split_suffix(source)
    path = Path(name).expanduser()
    named = {"text_column": text_column, "answer_column": answer_column}
    if name in (*OURS, "dialoconan") and (given := next((key for key, value in named.items() if value), None)):
        raise ConfigError(f"{given} is for tables of your own: {name} has its own columns, leave it out")
    if name in OURS:
        resource = importlib.resources.files("rewardlm.data") / "starter" / OURS[name]
        with importlib.resources.as_file(resource) as file:
            loaded = _from_rows(read_jsonl(file, _MESSAGES), name, unanswered)
    elif name == "dialoconan":
        loaded = conan.from_csv(conan.dialoconan_file())
    elif path.suffix.lower() in (*TABLES, ".json"):
        loaded = _from_file(path, unanswered, text_column, answer_column)
    elif path.exists():
        raise DataError(f"{path} holds no dialogues that can be read here; expected {SOURCES}")
    elif HUB_ID.fullmatch(name.partition(":")[0]):
        dataset, _, part = name.partition(":")
        loaded = _from_rows(_hub_rows(dataset, part or "train"), dataset, unanswered, text_column, answer_column)
    else:
        raise DataError(f"dialogues {shown(source)}: no such file or source; expected {SOURCES}")
    dialogues = loaded.dialogues
    if split is not None:
        train, validation = split_by_component(dialogues)
        dialogues = train if split == "train" else validation
        if not dialogues:
            raise DataError(
                f"dialogues {shown(source)}: too few unrelated dialogues for a {split} part; use {name} without it"
            )
    return DialogueSet(dialogues, loaded.notes, source, loaded.n_rows)


def pairs(dialogues: Iterable[Dialogue]) -> PairSet:
    """Every user turn with its answer, after all antecedent turns, in order.

    A pair is dropped and counted if one of its two turns is blank. A pair with exactly the same history and
    answer as an earlier one (dialogues share openings) is kept, and counted in ``notes``. A blank *antecedent*
    does not drop the pairs after it: the exchange that it belongs to is left out of their history, both
    turns, so that roles still alternate. A user's turn at the end that nobody answers makes no pair and counts
    in ``notes``, not in ``total``.
    """
    kept: list[Pair] = []
    seen: set[tuple[tuple[Message, ...], Message]] = set()
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    total = n_dialogues = 0
    for dialogue in dialogues:
        n_dialogues += 1
        first = _first_user_turn(dialogue.turns)
        turns = dialogue.turns
        if (len(turns) - first) % 2:
            notes["user turn without an answer"] += 1
        for number, at in enumerate(range(first, len(turns) - 1, 2), 1):
            total += 1
            question, answer = turns[at], turns[at + 1]
            if not question.text.strip() or not answer.text.strip():
                dropped["blank turn"] += 1
                continue
            history = without_blank_exchanges(turns[: at + 1])
            if len(history) <= at:
                notes["blank antecedent left out"] += 1
            notes["repeated pair kept"] += (history, answer) in seen
            seen.add((history, answer))
            ended = dialogue.ended or at + 2 < len(turns)
            kept.append(Pair(f"{dialogue.id}:{number}", dialogue.id, history, answer, ended))
    return PairSet(kept, dict(dropped), dict(+notes), total, n_dialogues)


def without_blank_exchanges(turns: Sequence[Message]) -> tuple[Message, ...]:
    """``turns``, which end with a user's, without the antecedent exchanges that have a blank turn."""
    first = _first_user_turn(turns)
    kept = [turn for turn in turns[:first] if turn.text.strip()]
    for at in range(first, len(turns) - 1, 2):
        if turns[at].text.strip() and turns[at + 1].text.strip():
            kept += turns[at : at + 2]
    return (*kept, turns[-1])


def split_by_component(
    dialogues: Sequence[Dialogue], *, validation: float = 0.1, seed: int = 0
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, validation) in file order, such that no user turn, normalised, is in both.

    Dialogues that share a user turn (only 1,299 openings of DIALOCONAN's 3,059 are distinct) are one
    connected component and stay together. Validation is the largest union of components that is not larger
    than asked, found exactly (a subset sum) over the components in an order shuffled by ``seed``. So a
    component larger than that always trains, and validation may be empty if nothing is small enough. Raises
    ConfigError if ``validation`` is not in [0, 1).
    """
    if not 0.0 <= validation < 1.0:
        raise ConfigError(f"validation share is {validation}; expected a number from 0 to less than 1")
    components = _components(dialogues)
    random.Random(seed).shuffle(components)
    target = int(validation * len(dialogues) + 1e-9)
    chosen = {
        member
        for which in _subset_sum([len(component) for component in components], target)
        for member in components[which]
    }
    train = [dialogue for at, dialogue in enumerate(dialogues) if at not in chosen]
    return train, [dialogue for at, dialogue in enumerate(dialogues) if at in chosen]


def _components(dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Indices of dialogues connected by shared user turns, by union-find; blank turns connect nobody."""
    parent = list(range(len(dialogues)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first_with: dict[str, int] = {}
    for at, dialogue in enumerate(dialogues):
        for turn in dialogue.turns:
            text = normalised(turn.text) if turn.role == "user" else ""
            if text:
                a, b = root(first_with.setdefault(text, at)), root(at)
                # the smaller index is the root, so that components come in order of appearance
                parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for at in range(len(dialogues)):
        members.setdefault(root(at), []).append(at)
    return list(members.values())


def _subset_sum(sizes: Sequence[int], target: int) -> list[int]:
    """Indices of some sizes whose sum is as large as possible without exceeding ``target``.

    Bit s of ``reachable`` is set if a subset of the sizes so far sums to s; ``last[s]`` is the size that
    first reached s, so walking back from the best sum meets ever earlier sizes and uses none twice.
    """
    reachable, mask = 1, (1 << (target + 1)) - 1
    last: dict[int, int] = {}
    for index, size in enumerate(sizes):
        new = (reachable << size) & mask & ~reachable
        reachable |= new
        while new:
            low = new & -new
            last[low.bit_length() - 1] = index
            new ^= low
        if target in last:
            break
    chosen = []
    rest = max(last, default=0)
    while rest:
        chosen.append(last[rest])
        rest -= sizes[last[rest]]
    return chosen


def _first_user_turn(turns: Sequence[Message]) -> int:
    return 1 if turns and turns[0].role == "system" else 0


def _split_suffix(source: str) -> tuple[str, Split | None]:
    """The source and its part: ``NAME:train`` is (NAME, train), unless a file is named so."""
    name, _, suffix = source.rpartition(":")
    if name and not Path(source).expanduser().exists():
        if suffix == "train":
            return name, "train"
        if suffix == "validation":
            return name, "validation"
        known = name in (*OURS, "dialoconan") or Path(name).suffix.lower() in (*TABLES, ".json")
        if known:
            raise DataError(f"dialogues {shown(source)}: no part {shown(suffix)}; expected :train or :validation")
    return source, None


def _from_file(path: Path, unanswered: bool, text_column: str | None, answer_column: str | None) -> DialogueSet:
    """CONAN's own files by their header, and any other table by its columns."""
    if path.suffix.lower() == ".json" and conan.is_table_of_columns(path):
        return conan.from_json(path)
    rows = read_table(path, _MESSAGES)
    first = next(rows)
    names = first.values
    if text_column is None and path.suffix.lower() in (".csv", ".tsv"):
        if conan.is_dialogue_header(names):
            return conan.from_csv(path)
        whole = column(names, TURNS) or (unanswered and column(names, _QUESTIONS))
        if not whole and not (column(names, _QUESTIONS) and (answer_column or column(names, _ANSWERS))):
            headless(path, names, "messages or prompt,answer")
            raise DataError(
                f"{path}, line 1: columns {columns(names)}; expected those of DIALOCONAN.csv or another CONAN file, "
                "messages, or prompt and answer: if they have other names, give these by text_column=NAME and "
                "answer_column=NAME"
            )

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    return _from_rows(all_rows(), path.name, unanswered, text_column, answer_column)


def _hub_rows(dataset: str, split: str) -> Iterator[Row]:
    return hub_rows(
        dataset,
        split,
        lambda reason: (
            f"hub data set {dataset!r}, split {split!r}, can't be loaded ({reason}), and no file is named so; expected "
            f"{SOURCES}"
        ),
    )


def _from_rows(
    rows: Iterable[Row],
    source: str,
    unanswered: bool,
    text_column: str | None = None,
    answer_column: str | None = None,
) -> DialogueSet:
    notes: Counter[str] = Counter()
    ids = Ids()
    dialogues = []
    for row in rows:
        ids.add(row.id, row.where)
        target = row.values.get("target")
        if target is not None and not isinstance(target, str):
            raise DataError(f"{row.where}: target is {shown(target)}; expected a text or nothing")
        turns = _messages(row, _all_turns(row, text_column, answer_column, unanswered), unanswered)
        blank = sum(not turn.text.strip() for turn in turns)
        if blank:
            notes["blank turn"] += blank
        answer_key = answer_column or column(row.values, _ANSWERS)
        ended = answer_key is None or answer_ended(row, answer_key)
        dialogues.append(Dialogue(row.id, turns, source, target or None, ended))
    return DialogueSet(dialogues, dict(notes), source, len(dialogues))


def _all_turns(row: Row, text_column: str | None, answer_column: str | None, unanswered: bool) -> Any:
    """A row's turns, in the form of ``messages``; if its cell holds no turns, what it does hold."""
    for name in (text_column, answer_column):
        if name is not None and name not in row.values:
            raise DataError(f"{row.where}: no column {name!r}, only {columns(row.values)}; choose one of these")
    key = text_column or column(row.values, (*TURNS, *_QUESTIONS))
    if key is None:
        raise DataError(
            f"{row.where}: only {columns(row.values)}; expected {_MESSAGES}, or its name by text_column=NAME"
        )
    turns = listed(row, key)
    answer_key = answer_column or column(row.values, _ANSWERS)
    if isinstance(turns, str) and key not in TURNS:
        turns = [{"role": "user", "content": turns}]
        if answer_key is None:
            if not unanswered:
                raise DataError(
                    f"{row.where}: only {columns(row.values)}; expected {_MESSAGES}, or an answer beside {key!r}: "
                    f"a column {', '.join(_ANSWERS)}, or its name by answer_column=NAME"
                )
            return turns
    elif answer_column is None and key != "prompt":
        return turns  # All turns are there; only a list of a prompt's turns has its answer beside it.
    if answer_key is None or not isinstance(turns, list):
        return turns
    answer = listed(row, answer_key)
    return turns + (answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])


def listed(row: Row, key: str) -> Any:
    """The value in column ``key``; if a csv's cell holds a JSON list as text, that list."""
    value = row.values[key]
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if key not in TURNS:
            return value
        what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too long or deep"
        raise DataError(
            f'{row.where}: {key!r} is not JSON ({what}); expected a list of {{"role": …, "content": …}}'
        ) from None


def _messages(row: Row, messages: Any, unanswered: bool) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise DataError(f"{row.where}: messages is {shown(messages)}; expected {_MESSAGES}")
    turns: list[Message] = []
    for number, message in enumerate(messages, 1):
        where = f"{row.where}, message {number}"
        if isinstance(message, dict) and message.get("from") in _SPEAKERS and "role" not in message:
            message = {"role": _SPEAKERS[message["from"]], "content": message.get("value")}
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise DataError(f'{where}: {shown(message)}; expected {{"role": …, "content": a text}}')
        if number == 1 and message.get("role") == "system":
            turns.append(Message("system", message["content"]))
            continue
        role: Literal["user", "assistant"] = "user" if (number - 1 - _first_user_turn(turns)) % 2 == 0 else "assistant"
        if message.get("role") != role:
            raise DataError(
                f"{where}: role is {shown(message.get('role'))}; expected {role!r}: "
                "an optional system turn, then user and assistant in turn"
            )
        turns.append(Message(role, message["content"]))
    n_turns = len(turns) - _first_user_turn(turns)
    if n_turns < (1 if unanswered else 2):
        wanted = "a user's turn" if unanswered else "a user's turn and its answer"
        raise DataError(f"{row.where}: messages has {n_turns} turns of user and assistant; expected at least {wanted}")
    if unanswered and not _last_user_turn(turns).text.strip():
        raise DataError(f"{row.where}: the last user turn is blank; expected a prompt with text in it")
    return tuple(turns)


def _last_user_turn(turns: Sequence[Message]) -> Message:
    return turns[-1] if turns[-1].role == "user" else turns[-2]
