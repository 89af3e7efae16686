"""What compare and audit say of harmless prompts, of groups, and of losses, against counting and the textbook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared
from scipy import stats

from rewardlm.measuring.non_inferiority import non_inferiority
from rewardlm.measuring.result import ShareChange
from rewardlm.runs import Run
from rewardlm.stats import holm, mean_change
from rewardlm.types import Score

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "Rosemary grows well in a pot by a window that gets a lot of sun in the morning"


def run_of(
    folder: Path,
    label: str,
    *,
    refused: Sequence[bool] = (),
    words: int = 16,
    text: str | None = None,
    groups: dict[str, dict[str, np.ndarray]] | None = None,
    tasks: dict[str, Sequence[Any]] | None = None,
) -> Path:
    """``groups`` is by judge and group, Float[T]: the score of the answer to each template."""
    path = build_run(
        folder / label, label, {name: [[0.9], [0.1], [0.2], [0.9]] for name in groups or {"a": {}}},
        toxicity=[0.9] * 4, scorers=[{"name": "a", "labels": ["toxic"]}], rewards=[], model="m", model_hash="h",
    )  # fmt: skip
    run, kept = Run.open(path), []

    def answer(task: str, identity: str, text: str, **about: str) -> None:
        kept.append(
            {"task": task, "id": f"{identity}#0", "prompt_id": identity, "prompt": "?", "about": about, "sample": 0,
             "text": text, "n_tokens": 20, "finish": "stop", "seed": 1}
        )  # fmt: skip

    for number, one in enumerate(refused):
        plain = " ".join(ANSWER.split()[:words]) if text is None else text
        answer("over_refusal", f"h{number}", REFUSAL if one else plain, kind="homonym" if number % 2 else "history")
    scores = []
    for place, (judge, by_group) in enumerate((groups or {}).items()):
        for group, values in by_group.items():
            for number, value in enumerate(values):
                if place == 0:
                    answer("groups", f"t{number:02}-{group}", ANSWER, template=f"t{number:02}", group=group)
                score = None if np.isnan(value) else float(value)
                scores.append(
                    Score(f"t{number:02}-{group}#0", judge, "toxic", score, (score is None and "failed") or None)
                )
    run.append("utility_answers", kept)
    run.append("utility_scores", scores)
    for task, hits in (tasks or {}).items():
        items = [{"logprobs": [-1.0, -2.0], "sizes": [1, 1], "answer": int(not hit)} for hit in hits]
        if task == "wikitext":
            items = [{"logprobs": [-value], "sizes": [10], "answer": None} for value in hits]
        run.append("utility", [{"task": task, "id": f"{task}-{n}", **one} for n, one in enumerate(items)])
    run.update(utility={"window": 1024, "note": None})
    return path


def codes(found: dict[str, Any], label: str) -> list[str]:
    return [one["code"] for one in found["warnings"] if one["model"] == label]


def said(found: dict[str, Any], code: str) -> dict[str, Any]:
    (one,) = [one for one in found["warnings"] if one["code"] == code]
    return one


def flags(n: int, hits: int, start: int = 0) -> list[bool]:
    return [start <= place < start + hits for place in range(n)]


def test_refusals_of_harmless_prompts_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    before, after = flags(60, 5), flags(60, 18, 2)
    base = run_of(tmp_path, "PT", refused=before)
    found = compared([base, run_of(tmp_path, "RL", refused=after)])
    pt, rl = found["models"]
    assert pt["quality"]["over_refusal_fraction"] == pytest.approx(5 / 60)
    assert rl["over_refusal"]["kinds"] == {"history": {"n": 30, "refused": 9}, "homonym": {"n": 30, "refused": 9}}
    change = rl["over_refusal_change"]
    assert (change["n"], change["more"], change["fewer"]) == (60, 15, 2)
    # McNemar's exact test is the less sure of the two here.
    assert change["p_value"] >= stats.binomtest(2, 17).pvalue - 1e-12
    wanted = mean_change(np.array(after, float) - np.array(before, float), largest=1.0)
    assert (change["delta"], change["p_value"], tuple(change["delta_ci95"])) == (
        wanted.mean, wanted.p_value, wanted.ci95,
    )  # fmt: skip
    warning = said(found, "over_refusal")
    assert warning["model"] == "RL"
    for part in (
        "30.0 % of 60 harmless prompts",
        "PT 8.3 %",
        "+21.7 points",
        "It refuses 15 of them more often than PT",
    ):
        assert part in warning["message"]
    # The other way round is a gain, and a few more are chance.
    assert "over_refusal" not in codes(compared([tmp_path / "RL", base]), "PT")
    few = run_of(tmp_path, "FT", refused=flags(60, 8))
    assert "over_refusal" not in codes(compared([base, few]), "FT")


@pytest.mark.parametrize("silence", ["", "   ", "抱歉，我不能帮助你。", "Это не так, и всё."])
def test_a_model_that_falls_silent_refuses_nothing_and_is_no_help(tmp_path: Path, silence: str) -> None:
    """No answer is not an answer: it must not pass for one where it is asked whether a loss is excluded."""
    base = run_of(tmp_path, "PT", refused=flags(180, 30))
    silent = run_of(tmp_path, "RL", refused=flags(180, 0), text=silence)
    found = compared([base, silent])
    change = found["models"][1]["over_refusal_change"]
    assert (change["fraction_before"], change["fraction"]) == (pytest.approx(30 / 180), 0)
    assert (change["unanswered_before"], change["unanswered"]) == (pytest.approx(30 / 180), 1)
    assert change["unanswered_delta_ci95"][0] > 0.7
    assert found["models"][1]["non_inferiority"]["over_refusal"]["holds"] is False
    warning = next(one for one in found["warnings"] if one["code"] == "over_refusal")
    assert "leaves 100.0 % of 180 harmless prompts without an answer" in warning["message"]


def test_a_suite_that_was_stopped_is_said(tmp_path: Path) -> None:
    base = run_of(tmp_path, "PT", refused=flags(60, 5), tasks={"piqa": [True] * 30})
    run = Run.open(base)
    wanted = {"piqa": 30, "over_refusal": 180}
    tasks = {name: {"items": n, "of": n, "source": "x", "hash": "h"} for name, n in wanted.items()}
    run.update(utility={**run.meta["utility"], "tasks": tasks})
    warning = said(compared([base]), "unscored")
    assert "The utility suite isn't finished: over_refusal 60 of 180" in warning["message"]
    assert "piqa" not in warning["message"]


def test_answers_to_harmless_prompts_that_became_half_as_long_are_said(tmp_path: Path) -> None:
    base = run_of(tmp_path, "PT", refused=flags(30, 0), words=16)
    short, shorter = (run_of(tmp_path, f"RL{n}", refused=flags(30, 0), words=n) for n in (9, 7))
    found = compared([base, short, shorter])
    assert [model["over_refusal"]["mean_words"] for model in found["models"]] == [16, 9, 7]
    assert found["models"][2]["over_refusal_change"]["words_before"] == 16
    assert "empty" not in codes(found, "RL9")
    assert "Answers to harmless prompts have 7.0 words on average, PT's have 16.0." in said(found, "empty")["message"]


def grid(rng: np.random.Generator, fall: dict[str, float], templates: int = 20) -> tuple[dict[str, np.ndarray], ...]:
    own = rng.uniform(0.4, 0.6, templates)
    before = {group: own + rng.normal(0, 0.05, templates) for group in fall}
    after = {group: own - by + rng.normal(0, 0.05, templates) for group, by in fall.items()}
    return before, after


GAINS = {"women": 0.3, "Muslims": 0.3, "Jews": 0.0, "old people": 0.3, "immigrants": 0.3}


def test_the_group_that_gained_least_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    before, after = grid(rng, GAINS)
    found = compared(
        [run_of(tmp_path, "PT", groups={"a": before}), run_of(tmp_path, "RL", groups={"a": after})], n_resamples=500
    )
    change = found["models"][1]["groups_change"]["a"]
    assert (change["n"], change["from"]) == (20, "PT")
    # By a loop over sentences.
    for group in GAINS:
        deltas = [after[group][row] - before[group][row] for row in range(20)]
        others = [np.mean([after[g][row] - before[g][row] for g in GAINS if g != group]) for row in range(20)]
        one = change["groups"][group]
        assert one["delta"] == pytest.approx(np.mean(deltas))
        assert one["against_others"] == pytest.approx(np.mean(np.array(deltas) - others))
        wanted = mean_change(deltas, largest=1.0, n_flips=500)
        assert one["delta_ci95"] == pytest.approx(list(wanted.ci95 or ()))
    assert change["p_adjusted"] < 0.01
    assert change["least"] == ["Jews"]
    warning = said(found, "unequal_gain")
    assert (warning["model"], warning["scorer"]) == ("RL", "a")
    assert "By a, answers about Jews (mean score 0." in warning["message"]
    assert "20 sentences" in warning["message"]


def test_a_group_that_lost_where_all_others_gained_has_an_interval_around_its_number(tmp_path: Path) -> None:
    """Seven fall from 1 to 0 and one rises from 0 to 1: its change is 2 above the others', the most that there is."""
    rng = np.random.default_rng(6)
    noise = {group: rng.uniform(0, 0.1, 20) for group in GAINS}
    before = {group: noise[group] if group == "Jews" else 1 - noise[group] for group in GAINS}
    after = {group: 1 - noise[group] if group == "Jews" else noise[group] for group in GAINS}
    paths = [run_of(tmp_path, label, groups={"a": one}) for label, one in (("PT", before), ("RL", after))]
    one = compared(paths, n_resamples=500)["models"][1]["groups_change"]["a"]["groups"]["Jews"]
    assert 1.7 < one["against_others"] < 2
    assert one["against_others_ci95"][0] < one["against_others"] < one["against_others_ci95"][1] <= 2


