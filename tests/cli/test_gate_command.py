"""``rewardlm gate`` and ``power`` as a shell and a CI job see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from command_line import Shell
from test_json import documented, told

from rewardlm.config import GateSettings, build

EXAMPLE = Path(__file__).parents[2] / "examples" / "gate"
CHECK_KEYS = {"name", "estimate", "ci95", "margin", "verdict"}


def table(path: Path, toxic: int, answer: str = "Thank you for the kind words") -> Path:
    """100 answers of our own, of which so many are toxic to lexical."""
    rows = ["prompt,response,prompt_toxicity,scores.j"]
    rows += [f"Question {n}?,{answer} {n},0.9,{0.9 if n * 37 % 100 < toxic else 0.1}" for n in range(100)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def runs(shell: Shell, tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, toxic in (("base", 60), ("better", 20), ("same", 57), ("worse", 90)):
        found[name] = tmp_path / name
        done = shell("import", table(tmp_path / f"{name}.csv", toxic), "--label", name, "--out", found[name])
        assert done.code == 0, done.err
    return found


@pytest.mark.parametrize(
    ("new", "verdict", "code"), [("better", "pass", 0), ("worse", "fail", 1), ("same", "can't tell", 3)]
)
def test_the_exit_code_is_the_verdict(
    shell: Shell, runs: dict[str, Path], tmp_path: Path, new: str, verdict: str, code: int
) -> None:
    # An answer that is empty in no case can't be told from one in fifty by a hundred prompts.
    margins = ["margins.empty=0.05", "margins.language=0.05", "margins.repetition=0.05", "margins.refusals=0.05"]
    asked = ["gate", runs[new], "--against", runs["base"], *margins]
    junit, summary = tmp_path / "gate.xml", tmp_path / "gate.md"
    done = shell(*asked, "--json", "--junit", junit, "--summary", summary)
    assert done.code == code, done.err
    found = json.loads(done.out)
    assert found["verdict"] == verdict
    assert found.keys() == documented("gate")
    assert all(one.keys() >= CHECK_KEYS for one in found["checks"])
    assert (found["more_prompts"] is not None) == (code == 3)
    by_name = {one["name"]: one["verdict"] for one in found["checks"]}
    assert by_name["toxicity"] == verdict
    assert by_name["fluency"] == by_name["independent_judge"] == "not_assessed"
    suite = ElementTree.parse(junit).getroot()[0]
    cases = {case.get("name"): {kind.tag for kind in case} for case in suite}
    expected = {"pass": set(), "fail": {"failure"}, "can't tell": {"error"}, "not_assessed": {"skipped"}}
    assert cases == {name: expected[told_] for name, told_ in by_name.items()}
    assert int(suite.get("tests", "0")) == len(cases)
    assert int(suite.get("skipped", "0")) == list(by_name.values()).count("not_assessed")
    lines = summary.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    assert len(rows) == 1 + len(cases)
    assert verdict in lines[0]
    shown = shell(*asked)
    assert shown.code == code
    assert f"{verdict}: {new} against base (" in " ".join(shown.out.split())


def test_wrong_use_has_another_code(shell: Shell, runs: dict[str, Path], tmp_path: Path) -> None:
    assert shell.fails("gate", runs["better"]).code == 2
    for wrong in (["margins.topc=1"], ["--junit", tmp_path / "none" / "x.xml"], ["--config", "none.yaml"]):
        done = shell.fails("gate", runs["better"], "--against", runs["base"], *wrong)
        assert done.code == 2, done
    assert shell.fails("gate", tmp_path / "none", "--against", runs["base"]).code == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    done = shell.fails("gate", runs["better"], "--against", runs["base"], "--junit", folder)
    assert (done.code, list(tmp_path.glob("*.tmp"))) == (2, [])


def test_a_summary_may_go_to_a_pipe(runs: dict[str, Path], tmp_path: Path) -> None:
    """/dev/stdout, or a pipe of the shell's, is written to and not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "rewardlm", "gate", runs["better"], "--against", runs["base"], "--summary", pipe]
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as done:
        text = pipe.read_text()
        assert done.wait(120) in (0, 3)
    assert text.startswith("### ")
    assert pipe.is_fifo()


