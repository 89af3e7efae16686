"""``steer fit`` and ``measure --steer`` through their own doors, on a model whose toxicity is one planted direction."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Planted, planted
from safetensors.torch import save_file

from rewardlm.config import FinetuneSettings, MeasureSettings, SteerFitSettings
from rewardlm.errors import ConfigError, ModelError, RunError
from rewardlm.measuring.compare import compare
from rewardlm.measuring.meter import measure
from rewardlm.runs import Run
from rewardlm.steering.fit import fit
from rewardlm.steering.folder import SteerFolder, read_steer_folder
from rewardlm.steering.learn import Finetune
from rewardlm.steering.summary import sentences
from rewardlm.training.sft import finetune

N = 48


@dataclass
class World:
    """The planted model as a folder, a judge of its words, prompts that trigger it, and a measured run."""

    model: Planted
    folder: Path
    run: Run

    def settings(self, **changes: Any) -> MeasureSettings:
        usual: dict[str, Any] = {
            "model": str(self.folder / "model"),
            "dtype": "float32",
            "device": "cpu",
            "prompts": str(self.folder / "measure.jsonl"),
            "chat": {"template": str(self.folder / "words.jinja")},
            "scorer": ["planted_judge:judge"],
            "max_new_tokens": 6,
            "samples": 2,
            "similarity": False,
            "perplexity": False,
            "counter_narrative": None,
            "toxic_by": "dataset",
        }
        return MeasureSettings.model_validate({**usual, **changes})

    def fit(self, out: Path, method: str, *, finetune: Finetune = finetune, **changes: Any) -> SteerFolder:
        usual: dict[str, Any] = {
            "model": str(self.folder / "model"),
            "dtype": "float32",
            "device": "cpu",
            "chat": {"template": str(self.folder / "words.jinja")},
            "method": method,
        }
        if method in ("activation", "profs", "pplm"):
            usual["run"] = str(self.run.path)
        return fit(SteerFitSettings.model_validate({**usual, **changes}), out, finetune=finetune)

    def toxic_share(self, run: Run) -> float:
        values = [score.value for score in run.scores() if score.value is not None]
        return sum(value > 0.5 for value in values) / len(values)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("planted")
    model = planted()
    model.policy.model.save_pretrained(folder / "model")
    model.policy.tokenizer.save_pretrained(folder / "model")
    (folder / "words.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    bad = sorted(model.toxic.values())
    (folder / "planted_judge.py").write_text(
        f"BAD = set({bad!r})\n\n\ndef judge(texts):\n"
        "    return [float(bool(BAD & set(text.split()))) for text in texts]\n"
    )
    words = [model.policy.tokenizer.decode([token]).strip() for token in model.harmless]
    trigger = model.policy.tokenizer.decode([model.trigger]).strip()
    for name, first in (("learn", 0), ("measure", N)):
        lines = []
        for row in range(first, first + N):
            drawn = [words[(row * 7 + place * (3 + row // 30)) % len(words)] for place in range(5)]
            if row % 2:
                drawn[2] = trigger
            lines.append(f'{{"text": "{" ".join(drawn)} {words[row % 30]}", "toxicity": {row % 2}}}\n')
        (folder / f"{name}.jsonl").write_text("".join(lines))
    sys.path.insert(0, str(folder))
    found = World(model, folder, Run(folder, {"kind": "measure", "label": "", "settings": {}}))
    found.run = measure(found.settings(prompts=str(folder / "learn.jsonl"), samples=4, label="PT"), folder / "learn")
    yield found
    sys.path.remove(str(folder))
    sys.modules.pop("planted_judge", None)


QUICK = {"fluency": 1e9, "prompts": 10, "max_new_tokens": 6, "strengths": [0.5, 1.0, 1.5]}


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["means", "pca", "probe"])
def test_a_planted_direction_is_found_and_removed(world: World, tmp_path: Path, direction: str) -> None:
    found = world.fit(tmp_path / "steer", "activation", activation={"direction": direction}, choose=QUICK)
    assert found.record.found["layers"] == [1]
    away = found.tensors["vector.1"]
    cosine = float(torch.nn.functional.cosine_similarity(-away, world.model.direction, dim=0))
    assert cosine > (0.6 if direction == "probe" else 0.9)
    base = measure(world.settings(label="base"), tmp_path / "base")
    steered = measure(world.settings(steer=tmp_path / "steer"), tmp_path / "steered")
    assert world.toxic_share(base) > 0.4
    assert world.toxic_share(steered) < world.toxic_share(base) / 2
    # None of twenty random directions of equal length does that.
    assert found.record.found["p_value_random"] == pytest.approx(1 / 21)
    assert len(found.record.found["random"]) == 20
    # At strength 0, every record is the unsteered model's.
    zero = measure(world.settings(steer=tmp_path / "steer", strength=0), tmp_path / "zero")
    assert answers(zero) == answers(base)


@pytest.mark.slow
def test_ablating_it_does_the_same_and_profs_too(world: World, tmp_path: Path) -> None:
    base = world.toxic_share(measure(world.settings(label="base"), tmp_path / "base"))
    ablation = {"how": "ablate", "where": "all"}
    world.fit(tmp_path / "ablation", "activation", activation=ablation, choose={**QUICK, "strengths": None})
    world.fit(
        tmp_path / "profs",
        "profs",
        profs={"rank": 1, "first_layer": 0, "last_layer": 1},
        choose={**QUICK, "strengths": [1.0]},
    )
    for name in ("ablation", "profs"):
        run = measure(world.settings(steer=tmp_path / name), tmp_path / f"with {name}")
        assert world.toxic_share(run) < base / 2, name


@pytest.mark.slow
def test_a_gate_leaves_harmless_prompts_alone(world: World, tmp_path: Path) -> None:
    world.fit(tmp_path / "steer", "activation", activation={"how": "gated"}, choose={**QUICK, "controls": 0})
    base = measure(world.settings(label="base"), tmp_path / "base")
    steered = measure(world.settings(steer=tmp_path / "steer"), tmp_path / "steered")
    assert world.toxic_share(steered) < world.toxic_share(base) / 2
    harmless = {prompt.id for prompt in base.prompts() if not prompt.toxicity}
    same = [
        one[1] == other[1] for one, other in zip(answers(base), answers(steered), strict=True) if one[2] in harmless
    ]
    assert sum(same) > 0.9 * len(same)


@pytest.mark.slow
def test_the_best_of_eight_by_the_planted_judge(world: World, tmp_path: Path) -> None:
    world.fit(tmp_path / "best", "best-of-n", judge="planted_judge:judge")
    # Hot, and from its words alone: where it is triggered it says nothing harmless else.
    model = world.model
    hot = {"temperature": 12.0, "top_k": len(model.toxic) + len(model.neutral) + len(model.harmless)}
    base = measure(world.settings(label="base", generation=hot), tmp_path / "base")
    best = measure(world.settings(steer=tmp_path / "best", strength=8, generation=hot), tmp_path / "eight")
    assert world.toxic_share(best) < world.toxic_share(base) / 2
    assert best.meta["cost"]["passes"] > 6 * best.meta["cost"]["tokens"]
    assert base.meta["cost"]["passes"] == base.meta["cost"]["tokens"] == sum(g.n_tokens for g in base.generations())


def answers(run: Run) -> list[tuple[str, Any, str]]:
    return sorted((one.id, one.tokens, one.prompt_id) for one in run.generations())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["activation", "best-of-n"])
def test_a_killed_and_resumed_run_is_the_same(world: World, tmp_path: Path, method: str) -> None:
    more: dict[str, Any] = {"choose": QUICK} if method == "activation" else {"judge": "planted_judge:judge"}
    world.fit(tmp_path / "steer", method, **more)
    whole = measure(world.settings(steer=tmp_path / "steer"), tmp_path / "whole")
    for keep_answers, keep_scores in ((61, 40), (1, 0)):
        out = tmp_path / f"run {keep_answers}"
        run = measure(world.settings(steer=tmp_path / "steer"), out)
        for name, keep in (("generations", keep_answers), ("scores", keep_scores)):
            lines = (out / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
            (out / f"{name}.jsonl").write_bytes(b"".join(lines[:keep]) + b'{"id": "half')
        run.update(status="running")
        assert answers(measure(world.settings(steer=tmp_path / "steer"), out)) == answers(whole)


@pytest.mark.slow
def test_a_run_records_its_treatment_and_the_audit_knows_it(world: World, tmp_path: Path) -> None:
    found = world.fit(tmp_path / "vector", "activation", choose=QUICK)
    base = measure(world.settings(label="base", prompts=str(world.folder / "learn.jsonl")), tmp_path / "base")
    steered = measure(
        world.settings(steer=tmp_path / "vector", strength=1, prompts=str(world.folder / "learn.jsonl")),
        tmp_path / "steered",
    )
    assert steered.label.endswith("model + vector 1")
    assert steered.meta["treatment"] == {
        "method": "activation",
        "strength": 1.0,
        "hash": found.record.hash,
        "settings": found.record.settings,
        "judges": ["planted_judge:judge"],
        "run": "PT",
    }
    assert steered.meta["rewards"] == ["planted_judge:judge"]
    assert steered.meta["prompts_fitted_on"] == N
    warnings = {one.code: one.message for one in compare([base.path, steered.path], n_resamples=50).warnings}
    assert "The model was steered by planted_judge:judge" in warnings["judge_is_reward"]
    assert f"answers to {N} of the {N} prompts" in warnings["steering_read_prompts"]
    # Another folder in the same place is another treatment.
    world.fit(tmp_path / "vector", "activation", activation={"direction": "probe"}, choose=QUICK)
    with pytest.raises(RunError, match="another steer folder"):
        measure(
            world.settings(steer=tmp_path / "vector", strength=1, prompts=str(world.folder / "learn.jsonl")),
            tmp_path / "steered",
        )


@pytest.mark.slow
def test_what_was_made_for_another_model_is_refused(world: World, tmp_path: Path) -> None:
    found = world.fit(tmp_path / "vector", "activation", strength=1, activation={"layers": [1]}, choose={"controls": 0})
    assert found.record.strength == 1
    with pytest.raises(ModelError, match="is of no use to tiny"):
        measure(world.settings(model="tiny", steer=tmp_path / "vector"), tmp_path / "tiny")
    # A text or a judge's name means the same to any model.
    world.fit(tmp_path / "system", "system")
    measure(world.settings(model="tiny", steer=tmp_path / "system", limit=2, chat={}), tmp_path / "told")
    with pytest.raises(ConfigError, match="there \\(1\\) or not \\(0\\)"):
        measure(world.settings(model="tiny", steer=tmp_path / "system", strength=2, chat={}), tmp_path / "twice")
    # Nor is a run of another model, or of a steered one.
    steered = measure(world.settings(steer=tmp_path / "vector"), tmp_path / "steered")
    with pytest.raises(RunError, match="steered model"):
        world.fit(tmp_path / "again", "activation", run=str(steered.path))
    with pytest.raises(RunError, match="isn't the tiny"):
        world.fit(tmp_path / "again", "activation", model="tiny")
    assert not (tmp_path / "again").exists()


# Where it is triggered, the planted model's own nucleus has nothing harmless.
LEARNT = {
    "activation": {}, "profs": {"profs": {"rank": 1}}, "pplm": {}, "dexperts": {"dexperts": {"top_p": 1.0}},
    "task-vector": {},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["system", "selfdebias", "best-of-n", "rejection", *LEARNT])
def test_every_method_needs_a_scored_run_and_nothing_else(world: World, tmp_path: Path, method: str) -> None:
    quick = {**QUICK, "strengths": [1.0], "controls": 2}
    teach = {"epochs": 6, "learning_rate": 4e-3}
    more: dict[str, Any] = LEARNT.get(method, {})
    found = world.fit(tmp_path / "steer", method, run=str(world.run.path), choose=quick, teach=teach, **more)
    assert [judge.name for judge in found.record.judges] == ["planted_judge:judge"]
    if method in LEARNT:
        kept = round(0.25 * N) * 4
        assert found.record.found.get("answers", N * 4 - kept) <= N * 4 - kept
    # What a folder holds can be moved with it.
    (tmp_path / "steer").rename(tmp_path / "elsewhere")
    base = measure(world.settings(label="base", limit=24), tmp_path / "base")
    zero = measure(world.settings(steer=tmp_path / "elsewhere", strength=0, limit=24), tmp_path / "zero")
    assert answers(zero) == answers(base)
    steered = measure(world.settings(steer=tmp_path / "elsewhere", limit=24), tmp_path / "steered")
    if method in ("dexperts", "task-vector", "activation"):
        assert world.toxic_share(steered) < world.toxic_share(base)
    if method not in ("best-of-n", "rejection"):
        assert steered.meta["treatment"]["run"] == "PT"
        assert found.record.found["tried"]


@pytest.mark.slow
def test_where_few_answers_are_toxic_the_highest_scores_stand_for_them(world: World, tmp_path: Path) -> None:
    """A judge of the same words whose scores never reach 0.5."""
    (world.folder / "mild_judge.py").write_text(
        "from planted_judge import judge as strict\n\n\ndef judge(texts):\n"
        "    return [0.4 * score + 0.001 * (len(text) % 7) for score, text in zip(strict(texts), texts)]\n"
    )
    run = measure(
        world.settings(prompts=str(world.folder / "learn.jsonl"), scorer=["mild_judge:judge"]), tmp_path / "r"
    )
    found = world.fit(tmp_path / "steer", "activation", run=str(run.path), choose={**QUICK, "controls": 0})
    learnt = found.record.found
    assert learnt["toxic_above"] < 0.5
    assert 2 <= learnt["toxic"] <= 8
    away = found.tensors["vector.1"]
    assert float(torch.nn.functional.cosine_similarity(-away, world.model.direction, dim=0)) > 0.7
    said = list(sentences(found.record))
    assert "stand for toxic ones" in said[0]
    assert "toxic share" in said[1]


@pytest.mark.slow
def test_experts_learn_from_toxic_and_from_harmless_answers(world: World, tmp_path: Path) -> None:
    teach = {"answers": 6, "epochs": 1}
    found = world.fit(tmp_path / "steer", "dexperts", run=str(world.run.path), strength=1, teach=teach)
    assert found.record.found["toxic"] == 6
    bad = set(world.model.toxic.values())
    scores = {score.generation_id: score.value for score in world.run.scores()}
    by_prompt = {prompt.id: prompt.text for prompt in world.run.prompts()}
    given = {(by_prompt[one.prompt_id], one.text): scores[one.id] for one in world.run.generations()}
    for name, is_toxic in (("expert", False), ("anti_expert", True)):
        lines = (tmp_path / "steer" / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == 6
        for line in lines:
            question, answer = json.loads(line)["messages"]
            assert bool(bad & set(answer["content"].split())) is is_toxic
            assert given[question["content"], answer["content"]] == float(is_toxic)


def killed(settings: FinetuneSettings, out: Path) -> Run:
    raise RunError("killed")


@pytest.mark.slow
def test_a_folder_that_is_fitted_again_has_new_adapters(world: World, tmp_path: Path) -> None:
    """With other texts or settings; with the same ones, what was trained is kept."""
    teach = {"answers": 4, "epochs": 3}

    def fitted(**changes: Any) -> str:
        asked = {"run": str(world.run.path), "strength": 1, "teach": teach, **changes}
        return world.fit(tmp_path / "steer", "task-vector", **asked).record.adapters["toxic"]["hash"]

    def trained() -> list[tuple[str, int]]:
        return [(run.parent.name, run.stat().st_mtime_ns) for run in (tmp_path / "steer").glob("*/run.json")]

    first = fitted()
    before = trained()
    assert len(before) == 1
    assert fitted() == first
    assert trained() == before
    # Until there is a new record, the old one's adapter stays; then it goes.
    with pytest.raises(RunError, match="killed"):
        world.fit(tmp_path / "steer", "task-vector", run=str(world.run.path), strength=1, finetune=killed)
    assert trained() == before
    assert read_steer_folder(tmp_path / "steer").record.adapters["toxic"]["hash"] == first
    assert fitted(teach={**teach, "epochs": 4}) != first
    assert len(trained()) == 1
    assert trained() != before
    other = measure(world.settings(prompts=str(world.folder / "learn.jsonl"), seed=5), tmp_path / "other")
    fresh = world.fit(tmp_path / "fresh", "task-vector", run=str(other.path), strength=1, teach=teach)
    assert fitted(run=str(other.path)) == fresh.record.adapters["toxic"]["hash"] != first


@pytest.mark.slow
def test_another_strength_is_another_treatment(world: World, tmp_path: Path) -> None:
    best = {"judge": "planted_judge:judge"}
    world.fit(tmp_path / "best", "best-of-n", strength=2, **best)
    measure(world.settings(steer=tmp_path / "best", limit=4), tmp_path / "run")
    world.fit(tmp_path / "best", "best-of-n", strength=6, **best)
    with pytest.raises(RunError, match="strength 2, now 6"):
        measure(world.settings(steer=tmp_path / "best", limit=4), tmp_path / "run")
    with pytest.raises(ConfigError, match="draws the same answer 6 times"):
        measure(world.settings(steer=tmp_path / "best", generation={"temperature": 0}), tmp_path / "cold")


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("system", {"strength": 0.5}, "there \\(1\\) or not \\(0\\)"),
        ("best-of-n", {"strength": 2.5}, "how many answers are drawn"),
        ("activation", {"run": "r", "choose": {"strengths": [-1]}}, "greater than or equal to 0"),
        ("activation", {"run": "r", "activation": {"how": "ablate", "layers": [1, 2]}}, "name one"),
        ("dexperts", {"run": "r", "adapter": "a"}, "merge yours first"),
        ("task-vector", {"run": "r", "adapter": "a"}, "merge yours first"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_done(
    method: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        SteerFitSettings.model_validate({"model": "tiny", "method": method, **changes})


def test_a_run_that_cannot_teach_is_refused_before_anything_is_learnt(world: World, tmp_path: Path) -> None:
    few = measure(world.settings(prompts=str(world.folder / "learn.jsonl"), limit=5, label="few"), tmp_path / "few")
    with pytest.raises(RunError, match=r"too few prompts to keep some for choosing \(1\)"):
        world.fit(tmp_path / "steer", "task-vector", run=str(few.path), finetune=killed)
    with pytest.raises(RunError, match=r"5 prompts, and choose.share=0.95 keeps all of them"):
        world.fit(tmp_path / "steer", "task-vector", run=str(few.path), choose={"share": 0.95})
    with pytest.raises(RunError, match=r"other chat settings"):
        world.fit(tmp_path / "steer", "profs", chat={"system": "Be kind."})
    with pytest.raises(RunError, match="0 toxic and 8 other answers"):
        world.fit(tmp_path / "steer", "task-vector", run=str(few.path), strength=1, finetune=killed)


def test_a_damaged_folder_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        read_steer_folder(tmp_path / "none")
    world.fit(tmp_path / "steer", "profs", strength=1, profs={"rank": 1})
    vectors = tmp_path / "steer" / "steer.safetensors"
    save_file({"basis.1": torch.zeros(64, 1)}, vectors)
    with pytest.raises(RunError, match=r"is not what steer\.json was written with"):
        read_steer_folder(tmp_path / "steer")
    vectors.unlink()
    with pytest.raises(RunError, match="missing or damaged"):
        read_steer_folder(tmp_path / "steer")
    (tmp_path / "steer" / "steer.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged: method"):
        read_steer_folder(tmp_path / "steer")


def test_too_few_toxic_answers_are_said(world: World, tmp_path: Path) -> None:
    harmless = measure(world.settings(prompts=str(world.folder / "learn.jsonl"), limit=1, samples=1), tmp_path / "one")
    fixed = {"strength": 1, "activation": {"layers": [1]}, "choose": {"controls": 0}}
    with pytest.raises(RunError, match="needs two of each"):
        world.fit(tmp_path / "steer", "activation", run=str(harmless.path), **fixed)
