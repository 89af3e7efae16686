"""Thresholds of ``judge migrate`` in a comparison: what is toxic, how wide intervals are, which runs are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared

from rewardlm.errors import ConfigError, RunError
from rewardlm.judges.cuts import cut_at_share
from rewardlm.measuring import metrics
from rewardlm.measuring.compare import compare
from rewardlm.reporting.notes import rule_text, threshold_notes
from rewardlm.reporting.paper import as_latex, as_markdown
from rewardlm.scoring.thresholds import (
    JudgeThresholds,
    MatchedThreshold,
    OldJudge,
    Threshold,
    Thresholds,
    write_thresholds,
)
from rewardlm.stats import FloatArray, bootstrap, share_ci95

# By 0.5, judge "a" calls 6 of 12 answers toxic; by 0.25, 9.
SCORES: list[list[float | None]] = [[0.9, 0.3], [0.6, 0.7], [0.1, 0.26]] * 2
LOWER: list[list[float | None]] = [[0.4, 0.2], [0.2, 0.1], [0.1, 0.1]] * 2
OTHER: list[list[float | None]] = [[0.3, 0.3], [0.6, 0.4], [0.1, 0.9]] * 2


def thresholds(path: Path, value: float = 0.25, redrawn: Sequence[float] = (), **more: Any) -> Path:
    judge = JudgeThresholds(
        same_share=MatchedThreshold(value=value, redrawn=tuple(redrawn), reached=more.pop("reached", None)),
        old=OldJudge(threshold=0.6),
        n=40,
        source="scored.csv",
        **more,
    )
    write_thresholds(path, Thresholds(judges={"a": judge}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        build_run(tmp_path / "PT", "PT", {"a": SCORES, "b": OTHER}),
        build_run(tmp_path / "RL", "RL", {"a": LOWER, "b": OTHER}),
    ]


def test_a_judge_in_the_file_has_its_own_threshold_and_others_the_plain_one(tmp_path: Path, runs: list[Path]) -> None:
    found = compared(runs, thresholds=thresholds(tmp_path / "t.yaml"))
    shares = {
        (model["label"], name): model["scorers"][name]["all"]["toxic_fraction"]
        for model in found["models"]
        for name in ("a", "b")
    }
    assert shares == {("PT", "a"): 10 / 12, ("PT", "b"): 4 / 12, ("RL", "a"): 2 / 12, ("RL", "b"): 4 / 12}
    change = next(one for one in found["comparisons"] if (one["scorer"], one["split"]) == ("a", "all"))
    assert change["delta"] == pytest.approx(-8 / 12)
    assert found["settings"]["thresholds"] == {
        "a": {"value": 0.25, "matching": "share", "old": 0.6, "n": 40, "source": "scored.csv"}
    }
    assert "thresholds" not in compared(runs)["settings"]


def test_a_threshold_that_is_certain_changes_no_interval(tmp_path: Path, runs: list[Path]) -> None:
    """The same numbers as with the plain setting ``threshold``, which knows no uncertainty."""
    moved = compared(runs, thresholds=thresholds(tmp_path / "t.yaml", redrawn=[0.25] * 200), scorer="a")
    plain = compared(runs, threshold=0.25, scorer="a")
    assert moved["models"] == plain["models"]
    assert moved["comparisons"] == plain["comparisons"]


def test_an_uncertain_threshold_widens_every_interval_that_depends_on_it(tmp_path: Path, runs: list[Path]) -> None:
    redrawn = np.linspace(0.05, 0.65, 200)
    one = compared(runs, thresholds=thresholds(tmp_path / "t.yaml", redrawn=redrawn), scorer="a")
    two = compared(runs, threshold=0.25, scorer="a")

    def width(found: dict[str, Any], key: str) -> float:
        low, high = found[key]
        return float(high - low)

    for moved, plain in zip(one["models"], two["models"], strict=True):
        wide, narrow = moved["scorers"]["a"]["all"], plain["scorers"]["a"]["all"]
        for key in ("toxic_fraction_ci95", "toxicity_probability_ci95"):
            assert width(wide, key) > width(narrow, key) + 0.01
        assert wide["expected_max_toxicity_ci95"] == narrow["expected_max_toxicity_ci95"]
    for moved, plain in zip(one["comparisons"], two["comparisons"], strict=True):
        if moved["delta_ci95"] is None:
            continue
        assert width(moved, "delta_ci95") > width(plain, "delta_ci95")
        assert moved["p_value"] >= plain["p_value"]
        low, high = moved["delta_ci95"]
        assert (low > 0 or high < 0) == (moved["p_value"] < 0.05)
        assert moved["mean_delta_ci95"] == plain["mean_delta_ci95"]


def test_prompts_that_the_judge_scored_are_toxic_by_its_threshold(tmp_path: Path) -> None:
    toxicity = [0.3, 0.3, 0.1, 0.1, 0.6, 0.6]
    path = thresholds(tmp_path / "t.yaml")
    for toxic_by, expected in (("a", 8), ("dataset", 4)):
        run = build_run(tmp_path / toxic_by, "PT", {"a": SCORES}, toxicity=toxicity, toxic_by=toxic_by)
        found = compared([run], thresholds=path)
        assert found["models"][0]["scorers"]["a"]["toxic_prompts"]["n"] == expected


def recorded(value: float, **more: Any) -> dict[str, Any]:
    return {"thresholds": {"a": Threshold(value=value, matching="share", **more).model_dump(mode="json")}}


def test_what_runs_recorded_holds_by_default(tmp_path: Path) -> None:
    one = build_run(tmp_path / "PT", "PT", {"a": SCORES}, **recorded(0.25))
    two = build_run(tmp_path / "RL", "RL", {"a": LOWER}, **recorded(0.25))
    found = compare([one, two])
    assert found.settings.thresholds["a"].value == 0.25
    assert found.models[0].scorers["a"]["all"].toxic_fraction == 10 / 12
    plain = compare([one, two], thresholds=Path("none"))
    assert plain.settings.thresholds == {}
    assert plain.models[0].scorers["a"]["all"].toxic_fraction == 6 / 12


def test_runs_with_different_thresholds_are_not_compared(tmp_path: Path) -> None:
    one = build_run(tmp_path / "PT", "PT", {"a": SCORES}, **recorded(0.25))
    for name, more in (("other", recorded(0.3)), ("plain", {})):
        two = build_run(tmp_path / name, "RL", {"a": LOWER}, **more)
        with pytest.raises(
            RunError, match=r"thresholds_differ: .*PT calls .* above 0.25, .*--thresholds none"
        ) as error:
            compare([one, two])
        assert "\n" not in str(error.value)
        # A file that is named holds for all of them.
        found = compare([one, two], thresholds=thresholds(tmp_path / "t.yaml", 0.35))
        assert found.settings.thresholds["a"].value == 0.35


def test_thresholds_for_others_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    judge = {"name": "a", "labels": ["toxic"], "revision": "v1"}
    run = build_run(tmp_path / "run", "PT", {"a": SCORES}, scorers=[judge])
    compare([run], thresholds=thresholds(tmp_path / "t.yaml", revision="v1", label="toxic"))
    with pytest.raises(RunError, match="made for other weights"):
        compare([run], thresholds=thresholds(tmp_path / "t.yaml", revision="v2"))
    with pytest.raises(RunError, match="made for its label 'hate'"):
        compare([run], thresholds=thresholds(tmp_path / "t.yaml", label="hate"))
    only_b = build_run(tmp_path / "b", "PT", {"b": OTHER})
    with pytest.raises(ConfigError, match="has thresholds for a, but the judges are b"):
        compare([only_b], thresholds=thresholds(tmp_path / "t.yaml"))
    with pytest.raises(ConfigError, match="leave inclusive out"):
        compare(runs, thresholds=thresholds(tmp_path / "t.yaml"), inclusive=True)
    with pytest.raises(ConfigError, match="no threshold of the same precision"):
        compare(runs, thresholds=thresholds(tmp_path / "t.yaml"), matching="precision")
    with pytest.raises(ConfigError, match="no such file"):
        compare(runs, thresholds=tmp_path / "none.yaml")


def test_a_share_far_from_that_of_the_migrations_texts_is_a_warning(tmp_path: Path) -> None:
    few: list[list[float | None]] = [[0.9]] * 4 + [[0.1]] * 96
    run = build_run(tmp_path / "PT", "PT", {"a": few})
    for reached, warned in ((0.3, True), (0.05, False)):
        found = compared([run], thresholds=thresholds(tmp_path / "t.yaml", reached=reached))
        assert ("other_texts" in {one["code"] for one in found["warnings"]}) == warned


def test_tables_say_which_threshold_and_where_it_comes_from(tmp_path: Path, runs: list[Path]) -> None:
    found = compare(runs, thresholds=thresholds(tmp_path / "t.yaml"))
    assert rule_text(found.settings) == "score > 0.5; by a > 0.25"
    (note,) = threshold_notes(found.settings)
    assert note.startswith("a calls an answer toxic > 0.25: on 40 texts (scored.csv)")
    for text in (as_markdown(found).replace("&gt;", ">"), as_latex(found).replace(r"\textgreater{}", ">")):
        assert "by a > 0.25" in text
        assert "40 texts (scored.csv)" in text
    assert rule_text(compare(runs).settings) == "score > 0.5"


def old_and_new(hidden: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Two judges of one hidden toxicity, each with noise of its own, on scales of their own. The new one sees it less
    sharply. If both saw it equally sharply, one threshold would match the other for any texts.
    """
    old = 1 / (1 + np.exp(-hidden - rng.normal(0, 0.3, hidden.shape)))
    new = 1 / (1 + np.exp(-hidden - rng.normal(0, 0.8, hidden.shape))) ** 2
    return old, new


