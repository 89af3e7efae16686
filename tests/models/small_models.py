"""Small random models of many architectures, with tiny's tokenizer: two layers each, made from their configs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from rewardlm.config import ChatSettings, LoraSettings, ModelSettings
from rewardlm.models.load import Policy, chat_format, load_policy
from rewardlm.models.lora import add_lora

VOCABULARY = 2048
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    ),
    "gpt_neox_serial": lambda: GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        use_parallel_residual=False,
    ),
    "falcon_multi_query": lambda: FalconConfig(
        **_FALCON, multi_query=True, new_decoder_architecture=False, parallel_attn=True, alibi=False
    ),
    "falcon_alibi": lambda: FalconConfig(
        **_FALCON, multi_query=False, new_decoder_architecture=False, parallel_attn=False, alibi=True
    ),
    "falcon_grouped": lambda: FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "falcon_new": lambda: FalconConfig(**_FALCON, num_kv_heads=2, new_decoder_architecture=True, bias=True),
    "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=4),
    "opt": lambda: OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
    ),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=24,
        max_position_embeddings=512,
    ),
    "mistral_sliding": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=16, head_dim=8),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "gemma": lambda: GemmaConfig(**_LLAMA_LIKE, head_dim=8),
}


def tiny_policy(**settings: Any) -> Policy:
    return load_policy(ModelSettings(model="tiny", dtype="float32", device="cpu", **settings))


def random_policy(name: str) -> Policy:
    """``name`` of CONFIGS as a policy: random weights that are spread widely, so that greedy choices have no ties."""
    if name == "tiny":
        return tiny_policy()
    tokenizer = tiny_policy().tokenizer
    config = CONFIGS[name]()
    config.vocab_size = VOCABULARY
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.eval().requires_grad_(False)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        chat=chat_format(tokenizer, ChatSettings()),
        spec=name,
        source="test",
        weights_hash="",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def trainable_parameters(model: Any) -> list[torch.nn.Parameter]:
    """What gradients go to, whichever adapter it is of, in a fixed order."""
    return [parameter for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Policy:
    """``random_policy`` with an adapter that does something."""
    policy = random_policy(name)
    policy.causal_lm.to(dtype)
    policy.dtype = dtype
    add_lora(policy, LoraSettings(r=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(policy.model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy
