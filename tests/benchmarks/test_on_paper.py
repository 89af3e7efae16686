"""Arithmetic for machines that nobody here has: numbers worked out by hand, and what PyTorch says of a small model."""

from __future__ import annotations

import pytest
import torch
from on_paper import H100, LAYOUTS, LLAMA_70B, NF4, WORK, Architecture, Card, Layout, Work, gather_seconds, memory, peak
from on_paper import seconds as step_seconds
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from rewardlm.fastpath import fuse

SMALL = Architecture(layers=3, hidden=256, inner=896, kv=64, vocabulary=64)


def small_model(r: int) -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    adapted = get_peft_model(model, LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))
    fuse(adapted)
    return adapted


def test_weights_are_counted_as_transformers_and_peft_count_them():
    model = small_model(4)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert SMALL.adapter(4) == sum(size for name, size in sizes.items() if "lora_" in name)
    assert SMALL.weights == sum(size for name, size in sizes.items() if "lora_" not in name)
    # As many as its published files hold.
    assert LLAMA_70B.weights == 70_553_706_496


def test_activations_are_what_autograd_keeps():
    model = small_model(1)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(positions: int) -> int:
        held: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.get_base_model().base_model(input_ids=torch.arange(positions)[None] % 64)
        return sum(storage.nbytes() for storage in held.values())

    a_position = (kept(256) - kept(128)) / 128
    assert SMALL.layers * SMALL.saved_numbers * 2 == pytest.approx(a_position, rel=0.03)


def test_bytes_by_hand():
    # Layers of 2·(2·2 + 2·1) + 3·2·3 + 4 = 34 weights, two of them, and a norm of 2: 70. Head and embeddings 2·10.
    model = Architecture(layers=2, hidden=2, inner=3, kv=1, vocabulary=5)
    assert (model.layer, model.body, model.weights) == (34, 70, 90)
    # Of rank 1: q 4, k 3, v 3, o 4, gate, up, down 5 each: 29 a layer.
    assert model.adapter(1) == 58
    work = Work(answers=3, prompt=4, new=2, epochs=1, minibatches=1, micro=12, r=1)
    found = memory(model, Layout("", 2.0, 7, 1.0), work)
    assert found == {
        "layers, this card's share": 20.0,
        "layers, gathered": 2 * 34 * 2,
        "embeddings and head": 40.0,
        "adapter and optimizer": 6 * 58 * 4,
        "KV cache while sampling": 2 * 2 * 1 * 2 * 3 * 6,
        # Two rows of six fit into twelve positions; 8·2 + 2·1 + 4·3 = 30 numbers a layer.
        "activations while learning": 2 * 30 * 2 * 12,
    }
    assert peak(found) == 20 + 136 + 40 + 1392 + 1440


def test_seconds_by_hand():
    model = Architecture(layers=2, hidden=2, inner=3, kv=1, vocabulary=5)
    work = Work(answers=3, prompt=4, new=2, epochs=2, minibatches=5, micro=12, r=1)
    layout = Layout("", 2.0, 7, 10.0)
    assert gather_seconds(model, layout) == pytest.approx(140 * 6 / 7 / 10)  # 12 s
    slow = Card(memory=1, bandwidth=1e9, rate=1e9, link=10.0, network=4.0)
    found = step_seconds(model, layout, work, slow, cards=2)
    # One pass reads all prompts; one token after the first; two microbatches (rows of six, two at a time) in each of
    # two passes without and two with gradients, which gather twice; ten updates of 2·(1/2)·232 bytes.
    assert found["prompts read"] == (pytest.approx(12), "gathering")
    assert found["answers drawn"] == (pytest.approx(12), "gathering")
    assert found["policy's and reference's probabilities"] == (pytest.approx(2 * 2 * 12), "gathering")
    assert found["learning"] == (pytest.approx(2 * 2 * 2 * 12), "gathering")
    assert found["gradients added up"] == (pytest.approx(10 * 232 / 4), "network")
    # Undivided, on a card whose products are slow: 2·80 a token and answer to draw; 2·70·(4·3 + 3·1) + 2·10·6 to weigh.
    plodding = Card(memory=1, bandwidth=1e9, rate=10.0, link=10.0, network=4.0)
    found = step_seconds(model, Layout("", 2.0, 1, 10.0), work, plodding, cards=2)
    assert found["answers drawn"] == (pytest.approx(3 * 2 * 80 / 10), "products")
    assert found["policy's and reference's probabilities"] == (pytest.approx(2 * (140 * 15 + 20 * 6) / 10), "products")


def test_nf4_is_four_bits_and_its_scales():
    """QLoRA's paper, section 3: 0.127 bits a parameter for doubly quantised constants."""
    scales = 8 * (NF4 - 0.5)
    assert scales == pytest.approx(0.127, abs=0.001)


def test_the_page_shows_what_the_script_computes():
    from pathlib import Path

    from on_paper import table

    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
    assert table() in page


def test_every_layout_of_the_page_fits_its_card():
    for layout in LAYOUTS:
        assert peak(memory(LLAMA_70B, layout, WORK)) < H100.memory, layout.name
