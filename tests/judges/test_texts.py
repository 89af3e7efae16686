"""Labelled texts: what each data set says, and that nothing held out or excluded is ever trained on."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from rewardlm.data.dialogues import OURS, load_dialogues, normalised
from rewardlm.data.split import is_held_out
from rewardlm.errors import DataError
from rewardlm.judges.corpus import load_corpus
from rewardlm.judges.pair_data import own_pairs
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.texts import LABELS, load_labelled

RTP_ROW = {
    "prompt": {"text": "He is such a", "toxicity": 0.25, "insult": 0.5, "flirtation": 0.1},
    "continuation": {"text": " fool, they said", "toxicity": 0.75, "threat": None},
}


def write_csv(path: Path, header: list[str], *rows: list[str]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def only(path: Path) -> dict[str, dict[str, float]]:
    (found,) = load_labelled(str(path))
    return {text.text: dict(text.labels) for text in found.texts}


def test_perspective_scores_prompt_and_continuation(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(RTP_ROW) + "\n")
    (found,) = load_labelled(str(path))
    assert found.kind == "rtp"
    assert {text.text: dict(text.labels) for text in found.texts} == {
        "He is such a": {"toxicity": 0.25, "insult": 0.5},
        "fool, they said": {"toxicity": 0.75},
    }
    assert len({text.held_out for text in found.texts}) == 1, "a row's two texts stay on one side"


def test_annotators_votes_are_shares(tmp_path: Path) -> None:
    header = ["", "count", "hate_speech", "offensive_language", "neither", "class", "tweet"]
    path = write_csv(
        tmp_path / "tweets.csv",
        header,
        ["0", "4", "1", "2", "1", "1", "!!! RT @some_one: you &amp;amp; @him http://t.co/x"],
    )
    assert only(path) == {"you & @user": {"toxicity": 0.75, "hate": 0.25}}


def test_a_score_of_meaning_is_no_toxicity_of_words(tmp_path: Path) -> None:
    rows = [
        {"id": 0, "text": " as if_x000D_ they", "toxicity_score": 4.0, "label": "hate", "target_groups": []},
        {"id": 1, "text": "they sing", "toxicity_score": 1.0, "label": "neutral", "target_groups": []},
    ]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(rows))
    assert only(path) == {"as if they": {"hate": 1.0}, "they sing": {"hate": 0.0}}


def test_a_bias_code_of_zero_means_hate(tmp_path: Path) -> None:
    header = ["post", "offensiveYN", "hasBiasedImplication"]
    path = write_csv(tmp_path / "posts.csv", header, ["a", "1.0", "0"], ["b", "0.5", "1"], ["c", "", "1"])
    assert only(path) == {"a": {"hate": 1.0}, "b": {"hate": 0.0}, "c": {"hate": 0.0}}


STEREOTYPES = ["post", "offensiveYN", "hasBiasedImplication", "targetCategory", "targetMinority", "targetStereotype"]


def stereotypes(folder: Path, *posts: tuple[str, list[str], list[str], list[str]]) -> None:
    """SBIC's file in a folder of data sets: post, categories, groups, and what was read in it."""
    (folder / "sbic").mkdir()
    rows = [[post, "1.0", "0", *map(json.dumps, columns)] for post, *columns in posts]
    write_csv(folder / "sbic" / "SBIC.v2.agg.dev.csv", STEREOTYPES, *rows)


