"""heads, patching and minimal_adapter end to end on tiny; and the verdict's rules, head by head readings, pairs."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from adapted import adapted_policy
from small_models import tiny_policy
from test_patching import pairs_of
from tiny_runs import measured_tiny_runs, rescore

from rewardlm.config import (
    AttributionSettings,
    CausesSettings,
    GenerationSettings,
    InsideSettings,
    InterpretSettings,
    LoraSettings,
    MeasureSettings,
)
from rewardlm.interpreting.causes import explain
from rewardlm.interpreting.causes.heads import product_change, read_heads
from rewardlm.interpreting.causes.neurons import causal_verdict, neuron_groups, top_neurons
from rewardlm.interpreting.causes.pairs import (
    TOKEN_KINDS,
    JudgedPair,
    asked_once,
    draw_pairs,
    own_pairs,
    pair_batches,
)
from rewardlm.interpreting.causes.patching import preference_change, site_effects
from rewardlm.interpreting.findings import Estimate, Interpretation, ShareOfChange
from rewardlm.interpreting.interpretation import KIND, interpret
from rewardlm.interpreting.models import as_measured
from rewardlm.measuring.meter import measure
from rewardlm.models.generate import Request, generate, stream_seed
from rewardlm.models.load import Policy
from rewardlm.models.lora import POLICY, add_lora, load_adapter, using
from rewardlm.reporting.causes import section
from rewardlm.runs import Run

SIGNS = ("toxic_down", "toxic_up", "against_up", "against_down")
# A layer's neuron, and what it is set off by at every position.
Put = tuple[int, int, torch.Tensor]
SETTINGS = InterpretSettings(
    limit=4,
    device="cpu",
    dtype="float32",
    n_resamples=200,
    look_inside=False,
    attribution=AttributionSettings(tokens=2, faithfulness_tokens=0),
    heads=True,
    patching=True,
    minimal_adapter=True,
    causes=CausesSettings(
        pairs=6, draws=4, exact_sites=2, random_pairs=5, answered=4, prompts=10, max_new_tokens=6, keep=0.5
    ),
)


def coin(texts: Sequence[str]) -> list[float | None]:
    """A judge that depends on the text alone; half of all texts are toxic."""
    return [hashlib.sha256(text.encode()).digest()[0] / 255 for text in texts]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = measured_tiny_runs(tmp_path_factory.mktemp("runs"))
    for number, path in enumerate(made):
        rescore(path, lambda k, number=number: 0.9 if k % 2 == 0 and number == 0 else 0.1)  # type: ignore[misc]
    return made[:2]


@pytest.fixture(scope="module")
def done(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "interpretation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "judge_of", lambda name, device: (coin, []))
        interpret(runs, SETTINGS, out)
    return out


def broken_off(done: Path, folder: Path) -> Path:
    """A copy that goes on: only what causes.jsonl has is known."""
    again = Path(shutil.copytree(done, folder / "again"))
    (again / f"{KIND}.json").unlink()
    meta = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**meta, "status": "running"}))
    return again


@pytest.mark.slow
def test_every_part_is_there(done: Path) -> None:
    found = json.loads((done / f"{KIND}.json").read_text())
    base, tuned = found["models"]
    assert "heads" not in base
    config = tiny_policy().causal_lm.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    assert [(one["layer"], one["head"]) for one in tuned["heads"]] == [
        (layer, head) for layer in range(layers) for head in range(heads)
    ]
    for one in tuned["heads"]:
        for look in (one["base"], one["tuned"]):
            assert sum(look.values()) == pytest.approx(1, abs=1e-4)
    assert len(tuned["patching"]) == layers * (heads + 2)
    for site in tuned["patching"]:
        assert {"site", "layer", "effect", "ci95", "p_adjusted"} <= site.keys()
        if not site["exact"]:
            whole = site["effect"] if site["kind"] == "stream" else site["own"]
            assert sum(site["by_position"].values()) == pytest.approx(whole, abs=1e-5)
    by_position = [one for one in tuned["patching"] if one["exact_by_position"] is not None]
    assert {one["kind"] for one in by_position} == {"head", "mlp", "stream"}
    assert all(one["exact"] for one in by_position)
    assert len(by_position) < len(tuned["patching"])
    # What a stream has at some positions is behind it in no other way, so before the final norm these add up.
    (last,) = (one for one in by_position if one["kind"] == "stream" and one["layer"] == layers)
    assert sum(last["exact_by_position"].values()) == pytest.approx(last["effect"], abs=1e-5)
    assert {one["name"] for one in tuned["neuron_groups"]} == {
        "named", "toxic_down", "toxic_up", "against_up", "against_down", "all", "attention", "vectors",
    }  # fmt: skip
    four = [one["neurons"] for one in tuned["neuron_groups"] if one["name"] in SIGNS]
    (everything,) = (one["neurons"] for one in tuned["neuron_groups"] if one["name"] == "all")
    assert sum(four) == everything
    assert tuned["verdict"]["kind"] in ("unlearned", "bypassed", "cannot_tell", "unclear")
    assert tuned["minimal_adapter"]["of_parameters"] > 0
    assert json.loads(json.dumps(Interpretation.model_validate(found).dump())) == found


@pytest.mark.slow
def test_what_was_found_is_not_looked_for_again(
    runs: list[Path], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off after the heads, it goes on with the same pairs, and finds the same."""
    again = broken_off(done, tmp_path)
    lines = (again / "causes.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["part"] for line in lines] == [
        "pairs",
        "own pairs",
        "heads",
        "patching",
        "answers",
        "neurons",
        "minimal",
    ]
    (again / "causes.jsonl").write_text("".join(lines[:3]))
    monkeypatch.setattr(explain, "judge_of", lambda name, device: (coin, []))
    monkeypatch.setattr(explain, "draw_pairs", lambda *_, **__: pytest.fail("pairs were drawn again"))
    monkeypatch.setattr(explain, "read_heads", lambda *_: pytest.fail("heads were read again"))
    told: list[str] = []
    interpret(runs, SETTINGS, again, report=lambda done, total, what: told.append(what))
    assert json.loads((again / f"{KIND}.json").read_text()) == json.loads((done / f"{KIND}.json").read_text())
    assert any("its heads and MLPs (" in what for what in told)


