"""The null beside a flow: by a loop over all ordered pairs of draws, under a simulated null, with a planted effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared

from rewardlm.errors import RunError
from rewardlm.measuring.comparison import METRICS, Change, Excess
from rewardlm.measuring.metrics import HIGH_ABOVE, LOW_BELOW, flow
from rewardlm.measuring.primary import adjust
from rewardlm.measuring.redraw import second_draw
from rewardlm.stats import holm

NAN = float("nan")
MIDDLES = np.array([0.1, 0.5, 0.9])


def kinds(n: int, rng: np.random.Generator) -> np.ndarray:
    """P(low, medium, high) of n prompts: most are harmless, some are often toxic."""
    return rng.dirichlet([1.0, 0.12, 0.2], n)


def draws(chances: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Scores [n, k]."""
    return MIDDLES[(rng.random((len(chances), k, 1)) > chances.cumsum(1)[:, None, :]).sum(-1)]


def bucket(score: float) -> int:
    return 0 if score < LOW_BELOW else 2 if score > HIGH_ABOVE else 1


def by_a_loop(before: np.ndarray, after: np.ndarray, again: np.ndarray | None) -> np.ndarray:
    """Every pair that is scored in both, with every other draw of its prompt by the first model, weighing one over
    their number."""
    table = np.zeros((3, 3))
    for row in range(len(before)):
        for j, (old, new) in enumerate(zip(before[row], after[row], strict=True)):
            if np.isnan(old) or np.isnan(new):
                continue
            others = [score for other, score in enumerate(before[row]) if other != j and not np.isnan(score)]
            others += [] if again is None else [score for score in again[row] if not np.isnan(score)]
            for other in others:
                table[bucket(old), bucket(other)] += 1 / len(others)
    return table


@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_second_draw_by_a_loop(more: int) -> None:
    rng = np.random.default_rng(more)
    before, after, again = (rng.random((30, k)) for k in (4, 4, max(1, more)))
    for grid in (before, after, again):
        grid[rng.random(grid.shape) < 0.1] = NAN
    found = second_draw(before, after, again=again if more else None, n_resamples=100)
    assert found is not None
    # Rows are as long as the flow's, and go where the loop says.
    table, _ = flow(before, after)
    expected = by_a_loop(before, after, again if more else None)
    assert [sum(row) for row in found.flow] == pytest.approx([sum(row) for row in table])
    shares = np.array(found.flow) / np.sum(found.flow, axis=1, keepdims=True)
    assert shares == pytest.approx(expected / expected.sum(1, keepdims=True))
    for a in range(3):
        for b in range(3):
            cell = found.excess[a][b]
            assert cell is not None
            difference = table[a][b] / sum(table[a]) - shares[a, b]
            assert cell.delta == pytest.approx(difference, abs=1e-9)


def test_by_hand() -> None:
    before = np.array([[0.9, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, NAN]])
    after = np.full((2, 4), 0.1)
    found = second_draw(before, after, n_resamples=100)
    assert found is not None
    # The first high answer has three others, all low; each of the two others one high and one low.
    assert found.flow[2] == pytest.approx([1 + 2 * 0.5, 0, 2 * 0.5])
    # Low: three answers with one high and two low others each, and one with two high ones.
    assert found.flow[0] == pytest.approx([3 * 2 / 3, 0, 3 / 3 + 1])
    assert found.excess[1] == [None] * 3
    cell = found.excess[2][0]
    assert cell is not None
    assert cell.delta == pytest.approx(1 - 2 / 3)
    assert (cell.ci95, cell.p_value, cell.prompts) == (None, None, 2)


def test_one_answer_a_prompt_has_no_second_draw() -> None:
    before, after = np.array([[0.9], [0.1]]), np.array([[0.1], [0.1]])
    assert second_draw(before, after) is None
    again = np.array([[0.1], [NAN]])
    found = second_draw(before, after, again=again)
    assert found is not None
    # The low answer's prompt has no second draw, so what that does to low answers is not known; it isn't nothing.
    assert found.flow == [None, [0, 0, 0], [1, 0, 0]]
    assert found.excess[0] == [None] * 3


def test_only_draws_that_may_stand_in_do() -> None:
    before = np.array([[0.9, 0.1, 0.5]])
    after = np.array([[0.1, NAN, NAN]])
    usable = np.array([[True, False, True]])
    found = second_draw(before, after, usable=usable)
    assert found is not None
    assert found.flow[2] == [0, 1, 0]


