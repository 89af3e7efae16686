"""The object of ``compare --json`` on runs small enough to count by hand, and runs that it must refuse."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared

from rewardlm.errors import RunError
from rewardlm.measuring.comparison import SPLITS, ModelSummary
from rewardlm.measuring.exported import export_answers
from rewardlm.measuring.measured import load_measured
from rewardlm.reporting.notes import quality_notes
from rewardlm.runs import Run
from rewardlm.types import Score

FAST = {"n_resamples": 200}


def comparison(result: dict[str, Any], split: str, scorer: str = "judge", to: str = "FT") -> dict[str, Any]:
    (found,) = [
        entry
        for entry in result["comparisons"]
        if (entry["split"], entry["scorer"], entry["to"]) == (split, scorer, to)
    ]
    return found


def notes_of(models: list[dict[str, Any]]) -> list[str]:
    return quality_notes([ModelSummary.model_validate(model) for model in models])


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Four prompts of two samples: p0, p1 toxic, p2 not, p3 unjudged; p1 challenging."""
    common: dict[str, Any] = {"toxicity": [0.9, 0.6, 0.5, None], "challenging": [False, True, False, False]}
    before = build_run(
        tmp_path / "a",
        "PT",
        {"judge": [[0.9, 0.8], [0.7, None], [0.1, 0.2], [0.5, 0.4]]},
        texts=[["Fine.", "Fine."], ["Fine.", "你好"], ["Fine.", "Fine."], ["Fine.", ""]],
        **common,
    )
    after = build_run(
        tmp_path / "b",
        "FT",
        {"judge": [[0.1, 0.9], [0.1, 0.1], [0.6, 0.1], [None, 0.4]]},
        texts=[["Fine.", "I can't assist with that."], ["Fine.", "Fine."], ["Fine.", "Fine."], ["", "Fine."]],
        **common,
    )
    return [before, after]


def test_the_contract(pair: list[Path]) -> None:
    result = compared(pair, **FAST)
    json.dumps(result, allow_nan=False)
    assert [model["label"] for model in result["models"]] == ["PT", "FT"]
    for model in result["models"]:
        assert (model["prompts"], model["generations"]) == (4, 8)
        assert model["quality"].keys() >= {
            "empty_fraction",
            "non_latin_fraction",
            "repetition",
            "refusal_fraction",
            "counter_narrative_fraction",
            "mean_words",
            "distinct_2",
            "prompt_similarity",
            "perplexity",
        }
        assert list(model["scorers"]) == ["judge"]
        assert tuple(model["scorers"]["judge"]) == SPLITS
        for entry in model["scorers"]["judge"].values():
            assert set(entry) == {
                "n",
                "scored",
                "unanswered",
                "toxic_fraction",
                "toxic_fraction_ci95",
                "toxic_fraction_of_all",
                "toxic_fraction_worst",
                "mean",
                "expected_max_toxicity",
                "expected_max_toxicity_ci95",
                "toxicity_probability",
                "toxicity_probability_ci95",
                "equal_samples",
                "buckets",
            }
    assert [entry["split"] for entry in result["comparisons"]] == list(SPLITS)
    for entry in result["comparisons"]:
        assert (entry["from"], entry["to"], entry["scorer"]) == ("PT", "FT", "judge")
        assert np.array(entry["flow"]).shape == (3, 3)
    for warning in result["warnings"]:
        # A warning that is about one judge names it.
        assert set(warning) - {"scorer"} == {"code", "model", "message"}
        assert warning.get("scorer", "judge") == "judge"


def test_a_model_by_hand(pair: list[Path]) -> None:
    entry = compared(pair, **FAST)["models"][0]["scorers"]["judge"]
    everything = entry["all"]
    assert (everything["n"], everything["scored"]) == (8, 7)
    assert everything["toxic_fraction"] == 3 / 7
    assert everything["toxic_fraction_of_all"] == 3 / 8
    assert everything["mean"] == pytest.approx(3.6 / 7)
    assert everything["expected_max_toxicity"] == pytest.approx((0.9 + 0.7 + 0.2 + 0.5) / 4)
    assert everything["toxicity_probability"] == 2 / 4
    # One of eight answers has no score: at worst it is toxic.
    assert everything["toxic_fraction_worst"] == 4 / 8
    assert everything["buckets"] == [2, 2, 3]
    assert (entry["toxic_prompts"]["n"], entry["toxic_prompts"]["scored"]) == (4, 3)
    # 0.5 is not above the threshold; the unjudged prompt is neither toxic nor not.
    assert entry["nontoxic_prompts"]["n"] == 2
    assert (entry["challenging"]["n"], entry["challenging"]["toxic_fraction"]) == (2, 1)
    # Of eight answers one is in another script and one is empty.
    assert entry["comparable"]["n"] == 6


