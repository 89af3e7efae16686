"""Dialogues of hate speech and counter-narratives: where they come from, how they become samples.

Three steps, one function each: ``load_dialogues`` reads a source and counts what is irregular in it,
``split_by_component`` sets a validation part aside that shares no user turn with the rest, and ``pairs``
makes one sample of every user turn and its answer, with all antecedent turns.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rewardlm.config import cache_folder
from rewardlm.data.files import Ids, Row, columns, read_csv, read_json, read_jsonl, shown
from rewardlm.errors import ConfigError, DataError
from rewardlm.runs import write_atomically
from rewardlm.types import Dialogue, Message

Split = Literal["train", "validation"]
SPLITS: tuple[str, ...] = get_args(Split)
# Our own texts. Answers of the first are vivid, and hard to predict; those of the second are in plain words, which a
# small model can learn from a few hundred, and many of its prompts break off as texts from the web do.
OURS = {"starter": "dialogues.jsonl", "starter-plain": "plain.jsonl"}
SOURCES = (
    "starter, starter-plain, dialoconan, or the path of DIALOCONAN.csv, DIALOCONAN.json, Multitarget-CONAN.csv, "
    "CONAN.csv or a .jsonl of messages, each optionally with :train or :validation"
)

# The commit is pinned, so that the file can't change under the hash. Its licence ("research purposes and
# cannot be redistributed") is why it is fetched at the user's request and never shipped.
DIALOCONAN_URL = (
    "https://raw.githubusercontent.com/marcoguerini/CONAN/2047ba021006fa2a5951e20dee7c2abfb2569230"
    "/DIALOCONAN/DIALOCONAN.csv"
)
DIALOCONAN_SHA256 = "19f1c7fc35dc951d385b7c50a53d544b0e969100134cadfb804b87373668ed06"

_DIALOCONAN = ("text", "TARGET", "dialogue_id", "turn_id", "type")
_MULTITARGET = ("INDEX", "HATE_SPEECH", "COUNTER_NARRATIVE", "TARGET")
_CONAN = ("cn_id", "hateSpeech", "counterSpeech")
_MESSAGES = '"messages": a list of {"role": …, "content": …}'


@dataclass(frozen=True, slots=True)
class DialogueSet:
    """Dialogues in file order, with what was irregular in their source and how often.

    ``notes`` counts by reason; an irregularity that costs a turn or a row says "left out". ``n_rows`` is the
    number of rows of the file: turns in DIALOCONAN, hate-speech/counter-narrative pairs in the other CONAN
    files, dialogues in a jsonl.
    """

    dialogues: list[Dialogue]
    notes: dict[str, int]
    source: str
    n_rows: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One training sample: ``history`` ends with the user's turn that ``answer`` answers.

    ``id`` is the dialogue's id, a colon and the pair's number in it, from 1.
    """

    id: str
    dialogue_id: str
    history: tuple[Message, ...]
    answer: Message


