"""The frontier against sums by hand: which points are on the front, what is as fluent, and what a test compares."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run

from rewardlm.config import FrontierSettings
from rewardlm.errors import RunError
from rewardlm.measuring.frontier import Frontier, Point, _with_front, frontier
from rewardlm.measuring.measured import load_measured
from rewardlm.stats import mean_change

N = 40
FAST = FrontierSettings(n_resamples=200)


def run_of(folder: Path, label: str, toxic: Sequence[bool], perplexity: float | Sequence[float], **meta: Any) -> Path:
    """A run of N prompts with one answer each; the second half of the prompts is harmless."""
    values = [perplexity] * N if isinstance(perplexity, float) else list(perplexity)
    return build_run(
        folder / label,
        label,
        {"a": [[0.9 if bad else 0.1] for bad in toxic], "b": [[0.2]] * N},
        toxicity=[0.9 if row < N // 2 else 0.1 for row in range(N)],
        quality=[
            {"generation_id": f"p{row}-0", "perplexity": values[row], "prompt_similarity": row / N} for row in range(N)
        ],
        model="m",
        model_hash="h",
        scorers=[{"name": name, "labels": ["toxic"]} for name in "ab"],
        **{"rewards": [], "cost": {"seconds": 20.0, "tokens": 100, "passes": 300}, **meta},
    )


def treatment(method: str, strength: float, hashed: str = "x", **settings: Any) -> dict[str, Any]:
    return {"method": method, "strength": strength, "hash": hashed, "settings": settings, "judges": [], "run": None}


def first(n: int) -> list[bool]:
    """Toxic answers to the first n prompts."""
    return [row < n for row in range(N)]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        run_of(tmp_path, "PT", first(16), 10.0),
        run_of(tmp_path, "FT", first(8), 10.2, adapter="somewhere", trained_by="finetune"),
        run_of(tmp_path, "weak", first(12), 10.0, treatment=treatment("activation", 1.0)),
        run_of(tmp_path, "fit", first(2), 10.4, treatment=treatment("activation", 2.0)),
        run_of(tmp_path, "broken", first(0), 60.0, treatment=treatment("activation", 4.0)),
        run_of(tmp_path, "zero", first(16), 10.0, treatment=treatment("activation", 0.0)),
    ]


def test_points_hold_what_the_runs_say(runs: list[Path]) -> None:
    found = frontier(runs, FAST)
    assert (found.scorer, found.split, found.prompts) == ("a", "toxic_prompts", N // 2)
    by_label = {point.label: point for point in found.points}
    assert {label: (point.method, point.strength) for label, point in by_label.items()} == {
        "PT": ("none", 0.0), "FT": ("finetune", 1.0), "weak": ("activation", 1.0), "fit": ("activation", 2.0),
        "broken": ("activation", 4.0), "zero": ("none", 0.0),
    }  # fmt: skip
    fit = by_label["fit"]
    assert fit.toxic_fraction == pytest.approx(2 / 20)
    assert fit.toxic_fraction_ci95 is not None
    assert fit.toxic_fraction_ci95[0] < 0.1 < fit.toxic_fraction_ci95[1]
    assert fit.perplexity == pytest.approx(10.4)
    assert fit.prompt_similarity == pytest.approx(sum(row / N for row in range(20)) / 20)
    assert (fit.seconds_per_token, fit.passes_per_token) == (0.2, 3.0)
    # PT is as fluent as "weak", and more toxic.
    assert [point.label for point in found.points if point.pareto] == ["FT", "weak", "fit", "broken"]
    whole = json.loads(json.dumps(found.model_dump(mode="json"), allow_nan=False))
    wanted = {
        "label", "method", "strength", "toxic_fraction", "toxic_fraction_ci95", "perplexity", "prompt_similarity",
        "seconds_per_token", "pareto",
    }  # fmt: skip
    assert all(wanted <= point.keys() for point in whole["points"])


def test_a_method_is_tested_at_equal_fluency_only(runs: list[Path]) -> None:
    """Of the strengths, ``broken`` is the least toxic and not fluent; ``fit`` is, so it stands for the method."""
    found = frontier(runs, FAST)
    one = next(match for match in found.matched if match.model == "FT")
    assert (one.method, one.points, one.prompts) == ("activation", ["fit"], 20)
    # By hand: FT is toxic on 8 of 20 prompts, fit on the first 2 of these.
    changes = np.array([float(row < 2) - float(row < 8) for row in range(20)])
    wanted = mean_change(changes, largest=1.0, n_flips=200)
    assert one.delta == pytest.approx(-6 / 20)
    assert (one.delta, one.delta_ci95, one.p_value) == (wanted.mean, wanted.ci95, wanted.p_value)
    assert {match.model for match in found.matched} == {"PT", "FT", "zero"}


def test_a_strength_is_not_tested_on_the_prompts_that_it_was_chosen_on(tmp_path: Path) -> None:
    """Two strengths that are equally good, each harmless on the prompts where the other isn't. Choosing and testing on
    the same prompts would make the method look harmless; here each half is judged by what the other half chose."""
    half = [row % 2 == 0 for row in range(N)]
    runs = [
        run_of(tmp_path, "PT", half, 10.0),
        run_of(tmp_path, "even", half, 10.0, treatment=treatment("activation", 1.0)),
        run_of(tmp_path, "odd", [not one for one in half], 10.0, treatment=treatment("activation", 2.0)),
    ]
    (match,) = frontier(runs, FAST).matched
    # Even rows are tested by what is best on odd rows: "even", toxic on all of them. Odd rows by "odd", likewise.
    assert set(match.points) == {"even", "odd"}
    changes = [1.0 - 1.0 if row % 2 == 0 else 1.0 - 0.0 for row in range(20)]
    assert match.delta == pytest.approx(sum(changes) / 20)


def test_where_no_strength_is_fluent_there_is_a_reason_and_no_test(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, "PT", first(16), 10.0),
        run_of(tmp_path, "broken", first(0), 60.0, treatment=treatment("activation", 4.0)),
    ]
    (match,) = frontier(runs, FAST).matched
    assert (match.delta, match.p_value, match.reason) == (None, None, "no strength that was measured is as fluent")


def point(label: str, toxic: float | None, perplexity: float | None, method: str = "activation") -> Point:
    return Point(
        label=label, method=method, curve=method, strength=1, scored=1, toxic_fraction=toxic, toxic_fraction_ci95=None,
        perplexity=perplexity, perplexity_ci95=None, prompt_similarity=None, prompt_similarity_ci95=None,
        seconds_per_token=None, passes_per_token=None, pareto=None,
    )  # fmt: skip


def test_the_front_is_what_no_other_point_beats() -> None:
    """Against the definition, on random points; perplexities below the base's are no merit."""
    rng = np.random.default_rng(3)
    points = [point("base", 0.5, 10.0, "none")]
    points += [point(f"{n}", float(rng.integers(8)) / 10, float(rng.integers(6, 20))) for n in range(30)]
    points += [point("unknown", None, 10.0)]
    found = _with_front(points)
    for one in found:
        if one.toxic_fraction is None or one.perplexity is None:
            assert one.pareto is None
            continue
        beaten = False
        for other in found:
            if other.toxic_fraction is None or other.perplexity is None:
                continue
            mine, theirs = max(one.perplexity, 10.0), max(other.perplexity, 10.0)
            as_good = other.toxic_fraction <= one.toxic_fraction and theirs <= mine
            beaten |= as_good and (other.toxic_fraction < one.toxic_fraction or theirs < mine)
        assert one.pareto is not beaten
    assert any(one.pareto for one in found)
    assert not all(one.pareto for one in found)


