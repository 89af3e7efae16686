"""interpret on runs of steered models and of adapters at another strength, against passes of the tests' own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import state_of
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_models import tiny_policy
from small_steering import VECTOR, changed_inputs, folder_of, saved_adapter
from tiny_runs import rescore

from rewardlm.config import AttributionSettings, InsideSettings, InterpretSettings, MeasureSettings
from rewardlm.errors import ModelError, RunError
from rewardlm.interpreting.faithfulness import Explained, faithfulness
from rewardlm.interpreting.findings import Interpretation
from rewardlm.interpreting.interpretation import KIND, interpret
from rewardlm.interpreting.models import load_models
from rewardlm.measuring.meter import measure
from rewardlm.models.load import Policy
from rewardlm.models.lora import load_adapter
from rewardlm.reporting.interpretation import sentences
from rewardlm.reporting.interpretation_tables import print_interpretation
from rewardlm.reporting.page import build_report
from rewardlm.runs import Run
from rewardlm.steering.folder import SteerFolder
from rewardlm.types import Message

SETTINGS = InterpretSettings(
    limit=4,
    device="cpu",
    dtype="float32",
    n_resamples=100,
    look_inside=False,
    attribution=AttributionSettings(tokens=2, faithfulness_tokens=4),
)
STRENGTH = 2.0


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Three adapters, and the toxic one again with B halved and B turned round."""
    folder = tmp_path_factory.mktemp("adapters")
    made = {
        name: saved_adapter(tiny_policy, folder / name, seed, 0.3)
        for seed, name in enumerate(("expert", "anti_expert", "toxic", "halved", "minus"))
    }
    whole = load_file(made["toxic"] / "adapter_model.safetensors")
    for name, factor in (("halved", 0.5), ("minus", -STRENGTH)):
        scaled = {key: tensor * (factor if "lora_B" in key else 1) for key, tensor in whole.items()}
        save_file(scaled, made[name] / "adapter_model.safetensors", {"format": "pt"})
    return made.__getitem__


Measured = Callable[..., Path]


