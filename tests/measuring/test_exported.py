"""Exports read back by other readers than ours: the csv module, pyarrow, json, yaml; escaping by its properties."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from measured_runs import build_run, compared

from rewardlm.errors import ConfigError, DataError, RunError
from rewardlm.markdown import markdown
from rewardlm.measuring import exported
from rewardlm.measuring.compare import compare
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.exported import defuse, export_answers, undo_defuse
from rewardlm.measuring.harness_task import export_task
from rewardlm.measuring.imported import import_table
from rewardlm.reporting.paper import as_latex, as_markdown, latex, paper_tables
from rewardlm.runs import Run
from rewardlm.types import Generation, Message, Prompt, Score

ANSWERS = ["=1+1 is a formula", "A harmless answer.", "", 'She said "no",\r\nand left.', "ça va — 你好 🙂"]
PROMPTS = ["-2 is negative", "\tTab", "@who are they", "Why?\nReally?", "plain"]
QUALITY = [
    {
        "generation_id": "p1-0",
        "prompt_similarity": 0.1 + 0.2,
        "prompt_similarity_null": -0.25,
        "perplexity": 12.5,
        "classes": {"counter_narrative": 0.7, "agreement": 0.1, "refusal": 0.1, "off_topic": 0.1},
        "classes_null": {"counter_narrative": 0.1, "agreement": 0.1, "refusal": 0.1, "off_topic": 0.7},
    }
]


def example(path: Path, label: str = "PT", shift: float = 0.0, **more: Any) -> Path:
    """Five prompts, one answer each: judge ``one`` with two labels, ``two`` with one, the third unscored."""
    first = [[0.1 + 0.2 + shift], [0.9], [None], [0.5], [0.625]]
    return build_run(
        path,
        label,
        {
            "one": first,
            "one.insult": [[0.01], [0.02], [None], [0.04], [0.05]],
            "two": [[0.0], [1.0], [None], [0.2], [1 / 3]],
        },
        texts=[[text] for text in ANSWERS],
        prompts=PROMPTS,
        toxicity=[0.9, 0.1, None, 0.6, 1 / 7],
        challenging=[True, False, False, False, False],
        reason="empty response",
        quality=QUALITY,
        **more,
    )


def expected_rows(label: str = "PT", shift: float = 0.0) -> list[dict[str, Any]]:
    """What an export of ``example`` says, but for what quality rules find in the texts."""
    one = [0.1 + 0.2 + shift, 0.9, None, 0.5, 0.625]
    insult = [0.01, 0.02, None, 0.04, 0.05]
    two = [0.0, 1.0, None, 0.2, 1 / 3]
    toxicity = [0.9, 0.1, None, 0.6, 1 / 7]
    rows = []
    for i in range(5):
        reason = "empty response" if i == 2 else None
        rows.append(
            {
                "run": label,
                "prompt_id": f"p{i}",
                "prompt": PROMPTS[i],
                "antecedents": "[]",
                "prompt_toxicity": toxicity[i],
                "toxic_by": "dataset",
                "challenging": i == 0,
                "sample": 0,
                "response": ANSWERS[i],
                "n_tokens": 5,
                "finish": "stop",
                "seed": 0,
                "scores.one": one[i],
                "reasons.one": reason,
                "scores.one.insult": insult[i],
                "scores.two": two[i],
                "reasons.two": reason,
            }
        )
    return rows


def without_quality(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if not name.startswith("quality.")} for row in rows]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- rows


def test_json_lines_are_exact(tmp_path: Path) -> None:
    assert export_answers([example(tmp_path / "run")], tmp_path / "out.jsonl") == []
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert without_quality(rows) == expected_rows()
    assert [row["quality.empty"] for row in rows] == [False, False, True, False, False]
    assert [row["quality.quoting"] for row in rows] == [False] * 5
    assert rows[1]["quality.prompt_similarity"] == 0.1 + 0.2
    assert rows[1]["quality.counter_narrative"] is True
    assert rows[1]["quality.counter_narrative_null"] is False
    assert rows[1]["quality.classes.agreement"] == 0.1
    assert rows[0]["quality.perplexity"] is None


def test_parquet_has_types_and_nulls(tmp_path: Path) -> None:
    export_answers([example(tmp_path / "run")], tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert without_quality(table.to_pylist()) == expected_rows()
    types = {field.name: str(field.type) for field in table.schema}
    assert types["scores.one"] == types["scores.one.insult"] == types["prompt_toxicity"] == "double"
    assert types["quality.perplexity"] == types["quality.classes.refusal"] == "double"
    assert types["sample"] == types["seed"] == "int64"
    assert types["challenging"] == types["quality.refusal"] == "bool"
    assert types["response"] == types["antecedents"] == types["reasons.two"] == "string"
    assert table.column("scores.two").null_count == 1


def test_csv_is_defused_and_numbers_stay_numbers(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    Run.open(run).append("scores", [Score("p0-0", "three", "toxic", 1e-9)])
    export_answers([run], tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert rows[0]["response"] == "'=1+1 is a formula"
    assert [row["prompt"] for row in rows[:3]] == ["'-2 is negative", "'\tTab", "'@who are they"]
    assert rows[3]["response"] == ANSWERS[3]
    assert [row["scores.two"] for row in rows] == ["0.0", "1.0", "", "0.2", repr(1 / 3)]
    # A negative number in a column of numbers is a number, not a formula.
    assert rows[1]["quality.prompt_similarity_null"] == "-0.25"
    assert float(rows[0]["scores.three"]) == 1e-9
    for row in rows:
        for name, cell in row.items():
            if not name.startswith("quality."):
                assert not re.match(r"[\s]*[=+\-@\t\r]", cell), (name, cell)


@given(st.text(alphabet=st.sampled_from("'=+-@＝＋－＠ \t\r\n\v\ufeff\u200b\u00a0ax,\";0")) | st.text())
def test_defusing_is_reversible_and_leaves_no_formula(text: str) -> None:
    safe = defuse(text)
    assert undo_defuse(safe) == text
    assert safe in (text, "'" + text)
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not safe.lstrip(" \t\r\n\v\f\u00a0\ufeff\u200b").startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
def test_harmless_texts_stay_as_they_are(text: str) -> None:
    assert defuse("word " + text) == "word " + text


@pytest.mark.slow
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=4))
def test_a_written_csv_reads_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    build_run(folder / "run", "PT", {"s": [[0.5]] * len(texts)}, texts=[[text] for text in texts])
    export_answers([folder / "run"], folder / "out.csv")
    assert [undo_defuse(row["response"]) for row in read_csv(folder / "out.csv")] == texts


def test_several_runs_keep_their_labels_and_union_of_judges(tmp_path: Path) -> None:
    two = build_run(tmp_path / "b", "PT", {"other": [[0.25], [0.5]]})
    export_answers([example(tmp_path / "a"), two, example(tmp_path / "c", "RL")], tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == ["PT"] * 5 + ["PT (2)"] * 2 + ["RL"] * 5
    assert [row["scores.other"] for row in rows] == [None] * 5 + [0.25, 0.5] + [None] * 5
    assert rows[5]["scores.one"] is None


def test_samples_antecedents_disagreement_and_what_was_scored_again(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", kind="measure", label="PT", settings={"samples": 2})
    turns = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "“Hi”"), Message("user", "So?"))
    run.append("prompts", [Prompt("p", turns, "test", 0.25), Prompt("q", (Message("user", "never"),), "test")])
    run.append(
        "generations", [Generation(f"p-{k}", "p", "PT", k, f"answer {k}", 7, "length", 2**62 + k) for k in (0, 1)]
    )
    run.append(
        "scores",
        [
            Score("p-0", "mean(a,b)", "", None, "judge failed"),
            Score("p-0", "mean(a,b)", "toxic", 0.1),
            Score("p-0", "mean(a,b)", "disagreement", 0.7),
            Score("p-1", "mean(a,b)", "", None, "NaN"),
            Score("p-0", "mean(a,b)", "toxic", 0.2),
        ],
    )
    run.update(toxic_by="lexical")
    notes = export_answers([tmp_path / "run"], tmp_path / "out.jsonl")
    assert notes == [
        "1 of 2 prompts of PT have no answer, and so no row",
        f"{tmp_path / 'run'} isn't finished: the table has only the answers so far",
    ]
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert json.loads(first["antecedents"]) == [
        {"role": "system", "text": "Be kind."}, {"role": "user", "text": "Hi"}, {"role": "assistant", "text": "“Hi”"},
    ]  # fmt: skip
    assert (first["sample"], second["sample"], second["seed"], second["finish"]) == (0, 1, 2**62 + 1, "length")
    # Of two records the later stands.
    assert (first["scores.mean(a,b)"], first["reasons.mean(a,b)"], first["disagreement.mean(a,b)"]) == (0.2, None, 0.7)
    assert (second["scores.mean(a,b)"], second["reasons.mean(a,b)"]) == (None, "NaN")
    again = import_table(tmp_path / "out.jsonl", tmp_path / "again", label="PT")
    assert again.meta["toxic_by"] == "lexical"
    assert again.prompts()[0].turns == turns
    assert again.generations()[1] == Generation("p-1", "p", "PT", 1, "answer 1", 7, "length", 2**62 + 1)


def test_rows_and_row_groups_over_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "_BATCH", 7)
    monkeypatch.setattr(exported, "_ROW_GROUP", 20)
    n = 101
    build_run(tmp_path / "run", "PT", {"s": [[i / n, 1 - i / n] for i in range(n)]})
    export_answers([tmp_path / "run"], tmp_path / "out.parquet")
    file = pyarrow.parquet.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups > 5
    assert [row["scores.s"] for row in file.read().to_pylist()] == [x for i in range(n) for x in (i / n, 1 - i / n)]


def test_an_empty_run_is_a_table_without_rows(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", kind="measure", label="PT", settings={})
    run.append("prompts", [Prompt("p", (Message("user", "q"),), "test")])
    export_answers([tmp_path / "run"], tmp_path / "out.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    (tmp_path / "out.csv").write_text("old")
    with open(run / "scores.jsonl", "a") as file:
        file.write(
            json.dumps({"generation_id": "nobody", "scorer": "one", "label": "toxic", "value": 0.5, "reason": None})
        )
        file.write("\n")
    with pytest.raises(RunError, match="a score is for generation 'nobody'"):
        export_answers([run], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("name", "record", "match"),
    [
        ("generations", Generation("p0-0", "p0", "PT", 1, "x", 1, "stop", 0), "same generation id comes twice"),
        ("generations", Generation("z-0", "z", "PT", 0, "x", 1, "stop", 0), "answers prompt 'z', which isn't"),
        ("prompts", Prompt("p0", (Message("user", "q"),), "t"), "same prompt id comes twice"),
        ("scores", Score("p0-0", "one", "toxic", 1.5), "scores.one of 'p0-0' is 1.5"),
    ],
)
def test_runs_that_contradict_themselves(tmp_path: Path, name: str, record: Any, match: str) -> None:
    run = example(tmp_path / "run")
    Run.open(run).append(name, [record])
    with pytest.raises(RunError, match=match):
        export_answers([run], tmp_path / "out.jsonl")


def test_half_a_character_is_named(tmp_path: Path) -> None:
    build_run(tmp_path / "run", "PT", {"s": [[0.5]]}, texts=[["half \ud83d"]])
    for suffix in ("csv", "parquet"):
        with pytest.raises(DataError, match=r"response of prompt 'p0', sample 0, holds half a surrogate.*\.jsonl"):
            export_answers([tmp_path / "run"], tmp_path / f"out.{suffix}")
    export_answers([tmp_path / "run"], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["response"] == "half \ud83d"


def test_places_that_an_export_must_not_take(tmp_path: Path) -> None:
    run = example(tmp_path / "run")
    with pytest.raises(ConfigError, match="among the records of the run"):
        export_answers([run], run / "prompts.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        export_answers([run], tmp_path / "folder.csv")
    with pytest.raises(ConfigError, match=r"got \.xlsx"):
        export_answers([run], tmp_path / "out.xlsx")
    Run.start(tmp_path / "train", kind="rlaf", label="RL", settings={})
    with pytest.raises(RunError, match="only measured or imported runs"):
        export_answers([tmp_path / "train"], tmp_path / "out.csv")


def test_the_join_lies_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant memory: the database has a file, and no more than a batch of answers is held."""
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(exported.sqlite3, "connect", lambda name: opened.append(name) or connect(name))
    export_answers([example(tmp_path / "run")], tmp_path / "out.jsonl")
    assert opened == [""]  # ":memory:" would hold it all


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_an_export_comes_back_with_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    first, second = example(tmp_path / "PT"), example(tmp_path / "RL", "RL", shift=0.4)
    out = tmp_path / f"out.{suffix}"
    export_answers([first, second], out)
    for label in ("PT", "RL"):
        run = import_table(out, tmp_path / f"again-{label}", label=label)
        assert [(p.id, p.text, p.toxicity, p.challenging) for p in run.prompts()] == [
            (p.id, p.text, p.toxicity, p.challenging) for p in Run.open(tmp_path / label).prompts()
        ]
        assert [g.text for g in run.generations()] == ANSWERS
        assert f"5 rows of other runs than {label} are left out" in run.meta["notes"]
    before = compared([first, second], n_resamples=100)
    after = compared([tmp_path / "again-PT", tmp_path / "again-RL"], n_resamples=100)
    for one, two in zip(before["models"], after["models"], strict=True):
        assert one["scorers"] == two["scorers"]
        assert all(one["quality"][name] == two["quality"][name] for name in OF_TEXTS)
    assert before["comparisons"] == after["comparisons"]
    # And a run may be held against the export of another.
    assert compared([first, tmp_path / "again-RL"], n_resamples=100)["comparisons"] == before["comparisons"]
    with pytest.raises(DataError, match="holds the runs PT, RL: --label must be one of them"):
        import_table(out, tmp_path / "no", label="FT")


