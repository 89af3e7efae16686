"""What is said of a model's memory from its configuration, against models that are really there and allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import CONFIGS, VOCABULARY, random_policy, tiny_policy
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from rewardlm.config import GenerationSettings, LoraSettings
from rewardlm.models import memory
from rewardlm.models.generate import Request, generate
from rewardlm.models.layers import by_layers
from rewardlm.models.logprobs import forward_rows, row_stats
from rewardlm.models.lora import adapter_parameters, add_lora
from rewardlm.trunk import trunk_states

ROWS, WIDTH, ANSWER = 12, 96, 24
NAMES = ["tiny", "gpt2", "gpt_neox", "falcon_multi_query", "qwen2", "gemma", "opt"]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONFIGS' names stand for their configurations, with the vocabulary that random_policy gives them."""
    before = memory.configuration

    def configuration(spec: str) -> Any:
        if spec not in CONFIGS:
            return before(spec)
        config = CONFIGS[spec]()
        config.vocab_size = VOCABULARY
        return config

    monkeypatch.setattr(memory, "configuration", configuration)


def allocated(work: Any) -> int:
    """The most that ``work`` had allocated at a time, by the allocator's own account."""
    work()  # what is made once and kept
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def rows_of(*, padded: bool = False) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """``padded``: one prompt is a token shorter. Where none is, transformers leaves out the mask that a plan counts."""
    prompts = [tuple(range(row + 3, row + 3 + WIDTH - ANSWER - (padded and row == 0))) for row in range(ROWS)]
    return prompts, [list(range(100, 100 + ANSWER)) for _ in prompts]


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_cache_are_as_large_as_they_really_are(configured, name):
    policy, bare = random_policy(name), memory.skeleton(name, torch.float32)
    tensors = {id(t): t for t in [*policy.model.parameters(), *policy.model.buffers()]}.values()
    assert memory.weight_bytes(bare.causal_lm) == sum(tensor.nbytes for tensor in tensors)
    cache = DynamicCache(config=policy.causal_lm.config)
    tokens = torch.zeros(1, 10, dtype=torch.long)
    trunk_states(policy.causal_lm.base_model, tokens, torch.ones_like(tokens), torch.arange(10)[None], cache)
    assert memory.cache_bytes(bare) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / 10


def test_four_bits_take_what_the_paper_says_and_eight_a_byte_and_a_number_a_row():
    bare = memory.skeleton("tiny", torch.bfloat16)
    linear = memory.quantisable(bare.causal_lm)
    assert bare.causal_lm.get_output_embeddings() not in linear
    assert len(linear) == 2 * 7
    numbers, rows = sum(m.weight.numel() for m in linear), sum(m.weight.shape[0] for m in linear)
    whole = memory.weight_bytes(bare.causal_lm)
    # Dettmers et al. 2023: double quantisation needs 0.127 bits a parameter for its constants.
    assert 8 * (memory.weight_bytes(bare.causal_lm, "4bit") - whole + 2 * numbers) / numbers == pytest.approx(
        4.127, abs=1e-3
    )
    assert memory.weight_bytes(bare.causal_lm, "8bit") == whole - 2 * numbers + numbers + 4 * rows


