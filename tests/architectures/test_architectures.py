"""Seven families, each by the same road: loaded from a folder, fine-tuned, reinforced, measured, looked into.

What differs between them is how they attend: fused queries, keys and values (GPT-NeoX, Falcon, Bloom), rotary positions
on a part of each head beside a parallel MLP (GPT-NeoX), one or few keys for all heads (Falcon, Llama), ALiBi (Bloom,
Falcon), learnt positions (GPT-2, GPT-Neo, OPT, whose begin at 2), local windows (GPT-Neo), matrices the other way round
(GPT-2). The models are random and small, so a test is seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_models import random_policy
from transformers import AutoModelForCausalLM

from rewardlm.config import (
    AttributionSettings,
    FinetuneSettings,
    GenerationSettings,
    InsideSettings,
    InterpretSettings,
    MeasureSettings,
    ModelSettings,
    RlafSettings,
)
from rewardlm.interpreting.interpretation import interpret
from rewardlm.measuring.meter import measure
from rewardlm.models.load import load_policy
from rewardlm.runs import Run
from rewardlm.training.rlaf import train
from rewardlm.training.sft import finetune

pytestmark = pytest.mark.slow

_NEOX = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
# The linear maps of a layer, as the family's own code calls them: where an adapter belongs.
TARGETS = {
    "gpt_neox": _NEOX,
    "falcon_multi_query": _NEOX,
    "falcon_alibi": _NEOX,
    "falcon_grouped": _NEOX,
    "tiny": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neo": {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    "bloom": _NEOX,
}
COMMON: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
QUESTIONS = [
    "Hi",
    "Why do people say that they should all go back to where they came from?",
    "They only come here for the benefits, all of them, and nobody does anything about it.",
    "Who?",
]
ANSWERS = ["Hello to you.", "Because they are afraid.", "Most of them work and pay taxes.", "Nobody."]
QUIET = {"similarity": False, "perplexity": False, "counter_narrative": None, "scorer": ["lexical"]}


@pytest.fixture(scope="module", params=TARGETS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, and the texts that it is trained on and asked."""
    root = tmp_path_factory.mktemp(family)
    policy = random_policy(family)
    policy.model.save_pretrained(root / "model")
    policy.tokenizer.save_pretrained(root / "model")
    with open(root / "dialogues.jsonl", "w") as file:
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
    (root / "prompts.txt").write_text("\n".join(QUESTIONS) + "\n")
    return root


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Run:
    settings = FinetuneSettings(
        **COMMON,
        model=str(folder / "model"),
        dialogues=str(folder / "dialogues.jsonl"),
        validation=0.0,
        batch_size=4,
        epochs=4,
        learning_rate=2e-2,
    )
    return finetune(settings, folder / "FT")


def measured(folder: Path, label: str, adapter: Path | None = None) -> Run:
    settings = MeasureSettings(
        **COMMON,
        **QUIET,
        model=str(folder / "model"),
        adapter=adapter,
        prompts=str(folder / "prompts.txt"),
        max_new_tokens=8,
        generation=GenerationSettings(temperature=0),
        label=label,
    )
    return measure(settings, folder / f"measured-{label}")


@pytest.fixture(scope="module")
def answered(folder: Path, tuned: Run) -> tuple[Run, Run]:
    return measured(folder, "PT"), measured(folder, "FT", tuned.path)


def adapted_modules(run: Run) -> set[str]:
    tensors = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    return {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}


