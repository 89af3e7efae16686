"""Settings are one thing in five places: the flags, ``--help``, ``settings``, ``init`` and docs/settings.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Shell
from pydantic import SecretStr

from rewardlm import experiment
from rewardlm.cli import flags
from rewardlm.cli.app import app
from rewardlm.cli.commands import with_settings
from rewardlm.config import ExperimentSettings, RlafSettings, Section, build, flatten
from rewardlm.errors import ConfigError

KINDS = with_settings()
ROOT = Path(__file__).parents[2]
# What a command can't do without, besides its settings.
ARGUMENTS = {
    "demo": [], "run": ["e.yaml"], "measure": ["tiny", "--out", "o"], "score": ["run"],
    "import": ["t.csv", "--out", "o"], "export": ["run", "--out", "t.md"], "compare": ["run"],
    "finetune": ["tiny", "--out", "o"], "rlaf": ["tiny", "--out", "o"], "merge": ["tiny", "--out", "o"],
    "prefer": ["tiny", "--out", "o"],
    "judge list": [], "judge train": ["--out", "o"],
    "judge evaluate": ["lexical"], "judge serve": ["lexical"], "judge migrate": ["t.csv", "--out", "o"],
    "judge train-pairs": ["--out", "o"],
    "judge evaluate-pairs": ["starter_pairs"], "interpret": ["run", "--out", "o"], "report": ["run"],
    "steer fit": ["tiny", "--out", "o"], "steer import": ["tiny", "v.gguf", "--out", "o"], "frontier": ["run"],
    "label open": ["run", "--out", "o"], "power": [], "gate": ["run"],
}  # fmt: skip
# And what its settings need; flags win over a file.
NEEDED = {
    "import": "label: X", "score": "scorer: lexical", "judge train": "data: starter", "judge evaluate": "suite: s.csv",
    "gate": "against: b", "judge migrate": "to: lexical", "steer fit": "method: activation\nrun: r",
}  # fmt: skip
# Values that a rule of the command asks for, where any will not do: what is typed, what it becomes, what goes with it.
SPECIAL: dict[str, tuple[str, Any, list[str]]] = {
    "--algorithm": ("grpo", "grpo", []),
    "--method": ("occlusion", "occlusion", []),
    "--map": ("prompt=q,scores.a.b=x", {"prompt": "q", "scores.a.b": "x"}, []),
    "--url": ("http://127.0.0.1:1/v1", SecretStr("http://127.0.0.1:1/v1"), ["engine=openai", "server.url=http://h/v1"]),
    "--engine": ("ray", "ray", []),
    "--batch-size": ("6", 6, []),
    "--tracker": ("wandb", ["wandb"], []),
    "--load": ("4bit", "4bit", []),
    "measure --strength": ("2", 2.0, ["steer=s"]),
    "prefer --method": ("kto", "kto", ["learning_rate=1e-4", "sft_weight=0"]),
    "--adapter-strength": ("2", 2.0, ["adapter=a"]),
    "--correction": ("ppi", "ppi", ["labels=folder"]),
}


class Caught(Exception):
    """Ends a command once its settings are made."""


def listed(shell: Shell, command: str) -> list[dict[str, Any]]:
    done = shell("settings", *command.split(), "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["command"] == command
    assert done.out.count("\n") == 1
    return found["settings"]


def start(kind: type[Section]) -> Section:
    return build(kind, defaults=kind.example)


def at(settings: Any, key: str) -> Any:
    return reduce(getattr, key.split("."), settings)


def sample(command: str, setting: dict[str, Any]) -> tuple[str, Any, list[str]]:
    """Something else than the default."""
    flag, kind, default = setting["flag"], setting["type"], setting["default"]
    if f"{command} {flag}" in SPECIAL:
        return SPECIAL[f"{command} {flag}"]
    if flag in SPECIAL and SPECIAL[flag][0] in (setting["choices"] or [SPECIAL[flag][0]]):
        return SPECIAL[flag]
    if setting["choices"]:
        value = next(choice for choice in setting["choices"] if choice != default)
        return value, value, []
    if kind.startswith("integer"):
        return str((default or 1) + 1), (default or 1) + 1, []
    if kind.startswith("number"):
        return str((default or 1) / 2), (default or 1) / 2, []
    if kind.startswith("list of text"):
        return "a", ["a"], []
    if kind.startswith("path"):
        return "some/where", Path("some/where"), []
    assert kind.startswith("text"), setting
    return "a", "a", []


def test_every_command_with_settings_is_tried() -> None:
    assert ARGUMENTS.keys() == KINDS.keys()


@pytest.mark.parametrize("command", KINDS)
def test_a_flag_reaches_its_setting_and_no_other(
    shell: Shell, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as demo does
    (tmp_path / "e.yaml").write_text("model: tiny\n")
    (tmp_path / "needed.yaml").write_text(NEEDED.get(command, ""))
    original = flags.Given.settings

    def settings(self: Any, *defaults: Any, **arguments: Any) -> None:
        raise Caught(original(self, *defaults, **arguments))

    monkeypatch.setattr(flags.Given, "settings", settings)

    def made(*typed: str) -> Any:
        with pytest.raises(Caught) as end:
            app([*command.split(), *ARGUMENTS[command], "--config", "needed.yaml", *typed], standalone_mode=False)
        return end.value.args[0]

    flagged = [setting for setting in listed(shell, command) if setting["flag"]]
    names = [setting["flag"] for setting in flagged]
    assert len(set(names)) == len(names)
    for setting in flagged:
        key, flag = setting["key"], setting["flag"]
        if setting["type"] == "true or false":
            assert at(made(), key) is False
            assert at(made(flag), key) is True
            continue
        text, value, more = sample(command, setting)
        before, after = made(*more), made(*more, flag, text)
        assert at(after, key) == value, (flag, at(after, key))
        assert at(before, key) != value, flag
        section, _, name = key.rpartition(".")
        # All else is as it was.
        inner = (at(after, section) if section else after).model_copy(update={name: at(before, key)})
        assert (after.model_copy(update={section: inner}) if section else inner) == before, flag


@pytest.mark.parametrize("command", KINDS)
def test_help_shows_the_defaults_and_what_a_setting_means(shell: Shell, command: str) -> None:
    usual = start(KINDS[command]) if command != "score" else KINDS[command].model_construct()
    helped = shell(*command.split(), "--help").out
    chunks = {chunk.split()[0]: "".join(chunk.split()) for chunk in re.split(r"\n  (?=--)", helped)[1:]}
    flagged = [setting for setting in listed(shell, command) if setting["flag"]]
    for setting in flagged:
        chunk = chunks[setting["flag"]]
        assert "".join(setting["description"].split()) in chunk
        shown = re.search(r"\[default:(.*?)\]", chunk)
        if setting["required"]:
            assert shown is None
            continue
        default = at(usual, setting["key"])
        text = ",".join(default) if isinstance(default, list) else str(default)
        assert (shown and shown[1]) == (None if default in (None, [], {}) or default is False else text), setting["key"]


@pytest.mark.parametrize("command", KINDS)
def test_settings_lists_keys_and_defaults_that_the_command_takes(shell: Shell, command: str) -> None:
    kind, usual = KINDS[command], start(KINDS[command])
    found = listed(shell, command)
    keys = [setting["key"] for setting in found]
    assert len(set(keys)) == len(keys)
    assert set(flatten(usual.model_dump())) - set(flatten(kind.example)) <= set(keys)
    stages = ("finetune", "prefer", "prefer_again", "rlaf", "interpret") if kind is ExperimentSettings else ()
    for setting in found:
        key, default = setting["key"], setting["default"]
        if setting["required"]:
            assert kind.example.keys() >= {key}
            with pytest.raises(ConfigError, match=f"'{key}' is missing"):
                build(kind, defaults={name: value for name, value in kind.example.items() if name != key})
        elif key.split(".")[0] not in stages and not key.startswith("rewards.probe.") and key != "scorer":
            given = build(kind, defaults=kind.example, overrides=[f"{key}={json.dumps(default)}"])
            assert at(given, key) == at(build(kind, defaults={**kind.example, "measure": {}}), key) if stages else True
            assert stages or given == usual, key


@pytest.mark.parametrize("command", KINDS)
def test_settings_lists_bounds_and_choices_that_hold(shell: Shell, command: str) -> None:
    kind = KINDS[command]

    def refused(key: str, value: Any) -> None:
        with pytest.raises(ConfigError) as info:
            build(kind, defaults=kind.example, overrides=[f"{key}={json.dumps(value)}"])
        assert f"setting {key!r}" in str(info.value).replace(".0'", "'"), (key, value, str(info.value))

    for setting in listed(shell, command):
        key = setting["key"]
        if kind is ExperimentSettings and key.split(".")[0] in (
            "finetune",
            "prefer",
            "prefer_again",
            "rlaf",
            "interpret",
        ):
            continue
        if "minimum" in setting:
            refused(key, setting["minimum"] - 1)
        if "exclusive_minimum" in setting:
            refused(key, setting["exclusive_minimum"])
        if "maximum" in setting:
            refused(key, setting["maximum"] + 1)
        if "exclusive_maximum" in setting:
            refused(key, setting["exclusive_maximum"])
        if setting["choices"]:
            refused(key, ["nonsense"] if setting["type"].startswith("list") else "nonsense")


def test_settings_of_a_stage_stand_below_it(shell: Shell) -> None:
    found = {setting["key"]: setting for setting in listed(shell, "run")}
    assert found["rlaf.clip_range"]["default"] == 0.2
    assert found["rlaf.kl.coef"]["flag"] is None
    assert {"rlaf.after", "finetune.lora.r", "interpret.inside.strength"} <= found.keys()
    # What stands once at the top does not stand in a stage.
    assert not {"rlaf.model", "finetune.seed", "interpret.device"} & found.keys()


@pytest.mark.parametrize("command", KINDS)
def test_settings_shows_a_table_with_whole_keys(shell: Shell, command: str) -> None:
    done = shell("settings", *command.split())
    assert done.code == 0
    words = set(done.out.split())
    for setting in listed(shell, command):
        assert setting["key"] in words
        assert setting["flag"] in {None, *words}
        assert set(setting["description"].split()) <= words


@pytest.mark.parametrize("named", [[], ["nonsense"], ["doctor"], ["judge"]])
def test_settings_of_no_such_command_name_the_known_ones(shell: Shell, named: list[str]) -> None:
    done = shell.fails("settings", *named)
    assert done.code == 2
    assert "expected one of demo, run, measure" in done.err
    assert "judge evaluate-pairs" in done.err


@pytest.mark.parametrize("command", KINDS)
def test_a_file_to_start_from_is_the_defaults(shell: Shell, command: str, tmp_path: Path) -> None:
    kind, file = KINDS[command], tmp_path / "new.yaml"
    done = shell("init", file, "--command", command)
    assert done.code == 0, done.err
    assert done.out.strip() == str(file)
    tree = yaml.safe_load(file.read_text())
    got, wanted = build(kind, file=file), start(kind)
    stages = dict.fromkeys(("finetune", "prefer", "rlaf", "interpret")) if kind is ExperimentSettings else {}
    assert got.model_copy(update=stages) == wanted.model_copy(update=stages)
    # What is left to a comment, because it depends on others.
    commented = {
        "lora.r", "lora.alpha", "lora.dropout", "lora.targets", "minibatches", "learning_rate", "sft_weight",
    }  # fmt: skip
    left_out = set(flatten(wanted.model_copy(update=stages).model_dump())) - set(flatten(tree)) - stages.keys()
    assert left_out <= (commented if command in ("finetune", "prefer", "rlaf") else set())
    assert all(f"# {key.partition('.')[0]}:" in file.read_text() for key in left_out)


def lines_with_a_value(text: str) -> Iterator[tuple[str, str]]:
    lines = [line.strip() for line in text.splitlines()]
    return ((before, line) for before, line in pairwise(lines) if line and line[0] != "#")


@pytest.mark.parametrize("command", ["run", "rlaf", "judge train"])
def test_a_file_to_start_from_says_what_each_setting_means(shell: Shell, command: str, tmp_path: Path) -> None:
    shell("init", tmp_path / "new.yaml", "--command", command)
    found = list(lines_with_a_value((tmp_path / "new.yaml").read_text()))
    assert len(found) > 30
    assert all(before.startswith("# ") for before, _ in found)


def test_an_experiment_to_start_from_has_every_stage_at_its_defaults(shell: Shell, tmp_path: Path) -> None:
    shell("init", tmp_path / "e.yaml")
    out = tmp_path / "o"
    written = build(ExperimentSettings, file=tmp_path / "e.yaml")
    short = build(
        ExperimentSettings,
        defaults={
            "model": "smollm2-135m", "measure": {"part": "measure"}, "finetune": {}, "rlaf": {"part": "train"},
            "interpret": {},
        },
    )  # fmt: skip
    assert experiment._finetune_settings(written) == experiment._finetune_settings(short)
    assert experiment._rlaf_settings(written, out) == experiment._rlaf_settings(short, out)
    assert experiment._interpret_settings(written) == experiment._interpret_settings(short)
    # Another algorithm still brings its own number of updates, and the adapter to start from its rank.
    other = build(
        ExperimentSettings, file=tmp_path / "e.yaml", overrides=["rlaf.algorithm=rloo", "rlaf.after=finetune"]
    )
    chosen = experiment._rlaf_settings(other, out)
    assert chosen is not None
    assert (chosen.ppo_epochs, chosen.minibatches, chosen.learning_rate) == (1, 1, 1e-3)
    assert chosen.adapter == out / "train" / "FT" / "adapter"


def rl_stage(**rlaf: object) -> RlafSettings:
    given = {"model": "tiny", "measure": {"part": "measure"}, "finetune": {}, "rlaf": {"part": "train", **rlaf}}
    found = experiment._rlaf_settings(build(ExperimentSettings, defaults=given), Path("o"))
    assert found is not None
    return found


def test_ppo_after_another_training_is_gentle_unless_told_otherwise() -> None:
    after = rl_stage()
    assert (after.steps, after.learning_rate, after.kl_settings.coef) == (10, 4e-4, 0.4)
    first = rl_stage(after="base")
    assert (first.steps, first.learning_rate, first.kl_settings.coef) == (30, 1e-3, 0.2)
    told = rl_stage(learning_rate=2e-4, kl={"coef": 0.1, "horizon": 9}, steps=3)
    assert (told.steps, told.learning_rate, told.kl.coef, told.kl.horizon) == (3, 2e-4, 0.1, 9)
    other = rl_stage(algorithm="rloo")
    assert (other.steps, other.learning_rate, other.kl_settings.coef) == (10, 1e-3, 0.2)
    own = rl_stage(reward=["mine:function"])
    assert own.kl_settings.coef == 0.1  # of a probability, not a logit


@pytest.mark.slow
def test_an_experiment_to_start_from_runs(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell("init").out == "experiment.yaml\n"
    done = shell(
        "run", "experiment.yaml", "model=tiny", "measure.limit=4", "measure.max_new_tokens=4", "finetune.limit=4",
        "finetune.max_steps=1", "rlaf.limit=4", "rlaf.steps=1", "rlaf.batch_size=4", "rlaf.max_new_tokens=4",
        "interpret=null", "--out", "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert [model["label"] for model in result["models"]] == ["PT", "FT", "RL"]


def test_init_makes_the_folder_and_says_that_the_model_is_named(shell: Shell, tmp_path: Path) -> None:
    done = shell("init", str(tmp_path / "new" / "x.yaml"), "--command", "rlaf")
    assert done.code == 0
    assert f"next: rewardlm rlaf MODEL --config {tmp_path / 'new' / 'x.yaml'}" in done.err


def test_init_overwrites_nothing(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text("model: mine\n")
    done = shell.fails("init")
    assert done.code == 2
    assert "experiment.yaml exists already: name another FILE" in done.err
    assert (tmp_path / "experiment.yaml").read_text() == "model: mine\n"
    assert shell("init", "--command", "judge train").out == "judge-train.yaml\n"
    assert shell.fails("init", "x.yaml", "--command", "nonsense").code == 2
    assert not (tmp_path / "x.yaml").exists()


def test_the_reference_in_docs_is_what_the_fields_say(shell: Shell) -> None:
    """Where it isn't: write it anew by the command in its first line."""
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == shell("settings", "--markdown").out