def test_what_annotators_read_in_a_post_is_a_text_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences that begin with a group that hate is about: neither notes on the post nor what was done to people."""
    read = [
        ("women can not drive", True),
        ("all women should be silent", True),
        ("are bad drivers", False),
        ("mocks women for driving", False),
        ("post says women are dumb", False),
        ("women were raped", False),
        ("women deserve to be raped", True),
    ]
    stereotypes(
        tmp_path,
        ("one", ["gender"], ["women"], [sentence for sentence, _ in read]),
        ("two", ["social"], ["liberals"], ["liberals are not clever"]),
        ("three", ["culture", "race"], ["jewish folks"], ["all jews are greedy", "women cook well"]),
        ("four", [], [], []),
    )
    monkeypatch.setenv("REWARDLM_DATA", str(tmp_path))
    (found,) = load_labelled("stereotypes")
    assert {text.text for text in found.texts} == {sentence for sentence, kept in read if kept} | {
        "all jews are greedy"
    }
    assert all(text.labels == {"hate": 1.0} and text.source == "stereotypes" for text in found.texts)


def test_a_sentence_is_held_out_with_any_of_its_posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [f"post {number}" for number in range(60)]
    out = next(post for post in posts if is_held_out(post))
    trains = next(post for post in posts if not is_held_out(post))
    stereotypes(
        tmp_path,
        (trains, ["gender"], ["women"], ["women are this", "women are that"]),
        (out, ["gender"], ["women"], ["women are that", "women are more"]),
    )
    monkeypatch.setenv("REWARDLM_DATA", str(tmp_path))
    (found,) = load_labelled("stereotypes")
    assert {text.text for text in found.training} == {"women are this"}


@pytest.mark.parametrize(
    ("header", "cell", "said"),
    [
        (STEREOTYPES, "gender", "line 2: targetCategory is 'gender'; expected a JSON list"),
        (STEREOTYPES, "5", "line 2: targetCategory is '5'; expected a JSON list"),
        (STEREOTYPES, '"gender"', "expected a JSON list"),
        (STEREOTYPES[:3], "", "expected SBIC's columns, with targetCategory"),
        (["text", "label"], "", "expected SBIC's columns, with targetCategory"),
    ],
)
def test_a_bad_file_of_stereotypes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: list[str], cell: str, said: str
) -> None:
    (tmp_path / "sbic").mkdir()
    row = ["a", "1", "0", cell, "[]", "[]"][: len(header)]
    write_csv(tmp_path / "sbic" / "SBIC.v2.agg.dev.csv", header, row)
    monkeypatch.setenv("REWARDLM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
        load_labelled("stereotypes")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("source", "hateful", "harmless"),
    [
        ("exchanges", "Women belong in the kitchen and nowhere else.", "Nobody asks to be assaulted."),
        ("arguments", "They were slaves for a reason.", "The reason was greed."),
        ("contrasts", "Trans women are freaks, and that costs us everything.", "Trans women are women"),
    ],
)
def test_our_own_texts_are_in_no_dialogue_that_is_imitated(source: str, hateful: str, harmless: str) -> None:
    (found,) = load_labelled(source)
    labels = {text.text: text.labels["hate"] for text in found.texts}
    assert labels[hateful] == 1.0
    assert [label for text, label in labels.items() if text.startswith(harmless)] == [0.0]
    assert 0.9 < sum(labels.values()) / (len(labels) - sum(labels.values())) < 1.1
    assert not found.held_out
    imitated = {normalised(turn.text) for name in OURS for d in load_dialogues(name).dialogues for turn in d.turns}
    assert not imitated & {normalised(text.text) for text in found.texts}


def test_a_users_file_is_not_taken_for_ours(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "arguments.csv", ["text", "hate"], ["a", "1"])
    (found,) = load_labelled(str(path))
    assert (found.kind, found.licence) == ("arguments.csv", None)
    assert not found.texts[0].complete


def test_contrasts_share_words() -> None:
    """Half of the words of the shorter text are the other text's too, in the mean: they teach more than words."""
    shares = []
    for opposed, meant in own_pairs("contrasts"):
        one, other = (set(normalised(text).split()) for text in (opposed, meant))
        shares.append(len(one & other) / min(len(one), len(other)))
    assert sum(shares) / len(shares) > 0.5