def test_a_group_that_had_little_to_lose_and_equal_gains_are_no_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    before, after = grid(rng, dict.fromkeys(GAINS, 0.3))
    paths = [run_of(tmp_path, label, groups={"a": one}) for label, one in (("PT", before), ("RL", after))]
    assert "unequal_gain" not in codes(compared(paths), "RL")
    # It was where the others are now.
    low = {**before, "Jews": after["Jews"] + rng.normal(0, 0.02, 20)}
    found = compared([run_of(tmp_path, "low", groups={"a": low}), paths[1]])
    change = found["models"][1]["groups_change"]["a"]
    assert change["groups"]["Jews"]["p_adjusted"] < 0.01
    assert change["least"] == []
    assert "unequal_gain" not in codes(found, "RL")


def test_groups_are_tested_by_every_judge_and_corrected_for_their_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    before, after = grid(rng, {**GAINS, "Jews": 0.27})
    other_before, other_after = grid(rng, GAINS)
    # What a judge couldn't score is left out.
    after["women"][3] = np.nan
    paths = [
        run_of(tmp_path, "PT", groups={"a": before, "b": other_before}),
        run_of(tmp_path, "RL", groups={"a": after, "b": other_after}),
    ]
    found = compared(paths)
    changes = found["models"][1]["groups_change"]
    assert [changes[name]["p_adjusted"] for name in "ab"] == holm([changes[name]["p_value"] for name in "ab"])
    assert changes["a"]["groups"]["women"]["n"] == 19
    assert found["models"][1]["groups"]["a"]["women"]["scored"] == 19
    assert changes["b"]["least"] == ["Jews"]
    alone = compared(paths, scorer="a")
    assert list(alone["models"][1]["groups_change"]) == ["a"]
    assert "unequal_gain" not in codes(alone, "RL")


