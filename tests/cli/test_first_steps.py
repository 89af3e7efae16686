"""What a newcomer types first: nothing, --help, --version, an example, a slip of the finger, Tab, Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import Shell
from typer.main import get_command

from rewardlm.cli import flags
from rewardlm.cli.app import app
from rewardlm.cli.commands import COMMANDS, RESUMED, with_settings
from rewardlm.cli.examples import EXAMPLES

REWARDLM = [sys.executable, "-m", "rewardlm"]
GROUPS = ("judge", "steer", "label")
LINES = [(name, example.line) for name, examples in EXAMPLES.items() for example in examples]


class Caught(Exception):
    """Ends a command once its settings are made."""


def test_alone_it_shows_its_help(shell: Shell) -> None:
    for typed, command in (([], "measure"), (["judge"], "evaluate-pairs"), (["steer"], "fit")):
        done = shell(*typed)
        # Typer's own exit code of a group that was given nothing.
        assert done.code == 2
        assert done.err == ""
        assert done.out == shell(*typed, "--help").out
        assert f"\n  {command} " in done.out


def test_the_version_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--version']\nfrom rewardlm.cli.app import main\ntry: main()\nexcept SystemExit: "
    )
    code += "print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    version, loaded = done.stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d+.*", version)
    assert not {"torch", "pydantic", "numpy", "rich", "yaml"} & set(loaded.split())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("measure", "needs MODEL: Hub id, path or alias of a model"),
        ("measure tiny", "needs --out: Directory of the run"),
        ("judge evaluate", "rewardlm judge evaluate needs NAME"),
        ("measure tiny --out o --scoer lexical", "has no --scoer: did you mean --scorer?"),
        ("measure tiny --out o --nonsense", "has no --nonsense: see rewardlm measure --help"),
        ("measure tiny --out o --preset quik", "did you mean 'quick'?"),
        ("demo --preset ful", "did you mean 'full'?"),
        ("settings mesure", "did you mean 'measure'?"),
        ("rlaf tiny --out o --algorithm gpro", "did you mean 'grpo'?"),
        ("mesure tiny", "No such command 'mesure'. Did you mean 'measure', 'merge'? rewardlm --help"),
        ("help", "No such command 'help'; rewardlm --help"),
        ("doctor tiny more", "rewardlm doctor --help"),
        ("rlaf tiny --out o lr=1", "unknown setting 'lr': did you mean 'learning_rate'?"),
        ("rlaf tiny --out o coef=1", "unknown setting 'coef': did you mean 'retain.coef' or 'kl.coef'?"),
        (
            "measure tiny --out o --part tarin",
            "--part (setting 'part') is 'tarin': expected 'all', 'train' or 'measure'",
        ),
        (
            "measure tiny --out o --limit many",
            "--limit (setting 'limit') is 'many': expected a whole number, at least 1",
        ),
    ],
)
def test_a_slip_is_told_with_what_was_meant(shell: Shell, typed: str, said: str) -> None:
    done = shell.fails(*typed.split())
    assert done.code == 2
    assert said in done.err


def test_every_command_has_examples() -> None:
    assert EXAMPLES.keys() == {*COMMANDS, "", *GROUPS}
    for name, line in LINES:
        assert name in ("", *GROUPS) or line.startswith(f"rewardlm {name}"), line
    for examples in EXAMPLES.values():
        assert 1 <= len(examples) <= 4
        assert all(example.what[-1] in ".?" and len(example.what) <= 70 for example in examples)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("name", EXAMPLES)
def test_help_shows_examples_whole(shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shell(*name.split(), "--help").out.splitlines()
    for example in EXAMPLES[name]:
        assert lines[lines.index(f"  # {example.what}") + 1] == f"  {example.line}"
    said = " ".join(" ".join(lines).split())
    assert (f"rewardlm settings {name}" in said) == (name in with_settings() or name in ("", *GROUPS))
    before = lines[: lines.index("Examples:")]
    # A flag with its choices is one word.
    assert all(len(line) <= columns for line in before if max(map(len, line.split() or [""])) < columns - 20)


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_examples_are_what_the_commands_take(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is parsed by the real parser, and its settings are made and checked; nothing is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as demo does
    (tmp_path / "my.yaml").write_text("model: tiny\n")
    typed = shlex.split(re.split(r" [|>] ", line)[0])
    assert typed.pop(0) == "rewardlm"
    name = " ".join(typed[:2]) if " ".join(typed[:2]) in COMMANDS else typed[0]
    command: Any = get_command(app)
    for part in name.split():
        command = command.get_command(None, part)
    rest = typed[len(name.split()) :]
    context = command.make_context(name, list(rest))  # raises for a flag or an argument that isn't taken
    if name not in with_settings():
        assert context.params
        return
    original = flags.Given.settings

    def settings(self: Any, *defaults: Any, **arguments: Any) -> None:
        raise Caught(original(self, *defaults, **arguments))

    monkeypatch.setattr(flags.Given, "settings", settings)
    with pytest.raises(Caught):
        app(typed, standalone_mode=False)


def test_commands_that_go_on_are_those_that_say_so() -> None:
    """What Ctrl-C promises holds where a command resumes its --out."""
    assert {name for name in COMMANDS if f"{name} ".startswith(RESUMED)} == {
        "demo", "run", "measure", "finetune", "rlaf", "prefer", "interpret", "judge train", "judge train-pairs",
        "judge evaluate",
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which ``rewardlm`` is a command, and HOME is empty."""
    command = tmp_path / "bin" / "rewardlm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rewardlm "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}