def test_an_adapter_takes_what_peft_makes_of_it():
    policy = random_policy("tiny")
    add_lora(policy, LoraSettings(r=6), seed=0)
    made = sum(parameter.nbytes for parameter in adapter_parameters(policy.model))
    assert memory.adapter_bytes(memory.adapted("tiny", torch.float32, LoraSettings(r=6))) == made
    # The adapter stays float32 on a model in half precision.
    assert memory.adapter_bytes(memory.adapted("tiny", torch.bfloat16, LoraSettings(r=6))) == made


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_microbatch_of_rl_allocates_what_was_traced(configured, name, recompute):
    policy = random_policy(name)
    add_lora(policy, LoraSettings(), seed=0)
    prompts, answers = rows_of(padded=True)

    def learn() -> None:
        policy.model.zero_grad(set_to_none=True)
        stats = forward_rows(policy.causal_lm, prompts, answers, range(ROWS), recompute=recompute)
        stats.logprobs.sum().backward()

    adapted = memory.adapted(name, torch.float32, LoraSettings())
    traced = memory.updating_bytes(adapted, ROWS, WIDTH, ANSWER, recompute=recompute)
    assert traced == pytest.approx(allocated(learn), rel=0.15)
    assert all(parameter.grad is None for parameter in adapted.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weighing_answers_allocates_what_was_traced(configured, name):
    policy, bare = random_policy(name), memory.skeleton(name, torch.float32)
    prompts, answers = rows_of()
    others = [row.hidden for row in row_stats(policy.causal_lm, prompts, answers, 10**6, keep_hidden=True)]
    for compared in (False, True):
        given = others if compared else None
        real = allocated(lambda given=given: row_stats(policy.causal_lm, prompts, answers, 10**6, kl_from=given))
        traced = memory.scoring_bytes(bare, ROWS, WIDTH, ANSWER, compared=compared)
        assert traced == pytest.approx(real, rel=0.15), compared


@pytest.mark.slow
@pytest.mark.parametrize("fastpath", ["1", "0"])
@pytest.mark.parametrize("name", NAMES)
def test_answering_allocates_what_was_traced(configured, name, fastpath, monkeypatch):
    monkeypatch.setenv("REWARDLM_FASTPATH", fastpath)
    policy, bare = random_policy(name), memory.skeleton(name, torch.float32)
    requests = [Request(prompt, row) for row, prompt in enumerate(rows_of()[0])]

    def answer() -> None:
        list(generate(policy, requests, max_new_tokens=ANSWER, sampling=GenerationSettings(), batch_tokens=10**6))

    traced = memory.generating_bytes(bare, ROWS, WIDTH - ANSWER, ANSWER)
    assert traced == pytest.approx(allocated(answer), rel=0.15)


@pytest.mark.slow
def test_what_fine_tuning_drops_out_is_kept_too():
    prompts, _ = rows_of()
    tokens = torch.tensor(prompts)
    positions = torch.arange(tokens.shape[1])[None].expand(ROWS, -1)

    def imitated(dropout: float) -> int:
        policy = random_policy("tiny")
        add_lora(policy, LoraSettings(dropout=dropout), seed=0)
        policy.model.train()
        body = policy.causal_lm.base_model

        def imitate() -> None:
            policy.model.zero_grad(set_to_none=True)
            trunk_states(body, tokens, torch.ones_like(tokens), positions, None).sum().backward()

        return allocated(imitate)

    def traced(dropout: float) -> int:
        adapted = memory.adapted("tiny", torch.float32, LoraSettings(dropout=dropout))
        return memory.finetuning_bytes(adapted, ROWS, tokens.shape[1], recompute=False, kernels=False)

    more = imitated(0.1) - imitated(0.0)
    assert more > 0.2 * imitated(0.0)
    # The head is the same in both, whoever goes through it.
    assert traced(0.1) - traced(0.0) == pytest.approx(more, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("load", ["8bit", "4bit"])
def test_quantised_layers_allocate_what_was_traced(load, recompute):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'rewardlm[quantised]'")
    policy = tiny_policy(load=load)
    prompts, answers = rows_of(padded=True)
    weighed = allocated(lambda: row_stats(policy.causal_lm, prompts, answers, 10**6))
    bare = memory.skeleton("tiny", torch.float32, load)
    assert memory.scoring_bytes(bare, ROWS, WIDTH, ANSWER, compared=False) == pytest.approx(weighed, rel=0.15)
    add_lora(policy, LoraSettings(), seed=0)

    def learn() -> None:
        policy.model.zero_grad(set_to_none=True)
        forward_rows(policy.causal_lm, prompts, answers, range(ROWS), recompute=recompute).logprobs.sum().backward()

    learnt = allocated(learn)
    traced = memory.updating_bytes(
        memory.adapted("tiny", torch.float32, LoraSettings(), load), ROWS, WIDTH, ANSWER, recompute=recompute
    )
    assert traced == pytest.approx(learnt, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 24])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon_multi_query", "qwen2", "opt", "bloom"])
def test_a_few_layers_tell_what_all_of_them_take(name, rows, monkeypatch):
    """A trace of the whole model is the reference, and at the end the model is whole again."""
    monkeypatch.setattr(memory, "configuration", lambda _: deep(name, 14))
    bare = memory.skeleton(name, torch.bfloat16)
    adapted = memory.adapted(name, torch.bfloat16, LoraSettings())
    weights = memory.weight_bytes(bare.causal_lm)
    for trace, of, sizes, how in (
        (memory.generating_bytes, bare, (rows, 60, 30), {}),
        (memory.scoring_bytes, bare, (rows, 90, 30), {"compared": True}),
        (memory.updating_bytes, adapted, (rows, 90, 30), {"recompute": False}),
        (memory.updating_bytes, adapted, (rows, 90, 30), {"recompute": True}),
        (memory.finetuning_bytes, adapted, (rows, 90), {"recompute": False, "kernels": False}),
        (memory.finetuning_bytes, adapted, (rows, 90), {"recompute": True, "kernels": False}),
    ):
        assert by_layers(trace, of, *sizes, **how) == pytest.approx(trace(of, *sizes, **how), rel=0.02), trace
    assert memory.weight_bytes(bare.causal_lm) == weights
    assert bare.causal_lm.config.num_hidden_layers == 14


def test_layers_of_several_kinds_are_traced_whole(monkeypatch):
    whole = []
    monkeypatch.setattr(memory, "configuration", lambda _: deep("gpt_neo", 6))
    bare = memory.skeleton("gpt_neo", torch.float32)
    by_layers(lambda of: whole.append(len(of.causal_lm.transformer.h)) or 0, bare)
    monkeypatch.setattr(memory, "configuration", lambda _: deep("qwen2", 6))
    alike = memory.skeleton("qwen2", torch.float32)
    by_layers(lambda of: whole.append(len(of.causal_lm.model.layers)) or 0, alike)
    assert whole == [6, 3, 4]


def deep(name: str, layers: int) -> Any:
    """The configuration of that name with more layers."""
    config = CONFIGS[name]()
    given = {key: value for key, value in config.to_dict().items() if key not in ("layer_types", "attention_layers")}
    if name == "gpt_neo":
        given["attention_types"] = [[["global", "local"], layers // 2]]
    key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return type(config)(**{**given, key: layers, "vocab_size": VOCABULARY})


def test_what_an_operation_gives_is_the_same_when_it_is_known(configured):
    """The second time shapes come from memory; a trace without any memory of them is the reference."""
    adapted = memory.adapted("qwen2", torch.bfloat16, LoraSettings())
    first = memory.updating_bytes(adapted, 3, 40, 10, recompute=True)
    assert memory.updating_bytes(adapted, 3, 40, 10, recompute=True) == first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.SHAPES, "run", lambda func, args, kwargs: func(*args, **kwargs))
        assert memory.updating_bytes(adapted, 3, 40, 10, recompute=True) == first
        assert memory.updating_bytes(adapted, 7, 40, 10, recompute=False) > first
    # No answer for another shape or precision, and none that shares memory with what was given.
    known = memory.SHAPES
    args = (torch.empty(4, 6, device="meta"),)
    for _ in range(2):
        found = known.run(torch.ops.aten.exp.default, args, {})
        assert (found.shape, found.dtype) == ((4, 6), torch.float32)
        assert found is not args[0]
    half = known.run(torch.ops.aten.exp.default, (torch.empty(4, 6, device="meta", dtype=torch.bfloat16),), {})
    assert half.dtype == torch.bfloat16
    viewed = [known.run(torch.ops.aten._unsafe_view.default, (args[0], [24]), {}) for _ in range(2)]
    assert all(one.untyped_storage()._cdata == args[0].untyped_storage()._cdata for one in viewed)


def test_recomputing_and_fewer_rows_take_less():
    adapted = memory.adapted("tiny", torch.float32, LoraSettings())
    for trace in (
        lambda rows, recompute: memory.updating_bytes(adapted, rows, 400, 100, recompute=recompute),
        lambda rows, recompute: memory.finetuning_bytes(adapted, rows, 400, recompute=recompute, kernels=True),
    ):
        assert trace(8, True) < trace(8, False)
        assert trace(4, False) < trace(8, False) < 2.1 * trace(4, False)
