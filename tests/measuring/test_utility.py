"""``measure --suite utility`` on tiny: what is stored, resumed and refused; its numbers against counting by hand."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured_runs import build_run, compared
from small_models import tiny_policy
from small_steering import folder_of, saved_adapter

from one_thread import _one_thread as _one_thread
from rewardlm.config import READ_TASKS, FrontierSettings, MeasureSettings, UtilitySettings, validate
from rewardlm.data.utility import load_utility
from rewardlm.errors import ConfigError, DataError, ModelError, NotAvailableError, RunError
from rewardlm.measuring import engines, meter
from rewardlm.measuring.frontier import frontier
from rewardlm.measuring.likelihood import Likelihood
from rewardlm.measuring.utility_scores import mean_accuracies, read_utility
from rewardlm.preflight import check
from rewardlm.reporting.frontier_page import headings, rows, write_frontier_page
from rewardlm.runs import Run
from rewardlm.stats import holm, mean_change, share_ci95
from rewardlm.steering.steered import Unsteered

WORDS = ["river", "town", "bridge", "family", "story", "lid", "jar", "hand", "friend", "question", "people", "nothing"]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """Files in the layouts of the three data sets, with nonsense in them."""
    rng = np.random.default_rng(5)

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS, n))

    piqa = [{"goal": text(4), "sol1": text(3), "sol2": text(6), "label": n % 2} for n in range(70)]
    scenes = [
        {"activity_label": text(1), "ctx_a": f"{text(6)}.", "ctx_b": text(2), "label": str(n % 4),
         "endings": [text(k) for k in (2, 5, 3, 4)]} for n in range(40)
    ]  # fmt: skip
    files = {
        "piqa": tmp_path / "piqa.jsonl",
        "hellaswag": tmp_path / "hellaswag.jsonl",
        "wikitext": tmp_path / "w.tokens",
    }
    for name, found in (("piqa", piqa), ("hellaswag", scenes)):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in found))
    files["wikitext"].write_text("".join(f" = {text(1)} = \n \n {text(30 + n)} . \n" for n in range(5)))
    return files


def settings_of(data: dict[str, Path], utility: dict[str, Any] | None = None, **changes: Any) -> MeasureSettings:
    usual: dict[str, Any] = {
        "model": "tiny", "dtype": "float32", "device": "cpu", "scorer": ["lexical"], "max_new_tokens": 4, "limit": 3,
        "similarity": False, "perplexity": False, "counter_narrative": None, "suite": "utility",
        "utility": {"items": 40, "tasks": ["hellaswag", "piqa", "wikitext"], **data, **(utility or {})},
    }  # fmt: skip
    return MeasureSettings(**{**usual, **changes})


def records(run: Run) -> list[dict[str, Any]]:
    return list(run.read("utility"))


def test_every_item_is_kept_with_its_probabilities(data: dict[str, Path], tmp_path: Path) -> None:
    run = meter.measure(settings_of(data), tmp_path / "run")
    found = records(run)
    assert {task: sum(one["task"] == task for one in found) for task in ("hellaswag", "piqa", "wikitext")} == {
        "hellaswag": 40, "piqa": 40, "wikitext": 5,
    }  # fmt: skip
    assert len({(one["task"], one["id"]) for one in found}) == 85
    assert all(value < 0 for one in found for value in one["logprobs"])
    about = run.meta["utility"]
    assert (about["strength"], about["note"], about["window"]) == (0.0, None, 1023)
    assert about["tasks"]["piqa"] | {"hash": ""} == {"items": 40, "of": 70, "source": "piqa.jsonl", "hash": ""}
    # What compare says, counted by hand.
    (model,) = compared([run.path])["models"]
    for task, key in (("hellaswag", "hellaswag"), ("piqa", "piqa")):
        own = [one for one in found if one["task"] == task]
        hits = [
            max(range(len(one["sizes"])), key=lambda k, one=one: one["logprobs"][k] / one["sizes"][k]) == one["answer"]
            for one in own
        ]
        plain = [one["logprobs"].index(max(one["logprobs"])) == one["answer"] for one in own]
        assert model["quality"][key] == pytest.approx(sum(hits) / 40)
        assert model["utility"][task]["unnormalised"] == pytest.approx(sum(plain) / 40)
        assert model["utility"][task]["ci95"] == list(share_ci95(np.array(hits, float)) or ())
    own = [one for one in found if one["task"] == "wikitext"]
    nll, words = -sum(one["logprobs"][0] for one in own), sum(one["sizes"][0] for one in own)
    assert model["quality"]["wikitext_perplexity"] == pytest.approx(math.exp(nll / words))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_and_started_again_gives_the_same(
    after: int, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = meter.measure(settings_of(data), tmp_path / "whole")
    asked, of = [], Likelihood.of

    def dies(self: Likelihood, items: Any) -> Any:
        asked.append(len(items))
        if len(asked) > after:
            raise KeyboardInterrupt
        return of(self, items)

    with monkeypatch.context() as patched:
        patched.setattr(Likelihood, "of", dies)
        with pytest.raises(KeyboardInterrupt):
            meter.measure(settings_of(data), tmp_path / "killed")
    killed = Run.open(tmp_path / "killed")
    assert not killed.finished
    assert len(records(killed)) == sum(asked[:after])
    if after:
        # In the middle of a group, and of a line.
        file = tmp_path / "killed" / "utility.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:-3]) + lines[-3][:20])
    again = meter.measure(settings_of(data), tmp_path / "killed")
    assert again.finished
    key = lambda one: (one["task"], one["id"])  # noqa: E731
    assert sorted(records(again), key=key) == sorted(records(whole), key=key)
    asked.clear()
    monkeypatch.setattr(Likelihood, "of", dies)
    meter.measure(settings_of(data), tmp_path / "killed")
    assert asked == []


def test_without_the_suite_nothing_is_there_and_a_finished_run_gains_it(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = settings_of(data, suite=None)
    run = meter.measure(plain, tmp_path / "run")
    assert not (run.path / "utility.jsonl").exists()
    assert "utility" not in run.meta
    before = {file.name: file.read_bytes() for file in run.path.glob("*.jsonl")}
    (model,) = compared([run.path])["models"]
    assert [model["quality"][key] for key in ("hellaswag", "piqa", "wikitext_perplexity")] == [None] * 3
    monkeypatch.setattr(meter, "_sample_and_score", None)
    gained = meter.measure(settings_of(data), tmp_path / "run")
    assert gained.finished
    assert len(records(gained)) == 85
    assert {name: (run.path / name).read_bytes() for name in before} == before
    monkeypatch.setattr(engines, "load_policy", None)
    assert meter.measure(plain, tmp_path / "run").finished
    assert meter.measure(settings_of(data), tmp_path / "run").finished


def test_other_items_are_refused(data: dict[str, Path], tmp_path: Path) -> None:
    meter.measure(settings_of(data), tmp_path / "run")
    with pytest.raises(RunError, match=r"utility.items was 40, now 20\): choose another --out"):
        meter.measure(settings_of(data, {"items": 20}), tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(data["piqa"].read_text().splitlines(keepends=True)[:50]))
    with pytest.raises(RunError, match=r"piqa by other items, from piqa\.jsonl"):
        meter.measure(settings_of(data, {"piqa": other}), tmp_path / "run")
    # The same rows from another file are the same items.
    other.write_text("".join(reversed(data["piqa"].read_text().splitlines(keepends=True))))
    assert meter.measure(settings_of(data, {"piqa": other}), tmp_path / "run").finished


def test_what_has_no_data_is_said_and_null(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REWARDLM_DATA", raising=False)
    monkeypatch.setattr("rewardlm.data.utility._PACKAGED", dict.fromkeys(READ_TASKS, ()))
    with pytest.warns(UserWarning, match=r"no data for hellaswag, wikitext: .*stay unmeasured"):
        run = meter.measure(settings_of({"piqa": data["piqa"]}), tmp_path / "run")
    (model,) = compared([run.path])["models"]
    assert model["quality"]["piqa"] is not None
    assert model["quality"]["hellaswag"] is None
    # Once they are there, they are added.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = meter.measure(settings_of(data), tmp_path / "run")
    assert len(records(run)) == 85
    assert set(run.meta["utility"]["tasks"]) == {"hellaswag", "piqa", "wikitext"}
    # And where data are gone again, what is there stays.
    assert meter.measure(settings_of({"wikitext": data["wikitext"]}), tmp_path / "run").finished
    for none in (lambda: check(settings_of({})), lambda: meter.measure(settings_of({}), tmp_path / "none")):
        with pytest.raises(DataError, match="no data for hellaswag, piqa, wikitext"):
            none()


def test_a_server_is_not_asked(data: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="a server doesn't tell"):
        validate(
            MeasureSettings, {"model": "m", "engine": "openai", "url": "http://127.0.0.1:1/v1", "suite": "utility"}
        )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {name: saved_adapter(tiny_policy, folder / name, seed, 0.3) for seed, name in enumerate("ab")}
    return lambda name: made["a" if name == "expert" else "b"]


@pytest.mark.slow
def test_adapters_and_steering_count_at_their_strength(
    data: dict[str, Path], tmp_path: Path, adapters: Callable[[str], Path]
) -> None:
    small = {"items": 6, "tasks": ["piqa", "wikitext"]}

    def measured(name: str, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        run = meter.measure(settings_of(data, small, **changes), tmp_path / name)
        return records(run), run.meta["utility"]

    def steered(method: str, strength: float) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        folder_of(method, adapters).save(tmp_path / f"steer-{method}")
        return measured(f"{method} {strength}", steer=tmp_path / f"steer-{method}", strength=strength)

    def apart(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> float:
        assert [record["id"] for record in one] == [record["id"] for record in other]
        return max(abs(a["logprobs"][0] - b["logprobs"][0]) for a, b in zip(one, other, strict=True))

    base, _ = measured("base")
    adapter = {"adapter": adapters("toxic")}
    assert apart(measured("whole", **adapter)[0], base) > 0.1
    assert apart(measured("off", **adapter, adapter_strength=0.0)[0], base) < 1e-4
    assert steered("activation", 0.0)[0] == base
    found, about = steered("activation", 2.0)
    assert apart(found, base) > 0.1
    assert (about["strength"], about["note"]) == (2.0, None)
    # Best of n changes no probability, and the run says so.
    found, about = steered("best-of-n", 2.0)
    assert found == base
    assert about["strength"] == 0
    assert "the unsteered model's utility" in about["note"]
    # DExperts' filter makes most texts impossible, so it is left out here.
    found, about = steered("dexperts", 0.5)
    assert apart(found, base) > 0.01
    assert about["note"] == "dexperts reads texts without its filter"
    folder_of("pplm", adapters).save(tmp_path / "steer-pplm")
    with pytest.raises(NotAvailableError, match="pplm"):
        check(settings_of(data, small, steer=tmp_path / "steer-pplm", strength=1.0))


def test_a_broken_model_is_an_error(data: dict[str, Path]) -> None:
    policy = tiny_policy()
    policy.causal_lm.get_output_embeddings().weight.data.fill_(math.nan)
    (task,) = load_utility(UtilitySettings(items=2, tasks=["piqa"], piqa=data["piqa"]))
    with Unsteered().on(policy) as steered:
        reader = Likelihood(steered, 0.0, window=64, batch_tokens=100)
        with pytest.raises(ModelError, match="NaN or infinity"):
            reader.of(task.items)


def run_of(folder: Path, label: str, tasks: dict[str, Sequence[Any]], skip: int = 0, **meta: Any) -> Path:
    """A run whose model is right, or wrong, on each item of the tasks of choice; ``wikitext`` has −ln p of articles of
    ten words."""
    path = build_run(
        folder / label, label, {"a": [[0.9], [0.1], [0.2], [0.9]]}, toxicity=[0.9] * 4,
        scorers=[{"name": "a", "labels": ["toxic"]}], rewards=[], model="m", model_hash="h", **meta,
    )  # fmt: skip
    for task, values in tasks.items():
        found = []
        for n, value in enumerate(values):
            if task == "wikitext":
                found.append({"logprobs": [-value], "sizes": [10], "answer": None})
            else:
                # Right by characters where it says so; by log-probability the first ending wins.
                found.append({"logprobs": [-6.0, -9.0], "sizes": [4, 9], "answer": int(value)})
            found[-1] |= {"task": task, "id": f"{task}-{n + skip}"}
        Run.open(path).append("utility", found)
    if tasks:
        Run.open(path).update(utility={"window": 1024, "note": None})
    return path


def test_models_are_compared_item_by_item(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    before, after = (rng.random(60) < share for share in (0.7, 0.5))
    texts = rng.normal(40, 10, (2, 12))
    base = run_of(tmp_path, "PT", {"piqa": before, "hellaswag": before[:20], "wikitext": texts[0]})
    # Ten of its items are others.
    other = run_of(tmp_path, "FT", {"piqa": after, "wikitext": texts[1]}, skip=0)
    third = run_of(tmp_path, "RL", {"piqa": after[:50]}, skip=10)
    _, ft, rl = compared([base, other, third])["models"]
    assert ft["quality"]["piqa"] == pytest.approx(after.mean())
    assert ft["utility"]["piqa"]["unnormalised"] == pytest.approx(1 - after.mean())
    wanted = mean_change(after.astype(float) - before.astype(float), largest=1.0)
    change = ft["utility_change"]["piqa"]
    assert (change["n"], change["from"]) == (60, "PT")
    assert (change["delta"], tuple(change["delta_ci95"]), change["p_value"]) == (
        wanted.mean,
        wanted.ci95,
        wanted.p_value,
    )
    logs = mean_change(texts[1] - texts[0], np.full(12, 10))
    assert logs.mean is not None
    assert logs.ci95 is not None
    change = ft["utility_change"]["wikitext"]
    ratio = math.exp(texts[1].sum() / 120) / math.exp(texts[0].sum() / 120)
    assert change["delta"] == pytest.approx(ratio - 1)
    assert change["delta_ci95"] == pytest.approx([math.exp(end) - 1 for end in logs.ci95])
    assert "hellaswag" not in ft["utility_change"]
    assert rl["utility_change"]["piqa"]["n"] == 50
    ps = [ft["utility_change"]["piqa"], ft["utility_change"]["wikitext"], rl["utility_change"]["piqa"]]
    assert [one["p_adjusted"] for one in ps] == holm([one["p_value"] for one in ps])


def test_text_that_was_read_in_other_windows_is_not_compared(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, label, {"wikitext": [30.0, 40.0, 50.0]}) for label in ("PT", "FT")]
    assert "wikitext" in compared(runs)["models"][1]["utility_change"]
    Run.open(runs[1]).update(utility={"window": 512, "note": None})
    assert compared(runs)["models"][1]["utility_change"] == {}


def test_the_frontier_has_the_mean_over_shared_tasks(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    right = [rng.random(60) < 0.6 for _ in range(4)]
    runs = [
        run_of(tmp_path, "PT", {"piqa": right[0], "hellaswag": right[1][:20], "wikitext": [30.0, 40.0]}),
        run_of(tmp_path, "FT", {"hellaswag": right[2][:20], "piqa": right[3]}, adapter="a", trained_by="finetune"),
        run_of(tmp_path, "none", {}),
    ]
    found = frontier(runs, FrontierSettings(n_resamples=200))
    pt, ft, none = found.points
    assert pt.utility == pytest.approx((right[0].mean() + right[1][:20].mean()) / 2)
    assert ft.utility == pytest.approx((right[3].mean() + right[2][:20].mean()) / 2)
    assert none.utility is None
    # Two samples, of which each counts half: the interval's half width by the textbook.
    shares = [(right[0].mean(), 60), (right[1][:20].mean(), 20)]
    half = 1.96 * math.sqrt(sum(share * (1 - share) / n / 4 for share, n in shares))
    assert pt.utility_ci95 is not None
    assert pt.utility_ci95[0] == pytest.approx(pt.utility - half, abs=0.03)
    assert pt.utility_ci95[1] == pytest.approx(pt.utility + half, abs=0.03)
    assert headings(found)[7] == "utility"
    assert [row[7] for row in rows(found)] == [f"{100 * pt.utility:.1f} %", "—", f"{100 * ft.utility:.1f} %"]
    page = write_frontier_page(found, tmp_path / "page.html").read_text()
    assert "Utility against the toxic share" in page
    assert "Mean accuracy on the multiple-choice tasks" in page
    without = frontier([runs[2], run_of(tmp_path, "X", {})], FrontierSettings(n_resamples=200))
    assert "utility" not in headings(without)
    assert len(rows(without)[0]) == len(headings(without)) == 10
    page = write_frontier_page(without, tmp_path / "page.html").read_text()
    assert "Utility against" not in page


def test_a_task_that_one_run_lacks_does_not_count(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path, "PT", {"piqa": [1, 1, 0, 0], "hellaswag": [1, 1, 1, 1]}),
        run_of(tmp_path, "FT", {"piqa": [1, 0, 0]}, skip=1),
    ]
    pt, ft = mean_accuracies([read_utility(Run.open(run)) for run in runs])
    # Items 1 to 3 of PIQA.
    assert pt is not None
    assert ft is not None
    assert (pt[0], ft[0]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert mean_accuracies([{}, {}]) == [None, None]


def test_a_record_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    run = Run.open(run_of(tmp_path, "PT", {"piqa": [1]}))
    run.append("utility", [{"task": "piqa", "id": "x", "logprobs": [1.0], "sizes": [1, 2], "answer": 0}])
    with pytest.raises(RunError, match="'x' was changed by hand"):
        read_utility(run)
