"""Value vectors by a loop; ratios whose intervals keep their level; "as before" only where shown; silencing them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from adapted import PROMPTS, RESPONSES, adapted_policy
from planted import NEURON, N, Planted, examined, planted, settings_for, undo
from scipy import stats

from rewardlm.config import InsideSettings
from rewardlm.interpreting.answers import ModelAnswers, most_toxic_and_others
from rewardlm.interpreting.findings import Estimate, Inside, RandomAdapter, Ratio
from rewardlm.interpreting.mechanistic import verdicts
from rewardlm.interpreting.mechanistic.activations import BaseText, batch_of, trace
from rewardlm.interpreting.mechanistic.examination import examine
from rewardlm.interpreting.mechanistic.logit_attribution import contrast_direction, vocabulary_covariance
from rewardlm.interpreting.mechanistic.value_vectors import (
    ValueVector,
    activations_at,
    activations_of,
    bounds,
    ratio_of_means,
    value_vectors,
    vector_rows,
)
from rewardlm.interpreting.mechanistic.vector_ablation import ablate_vectors, ablation_effect, takes_more, vectors_like
from rewardlm.interpreting.mechanistic.word_contrast import Contrast, contrast_for
from rewardlm.models.architecture import architecture_of, weight_of

VECTORS = [ValueVector(0, 3, 1, 1.0, ()), ValueVector(1, 7, -1, 1.0, ()), ValueVector(1, 2, 1, 1.0, ())]


MARGIN = InsideSettings().push_margin


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_value_vectors_by_a_loop(family: str) -> None:
    policy = adapted_policy(family)
    arch = architecture_of(policy.causal_lm)
    direction = torch.randn(weight_of(arch.mlp_out[0]).shape[1], generator=torch.Generator().manual_seed(2))
    gated = family == "tiny"
    scored = []
    for layer in range(2):
        for neuron, row in enumerate(weight_of(arch.mlp_out[layer])):
            cosine = float(torch.dot(row, direction) / row.norm() / direction.norm())
            scored.append((abs(cosine) if gated else cosine, layer, neuron, -1 if gated and cosine < 0 else 1))
    scored.sort(reverse=True)
    found = value_vectors(policy.causal_lm, direction, number=5, n_tokens=3)
    assert [(v.layer, v.neuron, v.sign) for v in found] == [entry[1:] for entry in scored[:5]]
    assert [v.score for v in found] == pytest.approx([entry[0] for entry in scored[:5]], abs=1e-5)
    gain = arch.norm.weight
    for vector in found:
        row = vector.sign * weight_of(arch.mlp_out[vector.layer])[vector.neuron]
        read = gain * (row if gated else row - row.mean())
        logits = arch.head.weight @ read
        assert list(vector.tokens) == logits.argsort(descending=True)[:3].tolist()


@pytest.mark.parametrize("family", ["tiny", "gpt2", "gpt_neox"])
def test_vectors_that_promote_words_by_all_their_logits(family: str) -> None:
    policy = adapted_policy(family)
    arch = architecture_of(policy.causal_lm)
    contrast = Contrast((3, 5, 700), (100, 200))
    gated = family == "tiny"
    scored = []
    for layer in range(2):
        for neuron, row in enumerate(weight_of(arch.mlp_out[layer])):
            logits = arch.head.weight @ (arch.norm.weight * (row if gated else row - row.mean()))
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
    arch = architecture_of(policy.causal_lm)
    vectors = value_vectors(policy.causal_lm, torch.ones(weight_of(arch.mlp_out[0]).shape[1]), number=4)
    found = vector_rows(policy.causal_lm, vectors)
    policy.model.merge_adapter()
    expected = [v.sign * weight_of(arch.mlp_out[v.layer])[v.neuron] for v in vectors]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_activations_are_signed() -> None:
    policy = adapted_policy("tiny")
    found = trace(policy.causal_lm, batch_of(PROMPTS, RESPONSES, policy.device))
    vectors = value_vectors(policy.causal_lm, torch.ones(64), number=6)
    assert {v.sign for v in vectors} == {-1, 1}
    activations = activations_of(found.neurons, vectors)
    for column, vector in enumerate(vectors):
        assert torch.equal(activations[:, column], vector.sign * found.neurons[vector.layer, :, vector.neuron])


def drawn(n: int, ratio: float, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    before = rng.normal(1.0, 0.5, n)
    return before, ratio * before + rng.normal(0, 0.4, n)


@pytest.mark.parametrize("seed", range(5))
def test_a_ratios_interval_ends_where_a_paired_t_test_begins_to_reject(seed: int) -> None:
    before, after = drawn(12, 0.7, seed)
    found = ratio_of_means(before, after, MARGIN)
    assert found is not None
    assert found.mean == pytest.approx(after.mean() / before.mean())
    for end in found.ci95:
        assert stats.ttest_1samp(after - end * before, 0).pvalue == pytest.approx(0.05, abs=1e-9)


@pytest.mark.slow
def test_intervals_and_equivalence_keep_their_level_at_ten_prompts() -> None:
    held, equivalent = 0, {0.8: 0, 1.25: 0, 1.0: 0}
    for seed in range(2000):
        before, after = drawn(10, 0.7, seed)
        found = ratio_of_means(before, after, MARGIN)
        held += found is None or found.ci95[0] <= 0.7 <= found.ci95[1]
        for ratio in equivalent:
            before, after = drawn(10, ratio, seed)
            found = ratio_of_means(before, after / 1.0, MARGIN)
            equivalent[ratio] += found is not None and found.as_before
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
    assert same is not None
    assert (same.mean, same.ci95, same.as_before, same.n) == (1.0, pytest.approx((1.0, 1.0)), True, 8)
    assert bounds(0.2) == pytest.approx((0.8, 1.25))


@pytest.fixture(scope="module")
def bypassed() -> Inside:
    return examined("untouched", null_adapters=3)[1]


def kind_of(result: Inside, **own: Any) -> tuple[str | None, str | None]:
    """The verdict where the tuned model's numbers are ``own``."""
    found = copy.deepcopy(result)
    assert found.vectors is not None
    found.vectors.by_model["FT"] = found.vectors.by_model["FT"].model_copy(update=own)
    change = Estimate(mean=-0.5, ci95=(-0.7, -0.3), n=24)
    verdict = verdicts.verdict_of(found, "FT", change, InsideSettings())
    return verdict.kind, verdict.reason


