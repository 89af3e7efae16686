"""Bases in 8 and 4 bits: what their weights stand for, that gradients are those of these weights, and the trap."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from small_models import random_policy, tiny_policy

from rewardlm.config import GenerationSettings, LoraSettings, QuantisationSettings
from rewardlm.errors import ModelError, TrainingError
from rewardlm.models import load as loading
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import Policy
from rewardlm.models.logprobs import forward_rows
from rewardlm.models.lora import add_lora
from rewardlm.models.quantised import (
    check_gradients,
    full_weight,
    quantisation_of,
    quantised_layers,
    weight_bytes,
)

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
from bitsandbytes import functional

PROMPTS = [[1, 300, 301, 302, 2, 17], [1, 300, 301, 77, 900, 41, 8]]
RESPONSES = [[8, 9, 512], [700, 5, 6, 7]]


def disturbed(policy: Policy) -> Policy:
    """``policy`` with an adapter that changes something, as training would."""
    add_lora(policy, LoraSettings(r=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(policy.model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def plain_twin(policy: Policy) -> Policy:
    """tiny in float32, with the weights that ``policy``'s quantised ones stand for."""
    twin = tiny_policy()
    with torch.no_grad():
        for name, layer in quantised_layers(policy.model).items():
            twin.model.get_submodule(name).weight.copy_(full_weight(layer))
    return twin


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.model.zero_grad()
    stats = forward_rows(policy.causal_lm, PROMPTS, RESPONSES, [0, 1])
    stats.logprobs.sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if "lora_" in name}


# The formulas of docs/quantisation.md, against bitsandbytes' own functions -----------------------------------------


def numbers(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.3


def test_8_bits_are_a_rows_largest_value_in_127_steps() -> None:
    weight = numbers(12, 64).half()
    codes, scales, _ = functional.int8_vectorwise_quant(weight)
    w = weight.float().numpy()
    absmax = np.abs(w).max(axis=1)
    ours = np.round(w * (127 / absmax)[:, None])
    np.testing.assert_allclose(scales.numpy(), absmax, rtol=1e-6)
    # Half precision rounds w·127/absmax before the integers do: a tie may go the other way.
    assert np.abs(codes.numpy() - ours).max() <= 1
    assert (codes.numpy() == ours).mean() > 0.97
    restored = functional.int8_vectorwise_dequant(codes, scales).numpy()
    np.testing.assert_allclose(restored, codes.numpy() * absmax[:, None] / 127, rtol=1e-5)
    # No weight is off by more than half a step (and half precision's rounding of it).
    assert (np.abs(restored - w) <= 0.51 * absmax[:, None] / 127 + np.abs(w) * 2**-10).all()


def test_8_bit_inputs_with_an_outlier_keep_their_whole_column() -> None:
    x, weight = numbers(5, 64), numbers(12, 64)
    x[2, 7] = 9.0
    x[4, 30] = -6.0
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    x_codes, x_scales, columns = functional.int8_vectorwise_quant(x.half(), threshold=6.0)
    assert columns is not None
    assert columns.tolist() == [7, 30]
    got, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, x_codes, codes, x_scales, scales, columns, None)
    xs, cs, s = x.numpy(), codes.numpy().astype(np.float64), scales.numpy()
    inside = np.ones(64, dtype=bool)
    inside[[7, 30]] = False
    a = np.abs(np.where(np.abs(xs) >= 6, 0, xs)).max(axis=1)
    rounded = np.round(xs * (127 / a)[:, None])[:, inside]
    expected = (rounded @ cs[:, inside].T) * a[:, None] * s[None] / 127**2
    expected += xs[:, ~inside] @ (cs[:, ~inside] * s[:, None] / 127).T
    np.testing.assert_allclose(got.numpy(), expected, atol=0.03)
    # The same with the outliers rounded like the rest would be much worse: their row has one large step.
    worst = np.round(xs * (127 / np.abs(xs).max(1))[:, None]) @ cs.T * np.abs(xs).max(1)[:, None] * s[None] / 127**2
    truth = xs @ (cs * s[:, None] / 127).T
    assert np.abs(expected - truth)[2].mean() < 0.5 * np.abs(worst - truth)[2].mean()


# NF4's values as QLoRA's appendix E prints them (Dettmers et al. 2023).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def nf4_codes(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest value's index for each weight, and each block's absmax."""
    blocks = w.reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1)
    distance = np.abs((blocks / absmax[:, None])[..., None] - np.array(NF4))
    return distance.argmin(-1), absmax


