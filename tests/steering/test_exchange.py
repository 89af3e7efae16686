"""Control vectors: what llama.cpp's own reader finds in ours, and that one from there steers as its file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_models import tiny_policy
from small_steering import GREEDY, answered, folder_of, saved_adapter

from rewardlm.config import MeasureSettings, SteerImportSettings
from rewardlm.errors import ConfigError, ModelError, RunError
from rewardlm.measuring.meter import measure
from rewardlm.steering.activation import StreamSteering, adds
from rewardlm.steering.exchange import export, import_control_vector
from rewardlm.steering.folder import SteerFolder, read_steer_folder
from rewardlm.steering.load import load_steering

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'rewardlm[packaged]'")
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 0.5


def folder(path: Path, method: str = "activation", **tensors: torch.Tensor) -> Path:
    made = folder_of(method, dict[str, Any]().__getitem__)
    named = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    SteerFolder(made.record, named or made.tensors).save(path)
    return path


def test_a_control_vector_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    """The names and keys of llama.cpp's cvector-generator; direction.N is added to what layer N leaves."""
    export(folder(tmp_path / "steer", vector_2=VECTOR), tmp_path / "v.gguf")
    reader = gguf.GGUFReader(str(tmp_path / "v.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type) == ("direction.1", gguf.GGMLQuantizationType.F32)
    np.testing.assert_array_equal(np.array(tensor.data).reshape(-1), VECTOR.numpy())


def written(path: Path, architecture: str = "controlvector", **tensors: Any) -> Path:
    """A control vector as its tools write it."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    for name, tensor in tensors.items():
        writer.add_tensor(name.replace("_", "."), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def settings(file: Path) -> SteerImportSettings:
    return SteerImportSettings(model="tiny", dtype="float32", device="cpu", file=file)


def test_one_from_there_is_added_where_its_file_says(tmp_path: Path) -> None:
    file = written(tmp_path / "theirs.gguf", direction_1=3 * VECTOR.numpy())
    import_control_vector(settings(file), tmp_path / "steer")
    got = answered(tiny_policy(), load_steering(read_steer_folder(tmp_path / "steer")), [1.0] * 5, sampling=GREEDY)
    by_hand = StreamSteering("activation", 1.0, {(2, "in"): adds(3 * VECTOR)}, answers_only=False)
    wanted = answered(tiny_policy(), by_hand, [1.0] * 5, sampling=GREEDY)
    assert [one.tokens for one in got] == [one.tokens for one in wanted]
    # And back again.
    export(tmp_path / "steer", tmp_path / "again.gguf")
    (tensor,) = gguf.GGUFReader(str(tmp_path / "again.gguf")).tensors
    np.testing.assert_array_equal(np.array(tensor.data).reshape(-1), 3 * VECTOR.numpy())


def test_safetensors_hold_the_vectors_and_the_record(tmp_path: Path) -> None:
    export(folder(tmp_path / "steer", vector_1=VECTOR), tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("vector.1"), VECTOR)
        assert '"method":"activation"' in file.metadata()["steer"]


def test_a_vector_of_an_adapter_steers_that_adapter_as_it_was_trained(tmp_path: Path) -> None:
    """And no other strength of it; what was found on the bare base steers any adapter."""
    adapter = saved_adapter(tiny_policy, tmp_path / "adapter", 0)
    file = written(tmp_path / "v.gguf", direction_1=VECTOR.numpy())
    import_control_vector(settings(file).model_copy(update={"adapter": adapter}), tmp_path / "on")
    import_control_vector(settings(file), tmp_path / "bare")
    usual = {
        "model": "tiny", "dtype": "float32", "device": "cpu", "scorer": ["lexical"], "limit": 1, "max_new_tokens": 2,
        "similarity": False, "perplexity": False, "counter_narrative": None,
    }  # fmt: skip

    def measured(steer: str, **changes: Any) -> None:
        given = {**usual, "steer": tmp_path / steer, **changes}
        measure(MeasureSettings.model_validate(given), tmp_path / str(len(list(tmp_path.iterdir()))))

    measured("on", adapter=adapter)
    measured("bare", adapter=adapter, adapter_strength=0.5)
    for changes in ({}, {"adapter": adapter, "adapter_strength": 0}, {"adapter": adapter, "adapter_strength": 0.5}):
        with pytest.raises(ModelError, match="the same --adapter, at the strength"):
            measured("on", **changes)


def test_that_llama_cpp_steers_prompts_too_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="activation.where=all"):
        export(folder(tmp_path / "steer", vector_2=VECTOR), tmp_path / "v.gguf")


def test_what_a_control_vector_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="first control vector is for layer 2"):
        export(folder(tmp_path / "early", vector_1=VECTOR), tmp_path / "v.gguf")
    with pytest.raises(ConfigError, match=r"as \.safetensors"):
        export(folder(tmp_path / "profs", "profs"), tmp_path / "v.gguf")
    with pytest.raises(ConfigError, match="holds no vectors"):
        export(folder(tmp_path / "system", "system"), tmp_path / "v.gguf")
    with pytest.raises(ConfigError, match=r"ends in \.safetensors or \.gguf"):
        export(folder(tmp_path / "other", vector_2=VECTOR), tmp_path / "v.bin")


def test_other_files_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "steer"
    with pytest.raises(ModelError, match="made for another model"):
        import_control_vector(settings(written(tmp_path / "wide.gguf", direction_1=np.ones(32, np.float32))), out)
    with pytest.raises(ModelError, match="made for another model"):
        import_control_vector(settings(written(tmp_path / "deep.gguf", direction_9=np.ones(64, np.float32))), out)
    whole = written(tmp_path / "llama.gguf", "llama", token_embd=np.ones(64, np.float32))
    with pytest.raises(RunError, match="not a control vector"):
        import_control_vector(settings(whole), out)
    broken = written(tmp_path / "nan.gguf", direction_1=np.full(64, np.nan, np.float32))
    with pytest.raises(RunError, match="NaN or infinity"):
        import_control_vector(settings(broken), out)
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(RunError, match="can't be read as GGUF"):
        import_control_vector(settings(tmp_path / "text.gguf"), out)
    with pytest.raises(RunError, match="No such file"):
        import_control_vector(settings(tmp_path / "none.gguf"), out)
