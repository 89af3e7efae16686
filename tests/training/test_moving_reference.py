"""A reference that follows the policy: its weights, both KLs against plain forward passes, limits, and a resume."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from trl.trainer.callbacks import SyncRefModelCallback

from rewardlm.config import LoraSettings, ModelSettings, RlafSettings
from rewardlm.errors import TrainingError
from rewardlm.models.load import load_policy
from rewardlm.models.logprobs import score_rows
from rewardlm.models.lora import (
    ORIGIN,
    REFERENCE,
    adapter_parameters,
    add_lora,
    add_reference,
    move_reference,
    origin,
    reference,
    using,
)
from rewardlm.runs import Run
from rewardlm.training import rlaf
from rewardlm.training.learner import make_learner
from rewardlm.training.rlaf import train

TINY = {"model": "tiny", "device": "cpu", "dtype": "float32"}
PLAIN = {"transform": "probability", "terms": {"refusal": 0, "similarity": 0, "counter_narrative": 0}}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def settings(**changes) -> RlafSettings:
    plain = {"batch_size": 8, "max_new_tokens": 6, "steps": 4, "rewards": PLAIN, "witness": [], "reward": ["lexical"]}
    return RlafSettings(**{**TINY, **plain, "algorithm": "rloo", "learning_rate": 1e-2, **changes})


def stir(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapter(run: Run, step: int, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(str(run.path / "checkpoints" / f"step-{step:06d}" / name / "adapter_model.safetensors"))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_before_it_moves_it_is_the_base_and_then_trls_mean():
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, LoraSettings(r=4), seed=3)
    add_reference(policy, LoraSettings(r=4), seed=3)
    rows = ([(1, 7, 30)], [[11, 12, 13]])
    with using(policy, None):
        base, _ = score_rows(policy.causal_lm, *rows, 10**6)
    own, old = adapter_parameters(policy.model), adapter_parameters(policy.model, REFERENCE)
    # The same matrices from the beginning, so that a mean is one of what was learnt.
    assert all(torch.equal(one, other) for one, other in zip(own, old, strict=True))
    stir(own, 0)
    with reference(policy):
        assert torch.equal(score_rows(policy.causal_lm, *rows, 10**6)[0], base)

    target, source = torch.nn.ParameterList([p.clone() for p in old]), torch.nn.ParameterList(own)
    SyncRefModelCallback._sync_target_model(source, target, 0.6)
    move_reference(policy, 0.6)
    for found, wanted in zip(old, target, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-5)
    move_reference(policy, 1.0)
    assert all(torch.equal(one, other) for one, other in zip(own, old, strict=True))
    with origin(policy):
        assert torch.equal(score_rows(policy.causal_lm, *rows, 10**6)[0], base)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["k1", "full"])
def test_both_kls_are_those_of_plain_forward_passes(tmp_path, monkeypatch, penalty):
    seen = {}
    update = rlaf.update

    def noted(learner, chosen, batch, *more):
        model = learner.policy.model
        seen.update(
            rollouts=batch.rollouts,
            policy=[p.detach().clone() for p in adapter_parameters(model)],
            reference=[p.detach().clone() for p in adapter_parameters(model, REFERENCE)],
        )
        return update(learner, chosen, batch, *more)

    monkeypatch.setattr(rlaf, "update", noted)
    moves = {"reference_every": 2, "reference_mix": 0.5, "penalty": penalty, "coef": 0.1}
    run = train(settings(kl=moves), tmp_path / "run")
    policy = load_policy(ModelSettings(**TINY))
    add_lora(policy, settings().lora, seed=0)
    rollouts = seen["rollouts"]

    def under(weights: list[torch.Tensor] | None) -> list[float]:
        with torch.no_grad(), using(policy, None if weights is None else "default"):
            for parameter, value in zip(adapter_parameters(policy.model), weights or [], strict=False):
                parameter.copy_(value)
            found = []
            for prompt, response in zip(rollouts.prompts, rollouts.responses, strict=True):
                logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
                logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
                found.append(sum(float(logprobs[t, token]) for t, token in enumerate(response)))
        return found

    own, old, base = under(seen["policy"]), under(seen["reference"]), under(None)
    line = list(run.read("metrics"))[-1]
    assert line["kl"] == pytest.approx(fmean(a - b for a, b in zip(own, old, strict=True)), abs=1e-3)
    assert line["kl_origin"] == pytest.approx(fmean(a - b for a, b in zip(own, base, strict=True)), abs=1e-3)
    assert abs(line["kl"] - line["kl_origin"]) > 0.01


@pytest.mark.slow
def test_a_copy_after_every_step_leaves_no_kl_but_the_limit_still_sees_the_first_reference(tmp_path):
    chosen = {"learning_rate": 0.03, "steps": 4}
    run = train(settings(kl={"reference_every": 1}, **chosen), tmp_path / "run")
    lines = list(run.read("metrics"))
    assert [line["kl"] for line in lines] == pytest.approx([0] * 4, abs=1e-4)
    assert lines[-1]["kl_origin"] > 0.3
    for step in (3, 4):
        assert equal(adapter(run, step), adapter(run, step, "reference"))
    with pytest.raises(TrainingError, match=r"KL to the first reference is .* over the limit kl\.max=0\.2"):
        train(settings(kl={"reference_every": 1, "max": 0.2}, **chosen), tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True])
def test_a_run_that_was_stopped_after_any_step_ends_as_one_that_nobody_disturbed(tmp_path, tuned):
    """With a schedule besides; from the base, and from an adapter, which stays the first reference."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    begun = {"adapter": train(settings(steps=1), tmp_path / "begun").path} if tuned else {}
    chosen = settings(
        kl={"reference_every": 2, "reference_mix": 0.3, "coef": 0.5},
        schedule={"kind": "cosine", "warmup_steps": 1, "end": 0.1},
        entropy_coef=0.01,
        **begun,
    )
    whole = train(chosen, tmp_path / "whole")
    for _ in range(4):
        with pytest.raises(Interrupted):
            train(chosen, tmp_path / "run", report=interrupt)
    run = train(chosen, tmp_path / "run")
    for name in ("adapter", "reference"):
        assert equal(adapter(run, 4, name), adapter(whole, 4, name))
    names = ("kl", "kl_origin", "learning_rate", "entropy_loss", "policy_loss")
    lines = [[[line[name] for name in names] for line in each.read("metrics")] for each in (run, whole)]
    assert lines[0] == lines[1]
    rates = [line[2] / 1e-2 for line in lines[0]]
    falls = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done / 3)) for done in (0, 1, 2)]
    assert rates == pytest.approx([0.5, *falls])
    # The first two steps have the first reference still.
    assert [line[0] == line[1] for line in lines[0]] == [True, True, False, False]


