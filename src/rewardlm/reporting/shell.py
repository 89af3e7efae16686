"""What every page has in common: its head, its scripts and figures, and the rules that keep hostile texts harmless.

Texts come from models, data sets and file names. The templates escape every value, figures are data that a fixed script
draws, and a Content-Security-Policy lets nothing else run and nothing leave the page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rewardlm.errors import RunError
from rewardlm.runs import write_atomically

# What HTML can't hold: control characters, and surrogates, which UTF-8 can't write.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
# What turns the letters after it around. In a name it would turn around the rest of a sentence, with its numbers.
_TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")

# Jinja escapes quotes and angle brackets in values.
_SECTION = re.compile(r"<section\b[^>]*>|</section>")
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_LONGEST_POLICY = 4096
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')


def render(
    template: str, filters: Mapping[str, Callable[..., object]], *, assets: Sequence[str] = (), **values: Any
) -> str:
    """The page of ``template`` (which extends shell.html.j2) as one HTML text, with the styles and scripts of
    ``assets`` (file names among the templates) after those of every page.

    Templates call ``figure(spec)`` with plotly's JSON; it gives the id under which the page's script draws it. A text
    that stands alone in its element, such as an answer, is passed through ``as_written``: it keeps the characters by
    which it changes its direction, and all others lose them.
    """
    import jinja2
    from markupsafe import Markup, escape
    from plotly.offline import get_plotlyjs

    drawn: list[tuple[str, str]] = []

    def figure(spec: Mapping[str, Any]) -> str:
        """Keep the figure's data for the end of the page and give the id under which it is drawn."""
        name = f"figure-{len(drawn) + 1}"
        # "<" can't be left as it is: "</script>" in a label would end the data and begin markup.
        data = json.dumps(spec, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
        drawn.append((name, data))
        return name

    more = [name for name in assets if name.endswith(".js")]
    scripts = [*map(_asset, more), *map(_asset, ["page.js", "inside.js"])]
    # Large: it takes a second to start, so the page's script starts it only when a figure is to be drawn.
    plotly = get_plotlyjs().replace("\r\n", "\n")
    styles = [_asset(name) for name in ["page.css", "inside.css", *assets] if name.endswith(".css")]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rewardlm.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_of_page,
    )
    environment.filters.update(filters)
    environment.filters["as_written"] = lambda text: escape(_writable(text))
    return environment.get_template(template).render(
        css=Markup("\n".join(styles)),
        scripts=[Markup(script) for script in scripts],
        plotly=Markup(plotly),
        policy=_policy([*scripts, plotly]),
        figure=figure,
        contents=_contents,
        drawn=drawn,
        raw=Markup,
        **values,
    )


def write_page(page: str, out: Path) -> Path:
    """Write a page, making its folder. Raises RunError where that can't be done."""
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page.encode())
    except OSError as error:
        raise RunError(f"can't write the report to {out}: {error.strerror}") from error
    return out


def policy_of(page: Path) -> str:
    """The Content-Security-Policy of a page that ``write_page`` wrote, for whoever serves it: one that allows nothing
    where it has none.
    """
    with page.open("rb") as file:
        # It stands before everything that comes from a run.
        head = file.read(_LONGEST_POLICY).decode("utf-8", "replace")
    found = _POLICY.search(head)
    return "default-src 'none'" if found is None else html.unescape(found[1])


def side_by_side(trees: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of nested settings by dotted key: one cell if all agree, else one per model."""
    flat = [dict(_leaves(tree)) for tree in trees]
    rows = []
    for key in dict.fromkeys(key for leaves in flat for key in leaves):
        cells = [leaves.get(key, "—") for leaves in flat]
        rows.append({"key": key, "cells": cells[:1] if len(set(cells)) == 1 else cells})
    return rows


def short(value: object) -> str | None:
    """A model id as it is, but only the end of an absolute path: a page that is shared needn't tell who made it."""
    if value is None:
        return None
    text = str(value)
    return "…/" + "/".join(Path(text).parts[-2:]) if Path(text).is_absolute() else text


def in_line(text: str) -> str:
    """``text`` as it may stand within the page's own words: what can't be written, or would turn around what comes
    after it, becomes U+FFFD.
    """
    return _TURNING.sub("\ufffd", _writable(text))


def _contents(page: str) -> list[dict[str, Any]]:
    """The list of contents of a rendered ``page``: its sections that have a ``data-toc``, and how deep each lies.

    Texts are escaped before, so that none of them can look like a tag.
    """
    entries, depth = [], 0
    for tag in _SECTION.finditer(page):
        if tag[0].startswith("</"):
            depth -= 1
            continue
        attributes = {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(tag[0])}
        if "id" in attributes and "data-toc" in attributes:
            entries.append(
                {
                    "id": attributes["id"],
                    "title": attributes["data-toc"],
                    "count": attributes.get("data-toc-count"),
                    "depth": depth,
                }
            )
        depth += 1
    return entries


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", short(value) or "—"
        else:
            yield f"{prefix}{key}", "—" if value is None else json.dumps(value, ensure_ascii=False)


def _asset(name: str) -> str:
    return (resources.files("rewardlm.reporting") / "templates" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Only these very scripts run; styles are the page's own, images are those that plotly makes; no requests."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _writable(text: str) -> str:
    """``text`` with U+FFFD for what HTML or UTF-8 can't hold, and one kind of line ends."""
    return _UNWRITABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _of_page(value: Any) -> Any:
    """Jinja's last step before escaping."""
    return in_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
