"""Random models with an adapter that does something, and a look at all that an analysis might leave behind."""

from __future__ import annotations

from typing import Any

import torch
from small_models import random_policy

from rewardlm.config import LoraSettings
from rewardlm.models.load import Policy
from rewardlm.models.lora import add_lora

FAMILIES = [
    "tiny",
    "mistral_sliding",
    "qwen2",
    "gpt2",
    "gpt_neox",
    "gpt_neox_serial",
    "falcon_multi_query",
    "falcon_alibi",
    "falcon_new",
    "bloom",
    "gpt_neo",
    "opt",
]
PROMPTS = [[1, 300, 301, 302], [7, 8, 9, 10, 11, 12, 13], [1, 300, 40]]
RESPONSES = [[2, 17, 900, 4], [5, 6], [81, 82, 83, 84, 85, 86]]


def adapted_policy(name: str, *, seed: int = 0, biases: bool = True) -> Policy:
    """``name`` with a rank-4 adapter on every linear layer, as training would leave it, and biases that aren't 0."""
    policy = random_policy(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in policy.model.named_parameters():
            if biases and parameter_name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if "norm" in parameter_name or "ln_" in parameter_name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        add_lora(policy, LoraSettings(r=4, alpha=6), seed=0)
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    policy.model.eval()
    return policy


def state_of(model: Any) -> dict[str, Any]:
    """Mode, hooks, gradients, what is trainable, values, adapter switches and attention of every part of a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [len(getattr(module, kind)) for kind in hooks] for name, module in model.named_modules()},
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {
            name: None if parameter.grad is None else parameter.grad.sum().item()
            for name, parameter in model.named_parameters()
        },
        "values": {name: tensor.double().sum().item() for name, tensor in model.state_dict().items()},
        "scaling": {
            name: dict(module.scaling)
            for name, module in model.named_modules()
            if hasattr(module, "scaling")
            if isinstance(module.scaling, dict)
        },
        "adapters": {
            name: (list(module.active_adapters), module.disable_adapters)
            for name, module in model.named_modules()
            if hasattr(module, "disable_adapters") and hasattr(module, "lora_A")
        },
        "attention": model.config._attn_implementation if hasattr(model, "config") else None,
        "random": torch.get_rng_state().tolist(),
    }
