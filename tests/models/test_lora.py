"""Adapters: off is the base to the bit, the reference leaves no trace, what is saved is what is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from small_models import random_policy, tiny_policy, trainable_parameters

from rewardlm.config import LoraSettings
from rewardlm.errors import ModelError
from rewardlm.models.load import Policy
from rewardlm.models.lora import (
    CRITIC,
    POLICY,
    REFERENCE,
    adapter_parameters,
    add_critic,
    add_lora,
    head_is_shared,
    load_adapter,
    merged,
    reference,
    replace_adapter,
    save_adapter,
    scaled,
    using,
)

IDS = torch.tensor([[1, 300, 301, 302, 2, 17, 900]])


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=IDS).logits.clone()


def disturb(policy: Policy, seed: int = 0) -> None:
    """Give the adapter weights that change something, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name and f".{POLICY}." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture(scope="module")
def base_logits() -> torch.Tensor:
    return logits(tiny_policy())


@pytest.fixture
def adapted() -> Policy:
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=4), seed=0)
    disturb(policy)
    return policy


@pytest.fixture
def saved(adapted: Policy, tmp_path: Path) -> Path:
    save_adapter(adapted.model, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_fresh_adapter_changes_nothing_and_alone_is_trainable(base_logits: torch.Tensor) -> None:
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=4), seed=0)
    assert torch.equal(logits(policy), base_logits)
    names = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    assert sum(map(torch.numel, trainable_parameters(policy.model))) == sum(
        parameter.numel() for name, parameter in policy.model.named_parameters() if "lora_" in name
    )