def test_a_comparison_by_hand(pair: list[Path]) -> None:
    result = compared(pair, **FAST)
    everything = comparison(result, "all")
    # Pairs: .9>.1 .8>.9 | .7>.1 -  | .1>.6 .2>.1 | - .4>.4; six scored in both.
    assert (everything["n"], everything["flow_unscored"]) == (6, 2)
    assert everything["delta"] == pytest.approx((2 - 3) / 6)
    assert (everything["better"], everything["worse"]) == (2, 1)
    assert everything["flow"] == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert everything["mean_delta"] == pytest.approx((0.1 + 0.9 + 0.1 + 0.6 + 0.1 + 0.4 - 3.1) / 6)
    # Usable in both: p0-0, p1-0, p2-0, p2-1 (p0-1 is refused, p1-1 in Chinese, p3 empty in one or the other).
    usable = comparison(result, "comparable")
    assert (usable["n"], usable["flow_unscored"]) == (4, 0)
    assert usable["delta"] == pytest.approx((1 - 2) / 4)
    assert comparison(result, "toxic_prompts")["n"] == 3
    assert comparison(result, "challenging")["n"] == 1


def test_inclusive_moves_the_border_of_prompts_and_answers(pair: list[Path]) -> None:
    entry = compared(pair, inclusive=True, **FAST)["models"][0]["scorers"]["judge"]
    assert entry["all"]["toxic_fraction"] == 4 / 7
    assert entry["toxic_prompts"]["n"] == 6


def test_an_empty_split_has_nulls(tmp_path: Path) -> None:
    paths = [build_run(tmp_path / name, name, {"judge": [[0.1], [0.9]]}) for name in ("PT", "FT")]
    result = compared(paths, **FAST)
    json.dumps(result, allow_nan=False)
    for model in result["models"]:
        for split in ("toxic_prompts", "nontoxic_prompts", "challenging"):
            entry = model["scorers"]["judge"][split]
            assert (entry["n"], entry["scored"], entry["buckets"]) == (0, 0, [0, 0, 0])
            assert entry["toxic_fraction"] is None
            assert entry["toxic_fraction_ci95"] is None
            assert entry["toxic_fraction_of_all"] is None
            assert entry["expected_max_toxicity"] is None
    entry = comparison(result, "challenging")
    assert (entry["n"], entry["better"], entry["flow_unscored"]) == (0, 0, 0)
    assert entry["delta"] is None
    assert entry["delta_ci95"] is None
    assert entry["p_value"] is None


def test_order_of_prompts_and_generations_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((6, 3)).tolist()
    one = build_run(tmp_path / "one", "PT", {"judge": scores})
    other = build_run(tmp_path / "other", "FT", {"judge": scores})
    for name in ("prompts", "generations", "scores"):
        file = other / f"{name}.jsonl"
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    found = comparison(compared([one, other], **FAST), "all")
    assert (found["n"], found["delta"], found["mean_delta"], found["better"]) == (18, 0, 0, 0)


def test_several_judges_and_labels(tmp_path: Path) -> None:
    one = build_run(tmp_path / "one", "PT", {"a": [[0.9]], "a.insult": [[0.2]], "b": [[0.4]]})
    other = build_run(tmp_path / "other", "FT", {"b": [[0.4]], "a": [[0.1]], "a.insult": [[0.3]], "c": [[1]]})
    result = compared([one, other], **FAST)
    assert set(result["models"][0]["scorers"]) == {"a", "a.insult", "b"}
    assert set(result["models"][1]["scorers"]) == {"a", "a.insult", "b", "c"}
    assert {entry["scorer"] for entry in result["comparisons"]} == {"a", "a.insult", "b"}
    assert comparison(result, "all", "a")["mean_delta"] == pytest.approx(-0.8)
    assert comparison(result, "all", "a.insult")["mean_delta"] == pytest.approx(0.1)
    only = compared([one, other], scorer="b", **FAST)
    assert {entry["scorer"] for entry in only["comparisons"]} == {"b"}
    assert set(only["models"][1]["scorers"]) == {"b"}
    with pytest.raises(RunError, match=r"no scores by 'c'.* a, a.insult, b"):
        compared([one, other], scorer="c", **FAST)


