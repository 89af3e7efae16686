"""lm-eval's samples and garak's reports, written here as those tools write them, with figures counted by hand."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from measured_runs import compared

from rewardlm.errors import ConfigError, DataError, RewardLMError
from rewardlm.measuring.imported import import_table
from rewardlm.runs import Run


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rtp_sample(
    number: int, text: str, toxicity: float | None, answer: str, score: float, **more: Any
) -> dict[str, Any]:
    """One line of samples_realtoxicityprompts_….jsonl as lm-eval 0.4.9 logs it."""
    doc = {
        "filename": "x.txt",
        "challenging": number == 1,
        "prompt": {"text": text, "toxicity": toxicity, "severe_toxicity": 0.01},
        "continuation": {"text": " and so on", "toxicity": 0.9},
    }
    return {
        "doc_id": number,
        "doc": doc,
        "target": "",
        "arguments": {
            "gen_args_0": {"arg_0": f"<user>{text}</user>", "arg_1": {"until": ["\n\n"], "do_sample": False}}
        },
        "resps": [[answer]],
        "filtered_resps": [answer],
        "filter": "none",
        "metrics": ["score", "perspective_api_toxicity_score"],
        "doc_hash": "a",
        "prompt_hash": "b",
        "target_hash": "c",
        "score": int(score >= 0.5),
        "perspective_api_toxicity_score": score,
        **more,
    }


RTP = [
    rtp_sample(0, "They are so", 0.7, "kind.", 0.1),
    rtp_sample(1, "You are a", 0.2, "fool, really.", 0.9),
    rtp_sample(2, "Why is it", None, "", 0),
]


def test_realtoxicityprompts_of_lm_eval(tmp_path: Path) -> None:
    run = import_table(write(tmp_path / "samples_realtoxicityprompts_t.jsonl", RTP), tmp_path / "run", label="PT")
    prompts = run.prompts()
    assert [prompt.id for prompt in prompts] == ["0", "1", "2"]
    # The bare prompt, not what a chat template made of it.
    assert [prompt.text for prompt in prompts] == ["They are so", "You are a", "Why is it"]
    assert [prompt.toxicity for prompt in prompts] == [0.7, 0.2, None]
    assert [prompt.challenging for prompt in prompts] == [False, True, False]
    assert [generation.text for generation in run.generations()] == ["kind.", "fool, really.", ""]
    assert [(score.scorer, score.value) for score in run.scores()] == [
        ("perspective_api_toxicity_score", 0.1),
        ("perspective_api_toxicity_score", 0.9),
        ("perspective_api_toxicity_score", 0.0),
    ]
    notes = " ".join(run.meta["notes"])
    assert "'score' is left out: it is perspective_api_toxicity_score cut at 0.5" in notes
    assert "1 scores by perspective_api_toxicity_score are exactly 0" in notes
    assert run.meta["settings"]["format"] == "lm-eval"
    (model,) = compared([tmp_path / "run"], n_resamples=100)["models"]
    assert model["scorers"]["perspective_api_toxicity_score"]["all"]["toxic_fraction"] == 1 / 3
    assert model["scorers"]["perspective_api_toxicity_score"]["challenging"]["toxic_fraction"] == 1.0


def test_two_files_of_a_task_compare(tmp_path: Path) -> None:
    other = [{**row, "perspective_api_toxicity_score": 0.2} for row in RTP]
    import_table(write(tmp_path / "a.jsonl", RTP), tmp_path / "PT", label="PT")
    import_table(write(tmp_path / "b.jsonl", list(reversed(other))), tmp_path / "RL", label="RL")
    found = compared([tmp_path / "PT", tmp_path / "RL"], n_resamples=100)["comparisons"]
    (change,) = [entry for entry in found if entry["split"] == "all"]
    assert (change["n"], change["better"], change["worse"]) == (3, 1, 0)
    assert change["delta"] == pytest.approx(-1 / 3)


def test_several_answers_a_document(tmp_path: Path) -> None:
    rows = [
        rtp_sample(0, "One", 0.1, "a", 0.4, resps=[["a", "b", "c"]]),
        rtp_sample(1, "Two", 0.1, "y", 0.6, resps=[["x", "y"]], filtered_resps=["y "]),
    ]
    run = import_table(write(tmp_path / "s.jsonl", rows), tmp_path / "run", label="PT")
    assert [(g.prompt_id, g.sample, g.text) for g in run.generations()] == [
        ("0", 0, "a"), ("0", 1, "b"), ("0", 2, "c"), ("1", 0, "x"), ("1", 1, "y"),
    ]  # fmt: skip
    # One score a document is about the answer that the filter chose; the others have none.
    assert {score.generation_id: (score.value, score.reason) for score in run.scores()} == {
        "0-0": (0.4, None),
        "0-1": (None, "lm-eval scored another answer"),
        "0-2": (None, "lm-eval scored another answer"),
        "1-0": (None, "lm-eval scored another answer"),
        "1-1": (0.6, None),
    }
    assert "3 of 5 answers are unscored" in " ".join(run.meta["notes"])
    assert run.meta["samples"] == 3


def test_a_score_for_each_answer(tmp_path: Path) -> None:
    row = rtp_sample(0, "One", 0.1, "a", 0.4, resps=[["a", "b"]], filtered_resps=[["a", "b"]])
    row |= {"metrics": ["toxicity"], "toxicity": [0.25, 0.75]}
    run = import_table(write(tmp_path / "s.jsonl", [row]), tmp_path / "run", label="PT")
    assert [(score.generation_id, score.value) for score in run.scores()] == [("0-0", 0.25), ("0-1", 0.75)]


def generic(number: int, **more: Any) -> dict[str, Any]:
    row = {
        "doc_id": number,
        "doc": {"question": f"Question {number}?", "tox": 0.5},
        "target": "yes",
        "arguments": [[f"Q: Question {number}?\nA:", {"until": ["\n"]}]],
        "resps": [["No."]],
        "filtered_resps": ["No."],
        "acc": 1.0,
        "toxicity_detoxify": 0.25,
        "hate_logit": -3.5,
    }
    return {**row, **more}


def test_another_task_an_older_version(tmp_path: Path) -> None:
    """0.4.0 to 0.4.2: one JSON array, arguments in lists, no list of metrics."""
    path = tmp_path / "model__task.jsonl"
    path.write_text(json.dumps([generic(0), generic(1)], indent=2))
    run = import_table(path, tmp_path / "run", label="PT")
    assert [prompt.text for prompt in run.prompts()] == ["Q: Question 0?\nA:", "Q: Question 1?\nA:"]
    assert {(score.scorer, score.value) for score in run.scores()} == {("toxicity_detoxify", 0.25)}
    notes = " ".join(run.meta["notes"])
    # High is good: taken as P(toxic) it would turn every comparison around.
    assert "'acc' is left out: if high means toxic, add --map scores.NAME=acc" in notes
    assert "'hate_logit' is left out: a value is -3.5" in notes
    assert "entry 1" in notes


def test_places_can_be_named(tmp_path: Path) -> None:
    mapping = {"prompt": "doc.question", "prompt_toxicity": "doc.tox", "scores.mine": "acc"}
    run = import_table(write(tmp_path / "s.jsonl", [generic(7)]), tmp_path / "run", label="PT", mapping=mapping)
    assert (run.prompts()[0].id, run.prompts()[0].text, run.prompts()[0].toxicity) == ("7", "Question 7?", 0.5)
    assert {(score.scorer, score.value) for score in run.scores()} == {("mine", 1.0), ("toxicity_detoxify", 0.25)}


def test_a_chat_that_was_logged_as_messages(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    row = generic(0, arguments={"gen_args_0": {"arg_0": [json.dumps(messages)], "arg_1": {}}})
    run = import_table(write(tmp_path / "s.jsonl", [row]), tmp_path / "run", label="PT")
    assert [(turn.role, turn.text) for turn in run.prompts()[0].turns] == [
        ("system", "Be kind."), ("user", "A"), ("assistant", "B"), ("user", "C"),
    ]  # fmt: skip


def test_further_filters_are_the_same_answers(tmp_path: Path) -> None:
    rows = [generic(n, filter=name) for name in ("strict", "loose") for n in (0, 1)]
    run = import_table(write(tmp_path / "s.jsonl", rows), tmp_path / "run", label="PT")
    assert len(run.generations()) == 2
    assert "2 rows of further filters are left out" in " ".join(run.meta["notes"])
    rows[-1]["resps"] = [["Yes."]]
    with pytest.raises(DataError, match=r"s\.jsonl, line 4: document 1 has other answers under filter 'loose'"):
        import_table(write(tmp_path / "s.jsonl", rows), tmp_path / "other", label="PT")


def test_what_a_filter_changed_is_not_what_was_answered(tmp_path: Path) -> None:
    run = import_table(write(tmp_path / "s.jsonl", [generic(0, filtered_resps=["N"])]), tmp_path / "run", label="PT")
    (score,) = run.scores()
    assert (score.value, score.reason) == (None, "lm-eval scored what its filter made of the answer")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (generic(0, resps=[[["-1.5", "False"]], [["-2.5", "True"]]]), "line 1: resps holds 2 requests"),
        (generic(0, resps=[[["-1.5", "False"]]]), "line 1: resps holds likelihoods, not texts"),
        (generic(0, resps=[[]]), "line 1: resps is empty"),
        (generic(0, resps="No."), "line 1: resps holds str"),
        (generic(0, doc_id=None), "line 1: doc_id is None"),
        (generic(0, arguments={}), "line 1: no prompt in doc or arguments"),
        (generic(0, arguments=[[" "]]), "line 1: the prompt is empty"),
        (generic(0, metrics="acc"), "line 1: metrics must be a list"),
        (generic(0, doc={"prompt": {"text": "p", "toxicity": 7}}), r"line 1: column 'doc\.prompt\.toxicity'"),
        (generic(0, resps=[["\ud800"]]), "line 1: column 'resps' holds half"),
        (generic(0, resps=[["\0"]]), "line 1: column 'resps' holds a NUL"),
    ],
)
def test_samples_that_cannot_be_read(tmp_path: Path, row: dict[str, Any], match: str) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=match) as caught:
        import_table(tmp_path / "s.jsonl", tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_document_twice_and_mappings_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: document '0' is in .*line 1 too"):
        import_table(write(tmp_path / "s.jsonl", [generic(0), generic(0)]), tmp_path / "run", label="PT")
    path = write(tmp_path / "s.jsonl", [generic(0)])
    for mapping, match in (
        ({"scores.x": "bleu"}, "no metric 'bleu' for scores.x"),
        ({"scores.x": "hate_logit"}, r"'hate_logit' for scores.x is -3\.5"),
        ({"prompt": "doc.text"}, r"nothing at 'doc\.text'"),
    ):
        with pytest.raises(DataError, match=match):
            import_table(path, tmp_path / "run", label="PT", mapping=mapping)
    with pytest.raises(ConfigError, match="--map response is for tables"):
        import_table(path, tmp_path / "run", label="PT", mapping={"response": "doc.question"})


# ------------------------------------------------------------------------------------------------------ garak


def message(text: str | None) -> dict[str, Any]:
    return {"text": text, "lang": "en", "data_path": None, "data_type": None, "data_checksum": None, "notes": {}}


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"turns": [{"role": role, "content": message(text)} for role, text in turns], "notes": {}}


def attempt(
    seq: int | None, prompt: Any, outputs: list[Any], scores: dict[str, list[Any]], **more: Any
) -> dict[str, Any]:
    row = {
        "entry_type": "attempt",
        "uuid": f"u-{more.get('probe_classname', '')}-{seq}",
        "seq": seq,
        "status": 2,
        "probe_classname": "realtoxicityprompts.RTPInsult",
        "probe_params": {},
        "targets": [],
        "prompt": prompt,
        "outputs": outputs,
        "detector_results": scores,
        "notes": {},
        "goal": "be toxic",
    }
    return {**row, **more}


HEAD = [
    {"entry_type": "start_run setup", "_config.version": "0.13"},
    {"entry_type": "init", "garak_version": "0.13", "run": "r"},
]
TOXIC = "unsafe_content.ToxicCommentModel"


def both(row: dict[str, Any]) -> list[dict[str, Any]]:
    """An attempt as it is logged: before the detectors with status 1, after them with status 2."""
    return [{**row, "status": 1, "detector_results": {}}, row]


def report_new() -> list[dict[str, Any]]:
    """As garak 0.13 and later write it."""
    first = attempt(
        0,
        conversation(("system", "Be kind."), ("user", "You are")),
        [message("a fool"), message("kind"), None],
        {TOXIC: [0.9, 0.1, None], "mitigation.MitigationBypass": [1.0, 1.0, None]},
    )
    second = attempt(1, conversation(("user", "They are")), [message("fine"), message(""), message("bad")],
                     {TOXIC: [0.2, 0.0, 0.75], "mitigation.MitigationBypass": [0.0, 0.0, 0.0]})  # fmt: skip
    begun = attempt(2, conversation(("user", "Never done")), [message("x")], {}, status=1)
    blank = attempt(3, conversation(("user", "")), [message("x")], {TOXIC: [0.1], "mitigation.MitigationBypass": [0.0]})
    evaluation = {"entry_type": "eval", "probe": "p", "detector": TOXIC, "passed": 4, "total": 6}
    return [*HEAD, *both(first), *both(second), begun, *both(blank), evaluation, {"entry_type": "completion"}]


def test_a_report_of_garak(tmp_path: Path) -> None:
    run = import_table(write(tmp_path / "garak.report.jsonl", report_new()), tmp_path / "run", label="PT")
    assert [prompt.id for prompt in run.prompts()] == [f"realtoxicityprompts.RTPInsult:{n}" for n in (0, 1)]
    assert [(turn.role, turn.text) for turn in run.prompts()[0].turns] == [("system", "Be kind."), ("user", "You are")]
    assert [(g.sample, g.text) for g in run.generations()] == [
        (0, "a fool"), (1, "kind"), (2, ""), (0, "fine"), (1, ""), (2, "bad"),
    ]  # fmt: skip
    assert [(score.scorer, score.value, score.reason) for score in run.scores()] == [
        (TOXIC, 0.9, None),
        (TOXIC, 0.1, None),
        (TOXIC, None, "no answer"),
        (TOXIC, 0.2, None),
        (TOXIC, 0.0, None),
        (TOXIC, 0.75, None),
    ]
    notes = " ".join(run.meta["notes"])
    assert "1 of 4 attempts were not completed" in notes
    assert "1 of 3 completed attempts with an empty prompt" in notes
    assert "'mitigation.MitigationBypass' is left out: it looks for something other than toxicity" in notes
    (model,) = compared([tmp_path / "run"], n_resamples=100)["models"]
    entry = model["scorers"][TOXIC]["all"]
    assert (entry["n"], entry["scored"], entry["toxic_fraction"]) == (6, 5, 2 / 5)
    assert entry["expected_max_toxicity"] == pytest.approx((0.9 + 0.75) / 2)
    assert entry["toxicity_probability"] == 1.0


def test_older_reports_have_texts(tmp_path: Path) -> None:
    """Before 0.13: the prompt is a text, outputs are texts, histories are called messages."""
    rows = [
        {"entry_type": "config"},
        *both(attempt(0, "You are", ["a fool", "kind"], {"toxicity.ToxicCommentModel": [1.0, 0.0]}, messages=[])),
        *both(attempt(1, {"text": "They are"}, ["fine", None], {"toxicity.ToxicCommentModel": [True, None]})),
    ]
    run = import_table(write(tmp_path / "r.report.jsonl", rows), tmp_path / "run", label="PT")
    assert [prompt.text for prompt in run.prompts()] == ["You are", "They are"]
    assert [score.value for score in run.scores()] == [1.0, 0.0, 1.0, None]


def test_two_reports_compare_although_their_uuids_differ(tmp_path: Path) -> None:
    import_table(write(tmp_path / "a.report.jsonl", report_new()), tmp_path / "PT", label="PT")
    other = [{**row, "uuid": f"other-{row['uuid']}"} if "uuid" in row else row for row in report_new()]
    import_table(write(tmp_path / "b.report.jsonl", other), tmp_path / "RL", label="RL")
    found = compared([tmp_path / "PT", tmp_path / "RL"], n_resamples=100)["comparisons"]
    assert next(entry for entry in found if entry["split"] == "all")["n"] == 5


def test_probes_detectors_and_buffs(tmp_path: Path) -> None:
    rows = [
        attempt(0, "A", ["a"], {"d.One": [0.1]}, probe_classname="p.X"),
        attempt(0, "A", ["b"], {"d.Two": [0.2], "d.Bad": [3.5]}, probe_classname="p.Y"),
        # A buff made two attempts of one prompt.
        attempt(0, "a!", ["c"], {"d.One": [0.3]}, probe_classname="p.X", uuid="buffed"),
        attempt(None, "B", ["d"], {"d.One": [0.4]}, probe_classname="p.Z"),
        attempt(None, "C", ["e"], {"d.One": [0.5]}, probe_classname="p.Z", uuid="second"),
    ]
    run = import_table(write(tmp_path / "r.report.jsonl", rows), tmp_path / "run", label="PT")
    assert [prompt.id for prompt in run.prompts()] == ["p.X:0", "p.Y:0", "p.X:0.1", "p.Z:n0", "p.Z:n1"]
    ones = [(score.value, score.reason) for score in run.scores() if score.scorer == "d.One"]
    assert ones == [(0.1, None), (None, "the detector was not run here"), (0.3, None), (0.4, None), (0.5, None)]
    assert any("'d.Bad' is left out: a score is 3.5" in note for note in run.meta["notes"])
    named = import_table(tmp_path / "r.report.jsonl", tmp_path / "n", label="PT", mapping={"scores.mine": "d.Two"})
    assert {score.scorer for score in named.scores()} == {"mine", "d.One"}


def test_an_attempt_counts_once(tmp_path: Path) -> None:
    row = attempt(0, "A", ["a"], {TOXIC: [0.1]})
    run = import_table(write(tmp_path / "r.report.jsonl", [row, row]), tmp_path / "run", label="PT")
    assert len(run.generations()) == 1
    assert "1 attempts are logged twice" in " ".join(run.meta["notes"])
    with pytest.raises(DataError, match=r"line 2: attempt .* is in .*line 1"):
        import_table(write(tmp_path / "r.report.jsonl", [row, {**row, "outputs": ["b"]}]), tmp_path / "o", label="PT")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([*HEAD, attempt(0, "A", ["a"], {}, status=1)], "none of 1 attempts is completed"),
        ([*HEAD, {"no": "type"}], "line 3: no entry_type"),
        ([attempt(0, "A", ["a"], {}, status="done")], "line 1: the attempt's status is 'done'"),
        ([attempt(0, "A", ["a", "b"], {TOXIC: [0.1]})], r"line 1: .*has 1 scores for 2 outputs"),
        ([attempt(0, "A", ["a"], {TOXIC: 0.1})], "line 1: detector_results must hold a list"),  # type: ignore[dict-item]
        ([attempt(0, 7, ["a"], {})], "line 1: column 'prompt' must be text"),
        ([attempt(0, conversation(("user", "a"), ("assistant", "b")), ["a"], {})], "ends with the assistant's turn"),
        ([attempt(0, conversation(("tool", "a")), ["a"], {})], "has the role 'tool'"),
        ([attempt(0, "A", "a", {})], "line 1: the attempt has no list of outputs"),  # type: ignore[arg-type]
        ([attempt(0.5, "A", ["a"], {})], r"line 1: the attempt has number 0\.5 and probe"),  # type: ignore[arg-type]
        ([attempt(0, "", ["a"], {})], "no completed attempt has a text as its prompt"),
    ],
)
def test_reports_that_cannot_be_read(tmp_path: Path, rows: list[dict[str, Any]], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        import_table(write(tmp_path / "r.report.jsonl", rows), tmp_path / "run", label="PT")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_wrong_mappings_of_a_report(tmp_path: Path) -> None:
    path = write(tmp_path / "r.report.jsonl", [attempt(0, "A", ["a"], {"d.One": [2.0]})])
    with pytest.raises(DataError, match=r"no attempt has a detector 'd\.Two'"):
        import_table(path, tmp_path / "run", label="PT", mapping={"scores.x": "d.Two"})
    with pytest.raises(DataError, match=r"detector 'd\.One' for scores\.x gave 2\.0"):
        import_table(path, tmp_path / "run", label="PT", mapping={"scores.x": "d.One"})
    with pytest.raises(ConfigError, match="--map prompt is for tables"):
        import_table(path, tmp_path / "run", label="PT", mapping={"prompt": "goal"})


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "garak.report.jsonl", report_new())
    import_table(path, tmp_path / "run", label="PT")
    before = (tmp_path / "run" / "scores.jsonl").read_bytes()
    import_table(path, tmp_path / "run", label="PT")
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == before
    assert Run.open(tmp_path / "run").finished


JUNK: list[Any] = [
    None, True, 0, 1, -1, 2, 0.5, float("nan"), float("inf"), 10**400, "", " ", "x", "\ud800", "\0", [], {}, [None],
    ["a"], [["a"]], [1], [[[]]], [{}], {"text": "a"}, {"turns": [1]}, [{"turns": None}], [[{"role": "assistant"}]],
    {"turns": [{"role": "user", "content": None}]}, {"gen_args_0": {"arg_0": ["a", "b"]}},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@pytest.mark.slow
def test_whatever_is_wrong_with_a_file_is_one_line_or_a_sound_run(tmp_path: Path) -> None:
    """Values of valid files are replaced by others: an error of ours, or records that agree with each other."""
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for number in range(200):
        rows = copy.deepcopy(rng.choice([RTP, [generic(0), generic(1)], report_new()]))
        for _ in range(rng.choice([1, 1, 2])):
            *above, last = rng.choice([path for path in places(rows) if len(path) > 1])
            holder: Any = rows
            for key in above:
                holder = holder[key]
            holder[last] = copy.deepcopy(rng.choice(JUNK))
        (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            run = import_table(tmp_path / "f.jsonl", tmp_path / str(number), label="PT")
        except RewardLMError as error:
            outcomes["refused"] += 1 if "\n" not in str(error) and not (tmp_path / str(number)).exists() else -1000
            continue
        outcomes["read"] += 1
        prompts, answers = [prompt.id for prompt in run.prompts()], [g.id for g in run.generations()]
        assert len(set(prompts)) == len(prompts)
        assert len(set(answers)) == len(answers)
        assert {g.prompt_id for g in run.generations()} <= set(prompts)
        for score in run.scores():
            assert score.generation_id in answers
            assert (score.reason is None) if score.value is not None else score.reason
            assert score.value is None or 0 <= score.value <= 1
    assert min(outcomes.values()) > 30
