"""Value vectors: ratios with intervals that keep their level, "as before" only where shown, and what silencing does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from adapted import PROMPTS, RESPONSES, adapted_policy, state_of
from planted import NEURON, N, Planted, examined, planted, settings_for, undo
from scipy import stats

from rewardlm.config import InsideSettings
from rewardlm.interpreting import inside
from rewardlm.interpreting.directions import ValueVector, activations_of
from rewardlm.interpreting.inside import Subject, examine
from rewardlm.interpreting.residual import adapter_layers, batch_of, layout_of, trace, weight_of
from rewardlm.interpreting.vectors import (
    _asked,
    activations_at,
    bounds,
    lost,
    random_adapter,
    ratio_of_means,
    silenced,
    takes_more,
    vectors_like,
)
from rewardlm.models.lora import using

VECTORS = [ValueVector(0, 3, 1, 1.0, ()), ValueVector(1, 7, -1, 1.0, ()), ValueVector(1, 2, 1, 1.0, ())]
MARGIN = InsideSettings().push_margin


def drawn(n: int, ratio: float, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    before = rng.normal(1.0, 0.5, n)
    return before, ratio * before + rng.normal(0, 0.4, n)


@pytest.mark.parametrize("seed", range(5))
def test_a_ratios_interval_ends_where_a_paired_t_test_begins_to_reject(seed: int) -> None:
    before, after = drawn(12, 0.7, seed)
    found = ratio_of_means(before, after, MARGIN)
    assert found is not None
    assert found["mean"] == pytest.approx(after.mean() / before.mean())
    for end in found["ci95"]:
        assert stats.ttest_1samp(after - end * before, 0).pvalue == pytest.approx(0.05, abs=1e-9)


@pytest.mark.slow
def test_intervals_and_equivalence_keep_their_level_at_ten_prompts() -> None:
    held, equivalent = 0, {0.8: 0, 1.25: 0, 1.0: 0}
    for seed in range(2000):
        before, after = drawn(10, 0.7, seed)
        found = ratio_of_means(before, after, MARGIN)
        held += found is None or found["ci95"][0] <= 0.7 <= found["ci95"][1]
        for ratio in equivalent:
            before, after = drawn(10, ratio, seed)
            found = ratio_of_means(before, after / 1.0, MARGIN)
            equivalent[ratio] += found is not None and found["as_before"]
    # 95 % of 2,000, within three standard errors.
    assert 0.935 <= held / 2000 <= 0.965
    # At the bounds themselves, "as before" is wrong: one-sided tests at 2.5 % each.
    assert equivalent[0.8] / 2000 <= 0.036
    assert equivalent[1.25] / 2000 <= 0.036


def test_what_has_no_ratio_has_none() -> None:
    rng = np.random.default_rng(0)
    assert ratio_of_means(np.array([1.0, 1.1, 0.9, 1.0]), np.ones(4), MARGIN) is None
    assert ratio_of_means(-np.ones(8), np.ones(8), MARGIN) is None
    assert ratio_of_means(rng.normal(0, 1, 8) * 10, np.ones(8), MARGIN) is None
    same = ratio_of_means(np.arange(1.0, 9.0), np.arange(1.0, 9.0), MARGIN)
    assert same == {"mean": 1.0, "ci95": pytest.approx([1.0, 1.0]), "as_before": True, "n": 8}
    assert bounds(0.2) == pytest.approx((0.8, 1.25))


@pytest.fixture(scope="module")
def bypassed() -> dict[str, Any]:
    return examined("untouched", null_adapters=3)[1]


def kind_of(result: dict[str, Any], **own: Any) -> tuple[str | None, str | None]:
    """The verdict where the tuned model's numbers are ``own``."""
    found = copy.deepcopy(result)
    found["vectors"]["by_model"]["FT"] |= own
    change = {"mean": -0.5, "ci95": [-0.7, -0.3], "n": 24}
    verdict = inside._verdict(found, "FT", change, InsideSettings())
    return verdict["kind"], verdict["reason"]


def ratio(mean: float, low: float, high: float) -> dict[str, Any]:
    lowest, highest = bounds(MARGIN)
    return {"mean": mean, "ci95": [low, high], "as_before": lowest <= low and high <= highest, "n": 24}


def test_nothing_is_said_of_a_base_that_never_pushed(bypassed: dict[str, Any]) -> None:
    kind, reason = kind_of(bypassed, push_ratio=None, read_ratio=None, write_ratio=None)
    assert kind == "cannot_tell"
    assert "don’t measurably push" in str(reason)


def test_an_interval_that_holds_one_is_not_as_before(bypassed: dict[str, Any]) -> None:
    as_it_was = ratio(1.0, 1.0, 1.0)
    wide = ratio(0.6, 0.2, 1.05)
    kind, reason = kind_of(bypassed, push_ratio=wide, read_ratio=wide, write_ratio=as_it_was)
    assert kind == "cannot_tell"
    assert "not within 0.8 and 1.25" in str(reason)
    near = ratio(0.97, 0.9, 1.04)
    assert kind_of(bypassed, push_ratio=near, read_ratio=near, write_ratio=as_it_was) == ("untouched", None)
    less = ratio(0.5, 0.3, 0.7)
    assert kind_of(bypassed, push_ratio=less, read_ratio=less, write_ratio=as_it_was) == ("avoided", None)
    # A fall that adapters of random weights bring about as well is none of this adapter's doing.
    by_chance = [{"cosine": 1.0, "push_ratio": 0.4, "read_ratio": 0.4, "write_ratio": 1.0}]
    kind, reason = kind_of(bypassed, push_ratio=less, read_ratio=less, write_ratio=as_it_was, null=by_chance)
    assert kind == "cannot_tell"
    assert "random weights" in str(reason)
    # Vectors that turned, but write what they wrote, were not unlearned.
    kind, reason = kind_of(bypassed, push_ratio=near, read_ratio=near, write_ratio=near, cosine=[0.5])
    assert kind == "cannot_tell"
    kind, _ = kind_of(bypassed, push_ratio=less, read_ratio=as_it_was, write_ratio=less, cosine=[0.5])
    assert kind == "rewritten"


def test_vectors_that_the_base_does_not_need_are_no_bypass(bypassed: dict[str, Any]) -> None:
    found = copy.deepcopy(bypassed)
    lost_here = found["ablation"]["by_model"]["PT"]["logits"]
    beyond = lost_here["beyond_random"]
    for changed in (
        {"beyond_random": {"mean": 0.0, "ci95": [-0.1, 0.1], "n": 6}},
        # As much as the second of twenty random sets takes, or not shown among all that is read together.
        {"p_value_random": 2 / 21},
        {"beyond_random": {**beyond, "p_adjusted": 0.06}},
    ):
        lost_here |= changed
        kind, reason = kind_of(found)
        assert kind == "cannot_tell"
        assert "silencing" in str(reason)
        lost_here |= {"beyond_random": beyond, "p_value_random": 1 / 21}
        assert kind_of(found)[0] == "untouched"


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.25, 1.0])
def test_one_more_random_set_is_needed_one_time_in_twenty_one(noise: float) -> None:
    """What silencing a set does differs from set to set, by as much as between prompts or by four times as much. Held
    against the mean of two sets, of which nobody knows how far such means lie apart, 37 of 100 were needed."""
    rng = np.random.default_rng(0)
    needed, trials, settings = 0, 400, InsideSettings(n_resamples=200)
    for _ in range(trials):
        plain = rng.normal(size=12)
        sets = [plain + effect + noise * rng.normal(size=12) for effect in rng.normal(size=21)]
        found = lost(plain.tolist(), sets[0].tolist(), [one.tolist() for one in sets[1:]], settings, largest=None)
        assert found["p_value_random"] == pytest.approx(
            (1 + sum((one - plain).mean() <= (sets[0] - plain).mean() for one in sets[1:])) / 21
        )
        needed += takes_more(found)
    assert needed / trials <= 1 / 21 + 3 * (1 / 21 / trials) ** 0.5


def test_two_random_sets_have_no_rank() -> None:
    found = lost([1.0] * 8, [0.0, 0.1] * 4, [[1.0] * 8, [0.9] * 8], InsideSettings(n_resamples=200))
    assert found["p_value_random"] is None
    assert found["random_changes"] == pytest.approx([0, -0.1])
    assert found["beyond_random"]["ci95"][1] < 0
    assert not takes_more(found)


