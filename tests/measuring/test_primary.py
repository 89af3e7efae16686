"""Which outcome counts, when it was fixed, and how the other tests are corrected."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared
from rich.console import Console

from rewardlm.config import ExperimentSettings, InterpretSettings, MeasureSettings, validate
from rewardlm.errors import ConfigError, RunError
from rewardlm.experiment import _with_primary
from rewardlm.measuring.comparison import SPLITS, Comparison, CounterNarrativeChange, Metric, ModelSummary
from rewardlm.measuring.primary import adjust_models, spelt_out
from rewardlm.reporting import headline
from rewardlm.reporting.tables import print_comparison
from rewardlm.runs import Run

FAST = {"n_resamples": 200}


def runs(
    tmp_path: Path, *, toxic: bool = True, primary: list[dict[str, Any] | None] = (None, None), **meta: Any
) -> list[Path]:
    """A baseline and a model by the judges a and b (with a further label), 30 prompts; the model was trained on a."""
    rng = np.random.default_rng(1)
    paths = []
    for label, shift, recorded in zip(("PT", "RL"), (0.0, 0.25), primary, strict=True):
        scores = {name: np.clip(rng.random((30, 2)) - shift, 0, 1).tolist() for name in ("a", "b", "b.hate")}
        path = build_run(
            tmp_path / label,
            label,
            scores,
            toxicity=[0.9 if toxic and i % 2 else 0.1 for i in range(30)],
            rewards=["a"] if label == "RL" else [],
        )
        if recorded is not None:
            run = Run.open(path)
            run.update(settings={**run.meta["settings"], "primary": recorded})
        paths.append(path)
    return paths


@pytest.mark.parametrize(("toxic", "split"), [(True, "toxic_prompts"), (False, "all")])
def test_by_rule_it_is_the_judge_that_was_no_reward_on_toxic_prompts(tmp_path: Path, toxic: bool, split: str) -> None:
    result = compared(runs(tmp_path, toxic=toxic), **FAST)
    assert result["primary"] == {"scorer": "b", "split": split, "metric": "toxic_fraction"}
    assert result["primary_fixed"]["when"] == "afterwards"
    assert "after measuring" in result["primary_fixed"]["sentence"]


def test_what_the_runs_recorded_counts(tmp_path: Path) -> None:
    recorded = {"scorer": "a", "split": "all", "metric": "mean"}
    paths = runs(tmp_path, primary=[recorded, recorded])
    result = compared(paths, **FAST)
    assert (result["primary"], result["primary_fixed"]["when"]) == (recorded, "before")
    other = compared(paths, primary={"scorer": "b", "split": None, "metric": None}, **FAST)
    assert other["primary"]["scorer"] == "b"
    assert other["primary_fixed"]["when"] == "differs"
    assert "scorer a, split all, metric mean" in other["primary_fixed"]["sentence"]
    alone = compared(paths, scorer="b", **FAST)
    assert (alone["primary"]["scorer"], alone["primary_fixed"]["when"]) == ("b", "differs")


def test_what_was_left_to_the_rule_can_t_be_chosen_afterwards(tmp_path: Path) -> None:
    """A run that recorded the judge alone: the rule fixes the rest. Of 20 outcomes by two judges one was fixed."""
    paths = runs(tmp_path, primary=[{"scorer": "b"}] * 2)
    fixed = {"scorer": "b", "split": "toxic_prompts", "metric": "toxic_fraction"}
    asked: list[dict[str, str]] = [
        {},
        fixed,
        {"metric": "mean"},
        {"split": "nontoxic_prompts", "metric": "expected_max_toxicity"},
        {"scorer": "a"},
    ]
    for one in asked:
        chosen = compared(paths, primary=one, n_resamples=0)
        when = "before" if one in ({}, fixed) else "differs"
        assert (chosen["primary"], chosen["primary_fixed"]["when"]) == ({**fixed, **one}, when)


def test_a_run_spells_out_what_was_asked_for_when_it_starts(tmp_path: Path) -> None:
    wanted = {"scorer": "b", "split": "toxic_prompts", "metric": "toxic_fraction"}
    paths = runs(tmp_path)
    for path in paths:
        Run.open(path).update(primary=wanted)
    assert compared(paths, **FAST)["primary_fixed"]["when"] == "before"
    assert compared(paths, primary={"scorer": "a"}, **FAST)["primary_fixed"]["when"] == "differs"
    assert spelt_out({"scorer": "b", "split": None}, ["a", "b"], []) == wanted
    assert spelt_out({"split": "all"}, ["a", "b"], ["a"]) == {**wanted, "split": "all"}


def test_runs_that_recorded_different_ones_fixed_none(tmp_path: Path) -> None:
    result = compared(runs(tmp_path, primary=[{"scorer": "a"}, None]), **FAST)
    assert (result["primary"]["scorer"], result["primary_fixed"]["when"]) == ("b", "differs")


def test_a_judge_that_nobody_asked_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"primary.scorer 'c' doesn't judge every run: expected one of a, b"):
        compared(runs(tmp_path), primary={"scorer": "c"}, **FAST)
    with pytest.raises(ConfigError, match="is not one of the judges"):
        validate(MeasureSettings, {"model": "tiny", "scorer": ["lexical"], "primary": {"scorer": "starter"}})


@pytest.mark.parametrize("metric", ["toxic_fraction", "mean", "expected_max_toxicity", "toxicity_probability"])
def test_all_but_the_primary_are_corrected_together(tmp_path: Path, metric: str) -> None:
    """Holm's by a loop, over judges and splits; the further label b.hate is a family of its own."""
    result = compared(runs(tmp_path), primary={"metric": metric}, **FAST)
    prefix = "" if metric == "toxic_fraction" else f"{metric}_"
    for further in (False, True):
        family = []
        for entry in result["comparisons"]:
            if (entry["scorer"], entry["split"]) == ("b", "toxic_prompts"):
                assert entry[f"{prefix}p_adjusted"] == entry[f"{prefix}p_value"]
            elif (entry["scorer"] == "b.hate") == further and entry[f"{prefix}p_value"] is not None:
                family.append((entry[f"{prefix}p_value"], entry[f"{prefix}p_adjusted"]))
        assert len(family) == (len(SPLITS) - 1) * (1 if further else 2) - (0 if further else 1)
        expected = 0.0
        for rank, (p_value, adjusted) in enumerate(sorted(family)):
            expected = max(expected, min(1, p_value * (len(family) - rank)))
            assert adjusted == pytest.approx(expected)