def test_only_the_policy_learns_and_the_first_reference_is_kept_where_it_is_an_adapter(tmp_path):
    begun = load_policy(ModelSettings(**TINY))
    add_lora(begun, LoraSettings(r=4), seed=3)
    stir(adapter_parameters(begun.model), 1)
    begun.model.save_pretrained(str(tmp_path / "adapter"))
    policy = load_policy(ModelSettings(**TINY))
    learner = make_learner(policy, settings(adapter=tmp_path / "adapter", kl={"reference_every": 1}))
    learning = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".default." in name for name in learning)
    kept = [p.clone() for p in adapter_parameters(policy.model, ORIGIN)]
    assert all(bool(p.any()) for p in kept)
    stir(adapter_parameters(policy.model), 2)
    learner.move_reference(settings(kl={"reference_every": 3}).kl, 2)
    assert all(torch.equal(p, q) for p, q in zip(adapter_parameters(policy.model, REFERENCE), kept, strict=True))
    learner.move_reference(settings(kl={"reference_every": 3}).kl, 3)
    own = adapter_parameters(policy.model)
    assert all(torch.equal(p, q) for p, q in zip(adapter_parameters(policy.model, REFERENCE), own, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(adapter_parameters(policy.model, ORIGIN), kept, strict=True))


def test_settings_of_a_reference_that_moves_fit_together():
    with pytest.raises(ValueError, match=r"kl\.target adapts .* leave one out"):
        settings(kl={"reference_every": 2, "target": 3.0})
    with pytest.raises(ValueError, match=r"kl\.reference_mix needs kl\.reference_every"):
        settings(kl={"reference_mix": 0.5})