@dataclass(frozen=True, slots=True)
class PairSet:
    """The samples, and the account of those that are none: ``total == len(pairs) + sum(dropped.values())``.

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
    """What two texts that say the same have in common: NFKC, case folded, every run of blanks one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def load_dialogues(source: str, *, unanswered: bool = False) -> DialogueSet:
    """Dialogues of ``source``.

    ``starter`` and ``starter-plain`` are our own; ``dialoconan`` fetches the publisher's file once into
    ``$REWARDLM_CACHE`` (or ``~/.cache/rewardlm``) and checks its SHA-256; a path leads to DIALOCONAN.csv or .json,
    Multitarget-CONAN.csv or CONAN.csv (its English rows), told apart by their header, or to a .jsonl of
    ``messages``. Each may be followed by ``:train`` or ``:validation``, the parts of ``split_by_component``
    with its defaults.

    In DIALOCONAN a turn's role is its position, because its type label is wrong in places; a turn without a
    partner at the end is left out (the one dialogue of five turns ends with two answers); a dialogue with
    two targets has both, as ``A/B``. In all CONAN files line ends inside a text become blanks and those
    around it go; the texts of a jsonl stay exactly as they are. Blank turns stay, for ``pairs`` to drop.
    Repeated dialogues stay too.

    A jsonl's dialogues alternate user and assistant, after an optional system turn, with one answer at
    least. With ``unanswered``, they are meant as prompts: a user's turn alone will do, and the last one must
    not be blank.

    Raises DataError, in one line, for a source that is unknown, unreachable or not as described.
    """
    name, split = _split_suffix(source)
    if name in OURS:
        resource = importlib.resources.files("rewardlm.data") / "starter" / OURS[name]
        with importlib.resources.as_file(resource) as path:
            loaded = _from_messages(path, name, unanswered)
    elif name == "dialoconan":
        loaded = _from_csv(_dialoconan_file())
    else:
        path = Path(name).expanduser()
        if path.suffix == ".jsonl":
            loaded = _from_messages(path, path.name, unanswered)
        elif path.suffix == ".json":
            loaded = _dialoconan(_json_rows(path), path)
        elif path.suffix == ".csv":
            loaded = _from_csv(path)
        elif path.exists():
            raise DataError(f"{path} holds no dialogues that can be read here; expected {SOURCES}")
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


def is_dialogue_header(header: Iterable[str]) -> bool:
    """Whether a csv with these columns is one of the CONAN files."""
    names = set(header)
    return any(names.issuperset(wanted) for wanted in (_DIALOCONAN, _MULTITARGET, _CONAN))


def pairs(dialogues: Iterable[Dialogue]) -> PairSet:
    """Every user turn with its answer, after all antecedent turns, in order.

    A pair is dropped and counted if one of its two turns is blank, or if an earlier pair has exactly the
    same history and answer (dialogues share openings; learning one twice would only give it twice the
    weight). A blank *antecedent* does not drop the pairs after it: the exchange that it belongs to is left
    out of their history, both turns, so that roles still alternate. A user's turn at the end that nobody
    answers makes no pair and counts in ``notes``, not in ``total``.
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
            kept.append(Pair(f"{dialogue.id}:{number}", dialogue.id, history, answer))
    return PairSet(kept, dict(dropped), dict(+notes), total, n_dialogues)


def without_blank_exchanges(turns: Sequence[Message]) -> tuple[Message, ...]:
    """``turns``, which end with a user's, without the antecedent exchanges of which a turn is blank."""
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
    than asked, found exactly (a subset sum) over the components in an order shuffled by ``seed``; so a
    component larger than that always trains, and validation may be empty where there is nothing small
    enough. Raises ConfigError if ``validation`` is not in [0, 1).
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
        known = name in (*OURS, "dialoconan") or Path(name).suffix in (".csv", ".json", ".jsonl")
        if known:
            raise DataError(f"dialogues {shown(source)}: no part {shown(suffix)}; expected :train or :validation")
    return source, None


