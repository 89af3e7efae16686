"""GGUF files: what is loaded is what was written (weights, tokens, chat template), and what can't be read says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewardlm import gguf as ours
from rewardlm.config import ModelSettings
from rewardlm.errors import ModelError
from rewardlm.models.load import configuration, load_policy, parameter_count
from rewardlm.types import Message

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rewardlm[packaged]'")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWARDLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def settings(path: Path | str, **more: Any) -> ModelSettings:
    return ModelSettings(model=str(path), dtype="float32", device="cpu", **more)


def rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp orders them: its rotary positions turn neighbours, transformers' turn halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, architecture: str = "llama") -> Any:
    """The model ``tiny`` as llama.cpp's own writer stores it; the policy that was written."""
    policy = load_policy(settings("tiny"))
    config, writer = policy.model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(policy.tokenizer.backend_tokenizer.to_str())
    tokens = sorted(backend["model"]["vocab"], key=backend["model"]["vocab"].get)
    special = {*policy.tokenizer.all_special_tokens, "<|im_start|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(policy.tokenizer.eos_token_id)
    writer.add_pad_token_id(policy.tokenizer.pad_token_id)
    writer.add_chat_template(policy.tokenizer.chat_template)
    weights = {name: tensor.float().numpy() for name, tensor in policy.model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for theirs, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
                weight = rotary(weight, heads)
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return policy


def test_what_was_written_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write(tmp_path / "my.gguf")
    capsys.readouterr()
    loaded = load_policy(settings(tmp_path / "my.gguf"))
    turns = [Message("user", "Why?"), Message("assistant", "So."), Message("user", "They said <|im_end|> twice.")]
    ids = written.chat.encode_prompt(turns)
    assert loaded.chat.encode_prompt(turns) == ids
    assert loaded.end_ids >= written.end_ids
    with torch.no_grad():
        expected, found = (one.model(input_ids=torch.tensor([ids])).logits for one in (written, loaded))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert loaded.describe()["model"] == str(tmp_path / "my.gguf")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("converting my.gguf, once, into ")
    assert all(line.startswith("converting my.gguf") for line in lines), "only ours"


def test_it_is_converted_once_and_again_when_it_changes(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "my.gguf")
    first = ours.converted(tmp_path / "my.gguf", log)
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert ours.converted(tmp_path / "my.gguf", forbidden) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    write(tmp_path / "my.gguf")
    assert ours.converted(tmp_path / "my.gguf", log) != first
    assert not [*(cache / "gguf").glob("tmp*")]


def test_a_folder_with_one_is_that_one(tmp_path: Path) -> None:
    written = write(tmp_path / "my.gguf")
    assert ours.gguf_file(tmp_path) == tmp_path / "my.gguf"
    assert parameter_count(str(tmp_path)) == sum(one.numel() for one in written.model.parameters())
    assert configuration(str(tmp_path)).hidden_size == 64
    assert not (tmp_path / "cache" / "gguf").exists(), "a configuration needs no weights"
    write(tmp_path / "another.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(another\.gguf, my\.gguf, …\): name one of them"):
        load_policy(settings(tmp_path))


def test_an_unknown_architecture_is_named_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "my.gguf", "hyena")
    with pytest.raises(ModelError) as caught:
        load_policy(settings(tmp_path / "my.gguf"))
    text = str(caught.value)
    assert "GGUF" in text
    assert "'hyena'" in text
    assert "convert it" in text
    assert "--engine openai" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.gguf", b"not at all", r"named \.gguf, but is not a GGUF file"),
        ("x.gguf", b"", r"named \.gguf, but is not a GGUF file"),
        ("x.gguf", b"GGUF\x03\x00\x00\x00", r"damaged or cut off .*: download it again"),
        ("x-00001-of-00003.gguf", b"GGUF\x03\x00\x00\x00", r"one part of a GGUF file: join them first"),
        ("x.bin", b"a", r"is a file: expected a \.gguf, or a folder"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_policy(settings(tmp_path / name))


def test_a_cut_file_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "my.gguf")
    whole = (tmp_path / "my.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"damaged or cut off"):
        load_policy(settings(tmp_path / "cut.gguf"))
    monkeypatch.setattr(ours.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match=r"take 0\.0 GiB in float32, .* make room, or set REWARDLM_CACHE"):
        load_policy(settings(tmp_path / "my.gguf"))


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_quantised_folders_say_what_is_missing(tmp_path: Path, method: str) -> None:
    policy = load_policy(settings("tiny"))
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32, "zero_point": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"is quantised by {method}, and can't be loaded here: .*(gptqmodel|optimum)"):
        load_policy(settings(tmp_path))


class _Quiet:
    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None: ...

    def report(self, done: int, total: int, text: str) -> None: ...


def log(title: str) -> _Quiet:
    return _Quiet()


def forbidden(title: str) -> _Quiet:
    raise AssertionError(f"{title}: it was there already")
