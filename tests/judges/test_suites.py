"""Suites: what is read from which file, what is left out and counted, and which row is to blame."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rewardlm.errors import DataError
from rewardlm.judges.suites import (
    COUNTER,
    COUNTER_QUOTES,
    FUNCTIONALITIES,
    HATE_TURN,
    IDENTITY_WORDS,
    groups_in,
    load_suite,
)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> Path:
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    return shared_data


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_with_labels(tmp_path: Path, ending: str) -> None:
    if ending == "csv":
        path = write(tmp_path / "own.csv", "id,text,label\na,hello,0\nb,go away,1\nc,,True\nd,x,false\n")
    else:
        rows = [("hello", 0), ("go away", 1), ("", True), ("x", "false")]
        path = write(tmp_path / "own.jsonl", "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    suite = load_suite(path)
    assert suite.name == "own"
    assert [text.text for text in suite.texts] == ["hello", "go away", "", "x"]
    assert suite.targets("label").tolist() == [0, 1, 1, 0]
    # Whatever a judge's label is called, it is held against the file's own.
    assert suite.target_of("hate") == suite.target_of("toxicity") == "label"
    assert not suite.about_hate
    assert not suite.says_groups


def test_a_file_with_scores_kinds_and_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "text,score,functionality,group\na,0.25,plain,women\nb,1,quote,\n")
    suite = load_suite(path)
    assert suite.targets("score").tolist() == [0.25, 1]
    assert [text.functionality for text in suite.texts] == ["plain", "quote"]
    assert [text.groups for text in suite.texts] == [("women",), ()]
    assert suite.says_groups


def test_of_a_label_and_a_score_the_label_counts(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "both.csv", "text,score,label\na,0.9,0\nb,0.1,1\n"))
    assert suite.labels == ("label",)
    assert suite.targets("label").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "line", "said"),
    [
        ("a.csv", "text,label\nx,0\ny,maybe\n", "line 3", "'label' is 'maybe'; expected 0 or 1, true or false"),
        ("a.csv", "text,label\nx,0\ny,\n", "line 3", "expected 0 or 1"),
        ("a.csv", "text,label\nx,0.5\n", "line 2", "expected 0 or 1"),
        ("a.csv", "text,score\nx,0.1\ny,1.5\n", "line 3", "score is '1.5'"),
        ("a.csv", "text,score\nx,\n", "line 2", "missing or empty"),
        ("a.csv", "text,score\nx,nan\n", "line 2", "score is 'nan'"),
        ("a.csv", 'text,label\n"x\ny",0\nz,7\n', "line 4", "'label' is '7'"),
        ("a.csv", "text,label\nx,0,1\n", "line 2", "3 cells"),
        ("a.jsonl", '{"text": "x", "label": 0}\n{"text": "y"}\n', "line 2", "missing, there is only 'text'"),
        ("a.jsonl", '{"text": "x", "label": 0}\n{"text": 3, "label": 0}\n', "line 2", "'text' is 3; expected a text"),
        ("a.jsonl", '{"text": "x", "score": 0}\n{"text": "y", "score": "high"}\n', "line 2", "score is 'high'"),
        ("a.jsonl", '{"text": "x", "score": 0}\n{"text": \n', "line 2", "JSON"),
        ("h.csv", "functionality,test_case,label_gold\nslur_h,x,hate\n", "line 2", "hateful or non-hateful"),
        ("j.csv", "rev_id,comment,toxic\n1,x,True\n2,y,?\n", "line 3", "'toxic' is '?'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, text: str, line: str, said: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        load_suite(path)
    message = str(error.value)
    assert message.startswith(f"{path}, {line}: "), message
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.csv", "", "is empty"),
        ("head.csv", "text,label\n", "no row"),
        ("other.csv", "a,b\n1,2\n", "expected 'text' and one or more of"),
        ("x.txt", "hello\n", "can't be read as a suite"),
        ("missing.csv", None, "no such name or file"),
    ],
)
def test_a_file_that_is_no_suite(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=said):
        load_suite(str(path))


def test_names_need_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REWARDLM_DATA", str(tmp_path))
    for name, file in (("hatecheck", "test_suite_cases.csv"), ("rtp", "prompts.jsonl"), ("jigsaw", "testset.csv")):
        with pytest.raises(DataError, match=rf"suite '{name}': REWARDLM_DATA is set, but .*{file} is not there"):
            load_suite(name)
    monkeypatch.delenv("REWARDLM_DATA")
    with pytest.raises(DataError, match="set REWARDLM_DATA to the folder with jigsaw_bias"):
        load_suite("jigsaw")


@pytest.mark.parametrize("name", ["hatecheck", "rtp"])
def test_without_folder_and_hub_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv("REWARDLM_DATA", raising=False)
    monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=rf"suite '{name}': .* hub .*set REWARDLM_DATA") as error:
        load_suite(name)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("hub_in_reach")
def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    asked = []
    cases = [
        {"functionality": "slur_h", "test_case": "x", "label_gold": "hateful", "target_ident": "women"},
        {"functionality": "target_obj_nh", "test_case": "y", "label_gold": "non-hateful", "target_ident": None},
    ]
    pairs = [
        {"prompt": {"text": f"begun {i}", "toxicity": 0.1}, "continuation": {"text": f"ended {i}", "toxicity": i / 50}}
        for i in range(50)
    ]

    def load_dataset(name: str, split: str) -> list[dict[str, object]]:
        asked.append((name, split))
        return {"Paul/hatecheck": cases, "allenai/real-toxicity-prompts": pairs}[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("REWARDLM_DATA", raising=False)
    monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path))
    suite = load_suite("hatecheck")
    assert suite.targets("hate").tolist() == [1, 0]
    assert [text.groups for text in suite.texts] == [("women",), ()]
    first = load_suite("rtp")
    assert first.held_out
    assert 0 < len(first.texts) < 100
    assert load_suite("rtp") == first
    assert asked == [("Paul/hatecheck", "test"), ("allenai/real-toxicity-prompts", "train")], "fetched once"


def test_a_file_may_be_called_like_a_suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "rtp", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="rtp can't be read as a suite"):
        load_suite("rtp")


def test_dialogues_are_hate_and_counter_narratives(tmp_path: Path) -> None:
    turns = [
        ("Women can't drive.", "Insurers say the opposite."),
        ("They are all  the same.", 'You say "all the same": which of them did you meet?'),
    ]
    dialogue = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    again = [{"role": "user", "content": "they are all the same."}, {"role": "assistant", "content": " "}]
    rows = [{"id": "a", "target": "WOMEN", "messages": dialogue}, {"id": "b", "messages": again}]
    suite = load_suite(write(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert [(text.functionality, text.targets["hate"]) for text in suite.texts] == [
        (HATE_TURN, 1),
        (COUNTER, 0),
        (HATE_TURN, 1),
        (COUNTER_QUOTES, 0),
        (COUNTER, 0),  # blank: nobody will score it
    ]
    assert suite.dropped == {"repeated turn": 1}, "blanks and case don't make another text"
    assert suite.about_hate
    assert suite.texts[0].groups == ("WOMEN",)


def test_a_text_that_is_hate_here_and_an_answer_there_is_two_texts(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "x"}]},
    ]
    suite = load_suite(write(tmp_path / "d.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert sorted((text.text, text.targets["hate"]) for text in suite.texts) == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        ('You said "all of them". Why?', True),
        ("You said “all of them”. Why?", True),
        ("Sie sagten „alle davon“. Warum?", True),
        ("That's what they're saying, isn't it?", False),
        ('A "fact"?', False),
        ('5" and 6" of rain', False),
        ("no marks", False),
    ],
)
def test_a_quotation_is_two_words_in_quotation_marks(tmp_path: Path, text: str, quotes: bool) -> None:
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}]}
    suite = load_suite(write(tmp_path / "d.jsonl", json.dumps(row) + "\n"))
    assert suite.texts[1].functionality == (COUNTER_QUOTES if quotes else COUNTER)


def test_groups_are_found_by_whole_words() -> None:
    assert groups_in("The WOMAN next door; two women, a Muslim.") == ("women", "Muslims")
    assert groups_in("Womanly, gayness, the Jewel of Islamabad") == ()
    words = [word for words in IDENTITY_WORDS.values() for word in words.split()]
    assert len(words) == len(set(words)), "a word of two groups would count for one of them only"
    assert all(word.isascii() and word.islower() for word in words)


def test_sample_is_seeded_and_in_order(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "n.csv", "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(100))))
    numbers = [int(text.text[1:]) for text in suite.sample(30, seed=1).texts]
    assert len(numbers) == 30
    assert numbers == sorted(numbers)
    assert numbers == [int(text.text[1:]) for text in suite.sample(30, seed=1).texts]
    assert numbers != [int(text.text[1:]) for text in suite.sample(30, seed=2).texts]
    assert suite.sample(1000, seed=1) is suite
    assert suite.sample(None, seed=1) is suite


def test_the_users_own_training_file_counts_whole(tmp_path: Path) -> None:
    text = "comment_text,toxic,threat\n" + "".join(f"text {i},{i % 2},\n" for i in range(40))
    suite = load_suite(write(tmp_path / "mine.csv", text))
    assert len(suite.texts) == 40
    assert suite.labels == ("toxicity",)
    assert not suite.held_out


def test_a_set_is_about_hate_where_toxicity_was_not_judged(tmp_path: Path) -> None:
    both = load_suite(write(tmp_path / "both.csv", "text,hate,toxicity\na,1,1\nb,0,\n"))
    alone = load_suite(write(tmp_path / "alone.csv", "text,hate\na,1\nb,0\n"))
    assert (both.labels, both.about_hate) == (("toxicity", "hate"), False)
    assert (alone.labels, alone.about_hate) == (("hate",), True)
    assert both.target_of("threat") == "toxicity"
    assert alone.target_of("threat") == "hate"


# ---- the real files -------------------------------------------------------------------------------------------------


def test_hatecheck(data: Path) -> None:
    suite = load_suite("hatecheck")
    assert suite == load_suite(str(data / "hatecheck" / "test_suite_cases.csv"))
    # Röttger et al. 2021, section 4: 3,728 cases, 2,563 of them hateful, 29 functionalities, 7 groups.
    assert len(suite.texts) == 3728
    assert suite.targets("hate").sum() == 2563
    assert {text.functionality for text in suite.texts} == set(FUNCTIONALITIES)
    assert len({group for text in suite.texts for group in text.groups}) == 7
    for text in suite.texts:
        # The names of the functionalities say which gold label they have.
        assert text.targets["hate"] == (not (text.functionality or "").endswith("_nh"))
    assert suite.about_hate


def test_jigsaw(data: Path) -> None:
    suite = load_suite("jigsaw")
    with open(data / "jigsaw_bias" / "toxicity_nonfuzzed_testset.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [text.text for text in suite.texts] == [row["comment"] for row in rows]
    assert suite.targets("toxicity").sum() == sum(row["toxic"] == "True" for row in rows) == 248


def test_rtp_takes_only_what_no_judge_is_trained_on(data: Path) -> None:
    from rewardlm.judges.texts import load_labelled

    suite = load_suite("rtp")
    (loaded,) = load_labelled("rtp")
    texts = {text.text for text in suite.texts}
    assert texts == {text.text for text in loaded.held_out}
    assert not texts & {text.text for text in loaded.training}
    assert suite.held_out
    assert suite.target_of("insult") == "insult"
    assert suite.target_of("hate") == suite.target_of("LABEL_1") == "toxicity"
    scores = {}
    for line in (data / "realtoxicityprompts" / "prompts.jsonl").read_text("utf-8").splitlines():
        for part in ("prompt", "continuation"):
            entry = json.loads(line)[part]
            scores.setdefault(" ".join(entry["text"].split()), entry["threat"])
    assert suite.targets("threat").tolist() == pytest.approx([scores[text.text] for text in suite.texts], nan_ok=True)


def test_what_calibrates_judges_is_in_no_suite(data: Path) -> None:
    from rewardlm.judges.texts import load_labelled

    suite = load_suite("toxigen")
    (loaded,) = load_labelled("toxigen")
    assert len(loaded.calibration) > 250
    texts = {text.text for text in suite.texts}
    assert texts == {text.text for text in loaded.held_out} - {text.text for text in loaded.calibration}


def test_hatemoji_is_about_hate(data: Path) -> None:
    suite = load_suite("hatemoji")
    assert suite.about_hate
    assert suite.held_out