def test_bash_completes_commands_flags_and_values(home: dict[str, str], tmp_path: Path) -> None:
    cases = {
        "rewardlm mea": {"measure"},
        "rewardlm judge eval": {"evaluate", "evaluate-pairs"},
        "rewardlm measure tiny --max": {"--max-new-tokens"},
        "rewardlm measure smol": {"smollm2-135m"},
        "rewardlm measure tiny --part ": {"all", "train", "measure"},
        "rewardlm measure tiny --scorer witness,lex": {"witness,lexical", "witness,lexical2"},
        "rewardlm measure tiny --preset q": {"quick"},
        "rewardlm rlaf tiny --algorithm r": {"rloo"},
        "rewardlm rlaf tiny kl.c": {"kl.coef="},
        "rewardlm settings rl": {"rlaf"},
    }
    script = ['eval "$(rewardlm --show-completion)"']
    for words in cases:
        quoted = " ".join(map(shlex.quote, words.split(" ")))
        script += [
            f"COMP_WORDS=({quoted}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()",
            '_rewardlm_completion rewardlm; echo "${COMPREPLY[@]}"',
        ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=120, env=home, cwd=tmp_path
    )
    assert done.stderr == ""
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(cases, found, strict=True)) == cases


def test_bash_completion_can_be_installed(home: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", "rewardlm --install-completion; true"],
        capture_output=True, text=True, timeout=60, env=home, cwd=tmp_path,
    )  # fmt: skip
    assert done.stderr == ""
    installed = tmp_path / ".bash_completions" / "rewardlm.sh"
    assert "complete -o default -F _rewardlm_completion rewardlm" in installed.read_text()
    assert str(installed) in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("rewardlm settings measure >&-", 0),
        ("rewardlm settings rlaf | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", 0),
        ("rewardlm settings rlaf >/dev/full", 1),
        ("rewardlm nonsense 2>&-", 2),
        # A dash and an apostrophe that this encoding doesn't have.
        ("PYTHONIOENCODING=ascii rewardlm settings measure >/dev/null", 0),
        ("PYTHONIOENCODING=latin-1 rewardlm settings interpret >/dev/null", 0),
        ("env -u HOME rewardlm settings score >/dev/null", 0),
        ("TERM=dumb rewardlm settings score >/dev/null", 0),
    ],
)
def test_ends_well_wherever_its_output_goes(home: dict[str, str], script: str, code: int) -> None:
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=home)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code == 1 else 0)


def test_a_pipe_gets_no_colours(home: dict[str, str]) -> None:
    done = subprocess.run(["rewardlm", "settings", "score"], capture_output=True, text=True, timeout=60, env=home)
    assert "\x1b" not in done.stdout + done.stderr
    assert "similarity" in done.stdout


def test_settings_are_readable_in_a_narrow_terminal(home: dict[str, str]) -> None:
    def in_a_terminal(columns: int, **more: str) -> str:
        shown = f"stty cols {columns}; rewardlm settings score"
        # The terminal's width counts, not one that an earlier test has left in the environment.
        environment = {name: value for name, value in home.items() if name not in ("COLUMNS", "LINES")} | more
        done = subprocess.run(
            ["script", "-qec", shown, "/dev/null"], capture_output=True, text=True, timeout=60, env=environment
        )
        return done.stdout.replace("\r\n", "\n")

    for columns in (60, 80):
        narrow = in_a_terminal(columns)
        assert max(map(len, narrow.splitlines())) <= columns
        # No word is cut off, as a table's narrow columns do.
        assert "…" not in narrow
        assert "The model under which the answers' perplexity is computed." in " ".join(narrow.split())
    assert "─" in in_a_terminal(120)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", in_a_terminal(120, NO_COLOR="1"))


SLOW = """
import pathlib, time
pathlib.Path("here").touch()
try:
    time.sleep(60)
finally:
    pathlib.Path("leaving").touch()
    {cleanup}
def judge(texts):
    return [0.0 for _ in texts]
"""


def interrupted(tmp_path: Path, cleanup: str, *marks: str) -> tuple[int, str, float]:
    """A command that was sent SIGINT when each of ``marks`` was there: exit code, stderr, seconds from the last."""
    (tmp_path / "slow.py").write_text(SLOW.format(cleanup=cleanup))
    typed = [*REWARDLM, "measure", "tiny", "--scorer", "slow:judge", "--out", "o"]
    running = subprocess.Popen(
        typed, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # Where the tests themselves run in the background, Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        for mark in marks:
            end = time.monotonic() + 50
            while not (tmp_path / mark).exists():
                assert time.monotonic() < end, mark
                assert running.poll() is None, mark
                time.sleep(0.01)
            running.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, said = running.communicate(timeout=50)
    finally:
        running.kill()
    return running.returncode, said, time.monotonic() - sent


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    code, said, _ = interrupted(tmp_path, "pass", "here")
    assert code == 130
    assert said == "error: interrupted: run the same command again to go on where it stopped\n"


def test_a_second_ctrl_c_ends_at_once_and_quietly(tmp_path: Path) -> None:
    code, said, seconds = interrupted(tmp_path, "time.sleep(60)", "here", "leaving")
    assert code == 130
    assert said == ""
    assert seconds < 20


def test_the_exception_of_a_command_without_arguments_is_typers() -> None:
    """app.py knows it by its name, since Typer doesn't export it."""
    with pytest.raises(typer.TyperException) as info:
        app([], standalone_mode=False)
    assert type(info.value).__name__ == "NoArgsIsHelpError"
