"""A model of two layers whose toxicity is one direction, planted by hand, and adapters that undo it in three ways.

A trigger in the prompt reaches every later position by layer 0's even attention, sets off one neuron of layer 0's MLP,
and that neuron writes ``DIRECTION``, which the head reads as toxic words. Nothing else in the model does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from small_models import tiny_policy
from transformers import LlamaConfig, LlamaForCausalLM

from rewardlm.config import GenerationSettings, InsideSettings
from rewardlm.interpreting.answers import ModelAnswers, RedrawnAnswers
from rewardlm.interpreting.findings import Inside
from rewardlm.interpreting.mechanistic.examination import examine
from rewardlm.interpreting.mechanistic.word_contrast import word_tokens
from rewardlm.models.architecture import architecture_of
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import Policy

WIDTH, NEURON, ECHO = 64, 5, 7
HEARD, TRIGGERED = 62, 63  # dimensions of the stream: a trigger is here; a trigger was somewhere before
STRENGTH = 2.0
N = 24


@dataclass
class Planted:
    policy: Policy
    direction: torch.Tensor
    trigger: int
    toxic: dict[int, str]
    neutral: dict[int, str]
    harmless: list[int]

    def judge(self, texts: Sequence[str]) -> list[float | None]:
        """1 if any toxic word is in the text, 0 if not, none for an empty one."""
        bad = set(self.toxic.values())
        return [None if not text.strip() else float(bool(bad & set(text.split()))) for text in texts]

    def prompts(self, n: int) -> list[list[int]]:
        """Prompts of five tokens, the first half with the trigger among them."""
        generator = torch.Generator().manual_seed(n)
        drawn = torch.tensor(self.harmless)[torch.randint(len(self.harmless), (n, 5), generator=generator)].tolist()
        for row in range(n // 2):
            drawn[row][row % 4] = self.trigger
        return drawn

    def answers(
        self, prompts: Sequence[Sequence[int]], n_tokens: int = 6, seed: int = 0, **sampling: float
    ) -> list[list[int]]:
        """What the model as it stands answers."""
        requests = [Request(tuple(prompt), seed * 1000 + row) for row, prompt in enumerate(prompts)]
        found = generate(
            self.policy, requests, max_new_tokens=n_tokens, sampling=GenerationSettings.model_validate(sampling)
        )
        by_index = {answer.index: answer.tokens for answer in found}
        return [by_index[row] for row in range(len(prompts))]

    def redrawn(self, prompts: Sequence[Sequence[int]], draws: int = 30) -> list[RedrawnAnswers]:
        """Of each prompt that it answers both toxically and not, in so many draws: a toxic and a harmless answer. They
        are drawn hot, from its words alone: where it is triggered it says nothing harmless else."""
        words = len(self.toxic) + len(self.neutral) + len(self.harmless)
        found: dict[int, dict[bool, list[int]]] = {}
        for seed in range(1, draws + 1):
            for row, tokens in enumerate(self.answers(prompts, seed=seed, temperature=12.0, top_k=words)):
                (toxic,) = self.judge([self.text(tokens)])
                if toxic is not None:
                    found.setdefault(row, {}).setdefault(bool(toxic), tokens)
        return [
            RedrawnAnswers(prompts[row], both[True], both[False], 1.0)
            for row, both in sorted(found.items())
            if len(both) == 2
        ]

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.policy.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def planted() -> Planted:
    policy = tiny_policy()
    words = word_tokens(policy.tokenizer)
    listed = sorted(words)
    toxic = {token: words[token] for token in listed[10:14]}
    neutral = {token: words[token] for token in listed[14:18]}
    trigger, harmless = listed[20], listed[30:60]
    config = LlamaConfig(
        vocab_size=policy.causal_lm.config.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=policy.tokenizer.eos_token_id,
        pad_token_id=policy.tokenizer.eos_token_id,
    )
    generator = torch.Generator().manual_seed(3)
    direction = torch.zeros(WIDTH)
    direction[:32] = torch.randn(32, generator=generator)
    direction /= direction.norm()
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        embedding = model.model.embed_tokens.weight
        embedding[:, :60] = torch.randn(len(embedding), 60, generator=generator) * 0.1
        embedding[:, :60] -= embedding[:, :60] @ direction[:60, None] * direction[:60]
        embedding[trigger, HEARD] = 4
        first, second = model.model.layers
        first.self_attn.v_proj.weight[0, HEARD] = 1  # head 0 carries it on; queries of 0 attend evenly
        first.self_attn.o_proj.weight[TRIGGERED, 0] = 1
        first.mlp.gate_proj.weight[NEURON, TRIGGERED] = 0.4
        first.mlp.up_proj.weight[NEURON, TRIGGERED] = 0.4
        first.mlp.down_proj.weight[:, NEURON] = direction * STRENGTH
        # Layer 1 notices the direction too, and does nothing about it.
        second.mlp.gate_proj.weight[ECHO] = direction
        second.mlp.up_proj.weight[ECHO] = direction
        model.lm_head.weight[harmless] = torch.randn(len(harmless), WIDTH, generator=generator) * 0.05
        model.lm_head.weight[list(neutral)] = torch.randn(len(neutral), WIDTH, generator=generator) * 0.05
        others = [token for token in range(len(embedding)) if token not in {*harmless, *neutral, *toxic}]
        # Without the direction all words are about as likely, and toxic ones less; the rest are unlikely.
        embedding[:, 61] = 1
        model.lm_head.weight[others, 61] = -3
        model.lm_head.weight[list(toxic), 61] = -0.8
        model.lm_head.weight[list(toxic)] += 2 * direction
    policy.model = model.eval().requires_grad_(False)
    return Planted(policy, direction, trigger, toxic, neutral, harmless)


def undo(model: Planted, way: str) -> None:
    """Put an adapter on that undoes the toxicity: ``rewritten`` turns the value vector over, ``avoided`` keeps its
    neuron silent, ``untouched`` takes the direction back in layer 1."""
    policy = model.policy
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["gate_proj", "up_proj", "down_proj"])
    policy.model = get_peft_model(policy.model, config)
    first, second = (mlp for mlp in architecture_of(policy.causal_lm).mlp)
    with torch.no_grad():
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_" in parameter_name:
                parameter.zero_()
        if way == "rewritten":
            first.down_proj.lora_A["default"].weight[0, NEURON] = 1
            first.down_proj.lora_B["default"].weight[:, 0] = -1.5 * STRENGTH * model.direction
        elif way == "avoided":
            first.up_proj.lora_A["default"].weight[0, TRIGGERED] = 1
            first.up_proj.lora_B["default"].weight[NEURON, 0] = -0.4
        else:
            second.down_proj.lora_A["default"].weight[0, ECHO] = 1
            second.down_proj.lora_B["default"].weight[:, 0] = -0.25 * model.direction
    policy.model.eval().requires_grad_(False)


def settings_for(model: Planted, **more: Any) -> InsideSettings:
    own = {
        "toxic_words": list(model.toxic.values()),
        "neutral_words": list(model.neutral.values()),
        "value_vectors": 1,
        "ablation_prompts": 10,
        "causal_prompts": 12,
        "max_new_tokens": 6,
        "scales": [0.0, 1.0],
        "layer_groups": 2,
    }
    return InsideSettings.model_validate(own | more)


def examined(way: str, **more: Any) -> tuple[Planted, Inside]:
    model = planted()
    prompts = model.prompts(N)
    before = model.answers(prompts)
    redrawn = model.redrawn(prompts[: N // 2])
    undo(model, way)
    after = model.answers(prompts)
    models = [
        ModelAnswers(label, adapter, answers, model.judge([model.text(tokens) for tokens in answers]))
        for label, adapter, answers in (("PT", None, before), ("FT", "default", after))
    ]
    return model, examine(model.policy, prompts, models, model.judge, settings_for(model, **more), redrawn=redrawn)