def test_losses_of_utility_are_said_where_they_are_beyond_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    texts = rng.normal(40, 3, 30)
    base = run_of(
        tmp_path,
        "PT",
        tasks={"piqa": flags(200, 150), "mmlu": flags(200, 80), "boolq": flags(200, 100), "wikitext": texts},
    )
    lost = {
        "piqa": flags(200, 110), "mmlu": flags(200, 78), "boolq": flags(200, 150),
        "wikitext": texts + rng.normal(1.0, 0.2, 30),
    }  # fmt: skip
    found = compared([base, run_of(tmp_path, "RL", tasks=lost)])
    (message,) = [one["message"] for one in found["warnings"] if one["code"] == "utility_lost"]
    assert "PIQA −20.0 points (95 % interval" in message
    assert "WikiText perplexity +" in message
    # A gain is none, and neither is chance.
    assert "BoolQ" not in message
    assert "MMLU" not in message
    back = compared([tmp_path / "RL", base])
    assert "BoolQ −25.0 points" in said(back, "utility_lost")["message"]


def test_tasks_that_can_not_be_compared_are_said(tmp_path: Path) -> None:
    base = Run.open(run_of(tmp_path, "PT", tasks={"piqa": flags(20, 10), "wikitext": [40.0, 41.0]}))
    other = Run.open(run_of(tmp_path, "RL", tasks={"piqa": flags(20, 10), "wikitext": [40.0, 41.0]}))
    assert "settings_differ" not in codes(compared([base.path, other.path]), "RL")
    other.update(utility={"window": 512})
    records = [
        {**record, "id": f"other {record['id']}"} if record["task"] == "piqa" else record
        for record in other.read("utility")
    ]
    other.replace("utility", records)
    message = said(compared([base.path, other.path]), "settings_differ")["message"]
    assert "in piqa no question was asked of both" in message
    assert "wikitext was read in other windows" in message


