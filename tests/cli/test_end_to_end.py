"""From measuring to the page, on tiny: every command over the runs that the one before it made."""

from __future__ import annotations

import errno
import importlib.resources
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Shell

from rewardlm import experiment
from rewardlm.config import ExperimentSettings, LoraSettings, MeasureSettings, ModelSettings, build
from rewardlm.data import prompts as prompts_module
from rewardlm.data.files import Row
from rewardlm.data.prompts import load_prompts, prompts_of
from rewardlm.measuring.meter import measure
from rewardlm.models.load import load_policy
from rewardlm.models.lora import add_lora, save_adapter
from rewardlm.runs import Run

N_PROMPTS = 24


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=4), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("FT") / "adapter"
    save_adapter(policy.model, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> tuple[Path, Path]:
    """tiny as PT, and with a random adapter as FT."""
    root = tmp_path_factory.mktemp("runs")
    common: dict[str, Any] = {
        "model": "tiny", "dtype": "float32", "device": "cpu", "limit": N_PROMPTS, "scorer": ["lexical"],
        "max_new_tokens": 8, "samples": 2, "similarity": False,
    }  # fmt: skip
    measure(MeasureSettings(**common, label="PT"), root / "PT")
    measure(MeasureSettings(**common, label="FT", adapter=adapter), root / "FT")
    return root / "PT", root / "FT"


def flags(out: Path, *more: object) -> list[object]:
    return [
        "measure", "tiny", "--dtype", "float32", "--device", "cpu", "--limit", "3", "--scorer", "lexical",
        "--max-new-tokens", "4", "--label", "PT", "--out", out, "similarity=false", "perplexity=false", *more,
    ]  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_measure_shows_a_table_and_again_does_nothing(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = shell(*flags(out))
    assert done.code == 0
    assert "PT" in done.out
    assert "lexical" in done.out
    assert Run.open(out, kind="measure").finished
    before = files(out)
    again = shell(*flags(out))
    assert again.code == 0
    assert again.out == done.out
    assert files(out) == before
    refused = shell.fails(*flags(out, "--seed", 7))
    assert "seed was 0, now 7" in refused.err
    assert files(out) == before


def test_a_merged_model_answers_as_its_adapter_does(shell: Shell, tmp_path: Path, adapter: Path) -> None:
    done = shell("merge", "tiny", "--adapter", adapter, "--out", tmp_path / "merged", "--device", "cpu")
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "merged"))
    assert "0.0% of 256 positions" in done.err
    greedy = ("generation.temperature=0", "counter_narrative=null")
    common = flags(tmp_path / "a", "--adapter", adapter, *greedy), flags(tmp_path / "b", *greedy)
    common[1][1] = tmp_path / "merged"
    for arguments in common:
        assert shell(*arguments).code == 0
    ours, theirs = ([g.text for g in Run.open(tmp_path / name).generations()] for name in "ab")
    assert ours == theirs


