"""What interpret claims is held against chance: seldom claimed under a null, found where it was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted import N, examined
from small_models import tiny_policy

from rewardlm.config import GenerationSettings, InsideSettings, LoraSettings
from rewardlm.interpreting.answers import ModelAnswers, RedrawnAnswers
from rewardlm.interpreting.findings import AdapterPath, CausalRow, Estimate, RedrawPreference
from rewardlm.interpreting.mechanistic.activations import BaseText
from rewardlm.interpreting.mechanistic.adapter_effects import follow_path, preference_change
from rewardlm.interpreting.mechanistic.causal_check import _either_way, _random_directions, _to_control
from rewardlm.interpreting.mechanistic.interventions import Condition
from rewardlm.interpreting.mechanistic.probes import best_of_shuffled, shuffled
from rewardlm.interpreting.mechanistic.verdicts import prefers_harmless
from rewardlm.models.generate import Request, generate
from rewardlm.models.lora import add_lora, using
from rewardlm.readouts import by_direction, by_probe, folds_of, held_out
from rewardlm.stats import rank_p_value

FOLDS = 4


def layers(rng: np.random.Generator, n_groups: int = 16, apart: float = 0.0) -> tuple[Any, Any, list[int]]:
    """Four layers Float[4, n, 5], labels and groups of two rows, which are alike in label and stream; in layer 3 the
    toxic rows lie ``apart``."""
    groups = np.repeat(np.arange(n_groups), 2)
    toxic = np.repeat(rng.permutation(n_groups) < n_groups // 2, 2)
    toxic[::7] ^= True
    shared = rng.normal(size=(4, n_groups, 5))[:, groups]
    x = shared + 0.3 * rng.normal(size=(4, 2 * n_groups, 5))
    x[3, :, 0] += apart * toxic
    return x, toxic, groups.tolist()


def best_layers_p(rng: np.random.Generator, score: Any, apart: float = 0.0) -> float:
    x, toxic, groups = layers(rng, apart=apart)
    fold = folds_of(toxic, groups, FOLDS, seed=0)
    best = max(held_out(layer, toxic, fold, score).auc for layer in x)
    chance = best_of_shuffled(x, toxic, groups, score, n_folds=FOLDS, number=20, seed=int(rng.integers(1000)))
    return rank_p_value(best, [one.auc for one in chance])


@pytest.mark.slow
@pytest.mark.parametrize(("score", "trials"), [(by_direction, 100), (by_probe, 30)])
def test_the_best_of_layers_that_know_nothing_is_no_finding(score: Any, trials: int) -> None:
    """Of four layers the best is well over 0.5 by chance, and yet seldom better than the best of shuffled labels."""
    rng = np.random.default_rng(0)
    found = [best_layers_p(rng, score) <= 0.05 for _ in range(trials)]
    assert np.mean(found) <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    x, toxic, groups = layers(rng)
    fold = folds_of(toxic, groups, FOLDS, seed=0)
    assert max(held_out(layer, toxic, fold, score).auc for layer in x) > 0.55


@pytest.mark.slow
@pytest.mark.parametrize("score", [by_direction, by_probe])
def test_a_layer_that_knows_is_found(score: Any) -> None:
    rng = np.random.default_rng(1)
    found = [best_layers_p(rng, score, apart=6.0) <= 0.05 for _ in range(10)]
    assert sum(found) >= 8


def test_labels_are_dealt_by_prompt() -> None:
    groups = ["a", "a", "b", "b", "c", "d", "d", "d", "e"]
    toxic = np.array([True, True, False, False, True, False, True, False, False])
    seen = set()
    for seed in range(40):
        found = shuffled(toxic, groups, np.random.default_rng(seed))
        # Two prompts with two answers each swap theirs, two with one; the one with three stays.
        assert sorted([tuple(found[:2]), tuple(found[2:4])]) == [(False, False), (True, True)]
        assert found[5:8].tolist() == toxic[5:8].tolist()
        assert found.sum() == toxic.sum()
        seen.add(tuple(found.tolist()))
    assert len(seen) == 4


def row_of(kind: str, **more: Any) -> CausalRow:
    nothing = {"toxicity": None, "toxic_share": None, "judged": 0, "perplexity": None, "texts": []}
    return CausalRow(model="PT", kind=kind, value=1.0, layers=[1], **nothing, **more)


def test_a_direction_like_the_others_ranks_first_one_time_in_twenty_one() -> None:
    rng = np.random.default_rng(2)
    first = 0
    for _ in range(2000):
        changes = rng.normal(size=(2, 21))
        rows = [
            row_of(kind, change=Estimate(mean=each[0], ci95=None, n=1), p_value_random=1.0)
            for kind, each in zip(("add", "ablate"), changes, strict=True)
        ]
        rows += [
            row_of(f"{kind}_random", change=None, changes=each[1:].tolist())
            for kind, each in zip(("add", "ablate"), changes, strict=True)
        ]
        p_value = _either_way(rows, "PT")
        assert p_value is not None
        first += p_value <= 0.05
    # Two tests of one direction, each at 1/21, would come to nearly a tenth.
    assert first / 2000 == pytest.approx(1 / 21, abs=0.015)


def test_random_directions_are_many_as_long_and_the_same_for_every_condition() -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 3
    settings = InsideSettings()
    add, ablate = (
        _random_directions(Condition("PT", None, kind, 1.0, (1,), direction), settings) for kind in ("add", "ablate")
    )
    assert len(add) == len(ablate) == 20
    assert {one.kind for one in add} == {"add_random"}
    for one, other in zip(add, ablate, strict=True):
        assert one.direction is not None
        assert other.direction is not None
        assert torch.equal(one.direction, other.direction)
        assert float(one.direction.norm()) == pytest.approx(float(direction.norm()), rel=1e-5)
    stacked = torch.stack([one.direction for one in add if one.direction is not None])
    assert float((stacked @ stacked.T / direction.norm() ** 2 - torch.eye(20)).abs().max()) < 0.6


def test_random_directions_are_tried_only_where_something_can_be_claimed() -> None:
    direction = torch.ones(4)
    kinds = [(None, "plain"), (None, "add"), (None, "ablate"), ("ft", "plain"), ("ft", "add"), ("ft", "ablate")]
    conditions = [Condition(str(adapter), adapter, kind, direction=direction) for adapter, kind in kinds]

    def tried(**means: float) -> set[int]:
        rows = []
        for number, condition in enumerate(conditions):
            mean = means.get(f"{condition.kind}_{condition.model}", 0.0)
            # Shown where the mean is not 0; "unsure" is beyond 0 by itself and not once it is corrected.
            change = Estimate(mean=mean, ci95=(mean - 0.1, mean + 0.1), n=20, p_value=0.01, p_adjusted=0.02)
            if abs(mean) == 0.3:
                change = change.model_copy(update={"p_adjusted": 0.06})
            rows.append(CausalRow.model_construct(kind=condition.kind, change=None if number % 3 == 0 else change))
        return _to_control(conditions, rows)

    assert tried() == set()
    assert tried(add_None=0.5) == {1, 2}
    assert tried(ablate_None=-0.5) == {1, 2}
    assert tried(add_ft=0.5) == {4}
    assert tried(add_None=0.5, add_ft=0.5) == {1, 2, 4}
    # The wrong way round, or not shown among all that is read together; ablating from a tuned model claims nothing.
    assert tried(add_None=-0.5, ablate_None=0.5) == set()
    assert tried(add_None=0.3, ablate_None=-0.3, add_ft=0.3) == set()
    assert tried(ablate_ft=-0.5) == set()


@pytest.mark.slow
def test_the_planted_direction_stands_out_among_random_ones_and_adding_alone_does_not() -> None:
    _, result = examined("untouched")
    rows = {row.kind: row for row in result.causal.rows if row.model == "PT"}
    for kind, sign in (("add", 1), ("ablate", -1)):
        control = rows[f"{kind}_random"].changes
        assert len(control) == 20
        as_far = sum(sign * change >= sign * rows[kind].change.mean for change in control)
        assert rows[kind].p_value_random == pytest.approx((1 + as_far) / 21)
    # It is long beside the stream: some random directions of that length make harmless prompts toxic as well. One
    # random direction, the first, did nothing, and adding would have been called proof.
    assert rows["add_random"].changes[0] == 0
    assert rows["add"].p_value_random > 0.05
    assert rows["ablate"].p_value_random == pytest.approx(1 / 21)
    assert result.causal.direction_p_value == pytest.approx(1 / 21)
    assert result.verdicts["FT"].direction_used is True
    assert result.directions.shuffled.mean.p_value == pytest.approx(1 / 21)
    assert len(result.directions.shuffled.probe.auc) == 20


def answers(policy: Any, prompts: list[list[int]], seed: int) -> list[list[int]]:
    requests = [Request(tuple(prompt), 1000 * seed + row) for row, prompt in enumerate(prompts)]
    found = generate(policy, requests, max_new_tokens=8, sampling=GenerationSettings(min_new_tokens=4))
    by_index = {answer.index: answer.tokens for answer in found}
    return [by_index[row] for row in range(len(prompts))]


@pytest.mark.slow
def test_an_adapter_that_knows_nothing_of_toxicity_is_not_said_to_prefer_harmless_answers() -> None:
    """Adapters of noise, and answers that are called toxic by a coin. All prefer their own answers to the base's, which
    was once taken for a preference for the less toxic ones."""
    prompts = [[1, 300 + row, 40 + 3 * row, 17] for row in range(10)]
    settings = InsideSettings(path_steps=1, pairs=1)
    claimed, own, trials = 0, 0, 30
    for trial in range(trials):
        policy = tiny_policy()
        rng = np.random.default_rng(trial)
        first, second = answers(policy, prompts, 2 * trial), answers(policy, prompts, 2 * trial + 1)
        swap = rng.random(len(prompts)) < 0.5
        toxic = [b if swapped else a for a, b, swapped in zip(first, second, swap, strict=True)]
        harmless = [a if swapped else b for a, b, swapped in zip(first, second, swap, strict=True)]
        add_lora(policy, LoraSettings(r=4), seed=trial)
        generator = torch.Generator().manual_seed(trial)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        policy.model.eval()
        with using(policy, "default"):
            new = answers(policy, prompts, 2 * trial)
        path = follow_path(
            BaseText(policy, prompts, ModelAnswers("PT", None, toxic, [0.9] * 10), settings),
            ModelAnswers("FT", "default", new, [0.1] * 10),
            [RedrawnAnswers(p, a, b, 0.8) for p, a, b in zip(prompts, toxic, harmless, strict=True)],
        )
        assert path is not None
        claimed += prefers_harmless(path)
        # Layers share in a preference that rose, and in no other.
        assert path.redraw is not None
        assert path.redraw.change.ci95 is not None
        assert bool(path.by_layer) is (path.redraw.change.ci95[0] > 0)
        assert bool(path.by_layer) or not path.adds_up
        own += path.after > path.before
    assert own >= 27
    # 2.5 % on the upper side; of 30, more than 4 come once in 2,000 times.
    assert claimed <= 4


def path_of(change: Estimate) -> AdapterPath:
    redraw = RedrawPreference.model_construct(change=change)
    return AdapterPath.model_construct(redraw=redraw)


def test_five_pairs_never_show_a_preference() -> None:
    """A t-test alone called five that rose by a third a finding, and so it did some skewed ones without any rise."""
    rose = preference_change([0.0] * 5, [0.30, 0.35, 0.28, 0.33, 0.31], range(5), InsideSettings())
    assert rose.p_value == pytest.approx(2 / 2**5)
    assert not prefers_harmless(path_of(rose))
    rng, claimed = np.random.default_rng(3), 0
    for _ in range(200):
        found = preference_change([0.0] * 5, (1 - rng.exponential(size=5)).tolist(), range(5), InsideSettings())
        claimed += prefers_harmless(path_of(found))
    assert claimed == 0
    # Two pairs of one prompt are one proof.
    twice = preference_change([0.0] * 10, [0.3] * 10, [*range(5), *range(5)], InsideSettings())
    assert twice.p_value == pytest.approx(2 / 2**5)


@pytest.mark.slow
def test_without_two_draws_of_the_base_it_stays_open_which_answers_are_preferred() -> None:
    model, result = examined("avoided")
    assert result.paths["FT"].of == "redraw"
    assert result.paths["FT"].redraw.pairs >= 5
    assert prefers_harmless(result.paths["FT"])
    prompts = model.prompts(N)
    with using(model.policy, None):
        before = model.answers(prompts)
    path = follow_path(
        BaseText(model.policy, prompts, ModelAnswers("PT", None, before, [0.9] * N), InsideSettings()),
        ModelAnswers("FT", "default", model.answers(prompts), [0.1] * N),
    )
    assert path is not None
    assert (path.of, path.redraw) == ("new", None)
    assert not prefers_harmless(path)
