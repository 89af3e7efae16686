"""DIALOCONAN's irregular rows in small files of our own, the split against a naive reference, the real files."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardlm.data import conan as published
from rewardlm.data import dialogues as dialogues_module
from rewardlm.data.dialogues import load_dialogues, normalised, pairs, split_by_component
from rewardlm.errors import ConfigError, DataError
from rewardlm.measuring.quality import is_refusal
from rewardlm.types import Dialogue, Message

HEADER = ["text", "TARGET", "dialogue_id", "turn_id", "type", "source"]


def turns(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts))


def dialogue_rows(
    identity: int, texts: Sequence[str], *, types: Sequence[str] = (), targets: Sequence[str] = ()
) -> list[list[str]]:
    return [
        [
            text,
            targets[at] if targets else "COOKS",
            str(identity),
            str(at),
            types[at] if types else ("CN" if at % 2 else "HS"),
            "made up",
        ]
        for at, text in enumerate(texts)
    ]


IRREGULAR: list[list[str]] = [
    *dialogue_rows(0, ["Cooks are lazy.", "Few work longer.", "They steal spoons.", "Which spoons?"]),
    # blank exchange in the middle
    *dialogue_rows(1, ["Cooks lie.", "About what?", " ", " ", "About soup.", "Taste it first."]),
    # five turns, ending with two answers
    *dialogue_rows(
        2,
        ["Ban cooks.", "Who feeds us?", "Machines.", "Built by whom?", "And eaten by whom?"],
        types=["HS", "CN", "HS", "CN", "CN"],
    ),
    # wrong labels, line ends, stray blanks
    *dialogue_rows(3, [" Cooks\nshout. ", "Kitchens \r\n are loud."], types=["CN", "HS"]),
    # two targets
    *dialogue_rows(
        4, ["Cooks and bakers!", "What of them?", "Bakers too.", "No."], targets=["COOKS", "COOKS", "BAKERS", "BAKERS"]
    ),
    # the same as dialogue 0, and one that shares its opening
    *dialogue_rows(5, ["Cooks are lazy.", "Few work longer.", "They steal spoons.", "Which spoons?"]),
    *dialogue_rows(6, ["Cooks are lazy.", "Few work longer.", "They smell.", "Of basil."]),
]


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def messages(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": turn.role, "content": turn.text} for turn in turns(*texts)]


@pytest.fixture
def dialoconan(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "DIALOCONAN.csv", IRREGULAR)


def test_irregular_rows(dialoconan: Path) -> None:
    loaded = load_dialogues(str(dialoconan))
    assert [dialogue.id for dialogue in loaded.dialogues] == list("0123456")
    assert loaded.n_rows == 29
    assert loaded.source == str(dialoconan)
    assert {dialogue.source for dialogue in loaded.dialogues} == {"dialoconan"}
    by_id = {dialogue.id: dialogue for dialogue in loaded.dialogues}
    assert by_id["1"].turns == turns("Cooks lie.", "About what?", "", "", "About soup.", "Taste it first.")
    assert by_id["2"].turns == turns("Ban cooks.", "Who feeds us?", "Machines.", "Built by whom?")
    assert by_id["3"].turns == turns("Cooks shout.", "Kitchens are loud.")
    assert by_id["4"].target == "COOKS/BAKERS"
    assert by_id["0"].target == "COOKS"
    assert loaded.notes == {
        "blank turn": 2,
        "last turn without a partner left out": 1,
        "type label against the turn's position": 2,
        "blanks around a turn removed": 1,
        "line end in a turn removed": 2,
        "dialogue with two targets": 1,
        "repeated dialogue": 1,
    }


def test_json_is_the_same_as_csv(dialoconan: Path) -> None:
    columns = {
        name: {
            str(at): int(row[which]) if name in ("dialogue_id", "turn_id") else row[which]
            for at, row in enumerate(IRREGULAR)
        }
        for which, name in enumerate(HEADER)
    }
    path = dialoconan.with_suffix(".json")
    path.write_text(json.dumps(columns), encoding="utf-8")
    from_csv, from_json = load_dialogues(str(dialoconan)), load_dialogues(str(path))
    assert from_json.dialogues == from_csv.dialogues
    assert (from_json.notes, from_json.n_rows) == (from_csv.notes, from_csv.n_rows)


def test_pairs_of_irregular_dialogues(dialoconan: Path) -> None:
    made = pairs(load_dialogues(str(dialoconan)).dialogues)
    # 2 + 3 + 2 + 1 + 2 + 2 + 2 pairs; one is blank; dialogue 5 repeats two pairs, and 6 one
    assert made.total == 14
    assert made.dropped == {"blank turn": 1}
    assert made.notes == {"blank antecedent left out": 1, "repeated pair kept": 3}
    assert made.summary == "7 dialogues, 14 pairs, 1 dropped (1 blank turn)"
    by_id = {pair.id: pair for pair in made.pairs}
    assert list(by_id) == ["0:1", "0:2", "1:1", "1:3", "2:1", "2:2", "3:1", "4:1", "4:2", "5:1", "5:2", "6:1", "6:2"]
    assert by_id["0:2"].history == turns("Cooks are lazy.", "Few work longer.", "They steal spoons.")
    assert by_id["0:2"].answer == Message("assistant", "Which spoons?")
    assert by_id["0:2"].dialogue_id == "0"
    assert by_id["1:3"].history == turns("Cooks lie.", "About what?", "About soup.")


def test_pairs_keep_the_system_turn_and_leave_out_the_unanswered() -> None:
    system = Message("system", "Be kind.")
    made = pairs([Dialogue("d", (system, *turns("a", "b", "c", "d", "e")), "made up")])
    assert [pair.history for pair in made.pairs] == [(system, *turns("a")), (system, *turns("a", "b", "c"))]
    assert [pair.answer.text for pair in made.pairs] == ["b", "d"]
    assert (made.total, made.dropped, made.notes) == (2, {}, {"user turn without an answer": 1})
    assert made.summary == "1 dialogues, 2 pairs"


@pytest.mark.parametrize("at", [0, 1])
def test_half_blank_antecedent_leaves_out_both_turns(at: int) -> None:
    texts = ["a", "b", "c", "d"]
    texts[at] = "\t"
    made = pairs([Dialogue("d", turns(*texts), "made up")])
    assert made.dropped == {"blank turn": 1}
    assert [pair.history for pair in made.pairs] == [turns("c")]


def test_blank_system_turn_is_left_out() -> None:
    made = pairs([Dialogue("d", (Message("system", " "), *turns("a", "b")), "made up")])
    assert [pair.history for pair in made.pairs] == [turns("a")]
    assert made.notes == {"blank antecedent left out": 1}


@given(st.lists(st.lists(st.sampled_from(["a", "b", " ", "c"]), min_size=2, max_size=7), max_size=8))
def test_pairs_account_for_every_pair(texts: list[list[str]]) -> None:
    made = pairs([Dialogue(str(at), turns(*each), "made up") for at, each in enumerate(texts)])
    assert made.total == sum(len(each) // 2 for each in texts)
    assert made.total == len(made.pairs) + sum(made.dropped.values())
    distinct = {(pair.history, pair.answer) for pair in made.pairs}
    assert made.notes.get("repeated pair kept", 0) == len(made.pairs) - len(distinct)
    for pair in made.pairs:
        roles = [turn.role for turn in (*pair.history, pair.answer)]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(turn.text.strip() for turn in (*pair.history, pair.answer))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            dialogue_rows(0, "ab") + dialogue_rows(1, "cd") + dialogue_rows(0, "ef"),
            "line 6: dialogue '0' again, after others; expected its turns in adjacent rows",
        ),
        (dialogue_rows(0, "abcd")[1:], "line 2: dialogue '0' has turn '1' here; expected turn 0"),
        (dialogue_rows(0, "a"), "line 2: dialogue '0' has one turn; expected a user's turn and its answer"),
    ],
)
def test_disordered_rows(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    path = write_csv(tmp_path / "x.csv", rows)
    with pytest.raises(DataError) as caught:
        load_dialogues(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_multitarget_conan(tmp_path: Path) -> None:
    rows = [
        ["0", "Cooks lie. ", "About what?", "COOKS", "V1"],
        ["1", "Cooks lie.", "About what?", "COOKS", "V1"],
        ["2", "x", " ", "", "V1"],
    ]
    path = write_csv(tmp_path / "x.csv", rows, ["INDEX", "HATE_SPEECH", "COUNTER_NARRATIVE", "TARGET", "VERSION"])
    loaded = load_dialogues(str(path))
    assert loaded.dialogues[0] == Dialogue("0", turns("Cooks lie.", "About what?"), "multitarget-conan", "COOKS")
    assert loaded.dialogues[2] == Dialogue("2", turns("x", ""), "multitarget-conan", None)
    assert loaded.notes == {"blanks around a turn removed": 1, "repeated dialogue": 1, "blank turn": 1}
    assert pairs(loaded.dialogues).dropped == {"blank turn": 1}
    write_csv(
        path,
        [*rows, ["1", "y", "z", "COOKS", "V2"]],
        ["INDEX", "HATE_SPEECH", "COUNTER_NARRATIVE", "TARGET", "VERSION"],
    )
    with pytest.raises(DataError, match=r"line 5: id '1' is also the id of .*x\.csv, line 3; expected each id once$"):
        load_dialogues(str(path))


def test_conan_is_english_only(tmp_path: Path) -> None:
    header = ["cn_id", "hateSpeech", "counterSpeech", "hsType"]
    path = write_csv(tmp_path / "x.csv", [["ENx", "a", "b", "Cookery"], ["FRx", "c", "d", "Cookery"]], header)
    loaded = load_dialogues(str(path))
    assert loaded.dialogues == [Dialogue("ENx", turns("a", "b"), "conan", "Cookery")]
    assert (loaded.notes, loaded.n_rows) == ({"row not in English left out": 1}, 2)
    write_csv(path, [["FRx", "c", "d", "Cookery"]], header)
    with pytest.raises(DataError, match=r"line 2: the last row, and no row is in English"):
        load_dialogues(str(path))


def test_jsonl_of_messages(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl",
        [
            {"messages": messages("a ", "b", system="Be kind."), "target": "COOKS"},
            {"id": "two", "messages": messages("c", "d\n", "e")},
            {"id": 3, "messages": messages("f", "")},
        ],
    )
    loaded = load_dialogues(str(path))
    assert loaded.dialogues == [
        Dialogue("row-1", (Message("system", "Be kind."), *turns("a ", "b")), "x.jsonl", "COOKS"),
        Dialogue("two", turns("c", "d\n", "e"), "x.jsonl"),
        Dialogue("3", turns("f", ""), "x.jsonl"),
    ]
    assert (loaded.notes, loaded.n_rows) == ({"blank turn": 1}, 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 2: only 'text'; expected \"messages\": a list of"),
        ({"messages": "a"}, "line 2: messages is 'a'; expected"),
        (
            {"messages": []},
            "line 2: messages has 0 turns of user and assistant; expected at least a user's turn and its answer",
        ),
        ({"messages": messages("a")}, "line 2: messages has 1 turns of user and assistant; expected at least"),
        ({"messages": messages(system="s")}, "line 2: messages has 0 turns of user and assistant"),
        ({"messages": ["a"]}, "line 2, message 1: 'a'; expected"),
        ({"messages": [{"role": "user"}]}, "line 2, message 1: {'role': 'user'}; expected"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2, message 1:"),
        ({"messages": messages("a", "b")[1:]}, "line 2, message 1: role is 'assistant'; expected 'user'"),
        (
            {"messages": messages("a", "b") * 2 + messages("c") * 2},
            "line 2, message 6: role is 'user'; expected 'assistant'",
        ),
        (
            {"messages": messages("a", "b") + messages(system="s")},
            "line 2, message 3: role is 'system'; expected 'user'",
        ),
        ({"messages": [{"role": "human", "content": "a"}]}, "line 2, message 1: role is 'human'; expected 'user'"),
        ({"messages": messages("a", "b"), "target": 3}, "line 2: target is 3; expected a text or nothing"),
        ({"messages": messages("a", "b"), "id": "one"}, "line 2: id 'one' is also the id of"),
    ],
)
def test_jsonl_that_is_no_dialogue(tmp_path: Path, row: object, message: str) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"id": "one", "messages": messages("a", "b")}, row])
    with pytest.raises(DataError) as caught:
        load_dialogues(str(path))
    assert str(caught.value).startswith(f"{path}, line 2")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unanswered_dialogues_are_prompts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": messages("a")}])
    assert load_dialogues(str(path), unanswered=True).dialogues[0].turns == turns("a")
    write_jsonl(path, [{"messages": messages("a", "b", " ")}])
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: the last user turn is blank; expected a prompt"):
        load_dialogues(str(path), unanswered=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], r"x\.json: \[\]; expected a list of objects with"),
        ({"text": {}}, r"x\.json: 'text'; expected the columns"),
        ({name: {} for name in HEADER}, r"x\.json has no row"),
        ({name: {"a": "b"} for name in HEADER}, r"x\.json: column 'text' is \{'a': 'b'\}; expected"),
        ({name: {"0": "0"} for name in HEADER} | {"type": {}}, r"x\.json: column 'type' has other rows than 'text'"),
        ({name: {"0": "0"} for name in HEADER} | {"text": {"0": None}}, r"x\.json, row 0: dialogue '0' has one turn"),
        (
            {name: {"0": "0"} for name in HEADER} | {"turn_id": {"0": 1.5}},
            r"x\.json, row 0: 'turn_id' is 1\.5; expected",
        ),
    ],
)
def test_json_that_is_no_dialoconan(tmp_path: Path, table: object, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_dialogues(str(path))


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^dialogues 'nothing': no such file or source; expected starter, starter-plain, dialoconan"
    ):
        load_dialogues("nothing")
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        load_dialogues(str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match=r"holds no dialogues that can be read here"):
        load_dialogues(str(tmp_path))
    with pytest.raises(DataError, match=r"no part 'test'; expected :train or :validation"):
        load_dialogues("starter:test")
    path = write_csv(tmp_path / "x.csv", [["a", "b"]], ["text", "label"])
    with pytest.raises(DataError, match=r"x\.csv, line 1: columns 'text, label'; expected those of DIALOCONAN\.csv"):
        load_dialogues(str(path))


def test_parts_of_a_source(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"messages": messages(f"question {n // 2}", f"answer {n}")} for n in range(40)]
    )
    everything = load_dialogues(str(path)).dialogues
    train, validation = load_dialogues(f"{path}:train"), load_dialogues(f"{path}:validation")
    assert (train.dialogues, validation.dialogues) == split_by_component(everything)
    assert len(validation.dialogues) == 4
    assert validation.n_rows == 40
    write_jsonl(path, [{"messages": messages("the same", f"answer {n}")} for n in range(40)])
    assert len(load_dialogues(f"{path}:train").dialogues) == 40
    with pytest.raises(DataError, match=r"too few unrelated dialogues for a validation part"):
        load_dialogues(f"{path}:validation")
    named_so = write_jsonl(tmp_path / "odd:train", [])
    with pytest.raises(DataError, match=r"odd:train holds no dialogues"):
        load_dialogues(str(named_so))


@given(st.text(), st.text())
def test_normalised_is_stable(a: str, b: str) -> None:
    assert normalised(f" {a}\n {b}") == normalised(f"{a} \t{b} ")
    assert normalised("ＡＢ  c") == "ab c"


def naive_components(dialogues: Sequence[Dialogue]) -> set[frozenset[int]]:
    """Merge any two sets of dialogues that share a user turn, until nothing changes."""
    groups = [
        ({at}, {normalised(t.text) for t in d.turns if t.role == "user" and t.text.strip()})
        for at, d in enumerate(dialogues)
    ]
    changed = True
    while changed:
        changed = False
        for a, b in itertools.combinations(range(len(groups)), 2):
            if groups[a][1] & groups[b][1]:
                groups[a] = (groups[a][0] | groups[b][0], groups[a][1] | groups[b][1])
                del groups[b]
                changed = True
                break
    return {frozenset(members) for members, _ in groups}


some_dialogues = st.lists(
    st.lists(st.sampled_from([*"abcdefghijkl", "A ", " ", "b\n"]), min_size=2, max_size=6), max_size=14
).map(lambda many: [Dialogue(str(at), turns(*texts), "made up") for at, texts in enumerate(many)])


@given(some_dialogues)
def test_components_against_a_naive_reference(dialogues: list[Dialogue]) -> None:
    found = dialogues_module._components(dialogues)
    assert sorted(itertools.chain(*found)) == list(range(len(dialogues)))
    assert {frozenset(members) for members in found} == naive_components(dialogues)


@settings(deadline=None)
@given(some_dialogues, st.floats(0, 1, exclude_max=True), st.integers(0, 5))
def test_split(dialogues: list[Dialogue], share: float, seed: int) -> None:
    train, validation = split_by_component(dialogues, validation=share, seed=seed)
    assert sorted((*train, *validation), key=lambda d: int(d.id)) == dialogues
    assert [d.id for d in train] == sorted((d.id for d in train), key=int)
    user_texts = [
        {normalised(t.text) for d in part for t in d.turns if t.role == "user" and t.text.strip()}
        for part in (train, validation)
    ]
    assert not user_texts[0] & user_texts[1]
    assert (train, validation) == split_by_component(dialogues, validation=share, seed=seed)
    # as large as any union of components that is not larger than asked: try them all
    sizes = [len(members) for members in naive_components(dialogues)]
    asked = share * len(dialogues) + 1e-9
    sums = {sum(itertools.compress(sizes, bits)) for bits in itertools.product([0, 1], repeat=len(sizes))}
    assert len(validation) == max(total for total in sums if total <= asked)


def test_one_huge_component_trains() -> None:
    huge = [Dialogue(f"h{n}", turns("the same", f"{n}"), "made up") for n in range(50)]
    single = [Dialogue(f"s{n}", turns(f"question {n}", f"{n}"), "made up") for n in range(50)]
    _, validation = split_by_component([*huge, *single], validation=0.2)
    assert len(validation) == 20
    assert all(dialogue.id.startswith("s") for dialogue in validation)
    assert split_by_component(huge, validation=0.9) == (huge, [])
    assert split_by_component([*huge, *single], validation=0.2, seed=1)[1] != validation
    assert split_by_component([], validation=0.2) == ([], [])
    assert split_by_component(single, validation=0.29999)[1] != split_by_component(single, validation=0.3)[1]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_share_that_is_none(share: float) -> None:
    with pytest.raises(ConfigError, match=r"^validation share is .*; expected a number from 0 to less than 1$"):
        split_by_component([], validation=share)


@pytest.mark.parametrize(("name", "n_dialogues", "n_pairs"), [("starter", 152, 355), ("starter-plain", 280, 350)])
def test_our_own_dialogues(name: str, n_dialogues: int, n_pairs: int) -> None:
    loaded = load_dialogues(name)
    assert loaded.notes == {}
    assert {dialogue.source for dialogue in loaded.dialogues} == {name}
    assert all(dialogue.target for dialogue in loaded.dialogues)
    found = pairs(loaded.dialogues)
    assert not found.dropped
    assert (found.n_dialogues, len(found.pairs)) == (n_dialogues, n_pairs)
    assert len({dialogue.id for dialogue in loaded.dialogues}) == n_dialogues
    answers = [pair.answer.text for pair in found.pairs]
    assert not [answer for answer in answers if is_refusal(answer)]
    assert len({normalised(answer) for answer in answers}) == n_pairs
    # Nothing that one opening could teach to be said to everybody.
    openings = Counter(" ".join(answer.casefold().split()[:3]) for answer in answers)
    assert max(openings.values()) < 0.04 * n_pairs


def test_plain_dialogues_are_plain_and_none_is_told_twice() -> None:
    plain, vivid = (pairs(load_dialogues(name).dialogues).pairs for name in ("starter-plain", "starter"))
    assert all(15 <= len(pair.answer.text.split()) <= 48 for pair in plain)
    asked = [pair.history[-1].text for pair in plain]
    broken_off = [text for text in asked if not text.rstrip("\"”’'").endswith((".", "!", "?"))]
    assert 0.35 < len(broken_off) / len(asked) < 0.5
    # The judge of pairs learnt from the vivid ones: of these it has read none.
    texts = {normalised(turn.text) for pair in vivid for turn in (*pair.history, pair.answer)}
    assert not [pair.id for pair in plain for turn in (*pair.history, pair.answer) if normalised(turn.text) in texts]
    # Simple words: longer ones are a sign of the other set's style.
    long_words = [word for pair in plain for word in pair.answer.text.split() if len(word.strip(".,?!;:")) > 9]
    assert len(long_words) / sum(len(pair.answer.text.split()) for pair in plain) < 0.06


class Publisher:
    """Stands in for httpx.get and counts its calls."""

    def __init__(self, content: bytes, status: int = 200, error: Exception | None = None) -> None:
        self.content, self.status, self.error, self.calls = content, status, error, 0

    def __call__(self, url: str, **_: Any) -> httpx.Response:
        self.calls += 1
        assert url == published.DIALOCONAN_URL
        if self.error is not None:
            raise self.error
        return httpx.Response(self.status, content=self.content)


def publish(monkeypatch: pytest.MonkeyPatch, cache: Path, content: bytes, **how: Any) -> Publisher:
    publisher = Publisher(content, **how)
    monkeypatch.setattr(httpx, "get", publisher)
    monkeypatch.setenv("REWARDLM_CACHE", str(cache))
    return publisher


def test_dialoconan_is_fetched_once(dialoconan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dialoconan.read_bytes()
    publisher = publish(monkeypatch, tmp_path / "cache", content)
    monkeypatch.setattr(published, "DIALOCONAN_SHA256", hashlib.sha256(content).hexdigest())
    loaded = load_dialogues("dialoconan")
    assert loaded.dialogues == load_dialogues(str(dialoconan)).dialogues
    assert loaded.source == "dialoconan"
    assert load_dialogues("dialoconan").dialogues == loaded.dialogues
    assert publisher.calls == 1
    (cached,) = (tmp_path / "cache").rglob("*.csv")
    cached.write_bytes(content[:-9])  # damaged: fetched again
    assert load_dialogues("dialoconan").dialogues == loaded.dialogues
    assert publisher.calls == 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"error": httpx.ConnectError("Name or service\nnot known")},
            r"can't be fetched \(Name or service not known\)",
        ),
        ({"error": httpx.ReadTimeout("")}, r"can't be fetched \(ReadTimeout\)"),
        ({"status": 404}, r"can't be fetched \(HTTP 404\)"),
        ({}, r"returned another file \(sha256 .*, expected 19f1c7fc35dc…\)"),
    ],
)
def test_dialoconan_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], message: str
) -> None:
    publish(monkeypatch, tmp_path, b"something else", **how)
    with pytest.raises(DataError, match=message) as caught:
        load_dialogues("dialoconan:train")
    assert "fetch it yourself and pass the path" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.csv"))


def test_dialoconan_without_a_cache_folder(dialoconan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dialoconan.read_bytes()
    (tmp_path / "file").write_text("in the way")
    publish(monkeypatch, tmp_path / "file", content)
    monkeypatch.setattr(published, "DIALOCONAN_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(DataError, match=r"can't be stored in .*: set REWARDLM_CACHE to another folder$"):
        load_dialogues("dialoconan")


@pytest.fixture
def conan() -> Path:
    folder = os.environ.get("REWARDLM_CONAN")
    if not folder:
        pytest.skip("set REWARDLM_CONAN to a folder with the CONAN files, which can't be redistributed")
    return Path(folder)


@pytest.mark.parametrize("name", ["DIALOCONAN.csv", "DIALOCONAN.json"])
def test_the_real_dialoconan(conan: Path, name: str) -> None:
    loaded = load_dialogues(str(conan / name))
    assert (len(loaded.dialogues), loaded.n_rows) == (3059, 16625)  # DESIGN.md's figures, here and below
    made = pairs(loaded.dialogues)
    assert made.total == 8312
    assert made.dropped == {"blank turn": 1}
    assert len(made.pairs) == 8312 - sum(made.dropped.values())
    # two of the 235 turns with stray blanks are blank altogether
    assert loaded.notes["blanks around a turn removed"] + loaded.notes["blank turn"] == 235
    assert loaded.notes["line end in a turn removed"] == 46
    assert loaded.notes["dialogue with two targets"] == loaded.notes["repeated dialogue"] == 1
    by_id = {dialogue.id: dialogue for dialogue in loaded.dialogues}
    assert by_id["29"].turns == by_id["79"].turns
    assert len(by_id["2580"].turns) == 4
    assert by_id["2800"].target == "JEWS/POC"
    train, validation = split_by_component(loaded.dialogues)
    assert (len(train), len(validation)) == (2754, 305)
    user_texts = [{normalised(t.text) for d in part for t in d.turns[::2]} - {""} for part in (train, validation)]
    assert not user_texts[0] & user_texts[1]


def test_the_other_real_conan_files(conan: Path) -> None:
    multitarget = load_dialogues(str(conan / "Multitarget-CONAN.csv"))
    assert len(multitarget.dialogues) == 5003
    english = load_dialogues(str(conan / "CONAN.csv"))
    assert len(english.dialogues) == english.n_rows - english.notes["row not in English left out"] == 3864