@pytest.mark.slow
def test_overrides_and_files_reach_the_run(shell: Shell, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("samples: 2\ngeneration: {temperature: 0, top_k: 5}\n")
    done = shell(*flags(tmp_path / "run", "--config", config, "generation.top_p=0.5"))
    assert done.code == 0, done.err
    settings = Run.open(tmp_path / "run").meta["settings"]
    assert settings["samples"] == 2
    assert settings["generation"]["temperature"] == 0
    assert (settings["generation"]["top_k"], settings["generation"]["top_p"]) == (5, 0.5)
    texts: dict[str, set[str]] = {}
    for generation in Run.open(tmp_path / "run").generations():
        texts.setdefault(generation.prompt_id, set()).add(generation.text)
    assert all(len(answers) == 1 for answers in texts.values()), "greedy"


def test_a_mistake_that_is_put_right_may_use_the_same_out(shell: Shell, tmp_path: Path) -> None:
    shell.fails(*flags(tmp_path / "run", "--adapter", tmp_path / "none"))
    assert shell(*flags(tmp_path / "run")).code == 0


MODEL_KEYS = {"label", "prompts", "generations", "scorers", "quality"}
SCORER_KEYS = {
    "n", "scored", "toxic_fraction", "toxic_fraction_ci95", "toxic_fraction_of_all", "mean", "expected_max_toxicity",
    "toxicity_probability", "buckets",
}  # fmt: skip
QUALITY_KEYS = {
    "empty_fraction", "non_latin_fraction", "repetition", "refusal_fraction", "counter_narrative_fraction",
    "mean_words", "distinct_2", "prompt_similarity", "perplexity",
}  # fmt: skip
COMPARISON_KEYS = {
    "from", "to", "scorer", "split", "n", "delta", "delta_ci95", "p_value", "better", "worse", "flow", "flow_unscored",
}  # fmt: skip
SPLITS = {"all", "toxic_prompts", "nontoxic_prompts", "challenging", "comparable"}


def test_compare_json_is_json_alone_with_the_contracts_keys(shell: Shell, runs: tuple[Path, Path]) -> None:
    done = shell("compare", *runs, "--json")
    assert done.code == 0, done.err
    assert done.out.count("\n") == 1
    result = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert result.keys() >= {"models", "comparisons", "warnings"}
    assert [model["label"] for model in result["models"]] == ["PT", "FT"]
    for model in result["models"]:
        assert model.keys() >= MODEL_KEYS
        assert model["quality"].keys() >= QUALITY_KEYS
        assert (model["prompts"], model["generations"]) == (N_PROMPTS, 2 * N_PROMPTS)
        assert model["scorers"]["lexical"].keys() == SPLITS
        for split in model["scorers"]["lexical"].values():
            assert split.keys() >= SCORER_KEYS
    assert {c["split"] for c in result["comparisons"]} == SPLITS
    for comparison in result["comparisons"]:
        assert comparison.keys() >= COMPARISON_KEYS
        assert (comparison["from"], comparison["to"]) == ("PT", "FT")
    for warning in result["warnings"]:
        assert warning.keys() >= {"code", "model", "message"}
    whole = next(c for c in result["comparisons"] if c["split"] == "all")
    assert sum(map(sum, whole["flow"])) <= 2 * N_PROMPTS


def test_compare_agrees_with_the_records(shell: Shell, runs: tuple[Path, Path]) -> None:
    result = json.loads(shell("compare", *runs, "--json").out)
    for model, path in zip(result["models"], runs, strict=True):
        values = [s.value for s in Run.open(path).scores() if s.scorer == "lexical" and s.value is not None]
        table = model["scorers"]["lexical"]["all"]
        assert table["scored"] == len(values)
        assert table["mean"] == pytest.approx(sum(values) / len(values))
        assert table["toxic_fraction"] == pytest.approx(sum(v > 0.5 for v in values) / len(values))
        assert table["toxic_fraction_of_all"] == pytest.approx(sum(v > 0.5 for v in values) / (2 * N_PROMPTS))


def test_compare_for_people(shell: Shell, runs: tuple[Path, Path]) -> None:
    done = shell("compare", *runs)
    assert done.code == 0
    assert "PT" in done.out
    assert "FT" in done.out
    assert "nonsense" in shell.fails("compare", *runs, "--scorer", "nonsense").err
    assert "nonsense" in shell.fails("compare", *runs, "--json", "--scorer", "nonsense").err


def test_score_adds_a_judge_once(
    shell: Shell, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e2e_judge.py").write_text("def judge(texts):\n    return [0.75] * len(texts)\n")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        done = shell("score", runs[0], "--scorer", "e2e_judge:judge")
        assert done.code == 0, done.err
    added = [s for s in Run.open(runs[0]).scores() if s.scorer == "e2e_judge:judge"]
    assert len(added) == 2 * N_PROMPTS
    assert {s.value for s in added} <= {0.75, None}
    result = json.loads(shell("compare", runs[0], "--json", "--scorer", "e2e_judge:judge").out)
    assert list(result["models"][0]["scorers"]) == ["e2e_judge:judge"]


def test_score_takes_settings_as_every_command(
    shell: Shell, runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {g.text for g in Run.open(runs[1]).generations() if g.text.strip()}
    victims = sorted(answers)[:4]
    (tmp_path / "e2e_fussy.py").write_text(
        f"def judge(texts):\n    return [float('nan') if t in {victims!r} else 0.25 for t in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("scorer: e2e_fussy:judge\nmax_failed_share: 0.05\n")
    assert "could not be scored" in shell.fails("score", runs[1], "--config", "s.yaml", "--seed", 3).err
    done = shell("score", runs[1], "--config", "s.yaml", "max_failed_share=0.9", "--device", "cpu")
    assert done.code == 0, done.err
    added = [s for s in Run.open(runs[1]).scores() if s.scorer == "e2e_fussy:judge"]
    texts = {g.id: g.text for g in Run.open(runs[1]).generations()}
    assert {s.generation_id for s in added if s.value is None} == {
        id_ for id_, text in texts.items() if text in victims or not text.strip()
    }
    record = next(s for s in Run.open(runs[1]).meta["scorers"] if s["name"] == "e2e_fussy:judge")
    assert record["max_failed_share"] == 0.9
    assert record["cut"] == 0
    assert "toaster" in shell.fails("score", runs[1], "--scorer", "lexical", "--device", "toaster").err


def test_report_is_one_page(shell: Shell, runs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "deep" / "report.html"
    done = shell("report", *runs, "--out", page, "--title", "A <b>title</b>")
    assert done.code == 0, done.err
    assert done.out.strip() == str(page)
    html = page.read_text("utf-8")
    assert html.lstrip().lower().startswith("<!doctype html>")
    assert "<b>title</b>" not in html


def test_a_page_that_cannot_be_written_is_one_line(shell: Shell, runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        assert str(tmp_path) in shell.fails("report", *runs, "--out", out).err


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Run.append

    def full(self: Run, name: str, records: Any) -> None:
        if name == "scores":
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path / "scores.jsonl"))
        append(self, name, records)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", full)
        assert "No space left on device" in shell.fails(*flags(tmp_path / "run")).err
    assert shell(*flags(tmp_path / "run")).code == 0
    run = Run.open(tmp_path / "run")
    assert {s.generation_id for s in run.scores()} == {g.id for g in run.generations()}
    assert len(run.scores()) == len(run.generations()) == 3


@pytest.mark.slow
def test_import_then_compare(shell: Shell, tmp_path: Path) -> None:
    for label, score in (("PT", 0.9), ("RL", 0.1)):
        rows = "".join(f"question {i},answer {i},{score},{0.7 if i % 2 else 0.2}\n" for i in range(10))
        (tmp_path / f"{label}.csv").write_text("q,a,s,t\n" + rows)
        done = shell(
            "import", tmp_path / f"{label}.csv", "--label", label, "--out", tmp_path / label,
            "--map", "prompt=q,response=a,scores.judge=s,prompt_toxicity=t",
        )  # fmt: skip
        assert done.code == 0, done.err
    # The same again by a file and overrides.
    (tmp_path / "i.yaml").write_text("label: RL\nmap: {prompt: q, response: a, scores: {judge: s}}\n")
    done = shell(
        "import", tmp_path / "RL.csv", "--config", tmp_path / "i.yaml", "--seed", 1, "--out", tmp_path / "again",
        "map.prompt_toxicity=t",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Run.open(tmp_path / "again").scores() == Run.open(tmp_path / "RL").scores()
    assert Run.open(tmp_path / "again").prompts() == Run.open(tmp_path / "RL").prompts()

    result = json.loads(shell("compare", tmp_path / "PT", tmp_path / "RL", "--json").out)
    whole = next(c for c in result["comparisons"] if c["split"] == "all")
    assert whole["delta"] == pytest.approx(-1.0)
    assert whole["better"] == 10
    assert whole["flow"][2][0] == 10


@pytest.mark.slow
def test_light_commands_load_no_torch(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for arguments in (["compare", *map(str, runs)], ["report", *map(str, runs), "--out", str(tmp_path / "r.html")]):
        code = (
            f"import sys\nsys.argv = ['rewardlm', *{arguments!r}]\nfrom rewardlm.cli.app import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code\n"
            "print({'torch', 'transformers'} & set(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().splitlines()[-1] == "set()"


EXPERIMENT = """
title: A small experiment
model: tiny
dtype: float32
device: cpu
measure: {part: measure, limit: 6, scorer: [lexical], max_new_tokens: 4, similarity: false, perplexity: false}
finetune: {limit: 12, epochs: 1, batch_size: 4, max_length: 128, lora: {r: 2}}
rlaf: {part: train, after: finetune, reward: [lexical], steps: 1, batch_size: 4, max_new_tokens: 4, minibatches: 1}
interpret:
  limit: 3
  n_resamples: 100
  attribution: {tokens: 1}
  inside: {causal_prompts: 0, toxic_words: [bad], neutral_words: [good]}
"""


@pytest.mark.slow
def test_a_whole_experiment_and_again(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(EXPERIMENT)
    out = tmp_path / "out"
    done = shell("run", file, "--out", out)
    assert done.code == 0, done.err
    assert f"The report: {out / 'report.html'}" in done.out
    for label in ("PT", "FT", "RL"):
        assert Run.open(out / "measure" / label, kind="measure").finished
    assert (out / "train" / "FT" / "adapter" / "adapter_model.safetensors").exists()
    assert (out / "train" / "RL" / "adapter" / "adapter_model.safetensors").exists()
    result = json.loads((out / "comparison.json").read_text())
    assert [model["label"] for model in result["models"]] == ["PT", "FT", "RL"]
    assert any(warning["code"] == "judge_is_reward" for warning in result["warnings"])
    # Every measurement recorded the primary outcome before it had a result. None of these prompts is toxic, so it is
    # of all of them.
    fixed = {"scorer": "lexical", "split": "toxic_prompts", "metric": "toxic_fraction"}
    for label in ("PT", "FT", "RL"):
        assert Run.open(out / "measure" / label).meta["settings"]["primary"] == fixed
    assert {**fixed, "split": "all"} == {**result["primary"], "split": "all"}
    assert result["primary_fixed"]["when"] == "before"
    assert all("p_adjusted" in entry for entry in result["comparisons"])
    hashes = {Run.open(out / "measure" / label).meta["prompts_hash"] for label in ("PT", "FT", "RL")}
    assert len(hashes) == 1
    assert [model["label"] for model in Run.open(out / "interpret" / "all").load("interpretation")["models"]] == [
        "PT",
        "FT",
        "RL",
    ]
    page = (out / "report.html").read_text("utf-8")
    assert "Does RL still read the prompt?" in page
    trained_on = {record["prompt"] for record in Run.open(out / "train" / "RL").read("samples")}
    assert trained_on
    assert not trained_on & {p.text for p in Run.open(out / "measure" / "PT").prompts()}

    before = {name: data for name, data in files(out).items() if "report.html" not in name}
    again = shell("run", file, "--out", out)
    assert again.code == 0, again.err
    assert {name: data for name, data in files(out).items() if "report.html" not in name} == before
    assert "seed was 0, now 3" in shell.fails("run", file, "--out", out, "--seed", 3).err

    # An experiment stands for its measurements, in compare as in report; its trainings hold no answers.
    apart = shell("compare", *(out / "measure" / label for label in ("PT", "FT", "RL")), "--json")
    whole = shell("compare", out, "--json")
    assert whole.code == 0, whole.err
    assert whole.out == apart.out
    assert "RL" in shell("compare", out).out
    assert "of kind 'rlaf'" in shell.fails("compare", out, out / "train" / "RL").err

    # Moved, it is still itself: nothing is trained or measured again, and what is lacking is made.
    moved = out.rename(tmp_path / "moved")
    again = shell("run", file, "--out", moved)
    assert again.code == 0, again.err
    assert {name: data for name, data in files(moved).items() if "report.html" not in name} == before
    shutil.rmtree(moved / "measure" / "RL")
    again = shell("run", file, "--out", moved)
    assert again.code == 0, again.err
    assert files(moved)["measure/RL/scores.jsonl"] == before["measure/RL/scores.jsonl"]


OVERLAP = """
model: tiny
dtype: float32
device: cpu
measure: {prompts: MEASURED, scorer: [lexical], max_new_tokens: 4, similarity: false, perplexity: false}
"""


def test_rl_never_trains_on_a_text_that_is_measured_whatever_it_is_called(shell: Shell, tmp_path: Path) -> None:
    measured, trained = tmp_path / "measured.jsonl", tmp_path / "trained.txt"
    measured.write_text('{"prompt": "What do you  think?"}\n{"prompt": "Something else"}\n')
    trained.write_text("A third thing\n what DO you\tthink? \n")
    file = tmp_path / "e.yaml"
    text = OVERLAP.replace("MEASURED", str(measured)) + f"rlaf: {{prompts: {trained}, reward: [lexical], steps: 1}}\n"
    file.write_text(text)
    done = shell.fails("run", file, "--out", tmp_path / "o")
    assert done.code == 2
    assert "train on prompts that are measured (1, such as 'what DO you" in done.err
    assert not (tmp_path / "o").exists(), "before anything is measured"
    # A copy under another name is no other list; its halves are.
    copy = tmp_path / "copy.jsonl"
    starter = importlib.resources.files("rewardlm.data") / "starter" / "prompts.jsonl"
    copy.write_text(starter.read_text("utf-8"))
    file.write_text(OVERLAP.replace("MEASURED", str(copy)) + "rlaf: {prompts: starter, reward: [lexical], steps: 1}\n")
    n = len(starter.read_text("utf-8").splitlines())
    assert f"that are measured ({n}, such as" in shell.fails("run", file, "--out", tmp_path / "o").err
    settings = build(ExperimentSettings, file=file, overrides=["measure.part=measure", "rlaf.part=train"])
    rlaf = experiment._rlaf_settings(settings, tmp_path)
    assert rlaf is not None
    measured_half = load_prompts(str(copy), part="measure").prompts
    experiment._refuse_measured("RL", prompts_of(rlaf).prompts, measured_half, "rlaf.part")


def test_prompts_of_the_hub_are_compared_before_rl_starts(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need a network, so they are not loaded before the stage that loads them anyway."""
    asked = []

    def hub_rows(name: str, split: str) -> Iterator[Row]:
        asked.append(name)
        yield from (Row(f"{name}, row {i}", i, {"text": t}) for i, t in enumerate(["one", "TWO ", "three"], 1))

    monkeypatch.setattr(prompts_module, "_hub_rows", hub_rows)
    monkeypatch.setattr("rewardlm.hub.require", lambda *_, **__: None)  # this hub is there
    measured = tmp_path / "measured.txt"
    measured.write_text("two\n")
    file = tmp_path / "e.yaml"
    file.write_text(
        OVERLAP.replace("MEASURED", str(measured))
        + "rlaf: {prompts: somebody/prompts, reward: [lexical], steps: 1, batch_size: 4}\n"
    )
    done = shell.fails("run", file, "--out", tmp_path / "o")
    assert "train on prompts that are measured (1, such as 'TWO'" in done.err
    assert asked == ["somebody/prompts"]
    assert Run.open(tmp_path / "o" / "measure" / "PT").finished
    assert not (tmp_path / "o" / "train").exists()


@pytest.mark.slow
def test_dialogues_that_hold_measured_prompts_are_warned_of(shell: Shell, tmp_path: Path) -> None:
    dialogues = tmp_path / "d.jsonl"
    turns = [("All of them lie.", "Do they?"), ("They do.", "Who told you?"), ("My uncle.", "Ask another.")]
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in turns
    ]
    dialogues.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = tmp_path / "measured.txt"
    measured.write_text("ALL of them  lie.\nDo they?\nMy uncle.\n")
    file = tmp_path / "e.yaml"
    file.write_text(
        OVERLAP.replace("MEASURED", str(measured))
        + f"finetune: {{dialogues: {dialogues}, validation: 0, max_steps: 1, lora: {{r: 2}}}}\n"
    )
    done = shell("run", file, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    # An answer that is measured as a prompt was not learnt as one.
    assert "2 of the 3 measured prompts are also in the dialogues that fine-tuning learns from" in done.err
    assert "are also in the dialogues" not in shell("run", file, "--out", tmp_path / "o").err, "it is trained already"


@pytest.mark.slow
def test_what_is_cut_is_said_by_every_stage(shell: Shell, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("word " * 2000 + "\nshort\n")
    file = tmp_path / "e.yaml"
    trained = tmp_path / "trained.txt"
    trained.write_text("other " * 2000 + "\nbrief\n")
    file.write_text(
        OVERLAP.replace("MEASURED", str(long))
        + "finetune: {limit: 4, max_steps: 1, batch_size: 4, max_length: 32, lora: {r: 2}}\n"
        + f"rlaf: {{prompts: {trained}, reward: [lexical2], steps: 1, batch_size: 4, max_new_tokens: 4}}\n"
    )
    done = shell("run", file, "--out", tmp_path / "o")
    assert done.code == 0, done.err
    for label in ("PT", "FT", "RL"):
        assert f"{label}: 1 prompts were too long for the model" in done.err
    assert "pairs are longer than 32 tokens" in done.err
    assert "1 of 2 prompts are too long: they lose the beginning" in done.err