def test_4_bits_are_the_nearest_of_16_values_times_the_blocks_largest() -> None:
    weight = numbers(12, 128)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes, absmax = nf4_codes(weight.numpy().astype(np.float64))
    np.testing.assert_allclose(state.absmax.numpy(), absmax, rtol=1e-6)
    bytes_ = packed.numpy().reshape(-1)
    theirs = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1, 64)
    assert (theirs == codes).mean() > 0.999  # A tie may go either way.
    restored = functional.dequantize_4bit(packed, state).numpy()
    expected = (np.array(NF4)[theirs] * absmax[:, None]).reshape(restored.shape)
    np.testing.assert_allclose(restored, expected, atol=1e-6)
    assert packed.numel() == weight.numel() // 2


def test_double_quantisation_rounds_the_scales_to_8_bits_by_256_less_their_mean() -> None:
    weight = numbers(600, 64)
    _, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    absmax = np.abs(weight.numpy().reshape(-1, 64)).max(axis=1)
    assert float(state.offset) == pytest.approx(absmax.mean(), rel=1e-5)
    centred = absmax - absmax.mean()
    pieces = [centred[start : start + 256] for start in range(0, len(centred), 256)]
    np.testing.assert_allclose(state.state2.absmax.numpy(), [np.abs(piece).max() for piece in pieces], rtol=1e-4)
    map_ = state.state2.code.numpy()
    restored = np.concatenate(
        [map_[np.abs((p / np.abs(p).max())[:, None] - map_).argmin(1)] * np.abs(p).max() for p in pieces]
    )
    theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    np.testing.assert_allclose(theirs.numpy(), restored + absmax.mean(), rtol=2e-3)
    # 4 bits a weight, 8 a block of 64, 32 for 256 of these: 4.127 bits.
    stored = weight.numel() / 2 + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert 8 * stored / weight.numel() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=0.001)


# What is loaded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "bits"), [("8bit", 8.6), ("4bit", 4.2)])
def test_weights_are_smaller_and_the_rest_is_as_it_was(load: str, bits: float) -> None:
    policy, plain = tiny_policy(load=load), tiny_policy()
    assert policy.quantisation == policy.describe()["quantisation"] == load
    layers = quantised_layers(policy.model)
    assert len(layers) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in layers)
    assert torch.equal(policy.causal_lm.get_output_embeddings().weight, plain.causal_lm.lm_head.weight)
    held = sum(layer.in_features * layer.out_features for layer in layers.values())
    rest = weight_bytes(plain.model) - 4 * held
    assert rest > 0
    assert 8 * (weight_bytes(policy.model) - rest) / held == pytest.approx(bits, abs=0.25)
    for name, layer in layers.items():
        off = (full_weight(layer) - plain.model.get_submodule(name).weight).abs().max()
        # Weights of deviation 0.1: half a step of 127, or half of NF4's widest gap, of a block's largest.
        assert 0 < float(off) < {"8bit": 0.003, "4bit": 0.08}[load]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_settings_reach_bitsandbytes(kind: str) -> None:
    single = tiny_policy(load="4bit", quantisation=QuantisationSettings(kind=kind, double=False))
    double = tiny_policy(load="4bit", quantisation=QuantisationSettings(kind=kind, compute_dtype="bfloat16"))
    one, two = (next(iter(quantised_layers(p.model).values())) for p in (single, double))
    assert one.weight.quant_type == two.weight.quant_type == kind
    assert not one.weight.quant_state.nested
    assert two.weight.quant_state.nested
    assert (one.compute_dtype, two.compute_dtype) == (torch.float32, torch.bfloat16)
    assert weight_bytes(double.model) < weight_bytes(single.model)
    assert not single.rounds
    assert double.rounds
    strict = tiny_policy(load="8bit", quantisation=QuantisationSettings(outliers=0.0))
    assert next(iter(quantised_layers(strict.model).values())).state.threshold == 0
    assert strict.rounds


def test_a_checkpoint_that_is_quantised_says_so_itself(tmp_path: Any) -> None:
    policy = tiny_policy(load="4bit")
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    from rewardlm.config import ModelSettings

    again = loading.load_policy(ModelSettings(model=str(tmp_path), dtype="float32", device="cpu"))
    assert again.quantisation == quantisation_of(again.model) == "4bit"
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_a_model_that_transformers_would_leave_in_full_precision_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewardlm.config import ModelSettings

    policy = random_policy("falcon_alibi")
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    settings = ModelSettings(model=str(tmp_path), dtype="float32", device="cpu", load="4bit")
    assert len(quantised_layers(loading.load_policy(settings).model)) == 2 * 4
    # As it is without what we do about Falcon.
    monkeypatch.setattr(loading, "falcon_in_plain_layers", contextlib.nullcontext)
    with pytest.raises(ModelError, match="found no layer to load in 4bit"):
        loading.load_policy(settings)


