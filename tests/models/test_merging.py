"""``merge``: the folder is the model that was trained, and where it isn't, that is measured and said."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import random_policy, tiny_policy

from rewardlm.config import FinetuneSettings, LoraSettings, MergeSettings, ModelSettings
from rewardlm.errors import ConfigError, ModelError
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import add_lora, load_adapter, save_adapter
from rewardlm.models.merging import merge
from rewardlm.training.sft import finetune

IDS = torch.tensor([[1, 300, 301, 302, 2, 17, 900, 41]])
CPU = {"device": "cpu", "dtype": "float32"}


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = policy.model(input_ids=IDS).logits.float()
    return found


def adapter_on(policy: Policy, folder: Path) -> Path:
    add_lora(policy, LoraSettings(r=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(policy.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(policy.model, folder)
    return folder


def merged(out: Path, **settings: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """The record, what was said, and what was warned of."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        record = merge(MergeSettings(**{**CPU, **settings}), out, say=said.append)
    return record, said, [str(w.message) for w in caught if "nats" in str(w.message)]


@pytest.mark.slow
def test_a_plain_models_folder_is_the_model_with_its_adapter(tmp_path: Path) -> None:
    policy = tiny_policy()
    adapter = adapter_on(policy, tmp_path / "adapter")
    record, said, warned = merged(tmp_path / "out", model="tiny", adapter=adapter)
    again = load_policy(ModelSettings(**CPU, model=str(tmp_path / "out")))
    torch.testing.assert_close(logits(again), logits(policy), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(again), logits(tiny_policy()), atol=0.1)
    assert record == json.loads((tmp_path / "out" / "merged.json").read_text())
    assert record["kl"] == pytest.approx(0, abs=1e-6)
    assert record["likeliest_token_changed"] == 0
    assert len(said) == 1
    assert not warned
    # The same again writes the same; what is somebody else's stays.
    assert merged(tmp_path / "out", model="tiny", adapter=adapter)[0] == record
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(ModelError, match="not written by merge"):
        merged(tmp_path / "mine", model="tiny", adapter=adapter)
    with pytest.raises(ConfigError, match="--adapter"):
        merged(tmp_path / "none", model="tiny")


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_an_adapter_is_merged_at_the_strength_that_was_measured(tmp_path: Path, strength: float) -> None:
    """W + strength · (alpha / r) · B·A, added up here from the adapter's own file."""
    adapter = adapter_on(tiny_policy(), tmp_path / "adapter")
    record, _, warned = merged(tmp_path / "out", model="tiny", adapter=adapter, adapter_strength=strength)
    assert (record["adapter_strength"], warned) == (strength, [])
    plain, parts = tiny_policy().model.state_dict(), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    found = load_policy(ModelSettings(**CPU, model=str(tmp_path / "out"))).model.state_dict()
    grown = 0
    for name, a in parts.items():
        if "lora_A" in name:
            b = parts[name.replace("lora_A", "lora_B")]
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            added = strength * config["lora_alpha"] / config["r"] * (b.float() @ a.float())
            torch.testing.assert_close(found[weight], plain[weight] + added, atol=1e-5, rtol=1e-5)
            grown += 1
    assert grown > 0


@pytest.mark.slow
def test_half_precision_is_rounded_once_after_merging(tmp_path: Path) -> None:
    adapter = adapter_on(tiny_policy(), tmp_path / "adapter")
    merged(tmp_path / "full", model="tiny", adapter=adapter)
    record, _, _ = merged(tmp_path / "half", model="tiny", adapter=adapter, dtype="bfloat16")
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in full.items())
    assert 0 < record["kl"] < 0.05


@pytest.mark.parametrize("load", ["4bit", "8bit"])
@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_into_what_the_codes_stand_for(name: str, load: str, tmp_path: Path) -> None:
    """GPT-2 holds its matrices the other way round."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
    base = random_policy(name)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    settings = {"model": str(tmp_path / "base"), "load": load}
    policy = load_policy(ModelSettings(**CPU, **settings))
    adapter = adapter_on(policy, tmp_path / "adapter")
    record, _, warned = merged(tmp_path / "out", adapter=adapter, **settings)
    again = load_policy(ModelSettings(**CPU, model=str(tmp_path / "out")))
    assert again.quantisation is None
    # LLM.int8() rounds its inputs too, which weights alone can't show.
    close = {"4bit": 1e-3, "8bit": 0.02}[load] * float(logits(policy).std())
    assert float((logits(again) - logits(policy)).abs().mean()) < close
    assert record["kl"] == pytest.approx(0, abs={"4bit": 1e-5, "8bit": 0.05}[load])
    assert not warned
    policy_in_full = load_policy(ModelSettings(**CPU, model=str(tmp_path / "base")))
    load_adapter(policy_in_full, adapter)
    assert float((logits(policy_in_full) - logits(policy)).abs().mean()) > close


@pytest.mark.slow
def test_another_base_than_the_trained_one_is_warned_of_with_a_number(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
    run = finetune(
        FinetuneSettings(
            **CPU, model="tiny", load="4bit", dialogues="starter", limit=8, max_steps=2, learning_rate=1e-2
        ),
        tmp_path / "run",
    )
    record, said, warned = merged(tmp_path / "full", model="tiny", adapter=run.path)
    assert (record["base"], record["trained_on"]) == ("full precision", "4bit")
    assert record["kl"] > 0.01
    assert not said
    assert len(warned) == 1
    assert f"{record['kl']:.2g} nats" in warned[0]
    assert "add --load 4bit" in warned[0]
    record, said, warned = merged(tmp_path / "same", model="tiny", adapter=run.path, load="4bit")
    assert record["kl"] == pytest.approx(0, abs=1e-5)
    assert said
    assert not warned