def excess(before: np.ndarray, after: np.ndarray, seed: int, again: np.ndarray | None = None) -> Excess | None:
    """Of high → low."""
    found = second_draw(before, after, again=again, n_resamples=300, seed=seed)
    return None if found is None else found.excess[2][0]


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "k"), [(10, 4), (40, 4), (57, 2), (57, 1)])
def test_the_same_model_twice_is_claimed_to_move_nothing(prompts: int, k: int) -> None:
    """The same model answers twice: at most one time in twenty the interval leaves zero out. The naive flow would say
    every time that most high answers became low."""
    rng = np.random.default_rng(prompts + k)
    claimed, moved, trials = 0, [], 300
    for trial in range(trials):
        chances = kinds(prompts, rng)
        before, after = draws(chances, k, rng), draws(chances, k, rng)
        cell = excess(before, after, trial, draws(chances, 1, rng) if k == 1 else None)
        table, _ = flow(before, after)
        if sum(table[2]):
            moved.append(table[2][0] / sum(table[2]))
        if cell is None or cell.ci95 is None:
            continue
        low, high = cell.ci95
        assert (low > 0 or high < 0) == (cell.p_value < 0.05)
        claimed += low > 0 or high < 0
    assert np.mean(moved) > 0.35
    # 0.05 and three standard errors of 300 trials.
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


@pytest.mark.slow
def test_a_planted_effect_is_found_and_its_interval_covers_it() -> None:
    """The other model turns four of five high answers low. A second draw would turn fewer."""
    rng = np.random.default_rng(5)
    found, covered, trials = 0, 0, 100
    for trial in range(trials):
        chances = kinds(150, rng)
        tuned = chances @ np.array([[1, 0, 0], [0, 1, 0], [0.8, 0, 0.2]])
        cell = excess(draws(chances, 4, rng), draws(tuned, 4, rng), trial)
        assert cell is not None
        low, high = cell.ci95
        truth = (chances[:, 2] * (tuned[:, 0] - chances[:, 0])).sum() / chances[:, 2].sum()
        found += low > 0
        covered += low <= truth <= high
    assert found >= 90
    assert covered >= 88


@pytest.mark.parametrize("resamples", [0, 300])
@pytest.mark.parametrize("prompts", [8, 40])
def test_where_nothing_moved_the_interval_holds_what_may_have_gone_unseen(prompts: int, resamples: int) -> None:
    """Were more prompts than that of a kind that moves, a sample without one would be rarer than 2.5 %."""
    still = np.repeat([[0.9], [0.1]], prompts, axis=0) * np.ones((1, 2))
    found = second_draw(still, still, n_resamples=resamples)
    assert found is not None
    cell = found.excess[2][0]
    assert cell is not None
    low, high = cell.ci95
    assert (low, cell.p_value) == (-high, 1)
    assert (1 - high) ** prompts == pytest.approx(0.025)
    # All fell: no width either, but for the prompts that weren't seen.
    fell = second_draw(still, np.full(still.shape, 0.1), n_resamples=resamples)
    assert fell is not None
    assert fell.excess[2][0] is not None
    low, high = fell.excess[2][0].ci95
    assert 0 < low < high == 1


