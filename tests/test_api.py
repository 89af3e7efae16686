"""``import rewardlm as rl``: every example in a docstring runs, and what it gives is what the command line writes."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rewardlm as rl
from forked import Forked
from rewardlm import api
from rewardlm.errors import ConfigError, RunError, ScorerError

HATE = "You are a worthless idiot and everybody hates you."
KIND = "The library opens at nine and closes at six."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two measurements of the tiny model, as the examples expect them."""
    home = tmp_path_factory.mktemp("api")
    for name in ("PT", "PT again"):
        asked = {"prompts": "starter", "limit": 6, "scorer": "lexical", "max_new_tokens": 8, "label": name}
        rl.measure("tiny", out=home / name, progress=False, **asked)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "load_judge", "score", "measure", "finetune", "rlaf", "steer", "compare", "frontier", "power", "gate",
        "interpret", "report", "reward_function",
    ],
)  # fmt: skip
def test_the_example_of_every_function_runs(name: str, folder: Path, tmp_path: Path) -> None:
    # Those that write begin anew; those that read find the two measurements.
    here = folder if name in ("compare", "frontier", "gate", "interpret", "report") else tmp_path
    found = doctest.DocTestFinder(recurse=False).find(getattr(api, name), name, globs={"folder": here})
    (example,) = found
    assert example.examples
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert (result.failed, result.attempted) == (0, len(example.examples))


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(rl).failed == 0


@pytest.mark.slow
def test_importing_it_loads_nothing_and_every_name_is_there() -> None:
    code = (
        "import sys, rewardlm as rl\n"
        "assert not {'torch', 'pydantic', 'numpy', 'rewardlm.api'} & set(sys.modules), sys.modules.keys()\n"
        "missing = [name for name in rl.__all__ if getattr(rl, name, None) is None]\n"
        "assert not missing, missing\n"
        # After all that those brought along, no module stands in a function's place.
        "import rewardlm.measuring.meter, rewardlm.training.rlaf, rewardlm.reporting.page\n"
        "names = ('measure', 'finetune', 'rlaf', 'compare', 'interpret', 'report')\n"
        "assert all(callable(getattr(rl, name)) for name in names)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        rl.mesure  # noqa: B018


def test_scores_are_those_of_the_judge_and_silence_is_unscored() -> None:
    judge = rl.load_judge("lexical")
    found = rl.score([HATE, KIND, ""], judge)
    asked = [verdict.values["toxicity"] for verdict in judge.score([HATE, KIND])]
    assert found == [*asked, None]
    table = found.to_pandas()
    assert list(table["text"]) == [HATE, KIND, ""]
    assert pd.isna(table["lexical"][2])
    assert "unscored" in found._repr_html_()
    both = rl.score(KIND, "lexical,lexical2")
    assert list(both.verdicts) == ["lexical", "lexical2"]
    assert both == both.by("lexical") != both.by("lexical2")


def test_prompts_may_be_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path / "cache"))
    asked = {"judges": ["lexical"], "samples": 2, "max_new_tokens": 4, "progress": False}
    run = rl.measure("tiny", prompts=["Hello", "Guten Morgen"], out=tmp_path / "run", **asked)
    assert [prompt.text for prompt in run.prompts()] == ["Hello", "Guten Morgen"]
    table = run.to_pandas()
    assert list(table["prompt"]) == ["Hello", "Hello", "Guten Morgen", "Guten Morgen"]
    said = {(answer.prompt_id, answer.sample): answer.text for answer in run.generations()}
    assert list(table["answer"]) == [said[prompt.id, sample] for prompt in run.prompts() for sample in (0, 1)]
    # The same call goes on, or is done; another is refused.
    assert rl.measure("tiny", prompts=["Hello", "Guten Morgen"], out=tmp_path / "run", **asked).path == run.path
    with pytest.raises(RunError):
        rl.measure("tiny", prompts=["Hello", "Bonjour"], out=tmp_path / "run", **asked)
    with pytest.raises(ConfigError, match="none empty"):
        rl.measure("tiny", prompts=["Hello", " "], out=tmp_path / "other", **asked)


def test_markup_in_a_text_stays_text() -> None:
    assert "<script>" not in rl.score("<script>alert(1)</script>", "lexical")._repr_html_()