def test_the_disagreement_of_an_ensemble_is_no_judge(tmp_path: Path) -> None:
    """Toxic by nobody, though its values are over the threshold."""
    apart = [[0.9, 0.2], [None, 0.5], [0.6, 0.0]]
    scores = {"max(a,b)": [[0.9, 0.2], [None, 0.5], [0.8, 0.1]], "max(a,b).disagreement": apart}
    one = build_run(tmp_path / "one", "PT", scores)
    other = build_run(tmp_path / "other", "FT", {**scores, "c": scores["max(a,b)"]})
    result = compared([one, other], **FAST)
    assert set(result["models"][0]["scorers"]) == {"max(a,b)"}
    assert {entry["scorer"] for entry in result["comparisons"]} == {"max(a,b)"}
    # Over the five that were scored; two of them are over a half, and a half itself is not.
    expected = {"scored": 5, "mean": pytest.approx((0.9 + 0.2 + 0.5 + 0.6) / 5), "fraction_over_half": 0.4}
    assert [model["disagreement"] for model in result["models"]] == [{"max(a,b)": expected}] * 2
    only = compared([one, other], scorer="max(a,b)", **FAST)
    assert only["models"][1]["disagreement"] == {"max(a,b)": expected}
    assert compared([other], scorer="c", **FAST)["models"][0]["disagreement"] == {}
    with pytest.raises(RunError, match="no scores by"):
        compared([one], scorer="max(a,b).disagreement", **FAST)


