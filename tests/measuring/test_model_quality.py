"""What models say of stored answers, on request: similarity, perplexity, counter-narratives."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_runs import build_run, compared
from transformers import AutoModelForCausalLM, Gemma2Config

from rewardlm.config import ModelSettings, ScoreSettings, build
from rewardlm.errors import ConfigError, ModelError
from rewardlm.measuring.model_quality import OtherPrompts, add_quality_to
from rewardlm.measuring.similarity import load_embedder
from rewardlm.models.load import load_policy
from rewardlm.runs import Run
from rewardlm.scoring.pairs import load_pair_judge, most_likely

PROMPTS = [f"All {group} are thieves." for group in ("Danes", "miners", "nurses", "twins", "Poles")]
ANSWERS = ["Nobody steals for where they were born.", "Yes they do.", "", "I like cheese.", "They are people like us."]


def run_of(path: Path, **more: Any) -> Path:
    return build_run(path, "PT", {"a": [[0.1]] * 5}, texts=[[text] for text in ANSWERS], prompts=PROMPTS, **more)


def test_a_model_whose_logits_are_more_than_its_heads_gives_no_perplexity(tmp_path: Path) -> None:
    """Gemma 2 caps its logits. Without the cap it would be another model's perplexity."""
    tokenizer = load_policy(ModelSettings(model="tiny")).tokenizer
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    model.save_pretrained(tmp_path / "capped")
    tokenizer.save_pretrained(tmp_path / "capped")
    path = run_of(tmp_path / "run", toxicity=[0.9] * 5)
    with pytest.raises(ModelError, match=r"its logits are not head\(trunk\)"):
        add_quality_to(path, ScoreSettings(perplexity=str(tmp_path / "capped")))


@pytest.mark.slow
def test_each_number_is_what_its_model_says(tmp_path: Path) -> None:
    path = run_of(tmp_path / "run", toxicity=[0.9] * 5)
    add_quality_to(path, ScoreSettings(similarity=True, perplexity="tiny", counter_narrative="starter_pairs"))
    run = Run.open(path)
    records = {record["generation_id"]: record for record in run.read("quality")}
    embedder, judge = load_embedder("cpu"), load_pair_judge()
    policy = load_policy(ModelSettings(model="tiny"))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        found = records[f"p{row}-0"]
        if not answer:
            assert (found["prompt_similarity"], found["perplexity"], found["classes"]) == (None, None, None)
            continue
        one, two = embedder.encode([prompt, answer], normalize_embeddings=True)
        assert found["prompt_similarity"] == pytest.approx(float(one @ two), abs=1e-4)
        assert found["classes"] == pytest.approx(judge.judge([(prompt, answer)])[0], abs=1e-4)
        asked = policy.chat.encode_prompt(run.prompts()[row].turns)
        said = policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*asked, *said]])).logits[0].float().log_softmax(-1)
        mean = -sum(float(logits[len(asked) - 1 + at, token]) for at, token in enumerate(said)) / len(said)
        assert found["perplexity"] == pytest.approx(math.exp(mean), rel=2e-2)
    quality = compared([path], n_resamples=100)["models"][0]["quality"]
    hits = [most_likely(record["classes"]) == "counter_narrative" for record in records.values() if record["classes"]]
    assert quality["counter_narrative_fraction"] == sum(hits) / 5, "an empty answer is none"
    assert run.meta["perplexity_under"] == {"model": "tiny", "hash": policy.weights_hash}
    assert run.meta["pair_judge"]["name"] == "starter_pairs"


