"""Every way in which we run a model, against the model's own forward pass with its adapter, as transformers and PEFT
have it: likelihoods that sampling kept, likelihoods of given answers, and gradients.

The reference is a copy whose LoRA layers are PEFT's own, one row at a time, without padding, cache or tree of ours.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from small_models import VOCABULARY, tiny_policy
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from rewardlm.config import ChatSettings, GenerationSettings
from rewardlm.models.fused import FusedLinear, fuse
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import Policy, chat_format
from rewardlm.models.logprobs import forward_rows, row_stats

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama_tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama_biases": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama_wide_heads": lambda: LlamaConfig(**SIZES, head_dim=16),
    "llama3_positions": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "yarn": lambda: LlamaConfig(
        **SIZES, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=128)
    ),
    "linear_positions": lambda: LlamaConfig(**SIZES, rope_parameters=rope("linear", factor=4.0)),
    "dynamic_positions": lambda: LlamaConfig(**SIZES, rope_parameters=rope("dynamic", factor=4.0)),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=8, sliding_window=None),
    "mistral_window": lambda: MistralConfig(**SIZES, head_dim=8, sliding_window=6),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2_window": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": LINEAR},
    "few": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "embed_tokens": {"target_modules": [*LINEAR, "embed_tokens"]},
    "lm_head": {"target_modules": [*LINEAR, "lm_head"]},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"k_proj": 1},
    },
    "bias_all": {"target_modules": LINEAR, "bias": "all"},
    "lora_bias": {"target_modules": LINEAR, "lora_bias": True},
    "saved_head": {"target_modules": LINEAR, "modules_to_save": ["lm_head"]},
    "saved_embeddings": {"target_modules": LINEAR, "modules_to_save": ["embed_tokens"]},
    "saved_norms": {"target_modules": LINEAR, "modules_to_save": ["input_layernorm", "norm"]},
    "saved_projection": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["o_proj"]},
    "tokens": {"target_modules": LINEAR, "trainable_token_indices": [*range(0, VOCABULARY, 2)]},
}


def random_weights(model: torch.nn.Module, std: float, only_trainable: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or (only_trainable and not parameter.requires_grad):
                continue
            noise = torch.randn(parameter.shape, generator=generator) * std
            # Norms stay around 1; what is saved beside an adapter stays near what it was.
            near = parameter.dim() == 1 or (only_trainable and "lora_" not in name)
            parameter.copy_(parameter + noise if near else noise)


def policy_of(model: str, adapter: str | None, dtype: torch.dtype = torch.float32) -> Policy:
    config = MODELS[model]()
    tokenizer = tiny_policy().tokenizer
    config.vocab_size = VOCABULARY
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    random_weights(causal_lm, 0.2, only_trainable=False)
    causal_lm.requires_grad_(False)
    found: Any = causal_lm
    if adapter is not None:
        found = get_peft_model(causal_lm, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **ADAPTERS[adapter]))
        random_weights(found, 0.1, only_trainable=True)
        found.eval()
        fuse(found)
    causal_lm.to(dtype)
    return Policy(
        model=found,
        tokenizer=tokenizer,
        chat=chat_format(tokenizer, ChatSettings()),
        spec=model,
        source="test",
        weights_hash="",
        device=torch.device("cpu"),
        dtype=dtype,
    )


def pefts_own(policy: Policy) -> Any:
    """A copy of the model with nothing of ours in it."""
    found = copy.deepcopy(policy.model)
    for module in found.modules():
        if type(module) is FusedLinear:
            module.__class__ = Linear
    return found


def plain(model: Any, prompt: tuple[int, ...], response: list[int]) -> torch.Tensor:
    """Log-probabilities Float[R] of one row alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logits[at].float().log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


SHARED = (7, 8, 9, 10, 11)
PROMPTS = [(*SHARED, 20, 21), (*SHARED, 30), (*SHARED, 20, 21), (*SHARED, *range(40, 60)), (*SHARED, 0, 2, 2)]
RESPONSES = [[5, 6, 2], [2], [0, 0, 2, 9], [100, 101, 102, 103, 104, 105], [2, 7]]


def check_likelihoods(policy: Policy, own: Any) -> None:
    with torch.no_grad():
        wanted = [plain(own, prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    for row, exact in zip(row_stats(policy.causal_lm, PROMPTS, RESPONSES, 10_000), wanted, strict=True):
        torch.testing.assert_close(row.logprobs, exact, atol=1e-4, rtol=0)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    for sampled in generate(policy, requests, max_new_tokens=9, sampling=GenerationSettings()):
        with torch.no_grad():
            exact = plain(own, requests[sampled.index].prompt, sampled.tokens)
        torch.testing.assert_close(sampled.logprobs, exact, atol=1e-4, rtol=0)


CASES = [*((model, "plain") for model in MODELS), *(("llama_tied", a) for a in ADAPTERS), ("llama", "embed_tokens")]
CASES += [("llama", "saved_embeddings"), ("llama", "lm_head"), ("qwen2", "embed_tokens"), ("mistral", "dora")]


@pytest.mark.parametrize(("model", "adapter"), [*((model, None) for model in MODELS), *CASES])
def test_likelihoods_and_gradients_are_the_models_own(model: str, adapter: str | None) -> None:
    policy = policy_of(model, adapter)
    own = pefts_own(policy)
    trainable = learning(policy.model)
    for learns in (False, True):  # As it is measured, and as it is trained.
        for parameter in trainable:
            parameter.requires_grad_(learns)
        check_likelihoods(policy, own)
    if adapter is None:
        return
    weights = torch.linspace(-1, 2, sum(map(len, RESPONSES)))
    stats = forward_rows(policy.causal_lm, PROMPTS, RESPONSES, range(len(PROMPTS)))
    ours = torch.autograd.grad((stats.logprobs * weights).sum(), trainable, allow_unused=True)
    rows = [plain(own, prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    theirs = torch.autograd.grad((torch.cat(rows) * weights).sum(), learning(own), allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in theirs if gradient is not None)
    assert largest > 1e-2
    for got, exact in zip(ours, theirs, strict=True):
        assert (got is None) == (exact is None)
        if got is not None:
            torch.testing.assert_close(got / largest, exact / largest, atol=1e-5, rtol=1e-3)


def learning(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
