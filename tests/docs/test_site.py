"""The documentation as a site: it builds without a warning and without a network, and refers to nobody else's host."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from blocks import GENERATED, ROOT, pages

import rewardlm
from rewardlm.cli.commands import COMMANDS

pytest.importorskip("mkdocs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Whoever opens a connection meanwhile fails the test."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("building the site asked for a network")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


class Page(HTMLParser):
    """What a page makes a browser fetch, and its text by element ids."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids.add(given.get("id", ""))
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(given.get("href", ""))
        else:
            self.fetched += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


@pytest.mark.slow
def test_every_page_is_built_and_none_fetches_anything_from_elsewhere(site: Path) -> None:
    built = sorted(site.rglob("*.html"))
    expected = [page for page in pages() if page.startswith("docs/")] + sorted(GENERATED)
    for page in expected:
        name = page.removeprefix("docs/").removesuffix(".md")
        assert (site / ("index.html" if name == "index" else f"{name}/index.html")).exists(), page
    for file in built:
        for address in Page(file).fetched:
            assert not urlsplit(address).netloc, f"{file.relative_to(site)} fetches {address}"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", sheet.read_text("utf-8")):
            assert not urlsplit(address).netloc, f"{sheet.relative_to(site)} fetches {address}"


@pytest.mark.slow
def test_lists_and_tables_are_lists_and_tables(site: Path) -> None:
    """A list that begins without a blank line before it would be a paragraph with dashes in it."""
    for page in [page for page in pages() if page.startswith("docs/")]:
        text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        name = page.removeprefix("docs/").removesuffix(".md")
        html = (site / ("index.html" if name == "index" else f"{name}/index.html")).read_text("utf-8")
        content = html[html.index("<article") : html.index("</article")]
        items = re.findall(r"^ *(?:[-*]|\d+\.) ", text, re.MULTILINE)
        assert content.count("<li>") >= len(items), page
        tables = re.findall(r"^\|(?: ?:?-+:? ?\|)+$", text, re.MULTILINE)
        assert content.count("<table>") == len(tables), page


@pytest.mark.slow
def test_the_reference_is_whole(site: Path) -> None:
    """Every command, every public name, every key of the JSON."""
    commands = Page(site / "reference/commands/index.html").ids
    assert {name.replace(" ", "-") for name in COMMANDS} <= commands
    python = Page(site / "reference/python/index.html").ids
    names = set(rewardlm.__all__) - {"__version__"}
    assert names <= {one.rpartition(".")[2] for one in python}
    schema = json.loads((ROOT / "docs/comparison.schema.json").read_text("utf-8"))
    text = (site / "reference/comparison/index.html").read_text("utf-8")
    for kind in [schema, *schema["$defs"].values()]:
        for key in kind["properties"]:
            assert f"<code>{key}</code>" in text, key
    settings = (site / "settings/index.html").read_text("utf-8")
    assert "max_new_tokens" in settings


@pytest.mark.slow
def test_formulas_are_set_without_a_script(site: Path) -> None:
    text = (site / "measuring/index.html").read_text("utf-8")
    assert "<math" in text
    assert r"\binom" not in re.sub(r'alttext="[^"]*"', "", text)
    for file in site.rglob("index.html"):
        assert "arithmatex" not in file.read_text("utf-8"), file


@pytest.mark.slow
def test_no_source_path_of_this_machine_is_in_the_site(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert str(ROOT) not in file.read_text("utf-8"), file


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "recipes/README.md"]
)
def test_links_of_pages_beside_the_site_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if urlsplit(target).netloc:
            continue
        address, _, anchor = target.partition("#")
        file = (ROOT / page).parent / unquote(address) if address else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


def test_readme_is_short_and_explains_its_labels() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 120
    assert text.count("<!-- demo -->") == 2
    assert not re.search(r"\b(PT|FT|RL)\b", text)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []


def test_every_extra_is_in_the_table_of_the_installation() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(set(extras) - {"dev"})
    in_readme = re.findall(r"\| `?(\w+)`? \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert set(in_readme) & set(extras) <= set(table)


# What axe finds in mkdocs-material's own frame (its search, its menus, wide tables), and tables with an empty corner.
OF_THE_THEME = {"aria-dialog-name", "landmark-unique", "scrollable-region-focusable", "empty-table-header"}


@pytest.fixture
def served_site(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (390, "dark")])
def test_in_a_browser_it_searches_and_asks_nobody_else(browser, served_site: str, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    for name in ("", "measuring/", "settings/", "reference/commands/"):
        page.goto(served_site + name)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        violations = axe.Axe().run(page).response["violations"]
        found = {one["id"] for one in violations}
        assert found <= OF_THE_THEME, f"{name}: {[one for one in violations if one['id'] not in OF_THE_THEME]}"
    page.goto(served_site)
    if width < 600:
        page.click("label[for=__search]:visible")
    page.locator("input[name=query]").press_sequentially("narrative")
    page.wait_for_selector(".md-search-result__item a:visible", timeout=20_000)
    context.close()
    assert [url for url in asked if not url.startswith((served_site, "data:", "blob:"))] == []
    assert problems == []