@pytest.mark.slow
def test_a_vocabulary_without_toxic_words_is_told(
    runs: list[Path], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = broken_off(done, tmp_path)
    records = [json.loads(line) for line in (again / "causes.jsonl").read_text().splitlines()]
    without = [json.dumps(record) + "\n" for record in records if record["part"] != "neurons"]
    (again / "causes.jsonl").write_text("".join(without))
    monkeypatch.setattr(explain, "judge_of", lambda name, device: (coin, []))
    monkeypatch.setattr(explain, "contrast_for", lambda *_: None)
    interpret(runs, SETTINGS, again)
    found = json.loads((again / f"{KIND}.json").read_text())
    assert "verdict" not in found["models"][1]
    assert found["models"][1]["patching"]
    assert any("too few whole words" in note for note in found["inside_notes"])
    assert not any("too few" in note for note in json.loads((done / f"{KIND}.json").read_text())["inside_notes"])
    shown = section(Interpretation.model_validate(found))
    assert shown is not None
    pairs = found["models"][1]["patched"]["pairs"]
    assert shown["models"][0]["lead"].startswith(f"On {pairs} pairs of a toxic answer")


@pytest.mark.slow
def test_a_minimal_adapter_is_one_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From runs with settings of their own to a part that is written, and loaded by what the result says of it."""
    made = measured_tiny_runs(tmp_path / "runs", labels=("PT", "FT"), prompts=40, size=1.0, top_p=0.9, temperature=0.1)
    said = [Counter("".join(one["text"] for one in Run.open(path).read("generations"))) for path in made]
    sizes = [counted.total() for counted in said]
    favourites = {letter for letter in said[0] if said[0][letter] / sizes[0] > said[1][letter] / sizes[1]}

    def share(counted: Counter[str]) -> float:
        return sum(counted[letter] for letter in favourites) / counted.total()

    middle = (share(said[0]) + share(said[1])) / 2

    def judge(texts: Sequence[str]) -> list[float | None]:
        """Toxic is what has many letters that PT uses more often than FT. So FT is less toxic, by its weights."""
        return [1 / (1 + math.exp(30 * (middle - share(Counter(text))))) if text else None for text in texts]

    for path in made:
        scores = judge([one["text"] for one in sorted(Run.open(path).read("generations"), key=lambda one: one["id"])])
        rescore(path, lambda k, scores=scores: scores[k] or 0.0)  # type: ignore[misc]
    monkeypatch.setattr(explain, "judge_of", lambda name, device: (judge, []))
    more = {"heads": False, "patching": False}
    settings = SETTINGS.model_copy(update={**more, "causes": CausesSettings(prompts=20, max_new_tokens=12, keep=0.3)})
    interpret(made, settings, tmp_path / "out")
    found = json.loads((tmp_path / "out" / f"{KIND}.json").read_text())
    # As the runs' own answers were, and so it is told.
    assert found["causes"]["generation"]["top_p"] == 0.9
    assert found["causes"]["generation"]["temperature"] == 0.1
    minimal = found["models"][1]["minimal_adapter"]
    assert minimal["reason"] is None
    assert minimal["adapter"] == "minimal/FT/adapter"
    assert 0 < minimal["parameters"] < minimal["of_parameters"]
    assert minimal["kept"] == pytest.approx(minimal["parameters"] / minimal["of_parameters"])
    assert minimal["whole"]["toxicity"] < minimal["base"]["toxicity"]
    policy = tiny_policy()
    load_adapter(policy, tmp_path / "out" / minimal["adapter"])
    written = sum(one.numel() for name, one in policy.model.named_parameters() if "lora_" in name)
    assert written >= minimal["parameters"]


def test_labels_that_are_no_names_of_folders() -> None:
    assert explain._folders(["FT", "../../x", "a/b", "a_b", "", "é"]) == ["FT", "_.._x", "a_b", "a_b-3", "model", "é"]


def test_settings_that_contradict_each_other_are_told() -> None:
    with pytest.raises(ValueError, match=r"carries_little \(0\.6\) must be below carries \(0\.5\)"):
        CausesSettings(carries_little=0.6)


def estimate(mean: float, low: float, high: float) -> Estimate:
    return Estimate(mean=mean, ci95=(low, high), p_value=0.001, n=24)


@pytest.mark.parametrize(
    ("change", "share", "kind"),
    [
        (estimate(0.4, 0.3, 0.5), (0.8, 0.6, 1.0), "unlearned"),
        (estimate(0.4, 0.3, 0.5), (0.6, 0.4, 0.8), "cannot_tell"),
        (estimate(0.4, 0.3, 0.5), (0.05, -0.02, 0.12), "bypassed"),
        (estimate(0.4, 0.3, 0.5), (0.05, -0.2, 0.3), "cannot_tell"),
        (estimate(0.4, 0.3, 0.5), None, "cannot_tell"),
        (estimate(-0.4, -0.5, -0.3), (0.8, 0.6, 1.0), "unclear"),
        (estimate(0.1, -0.1, 0.3), (0.05, -0.02, 0.12), "unclear"),
    ],
)
def test_the_verdict_follows_from_margins(
    change: Estimate, share: tuple[float, float, float] | None, kind: str
) -> None:
    own = None if share is None else ShareOfChange(mean=share[0], ci95=share[1:], n=24)
    verdict = causal_verdict(change, own, CausesSettings())
    assert verdict.kind == kind
    assert verdict.reason


@pytest.mark.parametrize(("targets", "said"), [(["q_proj", "up_proj"], True), (["q_proj", "down_proj"], False)])
def test_an_adapter_that_leaves_the_value_vectors_alone_has_unlearned_none(targets: list[str], said: bool) -> None:
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=2, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    pairs = []
    for pair in pairs_of() * 3:
        # In the order in which this adapter raises the preference.
        change = preference_change(policy, POLICY, [pair], CausesSettings()).mean or 0.0
        turned = JudgedPair(pair.asked, pair.harmless, pair.toxic)
        pairs.append(pair if change > 0 else turned)
    direction = torch.ones(policy.causal_lm.config.hidden_size)
    _, verdict = neuron_groups(policy, POLICY, pairs, direction, [(0, 0)], CausesSettings())
    assert verdict.kind != "unclear"
    assert ("leaves the MLPs’ output matrices" in verdict.reason) == said


def recorded(policy: Policy, name: str | None, tokens: Sequence[int]) -> list[torch.Tensor]:
    """What each layer's neurons are set off by, Float[T, F], of one text by a plain pass."""
    seen: list[torch.Tensor] = []
    downs = [layer.mlp.down_proj for layer in policy.causal_lm.model.layers]
    handles = [one.register_forward_pre_hook(lambda _, given: seen.append(given[0][0])) for one in downs]
    with using(policy, name), torch.no_grad():
        policy.causal_lm(input_ids=torch.tensor([list(tokens)]))
    for handle in handles:
        handle.remove()
    return seen


def preference(policy: Policy, name: str | None, pair: JudgedPair, put: Mapping[str, Sequence[Put]]) -> float:
    """E of one pair by plain passes; of each side, what is ``put`` in: neurons of a layer with these values."""
    found = {}
    for side in ("toxic", "harmless"):
        prompt, answer = pair.asked.prompt, getattr(pair, side)

        def changed(_: object, given: tuple[torch.Tensor], own: Sequence[Put]) -> tuple[torch.Tensor]:
            values = given[0].clone()
            for _layer, neuron, new in own:
                values[0, :, neuron] = new
            return (values,)

        handles = []
        for number, layer in enumerate(policy.causal_lm.model.layers):
            if own := [one for one in put.get(side, ()) if one[0] == number]:
                handles.append(
                    layer.mlp.down_proj.register_forward_pre_hook(lambda _, given, own=own: changed(_, given, own))
                )
        with using(policy, name), torch.no_grad():
            logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
        for handle in handles:
            handle.remove()
        said = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        found[side] = float(said.mean())
    return found["harmless"] - found["toxic"]


def test_neurons_in_groups_are_those_of_a_loop_over_plain_passes() -> None:
    """Which neurons are in a group by the two signs, and what named ones carry into the base and out of the tuned
    model: by hooks on the MLPs' output matrices, text by text."""
    policy = adapted_policy("qwen2")
    pairs, towards = (
        pairs_of(),
        torch.randn(policy.causal_lm.config.hidden_size, generator=torch.Generator().manual_seed(2)),
    )
    named = [(0, 3), (1, 5), (1, 8)]
    groups, _ = neuron_groups(policy, "default", pairs, towards, named, CausesSettings())
    by_name = {one.name: one for one in groups}
    means = {}
    for name in (None, "default"):
        total: list[torch.Tensor] = []
        for pair in pairs:
            for answer in (pair.toxic, pair.harmless):
                seen = recorded(policy, name, [*pair.asked.prompt, *answer])
                total.append(torch.stack([one[len(pair.asked.prompt) :].sum(0) for one in seen]))
        means[name] = torch.stack(total).sum(0)
    counts = dict.fromkeys(SIGNS, 0)
    for number, layer in enumerate(policy.causal_lm.model.layers):
        weight = layer.mlp.down_proj.base_layer.weight
        for neuron in range(weight.shape[1]):
            writes = "toxic" if float(weight[:, neuron] @ towards) > 0 else "against"
            rose = float(means["default"][number, neuron]) > float(means[None][number, neuron])
            counts[f"{writes}_{'up' if rose else 'down'}"] += 1
    assert len(set(counts.values())) == 4
    assert {name: by_name[name].neurons for name in counts} == counts  # type: ignore[index]

    def put(pair: JudgedPair, donor: str | None) -> dict[str, list[Put]]:
        found = {}
        for side in ("toxic", "harmless"):
            seen = recorded(policy, donor, [*pair.asked.prompt, *getattr(pair, side)])
            found[side] = [(layer, neuron, seen[layer][:, neuron]) for layer, neuron in named]
        return found

    plain = {name: [preference(policy, name, pair, {}) for pair in pairs] for name in (None, "default")}
    into = [
        preference(policy, None, pair, put(pair, "default")) - was for pair, was in zip(pairs, plain[None], strict=True)
    ]
    out = [
        was - preference(policy, "default", pair, put(pair, None))
        for pair, was in zip(pairs, plain["default"], strict=True)
    ]
    assert by_name["named"].effect == pytest.approx(sum(into) / 3, abs=1e-5)
    assert by_name["named"].lost == pytest.approx(sum(out) / 3, abs=1e-5)
    assert abs(sum(into) - sum(out)) > 1e-3


def test_what_value_vectors_carry() -> None:
    """All of it, where the adapter is on them alone; then nothing sets off the first layer's neurons otherwise, and
    these are in no group of those that are."""
    policy = tiny_policy()
    add_lora(policy, LoraSettings(r=2, targets=["down_proj"]), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    direction = torch.ones(policy.causal_lm.config.hidden_size)
    groups, _ = neuron_groups(policy, POLICY, pairs_of(), direction, [(0, 0)], CausesSettings())
    by_name = {one.name: one for one in groups}
    change = preference_change(policy, POLICY, pairs_of(), CausesSettings()).mean
    assert change is not None
    assert abs(change) > 1e-3
    assert (by_name["vectors"].effect, by_name["vectors"].lost) == pytest.approx((change, change), abs=1e-6)
    assert (by_name["named"].effect, by_name["named"].lost) == pytest.approx((0, 0), abs=1e-6)
    config = policy.causal_lm.config
    assert sum(by_name[one].neurons or 0 for one in SIGNS) == config.intermediate_size * (config.num_hidden_layers - 1)


def test_all_neurons_together_do_what_their_mlp_does() -> None:
    policy = adapted_policy("qwen2")
    (estimated,) = site_effects(policy, pairs_of(), [lambda: using(policy, "default")], 10**6)
    config = policy.causal_lm.config
    number = config.num_hidden_layers * config.intermediate_size
    found = top_neurons(policy, "default", pairs_of(), number=number, batch_tokens=10**6)
    assert len({(one.layer, one.neuron) for one in found}) == number
    for layer in range(config.num_hidden_layers):
        total = sum(one.estimate for one in found if one.layer == layer)
        at = next(at for at, site in enumerate(estimated.sites) if (site.kind, site.layer) == ("mlp", layer))
        assert total == pytest.approx(estimated.own[:, at].sum(-1).mean(), abs=1e-5)


def test_a_model_without_harmless_new_answers_is_looked_at_on_those_of_the_base_and_it_is_told(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "judge_of", lambda name, device: (coin, []))
    monkeypatch.setattr(explain, "own_pairs", lambda policy, on, pairs, *_: (list(pairs[:2]), []))
    causes = SETTINGS.causes.model_copy(update={"towards": "own"})
    less = {"patching": False, "minimal_adapter": False, "causes": causes}
    interpret(runs, SETTINGS.model_copy(update=less), tmp_path / "out")
    found = json.loads((tmp_path / "out" / f"{KIND}.json").read_text())
    assert found["models"][1]["towards"] == "harmless"
    assert found["models"][1]["heads"]
    (told,) = (note for note in found["inside_notes"] if "harmless new answer" in note)
    assert "to only 2 of 5 prompts, and 5 are needed" in told


def test_how_far_a_product_moved_is_what_forming_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, new_left, new_right = (torch.randn(3, 20, 4, generator=generator) for _ in range(4))
    found = product_change(left, right, new_left, new_right)
    was, now = left @ right.transpose(1, 2), new_left @ new_right.transpose(1, 2)
    assert found.size.tolist() == pytest.approx(
        ((now - was).norm(dim=(1, 2)) / was.norm(dim=(1, 2))).tolist(), rel=1e-5
    )
    values = torch.linalg.svdvals(now - was)[:, :4].square()
    expected = values / (now - was).square().sum((1, 2))[:, None]
    assert found.spectrum.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-4)
    still = product_change(left, right, left, right)
    assert still.size.max() < 1e-6


def test_heads_on_the_same_text() -> None:
    """Against a loop over the model's own attention; the tokens are those that the write raises most."""
    policy = adapted_policy("gpt2")
    facts = read_heads(policy, "default", pairs_of(), 10**6)
    (piece,) = pair_batches(pairs_of(), policy.device, 10**6)
    for name, side in ((None, "base"), ("default", "tuned")):
        with using(policy, name), torch.no_grad():
            policy.causal_lm.config._attn_implementation = "eager"
            weights = policy.causal_lm(
                input_ids=piece.batch.tokens, attention_mask=piece.batch.mask.long(), output_attentions=True
            ).attentions
            policy.causal_lm.config._attn_implementation = "sdpa"
        for one in facts:
            expected: dict[str, float] = dict.fromkeys(TOKEN_KINDS, 0.0)
            n = 0
            for row, position in piece.batch.where.nonzero().tolist():
                n += 1
                for other in range(piece.batch.tokens.shape[1]):
                    for place, kind in enumerate(TOKEN_KINDS):
                        if piece.kinds[row, other, place]:
                            expected[kind] += float(weights[one.layer][row, one.head, position, other])
            look = getattr(one, side).model_dump()
            assert {kind: total / n for kind, total in expected.items()} == pytest.approx(look, abs=1e-5)
    assert all(one.qk_change > 0 and one.ov_change > 0 and len(one.promotes) == 6 for one in facts)
    assert not set(facts[0].promotes) & set(facts[0].demotes)


def test_pairs_are_the_bases_own_answers_and_of_the_right_side() -> None:
    policy = tiny_policy()
    questions = [f"You {word} fool, go {n}" for n, word in enumerate(["stupid", "nice", "stupid", "kind"])]
    asked = [asked_once(policy.tokenizer, policy.tokenizer.encode(one), [one], bad) for one in questions]
    assert "hostile" in asked[0].kinds
    assert "hostile" not in asked[1].kinds
    how = CausesSettings(draws=6, max_new_tokens=5, batch_tokens=10**4, seed=3).model_copy(update={"pairs": 3})
    pairs, placebo = draw_pairs(policy, asked, coin, how)

    def judged(tokens: Sequence[int]) -> float:
        (score,) = coin([policy.tokenizer.decode(tokens, skip_special_tokens=True).strip()])
        assert score is not None
        return score

    assert pairs
    assert all(judged(pair.toxic) > 0.5 >= judged(pair.harmless) for pair in pairs)
    assert all(max(judged(pair.toxic), judged(pair.harmless)) <= 0.5 for pair in placebo)
    assert draw_pairs(policy, asked, coin, how) == (pairs, placebo)
    assert len({pair.asked.prompt for pair in pairs}) == len(pairs)


def test_answers_are_sampled_as_the_run_s_were(tmp_path: Path) -> None:
    settings = MeasureSettings(
        model="tiny", device="cpu", scorer=["lexical"], limit=1, max_new_tokens=2, similarity=False, perplexity=False,
        counter_narrative=None, generation=GenerationSettings(temperature=0.5, top_p=0.8, top_k=7),
    )  # fmt: skip
    measure(settings, tmp_path / "PT")
    run = Run.open(tmp_path / "PT")
    whole = InterpretSettings()
    for own in (CausesSettings(pairs=7), InsideSettings(value_vectors=3)):
        assert as_measured(own, whole, run) == own.model_copy(update={"generation": settings.generation})
    asked = CausesSettings(generation=GenerationSettings(top_p=1.0))
    assert as_measured(asked, whole, run).generation == GenerationSettings(temperature=0.5, top_p=1.0, top_k=7)
    # Its seed and resamples are the interpretation's, unless it has its own.
    whole = InterpretSettings(seed=5, n_resamples=300)
    inside = as_measured(InsideSettings(seed=2), whole, run)
    assert (inside.seed, inside.n_resamples) == (2, 300)
    assert as_measured(CausesSettings(), whole, run).seed == 5


def test_a_greedy_base_gives_no_pairs() -> None:
    """All of its answers to a prompt are the same."""
    policy = adapted_policy("tiny")
    asked = [asked_once(policy.tokenizer, (1, 300 + number), ["x"], coin) for number in range(20)]
    found = {}
    for temperature in (0.0, 1.0):
        how = CausesSettings(draws=4, max_new_tokens=5, generation=GenerationSettings(temperature=temperature))
        found[temperature], placebo = draw_pairs(policy, asked, coin, how)
        assert all((pair.toxic == pair.harmless) == (temperature == 0) for pair in placebo)
    assert found[0.0] == []
    assert found[1.0]


def test_own_pairs_are_the_base_s_toxic_answer_and_a_harmless_one_of_the_model() -> None:
    policy = adapted_policy("qwen2")
    asked = [asked_once(policy.tokenizer, policy.tokenizer.encode(f"Hello {n}"), [f"Hello {n}"], bad) for n in range(6)]
    how = CausesSettings(draws=8, max_new_tokens=5, batch_tokens=10**4, seed=3).model_copy(update={"pairs": 6})
    pairs, _ = draw_pairs(policy, asked, coin, how)
    own, placebo = own_pairs(policy, lambda: using(policy, "default"), pairs, coin, how)
    assert own
    toxic = {pair.asked.prompt: pair.toxic for pair in pairs}
    requests = [
        Request(pair.asked.prompt, stream_seed(3, "own", 0, row, draw))
        for row, pair in enumerate(pairs)
        for draw in range(8)
    ]
    with using(policy, "default"):
        answers = {
            tuple(one.tokens) for one in generate(policy, requests, max_new_tokens=5, sampling=GenerationSettings())
        }
    for pair in own:
        assert pair.toxic == toxic[pair.asked.prompt]
        (score,) = coin([policy.tokenizer.decode(pair.harmless, skip_special_tokens=True).strip()])
        assert score is not None
        assert score <= 0.5
    assert sum(pair.harmless in answers for pair in own) >= len(own) - 1  # rounding may change a token
    assert len(placebo) <= len(pairs)


def bad(texts: Sequence[str]) -> list[float | None]:
    return [float("stupid" in text) for text in texts]
