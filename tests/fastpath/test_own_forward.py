"""Every way in which we run a model, against the model's own forward pass with its adapter, as transformers and PEFT
have it: likelihoods that sampling kept, likelihoods of given answers, and gradients.

The reference is a copy whose LoRA layers are PEFT's own, one row at a time, without padding, cache or tree of ours.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners.lora import Linear
from small_models import VOCABULARY, tiny_policy
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from rewardlm.config import ChatSettings, GenerationSettings, LoraSettings
from rewardlm.errors import ModelError
from rewardlm.fastpath import agreement, lean, llama, runs_trees, tree
from rewardlm.fastpath.fused import FusedLinear, fuse
from rewardlm.fastpath.lean import is_lean
from rewardlm.fastpath.llama import is_plain_llama, lays_out
from rewardlm.models.generate import Request, generate
from rewardlm.models.load import Policy, chat_format
from rewardlm.models.logprobs import body_and_head, forward_rows, row_stats
from rewardlm.models.lora import (
    CRITIC,
    REFERENCE,
    adapter_parameters,
    add_critic,
    add_lora,
    load_adapter,
    save_adapter,
    using,
)

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


@pytest.mark.slow
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


CARRYING: dict[str, Any] = {
    "short_convolutions": lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"], block_multiple_of=8),
    "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4),
    "mamba_and_attention": lambda: BambaConfig(
        **SIZES, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8
    ),
}


@pytest.mark.parametrize("name", CARRYING)
def test_models_that_carry_a_state_along_are_scored_row_by_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sequence a row's state would run on into the next row; a prefix's can't be repeated for several."""
    monkeypatch.setitem(MODELS, name, CARRYING[name])
    policy = policy_of(name, None)
    check_likelihoods(policy, policy.model)


# The check itself -----------------------------------------------------------------------------------------------------

SLOWER = {"embed_tokens", "dora", "lora_bias", "saved_embeddings", "saved_norms", "saved_projection", "tokens"}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_that_needs_the_modules_gets_them_and_one_sentence_says_so(adapter: str) -> None:
    policy = policy_of("llama_tied", adapter)
    policy.model.requires_grad_(False)
    body, _ = body_and_head(policy.causal_lm)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            row_stats(policy.causal_lm, PROMPTS, RESPONSES, 10_000)
            list(generate(policy, [Request(PROMPTS[0], 0)], max_new_tokens=3, sampling=GenerationSettings()))
    ours = [str(warning.message) for warning in said if "through its modules" in str(warning.message)]
    assert len(ours) == (adapter in SLOWER), ours
    assert is_lean(body) == lays_out(body) == (adapter not in SLOWER)


def fresh(dtype: torch.dtype = torch.float32) -> Policy:
    """A model whose adapters have learnt nothing yet: B is 0."""
    policy = policy_of("llama_tied", None, dtype)
    add_lora(policy, LoraSettings(r=4), seed=0)
    add_critic(policy, LoraSettings(r=2, alpha=8), seed=1)
    return policy


def without(what: str, real: Any) -> Any:
    """``map_of`` of a pass that has forgotten a part of the adapter."""

    def map_of(module: Any) -> Any:
        found = real(module)
        if found is None or found.up is None:
            return found
        return replace(found, down=None, up=None) if what == "adapter" else replace(found, scaling=2 * found.scaling)

    return map_of