def ratio(mean: float, low: float, high: float) -> Ratio:
    lowest, highest = bounds(MARGIN)
    return Ratio(mean=mean, ci95=(low, high), as_before=lowest <= low and high <= highest, n=24)


def test_nothing_is_said_of_a_base_that_never_pushed(bypassed: Inside) -> None:
    kind, reason = kind_of(bypassed, push_ratio=None, read_ratio=None, write_ratio=None)
    assert kind == "cannot_tell"
    assert "don’t measurably push" in str(reason)


def test_an_interval_that_holds_one_is_not_as_before(bypassed: Inside) -> None:
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
    by_chance = [RandomAdapter(cosine=1.0, push_ratio=0.4, read_ratio=0.4, write_ratio=1.0)]
    kind, reason = kind_of(bypassed, push_ratio=less, read_ratio=less, write_ratio=as_it_was, null=by_chance)
    assert kind == "cannot_tell"
    assert "random weights" in str(reason)
    # Vectors that turned, but write what they wrote, were not unlearned.
    kind, reason = kind_of(bypassed, push_ratio=near, read_ratio=near, write_ratio=near, cosine=[0.5])
    assert kind == "cannot_tell"
    kind, _ = kind_of(bypassed, push_ratio=less, read_ratio=as_it_was, write_ratio=less, cosine=[0.5])
    assert kind == "rewritten"


def test_vectors_that_the_base_does_not_need_are_no_bypass(bypassed: Inside) -> None:
    found = copy.deepcopy(bypassed)
    assert found.ablation is not None
    base = found.ablation.by_model["PT"]
    kept = base.logits
    assert kept is not None
    assert kept.beyond_random is not None
    assert kept.p_value_random == pytest.approx(1 / 21)
    for changed in (
        {"beyond_random": Estimate(mean=0.0, ci95=(-0.1, 0.1), n=6)},
        # As much as the second of twenty random sets takes, or not shown among all that is read together.
        {"p_value_random": 2 / 21},
        {"beyond_random": kept.beyond_random.model_copy(update={"p_adjusted": 0.06})},
    ):
        base.logits = kept.model_copy(update=changed)
        kind, reason = kind_of(found)
        assert kind == "cannot_tell"
        assert "silencing" in str(reason)
        base.logits = kept
        assert kind_of(found)[0] == "untouched"