@pytest.mark.parametrize("adapter", [False, True])
def test_answers_in_4_bits_are_those_of_transformers_generate(adapter: bool) -> None:
    policy = tiny_policy(load="4bit")
    if adapter:
        disturbed(policy)
    greedy = GenerationSettings(temperature=0)
    requests = [Request(tuple(prompt), 0) for prompt in (*PROMPTS, PROMPTS[0][:3])]
    got = sorted(generate(policy, requests, max_new_tokens=10, sampling=greedy), key=lambda answer: answer.index)
    for answer, request in zip(got, requests, strict=True):
        ids = torch.tensor([request.prompt])
        with torch.no_grad():
            whole = policy.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
            )
            logprobs = policy.causal_lm(input_ids=whole).logits[0].log_softmax(-1)
        assert answer.tokens == whole[0, ids.shape[1] :].tolist()
        theirs = logprobs[ids.shape[1] - 1 : -1].gather(-1, torch.tensor(answer.tokens)[:, None]).squeeze(-1)
        torch.testing.assert_close(answer.logprobs, theirs, atol=1e-4, rtol=0)


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loading.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)
    )
    with pytest.raises(ModelError, match=r"pip install 'rewardlm\[quantised\]'"):
        tiny_policy(load="4bit")


# Gradients ----------------------------------------------------------------------------------------------------------


def test_4_bit_gradients_are_those_of_the_weights_that_the_codes_stand_for() -> None:
    policy = tiny_policy(load="4bit")
    twin = disturbed(plain_twin(policy))
    policy = disturbed(policy)
    ours, theirs = gradients(policy), gradients(twin)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_8_bit_gradients_point_where_those_of_the_weights_do() -> None:
    """Inputs are rounded too, so they are near and no more."""
    policy = tiny_policy(load="8bit")
    twin = disturbed(plain_twin(policy))
    policy = disturbed(policy)
    ours, theirs = gradients(policy), gradients(twin)
    for name, gradient in theirs.items():
        assert float(torch.cosine_similarity(ours[name].flatten(), gradient.flatten(), dim=0)) > 0.98, name


@pytest.mark.parametrize("training", [False, True])
def test_8_bit_layers_let_go_of_their_inputs(training: bool) -> None:
    layer = next(iter(quantised_layers(tiny_policy(load="8bit").model).values())).train(training)

    def is_kept() -> bool:
        inputs = torch.ones(3, layer.in_features, requires_grad=True) * 2
        output, seen = layer(inputs), weakref.ref(inputs)
        del inputs
        kept = seen() is not None
        output.sum().backward()
        return kept

    assert not is_kept()
    layer._forward_hooks.clear()
    assert is_kept()  # as bitsandbytes has it


@pytest.mark.parametrize("load", ["4bit", "8bit"])
def test_gradients_after_answers_are_those_before(load: str) -> None:
    """A pass without gradients changes nothing, and weights are the same to the bit."""
    policy = disturbed(tiny_policy(load=load))
    before = gradients(policy)
    weights = policy.weights_hash
    request = Request(tuple(PROMPTS[0]), 0)
    list(generate(policy, [request] * 3, max_new_tokens=4, sampling=GenerationSettings()))
    check_gradients(policy.model)
    after = gradients(policy)
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = tiny_policy(load=load)
    list(generate(again, [request], max_new_tokens=4, sampling=GenerationSettings()))
    assert loading.hash_weights(again.model) == weights


needs_the_trap = pytest.mark.skipif(
    not functional.has_avx512bf16(), reason="bitsandbytes changes its layout on CPUs with AVX512-BF16 alone"
)


@needs_the_trap
def test_the_trap_is_there_and_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our switch: after one pass without gradients most of them are gone, others wrong, and nothing is said."""
    good = gradients(disturbed(tiny_policy(load="4bit")))
    monkeypatch.setattr(loading, "keep_layout", lambda model: None)
    policy = disturbed(tiny_policy(load="4bit"))
    check_gradients_passes_at_first(policy)
    with torch.inference_mode():
        policy.model(input_ids=torch.tensor([PROMPTS[0]]))
    bad = gradients(policy)
    of_b = [name for name in good if "lora_B" in name]
    # Each has some gradient still: "is there any?" is not the question to ask.
    assert all(bad[name] is not None for name in of_b)
    far = [
        name for name in of_b if float(torch.cosine_similarity(bad[name].flatten(), good[name].flatten(), dim=0)) < 0.9
    ]
    assert len(far) >= len(of_b) // 2
    with pytest.raises(TrainingError, match="no gradient passes through 14 of 14 quantised layers"):
        check_gradients(policy.model)
    with pytest.raises(ModelError, match="load the model again"):
        full_weight(next(iter(quantised_layers(policy.model).values())))


def check_gradients_passes_at_first(policy: Policy) -> None:
    policy.model.train()
    check_gradients(policy.model)
    policy.model.eval()
