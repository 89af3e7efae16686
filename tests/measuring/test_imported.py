"""Tables like those of 2023, with the figures that their rows give by hand, and tables that must be refused."""

import csv
import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from measured_runs import build_run, compared

from rewardlm.errors import ConfigError, DataError, RunError
from rewardlm.measuring.imported import import_table
from rewardlm.runs import Run, prompts_hash

COLUMNS = ["", "prompts", "responses", "prompt_score", "response_score", "pro_API_response_score"]

# Ten answers: by perspective 3 toxic, 4 not, 2 not scorable, 1 empty; by classifier 2 toxic of 9.
ROWS_2023 = [
    ["0", "Why are they, like,\nso rude?", 'They said "no",\nand left.', "0.9", "0.7", "0.8"],
    ["1", "Second", "Fine.", "0.6", "0.1", "0.7"],
    ["2", "Third", "Fine.", "0.5", "0.1", "0.5"],
    ["3", "Fourth", "Fine.", "0.1", "0.6", "0.9"],
    ["4", "Fifth", "你好", "0.1", "0.1", ""],
    ["5", "Sixth", "สวัสดี", "0.9", "0.2", "nan"],
    ["6", "Seventh", "", "0.9", "-1", "-1.0"],
    ["7", "Eighth", "Fine.", "0.2", "0.1", "0.1"],
    ["8", "Ninth", "Fine.", "0.2", "0.1", "0"],
    ["9", "Tenth", "Fine.", "", "0.1", "1e-3"],
]


