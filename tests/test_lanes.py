"""The two lanes of tests: `make check` runs those that are not marked slow, `make test` and .ci/run run all.

What is asked of a whole lane is asked of a run of the whole suite alone: of one file it says nothing.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import rewardlm

ROOT = Path(__file__).parents[1]
SOURCE = Path(rewardlm.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = sorted(file.parent.name for file in SOURCE.glob("*/__init__.py"))


def where_tested(package: str) -> tuple[Path, Path]:
    """The folder or the file that holds a package's tests."""
    return ROOT / "tests" / package, ROOT / "tests" / f"test_{package}.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_fast_tests(package: str, request: pytest.FixtureRequest) -> None:
    asked = [Path(one).name for one in request.config.args]
    if asked != PROJECT["tool"]["pytest"]["ini_options"]["testpaths"] or request.config.option.keyword:
        pytest.skip("only some tests were asked for")
    folder, file = where_tested(package)
    own = [item for item in request.session.items if item.path == file or folder in item.path.parents]
    fast = [item for item in own if item.get_closest_marker("slow") is None]
    assert len(fast) >= 10, f"{package} has {len(own)} tests here, of which {len(fast)} are fast"


def test_no_lane_but_make_check_leaves_tests_out() -> None:
    """Then a test that is marked slow can't be lost."""
    options = PROJECT["tool"]["pytest"]["ini_options"]
    assert not re.search(r"(^|\s)(-m|-k|--ignore|--deselect)", options["addopts"])
    assert options["testpaths"] == ["tests"]
    said = {target: commands_of(target) for target in ("test", "check")}
    (everything,) = [line for line in said["test"] if "pytest" in line]
    (fast,) = [line for line in said["check"] if "pytest" in line]
    assert everything.split("pytest ")[1] == "-n 2 --dist loadfile --no-loadscope-reorder"
    assert fast == f'{everything} -m "not slow"'
    assert said["check"][:-1] == commands_of("lint")
    runs = [line.split()[1:] for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines() if line[:5] == "make "]
    assert sorted(word for words in runs for word in words if word[0] != "-") == ["dist", "lint", "test"]
    assert {word for words in runs for word in words if word[0] == "-"} <= {"-j2", "--output-sync=target"}


def commands_of(target: str) -> list[str]:
    """What `make` would run for ``target``, without the set-up."""
    asked = ["make", "-n", "-o", ".venv/installed", target]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    return [line for line in done.stdout.splitlines() if not line.startswith("make")]


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_named() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]
    tried = job["strategy"]["matrix"]["python"]
    named = [line.rpartition(" :: ")[2] for line in PROJECT["project"]["classifiers"] if "Python :: 3." in line]
    assert tried == named
    assert PROJECT["project"]["requires-python"] == f">={tried[0]}"


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (own,) = [repo["hooks"] for repo in config["repos"] if repo["repo"] == "local"]
    entries = [re.sub(r" --(fix|force-exclude)", "", hook["entry"]) for hook in own]
    for entry, command in zip(entries, commands_of("lint"), strict=True):
        assert command.startswith(entry), (entry, command)