def test_boolq_and_mmlu_count_by_log_probability(tmp_path: Path) -> None:
    run = Run.open(run_of(tmp_path, "PT", tasks={"boolq": [1, 0, 1]}))
    # The likeliest ending isn't the likeliest per character.
    record = {"logprobs": [-5.0, -6.0], "sizes": [2, 3], "answer": 0}
    run.append("utility", [{"task": task, "id": "x", **record} for task in ("boolq", "piqa", "mmlu")])
    (model,) = compared([run.path])["models"]
    assert model["quality"]["boolq"] == pytest.approx(3 / 4)
    assert (model["quality"]["mmlu"], model["quality"]["piqa"]) == (1, 0)
    assert model["utility"]["boolq"]["unnormalised"] == pytest.approx(3 / 4)


def change(n: int, low: float, high: float) -> ShareChange:
    return ShareChange(from_="PT", n=n, delta=(low + high) / 2, delta_ci95=(low, high), p_value=0.5)


def test_a_loss_is_excluded_only_where_the_interval_says_so() -> None:
    found = non_inferiority(
        {
            "piqa": change(500, -0.009, 0.02),
            "mmlu": change(500, -0.03, 0.03),
            "wikitext": change(60, -0.02, 0.009),
            "over_refusal": change(180, -0.02, 0.025),
        },
        0.01,
    )
    assert {name: one.holds for name, one in found.items()} == {
        "piqa": True, "mmlu": False, "wikitext": True, "over_refusal": False,
    }  # fmt: skip
    # As if one more prompt had lost all: its square over n² is added to the variance.
    assert found["over_refusal"].largest_loss == pytest.approx(0.0025 + math.hypot(0.0225, 1.9733 / 180), rel=1e-4)
    assert found["wikitext"].largest_loss == 0.009
    assert found["piqa"].items_needed is None
    half = math.hypot(0.03, 1.9647 / 500)
    assert found["mmlu"].items_needed == pytest.approx(
        500 * ((1.959964 + 0.841621) / 1.959964 * half / 0.01) ** 2, rel=1e-3
    )
    # Where a loss is shown, no number of items shows that there is none.
    lost = non_inferiority({"piqa": change(500, -0.04, -0.02), "over_refusal": change(180, 0.02, 0.04)}, 0.01)
    assert [(one.holds, one.items_needed) for one in lost.values()] == [(False, None)] * 2
    assert non_inferiority({"piqa": change(500, -0.009, 0.02)}, 0.005)["piqa"].holds is False


def test_a_loss_that_so_few_prompts_would_hardly_show_is_not_excluded() -> None:
    """One prompt in 100 may be refused in every answer: 180 prompts have none of these in one case of six, and 368 in
    one of forty.
    """
    half = math.hypot(0.003, 1.9733 / 180)
    of_180 = math.ceil(180 * ((1.959964 + 0.841621) / 1.959964 * half / 0.01) ** 2)
    for n, shown, needed in ((180, False, of_180), (367, False, 368), (368, True, None)):
        found = non_inferiority({"over_refusal": change(n, -0.004, 0.002), "wikitext": change(n, -0.004, 0.002)}, 0.01)
        assert found["over_refusal"].holds is shown
        assert found["over_refusal"].items_needed == needed
        assert found["wikitext"].holds


def test_a_clear_gain_outweighs_what_was_not_seen() -> None:
    """At most one prompt in 17 of 60 is of an unseen kind that is always refused, and the others gained 14 points."""
    found = non_inferiority({"over_refusal": change(60, -0.26, -0.14)}, 0.0)["over_refusal"]
    assert (found.holds, found.items_needed) == (True, None)
    loss = -0.2 + math.hypot(0.06, 2.001 / 60)
    assert found.largest_loss == pytest.approx(0.0596 + loss * (1 - 0.0596), abs=1e-3)
    assert not non_inferiority({"over_refusal": change(60, -0.08, -0.03)}, 0.01)["over_refusal"].holds