def test_each_answer_is_held_against_anothers_prompt(tmp_path: Path) -> None:
    """A derangement among toxic prompts, another among the others, and verdicts of the judge on just these pairs."""
    toxicity = [0.9, 0.9, 0.9, 0.1, 0.1]
    path = build_run(
        tmp_path / "run", "PT", {"a": [[0.1] * 2] * 5}, texts=[[text, f"{text} Indeed."] for text in ANSWERS],
        prompts=PROMPTS, toxicity=toxicity,
    )  # fmt: skip
    add_quality_to(path, ScoreSettings(counter_narrative="starter_pairs"))
    run, judge = Run.open(path), load_pair_judge()
    records = {record["generation_id"]: record["classes_null"] for record in run.read("quality")}
    others = OtherPrompts(run.prompts(), seed=0)
    for sample in (0, 1):
        asked = [others.of(answer) for answer in run.each_generation() if answer.sample == sample]
        assert sorted(asked[:3]) == sorted(PROMPTS[:3])
        assert sorted(asked[3:]) == sorted(PROMPTS[3:])
        assert all(other != own for other, own in zip(asked, PROMPTS, strict=True))
    for answer in run.each_generation():
        if not answer.text:
            assert records[answer.id] is None
            continue
        expected = judge.judge([(others.of(answer), answer.text)])[0]
        assert records[answer.id] == pytest.approx(expected, abs=1e-4)
    quality = compared([path], n_resamples=100)["models"][0]["quality"]
    toxic = [records[f"p{row}-{sample}"] for row in range(3) for sample in (0, 1)]
    hits = [verdict is not None and most_likely(verdict) == "counter_narrative" for verdict in toxic]
    assert quality["counter_narrative_null"] == sum(hits) / 6


def test_one_prompt_alone_has_no_other(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", "PT", {"a": [[0.1]] * 2}, texts=[["No."], ["Yes."]], prompts=["Same.", "Same."])
    add_quality_to(path, ScoreSettings(counter_narrative="starter_pairs"))
    assert [record["classes_null"] for record in Run.open(path).read("quality")] == [None, None]


def test_what_was_found_before_stays(tmp_path: Path) -> None:
    known = [{"generation_id": f"p{row}-0", "perplexity": 7.0, "prompt_similarity": 0.5} for row in range(5)]
    path = run_of(tmp_path / "run", quality=known)
    add_quality_to(path, ScoreSettings(similarity=True))
    records = {record["generation_id"]: record for record in Run.open(path).read("quality")}
    assert {record["perplexity"] for record in records.values()} == {7.0}
    assert 0.5 not in {record["prompt_similarity"] for record in records.values()}


def test_one_column_is_of_one_look(tmp_path: Path) -> None:
    """What another model said, or of another sample, isn't averaged with what is found now."""
    known = [{"generation_id": f"p{row}-0", "prompt_similarity": 0.5, "perplexity": 7.0} for row in range(5)]
    path = run_of(tmp_path / "run", quality=known)
    add_quality_to(path, ScoreSettings(similarity=True, quality_sample=2))
    run = Run.open(path)
    found = [record.get("prompt_similarity") for record in run.read("quality") if "prompt_similarity" in record]
    assert run.meta["quality"]["similarity"] == {"answers": 2, "of": 5}
    assert len(found) == 2
    assert 0.5 not in found


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(ConfigError, match=r"nothing to do: name a judge with --scorer"):
        build(ScoreSettings)


@pytest.mark.slow
def test_an_import_finds_counter_narratives_among_answers_to_toxic_prompts(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "response", "prompt_toxicity", "scores.x"])
        table.writerows(zip(PROMPTS, ANSWERS, [0.9, 0.9, 0.9, 0.1, 0.6], [0.1] * 5, strict=True))
    command = [sys.executable, "-m", "rewardlm", "import", str(tmp_path / "a.csv"), "--label", "A"]
    for flags, ids in ((["counter_narrative=starter_pairs"], {"0-0", "1-0", "2-0", "4-0"}), ([], set())):
        out = tmp_path / f"run{len(flags)}"
        done = subprocess.run([*command, *flags, "--out", str(out)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert {record["generation_id"] for record in Run.open(out).read("quality")} == ids
    judge = load_pair_judge()
    said = [judge.judge([(PROMPTS[row], ANSWERS[row])])[0] for row in (0, 1, 4)]
    # The third prompt was answered by nothing.
    done = subprocess.run(
        [sys.executable, "-m", "rewardlm", "compare", str(tmp_path / "run1"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    fraction = json.loads(done.stdout)["models"][0]["quality"]["counter_narrative_fraction"]
    assert fraction == pytest.approx(sum(most_likely(one) == "counter_narrative" for one in said) / 4)
