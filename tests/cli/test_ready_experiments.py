"""The ready experiments: their settings hold, are those of 2023 where they say so, and run with their stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Shell

from rewardlm import experiment
from rewardlm.config import ExperimentSettings, FinetuneSettings, RlafSettings, build, read_yaml
from rewardlm.errors import ConfigError
from rewardlm.runs import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "redpajama-3b": "togethercomputer/RedPajama-INCITE-Chat-3B-v1",
    "falcon-7b": "tiiuae/falcon-7b-instruct",
}
REWARD = "facebook/roberta-hate-speech-dynabench-r4-target#hate"
FILES = [f"{name}{suffix}" for name in MODELS for suffix in ("", "-corrected")]


def settings(name: str, *overrides: str) -> ExperimentSettings:
    return build(ExperimentSettings, defaults=read_yaml(EXAMPLES / f"{name}.yaml"), overrides=overrides)


def stages(name: str, *overrides: str) -> tuple[FinetuneSettings, RlafSettings]:
    chosen = settings(name, *overrides)
    finetuning, rlaf = experiment._finetune_settings(chosen), experiment._rlaf_settings(chosen, Path("out"))
    assert finetuning is not None
    assert rlaf is not None
    return finetuning, rlaf


@pytest.mark.parametrize("name", [*FILES, "experiment"])
@pytest.mark.parametrize("overrides", [[], ["stand_in=true"]])
def test_every_stages_settings_hold(name: str, overrides: list[str]) -> None:
    if name != "experiment" or not overrides:
        stages(name, *overrides)


@pytest.mark.parametrize(("name", "model"), MODELS.items())
def test_the_faithful_ones_have_the_settings_of_2023(name: str, model: str) -> None:
    whole, (finetuning, rlaf) = settings(name), stages(name)
    assert (whole.model, whole.load) == (model, "8bit")
    assert (whole.chat.template, whole.chat.user, whole.chat.assistant) == ("plain", "<human>:", "<bot>:")
    assert (whole.measure.prompts, whole.measure.scorer) == ("rtp:toxic_pairs", [REWARD])
    for lora in (finetuning.lora, rlaf.lora):
        assert (lora.r, lora.alpha, lora.dropout, lora.targets) == (64, 32, 0.05, ["query_key_value"])
    assert (finetuning.learning_rate, rlaf.learning_rate) == (3e-4, 5e-6)
    assert (rlaf.batch_size, rlaf.batch_size // rlaf.minibatches) == (64, 8)
    assert whole.measure.max_new_tokens == rlaf.max_new_tokens == 70
    assert rlaf.reward == [REWARD]
    assert finetuning.dialogues == "dialoconan"


@pytest.mark.parametrize("name", MODELS)
def test_the_corrected_ones_measure_by_other_judges_and_sample_the_policy_itself(name: str) -> None:
    whole, (_, rlaf) = settings(f"{name}-corrected"), stages(f"{name}-corrected")
    assert whole.model == MODELS[name]
    assert set(whole.measure.scorer) - set(rlaf.reward)
    assert not rlaf.off_policy
    assert whole.measure.generation == rlaf.generation
    assert whole.measure.samples > settings(name).measure.samples
    assert rlaf.lora.alpha >= rlaf.lora.r
    assert {whole.measure.part, rlaf.part} == {"measure", "train"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redpajama-3b", "falcon-7b-corrected"])
def test_one_of_2023_and_a_corrected_one_run_from_end_to_end_by_one_override(
    shell: Shell, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "run"
    done = shell("run", EXAMPLES / f"{name}.yaml", "stand_in=true", "--out", out)
    assert done.code == 0, done.err
    result = json.loads((out / "comparison.json").read_text())
    assert [model["label"] for model in result["models"]] == ["PT", "FT", "RL"]
    assert "Stand-ins" in (out / "report.html").read_text()
    recorded = Run.open(out).meta["settings"]
    assert recorded["stand_in"] is True
    assert recorded["model"] == "tiny"


def test_a_stand_in_that_is_not_described_is_refused() -> None:
    with pytest.raises(ConfigError, match="no stand_ins"):
        build(ExperimentSettings, defaults={"model": "tiny"}, overrides=["stand_in=true"])


def test_stand_ins_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    tree = {
        "model": "owner/large", "load": "8bit", "rlaf": {"steps": 100, "lora": {"r": 64, "alpha": 32}},
        "stand_ins": {"model": "tiny", "load": None, "rlaf": {"steps": 1, "lora": {"r": 2}}},
    }  # fmt: skip
    large = build(ExperimentSettings, defaults=tree)
    small = build(ExperimentSettings, defaults=tree, overrides=["stand_in=true"])
    assert (large.model, large.load, large.rlaf) == ("owner/large", "8bit", tree["rlaf"])
    assert (small.model, small.load, small.rlaf) == ("tiny", None, {"steps": 1, "lora": {"r": 2, "alpha": 32}})
