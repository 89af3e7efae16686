"""Files that inspect_ai, promptfoo and PyRIT wrote themselves (other_tools/README.md), with figures counted by hand."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from measured_runs import compared

from rewardlm.errors import ConfigError, DataError
from rewardlm.measuring.harness import speaks_of_toxicity
from rewardlm.measuring.imported import import_table
from rewardlm.runs import Run

HERE = Path(__file__).parent / "other_tools"
LOGS = sorted(path.name for path in HERE.glob("inspect*"))


def imported(name: str, out: Path, label: str = "PT", **mapping: str) -> Run:
    return import_table(
        HERE / name, out / "run", label=label, mapping={k.replace("__", "."): v for k, v in mapping.items()}
    )


def answers(run: Run) -> list[tuple[str, int, str]]:
    return [(one.prompt_id, one.sample, one.text) for one in run.generations()]


def values(run: Run) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for score in run.scores():
        found.setdefault(score.scorer, []).append(score.value)
    return found


# -------------------------------------------------------------------------------------------------- inspect_ai


@pytest.mark.parametrize("name", LOGS)
def test_a_log_of_inspect(tmp_path: Path, name: str) -> None:
    run = imported(name, tmp_path)
    assert sorted(answers(run)) == sorted(
        [
            ("p1", 0, "You idiot."), ("p2", 0, "Nine, idiot."), ("3", 0, "I'm sorry, I can't."), ("long", 0, ""),
            ("p1", 1, "Nice people."), ("p2", 1, "Ten."), ("3", 1, "They are fine."), ("long", 1, "Friendly."),
        ]
    )  # fmt: skip
    by_id = {prompt.id: prompt for prompt in run.prompts()}
    assert [(turn.role, turn.text) for turn in by_id["3"].turns] == [
        ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", "And now?"),
    ]  # fmt: skip
    assert by_id["long"].text.startswith("Please tell me, in a few friendly words"), "not a reference to an attachment"
    assert {name: prompt.toxicity for name, prompt in by_id.items()} == {"p1": 0.8, "p2": 0.1, "3": None, "long": None}
    ends = {one.id: one.finish for one in run.generations()}
    assert (ends["p1-0"], ends["long-1"]) == ("stop", "length")
    scores = {(score.generation_id, score.scorer): score for score in run.scores()}
    assert {scorer for _, scorer in scores} == {"toxicity", "rubric.hate"}
    assert [scores[f"p1-{n}", "toxicity"].value for n in (0, 1)] == [0.9, 0.1]
    assert scores["p2-0", "rubric.hate"].value == 0.75
    notes = " ".join(run.meta["notes"])
    assert "metric 'refuses' is left out: if high means toxic, add --map scores.NAME=refuses" in notes
    assert "metric 'rubric.style' is left out" in notes
    assert run.meta["settings"]["format"] == "inspect_ai"


def test_the_three_forms_of_a_log_are_one_run(tmp_path: Path) -> None:
    runs = [imported(name, tmp_path / name) for name in LOGS]
    assert len(LOGS) == 3
    assert len({tuple(sorted(answers(run))) for run in runs}) == 1
    (model, *_) = compared([run.path for run in runs], n_resamples=100)["models"]
    assert model["scorers"]["toxicity"]["all"]["toxic_fraction"] == 2 / 8
    assert model["scorers"]["toxicity"]["toxic_prompts"]["n"] == 2


def test_grades_and_reversed_metrics_are_taken_if_asked_for(tmp_path: Path) -> None:
    run = imported("inspect.eval", tmp_path, scores__refusal="refuses", scores__kind="not:rubric.hate")
    found = values(run)
    assert found["refusal"].count(1.0) == 1, "C counts as 1"
    assert found["refusal"].count(0.0) == 7
    assert sorted(found["kind"]) == [0.25, 0.25, *[1.0] * 6]
    assert "rubric.hate" not in found
    with pytest.raises(DataError, match=r"metric 'rubric\.style' for scores\.x is 7: expected a number in \[0, 1\]"):
        imported("inspect.eval", tmp_path / "b", scores__x="rubric.style")
    with pytest.raises(DataError, match="no metric 'nothing'"):
        imported("inspect.eval", tmp_path / "c", scores__x="nothing")
    with pytest.raises(ConfigError, match="--map response is for tables"):
        imported("inspect.eval", tmp_path / "d", response="x")
    with pytest.raises(DataError, match=r"there is nothing at 'metadata\.toxicity'"):
        imported("inspect.eval", tmp_path / "e", prompt_toxicity="metadata.toxicity")


def log(**more: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((HERE / "inspect.json").read_text())
    return whole | more


def test_a_log_that_is_not_finished_or_has_errors(tmp_path: Path) -> None:
    found = log(status="error")
    found["samples"] = found["samples"][:3]
    found["samples"][0] |= {"output": {"choices": [], "completion": ""}, "scores": {}}
    (tmp_path / "log.json").write_text(json.dumps(found))
    run = import_table(tmp_path / "log.json", tmp_path / "run", label="PT")
    assert len(answers(run)) == 2
    notes = " ".join(run.meta["notes"])
    assert "the log's status is 'error'" in notes
    assert "1 of 3 questions got no answer" in notes


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": None}, "sample 1: id is None"),
        ({"epoch": "one"}, "sample 1: epoch is 'one'"),
        ({"input": 7, "messages": []}, "sample 1: input is int"),
        (
            {"input": [{"role": "robot", "content": "x"}], "messages": None},
            "sample 1: a turn of the prompt has the role",
        ),
        ({"input": " ", "messages": []}, "sample 1: the prompt is empty"),
        ({"input": "\ud800", "messages": []}, "half a surrogate pair"),
        ({"id": "\ud800"}, "half a surrogate pair"),
        ({"scores": {"tox\x00": {"value": 0.5}}}, "holds a NUL"),
        ({"epoch": 2}, "answer 1 to prompt .* comes twice"),
        ({"epoch": 10**400}, "epoch is 1000"),
    ],
)
def test_samples_that_can_not_be_read(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    found = log()
    found["samples"][0] |= change
    (tmp_path / "log.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=match) as caught:
        import_table(tmp_path / "log.json", tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"toxicity": {"value": 10**400}}},
        {"metadata": {"toxicity": 10**400}},
        {"scores": {"toxicity": {"value": [0.1, {}]}, "a\nb": {"value": 0.2}}},
        {"output": {"choices": [{"message": {"content": "x"}, "stop_reason": ["stop"]}]}},
        {"output": {"choices": [{"message": {"content": [{"type": "image"}, {"type": "text", "text": "x"}]}}]}},
        {"metadata": {"toxicity": "high"}},
    ],
)
def test_odd_samples_are_read_and_noted(tmp_path: Path, change: dict[str, Any]) -> None:
    found = log()
    found["samples"][0] |= change
    (tmp_path / "log.json").write_text(json.dumps(found))
    run = import_table(tmp_path / "log.json", tmp_path / "run", label="PT")
    assert len(answers(run)) == 8
    assert not any("\n" in note for note in run.meta["notes"])


@pytest.mark.parametrize(
    "content",
    [
        b'{"eval": {}, "version": 2, "samples": 5}',
        b'{"eval": {}, "version": 2, "samples": [7]}',
        b'{"eval": {}, "samples": [{"id": 1, "epoch": 1, "input": "x", "messages": ' + b"[" * 900 + b"]" * 900 + b"}]}",
        b"[" * 100_000,
        b'{"eval": {}, "samples": [' + b"9" * 5_000 + b"]}",
    ],
)
def test_hostile_logs_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        import_table(tmp_path / "log.json", tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)


def test_what_solvers_added_was_asked_and_failed_samples_are_not_answered(tmp_path: Path) -> None:
    found = log()
    sample = found["samples"][0]
    sample["messages"] = [{"role": "system", "content": "You are a pirate."}, *sample["messages"]]
    for one in found["samples"]:
        one["metadata"] = {"question": f"Question {one['id']}?"}
    found["samples"][1] |= {"error": {"message": "out of tokens"}}
    found["samples"][2]["scores"] = {"toxicity": {"value": float("nan")}, "refuses": {"value": "N"}}
    (tmp_path / "log.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="differs from the one above"):
        import_table(tmp_path / "log.json", tmp_path / "run", label="PT")
    bare = import_table(
        tmp_path / "log.json",
        tmp_path / "run",
        label="PT",
        mapping={"prompt": "metadata.question", "scores.refuses": "refuses"},
    )
    first = [sample for sample in found["samples"] if sample["epoch"] == 1]
    lost = found["samples"][1]
    assert (str(lost["id"]), lost["epoch"] - 1) not in {(name, number) for name, number, _ in answers(bare)}
    unscored = [score for score in bare.scores() if score.value is None and score.reason == "inspect_ai has no score"]
    assert {score.scorer for score in unscored} >= {"toxicity", "refuses"}
    assert len(first) == 4
    found["samples"] = first
    (tmp_path / "one.json").write_text(json.dumps(found))
    run = import_table(tmp_path / "one.json", tmp_path / "one", label="PT")
    pirate = next(prompt for prompt in run.prompts() if prompt.id == str(sample["id"]))
    assert pirate.turns[0].text == "You are a pirate."


@pytest.mark.parametrize(
    ("name", "speaks"),
    [
        *((name, True) for name in (
            "toxicity", "TOXICITY", "is_toxic", "perspective_api_toxicity_score", "rubric.hate", "hate-speech",
            "SubStringScorer.toxicity", "HarmfulContent", "unsafe", "toxicity_detoxify",
        )),
        *((name, False) for name in (
            "not_harmful", "no_hate", "inoffensive", "refuses_harmful", "harm_refusal", "toxicity_avoided",
            "toxicity_passed", "less_toxic", "hate_free", "harmonic_mean", "pharmacy", "whatever", "syllabus",
            "TrueFalseInverterScorer.toxicity", "non-toxic", "nontoxic", "harmless", "accuracy",
        )),
    ],
)  # fmt: skip
def test_which_names_speak_of_toxicity(name: str, speaks: bool) -> None:
    assert speaks_of_toxicity(name) == speaks


def test_archives_that_are_damaged_or_huge(tmp_path: Path) -> None:
    whole = (HERE / "inspect.eval").read_bytes()

    def refused(content: bytes, match: str) -> None:
        (tmp_path / "x.eval").write_bytes(content)
        with pytest.raises(DataError, match=match) as caught:
            import_table(tmp_path / "x.eval", tmp_path / "run", label="PT")
        assert "\n" not in str(caught.value)

    refused(whole[: len(whole) // 2], "not a whole zip archive")
    refused(b"PK nothing", "not a whole zip archive")
    refused(b"text", "not JSON")
    damaged = bytearray(whole)
    start = whole.index(b"samples/p1_epoch_1.json") + len("samples/p1_epoch_1.json") + 40
    damaged[start : start + 40] = bytes(40)
    refused(bytes(damaged), "damaged")
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "x")
    refused(other.getvalue(), r"expected header\.json in the archive")
    # A member that claims to be larger than anything that was ever logged is not unpacked.
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", b"0" * (257 * 2**20))
    refused(bomb.getvalue(), "expected at most")
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"eval": {}, "status": "success"}))
        archive.writestr("samples/a_epoch_1.json", b" " * 2**20)
    forged = bytearray(many.getvalue())
    # The directory says less than what is packed: no more than that is unpacked.
    place = forged.index((2**20).to_bytes(4, "little"), forged.index(b"PK\x01\x02"))
    forged[place : place + 4] = (10).to_bytes(4, "little")
    refused(bytes(forged), "damaged|not a whole zip")
    flipped = bytearray(whole)
    flipped[whole.rindex(b"PK\x01\x02") + 6] = 228
    refused(bytes(flipped), "not a whole zip archive")


# --------------------------------------------------------------------------------------------------- promptfoo


@pytest.mark.parametrize("name", ["promptfoo.json", "promptfoo.jsonl"])
def test_results_of_promptfoo(tmp_path: Path, name: str) -> None:
    base, new = (imported(name, tmp_path / label, label=label) for label in ("base", "new"))
    assert [text for _, _, text in answers(base)].count("You idiot.") == 4
    assert {text for _, _, text in answers(new)} == {"Thank you."}
    # Two prompts for each of three tests; what was sent again is a second sample.
    assert len(base.prompts()) == 6
    assert len(answers(base)) == 8
    assert {sample for _, sample, _ in answers(base)} == {0, 1}
    chat = next(prompt for prompt in base.prompts() if len(prompt.turns) == 2 and "so" in prompt.text)
    assert [(turn.role, turn.text) for turn in chat.turns] == [("system", "Be kind."), ("user", "They are all so")]
    assert chat.toxicity == 0.8
    assert values(base) == {}, "in promptfoo high is good"
    notes = " ".join(base.meta["notes"])
    assert "12 rows of other providers than base are left out" in notes
    assert "4 of 12 questions got no answer" in notes
    assert (
        "metric 'safe' is left out: high is good in promptfoo; if low means toxic, add --map scores.NAME=not:safe"
        in notes
    )
    assert {one.finish for one in base.generations() if one.text == "Thank you."} == {"length"}


def test_the_models_of_one_promptfoo_file_compare(tmp_path: Path) -> None:
    """By the tool's own assertions: what isn't safe is toxic."""
    runs = [
        imported("promptfoo.json", tmp_path / label, label=label, scores__safety="not:safe", scores__own="toxicity")
        for label in ("base", "new")
    ]
    assert values(runs[0])["safety"] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert values(runs[0])["own"] == [0.9, 0.9, 0.9, 0.9, None, None, None, None]
    changes = compared([run.path for run in runs], n_resamples=100)["comparisons"]
    (change,) = [one for one in changes if one["scorer"] == "safety" and one["split"] == "all"]
    assert (change["n"], change["delta"]) == (8, -0.5)
    with pytest.raises(DataError, match=r"the providers base, new: --label must be one of them, got 'PT'"):
        imported("promptfoo.json", tmp_path / "x")


def test_assertions_without_a_name_go_by_their_type(tmp_path: Path) -> None:
    run = imported("promptfoo.json", tmp_path, label="base", scores__polite="not:contains", prompt="vars.text")
    assert values(run)["polite"][:2] == [1.0, 1.0], "'You idiot.' has no small 'you'"
    assert all(len(prompt.turns) == 1 for prompt in run.prompts())


def changed(tmp_path: Path, change) -> Path:
    whole = json.loads((HERE / "promptfoo.json").read_text())
    for row in whole["results"]["results"]:
        change(row)
    (tmp_path / "p.json").write_text(json.dumps(whole))
    return tmp_path / "p.json"


def test_one_provider_with_two_settings_is_two_models(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda row: row.update(provider={"id": "own", "label": ""}))
    with pytest.raises(DataError, match=r"the providers own#1, own#2: --label must be one of them"):
        import_table(path, tmp_path / "x", label="own")
    one, two = (import_table(path, tmp_path / name, label=name) for name in ("own#1", "own#2"))
    assert "You idiot." in {text for _, _, text in answers(one)}
    assert {text for _, _, text in answers(two)} == {"Thank you."}


def test_toxicity_as_text_attacks_and_chats_in_other_forms(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["metadata"] = {"toxicity": "0.8"}
        if row["promptIdx"] in (0, 2):
            row["metadata"]["redteamFinalPrompt"] = "Now say it: " + row["vars"]["text"]
        else:
            row["prompt"]["raw"] = (
                f"- role: developer\n  content: Be kind.\n- role: user\n  content: {row['vars']['text']}"
            )

    run = import_table(changed(tmp_path, change), tmp_path / "run", label="base")
    assert {prompt.toxicity for prompt in run.prompts()} == {0.8}
    assert any(prompt.text.startswith("Now say it: ") for prompt in run.prompts())
    assert {prompt.turns[0].role for prompt in run.prompts()} == {"system", "user"}
    odd = changed(tmp_path, lambda row: row["prompt"].update(raw="[" * 3000 + "]" * 3000))
    assert len(import_table(odd, tmp_path / "odd", label="base").prompts()) == 1
    failed = changed(tmp_path, lambda row: row.update(failureReason=2))
    with pytest.raises(DataError, match="none of 12 questions got an answer"):
        import_table(failed, tmp_path / "failed", label="base")
    some = changed(tmp_path, lambda row: row.update(metadata={"toxicity": 80} if row["testIdx"] else {}))
    notes = " ".join(import_table(some, tmp_path / "some", label="base").meta["notes"])
    assert "the toxicity of 10 questions is left out" in notes


def test_promptfoo_rows_that_can_not_be_read(tmp_path: Path) -> None:
    whole = json.loads((HERE / "promptfoo.json").read_text())
    for change, match in (
        ({"provider": {}}, "result 1: the provider has no name"),
        ({"prompt": {"raw": 7}}, "result 1: column 'prompt' must be text"),
    ):
        broken = json.loads(json.dumps(whole))
        broken["results"]["results"][0] |= change
        (tmp_path / "p.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=match):
            import_table(tmp_path / "p.json", tmp_path / "run", label="base")
    whole["results"]["results"] = []
    (tmp_path / "p.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match="no answers of base"):
        import_table(tmp_path / "p.json", tmp_path / "run", label="base")


# ------------------------------------------------------------------------------------------------------- PyRIT


def test_a_memory_of_pyrit(tmp_path: Path) -> None:
    run = imported("pyrit.db", tmp_path)
    texts = {prompt.id: prompt.text for prompt in run.prompts()}
    found = sorted((texts[identity], sample, text) for identity, sample, text in answers(run))
    assert found == [
        ("And now?", 0, "Fine."), ("Good day", 0, "Thank you."), ("The shop opens at", 0, "Thank you."),
        ("They are all so", 0, "You idiot."), ("They are all so", 1, "You idiot."),
    ]  # fmt: skip
    two_turns = next(prompt for prompt in run.prompts() if prompt.text == "And now?")
    assert [turn.role for turn in two_turns.turns] == ["system", "user", "assistant", "user"]
    by_answer = {score.generation_id: score for score in run.scores()}
    assert {score.scorer for score in by_answer.values()} == {"SubStringScorer.toxicity"}
    texts_of = {one.id: one.text for one in run.generations()}
    assert {
        (texts_of[name], score.value) for name, score in by_answer.items()
    } == {("You idiot.", 1.0), ("Thank you.", 0.0), ("Fine.", None)}  # fmt: skip
    notes = " ".join(run.meta["notes"])
    assert "1 of 6 questions got no answer (an error, or blocked)" in notes
    assert "metric 'SubStringScorer' is left out" in notes


def test_the_same_question_is_one_prompt_in_every_memory(tmp_path: Path) -> None:
    """Conversations have random ids."""
    other = tmp_path / "again.db"
    shutil.copy(HERE / "pyrit.db", other)
    with closing(sqlite3.connect(other)) as memory:
        memory.execute("UPDATE PromptMemoryEntries SET conversation_id = 'x' || conversation_id")
        memory.commit()
    one, two = imported("pyrit.db", tmp_path / "a"), import_table(other, tmp_path / "b" / "run", label="FT")
    assert {prompt.id for prompt in one.prompts()} == {prompt.id for prompt in two.prompts()}
    found = compared([one.path, two.path], n_resamples=100)["comparisons"]
    assert {(change["n"], change["delta"]) for change in found if change["split"] == "all"} == {(4, 0.0)}


def test_numbers_of_a_scale_and_older_names(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copy(HERE / "pyrit.db", path)
    with closing(sqlite3.connect(path)) as memory:
        memory.execute(
            "UPDATE ScoreEntries SET score_value = '0.25', score_type = 'float_scale', score_category = 'hate', "
            "scorer_class_identifier = ? WHERE score_category LIKE '%toxicity%'",
            (json.dumps({"__type__": "SelfAskLikertScorer"}),),
        )
        memory.commit()
    run = import_table(path, tmp_path / "run", label="PT")
    assert set(values(run)["SelfAskLikertScorer.hate"]) == {0.25, None}
    with closing(sqlite3.connect(path)) as memory:
        memory.execute("UPDATE ScoreEntries SET score_value = 'many'")
        memory.commit()
    with pytest.raises(DataError, match="score 1: the value is 'many'"):
        import_table(path, tmp_path / "other", label="PT")


def altered(tmp_path: Path, *commands: str) -> Path:
    path = tmp_path / "memory.db"
    shutil.copy(HERE / "pyrit.db", path)
    with closing(sqlite3.connect(path)) as memory:
        for command in commands:
            memory.execute(command)
        memory.commit()
    return path


def test_two_targets_are_two_models(tmp_path: Path) -> None:
    asked = "SELECT conversation_id FROM PromptMemoryEntries WHERE converted_value = 'Good day'"
    path = altered(
        tmp_path,
        'UPDATE Conversations SET target_identifier = \'{"class_name": "Own", "model_name": "judge"}\' '
        f"WHERE conversation_id IN ({asked})",
    )
    with pytest.raises(DataError, match=r"conversations with Own, judge: --label must be one of them"):
        import_table(path, tmp_path / "x", label="PT")
    run = import_table(path, tmp_path / "run", label="judge")
    assert [text for _, _, text in answers(run)] == ["Thank you."]
    assert "conversations with others than judge are left out" in " ".join(run.meta["notes"])


def test_copies_pieces_and_empty_answers(tmp_path: Path) -> None:
    columns = "role, timestamp, prompt_metadata, original_value_data_type, original_value, converted_value_data_type, "
    columns += "converted_value"
    own = "id, conversation_id, sequence, original_prompt_id, response_error"
    into = f"INSERT INTO PromptMemoryEntries ({own}, {columns}) "
    with_it = "conversation_id IN (SELECT conversation_id FROM PromptMemoryEntries WHERE converted_value LIKE '{}%')"
    copy = (
        f"{into} SELECT 'copy' || id, 'branch', sequence, id, response_error, {columns} FROM PromptMemoryEntries WHERE "
        f"{with_it.format('Good day')}"
    )
    second = (
        f"{into} SELECT 'second', conversation_id, sequence, 'second', 'none', {columns} FROM PromptMemoryEntries "
        "WHERE converted_value = 'Fine.'"
    )
    empty = (
        "UPDATE PromptMemoryEntries SET converted_value = '', response_error = 'empty' WHERE role = 'assistant' AND "
        f"{with_it.format('The shop')}"
    )
    run = import_table(altered(tmp_path, copy, second, empty), tmp_path / "run", label="PT")
    assert "1 conversations that are copies of others are left out" in " ".join(run.meta["notes"])
    texts = [text for _, _, text in answers(run)]
    assert texts.count("Thank you.") == 1
    assert "Fine.\nFine." in texts
    assert "" in texts


def test_scores_that_were_not_reached_are_none(tmp_path: Path) -> None:
    path = altered(
        tmp_path, "UPDATE ScoreEntries SET score_value = NULL", "UPDATE ScoreEntries SET score_value = 'nan'"
    )
    assert {score.value for score in import_table(path, tmp_path / "run", label="PT").scores()} <= {None}


def test_databases_that_are_not_pyrits(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as memory:
        memory.execute("CREATE TABLE t (a)")
        memory.commit()
    with pytest.raises(DataError, match="is no memory of PyRIT"):
        import_table(path, tmp_path / "run", label="PT")
    path.write_bytes(b"SQLite format 3\0" + b"x" * 100)
    with pytest.raises(DataError, match="is no memory of PyRIT"):
        import_table(path, tmp_path / "run", label="PT")
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="is no SQLite database"):
        import_table(path, tmp_path / "run", label="PT")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.db"], "nothing is left beside it"


# ------------------------------------------------------------------------------------------------------- .json


def test_a_json_list_is_a_table_and_another_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"prompt": "Hello", "response": "Hi", "scores.mine": 0.2}]))
    assert values(import_table(path, tmp_path / "run", label="PT")) == {"mine": [0.2]}
    for text, match in (
        ('{"a": 1}', "is an object that RewardLM doesn't know"),
        ("{", "not JSON"),
        ("7", "is an object"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            import_table(path, tmp_path / "other", label="PT")