def test_an_experiment_fixes_it_when_it_starts() -> None:
    """Before any answer is there: by its rule where the file says nothing, by the reward's default too."""
    base = {"model": "tiny", "measure": {"scorer": ["starter", "lexical"]}}
    for rlaf, asked, scorer in (
        ({"reward": ["starter"]}, {}, "lexical"),
        ({}, {}, "lexical"),
        (None, {}, "starter"),
        ({"reward": "lexical,starter"}, {}, "starter"),
        ({"reward": ["starter"]}, {"scorer": "starter"}, "starter"),
    ):
        measure = {**base["measure"], "primary": asked}
        settings = _with_primary(validate(ExperimentSettings, {**base, "measure": measure, "rlaf": rlaf}))
        assert settings.measure.primary.model_dump() == {
            "scorer": scorer,
            "split": "toxic_prompts",
            "metric": "toxic_fraction",
        }


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_nothing_in_a_small_comparison_is_nan_and_intervals_go_with_p(tmp_path: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    paths = [
        build_run(tmp_path / x, x, {"a": [[float(s)] for s in rng.integers(0, 2, n)]}, toxicity=[0.9] * n) for x in "PQ"
    ]
    result = compared(paths, **FAST)
    json.dumps(result, allow_nan=False)
    for entry in result["comparisons"]:
        for of in ("", "mean_", "expected_max_toxicity_", "toxicity_probability_"):
            interval, p_value = entry[f"{of}delta_ci95"], entry[f"{of}p_value"]
            assert (interval is None) == (n == 1 or p_value is None)
            if interval:
                assert interval[0] < interval[1]
                assert (p_value < 0.05) == (not interval[0] <= 0 <= interval[1])


def test_both_bounds_of_the_unscored_and_equal_samples(tmp_path: Path) -> None:
    """20 prompts, two answers each; of the second model every second answer can't be scored."""
    before = [[0.9, 0.1]] * 20
    after = [[0.9, None], [0.1, None]] * 10
    paths = [build_run(tmp_path / "PT", "PT", {"a": before}), build_run(tmp_path / "RL", "RL", {"a": after})]
    result = compared(paths, **FAST)
    one, two = (model["scorers"]["a"]["all"] for model in result["models"])
    assert (two["toxic_fraction_of_all"], two["toxic_fraction"], two["toxic_fraction_worst"]) == (0.25, 0.5, 0.75)
    # Of all that each has .9 and .5; of one answer a prompt both have .5.
    assert one["expected_max_toxicity"] == pytest.approx(0.9)
    assert one["equal_samples"]["samples"] == 1
    assert one["equal_samples"]["expected_max_toxicity"] == pytest.approx(two["equal_samples"]["expected_max_toxicity"])
    change = next(entry for entry in result["comparisons"] if entry["split"] == "all")
    assert change["equal_samples"] == {"samples": 1, "prompts": 20, "left_out": 0}
    assert change["expected_max_toxicity_delta"] == pytest.approx(0)  # .5 before, of either answer, and after
    assert (change["delta_best"], change["delta_of_all"], change["delta_worst"]) == (-0.25, -0.25, 0.25)


def all_of(result: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in result["comparisons"] if entry["split"] == "all")


def built(tmp_path: Path, before: list[Any], after: list[Any], **meta: Any) -> list[Path]:
    return [build_run(tmp_path / "PT", "PT", {"a": before}), build_run(tmp_path / "RL", "RL", {"a": after}, **meta)]


@pytest.mark.parametrize(("worst", "scored"), [(2, [0.95, None, None, None]), (10, [None] * 4)])
def test_emt_and_tp_of_a_table_are_of_the_same_prompts(tmp_path: Path, worst: int, scored: list[float | None]) -> None:
    """The second model answers as the first does; its answers to the worst prompts can't be scored, or few can."""
    before = [[0.95 if i < worst else 0.1] * 4 for i in range(20)]
    after = [scored if i < worst else [0.1] * 4 for i in range(20)]
    result = compared(built(tmp_path, before, after), **FAST)
    equal = [model["scorers"]["a"]["all"]["equal_samples"] for model in result["models"]]
    assert equal[0] == equal[1]
    assert (equal[0]["samples"], equal[0]["prompts"], equal[0]["left_out"]) == (4, 20 - worst, worst)
    assert (equal[0]["expected_max_toxicity"], equal[0]["toxicity_probability"]) == (pytest.approx(0.1), 0)
    assert all_of(result)["equal_samples"] == {"samples": 4, "prompts": 20 - worst, "left_out": worst}
    text = " ".join(printed(result).split())
    assert f"4 by a ({worst} prompts with fewer, or none, left out)" in text


def test_questions_that_a_server_refused_are_within_the_bounds(tmp_path: Path) -> None:
    """Half of 60 answers were toxic, and 21 of these questions were refused: they may hide 21 toxic answers."""
    before = [[0.9 if i < 30 else 0.1] for i in range(60)]
    after: list[Any] = [[0.1] if i < 9 or i >= 30 else [] for i in range(60)]
    result = compared(built(tmp_path, before, after, unanswered={"content filter": 21}), **FAST)
    share, change = result["models"][1]["scorers"]["a"]["all"], all_of(result)
    assert (share["n"], share["unanswered"], share["toxic_fraction_of_all"]) == (39, 21, 0)
    assert share["toxic_fraction_worst"] == pytest.approx(21 / 60)
    assert change["delta"] == pytest.approx(-9 / 39)
    assert change["delta_worst"] == pytest.approx((21 - 30) / 60)
    assert (change["delta_best"], change["delta_of_all"]) == (-0.5, -0.5)
    assert (change["flow_unscored"], change["flow_to_unscored"]) == (21, [0, 0, 21])
    # Of a run that has no answer to a question that it never asked, nothing is missing.
    for run in built(tmp_path / "less", before, after):
        last = Run.open(run)
    assert "unanswered" not in last.meta
    assert all_of(compared([tmp_path / "less" / "PT", last.path], **FAST))["flow_unscored"] == 0


def test_the_shares_of_a_sentence_are_of_its_pairs_and_the_audit_says_what_others_would(tmp_path: Path) -> None:
    before = [[0.9 if i < 12 else 0.1 if i < 20 else None] for i in range(40)]
    after = [[0.1 if i < 20 else 0.9] for i in range(40)]
    result = compared(built(tmp_path, before, after), **FAST)
    change = all_of(result)
    assert (change["before"], change["after"]) == (0.6, 0)
    assert change["delta"] == pytest.approx(change["after"] - change["before"])
    said = "".join(text for text, _ in headline.sentences(findings_of(result), ["a"])[0])
    assert "fell by 60.0 percentage points" in said
    assert "20 pairs), from 60.0 % of PT’s answers in these pairs to 0.0 % of RL’s." in said
    (warning,) = [warning for warning in result["warnings"] if warning["code"] == "unscored_decide"]
    assert "−60.0 points" in warning["message"]
    assert "+20.0 points" in warning["message"]


def test_of_emt_prompts_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.random((30, 4)) * scale for scale in (1, 0.4))
    wanted = {"metric": "expected_max_toxicity", "split": "all"}
    result = compared(built(tmp_path, before.tolist(), after.tolist()), primary=wanted, **FAST)
    found = [one for one in findings_of(result, wanted["metric"]) if one.primary]
    said = "".join(text for text, _ in headline.sentences([*found, *findings_of(result)], ["a"])[0])
    assert "30 prompts)" in said
    assert said.index("30 prompts)") < said.index("120 pairs)")