@pytest.fixture(scope="module")
def measured(adapters: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A run, made once: by its name, with what the settings of ``measure`` say, or a method's steer folder."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str, method: str | None = None, change: dict[str, Any] | None = None, **settings: Any) -> Path:
        if (root / name).exists():
            return root / name
        if method is not None:
            folder = folder_of(method, adapters)
            own = {**folder.record.settings, **(change or {})}
            record = folder.record.model_copy(update={"settings": own})
            SteerFolder(record, folder.tensors).save(root / f"{name}.steer")
            settings = {"strength": STRENGTH, **settings, "steer": root / f"{name}.steer"}
        how = MeasureSettings(
            model="tiny",
            dtype="float32",
            device="cpu",
            scorer=["lexical"],
            limit=5,
            samples=2,
            max_new_tokens=6,
            similarity=False,
            perplexity=False,
            counter_narrative=None,
            **{"label": name, **settings},
        )
        measure(how, root / name)
        rescore(root / name, lambda k: 0.9 if k % (2 + len(name)) == 0 else 0.1)
        return root / name

    return run


@pytest.fixture(scope="module")
def plain_and_steered(measured: Measured) -> list[Path]:
    return [measured("PT"), measured("V", "activation")]


def interpreted(runs: Sequence[Path], out: Path, **settings: Any) -> tuple[Run, Interpretation]:
    run = interpret(runs, SETTINGS.model_copy(update=settings), out)
    return run, Interpretation.model_validate(run.load(KIND))


def as_text(run: Run, runs: Sequence[Path], tmp_path: Path) -> tuple[str, str]:
    """What the terminal and the page say."""
    out = io.StringIO()
    found = Interpretation.model_validate(run.load(KIND))
    print_interpretation(found, Console(file=out, width=100, color_system=None))
    build_report([*runs, run.path], tmp_path / "page.html")
    return " ".join(out.getvalue().split()), " ".join((tmp_path / "page.html").read_text().split())


@contextmanager
def answers_steered(policy: Policy, prompt: int) -> Iterator[None]:
    """The vector of ``folder_of("activation")`` where an answer after ``prompt`` tokens is predicted from."""

    def change(states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        states[:, prompt - 1 :] += STRENGTH * VECTOR
        return states

    with changed_inputs(policy.causal_lm.model.layers[1], change):
        yield


def pass_of(policy: Policy, prompt: Sequence[int], tokens: Sequence[int], *, steered: bool = False) -> torch.Tensor:
    """ln p of the next token at each of the answer's positions, Float64[R, V], by one plain pass."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        if steered:
            with answers_steered(policy, len(prompt)):
                logits = policy.causal_lm(input_ids=ids).logits[0]
        else:
            logits = policy.causal_lm(input_ids=ids).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def prompts_by_answer(path: Path, policy: Policy, system: str | None = None) -> dict[str, list[int]]:
    """The prompt's ids by the answer's id, as the run has them; with a system turn in front."""
    run = Run.open(path)
    turns = {prompt.id: [*([Message("system", system)] if system else []), *prompt.turns] for prompt in run.prompts()}
    return {
        f"{run.label}:{answer.id}": policy.chat.encode_prompt(turns[answer.prompt_id]) for answer in run.generations()
    }


def check_drift(run: Run, runs: Sequence[Path], by_hand: Callable[[str, list[int], list[int]], torch.Tensor]) -> None:
    """Every record's second model against ``by_hand(answer's id, prompt, tokens)``, Float64[R, V]."""
    policy = tiny_policy()
    prompts = {key: ids for path in runs for key, ids in prompts_by_answer(path, policy).items()}
    records = list(run.read("drift"))
    assert len(records) == 4 * len(runs)
    for record in records:
        tokens = record["tokens"]
        base = pass_of(policy, prompts[record["id"]], tokens)
        other = by_hand(record["id"], prompts[record["id"]], tokens)
        at = torch.arange(len(tokens))
        assert record["logprobs"][1] == pytest.approx(other[at, tokens].tolist(), abs=1e-3)
        assert record["logprobs"][0] == pytest.approx(base[at, tokens].tolist(), abs=1e-3)
        assert record["entropy"][1] == pytest.approx((-(other.exp() * other).sum(-1)).tolist(), abs=1e-3)
        for a, b, (p, q) in ((0, 1, (base, other)), (1, 0, (other, base))):
            assert record["kl"][a][b] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=2e-3)


def test_a_steered_stream_is_read_as_it_was_while_it_answered(plain_and_steered: list[Path], tmp_path: Path) -> None:
    runs = plain_and_steered
    run, found = interpreted(runs, tmp_path / "out")
    check_drift(run, runs, lambda _id, prompt, tokens: pass_of(tiny_policy(), prompt, tokens, steered=True))
    assert found.drift.comparisons[0].on_baseline.kl.mean > 0.01  # type: ignore[operator]
    facts = found.models[1]
    assert (facts.method, facts.strength, set(facts.left_out)) == ("activation", STRENGTH, {"inside"})
    # Gradients of the test's own, at the words of the baseline's answers.
    policy = tiny_policy()
    prompts = {key: ids for path in runs for key, ids in prompts_by_answer(path, policy).items()}
    answers = {record["id"]: record["tokens"] for record in run.read("drift")}
    embeddings = policy.causal_lm.get_input_embeddings()
    read = [record for record in run.read("attributions") if record["reader"] == 1]
    assert {record["author"] for record in read} == {0, 1}
    for record in read:
        prompt, tokens = prompts[record["id"]], answers[record["id"]]
        for at, logprob, scores in zip(record["positions"], record["logprobs"], record["scores"], strict=True):
            leaf = embeddings(torch.tensor([[*prompt, *tokens]])).detach().requires_grad_()
            with answers_steered(policy, len(prompt)):
                logits = policy.causal_lm(inputs_embeds=leaf).logits[0, len(prompt) + at - 1]
            value = logits.log_softmax(-1)[tokens[at]]
            (slope,) = torch.autograd.grad(value, leaf)
            assert logprob == pytest.approx(float(value), abs=1e-3)
            # Words join tokens, so the sums over all that stands before must agree.
            assert sum(scores) == pytest.approx(float((slope * leaf)[0].sum()), abs=2e-3)


def test_what_is_left_of_a_context_is_steered_where_it_is_the_answers(plain_and_steered: list[Path]) -> None:
    """The words that are taken out leave the sequence; the positions of the others decide."""
    model = load_models([Run.open(path) for path in plain_and_steered], SETTINGS)[1]
    context, start = [1, 300, 301, 302, 7, 8, 17, 900, 4], 6
    words = [(0, 2), (2, 4), (4, 6), (6, 7), (7, 8)]
    explained = Explained(context, 33, words, torch.tensor([3.0, 1, 2, 5, 4]).numpy(), seed=0, start=start)
    with model.on() as causal_lm:
        got = faithfulness(causal_lm, explained, budget=30)
    policy = tiny_policy()

    def logprob(places: list[int]) -> float:
        def change(states: torch.Tensor) -> torch.Tensor:
            return states + STRENGTH * VECTOR * torch.tensor([[[float(place >= start - 1)] for place in places]])

        ids = torch.tensor([[context[place] for place in places]])
        with torch.no_grad(), changed_inputs(policy.causal_lm.model.layers[1], change):
            logits = policy.causal_lm(input_ids=ids, position_ids=torch.tensor([places])).logits[0, -1]
        return float(logits.double().log_softmax(-1)[33])

    # All five words can move. A tenth and a fifth of their eight tokens are the words (6, 7) and (7, 8), a half needs
    # (0, 2) too.
    everything = list(range(9))
    ranked = [[6], [6, 7], [0, 1, 6, 7]]
    without = [logprob([place for place in everything if place not in taken]) for taken in ranked]
    alone = [logprob([*taken, 8]) for taken in ranked]
    whole = logprob(everything)
    assert got.comprehensiveness == pytest.approx(whole - sum(without) / 3, abs=1e-4)
    assert got.sufficiency == pytest.approx(whole - sum(alone) / 3, abs=1e-4)


def test_strength_0_is_the_unsteered_model(measured: Measured, tmp_path: Path) -> None:
    runs = [measured("PT"), measured("V0", "activation", strength=0.0)]
    run, found = interpreted(runs, tmp_path / "out")
    for record in run.read("drift"):
        assert record["logprobs"][0] == record["logprobs"][1]
    entry = found.drift.comparisons[0]
    assert (entry.on_baseline.kl.mean, entry.on_baseline.same_first_choice.mean) == (0, 1)
    assert "method" not in run.load(KIND)["models"][1]
    assert not any("V0 answered" in note for note in found.notes)


def numbers(value: Any) -> Any:
    """An interpretation without what it says of treatments, and without adapters of random weights: these are turned
    round as well."""
    if isinstance(value, dict):
        dropped = ("adapter", "adapter_strength", "method", "strength", "left_out", "notes", "null")
        return {key: numbers(one) for key, one in value.items() if key not in dropped}
    return [numbers(one) for one in value] if isinstance(value, list) else value


INSIDE = InsideSettings(
    toxic_words=["stupid", "idiot"], neutral_words=["kind", "bread"], value_vectors=4, pairs=2, path_steps=4,
    causal_prompts=3, ablation_prompts=2, random_directions=20, random_sets=20, shuffles=20, max_new_tokens=4,
    probe_folds=2, n_resamples=100,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["half", "taken away"])
def test_an_adapter_at_another_strength_is_an_adapter_with_another_b(
    how: str, measured: Measured, adapters: Callable[[str], Path], tmp_path: Path
) -> None:
    """At 0.5, one with B halved; as a task vector of strength 2, one with −2·B. Inside as well."""
    if how == "half":
        one = measured("HALF", adapter=adapters("toxic"), adapter_strength=0.5, label="X")
        other = measured("SELF", adapter=adapters("halved"), label="X")
    else:
        one = measured("TASK", "task-vector", label="X")
        other = measured("TURN", adapter=adapters("minus"), label="X")
    results = []
    for number, path in enumerate((one, other)):
        run, found = interpreted([measured("PT"), path], tmp_path / str(number), look_inside=True, inside=INSIDE)
        results.append(numbers(run.load(KIND)))
        assert found.inside is not None
        assert list(found.inside.adapters) == ["X"]
        if not number:
            text = "is its base without 2 times an adapter" if how == "taken away" else "has 0.5 times what its adapter"
            assert any(f"X {text}" in note for note in found.notes)
            assert found.models[1].left_out == {}
    assert_close(*results)


def assert_close(one: Any, two: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_close(one[key], two[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for place, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_close(a, b, f"{where}[{place}]")
    elif isinstance(one, float):
        assert one == pytest.approx(two, abs=2e-3, rel=1e-3), where
    else:
        assert one == two, where


def test_a_system_prompt_is_read_by_its_own_model_alone(measured: Measured, tmp_path: Path) -> None:
    runs = [measured("PT"), measured("S", "system", {"prompt": "Be kind."}, strength=1.0)]
    run, found = interpreted(runs, tmp_path / "out")
    policy = tiny_policy()
    described = {key: ids for path in runs for key, ids in prompts_by_answer(path, policy, "Be kind.").items()}
    check_drift(run, runs, lambda key, _prompt, tokens: pass_of(policy, described[key], tokens))
    assert set(found.models[1].left_out) == {"attribution", "inside"}
    assert [model.label for model in found.attribution.models] == ["PT"]
    assert found.attribution.comparisons == []
    assert [row["question"] for row in sentences(found)] == [
        "Does S still read the prompt?", "What has S unlearned?", "Where does S part from PT?",
    ]  # fmt: skip
    for text in as_text(run, runs, tmp_path):
        assert "it reads another prompt than the baseline" in text


@pytest.mark.slow
def test_dexperts_is_three_models_beside_another_adapter(
    measured: Measured, adapters: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = [measured("PT"), measured("D", "dexperts", {"top_p": 1.0}), measured("RL", adapter=adapters("toxic"))]
    run, found = interpreted(runs, tmp_path / "out")
    apart = [tiny_policy() for _ in range(3)]
    for one, name in zip(apart[1:], ("expert", "anti_expert"), strict=True):
        load_adapter(one, adapters(name))

    def by_hand(_id: str, prompt: list[int], tokens: list[int]) -> torch.Tensor:
        base, expert, anti = (pass_of(one, prompt, tokens) for one in apart)
        return (base + STRENGTH * (expert - anti)).log_softmax(-1)

    check_drift(run, runs, by_hand)
    assert [entry.to for entry in found.drift.comparisons] == ["D", "RL"]
    assert [entry.to for entry in found.attribution.comparisons] == ["RL"]


@pytest.mark.slow
def test_what_no_probability_shows_is_left_out_and_said(
    measured: Measured, adapters: Callable[[str], Path], tmp_path: Path
) -> None:
    """The choice of an answer, a filter, a past that is moved: nothing of the model as it is stands in their place."""
    labels = ("B", "D9", "P")
    runs = [measured("PT"), measured("B", "best-of-n"), measured("D9", "dexperts"), measured("P", "pplm")]
    runs.insert(1, measured("RL", adapter=adapters("toxic")))
    run, found = interpreted(runs, tmp_path / "out")
    assert [entry.to for entry in found.drift.comparisons] == ["RL"]
    assert [entry.to for entry in found.attribution.comparisons] == ["RL"]
    for record in run.read("drift"):
        assert [bool(values) for values in record["logprobs"]] == [True, True, False, False, False]
        assert [[bool(values) for values in row] for row in record["kl"]] == [
            [True, True, False, False, False], [True, True, False, False, False], *[[False] * 5] * 3,
        ]  # fmt: skip
    assert {record["reader"] for record in run.read("attributions")} == {0, 1}
    for facts in found.models[2:]:
        assert set(facts.left_out) == {"drift", "attribution", "inside"}
    for text in as_text(run, runs, tmp_path):
        for label in labels:
            assert f"Not read of {label}: drift" in text
        assert "its filter (top_p 0.9)" in text
    rows = {(row["model"], row["question"].split()[0]): row["parts"][0][0] for row in sentences(found)}
    assert (
        rows["B", "What"] == "Not known: it chooses among the unsteered model’s answers, and no probability changes. "
    )


def test_runs_that_nothing_can_read_still_make_a_page(measured: Measured, tmp_path: Path) -> None:
    runs = [measured("PT"), measured("B", "best-of-n")]
    run, found = interpreted(runs, tmp_path / "out", look_inside=True)
    assert (found.drift.comparisons, found.attribution.comparisons, found.inside, found.shown) == ([], [], None, [])
    terminal, page = as_text(run, runs, tmp_path)
    assert "Not read of B: drift, attribution, the inside" in terminal
    assert "None of the tuned models could be read word by word" in page
    with pytest.raises(RunError, match=r"is the baseline, and was answered under steering \(best-of-n\)"):
        interpret(runs[::-1], SETTINGS, tmp_path / "other")


@pytest.mark.slow
def test_the_lens_reads_a_steered_stream(plain_and_steered: list[Path], tmp_path: Path) -> None:
    runs = plain_and_steered
    run, found = interpreted(runs, tmp_path / "out", look_inside=True, inside=INSIDE)
    inside = found.inside
    assert inside is not None
    assert (inside.models, list(inside.stream), inside.verdicts) == (["PT"], ["PT", "V"], {})
    reading = inside.stream["V"]
    assert reading.shares is None
    # After the last layer the lens is the model itself: toxic minus neutral logits on the baseline's answers.
    policy = tiny_policy()
    prompts = prompts_by_answer(runs[0], policy)
    words = [
        [policy.tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in side]
        for side in (INSIDE.toxic_words, INSIDE.neutral_words)
    ]
    for label, steered in (("PT", False), ("V", True)):
        scores = []
        for record in run.read("drift"):
            if record["author"] == 0:
                logprobs = pass_of(policy, prompts[record["id"]], record["tokens"], steered=steered)
                scores += (logprobs[:, words[0]].mean(-1) - logprobs[:, words[1]].mean(-1)).tolist()
        lens = inside.stream[label].lens
        assert lens is not None
        assert inside.stream[label].positions == len(scores)
        assert lens.score[-1] == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    assert inside.stream["V"].attention.prompt != inside.stream["PT"].attention.prompt
    terminal, _ = as_text(run, runs, tmp_path)
    assert "V lens" in terminal


@pytest.mark.parametrize("merge", [False, True])
def test_models_are_left_as_they_were_found(
    measured: Measured, adapters: Callable[[str], Path], merge: bool, tmp_path: Path
) -> None:
    paths = [
        measured("PT"),
        measured("V", "activation"),
        measured("RL", adapter=adapters("toxic")),
        measured("B", "best-of-n"),
        measured("D", "dexperts", {"top_p": 1.0}),
    ]
    run_models = load_models([Run.open(path) for path in paths], SETTINGS)
    assert len({id(run_model.policy) for run_model in run_models}) == 1
    model = run_models[0].policy.model
    before = state_of(model)
    for run_model in run_models[:3]:
        with run_model.on(merge=merge):
            pass
        assert state_of(model) == before
        with pytest.raises(KeyError), run_model.on(merge=merge):
            raise KeyError
        assert state_of(model) == before
    for run_model in run_models[3:]:
        with pytest.raises(ModelError, match="no pass of its model alone shows it"), run_model.on():
            pass
    with run_models[4].steered():
        pass
    # Loading an adapter draws its first weights.
    assert {**state_of(model), "random": []} == {**before, "random": []}


def test_a_steer_folder_that_is_gone_or_another_is_refused(measured: Measured, tmp_path: Path) -> None:
    run = Run.open(measured("PT"))
    other = Run.open(measured("V", "activation"))
    kept = other.meta["settings"], other.meta["treatment"]
    try:
        other.update(treatment={**kept[1], "hash": "0" * 64})
        with pytest.raises(RunError, match=r"its steer folder .* was made anew since then .*: measure it again"):
            load_models([run, other], SETTINGS)
        other.update(treatment=kept[1], settings={**kept[0], "steer": str(tmp_path / "nowhere")})
        with pytest.raises(RunError, match=r"its steer folder .* is gone: put it back, or measure again"):
            load_models([run, other], SETTINGS)
    finally:
        other.update(settings=kept[0], treatment=kept[1])
