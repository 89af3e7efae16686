"""Attribution against finite differences, a double loop, completeness, and inseq where it is installed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy, state_of

from rewardlm.interpret.attribution import Attributed, attribute, embeddings_changed
from rewardlm.models.load import Policy
from rewardlm.models.lora import merged, using

POSITIONS = [[0, 2, 3], [1], [0, 5]]
END = 700


def found(model: Any, **settings: Any) -> list[Attributed]:
    return attribute(model, PROMPTS, RESPONSES, POSITIONS, **settings)


def logprob(model: Any, embeddings: torch.Tensor, row: int, position: int) -> torch.Tensor:
    """ln p of one response token by one plain forward pass over its own row, from given embeddings Float[1, L, H]."""
    ids = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with embeddings_changed(model, lambda _: embeddings):
        logits = model(input_ids=ids).logits[0, len(PROMPTS[row]) + position - 1]
    return logits.log_softmax(-1)[RESPONSES[row][position]]


def embeddings_of(model: Any, row: int) -> torch.Tensor:
    ids = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with torch.no_grad():
        embedded: torch.Tensor = model.get_input_embeddings()(ids)
    return embedded


def cases() -> list[tuple[int, int, int]]:
    return [(row, k, position) for row, where in enumerate(POSITIONS) for k, position in enumerate(where)]


# Bloom norms its embeddings, so that a longer one is the same: there is no slope to hold against its own.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "bloom"])
def test_input_x_gradient_is_the_slope_towards_a_longer_embedding(name: str) -> None:
    # Norms compute in float32 whatever they are given, so the step can't be much smaller; but ReLU has kinks within it.
    length = 1e-5 if name == "opt" else 1e-2
    model = adapted_policy(name).model.double()
    result = found(model.get_base_model())
    for row, k, position in cases():
        x = embeddings_of(model, row)
        assert result[row].scores.shape == (len(POSITIONS[row]), len(PROMPTS[row]) + len(RESPONSES[row]))
        with torch.no_grad():
            assert float(result[row].logprobs[k]) == pytest.approx(
                float(logprob(model.get_base_model(), x, row, position)), abs=1e-5
            )
            slopes = torch.zeros(x.shape[1])
            for token in range(x.shape[1]):
                step = torch.zeros_like(x)
                step[0, token] = length * x[0, token]
                ahead = logprob(model.get_base_model(), x + step, row, position)
                behind = logprob(model.get_base_model(), x - step, row, position)
                slopes[token] = float(ahead - behind) / (2 * length)
            assert float((result[row].scores[k] - slopes).norm()) < 5e-3 * float(slopes.norm())
            assert (result[row].scores[k, len(PROMPTS[row]) + position :] == 0).all()


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
@pytest.mark.parametrize("baseline", [END, None])
def test_occlusion_is_a_double_loop(name: str, baseline: int | None) -> None:
    model = adapted_policy(name).causal_lm
    result = found(model, method="occlusion", baseline=baseline, budget=23)
    nothing = torch.zeros(1) if baseline is None else model.get_input_embeddings()(torch.tensor(baseline)).detach()
    with torch.no_grad():
        for row, k, position in cases():
            x = embeddings_of(model, row)
            whole = logprob(model, x, row, position)
            for token in range(x.shape[1]):
                without = x.clone()
                without[0, token] = nothing
                lost = float(whole - logprob(model, without, row, position))
                assert float(result[row].scores[k, token]) == pytest.approx(lost, abs=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_integrated_gradients_add_up_to_what_the_input_changed(name: str) -> None:
    model = adapted_policy(name).causal_lm
    result = found(model, method="integrated_gradients", baseline=END, steps=96)
    nothing = model.get_input_embeddings()(torch.tensor(END)).detach()
    for row, k, position in cases():
        x = embeddings_of(model, row)
        with torch.no_grad():
            gained = logprob(model, x, row, position) - logprob(model, nothing.expand_as(x).clone(), row, position)
        assert float(result[row].scores[k].sum()) == pytest.approx(float(gained), abs=0.02)
        error = result[row].error
        assert error is not None
        assert float(error[k]) == pytest.approx(float(result[row].scores[k].sum() - gained), abs=1e-3)


def test_the_quadrature_is_the_integral() -> None:
    """Against two thousand midpoints, which know nothing of Gauss and Legendre."""
    model = adapted_policy("tiny").causal_lm
    result = found(model, method="integrated_gradients", baseline=END, steps=96)
    nothing = model.get_input_embeddings()(torch.tensor(END)).detach()
    row, k, position = 0, 2, 3
    x = embeddings_of(model, row)
    ids, place = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]]), len(PROMPTS[row]) + position - 1
    total = torch.zeros_like(x)
    for some in torch.from_numpy((np.arange(2000) + 0.5) / 2000).float().split(100):
        leaf = (nothing + some[:, None, None] * (x - nothing)).requires_grad_()
        with embeddings_changed(model, lambda _, leaf=leaf: leaf):
            logits = model(input_ids=ids.expand(len(some), -1)).logits[:, place]
        reached = logits.log_softmax(-1)[:, RESPONSES[row][position]].sum()
        total += torch.autograd.grad(reached, leaf)[0].sum(0, keepdim=True) / 2000
    by_midpoints = ((x - nothing) * total).sum(-1)[0]
    assert result[row].scores[k].numpy() == pytest.approx(by_midpoints.numpy(), abs=2e-3)


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "occlusion"])
def test_merged_and_unmerged_agree_and_batches_do_not_matter(method: str) -> None:
    policy = adapted_policy("tiny")
    settings = {"method": method, "baseline": END, "steps": 6}
    apart = found(policy.causal_lm, **settings)
    with merged(policy):
        together = found(policy.causal_lm, **settings)
    alone = found(policy.causal_lm, budget=1, **settings)
    with using(policy, None):
        base = found(policy.causal_lm, **settings)
    for one, two, three, other in zip(apart, together, alone, base, strict=True):
        assert one.scores.numpy() == pytest.approx(two.scores.numpy(), abs=1e-4)
        assert one.scores.numpy() == pytest.approx(three.scores.numpy(), abs=1e-4)
        assert float((one.scores - other.scores).abs().max()) > 0.01


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients", "occlusion"])
def test_the_model_is_left_as_it_was_found(method: str) -> None:
    policy = adapted_policy("tiny")
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(state_of(policy.model))
    found(policy.causal_lm, method=method, steps=2, baseline=END)
    assert state_of(policy.model) == before


def test_a_model_that_breaks_keeps_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Policy = adapted_policy("tiny")

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    before = copy.deepcopy(state_of(policy.model))
    monkeypatch.setattr(policy.causal_lm.model, "forward", breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        found(policy.causal_lm)
    monkeypatch.undo()
    assert state_of(policy.model) == before
