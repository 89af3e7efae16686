"""Every command and every snippet of README and the documentation is run, or read where it can't be run.

stand_ins.py says what stands in for large models and hours of training; blocks.py how a page says what can't be run.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest
import reading
import stand_ins
from blocks import GENERATED, PLAIN, ROOT, Block, blocks, inline_commands, pages, spans
from counting import count
from judge_servers import JudgeServers
from shell import Bash

from fake_service import FakeService
from rewardlm.errors import ConfigError

KNOWN = {"bash", "console", "python", "yaml", *PLAIN}
CODE = {page: [one for one in blocks(page) if one.language not in PLAIN or one.printed] for page in pages()}
RUN = {page: [block for block in found if block.reason is None] for page, found in CODE.items()}
READ = [block for found in CODE.values() for block in found if block.reason is not None]
# A number in shown output; what a test's small model gives is another one.
_NUMBER = re.compile(r"[-−+]?\d[\d.,]*")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [page for page, found in RUN.items() if found])
def test_a_pages_blocks_run_in_their_order(
    page: str, home: Path, served: FakeService, judge_servers: JudgeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "PERSPECTIVE_API_KEY": "a-key",
        "REWARDLM_PERSPECTIVE_URL": served.url.replace("/v1", "/v1alpha1"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (home / "examples").symlink_to(ROOT / "examples")
    # What a page makes by itself is not there before.
    for name in stand_ins.written_by("".join(block.code for block in RUN[page])):
        shutil.rmtree(home / name, ignore_errors=True)
    bash = Bash(home, monkeypatch, environment)
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in RUN[page]:
        if "judge serve" in block.code:
            judge_servers.prepare()
        # On a page that starts a server of judges, the address is that server's; elsewhere a model's.
        code = judge_servers.here(block.code).replace("http://127.0.0.1:8000/v1", served.url)
        if block.language == "python":
            printed = _run_python(block, stand_ins.python(code), names, home, monkeypatch)
        elif block.printed:
            assert_printed(block, code.splitlines(), printed)
        elif block.language == "console":
            _run_console(block, code, bash)
        elif block.language == "yaml":
            reading.read_yaml(block)
        else:
            ended, printed = bash(code)
            # A gate's exit code is its verdict, and the stand-ins can't tell.
            expected = (0, 1, 3) if "rewardlm gate" in block.code else (0,)
            assert ended in expected, f"{block}:\n{block.code}\nended with {ended}:\n{printed}"
        count(page, "run")


def _run_python(block: Block, code: str, names: dict[str, object], home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Lines of a page are kept, so that a traceback names them.
    compiled = compile("\n" * (block.line - 1) + code, str(ROOT / block.page), "exec")
    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(home)
        patch.syspath_prepend(str(home))
        exec(compiled, names)
    return printed.getvalue()


def _run_console(block: Block, code: str, bash: Bash) -> None:
    """Commands after ``$``; the lines below each are its output, but for numbers, and for what … stands for."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        n = next((i for i, line in enumerate(lines) if not line.endswith("\\")), 0) + 1
        ended, printed = bash("\n".join(lines[:n]))
        assert ended == 0, f"{block}: ended with {ended}:\n{printed}"
        assert_printed(block, lines[n:], printed)


def assert_printed(block: Block, shown: list[str], printed: str) -> None:
    """Each line that is shown was printed, in that order, whatever its numbers are and … stands for."""
    lines = [line.strip() for line in printed.splitlines()]
    at = 0
    for line in (line.strip() for line in shown if line.strip() not in ("", "…")):
        pattern = ".*".join(_NUMBER.pattern.join(map(re.escape, _NUMBER.split(part))) for part in line.split("…"))
        found = next((i for i in range(at, len(lines)) if re.search(pattern, lines[i])), None)
        assert found is not None, f"{block}: {line!r} is not printed after the lines before it:\n{printed}"
        at = found + 1