def test_a_prompt_is_asked_once_and_answers_to_it_count_together() -> None:
    prompts = [(1, 2, 3)] * 4 + [(4, 5)] * 4 + [(6,)] * 4 + [(7, 8)] * 4
    base = Subject("PT", None, [[1]] * 16, [0.9, 0.8, 0.9, 0.8, 0.7, 0.7, 0.9, 0.6, *[0.1] * 8])
    rows = _asked(prompts, base, 10)
    assert sorted(prompts[row] for row in rows) == sorted(set(prompts))
    model = planted()
    few = [prompt for prompt in model.prompts(6)[1:4] for _ in range(4)]
    answers = model.answers(few)
    scores = model.judge([model.text(tokens) for tokens in answers])
    undo(model, "avoided")
    subjects = [Subject("PT", None, answers, scores), Subject("FT", "default", answers, scores)]
    result = examine(model.policy, few, subjects, model.judge, settings_for(model, ablation_answers=12))
    found = result["ablation"]
    assert (found["prompts"], found["answers"], found["prompts_of_answers"]) == (3, 12, 3)
    for name in ("toxicity", "logits"):
        assert found["by_model"]["PT"][name]["change"]["n"] == 3
    # Twelve answers to three prompts are no proof of anything.
    assert inside.vectors_matter(result) is None


def test_claims_inside_are_corrected_together(bypassed: dict[str, Any]) -> None:
    """Holm's correction by hand, over the fall of toxicity, the preference along the path and what silencing takes."""
    fall = bypassed["verdicts"]["FT"]["toxicity_change"]
    of_models = bypassed["ablation"]["by_model"]
    family = [
        fall,
        bypassed["paths"]["FT"]["redraw"]["change"],
        *(own["logits"]["beyond_random"] for own in of_models.values() if own["logits"]["p_value_random"] is not None),
    ]
    assert len(family) >= 3
    ranked = sorted(family, key=lambda one: one["p_value"])
    least = 0.0
    for place, one in enumerate(ranked):
        least = max(least, min(1.0, one["p_value"] * (len(ranked) - place)))
        assert one["p_adjusted"] == pytest.approx(least)
    # Only two sets answered prompts: what these say is no claim.
    assert "p_adjusted" not in of_models["PT"]["toxicity"]["beyond_random"]
    found = copy.deepcopy(bypassed)
    unsure = {"mean": -0.5, "ci95": [-0.9, -0.01], "n": 24, "p_value": 0.04, "p_adjusted": 0.12}
    assert inside._verdict(found, "FT", unsure, InsideSettings())["kind"] == "unclear"
    found["paths"]["FT"]["redraw"]["change"]["p_adjusted"] = 0.06
    assert inside._verdict(found, "FT", fall, InsideSettings())["spread"] is None


def test_silencing_the_planted_vector_undoes_it_and_others_do_not(bypassed: dict[str, Any]) -> None:
    found = bypassed["ablation"]
    assert (found["vectors"], found["random_sets"], found["answering_sets"], found["prompts"]) == (1, 20, 2, 10)
    base = found["by_model"]["PT"]
    assert base["toxicity"]["named"] <= 0.1
    assert base["toxicity"]["plain"] == base["toxicity"]["random"] >= 0.4
    assert base["logits"]["named"] < base["logits"]["random"] - 1
    assert base["logits"]["random"] == pytest.approx(base["logits"]["plain"], abs=1e-4)
    assert base["logits"]["p_value_random"] == pytest.approx(1 / 21)
    assert inside.vectors_matter(bypassed) is True
    # The adapter of layer 1 takes back what the vector writes, and more: without it, there is nothing to take back.
    tuned = found["by_model"]["FT"]
    assert tuned["logits"]["named"] == pytest.approx(base["logits"]["named"], abs=1e-3)
    assert tuned["logits"]["change"]["ci95"][0] > 0