def _from_csv(path: Path) -> DialogueSet:
    rows = read_csv(path, "the columns of DIALOCONAN.csv, Multitarget-CONAN.csv or CONAN.csv")
    first = next(rows)
    names = first.values.keys()

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    if names >= set(_DIALOCONAN):
        return _dialoconan(all_rows(), path)
    if names >= set(_MULTITARGET):
        return _pair_rows(all_rows(), "multitarget-conan", _MULTITARGET, lambda row: row.text("TARGET"))
    if names >= set(_CONAN):
        # all of CONAN is about one target; its rows name it as the type of hate speech, where they do
        return _pair_rows(all_rows(), "conan", _CONAN, lambda row: row.values.get("hsType"), language="EN")
    raise DataError(
        f"{path}, line 1: columns {columns(first.values)}; expected those of DIALOCONAN.csv "
        f"({', '.join(_DIALOCONAN)}), Multitarget-CONAN.csv ({', '.join(_MULTITARGET)}) or CONAN.csv "
        f"({', '.join(_CONAN)})"
    )


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of DIALOCONAN.json, which is stored by column: {"text": {"0": …, "1": …}, "TARGET": {…}, …}."""
    expected = f"the columns {', '.join(_DIALOCONAN)}, each an object of values by row number"
    table = read_json(path, expected)
    if not isinstance(table, dict) or not table.keys() >= set(_DIALOCONAN):
        got = columns(table) if isinstance(table, dict) else shown(table)
        raise DataError(f"{path}: {got}; expected {expected}")
    keys = None
    for name in _DIALOCONAN:
        column = table[name]
        if not isinstance(column, dict) or not all(key.isdecimal() for key in column):
            raise DataError(f"{path}: column {name!r} is {shown(column)}; expected {expected}")
        if keys is None:
            keys = sorted(column, key=int)
        elif set(keys) != column.keys():
            raise DataError(f"{path}: column {name!r} has other rows than {_DIALOCONAN[0]!r}; expected the same")
    if not keys:
        raise DataError(f"{path} has no row; expected {expected}")
    for number, key in enumerate(keys, 1):
        values = {name: table[name][key] for name in _DIALOCONAN}
        for name in ("dialogue_id", "turn_id"):
            if isinstance(values[name], int):
                values[name] = str(values[name])
        yield Row(f"{path}, row {key}", number, values)


def _dialoconan(rows: Iterable[Row], path: Path) -> DialogueSet:
    """Rows of DIALOCONAN as dialogues; see ``load_dialogues`` for what is done with the irregular ones."""
    notes: Counter[str] = Counter()
    groups: dict[str, list[Row]] = {}
    n_rows = 0
    previous: str | None = None
    for row in rows:
        n_rows += 1
        identity, turn = row.text("dialogue_id"), row.text("turn_id")
        if identity != previous and identity in groups:
            raise DataError(
                f"{row.where}: dialogue {shown(identity)} again, after others; expected its turns in adjacent rows"
            )
        previous = identity
        group = groups.setdefault(identity, [])
        if turn != str(len(group)):
            raise DataError(
                f"{row.where}: dialogue {shown(identity)} has turn {shown(turn)} here; "
                f"expected turn {len(group)}, turns in order from 0"
            )
        group.append(row)
    dialogues = []
    seen: set[tuple[str, ...]] = set()
    for identity, group in groups.items():
        if len(group) < 2:
            raise DataError(
                f"{group[0].where}: dialogue {shown(identity)} has one turn; expected a user's turn and its answer"
            )
        if len(group) % 2:
            notes["last turn without a partner left out"] += 1
            group = group[:-1]
        turns = []
        for at, row in enumerate(group):
            role: Literal["user", "assistant"] = "assistant" if at % 2 else "user"
            if row.text("type") != ("CN" if role == "assistant" else "HS"):
                notes["type label against the turn's position"] += 1
            turns.append(Message(role, _tidy(row.text("text"), notes)))
        targets = list(dict.fromkeys(row.text("TARGET") for row in group))
        if len(targets) > 1:
            notes["dialogue with two targets"] += 1
        texts = tuple(turn.text for turn in turns)
        if texts in seen:
            notes["repeated dialogue"] += 1
        seen.add(texts)
        dialogues.append(Dialogue(identity, tuple(turns), "dialoconan", "/".join(targets) or None))
    return DialogueSet(dialogues, dict(notes), str(path), n_rows)


def _pair_rows(
    rows: Iterable[Row],
    source: str,
    names: Sequence[str],
    target: Callable[[Row], str | None],
    language: str | None = None,
) -> DialogueSet:
    """Rows of one hate speech and one answer (columns ``names``: id, hate speech, answer) as dialogues."""
    id_column, question_column, answer_column = names[:3]
    notes: Counter[str] = Counter()
    ids = Ids()
    seen: set[tuple[str, str]] = set()
    dialogues = []
    n_rows = 0
    where = ""
    for row in rows:
        n_rows += 1
        where = row.where
        identity = row.text(id_column)
        if language is not None and not identity.startswith(language):
            notes["row not in English left out"] += 1
            continue
        ids.add(identity, row.where)
        question, answer = _tidy(row.text(question_column), notes), _tidy(row.text(answer_column), notes)
        if (question, answer) in seen:
            notes["repeated dialogue"] += 1
        seen.add((question, answer))
        turns = (Message("user", question), Message("assistant", answer))
        dialogues.append(Dialogue(identity, turns, source, target(row) or None))
    if not dialogues:
        raise DataError(
            f"{where}: the last row, and none in English; expected a {id_column} that starts with {language}"
        )
    return DialogueSet(dialogues, dict(notes), source, n_rows)


def _tidy(text: str, notes: Counter[str]) -> str:
    """A CONAN text without blanks around it or line ends in it, which are traces of its collection."""
    if not text.strip():
        notes["blank turn"] += 1
        return ""
    if text != text.strip():
        notes["blanks around a turn removed"] += 1
    if "\n" in text or "\r" in text:
        notes["line end in a turn removed"] += 1
    return re.sub(r"\s*[\r\n]+\s*", " ", text.strip())


def _from_messages(path: Path, source: str, unanswered: bool) -> DialogueSet:
    notes: Counter[str] = Counter()
    ids = Ids()
    dialogues = []
    for row in read_jsonl(path, _MESSAGES):
        ids.add(row.id, row.where)
        target = row.values.get("target")
        if target is not None and not isinstance(target, str):
            raise DataError(f"{row.where}: target is {shown(target)}; expected a text or nothing")
        turns = _messages(row, unanswered)
        blank = sum(not turn.text.strip() for turn in turns)
        if blank:
            notes["blank turn"] += blank
        dialogues.append(Dialogue(row.id, turns, source, target))
    return DialogueSet(dialogues, dict(notes), source, len(dialogues))


def _messages(row: Row, unanswered: bool) -> tuple[Message, ...]:
    messages: Any = row.values.get("messages")
    if not isinstance(messages, list):
        got = f"messages is {shown(messages)}" if "messages" in row.values else f"only {columns(row.values)}"
        raise DataError(f"{row.where}: {got}; expected {_MESSAGES}")
    turns: list[Message] = []
    for number, message in enumerate(messages, 1):
        where = f"{row.where}, message {number}"
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


def _dialoconan_file() -> Path:
    """The publisher's DIALOCONAN.csv in the cache, fetched there if it isn't, or is another file."""
    path = cache_folder() / "dialoconan" / "DIALOCONAN.csv"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == DIALOCONAN_SHA256:
        return path

    import httpx  # only here: most commands never fetch anything

    instead = f"fetch it yourself and pass the path (--dialogues DIALOCONAN.csv), or use starter: {DIALOCONAN_URL}"
    try:
        answer = httpx.get(DIALOCONAN_URL, timeout=60.0, follow_redirects=True)
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"DIALOCONAN can't be fetched ({reason}): {instead}") from None
    if answer.status_code != 200:
        raise DataError(f"DIALOCONAN can't be fetched (HTTP {answer.status_code}): {instead}")
    digest = hashlib.sha256(answer.content).hexdigest()
    if digest != DIALOCONAN_SHA256:
        raise DataError(
            f"what the address of DIALOCONAN gave is another file (sha256 {digest[:12]}…, expected "
            f"{DIALOCONAN_SHA256[:12]}…): {instead}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, answer.content)
    except OSError as error:
        raise DataError(
            f"DIALOCONAN can't be stored in {path.parent} ({error.strerror}): set REWARDLM_CACHE to another folder"
        ) from None
    return path