def write_csv(path: Path, rows: list[list[Any]], columns: list[str] = COLUMNS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def test_a_table_of_2023(tmp_path: Path) -> None:
    run = import_table(write_csv(tmp_path / "pt.csv", ROWS_2023), tmp_path / "run", label="PT")
    assert (run.meta["kind"], run.label, run.meta["status"], run.meta["rows"]) == ("import", "PT", "finished", 10)
    assert run.meta["toxic_by"] == "dataset"
    # As a measurement records them, so that another judge can be added.
    assert [entry["name"] for entry in run.meta["scorers"]] == ["perspective", "classifier"]
    prompts = Run.open(tmp_path / "run").prompts()
    assert [prompt.id for prompt in prompts] == [str(number) for number in range(10)]
    assert run.meta["prompts_hash"] == prompts_hash(prompts)
    assert prompts[0].text == ROWS_2023[0][1]
    assert [prompt.toxicity for prompt in prompts] == [0.9, 0.6, 0.5, 0.1, 0.1, 0.9, 0.9, 0.2, 0.2, None]
    generations = run.generations()
    assert generations[0].text == ROWS_2023[0][2]
    scores = {(score.generation_id, score.scorer): score for score in run.scores()}
    assert scores["0-0", "perspective"].value == 0.8
    assert scores["0-0", "classifier"].value == 0.7
    for number, scorer, reason in (
        (4, "perspective", "language not supported"),
        (5, "perspective", "language not supported"),
        (6, "perspective", "empty response"),
        (6, "classifier", "empty response"),
    ):
        found = scores[f"{number}-0", scorer]
        assert (found.value, found.reason) == (None, reason)


def test_the_figures_of_2023_by_hand(tmp_path: Path) -> None:
    import_table(write_csv(tmp_path / "pt.csv", ROWS_2023), tmp_path / "run", label="PT")
    (model,) = compared([tmp_path / "run"], n_resamples=100)["models"]
    perspective, classifier = (model["scorers"][name]["all"] for name in ("perspective", "classifier"))
    assert (perspective["n"], perspective["scored"]) == (10, 7)
    assert perspective["toxic_fraction"] == 3 / 7
    assert perspective["toxic_fraction_of_all"] == 3 / 10
    assert (classifier["n"], classifier["scored"]) == (10, 9)
    assert classifier["toxic_fraction_of_all"] == 2 / 10
    toxic = model["scorers"]["perspective"]["toxic_prompts"]
    assert (toxic["n"], toxic["scored"], toxic["toxic_fraction"]) == (4, 2, 1.0)
    assert model["scorers"]["perspective"]["nontoxic_prompts"]["n"] == 5
    assert model["scorers"]["perspective"]["comparable"]["n"] == 7
    assert model["quality"]["non_latin_fraction"] == 0.2
    assert model["quality"]["empty_fraction"] == 0.1


def test_minus_one_is_not_taken_for_silence_where_there_is_an_answer(tmp_path: Path) -> None:
    rows = [["q", "An answer.", "-1"], ["r", "", "-1"], ["s", "Another.", "0.2"]]
    run = import_table(
        write_csv(tmp_path / "t.csv", rows, ["prompt", "response", "scores.x"]), tmp_path / "run", label="A"
    )
    assert [score.reason for score in run.scores()] == ["scored -1 though there is an answer", "empty response", None]
    messages = [w["message"] for w in compared([run.path], n_resamples=50)["warnings"] if w["code"] == "unscored"]
    assert "1 scored -1 though there is an answer" in messages[0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [["q", "a", "0.7", "0.2"]], ["ask", "answer", "response_score", "tox"])
    mapping = {"prompt": "ask", "response": "answer", "prompt_toxicity": "tox", "scores.roberta": "response_score"}
    run = import_table(table, tmp_path / "run", label="PT", mapping=mapping)
    # A column that was named is not also taken for what its name says.
    assert [(score.scorer, score.value) for score in run.scores()] == [("roberta", 0.7)]
    assert run.prompts()[0].toxicity == 0.2


def test_named_and_known_columns_mix(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [["q", "a", "0.7", "0.2"]], ["prompt", "reply", "response_score", "scores.x"])
    run = import_table(table, tmp_path / "run", label="PT", mapping={"response": "reply"})
    assert {(score.scorer, score.value) for score in run.scores()} == {("classifier", 0.7), ("x", 0.2)}


def test_json_lines(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [
        {"prompt": "q", "response": "a", "scores.x": 0.7},
        {"prompt": "r", "response": "b", "scores.x": None},
        {"prompt": "s", "response": None, "scores.x": None},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = import_table(table, tmp_path / "run", label="PT")
    assert [(score.value, score.reason) for score in run.scores()] == [
        (0.7, None),
        (None, "missing"),
        (None, "empty response"),
    ]


def test_importing_again_changes_nothing_and_another_table_is_refused(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ROWS_2023)
    import_table(table, tmp_path / "run", label="PT")
    before = (tmp_path / "run" / "scores.jsonl").read_bytes()
    import_table(table, tmp_path / "run", label="PT")
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == before
    write_csv(table, ROWS_2023[:3])
    with pytest.raises(RunError, match="other settings"):
        import_table(table, tmp_path / "run", label="PT")


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ROWS_2023)
    whole = import_table(table, tmp_path / "whole", label="PT")
    killed = import_table(table, tmp_path / "killed", label="PT")
    killed.update(status="running")
    (tmp_path / "killed" / "scores.jsonl").unlink()
    generations = (tmp_path / "killed" / "generations.jsonl").read_bytes()
    (tmp_path / "killed" / "generations.jsonl").write_bytes(generations[:500])
    again = import_table(table, tmp_path / "killed", label="PT")
    assert again.finished
    assert again.generations() == whole.generations()
    assert again.scores() == whole.scores()


@pytest.mark.parametrize("score", ["1.2", "-0.5", "inf", "-2"])
def test_a_score_out_of_range_names_line_and_column(tmp_path: Path, score: str) -> None:
    table = write_csv(tmp_path / "t.csv", [["0", "q", "a", "0.1", "0.1", "0.1"], ["1", "r", "b", "0.1", "0.1", score]])
    with pytest.raises(DataError, match=r"t\.csv, line 3: column 'pro_API_response_score'"):
        import_table(table, tmp_path / "run", label="PT")
    assert not (tmp_path / "run").exists()


def bad(name: str, content: str | bytes, match: str) -> Any:
    return pytest.param(name, content if isinstance(content, bytes) else content.encode(), match, id=match)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        bad("t.csv", "", "is empty"),
        bad("t.csv", " \n\n", "is empty"),
        bad("t.csv", "prompts,responses\n", "no rows"),
        bad("t.csv", "prompts,answer\nq,a\n", r"no column 'responses' or 'response'.*'prompts', 'answer'"),
        bad("t.csv", "ask,responses\nq,a\n", r"no column 'prompts' or 'prompt'.*--map prompt="),
        bad("t.csv", "prompts,responses,response_score\nq,a,high\n", r"line 2: column 'response_score'.*'high'"),
        bad("t.csv", "prompts,responses\nq,a\nq\n", "line 3: 1 cells"),
        bad("t.csv", "prompts,responses\nq,a,b\n", "line 2: 3 cells"),
        bad("t.csv", 'prompts,responses\nq,a\nr,"b\n', "line 3: not a CSV row"),
        bad("t.csv", "prompts,responses,responses\nq,a,b\n", "two columns are called 'responses'"),
        bad("t.csv", "prompts,responses\nq,a\n  ,b\n", "line 3: the prompt"),
        bad("t.csv", b"prompts,responses\nq,a\nr,\xff\n", "line 3: not UTF-8"),
        bad("t.csv", "prompts,responses\nq,a\nr,b\0\n", "line 3: holds a NUL"),
        bad("t.jsonl", '{"prompt": "q", "response": "a"}\n{"prompt": "q", "resp', "line 2: not JSON"),
        bad("t.jsonl", '["q", "a"]\n', "line 1: expected a JSON object"),
        bad("t.jsonl", '{"prompt": "q", "response": "a"}\n{"prompt": "q"}\n', "line 2: the column 'response'"),
        bad("t.jsonl", '{"prompt": "q", "response": 7}\n', "line 1: column 'response' must be text"),
        bad("t.jsonl", '{"prompt": "q", "response": "\\ud800"}\n', "line 1: column 'response' holds half"),
        bad("t.jsonl", '{"prompt": "q", "response": "a", "scores.x": true}\n', "line 1: column 'scores.x'"),
        bad("t.xlsx", "PK", r"\.csv or \.jsonl"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        import_table(tmp_path / name, tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read"):
        import_table(tmp_path / "t.csv", tmp_path / "run", label="PT")


def test_mappings_that_are_wrong(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ROWS_2023)
    with pytest.raises(DataError, match=r"no column 'replies' for response: its columns are .*'responses'"):
        import_table(table, tmp_path / "run", label="PT", mapping={"response": "replies"})
    with pytest.raises(ConfigError, match="got 'answer'"):
        import_table(table, tmp_path / "run", label="PT", mapping={"answer": "responses"})
    with pytest.raises(ConfigError, match="needs a name"):
        import_table(table, tmp_path / "run", label="PT", mapping={"scores.": "response_score"})


def test_a_byte_order_mark_and_long_cells(tmp_path: Path) -> None:
    long = "word " * 60_000
    (tmp_path / "t.csv").write_bytes(f"\ufeffprompts,responses\r\nq,{long}\r\n".encode())
    before = csv.field_size_limit()
    run = import_table(tmp_path / "t.csv", tmp_path / "run", label="PT")
    assert run.generations()[0].text == long
    assert csv.field_size_limit() == before


@pytest.mark.slow
def test_two_tables_of_five_thousand_rows_are_fast(tmp_path: Path) -> None:
    start = time.process_time()
    for label, share in (("PT", 0.2), ("RL", 0.1)):
        rows = [
            [i, f"Prompt {i}", f"An answer of some words, number {i}.", 0.4, i % 997 / 997, i % 1009 / 1009 * share]
            for i in range(5000)
        ]
        import_table(write_csv(tmp_path / f"{label}.csv", rows), tmp_path / label, label=label)
    compared([tmp_path / "PT", tmp_path / "RL"])
    assert time.process_time() - start < 20


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_parquet_table_is_read_as_a_csv_is(tmp_path: Path) -> None:
    texts = {"prompts": ["q", "r", "s"], "responses": ["a", None, "=c"]}
    numbers = {"prompt_score": [0.25, None, float("nan")], "pro_API_response_score": [1 / 3, -1.0, None]}
    run = import_table(write_parquet(tmp_path / "t.parquet", {**texts, **numbers}), tmp_path / "run", label="PT")
    assert [prompt.id for prompt in run.prompts()] == ["0", "1", "2"]
    assert [prompt.toxicity for prompt in run.prompts()] == [0.25, None, None]
    assert [generation.text for generation in run.generations()] == ["a", "", "=c"]
    assert [(score.value, score.reason) for score in run.scores()] == [
        (1 / 3, None),
        (None, "empty response"),
        (None, "language not supported"),
    ]


def test_parquet_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"prompt": ["q", "r"], "response": ["a", "b"], "scores.x": [0.5, 2.0]})
    with pytest.raises(DataError, match=r"t\.parquet, row 2: column 'scores\.x' must be a score in \[0, 1\]"):
        import_table(path, tmp_path / "run", label="PT")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.parquet: not a whole Parquet file") as caught:
        import_table(path, tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)
    write_parquet(path, {"prompt": [], "response": []})
    with pytest.raises(DataError, match="has no rows"):
        import_table(path, tmp_path / "run", label="PT")
    write_parquet(path, {"prompt": [["q"]], "response": ["a"]})
    with pytest.raises(DataError, match="row 1: column 'prompt' must be text, got list"):
        import_table(path, tmp_path / "run", label="PT")
    write_parquet(path, {"prompt": ["q\0"], "response": ["a"]})
    with pytest.raises(DataError, match="row 1: column 'prompt' holds a NUL"):
        import_table(path, tmp_path / "run", label="PT")


def test_repeated_prompts_are_numbered_by_row(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "t.csv", [["same", "a", "0.1"], ["same", "b", "0.9"]], ["prompt", "response", "scores.x"]
    )
    run = import_table(table, tmp_path / "run", label="PT")
    assert [(prompt.id, prompt.text) for prompt in run.prompts()] == [("0", "same"), ("1", "same")]
    assert [(g.prompt_id, g.sample) for g in run.generations()] == [("0", 0), ("1", 0)]


def test_rows_of_one_id_are_answers_to_one_prompt(tmp_path: Path) -> None:
    """The same grid of scores, once measured and once as a table of rows in any order."""
    draw = random.Random(3)
    grid = [[draw.random() for _ in range(4)] for _ in range(12)]
    measured = build_run(tmp_path / "measured", "PT", {"x": grid}, toxicity=[i / 12 for i in range(12)])
    rows = [
        [f"q{i}", f"This is prompt number {i}", "A harmless answer.", i / 12, grid[i][j]]
        for j in range(4)
        for i in range(12)
    ]
    columns = ["question", "prompt", "response", "prompt_toxicity", "scores.x"]
    table = write_csv(tmp_path / "t.csv", rows, columns)
    run = import_table(table, tmp_path / "run", label="PT", mapping={"prompt_id": "question"})
    assert [prompt.id for prompt in run.prompts()] == [f"q{i}" for i in range(12)]
    assert run.meta["samples"] == 4
    assert run.meta["notes"] == []
    theirs, ours = (compared([path], n_resamples=300)["models"][0] for path in (measured, tmp_path / "run"))
    assert ours["scorers"] == theirs["scorers"]
    assert ours["scorers"]["x"]["all"]["expected_max_toxicity"] == pytest.approx(sum(map(max, grid)) / 12)
    alone = import_table(table, tmp_path / "rows", label="PT")
    assert len(alone.prompts()) == 48
    assert "36 of 48 rows repeat the prompt of a row above" in alone.meta["notes"][0]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (["a", "other words", "x", "0.9", "0.1"], "line 3: prompt 'a' differs"),
        (["a", "words", "x", "0.8", "0.1"], "line 3: prompt 'a' differs"),
        ([" ", "words", "x", "0.9", "0.1"], r"line 3: the prompt's id \(column 'question'\) is empty"),
    ],
)
def test_ids_that_are_none(tmp_path: Path, row: list[str], match: str) -> None:
    columns = ["question", "prompt", "response", "prompt_toxicity", "scores.x"]
    table = write_csv(tmp_path / "t.csv", [["a", "words", "x", "0.9", "0.1"], row], columns)
    with pytest.raises(DataError, match=match):
        import_table(table, tmp_path / "run", label="PT", mapping={"prompt_id": "question"})


@pytest.mark.slow
def test_two_long_tables_by_two_judges_are_compared_in_twenty_seconds(tmp_path: Path) -> None:
    """Texts of 20 to 60 words and continuous scores, every number of compare with its 10,000 resamples."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("ba", "to", "mi", "re", "ku", "sha") for b in ("n", "lot", "der", "ing", "s", "me")]
    prompts = [" ".join(rng.choices(words, k=rng.randint(20, 60))) for _ in range(5000)]
    toxicity = [rng.random() for _ in prompts]
    start = time.process_time()
    for label in ("PT", "RL"):
        rows = [
            [prompt, " ".join(rng.choices(words, k=rng.randint(20, 60))), known, rng.random(), rng.random()]
            for prompt, known in zip(prompts, toxicity, strict=True)
        ]
        columns = ["prompt", "response", "prompt_toxicity", "scores.one", "scores.two"]
        import_table(write_csv(tmp_path / f"{label}.csv", rows, columns), tmp_path / label, label=label)
    result = compared([tmp_path / "PT", tmp_path / "RL"])
    assert time.process_time() - start < 20
    assert len(result["comparisons"]) == 10
