"""DExperts against three models that are run apart, task vectors against weights, and what loading leaves behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import adapted, random_policy, tiny_policy
from small_steering import (
    GREEDY,
    answered,
    assert_unchanged,
    folder_of,
    greedy,
    prompts_of,
    saved_adapter,
    state_of,
)

from rewardlm.errors import ModelError
from rewardlm.models.load import Policy
from rewardlm.models.lora import carrying, load_adapter, set_strength
from rewardlm.steering.adapters import combined
from rewardlm.steering.load import load_steering

TOKENS = torch.tensor([[1, 300, 301, 302, 2, 17, 900]])
Adapters = Callable[[str], Path]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    folder = tmp_path_factory.mktemp("adapters")
    names = ("expert", "anti_expert", "toxic")
    return {name: saved_adapter(tiny_policy, folder / name, seed, 0.3) for seed, name in enumerate(names)}.__getitem__


def test_logits_are_pushed_as_in_the_paper() -> None:
    """Against a loop over the vocabulary: z + α(z⁺ − z⁻) where the base's nucleus holds the token, −inf elsewhere."""
    generator = torch.Generator().manual_seed(0)
    base, expert, anti = (torch.randn(3, 40, generator=generator) * 2 for _ in range(3))
    strengths = [2.0, 0.5, 0.0]
    got = combined(base, expert, anti, torch.tensor(strengths), 0.9)
    for row, strength in enumerate(strengths):
        shares = [math.exp(float(z)) for z in base[row]]
        total = sum(shares)
        ranked = sorted(range(40), key=lambda token: -shares[token])
        nucleus, mass = set(), 0.0
        for token in ranked:
            nucleus.add(token)
            mass += shares[token] / total
            if mass >= 0.9:
                break
        assert len(nucleus) < 40
        for token in range(40):
            inside = token in nucleus or strength == 0
            wanted = float(base[row, token] + strength * (expert[row, token] - anti[row, token]))
            assert float(got[row, token]) == (pytest.approx(wanted, abs=1e-5) if inside else -math.inf)


def with_adapter(folder: Path) -> Policy:
    policy = tiny_policy()
    load_adapter(policy, folder)
    return policy