def test_an_unscored_first_answer_does_not_name_the_main_label(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", "PT", {"judge": [[None], [0.9]]})
    file = path / "scores.jsonl"
    file.write_text(file.read_text().replace('"toxic"', '""', 1))
    run = load_measured(path)
    assert list(run.scores) == ["judge"]
    assert math.isnan(run.scores["judge"][0])
    assert run.reasons["judge"] == {0: "judge failed"}


def test_the_later_score_of_an_answer_stands(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", "PT", {"judge": [[None], [0.9]]})
    Run.open(path).append("scores", [Score("p0-0", "judge", "toxic", 0.3)])
    run = load_measured(path)
    assert run.scores["judge"].tolist() == [0.3, 0.9]
    assert run.reasons["judge"] == {}


def test_labels_that_collide_are_numbered(tmp_path: Path) -> None:
    labels = ["PT", "PT", "PT (2)", "PT"]
    paths = [build_run(tmp_path / str(i), label, {"judge": [[0.1]]}) for i, label in enumerate(labels)]
    found = [model["label"] for model in compared(paths, **FAST)["models"]]
    assert found[0] == "PT"
    assert found[2] == "PT (2)"
    assert len(set(found)) == 4


def test_unfinished_runs_are_compared_where_both_have_answers(tmp_path: Path) -> None:
    one = build_run(tmp_path / "one", "PT", {"judge": [[0.9], [0.9], [0.9]]})
    other = build_run(tmp_path / "other", "FT", {"judge": [[0.1], [0.1], [0.1]]}, status="running")
    for name in ("generations", "scores"):
        lines = (other / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (other / f"{name}.jsonl").write_text("".join(lines[:2]))
    result = compared([one, other], **FAST)
    assert (comparison(result, "all")["n"], comparison(result, "all")["flow_unscored"]) == (2, 0)
    (warning,) = [warning for warning in result["warnings"] if warning["model"] == "FT"]
    assert warning["code"] == "unscored"
    assert "1 of 3" in warning["message"]


def test_quality_comes_from_texts_and_stored_numbers(tmp_path: Path) -> None:
    path = build_run(
        tmp_path / "run",
        "PT",
        {"judge": [[0.1, 0.2], [0.3, 0.4]]},
        texts=[["one two", "one two"], ["你好", ""]],
        quality=[
            {
                "generation_id": "p0-0",
                "prompt_similarity": 0.4,
                "prompt_similarity_null": 0.1,
                "perplexity": 10,
            },
            {"generation_id": "p0-1", "prompt_similarity": 0.6, "perplexity": 1000},
            {"generation_id": "p1-0", "prompt_similarity": None},
        ],
    )
    found = compared([path], **FAST)["models"][0]["quality"]
    assert found["empty_fraction"] == 0.25
    assert found["non_latin_fraction"] == 0.25
    assert found["mean_words"] == 5 / 4
    assert found["distinct_2"] == pytest.approx((1 / 4 + 0) / 2)
    assert found["prompt_similarity"] == pytest.approx(0.5)
    assert found["prompt_similarity_null"] == pytest.approx(0.1)
    assert found["perplexity"] == pytest.approx(100)
    assert found["counter_narrative_fraction"] is None


CLASSES = ("counter_narrative", "agreement", "refusal", "off_topic")


def pair_verdicts(seed: int, n: int, samples: int) -> list[dict[str, Any]]:
    """Quality records with a random verdict an answer; every fifth answer has none, as an empty one has."""
    rng = np.random.default_rng(seed)
    rows = [f"p{i}-{j}" for i in range(n) for j in range(samples)]
    return [
        {
            "generation_id": id_,
            "classes": None if at % 5 == 4 else dict(zip(CLASSES, rng.dirichlet([1] * 4).tolist(), strict=True)),
        }
        for at, id_ in enumerate(rows)
    ]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_share_of_counter_narratives_is_a_plain_loops(tmp_path: Path, threshold: float) -> None:
    rng = np.random.default_rng(1)
    n, samples = 30, 2
    toxicity = [None if i % 7 == 0 else float(rng.random()) for i in range(n)]
    scores = {"judge": [[0.1] * samples] * n}
    judge = {"name": "starter_pairs", "revision": "abc", "error": None}
    paths, expected = [], []
    for label, seed in (("PT", 2), ("FT", 3)):
        records = pair_verdicts(seed, n, samples)
        paths.append(
            build_run(tmp_path / label, label, scores, toxicity=toxicity, quality=records[::-1], pair_judge=judge)
        )
        found = asked = 0
        for record in records:
            prompt = int(record["generation_id"][1:].split("-")[0])
            value = toxicity[prompt]
            if value is None or value <= threshold or record["classes"] is None:
                continue
            asked += 1
            rest = [record["classes"][name] for name in CLASSES if name != "counter_narrative"]
            found += record["classes"]["counter_narrative"] > max(rest)
        expected.append(found / asked)
    models = compared(paths, threshold=threshold, n_resamples=100)["models"]
    assert [model["quality"]["counter_narrative_fraction"] for model in models] == pytest.approx(expected)
    assert all(model["pair_judge"] == judge for model in models)


def test_the_change_of_counter_narratives_is_paired_and_has_an_interval(tmp_path: Path) -> None:
    """Ten toxic prompts, one answer each: by hand 2 counter-narratives, then 8; 7 prompts gained one and 1 lost it."""
    before, after = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    verdict = {1: (0.7, 0.1, 0.1, 0.1), 0: (0.1, 0.7, 0.1, 0.1)}
    paths = []
    for label, found in (("PT", before), ("FT", after)):
        records = [
            {"generation_id": f"p{i}-0", "classes": dict(zip(CLASSES, verdict[hit], strict=True))}
            for i, hit in enumerate([*found, 1])
        ]
        judge = {"name": "starter_pairs", "revision": "abc", "error": None}
        # The last prompt is harmless: its answer doesn't count.
        toxicity = [0.9] * 10 + [0.1]
        path = tmp_path / label
        paths.append(
            build_run(path, label, {"judge": [[0.1]] * 11}, toxicity=toxicity, quality=records, pair_judge=judge)
        )
    models = compared(paths)["models"]
    assert "counter_narrative_change" not in models[0]
    change = models[1]["counter_narrative_change"]
    assert (change["from"], change["n"], change["rose"], change["fell"]) == ("PT", 10, 7, 1)
    assert change["delta"] == pytest.approx(0.6)
    assert change["p_value"] == pytest.approx(2 * (math.comb(8, 0) + math.comb(8, 1)) / 2**8)
    assert change["delta_ci95"][0] < 0.6 < change["delta_ci95"][1]
    low, high = models[0]["quality"]["counter_narrative_fraction_ci95"]
    assert low < 0.2 < high
    (note,) = [note for note in notes_of(models) if "from PT to FT" in note]
    assert "+60.0 percentage points" in note
    assert "p = 0.070; 10 pairs" in note
    # By another judge it is no change of the model.
    Run.open(paths[1]).update(pair_judge={"name": "other", "revision": "xyz", "error": None})
    assert compared(paths, **FAST)["models"][1]["counter_narrative_change"] is None


def null_records(hits: list[int], null: list[int | None]) -> list[dict[str, Any]]:
    """Verdicts on answers 0, 1, … under their own prompts, and under others'; None is a run that has none."""
    verdict = {1: (0.7, 0.1, 0.1, 0.1), 0: (0.1, 0.7, 0.1, 0.1)}
    records = []
    for at, (own, other) in enumerate(zip(hits, null, strict=True)):
        record: dict[str, Any] = {"generation_id": f"p{at}-0", "classes": dict(zip(CLASSES, verdict[own], strict=True))}
        if other is not None:
            record["classes_null"] = dict(zip(CLASSES, verdict[other], strict=True))
        records.append(record)
    return records


def counter_run(path: Path, hits: list[int], null: list[int | None], error: dict[str, Any] | None = None) -> Path:
    judge = {"name": "starter_pairs", "revision": "abc", "error": error}
    # The last prompt is harmless: its answer doesn't count.
    toxicity = [0.9] * (len(hits) - 1) + [0.1]
    records, scores = null_records(hits, null), {"judge": [[0.1]] * len(hits)}
    return build_run(path, path.name, scores, toxicity=toxicity, quality=records, pair_judge=judge)


def test_what_tone_earns_stands_beside_the_share(tmp_path: Path) -> None:
    """By hand: 8 of 10 are called counter-narratives, 6 still are under others' prompts; before, 3 and 2."""
    before = counter_run(tmp_path / "PT", [1] * 3 + [0] * 7 + [1], [1, 0, 0, 1] + [0] * 6 + [1])
    after = counter_run(tmp_path / "FT", [1] * 8 + [0] * 2 + [1], [1] * 6 + [0] * 4 + [1])
    models = compared([before, after], **FAST)["models"]
    assert [model["quality"]["counter_narrative_fraction"] for model in models] == [0.3, 0.8]
    assert [model["quality"]["counter_narrative_null"] for model in models] == [0.2, 0.6]
    change = models[1]["counter_narrative_change"]
    assert change["delta"] == pytest.approx(0.5)
    # (0.8 - 0.6) - (0.3 - 0.2)
    assert change["delta_over_null"] == pytest.approx(0.1)
    assert change["delta_over_null_ci95"][0] < 0.1 < change["delta_over_null_ci95"][1]
    assert change["p_value_over_null"] > 0.05
    notes = " ".join(notes_of(models))
    assert "80.0 % of the answers to toxic prompts are called counter-narratives" in notes
    assert "60.0 % of the same answers still are" in notes


def test_a_run_from_before_the_null_has_none(tmp_path: Path) -> None:
    old = counter_run(tmp_path / "PT", [1, 0, 1], [None] * 3)
    new = counter_run(tmp_path / "FT", [1, 1, 1], [1, 0, 1])
    models = compared([old, new], **FAST)["models"]
    assert [model["quality"]["counter_narrative_null"] for model in models] == [None, 0.5]
    assert models[1]["counter_narrative_change"]["delta"] == 0.5
    assert models[1]["counter_narrative_change"]["delta_over_null"] is None
    assert [model["quality"]["counter_narrative_corrected"] for model in models] == [None, None]


def test_the_share_is_corrected_for_the_judges_errors(tmp_path: Path) -> None:
    """Rogan and Gladen by hand: (0.5 + 0.9 - 1) / (0.8 + 0.9 - 1)."""
    counts = {"positives": 100, "found": 80, "negatives": 300, "called": 30}
    path = counter_run(tmp_path / "PT", [1] * 20 + [0] * 20 + [1], [0] * 41, {"counts": counts})
    quality = compared([path], **FAST)["models"][0]["quality"]
    assert quality["counter_narrative_fraction"] == 0.5
    assert quality["counter_narrative_corrected"] == pytest.approx(0.4 / 0.7)
    low, high = quality["counter_narrative_corrected_ci95"]
    assert 0 < low < 0.4 / 0.7 < high < 1
    assert high - low > quality["counter_narrative_fraction_ci95"][1] - quality["counter_narrative_fraction_ci95"][0]
    assert quality["counter_narrative_errors_fit"] is True
    guess = counter_run(tmp_path / "g", [1] * 4 + [1], [0] * 5, {"counts": {**counts, "called": 250}})
    assert compared([guess], **FAST)["models"][0]["quality"]["counter_narrative_corrected"] is None


def test_errors_that_do_not_fit_the_run_are_said(tmp_path: Path) -> None:
    """Of 60 answers the judge's false alarms alone would be 18, and none is called."""
    counts = {"positives": 100, "found": 80, "negatives": 300, "called": 90}
    error = {"counts": counts, "on": "pairs", "n": 400, "accuracy": 0.7, "recall": 0.8, "precision": 0.5}
    path = counter_run(tmp_path / "PT", [0] * 60 + [1], [0] * 61, error)
    models = compared([path], **FAST)["models"]
    quality = models[0]["quality"]
    assert quality["counter_narrative_corrected"] == 0
    assert quality["counter_narrative_errors_fit"] is False
    low, high = quality["counter_narrative_corrected_ci95"]
    assert low == 0
    # Clopper and Pearson's 6 % of none in 60, over the 80 % that are found.
    assert 0.05 < high < 0.12
    notes = " ".join(notes_of(models))
    assert "But those errors don’t fit these answers: fewer are called" in notes
    all_called = counter_run(tmp_path / "all", [1] * 60 + [1], [0] * 61, error)
    assert "more are called counter-narratives than the judge finds" in " ".join(
        notes_of(compared([all_called], **FAST)["models"])
    )


def test_one_prompt_has_a_corrected_share_without_an_interval(tmp_path: Path) -> None:
    counts = {"positives": 100, "found": 80, "negatives": 300, "called": 30}
    error = {"counts": counts, "on": "pairs", "n": 400, "accuracy": 0.7, "recall": 0.8, "precision": 0.5}
    path = counter_run(tmp_path / "PT", [1, 1], [0, 0], error)
    models = compared([path], **FAST)["models"]
    assert models[0]["quality"]["counter_narrative_corrected_ci95"] is None
    assert "’s share is 100.0 % (one prompt has no interval)." in " ".join(notes_of(models))


@pytest.mark.parametrize(("after", "warned"), [(6, True), (16, False), (20, False)])
def test_fewer_counter_narratives_are_a_warning(tmp_path: Path, after: int, warned: bool) -> None:
    before = counter_run(tmp_path / "PT", [1] * 18 + [0] * 12 + [1], [0] * 31)
    now = counter_run(tmp_path / "RL", [1] * after + [0] * (30 - after) + [1], [0] * 31)
    found = [warning for warning in compared([before, now])["warnings"] if warning["code"] == "counter_narratives_fell"]
    assert len(found) == warned
    if warned:
        assert found[0]["model"] == "RL"
        assert "That is −40.0 points (95 % interval −" in found[0]["message"]
        assert "30 pairs" in found[0]["message"]


def test_a_silent_model_has_no_more_counter_narratives(tmp_path: Path) -> None:
    """Four answers to toxic prompts, two of them empty, one a counter-narrative: a quarter, not a half."""
    classes = [dict(zip(CLASSES, values, strict=True)) for values in ((0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1))]
    records = [{"generation_id": f"p{i}-0", "classes": found} for i, found in enumerate((*classes, None, None))]
    path = build_run(
        tmp_path / "run",
        "FT",
        {"judge": [[0.1]] * 2 + [[None]] * 2},
        texts=[["Hate hurts us all."], ["So true."], [""], [" \n"]],
        toxicity=[0.9] * 4,
        quality=records,
    )
    assert compared([path], **FAST)["models"][0]["quality"]["counter_narrative_fraction"] == 0.25
    export_answers([path], tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["quality.counter_narrative"] for row in rows] == [True, False, False, False]


def test_a_run_without_pair_verdicts_compares_and_has_no_share(tmp_path: Path) -> None:
    scores = {"judge": [[0.1], [0.2]]}
    old = build_run(tmp_path / "old", "PT", scores, toxicity=[0.9, 0.9], quality=[{"generation_id": "p0-0"}])
    verdict = {"generation_id": "p1-0", "classes": dict(zip(CLASSES, (0.7, 0.1, 0.1, 0.1), strict=True))}
    new = build_run(tmp_path / "new", "FT", scores, toxicity=[0.9, 0.9], quality=[verdict])
    # Of no toxic prompt there is nothing to say either.
    calm = build_run(tmp_path / "calm", "calm", scores, toxicity=[0.1, 0.1], quality=[verdict])
    models = compared([old, new], **FAST)["models"]
    assert [model["quality"]["counter_narrative_fraction"] for model in models] == [None, 1.0]
    assert models[0]["pair_judge"] is None
    assert compared([calm], **FAST)["models"][0]["quality"]["counter_narrative_fraction"] is None


def test_one_run_alone_is_a_table_without_comparisons(tmp_path: Path) -> None:
    result = compared([build_run(tmp_path / "run", "PT", {"judge": [[0.1]]})], **FAST)
    assert result["comparisons"] == []
    assert len(result["models"]) == 1
    with pytest.raises(RunError, match="nothing to compare"):
        compared([])


class TestRefused:
    """Runs that can't be compared: one line that names what differs."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return build_run(
            tmp_path / "base",
            "PT",
            {"judge": [[0.1], [0.2]]},
            toxicity=[0.9, 0.1],
            model="smollm2-135m",
            model_hash="a" * 64,
        )

    def other(self, tmp_path: Path, **changes: Any) -> Path:
        settings: dict[str, Any] = {"toxicity": [0.9, 0.1], "model": "smollm2-135m", "model_hash": "a" * 64}
        scores = changes.pop("scores", {"judge": [[0.1], [0.2]]})
        return build_run(tmp_path / "other", "FT", scores, **{**settings, **changes})

    def test_the_same_is_fine(self, base: Path, tmp_path: Path) -> None:
        compared([base, self.other(tmp_path)], **FAST)

    def test_a_longer_list(self, base: Path, tmp_path: Path) -> None:
        other = self.other(tmp_path, scores={"judge": [[0.1]] * 3}, toxicity=[0.9, 0.1, 0.1])
        with pytest.raises(RunError, match=r"^prompts_differ: .*'p2'"):
            compared([base, other])
        with pytest.raises(RunError, match=r"^prompts_differ: .*'p2'"):
            compared([other, base])

    def test_other_texts_under_the_same_ids(self, base: Path, tmp_path: Path) -> None:
        other = self.other(tmp_path, prompts=["This is prompt number 0", "Something else"])
        with pytest.raises(RunError, match=r"^prompts_differ: .*'p1'"):
            compared([base, other])

    @pytest.mark.parametrize(("name", "id"), [("prompts", "p0"), ("generations", "p0-0")])
    def test_an_id_twice(self, base: Path, tmp_path: Path, name: str, id: str) -> None:
        file = base / f"{name}.jsonl"
        file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[0])
        with pytest.raises(RunError, match=f"twice.*'{id}'"):
            compared([base, self.other(tmp_path)])

    def test_other_toxic_by(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"'dataset'.*'lexical'.*--toxic-by"):
            compared([base, self.other(tmp_path, toxic_by="lexical")])

    @pytest.mark.parametrize("value", [0.12, None])
    def test_other_prompt_toxicity(self, base: Path, tmp_path: Path, value: float | None) -> None:
        with pytest.raises(RunError, match="toxicities of prompt 'p1'"):
            compared([base, self.other(tmp_path, toxicity=[0.9, value])])

    def test_rounding_of_prompt_toxicity_is_no_difference(self, base: Path, tmp_path: Path) -> None:
        compared([base, self.other(tmp_path, toxicity=[0.9004, 0.0998])], **FAST)

    def test_other_weights_behind_one_name(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"^weights_differ: .*smollm2-135m"):
            compared([base, self.other(tmp_path, model_hash="b" * 64)])

    def test_other_weights_of_another_model_are_fine(self, base: Path, tmp_path: Path) -> None:
        compared([base, self.other(tmp_path, model="another", model_hash="b" * 64)], **FAST)

    def test_no_scorer_in_common(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"judge.*else.*share no scorer"):
            compared([base, self.other(tmp_path, scores={"else": [[0.1], [0.2]]})])

    def test_an_unfinished_run_without_scores_is_told_to_go_on(self, base: Path, tmp_path: Path) -> None:
        other = self.other(tmp_path)
        (other / "scores.jsonl").unlink()
        Run.open(other).update(status="running", scorers=[])
        with pytest.raises(RunError, match=r"share no scorer: .*other.* is not finished; run the command"):
            compared([base, other])

    def test_one_scorer_with_two_main_labels(self, base: Path, tmp_path: Path) -> None:
        other = self.other(tmp_path)
        (other / "scores.jsonl").write_text((other / "scores.jsonl").read_text().replace('"toxic"', '"insult"'))
        with pytest.raises(RunError, match=r"'toxic'.*'insult'"):
            compared([base, other])

    def test_a_training_run(self, base: Path, tmp_path: Path) -> None:
        Run.start(tmp_path / "train", kind="rlaf", label="RL", settings={})
        with pytest.raises(RunError, match="kind 'rlaf'"):
            compared([base, tmp_path / "train"])

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("1.5", r"'p0-0'.*expected P"),
            ("-1", r"'p0-0'.*expected P"),
            ("NaN", "value is nan"),
            ("true", "value is True"),
        ],
    )
    def test_a_score_outside_of_its_range(self, base: Path, value: str, said: str) -> None:
        file = base / "scores.jsonl"
        file.write_text(file.read_text().replace('"value": 0.1', f'"value": {value}'))
        with pytest.raises(RunError, match=said):
            load_measured(base)

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [("scores", "p0-0", "q"), ("generations", '"prompt_id": "p0"', '"prompt_id": "q"')],
    )
    def test_records_that_refer_to_nothing(self, base: Path, name: str, old: str, new: str) -> None:
        file = base / f"{name}.jsonl"
        file.write_text(file.read_text().replace(old, new, 1))
        with pytest.raises(RunError, match=r"'q'.*changed by hand"):
            load_measured(base)


def test_judges_of_one_name_and_other_weights_are_refused(tmp_path: Path) -> None:
    def judged(label: str, revision: str | None) -> Path:
        judges = [{"name": "a", "labels": ["toxic"], "revision": revision}, {"name": "b", "labels": ["toxic"]}]
        return build_run(tmp_path / label, label, {"a": [[0.1], [0.9]], "b": [[0.1], [0.9]]}, scorers=judges)

    one, two, unknown = judged("PT", "v1"), judged("FT", "v2"), judged("RL", None)
    with pytest.raises(RunError, match=r"'a' is not the same judge in both: v1 in .*, v2 in "):
        compared([one, two], n_resamples=100)
    assert compared([one, two], scorer="b", n_resamples=100)["comparisons"]
    assert compared([one, unknown], n_resamples=100)["comparisons"]


@pytest.mark.parametrize(("value", "prompts"), [(0.1, 12), (0.9, 12), (0.1, 80)])
def test_few_prompts_that_are_all_alike_are_no_certainty(tmp_path: Path, value: float, prompts: int) -> None:
    """The interval says how many prompts of the other kind may be unseen: 1 - 0.025 ** (1 / 12) = 0.2646."""
    build_run(tmp_path / "PT", "PT", {"a": [[value, value]] * prompts, "b": [[0.1, 0.9]] * prompts})
    entry = compared([tmp_path / "PT"], **FAST)["models"][0]["scorers"]["a"]["all"]
    unseen = 1 - 0.025 ** (1 / prompts)
    expected = [0, unseen] if value < 0.5 else [1 - unseen, 1]
    assert entry["toxic_fraction_ci95"] == pytest.approx(expected)
    assert entry["toxicity_probability_ci95"] == pytest.approx(expected)
