"""The small diffs of ARCHITECTURE.md, each applied to a copy of the source and then used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewardlm

SOURCE = Path(rewardlm.__file__).parent
ROOT = Path(__file__).parents[1]


def diffs() -> dict[str, str]:
    """The diffs under "Extending it", by the heading over each."""
    chapter = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("\n## Extending it\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^### (.+?)\n.*?^```diff\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


def apply(diff: str, package: Path) -> None:
    """Put each ``+++ path`` stretch of ``diff`` into the copy, where its other lines must stand exactly once."""
    for path, body in re.findall(r"^\+\+\+ src/rewardlm/(.+?)\n(.*?)(?=^\+\+\+|\Z)", diff, re.MULTILINE | re.DOTALL):
        file = package / path
        for hunk in re.split(r"^…\n", body, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            if old:
                text = file.read_text("utf-8")
                assert text.count(old) == 1, f"{path} holds this {text.count(old)} times, expected once:\n{old}"
                new = text.replace(old, new)
            else:
                assert not file.exists(), f"{path} is there already"
            file.unlink(missing_ok=True)  # a link to the source
            file.write_text(new, "utf-8")


TABLE = """
from pathlib import Path
from rewardlm.measuring.compare import compare
from rewardlm.measuring.imported import import_table
Path("table.csv").write_text("prompt,response,scores.x\\na,b,0.1\\nc,d,0.4\\ne,f,0.9\\n")
import_table(Path("table.csv"), Path(RUN), label="PT")
found = compare([Path(RUN)])
"""
# What a stranger would do with each.
USE = {
    "A new judge": """
import rewardlm as rl
assert rl.score(["HALF half"], judge="capitals") == [4 / 9]
assert rl.score(["AA"], judge="max(capitals,lexical)") == [1.0]
""",
    "A new advantage estimator": """
from dataclasses import fields
import torch
from rewardlm.config import RlafSettings, build
from rewardlm.training.advantages import Feedback, load_estimator
settings = build(RlafSettings, flags={"model": "tiny", "algorithm": "reinforce", "reward": "capitals", "steps": 1})
parts = dict.fromkeys((field.name for field in fields(Feedback)), None)
parts.update(rewards=torch.tensor([1.0, 3.0]), mask=torch.tensor([[True, False], [True, True]]))
advantages, returns = load_estimator(settings.algorithm)(Feedback(**parts))
assert advantages[0, 0] == -1
assert advantages[1].tolist() == [1, 1]
assert returns is None
""",
    "A new metric": TABLE.replace("RUN", "'metric'")
    + """
assert found.models[0].scorers["x"]["all"].median == 0.4
assert found.to_dict()["models"][0]["scorers"]["x"]["all"]["median"] == 0.4
""",
    "A new audit": TABLE.replace("RUN", "'audit'")
    + """
import rewardlm as rl
assert "few_prompts" in {warning.code for warning in found.warnings}
rl.report(["audit"], out="page.html")
assert "Few prompts were measured" in Path("page.html").read_text("utf-8")
""",
    "A new data set": """
from rewardlm.data.prompts import load_prompts
assert [prompt.text for prompt in load_prompts("proverbs").prompts] == ["A bird in the hand is worth", "Too many cooks"]
""",
    "A new flag": """
import contextlib, io, sys
from rewardlm.cli.app import main
sys.argv = ["rewardlm", "rlaf", "--help"]
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main()
assert "--clip-range" in said.getvalue()
""",
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which all diffs were applied; weights and texts are links."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(SOURCE, folder / "rewardlm", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
    for diff in diffs().values():
        apply(diff, folder / "rewardlm")
    return folder


def test_each_kind_of_extension_is_shown() -> None:
    assert set(diffs()) == set(USE)


@pytest.mark.parametrize("heading", USE)
def test_the_diff_of_architecture_works(extended: Path, heading: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    done = subprocess.run(
        [sys.executable, "-c", USE[heading]], cwd=extended, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