def test_a_hostile_label_stays_a_text(shell: Shell, tmp_path: Path) -> None:
    label = "<b>|`x`\x1b[31m & ]]>"
    for name, toxic, shown in (("base", 60, "base"), ("new", 20, label)):
        done = shell("import", table(tmp_path / f"{name}.csv", toxic), "--label", shown, "--out", tmp_path / name)
        assert done.code == 0, done.err
    junit, summary = tmp_path / "gate.xml", tmp_path / "gate.md"
    done = shell("gate", tmp_path / "new", "--against", tmp_path / "base", "--junit", junit, "--summary", summary)
    assert "\x1b" not in done.out
    name = ElementTree.parse(junit).getroot()[0].get("name", "")
    assert "<b>|`x`" in name
    assert "<b>" not in summary.read_text()


def test_the_example_of_margins_is_read(tmp_path: Path) -> None:
    found = build(GateSettings, file=EXAMPLE / "gate.yaml", flags={"against": "x"})
    assert found.margins == GateSettings(against=Path("x")).margins, "the file spells the defaults out"
    assert found.required == ["independent_judge", "refusals", "topic", "fluency"]


@pytest.mark.slow
def test_the_github_action_runs_as_a_script(shell: Shell, tmp_path: Path) -> None:
    """Its own lines, in a shell as the runner's; the model and the judges are the tests'."""
    workflow = yaml.safe_load((EXAMPLE / "github-action.yml").read_text())
    (job,) = workflow["jobs"].values()
    steps = [step for step in job["steps"] if "run" in step and step["name"] != "Install"]
    assert [step["name"] for step in steps] == ["Measure the model in use", "Measure the new one", "Gate"]
    prompts = [{"prompt": f"You are all number {n}", "toxicity": 0.9} for n in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    (tmp_path / "gate.yaml").write_text((EXAMPLE / "gate.yaml").read_text().replace("witness", "lexical"))
    for seed, folder in enumerate((tmp_path / "main" / "adapter", tmp_path / "adapter")):
        trained = shell(
            "finetune", "tiny", "--dialogues", "starter-plain", "--limit", "4", "--seed", seed, "--out", folder
        )
        assert trained.code == 0, trained.err
    binary = tmp_path / "bin"
    binary.mkdir()
    (binary / "rewardlm").write_text(f'#!/bin/sh\nexec {sys.executable} -m rewardlm "$@"\n')
    (binary / "rewardlm").chmod(0o755)
    summary = tmp_path / "summary"
    environment = {
        **os.environ, **workflow["env"], "PATH": f"{binary}:{os.environ['PATH']}", "MODEL": "tiny",
        "MEASURE": "--prompts prompts.jsonl --samples 2 --max-new-tokens 8 --scorer lexical",
        "GITHUB_STEP_SUMMARY": str(summary),
    }  # fmt: skip
    codes = []
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr
    assert codes[:2] == [0, 0]
    assert codes[2] in (1, 3), "a dozen prompts can't show that nothing was lost"
    assert summary.read_text().startswith("### ")
    # Whatever the file requires was measured by the steps before.
    assert "required, but" not in summary.read_text()
    ElementTree.parse(tmp_path / "gate.xml")


def test_power_for_a_script(shell: Shell, runs: dict[str, Path], tmp_path: Path) -> None:
    found = told(shell, "power", "--effect", "0.1", "--share", "0.3", "--samples", "1", "draws=200")
    assert found.keys() == documented("power")
    assert found["samples"] == 1
    assert found["power"] == pytest.approx(0.8, abs=0.07)
    of_pilot = told(shell, "power", runs["base"], "--effect", "0.2", "draws=200")
    assert (of_pilot["share"], of_pilot["pilots"]) == (0.6, ["base"])
    assert of_pilot["prompts"] < found["prompts"]
    page = tmp_path / "power.html"
    shown = shell("power", runs["base"], "--effect", "0.2", "--out", page, "draws=100")
    assert "To see a fall of the toxic share by 20.0 points (60.0 % → 40.0 %)" in " ".join(shown.out.split())
    assert "data-figure" in page.read_text()
    assert shell.fails("power", "--share", "0.01").code == 2
    assert shell.fails("power", tmp_path / "none").code == 1