@pytest.mark.parametrize("source", ["exchanges", "arguments", "contrasts", "mentions"])
def test_nothing_of_ours_was_made_after_hatecheck(shared_data: Path, source: str) -> None:
    """No six words in a row are those of one of its cases, and none is one of its templates with another group."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 6]) for at in range(len(words) - 5)}

    with open(shared_data / "hatecheck" / "test_suite_cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cases = set().union(*(runs(row["test_case"]) for row in rows))
    templates = {re.sub(r"\\\[[^]]*\\\]", r"\\w+(?: \\w+)?", re.escape(row["case_templ"].strip())) for row in rows}
    pattern = re.compile("|".join(f"(?:{template})" for template in templates), re.IGNORECASE)
    assert len(cases) > 5000
    assert pattern.fullmatch(next(row["test_case"].strip() for row in rows if "[" in row["case_templ"]))
    (found,) = load_labelled(source)
    assert not [text.text for text in found.texts if runs(text.text) & cases or pattern.fullmatch(text.text)]


def test_other_names_for_our_labels(tmp_path: Path) -> None:
    header = ["id", "comment_text", "toxic", "obscene", "identity_hate"]
    path = write_csv(tmp_path / "train.csv", header, ["1", "one  text", "1", "0", ""])
    assert only(path) == {"one text": {"toxicity": 1.0, "profanity": 0.0}}


def test_rude_is_not_the_opposite_of_hate(tmp_path: Path) -> None:
    header = ["text", "label_gold", "matched_text"]
    path = write_csv(tmp_path / "emoji.csv", header, ["x", "0", "y"])
    assert only(path) == {"x": {"hate": 0.0}}


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (["text", "label"], ["a", "2"], "line 2: label is '2'"),
        (["text", "score"], ["a", "nan"], "line 2: score is 'nan'"),
        (["text", "colour"], ["a", "red"], "expected 'text' and one or more of"),
        (["words", "label"], ["a", "1"], "expected 'text' and one or more of"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, header: list[str], row: list[str], said: str) -> None:
    path = write_csv(tmp_path / "bad.csv", header, row)
    with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
        load_labelled(str(path))
    assert said in str(caught.value)


def test_an_unknown_source_names_the_known() -> None:
    with pytest.raises(DataError, match="expected starter, exchanges, arguments, contrasts, mentions, rtp"):
        load_labelled("no-such-source")


def test_starter_is_our_openings_against_our_answers() -> None:
    (found,) = load_labelled("starter")
    dialogues = load_dialogues("starter").dialogues
    answers = {turn.text for d in dialogues for turn in d.turns if turn.role == "assistant"}
    assert {text.text for text in found.texts if text.labels == {"toxicity": 0.0, "hate": 0.0}} == answers
    assert {text.text for text in found.texts if text.labels == {"hate": 1.0}} == {d.turns[0].text for d in dialogues}


def test_what_calibrates_neither_trains_nor_evaluates(tmp_path: Path) -> None:
    texts = [f"sentence {number} of many" for number in range(3000)]
    data = write_csv(tmp_path / "data.csv", ["text", "label"], *([text, str(i % 2)] for i, text in enumerate(texts)))
    excluded = write_csv(tmp_path / "suite.csv", ["text", "label"], *([text, "1"] for text in texts[:300]))
    (found,) = load_labelled(str(data))
    parts = [{text.text for text in part} for part in (found.training, found.calibration, found.evaluation)]
    assert set().union(*parts) == set(texts)
    assert sum(map(len, parts)) == len(texts)
    assert 0.4 < len(parts[1]) / len(found.held_out) < 0.6
    settings = {"data": [str(data)], "exclude": [str(excluded)]}
    corpus = load_corpus(JudgeTrainSettings(**settings))
    validation = {text.text for text in corpus.validation}
    held_out = parts[1] - set(texts[:300])
    assert {text.text for text in corpus.calibration} == held_out | validation
    # Another judge, distilled into this one, may have learnt from the validation part.
    corpus = load_corpus(JudgeTrainSettings(**settings, distil="starter"))
    assert {text.text for text in corpus.calibration} == held_out


def test_rows_that_belong_together_calibrate_together(tmp_path: Path) -> None:
    """Toxic comments are read twice, whole and without their spans."""
    comments = [f"you idiot number {number}" for number in range(400)]
    data = write_csv(tmp_path / "data.csv", ["spans", "text"], *(["[4, 5, 6, 7, 8]", text] for text in comments))
    (found,) = load_labelled(str(data))
    calibrates = {text.text: text.calibrates for text in found.texts}
    held_out = {text.text for text in found.held_out}
    assert any(calibrates[text] for text in comments)
    for text in comments:
        without = " ".join(text.replace("idiot", "").split())
        assert (text in held_out, calibrates[text]) == (without in held_out, calibrates[without])


def test_nothing_held_out_or_excluded_is_trained_on(tmp_path: Path) -> None:
    texts = [f"sentence {number} of many" for number in range(600)]
    data = write_csv(tmp_path / "data.csv", ["text", "label"], *([text, str(i % 2)] for i, text in enumerate(texts)))
    # The same texts in other letters, as an evaluation set might have them.
    excluded = write_csv(tmp_path / "suite.csv", ["text", "label"], *([text.upper(), "1"] for text in texts[:50]))
    settings = JudgeTrainSettings(data=[str(data)], exclude=[str(excluded)])
    corpus = load_corpus(settings)
    seen = [normalised(text.text) for text in [*corpus.train, *corpus.validation]]
    held_out = {normalised(text) for text in texts if is_held_out(text)}
    assert held_out
    assert len(seen) == len(set(seen))
    assert set(seen) == {normalised(text) for text in texts[50:]} - held_out


def test_a_text_of_two_sources_has_both_labels(tmp_path: Path) -> None:
    texts = [f"words {number}" for number in range(200) if not is_held_out(f"words {number}")]
    one = write_csv(tmp_path / "one.csv", ["text", "toxicity"], *([text, "0.25"] for text in texts))
    two = write_csv(tmp_path / "two.csv", ["text", "hate", "toxicity"], *([text, "1", "0.75"] for text in texts))
    corpus = load_corpus(JudgeTrainSettings(data=[str(one), str(two)]))
    assert len(corpus.train) + len(corpus.validation) == len(texts)
    assert all(text.labels == {"toxicity": 0.25, "hate": 1.0} for text in [*corpus.train, *corpus.validation])


@pytest.mark.slow
def test_real_data_sets_are_read(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as the folder's README states them, less what can't be used."""
    monkeypatch.setenv("REWARDLM_DATA", str(shared_data))
    rows = {"rtp": 2 * 1801, "toxigen": 6514, "hatemoji": 4728 + 591, "davidson": 24783, "sbic": 4666}
    rows |= {"toxic_spans": 7939 + 690, "surge": 1000}
    for source in rows:
        sets = load_labelled(source)
        if source == "toxic_spans":
            # A comment with spans is read a second time, without them.
            for name in ("tsd_train.csv", "tsd_trial.csv"):
                with open(shared_data / "toxic_spans" / name, newline="") as file:
                    rows[source] += sum(row["spans"] != "[]" for row in csv.DictReader(file))
        assert {found.kind for found in sets} == {source}
        dropped = sum(sum(found.dropped.values()) for found in sets)
        assert sum(len(found.texts) for found in sets) + dropped == rows[source]
        for found in sets:
            assert all(set(text.labels) <= set(LABELS) for text in found.texts)
            assert all(0 <= value <= 1 for text in found.texts for value in text.labels.values())
            assert any(text.held_out for text in found.texts)
