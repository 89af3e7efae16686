"""An experiment with two preference trainings: what the second one starts from and is given, and how it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Shell

from rewardlm import experiment
from rewardlm.config import ExperimentSettings, build, read_yaml
from rewardlm.errors import ConfigError
from rewardlm.runs import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = """
model: tiny
dtype: float32
measure: {prompts: starter, part: measure, limit: 6, scorer: [lexical], max_new_tokens: 4, similarity: false,
  perplexity: false, counter_narrative: null}
prefer: {part: train, limit: 4, reward: [lexical], witness: [], samples: 4, max_new_tokens: 4, steps: 2, batch_size: 2,
  rewards: {terms: {similarity: 0, counter_narrative: 0}}, pairs: {margin: 1.0e-6, topic: 0, topic_gap: null},
  retain: {coef: 0}, adapter_strength: 0.5}
prefer_again: {steps: 1, learning_rate: 1.0e-3, pairs: {ended_gap: 0.3}, adapter_strength: 0.8}
rlaf: {part: train, after: prefer, limit: 4, reward: [lexical], witness: [], steps: 1, batch_size: 4, max_new_tokens: 4,
  minibatches: 1, rewards: {terms: {similarity: 0, counter_narrative: 0}}}
"""


def build_small(**changed: Any) -> ExperimentSettings:
    tree: dict[str, Any] = {
        "model": "tiny",
        "measure": {"part": "measure"},
        "prefer": {"part": "train", "steps": 7, "rewards": {"terms": {"refusal": 0.7, "similarity": 0.2}}},
        "prefer_again": {"steps": 3, "rewards": {"terms": {"similarity": 0.1}}},
    }
    return build(ExperimentSettings, defaults={**tree, **changed})


def test_the_second_has_the_settings_of_the_first_under_its_own_and_starts_from_its_adapter() -> None:
    first, second = experiment._prefer_settings(build_small(), Path("/out"))
    assert (first.label, first.settings.steps, first.settings.adapter) == ("DPO", 7, None)
    assert (second.label, second.settings.steps) == ("DPO again", 3)
    assert second.settings.adapter == Path("/out/train/DPO/adapter")
    terms = second.settings.rewards.terms
    assert (terms.refusal, terms.similarity) == (0.7, 0.1)
    assert second.settings.part == "train"


def test_what_belongs_to_the_first_alone_is_not_handed_on() -> None:
    first = {
        "part": "train", "adapter_strength": 0.5, "lora": {"r": 4}, "after": "base", "preferences": "own.jsonl",
    }  # fmt: skip
    one, two = experiment._prefer_settings(build_small(prefer=first), Path("/out"))
    assert (one.strength, one.settings.lora.r, one.settings.preferences) == (0.5, 4, Path("own.jsonl"))
    assert (two.strength, two.settings.preferences, two.settings.draws) == (None, None, True)


def test_another_method_needs_no_other_name() -> None:
    again = {"method": "raft", "steps": 3}
    labels = [one.label for one in experiment._prefer_settings(build_small(prefer_again=again), Path("/out"))]
    assert labels == ["DPO", "RAFT"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prefer": None}, "the experiment has no prefer section"),
        ({"prefer_again": {"adapter": "runs/other"}}, "it goes on from the adapter of prefer"),
        ({"prefer_again": {"part": "all", "prompts": "starter"}}, "prefer_again.part to 'train'"),
        ({"prefer_again": {"after": "base"}}, "unknown setting .*after"),
        ({"prefer_again": {"adapter_strength": -1}}, "adapter_strength"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        experiment._prefer_settings(build_small(**changed), Path("/out"))


def test_the_example_trains_as_the_record_did() -> None:
    """examples/prefer.yaml is the first training of the record, and then examples/prefer-again.yaml."""
    whole = build(ExperimentSettings, defaults=read_yaml(EXAMPLES / "prefer.yaml"))
    first, second = experiment._prefer_settings(whole, Path("/out"))
    given = {"max_new_tokens": 48, "epochs": 1.6, "generation": {"top_p": 0.9}}
    assert first.settings.model_dump(include={"max_new_tokens", "epochs"}) == {"max_new_tokens": 48, "epochs": 1.6}
    assert whole.prefer == {"prompts": "rtp:packaged:toxic", "part": "train", **given}
    assert whole.prefer_again == {**read_yaml(EXAMPLES / "prefer-again.yaml"), "adapter_strength": 0.8}
    assert (first.strength, second.strength) == (None, 0.8)


@pytest.mark.slow
def test_both_are_trained_measured_and_compared_and_rl_goes_on_from_the_second(shell: Shell, tmp_path: Path) -> None:
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(SMALL)
    done = shell("run", file, "--out", out)
    assert done.code == 0, done.err
    result = json.loads((out / "comparison.json").read_text())
    assert [model["label"] for model in result["models"]] == ["PT", "DPO × 0.5", "DPO again × 0.8", "RL"]

    again = Run.open(out / "train" / "DPO-again", kind="prefer").meta["settings"]
    assert again["adapter"] == "train/DPO/adapter"
    assert (again["steps"], again["pairs"]["ended_gap"], again["pairs"]["margin"]) == (1, 0.3, 1e-6)
    assert "adapter_strength" not in again
    measured = Run.open(out / "measure" / "DPO-again", kind="measure").meta
    assert measured["adapter_strength"] == 0.8
    assert measured["settings"]["adapter"] == "train/DPO-again/adapter"
    rl = Run.open(out / "train" / "RL", kind="rlaf").meta["settings"]
    assert rl["adapter"] == "train/DPO-again/adapter"

    page = (out / "report.html").read_text("utf-8")
    assert "preference training" in page.lower()
    assert "DPO again × 0.8" in page
    for watched in ("DPO", "DPO-again"):
        said = shell("watch", out / "train" / watched)
        assert said.code == 0, said.err
        assert "dpo" in said.out.lower()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("adapter_model.safetensors")}
    assert shell("run", file, "--out", out).code == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("adapter_model.safetensors")} == before