def test_where_silencing_takes_nothing_no_others_are_tried(bypassed: Inside) -> None:
    """Nothing can be claimed then, whatever others take: the base doesn't need these vectors."""
    model = planted()
    prompts = model.prompts(N)
    answers = model.answers(prompts)
    scores = model.judge([model.text(tokens) for tokens in answers])
    text = BaseText(model.policy, prompts, ModelAnswers("PT", None, answers, scores), settings_for(model))
    other = ValueVector(0, NEURON + 1, 1, 0.0, ())
    contrast = contrast_for(model.policy, model.judge, text.settings)
    nothing = ablate_vectors(text, [text.base], [other], contrast, model.judge)
    effect = nothing.by_model["PT"].logits
    assert effect.change.ci95[1] >= 0
    assert (effect.random, effect.random_changes, effect.beyond_random, effect.p_value_random) == (None, [], None, None)
    found = copy.deepcopy(bypassed)
    assert verdicts.vectors_matter(found) is True
    found.ablation = nothing
    assert verdicts.vectors_matter(found) is False
    assert "silencing" in str(kind_of(found)[1])
    # Shown to take something, but from too few sets for a rank: nobody can tell.
    found.ablation = bypassed.ablation.model_copy(deep=True)
    found.ablation.by_model["PT"].logits.p_value_random = None
    assert verdicts.vectors_matter(found) is None


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
        found = ablation_effect(
            plain.tolist(), sets[0].tolist(), [one.tolist() for one in sets[1:]], settings, largest=None
        )
        assert found.p_value_random == pytest.approx(
            (1 + sum((one - plain).mean() <= (sets[0] - plain).mean() for one in sets[1:])) / 21
        )
        needed += takes_more(found)
    assert needed / trials <= 1 / 21 + 3 * (1 / 21 / trials) ** 0.5


def test_two_random_sets_have_no_rank() -> None:
    found = ablation_effect([1.0] * 8, [0.0, 0.1] * 4, [[1.0] * 8, [0.9] * 8], InsideSettings(n_resamples=200))
    assert found.p_value_random is None
    assert found.random_changes == pytest.approx([0, -0.1])
    assert found.beyond_random.ci95[1] < 0
    assert not takes_more(found)


def test_a_prompt_is_asked_once_and_answers_to_it_count_together() -> None:
    prompts = [(1, 2, 3)] * 4 + [(4, 5)] * 4 + [(6,)] * 4 + [(7, 8)] * 4
    base = ModelAnswers("PT", None, [[1]] * 16, [0.9, 0.8, 0.9, 0.8, 0.7, 0.7, 0.9, 0.6, *[0.1] * 8])
    rows = most_toxic_and_others(prompts, base.toxicity, 10)
    assert sorted(prompts[row] for row in rows) == sorted(set(prompts))
    model = planted()
    few = [prompt for prompt in model.prompts(6)[1:4] for _ in range(4)]
    answers = model.answers(few)
    scores = model.judge([model.text(tokens) for tokens in answers])
    undo(model, "avoided")
    models = [ModelAnswers("PT", None, answers, scores), ModelAnswers("FT", "default", answers, scores)]
    result = examine(model.policy, few, models, model.judge, settings_for(model, ablation_answers=12))
    found = result.ablation
    assert (found.prompts, found.answers, found.prompts_of_answers) == (3, 12, 3)
    for own in (found.by_model["PT"].toxicity, found.by_model["PT"].logits):
        assert own.change.n == 3
    # Twelve answers to three prompts are no proof of anything.
    assert verdicts.vectors_matter(result) is None


