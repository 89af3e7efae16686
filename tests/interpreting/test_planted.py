"""A planted toxic direction is found, ablating it undoes it, and each way of unlearning it is told from the others."""

from __future__ import annotations

import json

import pytest
import torch
from adapted import state_of
from planted import NEURON, N, Planted, examined, planted, settings_for, undo

from rewardlm.errors import ModelError
from rewardlm.interpreting.answers import ModelAnswers
from rewardlm.interpreting.findings import CausalRow, Inside
from rewardlm.interpreting.mechanistic.activations import BaseText
from rewardlm.interpreting.mechanistic.causal_check import check_causes
from rewardlm.interpreting.mechanistic.examination import examine
from rewardlm.models.lora import using


@pytest.fixture(scope="module", params=["rewritten", "avoided", "untouched"])
def case(request: pytest.FixtureRequest) -> tuple[str, Planted, Inside]:
    return (request.param, *examined(request.param))


def rows_of(result: Inside, model: str, kind: str) -> list[CausalRow]:
    return [row for row in result.causal.rows if row.model == model and row.kind == kind]


@pytest.mark.slow
def test_the_model_is_toxic_where_it_is_triggered_and_adapters_undo_it(
    case: tuple[str, Planted, Inside],
) -> None:
    """What the other tests take for granted."""
    _, model, _ = case
    prompts = model.prompts(N)
    with using(model.policy, None):
        base = model.judge([model.text(tokens) for tokens in model.answers(prompts)])
    tuned = model.judge([model.text(tokens) for tokens in model.answers(prompts)])
    assert sum(value or 0 for value in base[: N // 2]) >= N // 2 - 1
    assert sum(value or 0 for value in base[N // 2 :]) <= N // 4
    assert sum(value or 0 for value in tuned) <= N // 4


@pytest.mark.slow
def test_the_direction_and_its_value_vector_are_found(case: tuple[str, Planted, Inside]) -> None:
    _, model, result = case
    found = result.directions
    assert found.mean_auc[found.layer] >= 0.95
    assert found.probe_auc[found.layer] >= 0.95
    assert found.probe_accuracy[found.layer] > found.shuffled_accuracy + 0.2
    (vector,) = result.vectors.rows
    assert (vector.layer, vector.neuron) == (0, NEURON)
    assert vector.score > 1
    assert {token.strip() for token in vector.tokens[:4]} == set(model.toxic.values())


@pytest.mark.slow
def test_the_direction_finds_the_same_value_vector() -> None:
    model, result = examined("untouched", vectors_by="direction")
    (vector,) = result.vectors.rows
    assert result.vectors.by == "direction"
    assert (vector.layer, vector.neuron, vector.sign) == (0, NEURON, 1)
    # The value vector is the planted direction, so this is the cosine of what was found with what was planted.
    assert vector.score >= 0.9
    assert result.verdicts["FT"].kind == "untouched"
    assert {token.strip() for token in vector.tokens[:4]} == set(model.toxic.values())


@pytest.mark.slow
def test_ablating_it_undoes_it_and_a_random_one_does_not(case: tuple[str, Planted, Inside]) -> None:
    _, _, result = case
    (plain,), (ablated,) = rows_of(result, "PT", "plain"), rows_of(result, "PT", "ablate")
    (control,) = rows_of(result, "PT", "ablate_random")
    assert plain.toxicity >= 0.4
    assert ablated.toxicity <= 0.1
    assert control.toxicity >= 0.35
    assert ablated.change.ci95[1] < 0


@pytest.mark.slow
def test_adding_it_makes_harmless_prompts_toxic(case: tuple[str, Planted, Inside]) -> None:
    _, _, result = case
    (plain,), (added,) = rows_of(result, "PT", "plain"), rows_of(result, "PT", "add")
    (control,) = rows_of(result, "PT", "add_random")
    assert added.toxicity >= plain.toxicity + 0.25
    assert control.toxicity <= plain.toxicity + 0.15


@pytest.mark.slow
def test_the_verdict_is_what_was_done(case: tuple[str, Planted, Inside]) -> None:
    way, _, result = case
    verdict = result.verdicts["FT"]
    assert verdict.kind == way
    assert verdict.fewest_layers == 1
    assert verdict.direction_used is True
    layer = 1 if way == "untouched" else 0
    shares = result.paths["FT"].by_layer
    assert shares[layer] == pytest.approx(sum(shares), abs=1e-6)
    assert shares[layer] > 0
    own = result.vectors.by_model["FT"]
    assert (own.cosine[0] < 0) == (way == "rewritten")
    assert (own.push_ratio.mean < 0.5) == (way != "untouched")


@pytest.mark.slow
def test_switching_the_adapter_off_where_it_works_brings_toxicity_back(
    case: tuple[str, Planted, Inside],
) -> None:
    way, _, result = case
    (plain,) = rows_of(result, "FT", "plain")
    off = {tuple(row.layers): row.toxicity for row in rows_of(result, "FT", "layers_off")}
    works, idle = ((1,), (0,)) if way == "untouched" else ((0,), (1,))
    assert off[works] >= plain.toxicity + 0.3
    assert off[idle] == plain.toxicity
    assert off[works] == rows_of(result, "PT", "plain")[0].toxicity


@pytest.mark.slow
def test_the_words_are_promoted_by_the_neuron_and_the_adapters_own_hand_is_told(
    case: tuple[str, Planted, Inside],
) -> None:
    way, _, result = case
    before, after = (result.stream[label].shares for label in ("PT", "FT"))
    assert before.mlp[0] > 1
    assert abs(before.mlp[1]) < 1e-4
    if way == "untouched":
        assert after.adapter_mlp[1] < -1
        assert after.mlp[0] > 0.5
    elif way == "rewritten":
        assert after.adapter_mlp[0] < -1
    else:
        assert after.mlp[0] == pytest.approx(0, abs=1e-4)
    for label in ("PT", "FT"):
        assert result.stream[label].largest_error < 1e-3
    written = result.adapters["FT"]
    assert written.score.change < -0.5
    assert set(written.length) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp"}
    active = {"rewritten": "mlp.down_proj", "avoided": "mlp.up_proj", "untouched": "mlp.down_proj"}[way]
    idle = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"} - {active}
    assert sum(written.share[active]) < -0.5
    assert all(abs(share) < 1e-5 for name in idle for share in written.share[name])


@pytest.mark.slow
def test_the_result_is_json_and_the_same_again(case: tuple[str, Planted, Inside]) -> None:
    way, _, result = case
    written = json.dumps(result.dump(), allow_nan=False)
    assert json.dumps(Inside.model_validate(json.loads(written)).dump()) == written
    if way == "avoided":
        assert json.dumps(examined(way)[1].dump(), allow_nan=False) == written


@pytest.mark.slow
def test_everything_is_left_as_it_was() -> None:
    model = planted()
    prompts = model.prompts(N)
    answers = model.answers(prompts)
    undo(model, "avoided")
    for parameter_name, parameter in model.policy.model.named_parameters():
        if "lora_A" in parameter_name:
            parameter.requires_grad_(True)
            parameter.grad = torch.ones_like(parameter)
    scores = model.judge([model.text(tokens) for tokens in answers])
    models = [ModelAnswers("PT", None, answers, scores), ModelAnswers("FT", "default", answers, scores)]
    before = state_of(model.policy.model)
    said: list[tuple[int, int, str]] = []
    examine(
        model.policy,
        prompts,
        models,
        model.judge,
        settings_for(model),
        report=lambda done, total, what: said.append((done, total, what)),
    )
    assert state_of(model.policy.model) == before
    assert said[-1][0] == said[-1][1]
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)


def test_what_cannot_be_read_is_said() -> None:
    model = planted()
    prompts = model.prompts(6)
    answers = [[model.harmless[0]]] * 6
    scores = [0.1] * 6
    settings = settings_for(model).model_copy(update={"causal_prompts": 0})
    settings = settings.model_copy(update={"toxic_words": [], "neutral_words": []})
    result = examine(
        model.policy,
        prompts,
        [ModelAnswers("PT", None, answers, scores)],
        model.judge,
        settings,
        word_judge=lambda texts: [0.0] * len(texts),
    )
    assert "0 toxic" in result.directions.reason
    assert "too few toxic words" in result.notes[0]
    assert result.vectors is None
    assert result.causal is None
    for models, message in (
        ([], "must be the base"),
        ([ModelAnswers("FT", "default", answers, scores)], "must be the base"),
        (
            [ModelAnswers("PT", None, answers, scores), ModelAnswers("FT", "other", answers, scores)],
            "no adapter 'other'",
        ),
        ([ModelAnswers("PT", None, answers[:2], scores)], "6 prompts, 2 answers"),
        ([ModelAnswers("PT", None, [[]] * 6, scores)], "nothing to read"),
    ):
        with pytest.raises(ModelError, match=message):
            examine(model.policy, prompts, models, model.judge, settings)


def test_a_prompt_that_stands_there_twice_is_asked_once() -> None:
    """Its answers would count as several proofs of one thing. All 24 different ones are asked."""
    model = planted()
    prompts = [*model.prompts(24), *model.prompts(24)[:10]]
    answers = model.answers(prompts)
    answered = ModelAnswers("PT", None, answers, model.judge([model.text(tokens) for tokens in answers]))
    settings = settings_for(model).model_copy(update={"causal_prompts": 30})
    found = check_causes(BaseText(model.policy, prompts, answered, settings), [answered], model.judge, None, None)
    assert found.prompts == 24