def test_flows_of_several_models_and_judges_are_corrected_together(tmp_path: Path) -> None:
    """Two models that are the baseline again, three judges that see nearly the same: five pages of a hundred may claim
    something. Uncorrected, it is thirty."""
    rng = np.random.default_rng(1)
    claimed, uncorrected, trials = 0, 0, 30
    for _ in range(trials):
        chances = rng.dirichlet([1, 0.12, 0.35], 60)
        grids = [draws(chances, 4, rng) for _ in range(3)]
        entries = []
        for _ in range(3):
            seen = [np.where(rng.random(g.shape) < 0.15, MIDDLES[rng.integers(0, 3, g.shape)], g) for g in grids]
            for other in seen[1:]:
                found = second_draw(seen[0], other, n_resamples=0)
                assert found is not None
                unasked = {f"{of}p_value": None for of in (*METRICS.values(), "delta_worst_")}
                judge = str(len(entries) // 2)
                entries.append(Change.model_construct(scorer=judge, split="all", flow_excess=found.excess, **unasked))
        cells = [entry.flow_excess[2][0] for entry in adjust(entries, None)]
        expected = holm([cell.p_value for cell in cells])
        assert [cell.p_adjusted for cell in cells] == expected
        claimed += min(cell.p_adjusted for cell in cells) < 0.05
        uncorrected += min(cell.p_value for cell in cells) < 0.05
    assert uncorrected / trials > 0.12
    assert claimed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_runs_that_share_random_numbers_are_found_out(tmp_path: Path) -> None:
    """A third of the second run's answers are the first's, word for word, under the same number. What a model says
    under every number is no sign of that."""
    rng = np.random.default_rng(0)
    n, k = 60, 4
    one = [[f"a b {i} {j} e" if j else "I can't help with that" for j in range(k)] for i in range(n)]
    alike = rng.random((n, k)) < 1 / 3
    two = [[one[i][j] if alike[i, j] else f"e f g h {i} {j}" for j in range(k)] for i in range(n)]
    scores = {"judge": np.full((n, k), 0.1).tolist()}
    paths = [build_run(tmp_path / x, x, scores, texts=t) for x, t in (("PT", one), ("RL", two))]
    assert high_to_low(compared(paths, n_resamples=100))["common_draws"] == pytest.approx(alike.mean())
    always = [["I can't help with that"] * k] * n
    same = [build_run(tmp_path / f"{x}2", x, scores, texts=always) for x in ("PT", "RL")]
    assert high_to_low(compared(same, n_resamples=100))["common_draws"] == pytest.approx(0)


def test_many_prompts_take_students_t_and_agree_with_the_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    chances = kinds(600, rng)
    before, after = draws(chances, 2, rng), draws(chances, 2, rng)
    by_t = excess(before, after, 0)
    monkeypatch.setattr("rewardlm.measuring.redraw._ENOUGH", 10_000)
    by_relabelling = excess(before, after, 0)
    assert by_t is not None
    assert by_relabelling is not None
    assert by_t.ci95 == pytest.approx(by_relabelling.ci95, abs=0.02)
    assert by_t.p_value == pytest.approx(by_relabelling.p_value, abs=0.06)


def high_to_low(result: dict[str, Any]) -> dict[str, Any]:
    (entry,) = [entry for entry in result["comparisons"] if entry["split"] == "all"]
    return entry


def test_compare_has_it_beside_every_flow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chances = kinds(40, rng)
    scores = [draws(chances, 4, rng) for _ in range(2)]
    runs = [
        build_run(tmp_path / name, name, {"judge": grid.tolist()})
        for name, grid in zip(("PT", "FT"), scores, strict=True)
    ]
    result = compared(runs, n_resamples=200)
    for entry in result["comparisons"]:
        if entry["n"] == 0:
            assert entry["flow_redraw"] is None
            continue
        assert np.sum(entry["flow_redraw"], axis=1) == pytest.approx(np.sum(entry["flow"], axis=1))
    whole = high_to_low(result)
    expected = by_a_loop(*scores, None)
    assert np.array(whole["flow_redraw"]) == pytest.approx(expected)
    assert set(whole["flow_excess"][2][0]) == {"delta", "ci95", "p_value", "prompts", "p_adjusted"}
    assert result["settings"]["redraw"] is None


def test_a_run_of_one_answer_a_prompt_takes_a_second_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chances = kinds(30, rng)
    grids = [draws(chances, 1, rng) for _ in range(3)]
    paths = [
        build_run(tmp_path / str(number), label, {"judge": grid.tolist()}, model="tiny")
        for number, (label, grid) in enumerate(zip(("PT", "FT", "PT"), grids, strict=True))
    ]
    alone = high_to_low(compared(paths[:2], n_resamples=200))
    assert (alone["flow_redraw"], alone["flow_excess"]) == (None, None)
    result = compared(paths[:2], redraw=paths[2], n_resamples=200)
    assert np.array(high_to_low(result)["flow_redraw"]) == pytest.approx(by_a_loop(*grids))
    # It is no model of the table.
    assert [model["label"] for model in result["models"]] == ["PT", "FT"]
    assert result["settings"]["redraw"] == "PT (2)"
    for key in ("models", "warnings"):
        assert result[key] == compared(paths[:2], n_resamples=200)[key]


def test_what_is_no_second_draw_is_refused(tmp_path: Path) -> None:
    scores = {"judge": [[0.1], [0.9]]}
    first = build_run(tmp_path / "a", "PT", scores, model="tiny")
    other = build_run(tmp_path / "b", "FT", scores, model="tiny", adapter_hash="f" * 64)
    with pytest.raises(RunError, match=r"no second draw .* adapter_hash"):
        compared([first, other], redraw=other)
    with pytest.raises(RunError, match="same seed"):
        compared([first, other], redraw=first)
    strangers = build_run(tmp_path / "c", "PT", scores, model="tiny", prompts=["One", "Two"])
    with pytest.raises(RunError, match="prompts_differ"):
        compared([first, other], redraw=strangers)
    from rewardlm.runs import Run

    for path, seed in ((first, 3), (strangers, 3)):
        run = Run.open(path)
        run.update(settings={**run.meta["settings"], "seed": seed})
    with pytest.raises(RunError, match=r"same seed as .* \(3\)"):
        compared([first, other], redraw=strangers)
    run.update(settings={**run.meta["settings"], "seed": 4, "max_new_tokens": 5})
    with pytest.raises(RunError, match="max_new_tokens differ"):
        compared([first, other], redraw=strangers)
