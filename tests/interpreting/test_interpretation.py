"""interpret end to end on tiny: what it reads, what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted import state_of
from pydantic import ValidationError
from small_models import tiny_policy
from tiny_runs import LABELS, measured_tiny_runs, rescore, write_adapter

from rewardlm.config import AttributionSettings, InsideSettings, InterpretSettings
from rewardlm.errors import ModelError, RunError
from rewardlm.interpreting import records
from rewardlm.interpreting.answers import draw, load_runs, token_positions
from rewardlm.interpreting.findings import Interpretation
from rewardlm.interpreting.interpretation import KIND, interpret
from rewardlm.interpreting.mechanistic.asked_judges import judge_of
from rewardlm.interpreting.models import load_models
from rewardlm.interpreting.records import attribution_tasks
from rewardlm.models.lora import load_adapter
from rewardlm.runs import Run

SETTINGS = InterpretSettings(
    limit=9,
    device="cpu",
    dtype="float32",
    n_resamples=200,
    look_inside=False,
    attribution=AttributionSettings(tokens=3, faithfulness_tokens=30),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    runs = measured_tiny_runs(tmp_path_factory.mktemp("runs"))
    # PT's even answers are toxic, half of these are not in RL; FT says nothing toxic.
    rescore(runs[0], lambda k: 0.9 if k % 2 == 0 else 0.1)
    rescore(runs[1], lambda k: 0.05)
    rescore(runs[2], lambda k: 0.8 if k % 4 == 0 else 0.2)
    return runs


@pytest.fixture
def runs(made: list[Path], tmp_path: Path) -> list[Path]:
    for path in made:
        shutil.copytree(path, tmp_path / path.name)
    return [tmp_path / path.name for path in made]


@pytest.fixture(scope="module")
def done(made: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return interpret(made, SETTINGS, tmp_path_factory.mktemp("out") / "interpretation")


def test_every_answer_is_read_by_every_model_as_a_plain_forward_pass_does(made: list[Path], done: Run) -> None:
    records = {record["id"]: record for record in done.read("drift")}
    assert len(records) == 9 * 3
    policy = tiny_policy()
    for author, path in enumerate(made):
        answers = {f"{LABELS[author]}:{answer.id}": answer for answer in Run.open(path).generations()}
        turns = {prompt.id: prompt.turns for prompt in Run.open(path).prompts()}
        for identity in answers.keys() & records.keys():
            answer, record = answers[identity], records[identity]
            # As generated: the ids, end token included, and not what the text would be encoded to.
            assert tuple(record["tokens"]) == answer.tokens
            prompt = policy.chat.encode_prompt(turns[answer.prompt_id])
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([[*prompt, *record["tokens"]]])).logits[0]
            plain = logits[len(prompt) - 1 : -1].log_softmax(-1)
            own = [float(plain[n, token]) for n, token in enumerate(record["tokens"])]
            assert record["logprobs"][0] == pytest.approx(own, abs=1e-3)
            # Rounding may swap words of nearly equal probability.
            assert record["rank"][0] == pytest.approx([int((plain[n] > own[n]).sum()) for n in range(len(own))], abs=2)


def test_with_adapters_on_it_the_base_is_the_base_to_the_bit(made: list[Path]) -> None:
    run_models = load_models([Run.open(path) for path in made], SETTINGS)
    assert len({id(run_model.policy) for run_model in run_models}) == 1
    ids = torch.tensor([[1, 300, 301, 17, 900, 2, 40]])
    with torch.no_grad():
        alone = tiny_policy().model(input_ids=ids).logits
        with run_models[0].on() as model:
            assert torch.equal(model(input_ids=ids).logits, alone)
        for run_model, path in zip(run_models[1:], made[1:], strict=True):
            single = tiny_policy()
            load_adapter(single, Path(Run.open(path).meta["settings"]["adapter"]))
            with run_model.on() as model:
                found = model(input_ids=ids).logits
            with run_model.on(merge=True) as model:
                merged = model(input_ids=ids).logits
            assert torch.equal(found, single.model(input_ids=ids).logits)
            assert not torch.allclose(found, alone, atol=1e-2)
            assert torch.allclose(found, merged, atol=1e-4)


@pytest.mark.parametrize("merge", [False, True])
def test_run_models_leave_the_model_as_it_was_found(made: list[Path], merge: bool) -> None:
    run_models = load_models([Run.open(path) for path in made], SETTINGS)
    model = run_models[0].policy.model
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" in name)
    before = copy.deepcopy(state_of(model))
    for run_model in run_models:
        with run_model.on(merge=merge):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
        assert state_of(model) == before
    with pytest.raises(RuntimeError, match="inside"), run_models[1].on(merge=merge):
        raise RuntimeError("inside")
    assert state_of(model) == before


def test_the_sample_takes_transitions_evenly_and_depends_on_the_seed_alone(made: list[Path]) -> None:
    measured = load_runs(made)
    run_models = load_models([run.run for run in measured], SETTINGS)
    sample = draw(measured, run_models, scorer="lexical", limit=9, seed=0)
    # Twenty pairs: ten low → low, five high → low, five high → high.
    assert [stratum.dump() for stratum in sample.strata] == [
        {"from": "low", "to": "low", "of": 10, "taken": 3},
        {"from": "high", "to": "low", "of": 5, "taken": 3},
        {"from": "high", "to": "high", "of": 5, "taken": 3},
    ]
    again = draw(measured, run_models, scorer="lexical", limit=9, seed=0)
    other = draw(measured, run_models, scorer="lexical", limit=9, seed=1)
    assert again == sample
    assert [answer.id for answer in other.answers] != [answer.id for answer in sample.answers]
    everything = draw(measured, run_models, scorer="lexical", limit=99, seed=0)
    assert len(everything.pairs) == 20
    assert len({answer.id for answer in everything.answers}) == 60
    for answer in everything.answers:
        positions = token_positions(answer, 4, seed=0)
        assert positions == sorted(set(positions))
        assert len(positions) == min(4, len(answer.tokens))
        if len(answer.tokens) == 12:
            assert [position // 3 for position in positions] == [0, 1, 2, 3]
    tasks = [(reader, answer.author) for reader, answer in attribution_tasks(range(3), sample)]
    assert {task: tasks.count(task) for task in tasks} == {(0, 0): 9, (1, 0): 9, (1, 1): 9, (2, 0): 9, (2, 2): 9}


def test_the_same_again_does_nothing_and_other_settings_are_refused(made: list[Path], done: Run) -> None:
    before = {file.name: file.read_bytes() for file in done.path.iterdir()}
    interpret(made, SETTINGS.model_copy(update={"batch_tokens": 64}), done.path)
    assert {file.name: file.read_bytes() for file in done.path.iterdir()} == before
    with pytest.raises(RunError, match="limit was 9, now 7"):
        interpret(made, SETTINGS.model_copy(update={"limit": 7}), done.path)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 9, 12])
def test_an_interrupted_interpretation_goes_on_to_the_same_result(
    made: list[Path], done: Run, tmp_path: Path, after: int
) -> None:
    reports: list[str] = []

    def interrupt(so_far: int, total: int, what: str) -> None:
        reports.append(what)
        if len(reports) == after:
            raise KeyboardInterrupt

    small = SETTINGS.model_copy(update={"batch_tokens": 200})
    with pytest.raises(KeyboardInterrupt):
        interpret(made, small, tmp_path / "out", report=interrupt)
    # What was killed between a record and the sums over the vocabulary is read again.
    with open(tmp_path / "out" / "drift.jsonl", "ab") as file:
        file.write(b'{"id": "PT:half')
    kept = {name: len(list(Run.open(tmp_path / "out").read(name))) for name in ("drift", "attributions")}
    assert kept["drift"] > 0
    firsts: dict[str, int] = {}

    def note_first(so_far: int, total: int, what: str) -> None:
        firsts.setdefault(what[:5], so_far)

    run = interpret(made, small, tmp_path / "out", report=note_first)
    assert firsts.get("drift", 99) > kept["drift"]
    assert firsts["attri"] > kept["attributions"]
    for name in ("drift", "attributions"):
        read = [(record.get("reader"), record["id"]) for record in run.read(name)]
        assert sorted(read) == sorted((record.get("reader"), record["id"]) for record in done.read(name))
    assert_close(run.load(KIND), done.load(KIND))


def test_the_baselines_answers_may_be_read_last(
    made: list[Path], done: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches may be by length, and where the tuned models' answers are the shorter ones, theirs come first."""

    def one_by_one(model: Any, prompts: Sequence[Any], responses: Sequence[Any], budget: int) -> list[list[int]]:
        return [[row] for row in reversed(range(len(prompts)))]

    monkeypatch.setattr(records, "pieces", one_by_one)
    run = interpret(made, SETTINGS, tmp_path / "out")
    assert next(iter(run.read("drift")))["author"] != 0
    assert_close(run.load(KIND), done.load(KIND))


