"""What a user reads on stderr is ours: no library's bars, advice or deprecations, from any usual command.

The commands run one after the other in one process: most of a short one's time is its imports.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from rewardlm.cli import quiet

# Marks what our own code says, and warnings from our own files; whatever else comes out on stderr is a library's.
MARKED = """
import sys
import rewardlm.progress as progress
import rewardlm.cli.app as app

def say(text):
    print("\\n".join("OURS " + line for line in text.split("\\n")), file=sys.stderr, flush=True)

def warn(message, category, filename, *rest, **more):
    whose = "OURS " if "/rewardlm/" in filename else filename + ": "
    print(whose + " ".join(f"warning: {message}".split()), file=sys.stderr)

progress.say, app._warn = say, warn
for command in sys.stdin.read().splitlines():
    print("COMMAND " + command, file=sys.stderr, flush=True)
    sys.argv = ["rewardlm", *command.split()]
    try:
        app.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"OURS ended with {ended.code}")
"""
COMMANDS = [
    "measure tiny --prompts starter --limit 4 --max-new-tokens 4 --label PT --out pt",
    "finetune tiny --dialogues starter --limit 12 max_steps=2 --out ft",
    "rlaf tiny --adapter ft --prompts starter --limit 8 --reward starter --steps 1 --batch-size 4 --max-new-tokens 4 "
    "--out rl",
    "measure tiny --adapter rl --prompts starter --limit 4 --max-new-tokens 4 --label RL --out rlm",
    "measure tiny --load 4bit --prompts starter --limit 2 --max-new-tokens 4 --scorer lexical --out bits",
    "score pt --scorer lexical2",
    "compare pt rlm",
    "report pt rlm --out page.html",
    "interpret pt rlm attribution.tokens=2 limit=2 --out inside",
    "merge tiny --adapter rl --out merged",
    "judge evaluate starter,lexical --suite suite.csv n_resamples=100 speed=false",
    "judge migrate scored.csv --to lexical --out moved n_resamples=100",
]


@pytest.mark.slow
def test_commands_say_nothing_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "suite.csv").write_text("text,label\nYou idiot,1\nHello there,0\nI hate you,1\nNice day,0\n")
    (tmp_path / "scored.csv").write_text("text,score\nYou idiot,0.9\nHello there,0\nI hate you,0.8\nNice day,0.1\n")
    done = subprocess.run(
        [sys.executable, "-c", MARKED],
        input="\n".join(COMMANDS),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, list[str]] = {"before them": []}
    for line in done.stderr.splitlines():
        if line.startswith("COMMAND "):
            said[line.removeprefix("COMMAND ")] = []
        elif line.strip() and not line.startswith("OURS "):
            [*said.values()][-1].append(line)
    assert [*said][1:] == COMMANDS
    assert not {command: lines for command, lines in said.items() if lines}


@pytest.mark.slow
def test_all_of_it_can_be_read() -> None:
    """The same library call, with and without REWARDLM_VERBOSE: a warning that the first hides and the second shows."""
    code = (
        "from rewardlm.cli.quiet import quieten; quieten()\n"
        "import warnings; warnings.warn('old', FutureWarning)\n"
        "import logging; logging.getLogger('bitsandbytes').warning('slow kernel')\n"
        "logging.getLogger('bitsandbytes').error('broken')\n"
    )
    said = {}
    for verbose in ("", "1"):
        environment = {**os.environ, "REWARDLM_VERBOSE": verbose}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        said[verbose] = done.stderr
    assert said[""].strip() == "broken", "errors stay"
    assert all(words in said["1"] for words in ("old", "slow kernel", "broken"))


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    before = logging.getLogger("bitsandbytes").level
    with warnings.catch_warnings():
        quiet.quieten()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    logging.getLogger("bitsandbytes").setLevel(before)