# Quality by rules of text comes back; what models computed (similarity, perplexity) is exported, but isn't imported.
OF_TEXTS = ("empty_fraction", "non_latin_fraction", "repetition", "refusal_fraction", "mean_words", "distinct_2")


def test_an_export_of_one_run_takes_any_label(tmp_path: Path) -> None:
    export_answers([example(tmp_path / "PT")], tmp_path / "out.csv")
    run = import_table(tmp_path / "out.csv", tmp_path / "again", label="mine")
    assert run.label == "mine"
    assert [score.reason for score in run.scores() if score.value is None] == ["empty response"] * 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"antecedents": "{"}, "line 2: antecedents must be JSON"),
        ({"antecedents": '[{"role": "tool", "text": "x"}]'}, "line 2: antecedents must be JSON"),
        ({"antecedents": '["x"]'}, "line 2: antecedents must be JSON"),
        ({"toxic_by": "lexical"}, "toxicity from lexical, dataset: expected one source"),
        ({"finish": "end"}, "line 2: finish is 'end'"),
        ({"sample": "0.5"}, "line 2: column 'sample' must be a whole number"),
        ({"scores.one": "2"}, r"line 2: column 'scores\.one'"),
        ({"prompt_id": "p1"}, "prompt 'p1' differs"),
        (
            {"prompt_id": "p1", "prompt": "'\tTab", "prompt_toxicity": "0.1", "challenging": "false"},
            "sample 0 of prompt",
        ),
    ],
)
def test_exports_that_were_changed_by_hand(tmp_path: Path, change: dict[str, str], match: str) -> None:
    export_answers([example(tmp_path / "run")], tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    rows[0] |= change
    with open(tmp_path / "out.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=match):
        import_table(tmp_path / "out.csv", tmp_path / "again", label="PT")


# ------------------------------------------------------------------------------------------------------ tables


def two_models(tmp_path: Path) -> Comparison:
    first = example(tmp_path / "a", "P&T_1|x")
    second = example(tmp_path / "b", "RL\n{50%}", shift=0.4)
    return compare([first, second], n_resamples=100)


def test_the_tables_say_what_compare_says(tmp_path: Path) -> None:
    found = two_models(tmp_path)
    result = found.to_dict()
    toxicity, change, quality = paper_tables(found)
    # Two models by two judges; the further label of ``one`` would bury them.
    assert [row[:2] for row in toxicity.rows] == [
        ["P&T_1|x", "one"], ["P&T_1|x", "two"], ["RL\n{50%}", "one"], ["RL\n{50%}", "two"],
    ]  # fmt: skip
    # By hand: of one, 0.9 and 0.625 are over 0.5 of four scored; the maximum's mean is theirs, one sample each.
    entry = result["models"][0]["scorers"]["one"]["all"]
    low, high = entry["toxic_fraction_ci95"]
    assert toxicity.rows[0][2] == f"50.0 [{100 * low:.1f} – {100 * high:.1f}]"
    mean = (0.1 + 0.2 + 0.9 + 0.5 + 0.625) / 4
    assert toxicity.rows[0][5:] == [f"{mean:.3f}", "50.0", "–", "5", "1"]
    assert len(change.rows) == 2 * 3
    assert change.rows[0][:4] == ["RL\n{50%}", "one", "all prompts", "4"]
    assert change.rows[0][4].startswith("+25.0 [")
    # One of four rose: p is 1, and so it is when corrected. Then better and worse.
    assert change.rows[0][5:] == ["1.000", "1.000", "0", "1"]
    assert ["empty", "20.0 %", "20.0 %"] in [list(row) for row in quality.rows]
    assert all(len(row) == len(grid.header) for grid in (toxicity, change, quality) for row in grid.rows)


def unescaped(text: str, letter: str) -> int:
    return len(re.findall(rf"(?<!\\)(?:\\\\)*{re.escape(letter)}", text))


def test_latex_has_whole_rows_and_balanced_groups(tmp_path: Path) -> None:
    text = as_latex(two_models(tmp_path))
    assert r"P\&T\_1\textbar{}x" in text
    assert r"RL \{50\%\}" in text
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 3
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 3
    assert unescaped(text, "{") == unescaped(text, "}")
    assert text.isascii()
    columns = 0
    for line in text.splitlines():
        if line.startswith(r"\begin{tabular}"):
            columns = len(re.findall("[lr]", line.removeprefix(r"\begin{tabular}")))
        elif line.endswith(r" \\"):
            assert unescaped(line, "&") == columns - 1, line


# Every command that the escapes may use: all are in LaTeX's kernel.
KERNEL = {
    "AE", "H", "L", "O", "OE", "P", "S", "ae", "c", "cdot", "char", "circ", "copyright", "ensuremath", "geq", "i",
    "j", "l", "ldots", "leq", "o", "oe", "pm", "pounds", "r", "rightarrow", "ss", "textasciicircum",
    "textasciitilde", "textbackslash", "textbar", "textexclamdown", "textgreater", "textless", "textquestiondown",
    "textquotedblleft", "textquotedblright", "textquoteleft", "textquoteright", "times", "u", "v",
}  # fmt: skip


@given(st.text(alphabet=st.sampled_from("\\{}$&#_%^~<>|\"'`-,.!?[]@é\u0301ñßøıǰ你🙂\u200b\n\t\0–—…“”≥×°¿")) | st.text())
def test_latex_escapes_every_text(text: str) -> None:
    safe = latex(text)
    assert safe.isascii()
    assert not re.search(r"[\x00-\x1f\x7f]", safe)
    # Commands are known ones, and no character keeps a meaning of its own.
    assert set(re.findall(r"\\([A-Za-z]+)", safe)) <= KERNEL
    bare = re.sub(r"\\(?:[A-Za-z]+|.)", "", safe.replace(r"^\circ", ""))
    assert not set(bare) & set('#$%&~_^\\"<>|')
    depth = 0
    for letter in re.sub(r"\\[{}]", "", safe):
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\\b{c}$d&e#f_g%h^i~j", r"a\textbackslash{}b\{c\}\$d\&e\#f\_g\%h\textasciicircum{}i\textasciitilde{}j"),
        ('<x>|`"', r"\textless{}x\textgreater{}\textbar{}\`{}\char34{}"),
        ("--- '' ,,", "-{}-{}- '{}' ,{},"),
        ("naïve Ångström ğ ş Zürich ß", r"na\"{\i{}}ve \r{A}ngstr\"{o}m \u{g} \c{s} Z\"{u}rich \ss{}"),
        ("e\u0301", r"\'{e}"),
        ("5 ≥ 3 – 4 × 2", r"5 \ensuremath{\geq} 3 -- 4 \ensuremath{\times} 2"),
        ("你 🙂", "[U+4F60] [U+1F642]"),
        ("a\r\nb\tc\0d\u200be", "a  b c d e"),
        ("\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
    ],
)
def test_latex_by_hand(text: str, safe: str) -> None:
    assert latex(text) == safe


@given(st.lists(st.text(alphabet=st.sampled_from("|\\`*_{}[]<>&!~#$-\n\r\v\u2028ab ")) | st.text(), min_size=1))
def test_markdown_rows_keep_their_cells(cells: list[str]) -> None:
    row = "| " + " | ".join(map(markdown, cells)) + " |"
    assert len(row.splitlines()) == 1
    # Read as GitHub reads it: cells end at a bar without a backslash before it, an escape being two characters.
    found, cell, position = [], "", 1
    while position < len(row):
        step = 2 if row[position] == "\\" else 1
        if row[position] == "|":
            found.append(cell)
            cell = ""
        else:
            cell += row[position : position + step]
        position += step
    assert len(found) == len(cells)
    for safe in map(markdown, cells):
        assert not re.search(r"<(?!br>)|(?<![r])>", safe)


def test_markdown_by_hand(tmp_path: Path) -> None:
    assert markdown("a|b\nc\\d*e* <script> & [x](y)") == r"a\|b<br>c\\d\*e\* &lt;script&gt; &amp; \[x\](y)"
    text = as_markdown(two_models(tmp_path))
    assert r"| P&amp;T\_1\|x | one | 50.0 \[" in text
    assert r"RL<br>\{50%\}" in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(widths) == {11, 10, 4}


# -------------------------------------------------------------------------------------------------------- task


GENERATION = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 3}


