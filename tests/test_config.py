"""Settings: file, flags and overrides in that order, and one line for whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardlm.config import (
    MEASURE_PRESETS,
    ExperimentSettings,
    FinetuneSettings,
    ImportSettings,
    InterpretSettings,
    MeasureSettings,
    PreferSettings,
    RlafSettings,
    ScoreSettings,
    Section,
    StageFinetune,
    StageMeasure,
    build,
    split_names,
)
from rewardlm.errors import ConfigError
from rewardlm.judges.settings import JudgeTrainSettings


def measure(*overrides: str, **flags: Any) -> MeasureSettings:
    return build(MeasureSettings, flags={"model": "tiny", **flags}, overrides=overrides)


def refused(kind: Any, *overrides: str, file: Path | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as info:
        build(kind, file=file, flags={"model": "tiny", **flags}, overrides=overrides)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("samples: 2\nseed: 3\ngeneration:\n  top_p: 0.5\n  top_k: 7\n")
    got = build(
        MeasureSettings,
        defaults={"model": "tiny", "seed": 1, "part": "train"},
        file=file,
        flags={"samples": 4, "seed": None},
        overrides=["generation.top_p=0.25"],
    )
    assert (got.part, got.seed, got.samples) == ("train", 3, 4)
    assert (got.generation.top_p, got.generation.top_k) == (0.25, 7)


def test_building_changes_no_defaults() -> None:
    defaults = {"model": "tiny", "generation": {"top_p": 0.5}}
    before = json.dumps(defaults)
    build(MeasureSettings, defaults=defaults, overrides=["generation.top_p=0.1", "chat.user=Q:"])
    assert json.dumps(defaults) == before
    assert MeasureSettings(model="tiny").generation.top_p == 1.0


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("learning_rate: 3e-4\nlora: {dropout: 1E-1}\n")
    got = build(FinetuneSettings, file=file, flags={"model": "tiny"}, overrides=["warmup_ratio=1e-2"])
    assert (got.learning_rate, got.lora.dropout, got.warmup_ratio) == (3e-4, 0.1, 0.01)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generation.top_q=0.9", "did you mean 'generation.top_p'"),
        ("sampels=3", "did you mean 'samples'"),
        ("zzz=1", "known: "),
        ("generation.top_p=2", "generation.top_p"),
        ("generation.top_p=", "generation.top_p"),
        ("generation.temperature=-1", "generation.temperature"),
        ("generation.temperature=.nan", "generation.temperature"),
        ("generation.temperature=.inf", "generation.temperature"),
        ("generation=3", "generation"),
        ("generation.top_p.x=1", "generation.top_p"),
        ("samples=0", "samples"),
        ("samples=two", "samples"),
        ("samples=1.5", "samples"),
        ("limit=0", "limit"),
        ("limit=-5", "limit"),
        ("seed=-1", "seed"),
        ("dtype=float64", "dtype"),
        ("load=2bit", "load"),
        ("part=test", "part"),
        ("scorer=[]", "at least one"),
        ("scorer=[a,b,a]", "named twice: a"),
        ("max_failed_share=1.5", "max_failed_share"),
        ("engine=vllm", "engine"),
        ("url=http://x", "url"),
        ("novalue", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("label=[1", "label"),
    ],
)
def test_wrong_overrides_are_one_line(override: str, said: str) -> None:
    if override == "label=[1":  # Not YAML, so it is the text itself.
        assert measure(override).label == "[1"
        return
    assert said in refused(MeasureSettings, override)


def test_an_override_below_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="'model' is a value"):
        build(MeasureSettings, flags={"model": "tiny"}, overrides=["model.x=1"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1: not YAML"),
        ("- 1\n- 2\n", "got list"),
        ("just text", "got str"),
        ("1: 2\n", ""),
        ("samples: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("model: \x07\n", "not YAML"),
        ("generation:\n  topp: 1\n", "generation.topp"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert said in refused(MeasureSettings, file=file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in refused(MeasureSettings, file=tmp_path / "none.yaml")
    assert "directory" in refused(MeasureSettings, file=tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(MeasureSettings, file=tmp_path / "x.yaml")
    assert refused(MeasureSettings, file=tmp_path / "x.yaml" / "below")


def test_a_file_that_holds_itself(tmp_path: Path) -> None:
    file = tmp_path / "loop.yaml"
    file.write_text("generation: &a\n  top_p: *a\n")
    refused(MeasureSettings, file=file)


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("# nothing\n")
    assert build(MeasureSettings, file=tmp_path / "e.yaml", flags={"model": "tiny"}).model == "tiny"


def test_the_model_is_missing() -> None:
    with pytest.raises(ConfigError, match="'model' is missing"):
        build(MeasureSettings)


def test_a_text_may_end_with_a_colon() -> None:
    got = measure("chat.user=<human>:", "chat.system=Rules: be kind", "generation={top_p: 0.5}")
    assert (got.chat.user, got.chat.system, got.generation.top_p) == ("<human>:", "Rules: be kind", 0.5)


def test_names_of_judges_are_split_outside_brackets() -> None:
    assert split_names(["a, mean(b,max(c,d)) ,e#f", "g"]) == ["a", "mean(b,max(c,d))", "e#f", "g"]
    assert measure(scorer="lexical,mean(lexical,lexical2)").scorer == ["lexical", "mean(lexical,lexical2)"]
    assert measure("scorer=[lexical, lexical2]").scorer == ["lexical", "lexical2"]
    assert measure("scorer=lexical2").scorer == ["lexical2"]


@pytest.mark.parametrize("names", ["", ",", "a,", "a,,b", "mean(a,b", "mean(a,b))", ")a(", "a,mean(b,c"])
def test_a_list_of_names_that_is_no_list_is_refused_in_any_command(names: str) -> None:
    assert f"can't read the list {names!r}" in refused(MeasureSettings, scorer=names)
    assert f"can't read the list {names!r}" in refused(RlafSettings, reward=names)
    with pytest.raises(ConfigError, match="can't read the list"):
        build(ScoreSettings, flags={"scorer": names})


def test_lora_settings_beside_an_adapter_are_refused_where_they_were_given(tmp_path: Path) -> None:
    for kind in (FinetuneSettings, RlafSettings):
        # Also where the number is the default's: the adapter's own rank may be another.
        for override in ("lora.r=4", "lora.r=16", "lora.targets=[q_proj]"):
            said = refused(kind, override, adapter=tmp_path / "FT")
            assert "--lora-r" in said
            assert "FT" in said
        assert build(kind, flags={"model": "tiny", "adapter": tmp_path}).adapter == tmp_path
        assert build(kind, flags={"model": "tiny", "lora.r": 4}).lora.r == 4


def test_values_are_not_clipped_unless_a_distance_is_given() -> None:
    assert RlafSettings(model="tiny").value_clip_range is None
    assert build(RlafSettings, flags={"model": "tiny"}, overrides=["value_clip_range=0.2"]).value_clip_range == 0.2
    assert "value_clip_range" in refused(RlafSettings, "value_clip_range=0")


def test_what_may_stop_a_run_is_a_name_or_a_list_of_them() -> None:
    for override in ("stop_on=entropy_collapse", "stop_on=[entropy_collapse]"):
        assert build(RlafSettings, flags={"model": "tiny"}, overrides=[override]).stop_on == ["entropy_collapse"]
    assert "stop_on" in refused(RlafSettings, "stop_on=[boredom]")
    said = refused(MeasureSettings, "suite=utility", "utility.tasks=[over-refusal]")
    assert "did you mean 'over_refusal'" in said
    assert "'hellaswag', 'piqa'" in said


def test_columns_of_an_import_by_every_way(tmp_path: Path) -> None:
    wanted = {"prompt": "q", "scores.a": "x", "scores.b.c": "y"}
    file = tmp_path / "i.yaml"
    file.write_text("label: PT\nmap: {prompt: q, scores.a: x, scores: {b.c: y}}\n")
    assert build(ImportSettings, file=file).map == wanted
    assert build(ImportSettings, flags={"label": "PT", "map": wanted}).map == wanted
    overrides = ["map.prompt=q", "map.scores.a=x", "map.scores.b.c=y"]
    assert build(ImportSettings, flags={"label": "PT"}, overrides=overrides).map == wanted


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm=grpo", "batch_size=10"], "divisible by samples 4"),
        (["algorithm=rloo", "samples=1"], "at least 2"),
        (["algorithm=ppo", "gamma=0.99"], "set what it earns (rewards.empty)"),
        (["batch_size=2", "minibatches=3"], "batch_size 2 can't be cut into 3 minibatches"),
        (["generation.temperature=0"], "set it above 0"),
        (["algorithm=dpo"], "expected one of ppo, grpo, dr_grpo, rloo, or module:function"),
        (["algorithm=dr_grpo", "samples=1"], "at least 2"),
        (["algorithm=grpo", "critic=own"], "grpo has no critic"),
        (["algorithm=rloo", "loss_type=dapo"], "leave one of the two out"),
        (["reward=lexical", "rewards.weights.starter=2"], "rewards.weights names starter, but the reward is lexical"),
        (["reward=lexical", "rewards.weights.lexical=0"], "no judge with a weight"),
        (["ratio=answer"], "ppo's differ by token: use rloo"),
        (["kl.coef=0", "kl.target=6"], "begin with a coefficient over 0"),
        (["similarity.target=0.2", "rewards.terms.similarity=0"], "begin with a weight over 0"),
        (["similarity.target=0.2", "reward=my:judge"], "begin with a weight over 0"),
        (["similarity.target=1"], "similarity.target"),
        (["similarity.target=0.3"], "raise that above the target"),
        (["similarity.target=0.5", "rewards.terms.similarity_enough=0.4"], "above 0.4"),
        (["rewards.probe.toxic=[a]"], "rewards.probe.benign"),
        (["kl.penalty=k2"], "kl.penalty"),
        (["value_coef=0.5"], "unknown setting 'value_coef'"),
        (["trackers=[mlflow]"], "trackers"),
        (["importance_cap=0.5"], "importance_cap"),
        (["kl.coef=-1"], "kl.coef"),
        (["kl.max=.inf"], "kl.max"),
        (["learning_rate=0"], "learning_rate"),
        (["learning_rate=.inf"], "learning_rate"),
    ],
)
def test_rl_settings_that_do_not_fit(overrides: list[str], said: str) -> None:
    assert said in refused(RlafSettings, *overrides)


@pytest.mark.parametrize(
    ("overrides", "critic", "weights", "ratio", "penalty"),
    [
        ([], "trunk", "bnpo", "token", "k1"),
        (["critic=own"], "own", "bnpo", "token", "k1"),
        (["kl.penalty=full"], "trunk", "bnpo", "token", "full"),
        (["algorithm=grpo"], None, "dapo", "token", "k3"),
        (["algorithm=grpo", "loss_type=grpo"], None, "grpo", "token", "k3"),
        (["algorithm=grpo", "kl.penalty=k1"], None, "dapo", "token", "k1"),
        (["algorithm=dr_grpo", "kl.coef=0.1"], None, "dr_grpo", "token", "k3"),
        (["algorithm=rloo"], None, "answers", "answer", "k1"),
        (["algorithm=rloo", "ratio=token"], None, "dapo", "token", "k1"),
        (["algorithm=mine:own"], None, "dapo", "token", "k3"),
        (["algorithm=mine:own", "critic=trunk"], "trunk", "dapo", "token", "k3"),
    ],
)
def test_what_an_algorithm_brings_unless_told_otherwise(overrides, critic, weights, ratio, penalty) -> None:
    found = build(RlafSettings, flags={"model": "tiny"}, overrides=overrides)
    assert (found.critic_kind, found.token_weights, found.ratio_of) == (critic, weights, ratio)
    assert found.kl_penalty == found.resolved().kl.penalty == penalty
    # What is recorded is what was asked for, said in full.
    if found.kl.coef is not None:
        assert found.resolved().kl.coef == found.kl.coef
    assert found.resolved().resolved() == found.resolved()
    # What a run records is the same choice, spelt out.
    recorded = found.resolved()
    assert (recorded.critic, recorded.ratio) == (critic, ratio)
    assert recorded.loss_type == (None if ratio == "answer" else weights)
    assert recorded.resolved() == recorded


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 4, 1e-3)),
        ({"algorithm": "grpo"}, (1, 4, 1e-3)),
        ({"batch_size": 1}, (1, 1, 1e-3)),
        ({"batch_size": 3}, (1, 3, 1e-3)),
        ({"batch_size": 5}, (1, 4, 1e-3)),
        ({"batch_size": 2, "minibatches": 1}, (1, 1, 1e-3)),
        ({"algorithm": "rloo"}, (1, 1, 1e-3)),
        ({"algorithm": "rloo", "ratio": "token"}, (1, 4, 1e-3)),
        ({"algorithm": "my:estimator", "ratio": "answer"}, (1, 1, 1e-3)),
        ({"algorithm": "rloo", "minibatches": 4}, (1, 4, 1e-3)),
        ({"algorithm": "rloo", "learning_rate": 1e-5}, (1, 1, 1e-5)),
    ],
)
def test_whole_answers_get_one_update_unless_more_are_asked_for(settings, expected) -> None:
    found = RlafSettings(model="tiny", **settings)
    assert (found.ppo_epochs, found.minibatches, found.learning_rate) == expected
    # As a run records them, and reads them back.
    again = RlafSettings(**found.resolved().model_dump())
    assert (again.ppo_epochs, again.minibatches, again.learning_rate) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("logit", 2.0, 8.0, 2.0, 0.2)),
        ({"reward": ["starter", "mine:f"]}, ("logit", 2.0, 8.0, 2.0, 0.2)),
        ({"algorithm": "grpo"}, ("logit", 2.0, 8.0, 2.0, 0.2)),
        # What a function of the user's is about nobody knows; its values needn't be probabilities.
        ({"reward": ["mine:f", "mine:g"]}, ("probability", 0.0, 0.0, 0.0, 0.05)),
        ({"reward": ["mine:f"], "rewards": {"terms": {"similarity": 1}}}, ("probability", 0.0, 1.0, 0.0, 0.05)),
        ({"reward": ["mine:f"], "rewards": {"transform": "logit"}}, ("logit", 0.0, 0.0, 0.0, 0.2)),
        ({"rewards": {"terms": {"similarity": 0}}}, ("logit", 2.0, 0.0, 2.0, 0.2)),
        ({"rewards": {"terms": {"refusal": 0}}}, ("logit", 0.0, 8.0, 2.0, 0.2)),
        ({"rewards": {"transform": "probability"}}, ("probability", 2.0, 8.0, 2.0, 0.05)),
        ({"kl": {"coef": 0.0}}, ("logit", 2.0, 8.0, 2.0, 0.0)),
    ],
)
def test_what_is_paid_besides_harmlessness_by_who_judges(given, expected) -> None:
    found = RlafSettings(model="tiny", **given)
    paid, kl = found.reward_settings, found.kl_settings
    weights = (paid.terms.refusal, paid.terms.similarity, paid.terms.counter_narrative)
    assert (paid.transform, *weights, kl.coef) == expected
    recorded = RlafSettings(**found.resolved().model_dump())
    assert recorded.resolved() == recorded
    assert recorded.rewards == paid
    assert recorded.kl == kl


@pytest.mark.parametrize(
    ("kind", "given", "enough"),
    [
        (RlafSettings, {}, 0.3),
        (RlafSettings, {"rewards": {"terms": {"similarity": 10, "similarity_enough": 1}}}, 1.0),
        (RlafSettings, {"reward": ["mine:f"], "rewards": {"terms": {"similarity": 1}}}, 1.0),
        (RlafSettings, {"reward": ["mine:f"], "rewards": {"terms": {"similarity_enough": 0.2}}}, 0.2),
        (PreferSettings, {}, 1.0),
        (PreferSettings, {"rewards": {"terms": {"similarity_enough": 0.5}}}, 0.5),
    ],
)
def test_above_what_similarity_no_more_is_paid(kind, given, enough) -> None:
    found = kind(model="tiny", **given).resolved()
    assert found.rewards.terms.similarity_enough == enough
    assert kind(**found.model_dump()).resolved() == found


def test_an_experiments_fine_tuning_learns_own_answers_unless_the_model_is_divided() -> None:
    assert StageFinetune(model="tiny").replay.share == 0.15
    assert (StageFinetune(model="tiny").retain_coef, FinetuneSettings(model="tiny").retain_coef) == (4, 0)
    assert StageFinetune(model="tiny", replay={"samples": 2}).replay.share == 0.15
    assert StageFinetune(model="tiny", shard=True).replay.share == 0
    assert "divides it" in refused(StageFinetune, "shard=true", "replay.share=0.1")


@pytest.mark.parametrize(("algorithm", "samples"), [("ppo", 1), ("grpo", 4), ("dr_grpo", 4), ("rloo", 4)])
def test_samples_a_prompt_by_algorithm(algorithm: str, samples: int) -> None:
    assert build(RlafSettings, flags={"model": "tiny", "algorithm": algorithm}).samples_per_prompt == samples


def test_settings_do_not_change_after_checking() -> None:
    with pytest.raises(ValueError, match="frozen"):
        measure().samples = 5


@pytest.mark.parametrize("kind", [MeasureSettings, FinetuneSettings, RlafSettings, ExperimentSettings])
def test_settings_go_through_json(kind: Any) -> None:
    settings = kind(model="tiny")
    assert kind.model_validate(json.loads(json.dumps(settings.model_dump(mode="json"), allow_nan=False))) == settings


def test_an_experiment_shares_what_stands_at_its_top() -> None:
    got = ExperimentSettings(model="tiny", seed=5, dtype="float32").common()
    assert {**got, "chat": None, "quantisation": None} == {
        "model": "tiny", "seed": 5, "dtype": "float32", "load": None, "device": "auto", "chat": None,
        "quantisation": None,
    }  # fmt: skip


def test_interprets_one_judge_is_a_name_and_no_list() -> None:
    """``interpret --scorer lexical`` was refused: "should be a valid string, got ['lexical']"."""
    assert InterpretSettings(scorer="lexical").scorer == "lexical"
    assert MeasureSettings(model="tiny", scorer="lexical").scorer == ["lexical"]


def test_every_setting_says_what_it_means() -> None:
    def classes(kind: type[Section]) -> Iterator[type[Section]]:
        yield kind
        for below in kind.__subclasses__():
            yield from classes(below)

    assert JudgeTrainSettings in classes(Section)  # settings outside of config count too
    fields = [(kind.__name__, *item) for kind in classes(Section) for item in kind.model_fields.items()]
    assert len(fields) > 200
    for where, name, field in fields:
        said = field.description or ""
        assert said.endswith("."), (where, name)
        assert 10 <= len(said) <= 250, (where, name)
        assert "\n" not in said, (where, name)


def test_an_experiments_measurement_has_the_defaults_of_the_command():
    command = MeasureSettings.model_fields
    for name, field in StageMeasure.model_fields.items():
        assert field.get_default() == command[name].get_default(), name


def test_what_is_trained_by_default_is_as_long_as_what_is_measured():
    defaults = {kind.model_fields["max_new_tokens"].get_default() for kind in (MeasureSettings, RlafSettings)}
    assert defaults == {128}
    # Whole answers in every preset but the one whose protocol is 20 tokens.
    presets = {name: preset["max_new_tokens"] for name, preset in MEASURE_PRESETS.items()}
    assert presets == {"rtp-paper": 20, "chat": 128, "quick": 128}


EXPERIMENT = """\
model: tiny
seed: -1
measure:
  limit: 0
  sampels: 3
  generation: {top_p: 3}
