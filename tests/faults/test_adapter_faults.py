"""Adapters that are broken, another base's, or pickled: refused in one line, never half loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardlm.config import LoraSettings, ModelSettings
from rewardlm.errors import ModelError
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import REFERENCE, add_lora, load_adapter, save_adapter


def tiny() -> Policy:
    return load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = tiny()
    add_lora(policy, LoraSettings(r=4), seed=0)
    folder = tmp_path_factory.mktemp("good") / "adapter"
    save_adapter(policy.model, folder)
    return folder


@pytest.fixture
def adapter(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def refused(folder: Path, *, as_reference: bool = False, good: Path | None = None) -> str:
    policy = tiny()
    if as_reference:
        assert good is not None
        load_adapter(policy, good)
    with pytest.raises(ModelError) as info:
        load_adapter(policy, folder, name=REFERENCE if as_reference else "default")
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity(adapter: Path, value: float) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, file)
    assert f"NaN or infinity in {name}" in refused(adapter)


def test_infinities_that_cancel(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name][0, 0], tensors[name][0, 1] = float("inf"), float("-inf")
    save_file(tensors, file)
    assert "NaN or infinity" in refused(adapter)


@pytest.mark.parametrize("as_reference", [False, True])
def test_missing_tensors(adapter: Path, good: Path, as_reference: bool) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[:2]
    save_file({name: tensor for name, tensor in tensors.items() if name not in gone}, file)
    assert "2 tensors are missing" in refused(adapter, as_reference=as_reference, good=good)


@pytest.mark.parametrize("as_reference", [False, True])
def test_tensors_that_do_not_belong(adapter: Path, good: Path, as_reference: bool) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(tensors, file)
    assert "don't belong" in refused(adapter, as_reference=as_reference, good=good)


@pytest.mark.parametrize("as_reference", [False, True])
def test_another_bases_shape(adapter: Path, good: Path, as_reference: bool) -> None:
    file = adapter / "adapter_model.safetensors"
    wider = {
        name: torch.zeros(*(2 * size if size != 4 else 4 for size in t.shape)) for name, t in load_file(file).items()
    }
    save_file(wider, file)
    assert "does not fit tiny" in refused(adapter, as_reference=as_reference, good=good)


def test_another_architecture(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    policy = tiny()
    policy.model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    add_lora(policy, LoraSettings(r=4, targets=["c_attn"]), seed=0)
    save_adapter(policy.model, tmp_path)
    assert "does not fit tiny" in refused(tmp_path)


def test_pickled_weights_are_not_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (adapter / "exploded",))  # type: ignore[return-value]

    torch.save({"x": Bomb()}, adapter / "adapter_model.bin")
    assert "pickled weights" in refused(adapter)
    assert not (adapter / "exploded").exists()


def test_truncated_weights(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refused(adapter)
    file.write_bytes(b"")
    assert "damaged" in refused(adapter)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"peft_type": "NONSENSE"}', '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_configuration(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    refused(adapter)


def test_another_kind_of_adapter(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["nothing_like_this"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    refused(adapter)


def test_no_adapter_at_all(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "none")
    assert "no adapter_config.json" in refused(tmp_path)


def test_a_refused_adapter_names_the_folder(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert str(adapter) in refused(adapter)