@pytest.mark.slow
def test_a_model_held_against_itself_pushes_as_before_and_has_unlearned_nothing() -> None:
    model = planted()
    prompts = model.prompts(N)
    answers = model.answers(prompts)
    undo(model, "avoided")
    with torch.no_grad():
        for name, parameter in model.policy.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    scores = model.judge([model.text(tokens) for tokens in answers])
    subjects = [Subject("PT", None, answers, scores), Subject("FT", "default", answers, scores)]
    result = examine(model.policy, prompts, subjects, model.judge, settings_for(model, ablation_prompts=0))
    own = result["vectors"]["by_model"]["FT"]
    for name in ("push_ratio", "read_ratio", "write_ratio"):
        assert own[name]["ci95"] == pytest.approx([1, 1], abs=1e-5)
        assert own[name]["as_before"] is True
    assert result["verdicts"]["FT"]["kind"] == "unclear"
    assert result["ablation"]["by_model"]["PT"]["toxicity"] is None
    # An adapter of zeros has no size, so its random ones are zeros as well.
    assert [one["push_ratio"] for one in own["null"]] == pytest.approx([1, 1], abs=1e-5)


def test_random_adapters_are_as_large_and_leave_the_model_as_it_was() -> None:
    policy = adapted_policy("tiny")
    layers = adapter_layers(policy.causal_lm)
    before = {name: layer.get_delta_weight("default").norm().item() for name, layer in layers.items()}
    was = {name: layer.get_delta_weight("default").clone() for name, layer in layers.items()}
    state = copy.deepcopy(state_of(policy.model))
    with random_adapter(policy, "default", seed=1):
        for name, layer in layers.items():
            inside_it = layer.get_delta_weight("default")
            assert float(inside_it.norm()) == pytest.approx(before[name], rel=1e-4)
            cosine = float((inside_it * was[name]).sum()) / before[name] ** 2
            assert abs(cosine) < 0.5
    assert state_of(policy.model) == state
    for name, layer in layers.items():
        assert torch.equal(layer.get_delta_weight("default"), was[name])


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "opt", "bloom"])
def test_silenced_is_a_weight_of_zeros(name: str) -> None:
    policy = adapted_policy(name)
    model = policy.causal_lm
    ids = torch.tensor([[*PROMPTS[0], *RESPONSES[0]]])
    with using(policy, None), torch.no_grad():
        with silenced(model, VECTORS):
            found = model(input_ids=ids).logits
        plain = model(input_ids=ids).logits
        for vector in VECTORS:
            module = layout_of(model).mlp_out[vector.layer]
            # A view of the weights, transposed where they are stored so.
            weight_of(module)[vector.neuron].zero_()
        by_hand = model(input_ids=ids).logits
    assert torch.allclose(found, by_hand, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "opt"])
def test_activations_are_those_of_the_whole_trace(name: str) -> None:
    policy = adapted_policy(name)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    whole = activations_of(trace(policy.causal_lm, batch).neurons, VECTORS)
    assert torch.allclose(activations_at(policy.causal_lm, batch, VECTORS), whole, atol=1e-6)


def test_other_vectors_are_of_the_same_layers_and_about_as_long() -> None:
    model: Any = adapted_policy("tiny").causal_lm
    named = [ValueVector(layer, neuron, 1, 1.0, ()) for layer in (0, 1) for neuron in (0, 5, 9)]
    sets = vectors_like(model, named, 3, seed=0)
    assert len(sets) == 3
    for others in sets:
        assert [vector.layer for vector in others] == [vector.layer for vector in named]
    # No vector stands in two sets, or is a named one.
    places = [(vector.layer, vector.neuron) for others in sets for vector in others]
    assert len({*places, *((vector.layer, vector.neuron) for vector in named)}) == 4 * len(named)
    assert vectors_like(model, named, 3, seed=1) != sets
    for others in sets:
        for one, other in zip(named, others, strict=True):
            lengths = weight_of(layout_of(model).mlp_out[one.layer]).norm(dim=1)
            nearer = (lengths - lengths[one.neuron]).abs() < (lengths[other.neuron] - lengths[one.neuron]).abs()
            # The twentieth that is nearest, or the three nearest, those left out that are named or taken already.
            assert int(nearer.sum()) <= max(3, len(lengths) // 20) + 4 * len(named)
    # A layer that hasn't as many others gives fewer sets, not sets of fewer.
    width = len(weight_of(layout_of(model).mlp_out[0]))
    assert len(vectors_like(model, named[:1], 2 * width, seed=0)) == width - 1


def test_a_planted_models_neuron_is_the_named_one(bypassed: dict[str, Any]) -> None:
    assert bypassed["vectors"]["rows"][0]["neuron"] == NEURON
    assert isinstance(planted(), Planted)