@pytest.mark.parametrize("block", READ, ids=str)
def test_a_block_that_is_not_run_is_understood(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    assert block.reason is not None
    assert len(block.reason) > 8, "say why it can't be run"
    if block.language == "python":
        reading.read_python(block)
    elif block.language == "yaml":
        reading.read_yaml(block)
    else:
        commands = reading.commands_in(block.code)
        assert commands
        for words in commands:
            reading.read_command(words, monkeypatch)
    count(block.page, "read")


@pytest.mark.parametrize("page", pages())
def test_commands_in_running_text_exist_with_their_flags(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in inline_commands(page):
        for words in reading.commands_in(block.code):
            try:
                reading.read_rewardlm(words[1:], monkeypatch, sentence=True)
            except AssertionError as error:
                pytest.fail(f"{block}: `{block.code}`: {error}")
        count(page, "read in a sentence")


# Flags that pages name and that are other programs'.
OF_OTHERS = {
    "--no-deps", "--enable-lora", "--requeue", "--mixed_precision", "--use_fsdp", "--use_deepspeed", "--log_samples",
    "--nproc_per_node", "--multi_gpu", "--num_processes", "--instructions", "--check", "--warmup",
    "--control-vector-scaled",
}  # fmt: skip


def test_settings_and_flags_in_running_text_exist() -> None:
    """``key.sub=value`` is a setting of some command, and ``--flag`` one of its flags."""
    known = reading.flags_of_all() | OF_OTHERS
    wrong = []
    for page in pages():
        for span in spans(page):
            key = re.match(r"([a-z_]+(?:\.[A-Za-z_0-9]+)+)=", span.code)
            if key and not reading.is_any_setting(key[1]):
                wrong.append(f"{span}: no setting {key[1]}")
            flag = re.match(r"--[a-z][a-z_-]*", span.code)
            if flag and flag[0] not in known:
                wrong.append(f"{span}: no flag {flag[0]}")
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_every_fence_has_a_language_that_is_known(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    found = blocks(page)
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), f"{page}: a fence isn't closed"
    for block in found:
        assert block.language in KNOWN, f"{block}: ```{block.language}"


def test_nothing_is_left_out() -> None:
    """Every block of code is in one of the two lists; no comment stands anywhere but above a fence."""
    assert sum(map(len, RUN.values())) + len(READ) == sum(map(len, CODE.values()))
    for page in pages():
        marks = re.findall(r"^ *<!-- not run:", (ROOT / page).read_text("utf-8"), re.MULTILINE)
        assert len(marks) == len([block for block in blocks(page) if block.reason is not None]), page
    assert {str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")} <= {*pages(), *GENERATED}


# The tests of the tests: each of these must be found.


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("rewardlm mesure tiny --out x", "no command 'mesure'"),
        ("rewardlm measure tiny --samplez 4 --out x", "samplez"),
        ("rewardlm measure tiny samplez=4 --out x", "samplez"),
        ("rewardlm measure tiny --out x --engine vllm", "engine"),
        ("make nonsense", "no target"),
        ("pip install 'rewardlm[nonsense]'", "no such extra"),
        ("torchrun --nproc_per_node 2 --nonsense 3 -m rewardlm measure tiny --out x", "2"),
        ("curl http://x", "nobody knows"),
    ],
)
def test_a_wrong_command_is_not_understood(code: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = reading.commands_in(code)
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception), match=problem):
        reading.read_command(words, monkeypatch)


@pytest.mark.parametrize(
    "code", ["rl.mesure()", "from rewardlm import nonsense", "undefined + 1", "import no_such_module"]
)
def test_wrong_python_is_not_understood(code: str) -> None:
    with pytest.raises((AssertionError, ImportError)):
        reading.read_python(Block("a page", 1, "python", code, "a test"))


def test_wrong_yaml_is_not_understood() -> None:
    reading.read_yaml(Block("a page", 1, "yaml", "# rewardlm rlaf\nmodel: tiny\nsteps: 3\n", None))
    reading.read_yaml(Block("a page", 1, "yaml", "model: tiny\nmeasure: {samples: 2}\n", None))
    with pytest.raises(ConfigError, match="stepz"):
        reading.read_yaml(Block("a page", 1, "yaml", "# rewardlm rlaf\nmodel: tiny\nstepz: 3\n", None))


def test_a_page_is_cut_into_blocks_with_their_reasons() -> None:
    text = (
        "Text\n```bash\nrewardlm --help\n```\n\n<!-- not run: needs a GPU -->\n```python\nx = 1\n```\n```\nplain\n```\n"
    )
    found = [(one.language, one.code, one.reason, one.line) for one in blocks("a page", text)]
    assert found == [
        ("bash", "rewardlm --help\n", None, 2),
        ("python", "x = 1\n", "needs a GPU", 7),
        ("text", "plain\n", None, 10),
    ]


def test_bash_does_what_a_shell_does_and_refuses_what_must_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page").mkdir()
    bash = Bash(tmp_path / "page", monkeypatch, {"GREETING": "hello"})
    ended, printed = bash("echo $GREETING > file  # a comment\nrewardlm --version | tr . _\ncat file\n")
    assert (ended, printed) == (0, "0_1_0\nhello\n")
    ended, printed = bash("rewardlm nonsense\necho not reached")
    assert ended == 2
    assert "not reached" not in printed
    assert bash("pip install rewardlm")[0] == 97
    with pytest.raises(AssertionError, match="is not printed"):
        _run_console(Block("a page", 1, "console", "", None), "$ rewardlm --version\nversion 7\n", bash)
    _run_console(Block("a page", 1, "console", "", None), "$ rewardlm --version\n9.9.9\n", bash)
