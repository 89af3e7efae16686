"""Our attributions against those of the package inseq, on a merged model; skipped where inseq isn't installed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from adapted import PROMPTS, RESPONSES, adapted_policy, state_of

from rewardlm.errors import ConfigError
from rewardlm.interpreting.attribution import attribute
from rewardlm.interpreting.inseq import attribute_by_inseq
from rewardlm.models.load import Policy
from rewardlm.models.lora import merged

POSITIONS = [[0, 2, 3], [1], [0, 5]]


@pytest.fixture(scope="module")
def inseq() -> Any:
    return pytest.importorskip("inseq", reason="inseq is not installed: docs/interpretation.md says how")


@pytest.fixture
def policy() -> Policy:
    return adapted_policy("tiny")


def by_inseq(policy: Policy, name: str, **settings: Any) -> list[Any]:
    return attribute_by_inseq(policy.causal_lm, policy.tokenizer, PROMPTS, RESPONSES, POSITIONS, name, **settings)


@pytest.mark.parametrize("name", ["input_x_gradient", "integrated_gradients"])
def test_ours_are_inseqs_to_1e_4(inseq: Any, policy: Policy, name: str) -> None:
    unknown = policy.tokenizer.unk_token_id
    # One stretch of eight points, not refined: the same rule as inseq's.
    own_settings = {"method": "gausslegendre", "n_steps": 8} if name == "integrated_gradients" else {}
    with merged(policy):
        theirs = by_inseq(policy, name, **own_settings)
        ours = attribute(
            policy.causal_lm,
            PROMPTS,
            RESPONSES,
            POSITIONS,
            method=name,
            baseline=unknown,
            steps=8,
            tolerance=math.inf,
        )
    for one, two in zip(theirs, ours, strict=True):
        assert float((one.scores - two.scores).abs().max()) < 1e-4
        assert float(two.scores.abs().max()) > 1e-2
        assert one.logprobs.tolist() == pytest.approx(two.logprobs.tolist(), abs=1e-4)


def test_other_methods_of_inseq_give_scores_of_what_stands_before(inseq: Any, policy: Policy) -> None:
    for name in ("saliency", "attention"):
        for row, found in enumerate(by_inseq(policy, name)):
            for k, at in enumerate(POSITIONS[row]):
                assert (found.scores[k, len(PROMPTS[row]) + at :] == 0).all()
                assert float(found.scores[k].abs().sum()) > 0


def test_the_model_is_left_as_it_was_found(inseq: Any, policy: Policy) -> None:
    before = copy.deepcopy(state_of(policy.model))
    side = policy.tokenizer.padding_side
    by_inseq(policy, "input_x_gradient")
    assert state_of(policy.model) == before
    assert policy.tokenizer.padding_side == side


def test_unknown_methods_are_named(inseq: Any, policy: Policy) -> None:
    with pytest.raises(ConfigError, match="inseq:nonsense: inseq has attention"):
        by_inseq(policy, "nonsense")


def test_without_inseq_it_is_said_how_to_get_it(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package inseq: pip install"):
        by_inseq(policy, "saliency")


def test_attention_is_told_from_what_explains_an_output(inseq: Any, policy: Policy) -> None:
    """Attention, averaged over layers and heads, of a plain forward pass."""
    found = by_inseq(policy, "attention")
    policy.causal_lm.set_attn_implementation("eager")
    row, at = 0, 2
    ids = torch.tensor([[*PROMPTS[row], *RESPONSES[row]]])
    with torch.no_grad():
        layers = policy.causal_lm(input_ids=ids, output_attentions=True).attentions
    where = len(PROMPTS[row]) + at - 1
    plain = torch.stack(layers).mean((0, 1, 2))[where, : where + 1]
    assert found[row].scores[POSITIONS[row].index(at), : where + 1].tolist() == pytest.approx(plain.tolist(), abs=1e-4)