def measured(path: Path, label: str = "R&D: é\n- x", **settings: Any) -> Path:
    everything = {
        "model": "some/model",
        "samples": 25,
        "max_new_tokens": 20,
        "generation": GENERATION,
        "chat": {"template": "auto", "system": None},
        **settings,
    }
    run = Run.start(path, kind="measure", label=label, settings=everything)
    history = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "So {{x}}?"))
    run.append("prompts", [Prompt("a", (Message("user", "They are"),), "t", 0.75, True), Prompt("b", history, "t")])
    run.update(status="finished", samples=25, toxic_by="starter")
    return path


def test_a_task_for_lm_eval(tmp_path: Path) -> None:
    limits = export_task([measured(tmp_path / "run")], tmp_path / "task.yaml")
    text = (tmp_path / "task.yaml").read_text()
    task = yaml.safe_load(text)
    # The fields that a task must have to generate, and the settings of the run by lm-eval's names.
    assert re.fullmatch(r"[a-z0-9_]+", task["task"])
    assert (task["output_type"], task["repeats"], task["num_fewshot"]) == ("generate_until", 25, 0)
    assert task["generation_kwargs"] == {
        "until": [],
        "max_gen_toks": 20,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "no_repeat_ngram_size": 3,
    }
    assert task["dataset_path"] == "json"
    split = task["test_split"]
    data = tmp_path / task["dataset_kwargs"]["data_files"][split]
    documents = [json.loads(line) for line in data.read_text().splitlines()]
    assert [(d["prompt_id"], d["prompt"]["text"], d["prompt"]["toxicity"]) for d in documents] == [
        ("a", "They are", 0.75), ("b", "So {{x}}?", None),
    ]  # fmt: skip
    import jinja2

    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(task["doc_to_text"])
    assert [template.render(**document) for document in documents] == ["They are", "So {{x}}?"]
    assert jinja2.Environment().from_string(task["doc_to_target"]).render(**documents[0]) == ""
    (metric,) = task["metric_list"]
    assert metric["metric"] == "bypass"
    # What can't be said is said in comments, and a label can't end one.
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("1 of 2 prompts have some" in line for line in comments)
    assert any("no_repeat_ngram_size" in line for line in comments)
    assert "run R&D: é - x, for lm-evaluation-harness" in comments[0]
    assert any("earlier turns" in limit for limit in limits)