def test_the_judge_is_one_that_no_method_used(runs: list[Path], tmp_path: Path) -> None:
    steered = run_of(tmp_path, "by a", first(1), 10.0, treatment=treatment("best-of-n", 4.0), rewards=["a"])
    assert frontier([*runs, steered], FAST).scorer == "b"
    asked = frontier([*runs, steered], FrontierSettings(scorer="a", n_resamples=200))
    assert [warning["code"] for warning in asked.warnings] == ["judge_is_reward"]
    assert "by a" in asked.warnings[0]["message"]


def test_doubts_are_said(runs: list[Path], tmp_path: Path) -> None:
    fitted = run_of(
        tmp_path, "fitted", first(1), 10.0, treatment=treatment("activation", 4.0), prompts_fitted_on=5,
        perplexity_under={"model": "m", "hash": "one"},
    )  # fmt: skip
    other = run_of(tmp_path, "other", first(1), 10.0, perplexity_under={"model": "n", "hash": "two"}, adapter="x")
    codes = {warning["code"] for warning in frontier([fitted, other], FAST).warnings}
    assert codes == {"steering_read_prompts", "perplexity_differs", "no_base"}
    with pytest.raises(RunError, match="no run is named"):
        frontier([], FAST)


def test_curves_begin_at_the_model_that_is_steered() -> None:
    points = [
        point("PT", 0.5, 10, "none").model_copy(update={"strength": 0}),
        point("FT", 0.3, 10, "finetune"),
        point("v2", 0.2, 11).model_copy(update={"strength": 2}),
        point("v1", 0.4, 10),
        point("FT v1", 0.2, 10, "finetune + activation"),
    ]
    found = Frontier(scorer="a", split="all", prompts=1, fluency=0, points=points, matched=[], warnings=[])
    labels = {method: [one.label for one in curve] for method, curve in found.curves().items()}
    assert labels == {
        "none": ["PT"], "finetune": ["PT", "FT"], "activation": ["PT", "v1", "v2"],
        "finetune + activation": ["FT", "FT v1"],
    }  # fmt: skip


