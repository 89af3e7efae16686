"""Records of a run: whatever is appended is read back equal, and whatever else stands in a file is told in one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from rewardlm.errors import RunError
from rewardlm.runs import Run
from rewardlm.typed import mistake
from rewardlm.types import Generation, Message, Prompt, Score

T = TypeVar("T")
STEADY = settings(derandomize=True, deadline=None, max_examples=60)
# What a model says may hold half a character, and any control character; names may not hold the former.
SAID = st.text(max_size=20)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
WHOLE = st.integers(-(2**40), 2**40)
SHARES = st.floats(0, 1)
PROMPTS = st.builds(
    Prompt, NAMES,
    st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), SAID), min_size=1,
        max_size=3).map(tuple),
    NAMES, st.none() | SHARES, st.booleans(),
)  # fmt: skip
GENERATIONS = st.builds(
    Generation, NAMES, NAMES, NAMES, WHOLE, SAID, WHOLE, st.sampled_from(["stop", "length", None]), WHOLE,
    st.none() | st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
)  # fmt: skip
SCORES = st.builds(
    Score, NAMES, NAMES, NAMES, st.none() | SHARES, st.none() | SAID.filter(str.isprintable), st.booleans()
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SAID,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SAID, inner, max_size=3),
    max_leaves=6,
)


def read(reader: Callable[[], T]) -> tuple[T | None, str]:
    """What it read, or why it refused to."""
    try:
        return reader(), ""
    except RunError as error:
        return None, str(error)


def begun(folder: str) -> Run:
    return Run.start(Path(folder) / "run", kind="measure", label="PT", settings={})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begun(str(tmp_path_factory.mktemp("any")))


@given(
    prompts=st.lists(PROMPTS, max_size=4),
    answers=st.lists(GENERATIONS, max_size=4),
    scores=st.lists(SCORES, max_size=4),
)
@STEADY
def test_records_are_read_as_they_were_written(
    prompts: list[Prompt], answers: list[Generation], scores: list[Score]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = begun(folder)
        for name, records in (("prompts", prompts), ("generations", answers), ("scores", scores)):
            run.append(name, records)
        again = Run.open(run.path)
        assert again.prompts() == prompts
        assert again.generations() == answers
        assert again.scores() == scores


# Of each file, a record as it should be.
SOUND: dict[str, dict[str, Any]] = {
    "prompts": {"id": "p", "turns": [{"role": "user", "text": "q"}], "source": "s", "toxicity": 0.5,
        "challenging": False},
    "generations": {
        "id": "a", "prompt_id": "p", "model": "m", "sample": 0, "text": "t", "n_tokens": 1, "finish": "stop",
        "seed": 0, "tokens": [1],
    },
    "scores": {"generation_id": "a", "scorer": "s", "label": "l", "value": 0.5, "reason": "why", "failed": False},
    "quality": {"generation_id": "a", "perplexity": 3.5, "classes": {"agreement": 0.5}},
    "utility": {"task": "piqa", "id": "i", "logprobs": [-1.5], "sizes": [3], "answer": 0},
    "samples": {"step": 1, "prompt": "q", "response": "a", "by_judge": {"lexical": 0.5}},
    "metrics": {"step": 1, "warnings": ["w"]},
    "classes": {"label": "l", "hash": "h", "classes": [0], "groups": [0]},
    "labels": {"item": "i", "labeller": "l", "label": 1.0, "at": "now"},
    "drift": {"id": "a", "author": 0, "logprobs": [[-1.5]], "words": [["a", 1]]},
    "attributions": {"id": "a", "author": 0, "reader": 0, "words": [["a", "prompt"]], "scores": [[0.5], None]},
    "unanswered": {"id": "a", "reason": "refused"},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
@STEADY
def test_a_field_of_another_type_is_named_or_the_record_is_sound(run: Run, name: str, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(SOUND[name])))
    record = {**SOUND[name], field: data.draw(ANYTHING)}
    file = run.path / f"{name}.jsonl"
    file.write_text(json.dumps(SOUND[name]) + "\n" + json.dumps(record) + "\n", "utf-8")
    found, said = read(lambda: list(run.read(name)))
    if found is None:
        assert said.startswith(f"{file}, line 2: {field}")
        assert len(said.splitlines()) == 1
        assert len(said) < len(str(file)) + 400
    else:
        assert found[1] == json.loads(json.dumps(record))
        # What was taken has the type of the sound one, or null.
        assert record[field] is None or isinstance(record[field], type(SOUND[name][field]) | int)


@pytest.mark.parametrize("name", SOUND)
def test_every_record_is_sound_as_it_is_and_lacks_something_without_its_fields(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = begun(folder)
        run.append(name, [SOUND[name]])
        assert list(run.read(name)) == [SOUND[name]]
        run.replace(name, [{}])
        with pytest.raises(RunError, match=r", line 1: \w+ is missing"):
            list(run.read(name))


@given(
    meta=st.dictionaries(
        st.sampled_from(["kind", "label", "settings", "scorers", "utility", "samples", "new"]), ANYTHING
    )
)
@STEADY
def test_a_run_json_of_anything_is_opened_or_told_in_one_line(run: Run, meta: dict[str, Any]) -> None:
    (run.path / "run.json").write_text(json.dumps({**run.meta, **meta}))
    again, said = read(lambda: Run.open(run.path))
    if again is None:
        assert said.startswith(str(run.path))
        assert len(said.splitlines()) == 1
    else:
        assert isinstance(again.meta["kind"], str)
        assert again.label.encode() or not again.label
        assert again.meta.get("new") == json.loads(json.dumps(meta.get("new")))


class Inner(TypedDict):
    name: str
    share: NotRequired[float | None]


class Outer(TypedDict, total=False):
    kind: Literal["a", "b"]
    inner: list[Inner]
    pairs: list[tuple[str, int]]
    by: dict[str, bool]


NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(
    value=st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["a", "b"]),
            "inner": st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"share": st.none() | NUMBERS})),
            "pairs": st.lists(st.tuples(NAMES, st.integers(-(2**62), 2**62)).map(list)),
            "by": st.dictionaries(NAMES, st.booleans()),
            "unheard of": NAMES | NUMBERS | st.lists(st.none() | NUMBERS),
        },
    )
)
@STEADY
def test_what_fits_its_type_has_no_mistake(value: dict[str, Any]) -> None:
    assert mistake(Outer, value) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "it is [], expected an object"),
        ({"kind": "c"}, "kind is 'c', expected 'a' or 'b'"),
        ({"inner": [{"name": "x"}, {}]}, "inner.1.name is missing"),
        ({"inner": [{"name": "x", "share": "y"}]}, "inner.0.share is 'y', expected a number"),
        ({"inner": [{"name": "x", "share": True}]}, "inner.0.share is True, expected a number"),
        ({"pairs": [["x"]]}, "pairs.0.1 is missing"),
        ({"pairs": [["x", 1.5]]}, "pairs.0.1 is 1.5, expected a whole number"),
        ({"by": {"x": 1}}, "by.x is 1, expected true or false"),
        ({"by": {"\ud800": True}}, "by has the key '\\ud800', which holds half a character"),
        ({"unheard of": [{"a": float("inf")}]}, "unheard of.0.a is inf, expected a number"),
        ({"unheard of": 2**64}, "unheard of is a huge number, expected a number"),
        ({"unheard of": "\udfff"}, "unheard of is '\\udfff', which holds half a character"),
    ],
)
def test_a_mistake_has_its_path_and_what_was_expected(value: Any, said: str) -> None:
    assert mistake(Outer, value) == said


def test_a_value_that_is_nested_without_end() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert mistake(Outer, {"unheard of": value}) == "it is nested too deep, expected a few levels"