def test_to_look_at_one_judge_does_not_make_p_smaller(tmp_path: Path) -> None:
    paths = runs(tmp_path)
    whole = {(entry["scorer"], entry["split"]): entry for entry in compared(paths, **FAST)["comparisons"]}
    for scorer in ("a", "b", "b.hate"):
        alone = compared(paths, scorer=scorer, **FAST)["comparisons"]
        assert {entry["scorer"] for entry in alone} == {scorer}
        for entry in alone:
            for of in ("", "mean_", "expected_max_toxicity_", "toxicity_probability_", "delta_worst_"):
                assert entry[f"{of}p_adjusted"] == whole[scorer, entry["split"]][f"{of}p_adjusted"]


def test_what_no_judge_of_toxicity_says_is_corrected_over_models() -> None:
    p_values = [0.02, 0.03, 0.5]
    models = [ModelSummary.model_construct(label="PT")]
    for p in p_values:
        change = CounterNarrativeChange.model_construct(p_value=p, p_value_over_null=p / 2)
        models.append(ModelSummary.model_construct(label="RL", counter_narrative_change=change))
    changes = [model.counter_narrative_change for model in adjust_models(models)[1:]]
    assert [change.p_adjusted for change in changes if change] == pytest.approx([0.06, 0.06, 0.5])
    assert [change.p_adjusted_over_null for change in changes if change] == pytest.approx([0.03, 0.03, 0.25])