finetune:
  epoch: 1
rlaf:
  algorithm: grpo
  kl:
    coeff: 2
interpret:
  attribution: {method: lime}
"""


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT)
    with pytest.raises(ConfigError) as info:
        build(ExperimentSettings, base=file, overrides=["measure.samples=0", "nonsense"])
    told = dict(line.split(": ", 1) for line in info.value.problems)
    assert list(told) == [
        "override 'nonsense'",
        "setting 'measure.samples' is 0",
        *(f"{file}, line {number}" for number in (2, 4, 5, 6, 8, 12, 14)),
    ]
    assert told["setting 'measure.samples' is 0"] == "expected a whole number, at least 1, at most 100000"
    assert told[f"{file}, line 2"] == "setting 'seed' is -1: expected a whole number, at least 0"
    assert told[f"{file}, line 4"] == "setting 'measure.limit' is 0: expected a whole number, at least 1, or null"
    assert told[f"{file}, line 5"] == "unknown setting 'measure.sampels': did you mean 'measure.samples'?"
    assert told[f"{file}, line 6"].endswith("top_p' is 3: expected a number, over 0, at most 1")
    assert told[f"{file}, line 8"] == "unknown setting 'finetune.epoch': did you mean 'finetune.epochs'?"
    assert told[f"{file}, line 12"] == "unknown setting 'rlaf.kl.coeff': did you mean 'rlaf.kl.coef'?"
    assert "setting 'interpret.attribution.method' is 'lime': expected" in told[f"{file}, line 14"]
    assert info.value.summary == "9 settings are wrong"
    assert "\n" not in str(info.value)
    assert all(problem in str(info.value) for problem in info.value.problems)


def test_a_rule_between_settings_of_a_stage_is_told_with_the_others(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("model: tiny\nfinetune: {epochs: 0}\nrlaf:\n  algorithm: grpo\n  batch_size: 3\n")
    with pytest.raises(ConfigError) as info:
        build(ExperimentSettings, base=file)
    first, second = info.value.problems
    assert first.startswith(f"{file}, line 2: setting 'finetune.epochs' is 0")
    assert second.startswith(f"{file}, line 3: setting 'rlaf': ")
    assert "divisible by samples" in second


def test_a_mistake_is_placed_where_it_was_made_last(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("model: tiny\nlimit: 0\n")
    assert f"{file}, line 2: setting 'limit' is 0" in refused(MeasureSettings, file=file)
    # What is typed wins, and then the file's own mistake is none.
    said = refused(MeasureSettings, "limit=-1", file=file)
    assert str(file) not in said
    assert "'limit' is -1" in said
    assert build(MeasureSettings, file=file, overrides=["limit=3"]).limit == 3


def test_a_key_that_stands_twice_is_no_accident_that_goes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("model: tiny\nlimit: 1\ngeneration:\n  top_p: 1\n  top_p: 0.5\nlimit: 2\n")
    with pytest.raises(ConfigError) as info:
        build(MeasureSettings, file=file)
    assert info.value.problems == (
        f"{file}, line 5: 'generation.top_p' appears twice (also line 4): keep one of them",
        f"{file}, line 6: 'limit' appears twice (also line 2): keep one of them",
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("top_p=0.9", "did you mean 'generation.top_p'"),
        ("generation.tempreature=1", "did you mean 'generation.temperature'"),
        ("max_tokens=5", "did you mean 'max_new_tokens'"),
        ("judges=lexical", "did you mean 'scorer'"),
        ("similarity=perhaps", "setting 'similarity' is 'perhaps': expected true or false"),
        ("generation=3", "setting 'generation' is 3: expected a section with settings of its own"),
        ("scorer=3", "setting 'scorer' is 3: expected a list of texts"),
        ("generation.top_k=0.5", "is 0.5: expected a whole number, at least 0"),
        ("dtype=float23", "did you mean 'float32'"),
    ],
)
def test_what_is_wrong_is_said_in_words_of_our_own(override: str, said: str) -> None:
    found = refused(MeasureSettings, override)
    assert said in found
    assert not [words for words in ("nput should", "Value error", "xtra inputs", "unable to parse") if words in found]


def test_a_key_that_was_given_wrongly_is_not_repeated() -> None:
    for override in ("services.perspective.key=[sesame]", "services.endpoint.url=sesame", "server.key=[sesame]"):
        assert "sesame" not in refused(MeasureSettings, override)


def test_an_experiments_measurement_has_the_bounds_of_the_command() -> None:
    """Whatever its defaults are."""
    for override in ("samples=0", "limit=0", "max_new_tokens=0", "batch_tokens=0", "max_failed_share=2"):
        told = refused(MeasureSettings, override)
        key = override.partition("=")[0]
        assert refused(ExperimentSettings, f"measure.{override}") == told.replace(f"'{key}'", f"'measure.{key}'")