def assert_close(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_close(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_close(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(two, abs=2e-3)
    else:
        assert one == two


def test_what_is_typed_is_the_file_to_the_byte_and_nothing_else(done: Run) -> None:
    stored = (done.path / "interpretation.json").read_bytes()
    found = Interpretation.model_validate(done.load(KIND))
    assert json.dumps(found.dump(), indent=1).encode() == stored
    assert found.drift.comparisons[0].from_ == "PT"
    # A mean has no p-value, a change has one, and only what is read together is corrected.
    written = json.loads(stored)["drift"]["comparisons"][0]
    assert set(written["on_baseline"]["kl"]) == {"mean", "ci95", "n"}
    assert set(written["on_baseline"]["logprob_change"]) == {"mean", "ci95", "p_value", "n"}
    assert set(written["toxic_check"]["difference"]) == {"mean", "ci95", "p_value", "n", "p_adjusted"}
    with pytest.raises(ValidationError, match="surprise"):
        Interpretation.model_validate({**done.load(KIND), "surprise": 1})


def test_the_summarys_means_are_those_of_its_records(done: Run) -> None:
    result = done.load(KIND)
    drifts = list(done.read("drift"))
    attributions = list(done.read("attributions"))
    # Of ten pairs that stayed low three are here, of five that fell and of five that stayed high three each.
    weight_of = {}
    for record in drifts:
        if record["author"] == 0:
            number = int(record["id"].split("#")[-1])
            weight_of[record["pair"]] = (5 if number % 2 == 0 else 10) / 3
    for model in (1, 2):
        entry = result["drift"]["comparisons"][model - 1]
        changes, divergences, toxic, weights = [], [], {True: [], False: []}, []
        for record in drifts:
            if record["author"] != 0:
                continue
            change = sum(
                after - before for before, after in zip(record["logprobs"][0], record["logprobs"][model], strict=True)
            ) / len(record["tokens"])
            changes.append(change)
            weights.append(weight_of[record["pair"]])
            divergences.append(sum(record["kl"][0][model]) / len(record["tokens"]))
            number = int(record["id"].split("#")[-1])
            toxic[number % 2 == 0].append(change)
        assert sum(weights) == pytest.approx(20)
        for name, values in (("logprob_change", changes), ("kl", divergences)):
            mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / 20
            assert entry["on_baseline"][name]["mean"] == pytest.approx(mean)
            assert mean != pytest.approx(sum(values) / len(values), abs=1e-6)
        low, high = entry["on_baseline"]["kl"]["ci95"]
        assert min(divergences) < low < entry["on_baseline"]["kl"]["mean"] < high < max(divergences)
        check = entry["toxic_check"]
        assert (check["toxic"]["n"], check["other"]["n"]) == (len(toxic[True]), len(toxic[False])) == (6, 3)
        assert check["difference"]["mean"] == pytest.approx(np.mean(toxic[True]) - np.mean(toxic[False]))
    for model, label in enumerate(LABELS):
        own = [record for record in attributions if record["reader"] == record["author"] == model]
        assert len(own) == 9
        shares, weights = [], []
        for record in own:
            weights.append(weight_of[record["pair"]])
            of_answer = []
            for scores in record["scores"]:
                kinds = [kind for _, kind in record["words"]]
                size = [abs(score) for score in scores]
                of_prompt = sum(s for s, kind in zip(size, kinds, strict=False) if kind == "prompt")
                of_answer.append(of_prompt / sum(size))
            shares.append(sum(of_answer) / len(of_answer))
        found = result["attribution"]["models"][model]
        assert found["label"] == label
        mean = sum(weight * share for weight, share in zip(weights, shares, strict=True)) / 20
        assert found["prompt"]["mean"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.slow
def test_answers_without_ids_are_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    path = runs[1]
    records = [json.loads(line) for line in (path / "generations.jsonl").read_text().splitlines()]
    for record in records:
        del record["tokens"]
    Run.open(path).replace("generations", records)
    with pytest.raises(RunError, match=r"answer '.*' has no token ids: measure its model again"):
        interpret(runs, SETTINGS, tmp_path / "out")


@pytest.mark.slow
def test_an_interpretation_with_the_old_key_is_still_read(done: Run) -> None:
    stored = done.load(KIND)
    assert "reencoded" not in stored["sample"]
    older = copy.deepcopy(stored)
    older["sample"]["reencoded"] = 0
    del older["shown"]
    read = json.loads(json.dumps(Interpretation.model_validate(older).dump()))
    assert read | {"shown": stored["shown"]} == stored


def test_what_does_not_fit_is_refused_in_one_line(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least two measured runs"):
        interpret(runs[:1], SETTINGS, tmp_path / "a")
    with pytest.raises(RunError, match="not every run was scored by 'starter'"):
        interpret(runs, SETTINGS.model_copy(update={"scorer": "starter"}), tmp_path / "b")
    Run.open(runs[1]).update(model_hash="0" * 64)
    with pytest.raises(RunError, match=r"weights_differ: .* other weights of tiny"):
        interpret(runs, SETTINGS, tmp_path / "c")
    imported = Run.open(runs[1])
    imported.update(kind="import")
    with pytest.raises(RunError, match=r"kind 'import'.*expected a measurement"):
        interpret(runs, SETTINGS, tmp_path / "d")
    imported.update(kind="measure", settings={**imported.meta["settings"], "engine": "openai"})
    with pytest.raises(RunError, match="answered by a server"):
        interpret(runs, SETTINGS, tmp_path / "e")
    prompts = [json.loads(line) for line in (runs[2] / "prompts.jsonl").read_text().splitlines()]
    prompts[0]["turns"][-1]["text"] += " again"
    Run.open(runs[2]).replace("prompts", prompts)
    with pytest.raises(RunError, match="prompts_differ"):
        interpret(runs, SETTINGS, tmp_path / "f")


def test_an_adapter_that_was_trained_on_is_not_taken_for_the_measured_one(made: list[Path], tmp_path: Path) -> None:
    for path in made[:2]:
        shutil.copytree(path, tmp_path / path.name)
    run = Run.open(tmp_path / "FT")
    write_adapter(tmp_path / "other", seed=9)
    run.update(settings={**run.meta["settings"], "adapter": str(tmp_path / "other")})
    with pytest.raises(RunError, match="trained further since"):
        interpret([tmp_path / "PT", tmp_path / "FT"], SETTINGS, tmp_path / "out")
    run.update(settings={**run.meta["settings"], "adapter": str(tmp_path / "gone")})
    with pytest.raises(RunError, match="is gone: put it back"):
        interpret([tmp_path / "PT", tmp_path / "FT"], SETTINGS, tmp_path / "out")


def test_a_base_that_an_adapter_changed_is_noticed(made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from rewardlm.interpreting import models

    def spoils(policy: Any, folder: Path, **names: Any) -> None:
        load_adapter(policy, folder, **names)
        with torch.no_grad():
            policy.causal_lm.get_input_embeddings().weight[1] += 1e-3

    monkeypatch.setattr(models, "load_adapter", spoils)
    with pytest.raises(ModelError, match="with its adapters off is not tiny"):
        load_models([Run.open(path) for path in made], SETTINGS)


@pytest.mark.slow
def test_similarity_is_held_against_its_null_by_transition(runs: list[Path], tmp_path: Path) -> None:
    by_hand: dict[str, list[float]] = {}
    for shift, path in enumerate(runs):
        answers = sorted(Run.open(path).generations(), key=lambda answer: answer.id)
        own = [0.3 + 0.1 * shift + 0.01 * (k % 5) for k in range(len(answers))]
        null = [0.1 + 0.02 * (k % 3) for k in range(len(answers))]
        Run.open(path).replace(
            "quality",
            [
                {"generation_id": answer.id, "prompt_similarity": a, "prompt_similarity_null": b}
                for answer, a, b in zip(answers, own, null, strict=True)
            ],
        )
        by_hand[path.name] = [a - b for a, b in zip(own, null, strict=True)]
    found = interpret(runs, SETTINGS, tmp_path / "out").load(KIND)["similarity"]
    for model, (label, gaps) in zip(found["models"], by_hand.items(), strict=True):
        assert model["label"] == label
        assert model["above_null"]["mean"] == pytest.approx(sum(gaps) / len(gaps))
        assert model["above_null"]["n"] == 20
    to_rl = found["comparisons"][1]
    change = [after - before for before, after in zip(by_hand["PT"], by_hand["RL"], strict=True)]
    assert to_rl["above_null_change"]["mean"] == pytest.approx(sum(change) / 20)
    # PT is toxic at even places, RL at every fourth.
    rows = {row["transition"]: row for row in to_rl["by_transition"]}
    assert {name: row["pairs"] for name, row in rows.items()} == {"low → low": 10, "high → low": 5, "high → high": 5}
    fell = [change[k] for k in range(20) if k % 4 == 2]
    assert rows["high → low"]["above_null_change"]["mean"] == pytest.approx(sum(fell) / 5)
    # Of PT's own two answers to a prompt the first is toxic and the second is not.
    own_gaps = by_hand["PT"]
    again = [own_gaps[k + 1] - own_gaps[k] for k in range(0, 20, 2)]
    assert rows["high → low"]["redraw"]["above_null_change"]["mean"] == pytest.approx(sum(again) / 10)
    assert (rows["high → high"]["redraw"], rows["low → low"]["redraw"]) == (None, None)


@pytest.mark.slow
def test_the_inside_is_examined_where_the_baseline_is_the_base(made: list[Path], tmp_path: Path) -> None:
    inside = InsideSettings(
        causal_prompts=0, toxic_words=["hate", "stupid"], neutral_words=["love", "people"], adapter_answers=2
    )
    settings = SETTINGS.model_copy(update={"look_inside": True, "inside": inside})
    result = interpret(made, settings, tmp_path / "out").load(KIND)
    assert result["inside"]["models"] == list(LABELS)
    assert result["inside"]["answers"] == 9
    assert result["inside"]["settings"]["n_resamples"] == 200
    assert result["inside_notes"] == []
    # The verdict asks about the whole run: the sample takes as many answers that rose as that fell.
    changes = {label: verdict["toxicity_change"] for label, verdict in result["inside"]["verdicts"].items()}
    assert changes["FT"]["mean"] == pytest.approx((10 * (0.05 - 0.9) + 10 * (0.05 - 0.1)) / 20)
    assert changes["RL"]["mean"] == pytest.approx((5 * (0.8 - 0.9) + 5 * (0.2 - 0.9) + 10 * (0.2 - 0.1)) / 20)
    assert [change["n"] for change in changes.values()] == [20, 20]
    assert changes["RL"]["ci95"][0] < changes["RL"]["mean"] < changes["RL"]["ci95"][1]
    other_way = interpret([made[1], made[0]], settings, tmp_path / "other").load(KIND)
    assert other_way["inside"] is None
    assert "FT has an adapter itself" in other_way["inside_notes"][0]
    assert other_way["drift"]["comparisons"][0]["from"] == "FT"


def test_a_judge_that_cannot_be_asked_here_is_replaced_and_it_is_said() -> None:
    judge, notes = judge_of("perspective", "cpu")
    assert "were judged by starter, since perspective can’t be asked here" in notes[0]
    lexical, nothing = judge_of("lexical", "cpu")
    assert nothing == []
    harmless, rude = "What a lovely garden.", "You are a stupid bastard."
    for one in (judge, lexical):
        low, high, empty = one([harmless, rude, " "])
        assert low is not None
        assert high is not None
        assert low < 0.5 < high
        assert empty is None


def test_the_method_is_tested_on_tokens_that_it_explained(made: list[Path], done: Run) -> None:
    records = list(done.read("faithfulness"))
    # Nine pairs and three models have 27 own answers, one token each; thirty are asked for.
    assert len(records) == 27
    assert {(record["reader"], record["pair"]) for record in records} == {
        (reader, pair) for reader in range(3) for pair in range(9)
    }
    positions = {(r["reader"], r["id"]): r["positions"] for r in done.read("attributions")}
    assert all(record["position"] in positions[record["reader"], record["id"]] for record in records)
    found = done.load(KIND)["attribution"]["faithfulness"]
    assert found["tokens"] == 27
    for name, sign in (("comprehensiveness", 1), ("sufficiency", -1)):
        own, random = (np.mean([record[key] for record in records]) for key in (name, f"random_{name}"))
        assert found[name]["method"]["mean"] == pytest.approx(own)
        assert found[name]["better"]["mean"] == pytest.approx(sign * (own - random))
    ends = [found[name]["better"]["ci95"][0] for name in ("comprehensiveness", "sufficiency")]
    assert found["passes"] is (min(ends) > 0)


def test_tokens_that_miss_their_sum_have_no_scores_and_are_counted(made: list[Path], tmp_path: Path) -> None:
    own = AttributionSettings(tokens=2, method="integrated_gradients", steps=8, most_steps=8, tolerance=0.02)
    settings = SETTINGS.model_copy(update={"attribution": own, "limit": 4})
    run = interpret(made[:2], settings, tmp_path / "out")
    tokens = [
        (scores, share, entropy, reason)
        for record in run.read("attributions")
        for scores, share, entropy, reason in zip(
            record["scores"], record["prompt"], record["entropy_bits"], record["completeness"]["refused"], strict=True
        )
    ]
    refused = [token for token in tokens if token[3] is not None]
    assert 0 < len(refused) < len(tokens)
    for scores, share, entropy, reason in tokens:
        assert (scores is None) == (share is None) == (entropy is None) == (reason is not None)
    found = run.load(KIND)["attribution"]
    assert found["completeness"]["tokens"] == len(tokens)
    assert found["completeness"]["refused"] == len(refused)
    assert found["completeness"]["reasons"][0] == refused[0][3]
    assert "after 8 steps" in refused[0][3]
    assert found["completeness"]["largest_share"] <= 0.02
    # None of them is tested, shown or counted in a mean.
    tested = {(record["reader"], record["id"], record["position"]) for record in run.read("faithfulness")}
    kept = {
        (record["reader"], record["id"], position)
        for record in run.read("attributions")
        for position, scores in zip(record["positions"], record["scores"], strict=True)
        if scores is not None
    }
    assert tested <= kept
