"""What the documentation's site has beside the files in docs/: reference pages that are made when it is built.

- reference/commands.md is what every command's ``--help`` says.
- reference/python.md has the public names of ``rewardlm``, from their docstrings.
- reference/comparison.md explains the keys of docs/comparison.schema.json.
- CHANGELOG.md, CONTRIBUTING.md, ARCHITECTURE.md and the judges' cards are pages too, from where they lie.

Links out of docs/ lead to those pages. A link to source code becomes its path, because the site is read without it.
Formulas become MathML here, so that the browser fetches nothing to set them.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import latex2mathml.converter
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import rewardlm
from rewardlm.cli.app import app

ROOT = Path(__file__).parents[2]
# Files that lie elsewhere in the repository, and the pages that they become.
ELSEWHERE = {
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "ARCHITECTURE.md": "reference/architecture.md",
    "recipes/README.md": "reference/recipes.md",
    "src/rewardlm/judges/starter/README.md": "reference/starter.md",
    "src/rewardlm/judges/witness/README.md": "reference/witness.md",
    "src/rewardlm/judges/starter_pairs/README.md": "reference/starter_pairs.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
_ROW = re.compile(r"\|")
_FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds."""
    pages = {
        "reference/commands.md": commands(),
        "reference/python.md": python(),
        "reference/comparison.md": comparison(json.loads((ROOT / "docs/comparison.schema.json").read_text("utf-8"))),
    }
    for source, target in ELSEWHERE.items():
        if target != "index.md":
            pages[target] = moved(_without_front_matter((ROOT / source).read_text("utf-8")), source, target)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links out of docs/ lead to a page of the site, or become a path."""
    here = page.file.src_uri
    return as_on_github(markdown if page.file.generated_by else moved(markdown, f"docs/{here}", here))


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers set by themselves."""

    def set_formula(found: re.Match[str]) -> str:
        formula = html.unescape(found["tex"]).strip()
        if found["tag"] == "span":
            return latex2mathml.converter.convert(formula)
        # On a phone a long one scrolls by itself, so the keyboard must reach it.
        return latex2mathml.converter.convert(formula, display="block").replace("<math", '<math tabindex="0"', 1)

    return _FORMULA.sub(set_formula, content)


def as_on_github(markdown: str) -> str:
    """With a blank line before each list and table: GitHub needs none, the site's Markdown does."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        begins = next((kind for kind in (_ITEM, _ROW) if kind.match(line)), None)
        if begins and not fenced and before.strip() and not begins.match(before) and not before.startswith("  "):
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


def moved(markdown: str, source: str, target: str) -> str:
    """The text of ``source`` (a path in the repository) with its links as the page ``target`` of the site has them."""

    def link(found: re.Match[str]) -> str:
        address, _, anchor = found["target"].partition("#")
        if not address or ":" in address:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), address))
        if path in ELSEWHERE:
            page = ELSEWHERE[path]
        elif path.startswith("docs/"):
            page = path.removeprefix("docs/")
        else:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{source}: the link to {address} leads nowhere")
            text = found["text"]
            return text if text.strip("`") == path else f"{text} (`{path}`)"
        relative = posixpath.relpath(page, posixpath.dirname(target) or ".")
        return f"[{found['text']}]({relative}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def commands() -> str:
    """A chapter a command: what its ``--help`` prints."""
    parts = [
        "# Commands\n",
        "Each chapter is what `rewardlm COMMAND --help` prints. [Settings](../settings.md) lists the settings that "
        "have no flag of their own.\n",
    ]
    for name, command in _commands(typer.main.get_command(app), ()):
        context = command.make_context(f"rewardlm {name}".strip(), [], resilient_parsing=True, max_content_width=100)
        context.terminal_width = 100
        parts += [f"## {name or 'rewardlm'}\n", f"```text\n{command.get_help(context).rstrip()}\n```\n"]
    return "\n".join(parts)


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name in getattr(command, "list_commands", lambda _: [])(None):
        yield from _commands(command.get_command(None, name), (*path, name))


def python() -> str:
    """The public names of the package: functions first, then types."""
    where = {name: f"{module}.{name}" for module, names in rewardlm._FROM.items() for name in names}
    functions = [name for name in where if name[0].islower()]
    types = [name for name in where if name[0].isupper()]
    parts = [
        "# Python\n",
        "`import rewardlm as rl` gives these names. [Use it from Python](../python.md) shows how they go together.\n",
    ]
    for title, names in (("Functions", functions), ("Types", types)):
        parts += [f"## {title}\n", *(f"::: {where[name]}\n" for name in sorted(names))]
    return "\n".join(parts)


def comparison(schema: Mapping[str, Any]) -> str:
    """A table a type of the JSON that ``rewardlm compare --json`` prints."""
    parts = [
        "# The JSON of a comparison\n",
        "`rewardlm compare RUN… --json` prints one `Comparison`. The schema is "
        "[comparison.schema.json](../comparison.schema.json). [What the numbers mean](../measuring.md) defines each.\n",
    ]
    for name, kind in {"Comparison": schema, **schema["$defs"]}.items():
        parts += [f"## {name}\n", f"{kind.get('description', '')}\n", "| key | type | meaning |", "|---|---|---|"]
        for key, about in kind["properties"].items():
            meaning = " ".join(about.get("description", "").split()).replace("|", r"\|").replace("<", r"\<")
            parts.append(f"| `{key}` | {_kind(about)} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _kind(about: Mapping[str, Any]) -> str:
    """A JSON type in words."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_kind(one) for one in about["anyOf"]))
    if "enum" in about or "const" in about:
        return ", ".join(f"`{one}`" for one in about.get("enum", [about.get("const")]))
    if about.get("type") == "array":
        inner = about.get("items") or next(iter(about.get("prefixItems", [])), None)
        fixed = (
            f"{about['minItems']} × " if about.get("minItems") and about["minItems"] == about.get("maxItems") else ""
        )
        return f"list of {fixed}{_kind(inner)}" if inner else "list"
    if about.get("type") == "object" and isinstance(about.get("additionalProperties"), dict):
        return f"object of {_kind(about['additionalProperties'])}"
    return str(about.get("type", "any"))


def _without_front_matter(text: str) -> str:
    """A card's text without the YAML that the hub reads."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
