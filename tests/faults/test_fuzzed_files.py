"""Files of others that were changed: by hand, one test for each kind of mistake that ``benchmarks/fuzz.py`` found, and
at random, some hundred of its cases.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from foreign import READERS, Reader
from fuzz import Case, one_case

from rewardlm.config import FinetuneSettings, build
from rewardlm.data.files import read_csv, read_parquet
from rewardlm.data.utility import load_utility
from rewardlm.errors import ConfigError, DataError, ModelError, RewardLMError, RunError, ScorerError
from rewardlm.judges.results import read_results
from rewardlm.judges.texts import load_labelled
from rewardlm.labelling.folder import LabelFolder
from rewardlm.measuring.imported import import_table
from rewardlm.reporting.watch import training_view
from rewardlm.runs import Run
from rewardlm.scoring.lineage import Lineage, members
from rewardlm.scoring.record import read_record, shipped_folder
from rewardlm.steering.record import read_record as read_steering
from rewardlm.types import Generation, Message, Prompt

CASES = 24
LIGHT = [reader for reader in READERS if not reader.heavy]


@pytest.mark.slow
@pytest.mark.parametrize("reader", LIGHT, ids=lambda reader: reader.name)
def test_what_was_changed_at_random_is_read_or_refused_in_one_line(reader: Reader, tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    reader.make(seeds, tmp_path)
    cases = [one_case(reader, seeds, tmp_path / "work", 7, number) for number in range(CASES)]
    assert len({case.done for case in cases}) > CASES // 2, "these are no different cases"
    assert not [case for case in cases if case.outcome == "find"]


def test_the_fuzz_sees_what_is_no_answer(tmp_path: Path) -> None:
    """Its oracle: an error of another class, a message of two lines, and a step that hangs are finds."""

    def outcome(step: Callable[[Path], object]) -> str:
        reader = Reader("x", lambda folder, _: (folder / "a.txt").write_text("a"), ("*",), (step,))  # type: ignore[arg-type, return-value]
        (tmp_path / "seeds").mkdir(exist_ok=True)
        reader.make(tmp_path / "seeds", tmp_path)
        case: Case = one_case(reader, tmp_path / "seeds", tmp_path / "work", 0, 0)
        return case.outcome

    def raising(error: Exception) -> Callable[[Path], object]:
        def step(_: Path) -> None:
            raise error

        return step

    assert outcome(raising(DataError("a.txt, line 1: no number"))) == "refused"
    assert outcome(raising(KeyError("a"))) == "find"
    assert outcome(raising(DataError("x " * 9999))) == "find"
    assert outcome(lambda folder: (folder / "a.txt").exists()) == "accepted"


# ------------------------------------------------------------------------------------------------------ tables, texts


def test_a_carriage_return_in_the_header_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"id,te\rxt\n1,a\n")
    with pytest.raises(DataError, match=r"x\.csv, line 1: a carriage return alone; expected cells separated by commas"):
        list(read_csv(path, "texts"))


def test_line_ends_in_quoted_cells_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'text,b\r\n"one\r\ntwo\nthree",x\r\n')
    assert [row.values for row in read_csv(path, "texts")] == [{"text": "one\r\ntwo\nthree", "b": "x"}]


def test_a_first_cell_that_is_longer_than_the_module_allows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("x" * 200_000 + ",b\n1,2\n")
    assert [list(row.values.values()) for row in read_csv(path, "texts")] == [["1", "2"]]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pyarrow.array([b"\xff"]).view(pyarrow.string()), "string"),
        (pyarrow.array([2**62], pyarrow.timestamp("us")), "timestamp"),
        (pyarrow.array([2**62], pyarrow.duration("s")), "duration"),
    ],
    ids=["no UTF-8", "dates after the year 9999", "durations"],
)
def test_columns_of_parquet_that_python_cannot_hold(tmp_path: Path, column: pyarrow.Array, kind: str) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "toxicity": column}), path)
    with pytest.raises(DataError, match=rf"x\.parquet: column 'toxicity' is of the type {kind}.* can't be read"):
        list(read_parquet(path, "prompts"))
    with pytest.raises(DataError, match=r"x\.parquet: column 'toxicity'"):
        import_table(path, tmp_path / "run", label="PT")


def test_two_columns_of_parquet_with_one_name_and_a_text_with_nul(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"]), path)
    with pytest.raises(DataError, match=r"x\.parquet: two columns are called 'prompt'"):
        list(read_parquet(path, "prompts"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b\0"]}), path)
    with pytest.raises(DataError, match=r"x\.parquet, row 2: column 'prompt' holds a NUL character"):
        list(read_parquet(path, "prompts"))


def test_a_later_row_without_the_text_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "toxicity": 1}\n{"toxicity": 0}\n')
    assert len(load_labelled(str(path))[0].texts) == 1
    path.write_text('{"prompt": {"text": "a"}, "continuation": {}}\n{"continuation": {}}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: no 'prompt', only 'continuation'"):
        load_labelled(str(path))


def test_a_number_of_votes_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("count,hate_speech,offensive_language,class,tweet\n3,many,0,2,hello\n")
    with pytest.raises(DataError, match=r"x\.csv, line 2: hate_speech is 'many'; expected a number of annotators"):
        load_labelled(str(path))


def test_articles_that_are_blank(tmp_path: Path) -> None:
    from rewardlm.config import UtilitySettings

    path = tmp_path / "wiki.tokens"
    path.write_text(" \n \n")
    with pytest.raises(DataError, match=r"wiki\.tokens is blank; expected articles"):
        load_utility(UtilitySettings(tasks=["wikitext"], wikitext=path))


# --------------------------------------------------------------------------------------------------- other tools' files


def imported(tmp_path: Path, name: str, *lines: Any) -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as found:
        import_table(path, tmp_path / "run", label="PT")
    message = str(found.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    assert not (tmp_path / "run").exists()
    return message


def test_a_score_of_five_thousand_digits(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompts,responses,scores.a\nq,a," + "9" * 5000 + "\n")
    with pytest.raises(DataError, match=r"x\.csv, line 2: column 'scores\.a' must be a score in \[0, 1\]") as found:
        import_table(tmp_path / "x.csv", tmp_path / "run", label="PT")
    assert len(str(found.value)) < 400


def attempt(**more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": {"text": "Hello"}}]
    return {
        "entry_type": "attempt", "uuid": "u", "seq": 0, "status": 2, "probe_classname": "p.P",
        "prompt": {"turns": turns},
        "outputs": [{"text": "a"}], "detector_results": {"unsafe_content.X": [0.5]}, "conversations": [], **more,
    }  # fmt: skip


@pytest.mark.parametrize("conversations", [float("inf"), [{"turns": float("inf")}], "x", [3], [{"turns": ["x"]}]])
def test_conversations_of_garak_that_are_none_count_as_none(tmp_path: Path, conversations: Any) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(attempt(conversations=conversations)) + "\n")
    assert [one.text for one in import_table(path, tmp_path / "run", label="PT").generations()] == ["a"]


def test_messages_of_garak_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    histories = [[{"role": "assistant", "content": "a"}], ["x", {"role": "assistant"}]]
    path.write_text(json.dumps(attempt(outputs=None, messages=histories, detector_results={})) + "\n")
    assert [one.text for one in import_table(path, tmp_path / "run", label="PT").generations()] == ["a", ""]


def test_an_export_that_lacks_a_field_in_one_row(tmp_path: Path) -> None:
    row = {
        "run": "PT", "prompt_id": "p", "prompt": "q", "antecedents": "[]", "prompt_toxicity": None,
        "toxic_by": "dataset",
        "challenging": False, "sample": 0, "response": "a", "n_tokens": 3, "finish": "stop", "seed": 0,
    }  # fmt: skip
    without = {name: value for name, value in row.items() if name != "seed"} | {"sample": 1}
    assert "line 2: column 'seed' must be a whole number, got None" in imported(tmp_path, "x.jsonl", row, without)
    huge = {**row, "n_tokens": 10**30}
    assert "line 1: column 'n_tokens' must be a whole number" in imported(tmp_path, "x.jsonl", huge)


@pytest.mark.parametrize("messages", [3, "x", [{"role": "user", "content": "q"}, [1], {"role": "assistant"}]])
def test_messages_of_inspect_that_are_none(tmp_path: Path, messages: Any) -> None:
    sample = {
        "id": "s", "epoch": 1, "input": "q", "messages": messages,
        "output": {"choices": [{"message": {"role": "assistant", "content": "a"}}]},
    }  # fmt: skip
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"status": "success", "eval": {}, "samples": [sample]}))
    run = import_table(path, tmp_path / "run", label="PT")
    assert [(one.prompts()[0].text, one.generations()[0].text) for one in [run]] == [("q", "a")]


def test_names_with_line_ends_are_told_on_one_line(tmp_path: Path) -> None:
    rows = [
        {"testIdx": 0, "promptIdx": n, "provider": name, "prompt": "q", "response": {"output": "a"}}
        for n, name in enumerate(("one", "a\nb\u2028c", *(f"model {n}" for n in range(99))))
    ]
    message = imported(tmp_path, "x.jsonl", *rows)
    assert "has the providers one, a b c, model 0" in message
    assert "and 81 more: --label must be one of them" in message


# ------------------------------------------------------------------------------------------------------------- runs


def run_of(folder: Path, kind: str = "measure", **meta: Any) -> Path:
    Run.start(folder / "run", kind=kind, label="PT", settings={}).update(status="finished")
    path = folder / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **meta}))
    return folder / "run"


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"kind": ["measure"]}, "kind is ['measure'], expected a text"),
        ({"label": "\ud800"}, "label is '\\ud800', which holds half a character"),
        ({"scorers": [{"labels": []}]}, "scorers.0.name is missing"),
        ({"scorers": {}}, "scorers is {}, expected a list"),
        ({"unanswered": {"refused": "1"}}, "unanswered.refused is '1', expected a whole number"),
        ({"utility": {"window": "128"}}, "utility.window is '128', expected a whole number"),
        (
            {"utility": {"tasks": {"piqa": {"items": 1e999}}}},
            "utility.tasks.piqa.items is inf, expected a number",
        ),
        ({"treatment": {"method": "system"}}, "treatment.strength is missing"),
        (
            {"pair_judge": {"name": "p", "revision": "r", "error": {"counts": {"positives": "mean(a,b)"}}}},
            "pair_judge.error.counts.positives is 'mean(a,b)', expected a number",
        ),
        ({"environment": "null"}, "environment is 'null', expected an object"),
        ({"prompts": {"n": True}}, "prompts.n is True, expected a whole number"),
        ({"status": "ended"}, "status is 'ended', expected 'running', 'finished' or 'stopped'"),
        ({"rewards": "lexical"}, "rewards is 'lexical', expected a list"),
        ({"unheard_of": [float("nan")]}, "unheard_of.0 is nan, expected a number"),
        ({"unheard_of": 10**40}, "unheard_of is a huge number, expected a number"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_an_entry_of_run_json(tmp_path: Path, meta: dict[str, Any], said: str) -> None:
    path = run_of(tmp_path, **meta)
    with pytest.raises(RunError) as found:
        Run.open(path)
    assert str(found.value).startswith(f"{path}/run.json: {said}; the file was changed by hand")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"": ["lexical"]}, "it is missing"), ({"reward": 3}, "it is 3, expected a list"),
     ({"reward": ["lexical", None]}, "1 is None, expected a text")],
)  # fmt: skip
def test_a_setting_that_a_page_shows_is_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    path = run_of(tmp_path, kind="rlaf", settings={"model": "tiny", **settings})
    with pytest.raises(RunError) as found:
        training_view(Run.open(path))
    assert str(found.value).startswith(f"{path}/run.json: settings.reward: {said}; the file was changed by hand")


def test_what_a_newer_version_may_note_is_kept(tmp_path: Path) -> None:
    path = run_of(tmp_path, utility={"window": None, "strength": None, "note": None, "new": [1]}, newer={"a": [{}]})
    run = Run.open(path)
    run.update(status="finished")
    kept = json.loads((path / "run.json").read_text())
    assert (kept["newer"], kept["utility"]["new"]) == ({"a": [{}]}, [1])


RECORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a number that is a list": ("quality", {"generation_id": "a", "perplexity": [1]},
        "perplexity is [1], expected a number"),
    "infinity": ("quality", {"generation_id": "a", "perplexity": float("inf")},
        "perplexity is inf, expected a number"),
    "a class without a number": ("quality", {"generation_id": "a", "classes": {"x": None}},
        "classes.x is None, expected a number"),
    "a word among numbers": (
        "utility", {"task": "piqa", "id": "a", "logprobs": [-1, "/"], "sizes": [1, 1], "answer": 0},
        "logprobs.1 is '/', expected a number",
    ),
    "a sample without an answer": ("samples", {"step": 1, "prompt": "a"}, "response is missing"),
    "a judge that is no judge": (
        "samples", {"step": 1, "prompt": "a", "response": "b", "by_judge": "inf"},
        "by_judge is 'inf', expected an object",
    ),
    "warnings that are a number": ("metrics", {"step": 1, "warnings": 0.5}, "warnings is 0.5, expected a list"),
    "an integer beyond 64 bits": ("metrics", {"step": 1, "entropy": -(10**40)},
        "entropy is a huge number, expected a number"),
    "flags that are no flags": (
        "prompts",
        {"id": "a", "turns": [{"role": "user", "text": "x"}], "source": "s", "toxicity": None, "challenging": [[]]},
        "challenging is [[]], expected true or false",
    ),
    "a role that there isn't": (
        "prompts", {"id": "a", "turns": [{"role": "tool", "text": "x"}], "source": "s", "toxicity": None},
        "turns is [{'role': 'tool', 'text': 'x'}], not a list of role and text",
    ),
    "tokens that are none": (
        "generations",
        {"id": "a", "prompt_id": "a", "model": "m", "sample": 0, "text": "", "n_tokens": 1, "finish": None, "seed": 0,
            "tokens": ["x"]},
        "tokens is ['x']",
    ),
    "an answer about a number": (
        "utility_answers",
        {
            "task": "groups", "id": "a", "prompt_id": "p", "prompt": "q", "about": {"template": 1}, "sample": 0,
            "text": "t", "n_tokens": 1, "finish": None, "seed": 0,
        },
        "about.template is 1, expected a text",
    ),
    "an author that is an object": ("drift", {"id": "a", "author": {}, "logprobs": []},
        "author is {}, expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_of_a_run(tmp_path: Path, case: str) -> None:
    name, record, said = RECORDS[case]
    path = run_of(tmp_path)
    (path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(RunError) as found:
        list(Run.open(path).read(name))
    assert str(found.value).startswith(f"{path}/{name}.jsonl, line 1: {said}; the file was changed by hand")


def test_the_table_of_a_run_whose_answer_is_to_a_strangers_prompt(tmp_path: Path) -> None:
    run = Run.open(run_of(tmp_path))
    run.append("prompts", [Prompt("p", (Message("user", "q"),), "s")])
    run.append("generations", [Generation("a", "nobody's", "m", 0, "t", 1, "stop", 0)])
    for ask in (run.to_pandas, run._repr_html_):
        with pytest.raises(
            RunError, match=r"generation 'a' answers prompt \"nobody's\", which isn't in its prompts.jsonl"
        ):
            ask()


@pytest.mark.parametrize(
    ("name", "judges"),
    [
        ("toxicity (v2)", {"toxicity (v2)"}),
        ("a, b", {"a, b"}),
        ("mean of (a,b)", {"mean of (a,b)"}),
        ("mean(a", {"mean(a"}),
        ("mean(a),b)", {"mean(a),b)"}),
        ("mean(a,max(b, c#hate)).toxicity", {"a", "b", "c"}),
        ("max(toxicity+hate,d)", {"starter", "d"}),
    ],
)
def test_a_judge_with_brackets_or_commas_in_its_name_is_one_judge(name: str, judges: set[str]) -> None:
    assert members(name) == judges


def test_figures_of_judges(tmp_path: Path) -> None:
    path = run_of(tmp_path, "judge-evaluation", confusion=[{"n": " "}])
    with pytest.raises(RunError, match=r"run/run\.json, confusion: 0\.n is ' ', expected a whole number"):
        read_results(Run.open(path))
    path = run_of(tmp_path / "two", "judge-evaluation")
    (path / "results.jsonl").write_text(json.dumps({"label": "toxicity"}) + "\n")
    with pytest.raises(RunError, match=r"run/results\.jsonl, line 1: \w+ is missing"):
        read_results(Run.open(path))


def test_an_interpretation_with_a_kind_of_change_that_there_is_not(tmp_path: Path) -> None:
    from rewardlm.reporting.interpretation import load

    path = run_of(tmp_path, "interpretation")
    (path / "interpretation.json").write_text(json.dumps({"unheard_of": 1}))
    with pytest.raises(RunError, match=r"run/interpretation\.json: [\w.]+ is .*: interpret again") as found:
        load(Run.open(path))
    assert len(str(found.value).splitlines()) == 1


def test_words_of_an_interpretation_stay_words_that_the_page_knows() -> None:
    from typing import get_args

    from rewardlm.interpreting.findings import Bucket, CausalKind
    from rewardlm.measuring.metrics import BUCKETS
    from rewardlm.reporting.mechanistic import _KINDS

    assert set(get_args(CausalKind)) == set(_KINDS)
    assert get_args(Bucket) == BUCKETS


def test_a_lineage_that_was_changed_by_hand() -> None:
    with pytest.raises(
        ScorerError, match=r"lineage that a run recorded of 'a' was changed by hand: family\.0\.judge is"
    ):
        Lineage.of_dict("a", {"known": True, "family": [{}], "encoders": [], "data": []})


# ------------------------------------------------------------------------------------------- folders of other kinds


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    run = Run.start(tmp_path / "labels", kind="labels", label="labels", settings={"question": "Toxic?"})
    run.append("classes", [{"label": "PT", "hash": "h", "classes": [0, 1], "groups": [0, 0]}])
    run.append("items", [{"id": "i", "run": 0, "answer": 1, "shared": True, "prompt": "q", "text": "a"}])
    run.append("labels", [{"item": "i", "labeller": "ann", "label": 1, "at": "now"}])
    assert LabelFolder.open(tmp_path / "labels").said() == {"ann": {"i": 1}}
    return tmp_path / "labels"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("classes", {"classes": [0, {}]}, r"classes\.jsonl, line 1: classes\.1 is \{\}, expected a whole number"),
        ("classes", {"classes": [0, 2**61]}, r"classes\.jsonl has a class or group for PT that is none"),
        ("classes", {"groups": [0]}, r"classes\.jsonl has a class or group for PT that is none"),
        ("labels", {"seconds": "true"}, r"labels\.jsonl, line 1: seconds is 'true', expected a number"),
        ("labels", {"label": 0.5}, r"labels\.jsonl: label is 0\.5, expected 1, 0"),
    ],
)
def test_a_folder_of_labels(labels: Path, name: str, change: dict[str, Any], said: str) -> None:
    file = labels / f"{name}.jsonl"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}) + "\n")
    with pytest.raises(RunError, match=said):
        _ = LabelFolder.open(labels).said()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "voices"}, "kind is 'voices', expected 'text' or 'pairs'"),
        ({"data": [0]}, "data.0 is 0, expected an object"),
        ({"distilled": {}}, "distilled is {}, expected a list"),
        ({"distilled": [{"label": "a", "revision": None}]}, "distilled.0.judge is missing"),
        ({"metrics": {"rtp": [{}]}}, "metrics: rtp is [{}], expected an object"),
        ({"limits": "none"}, "limits is 'none', expected a list"),
        (
            {"problem_type": "x" * 20_000},
            f"problem_type is '{'x' * 99}… expected multi_label_classification or single_label_classification",
        ),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_judge_json(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    shipped = shipped_folder("starter")
    assert shipped is not None
    file = tmp_path / "judge.json"
    shutil.copyfile(shipped / "judge.json", file)
    assert read_record(tmp_path) is not None
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ScorerError) as found:
        read_record(tmp_path)
    assert str(found.value) == f"{file}: {said}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": {}}, "run.label is missing"),
        ({"judges": []}, "judges is [], expected the judge that best-of-n asks"),
        ({"found": {"tried": "x"}}, "found.tried is 'x', expected a list"),
        ({"found": {"toxic_above": "x"}}, "found.toxic_above is 'x', expected a number"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_steer_json(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    record = {
        "method": "best-of-n", "strength": 2, "settings": {}, "judges": [{"name": "lexical", "labels": ["toxicity"]}],
        "model": {"model": "tiny", "model_source": "tiny", "hashes": {}},
    }  # fmt: skip
    file = tmp_path / "steer.json"
    file.write_text(json.dumps(record))
    assert read_steering(tmp_path).method == "best-of-n"
    file.write_text(json.dumps({**record, **change}))
    with pytest.raises(RunError) as found:
        read_steering(tmp_path)
    assert str(found.value) == f"{file} is damaged: {said}; fit it again"


@pytest.mark.parametrize(
    "manifest", ["[]", '{"a": 1}', "[" * 5000, '{"' + "x" * 5000 + '": "h"}', '{"a\\u0000": "h"}', "1" * 5000]
)
def test_the_manifest_of_a_checkpoint(tmp_path: Path, manifest: str) -> None:
    from rewardlm.errors import TrainingError
    from rewardlm.training.checkpoints import newest_usable

    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "manifest.json").write_text(manifest)
    with pytest.raises(TrainingError, match="step-000001"):
        newest_usable([tmp_path / "step-000001"], resume="exact", needed=())


@pytest.mark.slow
def test_an_adapter_whose_configuration_peft_stumbles_over(tmp_path: Path) -> None:
    from rewardlm.config import LoraSettings, ModelSettings
    from rewardlm.models.load import load_policy
    from rewardlm.models.lora import add_lora, load_adapter, save_adapter

    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=2), seed=0)
    save_adapter(policy.model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "alpha_pattern": "lora"}))
    with pytest.raises(ModelError, match="does not fit tiny: "):
        load_adapter(load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu")), tmp_path / "adapter")


def test_a_setting_with_an_endless_name(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"model: tiny\n? {'x' * 3000}\n: 1\n")
    with pytest.raises(ConfigError, match=r"x\.yaml, line 2: unknown setting 'x{90,}…': known: ") as found:
        build(FinetuneSettings, file=tmp_path / "x.yaml")
    assert len(str(found.value)) < 2500


def test_an_error_is_one_line_whatever_name_is_in_it() -> None:
    assert str(RewardLMError("a\nb\r\nc\u2028d")) == "a b c d"
    assert str(RewardLMError(f"/a/b: {'x' * 9999} is no number")) == f"/a/b: {'x' * 100}… is no number"
    many = RewardLMError.of([f"{letter * 9999}: unknown" for letter in "ab"], "{} settings are wrong")
    assert str(many) == f"2 settings are wrong: {'a' * 100}… unknown; {'b' * 100}… unknown"