def test_claims_inside_are_corrected_together(bypassed: Inside) -> None:
    """Holm's correction by hand, over the fall of toxicity, the preference along the path and what silencing takes."""
    fall = bypassed.verdicts["FT"].toxicity_change
    of_models = bypassed.ablation.by_model
    family = [
        fall,
        bypassed.paths["FT"].redraw.change,
        *(own.logits.beyond_random for own in of_models.values() if own.logits.p_value_random is not None),
    ]
    assert len(family) >= 3
    ranked = sorted(family, key=lambda one: one.p_value)
    least = 0.0
    for place, one in enumerate(ranked):
        least = max(least, min(1.0, one.p_value * (len(ranked) - place)))
        assert one.p_adjusted == pytest.approx(least)
    # Only two sets answered prompts: what these say is no claim.
    assert of_models["PT"].toxicity.beyond_random.p_adjusted is None
    found = copy.deepcopy(bypassed)
    unsure = Estimate(mean=-0.5, ci95=(-0.9, -0.01), n=24, p_value=0.04, p_adjusted=0.12)
    assert verdicts.verdict_of(found, "FT", unsure, InsideSettings()).kind == "unclear"
    found.paths["FT"].redraw.change.p_adjusted = 0.06
    assert verdicts.verdict_of(found, "FT", fall, InsideSettings()).spread is None


def test_silencing_the_planted_vector_undoes_it_and_others_do_not(bypassed: Inside) -> None:
    found = bypassed.ablation
    assert (found.vectors, found.random_sets, found.answering_sets, found.prompts) == (1, 20, 2, 10)
    base = found.by_model["PT"]
    assert base.toxicity.named <= 0.1
    assert base.toxicity.plain == base.toxicity.random >= 0.4
    assert base.logits.named < base.logits.random - 1
    assert base.logits.random == pytest.approx(base.logits.plain, abs=1e-4)
    assert base.logits.p_value_random == pytest.approx(1 / 21)
    assert verdicts.vectors_matter(bypassed) is True
    # The adapter of layer 1 takes back what the vector writes, and more: without it, there is nothing to take back.
    tuned = found.by_model["FT"]
    assert tuned.logits.named == pytest.approx(base.logits.named, abs=1e-3)
    assert tuned.logits.change.ci95[0] > 0


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
    models = [ModelAnswers("PT", None, answers, scores), ModelAnswers("FT", "default", answers, scores)]
    result = examine(model.policy, prompts, models, model.judge, settings_for(model, ablation_prompts=0))
    own = result.vectors.by_model["FT"]
    for ratio in (own.push_ratio, own.read_ratio, own.write_ratio):
        assert ratio.ci95 == pytest.approx([1, 1], abs=1e-5)
        assert ratio.as_before is True
    assert result.verdicts["FT"].kind == "unclear"
    assert result.ablation.by_model["PT"].toxicity is None
    # An adapter of zeros has no size, so its random ones are zeros as well.
    assert [one.push_ratio for one in own.null] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gpt_neox", "opt"])
def test_activations_are_those_of_the_whole_trace(name: str) -> None:
    policy = adapted_policy(name)
    own = ModelAnswers("PT", None, RESPONSES, [0.0] * len(RESPONSES))
    text = BaseText(policy, PROMPTS, own, InsideSettings(batch_tokens=24))
    batches = [batch for _, batch in text.batches(text.answered)]
    assert len(batches) > 1
    whole = torch.cat([activations_of(trace(policy.causal_lm, batch).neurons, VECTORS) for batch in batches])
    assert torch.allclose(activations_at(text, VECTORS), whole, atol=1e-6)


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
            lengths = weight_of(architecture_of(model).mlp_out[one.layer]).norm(dim=1)
            nearer = (lengths - lengths[one.neuron]).abs() < (lengths[other.neuron] - lengths[one.neuron]).abs()
            # The twentieth that is nearest, or the three nearest, those left out that are named or taken already.
            assert int(nearer.sum()) <= max(3, len(lengths) // 20) + 4 * len(named)
    # A layer that hasn't as many others gives fewer sets, not sets of fewer.
    width = len(weight_of(architecture_of(model).mlp_out[0]))
    assert len(vectors_like(model, named[:1], 2 * width, seed=0)) == width - 1


def test_a_planted_models_neuron_is_the_named_one(bypassed: Inside) -> None:
    assert bypassed.vectors.rows[0].neuron == NEURON
    assert isinstance(planted(), Planted)