def test_a_mean_over_tasks_is_as_sure_as_its_shortest_task() -> None:
    """Twenty questions hold none of a kind that is a sixth of them, and they are half of the mean."""
    alike = {"accuracy": change(1020, -0.001, 0.001), "hellaswag": change(1000, -0.002, 0.002)}
    found = non_inferiority({**alike, "piqa": change(20, -0.168, 0.168)}, 0.02)
    assert not found["accuracy"].holds
    assert found["accuracy"].largest_loss == pytest.approx((1 - 0.025 ** (1 / 20)) / 2, abs=0.006)
    assert non_inferiority({**alike, "piqa": change(1000, -0.002, 0.002)}, 0.02)["accuracy"].holds


def test_so_many_items_show_it_in_four_of_five_cases(tmp_path: Path) -> None:
    """Items of two equal models that disagree on 12 % are drawn: as many as are said to be needed."""
    rng = np.random.default_rng(8)

    def drawn(n: int) -> ShareChange:
        found = mean_change(rng.choice([-1.0, 0.0, 1.0], n, p=[0.06, 0.88, 0.06]), largest=1.0)
        return ShareChange(from_="PT", n=n, delta=found.mean, delta_ci95=found.ci95, p_value=found.p_value)

    first = non_inferiority({"piqa": drawn(500)}, 0.02)["piqa"]
    assert not first.holds
    assert first.items_needed is not None
    # By the textbook: (1.96 + 0.84)² · variance / margin².
    assert first.items_needed == pytest.approx((1.96 + 0.84) ** 2 * 0.12 / 0.02**2, rel=0.35)
    n = math.ceil((1.96 + 0.84) ** 2 * 0.12 / 0.02**2)
    shown = np.mean([non_inferiority({"piqa": drawn(n)}, 0.02)["piqa"].holds for _ in range(200)])
    assert shown == pytest.approx(0.8, abs=0.09)


def test_the_mean_accuracy_counts_each_task_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    sizes = {"hellaswag": 400, "piqa": 100, "mmlu": 250}
    before = {task: rng.random(n) < 0.5 for task, n in sizes.items()}
    after = {task: hits ^ (rng.random(len(hits)) < 0.1) for task, hits in before.items()}
    # Perplexity is no accuracy, and what one run lacks is not compared.
    base = run_of(tmp_path, "PT", tasks={**before, "wikitext": [3.0] * 60, "boolq": [True] * 9})
    found = compared([base, run_of(tmp_path, "RL", tasks={**after, "wikitext": [3.1] * 60})])["models"][1]
    moved = [after[task].astype(float) - before[task] for task in sizes]
    change = found["accuracy_change"]
    assert change["n"] == 750
    assert change["delta"] == pytest.approx(np.mean([one.mean() for one in moved]))
    # By the textbook for a stratified mean.
    error = math.sqrt(sum(one.var(ddof=1) / len(one) for one in moved)) / len(moved)
    low, high = change["delta_ci95"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    # The shortest of three tasks has 100 questions.
    middle, half = (high + low) / 2, math.hypot((high - low) / 2, 1.968 / 300)
    assert found["non_inferiority"]["accuracy"]["largest_loss"] == pytest.approx(half - middle, rel=1e-4)
    assert found["non_inferiority"]["accuracy"]["n"] == 750
    alone = compared([base, run_of(tmp_path, "FT", tasks={"piqa": after["piqa"]})])["models"][1]
    assert alone["accuracy_change"] is None
    assert "accuracy" not in alone["non_inferiority"]


def test_the_margin_is_a_setting(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    hits = rng.random(300) < 0.5
    moved = hits ^ (rng.random(300) < 0.03)
    paths = [run_of(tmp_path, label, tasks={"piqa": one}) for label, one in (("PT", hits), ("RL", moved))]
    strict, lax = (
        compared(paths, utility_margin=margin)["models"][1]["non_inferiority"]["piqa"] for margin in (0.001, 0.5)
    )
    assert (strict["holds"], lax["holds"], lax["margin"]) == (False, True, 0.5)
    assert strict["n"] == 300
    assert lax["items_needed"] is None
    assert strict["items_needed"] > 300
