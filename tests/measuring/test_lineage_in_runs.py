"""From a training of judges to a warning: what runs store of lineages, and what compare says of it without a judge."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import compared

from rewardlm.config import LoraSettings, MeasureSettings, ModelSettings, RlafSettings
from rewardlm.data.split import is_held_out
from rewardlm.interpreting.answers import choose_scorer
from rewardlm.judges.settings import JudgeTrainSettings
from rewardlm.judges.train import train_judge
from rewardlm.measuring.comparison import Comparison
from rewardlm.measuring.judging import score_run
from rewardlm.measuring.measured import load_measured
from rewardlm.measuring.meter import measure
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, save_adapter
from rewardlm.reporting.headline import findings, sentences
from rewardlm.runs import Run
from rewardlm.training.rlaf_run import start_run

PROMPTS = [f"The neighbours at number {number} are" for number in range(8)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labelled(path: Path, texts: list[str]) -> Path:
    said = (("kind", 0), ("bad", 1))
    rows = [[f"{word} words, number {i} of {path.stem}", label] for i in range(60) for word, label in said]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text", "toxicity"], *rows, *([text, 0] for text in texts)])
    return path


def judge(data: Path, out: Path, **more: object) -> str:
    size = {"epochs": 0.3, "precision": "float32", "device": "cpu", "lora": {"r": 2, "alpha": 2}}
    wanted: dict[str, Any] = {"data": [str(data)], "labels": ["toxicity"], **size, **more}
    return str(train_judge(JudgeTrainSettings(**wanted), out).path)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher that read three of the prompts, its pupil, and one that has nothing to do with either."""
    folder = tmp_path_factory.mktemp("judges")
    read = [prompt.upper() for prompt in PROMPTS if not is_held_out(prompt)][:3]  # in a data set's own letters
    teacher = judge(labelled(folder / "first.csv", read), folder / "teacher")
    pupil = judge(labelled(folder / "second.csv", []), folder / "pupil", distil=[teacher])
    stranger = judge(labelled(folder / "third.csv", []), folder / "stranger")
    return {"teacher": teacher, "pupil": pupil, "stranger": stranger}


@pytest.fixture(scope="module")
def runs(judges: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, and what a training by the pupil made of it; then the judges are gone."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    training = start_run(
        RlafSettings(model="tiny", prompts=str(folder / "prompts.txt"), reward=[judges["pupil"]]), folder / "RL-train"
    )
    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=2), seed=0)
    save_adapter(policy.model, training.path / "adapter")
    found = {}
    for label, adapter in (("PT", None), ("RL", training.path)):
        settings = MeasureSettings(
            model="tiny", adapter=adapter, label=label, prompts=str(folder / "prompts.txt"), max_new_tokens=6,
            scorer=[judges["teacher"], judges["stranger"]], similarity=False, counter_narrative=None, device="cpu",
            perplexity=False,
        )  # fmt: skip
        found[label] = measure(settings, folder / label).path
        score_run(found[label], f"{judges['pupil']}#toxicity", device="cpu")
    for path in judges.values():
        shutil.rmtree(path)
    return found


def warned(runs: dict[str, Path]) -> dict[tuple[str, str, str], str]:
    found = compared(list(runs.values()), n_resamples=50)["warnings"]
    return {(w["code"], w["model"], Path(w.get("scorer", "")).name): w["message"] for w in found}


@pytest.mark.slow
def test_a_run_counts_the_prompts_that_each_judge_and_its_teachers_read(runs: dict[str, Path]) -> None:
    counts = {Path(entry["name"]).name: entry["read_prompts"] for entry in Run.open(runs["PT"]).meta["scorers"]}
    assert counts == {"teacher": 3, "stranger": 0, "pupil#toxicity": 3}
    found = warned(runs)
    for label in runs:
        for name in ("teacher", "pupil#toxicity"):
            assert "was trained on 3 of the 8 prompts" in found["judge_read_prompts", label, name]
        assert ("judge_read_prompts", label, "stranger") not in found


@pytest.mark.slow
def test_a_judge_that_taught_the_reward_is_named(runs: dict[str, Path]) -> None:
    found = warned(runs)
    assert {key for key in found if key[0] in ("judge_taught_reward", "judge_is_reward")} == {
        ("judge_taught_reward", "RL", "teacher"),
        ("judge_is_reward", "RL", "pupil#toxicity"),
        ("judge_is_reward", "RL", ""),  # RL was also paid for what the audit measures
    }
    message = found["judge_taught_reward", "RL", "teacher"]
    assert "teacher taught pupil" in message
    assert "trained on" in message


@pytest.mark.slow
def test_the_independent_judge_speaks_first_and_chooses_for_interpretation(
    runs: dict[str, Path], judges: dict[str, str]
) -> None:
    measured = [load_measured(path) for path in runs.values()]
    assert measured[1].judges[0] == judges["teacher"]
    assert choose_scorer(measured, None) == judges["stranger"]
    result = compared(list(runs.values()), n_resamples=50)
    rewards = {run.label: run.rewards for run in measured}
    (paragraph,) = sentences(findings(Comparison.model_validate(result), rewards), measured[1].judges)
    said = "".join(text for text, _ in paragraph)
    first = min(judges.values(), key=lambda name: said.find(name) if name in said else len(said))
    assert first == judges["stranger"]
