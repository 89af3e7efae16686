"""Probes against another library's, value vectors by a loop, changes to the stream seen in the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapted import FAMILIES, PROMPTS, RESPONSES, adapted_policy, state_of
from small_models import random_policy

from rewardlm.errors import ModelError
from rewardlm.interpreting.directions import (
    ablated,
    activations_of,
    added,
    by_direction,
    by_probe,
    fewest_layers,
    fit_probe,
    folds_of,
    held_out,
    mean_difference,
    mean_logprob,
    path_shares,
    toxic_direction,
    value_vectors,
    vector_rows,
)
from rewardlm.interpreting.residual import (
    Contrast,
    batch_of,
    contrast_direction,
    layout_of,
    trace,
    vocabulary_covariance,
    weight_of,
)
from rewardlm.models.logprobs import row_stats


def clouds(n: int, width: int, apart: float, seed: int = 0) -> tuple[Any, Any]:
    """Rows of two classes whose means differ by ``apart`` along one axis; others have other means and spreads."""
    generator = np.random.default_rng(seed)
    toxic = generator.random(n) < 0.4
    x = generator.normal(size=(n, width)) * generator.uniform(0.1, 5, width) + generator.uniform(-9, 9, width)
    x[:, 2] += apart * toxic * x[:, 2].std()
    return x, toxic


@pytest.mark.parametrize(("n", "width"), [(60, 5), (40, 90)])
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_a_probe_is_sklearns_logistic_regression(n: int, width: int, penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, toxic = clouds(n, width, 1.0)
    probe = fit_probe(x, toxic, penalty=penalty)
    scaler = preprocessing.StandardScaler().fit(x)
    theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(scaler.transform(x), toxic)
    assert probe.weight == pytest.approx(theirs.coef_[0], abs=2e-3)
    assert probe.logits(x) == pytest.approx(theirs.decision_function(scaler.transform(x)), abs=5e-3)


def test_a_feature_that_never_varies_harms_nothing() -> None:
    x, toxic = clouds(50, 4, 3.0)
    x[:, 1] = 7.25
    probe = fit_probe(x, toxic)
    assert np.isfinite(probe.logits(x)).all()
    assert probe.weight[1] == pytest.approx(0, abs=1e-6)


def test_the_difference_of_means_by_a_loop() -> None:
    x, toxic = clouds(30, 6, 2.0)
    layers = np.stack([x, 2 * x])
    for layer, found in zip(layers, mean_difference(layers, toxic), strict=True):
        for column in range(6):
            yes = [row[column] for row, is_toxic in zip(layer, toxic, strict=True) if is_toxic]
            no = [row[column] for row, is_toxic in zip(layer, toxic, strict=True) if not is_toxic]
            assert found[column] == pytest.approx(sum(yes) / len(yes) - sum(no) / len(no))


def test_the_toxic_direction_leaves_what_all_rows_share() -> None:
    """Means (10, 0, 1) and (14, 3, 1.4): the difference but for (0, 3, 0) is the first, longer."""
    spread = np.array([[1.0, 1, 1], [-1, -1, -1], [2, 0, -1], [-2, 0, 1]])
    x = np.concatenate([np.array([10, 0, 1]) + spread, np.array([14, 3, 1.4]) + spread])
    toxic = np.array([False] * 4 + [True] * 4)
    assert toxic_direction(x, toxic) == pytest.approx([0, 3, 0], abs=1e-12)


def test_folds_keep_a_prompts_answers_together_and_spread_toxic_ones() -> None:
    generator = np.random.default_rng(1)
    groups = generator.integers(40, size=120).tolist()
    toxic = generator.random(120) < 0.25
    fold = folds_of(toxic, groups, 5, seed=0)
    assert all(len({fold[i] for i in range(120) if groups[i] == group}) == 1 for group in set(groups))
    per_fold = [int(toxic[fold == k].sum()) for k in range(5)]
    assert max(per_fold) - min(per_fold) <= max(np.bincount(np.array(groups)[toxic]))
    assert min(np.bincount(fold, minlength=5)) >= 15
    assert folds_of(toxic, groups, 5, seed=0).tolist() == fold.tolist()


@pytest.mark.parametrize("score", [by_probe, by_direction])
def test_held_out_figures_by_a_loop(score: Any) -> None:
    x, toxic = clouds(60, 5, 1.2)
    fold = folds_of(toxic, list(range(60)), 4, seed=0)
    told: dict[bool, list[bool]] = {True: [], False: []}
    won = pairs = 0.0
    for k in range(4):
        train = [i for i in range(60) if fold[i] != k]
        test = [i for i in range(60) if fold[i] == k]
        scores = dict(zip(test, score(x[train], toxic[train], x[test]), strict=True))
        for i in test:
            told[bool(toxic[i])].append((scores[i] > 0) == toxic[i])
        for i in test:
            for j in test:
                if toxic[i] and not toxic[j]:
                    pairs += 1
                    won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    found = held_out(x, toxic, fold, score)
    assert found.accuracy == pytest.approx((np.mean(told[True]) + np.mean(told[False])) / 2)
    assert found.auc == pytest.approx(won / pairs)


def test_what_is_there_is_read_and_what_is_not_is_not() -> None:
    """An accuracy that is not held out would be near 1 for both, with more features than rows."""
    there, toxic = clouds(80, 120, 8.0)
    fold = folds_of(toxic, list(range(80)), 5, seed=0)
    assert held_out(there, toxic, fold, by_probe).auc > 0.8
    noise = [clouds(80, 120, 0.0, seed=seed) for seed in range(6)]
    aucs = [held_out(x, y, folds_of(y, list(range(80)), 5, seed=0), by_probe).auc for x, y in noise]
    assert abs(np.mean(aucs) - 0.5) < 0.12


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_value_vectors_by_a_loop(family: str) -> None:
    policy = adapted_policy(family)
    layout = layout_of(policy.causal_lm)
    direction = torch.randn(weight_of(layout.mlp_out[0]).shape[1], generator=torch.Generator().manual_seed(2))
    gated = family == "tiny"
    scored = []
    for layer in range(2):
        for neuron, row in enumerate(weight_of(layout.mlp_out[layer])):
            cosine = float(torch.dot(row, direction) / row.norm() / direction.norm())
            scored.append((abs(cosine) if gated else cosine, layer, neuron, -1 if gated and cosine < 0 else 1))
    scored.sort(reverse=True)
    found = value_vectors(policy.causal_lm, direction, number=5, n_tokens=3)
    assert [(v.layer, v.neuron, v.sign) for v in found] == [entry[1:] for entry in scored[:5]]
    assert [v.score for v in found] == pytest.approx([entry[0] for entry in scored[:5]], abs=1e-5)
    gain = layout.norm.weight
    for vector in found:
        row = vector.sign * weight_of(layout.mlp_out[vector.layer])[vector.neuron]
        read = gain * (row if gated else row - row.mean())
        logits = layout.head.weight @ read
        assert list(vector.tokens) == logits.argsort(descending=True)[:3].tolist()


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox"])
def test_vectors_that_promote_words_by_all_their_logits(family: str) -> None:
    policy = adapted_policy(family)
    layout = layout_of(policy.causal_lm)
    contrast = Contrast((3, 5, 700), (100, 200))
    gated = family == "tiny"
    scored = []
    for layer in range(2):
        for neuron, row in enumerate(weight_of(layout.mlp_out[layer])):
            logits = layout.head.weight @ (layout.norm.weight * (row if gated else row - row.mean()))
            score = float((logits[[3, 5, 700]].mean() - logits[[100, 200]].mean()) / logits.std(unbiased=False))
            scored.append((abs(score) if gated else score, layer, neuron, -1 if gated and score < 0 else 1))
    scored.sort(reverse=True)
    found = value_vectors(
        policy.causal_lm,
        contrast_direction(policy.causal_lm, contrast),
        number=6,
        covariance=vocabulary_covariance(policy.causal_lm),
    )
    assert [v.score for v in found] == pytest.approx([entry[0] for entry in scored[:6]], rel=1e-3)
    assert [(v.layer, v.neuron, v.sign) for v in found] == [entry[1:] for entry in scored[:6]]


@pytest.mark.parametrize("family", ["tiny", "gpt2"])
def test_an_adapters_part_of_a_value_vector_is_what_merging_adds(family: str) -> None:
    policy = adapted_policy(family)
    layout = layout_of(policy.causal_lm)
    vectors = value_vectors(policy.causal_lm, torch.ones(weight_of(layout.mlp_out[0]).shape[1]), number=4)
    found = vector_rows(policy.causal_lm, vectors)
    policy.model.merge_adapter()
    expected = [v.sign * weight_of(layout.mlp_out[v.layer])[v.neuron] for v in vectors]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_activations_are_signed() -> None:
    policy = adapted_policy("tiny")
    found = trace(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))
    vectors = value_vectors(policy.causal_lm, torch.ones(64), number=6)
    assert {v.sign for v in vectors} == {-1, 1}
    activations = activations_of(found.neurons, vectors)
    for column, vector in enumerate(vectors):
        assert torch.equal(activations[:, column], vector.sign * found.neurons[vector.layer, :, vector.neuron])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_added_vector_is_in_the_stream_from_its_layer_on(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    before = trace(policy.causal_lm, batch)
    vector = torch.randn(before.stream.shape[-1], generator=torch.Generator().manual_seed(4))
    state = state_of(policy.model)
    # A trace's own hooks come after those that were there first, so it sees what the layer reads.
    for layer in range(3):
        with added(policy.causal_lm, layer, vector):
            after = trace(policy.causal_lm, batch)
        assert torch.allclose(after.stream[:layer], before.stream[:layer], atol=1e-5)
        assert torch.allclose(after.stream[layer], before.stream[layer] + vector, atol=1e-4)
        if layer < 2:
            assert not torch.allclose(after.attention_writes[layer], before.attention_writes[layer], atol=1e-3)
    assert state_of(policy.model) == state
    with pytest.raises(ModelError, match="layer 3: expected 0 to 2"), added(policy.causal_lm, 3, vector):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablated_direction_is_nowhere_in_the_stream_and_the_rest_is(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    before = trace(policy.causal_lm, batch)
    direction = torch.randn(before.stream.shape[-1], generator=torch.Generator().manual_seed(5)) * 3
    state = state_of(policy.model)
    with ablated(policy.causal_lm, direction):
        after = trace(policy.causal_lm, batch)
    unit = direction / direction.norm()
    assert float((before.stream @ unit).abs().max()) > 0.1
    assert float((after.stream @ unit).abs().max()) < 1e-4
    rest = before.stream[0] - torch.outer(before.stream[0] @ unit, unit)
    assert torch.allclose(after.stream[0], rest, atol=1e-5)
    assert state_of(policy.model) == state


def test_hooks_go_also_when_something_fails_inside() -> None:
    policy = adapted_policy("tiny")
    state = state_of(policy.model)
    for change in (added(policy.causal_lm, 1, torch.ones(64)), ablated(policy.causal_lm, torch.ones(64))):
        with pytest.raises(RuntimeError, match="on purpose"), change:
            raise RuntimeError("on purpose")
    assert state_of(policy.model) == state


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_shares_along_the_scale_add_up_to_the_whole_effect(family: str) -> None:
    policy = adapted_policy(family)
    batch = batch_of(PROMPTS, RESPONSES, policy.device)

    def effect() -> torch.Tensor:
        return mean_logprob(policy.causal_lm, batch).mean()

    state = state_of(policy.model)
    found = path_shares(policy.causal_lm, effect, steps=24)
    assert state_of(policy.model) == state
    with torch.no_grad():
        after = float(effect())
        with policy.model.disable_adapter():
            before = float(effect())
    assert (found.before, found.after) == pytest.approx((before, after), abs=1e-5)
    assert abs(after - before) > 0.05
    assert sum(found.by_module.values()) == pytest.approx(after - before, abs=2e-3)
    assert found.by_layer.sum() == pytest.approx(after - before, abs=2e-3)


def test_few_steps_become_more_where_shares_miss_the_effect() -> None:
    """An adapter that bends the model: four points miss by more than 5 %, which the finer path does not."""
    policy = adapted_policy("tiny")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(4)

    def effect() -> torch.Tensor:
        return mean_logprob(policy.causal_lm, batch).mean()

    found = path_shares(policy.causal_lm, effect, steps=1)
    assert found.steps > 1
    assert found.adds_up
    whole = found.after - found.before
    assert sum(found.by_module.values()) == pytest.approx(whole, abs=0.05 * abs(whole))


def test_shares_that_never_add_up_say_so() -> None:
    """An effect with a step in it has no gradient there, so no path sums to it."""
    policy = adapted_policy("tiny")
    layers = [module for module in policy.causal_lm.modules() if hasattr(module, "lora_B")]

    def effect() -> torch.Tensor:
        scales = [torch.as_tensor(layer.scaling["default"]) for layer in layers]
        return (scales[0] > 0.9 * 1.5).float() + 0 * torch.stack(scales).sum()

    found = path_shares(policy.causal_lm, effect, steps=4)
    assert (found.before, found.after) == (0, 1)
    assert found.steps == 64
    assert not found.adds_up
    assert found.missing == pytest.approx(1)


@pytest.mark.slow
def test_a_share_is_the_integral_of_finite_differences() -> None:
    policy = adapted_policy("tiny")
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    layers = {n: m for n, m in policy.causal_lm.named_modules() if hasattr(m, "lora_B")}
    found = path_shares(policy.causal_lm, lambda: mean_logprob(policy.causal_lm, batch).mean(), steps=12)
    kept = {name: dict(layer.scaling) for name, layer in layers.items()}

    def effect(t: float, other: str, by: float) -> float:
        for name, layer in layers.items():
            layer.scaling["default"] = kept[name]["default"] * (t + (by if name == other else 0))
        with torch.no_grad():
            return float(mean_logprob(policy.causal_lm, batch).double().mean())

    for name in list(layers)[::5]:
        points, step = 40, 0.02
        slopes = [
            (effect((i + 0.5) / points, name, step) - effect((i + 0.5) / points, name, -step)) / (2 * step)
            for i in range(points)
        ]
        assert found.by_module[name] == pytest.approx(sum(slopes) / points, abs=2e-3), name


def test_an_adapter_in_one_layer_has_all_shares_there() -> None:
    policy = adapted_policy("tiny")
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name and ".layers.0." in name:
                parameter.zero_()
    batch = batch_of(PROMPTS, RESPONSES, policy.device)
    found = path_shares(policy.causal_lm, lambda: mean_logprob(policy.causal_lm, batch).mean(), steps=8)
    assert found.by_layer[0] == 0
    assert abs(found.by_layer[1]) > 0.01
    with pytest.raises(ModelError, match="no adapter is on"):
        path_shares(random_policy("tiny").causal_lm, lambda: torch.zeros(()), steps=2)


def test_mean_logprobs_are_those_of_the_one_shift() -> None:
    policy = adapted_policy("gpt_neox")
    stats = row_stats(policy.causal_lm, PROMPTS, RESPONSES, 512)
    with torch.no_grad():
        found = mean_logprob(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))
    assert found.tolist() == pytest.approx([float(row.logprobs.mean()) for row in stats], abs=1e-5)


@pytest.mark.parametrize(
    ("shares", "fewest"),
    [
        ([1, 0, 0, 0], 1),
        ([1, 1, 1, 1, 1], 4),
        ([5, -1, 0, 0], 1),  # the whole is 4, and 5 is more than 3.2
        ([-2, -2, -1], 2),  # the same for an effect below 0
        ([0.3, 0.5, 0.2], 2),
        ([0, 0, 0], 3),
    ],
)
def test_the_fewest_layers_by_hand(shares: list[float], fewest: int) -> None:
    assert fewest_layers(shares) == fewest
