"""An adapter in parts: together they are the whole, alone they are what their weights say, written they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from adapted import FAMILIES, adapted_policy, state_of
from peft import LoraConfig, get_peft_model
from planted import Planted, planted, undo
from small_models import random_policy
from test_patching import pairs_of

from rewardlm.config import CausesSettings
from rewardlm.errors import ModelError
from rewardlm.interpreting.causes.minimal import PromptText, minimal_adapter
from rewardlm.interpreting.causes.pairs import AskedOnce, JudgedPair, pair_batches
from rewardlm.interpreting.causes.parts import UNIT_KINDS, AdapterParts, UnitKind
from rewardlm.interpreting.mechanistic.activations import mean_logprobs
from rewardlm.models.architecture import architecture_of
from rewardlm.models.load import Policy
from rewardlm.models.lora import load_adapter, using

IDS = torch.tensor([[1, 300, 301, 17, 900, 2, 40]])
ALL = [*FAMILIES, "falcon_grouped", "qwen3"]


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = policy.causal_lm(input_ids=IDS).logits
    return found


def preferences(policy: Policy) -> Iterator[torch.Tensor]:
    arch = architecture_of(policy.causal_lm)
    for piece in pair_batches(pairs_of(), policy.device, 10**6):
        states = arch.body(input_ids=piece.batch.tokens, attention_mask=piece.batch.mask.long(), use_cache=False)[0]
        yield piece.preference(mean_logprobs(arch, states, piece.batch)).sum()


@pytest.mark.parametrize("kind", UNIT_KINDS)
@pytest.mark.parametrize("family", ALL)
def test_all_parts_are_the_whole_and_no_part_is_the_base(family: str, kind: UnitKind) -> None:
    policy = adapted_policy(family)
    before = state_of(policy.model)
    with using(policy, None):
        base = logits(policy)
    with using(policy, "default"):
        whole = logits(policy)
    parts = AdapterParts(policy, "default")
    units = parts.units(kind)
    with parts.on(units):
        assert (logits(policy) - whole).abs().max() < 2e-4 * float(whole.abs().max())
    with parts.on([]):
        assert torch.equal(logits(policy), base)
    with parts.on(units[: len(units) // 2]):
        assert (logits(policy) - whole).abs().max() > 1e-3
    assert state_of(policy.model) == before
    # Every number is in some unit: together they keep as many as there are.
    assert parts.numbers(units) == parts.parameters


@pytest.mark.parametrize("kind", UNIT_KINDS)
@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query", "bloom", "opt"])
def test_gains_add_up_to_the_rise(family: str, kind: UnitKind) -> None:
    """Integrated gradients are complete (Sundararajan et al. 2017): over units of any kind."""
    policy = adapted_policy(family)
    values = {}
    for name in (None, "default"):
        with using(policy, name), torch.no_grad():
            values[name] = sum(float(part) for part in preferences(policy))
    parts = AdapterParts(policy, "default")
    # Whatever was on before: here, nothing.
    with using(policy, None):
        parts.follow(lambda: preferences(policy), points=32)
    rise = values["default"] - values[None]
    total = sum(parts.gain(unit) for unit in parts.units(kind))
    assert total == pytest.approx(rise, abs=0.02 * abs(rise) + 1e-3)


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_grouped", "bloom", "opt"])
def test_a_part_is_written_as_an_adapter_that_is_loaded(family: str, tmp_path: Path) -> None:
    policy = adapted_policy(family)
    parts = AdapterParts(policy, "default")
    for kind in UNIT_KINDS:
        units = parts.units(kind)[1::3]
        folder = tmp_path / kind
        numbers = parts.write(units, folder)
        assert numbers == parts.numbers(units) < parts.parameters
        with parts.on(units):
            expected = logits(policy)
        other = random_policy(family)
        other.model.load_state_dict(
            {
                name.replace(".base_layer", ""): tensor
                for name, tensor in policy.causal_lm.state_dict().items()
                if "lora_" not in name
            }
        )
        load_adapter(other, folder)
        assert (logits(other) - expected).abs().max() < 2e-4 * float(expected.abs().max())
    config = json.loads((tmp_path / "module" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(parts.units("module")[1::3])
    with pytest.raises(ModelError, match="nothing of the adapter is kept"):
        parts.write([], tmp_path / "none")


@pytest.mark.parametrize("kind", UNIT_KINDS)
def test_a_rank_beyond_the_width_of_a_module(kind: UnitKind, tmp_path: Path) -> None:
    """Keys that heads share are narrower than the stream, and may be than the adapter's rank."""
    policy = random_policy("qwen2")
    rank = 24
    policy.model = get_peft_model(policy.causal_lm, LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    before = state_of(policy.model)
    with using(policy, "default"):
        whole = logits(policy)
    parts = AdapterParts(policy, "default")
    narrow = [one for one in parts.factors.values() if min(one.b.shape[0], one.a.shape[1]) < rank]
    assert narrow
    for one in narrow:
        assert (one.b @ one.a - one.scaling * one.kept_b @ one.kept_a).abs().max() < 1e-5
    units = parts.units(kind)
    with parts.on(units):
        assert (logits(policy) - whole).abs().max() < 2e-4 * float(whole.abs().max())
    assert state_of(policy.model) == before
    parts.write(units, tmp_path / "part")
    other = random_policy("qwen2")
    load_adapter(other, tmp_path / "part")
    assert (logits(other) - whole).abs().max() < 2e-4 * float(whole.abs().max())


def test_an_adapter_on_the_embedding_is_refused() -> None:
    policy = random_policy("tiny")
    policy.model = get_peft_model(policy.causal_lm, LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    with pytest.raises(ModelError, match="changes the embedding too"):
        AdapterParts(policy, "default")


def test_ranks_come_by_their_size() -> None:
    """The first rank alone is the best approximation of a module's B·A (Eckart & Young 1936)."""
    policy = adapted_policy("qwen2")
    parts = AdapterParts(policy, "default")
    path, one = next(iter(parts.factors.items()))
    product = one.scaling * one.kept_b @ one.kept_a
    assert (one.b @ one.a - product).abs().max() < 1e-5
    first = parts.masked([unit for unit in parts.units("rank") if unit.name == f"{path} rank 0"])[path]
    values = torch.linalg.svdvals(product)
    assert float((first[1] @ first[0] - product).norm()) == pytest.approx(float(values[1:].norm()), rel=1e-3)


def judged_pairs(model: Planted) -> list[JudgedPair]:
    prompts = model.prompts(24)[:12]
    return [
        JudgedPair(AskedOnce(tuple(one.prompt), ("prompt",) * len(one.prompt)), tuple(one.toxic), tuple(one.harmless))
        for one in model.redrawn(prompts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rewritten", "avoided", "untouched"])
def test_the_smallest_adapter_is_what_was_planted(way: str, tmp_path: Path) -> None:
    """One module and rank does it, and the other modules' random weights don't matter."""
    model = planted()
    pairs = judged_pairs(model)
    undo(model, way)
    policy = model.policy
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in policy.model.modules():
            if hasattr(module, "lora_A") and not bool(module.lora_A["default"].weight.any()):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                a.copy_(torch.randn(a.shape, generator=generator) * 0.02)
                b.copy_(torch.randn(b.shape, generator=generator) * 0.02)
    prompts = [PromptText(tuple(prompt), "a prompt") for prompt in model.prompts(40)[:20]]
    settings = CausesSettings(max_new_tokens=6)
    folder = tmp_path / "adapter"
    with using(policy, None):  # whatever was on before
        result = minimal_adapter(
            policy, "default", pairs, prompts[:10], prompts[10:], model.judge, None, settings, folder
        )
    assert result.reason is None
    assert result.tried
    layer, name = (1, "down_proj") if way == "untouched" else (0, "down_proj" if way == "rewritten" else "up_proj")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.layers.{layer}.mlp.{name}"]
    assert result.kept is not None
    assert result.kept < 0.4
    assert result.whole is not None
    assert result.base is not None
    assert result.toxicity == pytest.approx(result.whole.toxicity, abs=0.11)
    assert result.base.toxicity is not None
    assert result.base.toxicity > 0.6
    assert result.fall_kept is not None
    assert result.fall_kept.mean > 0.8


class Lucky:
    """A judge to whom a part's first answers to any prompts are harmless, by luck; its later ones, and other models',
    are judged as they are."""

    def __init__(self, judge: Callable[[Sequence[str]], list[float | None]], prompts: int) -> None:
        self.judge, self.prompts = judge, prompts
        self.read = 0

    def __call__(self, texts: Sequence[str]) -> list[float | None]:
        self.read += 1
        known = list(self.judge(texts))
        # The base and the whole adapter twice; then parts, once each and once more where the first were harmless.
        return [0.0 for _ in known] if self.read > 4 and self.read % 2 else known


@pytest.mark.slow
def test_a_part_isnt_chosen_by_one_lucky_draw(tmp_path: Path) -> None:
    """What carries least is tried first, and every part answers harmlessly at first: once more it doesn't."""
    model = planted()
    # Turned around, so that the module which does it is ranked last.
    pairs = [JudgedPair(pair.asked, pair.harmless, pair.toxic) for pair in judged_pairs(model)]
    undo(model, "rewritten")
    policy = model.policy
    prompts = [PromptText(tuple(prompt), "a prompt") for prompt in model.prompts(40)[:20]]
    judge = Lucky(model.judge, 10)
    result = minimal_adapter(
        policy, "default", pairs, prompts[:10], prompts[10:], judge, None,
        CausesSettings(max_new_tokens=6, unit="module"), tmp_path / "adapter",
    )  # fmt: skip
    assert result.tried[0].units == 1
    assert len(result.tried) > 1
    for one in result.tried:
        assert one.fall_kept is not None
        assert one.fall_kept >= 0.9
        assert one.fall_kept_again is not None
        assert one.fall_kept_again < 0.9
        assert not one.passed
        assert one.units < one.of
    assert result.reason == f"none of the {len(result.tried)} smaller parts that were tried kept 90 % of the fall twice"
    assert result.adapter is None
    assert not (tmp_path / "adapter").exists()


def test_nothing_to_keep_is_said(tmp_path: Path) -> None:
    model = planted()
    pairs = [
        JudgedPair(AskedOnce((1, 2), ("prompt", "prompt")), (model.harmless[0],), (model.harmless[1],))
        for _ in range(5)
    ]
    undo(model, "avoided")
    prompts = [PromptText(tuple(prompt), "x") for prompt in model.prompts(20)[10:]]
    result = minimal_adapter(
        model.policy, "default", pairs, prompts, prompts, model.judge, None, CausesSettings(max_new_tokens=4),
        tmp_path / "adapter",
    )  # fmt: skip
    assert result.reason is not None
    assert "not shown to fall on the 10 prompts, 6 answers each" in result.reason
    assert result.adapter is None
    assert not (tmp_path / "adapter").exists()
