"""A gate's verdict for people and machines: in the terminal, as JUnit XML, and in Markdown for a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rewardlm.formats import NONE, interval, percent, points, signed
from rewardlm.markdown import markdown
from rewardlm.measuring.gate import RELATIVE, GateCheck, GateResult, GateVerdict
from rewardlm.terminal import plain

if TYPE_CHECKING:
    from rich.console import Console

_MARKS: dict[GateVerdict, str] = {"pass": "✅", "fail": "❌", "can't tell": "❔", "not_assessed": "➖"}
_STYLES: dict[GateVerdict, str] = {"pass": "green", "fail": "red", "can't tell": "yellow", "not_assessed": "dim"}
_HEADINGS = ("check", "verdict", "change", "95 % interval", "margin")
_KINDS: dict[GateVerdict, str] = {"fail": "failure", "can't tell": "error", "not_assessed": "skipped"}


def print_gate(found: GateResult, console: Console) -> None:
    """Print every check, and the verdict last."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for check in found.checks:
        name, verdict, *numbers = map(plain, row(check))
        table.add_row(name, Text(verdict, style=_STYLES[check.verdict]), *numbers)
    console.print(table)
    for check in found.checks:
        if check.verdict not in ("pass", "not_assessed"):
            console.print(Text(f"{check.name}: {plain(check.message)}{_more(check)}", style=_STYLES[check.verdict]))
    if found.primary_fixed.when != "before":
        console.print(Text(plain(_fixed(found)), style="yellow"))
    console.print(Text(plain(heading_of(found)), style=_STYLES[found.verdict]))


def row(check: GateCheck) -> tuple[str, ...]:
    """A check as texts: see ``_HEADINGS``."""
    if check.estimate is None:
        return check.name, check.verdict.replace("_", " "), NONE, NONE, _size(check, check.margin)
    if check.name == "pairs":
        return check.name, check.verdict, percent(check.estimate), NONE, percent(check.margin)
    ends = interval(check.ci95, lambda end: _change(check, end))
    return check.name, check.verdict, _change(check, check.estimate), ends, _size(check, check.margin)


def heading_of(found: GateResult) -> str:
    """The verdict in a sentence."""
    counts = [
        f"{number} {verdict.replace('_', ' ')}"
        for verdict in _MARKS
        if (number := sum(check.verdict == verdict for check in found.checks))
    ]
    more = "" if found.more_prompts is None else f"; about {found.more_prompts:,} more prompts would tell"
    return f"{found.verdict}: {found.new} against {found.against} ({', '.join(counts)}{more})"


def _fixed(found: GateResult) -> str:
    return f"The primary outcome: {found.primary_fixed.sentence[0].lower()}{found.primary_fixed.sentence[1:]}"


def as_markdown(found: GateResult) -> str:
    """A table for a pull request, with the checks that didn't pass in sentences."""
    lines = [f"### {_MARKS[found.verdict]} RewardLM: {markdown(heading_of(found))}", ""]
    one = found.primary
    lines += [f"What had to fall: {markdown(f'{one.metric}, {one.split}, judged by {one.scorer}')}.", ""]
    if found.primary_fixed.when != "before":
        lines += [markdown(_fixed(found)), ""]
    lines += ["| " + " | ".join(_HEADINGS) + " |", "| --- | --- | --: | --: | --: |"]
    for check in found.checks:
        name, verdict, *numbers = row(check)
        cells = (markdown(name), f"{_MARKS[check.verdict]} {verdict}", *map(markdown, numbers))
        lines.append("| " + " | ".join(cells) + " |")
    said = [
        f"- **{markdown(check.name)}**: {markdown(check.message + _more(check))}"
        for check in found.checks
        if check.verdict != "pass"
    ]
    return "\n".join([*lines, "", *said]).rstrip() + "\n"


def as_junit(found: GateResult) -> bytes:
    """JUnit XML: a test a check; can't tell is an error, and what wasn't assessed is skipped."""
    counts = {kind: sum(_KINDS.get(check.verdict) == kind for check in found.checks) for kind in _KINDS.values()}
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"rewardlm gate: {found.new} against {found.against}"),
        tests=str(len(found.checks)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
    )
    for check in found.checks:
        case = ElementTree.SubElement(suite, "testcase", classname="rewardlm.gate", name=check.name)
        if check.verdict in _KINDS:
            message = _xml(check.message + _more(check))
            ElementTree.SubElement(case, _KINDS[check.verdict], message=message)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _more(check: GateCheck) -> str:
    if check.verdict != "can't tell" or check.needed is None:
        return ""
    unit = "pairs of answers" if check.unit == "prompts" else check.unit
    return f"; {check.n:,} {unit} were there, about {check.needed:,} would tell"


def _change(check: GateCheck, value: float) -> str:
    return f"{signed(100 * value, 1)} %" if check.name in RELATIVE else points(value)


def _size(check: GateCheck, value: float | None) -> str:
    if value is None:
        return NONE
    return percent(value) if check.name in RELATIVE else points(value).lstrip("+±")


def _xml(text: str) -> str:
    """Without what XML can't hold."""
    return plain(text).encode("utf-8", "replace").decode()