def test_a_comparison_is_the_json_of_the_command_line(folder: Path) -> None:
    runs = [folder / "PT", folder / "PT again"]
    found = rl.compare(runs)
    printed = subprocess.run(
        [sys.executable, "-m", "rewardlm", "compare", *map(str, runs), "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert json.loads(printed) == found.to_dict()
    table = found.to_pandas()
    assert len(table) == 2 * 5
    row = table[(table.model == "PT") & (table.split == "all")].iloc[0]
    assert row["n"] == 6
    assert row["toxic_fraction"] == found.model("PT").scorers["lexical"]["all"].toxic_fraction
    assert "PT again" in found._repr_html_()


def test_runs_are_taken_by_folder_and_as_they_were_returned(folder: Path) -> None:
    run = rl.Run.open(folder / "PT")
    assert rl.compare([run, str(folder / "PT again")]) == rl.compare([folder / "PT", folder / "PT again"])
    assert rl.compare(run).models[0].label == "PT"


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        rl.measure("tiny", out="nowhere", max_new_token=4)
    with pytest.raises(ConfigError, match="settings one by one"):
        rl.measure("tiny", out="nowhere", settings=api.MeasureSettings(model="tiny"))
    with pytest.raises(RunError, match="nowhere"):
        rl.compare("nowhere")
    with pytest.raises(ScorerError, match="unknown scorer"):
        rl.load_judge("lexicle")
    assert not Path("nowhere").exists()


def test_an_unknown_model_of_a_comparison_is_named(folder: Path) -> None:
    found = rl.compare([folder / "PT", folder / "PT again"])
    with pytest.raises(KeyError, match="PT, PT again"):
        found.model("FT")
    with pytest.raises(KeyError, match="PT again by lexical"):
        found.change("FT")


def test_rewards_are_one_minus_toxicity_and_read_conversations() -> None:
    reward = rl.reward_function("lexical")
    plain = rl.score([HATE, KIND], "lexical")
    expected = [1 - value for value in plain if value is not None]
    assert reward([HATE, KIND]) == pytest.approx(expected)
    talks = [[{"role": "assistant", "content": text}] for text in (HATE, KIND)]
    assert reward(completions=talks, prompts=[[{"role": "user", "content": "Hello"}]] * 2) == pytest.approx(expected)
    # Silence is worth what the worst answer of the batch is.
    assert reward([HATE, KIND, ""])[2] == pytest.approx(min(expected))
    with pytest.raises(ConfigError, match="list of messages"):
        reward([3])


def test_a_judge_of_the_wrong_sign_is_refused() -> None:
    class Backwards:
        name, labels = "backwards", ("toxicity",)

        def score(self, texts: list[str]) -> list[rl.Verdict]:
            return [rl.Verdict({"toxicity": 0.1 if "idiot" in text or "go to hell" in text else 0.9}) for text in texts]

    with pytest.raises(ScorerError, match="higher must be more toxic"):
        rl.reward_function(Backwards())


def test_trl_trains_a_step_by_it(tmp_path: Path) -> None:
    """GRPO by TRL's trainer on our tiny model: the rewards that it logs are the judge's of its own completions."""
    from rewardlm.models.load import load_policy

    policy = load_policy(api.MeasureSettings(model="tiny"))
    policy.causal_lm.requires_grad_(True)  # we train adapters, TRL here the model itself
    seen: list[tuple[list[str], list[float | None]]] = []
    reward = rl.reward_function("lexical")

    def watched(completions: list[str], **columns: object) -> list[float | None]:
        found = reward(completions, **columns)
        seen.append((completions, found))
        return found

    settings = GRPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, learning_rate=1e-2,
        max_completion_length=8, report_to=[], use_cpu=True, logging_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    before = {name: weight.detach().clone() for name, weight in policy.causal_lm.named_parameters()}
    trainer = GRPOTrainer(
        model=policy.causal_lm,
        reward_funcs=[watched, reward],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["Hello there", "Good morning"]}),
        processing_class=policy.tokenizer,
    )
    trainer.train()
    (completions, rewards), *_ = seen
    judged = rl.score(completions, "lexical")
    known = [1 - value for value in judged if value is not None]
    assert len(completions) == 4
    assert known
    assert [r for r, value in zip(rewards, judged, strict=True) if value is not None] == pytest.approx(known)
    logged = trainer.state.log_history[0]
    assert logged["rewards/not_toxic_by_lexical/mean"] == pytest.approx(
        sum(r for r in rewards if r is not None) / 4, abs=1e-5
    )
    moved = [n for n, w in policy.causal_lm.named_parameters() if not torch.equal(w.detach(), before[n])]
    assert bool(moved) == (len({round(r, 6) for r in rewards if r is not None}) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["measure_any_model", "train_and_prove", "own_judge"])
def test_the_notebooks_run_as_scripts(name: str, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / f"{name}.py"
    process = Forked(["tiny", str(tmp_path)], cwd=tmp_path, env=os.environ, script=script)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    assert out.strip()
    if name != "own_judge":
        assert "<html" in (tmp_path / "report.html").read_text("utf-8")