def test_a_setting_that_takes_one_judge_takes_its_name_as_it_is() -> None:
    """``interpret scorer=lexical`` was refused: the name had become a list, as it must where several may stand."""
    assert validate(InterpretSettings, {"scorer": "lexical"}).scorer == "lexical"
    assert validate(MeasureSettings, {"model": "tiny", "scorer": "lexical"}).scorer == ["lexical"]


def test_the_terminal_shows_the_primary_outcome_corrected_p_and_both_bounds(tmp_path: Path) -> None:
    """On real comparisons: with unscored answers, with one prompt, with nothing scored in both."""
    rng = np.random.default_rng(3)
    scores = rng.random((2, 40, 3))
    scores[1][rng.random((40, 3)) < 0.05] = np.nan
    whole = [[[None if np.isnan(s) else float(s) for s in row] for row in grid] for grid in scores]
    paths = [build_run(tmp_path / label, label, {"a": grid}) for label, grid in zip(("PT", "RL"), whole, strict=True)]
    result = compared(paths, **FAST)
    text = printed(result)
    assert "Primary outcome: the toxic share of all answers by a. It was chosen after measuring" in text
    assert "adj." in text
    assert "Change of EMT from PT to RL" in text
    assert "From the same number of scored answers per prompt in both (RL: " in text
    assert "What unscored answers may make of the toxic share's change" in text
    worst = result["models"][1]["scorers"]["a"]["all"]["toxic_fraction_worst"]
    assert f"{100 * worst:.1f}" in text
    assert max(map(len, text.splitlines())) <= 100
    for number, (one, two) in enumerate((([[0.9]], [[0.1]]), ([[0.9]], [[None]]), ([[0.2], [0.9]], [[None], [0.1]]))):
        small = [build_run(tmp_path / f"{x}{number}", x, {"a": grid}) for x, grid in (("PT", one), ("RL", two))]
        assert "Change of the toxic share from PT to RL" in printed(compared(small, **FAST))


def findings_of(result: dict[str, Any], metric: Metric = "toxic_fraction") -> list[headline.Finding]:
    return headline.findings(Comparison.model_validate(result), {}, metric)


def printed(result: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(Comparison.model_validate(result), console)
    return console.export_text()
