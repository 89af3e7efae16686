"""The fenced blocks and the commands in running text of README.md and docs/, and what is to be done with each.

A block is run, unless an HTML comment right above it says why it can't be:

    <!-- not run: needs a GPU -->

Then it is read: commands by the real command line's parser, Python by Python's, YAML by the settings that it holds.
Text below ``<!-- printed by the block above -->`` is what the Python before it must print, but for the numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Tables that code writes: each has a test of its own.
GENERATED = {"docs/settings.md"}
# No command and no code of ours: output, formulas, rows of a file that a page explains.
PLAIN = {"text", "json", "jsonl", "csv", "diff"}
PROGRAMS = {
    "rewardlm",
    "make",
    "pip",
    "python",
    "torchrun",
    "accelerate",
    "sbatch",
    "ray",
    "pytest",
    "cd",
    "git",
    "export",
}
_FENCE = re.compile(
    r"(?:^<!-- (?:not run: (?P<reason>[^\n]+?)|(?P<printed>printed by the block above)) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>[a-z]*)(?: [^\n]*)?\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`(?P<code>[^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A piece of a page. ``reason`` says why it is only read; ``None`` means that it is run."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    printed: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README and every page of docs, as paths in the repository."""
    found = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))
    return ["README.md", *(page for page in found if page not in GENERATED), "recipes/README.md", "CONTRIBUTING.md"]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8") if text is None else text
    found = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("code"))
        code = re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        found.append(
            Block(page, line, _language(fence["language"], code), code, fence["reason"], bool(fence["printed"]))
        )
    return found


def _language(named: str, code: str) -> str:
    """A block without a name is commands where it begins with one, else text."""
    first = code.split(maxsplit=1)[0] if code.strip() else ""
    return named or ("bash" if first in PROGRAMS else "text")


def spans(page: str) -> list[Block]:
    """What stands in backticks in running text."""
    text = (ROOT / page).read_text("utf-8")
    prose = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    return [
        Block(page, prose.count("\n", 0, one.start()) + 1, "inline", " ".join(one["code"].split()), "in running text")
        for one in _INLINE.finditer(prose)
    ]


def inline_commands(page: str) -> list[Block]:
    """Commands in running text: spans that begin with ``rewardlm`` and a command."""
    return [span for span in spans(page) if re.match(r"rewardlm (?!--)[a-z]", span.code)]
