"""Loading by name: what an alias is, what is recorded of it, and one line for everything that can't be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import CONFIGS, random_policy, tiny_policy

from rewardlm.config import GenerationSettings, ModelSettings
from rewardlm.errors import ModelError
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import load_policy, parameter_count, resolve_device, resolve_dtype
from rewardlm.types import Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny as a model folder."""
    policy = tiny_policy()
    folder = tmp_path_factory.mktemp("model") / "small"
    policy.causal_lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "small"))


def load(model: str, **settings: Any) -> Any:
    return load_policy(ModelSettings(model=model, **{"dtype": "float32", "device": "cpu", **settings}))


def refused(model: str, **settings: Any) -> str:
    with pytest.raises(ModelError) as info:
        load(model, **settings)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_tiny_does_not_depend_on_any_seed() -> None:
    torch.manual_seed(1)
    first = load("tiny", seed=1)
    torch.manual_seed(2)
    second = load("tiny", seed=2)
    assert first.weights_hash == second.weights_hash
    for (name, a), (_, b) in zip(first.model.state_dict().items(), second.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def test_loading_leaves_the_callers_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load("tiny")
    assert torch.equal(torch.rand(2), expected)


def test_policies_are_frozen_and_in_evaluation_mode() -> None:
    policy = tiny_policy()
    assert not policy.model.training
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())


def test_a_folder_gives_the_same_model(folder: Path) -> None:
    ours, theirs = tiny_policy(), load(str(folder))
    assert theirs.weights_hash == ours.weights_hash
    turns = [Message("user", "hello <|im_end|>")]
    assert theirs.chat.encode_prompt(turns) == ours.chat.encode_prompt(turns)
    assert theirs.end_ids == ours.end_ids


@pytest.mark.parametrize("name", CONFIGS)
def test_other_architectures_come_back_from_their_folder(name: str, tmp_path: Path) -> None:
    """Tied heads and buffers that files leave out are not missing weights."""
    policy = random_policy(name)
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 9, 700]])
    with torch.no_grad():
        assert torch.equal(load(str(tmp_path)).model(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_the_hash_tells_weights_apart() -> None:
    policy = tiny_policy()
    from rewardlm.models.load import hash_weights

    # What is held in full can be held against what was loaded in half.
    for half in ("bfloat16", "float16"):
        assert hash_weights(policy.model, getattr(torch, half)) == load("tiny", dtype=half).weights_hash
    with torch.no_grad():
        policy.model.model.layers[0].mlp.up_proj.weight.add_(0.01)
    assert hash_weights(policy.model) != policy.weights_hash
    assert load("tiny", dtype="bfloat16").weights_hash != policy.weights_hash


def test_description_is_json_and_names_what_was_loaded() -> None:
    policy = tiny_policy()
    described = json.loads(json.dumps(policy.describe()))
    assert described["model"] == "tiny"
    assert described["dtype"] == "float32"
    assert described["module_types"]["Linear"] == 2 * 7 + 1
    assert described["chat_format"] == "model"


def test_parameters_are_counted_without_weights(folder: Path) -> None:
    real = sum(parameter.numel() for parameter in tiny_policy().model.parameters())
    assert parameter_count("tiny") == real
    assert parameter_count(str(folder)) == real


@pytest.mark.parametrize("name", ["tinny", "smollm2", "a/b/c", "../up", "/nowhere/at/all", "", " ", "a b/c", "x\x00/y"])
def test_unknown_models(name: str) -> None:
    assert "unknown model" in refused(name)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    assert "no config.json" in refused(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "--adapter" in refused(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "is a file" in refused(str(file))


def test_pickled_weights_are_not_opened(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04c__main__\nBomb\n.")
    assert "pickled weights" in refused(str(copy))


def test_weights_that_are_gone(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "can't load the model" in refused(str(copy))


def test_weights_that_are_cut_short(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "can't load the model" in refused(str(copy))
    file.write_bytes(b"")
    assert "can't load the model" in refused(str(copy))


def test_a_tensor_that_is_missing_is_not_made_up(copy: Path) -> None:
    """transformers draws it at random and goes on: a random layer would be measured."""
    file = copy / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(str(copy))


def test_a_tensor_of_another_shape(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 5)
    save_file(tensors, file, {"format": "pt"})
    assert "can't load the model" in refused(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no_such_architecture"}', '{"architectures": null}'])
def test_a_damaged_configuration(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refused(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_tokenizer(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    refused(str(copy))


def test_a_tokenizer_of_another_model(copy: Path) -> None:
    """Its ids go beyond the embeddings: an index error in the middle of a run, or worse on a GPU."""
    tokenizer = tiny_policy().tokenizer
    tokenizer.add_tokens([f"extra{i}" for i in range(10)])
    tokenizer.save_pretrained(copy)
    assert "tokenizer" in refused(str(copy))


def test_code_of_the_repository_is_not_run(copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\nclass Evil: ...\n")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    said = refused(str(copy))
    assert not (copy / "ran").exists()
    assert "trust_remote_code" not in said, "which isn't offered"


def test_no_end_token(copy: Path) -> None:
    tokenizer = tiny_policy().tokenizer
    tokenizer.eos_token = None
    tokenizer.save_pretrained(copy)
    assert "no end token" in refused(str(copy))


def test_a_base_whose_template_ends_turns_by_another_token(copy: Path) -> None:
    """Qwen's base models: the tokenizer ends text by one token, the template ends turns by another."""
    tokenizer = tiny_policy().tokenizer
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(copy)
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    config["eos_token_id"] = tokenizer.eos_token_id
    (copy / "config.json").write_text(json.dumps(config))
    policy = load(str(copy))
    assert policy.end_ids >= {im_end, tokenizer.eos_token_id}
    encoded = policy.chat.encode_pair([Message("user", "hi")], Message("assistant", "ho"))
    assert encoded.input_ids[-1] in policy.end_ids


@pytest.mark.parametrize("nested", [False, True])
def test_a_sequence_ends_where_cached_positions_would_be_scaled_anew(nested: bool) -> None:
    """longrope turns to other factors there, and what was cached under the first ones doesn't fit them."""
    policy = tiny_policy()
    whole = policy.max_positions
    half = policy.causal_lm.config.head_dim // 2
    scaled = {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * half, "long_factor": [2.0] * half,
    }  # fmt: skip
    policy.causal_lm.config.rope_parameters = {"full_attention": scaled} if nested else scaled
    assert policy.max_positions == 64 < whole


def test_a_float16_overflow_is_an_error_not_an_answer() -> None:
    policy = load("tiny", dtype="float16")
    with torch.no_grad():
        policy.causal_lm.model.norm.weight.fill_(60_000)
    with pytest.raises(ModelError, match="float32"):
        list(generate(policy, [Request((1, 5, 9), 0)], max_new_tokens=2, sampling=GenerationSettings()))


def test_devices_and_precisions() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    assert resolve_dtype("auto", torch.device("cpu")) in {torch.float32, torch.bfloat16}
    with pytest.raises(ModelError, match="expected auto, cpu"):
        resolve_device("banana")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            resolve_device("cuda:0")