def test_the_adapter_is_on_every_linear_map_of_the_layers_and_learns(family: str, tuned: Run) -> None:
    assert adapted_modules(tuned) == TARGETS[family]
    losses = [line["loss"] for line in tuned.read("metrics")]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_reinforcement(folder: Path, family: str, algorithm: str) -> None:
    settings = RlafSettings(
        **COMMON,
        model=str(folder / "model"),
        prompts=str(folder / "prompts.txt"),
        algorithm=algorithm,
        reward=["lexical"],
        witness=[],
        batch_size=8,
        max_new_tokens=6,
        steps=2,
        learning_rate=1e-2,
    )
    run = train(settings, folder / algorithm)
    lines = list(run.read("metrics"))
    # The likelihoods that sampling kept are those of the pass that learns: a wrong position or mask would show here.
    assert [line["first_ratio"] for line in lines] == pytest.approx([1, 1], abs=1e-3)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-2)
    assert lines[1]["kl_k3"] > 10 * lines[0]["kl_k3"]
    assert adapted_modules(run) == TARGETS[family]


def test_greedy_answers_are_those_of_transformers_generate(folder: Path, tuned: Run, answered: tuple[Run, Run]) -> None:
    """The model as anybody would load it, one prompt at a time, without padding or cache of ours."""
    chat = load_policy(ModelSettings(**COMMON, model=str(folder / "model"))).chat
    for run, adapter in zip(answered, (None, tuned.path / "adapter"), strict=True):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).eval()
        turns = {prompt.id: prompt.turns for prompt in run.prompts()}
        generations = run.generations()
        assert len(generations) == len(QUESTIONS)
        for generation in generations:
            ids = torch.tensor([chat.encode_prompt(turns[generation.prompt_id])])
            with torch.no_grad():
                whole = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
                )
            assert list(generation.tokens or ()) == whole[0, ids.shape[1] :].tolist()
    assert [g.text for g in answered[0].generations()] != [g.text for g in answered[1].generations()]


def test_what_changed_inside(folder: Path, answered: tuple[Run, Run]) -> None:
    settings = InterpretSettings(
        limit=4,
        device="cpu",
        n_resamples=100,
        attribution=AttributionSettings(tokens=2),
        inside=InsideSettings(
            toxic_words=["hate"], neutral_words=["work"], causal_prompts=0, probe_answers=12, n_resamples=100
        ),
    )
    run = interpret([one.path for one in answered], settings, folder / "inside")
    drift = list(run.read("drift"))
    # Each model's answers, read by both; one that is empty is not in the sample.
    assert {record["author"] for record in drift} == {0, 1}
    found = run.load("interpretation")
    assert found["inside"] is not None, found["inside_notes"]


def test_in_four_bits(folder: Path, family: str) -> None:
    """The same road on quantised weights, where GPT-2's lie the other way round and GPT-Neo's widths are small."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
    quantised: dict[str, Any] = {**COMMON, "model": str(folder / "model"), "load": "4bit"}
    tuned = finetune(
        FinetuneSettings(
            **quantised,
            dialogues=str(folder / "dialogues.jsonl"),
            validation=0.0,
            batch_size=4,
            epochs=3,
            learning_rate=2e-2,
        ),
        folder / "FT-4bit",
    )
    losses = [line["loss"] for line in tuned.read("metrics")]
    assert losses[-1] < losses[0] - 0.2
    assert adapted_modules(tuned) == TARGETS[family]
    # Two layers of these maps; only the head is left as it was. (A Falcon's own layers were passed over once.)
    maps = {"tiny": 7, "gpt_neo": 6, "opt": 6}.get(family, 4)
    assert tuned.meta["module_types"]["Linear4bit"] == 2 * maps
    assert tuned.meta["module_types"]["Linear"] == 1
    assert "FalconLinear" not in tuned.meta["module_types"]
    trained = train(
        RlafSettings(
            **quantised,
            adapter=tuned.path,
            prompts=str(folder / "prompts.txt"),
            reward=["lexical"],
            witness=[],
            batch_size=4,
            max_new_tokens=4,
            steps=1,
            learning_rate=1e-2,
        ),
        folder / "RL-4bit",
    )
    line = next(iter(trained.read("metrics")))
    assert line["first_ratio"] == pytest.approx(1, abs=1e-3)
    assert line["kl"] == pytest.approx(0, abs=1e-2)