def test_a_fresh_adapter_depends_on_the_seed_alone() -> None:
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        policy = tiny_policy()
        add_lora(policy, LoraSettings(r=4), seed=seed)
        drawn.append(torch.cat([parameter.flatten() for parameter in trainable_parameters(policy.model)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_drawing_an_adapter_leaves_the_callers_random_state() -> None:
    policy = tiny_policy()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    add_lora(policy, LoraSettings(r=4), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_the_adapter_is_float32_on_a_half_precision_base() -> None:
    from rewardlm.config import ModelSettings
    from rewardlm.models.load import load_policy

    policy = load_policy(ModelSettings(model="tiny", dtype="bfloat16", device="cpu"))
    add_lora(policy, LoraSettings(r=4), seed=0)
    assert {parameter.dtype for parameter in trainable_parameters(policy.model)} == {torch.float32}
    assert policy.causal_lm.model.embed_tokens.weight.dtype == torch.bfloat16


def test_reference_is_the_base_to_the_bit(adapted: Policy, base_logits: torch.Tensor) -> None:
    assert not torch.equal(logits(adapted), base_logits)
    with reference(adapted):
        assert torch.equal(logits(adapted), base_logits)


def test_reference_of_a_bare_model_is_itself(base_logits: torch.Tensor) -> None:
    policy = tiny_policy()
    with reference(policy):
        assert torch.equal(logits(policy), base_logits)


def state_of(policy: Policy) -> tuple[Any, Any, Any]:
    trainable = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    return trainable, list(policy.model.active_adapters), policy.model.training


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("with_reference", [False, True])
def test_reference_leaves_no_trace(saved: Path, trainable: bool, with_reference: bool) -> None:
    policy = tiny_policy()
    load_adapter(policy, saved, trainable=trainable)
    if with_reference:
        load_adapter(policy, saved, name=REFERENCE)
    before, own = state_of(policy), logits(policy)
    assert bool(before[0]) is trainable
    with reference(policy):
        pass
    assert state_of(policy) == before
    assert torch.equal(logits(policy), own)
    with pytest.raises(ZeroDivisionError), reference(policy):
        raise ZeroDivisionError
    assert state_of(policy) == before
    assert torch.equal(logits(policy), own)


def test_a_critics_adapter_stands_beside_the_policys(
    adapted: Policy, base_logits: torch.Tensor, tmp_path: Path
) -> None:
    own = logits(adapted)
    add_critic(adapted, LoraSettings(r=4), seed=5)
    for parameter in adapter_parameters(adapted.model, CRITIC):
        parameter.requires_grad_(True)
    before = state_of(adapted)
    assert torch.equal(logits(adapted), own)
    mine, critics = adapter_parameters(adapted.model), adapter_parameters(adapted.model, CRITIC)
    assert len(mine) == len(critics) > 0
    assert not {id(p) for p in mine} & {id(p) for p in critics}
    with using(adapted, CRITIC):
        assert torch.equal(logits(adapted), base_logits)  # its B is zero
    with torch.no_grad():
        for parameter in critics:
            parameter.add_(0.1)
    with using(adapted, CRITIC):
        assert not torch.allclose(logits(adapted), base_logits, atol=1e-3)
    with pytest.raises(ZeroDivisionError), using(adapted, CRITIC):
        raise ZeroDivisionError
    assert state_of(adapted) == before
    assert torch.equal(logits(adapted), own)
    with reference(adapted):
        assert torch.equal(logits(adapted), base_logits)
    with merged(adapted):
        torch.testing.assert_close(logits(adapted), own, atol=1e-4, rtol=1e-4)
    # Saved apart, and the policy's alone is what another command finds.
    save_adapter(adapted.model, tmp_path / "policy")
    save_adapter(adapted.model, tmp_path, name=CRITIC)
    assert [file.name for file in tmp_path.iterdir() if (file / "adapter_config.json").exists()] != []
    alone = tiny_policy()
    load_adapter(alone, tmp_path / "policy")
    torch.testing.assert_close(logits(alone), own)
    other = tiny_policy()
    load_adapter(other, tmp_path / CRITIC)
    with using(adapted, CRITIC):
        torch.testing.assert_close(logits(other), logits(adapted))


def test_the_head_is_shared_unless_an_adapter_is_on_it(adapted: Policy) -> None:
    assert head_is_shared(tiny_policy())
    assert head_is_shared(adapted)
    on_head = tiny_policy()
    add_lora(on_head, LoraSettings(r=4, targets=["q_proj", "lm_head"]), seed=0)
    assert not head_is_shared(on_head)


def test_reference_is_the_adapter_that_rl_started_from(saved: Path) -> None:
    policy = tiny_policy()
    load_adapter(policy, saved, trainable=True)
    load_adapter(policy, saved, name=REFERENCE)
    started_from = logits(policy)
    disturb(policy, seed=9)
    learned = logits(policy)
    assert not torch.equal(learned, started_from)
    with reference(policy):
        assert torch.equal(logits(policy), started_from)
    assert torch.equal(logits(policy), learned)


def test_what_is_saved_is_what_is_loaded(adapted: Policy, saved: Path) -> None:
    assert {file.name for file in saved.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    policy = tiny_policy()
    load_adapter(policy, saved)
    assert torch.equal(logits(policy), logits(adapted))
    assert policy.adapter == str(saved)
    assert not trainable_parameters(policy.model)
    assert not policy.model.training


def test_the_reference_is_not_saved_with_the_policy(saved: Path, tmp_path: Path) -> None:
    policy = tiny_policy()
    load_adapter(policy, saved, trainable=True)
    load_adapter(policy, saved, name=REFERENCE)
    save_adapter(policy.model, tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "adapter_model.safetensors").keys()
        == load_file(saved / "adapter_model.safetensors").keys()
    )
    assert not list((tmp_path / "again").glob("**/reference*"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_holds_a_part_of_the_base_is_refused(tmp_path: Path, start: str) -> None:
    """PEFT takes that part out of the base each time: a reference beside it would be another model."""
    bare = tiny_policy()
    plain = logits(bare)
    model = get_peft_model(bare.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=start))
    model.save_pretrained(str(tmp_path / "adapter"))
    with model.disable_adapter(), torch.no_grad():
        assert float((model(input_ids=IDS).logits - plain).abs().max()) > 0.01
    with pytest.raises(ModelError, match=f"init_lora_weights={start} takes a part of the base"):
        load_adapter(tiny_policy(), tmp_path / "adapter")


def test_a_trained_runs_folder_stands_for_its_adapter(adapted: Policy, saved: Path) -> None:
    policy = tiny_policy()
    load_adapter(policy, saved.parent)
    assert torch.equal(logits(policy), logits(adapted))


@pytest.mark.parametrize("name", ["gpt2", "falcon_multi_query", "bloom", "opt", "gpt_neox"])
def test_other_architectures_take_an_adapter(name: str, tmp_path: Path) -> None:
    policy = random_policy(name)
    bare = logits(policy)
    add_lora(policy, LoraSettings(r=2), seed=0)
    disturb(policy)
    own = logits(policy)
    with reference(policy):
        assert torch.equal(logits(policy), bare)
    save_adapter(policy.model, tmp_path)
    again = random_policy(name)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), own)


def test_targets_that_are_not_there_are_named() -> None:
    with pytest.raises(ModelError, match="no_such_module") as info:
        add_lora(tiny_policy(), LoraSettings(targets=["no_such_module"]), seed=0)
    assert "\n" not in str(info.value)


def test_merged_answers_the_same_and_leaves_every_weight_to_the_bit(adapted: Policy) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    trainable = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    apart = logits(adapted)
    with merged(adapted):
        together = logits(adapted)
        changed = adapted.model.state_dict()
        assert any(not torch.equal(changed[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(adapted.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad] == trainable
    assert torch.equal(logits(adapted), apart)


def test_merged_puts_the_weights_back_when_sampling_fails(adapted: Policy) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), merged(adapted):
        raise KeyboardInterrupt
    assert all(torch.equal(adapted.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_merged_takes_the_policy_and_not_the_reference(adapted: Policy, saved: Path) -> None:
    load_adapter(adapted, saved, name=REFERENCE)
    adapted.model.set_adapter(POLICY)
    disturb(adapted, seed=1)
    apart = logits(adapted)
    with merged(adapted):
        torch.testing.assert_close(logits(adapted), apart, rtol=1e-4, atol=1e-4)


def test_half_precision_is_not_merged() -> None:
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=4), seed=0)
    disturb(policy)
    policy.model.to(torch.bfloat16)
    policy.dtype = torch.bfloat16
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    with merged(policy):
        assert all(torch.equal(policy.model.state_dict()[name], tensor) for name, tensor in before.items())


def lora_layers(policy: Policy) -> list[LoraLayer]:
    return [module for module in policy.model.modules() if isinstance(module, LoraLayer)]


def test_a_scaled_adapter_is_one_with_a_larger_b(base_logits: torch.Tensor, adapted: Policy) -> None:
    before = logits(adapted)
    with scaled(lora_layers(adapted), 0.0):
        assert torch.equal(logits(adapted), base_logits)
    with scaled(lora_layers(adapted)[:3], 0.0), scaled(lora_layers(adapted)[3:], 1.5):
        found = logits(adapted)
    assert torch.equal(logits(adapted), before)
    with torch.no_grad():
        for index, layer in enumerate(lora_layers(adapted)):
            layer.lora_B[POLICY].weight.mul_(0.0 if index < 3 else 1.5)
    assert torch.allclose(found, logits(adapted), atol=1e-5)


def test_a_merged_adapter_is_not_scaled(adapted: Policy) -> None:
    with (
        merged(adapted),
        pytest.raises(ModelError, match="can't be scaled"),
        scaled(lora_layers(adapted), 0.5),
    ):
        pass


def test_one_of_several_adapters_is_used_and_what_was_on_is_on_again(
    base_logits: torch.Tensor, saved: Path, adapted: Policy
) -> None:
    first = logits(adapted)
    disturb(adapted, seed=5)
    second = logits(adapted)
    load_adapter(adapted, saved, name="other")
    trainable = {name: parameter.requires_grad for name, parameter in adapted.model.named_parameters()}
    for outer, expected in ((None, base_logits), ("other", first), (POLICY, second)):
        with using(adapted, outer):
            assert torch.equal(logits(adapted), expected)
            with using(adapted, None):
                assert torch.equal(logits(adapted), base_logits)
            assert torch.equal(logits(adapted), expected)
        assert torch.equal(logits(adapted), second)
    assert {name: parameter.requires_grad for name, parameter in adapted.model.named_parameters()} == trainable
    with pytest.raises(ModelError, match="no adapter 'third': it has default, other"), using(adapted, "third"):
        pass
    with pytest.raises(ModelError, match="none at all"), using(tiny_policy(), "other"):
        pass


def test_what_an_adapter_saves_besides_its_matrices_is_off_with_it() -> None:
    policy = tiny_policy()
    tokens = torch.arange(5, 12)[None]
    with torch.no_grad():
        base = policy.model(input_ids=tokens).logits
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
        policy.model = get_peft_model(policy.model, config)
        for name, parameter in policy.model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
        trained = policy.model(input_ids=tokens).logits
        assert float((trained - base).abs().max()) > 1
        for off in (using(policy, None), reference(policy)):
            with off:
                assert torch.equal(policy.model(input_ids=tokens).logits, base)
            assert torch.equal(policy.model(input_ids=tokens).logits, trained)


def test_a_replaced_adapter_is_the_old_or_the_new_one_at_any_moment(
    adapted: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after every rename, which is all that happens to the folder; and killed at each."""
    folder = tmp_path / "adapter"
    replace_adapter(adapted.model, folder)
    old = load_file(folder / "adapter_model.safetensors")
    disturb(adapted, seed=1)
    rename, seen = os.replace, []

    def whole() -> bool:
        """Whether the folder can be loaded; notes whether it holds the old one."""
        found = load_file(folder / "adapter_model.safetensors")
        LoraConfig.from_pretrained(str(folder))
        seen.append(all(torch.equal(found[name], tensor) for name, tensor in old.items()))
        return found.keys() == old.keys()

    for killed_at in range(1, 5):
        count = 0

        def watched(source: Any, target: Any, killed_at: int = killed_at) -> None:
            nonlocal count
            count += 1
            assert whole()
            if count == killed_at:
                raise KeyboardInterrupt
            rename(source, target)
            assert whole()

        monkeypatch.setattr(os, "replace", watched)
        try:
            replace_adapter(adapted.model, folder)
        except KeyboardInterrupt:
            assert whole()
    # Left over from the kills, and no hindrance.
    monkeypatch.setattr(os, "replace", rename)
    replace_adapter(adapted.model, folder)
    assert not folder.with_name("adapter.tmp").exists()
    now = load_file(folder / "adapter_model.safetensors")
    assert not all(torch.equal(now[name], tensor) for name, tensor in old.items())
    assert seen[0]
    assert not seen[-1]