@pytest.mark.slow
@pytest.mark.parametrize("what", ["adapter", "scaling"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["lean", "llama"])
def test_a_pass_that_leaves_a_fresh_adapter_out_is_found_and_not_used(
    what: str, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh(dtype)
    body, _ = body_and_head(policy.causal_lm)
    module = {"lean": lean, "llama": llama}[way]
    monkeypatch.setattr(module, "map_of", without(what, module.map_of))
    asked = {"lean": is_lean, "llama": lays_out}
    with pytest.warns(UserWarning, match=r"differs from the model's own forward pass by .* through its modules"):
        assert not asked[way](body)
    monkeypatch.undo()
    # The answer is this model's; another is tried anew, and each adapter by itself.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with using(policy, CRITIC):
            assert asked[way](body)
        assert not asked[way](body)
        assert asked[way](body_and_head(fresh(dtype).causal_lm)[0])


def test_a_tree_that_lets_rows_see_each_other_is_found_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of("llama", None)
    body, _ = body_and_head(policy.causal_lm)
    real = tree.tree_of

    def leaky(*args: Any, **more: Any) -> Any:
        found = real(*args, **more)
        found.sees[:] = True
        return found

    monkeypatch.setattr(tree, "tree_of", leaky)
    with pytest.warns(UserWarning, match="running rows as one sequence differs .* with padding"):
        assert not runs_trees(body)
    with torch.no_grad():
        wanted = [plain(policy.model, prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    for row, exact in zip(row_stats(policy.causal_lm, PROMPTS, RESPONSES, 10_000), wanted, strict=True):
        torch.testing.assert_close(row.logprobs, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("inference", [False, True])
def test_the_check_leaves_everything_as_it_was_and_is_made_once(
    inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh()
    policy.model.train()
    body, _ = body_and_head(policy.causal_lm)
    calls: list[str] = []
    difference = agreement._difference
    monkeypatch.setattr(agreement, "_difference", lambda *args: calls.append("") or difference(*args))
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter._version) for parameter in policy.model.parameters()]
    kinds = [(type(module), module.training, len(vars(module))) for module in policy.model.modules()]
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    context = torch.inference_mode() if inference else torch.enable_grad()
    with warnings.catch_warnings(), context:
        warnings.simplefilter("error", UserWarning)
        for _ in range(3):
            assert runs_trees(body)
            assert is_lean(body)
            assert lays_out(body)
    assert len(calls) == 3
    assert torch.equal(torch.get_rng_state(), random_state)
    after = policy.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [(parameter.requires_grad, parameter._version) for parameter in policy.model.parameters()] == flags
    assert [(type(module), module.training, len(vars(module))) for module in policy.model.modules()] == kinds
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_dropout_of_attention_in_training_is_left_to_the_modules() -> None:
    policy = policy_of("llama", None)
    body, _ = body_and_head(policy.causal_lm)
    assert is_plain_llama(body)
    body.config.attention_dropout = 0.1
    assert is_plain_llama(body)
    body.train()
    assert not is_plain_llama(body)


def test_a_module_whose_forward_was_replaced_keeps_it() -> None:
    """As libraries of faster kernels do, and accelerate where weights lie elsewhere."""
    policy = policy_of("llama", None)
    body, _ = body_and_head(policy.causal_lm)
    assert is_plain_llama(body)
    norm = body.layers[1].input_layernorm
    norm.forward = lambda states: 2 * type(norm).forward(norm, states)
    assert not is_plain_llama(body)
    found = row_stats(policy.causal_lm, PROMPTS[:1], RESPONSES[:1], 100)
    with torch.no_grad():
        torch.testing.assert_close(found[0].logprobs, plain(policy.model, PROMPTS[0], RESPONSES[0]), atol=1e-4, rtol=0)


# Adapters from files --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("by", ["peft", "ours"])
def test_every_kind_of_lora_is_loaded_as_it_was_saved(adapter: str, by: str, tmp_path: Path) -> None:
    trained = policy_of("llama_tied", adapter)
    if by == "peft":
        trained.model.save_pretrained(tmp_path)
    else:
        save_adapter(trained.model, tmp_path)
    loaded = policy_of("llama_tied", None)
    load_adapter(loaded, tmp_path)
    tokens = torch.arange(5, 60)[None]
    with torch.no_grad():
        wanted, found = trained.model(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        if adapter != "bias_all":  # PEFT has one such adapter at a time.
            load_adapter(loaded, tmp_path, name=REFERENCE)
            with using(loaded, REFERENCE):
                torch.testing.assert_close(loaded.model(input_ids=tokens).logits, wanted, atol=1e-5, rtol=1e-5)


def test_a_learnt_prompt_is_refused(tmp_path: Path) -> None:
    """It stands before the model and not in it, so it would be left out without an error."""
    policy = policy_of("llama", None)
    get_peft_model(policy.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"PROMPT_TUNING, and only LoRA adapters are loaded"):
        load_adapter(policy_of("llama", None), tmp_path)


def test_the_embeddings_matrices_belong_to_their_adapter_alone() -> None:
    policy = policy_of("llama", None)
    targets = [*LINEAR, "embed_tokens"]
    add_lora(policy, LoraSettings(r=2, targets=targets), seed=0)
    add_critic(policy, LoraSettings(r=2, targets=targets), seed=0)
    own, critics = adapter_parameters(policy.model), adapter_parameters(policy.model, CRITIC)
    assert len(own) == len(critics) == 2 * (7 * 2 + 1)
    assert not {id(parameter) for parameter in own} & {id(parameter) for parameter in critics}