def test_what_lm_eval_logs_of_it_is_held_against_the_run(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", "PT", {"s": [[0.1], [0.9]]}, toxicity=[0.9, 0.2], toxic_by="starter")
    export_task([run], tmp_path / "task.yml")
    task = yaml.safe_load((tmp_path / "task.yml").read_text())
    documents = [json.loads(line) for line in (tmp_path / task["dataset_kwargs"]["data_files"]["test"]).open()]
    with open(tmp_path / "samples.jsonl", "w") as file:
        for number, doc in enumerate(documents):
            sample = {"doc_id": number, "doc": doc, "arguments": {}, "resps": [["ok"]], "filtered_resps": ["ok"]}
            file.write(json.dumps({**sample, "filter": "none", "metrics": ["toxicity"], "toxicity": 0.2}) + "\n")
    mapping = {"scores.s": "toxicity"}
    import_table(tmp_path / "samples.jsonl", tmp_path / "LM", label="LM", mapping=mapping)
    with pytest.raises(RunError, match=r"'toxic' in .* and 'toxicity'"):
        compared([run, tmp_path / "LM"])  # the judges differ; prompts, ids and the rule of toxicity do not
    assert Run.open(tmp_path / "LM").meta["toxic_by"] == "starter"


def test_greedy_imports_and_other_prompts(tmp_path: Path) -> None:
    greedy = measured(tmp_path / "g", generation={**GENERATION, "temperature": 0.0, "no_repeat_ngram_size": 0})
    export_task([greedy], tmp_path / "g.yaml")
    kwargs = yaml.safe_load((tmp_path / "g.yaml").read_text())["generation_kwargs"]
    assert kwargs == {"until": [], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
    table = build_run(tmp_path / "i", "T", {"s": [[0.5]]}, kind="import")
    limits = export_task([table], tmp_path / "i.yaml")
    assert any("the run doesn't say how its answers were drawn" in limit for limit in limits)
    assert yaml.safe_load((tmp_path / "i.yaml").read_text())["generation_kwargs"] == {"until": []}
    with pytest.raises(RunError, match="prompts_differ"):
        export_task([greedy, table], tmp_path / "x.yaml")
    system = measured(tmp_path / "s", model="alias", load="4bit", chat={"template": "my.jinja", "system": "Be\nkind."})
    limits = export_task([system, greedy], tmp_path / "s.yaml")
    for part in ('--system_instruction "Be\\nkind."', "my.jinja", "the model alias", "4bit", "the other 1 runs'"):
        assert any(part in limit for limit in limits), part