@pytest.mark.parametrize("door", ["1", "0"])
def test_answers_are_those_of_three_models_run_apart(adapters: Adapters, door: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    base, expert, anti = tiny_policy(), with_adapter(adapters("expert")), with_adapter(adapters("anti_expert"))
    strengths = [2.0, 0.5, 0.0, 1.0, 3.0]
    steering = load_steering(folder_of("dexperts", adapters))
    got = answered(tiny_policy(), steering, strengths, sampling=GREEDY, batch_tokens=400)

    def of(strength: float) -> Callable[[list[int], int], torch.Tensor]:
        def logits(tokens: list[int], _start: int) -> torch.Tensor:
            with torch.no_grad():
                z, plus, minus = (
                    one.causal_lm(input_ids=torch.tensor([tokens])).logits[0, -1] for one in (base, expert, anti)
                )
            if not strength:
                return z
            order = z.argsort(descending=True)
            before = z.softmax(-1)[order].cumsum(-1) - z.softmax(-1)[order]
            outside = order[before >= 0.9]
            pushed = z + strength * (plus - minus)
            pushed[outside] = -torch.inf
            return pushed

        return logits

    wanted = [
        greedy(of(strength), prompt, 8, base.end_ids)
        for strength, prompt in zip(strengths, prompts_of(base), strict=True)
    ]
    assert [answer.tokens for answer in got] == wanted
    plain = [greedy(of(0.0), prompt, 8, base.end_ids) for prompt in prompts_of(base)]
    assert wanted != plain


@pytest.mark.parametrize("door", ["1", "0"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nucleus_that_is_barred_gives_way_to_the_next(
    adapters: Adapters, door: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nucleus is one token here, and the settings bar what the row has already: so it is the base's likeliest token
    of the others, whatever the experts say, and drawn as surely as greedily."""
    monkeypatch.setenv("REWARDLM_FASTPATH", door)
    folder = folder_of("dexperts", adapters)
    folder.record.settings["top_p"] = 1e-6
    sampling = GREEDY.model_copy(update={"no_repeat_ngram_size": 1, "temperature": temperature})
    got = answered(tiny_policy(), load_steering(folder), [2.0] * 5, sampling=sampling)
    base = tiny_policy()

    def logits(tokens: list[int], _start: int) -> torch.Tensor:
        with torch.no_grad():
            z = base.causal_lm(input_ids=torch.tensor([tokens])).logits[0, -1]
        z[tokens] = -torch.inf
        return z

    assert [answer.tokens for answer in got] == [greedy(logits, p, 8, base.end_ids) for p in prompts_of(base)]
    assert all(torch.isfinite(answer.logprobs).all() for answer in got)


def test_an_end_that_is_too_early_gives_way(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("dexperts", adapters)
    folder.record.settings["top_p"] = 1e-6
    policy = tiny_policy()
    (prompt, *_) = prompts_of(policy)
    with torch.no_grad():
        first, second = policy.causal_lm(input_ids=torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist()
    monkeypatch.setattr(type(policy), "end_ids", frozenset({first}))
    for held, wanted in ((0, first), (1, second)):
        sampling = GREEDY.model_copy(update={"min_new_tokens": held})
        assert answered(policy, load_steering(folder), [2.0] * 5, sampling=sampling, n=1)[0].tokens == [wanted]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "bloom", "qwen2"])
def test_every_family_carries_experts(name: str, tmp_path: Path) -> None:
    made = {one: saved_adapter(lambda: random_policy(name), tmp_path / one, seed) for seed, one in enumerate("ab")}
    folder = folder_of("dexperts", lambda one: made["a" if one == "expert" else "b"])
    policy = random_policy(name)
    before = state_of(policy)
    got = answered(policy, load_steering(folder), [2.0] * 5, sampling=GREEDY)
    assert_unchanged(policy, before)
    apart = [random_policy(name) for _ in range(3)]
    for one, which in zip(apart[1:], "ab", strict=True):
        load_adapter(one, made[which])

    def logits(tokens: list[int], _start: int) -> torch.Tensor:
        with torch.no_grad():
            z, plus, minus = (one.causal_lm(input_ids=torch.tensor([tokens])).logits[:, -1] for one in apart)
        return combined(z, plus, minus, torch.tensor([2.0]), 0.9)[0]

    assert [answer.tokens for answer in got] == [greedy(logits, p, 8, policy.end_ids) for p in prompts_of(policy)]


def test_a_task_vector_is_taken_from_the_weights(adapters: Adapters) -> None:
    """W − α·(alpha / r)·B·A, with the product formed by hand."""
    strengths = [1.0, 0.5, 1.0, 2.0, 0.0]
    got = answered(tiny_policy(), load_steering(folder_of("task-vector", adapters)), strengths, sampling=GREEDY)
    weights = load_file(adapters("toxic") / "adapter_model.safetensors")
    for row, strength in enumerate(strengths):
        policy = tiny_policy()
        with torch.no_grad():
            for name, down in weights.items():
                if ".lora_A." not in name:
                    continue
                module = policy.causal_lm.get_submodule(name.split("base_model.model.")[1].split(".lora_A")[0])
                module.weight -= strength * 8 / 4 * weights[name.replace("lora_A", "lora_B")] @ down

        def logits(tokens: list[int], _start: int, policy: Policy = policy) -> torch.Tensor:
            with torch.no_grad():
                return policy.causal_lm(input_ids=torch.tensor([tokens])).logits[0, -1]

        assert got[row].tokens == greedy(logits, prompts_of(policy)[row], 8, policy.end_ids)


def test_adapter_strength_scales_what_the_adapter_adds(adapters: Adapters) -> None:
    def logits(policy: Policy) -> torch.Tensor:
        with torch.no_grad():
            return policy.model(input_ids=TOKENS).logits

    plain = logits(tiny_policy())
    weights = load_file(adapters("toxic") / "adapter_model.safetensors")
    for strength in (0.0, 0.5, 1.0, 1.5):
        policy = with_adapter(adapters("toxic"))
        set_strength(policy, strength)
        by_hand = tiny_policy()
        with torch.no_grad():
            for name, down in weights.items():
                if ".lora_A." in name:
                    module = by_hand.causal_lm.get_submodule(name.split("base_model.model.")[1].split(".lora_A")[0])
                    module.weight += strength * 8 / 4 * weights[name.replace("lora_A", "lora_B")] @ down
        torch.testing.assert_close(logits(policy), logits(by_hand), atol=1e-4, rtol=1e-4)
        if strength == 0:
            assert torch.equal(logits(policy), plain)
    with pytest.raises(ModelError, match="name one with --adapter"):
        set_strength(tiny_policy(), 0.5)


@pytest.mark.parametrize("own", [False, True])
def test_carried_adapters_leave_no_trace(adapters: Adapters, own: bool) -> None:
    policy = adapted("tiny") if own else tiny_policy()
    before = state_of(policy)
    with carrying(policy, {"a": adapters("expert"), "b": adapters("toxic")}):
        assert isinstance(policy.model, PeftModel)
        assert {"a", "b"} <= set(policy.model.peft_config)
        with torch.no_grad():
            inside = policy.model(input_ids=TOKENS).logits
        torch.testing.assert_close(inside, before["logits"], atol=1e-5, rtol=1e-5)
    assert_unchanged(policy, before)


@pytest.mark.parametrize("own", [False, True])
def test_an_adapter_that_does_not_fit_leaves_no_trace(adapters: Adapters, own: bool, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "adapter_config.json").write_bytes((adapters("toxic") / "adapter_config.json").read_bytes())
    weights = load_file(adapters("toxic") / "adapter_model.safetensors")
    save_file({name: torch.zeros(3, 3) for name in weights}, wrong / "adapter_model.safetensors")
    policy = adapted("tiny") if own else tiny_policy()
    before = state_of(policy)
    with pytest.raises(ModelError, match="does not fit"), carrying(policy, {"a": adapters("expert"), "b": wrong}):
        pass
    assert_unchanged(policy, before)


def test_an_adapter_that_was_trained_further_is_refused(adapters: Adapters, tmp_path: Path) -> None:
    moved = tmp_path / "toxic"
    moved.mkdir()
    for file in adapters("toxic").iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    folder = folder_of("task-vector", lambda _: moved)
    weights = load_file(moved / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, moved / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="trained further"):
        load_steering(folder)


def test_a_base_with_an_adapter_has_no_room_for_experts(adapters: Adapters) -> None:
    for method in ("dexperts", "task-vector"):
        with (
            pytest.raises(ModelError, match="rewardlm merge"),
            load_steering(folder_of(method, adapters)).on(adapted("tiny")),
        ):
            pass


@pytest.mark.parametrize("method", ["dexperts", "task-vector"])
@pytest.mark.parametrize("more", [{"use_dora": True}, {"modules_to_save": ["norm"]}], ids=["dora", "saved norm"])
def test_an_adapter_that_is_more_than_maps_is_refused(method: str, more: dict[str, Any], tmp_path: Path) -> None:
    """A variant of LoRA, or whole modules, would be left out (DExperts) or put on unscaled (task vectors)."""
    config = LoraConfig(r=4, target_modules=["q_proj"], **more)
    get_peft_model(tiny_policy().model, config).save_pretrained(tmp_path / "adapter")
    steering = load_steering(folder_of(method, lambda _: tmp_path / "adapter"))
    policy = tiny_policy()
    before = state_of(policy)
    with pytest.raises(ModelError, match="plain LoRA adapter"), steering.on(policy):
        pass
    assert_unchanged(policy, before)