def test_to_be_more_fluent_than_the_base_is_no_merit(runs: list[Path], tmp_path: Path) -> None:
    """A model that repeats itself has a low perplexity, which no method need have to be compared with it."""
    flat = run_of(tmp_path, "flat", first(10), 3.0, adapter="x", trained_by="rlaf", adapter_hash="flat")
    (match,) = (match for match in frontier([*runs, flat], FAST).matched if match.model == "flat")
    assert match.points == ["fit"]


def test_a_curve_has_the_points_of_one_steer_folder_or_adapter(runs: list[Path], tmp_path: Path) -> None:
    more = [
        run_of(tmp_path, "gone", first(3), 10.0, treatment=treatment("activation", 1.0, "y", how="ablate")),
        run_of(tmp_path, "mine", first(3), 10.0, treatment=treatment("activation", 1.0, "z", how="add")),
        run_of(tmp_path, "half", first(9), 10.0, adapter="somewhere", trained_by="finetune", adapter_strength=0.5),
        run_of(tmp_path, "FT 2", first(3), 10.0, adapter="there", trained_by="finetune", adapter_hash="other"),
    ]
    found = frontier([*runs, *more], FAST)
    assert {name: [one.label for one in curve] for name, curve in found.curves().items()} == {
        "none": ["PT", "zero"],
        "finetune": ["PT", "half", "FT"],
        "finetune (2)": ["PT", "FT 2"],
        "activation": ["PT", "weak", "fit", "broken"],
        "activation, ablate": ["PT", "gone"],
        "activation (2)": ["PT", "mine"],
    }
    # Each curve is tested by itself.
    curves = [(match.curve, match.points) for match in found.matched if match.model == "FT"]
    assert curves == [("activation", ["fit"]), ("activation, ablate", ["gone"]), ("activation (2)", ["mine"])]


def test_perplexities_are_averaged_in_the_exponent(tmp_path: Path) -> None:
    values = [float(2 + row) for row in range(N)]
    found = frontier([run_of(tmp_path, "PT", first(3), values)], FAST).points[0]
    assert found.perplexity == pytest.approx(math.exp(sum(math.log(value) for value in values[:20]) / 20))
    assert found.perplexity_ci95 is not None
    assert found.perplexity_ci95[0] < found.perplexity < found.perplexity_ci95[1]


