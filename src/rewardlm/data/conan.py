"""The CONAN family of data sets, published hate speech with counter-narratives: their files' rows become dialogues.

``data.dialogues.load_dialogues`` says how irregular rows are handled.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from rewardlm.config import cache_folder
from rewardlm.data.files import Ids, Row, columns, read_csv, read_json
from rewardlm.data.lines import text_lines
from rewardlm.errors import DataError
from rewardlm.runs import write_atomically
from rewardlm.typed import shown
from rewardlm.types import Dialogue, DialogueSet, Message

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


def is_dialogue_header(header: Iterable[str]) -> bool:
    """Whether a csv with these columns is one of the CONAN files."""
    names = set(header)
    return any(names.issuperset(wanted) for wanted in (_DIALOCONAN, _MULTITARGET, _CONAN))


def is_table_of_columns(path: Path) -> bool:
    """Whether a .json is one object, as DIALOCONAN.json is; other data sets are lists."""
    return next((text for _, text, _ in text_lines(path) if text.strip()), "").lstrip()[:1] != "["


def from_csv(path: Path) -> DialogueSet:
    """Dialogues of DIALOCONAN.csv, Multitarget-CONAN.csv or CONAN.csv, told apart by their header."""
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
        # all of CONAN is about one target; some of its rows name it as the type of hate speech
        return _pair_rows(all_rows(), "conan", _CONAN, lambda row: row.values.get("hsType"), language="EN")
    raise DataError(
        f"{path}, line 1: columns {columns(first.values)}; expected those of DIALOCONAN.csv "
        f"({', '.join(_DIALOCONAN)}), Multitarget-CONAN.csv ({', '.join(_MULTITARGET)}) or CONAN.csv "
        f"({', '.join(_CONAN)})"
    )


def from_json(path: Path) -> DialogueSet:
    """Dialogues of DIALOCONAN.json."""
    return _dialoconan(_json_rows(path), path)


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
    """Rows of DIALOCONAN as dialogues; ``load_dialogues`` says how irregular ones are handled."""
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
            f"{where}: the last row, and no row is in English; expected a {id_column} that starts with {language}"
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


def dialoconan_file() -> Path:
    """The publisher's DIALOCONAN.csv in the cache; fetched if it is missing, or if its SHA-256 is another."""
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
            f"DIALOCONAN's address returned another file (sha256 {digest[:12]}…, expected "
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