def answers(rng: np.random.Generator, prompts: int, samples: int, shift: float = 0.0) -> FloatArray:
    """Hidden toxicity [N, K] with the distribution of the migration's texts, but answers to a prompt are alike."""
    hidden: FloatArray = rng.normal(0, 0.5**0.5, (prompts, 1)) + rng.normal(0, 0.5**0.5, (prompts, samples)) + shift
    return hidden


def coverage(shift: float, *, widened: bool, repetitions: int = 400) -> float:
    """How often the interval of the new judge's share holds the share that the old judge would call toxic."""
    rng = np.random.default_rng(5)
    true = float((old_and_new(rng.normal(size=1_000_000) + shift, rng)[0] > 0.7).mean())
    held = 0
    for seed in range(repetitions):
        old, new = old_and_new(rng.normal(size=250), rng)
        flagged = old > 0.7

        def threshold(rows: np.ndarray, new: FloatArray = new, flagged: np.ndarray = flagged) -> float:
            return cut_at_share(new[rows], int(flagged[rows].sum())).threshold

        redrawn = bootstrap(threshold, range(250), n_resamples=200, seed=seed) if widened else []
        _, scores = old_and_new(answers(rng, 200, 2, shift), rng)
        low, high = metrics.toxic_fraction_ci95(scores, threshold=threshold(np.arange(250)), redrawn=redrawn) or (1, 0)
        held += low <= true <= high
    return held / repetitions


@pytest.mark.slow
def test_the_interval_holds_the_old_judges_share_for_answers_like_the_migrations_texts() -> None:
    """400 repetitions find 95 % as 92.8 to 97.2 %. What takes the threshold for certain holds it too rarely."""
    assert 0.93 <= coverage(0.0, widened=True) <= 0.99
    assert coverage(0.0, widened=False) < 0.92


@pytest.mark.slow
def test_it_does_not_hold_it_for_answers_of_another_kind() -> None:
    """docs/migrating.md says so: far fewer toxic answers, and the judges' errors no longer balance."""
    assert coverage(-1.5, widened=True) < 0.88


def test_without_redrawn_thresholds_the_interval_is_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((30, 3))
    expected = share_ci95((scores > 0.6).sum(axis=1), np.full(30, 3))
    assert metrics.toxic_fraction_ci95(scores, threshold=0.6) == expected
    assert metrics.toxic_fraction_ci95(scores, threshold=0.6, redrawn=[0.6] * 50) == pytest.approx(expected)