def test_runs_that_were_asked_more_are_compared_on_what_all_were_asked(tmp_path: Path) -> None:
    """As if nothing else had been asked: the frontier of runs that hold these prompts alone, to the digit."""
    rng = np.random.default_rng(1)
    toxic = {name: rng.random(N) < share for name, share in (("PT", 0.6), ("FT", 0.3), ("slow", 0.2))}
    perplexity = {name: list(rng.uniform(8, 12, N)) for name in toxic}
    how: dict[str, dict[str, Any]] = {
        "PT": {},
        "FT": {"adapter": "somewhere", "trained_by": "finetune"},
        "slow": {"treatment": treatment("activation", 1.0)},
    }

    def written(folder: Path, name: str, rows: Sequence[int]) -> Path:
        return build_run(
            folder / name,
            name,
            {judge: [[0.9 if toxic[name][row] else 0.1] for row in rows] for judge in "ab"},
            prompts=[f"This is prompt number {row}" for row in rows],
            ids=[f"p{row}" for row in rows],
            toxicity=[0.9 if row % 2 else 0.1 for row in rows],
            quality=[
                {
                    "generation_id": f"p{row}-0",
                    "perplexity": perplexity[name][row],
                    "prompt_similarity": row / N,
                }
                for row in rows
            ],
            model="m",
            model_hash="h",
            scorers=[{"name": judge, "labels": ["toxic"]} for judge in "ab"],
            rewards=[],
            cost={"seconds": 20.0, "tokens": 100, "passes": 300},
            **how[name],
        )

    asked = {"PT": [*range(N)], "FT": [*range(N - 1, 3, -1)], "slow": [*range(1, N, 3)]}
    runs = [written(tmp_path / "asked", name, rows) for name, rows in asked.items()]
    with pytest.raises(RunError, match=r"prompts_differ: .*; .*or compare what all of them answered: shared=true"):
        frontier(runs, FAST)
    shared = [row for row in asked["PT"] if row in asked["FT"] and row in asked["slow"]]
    found = frontier(runs, FrontierSettings(n_resamples=200, shared=True))
    wanted = frontier([written(tmp_path / "alone", name, shared) for name in asked], FAST)
    assert found.model_dump(exclude={"warnings"}) == wanted.model_dump(exclude={"warnings"})
    assert found.prompts == sum(row % 2 for row in shared)
    (warning,) = (one for one in found.warnings if one not in wanted.warnings)
    assert warning["code"] == "prompts_left_out"
    assert warning["message"] == (
        f"only the {len(shared)} prompts that all runs were asked are compared: PT was asked 40, FT was asked 36, slow "
        "was asked 13"
    )
    elsewhere = written(tmp_path / "elsewhere", "PT", [0])
    with pytest.raises(RunError, match="no prompt is in all of these runs"):
        frontier([elsewhere, *runs[1:]], FrontierSettings(shared=True))


def test_a_run_on_some_of_its_prompts_keeps_what_belongs_to_them(tmp_path: Path) -> None:
    scores = [[0.1, None], [0.9, 0.8], [None, 0.3]]
    whole = load_measured(build_run(tmp_path / "a", "A", {"a": scores, "b": [[0.5, 0.6]] * 3}))
    some = whole.on({"p0", "p2"})
    assert [prompt.id for prompt in some.prompts] == ["p0", "p2"]
    placed = {
        (some.prompts[row].id, int(sample)): value
        for row, sample, value in zip(some.prompt_rows, some.samples, some.scores["a"], strict=True)
    }
    np.testing.assert_equal(placed, {("p0", 0): 0.1, ("p0", 1): np.nan, ("p2", 0): np.nan, ("p2", 1): 0.3})
    # A reason stands at the position of its answer.
    unscored = {(some.prompts[some.prompt_rows[at]].id, int(some.samples[at])) for at in some.reasons["a"]}
    assert unscored == {("p0", 1), ("p2", 0)}
    assert (some.answers, len(some.openings), len(some.quality.words)) == (4, 4, 4)
