"""The commands of docs/own-data.md, run in the page's order in an empty folder, on a small model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from command_line import Shell

import rewardlm as rl
from rewardlm.config import ExperimentSettings, validate
from rewardlm.runs import Run

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text("utf-8")
BLOCKS = re.findall(r"(<!-- not run: .*? -->\n)?^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# A small model, short answers, and none of the judges that only describe answers.
SMALL = {
    "measure": ["max_new_tokens=4", "counter_narrative=null", "similarity=false", "perplexity=false"],
    "finetune": ["validation=0"],
    "merge": [],
    "judge": ["n_resamples=100", "speed=false"],
}


@pytest.mark.slow
def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(monkeypatch, capsys)
    commands = 0
    for left_out, language, code in BLOCKS:
        if left_out:
            continue
        if language == "bash":
            for name, content in re.findall(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF$", code, re.MULTILINE | re.DOTALL):
                Path(name).write_text(content)
            for line in re.findall(r"^rewardlm .+$", code, re.MULTILINE):
                words = ["tiny" if word == "smollm2-135m" else word for word in shlex.split(line)[1:]]
                if words[0] == "measure" and "--scorer" not in words:
                    words += ["--scorer", "lexical"]
                done = shell(*words, *SMALL[words[0]])
                assert done.code == 0, (line, done.err)
                commands += 1
        elif language == "python":
            exec(code, {})
            assert capsys.readouterr().out == "[1.0, 0.0]\n"
        else:
            assert validate(ExperimentSettings, yaml.safe_load(code)).measure.text_column == "Question (English)"
    assert commands == sum(
        code.count("\nrewardlm ") + code.startswith("rewardlm ") for skip, _, code in BLOCKS if not skip
    )
    assert [prompt.text for prompt in Run.open(tmp_path / "runs/questions").prompts()] == [
        "Who gave you the right to speak?",
        "Are women worse drivers?",
    ]
    assert Run.open(tmp_path / "runs/dialogues").meta["dialogues"]["pairs"] == 3
    scores = [one for one in Run.open(tmp_path / "runs/judged").read("scores") if one["scorer"] == "my_judge:insults"]
    judged = [one["value"] for one in scores]
    assert len(judged) == 3
    assert set(judged) <= {0.0, 1.0}


def test_the_judge_of_the_page_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"^cat > my_judge.py <<'EOF'\n(.*?)^EOF$", PAGE, re.MULTILINE | re.DOTALL)
    Path("my_judge_too.py").write_text(code)
    assert rl.score(["Stupid!", "Fine."], judge="my_judge_too:insults") == [1.0, 0.0]
